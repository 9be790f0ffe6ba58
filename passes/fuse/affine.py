"""Fold what scales and shifts each channel into the weights of the operator before it.

    z = W x + b,  y = s z + t      ->   y = (s W) x + (s b + t)

``W x`` is a Conv, ConvTranspose, Gemm or MatMul with a constant weight; s and t hold one number a channel of its output. They
come from a BatchNormalization in its inference form or from an operation with a constant:

    BatchNormalization   s = gamma / sqrt(var + epsilon),  t = beta - mean s
    Mul, Div             s = c or 1 / c,                   t = 0
    Add, Sub             s = 1 (Sub from a constant: -1),  t = +-c

MatMul has no bias. The Add of a constant behind it takes its place: y = (W x + b) s becomes (s W) x + s b, and of two
Adds one is left. One number s for all also passes through what only moves elements, as in attention: s transpose(z) is
transpose(s z). Exact but for rounding: weights are computed in float64 and rounded once. Conditions: nothing else reads z;
all operands are constants that no caller can override; every s, t and new weight is finite.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from graphopt.contracts import Change
from graphopt.graphs import constant, is_overridable, site

from .graph import FLOATS, Work, attribute, declined, only_use

CHANNEL_AXIS_1 = ("Conv", "ConvTranspose")
_HEADS = (*CHANNEL_AXIS_1, "Gemm", "MatMul")
_MOVES = ("Flatten", "Reshape", "Squeeze", "Transpose", "Unsqueeze")
_TRAINING_OUTPUTS_OPSET = 7


@dataclass(frozen=True)
class Affine:
    """y = scale z + shift, along one axis."""

    scale: np.ndarray
    """float64 [channels], or [1] for all."""
    shift: np.ndarray
    """float64 [channels], or [1] for all."""

    @property
    def finite(self) -> bool:
        """Whether all of its numbers are."""
        return bool(np.isfinite(self.scale).all() and np.isfinite(self.shift).all())


@dataclass(frozen=True)
class _Place:
    """Where a fold can be: ``node`` scales or shifts its input ``operand``, made by ``head``, maybe ``bias_add``, and moves."""

    node: ir.Node
    operand: int
    head: ir.Node
    bias_add: ir.Node | None


def fold_affine(work: Work, node: ir.Node) -> Change | None:
    """Fold a BatchNormalization, Mul, Add, Sub or Div into the operator before it."""
    place = _find(work, node)
    if place is None:
        return None
    what, name = f"folded {node.op_type} into {place.head.op_type}", site(node)
    why = _obstacle(work, place)
    if why is None:
        why = _fold(work, place)
    if why is not None:
        return declined(node, what, why) if why else None
    return Change(name, what, "scaled weights and a shifted bias give the same numbers")


def _find(work: Work, node: ir.Node) -> _Place | None:
    operand = operand_index(node)
    z = None if operand is None else node.inputs[operand]
    if operand is None or z is None:
        return None
    user = node
    if node.op_type in {"Mul", "Div"} and _is_one_number(work, node.inputs[1 - operand], z):
        z, user = _before_moves(work, z, user)
    head = work.producer(z, user, *_HEADS)
    if head is not None:
        is_bias = head.op_type == "MatMul" and node.op_type in {"Add", "Sub"}
        return None if is_bias else _Place(node, operand, head, None)
    bias_add = None if node.op_type == "BatchNormalization" else work.producer(z, user, "Add")
    index = None if bias_add is None else operand_index(bias_add)
    if bias_add is None or index is None:
        return None
    head = work.producer(bias_add.inputs[index], bias_add, "MatMul")
    return None if head is None else _Place(node, operand, head, bias_add)


def _before_moves(work: Work, z: ir.Value, user: ir.Node) -> tuple[ir.Value, ir.Node]:
    """What z was before its elements were moved about, with nobody else looking on the way; and the node that reads it."""
    while only_use(z):
        move = work.producer(z, user, *_MOVES)
        if move is None or move.inputs[0] is None:
            break
        z, user = move.inputs[0], move
    return z, user


def _is_one_number(work: Work, value: ir.Value | None, z: ir.Value) -> bool:
    """Whether a constant is one number that does not raise the rank of z."""
    tensor = constant(value)
    return tensor is not None and tensor.size == 1 and len(tensor.shape) <= (work.rank(z) or 0)


def operand_index(node: ir.Node) -> int | None:
    """Which input the node scales and shifts, the others being its constants or overridable; None if it is no such node."""
    if node.op_type == "BatchNormalization":
        return 0 if len(node.inputs) >= 5 else None
    if len(node.inputs) != 2:
        return None
    for index, other in ((0, 1), (1, 0)):
        value = node.inputs[other]
        if (constant(value) is not None or is_overridable(value)) and not (node.op_type == "Div" and index == 1):
            return index
    return None


def read_affine(node: ir.Node, operand: int, channels: int, rank: int | None, *, axis_1: bool) -> Affine | None:
    """What a node does to each channel, all its constants known; None if it does more than that.

    Args:
        node: What ``operand_index`` knows.
        operand: The input that is scaled and shifted.
        channels: How many channels there are.
        rank: The rank of that input; None: not known.
        axis_1: Whether channels lie along axis 1, else along the last.
    """
    if node.op_type == "BatchNormalization":
        return _normalization(node, channels)
    tensor = constant(node.inputs[1 - operand])
    if tensor is None:
        return None
    dims = tuple(tensor.shape.numpy())
    known_rank = rank if rank is not None else 1
    if len(dims) > known_rank or tensor.size not in {1, channels}:
        return None
    axis = 1 if axis_1 else known_rank - 1
    full = (1,) * (known_rank - len(dims)) + dims
    if tensor.size > 1 and full[axis] != channels:
        return None
    c = tensor.numpy().astype(np.float64).reshape(-1)
    one, zero = np.ones(1), np.zeros(1)
    with np.errstate(all="ignore"):
        return {
            "Mul": Affine(c, zero),
            "Div": Affine(1 / c, zero),
            "Add": Affine(one, c),
            "Sub": Affine(one, -c) if operand == 0 else Affine(-one, c),
        }[node.op_type]


def _normalization(node: ir.Node, channels: int) -> Affine | None:
    tensors = [constant(value) for value in node.inputs[1:5]]
    epsilon = attribute(node, "epsilon", 1e-5)
    if any(tensor is None or tuple(tensor.shape.numpy()) != (channels,) for tensor in tensors) or not isinstance(
        epsilon, float
    ):
        return None
    gamma, beta, mean, var = (tensor.numpy().astype(np.float64) for tensor in tensors if tensor is not None)
    with np.errstate(all="ignore"):
        scale = gamma / np.sqrt(var + float(np.float32(epsilon)))
        return Affine(scale, beta - mean * scale)


def is_inference(work: Work, node: ir.Node) -> bool:
    """Whether a BatchNormalization uses the mean and variance that it is given, and gives nothing else."""
    extra = any(output.is_graph_output() or output.uses() for output in node.outputs[1:])
    per_channel = attribute(node, "spatial", 1) == 1
    return work.opset >= _TRAINING_OUTPUTS_OPSET and not extra and per_channel and attribute(node, "training_mode", 0) == 0


def _obstacle(work: Work, place: _Place) -> str | None:
    """Why the fold is not possible; empty where nobody would ask; None if nothing is in the way so far."""
    node, head, bias_add = place.node, place.head, place.bias_add
    z = node.inputs[place.operand]
    normalizes = node.op_type == "BatchNormalization"
    constants = [value for value in node.inputs if value is not z] + [*head.inputs[1:]]
    if bias_add is not None:
        constants += [value for value in bias_add.inputs if value is not head.outputs[0]]
    over = next((value for value in constants if is_overridable(value)), None)
    between = [value for value in (z, head.outputs[0], None if bias_add is None else bias_add.outputs[0]) if value is not None]
    if work.dtype(z) not in FLOATS:
        return ""
    if normalizes and not is_inference(work, node):
        return "it is in training mode, or its other outputs are used"
    if over is not None:
        return f"{over.name!r} is an input of the model too: a caller may override it"
    if any(value is not None and constant(value) is None for value in constants):
        return "a weight is only known when the model runs" if normalizes else ""
    if not all(only_use(value) for value in between):
        return "what it scales is used elsewhere or is an output" if normalizes else ""
    return None if work.can_replace(node.outputs[0]) else "its output is listed twice among the outputs"


def _fold(work: Work, place: _Place) -> str | None:
    """Fold, all operands being constants; why not if that cannot be."""
    head = place.head
    weight = constant(head.inputs[1])
    assert weight is not None
    z = place.node.inputs[place.operand]
    behind = z is (place.bias_add or head).outputs[0]
    rank = len(weight.shape) if behind and head.op_type != "MatMul" else work.rank(z)
    if head.op_type == "MatMul" and (len(weight.shape) != 2 or (place.node.op_type == "BatchNormalization" and rank != 2)):
        return ""
    channels = _channels(head, weight) if behind else 1
    change = read_affine(place.node, place.operand, channels, rank, axis_1=head.op_type in CHANNEL_AXIS_1)
    if change is None:
        return ""
    if not change.finite:
        return "a scale or shift is not finite"
    if head.op_type == "MatMul":
        return _into_matmul(work, place, change, weight.numpy())
    return _into_biased(work, place, change)


def _channels(head: ir.Node, weight: ir.TensorProtocol) -> int:
    """Channels of a head's output."""
    dims = tuple(weight.shape.numpy())
    if head.op_type == "Conv":
        return dims[0]
    if head.op_type == "ConvTranspose":
        group = attribute(head, "group", 1)
        return dims[1] * group if isinstance(group, int) else -1
    return dims[0] if head.op_type == "Gemm" and attribute(head, "transB", 0) else dims[-1]


