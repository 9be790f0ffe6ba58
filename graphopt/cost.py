"""What a model costs to compute: multiply-accumulates (MACs) for one sample.

    MACs of a contraction = elements of its output x length of the sum behind each of them

Only contractions count (convolutions, matrix products, recurrent cells, attention); all else is 0. Shapes are estimates
with the batch set to 1 (``sizes.py``); a fixed batch is counted as it is.

What contains a graph costs what is computed inside: If its dearer branch, Loop its body times the number of trips, Scan its
body times the length of the sequence, a call of a function what the function computes for these inputs.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
from onnx_ir.passes import common

from . import sizes
from .dataset import Dataset
from .shapes import Facts, subgraphs


class _Unknown(Exception):  # noqa: N818 - an answer, not an error
    """A shape that is needed is not known."""


def node_macs(model: ir.Model, dims: Mapping[str, int] | None = None) -> dict[ir.Node, int | None]:
    """MACs of every node of the graph and its subgraphs (one run of each); None where a shape that is needed is not known.

    Nodes in the bodies of functions have no one shape: the calls are counted instead.

    Args:
        model: Any model; no weights are read.
        dims: Sizes of symbolic dimensions other than the batch, by symbol.
    """
    macs: dict[ir.Node, int | None] = {}
    _count(model, model.graph, sizes.infer(model, dims), macs)
    return macs


def total_macs(model: ir.Model, dims: Mapping[str, int] | None = None) -> int | None:
    """MACs of one sample; None if those of any node are not known. Arguments as for ``node_macs``."""
    macs = node_macs(model, dims)
    return _sum([macs[node] for node in model.graph])


def dims_as_fed(model: ir.Model, data: Dataset) -> dict[str, int]:
    """Sizes of the symbolic dimensions of the inputs, as the first sample has them."""
    feed = next(iter(data.first(1).batches())).feed
    return {
        dim.value: size
        for value in model.graph.inputs
        if value.name in feed and value.shape is not None and len(value.shape) == feed[value.name].ndim
        for dim, size in zip(value.shape, feed[value.name].shape, strict=True)
        if isinstance(dim, ir.SymbolicDim) and dim.value
    }


def _sum(counts: Sequence[int | None]) -> int | None:
    known = [count for count in counts if count is not None]
    return sum(known) if len(known) == len(counts) else None


def _count(model: ir.Model, graph: ir.Graph, facts: Facts, macs: dict[ir.Node, int | None]) -> None:
    for node in graph:
        bodies = []
        for body in subgraphs(node):
            _count(model, body, facts, macs)
            bodies.append(_sum([macs[inner] for inner in body]))
        try:
            macs[node] = _one(model, _Operands(node, facts), bodies)
        except _Unknown:
            macs[node] = None


def _one(model: ir.Model, operands: _Operands, bodies: list[int | None]) -> int | None:
    node = operands.node
    if node.op_identifier() in model.functions:
        return _call(model, operands)
    if bodies and not any(body != 0 for body in bodies):
        return 0
    if bodies:
        times = _TIMES.get(node.op_type, _once)(operands)
        return None if None in bodies else times * max(body for body in bodies if body is not None)
    rule = _RULES.get((node.domain, node.op_type))
    if rule is None:
        if node.domain in _KNOWN_DOMAINS and node.op_type not in _NOT_COUNTED:
            return 0
        raise _Unknown
    return rule(operands)


def _call(model: ir.Model, operands: _Operands) -> int | None:
    """The MACs of a call: those of a model that does nothing else, its functions inlined."""
    node, facts = operands.node, operands.facts
    inputs = [None if v is None else ir.Value(name=f"i{k}", type=v.type, shape=v.shape) for k, v in enumerate(node.inputs)]
    for value, given in zip(node.inputs, inputs, strict=True):
        if value is not None and given is not None and value in facts:
            given.type, given.shape = facts[value].type, facts[value].shape
    call = ir.Node(
        node.domain, node.op_type, inputs, [*node.attributes.values()], overload=node.overload, num_outputs=len(node.outputs)
    )
    graph = ir.Graph(
        [v for v in inputs if v is not None], call.outputs, nodes=[call], opset_imports=dict(model.opset_imports), name="call"
    )
    functions = [function.clone() for function in model.functions.values()]
    alone = ir.Model(graph, ir_version=model.ir_version, functions=functions)
    common.InlinePass()(alone)
    return total_macs(alone)


@dataclass(frozen=True)
class _Operands:
    """A node with what is known of its inputs and outputs."""

    node: ir.Node
    facts: Facts

    def input(self, index: int) -> tuple[int, ...]:
        """The shape of an input."""
        return self._shape(self.node.inputs[index] if index < len(self.node.inputs) else None)

    def output(self, index: int = 0) -> tuple[int, ...]:
        """The shape of an output."""
        return self._shape(self.node.outputs[index])

    def attribute(self, name: str, default: int = 0) -> int:
        """An integer attribute."""
        return self.node.attributes.get_int(name, default)

    def has(self, index: int) -> bool:
        """Whether an optional input is given."""
        return index < len(self.node.inputs) and self.node.inputs[index] is not None

    def _shape(self, value: ir.Value | None) -> tuple[int, ...]:
        known = None if value is None else self.facts.get(value)
        if known is None or known.shape is None or not known.shape.is_static():
            raise _Unknown
        return tuple(known.shape.numpy())


_Rule = Callable[[_Operands], int]


def _convolution(weight: int) -> _Rule:
    """Weight [out, in / groups, *kernel]: each output element sums over in / groups x kernel."""

    def rule(operands: _Operands) -> int:
        return math.prod(operands.output()) * math.prod(operands.input(weight)[1:])

    return rule


def _transposed_convolution(operands: _Operands) -> int:
    """Weight [in, out / groups, *kernel]: each input element goes to out / groups x kernel."""
    return math.prod(operands.input(0)) * math.prod(operands.input(1)[1:])


def _matrix_product(a: int, b: int) -> _Rule:
    """[..., m, k] x [..., k, n], the batch axes broadcast, vectors as in NumPy; transA and transB swap the last two axes."""

    def rule(operands: _Operands) -> int:
        left, right = operands.input(a), operands.input(b)
        left = (1, *left) if len(left) == 1 else left
        right = (*right, 1) if len(right) == 1 else right
        if operands.attribute("transA"):
            left = (*left[:-2], left[-1], left[-2])
        if operands.attribute("transB"):
            right = (*right[:-2], right[-1], right[-2])
        batch = np.broadcast_shapes(left[:-2], right[:-2])
        return math.prod(batch) * left[-2] * left[-1] * right[-1]

    return rule


def _packed_product(operands: _Operands) -> int:
    """The right-hand side is packed into blocks; its size is in the attributes K and N."""
    return math.prod(operands.input(0)[:-1]) * operands.attribute("K") * operands.attribute("N")


def _einsum(operands: _Operands) -> int:
    """Every combination of the indices is one product; of one operand there is none."""
    equation = operands.node.attributes["equation"].as_string().replace(" ", "")
    terms = equation.split("->", maxsplit=1)[0].split(",")
    if len(terms) < 2:
        return 0
    lengths: dict[str, int] = {}
    for index, term in enumerate(terms):
        shape = operands.input(index)
        before, dots, after = term.partition("...")
        hidden = len(shape) - len(before) - len(after) if dots else 0
        names = [*before, *(f".{hidden - axis}" for axis in range(hidden)), *after]
        for name, size in zip(names, shape, strict=True):
            lengths[name] = max(lengths.get(name, 1), size)
    return math.prod(lengths.values())


def _recurrent(operands: _Operands) -> int:
    """Inputs x [length, batch, in], W [directions, gates x hidden, in], R [directions, gates x hidden, hidden].

    Both products are taken at every step, of every sample.
    """
    length, batch = operands.input(0)[:2]
    return length * batch * (math.prod(operands.input(1)) + math.prod(operands.input(2)))


def _attention(operands: _Operands) -> int:
    """Q K^T and the product with V, for every query head; [batch, heads, length, size] or [batch, length, heads x size]."""
    query, key, value = (operands.input(index) for index in range(3))
    if len(query) == 3:
        heads, kv_heads = operands.attribute("q_num_heads"), operands.attribute("kv_num_heads")
        if not heads or not kv_heads:
            raise _Unknown
        query = (query[0], heads, query[1], query[2] // heads)
        key = (key[0], kv_heads, key[1], key[2] // kv_heads)
        value = (value[0], kv_heads, value[1], value[2] // kv_heads)
    length = key[2] + (operands.input(4)[2] if operands.has(4) else 0)
    return math.prod(query[:3]) * length * (query[3] + value[3])


_RULES: dict[tuple[str, str], _Rule] = {
    ("", "Attention"): _attention,
    ("", "Conv"): _convolution(1),
    ("", "ConvInteger"): _convolution(1),
    ("", "ConvTranspose"): _transposed_convolution,
    ("", "DeformConv"): _convolution(1),
    ("", "Einsum"): _einsum,
    ("", "GRU"): _recurrent,
    ("", "Gemm"): _matrix_product(0, 1),
    ("", "LSTM"): _recurrent,
    ("", "MatMul"): _matrix_product(0, 1),
    ("", "MatMulInteger"): _matrix_product(0, 1),
    ("", "QLinearConv"): _convolution(3),
    ("", "QLinearMatMul"): _matrix_product(0, 3),
    ("", "RNN"): _recurrent,
    ("com.microsoft", "DynamicQuantizeMatMul"): _matrix_product(0, 1),
    ("com.microsoft", "FusedConv"): _convolution(1),
    ("com.microsoft", "FusedGemm"): _matrix_product(0, 1),
    ("com.microsoft", "FusedMatMul"): _matrix_product(0, 1),
    ("com.microsoft", "MatMulIntegerToFloat"): _matrix_product(0, 1),
    ("com.microsoft", "MatMulNBits"): _packed_product,
}
_KNOWN_DOMAINS = frozenset({"", "ai.onnx.ml", "com.microsoft"})
_NOT_COUNTED = frozenset(
    {"Attention", "CausalConvWithState", "GroupQueryAttention", "LinearAttention", "MoE", "MultiHeadAttention"}
    | {"QAttention", "QGemm", "QMoE"}
)
"""Operators that contract but have no rule."""


def _once(_operands: _Operands) -> int:
    return 1


def _trips(operands: _Operands) -> int:
    """The trip count of a Loop, if it is constant and nothing ends the loop before."""
    trips = operands.node.inputs[0]
    condition = operands.node.inputs[1] if len(operands.node.inputs) > 1 else None
    if trips is None or condition is not None or trips.is_graph_input():
        raise _Unknown
    producer = trips.producer()
    if trips.const_value is not None:
        return int(trips.const_value.numpy().item())
    if producer is not None and producer.op_type == "Constant" and "value" in producer.attributes:
        return int(producer.attributes["value"].as_tensor().numpy().item())
    raise _Unknown


def _length(operands: _Operands) -> int:
    """The length of a Scan: that of its first scanned input."""
    first = len(operands.node.inputs) - operands.attribute("num_scan_inputs")
    axes = operands.node.attributes.get_ints("scan_input_axes")
    return operands.input(first)[axes[0] if axes else 0]


_TIMES: dict[str, _Rule] = {"If": _once, "Loop": _trips, "Scan": _length}
