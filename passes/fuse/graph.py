"""The graph as the rules of this family see it, and the few edits that they make.

A rule is called with the last node of what it looks for. It checks every condition first, then edits, and says what it did:

    rule(work, node) -> Change(done=True)    the graph has changed
                        Change(done=False)   the pattern is there, but something forbids the rewrite: ``why`` says what
                        None                 the pattern is not there

A value in between may only go when nothing else reads it and it is no output; an initializer may only change when nothing else
reads it, no caller can override it, and it is no output: otherwise the changed one is a new initializer, and its bytes count
as growth.
"""

from __future__ import annotations

import fnmatch
from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import onnx_ir as ir

from graphopt import walk
from graphopt.contracts import Change
from graphopt.graphs import INITIALIZERS_NEED_NO_INPUT, annotated_names, constant, site
from graphopt.model import weight_bytes
from graphopt.shapes import Facts, defined, shape_of, subgraphs

_MANY = 8
"""What more nodes than these read is taken to be needed until the end; listing them again and again would take too long."""
_SHORT = 8
"""Numbers in what tells sizes: one for each axis."""
_LEAST_GROWTH = 1_000_000
_GROWTH_PART = 20
FLOATS = frozenset({ir.DataType.FLOAT, ir.DataType.DOUBLE, ir.DataType.FLOAT16})
"""Types that weights are computed in; of the others, folding would lose more than a rounding."""


