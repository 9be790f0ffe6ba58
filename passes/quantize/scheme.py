"""How reals become integers: one scale and one zero point for a tensor, or for each index of an axis.

    q = clip(round(x / scale) + zero_point, low, high)       quantize, round half to even
    x' = scale (q - zero_point)                              dequantize
    x''(x) = dequantize(quantize(x))                         fake_quantize

Zero is always exact, as padding and Relu need it: ranges are widened to contain it. Symmetric means that the zero point is the
middle of the type (0, or 128 and 32768 for unsigned ones), and that the range is as long below zero as above; weights then
leave the lowest integer out. Notation as in Nagel et al., A White Paper on Neural Network Quantization, 2021, section 2.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from graphopt.contracts import Array
from graphopt.targets import Quantization

SMALLEST_SCALE = 1e-18
"""Products of two scales must stay normal float32 numbers."""


@dataclass(frozen=True)
class Parameters:
    """How a tensor is quantized. ``scale`` (float32) and ``zero_point`` (of ``dtype``) have shape [], or [C] along ``axis``."""

    scale: Array
    zero_point: Array
    dtype: ir.DataType
    axis: int | None
    low: int
    """The smallest integer used."""
    high: int
    """The largest integer used."""

    @property
    def minimum(self) -> Array:
        """The smallest real that is represented, float64."""
        return self.scale.astype(np.float64) * (self.low - self.zero_point.astype(np.float64))

    @property
    def maximum(self) -> Array:
        """The largest real that is represented, float64."""
        return self.scale.astype(np.float64) * (self.high - self.zero_point.astype(np.float64))


def from_range(
    low: float | Array,
    high: float | Array,
    dtype: ir.DataType,
    *,
    symmetric: bool,
    axis: int | None = None,
    bits: int | None = None,
) -> Parameters:
    """Parameters that represent [low, high], widened to contain zero.

    Args:
        low: Smallest real, or [C] of them with an ``axis``.
        high: Largest real, of the same shape.
        dtype: INT8, UINT8, INT16 or UINT16.
        symmetric: Whether the zero point is the middle of the type.
        axis: The axis along which each index has parameters of its own.
        bits: Bits that are used, all of the type by default; fewer only with symmetric signed types.
    """
    first, last = limits(dtype, symmetric=symmetric, bits=bits)
    below = np.minimum(np.asarray(low, np.float64), 0.0)
    above = np.maximum(np.asarray(high, np.float64), 0.0)
    middle = (first + last) // 2 if symmetric else first
    scale = np.maximum(-below, above) / (last - middle) if symmetric else (above - below) / (last - first)
    scale = np.where(scale > 0, np.maximum(scale, SMALLEST_SCALE), 1.0).astype(np.float32)
    zero = np.full(scale.shape, middle, np.float64) if symmetric else np.clip(np.round(first - below / scale), first, last)
    return Parameters(scale, zero.astype(dtype.numpy()), dtype, axis, first, last)


def kind(low: float, style: Quantization) -> tuple[ir.DataType, bool]:
    """The type of activations that are never below ``low``, and whether their zero point is the middle of it."""
    if style.unsigned and low >= 0:
        return ir.DataType.UINT8, False
    return ir.DataType[style.activations.upper()], style.symmetric


def of_activation(low: float, high: float, style: Quantization) -> Parameters:
    """Parameters of activations in [low, high]."""
    dtype, symmetric = kind(low, style)
    return from_range(low, high, dtype, symmetric=symmetric)


def limits(dtype: ir.DataType, *, symmetric: bool, bits: int | None = None) -> tuple[int, int]:
    """The smallest and the largest integer that are used: as many below the zero point as above it if symmetric."""
    info = np.iinfo(dtype.numpy())
    if not symmetric:
        return int(info.min), int(info.max)
    middle = (int(info.min) + int(info.max) + 1) // 2
    reach = (1 << ((bits or dtype.bitwidth) - 1)) - 1
    return middle - reach, middle + reach


def quantize(values: Array, parameters: Parameters) -> Array:
    """Integers of ``parameters.dtype`` for the reals."""
    zero = along(parameters.zero_point, parameters.axis, values.ndim).astype(np.float32)
    rounded = np.round(values / along(parameters.scale, parameters.axis, values.ndim)) + zero
    return np.asarray(np.clip(rounded, parameters.low, parameters.high).astype(parameters.dtype.numpy()))


def dequantize(integers: Array, parameters: Parameters) -> Array:
    """float32 reals that the integers stand for."""
    zero = along(parameters.zero_point, parameters.axis, integers.ndim).astype(np.int32)
    scale = along(parameters.scale, parameters.axis, integers.ndim)
    return np.asarray((integers.astype(np.int32) - zero).astype(np.float32) * scale)


def fake_quantize(values: Array, parameters: Parameters) -> Array:
    """float32: the reals as they are after quantization."""
    return dequantize(quantize(values, parameters), parameters)


def along(values: Array, axis: int | None, rank: int) -> Array:
    """``values`` shaped to broadcast along ``axis`` of a tensor of that rank."""
    if axis is None:
        return values
    shape = [1] * rank
    shape[axis] = -1
    return values.reshape(shape)
