"""Contractions: Gemm, MatMul, Einsum. The summed axis is one axis of both operands; the others go on."""

from __future__ import annotations

from collections.abc import Sequence

import onnx_ir as ir

from graphopt.axes.analysis import Analysis, Axes, Unknown
from graphopt.axes.ids import Axis

from .elementwise import broadcasted
from .table import rule


@rule("Gemm")
def gemm(a: Analysis, node: ir.Node) -> Sequence[Axes]:
    """y[m, n] = alpha * sum_k A[m, k] * B[k, n] + beta * C[m, n]; ``transA`` and ``transB`` swap axes, C is broadcast."""
    first, second = node.attributes.get_int("transA", 0), node.attributes.get_int("transB", 0)
    a.contract(node, (0, 1 - first), (1, second))
    a.gives(node, 0, first)
    a.gives(node, 1, 1 - second)
    product = (a.of(node, 0)[first], a.of(node, 1)[1 - second])
    addend = a.maybe(node, 2)
    if addend is not None:
        broadcasted(a, node, [product, addend])
    return [product]


@rule("MatMul", "com.microsoft.FusedMatMul")
def matmul(a: Analysis, node: ir.Node) -> Sequence[Axes]:
    """y[.., m, n] = sum_k A[.., m, k] * B[.., k, n], the axes before broadcast; a vector has only k."""
    left, right = a.of(node, 0), a.of(node, 1)
    if not left or not right:
        raise Unknown("a scalar")
    if node.attributes.get_int("transBatchA", 0) or node.attributes.get_int("transBatchB", 0):
        raise Unknown("batch axes that are moved")
    trans_a, trans_b = node.attributes.get_int("transA", 0), node.attributes.get_int("transB", 0)
    kept_a = [] if len(left) == 1 else [len(left) - (1 if trans_a else 2)]
    kept_b = [] if len(right) == 1 else [len(right) - (2 if trans_b else 1)]
    summed_a = len(left) - (2 if trans_a and kept_a else 1)
    summed_b = len(right) - (1 if trans_b or not kept_b else 2)
    a.contract(node, (0, summed_a), (1, summed_b))
    for index, kept in ((0, kept_a), (1, kept_b)):
        for axis in kept:
            a.gives(node, index, axis)
    batch = broadcasted(a, node, [left[:-2], right[:-2]])
    return [(*batch, *(left[axis] for axis in kept_a), *(right[axis] for axis in kept_b))]


@rule("Einsum")
def einsum(a: Analysis, node: ir.Node) -> Sequence[Axes]:
    """y[outputs] = sum over the letters that are not among the outputs, of the product of the operands: a letter is one axis.

    A letter of a single operand that is not among the outputs is summed by itself.
    """
    places, result = _letters(a, node)
    ids: dict[str, Axis] = {}
    for letter, found in places.items():
        axes = [a.of(node, index)[axis] for index, axis in found]
        ids[letter] = axes[0]
        for other in axes[1:]:
            a.same(axes[0], other, node)
        if letter in result:
            if len(found) == 1:
                a.gives(node, *found[0])
        elif len(found) == 1:
            a.takes(node, *found[0])
            a.summed(node, *found[0])
        else:
            a.contract(node, found[0], found[1])
    return [tuple(ids[letter] for letter in result)]


def _letters(a: Analysis, node: ir.Node) -> tuple[dict[str, list[tuple[int, int]]], str]:
    """The (operand, axis) that each letter of an Einsum stands at, and the letters of its output."""
    equation = (node.attributes.get_string("equation", "") or "").replace(" ", "")
    operands, arrow, result = equation.partition("->")
    if not arrow:
        result = "".join(sorted(letter for letter in set(operands) - {","} if operands.count(letter) == 1))
    places: dict[str, list[tuple[int, int]]] = {}
    for index, term in enumerate(operands.split(",")):
        if "." in term or len(term) != len(a.of(node, index)):
            raise Unknown("an equation with dots, or one that does not fit its operands")
        for axis, letter in enumerate(term):
            places.setdefault(letter, []).append((index, axis))
    return places, result
