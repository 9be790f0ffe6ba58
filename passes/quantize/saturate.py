"""Which sums overflow on x64 processors without VNNI: ``vpmaddubsw`` adds two products u8 x s8 into a saturating int16.

    exact            sum over k of x_k w_k                                             x in 0..255, w in -128..127
    vpmaddubsw       sum over pairs of clip(x_2t w_2t + x_2t+1 w_2t+1, -32768, 32767)  255 x 127 x 2 = 64770 does not fit

The k run over the layer's reduction as the kernels of onnxruntime store it: kernel position first, channel last (NHWC), in
pairs, a zero behind an odd number. VNNI's ``vpdpbusd``, arm64's ``sdot`` and depthwise kernels (which multiply in 16 bits and
add in 32) are exact. A pair of weights cannot overflow, whatever the input, where

    255 (max(w_2t, 0) + max(w_2t+1, 0)) <= 32767   and   255 (min(w_2t, 0) + min(w_2t+1, 0)) >= -32768

which 7-bit weights (|w| <= 64) always satisfy. The others are computed on the inputs that calibration saw: first with the
largest value of each channel, and only where that overflows, sum by sum.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from graphopt.contracts import Array, Context
from graphopt.observe import Keep, gram

from .scheme import Parameters, quantize

LOWEST, HIGHEST = -(1 << 15), (1 << 15) - 1
_CHUNK = 1 << 22
"""Sums that are computed at a time."""
_SAMPLES = 16
_KEPT_BYTES = 4 << 20
"""What is kept of the input of each layer that is computed, and how many of its rows."""
_ROWS = 1 << 14


@dataclass(frozen=True)
class Saturation:
    """What the pairs of one layer do on the calibration data."""

    risky_pairs: int
    """Pairs of weights that could overflow for some input."""
    pairs: int
    sums: int
    """Sums of two products that the calibration data lead to."""
    saturated: int
    worst: float
    """Largest error of one output that saturation causes, in units of the integer accumulator."""

    @property
    def text(self) -> str:
        """The finding in words."""
        if self.proven:
            return "no sum can saturate"
        if not self.saturated:
            return f"none of {self.sums:,} sums saturates on the calibration data"
        return f"{self.saturated:,} of {self.sums:,} sums would saturate on x64 without VNNI"

    @property
    def proven(self) -> bool:
        """Whether the weights alone show that no input can overflow."""
        return self.risky_pairs == 0


@dataclass(frozen=True)
class Layer:
    """A layer in integers: ``weight`` s8 in the layout of ``node``, channels of the output along ``axis``."""

    name: str
    node: ir.Node
    weight: Array
    axis: int
    input: Parameters
    """Of what it reads."""


def bounds(layers: Sequence[Layer]) -> dict[str, Saturation]:
    """What the weights alone tell of each layer whose kernel adds in pairs, by name; no sum is computed."""
    found: dict[str, Saturation] = {}
    for layer in layers:
        if not _is_depthwise(layer):
            candidates = [risky(group) for group in kernel_weight(layer)]
            count, size = (sum(int(of(c)) for c in candidates) for of in (np.sum, np.size))
            found[layer.name] = Saturation(count, size, 0, 0, 0.0)
    return found


def check(model: ir.Model, layers: Sequence[Layer], context: Context) -> dict[str, Saturation]:
    """What each layer whose kernel adds in pairs does on the data, by name; ``model`` is the float one."""
    found = bounds(layers)
    waiting = [layer for layer in layers if layer.name in found and not found[layer.name].proven]
    names = {layer.name: layer.node.inputs[0].name or "" for layer in waiting if layer.node.inputs[0] is not None}
    kept = context.observe(model, {name: [Keep(_SAMPLES, _KEPT_BYTES)] for name in names.values()})
    for layer in waiting:
        [values] = kept[names[layer.name]]
        parts = zip(kernel_weight(layer), kernel_rows(layer, values.joined()), strict=True)
        found[layer.name] = _together([simulate(weight, rows) for weight, rows in parts])
    return found


def statement(found: Mapping[str, Saturation]) -> str:
    """On which processors the integers are right, in one sentence, for a report."""
    always = "exact on x64 with VNNI and on arm64"
    saturating = [name for name, seen in found.items() if seen.saturated]
    if saturating:
        return f"{always}; on x64 without VNNI sums saturate in {len(saturating)} layers, {saturating[0]!r} the first"
    computed = [seen for seen in found.values() if not seen.proven]
    proven = f"{len(found) - len(computed)} of {len(found)} layers cannot saturate"
    if any(not seen.sums for seen in computed):
        return f"{always}; on x64 without VNNI {proven}, the others were not computed (the target cpu-any does that)"
    if not computed:
        return f"{always}; on x64 without VNNI too: {proven}"
    sums = sum(seen.sums for seen in computed)
    return f"{always}; on x64 without VNNI {proven}, and in the others none of {sums:,} sums on the calibration data does"


def _is_depthwise(layer: Layer) -> bool:
    """Whether the kernel is one that adds in 32 bits."""
    groups = layer.node.attributes.get_int("group", 1)
    return layer.node.op_type == "Conv" and groups > 1 and layer.weight.shape[:2] == (groups, 1)


def kernel_weight(layer: Layer) -> Array:
    """[groups, out / groups, K] in the kernel's order."""
    rows = np.moveaxis(layer.weight, layer.axis, 0)
    if layer.node.op_type == "Conv":
        rows = np.moveaxis(rows, 1, -1)  # channels last
    groups = layer.node.attributes.get_int("group", 1)
    return rows.reshape(groups, len(rows) // groups, -1)


def kernel_rows(layer: Layer, values: Array) -> Array:
    """u8 [groups, rows, K] in the kernel's order, of what the layer reads; at most ``_ROWS`` of them."""
    conv = layer.node.op_type == "Conv"
    rows = gram.rows(values.astype(np.float32), gram.patches(layer.node) if conv else None, _ROWS)
    if conv:
        channels = layer.weight.shape[1]
        rows = rows.reshape(*rows.shape[:2], channels, -1).swapaxes(2, 3).reshape(rows.shape)
    return quantize(rows, layer.input)


def _together(parts: Sequence[Saturation]) -> Saturation:
    return Saturation(
        sum(part.risky_pairs for part in parts),
        sum(part.pairs for part in parts),
        sum(part.sums for part in parts),
        sum(part.saturated for part in parts),
        max(part.worst for part in parts),
    )


def pairs(rows: Array) -> Array:
    """[..., K] in the kernel's order -> [..., ceil(K / 2), 2], a zero behind an odd number."""
    padded = np.concatenate([rows, np.zeros_like(rows[..., :1])], axis=-1) if rows.shape[-1] % 2 else rows
    return padded.reshape(*padded.shape[:-1], -1, 2)


def risky(weight: Array) -> Array:
    """Which pairs of weights could overflow: s8 [out, K] -> bool [out, ceil(K / 2)]."""
    pair = pairs(weight.astype(np.int32))
    highest, lowest = 255 * np.maximum(pair, 0).sum(-1), 255 * np.minimum(pair, 0).sum(-1)
    found: Array = (highest > HIGHEST) | (lowest < LOWEST)
    return found


def simulate(weight: Array, rows: Array) -> Saturation:
    """Count what saturates.

    Args:
        weight: s8 [out, K] of one group of the layer.
        rows: u8 [rows, K], the inputs of its sums (a convolution's patches), K in the kernel's order.
    """
    pair, inputs = pairs(weight.astype(np.int32)), pairs(rows)
    candidates = risky(weight)
    count = int(candidates.sum())
    if not count or not len(rows):
        return Saturation(count, candidates.size, len(rows) * candidates.size, 0, 0.0)
    peak = inputs.max(axis=0).astype(np.int32)  # [pairs, 2]
    seen = (np.maximum(pair, 0) * peak).sum(-1) > HIGHEST
    seen |= (np.minimum(pair, 0) * peak).sum(-1) < LOWEST
    saturated, worst = 0, 0.0
    step = max(1, _CHUNK // len(weight))
    used = np.flatnonzero(seen.any(axis=0))
    for start in range(0, len(rows) if len(used) else 0, step):
        lost = np.zeros((len(inputs[start : start + step]), len(weight)), np.int64)
        for t in used:
            outputs = np.flatnonzero(seen[:, t])
            total = inputs[start : start + step, t].astype(np.int32) @ pair[outputs, t].T  # [rows, outputs]
            excess = total - np.clip(total, LOWEST, HIGHEST)
            saturated += int(np.count_nonzero(excess))
            lost[:, outputs] += excess
        worst = max(worst, float(np.abs(lost).max()))
    return Saturation(count, candidates.size, len(rows) * candidates.size, saturated, worst)
