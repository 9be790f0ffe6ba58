"""What the rules fill in, one node at a time in topological order: ids on every axis, and facts about ids.

    same        these ids are one channel, element by element (elementwise operators, a weight and what it multiplies)
    product     a merged axis and the axes it is made of: flat[i * n + j] is gone when a[i] or b[j] is (Reshape, grouped Conv)
    lock        these can never be removed, and why
    gives       a weight's axis makes these channels;  ``contract``: these are summed over, and no longer there behind the node
    count       a number in a constant shape, or an attribute, that is how many of these ids there are
    edit        another constant that depends on what is removed

A rule raises ``Unknown`` where it cannot say; then, as for an operator without a rule, the ids of all inputs are locked.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from graphopt.graphs import INITIALIZERS_NEED_NO_INPUT, constant, is_overridable, operator, site
from graphopt.shapes import Facts, subgraphs

from .ids import FREE, Axis, Ids, Symbol, UnionFind

Axes = tuple[Axis, ...]
"""Ids per axis of a value; a symbol for a dynamic axis."""
Kept = Callable[[Ids], npt.NDArray[np.bool_]]
"""Which of these ids stay."""
Rule = Callable[["Analysis", ir.Node], "Sequence[Axes | None]"]
"""The axes of a node's outputs; None, or missing at the end: nothing can be removed there."""
Where = int | str
"""A node's input, by index, or attribute, by name."""

_PASSED = frozenset({"Identity", "Cast", "DequantizeLinear", "QuantizeLinear"})
"""A weight behind these is still that weight, axis by axis."""


class Unknown(Exception):  # noqa: N818 - no error: a rule's way to say that it cannot tell
    """What a rule cannot say, as the reason for a person."""


@dataclass(frozen=True)
class Role:
    """``node`` uses the axis of a weight, the initializer or Constant ``value``, whose ids these are."""

    node: ir.Node
    value: ir.Value
    axis: int
    ids: Ids


@dataclass(frozen=True)
class Sum:
    """``node`` sums over these ids, an axis of its input: behind it they are gone."""

    node: ir.Node
    input: int
    axis: int
    ids: Ids


@dataclass(frozen=True)
class Product:
    """``flat`` [n1 * n2 * ...], row-major, is made of ``axes`` [n1], [n2], ...: what is kept of it must be a block."""

    flat: Ids
    axes: tuple[Ids, ...]


@dataclass(frozen=True)
class Entry:
    """One number of a list of sizes: where it stands, and its value if it is constant."""

    node: ir.Node
    where: Where
    position: int
    number: int | None


@dataclass(frozen=True)
class Edit:
    """A constant input or an attribute of ``node`` is ``compute(kept)`` after a removal."""

    node: ir.Node
    where: Where
    compute: Callable[[Kept], npt.NDArray[np.int64]]


