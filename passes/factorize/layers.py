"""The linear maps of a model: constant weights, what reads them, and the pairs of factors that are there already.

    MatMul(x, W)   Gemm(x, W) + b   Gemm(x, W^T) + b   Gather(W, rows)   Conv(x, W) + b        one weight W
    MatMul(MatMul(x, P), Q)   Conv1x1(Conv(x, P), Q)   Conv(1 x k)(Conv(k x 1)(x, P), Q)       W = P Q, of lower rank

A layer is all that reads one weight, so that factors are stored once. A pair is one layer: it is truncated again, not
split into three. The bias of a pair's first part goes through the second: (x P + a) Q + b = x P Q + (a Q + b), for a Conv only
where the second part has no padding. The four convolutions of a CP form are left as they are, not split again.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from graphopt.contracts import Array
from graphopt.graphs import annotated_names, constant, site
from graphopt.observe import Patches, patches

FLOATS = frozenset({ir.DataType.FLOAT, ir.DataType.DOUBLE, ir.DataType.FLOAT16})
_WEIGHT: Mapping[str, int] = {"MatMul": 1, "Gemm": 1, "Conv": 1, "Gather": 0}
_OTHERS = frozenset({"ConvTranspose", "LSTM", "GRU", "RNN", "Einsum", "Attention"})


@dataclass(frozen=True)
class Use:
    """Something that computes the layer: ``node`` gives the output, ``first`` reads the input (of a pair; else the same)."""

    node: ir.Node
    first: ir.Node

    @property
    def reads(self) -> ir.Value:
        """What is multiplied by the weight; of a Gather, the rows that are looked up."""
        value = self.first.inputs[1 if self.first.op_type == "Gather" else 0]
        assert value is not None
        return value

    @property
    def transposed(self) -> bool:
        """Whether the node multiplies by the transposed of what is stored."""
        return self.node.op_type == "Gemm" and bool(self.node.attributes.get_int("transB", 0))

    @property
    def bias(self) -> tuple[ir.Node, int] | None:
        """The node and its input where a bias is, or could be; None where a bias would need another node."""
        if self.node.op_type == "Conv":
            return self.node, 2
        if self.node.op_type == "Gemm":
            return (self.node, 2) if self.node.attributes.get_float("beta", 1.0) == 1.0 else None
        output = self.node.outputs[0]
        readers = output.uses()
        if self.node.op_type != "MatMul" or len(readers) != 1 or output.is_graph_output():
            return None
        ((node, index),) = readers
        other = node.inputs[1 - index] if node.op_type == "Add" and node.domain == "" else None
        return (node, 1 - index) if constant(other) is not None else None


@dataclass(frozen=True)
class Layer:
    """A weight and all its uses. ``why``: the reason for which it cannot be factorized; empty if it can."""

    uses: tuple[Use, ...]
    weights: tuple[ir.Value, ...] = ()
    """W, or P and Q."""
    why: str = ""

    @property
    def node(self) -> ir.Node:
        """The node that the site is named after: the first use's."""
        return self.uses[0].node

    @property
    def name(self) -> str:
        """What a user can find the layer by."""
        return site(self.node)

    @property
    def nodes(self) -> tuple[ir.Node, ...]:
        """All nodes that would be written anew."""
        return tuple(dict.fromkeys(node for use in self.uses for node in (use.first, use.node)))

    @property
    def is_pair(self) -> bool:
        """Whether it is two factors already."""
        return len(self.weights) == 2

    @property
    def conv(self) -> bool:
        """Whether it is a convolution."""
        return self.node.op_type == "Conv"

    @property
    def transposed(self) -> bool:
        """Whether the inputs are multiplied by the transposed of what is stored."""
        return next((use for use in self.uses if use.node.op_type != "Gather"), self.uses[0]).transposed

    @property
    def group(self) -> int:
        """Groups of a Conv."""
        return self.uses[0].first.attributes.get_int("group", 1) if self.conv else 1

    @property
    def dtype(self) -> ir.DataType:
        """Of the weight."""
        return _tensor(self.weights[0]).dtype

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of the weight (of a pair: of the product), as stored; nothing is read."""
        first, *second = [tuple(_tensor(weight).shape.numpy()) for weight in self.weights]
        if not second:
            return first
        if self.conv:
            return (second[0][0], first[1], *(max(a, b) for a, b in zip(first[2:], second[0][2:], strict=True)))
        return (first[0], second[0][1])

    @property
    def rank(self) -> int:
        """The rank that the weight has by its form: of a pair, what is between the factors."""
        if self.is_pair:
            shape = _tensor(self.weights[0]).shape.numpy()
            return shape[0] // self.group if self.conv else shape[1]
        shape = self.shape
        if self.conv:
            return min(shape[0] // self.group, math.prod(shape[1:]))
        return min(shape)

    @property
    def parameters(self) -> int:
        """How many numbers the weights hold."""
        return sum(_tensor(weight).size for weight in self.weights)

    def weight(self) -> Array:
        """The weight as stored, of a pair the product; float32 or wider."""
        first, *second = [_wide(_tensor(weight).numpy()) for weight in self.weights]
        if not second:
            return first
        if not self.conv:
            return np.asarray(first @ second[0])
        if spatial(self.uses[0]):  # [r, i, kh, 1], [o, r, 1, kw]
            return np.asarray(np.einsum("rih,orw->oihw", first[..., 0], second[0][:, :, 0]))
        r = first.shape[0] // self.group
        inner = first.reshape(self.group, r, -1)
        outer = second[0].reshape(self.group, -1, r)
        return np.asarray(np.matmul(outer, inner).reshape(-1, *first.shape[1:]))

    def matrix(self) -> Array:
        """[group, k, n], so that a use gives x @ matrix: k elements of a patch or row, n outputs of a group."""
        weight = self.weight()
        if self.conv:
            return weight.reshape(self.group, len(weight) // self.group, -1).swapaxes(1, 2)
        return (weight.T if self.transposed else weight)[np.newaxis]

    def patches(self) -> Patches | None:
        """How a Conv reads its input (of a pair: the two together); None for the others."""
        if not self.conv:
            return None
        use = self.uses[0]
        first = patches(use.first)
        if use.node is use.first or not spatial(use):
            return first
        second = patches(use.node)
        return Patches(
            kernel=(first.kernel[0], second.kernel[1]),
            strides=(first.strides[0], second.strides[1]),
            pads=(first.pads[0], second.pads[1], first.pads[2], second.pads[3]),
            dilations=(first.dilations[0], second.dilations[1]),
            group=1,
            auto_pad=first.auto_pad,
        )


def layers(model: ir.Model) -> list[Layer]:
    """Every layer of the main graph, in the order of the first nodes, with those that cannot be factorized."""
    annotated = annotated_names(model)
    in_cp = {node for last in model.graph for node in _cp_form(last)}
    inner = {node: node.inputs[0].producer() for node in model.graph if _is_pair(node) and node.inputs[0] is not None}
    inner = {node: first for node, first in inner.items() if node not in in_cp and first not in in_cp}
    firsts = {first for first in inner.values() if first is not None}
    by_weight: dict[tuple[ir.Value, ...], list[Use]] = {}
    found: list[Layer] = []
    for node in model.graph:
        if node in firsts or node.op_identifier() in model.functions:
            continue
        weight = _weight(node)
        if weight is None:
            found += _declined(node)
            continue
        first = inner.get(node)
        if first is None:
            by_weight.setdefault((weight,), []).append(Use(node, node))
        else:
            other = _weight(first)
            assert other is not None
            by_weight.setdefault((other, weight), []).append(Use(node, first))
    for weights, uses in by_weight.items():
        layer = Layer(tuple(uses), weights)
        if why := _problem(layer, annotated, in_cp):
            layer = Layer(tuple(uses), weights, why)
        if layer.node.op_type != "Gather" or not layer.why:
            found.append(layer)
    order = {node: place for place, node in enumerate(model.graph)}
    return sorted(found, key=lambda layer: order[layer.node])


def spatial(use: Use) -> bool:
    """Whether a pair of Conv is k x 1, then 1 x k."""
    first, second = (_tensor(node.inputs[1]).shape.numpy() for node in (use.first, use.node))
    return use.node is not use.first and len(first) == 4 and second[3] > 1


def _declined(node: ir.Node) -> Iterator[Layer]:
    if node.domain != "" or node.op_type not in {*_WEIGHT, *_OTHERS} or node.op_type == "Gather":
        return
    if node.op_type in _OTHERS:
        yield Layer((Use(node, node),), why=f"factors of {node.op_type} have no form in ONNX")
        return
    weight = node.inputs[1]
    if weight is not None and weight.is_initializer():
        why = "its weight is an input too: a caller may give another one (simplify.freeze=true if none does)"
    elif constant(node.inputs[0]) is not None:
        why = "its constant is on the left"
    else:
        why = "its weight is computed, no constant"
    yield Layer((Use(node, node),), why=why)


def _problem(layer: Layer, annotated: set[str], in_cp: set[ir.Node]) -> str:
    """Why a layer cannot be factorized; empty if it can."""
    nodes = set(layer.nodes)
    reasons = {
        "it is a factor of a CP form already": not nodes.isdisjoint(in_cp),
        "its weight is an output of the model too": any(weight.is_graph_output() for weight in layer.weights),
        "its weight is read by something else too": any(
            node not in nodes or _WEIGHT[node.op_type] != index for weight in layer.weights for node, index in weight.uses()
        ),
        "its weight is quantized": any(weight.name in annotated for weight in layer.weights),
        f"its weight is of type {layer.dtype.name}": layer.dtype not in FLOATS,
    }
    return next((why for why, holds in reasons.items() if holds), "") or (_conv_problem if layer.conv else _matrix_problem)(
        layer
    )


def _conv_problem(layer: Layer) -> str:
    if layer.group > 1 and layer.shape[1] == 1:
        return "depthwise: each filter is of one channel alone, which leaves nothing to share"
    if len({patches(use.first) for use in layer.uses}) > 1:
        return "convolutions that share its weight read their inputs in different ways"
    return ""


def _matrix_problem(layer: Layer) -> str:
    axes = {len(_tensor(weight).shape) for weight in layer.weights}
    if axes != {2}:
        return f"its weight has {max(axes)} axes: a matrix for each batch" if max(axes) > 2 else "its weight is a vector"
    if any(use.node.op_type == "Gather" and use.node.attributes.get_int("axis", 0) != 0 for use in layer.uses):
        return "its columns are looked up"
    if len({use.transposed for use in layer.uses if use.node.op_type != "Gather"}) > 1:
        return "it is read as stored and transposed"
    return ""


def _weight(node: ir.Node) -> ir.Value | None:
    """The constant that the node multiplies by."""
    index = _WEIGHT.get(node.op_type)
    if index is None or node.domain != "" or len(node.inputs) <= index:
        return None
    value = node.inputs[index]
    return value if constant(value) is not None else None


def _is_pair(node: ir.Node) -> bool:
    """Whether the node and the one that its input comes from are two factors of one linear map."""
    before = node.inputs[0].producer() if node.inputs and node.inputs[0] is not None else None
    if before is None or before.graph is not node.graph or _weight(node) is None or _weight(before) is None:
        return False
    between = before.outputs[0]
    if len(between.uses()) != 1 or between.is_graph_output() or before.op_type != node.op_type:
        return False
    shapes = [tuple(_tensor(one.inputs[1]).shape.numpy()) for one in (before, node)]
    if node.op_type == "MatMul":
        return all(len(shape) == 2 for shape in shapes) and shapes[0][1] < min(shapes[0][0], shapes[1][1])
    return node.op_type == "Conv" and _is_conv_pair(before, node, *shapes)


def _cp_form(last: ir.Node) -> list[ir.Node]:
    """The four convolutions of a CP form whose last one this is; none if it is not."""
    nodes = [last]
    while len(nodes) < 4:
        before = nodes[0].inputs[0].producer() if nodes[0].inputs and nodes[0].inputs[0] is not None else None
        if before is None or len(before.outputs[0].uses()) != 1 or before.outputs[0].is_graph_output():
            return []
        nodes.insert(0, before)
    if any(node.op_type != "Conv" or _weight(node) is None for node in nodes):
        return []
    shapes = [tuple(_tensor(node.inputs[1]).shape.numpy()) for node in nodes]
    r = shapes[0][0]
    groups = [node.attributes.get_int("group", 1) for node in nodes]
    taps = [shape[2:] for shape in shapes]
    alone = groups == [1, r, r, 1] and len(shapes[1]) == 4 and shapes[1][0] == shapes[2][0] == r
    upright = {taps[0], taps[3]} == {(1, 1)} and len(taps[1]) == 2 and taps[1][1] == taps[2][0] == 1
    return nodes if alone and upright else []


def _is_conv_pair(before: ir.Node, node: ir.Node, first: tuple[int, ...], second: tuple[int, ...]) -> bool:
    one, two = patches(before), patches(node)
    groups = one.group
    biased = len(before.inputs) > 2 and before.inputs[2] is not None
    narrow = first[0] // groups < min(math.prod(first[1:]), second[0] // groups)
    outer = node.inputs[2] if len(node.inputs) > 2 else None
    fixed = outer is not None and constant(outer) is None
    if not narrow or two.group != groups or (biased and (fixed or constant(before.inputs[2]) is None)):
        return False
    if set(two.kernel) | set(two.strides) == {1} and not any(two.pads):
        return True
    upright = len(first) == 4 and one.kernel[1] == 1 and two.kernel[0] == 1 and groups == 1 and not biased
    apart = one.strides[1:] == two.strides[:1] == (1,) and not any(one.pads[1::2]) and not any(two.pads[::2])
    return upright and apart and one.auto_pad == two.auto_pad == "NOTSET"


def _tensor(value: ir.Value | None) -> ir.TensorProtocol:
    tensor = constant(value)
    assert tensor is not None, "layers have constant weights"
    return tensor


def _wide(array: Array) -> Array:
    return array if array.dtype in {np.dtype(np.float32), np.dtype(np.float64)} else array.astype(np.float32)
