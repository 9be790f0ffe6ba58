"""Writes a layer as its factors: smaller operators of the same kind, one after the other, the bias on the last one.

    MatMul(x, W)             -> MatMul(MatMul(x, A), B)
    Gemm(x, W) + b           -> Gemm(MatMul(x, A), B) + b
    Gemm(x, W^T) + b         -> Gemm(Gemm(x, B^T), A^T) + b    as W = A B is stored: nothing is transposed
    Gather(W, rows)          -> MatMul(Gather(A, rows), B)
    Conv(x, W) + b           -> Conv(Conv(x, A), B) + b, or three or four of them

The last node keeps the name, the output and all that it says of it; strides and paddings go to the factor that has the taps.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir

from graphopt.contracts import Array
from graphopt.graphs import constant, site
from graphopt.names import Names

from .forms import Kind, Option, Sizes
from .layers import Layer, Use

_Attributes = Mapping[str, Any]
"""Attributes by name: numbers, strings and lists of numbers."""


def write(layer: Layer, option: Option, parts: tuple[Array, ...], shift: Array | None, names: Names) -> list[str]:
    """Put the factors in the layer's place.

    Args:
        layer: Of the model that is changed.
        option: The form and its ranks.
        parts: The factors' matrices, as ``Factored`` has them.
        shift: What is added to the bias [outputs]; None: nothing.
        names: Of the model.

    Returns:
        Names of the nodes that compute the layer now.
    """
    graph = layer.node.graph
    assert isinstance(graph, ir.Graph)
    dtype = layer.dtype.numpy()
    label = layer.weights[-1].name or layer.name
    arrays = _stored(layer, option, parts)
    weights = [
        _constant(graph, array.astype(dtype), names.new(f"{label}_{option.kind}{place}")) for place, array in enumerate(arrays)
    ]
    made: list[str] = []
    for use in layer.uses:
        offset = _offset(layer, use)
        if shift is not None:
            offset = (0 if offset is None else offset) + shift
        _set_bias(use, offset, dtype, names)
        made += _chain(use, option, weights, names)
    for weight in layer.weights:
        _drop(weight)
    return made


def _stored(layer: Layer, option: Option, parts: tuple[Array, ...]) -> list[Array]:
    """The factors' weights as the operators want them."""
    sizes = Sizes.of(layer)
    if option.kind == "matrix":
        a, b = (part[0] for part in parts)
        return [b.T, a.T] if layer.transposed else [a, b]
    ones = (1,) * len(sizes.kernel)
    if option.kind == "channel":
        a, b = parts
        first = a.swapaxes(1, 2).reshape(-1, sizes.inputs, *sizes.kernel)
        return [first, b.swapaxes(1, 2).reshape(-1, b.shape[1], *ones)]
    if option.kind == "spatial":
        kh, kw = sizes.kernel
        (r,) = option.ranks
        return [
            parts[0].T.reshape(r, sizes.inputs, kh, 1),
            parts[1].T.reshape(sizes.outputs, r, 1, kw),
        ]
    if option.kind == "cp":
        (r,) = option.ranks
        a, b, c, d = parts
        return [
            a.T.reshape(r, sizes.inputs, *ones),
            b.T.reshape(r, 1, sizes.kernel[0], 1),
            c.T.reshape(r, 1, 1, sizes.kernel[1]),
            d.T.reshape(sizes.outputs, r, *ones),
        ]
    q, r = option.ranks
    return [
        parts[0].T.reshape(q, sizes.inputs, *ones),
        parts[1].T.reshape(r, q, *sizes.kernel),
        parts[2].T.reshape(sizes.outputs, r, *ones),
    ]