def scaled(head: ir.Node, weight: np.ndarray, scale: np.ndarray) -> np.ndarray:
    """The weight with its output channels scaled, in its own type."""
    w = weight.astype(np.float64)
    if head.op_type == "Conv":
        w *= scale.reshape(-1, *[1] * (w.ndim - 1))
    elif head.op_type == "ConvTranspose":  # [in, out / group, ...]: the input channels of a group see its output channels
        group = attribute(head, "group", 1)
        assert isinstance(group, int)
        per_channel = scale.reshape(group if scale.size > 1 else 1, 1, -1, *[1] * (w.ndim - 2))
        w = (w.reshape(group, w.shape[0] // group, *w.shape[1:]) * per_channel).reshape(w.shape)
    elif head.op_type == "Gemm" and attribute(head, "transB", 0):
        w *= scale.reshape(-1, 1)
    else:
        w *= scale
    return rounded(w, weight.dtype)


def rounded(array: np.ndarray, dtype: np.dtype) -> np.ndarray:
    """Round to a type; what is too large for it becomes infinite."""
    with np.errstate(all="ignore"):
        return array.astype(dtype)


def _into_biased(work: Work, place: _Place, change: Affine) -> str | None:
    """Fold into an operator that has a bias; why not if that cannot be."""
    node, head, z = place.node, place.head, place.node.inputs[place.operand]
    assert z is not None
    old = constant(head.inputs[1])
    assert old is not None
    channels, array = _channels(head, old), old.numpy()
    bias_value = head.inputs[2] if len(head.inputs) > 2 else None
    bias = np.zeros(channels)
    if bias_value is not None:
        tensor = constant(bias_value)
        assert tensor is not None
        dims, beta = tuple(tensor.shape.numpy()), attribute(head, "beta", 1.0)
        if math.prod(dims) not in {1, channels} or (dims and dims[-1] not in {1, channels}) or (dims[:-1] and dims[0] != 1):
            return "the bias of the Gemm is not one number a channel"
        bias[:] = tensor.numpy().astype(np.float64).reshape(-1) * (beta if isinstance(beta, float) else 1.0)
    weight = None if (change.scale == 1).all() else scaled(head, array, change.scale)
    shifted = rounded(bias * change.scale + change.shift, array.dtype)
    if not (weight is None or np.isfinite(weight).all()) or not np.isfinite(shifted).all():
        return "a weight would not be finite"
    why = work.grow([(head, 2, shifted.nbytes)] + ([] if weight is None else [(head, 1, weight.nbytes)]), gone=node)
    if why is not None:
        return why
    name = head.outputs[0].name
    if weight is not None:
        work.put(head, 1, weight, f"{name}_weight")
    work.put(head, 2, shifted, f"{name}_bias")
    head.attributes.pop("beta", None)
    work.quiet += head.op_type == "ConvTranspose"  # for which no rule is asked
    work.replace(node.outputs[0], z)
    work.remove_dead(node)
    return None


def _into_matmul(work: Work, place: _Place, change: Affine, array: np.ndarray) -> str | None:
    """Fold into a MatMul, and into the Add behind it; why not if that cannot be."""
    node, head, bias_add = place.node, place.head, place.bias_add
    shifts = bool(change.shift.any())
    bias, index = Affine(np.ones(1), np.zeros(1)), 1
    if bias_add is not None:
        index = next(i for i, value in enumerate(bias_add.inputs) if value is not head.outputs[0])
        found = read_affine(bias_add, 1 - index, array.shape[1], work.rank(head.outputs[0]), axis_1=False)
        if found is None:
            return ""
        bias = found
    weight = None if (change.scale == 1).all() else scaled(head, array, change.scale)
    shifted = rounded(bias.shift * change.scale + change.shift, array.dtype)
    if not (weight is None or np.isfinite(weight).all()) or not np.isfinite(shifted).all():
        return "a weight would not be finite"
    sizes = [] if weight is None else [(head, 1, weight.nbytes)]
    sizes += [] if bias_add is None else [(bias_add, index, shifted.nbytes)]
    why = work.grow(sizes, gone=node)
    if why is not None:
        return why
    name = head.outputs[0].name
    if weight is not None:
        work.put(head, 1, weight, f"{name}_weight")
    if bias_add is not None:
        work.put(bias_add, index, shifted, f"{name}_bias")
    elif shifts:
        work.add(node, "Add", [head.outputs[0], work.constant(node, shifted, f"{name}_bias")])
        return None
    z = node.inputs[place.operand]
    assert z is not None
    work.replace(node.outputs[0], z)
    work.remove_dead(node)
    return None