@dataclass
class Work:
    """What the rules share during one run of the pass."""

    model: ir.Model
    exclude: Sequence[str]
    """Patterns of the names of nodes that the user asked to leave alone."""
    facts: Facts
    """What is known of types and shapes; stays right while the graph is rewired."""
    growth_bytes: int | None = None
    """By how many bytes the weights may grow; None: 1 MB or 5 %."""
    slow_kernels: Sequence[str] = ()
    """Fused operators that are slower on the target than what they are made of."""
    runtime: str = ""
    """The name of the runtime that the model is for."""
    grown: int = 0
    """By how many bytes the weights have grown."""
    made: dict[Hashable, list[ir.Value]] = field(default_factory=dict)
    """Initializers that this run made, by their graph and the beginning of their contents: equal ones are one."""
    needed: set[ir.Value] = field(default_factory=set)
    """Initializers that many nodes read, as far as somebody has asked."""
    quiet: int = 0
    """How many changes of a sweep let no rule fit where none did, at no node but those that are still to be asked."""
    tells_more: bool = False
    """Whether inference may tell more than the facts by now; after almost all rules it tells the same, and is not run again."""

    @cached_property
    def graphs(self) -> Sequence[ir.Graph]:
        """The main graph and its subgraphs; no rule makes or removes one."""
        return [*walk.graphs(self.model.graph)]

    @cached_property
    def most_growth(self) -> int:
        """By how many bytes the weights may grow, if they do."""
        given = self.growth_bytes
        return max(_LEAST_GROWTH, weight_bytes(self.model) // _GROWTH_PART) if given is None else given

    @cached_property
    def is_free(self) -> bool:
        """Whether every operator of ONNX may be rewritten."""
        return not self.exclude and not self.model.functions

    @cached_property
    def fixed(self) -> set[str]:
        """Initializers that quantization annotations refer to: used, though by no node."""
        return annotated_names(self.model)

    @cached_property
    def occurring(self) -> Counter[str]:
        """How many values there were of each name when a rule first asked."""
        return Counter(value.name or "" for graph in self.graphs for value in defined(graph))

    @cached_property
    def names(self) -> set[str]:
        """The names of all values, and of some that are gone; who gives a new name adds it."""
        return {value.name or "" for graph in self.graphs for value in defined(graph)}

    @cached_property
    def sizes(self) -> Mapping[Hashable, Sequence[ir.Value]]:
        """Short vectors of int64 that others may read too, by their graph and contents, when a rule first asked."""
        found = (v for graph in self.graphs for v in graph.initializers.data.values() if v.dtype == ir.DataType.INT64)
        tensors = ((value, constant(value)) for value in found if value.name not in self.fixed)
        short = ((value, tensor.numpy()) for value, tensor in tensors if tensor is not None and tensor.size <= _SHORT)
        return {_key(value.graph, array): [value] for value, array in short}

    @property
    def opset(self) -> int:
        """The version of ONNX's own operators."""
        return self.model.opset_imports.get("", 1)

    # ------------------------------------------------------------------------------------------------------ questions

    def is_operator(self, node: ir.Node, *op_types: str) -> bool:
        """Whether the node is one of these operators of ONNX and may be rewritten: no function call, not excluded."""
        if node.op_type not in op_types or node.domain != "":
            return False
        if self.is_free:
            return True
        excluded = any(fnmatch.fnmatchcase(site(node), pattern) for pattern in self.exclude)
        return not excluded and node.op_identifier() not in self.model.functions

    def producer(self, value: ir.Value | None, user: ir.Node, *op_types: str) -> ir.Node | None:
        """The node of one of these operators in the graph of ``user`` that gives ``value``."""
        node = None if value is None else value.producer()
        return node if node is not None and node.graph is user.graph and self.is_operator(node, *op_types) else None

    def dtype(self, value: ir.Value | None) -> ir.DataType | None:
        """The element type of a tensor, where it is known for certain."""
        known = None if value is None else self.facts.get(value)
        return known.type.dtype if known is not None and isinstance(known.type, ir.TensorType) else None

    def shape(self, value: ir.Value | None) -> ir.Shape | None:
        """The shape of a tensor, where at least its rank is known for certain."""
        known = None if value is None else self.facts.get(value)
        return None if known is None else known.shape

    def rank(self, value: ir.Value | None) -> int | None:
        """The rank of a tensor, where it is known for certain."""
        shape = self.shape(value)
        return None if shape is None else len(shape)

    def can_replace(self, old: ir.Value) -> bool:
        """Whether an output of another node of the same graph, itself no graph output, can take the place of this one."""
        if not old.is_graph_output():
            return True
        places = [] if old.graph is None else [output for output in old.graph.outputs if output is old]
        return len(places) == 1 and self.occurring[old.name or ""] <= 1

    # ---------------------------------------------------------------------------------------------------------- edits

    def new_name(self, name: str) -> str:
        """``name`` if it is new in the model, else with a number that makes it so."""
        new, number = name, 0
        while new in self.names:
            number += 1
            new = f"{name}_{number}"
        self.names.add(new)
        return new

    def replace(self, old: ir.Value, new: ir.Value) -> None:
        """Let everything that used ``old`` use ``new``, which has the same contents; ``can_replace`` was asked.

        Where ``old`` is an output of its graph, ``new`` takes over its place, name, type and shape.
        """
        if old.is_graph_output():
            assert old.graph is not None
            position = next(index for index, output in enumerate(old.graph.outputs) if output is old)
            old.graph.outputs[position] = new
            name, old.name = old.name, None
            new.name, new.type, new.shape = name, old.type, old.shape
            new.doc_string = old.doc_string or new.doc_string
            new.metadata_props.update(old.metadata_props)
        elif new.producer() is not None:
            new.type = old.type or new.type
            new.shape = new.shape if old.shape is None else old.shape
        if old in self.facts:
            self.facts[new] = self.facts[old]
        old.replace_all_uses_with(new)

    def add(
        self,
        node: ir.Node,
        op_type: str,
        inputs: Sequence[ir.Value | None],
        attributes: Sequence[ir.Attr] = (),
    ) -> ir.Value:
        """The output of a new node in the place of ``node``, whose only (first) output it replaces; ``node`` is removed."""
        assert node.graph is not None
        old = node.outputs[0]
        new = ir.Node("", op_type, inputs, attributes, name=node.name)
        new.metadata_props.update(node.metadata_props)
        name = old.name
        node.graph.insert_before(node, new)
        self.replace(old, new.outputs[0])
        if new.outputs[0].name != name:
            old.name, new.outputs[0].name = None, name
        self.remove_dead(node)
        return new.outputs[0]

    def insert(
        self,
        node: ir.Node,
        op_type: str,
        inputs: Sequence[ir.Value | None],
        attributes: Sequence[ir.Attr],
        known: ir.TypeAndShape,
    ) -> ir.Value:
        """The output of a new node before ``node``; ``known`` is its type and shape."""
        assert node.graph is not None
        name = self.new_name(f"{node.outputs[0].name}_{op_type.lower()}")
        output = ir.Value(name=name, type=known.type, shape=known.shape)
        self.facts[output] = known
        node.graph.insert_before(node, ir.Node("", op_type, inputs, attributes, outputs=[output], name=name))
        return output

    def put(self, node: ir.Node, index: int, array: np.ndarray, name: str) -> None:
        """Let input ``index`` of a node be a constant with these contents; the one that it replaces goes if it is not used.

        Where it is that already, it stays.
        """
        old = node.inputs[index] if index < len(node.inputs) else None
        if _holds(constant(old), array):
            return
        free = None
        if old is not None and only_use(old) and self.dies(old, node):
            free = old.name
            _remove(old)
        if index >= len(node.inputs):
            node.resize_inputs(index + 1)
        node.replace_input_with(index, self.constant(node, array, name, free))

    def constant(self, node: ir.Node, array: np.ndarray, name: str, free: str | None = None) -> ir.Value:
        """A new constant in the graph of ``node``, in a Constant node where the file's version allows no initializer.

        It has the name ``free``, which nothing has, or one that is like ``name``.
        """
        assert node.graph is not None
        key = _key(node.graph, array)
        alike = self.made.setdefault(key, [])
        known = [*alike, *self.sizes.get(key, ())] if array.dtype == np.int64 else alike
        made = next((value for value in known if value.graph is node.graph and _holds(value.const_value, array)), None)
        if made is not None:
            return made
        name = free or self.new_name(name)
        tensor = ir.Tensor(np.asarray(array, order="C"), name=name)
        fact = ir.TypeAndShape(ir.TensorType(tensor.dtype), shape_of(tensor))
        value = ir.Value(name=name, type=fact.type, shape=fact.shape)
        self.facts[value] = fact
        if (self.model.ir_version or 0) >= INITIALIZERS_NEED_NO_INPUT:
            value.const_value = tensor
            node.graph.register_initializer(value)
            alike.append(value)
        else:
            node.graph.insert_before(node, ir.Node("", "Constant", [], [ir.AttrTensor("value", tensor)], outputs=[value]))
        return value

    def dies(self, value: ir.Value, *users: ir.Node) -> bool:
        """Whether an initializer can go when these nodes no longer read it."""
        if not value.is_initializer() or value.is_graph_input() or value.is_graph_output() or value.name in self.fixed:
            return False
        uses = () if value in self.needed else value.uses()
        if len(uses) > _MANY:
            self.needed.add(value)
        return value not in self.needed and all(use.node in users for use in uses)

    def drop_needed(self) -> None:
        """Remove the initializers that many nodes read once, and none any more."""
        asked, self.needed = self.needed, set()
        self.drop([value for value in asked if not value.uses()])

    def drop(self, values: Iterable[ir.Value | None]) -> None:
        """Remove the initializers among the values that nothing reads."""
        for value in values:
            if value is not None and value.graph is not None and self.dies(value):
                _remove(value)

    def remove_dead(self, node: ir.Node) -> None:
        """Remove a node whose outputs nothing reads, and what only it used."""
        waiting = [node]
        while waiting:
            dead = waiting.pop()
            if dead.graph is None or any(output.is_graph_output() or output.uses() for output in dead.outputs):
                continue
            inputs = [*dict.fromkeys(value for value in dead.inputs if value is not None)]
            dead.graph.remove(dead, safe=True)
            self.drop(inputs)
            producers = (value.producer() for value in inputs)
            waiting += [made for made in producers if made is not None and not any(subgraphs(made))]

    def grow(self, changes: Iterable[tuple[ir.Node, int, int]], gone: ir.Node) -> str | None:
        """Reserve what new contents of inputs cost: (node, input, bytes). If it is too much, why; then nothing is reserved.

        ``gone`` is the node that will be removed, and with it the constants that only it reads.
        """
        growth = 0
        for node, index, size in changes:
            old = node.inputs[index] if index < len(node.inputs) else None
            growth += size - (_bytes(old) if old is not None and self.dies(old, node, gone) else 0)
        growth -= sum(_bytes(value) for value in {*gone.inputs} if value is not None and self.dies(value, gone))
        if growth > 0 and self.grown + growth > self.most_growth:
            return f"the weights would grow by {growth} bytes: others use them too and need them as they are"
        self.grown += growth
        return None


def _remove(initializer: ir.Value) -> None:
    if initializer.graph is not None and initializer.name is not None:
        del initializer.graph.initializers[initializer.name]


Rule = Callable[[Work, ir.Node], Change | None]


def declined(node: ir.Node, what: str, why: str) -> Change:
    """A pattern that was found and left alone."""
    return Change(site(node), what, why, done=False)


def number(value: ir.Value | None) -> float | None:
    """The one number that a constant of one element holds."""
    tensor = constant(value)
    if tensor is None or tensor.size != 1 or tensor.dtype == ir.DataType.STRING:
        return None
    return float(tensor.numpy().reshape(()))


def ints(value: ir.Value | None) -> list[int] | None:
    """The integers that a constant holds."""
    tensor = constant(value)
    return None if tensor is None or not tensor.dtype.is_integer() else [int(i) for i in tensor.numpy().reshape(-1)]


def _holds(tensor: ir.TensorProtocol | None, array: np.ndarray) -> bool:
    """Whether a constant has the type, the shape and, bit by bit, the contents of an array."""
    if tensor is None or _start(tensor.numpy()) != _start(array):
        return False
    alike = tensor.dtype.numpy() == array.dtype and tuple(tensor.shape.numpy()) == array.shape
    return alike and tensor.tobytes() == array.tobytes()


def _key(graph: ir.Graph | None, array: np.ndarray) -> Hashable:
    """What initializers of a graph have in common that may hold the same."""
    return graph, array.dtype, array.shape, _start(array)


def _start(array: np.ndarray) -> bytes:
    """The first elements: where they differ, the others need not be compared."""
    return array.reshape(-1)[:64].tobytes()


def _bytes(value: ir.Value) -> int:
    tensor = constant(value)
    return 0 if tensor is None else tensor.nbytes


def only_use(value: ir.Value) -> bool:
    """Whether nothing but one input of one node reads the value."""
    return not value.is_graph_output() and len(value.uses()) == 1


def attribute(node: ir.Node, name: str, default: int | float | str | Sequence[int] | None = None) -> object:
    """An attribute's value; None where a function's caller decides it."""
    found = node.attributes.get(name)
    if found is None:
        return default
    return None if found.is_ref() else found.value
