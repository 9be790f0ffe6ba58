"""Which of several quantized models computes outputs nearest to the float model's, measured on data without labels.

error = mean over float outputs of  sum |y - y'|^2 / sum |y|^2        on the first samples
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from typing import TypeVar

import numpy as np
import onnx_ir as ir

from graphopt.contracts import Array, Context
from graphopt.dataset import Dataset

Name = TypeVar("Name", bound=str)
SAMPLES = 32
"""Enough to tell methods apart that differ by more than a few per cent."""


def choose(model: ir.Model, ways: Mapping[Name, Callable[[], ir.Model]], context: Context) -> Name:
    """The name of the way to quantize ``model`` that leaves its float outputs nearest; of equals the first."""
    assert context.data is not None, "a pass that is calibrated has data"
    data = context.data.first(SAMPLES)
    wanted = _outputs(model, data, context)
    errors = {name: _error(wanted, _outputs(quantize(), data, context)) for name, quantize in ways.items()}
    return min(errors, key=lambda name: errors[name])


def _outputs(model: ir.Model, data: Dataset, context: Context) -> Mapping[str, Sequence[Array]]:
    """Each float output, batch by batch, as float64."""
    found: defaultdict[str, list[Array]] = defaultdict(list)
    with context.open_session(model) as session:
        for batch in data.batches():
            for name, array in session.run(batch.feed).items():
                if array.dtype.kind == "f":
                    found[name].append(array.astype(np.float64))
    return found


def _error(wanted: Mapping[str, Sequence[Array]], found: Mapping[str, Sequence[Array]]) -> float:
    total = 0.0
    for name, arrays in wanted.items():
        noise = sum(float(((a - b) ** 2).sum()) for a, b in zip(arrays, found[name], strict=True))
        total += noise / max(sum(float((a**2).sum()) for a in arrays), np.finfo(np.float64).tiny)
    return total
