"""Operators that undo, repeat or continue each other, and where they must not be touched."""

from __future__ import annotations

import numpy as np
import pytest

from helpers import from_text, run
from simplifying import operators, simplified

RNG = np.random.default_rng(0)


def feeds(*tail: int, batches: tuple[int, ...] = (1, 3)) -> list[dict[str, np.ndarray]]:
    return [{"x": RNG.standard_normal((batch, *tail)).astype(np.float32)} for batch in batches]


def result_of(body: str, tail: tuple[int, ...], weights: str = "", outputs: str = "float[A, B] y") -> list[str]:
    dims = ", ".join(map(str, tail))
    model = from_text(f"g (float[N, {dims}] x) => ({outputs}) <{weights}> {{ {body} }}")
    return operators(simplified(model, *feeds(*tail)))


def test_transposes_that_undo_each_other_go():
    body = "a = Transpose<perm = [1, 2, 0]>(x)  b = Transpose<perm = [2, 0, 1]>(a)  y = Relu(b)"
    assert result_of(body, (2, 3), outputs="float[A, B, C] y") == ["Relu"]


def test_transposes_in_a_row_become_one():
    body = "a = Transpose<perm = [1, 2, 0]>(x)  b = Transpose(a)  y = Relu(b)"
    assert result_of(body, (2, 3), outputs="float[A, B, C] y") == ["Transpose", "Relu"]


def test_a_transpose_that_something_else_reads_stays():
    body = "z = Transpose<perm = [1, 2, 0]>(x)  y = Transpose<perm = [1, 0, 2]>(z)"
    assert result_of(body, (2, 3), outputs="float[A, B, C] y, float[D, E, F] z") == ["Transpose", "Transpose"]


def test_a_transpose_between_reshapes_that_merge_and_split_the_same_axes_is_one_transpose():
    body = "a = Reshape(x, flat)  b = Transpose<perm = [0, 2, 1]>(a)  y = Reshape(b, back)"
    weights = "int64[3] flat = {-1, 4, 5}, int64[4] back = {-1, 3, 5, 4}"
    assert result_of(body, (3, 4, 5), weights, "float[A, B, C, D] y") == ["Transpose"]


def test_a_transpose_between_other_reshapes_stays():
    body = "a = Reshape(x, flat)  b = Transpose<perm = [0, 2, 1]>(a)  y = Reshape(b, back)"
    weights = "int64[3] flat = {-1, 4, 5}, int64[4] back = {-1, 3, 4, 5}"
    assert result_of(body, (3, 4, 5), weights, "float[A, B, C, D] y") == ["Reshape", "Transpose", "Reshape"]


def test_operators_that_only_reshape_become_one_or_none():
    body = "a = Unsqueeze(x, one)  b = Flatten(a)  c = Reshape(b, back)  y = Relu(c)"
    assert result_of(body, (2, 3), "int64[1] one = {1}, int64[3] back = {0, 2, 3}", "float[A, B, C] y") == ["Relu"]
    body = "a = Unsqueeze(x, one)  b = Flatten(a)  y = Relu(b)"
    assert result_of(body, (2, 3), "int64[1] one = {1}") == ["Reshape", "Relu"]


def test_slices_along_different_axes_become_one():
    body = "a = Slice(x, zero, end, one, two)  y = Slice(a, one, end, two, two)  z = Slice(a, zero, one, two)"
    weights = "int64[1] zero = {0}, int64[1] one = {1}, int64[1] two = {2}, int64[1] end = {99}"
    assert result_of(body, (4, 5), weights, "float[A, B, C] y, float[A, B, D] z") == ["Slice", "Slice"]


def test_what_is_read_only_in_parts_once_what_was_between_went_is_read_from_the_whole():
    body = "a = Slice(x, zero, end, one, two)  y = Slice(a, one, end, two, two)"
    body += "  b = Transpose<perm = [1, 2, 0]>(a)  c = Transpose<perm = [2, 0, 1]>(b)  z = Slice(c, zero, one, two)"
    weights = "int64[1] zero = {0}, int64[1] one = {1}, int64[1] two = {2}, int64[1] end = {99}"
    assert result_of(body, (4, 5), weights, "float[A, B, C] y, float[A, B, D] z") == ["Slice", "Slice"]


def test_a_dropout_whose_mask_nothing_reads_any_more_goes():
    body = "a, mask = Dropout(x)  size = Shape(mask)  b = Reshape(a, size)  y = Relu(b)"
    assert result_of(body, (5,)) == ["Relu"]


