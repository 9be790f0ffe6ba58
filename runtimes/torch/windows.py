"""Operators over windows of neighbours: convolution, transposed convolution, pooling; and what resizes.

    positions = floor or ceil((in + pads - ((kernel - 1) dilation + 1)) / stride) + 1

Padding is done before, so that every form of it (one-sided, SAME, with ceil_mode) is the same to torch.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from graphopt.contracts import Array

from .call import Call, Rule
from .reductions import channels
from .tensors import Tensor, functional, torch


@dataclass(frozen=True)
class _Window:
    """Of each spatial axis: kernel, stride, dilation, and pads before and after."""

    kernel: Sequence[int]
    strides: Sequence[int]
    dilations: Sequence[int]
    before: Sequence[int]
    after: Sequence[int]

    @classmethod
    def of(cls, call: Call, sizes: Sequence[int], kernel: Sequence[int]) -> _Window:
        ones = [1] * len(kernel)
        strides, dilations = call.get("strides", ones), call.get("dilations", ones)
        pads = call.get("pads", [0] * 2 * len(kernel))
        auto = call.text("auto_pad", "NOTSET")
        before, after = pads[: len(kernel)], pads[len(kernel) :]
        if auto.startswith("SAME"):
            spans = [(k - 1) * d + 1 for k, d in zip(kernel, dilations, strict=True)]
            totals = [
                max(0, (-(-size // stride) - 1) * stride + span - size)
                for size, stride, span in zip(sizes, strides, spans, strict=True)
            ]
            small, large = [total // 2 for total in totals], [total - total // 2 for total in totals]
            before, after = (small, large) if auto == "SAME_UPPER" else (large, small)
        elif auto == "VALID":
            before, after = [0] * len(kernel), [0] * len(kernel)
        return cls(kernel, strides, dilations, before, after)

    def beyond(self, sizes: Sequence[int], ceil: bool) -> list[int]:
        """What is missing behind the padding for the last window, which begins within the input or the padding before it."""
        found = []
        for size, k, s, d, left, right in zip(
            sizes, self.kernel, self.strides, self.dilations, self.before, self.after, strict=True
        ):
            span, padded = (k - 1) * d + 1, size + left + right
            count = -(-(padded - span) // s) if ceil else (padded - span) // s
            if ceil and count * s >= size + left:
                count -= 1
            found.append(max(0, count * s + span - padded))
        return found

    def pads(self, extra: Sequence[int] | None = None) -> list[int]:
        """As torch wants them: from the last axis on, before and after."""
        more = extra or [0] * len(self.before)
        sides = zip(self.before, self.after, more, strict=True)
        return [side for left, right, add in reversed([*sides]) for side in (left, right + add)]


def _padded(x: Tensor, pads: Sequence[int], value: float = 0.0) -> Tensor:
    return functional.pad(x, [*pads], value=value) if any(pads) else x


def _convolve(call: Call, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    window = _Window.of(call, x.shape[2:], weight.shape[2:])
    apply = getattr(functional, f"conv{x.ndim - 2}d")
    padding: Sequence[int] = window.before
    if [*window.before] != [*window.after]:
        x, padding = _padded(x, window.pads()), [0] * (x.ndim - 2)
    return apply(x, weight, bias, [*window.strides], [*padding], [*window.dilations], call.get("group", 1))


def _convolve_back(call: Call, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """The whole transposed convolution, of which the pads are cut off."""
    kernel = weight.shape[2:]
    window = _Window.of(call, x.shape[2:], kernel)
    more = call.get("output_padding", [0] * len(kernel))
    before, after = window.before, window.after
    auto, wanted = call.text("auto_pad", "NOTSET"), call.get("output_shape")
    if auto.startswith("SAME") and wanted is None:  # no more than there is
        sizes = zip(x.shape[2:], window.strides, kernel, window.dilations, more, strict=True)
        wanted = [min(size * s, (size - 1) * s + (k - 1) * d + 1 + add) for size, s, k, d, add in sizes]
    if wanted is not None:
        sides = zip(x.shape[2:], window.strides, kernel, window.dilations, more, wanted[-len(kernel) :], strict=True)
        totals = [(size - 1) * s + (k - 1) * d + 1 + add - out for size, s, k, d, add, out in sides]
        small, large = [total // 2 for total in totals], [total - total // 2 for total in totals]
        before, after = (small, large) if auto == "SAME_UPPER" else (large, small)
    apply = getattr(functional, f"conv_transpose{x.ndim - 2}d")
    whole = apply(x, weight, None, [*window.strides], 0, 0, call.get("group", 1), [*window.dilations])
    cuts = [side for a, b, add in reversed([*zip(before, after, more, strict=True)]) for side in (-a, add - b)]
    found = _padded(whole, cuts)
    return found if bias is None else found + channels(bias, found)


def _window_sums(x: Tensor, window: _Window) -> Tensor:
    """Sums [N, C, ...] over windows of what is padded already."""
    ones = torch.ones((1, 1, *window.kernel), dtype=x.dtype)
    apply = getattr(functional, f"conv{x.ndim - 2}d")
    flat = x.reshape(-1, 1, *x.shape[2:])
    found = apply(flat, ones, None, [*window.strides], 0, [*window.dilations])
    return found.reshape(*x.shape[:2], *found.shape[2:])


def _average(call: Call, x: Tensor) -> Tensor:
    window = _Window.of(call, x.shape[2:], call.get("kernel_shape"))
    extra = window.beyond(x.shape[2:], bool(call.get("ceil_mode", 0)))
    counted = torch.ones((1, 1, *x.shape[2:]), dtype=x.dtype)
    counted = _padded(counted, window.pads(), float(call.get("count_include_pad", 0)))
    counts = _window_sums(_padded(counted, [side for add in reversed(extra) for side in (0, add)]), window)
    return _window_sums(_padded(x, window.pads(extra)), window) / counts


def _power_mean(call: Call, x: Tensor) -> Tensor:
    window, p = _Window.of(call, x.shape[2:], call.get("kernel_shape")), call.get("p", 2)
    extra = window.beyond(x.shape[2:], bool(call.get("ceil_mode", 0)))
    return _window_sums(_padded(x.abs() ** p, window.pads(extra)), window) ** (1 / p)


def _largest(call: Call, x: Tensor) -> Tensor:
    if len(call.node.outputs) > 1:
        call.refuse("with the places of what is largest")
    window = _Window.of(call, x.shape[2:], call.get("kernel_shape"))
    extra = window.beyond(x.shape[2:], bool(call.get("ceil_mode", 0)))
    wide = x if x.is_floating_point() else x.to(torch.float64)
    padded = _padded(wide, window.pads(extra), -math.inf)
    apply = getattr(functional, f"max_pool{x.ndim - 2}d")
    return apply(padded, [*window.kernel], [*window.strides], 0, [*window.dilations]).to(x.dtype)


def _everywhere(x: Tensor) -> tuple[int, ...]:
    return tuple(range(2, x.ndim))


def _whole_power_mean(call: Call, x: Tensor) -> Tensor:
    p = call.get("p", 2)
    return (x.abs() ** p).sum(_everywhere(x), keepdim=True) ** (1 / p)


# ------------------------------------------------------------------------------------------------------------ resizing

_NEAREST: Mapping[str, Callable[[Array], Array]] = {
    "round_prefer_floor": lambda at: np.ceil(at - 0.5),
    "round_prefer_ceil": lambda at: np.floor(at + 0.5),
    "floor": np.floor,
    "ceil": np.ceil,
}


_COORDINATES: Mapping[str, Callable[[Array, int, int, float], Array]] = {
    "half_pixel": lambda at, _before, _after, scale: (at + 0.5) / scale - 0.5,
    "pytorch_half_pixel": lambda at, _before, _after, scale: (at + 0.5) / scale - 0.5,
    "asymmetric": lambda at, _before, _after, scale: at / scale,
    "align_corners": lambda at, before, after, _scale: at * (before - 1) / (after - 1),
    "half_pixel_symmetric": lambda at, before, after, scale: (before - after / scale) / 2 + (at + 0.5) / scale - 0.5,
}


def _positions(call: Call, before: int, after: int, scale: float) -> Array:
    """Where in an axis of ``before`` each of ``after`` positions lies."""
    at = np.arange(after, dtype=np.float64)
    mode = call.text("coordinate_transformation_mode", "half_pixel" if call.opset >= 11 else "asymmetric")
    if mode not in _COORDINATES:
        call.refuse(f"with coordinates by {mode}")
    if after == 1 and mode in {"pytorch_half_pixel", "align_corners"}:
        return np.zeros(1)
    return _COORDINATES[mode](at, before, after, scale)


def _taps(call: Call, at: Array) -> tuple[Array, Array]:
    """Which neighbours each position is made of, and their weights: both [positions, taps]."""
    mode = call.text("mode", "nearest")
    if mode == "nearest":
        how = call.text("nearest_mode", "round_prefer_floor" if call.opset >= 11 else "floor")
        return _NEAREST[how](at)[:, None], np.ones((len(at), 1))
    low = np.floor(at)
    part = at - low
    if mode != "cubic":
        return np.stack([low, low + 1], 1), np.stack([1 - part, part], 1)
    a = call.get("cubic_coeff_a", -0.75)
    far = np.abs(part[:, None] - np.array([-1, 0, 1, 2]))
    near = ((a + 2) * far - (a + 3)) * far**2 + 1
    away = a * (((far - 5) * far + 8) * far - 4)
    return low[:, None] + np.array([-1, 0, 1, 2]), np.where(far <= 1, near, away)


def _resize(call: Call, x: Tensor, *given: Tensor | None) -> Tensor:
    """Each axis by itself: a weighted sum of few neighbours."""
    _, scales, sizes = (None, *given, None, None)[:3] if call.opset < 11 else (*given, None, None, None)[:3]
    if call.get("antialias", 0) or call.text("keep_aspect_ratio_policy", "stretch") != "stretch":
        call.refuse("with antialiasing or a kept aspect ratio")
    axes = [axis % x.ndim for axis in call.get("axes", range(x.ndim))]
    factors = None if scales is None or not scales.numel() else scales.tolist()
    factors = call.get("scales") if factors is None else factors
    after = [math.floor(x.shape[axis] * factor) for axis, factor in zip(axes, factors or (), strict=False)]
    if sizes is not None and sizes.numel():
        after = sizes.tolist()
        factors = [size / x.shape[axis] for axis, size in zip(axes, after, strict=True)]
    for axis, size, scale in zip(axes, after, factors, strict=True):
        if scale == 1 and size == x.shape[axis]:
            continue
        places, weights = _taps(call, _positions(call, x.shape[axis], size, scale))
        inside = (places >= 0) & (places < x.shape[axis])
        if call.get("exclude_outside", 0):
            weights = weights * inside
            weights = weights / weights.sum(axis=1, keepdims=True)
        index = torch.from_numpy(places.clip(0, x.shape[axis] - 1).astype(np.int64))
        if call.text("mode", "nearest") == "nearest":
            x = x.index_select(axis, index[:, 0])
            continue
        shape = [-1 if one == axis else 1 for one in range(x.ndim)]
        by = torch.from_numpy(weights).to(x.dtype)
        x = sum(x.index_select(axis, index[:, tap]) * by[:, tap].reshape(shape) for tap in range(by.shape[1]))
    return x


TABLE: Mapping[str, Rule] = {
    "Conv": _convolve,
    "ConvTranspose": _convolve_back,
    "AveragePool": _average,
    "MaxPool": _largest,
    "LpPool": _power_mean,
    "GlobalAveragePool": lambda _call, x: x.mean(_everywhere(x), keepdim=True),
    "GlobalMaxPool": lambda _call, x: x.amax(_everywhere(x), keepdim=True),
    "GlobalLpPool": _whole_power_mean,
    "Resize": _resize,
    "Upsample": _resize,
}
