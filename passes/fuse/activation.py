"""Recognize activations that are written out.

    0.5 x (1 + erf(x / sqrt(2)))                                 ->   Gelu(x)                          opset 20
    0.5 x (1 + tanh(sqrt(2 / pi) (x + 0.044715 x^3)))            ->   Gelu(x, approximate = "tanh")    opset 20
    x clip(x + 3, 0, 6) / 6,  x hardsigmoid(x, 1 / 6, 0.5)       ->   HardSwish(x)                     opset 14
    x clip(x + 3, 0, 6) / 6                                      ->   x hardsigmoid(x, 1 / 6, 0.5)     before opset 14
    clip(x + 3, 0, 6) / 6                                        ->   hardsigmoid(x, 1 / 6, 0.5)

The factors may come in any order. Constants must be those numbers to seven digits. Nothing else may read what lies in between.
float32 only: the runtime has these operators in no other type on every device.
Measured on onnxruntime's CPU provider: Gelu by tanh takes half the time of its parts; the others take as long as their
parts, which it fuses itself. x sigmoid(x) stays as it is: onnxruntime fuses the two, and takes twice as long for a Swish.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import onnx_ir as ir

from graphopt.contracts import Change
from graphopt.graphs import site

from .graph import Work, attribute, number, only_use

_GELU_OPSET = 20
_HARD_SWISH_OPSET = 14
_DEEPEST = 3
_HARD_SIGMOID = (ir.AttrFloat32("alpha", 1 / 6), ir.AttrFloat32("beta", 0.5))


def use_gelu(work: Work, node: ir.Node) -> Change | None:
    """Make a Gelu of the product that it is."""
    found = gelu(work, node) if work.opset >= _GELU_OPSET else None
    if found is None:
        return None
    x, form = found
    name = site(node)
    work.add(node, "Gelu", [x], [ir.AttrString("approximate", "tanh")] if form == "Tanh" else [])
    return Change(name, f"made a Gelu of {form} and arithmetic", "one operator computes it")


def gelu(work: Work, node: ir.Node) -> tuple[ir.Value, str] | None:
    """The x of which a product is a Gelu that is written out, and the function that computes it: Erf or Tanh."""
    if node.op_type != "Mul" or not _is_replaceable(work, node):
        return None
    factor, factors = _product(work, node)
    if len(factors) != 2 or not _near(factor, 0.5) or not _same_rank(work, node, factors):
        return None
    for x, other in (factors, factors[::-1]):
        for form, inner in (("Erf", _erf), ("Tanh", _tanh)):
            if _one_plus(work, node, other, x, inner):
                return x, form
    return None


def use_hard_swish(work: Work, node: ir.Node) -> Change | None:
    """Make a HardSwish or a HardSigmoid of what it is; before there was a HardSwish, a HardSigmoid times x."""
    if not _is_replaceable(work, node):
        return None
    factor, factors = _product(work, node)
    name, gate = site(node), Change(site(node), "made a HardSigmoid of Add, Clip and Div", "one operator computes them")
    inner = _under_relu6(work, node, factors[0]) if len(factors) == 1 and _near(factor, 1 / 6) else None
    if inner is not None:
        work.add(node, "HardSigmoid", [inner], _HARD_SIGMOID)
        return gate
    for x, other in (factors, factors[::-1]) if len(factors) == 2 else ():
        written_out = _near(factor, 1 / 6) and _under_relu6(work, node, other) is x
        if work.opset < _HARD_SWISH_OPSET and written_out:
            work.add(node, "Mul", [x, work.insert(node, "HardSigmoid", [x], _HARD_SIGMOID, work.facts[node.outputs[0]])])
            return gate
        if work.opset >= _HARD_SWISH_OPSET and (written_out or (factor == 1 and _is_hard_sigmoid(work, node, other, x))):
            work.add(node, "HardSwish", [x])
            return Change(name, "made a HardSwish of its parts", "one operator computes it")
    return None


def _is_replaceable(work: Work, node: ir.Node) -> bool:
    return work.dtype(node.outputs[0]) == ir.DataType.FLOAT and work.can_replace(node.outputs[0])


def _same_rank(work: Work, node: ir.Node, factors: list[ir.Value]) -> bool:
    """Whether no constant raised the rank of what it met."""
    rank = work.rank(node.outputs[0])
    return rank is not None and all(work.rank(factor) == rank for factor in factors)


def _product(work: Work, node: ir.Node, depth: int = _DEEPEST) -> tuple[float, list[ir.Value]]:
    """A product (Mul, Div by a number) as one number and the other factors, through inner products that nothing else reads."""
    factor, factors = 1.0, []
    for index, value in enumerate(node.inputs):
        constant = _number(work, value)
        if constant is not None and constant != 0:
            factor = factor / constant if node.op_type == "Div" and index == 1 else factor * constant
            continue
        if value is None or (node.op_type == "Div" and index == 1):
            return 1.0, []
        inner = work.producer(value, node, "Mul", "Div") if depth and only_use(value) else None
        inner_factor, inner_factors = _product(work, inner, depth - 1) if inner is not None else (1.0, [])
        factor *= inner_factor
        factors += inner_factors or [value]
    return factor, factors


def _number(work: Work, value: ir.Value | None) -> float | None:
    """A constant that is one number and does not raise the rank of what it meets."""
    found = number(value)
    return None if found is None or work.rank(value) not in {0, 1} else found


def _near(a: float | None, b: float) -> bool:
    return a is not None and math.isclose(a, b, rel_tol=2e-7)


def _one_plus(
    work: Work, user: ir.Node, value: ir.Value, x: ir.Value, inner: Callable[[Work, ir.Node, ir.Value, ir.Value], bool]
) -> bool:
    """Whether a value is 1 + inner(x)."""
    plus = work.producer(value, user, "Add")
    if plus is None or not only_use(value) or len(plus.inputs) != 2:
        return False
    for one, other in ((plus.inputs[0], plus.inputs[1]), (plus.inputs[1], plus.inputs[0])):
        if _number(work, one) == 1 and other is not None and only_use(other):
            return inner(work, plus, other, x)
    return False


def _erf(work: Work, user: ir.Node, value: ir.Value, x: ir.Value) -> bool:
    erf = work.producer(value, user, "Erf")
    return erf is not None and _is_multiple(work, erf, erf.inputs[0], x, math.sqrt(0.5))


def _is_multiple(work: Work, user: ir.Node, value: ir.Value | None, x: ir.Value, factor: float) -> bool:
    product = work.producer(value, user, "Mul", "Div")
    if product is None or value is None or not only_use(value):
        return False
    found, factors = _product(work, product, 0)
    return factors == [x] and _near(found, factor)


def _tanh(work: Work, user: ir.Node, value: ir.Value, x: ir.Value) -> bool:
    tanh = work.producer(value, user, "Tanh")
    product = None if tanh is None else work.producer(tanh.inputs[0], tanh, "Mul")
    if product is None or not only_use(product.outputs[0]):
        return False
    factor, factors = _product(work, product, 0)
    plus = work.producer(factors[0], product, "Add") if len(factors) == 1 else None
    if plus is None or not _near(factor, math.sqrt(2 / math.pi)) or not only_use(plus.outputs[0]):
        return False
    for first, cubic in ((plus.inputs[0], plus.inputs[1]), (plus.inputs[1], plus.inputs[0])):
        term = work.producer(cubic, plus, "Mul")
        if first is x and term is not None and only_use(term.outputs[0]):
            return _is_cubic(work, term, x)
    return False


def _is_cubic(work: Work, term: ir.Node, x: ir.Value) -> bool:
    """Whether a Mul is 0.044715 x^3."""
    factor, factors = _product(work, term)
    if not _near(factor, 0.044715):
        return False
    if len(factors) == 1:
        power = work.producer(factors[0], term, "Pow")
        return power is not None and power.inputs[0] is x and number(power.inputs[1]) == 3 and only_use(factors[0])
    return factors == [x, x, x]


def _under_relu6(work: Work, user: ir.Node, value: ir.Value) -> ir.Value | None:
    """The x of which a value is clip(x + 3, 0, 6)."""
    clip = work.producer(value, user, "Clip")
    if clip is None or not only_use(value) or len(clip.inputs) != 3:
        return None
    if (number(clip.inputs[1]), number(clip.inputs[2])) != (0, 6):
        return None
    plus = work.producer(clip.inputs[0], clip, "Add")
    if plus is None or not only_use(plus.outputs[0]):
        return None
    pairs = ((plus.inputs[0], plus.inputs[1]), (plus.inputs[1], plus.inputs[0]))
    return next((x for x, three in pairs if _number(work, three) == 3), None)


def _is_hard_sigmoid(work: Work, user: ir.Node, value: ir.Value, x: ir.Value) -> bool:
    node = work.producer(value, user, "HardSigmoid")
    if node is None or not only_use(value) or node.inputs[0] is not x:
        return False
    alpha, beta = attribute(node, "alpha", 0.2), attribute(node, "beta", 0.5)
    return isinstance(alpha, float) and _near(alpha, 1 / 6) and beta == 0.5
