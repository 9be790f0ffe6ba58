"""Let computed shapes collapse, by what ``symbolic.py`` knows of them.

    y with known contents                 ->   a constant, if they are the same for all sizes
    y1, y2 with equal contents            ->   every use of y2 becomes a use of y1 (equal polynomials, same type and shape)
    y with the contents x.shape[i:j]      ->   Shape(x, start=i, end=j), where the operator has these attributes
    Reshape(x, s)                         ->   Reshape(x, c): c_i is the size where it is fixed, 0 where it is that of x on
                                               the same axis, and -1 on at most one axis
    Reshape(Reshape(x, s), t)             ->   Reshape(x, c) in the same way; Squeeze, Unsqueeze and Flatten are Reshapes too
    Expand(x, s)                          ->   Expand(x, c): c_i is 1 where x has that size
    Slice(x, a, b)                        ->   Slice(x, a', b'): a bound that is the size of the axis is "to the end"
    f(x) with the dimensions of x         ->   x, for f = Reshape, Flatten, Squeeze, Unsqueeze, Expand, Slice, Tile, and
                                               for chains of those that keep the order of the elements

``edit.py`` says what keeps the order of the elements.

The inputs' dynamic dimensions are taken to be 1 or more (``symbolic.py``). The rules are also right for 0, but for one: a
Reshape to a constant that has both a 0 (copied, dynamic) and a -1, which a runtime refuses for an empty tensor. What data
decide may well be 0, as when a detector finds nothing: where the 0 copies such a dimension, the shape stays computed.
"""

from __future__ import annotations

from collections import ChainMap
from collections.abc import Container, Hashable, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from graphopt.contracts import Change
from graphopt.graphs import constant, site

from .contents import CONTENTS, slice_of
from .dims import Dim, Poly
from .edit import IN_ORDER_MAYBE, KEEP_ORDER, Edit, encode, has_one_place
from .follow import Dims, sliced, symbolic
from .graph import Work, put_constant, remove
from .symbolic import INTEGERS

_FIRST_SHAPE_WITH_BOUNDS = 15
_FIRST_RESHAPE_WITH_INPUT = 5
_FIRST_SLICE_WITH_INPUTS = 10
_TO_THE_END = (1 << 63) - 1
_LONGEST_CHAIN = 8
"""So many operators are looked back at."""
_SAME_NUMBERS = "both always hold the same numbers"
_KEEP_ALL = KEEP_ORDER | {"Slice", "Tile"}
_VISITED = _KEEP_ALL | CONTENTS.keys()


def collapse_shapes(work: Work, *, fold: bool = True) -> list[Change]:
    """Collapse the computed shapes of the main graph and its subgraphs; ``fold``: values may become constants."""
    root = work.roots[0]
    return Collapse(work, root, symbolic(work, root), fold=fold).run()


_Seen = ChainMap[Hashable, ir.Value]
_Sources = ChainMap[tuple[Dim | None, ...], tuple[ir.Value, int, int]]


