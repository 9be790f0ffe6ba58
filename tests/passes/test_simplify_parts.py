"""Slices that take an axis apart are one Split."""

from __future__ import annotations

import numpy as np
import onnx
import pytest

from helpers import from_text
from simplifying import operators, simplified

WEIGHTS = (
    "int64[1] zero = {0}, int64[1] one = {1}, int64[1] two = {2}, int64[1] five = {5}, int64[1] end = {9223372036854775807}"
)
FEEDS = [{"x": np.random.default_rng(0).standard_normal((batch, 5, 2)).astype(np.float32)} for batch in (1, 3)]


def result_of(body: str, outputs: str = "float[A, B, C] y", **kwargs: object) -> onnx.ModelProto:
    return simplified(from_text(f"g (float[N, 5, 2] x) => ({outputs}) <{WEIGHTS}> {{ {body} }}"), *FEEDS, **kwargs)


def test_slices_that_together_give_all_of_an_axis_are_a_split():
    body = """b = Slice(x, two, end, one)  a = Slice(x, zero, two, one)
        p = ReduceMax(a, one)  q = ReduceMax(b, one)  y = Mul(p, q)"""
    assert operators(result_of(body)) == ["Split", "ReduceMax", "ReduceMax", "Mul"]
    body = """x1 = Relu(x)  c = Slice(x1, two, five, one)  a = Slice(x1, zero, one, one)  b = Slice(x1, one, two, one)
        p = ReduceMax(c, one)  y = Sum(a, b, p)  z = Neg(x1)"""
    both = "float[A, B, C] y, float[N, 5, 2] z"
    assert operators(result_of(body, both)) == ["Relu", "Split", "ReduceMax", "Sum", "Neg"]


@pytest.mark.parametrize(
    "second",
    ["Slice(x, one, end, one)", "Slice(x, two, minus, one)", "Slice(x, two, end, one, two)"],
)
def test_slices_that_leave_out_or_repeat_something_stay(second: str):
    body = f"a = Slice(x, zero, two, one)  minus = Constant<value = int64[1] {{-1}}>()  b = {second}"
    result = result_of(f"{body}  p = ReduceMax(a, one)  q = ReduceMax(b, one)  y = Mul(p, q)")
    assert operators(result)[:2] == ["Slice", "Slice"]


def test_slices_of_an_axis_of_unknown_size_stay():
    body = "a = Slice(x, zero, one, zero)  b = Slice(x, one, end, zero)  p = Neg(b)  y = Concat<axis = 0>(p, a)"
    assert operators(result_of(body)).count("Slice") == 2


def test_outputs_of_the_graph_keep_their_names():
    result = result_of(
        "a = Relu(x)  y = Slice(a, zero, two, one)  z = Slice(a, two, end, one)", "float[A, B, C] y, float[A, D, C] z"
    )
    assert operators(result) == ["Relu", "Split"]
    assert [output.name for output in result.graph.output] == ["y", "z"]


def test_an_excluded_slice_stays_and_so_does_the_other():
    body = "[mine] a = Slice(x, zero, two, one)  b = Slice(x, two, end, one)  y = Concat<axis = 1>(b, a)"
    assert operators(result_of(body)) == ["Split", "Concat"]
    assert operators(result_of(body, exclude=["mine"])) == ["Slice", "Slice", "Concat"]


def test_slices_in_a_branch_of_what_is_around_it_are_a_split_there():
    model = from_text(f"""g (float[N, 5, 2] x, bool flag) => (float[A, B, C] y) <{WEIGHTS}> {{
        y = If(flag) <
            then_branch = p () => (float[D, E, F] q) {{
                a = Slice(x, zero, two, one)  b = Slice(x, two, end, one)  q = Concat<axis = 1>(b, a)
            }},
            else_branch = r () => (float[D, E, F] s) {{ s = Slice(x, zero, two, one) }}
        >
    }}""")
    result = simplified(model, *({**feed, "flag": np.array(flag)} for feed in FEEDS for flag in (True, False)))
    branches = {a.name: [node.op_type for node in a.g.node] for a in result.graph.node[0].attribute}
    assert branches == {"then_branch": ["Split", "Concat"], "else_branch": ["Slice"]}


@pytest.mark.parametrize("opset", [9, 11, 13, 18])
def test_every_version_of_split(opset: int):
    slices = (
        "a = Slice<starts = [0], ends = [2], axes = [1]>(x)  b = Slice<starts = [2], ends = [9], axes = [1]>(x)"
        if opset < 10
        else "a = Slice(x, zero, two, one)  b = Slice(x, two, end, one)"
    )
    text = f"g (float[N, 5, 2] x) => (float[A, B, C] y) <{WEIGHTS}> {{ {slices}  y = Concat<axis = 1>(b, a) }}"
    model = from_text(f'<ir_version: 8, opset_import: ["" : {opset}]> {text}')
    assert operators(simplified(model, *FEEDS)) == ["Split", "Concat"]
