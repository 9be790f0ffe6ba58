"""Treat initializers that are also inputs as the constants that they are nearly always meant to be. Only if the user asks.

    inputs x, w; w = [...]   ->   input x; w = [...]

ONNX lets a caller give such an input another value, and so it can neither be folded nor fused. Files of an IR version below 4
had to list all initializers as inputs; what is written for one of these is of version 4. Names that the user excluded stay
inputs.
"""

from __future__ import annotations

from graphopt.contracts import Change
from graphopt.graphs import INITIALIZERS_NEED_NO_INPUT, is_overridable

from .graph import Work


def freeze_initializers(work: Work) -> list[Change]:
    """Take initializers off the inputs of the model."""
    model = work.model
    frozen = [value for value in model.graph.inputs if is_overridable(value) and not work.excluded(value.name or "")]
    if frozen and (model.ir_version or 0) < INITIALIZERS_NEED_NO_INPUT:
        model.ir_version = INITIALIZERS_NEED_NO_INPUT
    for value in frozen:
        model.graph.inputs.remove(value)
    return [
        Change(value.name or "", "is no input any more", "simplify.freeze: no caller gives it another value")
        for value in frozen
    ]