def _chain(use: Use, option: Option, weights: Sequence[ir.Value], names: Names) -> list[str]:
    """Replace the nodes of a use."""
    node, first = use.node, use.first
    reads = first.inputs[0]
    bias = [value for value in node.inputs[2:3] if value is not None] if node.op_type in {"Conv", "Gemm"} else []
    steps: list[tuple[str, list[ir.Value | None], _Attributes]]
    if node.op_type == "Conv":
        attributes = _CONV[option.kind](use, option)
        steps = [("Conv", [weight], given) for weight, given in zip(weights, attributes, strict=True)]
    elif node.op_type == "Gather":
        steps = [("MatMul", [weights[1]], {})]
        new = ir.Node(
            "", "Gather", [weights[0], first.inputs[1]], [*first.attributes.values()], name=names.new(f"{site(node)}_rows")
        )
        _place(node, new, names)
        reads = new.outputs[0]
    elif use.transposed:
        steps = [("Gemm", [weights[1]], {"transB": 1}), ("Gemm", [weights[0]], _kept(node))]
    else:
        steps = [("MatMul", [weights[0]], {}), (node.op_type, [weights[1]], _kept(node))]
    made = []
    for place, (op_type, inputs, given) in enumerate(steps):
        last = place == len(steps) - 1
        new = ir.Node(
            "",
            op_type,
            [reads, *inputs, *(bias if last else [])],
            ir.convenience.convert_attributes(dict(given)),
            name=node.name if last else names.new(f"{site(node)}_factor{place}"),
        )
        if last:
            _take_over(node, new)
        else:
            _place(node, new, names)
        reads = new.outputs[0]
        made.append(new.name or "")
    if first is not node:
        assert first.graph is not None
        stale = first.inputs[2] if len(first.inputs) > 2 else None
        first.graph.remove(first, safe=True)
        _drop(stale)
    return made


def _place(node: ir.Node, new: ir.Node, names: Names) -> None:
    """Insert a node before another; its output gets a new name and the type of the other's."""
    assert node.graph is not None
    new.outputs[0].name = names.new(f"{new.name}_out")
    new.outputs[0].type = node.outputs[0].type
    node.graph.insert_before(node, new)


def _take_over(node: ir.Node, new: ir.Node) -> None:
    """Let ``new`` stand in the place of ``node``, which goes."""
    assert node.graph is not None
    old, fresh = node.outputs[0], new.outputs[0]
    new.metadata_props.update(node.metadata_props)
    node.graph.insert_before(node, new)
    fresh.type, fresh.shape, fresh.doc_string = old.type, old.shape, old.doc_string
    fresh.metadata_props.update(old.metadata_props)
    fresh.meta.update(old.meta)
    old.replace_all_uses_with(fresh, replace_graph_outputs=True)
    name, old.name = old.name, None
    fresh.name = name
    node.graph.remove(node, safe=True)


def _kept(node: ir.Node) -> _Attributes:
    """A Gemm's attributes; its first input is what the first factor gives."""
    if node.op_type != "Gemm":
        return {}
    return {name: attribute.value for name, attribute in node.attributes.items()}


# ------------------------------------------------------------------------------------------------------- convolutions


def _channel(use: Use, option: Option) -> list[_Attributes]:
    del option
    asked = _whole(use)
    return [asked, {"group": use.first.attributes.get_int("group", 1)}]


def _spatial(use: Use, option: Option) -> list[_Attributes]:
    del option
    whole = _whole(use)
    rows: dict[str, Any] = {}
    columns: dict[str, Any] = {}
    for name, value in whole.items():
        if name == "pads":
            rows[name], columns[name] = [value[0], 0, value[2], 0], [0, value[1], 0, value[3]]
        elif name in {"strides", "dilations"}:
            rows[name], columns[name] = [value[0], 1], [1, value[1]]
        elif name != "group":
            rows[name] = columns[name] = value
    return [rows, columns]


def _cp(use: Use, option: Option) -> list[_Attributes]:
    rows, columns = ({**one, "group": option.ranks[0]} for one in _spatial(use, option))
    return [{}, rows, columns, {}]


def _tucker(use: Use, option: Option) -> list[_Attributes]:
    del option
    return [{}, _whole(use), {}]


_CONV: Mapping[Kind, Callable[[Use, Option], list[_Attributes]]] = {
    "channel": _channel,
    "spatial": _spatial,
    "tucker": _tucker,
    "cp": _cp,
}


