"""A graph under construction, for random models: values with known shapes, constants, nodes.

Constants are made so that what rewrites must not touch is common: an initializer is read by several nodes, also by nodes of
branches, is listed as an input too (a caller may override it), or is an output too.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TypeVar

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

Dims = tuple[int | str, ...]
BATCH = "N"
INPUTS = {"x": (BATCH, 4, 4, 4), "y": (BATCH, 6), "u": (BATCH, 2)}
_T = TypeVar("_T")


@dataclass(frozen=True)
class Value:
    """A float tensor, and its shape."""

    name: str
    dims: Dims

    @property
    def sizes(self) -> tuple[int, ...]:
        """The sizes of all axes but the first."""
        return tuple(int(dim) for dim in self.dims[1:])


@dataclass
class Graph:
    """One graph under construction; ``outer`` are the float tensors of the graphs around it, which it may capture."""

    random: random.Random
    opset: int
    names: itertools.count = field(default_factory=itertools.count)
    depth: int = 0
    outer: list[Value] = field(default_factory=list)
    own: list[Value] = field(default_factory=list)
    nodes: list[onnx.NodeProto] = field(default_factory=list)
    initializers: list[onnx.TensorProto] = field(default_factory=list)
    weights: list[Value] = field(default_factory=list)
    """Float initializers here and outside, which others may read too."""
    overridable: list[onnx.TensorProto] = field(default_factory=list)
    given: list[Value] = field(default_factory=list)
    """Initializers that are outputs too."""

    # ------------------------------------------------------------------------------------------------------------ chance

    def choose(self, *options: _T) -> _T:
        return self.random.choice(options)

    def chance(self, one_in: int) -> bool:
        """True once in so many times."""
        return self.random.randrange(one_in) == 0

    def pick(self, rank: int | None = None) -> Value | None:
        """A float tensor, often one of the latest, so that chains grow."""
        values = [v for v in self.outer + self.own if rank is None or len(v.dims) == rank]
        return self.choose(*(values[-3:] if self.chance(2) else values)) if values else None

    def batched(self, *ranks: int) -> Value | None:
        """A tensor of one of these ranks (any of 2 and more, if none is given) whose first axis is the batch."""
        values = [v for v in self.outer + self.own if v.dims[:1] == (BATCH,) and len(v.dims) >= 2]
        values = [v for v in values if not ranks or len(v.dims) in ranks]
        return self.choose(*(values[-3:] if self.chance(2) else values)) if values else None

    # ------------------------------------------------------------------------------------------------------------- nodes

    def new(self, hint: str = "v") -> str:
        # Inside branches names repeat: siblings may use the same ones.
        return f"{hint}_{self.depth}_{len(self.nodes)}_{len(self.initializers)}" if self.depth else f"{hint}{next(self.names)}"

    def node(self, op_type: str, inputs: Sequence[str], hint: str = "v", outputs: int = 1, **attributes: object) -> list[str]:
        """The names of the outputs of a new node."""
        names = [f"{self.new(hint)}{'' if i == 0 else f'_{i}'}" for i in range(outputs)]
        self.nodes.append(helper.make_node(op_type, inputs, names, self.new("n"), **attributes))
        return names

    def one(self, op_type: str, *inputs: str | Value, **attributes: object) -> str:
        """The name of the only output of a new node, which nothing else will read."""
        return self.node(op_type, [i.name if isinstance(i, Value) else i for i in inputs], **attributes)[0]

    def inner(self, op_type: str, inputs: Sequence[str | Value], dims: Dims, **attributes: object) -> Value:
        """A value in the middle of something larger, which others read now and then, too."""
        value = Value(self.one(op_type, *inputs, **attributes), dims)
        if self.chance(16):
            self.own.append(value)
        return value

    def add(self, op_type: str, inputs: Sequence[str | Value], dims: Dims, **attributes: object) -> Value:
        """A value that anything may read."""
        value = Value(self.one(op_type, *inputs, **attributes), dims)
        self.own.append(value)
        return value

    # --------------------------------------------------------------------------------------------------------- constants

    def constant(self, array: np.ndarray, *, fixed: bool = False) -> str:
        """An initializer or a Constant; one that is ``fixed`` no caller can replace."""
        name = self.new("c")
        tensor = numpy_helper.from_array(array, name)
        if self.chance(3):
            self.nodes.append(helper.make_node("Constant", [], [name], value=tensor))
            return name
        self.initializers.append(tensor)
        if array.dtype == np.float32:
            self.weights.append(Value(name, array.shape))
        if self.depth == 0 and self.chance(24):
            if not fixed:
                self.overridable.append(tensor)
        elif self.depth == 0 and self.chance(40) and array.dtype == np.float32 and not fixed:
            self.given.append(self.weights[-1])
        return name

    def floats(self, *dims: int) -> str:
        """Random numbers, of a few seeds so that equal constants are likely, or those of another node."""
        same = [weight for weight in self.weights if weight.dims == dims]
        if same and self.chance(4):
            return self.choose(*same).name
        seed = self.random.randrange(3)
        return self.constant((np.random.default_rng(seed).standard_normal(dims) * 0.5).astype(np.float32))

    def positive(self, *dims: int) -> str:
        seed = self.random.randrange(3)
        return self.constant(np.random.default_rng(seed).uniform(0.2, 2, dims).astype(np.float32))

    def number(self, value: float, *dims: int) -> str:
        return self.constant(np.full(dims, value, np.float32))

    def ints(self, *values: int) -> str:
        return self.constant(np.array(values, np.int64))

    # ------------------------------------------------------------------------------------------------ what versions changed

    def reduce_mean(self, x: Value, axes: Sequence[int], keepdims: int = 1) -> Value:
        """ReduceMean, whose axes became an input in opset 18."""
        rank = len(x.dims)
        reduced = {axis % rank for axis in axes}
        dims = [1 if axis in reduced else dim for axis, dim in enumerate(x.dims) if keepdims or axis not in reduced]
        if self.opset >= 18:
            return self.inner("ReduceMean", [x, self.ints(*axes)], tuple(dims), keepdims=keepdims)
        return self.inner("ReduceMean", [x], tuple(dims), axes=axes, keepdims=keepdims)

    def halves(self, x: Value, axis: int = 1) -> list[str]:
        """Split in two equal parts; the number of parts had to be given from opset 18 on."""
        return self.node("Split", [x.name], outputs=2, axis=axis, **({"num_outputs": 2} if self.opset >= 18 else {}))


def float_info(name: str, dims: Dims | None) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, TensorProto.FLOAT, dims)
