"""Multiply before a picture is enlarged.

    Conv(Resize(x))                     ->   Resize(Conv(x))                                       Conv of 1 x 1
    Conv(Concat(Resize(x), ..., z))     ->   Resize(Conv_x(x)) + ... + Conv_z(z)                   W = [W_x, ..., W_z]

A 1 x 1 convolution mixes the channels of one place, an interpolation the places of one channel: they commute, and since the
factors of an interpolation sum to 1, the bias may be added before it. The Conv then works on the small picture: heads that
bring pyramids of features to one size and mix them (HRNet, Sun 2019; SegFormer, Xie 2021; FPN and PAN necks) spend most of
their time there. Exact but for rounding. Conditions: the Resize interpolates (no crop with a value from outside), leaves the
channels alone, has no more of them to enlarge afterwards, and at least doubles the number of places; nothing else reads what
lies in between; and more than half of all multiplications are saved. Where half of them are, as in the necks of YOLO, the
additions take most of that back: 1.01 to 1.03 times as fast in all, for two nodes more.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import onnx_ir as ir

from graphopt.contracts import Change
from graphopt.graphs import constant, is_overridable, site

from .affine import operand_index
from .graph import FLOATS, Work, attribute, only_use

_ENLARGING = ("Resize", "Upsample")
_RANK = 4
_SIZES = 3
_LEAST_ENLARGED = 2.0
_LEAST_SAVED = 64
"""Multiplications for an element of the output: to read, add and write one takes as long as about so many."""


@dataclass(frozen=True)
class _Part:
    """Some of the channels that a Conv reads."""

    value: ir.Value
    channels: int
    resize: ir.Node | None
    """What enlarges them, if the Conv can go before it."""
    enlarged: float = 1.0
    """How many places it makes of one."""


def multiply_before_enlarging(work: Work, node: ir.Node) -> Change | None:
    """Let a 1 x 1 Conv change places with the Resize before it, through a Concat too."""
    whole = node.inputs[0]
    concat = work.producer(whole, node, "Concat")
    values = [whole] if concat is None else concat.inputs
    if whole is None or not any(work.producer(value, node, *_ENLARGING) for value in values):
        return None
    weight = constant(node.inputs[1])
    if weight is None or not is_pointwise(work, node, weight):
        return None
    if concat is not None and not (only_use(whole) and attribute(concat, "axis") in (1, 1 - _RANK)):
        return None
    outputs, channels = weight.shape.numpy()[:2]
    parts = [_part(work, concat or node, value, outputs) for value in values]
    known = [part for part in parts if part is not None]
    if len(known) < len(parts) or sum(part.channels for part in known) != channels:
        return None
    saved = sum(part.channels * (1 - 1 / part.enlarged) for part in known)
    if 2 * saved <= channels or work.grow([(node, 1, weight.nbytes)], gone=concat or node) is not None:
        return None
    name = site(node)
    _rewrite(work, node, known, weight.numpy())
    return Change(name, "moved Conv before Resize", "it multiplies fewer places, and interpolation does not mix channels")


def is_pointwise(work: Work, node: ir.Node, weight: ir.TensorProtocol) -> bool:
    """Whether a Conv is 1 x 1 with constant weights, and nothing that follows is about to be folded into it."""
    output = node.outputs[0]
    dims, bias = weight.shape.numpy(), node.inputs[2] if len(node.inputs) > 2 else None
    strides, pads = attribute(node, "strides", (1, 1)), attribute(node, "pads", ())
    if len(dims) != _RANK or dims[2:] != (1, 1) or attribute(node, "group", 1) != 1 or strides != (1, 1):
        return False
    if not isinstance(pads, tuple) or any(pads) or work.dtype(output) not in FLOATS or not work.can_replace(output):
        return False
    if bias is not None and constant(bias) is None:
        return False
    readers = [use.node for use in output.uses()]
    return not any(is_overridable(value) for value in node.inputs) and not any(_folds(reader) for reader in readers)


def _folds(reader: ir.Node) -> bool:
    return reader.op_type in {"Add", "BatchNormalization", "Div", "Mul", "Sub"} and operand_index(reader) is not None


def _part(work: Work, user: ir.Node, value: ir.Value | None, outputs: int) -> _Part | None:
    shape = work.shape(value)
    if value is None or shape is None or len(shape) != _RANK or not isinstance(shape[1], int):
        return None
    resize = work.producer(value, user, *_ENLARGING)
    if resize is None or not only_use(value) or not _commutes(work, resize, shape[1], outputs):
        return _Part(value, shape[1], None)
    enlarged = _enlarged(work, resize)
    pays = enlarged >= _LEAST_ENLARGED and shape[1] * (1 - 1 / enlarged) >= _LEAST_SAVED
    return _Part(value, shape[1], resize, enlarged) if pays else _Part(value, shape[1], None)


def _commutes(work: Work, resize: ir.Node, channels: int, outputs: int) -> bool:
    """Whether a Resize interpolates within each of its channels, and has no more to do after the Conv."""
    before = work.shape(resize.inputs[0])
    if before is None or len(before) != _RANK or before[1] != channels or outputs > channels:
        return False
    if attribute(resize, "coordinate_transformation_mode", "half_pixel") == "tf_crop_and_resize":
        return False
    by_size = len(resize.inputs) > _SIZES and resize.inputs[_SIZES] is not None
    return not by_size or outputs == channels or "axes" in resize.attributes  # sizes tell how many channels there are


def _enlarged(work: Work, resize: ir.Node) -> float:
    """How many places a Resize makes of one; 0 if that is not known."""
    before, after = work.shape(resize.inputs[0]), work.shape(resize.outputs[0])
    assert before is not None
    assert after is not None
    small, large = ([dim for dim in shape[2:] if isinstance(dim, int)] for shape in (before, after))
    if len(small) == len(large) == _RANK - 2:
        return math.prod(large) / max(1, math.prod(small))
    scales = constant(resize.inputs[1 if resize.op_type == "Upsample" or len(resize.inputs) == 2 else 2])
    return float(np.prod(scales.numpy())) if scales is not None and scales.size else 0.0


def _rewrite(work: Work, node: ir.Node, parts: list[_Part], weight: np.ndarray) -> None:
    """Let the sum of the parts' products take the place of a Conv."""
    bounds = np.cumsum([0, *(part.channels for part in parts)])
    slices = [weight[:, begin:end] for begin, end in pairwise(bounds)]
    kept = [(part.value, w) for part, w in zip(parts, slices, strict=True) if part.resize is None]
    enlarged = [(part.resize, w) for part, w in zip(parts, slices, strict=True) if part.resize is not None]
    bias = [*node.inputs[2:]]
    terms: list[ir.Value] = []
    for resize, w in enlarged:
        x = resize.inputs[0]
        assert x is not None
        inputs, bias = [_product(work, node, x, w, bias), *resize.inputs[1:]], []
        attributes = [*resize.attributes.values()]
        if len(parts) == 1:
            work.add(node, resize.op_type, inputs, attributes)
            return
        terms.append(work.insert(node, resize.op_type, inputs, attributes, _dims(work, resize.outputs[0], w.shape[:1])))
    if kept:
        z = kept[0][0]
        if len(kept) > 1:
            dims = (sum(w.shape[1] for _, w in kept),)
            z = work.insert(node, "Concat", [value for value, _ in kept], [ir.AttrInt64("axis", 1)], _dims(work, z, dims))
        terms.append(_product(work, node, z, np.concatenate([w for _, w in kept], axis=1), []))
    work.add(node, "Add" if len(terms) == 2 else "Sum", terms)


def _product(work: Work, node: ir.Node, x: ir.Value, weight: np.ndarray, bias: list[ir.Value | None]) -> ir.Value:
    """The output of a new Conv like ``node``."""
    w = work.constant(node, np.ascontiguousarray(weight), f"{node.outputs[0].name}_weight")
    return work.insert(node, "Conv", [x, w, *bias], [*node.attributes.values()], _dims(work, x, weight.shape[:1]))


def _dims(work: Work, like: ir.Value, channels: tuple[int, ...]) -> ir.TypeAndShape:
    """The type and shape of a value, with other channels."""
    known = work.facts[like]
    assert known.shape is not None
    return ir.TypeAndShape(known.type, ir.Shape([known.shape[0], *channels, *known.shape[2:]]))
