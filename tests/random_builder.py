"""A graph under construction, for random models: values with known shapes, constants, nodes.

Constants are made so that what rewrites must not touch is common: an initializer is read by several nodes, also by nodes of
branches, is listed as an input too (a caller may override it), or is an output too.

Steps write operators as the latest versions have them. For older ones, inputs become the attributes that they were; what such a
version cannot say is ``UnfitError``, and the step ends.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import TypeVar

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

Dims = tuple[int | str, ...]
BATCH = "N"
INPUTS = {"x": (BATCH, 4, 4, 4), "y": (BATCH, 6), "u": (BATCH, 2)}
_T = TypeVar("_T")
_WERE_ATTRIBUTES = {
    "Clip": (11, ("", "min", "max")),
    "Dropout": (12, ("", "ratio")),
    "Pad": (11, ("", "pads", "value")),
    "ReduceMax": (18, ("", "axes")),
    "ReduceMean": (18, ("", "axes")),
    "ReduceSum": (13, ("", "axes")),
    "Slice": (10, ("", "starts", "ends", "axes")),
    "Split": (13, ("", "split")),
    "Squeeze": (13, ("", "axes")),
    "Unsqueeze": (13, ("", "axes")),
}
"""The version in which attributes became inputs, and what the inputs were called."""
_LATER = {("Split", "num_outputs"): 18, ("Resize", "axes"): 18, ("Shape", "start"): 15, ("ScatterND", "reduction"): 16}
"""Attributes, and the version from which an operator has them."""
_UNKNOWN_TO_RUNTIME = {"RandomUniformLike": 22}
"""Operators whose versions from here on onnxruntime does not have yet."""
_LEAST_INPUTS = {"Gemm": (11, 3)}
"""Until some version an operator asked for so many inputs."""


class UnfitError(Exception):
    """This version of the operators cannot say it, or the values at hand do not fit."""


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
    old_ir: bool = False
    """Whether all initializers have to be inputs too."""
    arrays: dict[str, np.ndarray] = field(default_factory=dict)
    """Constants by their names."""

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
        inputs, attributes = self._as_it_was(op_type, inputs, attributes)
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

    def _as_it_was(
        self, op_type: str, inputs: Sequence[str], attributes: dict[str, object]
    ) -> tuple[Sequence[str], dict[str, object]]:
        """Inputs and attributes as this version of the operator has them."""
        exists = "domain" in attributes or _exists(op_type, self.opset)
        if not exists or self.opset >= _UNKNOWN_TO_RUNTIME.get(op_type, 99):
            raise UnfitError(op_type)
        changed, least = _LEAST_INPUTS.get(op_type, (0, 0))
        if self.opset < changed and len(inputs) < least:
            raise UnfitError(op_type)
        attributes = {name: value for name, value in attributes.items() if self.opset >= _LATER.get((op_type, name), 0)}
        changed, names = _WERE_ATTRIBUTES.get(op_type, (0, ()))
        if self.opset >= changed:
            return inputs, attributes
        if len(inputs) > len(names):
            raise UnfitError(op_type)
        for name, value in zip(names[1:], inputs[1:], strict=False):
            if value:
                if value not in self.arrays:
                    raise UnfitError(op_type)
                array = self.arrays[value]
                attributes[name] = array.tolist() if array.ndim else array.item()
        return inputs[:1], attributes

    # --------------------------------------------------------------------------------------------------------- constants

    def constant(self, array: np.ndarray, *, fixed: bool = False) -> str:
        """An initializer or a Constant; one that is ``fixed`` no caller can replace."""
        name = self.new("c")
        tensor = numpy_helper.from_array(array, name)
        self.arrays[name] = array
        if self.chance(3) or (self.old_ir and (fixed or self.depth)):
            self.nodes.append(helper.make_node("Constant", [], [name], value=tensor))
            return name
        self.initializers.append(tensor)
        if array.dtype == np.float32:
            self.weights.append(Value(name, array.shape))
        if self.depth == 0 and (self.old_ir or self.chance(24)):
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

    # ------------------------------------------------------------------------------------------------ what is written often

    def reduce_mean(self, x: Value, axes: Sequence[int], keepdims: int = 1) -> Value:
        """ReduceMean over some axes."""
        rank = len(x.dims)
        reduced = {axis % rank for axis in axes}
        dims = [1 if axis in reduced else dim for axis, dim in enumerate(x.dims) if keepdims or axis not in reduced]
        return self.inner("ReduceMean", [x, self.ints(*axes)], tuple(dims), keepdims=keepdims)

    def halves(self, x: Value, axis: int = 1) -> list[str]:
        """Split in two equal parts."""
        return self.node("Split", [x.name], outputs=2, axis=axis, num_outputs=2)


@cache
def _exists(op_type: str, opset: int) -> bool:
    try:
        onnx.defs.get_schema(op_type, opset, "")
    except onnx.defs.SchemaError:
        return False
    return True


def float_info(name: str, dims: Dims | None) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, TensorProto.FLOAT, dims)
