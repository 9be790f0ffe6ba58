"""Drop terms of zero, as of biases that were never trained.

    x + 0, x - 0   ->   x, if it keeps its dimensions, and nothing can tell whether a zero in it is 0 or -0

In floating point -0 + 0 is 0, so x itself may hold -0 where the sum holds 0. These compare equal, and most operators hand on
no more of the difference than the sign of another zero: outputs stay equal. But 1 / 0 and 1 / -0 are infinities of opposite
sign. So the sign of a zero matters in a value that is divided by, or read by any operator that is not in the tables below, and
in every value from which it can be handed on to such a place.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from graphopt.contracts import Change
from graphopt.graphs import constant

from .edit import Edit, has_one_place
from .follow import symbolic
from .graph import Root, Work, may_end_normalization

_TERMS = frozenset({"Add", "Sub"})
_SMALL = 1 << 16
"""Constants up to so many elements are looked into."""
_HAND_ON_NAMES = (
    "Add AveragePool BatchNormalization Cast CastLike Clip Concat Conv ConvTranspose CumSum DepthToSpace Dropout Einsum Elu Erf"
    " Expand Flatten Gather GatherElements Gelu Gemm GlobalAveragePool GlobalMaxPool GroupNormalization HardSigmoid HardSwish"
    " Identity InstanceNormalization LayerNormalization LeakyRelu MatMul Max MaxPool Mean Min Mish Mul Neg PRelu Pad"
    " RMSNormalization ReduceMax ReduceMean ReduceMin ReduceSum Relu Reshape Resize Selu Slice Softsign SpaceToDepth Split Sqrt"
    " Squeeze Sub Sum Swish Tanh Tile Transpose Unsqueeze Where"
)
_HAND_ON = frozenset(_HAND_ON_NAMES.split())
"""Where inputs differ in signs of zeros, outputs differ in signs of zeros at most."""
_ABSORB_NAMES = (
    "Abs ArgMax ArgMin Cos Equal Exp Greater GreaterOrEqual IsInf IsNaN Less LessOrEqual Log LogSoftmax NonZero ReduceL1"
    " ReduceL2 ReduceSumSquare Sigmoid Softmax Softplus"
)
_ABSORB = frozenset(_ABSORB_NAMES.split())
"""Where inputs differ in signs of zeros, outputs do not differ."""


def drop_zero_terms(work: Work) -> list[Change]:
    """Drop terms of zero in the main graph and its subgraphs."""
    root = work.roots[0]
    terms = [node for node in work.operators(root, _TERMS) if _other_than_zero(work, node) is not None and has_one_place(node)]
    if not terms:
        return []
    edit, sensitive = Edit(work, root, symbolic(work, root)), _sensitive(root)
    for node in terms:
        kept = _other_than_zero(work, node)  # by now: what it read may have been the sum of a term that is gone
        if kept is not None and node.outputs[0] not in sensitive and edit.keeps(node, kept):
            edit.put(
                node, kept, f"removed {node.op_type}", "it adds zero, and nothing can tell the sign of a zero in its output"
            )
    return edit.changes


def _other_than_zero(work: Work, node: ir.Node) -> ir.Value | None:
    """What an Add or Sub adds zero to."""
    if _is_zero(work, node.inputs[1], node.inputs[0]):
        return node.inputs[0]
    return node.inputs[1] if node.op_type == "Add" and _is_zero(work, node.inputs[0], node.inputs[1]) else None


def _is_zero(work: Work, term: ir.Value | None, other: ir.Value | None) -> bool:
    tensor = constant(term)
    if term is None or other is None or tensor is None or work.excluded(term.name or ""):
        return False
    if not tensor.dtype.is_floating_point() or not 0 < tensor.size <= _SMALL or may_end_normalization(tensor, other):
        return False
    array = tensor.numpy()
    return not array.flat[0] and not np.any(array)  # what is not zero shows it at once, but for a few


def _sensitive(root: Root) -> set[ir.Value]:
    """The values in which the sign of a zero may matter."""
    sensitive = {output for graph in root.graphs[1:] for output in graph.outputs}
    for node in reversed(root.nodes):
        inputs = [value for value in node.inputs if value is not None]
        if node.domain == "" and node.op_type in _ABSORB:
            continue
        if node.domain == "" and (node.op_type in _HAND_ON or _is_safe_power(node)):
            if any(output in sensitive for output in node.outputs):
                sensitive.update(inputs)
        elif node.domain == "" and node.op_type == "Div":
            sensitive.update(inputs if node.outputs[0] in sensitive else inputs[1:])
        else:
            sensitive.update(inputs)
    return sensitive


def _is_safe_power(node: ir.Node) -> bool:
    """Whether a node is a Pow with a positive exponent: that of a zero is a zero."""
    exponent = constant(node.inputs[1]) if node.op_type == "Pow" else None
    return exponent is not None and exponent.size <= _SMALL and bool(np.all(exponent.numpy() > 0))
