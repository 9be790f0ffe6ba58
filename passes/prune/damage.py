"""What it is to the model's outputs when one group is pruned, or one block left out, by itself.

    damage = |y - y'|^2 / |y|^2        y the outputs, y' those with the one change

A group is pruned by about half, a block is left out; then the next few layers are fitted, as all will be in the end: they mend
much of what a change does, more of one than of another. What is fitted to some samples is measured on others, where there are
enough. The error of a group's other settings is in proportion.
"""

from __future__ import annotations

import dataclasses
import itertools
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import onnx_ir as ir

from graphopt import sensitivity
from graphopt.contracts import Context, Setting, Site
from graphopt.dataset import Batch, Dataset, Span
from graphopt.reconstruct import Step, fit_some, samples_a_run
from graphopt.replay import Replay

from .refit import Version

_ENOUGH = 0.1
"""Damage up to which blocks are measured one after another."""
_NO_DAMAGE = 1e-12
_SAMPLES = 96
"""On which the damage of each site is measured, of few data a third."""
_FITTED_ON = 48
"""Other samples, which the change is fitted to."""
_FITTED = 3
"""Layers behind a change that are fitted to see what it does to the outputs: those further on mend little more."""

_Model = TypeVar("_Model")


@dataclass(frozen=True)
class Candidate:
    """A model on the way, replayed on the samples that changes are fitted to, and on those that judge them."""

    version: Version
    fitted: Replay
    judged: Replay


def measured(
    start: Version,
    sites: Sequence[Site],
    saved: Mapping[Site, float],
    removed: Callable[[Version, Site, Setting], tuple[Version, Sequence[Step]]],
    context: Context,
) -> dict[Site, float]:
    """The damage of each site, at its setting in the middle.

    Args:
        start: With no change.
        sites: What can be changed.
        saved: What those save that are measured in turn.
        removed: Makes the model with one removal more, and says which layers are to be fitted.
        context: Of the pass.
    """
    assert context.data is not None, "the pass says that it needs data"
    outputs = [value.name or "" for value in start.model.graph.outputs]
    samples = _spare(context.data)
    data = [context.data.first(fitted_on(context.data, _FITTED_ON)), _last(context.data, samples).first(samples)]

    with tempfile.TemporaryDirectory(prefix="graphopt-damage-") as temporary:

        def replay(model: ir.Model, source: Dataset | Replay, changing: Sequence[Step] = ()) -> Replay:
            folder = Path(tempfile.mkdtemp(dir=temporary))
            return Replay(model, source, context.open_session, folder, [step.layer.node for step in changing])

        small = samples_a_run(start.model)
        teacher = replay(start.past.teacher, data[0].batched(small))
        original = Candidate(start, replay(start.model, teacher), replay(start.model, data[1].batched(small)))
        original.judged.keep(outputs)

        def change(base: Candidate, site: Site) -> Candidate:
            version, steps = removed(base.version, site, middle(site.settings))
            steps = steps[:_FITTED]
            fitted = replay(version.model, base.fitted, steps)
            fit_some(steps, teacher, fitted)
            return Candidate(version, fitted, replay(version.model, base.judged))

        def harm(one: Candidate) -> float:
            return sensitivity.between(original.judged.run(outputs), one.judged.run(outputs))

        found = {}
        with context.progress.stage("measuring what each site does to the outputs", len(sites)) as step:
            for site in sites:
                found[site] = harm(change(original, site))
                step(1)
        with context.progress.stage("measuring what blocks do to the outputs one after another"):
            return found | in_turn(original, {site: found[site] for site in saved}, saved, change, harm)


def in_turn(
    start: _Model,
    alone: Mapping[Site, float],
    saved: Mapping[Site, float],
    change: Callable[[_Model, Site], _Model],
    harm: Callable[[_Model], float],
) -> dict[Site, float]:
    """What each site does to the outputs that those before it have not done: what saves most for its damage goes first.

    A site does no less harm after others than alone. So only the best one has to be measured again, until it is still the best
    (lazy greedy: Minoux 1978). The last ones are not worth it: they keep what was measured before.
    """
    found, left = {**alone}, {**alone}
    version, level = start, 0.0
    fresh: dict[Site, _Model | None] = dict.fromkeys(alone)
    while left and level < _ENOUGH:
        site = max(left, key=lambda one: saved[one] / max(left[one], _NO_DAMAGE))
        if site in fresh:
            version = fresh[site] or change(version, site)
            found[site] = left.pop(site)
            level += found[site]
            fresh = {}
        else:
            fresh[site] = candidate = change(version, site)
            left[site] = max(left[site], harm(candidate) - level)
    return found | left


def middle(values: Sequence[Setting]) -> Setting:
    """The one that is tried to see what a group is to the outputs."""
    return values[len(values) // 2]


def fitted_on(data: Dataset, samples: int) -> int:
    """Samples on which units are weighed: others are left to measure the damage on."""
    return max(1, min(samples, data.size - _spare(data)))


def _spare(data: Dataset) -> int:
    return max(1, min(_SAMPLES, data.size // 3))


def _last(data: Dataset, samples: int) -> Dataset:
    """The last batches, of so many samples at least: where there are enough data, nothing was fitted to them."""
    place = max((place for place, (start, _) in enumerate(data.spans) if data.size - start >= samples), default=0)
    skipped, offset = data.spans[:place], data.spans[place][0]
    spans = tuple((start - offset, end - offset) for start, end in data.spans[place:])

    def stream(wanted: Sequence[Span]) -> Iterator[Batch]:
        whole = (*skipped, *((start + offset, end + offset) for start, end in wanted))
        return itertools.islice(data.stream(whole), place, None)

    return dataclasses.replace(data, spans=spans, stream=stream)