def test_slices_along_one_axis_stay():
    body = "a = Slice(x, one, end, one)  y = Slice(a, one, end, one)"
    assert result_of(body, (5,), "int64[1] one = {1}, int64[1] end = {99}") == ["Slice", "Slice"]


def test_what_a_split_takes_apart_and_a_concat_joins_stays_whole():
    body = "a, b = Split<axis = 1>(x, cut)  c = Concat<axis = 1>(a, b)  y = Relu(c)"
    assert result_of(body, (5,), "int64[2] cut = {2, 3}") == ["Relu"]
    body = "a, b = Split<axis = 1>(x, cut)  c = Concat<axis = 1>(b, a)  y = Relu(c)"
    assert result_of(body, (5,), "int64[2] cut = {2, 3}") == ["Split", "Concat", "Relu"]


def test_what_a_concat_joins_and_slices_or_a_split_take_apart_is_not_joined():
    body = "p = Relu(x)  q = Neg(x)  c = Concat<axis = 1>(p, q)  a, b = Split<axis = 1>(c, cut)  y = Add(a, b)"
    assert result_of(body, (5,), "int64[2] cut = {5, 5}") == ["Relu", "Neg", "Add"]
    body = "p = Relu(x)  q = Neg(x)  c = Concat<axis = 1>(p, q)  a = Slice(c, five, ten, one)  y = Tanh(a)"
    assert result_of(body, (5,), "int64[1] one = {1}, int64[1] five = {5}, int64[1] ten = {10}") == ["Neg", "Tanh"]
    body = "p = Relu(x)  q = Neg(x)  c = Concat<axis = 1>(p, q)  a, b = Split<axis = 1>(c, cut)  y = Concat<axis = 1>(b, a)"
    assert result_of(body, (5,), "int64[2] cut = {4, 6}") == ["Relu", "Neg", "Concat", "Split", "Concat"]


def test_concats_along_one_axis_become_one():
    body = "a = Relu(x)  b = Concat<axis = 1>(a, x)  c = Neg(x)  y = Concat<axis = -1>(c, b)"
    assert result_of(body, (5,)) == ["Relu", "Neg", "Concat"]


def test_a_cast_through_a_wider_type_goes_and_one_through_a_narrower_stays():
    body = "a = Cast<to = 11>(x)  b = Cast<to = 1>(a)  y = Relu(b)"
    assert result_of(body, (5,)) == ["Relu"]
    body = "a = Cast<to = 10>(x)  b = Cast<to = 1>(a)  y = Relu(b)"
    assert result_of(body, (5,)) == ["Cast", "Cast", "Relu"]


@pytest.mark.parametrize(
    "body", ["Mul(x, one)", "Mul(one, x)", "Div(x, one)", "Pow(x, one)", "Sub(x, zero)", "Add(x, minus)", "Where(yes, x, one)"]
)
def test_operands_that_change_nothing(body: str):
    weights = "float one = {1}, float zero = {0}, float minus = {-0.0}, bool yes = {1}"
    assert result_of(f"a = {body}  y = Relu(a)", (5,), weights) == ["Relu"]


@pytest.mark.parametrize("body", ["Add(x, zero)", "Sub(zero, x)", "Div(one, x)", "Mul(x, wide)", "Sub(x, minus)"])
def test_operands_that_only_seem_to_change_nothing(body: str):
    weights = "float one = {1}, float zero = {0}, float minus = {-0.0}, float[2, 1, 1] wide = {1, 1}"
    output = "float[A, B, C] y" if "wide" in body else "float[A, B] y"
    model = from_text(f"g (float[N, 5] x) => ({output}) <{weights}> {{ a = {body}  y = Reciprocal(a) }}")
    feed = {"x": np.array([[0.0, -0.0, 1, np.nan, np.inf]], np.float32)}
    result = simplified(model)
    assert len(operators(result)) == 2
    np.testing.assert_array_equal(run(model, feed)["y"], run(result, feed)["y"])


def test_an_operand_that_a_caller_may_override_is_no_constant():
    model = from_text("g (float[N, 5] x, float one) => (float[N, 5] y) <float one = {1}> { a = Mul(x, one)  y = Relu(a) }")
    result = simplified(model, feeds(5)[0], {**feeds(5)[1], "one": np.array(3, np.float32)})
    assert operators(result) == ["Mul", "Relu"]


def test_a_constant_that_the_user_excluded_stays():
    model = from_text("""g (float[N, 5] x) => (float[N, 5] y)
    <float one = {1}, float[5] zero = {0, 0, 0, 0, 0}, float two = {2}> {
        a = Mul(x, one)  b = Add(a, zero)  c = Exp(two)  d = Mul(b, c)  y = Relu(d)
    }""")
    for name, expected in (("one", ["Mul"]), ("zero", ["Add"]), ("two", ["Exp"]), ("t*", ["Exp"]), ("other", [])):
        assert operators(simplified(model, *feeds(5), exclude=[name])) == [*expected, "Mul", "Relu"]


