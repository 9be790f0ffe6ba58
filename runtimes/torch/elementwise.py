"""Operators that compute each element by itself, with broadcasting; and types."""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping

from .call import Call, Rule, axis_of
from .tensors import Tensor, dtype, functional, torch

_SAME_NAME = frozenset(
    {"Abs", "Acos", "Acosh", "Asin", "Asinh", "Atan", "Atanh", "Ceil", "Cos", "Cosh", "Det", "Erf", "Exp", "Floor", "IsNaN"}
    | {"Log", "Neg", "Reciprocal", "Relu", "Round", "Sigmoid", "Sign", "Sin", "Sinh", "Sqrt", "Tan", "Tanh"}
)
_UNARY = {**{name: name.lower() for name in _SAME_NAME}, "Not": "logical_not", "BitwiseNot": "bitwise_not"}
"""By operator the function of torch."""
_ACTIVATIONS = {"Softplus": "softplus", "Softsign": "softsign", "Mish": "mish", "HardSwish": "hardswish"}
"""By operator the function of torch.nn.functional."""
_BINARY = {
    "Add": "add",
    "Sub": "sub",
    "Mul": "mul",
    "And": "logical_and",
    "Or": "logical_or",
    "Xor": "logical_xor",
    "Equal": "eq",
    "Greater": "gt",
    "GreaterOrEqual": "ge",
    "Less": "lt",
    "LessOrEqual": "le",
    "BitwiseAnd": "bitwise_and",
    "BitwiseOr": "bitwise_or",
    "BitwiseXor": "bitwise_xor",
}
_VARIADIC = {"Sum": "add", "Max": "maximum", "Min": "minimum"}


def _unary(name: str) -> Rule:
    return lambda _call, x: getattr(torch, name)(x)


def _functional(name: str) -> Rule:
    return lambda _call, x: getattr(functional, name)(x)


def _binary(name: str) -> Rule:
    def rule(call: Call, a: Tensor, b: Tensor) -> Tensor:
        return getattr(torch, name)(a, _aligned(call, a, b))

    return rule


def _variadic(name: str) -> Rule:
    return lambda _call, *xs: functools.reduce(getattr(torch, name), xs)


def _aligned(call: Call, a: Tensor, b: Tensor) -> Tensor:
    """Before opset 7 the second operand says at which axis of the first one it begins."""
    if call.opset >= 7 or not call.get("broadcast", 0) or "axis" not in call.attributes:
        return b
    return b.reshape(*b.shape, *[1] * (a.ndim - axis_of(call, a, 0) - b.ndim))


def _divide(call: Call, a: Tensor, b: Tensor) -> Tensor:
    b = _aligned(call, a, b)
    return a / b if a.is_floating_point() else torch.div(a, b, rounding_mode="trunc")


def _clip(call: Call, x: Tensor, low: Tensor | None = None, high: Tensor | None = None) -> Tensor:
    low, high = (call.get("min") if low is None else low), (call.get("max") if high is None else high)
    if low is not None:
        x = torch.maximum(x, torch.as_tensor(low, dtype=x.dtype))
    return x if high is None else torch.minimum(x, torch.as_tensor(high, dtype=x.dtype))


def _elu(alpha: float, gamma: float = 1.0) -> Rule:
    def rule(call: Call, x: Tensor) -> Tensor:
        a, g = call.get("alpha", alpha), call.get("gamma", gamma)
        return g * (x.clamp(min=0) + a * torch.expm1(x.clamp(max=0)))

    return rule


def _celu(call: Call, x: Tensor) -> Tensor:
    alpha = call.get("alpha", 1.0)
    return x.clamp(min=0) + alpha * torch.expm1(x.clamp(max=0) / alpha)


def _hard_sigmoid(call: Call, x: Tensor) -> Tensor:
    return (call.get("alpha", 0.2) * x + call.get("beta", 0.5)).clamp(0, 1)


def _gelu(call: Call, x: Tensor) -> Tensor:
    return functional.gelu(x, approximate=call.text("approximate", "none"))


def _fast_gelu(_call: Call, x: Tensor, bias: Tensor | None = None) -> Tensor:
    return functional.gelu(x if bias is None else x + bias, approximate="tanh")


