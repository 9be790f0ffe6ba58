"""Where NaN and infinities come from: the sample that holds them, else the first node that makes them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import onnx_ir as ir

from graphopt.contracts import Array, Session
from graphopt.dataset import Batch, Dataset
from graphopt.errors import DataError, GraphoptError, ModelError
from graphopt.graphs import site

from . import sweeps


def explain(
    model: ir.Model, name: str, start: int, batch: Batch, data: Dataset, open_session: Callable[[ir.Model], Session]
) -> GraphoptError:
    """The error to raise when the value ``name`` is NaN or infinite somewhere in a batch, whose first sample is ``start``."""
    for given, array in batch.feed.items():
        if array.dtype.kind == "f" and not np.isfinite(array).all():
            sample = start + _first_bad(array, batch.samples)
            where = f"{data.name}, input {given!r}, sample {sample}"
            return DataError(f"a value is {_kind(array)}", where=where, hint="Mend or drop the sample.")
    one = replace(data, spans=((start, start + batch.samples),), stream=lambda _spans: iter([batch]), splittable=False)
    order = [*sweeps.values(model)]
    before = [known for known in sweeps.observable(model) if order.index(known) <= order.index(name)]
    planned = sweeps.plan(model, before, one)
    for part in planned.sweeps:
        for _, _, found in sweeps.run(model, part, planned, open_session):
            for first, array in found.items():  # in the order of the graph
                if not np.isfinite(array).all():
                    number = start + _first_bad(array, batch.samples)
                    return _error(model, first, f"becomes {_kind(array)} on sample {number} of {data.name}")
    return _error(model, name, f"is not finite on samples {start} to {start + batch.samples - 1} of {data.name}")


def _error(model: ir.Model, name: str, what: str) -> ModelError:
    node = sweeps.values(model)[name].producer()
    return ModelError(
        f"the value {name!r} {what}, so no range fits it",
        where=None if node is None else f"{node.op_type} node {site(node)!r}",
        hint="Check the sample, or whether the model computes it right in float32.",
    )


def _first_bad(array: Array, samples: int) -> int:
    """Which sample of the batch holds the first bad value; the first where the first axis does not count samples."""
    if array.ndim == 0 or len(array) % samples:
        return 0
    return int(np.argmin(np.isfinite(array.reshape(samples, -1)).all(axis=1)))


def _kind(array: Array) -> str:
    return "NaN" if np.isnan(array).any() else "infinite"
