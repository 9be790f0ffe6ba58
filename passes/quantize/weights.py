"""Weights and biases as integers.

    W = s_w q_w          symmetric, one scale for each output channel (or for all)
    b = s_x s_w q_b      int32: the bias is added to the sums of products as it is

so that x W + b = s_x s_w (sum (q_x - z_x) q_w + q_b). The scale of a channel is max |w| / (2^(bits - 1) - 1), or the one that
makes sum (w - s q)^2 smallest. It is raised where the bias would not fit: q_b is kept under 2^30, which leaves the sums as
much room. A channel without weights gets the scale that makes its bias exact to 2^-20.
"""

from __future__ import annotations

from typing import Literal, TypeAlias

import numpy as np
import onnx_ir as ir

from graphopt.contracts import Array

from .scheme import SMALLEST_SCALE, Parameters, along, from_range, quantize

Method: TypeAlias = Literal["minmax", "mse"]
_BIAS_LIMIT = 1 << 30
_BIAS_STEPS = 1 << 20
_RATIOS = np.linspace(1.0, 0.7, 16)
"""What part of max |w| the search for the smallest error looks at."""


def parameters(weight: Array, axis: int | None, bits: int, method: Method = "minmax") -> Parameters:
    """Parameters of a weight; int8, symmetric, ``bits`` used. ``axis`` is that of the output's channels."""
    rows = _rows(weight, axis)
    peak = np.abs(rows).max(axis=1, initial=0.0)
    if method == "mse":
        peak = peak * _best_ratio(rows, peak, bits)
    made = from_range(-peak, peak, ir.DataType.INT8, symmetric=True, axis=0, bits=bits)
    return _shaped(made.scale, axis, bits)


def fit_bias(found: Parameters, weight: Array, bias: Array | None, input_scale: float) -> Parameters:
    """The same, with scales raised where the bias would not fit in int32, and chosen by it where there are no weights.

    ``bias`` [channels] is as long as the weight's axis of channels.
    """
    if bias is None:
        return found
    size = np.abs(bias.astype(np.float64))
    if found.axis is None:
        size = size.max(initial=0.0)
    empty = np.abs(_rows(weight, found.axis)).max(axis=1, initial=0.0).reshape(found.scale.shape) == 0
    needed = size / (input_scale * _BIAS_LIMIT)
    exact = size / (input_scale * _BIAS_STEPS)
    scale = np.where(empty & (size > 0), exact, np.maximum(found.scale, needed))
    return _shaped(np.maximum(scale, SMALLEST_SCALE), found.axis, 8 if found.high > 63 else 7)


def bias_parameters(found: Parameters, input_scale: float) -> Parameters:
    """Parameters of the bias that belongs to a weight: int32, zero point 0, along its only axis."""
    scale = (found.scale.astype(np.float64) * input_scale).astype(np.float32)
    limit = (1 << 31) - 1
    axis = None if found.axis is None else 0
    return Parameters(scale, np.zeros(scale.shape, np.int32), ir.DataType.INT32, axis, -limit, limit)


def quantize_bias(bias: Array, found: Parameters) -> Array:
    """int32 [channels]; computed in float64, which holds all of them."""
    scaled = np.round(bias.astype(np.float64) / along(found.scale, found.axis, bias.ndim))
    return np.asarray(np.clip(scaled, found.low, found.high).astype(np.int32))


def _shaped(scale: Array, axis: int | None, bits: int) -> Parameters:
    scale = np.asarray(scale, np.float32).reshape(() if axis is None else (-1,))
    reach = (1 << (bits - 1)) - 1
    return Parameters(scale, np.zeros(scale.shape, np.int8), ir.DataType.INT8, axis, -reach, reach)


def _rows(weight: Array, axis: int | None) -> Array:
    """[channels, rest], or [1, all]."""
    return weight.reshape(1, -1) if axis is None else np.moveaxis(weight, axis, 0).reshape(weight.shape[axis], -1)


def _best_ratio(rows: Array, peak: Array, bits: int) -> Array:
    """[channels]: the part of the peak that gives the smallest squared error."""
    best = np.ones(len(rows))
    smallest = np.full(len(rows), np.inf)
    for ratio in _RATIOS:
        made = from_range(-peak * ratio, peak * ratio, ir.DataType.INT8, symmetric=True, axis=0, bits=bits)
        wrong = rows - quantize(rows, made) * made.scale[:, None]
        error = np.einsum("ij,ij->i", wrong, wrong)
        better = error < smallest
        best[better], smallest[better] = ratio, error[better]
    return best
