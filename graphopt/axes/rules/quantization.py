"""Quantization: QDQ pairs leave channels what they are; integer contractions are contractions.

A scale or zero point with an element per channel has that channel's id; one that is per tensor is a scalar.
"""

from __future__ import annotations

from collections.abc import Sequence

import onnx_ir as ir

from graphopt.axes.analysis import Analysis, Axes, Unknown
from graphopt.axes.ids import Symbol

from .matmul import matmul
from .table import rule


@rule("QuantizeLinear", "DequantizeLinear", "com.microsoft.QuantizeLinear", "com.microsoft.DequantizeLinear")
def quantize(a: Analysis, node: ir.Node) -> Sequence[Axes]:
    """y[.., c, ..] = f(x[.., c, ..], scale[c], zero[c]) along ``axis`` (1), or with one scale for all.

    In blocks of ``block_size`` a scale belongs to several channels: that axis cannot be removed.
    """
    x = a.of(node, 0)
    for index in (1, 2):
        parameter = a.maybe(node, index)
        if parameter is None or all(not isinstance(ids, Symbol) and len(ids) == 1 for ids in parameter):
            continue
        axis = node.attributes.get_int("axis", 1) % len(x)
        if len(parameter) == 1:
            a.same(x[axis], parameter[0], node)
            continue
        if len(parameter) != len(x):
            raise Unknown("scales that do not fit")
        for place, ids in enumerate(x):
            if place != axis:
                a.same(ids, parameter[place], node)
        a.lock((x[axis], parameter[axis]), node, "one scale for a block of these")
    return [x]


@rule("MatMulInteger")
def matmul_integer(a: Analysis, node: ir.Node) -> Sequence[Axes | None]:
    """As MatMul; a zero point of B may have an element per column."""
    y = matmul(a, node)
    for index, operand, axis in ((2, 0, -2), (3, 1, -1)):
        zero_point = a.maybe(node, index)
        if zero_point and not isinstance(zero_point[-1], Symbol) and len(zero_point[-1]) > 1:
            a.same(a.of(node, operand)[axis], zero_point[-1], node)
    return y


@rule("DynamicQuantizeLinear")
def dynamic_quantize(a: Analysis, node: ir.Node) -> Sequence[Axes | None]:
    """The scale comes from all elements: y has x's axes, none of which can be removed."""
    x = a.of(node, 0)
    a.lock(x, node, "its scale comes from all of these")
    return [x, (), ()]
