"""Tensors whose elements are moved when the file is written, so that large weights are read once and never kept."""

from __future__ import annotations

from collections.abc import Sequence

import onnx_ir as ir

from .evaluate import evaluate

MOST_MOVES = 50
"""How many operators in a row may wait; each is a call inside the next."""


class MovedTensor(ir.LazyTensor):
    """One output of an operator that only moves the elements of constants.

    Args:
        node: The operator; it may leave its graph afterwards.
        opset: The version of ONNX's operators.
        inputs: The tensor of each input of the node.
        like: Type and shape of the output.
        index: Which of the node's named outputs it is.
    """

    def __init__(
        self, node: ir.Node, opset: int, inputs: Sequence[ir.TensorProtocol | None], like: ir.TypeAndShape, index: int
    ) -> None:
        assert like.type is not None
        assert like.shape is not None
        self._node = ir.Node("", node.op_type, [None] * len(inputs), [*node.attributes.values()], num_outputs=len(node.outputs))
        self._opset = opset
        self._inputs = inputs
        self._index = index
        self.moves: int = 1 + max((t.moves for t in inputs if isinstance(t, MovedTensor)), default=0)
        super().__init__(self._compute, like.type.dtype, like.shape)

    def _compute(self) -> ir.TensorProtocol:
        arrays = [None if tensor is None else tensor.numpy() for tensor in self._inputs]
        return ir.Tensor(evaluate(self._node, self._opset, arrays)[self._index])
