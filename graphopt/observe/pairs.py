"""The same data through two models at once: how a value of one goes with a value of the other."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace

import numpy as np
import onnx_ir as ir

from graphopt.contracts import Progress, Session, Silent
from graphopt.dataset import Dataset

from . import nonfinite, sweeps
from .collectors import Seen
from .gram import CrossGram, CrossGrams

Pair = tuple[str, str]


def collect_pair(
    first: ir.Model,
    second: ir.Model,
    wanted: Mapping[Pair, CrossGram],
    *,
    data: Dataset,
    open_session: Callable[[ir.Model], Session],
    progress: Progress | None = None,
    samples: int | None = None,
) -> dict[Pair, CrossGrams]:
    """Second moments between values of two models, of the same samples; nothing is cached.

    Args:
        first: A model, such as the original; both stay as they are.
        second: Another one that takes the same feeds, such as what compression made of it so far.
        wanted: By name of a value of the first and of one of the second.
        data: What to run on.
        open_session: Opens a model; called twice a sweep.
        progress: Told each sample.
        samples: Only the first so many.

    Raises:
        DataError, ModelError: As ``collect``.
    """
    data = data if samples is None else data.first(samples)
    collectors = {pair: asked.start() for pair, asked in wanted.items()}
    plan = sweeps.plan(first, list(dict.fromkeys(a for a, _ in wanted)), data)
    with (progress or Silent()).stage("observing both models", total=data.size * len(plan.sweeps)) as step:
        for names in plan.sweeps:
            pairs = [pair for pair in wanted if pair[0] in names]
            others = list(dict.fromkeys(b for _, b in pairs))
            plans = plan, sweeps.plan(second, others, data)
            batches = min((p.data for p in plans), key=lambda batched: batched.spans[0][1])
            runs = [
                sweeps.run(model, part, replace(planned, data=batches), open_session)
                for model, part, planned in zip((first, second), (names, others), plans, strict=True)
            ]
            for (start, batch, left), (_, _, right) in zip(*runs, strict=True):
                for model, values in ((first, left), (second, right)):
                    for name, array in values.items():
                        if not np.isfinite(array).all():
                            raise nonfinite.explain(model, name, start, batch, data, open_session)
                for a, b in pairs:
                    collectors[a, b].update(Seen.of(left[a], batch), Seen.of(right[b], batch))
                left.clear()  # the next run begins with nothing of this one in memory
                right.clear()
                step(batch.samples)
    return {pair: collector.result() for pair, collector in collectors.items()}