@dataclass
class Collapse(Edit):
    """The walk through a graph, and the edits that it makes."""

    fold: bool = True
    """Whether values may become constants."""

    def run(self) -> list[Change]:
        """Walk the graph once; all of it only where one of the values to look at may be had elsewhere too."""
        visited = [*self.work.operators(self.root, _VISITED)]
        if self.fold:
            self.fix([node for node in visited if node.op_type in CONTENTS])
        near = None if self.work.near is None else [node for node in visited if node.graph is not None]
        if near is None or any(map(self.is_numbered, near)):
            self.visit(self.root.graph, ChainMap(), ChainMap(), None if near is None else {*near})
        else:
            for node in near:
                if node.graph is not None and has_one_place(node) and not self.same(node):
                    self.simplify_operands(node)
        return self.changes

    def visit(self, graph: ir.Graph, seen: _Seen, sources: _Sources, near: Container[ir.Node] | None) -> None:
        """``seen``: values by their contents; ``sources``: parts of values' shapes. What a subgraph adds, only it sees."""
        for value in graph.inputs:
            self.add_source(value, sources)
        for node in graph:
            for subgraph in self.root.subgraphs.get(node, ()):
                self.visit(subgraph, seen.new_child(), sources.new_child(), near)
            op_type = node.op_type
            if op_type not in _VISITED or not self.work.is_operator(node) or not has_one_place(node):
                continue
            is_near = near is None or node in near
            if is_near and self.same(node):
                continue
            if self.is_numbered(node):
                self.number(node, seen, sources)  # what is in ``seen`` stays: no other rule may replace it
            elif is_near:
                self.simplify_operands(node)
            if op_type == "Shape" and node.graph is not None and node.inputs[0] is not None:
                self.add_source(node.inputs[0], sources)

    def is_numbered(self, node: ir.Node) -> bool:
        """Whether it is known what numbers a node gives."""
        return node.op_type in CONTENTS and self.known.known_numbers(node.outputs[0]) is not None

    def add_source(self, value: ir.Value, sources: _Sources) -> None:
        """Note which parts of a value's shape can be had from it."""
        dims = self.known.dims(value)
        if dims is None or dims in sources or self.root.opset < _FIRST_SHAPE_WITH_BOUNDS:
            return
        for start in range(len(dims)):
            for end in range(start + 1, len(dims) + 1):
                sources.setdefault(dims[start:end], (value, start, end))

    # ---------------------------------------------------------------------------------------------- values that are known

    def fix(self, nodes: Sequence[ir.Node]) -> None:
        """Let constants take the place of what is the same for all sizes; last first, for what only that reads is not asked."""
        gone: dict[ir.Node, None] = {}
        for node in reversed(nodes):
            output = node.outputs[0]
            if self.known.numbers(output) is None:
                continue
            uses = output.uses()
            if uses and not output.is_graph_output() and all(use.node in gone for use in uses):
                self.changes.append(Change(site(node), f"removed {node.op_type}", "what reads it is known ahead of time"))
            elif not (uses or output.is_graph_output()) or not has_one_place(node) or not self.put_numbers(node):
                continue
            gone[node] = None
        remove([*gone])

    def put_numbers(self, node: ir.Node) -> bool:
        """Let a constant take the place of what a node gives, if that is the same for all sizes."""
        output = node.outputs[0]
        fixed, numbers, dtype = self.known.fixed(output), self.known.numbers(output), self.work.dtype(output)
        limit = 31 if dtype == ir.DataType.INT32 else 63
        if fixed is None or numbers is None or dtype is None or not all(-(1 << limit) <= n < 1 << limit for n in fixed):
            return False
        assert node.graph is not None
        tensor = ir.Tensor(np.array(fixed, dtype.numpy()).reshape(numbers.shape))
        put_constant(self.root, [output], tensor, node.graph)
        why = "it follows from dimensions that are fixed"
        self.changes.append(Change(site(node), "computed its result ahead of time", why))
        return True

    def number(self, node: ir.Node, seen: _Seen, sources: _Sources) -> None:
        """Let another value take the place of a node of which it is known what it gives."""
        output = node.outputs[0]
        numbers, dtype = self.known.numbers(output), self.work.dtype(output)
        if (
            numbers is None
            or dtype is None
            or self.known.fixed(output) is not None
            or not (output.uses() or output.is_graph_output())
        ):
            return
        key = (dtype, numbers)
        first = seen.setdefault(key, output)
        source = sources.get(numbers.items) if len(numbers.shape) == 1 and dtype == ir.DataType.INT64 else None
        if first is not output:
            self.put(node, first, f"took {first.name} for it", _SAME_NUMBERS)
        elif source is not None and node.op_type != "Shape":
            value, start, end = source
            seen[key] = self.insert(node, "Shape", [value], [ir.AttrInt64("start", start), ir.AttrInt64("end", end)])
            self.put(node, seen[key], f"took a part of the shape of {value.name} for it", _SAME_NUMBERS)

    # ------------------------------------------------------------------------------------------ operators that keep all

    def same(self, node: ir.Node) -> bool:
        """Remove an operator, or a chain of them, that gives what went in."""
        source = node.inputs[0] if node.op_type in _KEEP_ALL and node.inputs else None
        dims = None if source is None else self.known.dims(node.outputs[0])
        if source is None or dims is None:
            return False
        producer, given = source.producer(), self.known.dims(source)
        alike = _have_same_dims(dims, given)
        if not alike and (producer is None or producer.op_type not in KEEP_ORDER):
            return False
        found, in_order = None, self.keeps_order(node)
        if alike and (in_order or (dims == given and node.op_type not in IN_ORDER_MAYBE and self.keeps_all(node))):
            found = source
        for _ in range(_LONGEST_CHAIN if found is None and in_order else 0):
            producer = source.producer()
            if producer is None or not self.work.is_operator(producer) or not self.keeps_order(producer):
                break
            before = producer.inputs[0]
            if before is None:
                break
            source = before
            if _have_same_dims(dims, self.known.dims(source)):
                found = source
                break
        if found is None or not self.put(node, found, f"removed {node.op_type}", "it gives what went in, in the same shape"):
            return False
        self.known.state_dims(found, dims)
        return True

    def keeps_all(self, node: ir.Node) -> bool:
        """Whether an operator that keeps the dimensions keeps the elements too."""
        if node.op_type == "Tile":
            return self.known.fixed(node.inputs[1]) == [1] * len(self.known.dims(node.inputs[0]) or ())
        if node.op_type == "Slice":
            window, dims = slice_of(self.known, node), self.known.dims(node.inputs[0])
            return (
                window is not None
                and dims is not None
                and all(step == 1 and sliced(dims[a], start, end, 1) == dims[a] for a, (start, end, step) in window.items())
            )
        return True

    # ------------------------------------------------------------------------------------------------- computed operands

    def simplify_operands(self, node: ir.Node) -> None:
        """Let a constant take the place of a computed shape or bound."""
        op_type = node.op_type
        if op_type in KEEP_ORDER and self.merge_reshapes(node):
            return
        if op_type == "Reshape" and self.root.opset >= _FIRST_RESHAPE_WITH_INPUT:
            self.reshape(node)
        elif op_type == "Expand":
            self.expand(node)
        elif op_type == "Range":
            self.range(node)
        elif op_type == "Slice" and self.root.opset >= _FIRST_SLICE_WITH_INPUTS:
            self.slice(node)

    def reshape(self, node: ir.Node) -> None:
        """Let a constant be the shape of a Reshape."""
        if constant(node.inputs[1]) is not None:
            return
        wanted, dims = self.known.dims(node.outputs[0]), self.known.dims(node.inputs[0])
        target = None if wanted is None or dims is None else encode(wanted, dims)
        if target is not None and dims is not None and not self.is_undetermined(node, target, dims):
            self.set_operand(node, 1, target, f"the shape that it asks for is always {target}")

    def is_undetermined(self, node: ir.Node, target: Sequence[int], dims: Dims) -> bool:
        """Whether a Reshape may fail that did not: it finds no -1 where a dimension that it copies turns out to be 0."""
        before = self.known.numbers(node.inputs[1])
        if -1 not in target or (before is not None and -1 in before.items):
            return False
        copied = [dim for dim, size in zip(dims, target, strict=False) if size == 0]
        return any(isinstance(dim, Poly) and dim.has_unknown for dim in copied)

    def is_as_undetermined(self, nodes: Sequence[ir.Node], target: Sequence[int], dims: Dims) -> bool:
        """Whether one of the nodes fails wherever a Reshape to ``target`` does: it has a -1 next to all that this copies."""
        copied = {dim for dim, size in zip(dims, target, strict=False) if size == 0}
        for node in nodes:
            asked = self.known.numbers(node.inputs[1]) if node.op_type == "Reshape" else None
            if asked is not None and -1 in asked.items:
                given = self.known.dims(node.outputs[0]) or ()
                if copied.issubset(dim for dim, size in zip(given, asked.items, strict=False) if size != -1):
                    return True
        return False

    def merge_reshapes(self, node: ir.Node) -> bool:
        """Skip the operators that only reshape, before one that only reshapes too."""
        source, first, merged = node.inputs[0], None, [node]
        while source is not None and (producer := source.producer()) is not None and producer.op_type in KEEP_ORDER:
            only = len(source.uses()) == 1 and not source.is_graph_output() and producer.graph is node.graph
            if not only or not self.work.is_operator(producer) or not self.keeps_order(producer):
                break
            first = source = producer.inputs[0]
            merged.append(producer)
        if first is None or not self.keeps_order(node):
            return False
        dims, wanted = self.known.dims(first), self.known.dims(node.outputs[0])
        if wanted is None or dims is None or self.root.opset < _FIRST_RESHAPE_WITH_INPUT:
            return False
        target = encode(wanted, dims)
        if target is None or (0 in target and -1 in target and not self.is_as_undetermined(merged, target, dims)):
            return False
        return self.put_reshaped(node, first, target, "merged into one Reshape", "they only reshape one after the other")

    def expand(self, node: ir.Node) -> None:
        """Let a constant be the shape of an Expand."""
        target, dims = self.known.numbers(node.inputs[1]), self.known.dims(node.inputs[0])
        if target is None or len(target.shape) != 1 or constant(node.inputs[1]) is not None or dims is None:
            return
        own = (1,) * (len(target.items) - len(dims)) + dims[max(0, len(dims) - len(target.items)) :]
        fixed = [
            number if isinstance(number, int) else 1 if number == dim else None
            for number, dim in zip(target.items, own, strict=True)
        ]
        known = [number for number in fixed if number is not None]
        if len(known) == len(fixed):
            self.set_operand(node, 1, known, "its other dimensions are those of its input")

    def range(self, node: ir.Node) -> None:
        """Make scalars of constant vectors of one number: runtimes take them for bounds only if they are not constant."""
        for index, value in enumerate(node.inputs):
            tensor = constant(value)
            if tensor is not None and tensor.shape.numpy() == (1,):
                node.replace_input_with(index, self.constant(node, tensor.numpy().reshape(())))
                self.changes.append(Change(site(node), "gave it a scalar bound", "ONNX asks for scalars"))

    def slice(self, node: ir.Node) -> None:
        """Let constants be the bounds of a Slice."""
        computed = [index for index in (1, 2) if constant(node.inputs[index]) is None]
        window = slice_of(self.known, node) if computed else None
        dims = self.known.dims(node.inputs[0])
        if window is None or dims is None:
            return
        for index in computed:
            bounds = [_bound(dims[axis], bounds[index - 1]) if bounds[2] > 0 else None for axis, bounds in window.items()]
            known = [bound for bound in bounds if bound is not None]
            if len(known) == len(bounds):
                self.set_operand(node, index, known, "its bounds are known from where the axis ends")

    # ------------------------------------------------------------------------------------------------------------- edits

    def set_operand(self, node: ir.Node, index: int, numbers: Sequence[int], why: str) -> None:
        """Let a node read a constant."""
        dtype = self.known.dtype(node.inputs[index])
        if dtype not in INTEGERS or (dtype == ir.DataType.INT32 and _TO_THE_END in numbers):
            return
        node.attributes.pop("allowzero", None)  # a 0 in the constant means the input's size
        node.replace_input_with(index, self.vector(node, numbers, dtype))
        what = "gave it a constant shape" if node.op_type != "Slice" else "gave it constant bounds"
        self.changes.append(Change(site(node), what, why))


def _have_same_dims(a: Dims, b: Dims | None) -> bool:
    """Whether tensors of as many elements have the same dimensions: if all but one are equal and not 0, so is that one."""
    if a == b or b is None or len(a) != len(b):
        return a == b
    equal = [dim for dim, other in zip(a, b, strict=True) if dim == other]
    return len(equal) == len(a) - 1 and not any(dim == 0 or (isinstance(dim, Poly) and dim.has_unknown) for dim in equal)


def _bound(dim: Dim, bound: Dim) -> int | None:
    """The same bound of a Slice, as a constant: one that is the size of the axis, or one less, or fixed."""
    if isinstance(bound, int):
        return bound
    if bound == dim:
        return _TO_THE_END
    return -1 if dim - bound == 1 else None
