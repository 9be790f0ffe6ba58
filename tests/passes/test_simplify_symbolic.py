"""Shapes that the graph computes from dynamic dimensions collapse, and the answers stay the same for every size."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx.reference import ReferenceEvaluator

from graphopt.passes.simplify import dims as polynomials
from graphopt.passes.simplify.dims import Dim, exact_quotient, product, quotient, remainder, symbol
from graphopt.passes.simplify.follow import symbolic
from graphopt.passes.simplify.graph import Work
from graphopt.passes.simplify.symbolic import Symbolic
from graphopt.shapes import infer

from helpers import assert_same_outputs, from_text
from simplifying import operators, simplified, simplify

RNG = np.random.default_rng(0)


def feeds(*tail: int, batches: tuple[int, ...] = (1, 3), **more: tuple[int, ...]) -> list[dict[str, np.ndarray]]:
    shapes = {"x": tail, **more}
    return [{n: RNG.standard_normal((b, *dims)).astype(np.float32) for n, dims in shapes.items()} for b in batches]


# ------------------------------------------------------------------------------------------------------------- polynomials

N, S = symbol("N"), symbol("S")


def test_equal_polynomials_are_equal_however_they_were_computed():
    assert (N + 1) * (S + 2) == S * N + S + 2 * N + 2
    assert N + S - N == S
    assert N - N == 0
    assert exact_quotient((N + 1) * (S + 2) * 6, (S + 2) * 2) == 3 * N + 3
    assert exact_quotient(N + 1, 2) is None
    assert quotient(N + 1, 2) == quotient(1 + N, 2)
    assert quotient(N - 1, 2) is None  # may be negative: rounded down and toward zero are not the same
    assert remainder(6 * N + 7, 6) == 1


def value(dim: Dim | None, sizes: dict[str, int]) -> int | None:
    """A polynomial at given sizes; None where it holds other atoms than symbols."""
    if dim is None or isinstance(dim, int):
        return dim
    total = 0
    for monomial, factor in dim.terms:
        if not set(monomial) <= sizes.keys():
            return None
        total += factor * int(np.prod([sizes[atom] for atom in monomial]))
    return total


@st.composite
def polynomial(draw: st.DrawFn) -> Dim:
    atoms = [N, S, *range(-3, 5)]
    total: Dim = draw(st.sampled_from(atoms))
    for _ in range(draw(st.integers(0, 3))):
        other = draw(st.sampled_from(atoms))
        total = total * other if draw(st.booleans()) else total + other
    return total


@settings(max_examples=300, derandomize=True, database=None, deadline=None)
@given(polynomial(), polynomial(), st.integers(1, 9), st.integers(1, 9))
def test_arithmetic_is_right_at_every_size(a: Dim, b: Dim, n: int, s: int):
    sizes = {"N": n, "S": s}
    x, y = value(a, sizes), value(b, sizes)
    assert value(a + b, sizes) == x + y
    assert value(a * b, sizes) == x * y
    assert exact_quotient(product([a, b]), b) == (a if b != 0 else None)
    found = value(quotient(a, b), sizes)
    assert found is None or y == 0 or found == int(x / y)
    found = value(remainder(a, b), sizes)
    assert found is None or y == 0 or found == x % y
    for op, rule in ((polynomials.smaller, min), (polynomials.larger, max)):
        found = value(op(a, b), sizes)
        assert found is None or found == rule(x, y)
    equal = polynomials.are_equal(a, b)
    assert equal is None or equal == (x == y)


# -------------------------------------------------------------------------------------------------------- computed shapes


def test_the_scaffolding_of_a_reshape_becomes_a_constant():
    model = from_text("""g (float[N, 6, 4] x) => (float[N, M, K] y)
    <int64 zero = {0}, int64[1] axis = {0}, int64[1] six = {6}, int64[1] two = {2}, float[2, 2] w = {1, 2, 3, 4}> {
        s = Shape(x)  n = Gather(s, zero)  u = Unsqueeze(n, axis)
        t = Concat<axis = 0>(u, six, two, two)
        a = Reshape(x, t)  b = MatMul(a, w)
        s2 = Shape(b)  n2 = Gather(s2, zero)  u2 = Unsqueeze(n2, axis)  rest = Constant<value = int64[2] {-1, 4}>()
        t2 = Concat<axis = 0>(u2, rest)
        y = Reshape(b, t2)
    }""")
    result = simplified(model, *feeds(6, 4, batches=(1, 3)))
    assert operators(result) == ["Reshape", "MatMul", "Reshape"]


def test_a_reshape_holds_for_an_empty_batch_too():
    model = from_text("""g (float[N, 6, 4] x) => (float[N, M] y)
    <int64 zero = {0}, int64[1] axis = {0}, int64[1] rest = {24}> {
        s = Shape(x)  n = Gather(s, zero)  u = Unsqueeze(n, axis)
        t = Concat<axis = 0>(u, rest)
        a = Relu(x)
        y = Reshape(a, t)
    }""")
    assert operators(simplified(model, *feeds(6, 4, batches=(0, 1, 5)))) == ["Relu", "Reshape"]


def test_merged_batches_are_followed_and_taken_apart_again():
    model = from_text("""g (float[N, T, 8] x) => (float[N, T, 8] y)
    <int64 zero = {0}, int64 one = {1}, int64[1] axis = {0},
    int64[2] tail = {4, 2}, int64[2] flat = {-1, 8}, int64[1] eight = {8}, float[2, 2] w = {1, 2, 3, 4}>
    {
        s = Shape(x)  n = Gather(s, zero)  t = Gather(s, one)
        rows = Mul(n, t)  r1 = Unsqueeze(rows, axis)
        shape = Concat<axis = 0>(r1, tail)
        a = Reshape(x, shape)  b = MatMul(a, w)
        c = Reshape(b, flat)  d = LpNormalization(c)
        n1 = Unsqueeze(n, axis)  t1 = Unsqueeze(t, axis)
        back = Concat<axis = 0>(n1, t1, eight)
        y = Reshape(d, back)
    }""")
    result = simplified(model, *({"x": RNG.standard_normal((n, t, 8)).astype(np.float32)} for n, t in ((1, 5), (3, 2))))
    assert operators(result).count("Shape") == 1
    assert operators(result).count("Reshape") == 3
    assert len(operators(result)) <= 7  # two dimensions are not known before: their shape is still computed


def test_the_same_number_is_computed_once_from_whichever_shape():
    model = from_text("""g (float[N, 4] x, float[N, 4] z) => (float[N, 4] y, int64[1] n, int64[1] m)
    <int64 zero = {0}, int64[1] axis = {0}, int64[1] start = {0}, int64[1] end = {1}> {
        a = Relu(x)  b = Add(a, z)  y = Tanh(b)
        s = Shape(a)  g = Gather(s, zero)  h = Unsqueeze(g, axis)
        t = Shape(z)  i = Slice(t, start, end)
        n = Neg(h)
        m = Neg(i)
    }""")
    result = simplified(model, *feeds(4, z=(4,)))
    assert operators(result).count("Shape") == 1
    assert len(operators(result)) <= 6


def test_an_expand_to_the_shape_that_is_there_goes():
    model = from_text("""g (float[N, 4] x) => (float[N, 4] y) {
        a = Relu(x)
        s = Shape(x)
        b = Expand(a, s)
        y = Neg(b)
    }""")
    assert operators(simplified(model, *feeds(4))) == ["Relu", "Neg"]


def test_an_expand_that_expands_stays_but_needs_no_shape_of_its_input():
    model = from_text("""g (float[N, 1, 4] x) => (float[N, 5, 4] y)
    <int64[2] rest = {5, 4}, int64[1] a = {0}, int64[1] b = {1}> {
        s = Shape(x)
        n = Slice(s, a, b)
        t = Concat<axis = 0>(n, rest)
        y = Expand(x, t)
    }""")
    assert operators(simplified(model, *feeds(1, 4))) == ["Expand"]


def test_a_where_that_mends_a_shape_is_decided():
    model = from_text("""g (float[N, 1] x) => (float[N, M] y)
    <int64[2] minus = {-1, -1}, int64[2] ones = {1, 1}, int64[1] three = {3}, int64[1] a = {0}, int64[1] b = {1}> {
        s = Shape(x)  n = Slice(s, a, b)
        t = Concat<axis = 0>(n, three)
        bad = Equal(t, minus)
        mended = Where(bad, ones, t)
        y = Expand(x, mended)
    }""")
    assert operators(simplified(model, *feeds(1))) == ["Expand"]


def test_a_slice_up_to_the_end_goes_and_one_short_of_it_needs_no_shape():
    model = from_text("""g (float[N, T] x) => (float[N, T] y, float[N, K] z)
    <int64 one = {1}, int64[1] zero = {0}, int64[1] axis = {1}> {
        s = Shape(x)  t = Gather(s, one)  end = Unsqueeze(t, zero)
        a = Slice(x, zero, end, axis)
        y = Relu(a)
        u = Sub(t, one)  before = Unsqueeze(u, zero)
        z = Slice(x, zero, before, axis)
    }""")
    result = simplified(model, *({"x": RNG.standard_normal(s).astype(np.float32)} for s in ((1, 1), (2, 7))))
    assert operators(result) == ["Relu", "Slice"]


def test_dimensions_that_may_differ_are_not_taken_for_equal():
    model = from_text("""g (float[N, 4] x, float[M, 4] z) => (float[K, 4] y) {
        s = Shape(z)
        y = Expand(x, s)
    }""")
    feed = {"x": np.ones((1, 4), np.float32), "z": np.ones((3, 4), np.float32)}
    assert operators(simplified(model, feed)) == ["Shape", "Expand"]


def test_a_dimension_that_nobody_knows_is_equal_to_itself():
    model = from_text("""g (float[N, 4] x) => (float[K, 4] y, float[K, 4] z) <float nothing = {0}, int64 first = {0}> {
        positive = Greater(x, nothing)
        keep = Gather<axis = 1>(positive, first)
        found = Compress<axis = 0>(x, keep)
        s = Shape(found)
        a = Relu(found)
        b = Reshape(a, s)
        y = Neg(b)
        c = Expand(a, s)
        z = Tanh(c)
    }""")
    result = simplified(model, *feeds(4, batches=(3, 6)))
    assert not {"Reshape", "Expand", "Shape"} & {*operators(result)}


def test_a_reshape_whose_input_has_one_dimension_that_nobody_knows_has_the_same():
    model = from_text("""g (float[N, T, 8] x, float[N, S, 8] m) => (float[N, T, 8] y) <int64[1] eight = {8}> {
        a = Add(x, m)
        s = Shape(x)
        n = Shape<start = 0, end = 1>(x)  t = Shape<start = 1, end = 2>(x)
        shape = Concat<axis = 0>(n, t, eight)
        b = Reshape(a, shape)
        y = Relu(b)
    }""")
    assert operators(simplified(model, *feeds(5, 8, m=(1, 8)))) == ["Add", "Relu"]


def test_what_reshapes_after_a_reshape_to_a_rest_is_merged_with_it():
    model = from_text("""g (float[N, T, 2, 4] x, float[N, S, 2, 4] m) => (float[N, T, 1, 8] y)
    <int64[1] eight = {8}, int64[1] axis = {2}> {
        a = Add(x, m)
        n = Shape<start = 0, end = 1>(x)  t = Shape<start = 1, end = 2>(x)
        shape = Concat<axis = 0>(n, t, eight)
        b = Reshape(a, shape)
        c = Unsqueeze(b, axis)
        y = Relu(c)
    }""")
    assert operators(simplified(model, *feeds(5, 2, 4, m=(1, 2, 4)))) == ["Add", "Reshape", "Relu"]


@pytest.mark.parametrize("graph_output", [False, True])
def test_a_computed_shape_that_is_asked_for_is_still_given(graph_output: bool):
    outputs = "float[N, 24] y, int64[2] t" if graph_output else "float[N, 24] y"
    model = from_text(f"""g (float[N, 6, 4] x) => ({outputs})
    <int64 zero = {{0}}, int64[1] axis = {{0}}, int64[1] rest = {{24}}> {{
        s = Shape(x)  n = Gather(s, zero)  u = Unsqueeze(n, axis)
        t = Concat<axis = 0>(u, rest)
        y = Reshape(x, t)
    }}""")
    result = simplified(model, *feeds(6, 4))
    assert operators(result) == (["Shape", "Concat", "Reshape"] if graph_output else ["Reshape"])


def test_shapes_inside_branches_collapse_and_what_they_capture_stays_right():
    model = from_text(
        """g (float[N, 6] x, bool flag) => (float[N, 6] y) <int64 zero = {0}, int64[1] axis = {0}> {
        s = Shape(x)  n = Gather(s, zero)  u = Unsqueeze(n, axis)
        three = Constant<value = int64[2] {3, 2}>()
        r = If(flag) <
            then_branch = a () => (float[N, 3, 2] p) { t = Concat<axis = 0>(u, three)  p = Reshape(x, t) },
            else_branch = b () => (float[N, 3, 2] q) { t = Concat<axis = 0>(u, three)  o = Reshape(x, t)  q = Neg(o) }
        >
        back = Constant<value = int64[1] {6}>()
        whole = Concat<axis = 0>(u, back)
        y = Reshape(r, whole)
    }""".replace("{2, }", "{2}")
    )
    feed = [{**f, "flag": np.array(flag)} for f in feeds(6) for flag in (True, False)]
    result = simplified(model, *feed)
    assert operators(result) == ["If", "Reshape"]


def test_weights_that_a_caller_may_override_are_no_shapes():
    model = from_text("""g (float[N, 8] x, int64[2] shape) => (float[A, B] y) <int64[2] shape = {-1, 4}> {
        y = Reshape(x, shape)
    }""")
    x = RNG.standard_normal((2, 8)).astype(np.float32)
    result = simplified(model, {"x": x}, {"x": x, "shape": np.array([4, 4])})
    assert operators(result) == ["Reshape"]


def test_a_shape_that_is_zero_on_purpose_is_left_alone():
    model = from_text("""g (float[N, 0] x) => (float[A, B] y) <int64[2] shape = {0, 3}> {
        y = Reshape<allowzero = 1>(x, shape)
    }""")
    result, _ = simplify(model)
    assert_same_outputs(model, result, {"x": np.zeros((2, 0), np.float32)})


def test_an_excluded_reshape_keeps_its_computed_shape():
    model = from_text("""g (float[N, 6, 4] x) => (float[N, 24] y)
    <int64 zero = {0}, int64[1] axis = {0}, int64[1] rest = {24}> {
        s = Shape(x)  n = Gather(s, zero)  u = Unsqueeze(n, axis)
        t = Concat<axis = 0>(u, rest)
        y = Reshape(x, t)
    }""")
    result = simplified(model, *feeds(6, 4), exclude=["y"])
    assert operators(result)[-2:] == ["Concat", "Reshape"]
    assert operators(simplified(model, *feeds(6, 4), symbolic=False)) == ["Shape", "Gather", "Unsqueeze", "Concat", "Reshape"]


def test_the_bound_of_a_range_that_becomes_a_constant_becomes_a_scalar():
    model = from_text("""g (float[3, 4] x) => (int64[K] y)
    <int64 zero = {0}, int64 one = {1}, int64[1] first = {0}, int64[1] next = {1}> {
        s = Shape(x)
        n = Slice(s, first, next)
        y = Range(zero, n, one)
    }""")
    result, _ = simplify(model, fold=False)  # folding would compute the Range too
    assert_same_outputs(model, result, {"x": np.zeros((3, 4), np.float32)})
    result, _ = simplify(model)
    assert_same_outputs(model, result, {"x": np.zeros((3, 4), np.float32)})


def test_what_a_reshape_that_goes_said_of_a_dimension_is_known_of_what_it_read():
    proto = from_text(
        """g (float[N, 6] x, int64[1] step) => (float[N, 2] y) <int64[1] zero = {0}, int64[1] end = {9}, int64[1] axis = {1},
            int64[2] target = {0, 2}> {
            a = Slice(x, zero, end, axis, step)  b = Reshape(a, target)  c = Tanh(b)  d = Concat<axis = 1>(c, b)
            e, f = Split<axis = 1, num_outputs = 2>(d)  y = Neg(f)
        }"""
    )
    result = simplified(proto, *({**feed, "step": np.array([3])} for feed in feeds(6)))
    assert operators(result) == ["Slice", "Neg"]


def test_a_split_into_equal_parts_meets_the_equal_parts_of_a_concat_whatever_is_stated_of_one_of_them():
    proto = from_text(
        """g (float[N, 6] x, int64[1] step) => (float[N, 2] y) <int64[1] zero = {0}, int64[1] end = {9}, int64[1] axis = {1},
            int64[2] target = {0, 2}> {
            a = Slice(x, zero, end, axis, step)  b = Tanh(a)  c = Concat<axis = 1>(a, b)
            d, e = Split<axis = 1, num_outputs = 2>(c)  f = Reshape(e, target)  y = Neg(f)
        }"""
    )
    result = simplified(proto, *({**feed, "step": np.array([3])} for feed in feeds(6)))
    assert operators(result) == ["Slice", "Tanh", "Neg"]


def test_a_reshape_of_what_may_be_nothing_still_takes_nothing():
    """No box is found: 0 rows. ``[0, -1]`` would fail, where the size of the second axis is computed too."""
    model = from_text(
        """
        <ir_version: 8, opset_import: ["" : 18]>
        main (float[N] score, float[N, A, B] x) => (float[R, C] y)
        <float limit = {0}, int64[1] axis = {0}> {
            kept = Greater(score, limit)
            places = NonZero(kept)
            rows = Squeeze(places, axis)
            boxes = Gather(x, rows)
            shape = Shape(boxes)
            count = Shape <start = 0, end = 1> (boxes)
            rest = Shape <start = 1, end = 3> (boxes)
            size = ReduceProd(rest)
            target = Concat <axis = 0> (count, size)
            y = Reshape(boxes, target)
        }
        """
    )
    x = RNG.standard_normal((3, 2, 4)).astype(np.float32)
    simplified(model, {"score": np.float32([1, -1, 1]), "x": x}, {"score": np.float32([-1, -1, -1]), "x": x})


# ------------------------------------------------------------------------------------------------------ asked, and asked again


def known_of(proto: onnx.ModelProto) -> tuple[Work, Symbolic]:
    model = ir.from_proto(proto)
    work = Work(model, lambda _name: False, {}, weight_limit=0, facts=infer(model), excludes=False)
    return work, symbolic(work, work.roots[0])


def test_numbers_are_followed_through_as_many_operators_as_there_are():
    adds = "\n".join(f"n{i + 1} = Add(n{i}, one)" for i in range(3000))
    proto = from_text(
        f"""<ir_version: 8, opset_import: ["": 17]> g (float[N, 4] x) => (int64[1] y) <int64[1] one = {{1}}>
        {{ n0 = Shape <end: int = 1> (x) {adds} y = Identity(n3000) }}"""
    )
    work, known = known_of(proto)
    numbers = known.known_numbers(work.model.graph.outputs[0])
    assert numbers is not None
    assert [str(number) for number in numbers] == [str(symbol("$N") + 3000)]


def test_after_a_change_the_same_is_known_as_if_nothing_had_been_known_before():
    proto = from_text(
        """<ir_version: 8, opset_import: ["": 17]> g (float[N, 4] x, float[M, 4] z, int64[2] s) => (float[a, b] y)
        <int64[2] flat = {-1, 2}>
        { hidden = Reshape(x, s) pairs = Reshape(hidden, flat) count = Shape(pairs) wide = Reshape(z, count) y = Relu(wide) }"""
    )
    work, known = known_of(proto)
    nodes = [*work.model.graph]
    values = [node.outputs[0] for node in nodes]
    before = [known.dims(value) for value in values]
    assert before[1] is not None
    assert before[1][1] == 2
    nodes[1].replace_input_with(0, work.model.graph.inputs[0])  # pairs are now those of x, whose size is known
    found = known.update(nodes, [nodes[1]])
    assert found == {nodes[1], nodes[2], nodes[3], nodes[4]}
    assert known.dims(values[4]) == (2 * symbol("$N"), 2)
    anew = symbolic(replace(work, symbolic=None), work.roots[0])
    assert [known.dims(value) for value in values[1:]] == [anew.dims(value) for value in values[1:]]
    assert known.update(nodes, [nodes[1]]) == set()


def test_what_reads_a_value_of_which_the_same_is_known_need_not_be_evaluated_again():
    proto = from_text(
        """<ir_version: 8, opset_import: ["": 17]> g (float[N, 6] x, float[N, 6] z, float[M, 4] w) => (int64[a, b] y)
        <int64[1] one = {1}>
        { rows = Shape <end: int = 1> (x) same = Shape <end: int = 1> (z) more = Shape <end: int = 1> (w)
          size = Concat <axis: int = 0> (rows, one) y = Expand(one, size) }"""
    )
    work, known = known_of(proto)
    nodes = {node.outputs[0].name: node for node in work.model.graph}
    size = nodes["size"]
    assert known.known_numbers(size.outputs[0]) == [symbol("$N"), 1]
    size.replace_input_with(0, nodes["same"].outputs[0])
    assert known.rewired([size, nodes["y"]]) == []
    size.replace_input_with(0, nodes["more"].outputs[0])
    assert known.rewired([size, nodes["y"]]) == [size]
    known.update(list(work.model.graph), [size])
    assert known.known_numbers(size.outputs[0]) == [symbol("$M"), 1]


@pytest.mark.parametrize(
    "operator",
    [
        "Transpose (a)",
        "Gather <axis: int = 1> (a, b)",
        "Concat <axis: int = 1> (a, c)",
        "Concat <axis: int = 0> (a, a)",
        "Slice (a, from, to, axes, steps)",
        "Expand (c, larger)",
        "Reshape (a, flat)",
        "Unsqueeze (a, axes)",
        "Squeeze (c, last)",
        "Mul (a, c)",
        "Max (a, c, ten)",
        "Where (yes, a, c)",
        "ConstantOfShape <value: tensor = int64[1] {7}> (larger)",
    ],
)
def test_numbers_in_more_axes_are_those_that_a_runtime_computes(operator: str):
    proto = from_text(
        f"""<ir_version: 8, opset_import: ["": 17]> g () => (int64[] y)
        <int64[2, 3] a = {{1, 2, 3, 4, 5, 6}}, int64[2, 2] b = {{0, -1, 1, 0}}, int64[2, 1] c = {{7, 8}}, int64 ten = {{10}},
         bool[2, 1] yes = {{1, 0}}, int64[2] larger = {{2, 4}}, int64[2] flat = {{3, -1}}, int64[1] last = {{-1}},
         int64[2] from = {{-1, 0}}, int64[2] to = {{-9, 2}}, int64[2] axes = {{0, 1}}, int64[2] steps = {{-1, 1}}>
        {{ y = {operator} }}"""
    )
    work, known = known_of(proto)
    numbers = known.numbers(work.model.graph.outputs[0])
    (computed,) = ReferenceEvaluator(proto).run(None, {})
    assert numbers is not None
    assert (numbers.shape, list(numbers.items)) == (computed.shape, computed.ravel().tolist())
