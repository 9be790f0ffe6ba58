"""Leave out an initial state of zeros, which is what recurrent operators start from anyway.

    LSTM(..., initial_h = 0, initial_c = 0)   ->   LSTM(...)         also GRU and RNN

Exporters build that state from the batch size: Shape, Gather, Concat, then Expand or ConstantOfShape, then a Slice or a Split
for the layers. It is provably zero when it is made of zeros only, by operators that fill, copy and rearrange. What built it
goes too.
"""

from __future__ import annotations

import onnx_ir as ir

from graphopt.contracts import Change
from graphopt.graphs import constant, site

from .graph import Work

_STATES = {"LSTM": (5, 6), "GRU": (5,), "RNN": (5,)}
_REARRANGE = frozenset(
    {"Expand", "Flatten", "Gather", "Identity", "Reshape", "Slice", "Split", "Squeeze", "Tile", "Transpose", "Unsqueeze"}
)
_CAST = frozenset({"Cast", "CastLike"})
_MOST = 1 << 16
_DEEPEST = 20


def drop_zero_state(work: Work, node: ir.Node) -> Change | None:
    """Drop the zero initial states of a recurrent operator."""
    dropped = []
    for index in _STATES[node.op_type]:
        value = node.inputs[index] if index < len(node.inputs) else None
        if value is not None and _is_zero(work, value, _DEEPEST):
            node.replace_input_with(index, None)
            dropped.append(value)
    for value in dropped:
        work.drop([value])
        producer = value.producer()
        if producer is not None:
            work.remove_dead(producer)
    while node.inputs and node.inputs[-1] is None:
        node.resize_inputs(len(node.inputs) - 1)
    if not dropped:
        return None
    work.quiet += all(value.producer() is None for value in dropped)  # no value has a reader less
    return Change(site(node), f"dropped {len(dropped)} initial states of {node.op_type}", "they are zero, as without them")


def _is_zero(work: Work, value: ir.Value, depth: int) -> bool:
    """Whether all elements of a tensor are zero, whatever the model is fed."""
    tensor = constant(value)
    if tensor is not None:
        return tensor.dtype.is_floating_point() and 0 < tensor.size <= _MOST and not tensor.numpy().any()
    node = value.producer()
    if node is None or depth == 0 or node.domain != "" or node.op_identifier() in work.model.functions:
        return False
    if node.op_type == "ConstantOfShape":
        fill = node.attributes.get("value")
        return fill is None or (not fill.is_ref() and not fill.as_tensor().numpy().any())
    if node.op_type == "Concat":
        return all(part is not None and _is_zero(work, part, depth - 1) for part in node.inputs)
    source = node.inputs[0] if node.inputs else None
    return node.op_type in _REARRANGE | _CAST and source is not None and _is_zero(work, source, depth - 1)
