"""Elementwise operators: y[i] depends on x[i] alone, so channels stay what they are.

Whether f(0) = 0 does not matter: what is removed no longer reaches anything that would sum it.
"""

from __future__ import annotations

from collections.abc import Sequence

import onnx_ir as ir

from graphopt.axes.analysis import Analysis, Axes, Unknown
from graphopt.axes.ids import Axis, Symbol
from graphopt.graphs import constant

from .table import rule

_UNARY = """
    Abs Acos Acosh Asin Asinh Atan Atanh BitwiseNot Cast CastLike Ceil Celu Clip Cos Cosh Elu Erf Exp Floor Gelu HardSigmoid
    HardSwish Identity IsInf IsNaN LeakyRelu Log Mish Neg Not Reciprocal Relu Round Selu Shrink Sigmoid Sign Sin Sinh Softplus
    Softsign Sqrt Swish Tan Tanh ThresholdedRelu com.microsoft.QuickGelu
"""
_BROADCAST = """
    Add And BitShift BitwiseAnd BitwiseOr BitwiseXor Div Equal Greater GreaterOrEqual Less LessOrEqual Max Mean Min Mod Mul Or
    PRelu Pow Sub Sum Where Xor com.microsoft.BiasGelu com.microsoft.FastGelu com.microsoft.Gelu
"""


@rule(*_UNARY.split())
def unary(a: Analysis, node: ir.Node) -> Sequence[Axes]:
    """y[..] = f(x[..]): y has x's ids. Further inputs (Clip's bounds) are scalars."""
    return [a.of(node, 0)]


@rule("Dropout")
def dropout(a: Analysis, node: ir.Node) -> Sequence[Axes]:
    """In inference y = x, and the mask has the same axes; in training what is dropped is drawn anew."""
    if len(node.inputs) > 2 and node.inputs[2] is not None:
        training = constant(node.inputs[2])
        if training is None or training.numpy().any():
            raise Unknown("it may be in training")
    return [a.of(node, 0)] * len(node.outputs)


@rule(*_BROADCAST.split())
def broadcast(a: Analysis, node: ir.Node) -> Sequence[Axes]:
    """y[.., i, ..] = f(x1[.., i, ..], x2[.., i, ..], ...): the same ids on each axis, counted from the last one."""
    return [broadcasted(a, node, [a.of(node, index) for index, value in enumerate(node.inputs) if value is not None])]


def broadcasted(a: Analysis, node: ir.Node, operands: Sequence[Axes]) -> Axes:
    """Axes of the operands broadcast to one shape.

    An axis of size 1 that meets a longer one is repeated along it: it is not one of its channels, and has to stay.
    """
    rank = max(len(axes) for axes in operands)
    missing = [rank - len(axes) for axes in operands]
    return tuple(
        _axis(a, node, [axes[axis - absent] for axes, absent in zip(operands, missing, strict=True) if axis >= absent])
        for axis in range(rank)
    )


def _axis(a: Analysis, node: ir.Node, operands: Sequence[Axis]) -> Axis:
    """A dynamic size that has a name stands for one that has none: which of them is 1, if any, is only known in a run."""
    dynamic = sorted({ids for ids in operands if isinstance(ids, Symbol)}, key=lambda symbol: not symbol.named)
    known = [*{id(ids): ids for ids in operands if not isinstance(ids, Symbol)}.values()]
    wide = [ids for ids in known if len(ids) != 1]
    if not wide:
        for other in known[1:]:
            a.same(known[0], other, node)
        return dynamic[0] if dynamic else known[0]
    if any(len(ids) != len(wide[0]) for ids in wide):
        raise Unknown("sizes that do not fit")
    a.lock([ids for ids in known if len(ids) == 1], node, "it is repeated along a longer axis")
    if dynamic:
        a.lock(wide, node, "it meets an axis of dynamic size")
    for other in wide[1:]:
        a.same(wide[0], other, node)
    return wide[0]
