"""Compute ahead of time what does not depend on the inputs (constant folding).

    y = f(c1, c2, ...), c constant   ->   y constant
    y = Shape(x), Size(x)            ->   y constant, when every dimension of x is fixed; x itself may be anything
    y = CastLike(c, x)               ->   y constant: only the type of x is read

Types and dimensions are believed only where inference proves them from the graph's inputs. Initializers that a caller may
override are no constants. Values needed on the way are never written: only what the rest of the graph reads becomes an
initializer, within the limit on the growth of the file (``growth.py``).

Large weights are not read: operators that only move elements (Transpose, Reshape, Slice, ...) do so when the file is written,
one tensor at a time (``moved.py``). Operators that calculate are computed at once, up to a limit on memory.
"""

from __future__ import annotations

import math
import mmap
from collections.abc import Hashable
from dataclasses import dataclass, field

import numpy as np
import onnx_ir as ir

from graphopt.contracts import Change
from graphopt.graphs import constant, constant_tensor, is_overridable, site
from graphopt.model.weights import tensor_bytes

from . import growth
from .dead import remove_initializers
from .evaluate import COMPUTES, LOWEST_OPSET, MOVES, Refused, accepts, bound, evaluate, output_types
from .graph import Root, Work, output_position, put_constant, remove
from .moved import MOST_MOVES, MovedTensor

_LARGE_BYTES = 1 << 20
"""Tensors above this size are moved when they are written, not before."""
_COMPUTED_BYTES = 1 << 26
"""All values that are computed in one run together."""
_START = 64
"""So many elements are looked at to see which constants may be equal."""
_ELEMENT_BYTES = 8
"""Of the widest type that is computed."""
_TYPE_AND_SHAPE_ONLY = frozenset({"Shape", "Size", "CastLike"})
_FOLDED = MOVES | COMPUTES | _TYPE_AND_SHAPE_ONLY


def fold_constants(work: Work) -> list[Change]:
    """Fold constants in every graph. Why a node was not folded goes to ``work.declined``."""
    changes: list[Change] = []
    kept = work.annotated_names()
    for root in work.roots:
        if root.opset < LOWEST_OPSET:
            continue
        folded = _evaluate_all(work, root)
        if not folded.reasons:
            continue
        choice = growth.choose([*folded.reasons], folded.tensors, folded.identity, work.room)
        if choice.left_out:
            growth.note_limit(work.model)
        for node, size in choice.left_out.items():
            work.declined[node] = f"as a constant it would add {size:,} bytes to the file, whose growth is limited"
        for equal in choice.constants:
            put_constant(root, equal, folded.tensors[equal[0]], folded.homes[equal[0]])
        read = dict.fromkeys(v for node in choice.nodes for v in node.inputs if v is not None and v.is_initializer())
        remove([*choice.nodes])
        remove_initializers(work, read, kept)
        changes += [Change(site(node), f"computed {node.op_type} ahead of time", folded.reasons[node]) for node in choice.nodes]
    return changes


@dataclass
class _Folded:
    """What can be computed ahead of time in one root."""

    tensors: dict[ir.Value, ir.TensorProtocol] = field(default_factory=dict)
    homes: dict[ir.Value, ir.Graph] = field(default_factory=dict)
    """The graph where a value would be a constant."""
    reasons: dict[ir.Node, str] = field(default_factory=dict)
    firsts: dict[ir.Value, ir.Value] = field(default_factory=dict)
    """What ``identity`` has found."""
    alike: dict[Hashable, list[ir.Value]] = field(default_factory=dict)
    """Different values, by graph, type, shape and first bytes."""
    memory: int = 0
    """Bytes of the tensors that have been computed."""

    def known(self, value: ir.Value | None) -> ir.TensorProtocol | None:
        """The tensor of a value, if it has always the same."""
        if value is None:
            return None
        return self.tensors[value] if value in self.tensors else constant(value)

    def may_be_known(self, node: ir.Node) -> bool:
        """Whether each input is the same always, or unless a caller overrides it; or no more of it is read than its shape."""
        for value in node.inputs:
            if value is None or value in self.tensors or value.is_initializer():
                continue
            producer = value.producer()
            if producer is None or producer.op_type != "Constant" or constant_tensor(producer) is None:
                return node.op_type in _TYPE_AND_SHAPE_ONLY
        return True

    def home(self, node: ir.Node) -> ir.Graph:
        """Where the outputs of a node would be constants: beside the largest constant that they are computed from.

        So branches that compute the same from weights around them share the result.
        """
        assert node.graph is not None
        if node.op_type in _TYPE_AND_SHAPE_ONLY:
            return node.graph
        homes = {v: home for v in node.inputs if v is not None and (home := self.homes.get(v, v.graph)) is not None}
        if len({*homes.values()}) == 1:
            return next(iter(homes.values()))
        sizes = {value: tensor_bytes(tensor) for value in homes if (tensor := self.known(value)) is not None}
        return homes[max(sizes, key=sizes.__getitem__)]

    def identity(self, value: ir.Value) -> ir.Value:
        """The first of the values that can be one constant: the same bytes, in the same graph."""
        if value not in self.firsts:
            self.firsts[value] = self._first(value, self.tensors[value])
        return self.firsts[value]

    def _first(self, value: ir.Value, tensor: ir.TensorProtocol) -> ir.Value:
        if isinstance(tensor, MovedTensor):
            return value
        start = self.homes[value], tensor.dtype, tensor.shape.numpy(), tensor.numpy().flat[:_START].tobytes()
        alike = self.alike.setdefault(start, [])
        for other in alike:
            if tensor.size <= _START or _are_same(self.tensors[other].numpy(), tensor.numpy()):
                return other
        alike.append(value)
        return value


