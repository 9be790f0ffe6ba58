"""A node in its place, and the edits that write it in other operators.

A rule is called with a ``Place``. It asks (``sizes``, ``dtype``, ``array``; ``Refused`` where the rewrite is not exact or
something is not known), builds new nodes in front of the old one, and puts their result in its place:

    rule(place) -> None

Nothing that others may read is changed: constants are new ones. What the old node alone has read goes with it.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field

import numpy as np
import onnx_ir as ir

from graphopt import walk
from graphopt.graphs import constant, site
from graphopt.names import Names
from graphopt.shapes import Facts

_INITIALIZERS_IR = 4  # before, an initializer had to be listed as an input, which a caller may replace


class Refused(Exception):  # noqa: N818 - it says what happened, and is caught by the one who asked
    """A node is left as it is; the text says why."""


@dataclass
class Place:
    """A node that is to be written in other operators."""

    node: ir.Node
    facts: Facts
    """Types and shapes that are certain; what replaces a value inherits what is known of it."""
    names: Names
    annotated: Collection[str]
    """Initializers that quantization annotations refer to."""
    opset: int
    ir_version: int
    growth_bytes: int
    """So many bytes may new constants have."""
    made: list[ir.Node] = field(default_factory=list)
    finished: list[ir.Node] = field(default_factory=list)
    """Further nodes that the rule has replaced."""

    # ------------------------------------------------------------------------------------------------------ questions

    @property
    def x(self) -> ir.Value:
        """The node's first input."""
        value = self.node.inputs[0]
        assert value is not None
        return value

    def given(self, index: int) -> ir.Value | None:
        """An input, None where it is left out."""
        return self.node.inputs[index] if index < len(self.node.inputs) else None

    def only_output(self) -> ir.Value:
        """The node's first output.

        Raises:
            Refused: Another one is used.
        """
        if any(output.uses() or output.is_graph_output() for output in self.node.outputs[1:]):
            raise Refused("its further outputs are used")
        return self.node.outputs[0]

    def rank(self, value: ir.Value | None = None) -> int:
        """The number of dimensions.

        Raises:
            Refused: It is not known.
        """
        known = self.facts.get(value or self.x)
        if known is None or known.shape is None:
            raise Refused("how many dimensions it has is not known")
        return len(known.shape)

    def sizes(self, value: ir.Value | None = None) -> list[int]:
        """The shape.

        Raises:
            Refused: It is not fixed.
        """
        known = self.facts.get(value or self.x)
        if known is None or known.shape is None or not known.shape.is_static():
            raise Refused("its shapes are not fixed")
        return [int(size) for size in known.shape.numpy()]

    def dtype(self, value: ir.Value | None = None) -> np.dtype:
        """The element type.

        Raises:
            Refused: It is not known.
        """
        known = self.facts.get(value or self.x)
        if known is None or not isinstance(known.type, ir.TensorType):
            raise Refused("its type is not known")
        return np.dtype(known.type.dtype.numpy())

    def float32(self) -> None:
        """Refuse other types: what is approximated, or summed, is measured in this one."""
        if self.dtype() != np.float32:
            raise Refused(f"it is {self.dtype()}; the rewrite is for float32")

    def array(self, index: int) -> np.ndarray | None:
        """What a constant input holds; None where it is left out.

        Raises:
            Refused: It is not constant.
        """
        value = self.given(index)
        if value is None:
            return None
        tensor = constant(value)
        if tensor is None:
            raise Refused("one of its inputs is not constant")
        return np.asarray(tensor.numpy())

    def integers(self, name: str, index: int) -> list[int] | None:
        """An attribute of integers, or the input that it has become in later versions; None where there is neither."""
        attribute = self.node.attributes.get(name)
        if attribute is not None:
            if attribute.is_ref():
                raise Refused("one of its attributes is a parameter of a function")
            return [int(each) for each in attribute.as_ints()]
        array = self.array(index)
        return None if array is None else [int(each) for each in array.reshape(-1)]

    # --------------------------------------------------------------------------------------------------------- building

    def add(self, op_type: str, *inputs: ir.Value | float | np.ndarray | None, **attributes: object) -> ir.Value:
        """The output of a new node in front of the old one. A number becomes a constant of the first input's type."""
        values = [self._value(each) for each in inputs]
        new = ir.node(op_type, values, attributes)  # type: ignore[arg-type]  # it refuses other values itself
        graph = self.node.graph
        assert graph is not None
        new.name = self.names.new(f"{site(self.node)}/{op_type}")
        new.outputs[0].name = self.names.new(f"{site(self.node)}/{op_type}_output")
        graph.insert_before(self.node, new)
        self.made.append(new)
        return new.outputs[0]

    def _value(self, given: ir.Value | float | np.ndarray | None) -> ir.Value | None:
        if given is None or isinstance(given, ir.Value):
            return given
        return self.constant(given if isinstance(given, np.ndarray) else np.asarray(given, self.dtype()))

    def constant(self, array: np.ndarray) -> ir.Value:
        """A new constant.

        Raises:
            Refused: It is larger than the weights may grow.
        """
        if array.nbytes > self.growth_bytes:
            raise Refused(f"a constant of {array.nbytes:,} bytes would be needed")
        self.growth_bytes -= array.nbytes
        graph = self.node.graph
        assert graph is not None
        if self.ir_version < _INITIALIZERS_IR or not isinstance(graph, ir.Graph):
            return self.add("Constant", value=ir.Tensor(array))
        tensor = ir.Tensor(array)
        name = self.names.new(f"{site(self.node)}/constant")
        value = ir.Value(name=name, type=ir.TensorType(tensor.dtype), shape=tensor.shape, const_value=tensor)
        graph.register_initializer(value)
        return value

    def shape(self, sizes: Sequence[int]) -> ir.Value:
        """A constant of integers."""
        return self.constant(np.asarray(sizes, np.int64))

    def reshape(self, value: ir.Value, sizes: Sequence[int]) -> ir.Value:
        """The value in another shape; 0 and -1 mean what they mean in Reshape."""
        return self.add("Reshape", value, self.shape(sizes))

    def slice(self, value: ir.Value, axis: int, start: int, end: int) -> ir.Value:
        """The part of a value from ``start`` to before ``end``."""
        if self.opset < 10:
            return self.add("Slice", value, starts=[start], ends=[end], axes=[axis])
        return self.add("Slice", value, *(self.shape([number]) for number in (start, end, axis)))

    def concat(self, values: Sequence[ir.Value], axis: int) -> ir.Value:
        """The values one behind the other."""
        return values[0] if len(values) == 1 else self.add("Concat", *values, axis=axis)

    def mean(self, value: ir.Value, axes: Sequence[int], *, keep: bool = True) -> ir.Value:
        """The mean over axes."""
        if self.opset < 18:
            return self.add("ReduceMean", value, axes=[*axes], keepdims=int(keep))
        return self.add("ReduceMean", value, self.shape(axes), keepdims=int(keep))

    def clip(self, value: ir.Value, low: float, high: float) -> ir.Value:
        """The value within limits."""
        if self.opset < 11:
            return self.add("Clip", value, min=low, max=high)
        return self.add("Clip", value, low, high)

    def put(self, old: ir.Value, new: ir.Value) -> None:
        """Let everything that used an output of the node use a new value; name, type and place among outputs go with it."""
        old.replace_all_uses_with(new, replace_graph_outputs=True)
        name, old.name = old.name, None
        new.name, new.type, new.shape = name, old.type, old.shape
        new.metadata_props.update(old.metadata_props)
        if old in self.facts:
            self.facts[new] = self.facts[old]

    # --------------------------------------------------------------------------------------------------------- finishing

    def run(self, rule: Callable[[Place], None]) -> None:
        """Apply a rule and remove the old node.

        Raises:
            Refused: The rule did; the graph is as it was.
        """
        try:
            rule(self)
        except Refused:
            for node in reversed(self.made):
                self._remove_dead(node)
            raise
        for node in (*self.finished, self.node):
            self._remove_dead(node)
        self.made = [node for node in self.made if node.graph is not None]

    def _remove_dead(self, node: ir.Node) -> None:
        """Remove a node that nothing reads, and what only it has read."""
        waiting = [node]
        while waiting:
            dead = waiting.pop()
            if dead.graph is None or any(output.is_graph_output() or output.uses() for output in dead.outputs):
                continue
            inputs = [*dict.fromkeys(value for value in dead.inputs if value is not None)]
            dead.graph.remove(dead, safe=True)
            for value in inputs:
                producer = value.producer()
                if producer is not None and not walk.subgraphs(producer):
                    waiting.append(producer)
                self._drop(value)

    def _drop(self, value: ir.Value) -> None:
        """Remove an initializer that nothing reads."""
        kept = value.uses() or value.is_graph_input() or value.is_graph_output() or value.name in self.annotated
        if value.is_initializer() and not kept and value.graph is not None:
            del value.graph.initializers[value.name or ""]
