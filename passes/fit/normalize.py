"""Normalizations in means, products and sums.

    d = x - mean(x),   y = d / sqrt(mean(d^2) + epsilon) gamma + beta

LayerNormalization takes means over the last axes, InstanceNormalization over height and width of each channel,
GroupNormalization over the channels of a group too; RMSNormalization has d = x and no beta (Zhang and Sennrich 2019).
BatchNormalization has constant means, so that it is one product and one sum per channel:

    y = x s + (beta - mean s),   s = gamma / sqrt(variance + epsilon)
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from .place import Place, Refused


def _standardized(place: Place, x: ir.Value, axes: Sequence[int], epsilon: float, *, centred: bool = True) -> ir.Value:
    d = place.add("Sub", x, place.mean(x, axes)) if centred else x
    variance = place.mean(place.add("Mul", d, d), axes)
    return place.add("Div", d, place.add("Sqrt", place.add("Add", variance, epsilon)))


def layer_normalization(place: Place) -> None:
    """LayerNormalization, whose scale and bias have the shape of the last axes."""
    place.float32()
    y = _standardized(place, place.x, _last_axes(place), _epsilon(place))
    y = place.add("Mul", y, place.given(1))
    bias = place.given(2)
    place.put(place.only_output(), y if bias is None else place.add("Add", y, bias))


def rms_normalization(place: Place) -> None:
    """RMSNormalization."""
    place.float32()
    y = _standardized(place, place.x, _last_axes(place), _epsilon(place), centred=False)
    place.put(place.only_output(), place.add("Mul", y, place.given(1)))


def instance_normalization(place: Place) -> None:
    """InstanceNormalization; scale and bias [channels] are constants."""
    place.float32()
    rank = place.rank()
    y = _standardized(place, place.x, range(2, rank), _epsilon(place))
    _scale_channels(place, y, rank)


def group_normalization(place: Place) -> None:
    """GroupNormalization of version 21, whose scale and bias are [channels]; its channels are put in groups by Reshape."""
    place.float32()
    if place.opset < 21:
        raise Refused("GroupNormalization before version 21 has scales per group")
    sizes = place.sizes()
    groups = place.node.attributes.get_int("num_groups", 1)
    grouped = place.reshape(place.x, [sizes[0], groups, -1])
    y = place.reshape(_standardized(place, grouped, [2], _epsilon(place)), sizes)
    _scale_channels(place, y, len(sizes))


def batch_normalization(place: Place) -> None:
    """BatchNormalization with constant statistics."""
    gamma, beta, mean, variance = (place.array(index) for index in range(1, 5))
    assert gamma is not None
    assert beta is not None
    assert mean is not None
    assert variance is not None
    if place.node.attributes.get_int("training_mode", 0):
        raise Refused("it is in training mode")
    scale = gamma.astype(np.float64) / np.sqrt(variance.astype(np.float64) + _epsilon(place))
    shift = beta - mean * scale
    rank = place.rank()
    y = place.add("Mul", place.x, _channels(scale.astype(place.dtype()), rank))
    place.put(place.only_output(), place.add("Add", y, _channels(shift.astype(place.dtype()), rank)))


def _scale_channels(place: Place, y: ir.Value, rank: int) -> None:
    scale, bias = place.array(1), place.array(2)
    assert scale is not None
    assert bias is not None
    scaled = place.add("Mul", y, _channels(scale, rank))
    place.put(place.only_output(), place.add("Add", scaled, _channels(bias, rank)))


def _channels(array: np.ndarray, rank: int) -> np.ndarray:
    """A vector along axis 1 of a tensor."""
    return array.reshape(-1, *[1] * (rank - 2))


def _last_axes(place: Place) -> list[int]:
    rank = place.rank()
    axis = place.node.attributes.get_int("axis", -1)
    return [*range(axis - rank if axis >= 0 else axis, 0)]


def _epsilon(place: Place) -> float:
    return place.node.attributes.get_float("epsilon", 1e-5)
