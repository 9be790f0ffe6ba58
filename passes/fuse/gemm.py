"""Use Gemm for what it computes in one call.

    Add(MatMul(A, B), c)      ->   Gemm(A, B, c)                  A [m, k], B [k, n], c broadcast to [m, n]
    Gemm(Transpose(A), B)     ->   Gemm(A, B, transA = 1)         likewise for B

Only where the ranks are known for certain, because Gemm takes matrices only; at rank 3 and above the runtime multiplies faster
without the Reshapes that it would need. Nothing else may read the product or the transposed matrix.
"""

from __future__ import annotations

import onnx_ir as ir

from graphopt.contracts import Change
from graphopt.graphs import site

from .graph import FLOATS, Work, attribute, only_use


def use_gemm(work: Work, node: ir.Node) -> Change | None:
    """Make a Gemm of a MatMul and the Add behind it."""
    if len(node.inputs) != 2:
        return None
    for product, bias in ((node.inputs[0], node.inputs[1]), (node.inputs[1], node.inputs[0])):
        matmul = work.producer(product, node, "MatMul")
        if matmul is None or product is None or not only_use(product) or not work.can_replace(node.outputs[0]):
            continue
        if work.dtype(product) not in FLOATS or any(work.rank(value) != 2 for value in matmul.inputs):
            continue
        if not _is_bias(work, product, bias):
            continue
        name = site(node)
        work.add(node, "Gemm", [*matmul.inputs, bias])
        return Change(name, "made a Gemm of MatMul and Add", "it adds the bias while it multiplies")
    return None


def _is_bias(work: Work, product: ir.Value, bias: ir.Value | None) -> bool:
    """Whether the bias is broadcast to the product along its columns, and not the other way round."""
    shape, columns = work.shape(bias), work.shape(product)
    if shape is None or columns is None or len(shape) > 2:
        return False
    if len(shape) == 0:
        return True
    return shape[-1] in {1, columns[1]} and isinstance(shape[-1], int) and (len(shape) == 1 or shape[0] == 1)


def transpose_in_gemm(work: Work, node: ir.Node) -> Change | None:
    """Let a Gemm read a matrix as it is before a Transpose."""
    for index, flag in ((0, "transA"), (1, "transB")):
        value = node.inputs[index]
        transpose = work.producer(value, node, "Transpose")
        if transpose is None or value is None or not only_use(value) or attribute(transpose, "perm", (1, 0)) != (1, 0):
            continue
        turned = attribute(node, flag, 0)
        if not isinstance(turned, int):
            continue
        node.attributes[flag] = ir.AttrInt64(flag, 1 - bool(turned))
        node.replace_input_with(index, transpose.inputs[0])
        change = Change(site(transpose), "moved Transpose into Gemm", f"its {flag} reads the matrix transposed")
        work.remove_dead(transpose)
        return change
    return None
