"""Which channels of a graph's values share one positive scale, and which constants compensate for it.

Every value gets an array of channel ids that broadcasts to its shape: axes that share one scale have length 1. A union-find
makes classes of ids that must be the same. The id ``FIXED`` has the scale 1: what enters an operator that is not
positive-homogeneous, an output of the model, an input of it. Constants that compensate are ``Factor``s:

    Conv, Gemm, MatMul with a constant weight   columns times the input's scale, rows and bias divided by the output's
    an operator with a constant operand         the constant of an Add is divided by the scale of the sum
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from graphopt.contracts import Array
from graphopt.graphs import constant
from graphopt.shapes import Facts, infer

FIXED = 0
"""The id of everything whose scale is 1."""
_COPIED_BYTES = 1 << 14
"""A constant that several nodes read is copied for one of them up to this size; a larger one keeps its scale."""


@dataclass(frozen=True)
class Factor:
    """The constant that is input ``index`` of ``node`` is to be multiplied by the scales of ``ids`` to the power +1 or -1.

    ``ids`` broadcasts with the constant's shape. +1: the constant is the weight of a consumer; -1: of a producer.
    """

    node: ir.Node
    index: int
    ids: Array
    power: int


class Scaling:
    """What is known of the scales of one graph while its nodes are visited, and the classes of ids afterwards."""

    def __init__(self, model: ir.Model) -> None:
        self.facts: Facts = infer(model)
        self.values: dict[ir.Value, Array] = {}
        self.factors: list[Factor] = []
        self._parents: list[int] = [FIXED]
        self._settled: Array | None = None
        """The class of every id, once no more are going to be joined."""

    # ------------------------------------------------------------------------------------------------------ for the rules

    def shape(self, value: ir.Value | None) -> tuple[int | str | None, ...] | None:
        """The sizes of a tensor's axes, symbols for those that are not known; None if the rank is not known."""
        known = None if value is None else self.facts.get(value)
        if known is None or known.shape is None:
            return None
        return tuple(dim if isinstance(dim, int) else dim.value for dim in known.shape)

    def ids(self, value: ir.Value | None) -> Array:
        """The ids of a value, int64 of its rank; FIXED where nothing else was said."""
        if value is not None and value in self.values:
            return self.values[value]
        shape = self.shape(value)
        return np.zeros([1] * len(shape or ()), np.int64)

    def fresh(self, count: int) -> Array:
        """New ids, [count]."""
        first = len(self._parents)
        self._parents.extend(range(first, first + count))
        return np.arange(first, first + count)

    def roots(self, ids: Array) -> Array:
        """The class of each id; that of all that is FIXED is FIXED."""
        if self._settled is not None:
            return np.asarray(self._settled[ids])
        flat = [self._root(int(i)) for i in ids.reshape(-1)]
        return np.array(flat, np.int64).reshape(ids.shape)

    def settle(self) -> None:
        """Note the class of every id: nothing is joined any more, and classes are looked up from now on."""
        self._settled = np.array([self._root(i) for i in range(len(self._parents))], np.int64)

    def unify(self, arrays: Iterable[Array]) -> Array:
        """Let ids that meet under broadcasting be the same, and return the result's; what cannot be broadcast is fixed."""
        found = [*arrays]
        try:
            aligned = np.broadcast_arrays(*found)
        except ValueError:
            for array in found:
                self.fix(array)
            return np.zeros([1] * max(array.ndim for array in found), np.int64)
        for others in aligned[1:]:
            for a, b in set(zip(aligned[0].reshape(-1).tolist(), others.reshape(-1).tolist(), strict=True)):
                self._join(a, b)
        return np.array(aligned[0])

    def fix(self, ids: Array) -> None:
        """These ids have the scale 1."""
        for i in set(ids.reshape(-1).tolist()):
            self._join(FIXED, i)

    def is_fixed(self, ids: Array) -> bool:
        """Whether all of these are known to have the scale 1."""
        return not self.roots(ids).any()

    def along(self, ids: Array, axis: int, size: int) -> Array:
        """The ids on one axis, [size], if they differ on no other; else they are fixed."""
        axis = axis % ids.ndim if ids.ndim else 0
        if any(length != 1 for i, length in enumerate(ids.shape) if i != axis) or ids.size not in {1, size}:
            self.fix(ids)
            return np.zeros(size, np.int64)
        return np.broadcast_to(ids.reshape(-1), (size,))

    def factor(self, node: ir.Node, index: int, ids: Array, power: int) -> None:
        """Let a constant compensate; where it cannot, the ids are fixed. A missing input needs nothing."""
        value = node.inputs[index] if index < len(node.inputs) else None
        if value is None:
            return
        tensor = constant(value)
        shared = len(value.uses()) > 1 or value.is_graph_output()
        if tensor is None or not tensor.dtype.is_floating_point() or (shared and tensor.nbytes > _COPIED_BYTES):
            self.fix(ids)
            return
        self.factors.append(Factor(node, index, ids, power))

    # ------------------------------------------------------------------------------------------------------------ the union

    def _root(self, i: int) -> int:
        while self._parents[i] != i:
            self._parents[i] = self._parents[self._parents[i]]
            i = self._parents[i]
        return i

    def _join(self, a: int, b: int) -> None:
        assert self._settled is None, "classes are settled"
        first, second = sorted((self._root(a), self._root(b)))  # the smaller one stays, so FIXED does
        self._parents[second] = first

    @property
    def count(self) -> int:
        """How many ids there are; an array of scales has this length, and only those of roots are looked at."""
        return len(self._parents)
