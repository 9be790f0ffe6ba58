"""Fold what scales and shifts each channel of an input into the weights behind it.

    y = W (s x + t) + b   ->   y = (W s) x + (b + W t)

``W x`` is a Conv or a Gemm with a constant weight, and the affine one of those in ``affine``. A Conv pads with zeros *after*
the affine: with t it is exact only where nothing is padded. Conditions besides: nothing else reads s x + t; every new weight
is finite; |t| is small, because W t is subtracted again from (W s) x and takes that many digits with it; and the affine is
not the end of what the runtime computes by one kernel.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from graphopt.contracts import Change
from graphopt.graphs import constant, is_overridable, site

from .affine import Affine, is_inference, operand_index, read_affine, rounded
from .graph import FLOATS, Work, attribute, declined, only_use
from .whole import ends_kernel

_AFFINE = ("BatchNormalization", "Mul", "Add", "Sub", "Div")
_MOST_SHIFT = 16.0


def fold_affine_before(work: Work, node: ir.Node) -> Change | None:
    """Fold the BatchNormalization, Mul, Add, Sub or Div before a Conv or Gemm into it."""
    x = node.inputs[0]
    before = work.producer(x, node, *_AFFINE)
    if before is None or x is None or not only_use(x) or work.dtype(x) not in FLOATS:
        return None
    operand = operand_index(before)
    if operand is None or any(value is not None and constant(value) is None for value in node.inputs[1:]):
        return None
    if before.op_type == "BatchNormalization" and not is_inference(work, before):
        return None
    if ends_kernel(work, before):
        return None
    what, name = f"folded {before.op_type} into the {node.op_type} behind it", site(before)
    over = next((value for index, value in enumerate(before.inputs) if index != operand and is_overridable(value)), None)
    why = _fold(work, node, before, operand) if over is None else f"{over.name!r} is an input: a caller may override it"
    if why is not None:
        return declined(before, what, why) if why else None
    return Change(name, what, "scaled weights and a shifted bias give the same numbers")


def _fold(work: Work, node: ir.Node, before: ir.Node, operand: int) -> str | None:
    """Fold, all operands being constants; why not if that cannot be, empty where nobody would ask."""
    tensor = constant(node.inputs[1])
    assert tensor is not None
    layout = _layout(node, tuple(tensor.shape.numpy()))
    change = None if layout is None else read_affine(before, operand, layout[1], len(tensor.shape), axis_1=True)
    if layout is None or change is None or not _keeps_shape(work, before, operand, layout[1], len(tensor.shape)):
        return ""
    why = _imprecise(node, change)
    if why is not None:
        return why
    group, channels, outputs = layout
    array = tensor.numpy()
    wide = _by_input_channel(node, array, group)  # [group, out / group, in / group, kernel]
    scale, shift = (
        np.broadcast_to(numbers, (channels,)).reshape(group, 1, channels // group, 1)
        for numbers in (change.scale, change.shift)
    )
    weight = rounded(_from_input_channel(node, wide * scale, array.shape), array.dtype)
    bias = constant(node.inputs[2]) if len(node.inputs) > 2 else None
    if bias is not None and (bias.size not in {1, outputs} or tuple(bias.shape.numpy())[:-1] not in {(), (1,)}):
        return "the bias of the Gemm is not one number a channel"
    old = np.zeros(1) if bias is None else bias.numpy().astype(np.float64).reshape(-1)
    shifted = rounded(old + (wide * shift).sum(axis=(2, 3)).reshape(-1), array.dtype)
    if not (np.isfinite(weight).all() and np.isfinite(shifted).all()):
        return "a weight would not be finite"
    sizes = [(node, 1, weight.nbytes)] + ([(node, 2, shifted.nbytes)] if change.shift.any() else [])
    why = work.grow(sizes, gone=before)
    if why is not None:
        return why
    name = node.outputs[0].name
    work.put(node, 1, weight, f"{name}_weight")
    if change.shift.any():
        work.put(node, 2, shifted, f"{name}_bias")
    node.replace_input_with(0, before.inputs[operand])
    work.remove_dead(before)
    return None


def _keeps_shape(work: Work, before: ir.Node, operand: int, channels: int, rank: int) -> bool:
    """Whether the channels are there already: arithmetic could broadcast one channel to many."""
    shape = work.shape(before.inputs[operand])
    return before.op_type == "BatchNormalization" or (shape is not None and len(shape) == rank and shape[1] == channels)


def _imprecise(node: ir.Node, change: Affine) -> str | None:
    """Why the result would not be the same, or not as precise."""
    if not change.finite:
        return "a scale or shift is not finite"
    if change.shift.any() and not _pads_nothing(node):
        return "the Conv pads with zeros, which the shift would have to reach"
    largest = float(np.abs(change.shift).max(initial=0.0))
    return None if largest <= _MOST_SHIFT else f"a shift of {largest:.3g} would cost precision"


def _layout(node: ir.Node, dims: tuple[int, ...]) -> tuple[int, int, int] | None:
    """Groups, input channels, output channels; None for a Gemm that scales or transposes its input."""
    if node.op_type == "Conv":
        group = attribute(node, "group", 1)
        return (group, dims[1] * group, dims[0]) if isinstance(group, int) else None
    plain = attribute(node, "transA", 0) == 0 and attribute(node, "alpha", 1.0) == 1 and attribute(node, "beta", 1.0) == 1
    if not plain:
        return None
    out, channels = dims if attribute(node, "transB", 0) else dims[::-1]
    return 1, channels, out


def _pads_nothing(node: ir.Node) -> bool:
    pads, auto = attribute(node, "pads", ()), attribute(node, "auto_pad", "NOTSET")
    return node.op_type == "Gemm" or auto == "VALID" or (auto == "NOTSET" and isinstance(pads, tuple) and not any(pads))


def _by_input_channel(node: ir.Node, weight: np.ndarray, group: int) -> np.ndarray:
    """The weight in float64 as [group, out / group, in / group, kernel]."""
    w = weight.astype(np.float64)
    if node.op_type == "Gemm":
        w = w if attribute(node, "transB", 0) else w.T
    return w.reshape(group, w.shape[0] // group, w.shape[1], -1)


def _from_input_channel(node: ir.Node, weight: np.ndarray, dims: tuple[int, ...]) -> np.ndarray:
    """Back to the layout that the node wants."""
    if node.op_type == "Gemm" and not attribute(node, "transB", 0):
        return weight.reshape(dims[1], dims[0]).T
    return weight.reshape(dims)
