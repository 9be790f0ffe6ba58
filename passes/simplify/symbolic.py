"""Symbolic evaluation: the dimensions of every value, and the contents of small integer tensors, as polynomials (``dims.py``).

    dims(v)      one polynomial for each axis; an axis that nothing is known of is an atom of its own
    numbers(v)   the contents of an integer or bool tensor of up to 64 elements, where known

Dimensions come from ONNX's inference where that knows them, else from ``follow.py``; numbers from ``contents.py``. Both hold
for every size of a dynamic dimension from 1 up: a Reshape is taken to give the dimensions that it asks for, though a 0 among
them would mean "as the input". A symbol of the inputs is the same size wherever it stands.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TypeGuard

import onnx_ir as ir

from graphopt.graphs import constant
from graphopt.shapes import is_known

from .dims import UNKNOWN, Dim, Poly, TooLongError, symbol
from .graph import Root, Work
from .numbers import MOST_ELEMENTS, Numbers

INTEGERS = frozenset({ir.DataType.INT64, ir.DataType.INT32})
FOLLOWED = INTEGERS | {ir.DataType.BOOL}


class Symbolic:
    """What is known of the values of a root: found out when somebody asks, and kept until ``update`` says what changed."""

    def __init__(self, work: Work, root: Root, rules: Mapping[str, Follows], contents: Mapping[str, Gives]) -> None:
        self._work = work
        self.opset = root.opset
        self._rules = rules
        self._contents = contents
        self._functions = work.model.functions
        self._symbols: dict[str, Poly] = {}
        self._dims: dict[ir.Value, tuple[Dim, ...] | None] = {}
        self._numbers: dict[ir.Value, Numbers | None] = {}
        self._followed: set[ir.Value] = set()
        """Of these the rules say what they can; of others, what inference and constants say is all that was asked."""
        self._read: dict[ir.Node, Sequence[ir.Value | None]] = {}
        """What nodes read when they were evaluated."""
        self._atoms = 0
        self._unknown: set[Dim] = set()
        """How the rule that is being asked says that it knows nothing of a dimension."""
        self._due: set[ir.Node] = set()
        """What reads a value of which something else was stated."""
        self._earlier: dict[ir.Value, tuple[Dim, ...]] = {}
        """What was known of the dimensions of values before what they follow from changed: as true as ever."""

    def dims(self, value: ir.Value | None) -> tuple[Dim, ...] | None:
        """The dimensions of a value; None if not even their number is known."""
        if value is None:
            return None
        if value not in self._dims:
            known = self._fact(value)
            if _is_complete(known):
                self._dims[value] = known
            elif (tensor := constant(value)) is not None:
                self._dims[value] = tuple(tensor.shape.numpy())
            else:
                self._follow(self._unfollowed(value))
                if value not in self._dims:
                    self._dims[value] = self._named(value, known)
        return self._dims[value]

    def numbers(self, value: ir.Value | None) -> Numbers | None:
        """The contents; None if nothing is known of them."""
        if value is None:
            return None
        if value not in self._numbers:
            node = value.producer()
            if node is None or node.op_type == "Constant":
                self._numbers[value] = self._constant_numbers(value)
            else:
                if self._may_be_numbered(value):
                    self._follow(self._unfollowed(value))
                self._numbers.setdefault(value, None)
        return self._numbers[value]

    def known_numbers(self, value: ir.Value | None) -> list[Dim] | None:
        """The contents of a vector (of a scalar: the one number), if all of it is known."""
        numbers = self.numbers(value)
        known = [] if numbers is None else [number for number in numbers.items if number is not None]
        return None if numbers is None or len(known) < len(numbers.items) else known

    def fixed(self, value: ir.Value | None) -> list[int] | None:
        """The contents of a vector or a scalar, if all of it is the same for all sizes."""
        numbers = self.known_numbers(value)
        if numbers is None or any(isinstance(number, Poly) for number in numbers):
            return None
        return [number for number in numbers if isinstance(number, int)]

    def dtype(self, value: ir.Value | None) -> ir.DataType | None:
        """The element type, where it is known for certain."""
        tensor = constant(value)
        return self._work.dtype(value) if tensor is None else tensor.dtype

    def tell(self, new: ir.Value, old: ir.Value) -> None:
        """Take over what is known of ``old`` for a value that has the same contents."""
        self._dims[new], self._numbers[new] = self.dims(old), self.numbers(old)
        self._set(new)

    def tell_dims(self, new: ir.Value, dims: tuple[Dim, ...]) -> None:
        """Take note of the dimensions of a value that is new, or has others from now on."""
        self._dims[new], self._numbers[new] = dims, None
        self._earlier.pop(new, None)
        self._set(new)

    def state_dims(self, value: ir.Value, dims: tuple[Dim, ...]) -> None:
        """Take note that a value has these dimensions too; what follows from that is found out with the next change."""
        known = self.dims(value) or dims
        both = tuple([b if isinstance(b, int) or _is_unknown(a) else a for a, b in zip(known, dims, strict=True)])
        if both != known:
            self._dims[value] = both
            self._due.update(use.node for use in value.uses())

    def _set(self, new: ir.Value) -> None:
        self._followed.add(new)
        node = new.producer()
        if node is not None:
            self._read[node] = ()  # what follows from its inputs is found out with the next change

    def update(self, nodes: Iterable[ir.Node], changed: Iterable[ir.Node]) -> set[ir.Node]:
        """Find out anew what is known of what has changed, and of what depends on that if something else is known now.

        Args:
            nodes: All nodes, in order.
            changed: Those that are new, read something else than before, or of whose outputs inference knows something else.

        Returns:
            The nodes that give a value of which something else is known now.
        """
        due, found = {*changed, *self._due}, set()
        self._due.clear()
        for node in nodes if due else ():
            if node not in due:
                continue
            renewed = [output for output in node.outputs if self._is_renewed(output)]
            if renewed:
                found.add(node)
                due.update(use.node for output in renewed for use in output.uses())
        return found

    def rewired(self, nodes: Iterable[ir.Node]) -> list[ir.Node]:
        """Those of the nodes that were evaluated, and read what something else is known of now than of what they read then."""
        before = ((node, self._read[node]) for node in nodes if node in self._read)
        return [node for node, read in before if node.inputs is not read and not self._are_alike(node.inputs, read)]

    def _are_alike(self, values: Sequence[ir.Value | None], others: Sequence[ir.Value | None]) -> bool:
        """Whether the same is known of values as of others."""
        pairs = [(value, other) for value, other in zip(values, others, strict=False) if value is not other]
        return len(values) == len(others) and all(
            known(value) == known(other) for known in (self.dims, self.numbers, self.dtype) for value, other in pairs
        )

    def news(self, nodes: Iterable[ir.Node]) -> list[ir.Node]:
        """Those of the nodes of whose outputs inference, which has run again, says what is not known here yet."""
        return [node for node in nodes if not all(map(self._is_old, node.outputs))]

    def _is_old(self, value: ir.Value) -> bool:
        """Whether inference says nothing new of a value; of what may be numbered, a type may be news."""
        dims, fact = self._dims.get(value), self._fact(value)
        if dims is None or fact is None or len(dims) != len(fact):
            return False
        if any(said is not None and said is not dim and said != dim for said, dim in zip(fact, dims, strict=True)):
            return False
        return self._numbers.get(value) is not None or not self._may_be_numbered(value)

    def _is_renewed(self, value: ir.Value) -> bool:
        """Whether something else is known of a value, now that it is found out anew; not if nobody has asked yet."""
        asked_dims, asked_numbers = value in self._dims, value in self._numbers
        dims, numbers = self._dims.pop(value, None), self._numbers.pop(value, None)
        self._followed.discard(value)
        if dims is not None:
            self._earlier[value] = dims
        return (asked_dims and self.dims(value) != dims) or (asked_numbers and self.numbers(value) != numbers)

    def axes(self, node: ir.Node, index: int = 1, name: str = "axes") -> list[int] | None:
        """Axes given by an attribute or a constant input; None if they are not given, or not constant."""
        attribute = node.attributes.get(name)
        if attribute is not None:
            return None if attribute.is_ref() else [*attribute.as_ints()]
        return self.fixed(node.inputs[index]) if len(node.inputs) > index else None

    def _may_be_numbered(self, value: ir.Value) -> bool:
        """Whether a rule may give the contents of a value: not those of floats, nor of what is too large."""
        node = value.producer()
        if node is None or node.op_type not in self._contents:
            return False
        known = self._work.facts.get(value)
        if known is None:
            return True
        if not isinstance(known.type, ir.TensorType) or known.type.dtype not in FOLLOWED:
            return False
        return known.shape is None or not known.shape.is_static() or math.prod(known.shape.numpy()) <= MOST_ELEMENTS

    def _unfollowed(self, value: ir.Value | None) -> ir.Node | None:
        """The node that gives a value, if rules may say more of it than is known."""
        if value is None or value in self._followed:
            return None
        node = value.producer()
        if node is None or node.graph is None or node.op_type == "Constant":
            return None
        if is_known(self._work.facts.get(value)) and not self._may_be_numbered(value):
            self._followed.add(value)
            return None
        return node

    def _follow(self, node: ir.Node | None) -> None:
        """Evaluate a node, after those that it depends on, however many they are."""
        waiting = [] if node is None else [node]
        while waiting:
            before = [first for v in waiting[-1].inputs if (first := self._unfollowed(v)) is not None]
            if before:
                waiting += before
                continue
            node = waiting.pop()
            if any(output not in self._followed for output in node.outputs):
                self._evaluate(node)

    def _evaluate(self, node: ir.Node) -> None:
        op_type, outputs, functions = node.op_type, node.outputs, self._functions
        standard = node.domain == "" and not (functions and node.op_identifier() in functions)
        self._unknown = set()
        inferred = [self._fact(output) for output in outputs]
        followed: Sequence[tuple[Dim, ...] | None] = ()
        numbers = None
        try:
            if standard and op_type in self._rules and any(known is None or None in known for known in inferred):
                followed = self._rules[op_type](self, node)
            if standard and outputs and self._may_be_numbered(outputs[0]):
                numbers = self._contents[op_type](self, node)
        except TooLongError:
            numbers = None
        for output, first, second in itertools.zip_longest(outputs, inferred, followed[: len(outputs)]):
            self._dims[output] = self._named(output, _merged(first, second))
            self._numbers[output] = None
        if numbers is not None and len(numbers.items) <= MOST_ELEMENTS:
            self._numbers[outputs[0]] = numbers
        self._followed.update(outputs)
        self._read[node] = node.inputs

    def _fact(self, value: ir.Value) -> tuple[Dim | None, ...] | None:
        known = self._work.facts.get(value)
        if known is None or known.shape is None or not isinstance(known.type, ir.TensorType):
            return None
        return tuple([dim if isinstance(dim, int) else self._symbol(dim) for dim in known.shape.dims])

    def _symbol(self, dim: ir.SymbolicDim) -> Poly | None:
        name = dim.value
        if not name:
            return None
        if name not in self._symbols:
            self._symbols[name] = symbol(f"${name}")
        return self._symbols[name]

    def _named(self, value: ir.Value, dims: Sequence[Dim | None] | None) -> tuple[Dim, ...] | None:
        """Dimensions of a value, with what was known earlier for those that nothing is known of now."""
        if dims is None:
            return None
        told = [dim for dim in dims if dim is not None and dim not in self._unknown]
        if len(told) == len(dims):
            return tuple(told)
        known = [None if dim in self._unknown else dim for dim in dims]
        earlier = self._earlier.get(value, ()) if None in known else ()
        if len(earlier) == len(known):
            known = [old if dim is None else dim for dim, old in zip(known, earlier, strict=True)]
        return tuple([self._atom() if dim is None else dim for dim in known])

    def unknown(self) -> Poly:
        """A dimension that nothing is known of; for rules to say so."""
        atom = self._atom()
        self._unknown.add(atom)
        return atom

    def _atom(self) -> Poly:
        self._atoms += 1
        return symbol(f"{UNKNOWN}{self._atoms}")

    def _constant_numbers(self, value: ir.Value) -> Numbers | None:
        tensor = constant(value)
        if tensor is None or tensor.dtype not in FOLLOWED or tensor.size > MOST_ELEMENTS:
            return None
        array = tensor.numpy()
        return Numbers(array.shape, tuple(map(int, array.reshape(-1).tolist())))


def _is_complete(dims: tuple[Dim | None, ...] | None) -> TypeGuard[tuple[Dim, ...]]:
    return dims is not None and None not in dims


def _is_unknown(dim: Dim) -> bool:
    return isinstance(dim, Poly) and dim.has_unknown


def _merged(a: Sequence[Dim | None] | None, b: Sequence[Dim] | None) -> Sequence[Dim | None] | None:
    if a is None or b is None or len(a) != len(b) or None not in a:
        return b if a is None else a
    return [y if x is None else x for x, y in zip(a, b, strict=True)]


Follows = Callable[[Symbolic, ir.Node], "list[tuple[Dim, ...] | None]"]
"""The dimensions of an operator's outputs; None where they cannot be told."""
Gives = Callable[[Symbolic, ir.Node], "Numbers | None"]
"""The contents of an operator's first output; None where they cannot be told."""
