"""Initializers that are listed as inputs become constants.

Some exporters list every weight as an input, so that a caller may give another one with each run. A pruned weight has another shape,
and a weight that may be replaced cannot be looked at: to prune such a model is to take this right away.
"""

from __future__ import annotations

import onnx_ir as ir

from graphopt.contracts import Change


def freeze(model: ir.Model) -> list[Change]:
    """Take initializers from the list of inputs, in place. Inputs without an initializer stay: they are what a user feeds."""
    listed = [value for value in model.graph.inputs if value.is_initializer()]
    if not listed:
        return []
    for value in listed:
        model.graph.inputs.remove(value)
    names = ", ".join(repr(value.name) for value in listed[:3]) + (" ..." if len(listed) > 3 else "")
    return [
        Change("inputs", f"{len(listed)} weights are no inputs any more: {names}", "a weight that is pruned has another shape")
    ]