def test_round_trips_of_captured_values_go_inside_branches():
    model = from_text("""g (float[N, 4] x, bool flag) => (float[A, B] y) {
        t = Transpose(x)
        y = If(flag) <
            then_branch = p () => (float[A, B] q) { b = Transpose(t)  q = Relu(b) },
            else_branch = r () => (float[A, B] s) { s = Neg(x) }
        >
    }""")
    result = simplified(model, *({**f, "flag": np.array(flag)} for f in feeds(4) for flag in (True, False)))
    assert operators(result) == ["If"]


def test_outputs_keep_their_names():
    model = from_text("""g (float[N, 4] x) => (float[N, 4] y, float[4, N] t) {
        a = Relu(x)  t = Transpose(a)  y = Transpose(t)
    }""")
    result = simplified(model, *feeds(4))
    assert operators(result) == ["Relu", "Transpose"]
    assert [output.name for output in result.graph.output] == ["y", "t"]


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ("a = Add(x, zero)  b = MatMul(a, w)  y = Softmax(b)", ["MatMul", "Softmax"]),
        ("a = Sub(x, zero)  b = Pow(a, two)  y = Div(b, two)", ["Pow", "Div"]),
        ("a = Add(zero, x)  b = Relu(a)  y = Reciprocal(b)", ["Add", "Relu", "Reciprocal"]),
        ("a = Add(x, zero)  b = MatMul(a, w)  y = Div(two, b)", ["Add", "MatMul", "Div"]),
        ("a = Add(x, zero)  y = Pow(a, odd)", ["Add", "Pow"]),
        ("a = Add(x, zero)  y = Atan(a)", ["Add", "Atan"]),
    ],
)
def test_a_bias_of_zero_goes_where_the_sign_of_a_zero_cannot_matter(body: str, expected: list[str]):
    weights = "float[2] zero = {0, 0}, float[2, 2] w = {1, 2, 3, 4}, float two = {2}, float odd = {-1}"
    assert result_of(body, (2,), weights) == expected


def test_biases_of_zero_on_top_of_each_other_go():
    body = "a = Add(x, zero)  b = Add(a, zero)  c = Add(two, b)  y = Relu(c)"
    assert result_of(body, (2,), "float[2] zero = {0, 0}, float[2] two = {2, 3}") == ["Add", "Relu"]


def test_a_zero_that_makes_the_output_wider_stays():
    assert result_of("a = Add(x, zero)  y = Relu(a)", (1,), "float[2] zero = {0, 0}") == ["Add", "Relu"]


RESIZE = 'n = Shape<start = 0, end = 1>(x)  s = Concat<axis = 0>(n, rest)  y = Resize<mode = "linear">(x, , , s)'


def test_a_resize_to_the_sizes_that_its_input_has_goes():
    body = RESIZE.replace("y =", "a =") + "  y = Relu(a)"
    assert result_of(body, (2, 3, 4), "int64[3] rest = {2, 3, 4}", "float[A, B, C, D] y") == ["Relu"]


def test_a_resize_to_computed_sizes_gets_the_scales_that_they_are():
    assert result_of(RESIZE, (2, 3, 4), "int64[3] rest = {2, 6, 12}", "float[A, B, C, D] y") == ["Resize"]


def test_a_resize_to_sizes_that_are_no_multiples_keeps_them():
    found = result_of(RESIZE, (2, 3, 4), "int64[3] rest = {2, 5, 8}", "float[A, B, C, D] y")
    assert found == ["Shape", "Concat", "Resize"]


@pytest.mark.parametrize(("operator", "rest"), [("Conv", "(a, w)"), ("MaxPool", "<kernel_shape = [1, 1]>(a)")])
def test_a_batch_is_followed_past_what_works_on_each_sample(operator: str, rest: str):
    body = f"a = Reshape(x, merged)  b = {operator}{rest}  n = Shape<start = 0, end = 1>(x)  m = Mul(n, two)"
    body += "  s = Concat<axis = 0>(m, sizes)  c = Resize(b, , , s)  y = Relu(c)"
    weights = "int64[4] merged = {-1, 1, 3, 4}, float[1, 1, 1, 1] w = {2}, int64[1] two = {2}, int64[3] sizes = {1, 3, 4}"
    assert result_of(body, (2, 3, 4), weights, "float[A, B, C, D] y") == ["Reshape", operator, "Relu"]
