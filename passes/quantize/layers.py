"""Weights and biases of operators as integers, with all that was learned of one model.

    W -> q_W    nearest, or as learned (``rounding.py``); of 7 bits where sums of products of 8 would saturate (``saturate.py``)
    b -> q_b    with what corrects the mean of the output (``correct.py``) added to it

What is learned is kept, by operator, for every plan that the core tries: it is found with all operators quantized, and what one
of them needs depends little on which others are.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import onnx_ir as ir

from graphopt.contracts import Array, Change, Context
from graphopt.graphs import constant

from . import correct, refine, saturate, weights
from .network import Network
from .operators import Operator
from .place import Weights
from .refine import Choices
from .scheme import Parameters, quantize

Activations = Mapping[ir.Value, Parameters]
"""Parameters of each source (``Network.source``)."""


@dataclass(eq=False)
class Learned:
    """What is known of one model's operators: ``method`` chooses scales of weights, ``samples`` are what is learned from."""

    method: weights.Method
    samples: int
    choices: Choices | None = None
    """None: not decided yet."""
    changes: list[Change] = field(default_factory=list)
    """Why so."""
    scales: dict[tuple[int, float, int | None, int], tuple[ir.TensorProtocol, Parameters]] = field(default_factory=dict)
    """By tensor, factor, axis and bits; the tensor is held, so that its id stays its own."""
    rounded: dict[tuple[str, bytes], Array] = field(default_factory=dict)
    """Learned integers, by operator and scales."""
    shifts: dict[str, Array] = field(default_factory=dict)
    """What corrects biases, [channels] by operator."""
    narrow: dict[str, saturate.Saturation] = field(default_factory=dict)
    """Operators that need weights of 7 bits, and why."""
    sums: dict[str, saturate.Saturation] = field(default_factory=dict)
    """What is known of sums in 16 bits, by operator, of the integers that were looked at last."""
    looked_at: dict[str, Array] = field(default_factory=dict)


def make(
    network: Network, weighted: Sequence[Operator], read: Activations, learned: Learned, choices: Choices, context: Context
) -> dict[str, Weights]:
    """Integers of all operators that have a weight, by name."""
    while True:
        if choices.rounding:
            _learn(network, weighted, read, learned, choices, context)
        made = {operator.name: _weights(network, operator, read, learned, choices) for operator in weighted}
        layers = [
            saturate.Layer(o.name, o.node, made[o.name].weight, o.weight_axis, _input(network, o, read))
            for o in weighted
            if o.weight_axis is not None and not _is_looked_at(o, made, learned)
        ]
        for operator in weighted:
            learned.looked_at[operator.name] = made[operator.name].weight
        if not network.style.saturates:
            learned.sums |= saturate.bounds(layers)
            return made
        learned.sums |= saturate.check(network.model, layers, context)
        saturated = {name: seen for name, seen in learned.sums.items() if seen.saturated and name not in learned.narrow}
        if not saturated:
            return made
        learned.narrow |= saturated


def _is_looked_at(operator: Operator, made: Mapping[str, Weights], learned: Learned) -> bool:
    """Whether these very integers were looked at before."""
    before = learned.looked_at.get(operator.name)
    return before is not None and np.array_equal(before, made[operator.name].weight)


def _weights(network: Network, operator: Operator, read: Activations, learned: Learned, choices: Choices) -> Weights:
    array, bias, made = _scaled(network, operator, read, learned, choices)
    rounded = learned.rounded.get((operator.name, made.scale.tobytes())) if choices.rounding else None
    integers = quantize(array, made) if rounded is None else rounded
    if not network.style.bias or bias is None:
        return Weights(integers, made, bias)
    of_bias = weights.bias_parameters(made, float(_input(network, operator, read).scale))
    return Weights(integers, made, weights.quantize_bias(bias, of_bias), of_bias)


def _learn(
    network: Network, weighted: Sequence[Operator], read: Activations, learned: Learned, choices: Choices, context: Context
) -> None:
    """Learn the rounding of the weights of which it is not known yet."""
    readers = Counter(id(_tensor(operator)) for operator in network.operators.values() if operator.weight is not None)
    unknown = []
    for operator in weighted:
        if operator.weight_axis is None or readers[id(_tensor(operator))] > 1:  # a shared weight stays shared
            continue
        array, _, made = _scaled(network, operator, read, learned, choices)
        if (operator.name, made.scale.tobytes()) not in learned.rounded:
            unknown.append(refine.Weight(operator.name, operator.node, array, operator.weight_axis, made))
    if not unknown:
        return
    found = refine.learn(network.model, unknown, context, refine.held_out(context, learned.samples))
    for weight in unknown:
        integers = found[weight.name] if weight.name in found else quantize(weight.array, weight.parameters)
        learned.rounded[weight.name, weight.parameters.scale.tobytes()] = integers


def _scaled(
    network: Network, operator: Operator, read: Activations, learned: Learned, choices: Choices
) -> tuple[Array, Array | None, Parameters]:
    """The operator's weight, its bias, and the parameters of the weight."""
    style, node = network.style, operator.node
    tensor = _tensor(operator)
    alpha = node.attributes.get_float("alpha", 1.0)
    array = tensor.numpy() if alpha == 1 else tensor.numpy() * np.float32(alpha)
    bias = _bias(operator, array)
    shift = learned.shifts.get(operator.name) if choices.correction else None
    if shift is not None:
        bias = (shift if bias is None else bias + shift).astype(np.float32)
    bits = 7 if operator.name in learned.narrow else style.weight_bits
    key = (id(tensor), alpha, operator.weight_axis if style.per_channel else None, bits)
    if key not in learned.scales:
        learned.scales[key] = tensor, weights.parameters(array, key[2], bits, learned.method)
    made = learned.scales[key][1]
    if not style.bias:
        return array, bias, made
    return array, bias, weights.fit_bias(made, array, bias, float(_input(network, operator, read).scale))


def _tensor(operator: Operator) -> ir.TensorProtocol:
    tensor = constant(operator.node.inputs[1])
    assert tensor is not None
    return tensor


def _input(network: Network, operator: Operator, read: Activations) -> Parameters:
    value = operator.node.inputs[0]
    assert value is not None
    return read[network.source(value)]


def _bias(operator: Operator, weight: Array) -> Array | None:
    """The bias as float32 [channels]."""
    if operator.bias is None:
        return None
    owner, index = operator.bias
    tensor = constant(owner.inputs[index])
    assert tensor is not None
    axis = operator.weight_axis if operator.weight_axis is not None else weight.ndim - 1
    beta = owner.attributes.get_float("beta", 1.0) if owner.op_type == "Gemm" else 1.0
    return np.broadcast_to(tensor.numpy().reshape(-1) * np.float32(beta), (weight.shape[axis],)).copy()


def takes_bias(operator: Operator) -> bool:
    """Whether the operator has a bias or can be given one."""
    return operator.weight is not None and (
        operator.bias is not None or operator.node.op_type in {"Conv", "ConvTranspose", "Gemm"}
    )


def biased_output(operator: Operator) -> correct.Output:
    """The value that the operator's bias is added to."""
    node = operator.node if operator.bias is None else operator.bias[0]
    return correct.Output(node.outputs[0].name or "", -1 if operator.node.op_type in {"Gemm", "MatMul"} else 1)