class Analysis:
    """The state that rules read and write."""

    def __init__(self, model: ir.Model, facts: Facts) -> None:
        self.union = UnionFind()
        self.axes: dict[ir.Value, Axes | None] = {}
        self.reasons: list[tuple[ir.Node | None, str]] = []
        self.products: list[Product] = []
        self.giving: list[Role] = []
        self.taking: list[Role] = []
        self.sums: list[Sum] = []
        self.paired: list[Ids] = []
        """Contracted between two activations: attention's head dimension. Where there is a choice, others are removed."""
        self.counts: dict[tuple[ir.Node, Where], dict[int, Ids]] = {}
        self.edits: list[Edit] = []
        self._facts = facts
        self._symbols = 0
        self._asked: set[int] = set()
        """Inputs of the node at hand whose ids its rule has asked for; of the others nothing can be removed."""
        self._overridable = (model.ir_version or 0) >= INITIALIZERS_NEED_NO_INPUT
        self.opset = model.opset_imports.get("", 0)

    # ------------------------------------------------------------------------------------------------------ ids on axes

    def walk(self, graph: ir.Graph, rules: dict[str, Rule]) -> None:
        """Apply the rule of each node; subgraphs come after the inputs and before the outputs of the node that holds them."""
        for node in graph:
            for subgraph in subgraphs(node):
                for given in subgraph.inputs:
                    self.axes[given] = self.fixed(given, node, "a subgraph's input")
                self.walk(subgraph, rules)
                for result in subgraph.outputs:
                    self.lock(self.axes_of(result), node, "gives it out of a subgraph")
            outputs = self._ruled(node, rules)
            for place, output in enumerate(node.outputs):
                self.axes[output] = self._settled(output, node, outputs[place] if place < len(outputs) else None)

    def _ruled(self, node: ir.Node, rules: dict[str, Rule]) -> Sequence[Axes | None]:
        """What the rule of a node says of its outputs. What it does not answer for is locked."""
        outputs: Sequence[Axes | None] = ()
        rule, why = rules.get(operator(node)), "it reads this as a whole"
        self._asked = set()
        try:
            if rule is None:
                raise Unknown("an operator without a rule")
            outputs = rule(self, node)
        except Unknown as unknown:
            why, self._asked = str(unknown), set()
        for index, value in enumerate(node.inputs):
            if value is not None and index not in self._asked:
                self.lock(self.axes_of(value), node, why)
        return outputs

    def of(self, node: ir.Node, index: int) -> Axes:
        """Ids per axis of a node's input.

        Raises:
            Unknown: The input is left out, or its rank is not known.
        """
        value = node.inputs[index] if index < len(node.inputs) else None
        self._asked.add(index)
        axes = self.axes_of(value) if value is not None else None
        if axes is None:
            raise Unknown("a shape that is not known")
        return axes

    def maybe(self, node: ir.Node, index: int) -> Axes | None:
        """The same, None where the input is left out."""
        return self.of(node, index) if index < len(node.inputs) and node.inputs[index] is not None else None

    def axes_of(self, value: ir.Value) -> Axes | None:
        """Ids per axis of a value, made when they are first asked for; None where the rank is not known."""
        if value in self.axes:
            return self.axes[value]
        tensor = value.const_value if value.is_initializer() else constant(value)
        if tensor is None:
            axes = self.fixed(value, value.producer(), "a value that nothing is known of")
        else:
            axes = tuple(self.union.new(int(size)) for size in tensor.shape.numpy())
            if is_overridable(value) and self._overridable:
                self.lock(axes, None, f"{value.name} is an input of the model too: a caller may override it")
        self.axes[value] = axes
        return axes

    def sizes(self, value: ir.Value) -> tuple[int | Symbol, ...] | None:
        """Size or symbol per axis, as inferred; where inference has no name for it, as the rules have it."""
        known, axes = self._facts.get(value), self.axes.get(value)
        ours = None if axes is None else tuple(ids if isinstance(ids, Symbol) else len(ids) for ids in axes)
        if known is None or known.shape is None:
            return ours
        dims = [dim if isinstance(dim, int) else dim.value for dim in known.shape]
        if ours is None or len(ours) != len(dims):
            ours = tuple(self.symbol() for _ in dims)
        return tuple(
            Symbol(dim) if isinstance(dim, str) else own if dim is None else dim for dim, own in zip(dims, ours, strict=True)
        )

    def symbol(self) -> Symbol:
        """A size that nothing is known of, unlike all others."""
        self._symbols += 1
        return Symbol(f"?{self._symbols}")

    def dtype(self, value: ir.Value) -> ir.DataType:
        """The element type of a value; float32 where it is not known."""
        known = self._facts.get(value)
        found = known.type.dtype if known is not None and known.type is not None else value.dtype
        return found or ir.DataType.FLOAT

    def fixed(self, value: ir.Value, node: ir.Node | None, why: str) -> Axes | None:
        """Fresh ids for all axes of known size, none of which can be removed."""
        sizes = self.sizes(value)
        if sizes is None:
            return None
        return tuple(self.locked(size, node, why) if isinstance(size, int) else size for size in sizes)

    def locked(self, size: int, node: ir.Node | None, why: str) -> Ids:
        """``size`` fresh ids that cannot be removed."""
        ids = self.union.new(size)
        self.lock((ids,), node, why)
        return ids

    def position(self, node: ir.Node, output: int, axis: int) -> Axis:
        """Fresh ids that cannot be removed, for an axis that is no channel; a symbol where it is dynamic."""
        sizes = self.sizes(node.outputs[output])
        size = sizes[axis] if sizes is not None else self.symbol()
        return self.locked(size, node, "an axis of positions") if isinstance(size, int) else size

    def _settled(self, value: ir.Value, node: ir.Node, axes: Axes | None) -> Axes | None:
        """What a rule says of an output, against what is known of its shape: where they differ nothing can be removed."""
        sizes = self.sizes(value)
        if axes is None or (sizes is not None and len(sizes) != len(axes)):
            self.lock(axes, node, "a shape that its rule does not expect")
            return self.fixed(value, node, "an output whose axes are not known")
        if sizes is None:
            return axes
        settled = list(axes)
        for axis, (ids, size) in enumerate(zip(axes, sizes, strict=True)):
            if isinstance(size, int) and (isinstance(ids, Symbol) or len(ids) != size):
                self.lock((ids,), node, "a size that its rule does not expect")
                settled[axis] = self.locked(size, node, "an axis of positions")
            elif isinstance(ids, Symbol) and isinstance(size, Symbol) and size.named:
                settled[axis] = size
        return tuple(settled)

    # ----------------------------------------------------------------------------------------------------- facts about ids

    def same(self, a: Axis, b: Axis, node: ir.Node) -> Axis:
        """Make two axes one and give it back; where the size of one is dynamic, the other cannot be removed."""
        if isinstance(a, Symbol) or isinstance(b, Symbol):
            self.lock((a, b), node, "it meets an axis of dynamic size")
            return b if isinstance(a, Symbol) and not (isinstance(b, Symbol) and a.named) else a
        if len(a) != len(b):
            raise Unknown("sizes that do not fit")
        self.union.same(a, b)
        return a

    def product(self, flat: Ids, axes: Sequence[Ids]) -> None:
        """``flat`` is the row-major product of ``axes``."""
        assert len(flat) == math.prod(len(ids) for ids in axes)
        wide = tuple(ids for ids in axes if len(ids) > 1)
        if len(wide) == 1:
            self.union.same(flat, wide[0])
        elif wide:
            self.products.append(Product(flat, wide))

    def merged(self, axes: Sequence[Ids], node: ir.Node) -> Ids:
        """Ids of the axis that ``axes`` are merged into, row-major."""
        wide = [ids for ids in axes if len(ids) > 1] or list(axes[:1])
        if len(wide) == 1:
            return wide[0]
        size = math.prod(len(ids) for ids in axes)
        if all((self.union.why(ids) < FREE).all() for ids in wide):
            return self.locked(size, node, "an axis of positions")
        flat = self.union.new(size)
        self.product(flat, wide)
        return flat

    def lock(self, axes: Iterable[Axis] | None, node: ir.Node | None, why: str) -> None:
        """These cannot be removed, because of ``node``."""
        given = [ids for ids in axes or () if not isinstance(ids, Symbol) and ids.size]
        if given:
            self.reasons.append((node, why))
            for ids in given:
                self.union.lock(ids, len(self.reasons) - 1)

    # ------------------------------------------------------------------------------------------------------------- roles

    def weight(self, node: ir.Node, index: int, axis: int) -> tuple[ir.Value, int] | None:
        """The initializer or Constant behind an input, and the axis in it; None for an activation."""
        value = node.inputs[index]
        while value is not None:
            if (value.is_initializer() and value.const_value is not None) or constant(value) is not None:
                return value, axis
            producer = value.producer()
            if producer is None:
                return None
            if producer.op_type == "Transpose" and producer.domain == "":
                order = producer.attributes.get_ints("perm") or range(len(self.axes_of(value) or ()))[::-1]
                axis = list(order)[axis]
            elif producer.op_type not in _PASSED:
                return None
            value = producer.inputs[0]
        return None

    def gives(self, node: ir.Node, index: int, axis: int) -> None:
        """The axis of an input, if that is a weight, makes channels: each of its slices computes one."""
        found = self.weight(node, index, axis)
        ids = self.of(node, index)[axis]
        if found is not None and not isinstance(ids, Symbol):
            self.giving.append(Role(node, *found, ids))

    def takes(self, node: ir.Node, index: int, axis: int) -> None:
        """The axis of an input, if that is a weight, is what channels are multiplied with before they are summed."""
        found = self.weight(node, index, axis)
        ids = self.of(node, index)[axis]
        if found is not None and not isinstance(ids, Symbol):
            self.taking.append(Role(node, *found, ids))

    def summed(self, node: ir.Node, index: int, axis: int) -> None:
        """The axis of an input is summed over."""
        ids = self.of(node, index)[axis]
        if not isinstance(ids, Symbol):
            self.sums.append(Sum(node, index, axis, ids))

    def contract(self, node: ir.Node, left: tuple[int, int], right: tuple[int, int]) -> None:
        """``node`` sums the product of two inputs over an (input, axis) of each; either may be a weight."""
        ids = self.same(self.of(node, left[0])[left[1]], self.of(node, right[0])[right[1]], node)
        weights = [place for place in (left, right) if self.weight(node, *place)]
        for place in weights:
            self.takes(node, *place)
        self.summed(node, *(right if left in weights else left))
        if not weights and not isinstance(ids, Symbol):
            self.paired.append(ids)

    # ------------------------------------------------------------------------------------------- numbers that depend on ids

    def numbers(self, node: ir.Node, index: int, name: str = "") -> list[Entry] | None:
        """A list of integers, an input or (in older opsets) an attribute; None where it is given as neither.

        Entries of a computed list are found through Concat; the others have no number.

        Raises:
            Unknown: It is computed, and not even its length is known.
        """
        if name and name in node.attributes:
            attribute = node.attributes[name]
            values = attribute.as_ints() if attribute.type == ir.AttributeType.INTS else [attribute.as_int()]
            return [Entry(node, name, place, int(number)) for place, number in enumerate(values)]
        value = node.inputs[index] if index < len(node.inputs) else None
        if value is None:
            return None
        listed = self.listed(value)
        if listed is None:
            raise Unknown("a size that is computed")
        return [Entry(node, index, place, number) for place, number in enumerate(listed)]

    def listed(self, value: ir.Value) -> list[int | None] | None:
        """The numbers in a list of sizes, None for the computed ones; None where its length is not known."""
        tensor = constant(value)
        if tensor is not None:
            return [int(number) for number in tensor.numpy().reshape(-1)]
        producer = value.producer()
        if producer is not None and producer.op_type == "Concat" and producer.domain == "":
            parts = [self.listed(part) for part in producer.inputs if part is not None]
            known = [part for part in parts if part is not None]
            return [number for part in known for number in part] if len(known) == len(parts) else None
        sizes = self.sizes(value)
        if sizes is None or len(sizes) > 1 or any(isinstance(size, Symbol) for size in sizes):
            return None
        return [None] * math.prod(size for size in sizes if isinstance(size, int))

    def constants(self, node: ir.Node, index: int, name: str = "") -> list[int] | None:
        """The same as plain integers.

        Raises:
            Unknown: One of them is computed.
        """
        entries = self.numbers(node, index, name)
        if entries is None:
            return None
        numbers = [entry.number for entry in entries if entry.number is not None]
        if len(numbers) < len(entries):
            raise Unknown("a size that is computed")
        return numbers

    def count(self, entry: Entry, ids: Ids) -> None:
        """The entry is the number of these ids, so many as are kept. A computed one locks them."""
        if entry.number is None:
            self.lock((ids,), entry.node, "a size that is computed")
            return
        known = self.counts.setdefault((entry.node, entry.where), {})
        other = known.setdefault(entry.position, ids)
        if other is not ids and not np.array_equal(self.union.find(other), self.union.find(ids)):
            self.lock((ids, other), entry.node, "a size that counts two different things")

    def count_attribute(self, node: ir.Node, name: str, ids: Ids) -> None:
        """The attribute is the number of these ids, whether it is written down or not."""
        self.counts[node, name] = {0: ids}

    def edit(self, node: ir.Node, where: Where, compute: Callable[[Kept], npt.NDArray[np.int64]]) -> None:
        """A constant input or attribute to compute anew after a removal."""
        self.edits.append(Edit(node, where, compute))

    def name(self, reason: int) -> str:
        """A reason for a person: the operator and the node, and what it does."""
        node, why = self.reasons[reason]
        return why if node is None else f"{node.op_type} {site(node)!r}: {why}"