def _evaluate_all(work: Work, root: Root) -> _Folded:
    """Compute all that can be computed from constants, types and fixed shapes."""
    folded = _Folded()
    for node in work.operators(root, _FOLDED):
        if node in work.declined or not folded.may_be_known(node) or any(a.is_ref() for a in node.attributes.values()):
            continue
        if any(o.is_graph_output() and output_position(o) is None for o in node.outputs):
            continue
        kept = [v.name for v in node.inputs if v is not None and v.is_initializer() and work.excluded(v.name or "")]
        if kept and all(value is None or folded.known(value) is not None for value in node.inputs):
            work.declined[node] = f"the user asked to leave {kept[0]!r} alone"
            continue
        try:
            found = _from_type_or_shape(work, node, root.opset, folded) or _from_constants(node, root.opset, folded)
        except Refused as refused:
            work.declined[node] = str(refused)
            continue
        if found is None:
            continue
        computed, why = found
        outputs = [output for output in node.outputs if output.name]
        if len(computed) != len(outputs) or not all(map(work.agrees, outputs, computed)):
            work.declined[node] = "what the reference implementation gives is not of the type or shape that ONNX says"
            continue
        folded.reasons[node] = why
        home = folded.home(node)
        for output, tensor in zip(outputs, computed, strict=True):
            folded.tensors[output] = tensor
            folded.homes[output] = home
            folded.memory += tensor_bytes(tensor) if isinstance(tensor, ir.Tensor) else 0
    return folded


_Found = tuple[list[ir.TensorProtocol], str]


def _from_type_or_shape(work: Work, node: ir.Node, opset: int, folded: _Folded) -> _Found | None:
    """The output of an operator that reads no more of an input than its type or its shape."""
    if node.op_type not in _TYPE_AND_SHAPE_ONLY:
        return None
    tensor = folded.known(node.inputs[0])
    if node.op_type == "CastLike":
        dtype = work.dtype(node.inputs[1])
        if tensor is None or dtype is None or not accepts("Cast", tensor.dtype):
            return None
        cast = ir.Node("", "Cast", [None], [ir.AttrInt64("to", dtype.value)], outputs=[ir.Value(name="cast")])
        return _compute(cast, opset, [tensor], folded), "its input is constant and the type is known"
    dims = work.dims(node.inputs[0])
    if dims is None and tensor is not None:
        dims = tuple(tensor.shape.numpy())
    if dims is None:
        return None
    if node.op_type == "Size":
        return [ir.Tensor(np.array(math.prod(dims), np.int64))], "the size of its input is fixed"
    start, end = node.attributes.get_int("start", 0), node.attributes.get_int("end", len(dims))
    return [ir.Tensor(np.array(dims[start:end], np.int64))], "the shape of its input is fixed"


def _from_constants(node: ir.Node, opset: int, folded: _Folded) -> _Found | None:
    """The outputs of an operator whose inputs are all constant."""
    if node.op_type in _TYPE_AND_SHAPE_ONLY:
        return None
    tensors = [folded.known(value) for value in node.inputs]
    unknown = [value for value, tensor in zip(node.inputs, tensors, strict=True) if value is not None and tensor is None]
    if unknown and all(is_overridable(value) for value in unknown):
        raise Refused(
            "it reads an initializer that is an input too, which a caller may override (simplify.freeze=true: nobody will)"
        )
    given = [tensor for tensor in tensors if tensor is not None]
    if unknown or not given or not all(accepts(node.op_type, tensor.dtype) for tensor in given):
        return None
    return _compute(node, opset, tensors, folded), "its inputs are constant"


def _compute(node: ir.Node, opset: int, inputs: list[ir.TensorProtocol | None], folded: _Folded) -> list[ir.TensorProtocol]:
    """The outputs of a node, computed now or when they are written."""
    given = [tensor for tensor in inputs if tensor is not None]
    elements = bound(node.op_type, given)
    if elements is None or elements * _ELEMENT_BYTES > _LARGE_BYTES:
        moved = [MovedTensor(node, opset, inputs, like, i) for i, like in enumerate(output_types(node, opset, inputs))]
        size, read = sum(tensor.nbytes for tensor in moved), sum(tensor_bytes(tensor) for tensor in given)
        if node.op_type in MOVES and max(size, read) > _LARGE_BYTES:
            if max(tensor.moves for tensor in moved) > MOST_MOVES:
                raise Refused(f"more than {MOST_MOVES} operators in a row move a large constant")
            return [*moved]
        if folded.memory + size + read > _COMPUTED_BYTES:
            raise Refused(f"computing it would take {(size + read) / 1e6:.0f} MB of memory")
    arrays = evaluate(node, opset, [None if tensor is None else tensor.numpy() for tensor in inputs])
    return [ir.Tensor(array.copy() if _is_mapped(array) else array) for array in arrays]


def _are_same(a: np.ndarray, b: np.ndarray) -> bool:
    """Whether two arrays of one type and shape have the same bytes."""
    return np.array_equal(np.ascontiguousarray(a).view(np.uint8), np.ascontiguousarray(b).view(np.uint8))


def _is_mapped(array: np.ndarray) -> bool:
    """Whether an array looks at a file, which it would keep open."""
    base: object = array
    while isinstance(base, np.ndarray):
        base = base.base
    return isinstance(base.obj if isinstance(base, memoryview) else base, mmap.mmap)
