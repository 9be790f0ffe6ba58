"""Operators that sum, count or choose along axes, and normalizations: (x - mean) / sqrt(variance + epsilon)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from .call import Call, Rule, axis_of
from .tensors import Tensor, functional, torch


def _reduced(function: Callable[[Tensor, tuple[int, ...], bool], Tensor]) -> Rule:
    def rule(call: Call, x: Tensor, axes: Tensor | None = None) -> Tensor:
        along = call.numbers("axes", axes) or []
        if not along and call.get("noop_with_empty_axes", 0):
            return function(x, (), True) if x.ndim == 0 else function(x.unsqueeze(-1), (-1,), False)
        return function(x, tuple(along or range(x.ndim)), bool(call.get("keepdims", 1)))

    return rule


def _product(x: Tensor, axes: tuple[int, ...], keep: bool) -> Tensor:
    for axis in sorted((axis % x.ndim for axis in axes), reverse=True):
        x = torch.prod(x, axis, keepdim=keep)
    return x


def _mean(x: Tensor, axes: tuple[int, ...], keep: bool) -> Tensor:
    return x.mean(axes, keep) if x.is_floating_point() else x.double().mean(axes, keep).to(x.dtype)


def _named(name: str) -> Callable[[Tensor, tuple[int, ...], bool], Tensor]:
    def function(x: Tensor, axes: tuple[int, ...], keep: bool) -> Tensor:
        return getattr(torch, name)(x, axes, keep)

    return function


def _best(name: str) -> Rule:
    def rule(call: Call, x: Tensor) -> Tensor:
        axis, keep = axis_of(call, x, 0), bool(call.get("keepdims", 1))
        if not call.get("select_last_index", 0):
            return getattr(torch, name)(x, axis, keepdim=keep)
        return x.shape[axis] - 1 - getattr(torch, name)(x.flip(axis), axis, keepdim=keep)

    return rule


def _top(call: Call, x: Tensor, k: Tensor | None = None) -> Sequence[Tensor]:
    [count] = call.numbers("k", k) or [1]
    order = x.sort(dim=axis_of(call, x, -1), descending=bool(call.get("largest", 1)), stable=True)
    return tuple(part.narrow(axis_of(call, x, -1), 0, count) for part in order)


def _running_sum(call: Call, x: Tensor, axis: Tensor) -> Tensor:
    along, back = int(axis), bool(call.get("reverse", 0))
    x = x.flip(along) if back else x
    found = x.cumsum(along, dtype=x.dtype)
    found = found - x if call.get("exclusive", 0) else found
    return found.flip(along) if back else found


def normalized(x: Tensor, axes: Sequence[int], epsilon: float) -> tuple[Tensor, Tensor, Tensor]:
    """``x`` with mean 0 and variance 1 along axes; the mean, and 1 / sqrt(variance + epsilon)."""
    mean = x.mean([*axes], keepdim=True)
    inverse = torch.rsqrt((x - mean).square().mean([*axes], keepdim=True) + epsilon)
    return (x - mean) * inverse, mean, inverse


def channels(vector: Tensor, x: Tensor) -> Tensor:
    """A vector along axis 1 of ``x``."""
    return vector.reshape(-1, *[1] * (x.ndim - 2))


def _batch_norm(
    call: Call, x: Tensor, scale: Tensor, bias: Tensor, mean: Tensor, variance: Tensor, *_: Tensor | None
) -> Tensor:
    if call.get("training_mode", 0) or (call.opset < 7 and not call.get("is_test", 0)):
        call.refuse("in its training mode")
    factor = scale * torch.rsqrt(variance + call.get("epsilon", 1e-5))
    return x * channels(factor, x) + channels(bias - mean * factor, x)


def _instance_norm(call: Call, x: Tensor, scale: Tensor, bias: Tensor) -> Tensor:
    found, _, _ = normalized(x, range(2, x.ndim), call.get("epsilon", 1e-5))
    return found * channels(scale, x) + channels(bias, x)


def _group_norm(call: Call, x: Tensor, scale: Tensor, bias: Tensor) -> Tensor:
    groups = call.get("num_groups")
    found, _, _ = normalized(x.reshape(len(x), groups, -1), [2], call.get("epsilon", 1e-5))
    each = x.shape[1] // len(scale)  # opset 18 has one number for each group
    scale, bias = scale.repeat_interleave(each), bias.repeat_interleave(each)
    return found.reshape(x.shape) * channels(scale, x) + channels(bias, x)


def _layer_norm(call: Call, x: Tensor, scale: Tensor, bias: Tensor | None = None) -> Sequence[Tensor]:
    found, mean, inverse = normalized(x, range(axis_of(call, x, -1), x.ndim), call.get("epsilon", 1e-5))
    return (found * scale if bias is None else found * scale + bias), mean, inverse


def _rms_norm(call: Call, x: Tensor, scale: Tensor) -> Tensor:
    axes = [*range(axis_of(call, x, -1), x.ndim)]
    return x * torch.rsqrt(x.square().mean(axes, keepdim=True) + call.get("epsilon", 1e-5)) * scale


def _skip_norm(call: Call, x: Tensor, skip: Tensor, gamma: Tensor, *rest: Tensor | None) -> Sequence[Tensor | None]:
    beta, bias = (*rest, None, None)[:2]
    total = x + skip if bias is None else x + skip + bias
    found, mean, inverse = normalized(total, [-1], call.get("epsilon", 1e-12))
    return (found * gamma if beta is None else found * gamma + beta), mean, inverse, total


def _skip_rms_norm(call: Call, x: Tensor, skip: Tensor, gamma: Tensor, bias: Tensor | None = None) -> Sequence[Tensor | None]:
    total = x + skip if bias is None else x + skip + bias
    return _rms_norm(call, total, gamma), None, None, total


def _response_norm(call: Call, x: Tensor) -> Tensor:
    size = call.get("size")
    before, after = (size - 1) // 2, size // 2
    padded = functional.pad(x.square(), [*[0, 0] * (x.ndim - 2), before, after])
    total = padded.unfold(1, size, 1).sum(-1)
    return x / (call.get("bias", 1.0) + call.get("alpha", 1e-4) / size * total) ** call.get("beta", 0.75)


def _by_norm(call: Call, x: Tensor) -> Tensor:
    norm = x.norm(p=call.get("p", 2), dim=axis_of(call, x, -1), keepdim=True)
    return x / torch.where(norm == 0, torch.ones_like(norm), norm)


def _mean_variance(call: Call, x: Tensor) -> Tensor:
    axes = call.get("axes", [0, 2, 3])
    centred = x - x.mean([*axes], keepdim=True)
    return centred / (centred.square().mean([*axes], keepdim=True).sqrt() + 1e-9)


TABLE: Mapping[str, Rule] = {
    "ReduceSum": _reduced(lambda x, axes, keep: x.sum(axes, keep, dtype=x.dtype)),
    "ReduceMean": _reduced(_mean),
    "ReduceMax": _reduced(_named("amax")),
    "ReduceMin": _reduced(_named("amin")),
    "ReduceProd": _reduced(_product),
    "ReduceL1": _reduced(lambda x, axes, keep: x.abs().sum(axes, keep, dtype=x.dtype)),
    "ReduceL2": _reduced(lambda x, axes, keep: x.square().sum(axes, keep).sqrt()),
    "ReduceSumSquare": _reduced(lambda x, axes, keep: x.square().sum(axes, keep, dtype=x.dtype)),
    "ReduceLogSum": _reduced(lambda x, axes, keep: x.sum(axes, keep).log()),
    "ReduceLogSumExp": _reduced(_named("logsumexp")),
    "ArgMax": _best("argmax"),
    "ArgMin": _best("argmin"),
    "TopK": _top,
    "CumSum": _running_sum,
    "BatchNormalization": _batch_norm,
    "InstanceNormalization": _instance_norm,
    "GroupNormalization": _group_norm,
    "LayerNormalization": _layer_norm,
    "RMSNormalization": _rms_norm,
    "LRN": _response_norm,
    "LpNormalization": _by_norm,
    "MeanVarianceNormalization": _mean_variance,
    "com.microsoft.LayerNormalization": _layer_norm,
    "com.microsoft.SimplifiedLayerNormalization": _rms_norm,
    "SimplifiedLayerNormalization": _rms_norm,
    "com.microsoft.SkipLayerNormalization": _skip_norm,
    "com.microsoft.SkipSimplifiedLayerNormalization": _skip_rms_norm,
}