def _whole(use: Use) -> dict[str, Any]:
    """The attributes of the Conv that a use is; of a pair, of both together."""
    found = {name: one.value for name, one in use.first.attributes.items() if name != "kernel_shape"}
    if use.node is not use.first:
        other = {name: one.value for name, one in use.node.attributes.items()}
        for name in ("strides", "dilations"):
            if name in found or name in other:
                ones = (1,) * len(found.get(name, other.get(name, ())))
                found[name] = [a * b for a, b in zip(found.get(name, ones), other.get(name, ones), strict=True)]
        if any(other.get("pads", ())):
            found["pads"] = [a + b for a, b in zip(found.get("pads", (0,) * 4), other["pads"], strict=True)]
    return found


# ------------------------------------------------------------------------------------------------------------ constants


def _offset(layer: Layer, use: Use) -> Array | None:
    """The bias of the layer [outputs], float64: of a pair, of both parts. None where there is none or it cannot be changed."""
    found = bias_of(layer, use)
    if not layer.is_pair or len(use.first.inputs) < 3 or (a := constant(use.first.inputs[2])) is None:
        return found
    inner, outer = a.numpy().astype(np.float64), constant(layer.weights[1])
    assert outer is not None
    q = outer.numpy().astype(np.float64)
    q = q.reshape(layer.group, -1, q.shape[1])
    through = np.matmul(q, inner.reshape(layer.group, -1, 1)).reshape(-1)
    return np.asarray(through if found is None else found + through)


def bias_of(layer: Layer, use: Use) -> Array | None:
    """The bias that the use adds [outputs], float64; zeros where one could be added, None where it cannot be changed."""
    if use.bias is None:
        return None
    node, index = use.bias
    value = node.inputs[index] if index < len(node.inputs) else None
    outputs = Sizes.of(layer).outputs * layer.group
    if value is None:
        return np.zeros(outputs)
    tensor = constant(value)
    if tensor is None or tensor.dtype != layer.dtype:
        return None
    shape = tuple(tensor.shape.numpy())
    if shape and (shape[-1] not in {1, outputs} or any(size != 1 for size in shape[:-1])):
        return None
    return np.broadcast_to(tensor.numpy().reshape(-1), (outputs,)).astype(np.float64)


def _set_bias(use: Use, offset: Array | None, dtype: np.dtype, names: Names) -> None:
    """Put a bias where the use has one, unless it is that already."""
    if offset is None or use.bias is None:
        return
    node, index = use.bias
    old = node.inputs[index] if index < len(node.inputs) else None
    tensor = constant(old)
    if tensor is None and not offset.any():
        return
    if tensor is not None and tensor.shape.numpy() and tensor.numpy().size == offset.size:
        if np.array_equal(tensor.numpy().reshape(-1), offset.astype(dtype)):
            return
        offset = offset.reshape(tensor.shape.numpy())
    graph = node.graph
    assert isinstance(graph, ir.Graph)
    value = _constant(graph, offset.astype(dtype), names.new(f"{old.name if old is not None else site(use.node)}_shifted"))
    if index >= len(node.inputs):
        node.resize_inputs(index + 1)
    node.replace_input_with(index, value)
    _drop(old)


def _constant(graph: ir.Graph, array: Array, name: str) -> ir.Value:
    tensor = ir.tensor(np.ascontiguousarray(array), name=name)
    value = ir.Value(name=name, type=ir.TensorType(tensor.dtype), shape=ir.Shape(array.shape), const_value=tensor)
    graph.register_initializer(value)
    return value


def _drop(value: ir.Value | None) -> None:
    """Remove a constant that nothing reads any more."""
    if value is None or value.uses() or value.is_graph_output() or value.is_graph_input():
        return
    producer = value.producer()
    if producer is not None:
        if producer.graph is not None:
            producer.graph.remove(producer, safe=True)
    elif value.name in (value.graph.initializers if isinstance(value.graph, ir.Graph) else ()):
        assert isinstance(value.graph, ir.Graph)
        del value.graph.initializers[value.name or ""]
