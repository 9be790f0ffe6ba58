"""The edits that rules share which go by what is known of dimensions: new nodes and constants, one value for another.

What only reshapes, whatever it is called, keeps all elements in their order: Reshape, Unsqueeze, Flatten; a Squeeze of axes
that are 1 for certain; a Transpose that keeps the order of the axes that are not 1; an Expand that repeats nothing; a Gather
of 0, 1, 2, ... up to the end.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field

import numpy as np
import onnx_ir as ir

from graphopt.contracts import Array, Change
from graphopt.graphs import site

from .follow import Dims
from .graph import Root, Work, can_replace, output_position, remove, replace
from .symbolic import Symbolic

_IN_ORDER = frozenset({"Flatten", "Reshape", "Unsqueeze"})
"""Operators that keep all elements in their order."""
IN_ORDER_MAYBE = frozenset({"Expand", "Gather", "Squeeze", "Transpose"})
"""Operators that keep all elements in their order for some dimensions, attributes and indices."""
KEEP_ORDER = _IN_ORDER | IN_ORDER_MAYBE

Window = tuple[int, int, int]
"""Part of a tensor: axis, begin and end."""


@dataclass
class Edit:
    """What edits one root, and the edits that it made."""

    work: Work
    root: Root
    known: Symbolic
    changes: list[Change] = field(default_factory=list)
    constants: dict[Hashable, ir.Value] = field(default_factory=dict)
    windows: dict[ir.Node, Window | None] = field(default_factory=dict)
    """What ScatterNDs write (``scatter.py``), as far as somebody has asked."""

    def keeps_order(self, node: ir.Node) -> bool:
        """Whether an operator only reshapes: all elements of its first input, in their order."""
        op_type = node.op_type
        if op_type in _IN_ORDER:
            return True
        dims = self.known.dims(node.inputs[0]) if op_type in IN_ORDER_MAYBE else None
        if dims is None:
            return False
        if op_type == "Squeeze":  # of another axis it fails, and must do so still
            return all(dims[axis] == 1 for axis in self.known.axes(node) or ())
        if op_type == "Transpose":
            moved = [axis for axis in self.perm(node) or () if dims[axis] != 1]
            return moved == sorted(moved)
        if op_type == "Expand":
            expanded = self.known.dims(node.outputs[0]) or ()
            return [dim for dim in dims if dim != 1] == [dim for dim in expanded if dim != 1]
        axis, indices = node.attributes.get_int("axis", 0), self.known.fixed(node.inputs[1])
        length = dims[axis] if -len(dims) <= axis < len(dims) else None
        return isinstance(length, int) and indices is not None and [i % length for i in indices] == [*range(length)]

    def vector(self, node: ir.Node, numbers: Sequence[int], dtype: ir.DataType = ir.DataType.INT64) -> ir.Value:
        """A constant vector for a node to read."""
        return self.constant(node, np.array(numbers, dtype.numpy()))

    def constant(self, node: ir.Node, array: Array) -> ir.Value:
        """A constant for a node to read."""
        graph = node.graph
        assert graph is not None
        key = (graph, array.dtype, array.shape, array.tobytes())
        if key in self.constants:
            return self.constants[key]
        name, tensor = self.root.new_name("shape"), ir.Tensor(array)
        new = ir.Value(name=name, type=ir.TensorType(tensor.dtype), shape=ir.Shape(array.shape))
        if self.root.initializers:
            new.const_value = tensor
            graph.register_initializer(new)
            self.constants[key] = new
        else:
            made = ir.Node(
                "", "Constant", [], [ir.AttrTensor("value", tensor)], outputs=[new], name=self.root.new_node_name(name)
            )
            graph.insert_before(node, made)
        return new

    def insert(self, node: ir.Node, op_type: str, inputs: Sequence[ir.Value], attributes: Sequence[ir.Attr]) -> ir.Value:
        """The output of a new node before another one, to take the place of that one's output."""
        old, graph = node.outputs[0], node.graph
        assert graph is not None
        new = self._like(old, self.root.new_name(old.name or "value"))
        graph.insert_before(node, self._made(node, op_type, inputs, attributes, new))
        self.known.tell(new, old)
        return new

    def insert_behind(self, node: ir.Node, op_type: str, operands: Sequence[ir.Value], attributes: Sequence[ir.Attr]) -> None:
        """Let a new node read what another one gives, and take over its name and its readers: ``rewire`` that one next."""
        old, graph = node.outputs[0], node.graph
        assert graph is not None
        name = old.name
        new = self._like(old, name)
        replace(old, new)
        old.name = name
        graph.insert_after(node, self._made(node, op_type, [old, *operands], attributes, new))
        self.known.tell(new, old)

    def rewire(self, node: ir.Node, inputs: Sequence[ir.Value | None], dims: Dims, axis: int | None = None) -> ir.Value:
        """Let a node do the same, along this axis, to other values; and return its output, which has another name then."""
        for index, value in enumerate(inputs):
            node.replace_input_with(index, value)
        if axis is not None:
            node.attributes.add(ir.AttrInt64("axis", axis))
        output = node.outputs[0]
        if not output.is_graph_output():  # what is one has the same dimensions as before
            output.name = self.root.new_name(output.name or "value")
        if self.known.dims(output) != dims:
            dtype = self.work.facts.get(output, ir.TypeAndShape(None, None)).type
            output.type, output.shape = dtype, ir.Shape([dim if isinstance(dim, int) else None for dim in dims])
            self.work.facts[output] = ir.TypeAndShape(dtype, output.shape)
            self.known.tell_dims(output, dims)
        return output

    def _like(self, old: ir.Value, name: str | None) -> ir.Value:
        """A new value of which the same is known and stated as of another one."""
        known = self.work.facts.get(old, ir.TypeAndShape(None, None))
        new = ir.Value(name=name, type=known.type, shape=known.shape)
        self.work.facts[new] = known
        return new

    def _made(
        self, node: ir.Node, op_type: str, inputs: Sequence[ir.Value], attributes: Sequence[ir.Attr], output: ir.Value
    ) -> ir.Node:
        return ir.Node("", op_type, inputs, attributes, outputs=[output], name=self.root.new_node_name(site(node)))

    def before(self, value: ir.Value | None, op_type: str) -> ir.Node | None:
        """The operator of this type that gives a value; in whatever graph."""
        producer = None if value is None else value.producer()
        return producer if producer is not None and producer.op_type == op_type and self.work.is_operator(producer) else None

    def perm(self, node: ir.Node) -> list[int] | None:
        """The order of the axes that a Transpose gives."""
        perm, dims = node.attributes.get("perm"), self.known.dims(node.inputs[0])
        if perm is not None:
            return None if perm.is_ref() else [*perm.as_ints()]
        return None if dims is None else [*reversed(range(len(dims)))]

    def keeps(self, node: ir.Node, value: ir.Value) -> bool:
        """Whether a value has the type and dimensions of the node's output."""
        dims, dtype = self.known.dims(node.outputs[0]), self.work.dtype(node.outputs[0])
        return dims is not None and dims == self.known.dims(value) and dtype is not None and dtype == self.work.dtype(value)

    def put_reshaped(self, node: ir.Node, value: ir.Value, target: Sequence[int], what: str, why: str) -> bool:
        """Let a value that is reshaped to this constant be what a node gives; one that is a Reshape is kept."""
        if node.op_type != "Reshape":
            return self.put(node, self.insert(node, "Reshape", [value, self.vector(node, target)], []), what, why)
        node.replace_input_with(0, value)
        if self.known.fixed(node.inputs[1]) != target:
            node.replace_input_with(1, self.vector(node, target))
        node.attributes.pop("allowzero", None)  # a 0 in the constant means the input's size
        return self.kept(node, what, why)

    def put(self, node: ir.Node, new: ir.Value, what: str, why: str) -> bool:
        """Let a value take the place of the node's output, if it can."""
        if not can_replace(node.outputs[0], new):
            return False
        replace(node.outputs[0], new)
        self.done(node, what, why)
        return True

    def kept(self, node: ir.Node, what: str, why: str) -> bool:
        """Note what was done with a node that stays."""
        self.changes.append(Change(site(node), what, why))
        return True

    def done(self, node: ir.Node, what: str, why: str) -> None:
        """Note what was done with a node, and remove it."""
        self.changes.append(Change(site(node), what, why))
        remove([node])


def encode(wanted: Dims, dims: Dims) -> list[int] | None:
    """A constant that makes a Reshape of ``dims`` give ``wanted``; None if there is none."""
    target: list[int] = []
    for axis, dim in enumerate(wanted):
        if isinstance(dim, int):
            if dim <= 0:
                return None
            target.append(dim)
        elif axis < len(dims) and dim == dims[axis]:
            target.append(0)
        elif -1 not in target:
            target.append(-1)
        else:
            return None
    return target


def has_one_place(node: ir.Node) -> bool:
    """Whether another value can take the place of its first output."""
    outputs = node.outputs
    return bool(outputs) and (not outputs[0].is_graph_output() or output_position(outputs[0]) is not None)


def is_only_for(value: ir.Value | None, node: ir.Node) -> bool:
    """Whether nothing but a node reads a value."""
    return value is not None and not value.is_graph_output() and all(use.node is node for use in value.uses())
