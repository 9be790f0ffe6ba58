"""Elementwise operators in simpler ones.

    HardSwish(x)          = x HardSigmoid(x)  =  x clip(x / 6 + 1/2, 0, 1)
    HardSigmoid(x)        = clip(alpha x + beta, 0, 1)
    Gelu(x)               = x/2 (1 + erf(x / sqrt 2))                                          approximate = none
                          = x/2 (1 + tanh(sqrt(2 / pi) (x + 0.044715 x^3)))                    approximate = tanh
    erf(x)                = s (1 - (a1 t + a2 t^2 + a3 t^3 + a4 t^4 + a5 t^5) exp(-x^2)),  t = 1 / (1 + p |x|),  s = sign x
    Softplus(x)           = max(x, 0) + log(1 + exp(-|x|))
    -x = -1 x,    |x| = max(x, -1 x),    Reciprocal(x) = 1 / x,    Sum(a, b, c) = (a + b) + c

The form of erf is 7.1.26 of Abramowitz and Stegun (1964): |error| <= 1.5e-7, about one unit in the last place of float32
at 1. The sign is clip(1e20 x, -1, 1), which is 0 at 0; where it is not 1 or -1, erf is below 1e-19. All others are the
definitions.
"""

from __future__ import annotations

import math

import numpy as np
import onnx_ir as ir

from .place import Place, Refused

_P = 0.3275911
_A = (0.254829592, -0.284496736, 1.421413741, -1.453152027, 1.061405429)
_STEEP = 1e20


def expand_erf(place: Place) -> None:
    """Erf by its rational approximation; see the module."""
    place.float32()
    place.put(place.only_output(), _erf(place, place.x))


def _erf(place: Place, x: ir.Value) -> ir.Value:
    size = place.add("Abs", x)
    one = place.constant(np.ones((), np.float32))
    t = place.add("Div", one, place.add("Add", place.add("Mul", size, _P), one))
    series = place.add("Mul", t, _A[-1])
    for a in reversed(_A[:-1]):
        series = place.add("Mul", place.add("Add", series, a), t)
    decay = place.add("Exp", place.add("Mul", place.add("Mul", x, x), -1.0))
    sign = place.clip(place.add("Mul", x, _STEEP), -1.0, 1.0)
    return place.add("Mul", sign, place.add("Sub", one, place.add("Mul", series, decay)))


def gelu_by_erf(place: Place) -> None:
    """Gelu by the operator Erf, or by Tanh where it asks for that."""
    _gelu(place, lambda x: place.add("Erf", x))


def gelu_by_exp(place: Place) -> None:
    """Gelu by the approximation of erf."""
    place.float32()
    _gelu(place, lambda x: _erf(place, x))


def _gelu(place: Place, erf: object) -> None:
    approximate = place.node.attributes.get_string("approximate", "none")
    x = place.x
    if approximate == "tanh":
        cube = place.add("Mul", place.add("Mul", x, x), x)
        inner = place.add("Mul", place.add("Add", x, place.add("Mul", cube, 0.044715)), math.sqrt(2 / math.pi))
        part = place.add("Tanh", inner)
    else:
        assert callable(erf)
        part = erf(place.add("Mul", x, math.sqrt(0.5)))
    place.put(place.only_output(), place.add("Mul", place.add("Mul", x, 0.5), place.add("Add", part, 1.0)))


def hard_swish_by_sigmoid(place: Place) -> None:
    """HardSwish by HardSigmoid."""
    gate = place.add("HardSigmoid", place.x, alpha=1 / 6, beta=0.5)
    place.put(place.only_output(), place.add("Mul", place.x, gate))


def hard_swish_by_clip(place: Place) -> None:
    """HardSwish by Clip."""
    place.put(place.only_output(), place.add("Mul", place.x, _line(place, 1 / 6, 0.5)))


def hard_sigmoid_by_clip(place: Place) -> None:
    """HardSigmoid by Clip."""
    attributes = place.node.attributes
    place.put(place.only_output(), _line(place, attributes.get_float("alpha", 0.2), attributes.get_float("beta", 0.5)))


def _line(place: Place, slope: float, start: float) -> ir.Value:
    return place.clip(place.add("Add", place.add("Mul", place.x, slope), start), 0.0, 1.0)


def softplus(place: Place) -> None:
    """Softplus without overflow."""
    x = place.x
    place.float32()
    decay = place.add("Exp", place.add("Mul", place.add("Abs", x), -1.0))
    place.put(place.only_output(), place.add("Add", place.add("Relu", x), place.add("Log", place.add("Add", decay, 1.0))))


def negate(place: Place) -> None:
    """Neg by Mul."""
    place.put(place.only_output(), place.add("Mul", place.x, -1.0))


def absolute(place: Place) -> None:
    """Abs by Max."""
    place.put(place.only_output(), place.add("Max", place.x, place.add("Mul", place.x, -1.0)))


def total(place: Place) -> None:
    """Sum by Add, from the first to the last."""
    result, *others = [value for value in place.node.inputs if value is not None]
    for value in others:
        result = place.add("Add", result, value)
    if result is place.x:
        raise Refused("it is the sum of one")
    place.put(place.only_output(), result)


def reciprocal(place: Place) -> None:
    """Reciprocal by Div."""
    one = place.constant(np.ones((), place.dtype()))
    place.put(place.only_output(), place.add("Div", one, place.x))
