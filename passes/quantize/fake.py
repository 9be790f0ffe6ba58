"""What int8 would cost a model in accuracy: its weights and the inputs of its operators rounded, its kernels float.

    x -> dequantize(quantize(x))      inputs of operators that have integer kernels on the target, min-max ranges
    W -> dequantize(quantize(W))      constant weights, as the target wants them

    noise = |y - y'|^2 / |y|^2        of the float outputs, geometric mean over samples: 0.01 = 20 dB

It places nothing for speed and serves only to compare two forms of the same model on the same data.
"""

from __future__ import annotations

import math

import numpy as np
import onnx_ir as ir

from graphopt.contracts import Array, Context, Session
from graphopt.dataset import Dataset
from graphopt.graphs import constant
from graphopt.observe import MinMax, observable
from graphopt.targets import Quantization

from . import scheme

_EXACT = 1e-14
"""Less is rounding of floats."""
OPSET = 10
"""From this version on there is QuantizeLinear."""
CHANNEL_AXIS = {"Conv": 0, "ConvTranspose": 1, "Gemm": 1, "MatMul": -1}
"""Axis of a weight that counts the output's channels; Gemm with transB has it in front."""


def channel_axis(node: ir.Node) -> int:
    """The axis of a node's weight with the output's channels."""
    transposed = node.op_type == "Gemm" and "transB" in node.attributes and node.attributes["transB"].as_int()
    return 0 if transposed else CHANNEL_AXIS[node.op_type]


def rounded(weight: Array, axis: int, style: Quantization) -> Array:
    """A weight as it is after quantization, in its own type."""
    weight = weight.astype(np.float32)
    axis %= weight.ndim
    others = tuple(i for i in range(weight.ndim) if i != axis) if style.per_channel else None
    low, high = weight.min(axis=others), weight.max(axis=others)
    dtype = ir.DataType[style.weights.upper()]
    parameters = scheme.from_range(
        low, high, dtype, symmetric=True, axis=axis if style.per_channel else None, bits=style.weight_bits
    )
    return scheme.fake_quantize(weight, parameters)


def quantized(model: ir.Model, context: Context, samples: int) -> ir.Model:
    """A clone that computes with the errors of quantization; ranges are those of the first samples."""
    style = context.target.quantization
    assert style is not None
    clone = model.clone()
    seen = observable(model)
    nodes = [node for node in clone.graph if node.domain == "" and node.op_type in style.static]
    inputs = {value: None for node in nodes for value in node.inputs if value is not None and value.name in seen}
    found = context.observe(model, {value.name or "": [MinMax()] for value in inputs}, samples=samples)
    for node in nodes:
        if node.op_type in CHANNEL_AXIS:
            _round_weight(clone, node, style)
    wanted = set(nodes)
    for value in inputs:
        low, high = found[value.name or ""][0].low, found[value.name or ""][0].high
        _insert(clone, value, scheme.of_activation(low, high, style), wanted)
    return clone


def noise(model: ir.Model, context: Context, samples: int) -> float:
    """Error of the outputs after quantization, as a part of their power.

    Ranges come from the first half of the samples and the error from the other half, so that a form with less headroom for
    what calibration did not see does not look better than it is.
    """
    assert context.data is not None
    half = max(1, min(samples, context.data.size) // 2)
    with context.open_session(quantized(model, context, half)) as second, context.open_session(model) as first:
        return divergence(first, second, context.data, half, samples)


def divergence(reference: Session, candidate: Session, data: Dataset, skipped: int, samples: int) -> float:
    """|y - y'|^2 / |y|^2 of the float outputs on ``samples`` samples without the first ones of them.

    The geometric mean over samples and outputs: one sample whose answer flips does not outweigh all the others. Whole batches
    are skipped; where there is but one, it counts.
    """
    names = [spec.name for spec in reference.outputs if spec.dtype.kind == "f"]
    logs: list[float] = []
    seen = 0
    data = data.first(samples)
    for batch in data.batched(min(data.batch, max(1, data.size // 2))).batches():
        seen += batch.samples
        if seen <= skipped and seen < data.size:
            continue
        expected, actual = reference.run(batch.feed), candidate.run(batch.feed)
        for name in names:
            y = expected[name].astype(np.float64)
            rows = (batch.samples if y.ndim and len(y) == batch.samples else 1, -1)
            error, power = (np.sum(array.reshape(rows) ** 2, axis=1) for array in (actual[name] - y, y))
            part = error[power > 0] / power[power > 0]
            logs += np.log10(np.maximum(part, _EXACT)).tolist()
    return float(10 ** np.mean(logs)) if logs else 0.0


def decibels(part: float) -> float:
    """A ratio of powers in dB; infinite for none."""
    return -10 * math.log10(part) if part > 0 else math.inf


def _round_weight(model: ir.Model, node: ir.Node, style: Quantization) -> None:
    tensor = constant(node.inputs[1])
    if tensor is None or len(tensor.shape) < 2:
        return
    array = rounded(tensor.numpy(), channel_axis(node), style).astype(tensor.dtype.numpy())
    node.replace_input_with(1, _initializer(model, array, f"{node.outputs[0].name}_fake_weight"))


def _insert(model: ir.Model, value: ir.Value, parameters: scheme.Parameters, nodes: set[ir.Node]) -> None:
    """Let these nodes read the value through QuantizeLinear and DequantizeLinear."""
    users = [use for use in value.uses() if use.node in nodes]
    scale = _initializer(model, parameters.scale, f"{value.name}_fake_scale")
    zero = _initializer(model, parameters.zero_point, f"{value.name}_fake_zero")
    down = ir.Node("", "QuantizeLinear", [value, scale, zero], name=f"{value.name}_fake_q")
    up = ir.Node("", "DequantizeLinear", [down.outputs[0], scale, zero], name=f"{value.name}_fake_dq")
    down.outputs[0].name, up.outputs[0].name = f"{value.name}_fake_integers", f"{value.name}_fake"
    producer = value.producer()
    if producer is None:
        model.graph.insert_before(model.graph[0], [down, up])
    else:
        model.graph.insert_after(producer, [down, up])
    for use in users:
        use.node.replace_input_with(use.idx, up.outputs[0])


def _initializer(model: ir.Model, array: Array, name: str) -> ir.Value:
    tensor = ir.tensor(array, name=name)
    value = ir.Value(name=name, type=ir.TensorType(tensor.dtype), shape=ir.Shape(array.shape), const_value=tensor)
    model.graph.register_initializer(value)
    return value