def _swish(default: float) -> Rule:
    return lambda call, x: x * torch.sigmoid(call.get("alpha", default) * x)


def _shrink(call: Call, x: Tensor) -> Tensor:
    bias, limit = call.get("bias", 0.0), call.get("lambd", 0.5)
    zero = torch.zeros((), dtype=x.dtype)
    return torch.where(x < -limit, x + bias, torch.where(x > limit, x - bias, zero)).to(x.dtype)


def _thresholded(call: Call, x: Tensor) -> Tensor:
    return torch.where(x > call.get("alpha", 1.0), x, torch.zeros_like(x))


def _infinite(call: Call, x: Tensor) -> Tensor:
    above, below = call.get("detect_positive", 1), call.get("detect_negative", 1)
    return torch.isinf(x) & ((x > 0) & bool(above) | (x < 0) & bool(below))


def _shifted(call: Call, x: Tensor, by: Tensor) -> Tensor:
    left = call.text("direction") == "LEFT"
    wide, by = x.to(torch.int64), by.to(torch.int64)
    return (wide << by if left else wide >> by).to(x.dtype)


def _along(name: str) -> Rule:
    """Of a function along one axis; before opset 13 along all axes from ``axis`` on together."""

    def rule(call: Call, x: Tensor) -> Tensor:
        function = _hardmax if name == "hardmax" else getattr(torch, name)
        if call.opset >= 13:
            return function(x, int(call.get("axis", -1)))
        axis = axis_of(call, x, 1)
        return function(x.reshape(math.prod(x.shape[:axis]), -1), 1).reshape(x.shape)

    return rule


def _hardmax(x: Tensor, axis: int) -> Tensor:
    return torch.zeros_like(x).scatter(axis, x.argmax(axis, keepdim=True), 1)


def _dropout(call: Call, x: Tensor, _ratio: Tensor | None = None, training: Tensor | None = None) -> tuple[Tensor, Tensor]:
    if training is not None and bool(training):
        call.refuse("in its training mode")
    return x, torch.ones_like(x, dtype=torch.bool)


TABLE: Mapping[str, Rule] = {
    **{name: _unary(found) for name, found in _UNARY.items()},
    **{name: _functional(found) for name, found in _ACTIVATIONS.items()},
    **{name: _binary(found) for name, found in _BINARY.items()},
    **{name: _variadic(found) for name, found in _VARIADIC.items()},
    "Mean": lambda _call, *xs: functools.reduce(torch.add, xs) / len(xs),
    "Div": _divide,
    "Mod": lambda call, a, b: (torch.fmod if call.get("fmod", 0) else torch.remainder)(a, b),
    "Pow": lambda call, a, b: torch.pow(a, _aligned(call, a, b)).to(a.dtype),
    "PRelu": lambda _call, x, slope: torch.where(x < 0, slope * x, x),
    "BitShift": _shifted,
    "IsInf": _infinite,
    "Where": lambda _call, which, a, b: torch.where(which, a, b),
    "Clip": _clip,
    "LeakyRelu": lambda call, x: torch.where(x < 0, call.get("alpha", 0.01) * x, x),
    "Elu": _elu(1.0),
    "Selu": _elu(1.67326319217681884765625, 1.05070102214813232421875),
    "Celu": _celu,
    "HardSigmoid": _hard_sigmoid,
    "ThresholdedRelu": _thresholded,
    "Shrink": _shrink,
    "Gelu": _gelu,
    "Swish": _swish(1.0),
    "Softmax": _along("softmax"),
    "LogSoftmax": _along("log_softmax"),
    "Hardmax": _along("hardmax"),
    "Cast": lambda call, x: x.to(dtype(call.get("to"))),
    "CastLike": lambda _call, x, like: x.to(like.dtype),
    "Identity": lambda _call, x: x,
    "Dropout": _dropout,
    "com.microsoft.Gelu": _gelu,
    "com.microsoft.FastGelu": _fast_gelu,
    "com.microsoft.BiasGelu": lambda _call, x, bias: functional.gelu(x + bias),
    "com.microsoft.QuickGelu": _swish(1.702),
}
