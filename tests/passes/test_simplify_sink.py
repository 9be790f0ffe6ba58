"""Reshapes and Transposes that move past other operators and become one, and where they must stay."""

from __future__ import annotations

import numpy as np
import onnx
import pytest

from helpers import from_text, run
from simplifying import operators, simplified

RNG = np.random.default_rng(0)
RANKS = {rank: f"float[{', '.join('ABCDEF'[:rank])}] y" for rank in range(1, 7)}


def result_of(body: str, tail: tuple[int, ...], rank: int, weights: str = "", inputs: str = "", **kwargs: object) -> list[str]:
    """The operators that are left of a graph of x [N, *tail] and y [...], which is checked at two batch sizes."""
    dims = ", ".join(map(str, tail))
    model = from_text(f"g (float[N, {dims}] x{inputs}) => ({RANKS[rank]}) <{weights}> {{ {body} }}")
    feeds = [{"x": RNG.standard_normal((batch, *tail)).astype(np.float32)} for batch in (1, 3)]
    return operators(simplified(model, *feeds, **kwargs))


ONE, TWO = "int64[1] one = {1}", "int64[1] two = {2}"


def test_reshapes_around_elementwise_operators_become_one():
    body = "a = Unsqueeze(x, one)  b = Sigmoid(a)  c = Mul(b, k)  y = Flatten(c)"
    assert result_of(body, (2, 3), 2, f"{ONE}, float k = {{3}}") == ["Sigmoid", "Mul", "Reshape"]
    body = "a = Unsqueeze(x, one)  b = Sub(k, a)  c = Clip(b, low)  y = Squeeze(c, one)"
    assert result_of(body, (2, 3), 3, f"{ONE}, float low = {{1}}, float[1, 1] k = {{3}}") == ["Sub", "Clip"]


def test_a_reshape_stays_before_an_operand_that_has_more_elements_or_axes():
    body = "a = Unsqueeze(x, one)  b = Mul(a, k)  y = Flatten(b)"
    assert result_of(body, (2, 3), 2, f"{ONE}, float[3] k = {{1, 2, 3}}") == ["Unsqueeze", "Mul", "Flatten"]
    body = "a = Flatten(x)  b = Mul(a, k)  y = Unsqueeze(b, one)"
    assert result_of(body, (2, 3), 4, f"{ONE}, float[1, 1, 1] k = {{2}}") == ["Flatten", "Mul", "Unsqueeze"]


def test_a_reshape_that_something_else_reads_stays():
    model = from_text(f"""g (float[N, 2] x) => (float[N, 2] y, float[N, 1, 2] z) <{ONE}> {{
        a = Unsqueeze(x, one)  z = Relu(a)  b = Tanh(a)  y = Squeeze(b, one)
    }}""")
    assert operators(simplified(model, {"x": np.ones((3, 2), np.float32)})) == ["Unsqueeze", "Relu", "Tanh", "Squeeze"]


def test_a_reshape_that_a_branch_captures_stays():
    model = from_text(f"""g (float[N, 2] x, bool flag) => (float[N, 2] y, float[N, 1, 2] z) <{ONE}> {{
        a = Unsqueeze(x, one)  b = Tanh(a)  y = Squeeze(b, one)
        z = If(flag) <
            then_branch = p () => (float[N, 1, 2] q) {{ q = Relu(a) }},
            else_branch = r () => (float[N, 1, 2] s) {{ s = Neg(b) }}
        >
    }}""")
    feeds = [{"x": RNG.standard_normal((3, 2)).astype(np.float32), "flag": np.array(flag)} for flag in (True, False)]
    assert operators(simplified(model, *feeds)) == ["Unsqueeze", "Tanh", "Squeeze", "If"]


def test_a_reshape_stays_where_an_operand_is_excluded():
    body = "a = Unsqueeze(x, one)  b = Sigmoid(a)  y = Squeeze(b, one)"
    model = from_text(f"g (float[N, 2] x) => (float[N, 2] y) <{ONE}> {{ [mine] {body.replace('  b = ', '  [other] b = ')} }}")
    feed = {"x": np.ones((3, 2), np.float32)}
    assert operators(simplified(model, feed)) == ["Sigmoid"]
    assert operators(simplified(model, feed, exclude=["other"])) == ["Unsqueeze", "Sigmoid", "Squeeze"]


def test_a_reshape_passes_an_operator_along_one_axis():
    body = "a = Reshape(x, cut)  b = Gather<axis = 2>(a, i)  y = Reshape(b, flat)"
    weights = "int64[5] cut = {0, 1, 4, 1, 3}, int64[2] i = {3, 1}, int64[2] flat = {0, 6}"
    assert result_of(body, (4, 3), 2, weights) == ["Gather", "Reshape"]
    body = "a = Reshape(x, flat)  b = Softmax(a)  y = Reshape(b, back)"
    weights = "int64[2] flat = {-1, 3}, int64[3] back = {-1, 4, 3}"
    assert result_of(body, (4, 3), 3, weights) == ["Softmax"]


def test_a_reshape_that_cuts_the_axis_stays():
    body = "a = Reshape(x, cut)  b = Softmax(a)  y = Flatten(b)"
    assert result_of(body, (4, 6), 2, "int64[4] cut = {0, 4, 2, 3}") == ["Reshape", "Softmax", "Flatten"]
    body = "a = Flatten(x)  b = Gather<axis = 1>(a, i)  y = Unsqueeze(b, one)"
    assert result_of(body, (4, 6), 3, f"int64[2] i = {{3, 1}}, {ONE}") == ["Flatten", "Gather", "Unsqueeze"]


def test_a_transpose_that_only_moves_axes_of_one_is_a_reshape():
    body = "a = Unsqueeze(x, one)  b = Transpose<perm = [0, 2, 1, 3]>(a)  y = Flatten(b)"
    assert result_of(body, (4, 6), 2, ONE) == ["Reshape"]
    body = "a = Unsqueeze(x, one)  b = Transpose<perm = [0, 3, 1, 2]>(a)  y = Flatten(b)"
    assert result_of(body, (4, 6), 2, ONE) == ["Unsqueeze", "Transpose", "Flatten"]


def test_a_gather_of_everything_in_order_is_a_reshape():
    body = "a = Gather<axis = 1>(x, all)  b = Relu(a)  y = Flatten(b)"
    assert result_of(body, (4, 3), 2, "int64[2, 2] all = {0, 1, 2, -1}") == ["Relu", "Reshape"]
    assert result_of(body, (4, 3), 2, "int64[2, 2] all = {0, 1, 3, 2}") == ["Gather", "Relu", "Flatten"]


def test_an_expand_that_repeats_nothing_is_a_reshape():
    body = "a = Relu(x)  b = Expand(a, wide)  y = Squeeze(b, zero)"
    assert result_of(body, (1, 3), 3, "int64[4] wide = {1, 1, 1, 3}, int64[1] zero = {0}") == ["Relu"]
    assert result_of("a = Expand(x, wide)  y = Flatten(a)", (1, 3), 2, "int64[3] wide = {1, 2, 1}") == ["Expand", "Flatten"]


def test_a_squeeze_of_an_axis_that_may_be_longer_stays_and_fails_as_before():
    model = from_text(
        f"""g (float[N, L] x) => (float[A, B] y) <{ONE}> {{
        a = Relu(x)  b = Squeeze(a, one)  y = Unsqueeze(b, zero)
    }}""".replace(f"<{ONE}>", f"<{ONE}, int64[1] zero = {{0}}>")
    )
    assert operators(simplified(model, {"x": np.ones((3, 1), np.float32)})) == ["Relu", "Squeeze", "Unsqueeze"]


def test_transposes_around_elementwise_operators_become_one_or_none():
    body = "a = Transpose<perm = [0, 2, 3, 1]>(x)  b = Add(k, a)  y = Transpose<perm = [0, 3, 1, 2]>(b)"
    assert result_of(body, (2, 3, 4), 4, "float k = {3}") == ["Add"]
    body = "a = Transpose<perm = [0, 2, 3, 1]>(x)  b = Add(k, a)  y = Transpose<perm = [0, 2, 1, 3]>(b)"
    assert result_of(body, (2, 3, 4), 4, "float k = {3}") == ["Add", "Transpose"]


@pytest.mark.parametrize(
    "k", ["float[2] k = {3, 4}", "float[4, 2] k = {1, 2, 3, 4, 5, 6, 7, 8}", "float[3, 1, 1] k = {1, 2, 3}"]
)
def test_constant_operands_are_transposed_with_what_they_belong_to(k: str):
    """As exporters of channels-last models write a convolution, its bias, its normalization and a scale."""
    body = """a = Transpose<perm = [0, 2, 3, 1]>(x)  b = Add(a, k)  c = Relu(b)  d = Sub(k, c)
              y = Transpose<perm = [0, 3, 1, 2]>(d)"""
    assert result_of(body, (2, 3, 4), 4, k) == ["Add", "Relu", "Sub"]
    assert result_of(body.replace("[0, 3, 1, 2]", "[1, 0, 3, 2]"), (2, 3, 4), 4, k) == ["Add", "Relu", "Sub", "Transpose"]


def test_operands_that_are_not_constant_or_make_it_larger_are_not_transposed():
    body = "a = Transpose<perm = [0, 2, 1]>(x)  b = {}  y = Transpose<perm = [0, 2, 1]>(b)"
    there = ["Transpose", "Add", "Transpose"]
    assert result_of(body.format("Add(a, k)"), (2, 1), 3, "float[3, 1] k = {1, 2, 3}") == there
    assert result_of(
        "p = ReduceMax<keepdims = 0>(x, axes)  " + body.format("Add(a, p)"), (2, 3), 3, "int64[2] axes = {0, 2}"
    ) == [
        "ReduceMax",
        *there,
    ]


def test_what_all_operands_are_reshaped_or_transposed_to_happens_once():
    body = "a = Unsqueeze(x, one)  p = Tanh(x)  b = Unsqueeze(p, one)  y = Mul(a, b)"
    assert result_of(body, (2, 3), 4, ONE) == ["Tanh", "Mul", "Reshape"]
    body = "p = Relu(x)  q = Tanh(x)  a = Transpose<perm = [2, 0, 1]>(p)  b = Transpose<perm = [2, 0, 1]>(q)  y = Sub(a, b)"
    assert result_of(body, (2, 3), 3) == ["Relu", "Tanh", "Sub", "Transpose"]


def test_operands_that_broadcast_are_reshaped_each():
    body = "p = Relu(x)  q = ReduceMax<keepdims = 0>(x, one)  a = Unsqueeze(p, one)  b = Unsqueeze(q, one)  y = Mul(a, b)"
    assert result_of(body, (2, 2), 4, ONE).count("Mul") == 1


def test_a_stack_is_one_concat_and_one_reshape():
    body = "p = Relu(x)  q = Tanh(x)  a = Unsqueeze(p, one)  b = Unsqueeze(q, one)  y = Concat<axis = 1>(a, b)"
    assert result_of(body, (4, 3), 4, ONE) == ["Relu", "Tanh", "Concat", "Reshape"]
    body = "p = Relu(x)  q = Tanh(x)  a = Unsqueeze(p, two)  b = Unsqueeze(q, two)  y = Concat<axis = 2>(a, b)"
    assert result_of(body, (3,), 3, TWO) == ["Relu", "Tanh", "Unsqueeze", "Unsqueeze", "Concat"]


def test_the_shuffle_of_two_groups_of_channels_is_one_concat_and_one_reshape():
    body = """p = Relu(x)  q = Tanh(x)  a = Unsqueeze(p, one)  b = Unsqueeze(q, one)  c = Concat<axis = 1>(a, b)
        d = Transpose<perm = [0, 2, 1, 3, 4]>(c)  y = Reshape(d, flat)"""
    weights = f"{ONE}, int64[4] flat = {{0, -1, 1, 5}}"
    assert result_of(body, (4, 1, 5), 4, weights) == ["Relu", "Tanh", "Concat", "Reshape"]
    body = """p = Relu(x)  q = Tanh(x)  a = Concat<axis = 1>(p, q)  b = Reshape(a, cut)
        c = Transpose<perm = [0, 2, 1, 3, 4]>(b)  y = Reshape(c, flat)"""
    weights = "int64[5] cut = {0, 2, 3, 2, 5}, int64[4] flat = {0, -1, 2, 5}"
    assert result_of(body, (3, 2, 5), 4, weights) == ["Relu", "Tanh", "Concat", "Reshape"]


def test_a_shuffle_of_other_groups_than_the_parts_stays():
    body = """p = Relu(x)  q = Tanh(x)  a = Concat<axis = 1>(p, q)  b = Reshape(a, cut)
        c = Transpose<perm = [0, 2, 1, 3, 4]>(b)  y = Reshape(c, flat)"""
    weights = "int64[5] cut = {0, 3, 2, 2, 5}, int64[4] flat = {0, -1, 2, 5}"
    expected = ["Relu", "Tanh", "Concat", "Reshape", "Transpose", "Reshape"]
    assert result_of(body, (3, 2, 5), 4, weights) == expected
    body = body.replace("[0, 2, 1, 3, 4]", "[0, 4, 1, 2, 3]")
    assert result_of(body, (3, 2, 5), 4, weights.replace("3, 2, 2", "2, 3, 2")) == expected


def test_a_concat_of_transposes_is_transposed_once():
    body = """p = Relu(x)  q = Tanh(x)  a = Transpose<perm = [2, 0, 1]>(p)  b = Transpose<perm = [2, 0, 1]>(q)
        y = Concat<axis = -1>(a, b, a)"""
    assert result_of(body, (2, 3), 3) == ["Relu", "Tanh", "Concat", "Transpose"]


def test_parts_of_other_sizes_are_put_together_as_they_are():
    body = "p = Slice(x, zero, one, one)  a = Flatten(p)  b = Flatten(x)  y = Concat<axis = 1>(a, b)"
    assert result_of(body, (4, 3), 2, f"{ONE}, int64[1] zero = {{0}}") == ["Slice", "Concat", "Reshape"]
    body = "p = Slice(x, zero, one, two)  a = Flatten(p)  b = Flatten(x)  y = Concat<axis = 1>(a, b)"
    weights = f"{ONE}, {TWO}, int64[1] zero = {{0}}"
    assert result_of(body, (4, 3), 2, weights) == ["Slice", "Flatten", "Flatten", "Concat"]


def test_a_shape_that_a_caller_may_override_is_left_alone():
    model = from_text("""g (float[N, 4] x, int64[2] s) => (float[A, B] y) <int64[2] s = {-1, 2}, int64[2] back = {-1, 4}> {
        a = Reshape(x, back)  b = Relu(a)  y = Reshape(b, s)
    }""")
    feed = {"x": RNG.standard_normal((4, 4)).astype(np.float32)}
    assert operators(simplified(model, feed, feed | {"s": np.array([8, -1])})) == ["Relu", "Reshape"]


def named(model: onnx.ModelProto, *feeds: dict[str, np.ndarray], **kwargs: object) -> dict[str, str]:
    """The operators that are left, by the names of their nodes."""
    return {node.name: node.op_type for node in simplified(model, *feeds, **kwargs).graph.node}


def test_operators_that_reshapes_move_past_keep_their_names_and_metadata():
    model = from_text(
        f"""g (float[N, 4, 3] x) => (float[A, B] y)
        <{ONE}, int64[2] i = {{3, 1}}, int64[2] flat = {{0, 6}}, float[N, 4, 1, 3] b, float[N, 2, 1, 3] c> {{
        [wide] a = Unsqueeze(x, two)  [act] b = Tanh(a)  [take] c = Gather<axis = 1>(b, i)  [flat] y = Reshape(c, flat)
    }}""".replace(ONE, TWO)
    )
    entry = model.graph.node[1].metadata_props.add()
    entry.key, entry.value = "scope", "encoder"
    feed = {"x": RNG.standard_normal((3, 4, 3)).astype(np.float32)}
    assert named(model, feed) == {"act": "Tanh", "take": "Gather", "flat": "Reshape"}
    assert [*simplified(model, feed).graph.node[0].metadata_props] == [entry]


@pytest.mark.parametrize(
    ("moved", "both", "rank"),
    [
        ("a = Unsqueeze(p, one)  b = Unsqueeze(q, one)", "Concat<axis = 1>(a, b)", 4),
        ("a = Unsqueeze(p, one)  b = Unsqueeze(q, one)", "Sub(a, b)", 4),
        ("a = Transpose<perm = [2, 0, 1]>(p)  b = Transpose<perm = [2, 0, 1]>(q)", "Max(a, b, a)", 3),
        ("a = Transpose<perm = [2, 0, 1]>(p)  b = Transpose<perm = [2, 0, 1]>(q)", "Concat<axis = -1>(a, b, a)", 3),
    ],
)
def test_operators_that_read_reshaped_or_transposed_operands_keep_their_names(moved: str, both: str, rank: int):
    """Also where what they give is an output of the model, whose name it keeps."""
    body = f"p = Relu(x)  q = Tanh(x)  {moved}  [both] z = {both}  [after] y = Neg(z)"
    model = from_text(f"g (float[N, 2, 4] x) => ({RANKS[rank][:-1]}z, {RANKS[rank]}) <{ONE}> {{ {body} }}")
    found = named(model, {"x": RNG.standard_normal((3, 2, 4)).astype(np.float32)})
    assert (found["both"], found["after"]) == (both[: both.index("<" if "<" in both else "(")], "Neg")


@pytest.mark.parametrize("dead", [True, False])
def test_a_concat_that_is_taken_apart_otherwise_keeps_its_name(dead: bool):
    model = from_text("""g (float[N, 3, 2, 5] x) => (float[A, B, C, D] y)
        <int64[5] cut = {0, 2, 3, 2, 5}, int64[4] flat = {0, -1, 2, 5}, float[N, 6, 2, 5] a, float[N, 2, 3, 2, 5] b> {
        p = Relu(x)  q = Tanh(x)  [whole] a = Concat<axis = 1>(p, q)  b = Reshape(a, cut)
        c = Transpose<perm = [0, 2, 1, 3, 4]>(b)  y = Reshape(c, flat)
    }""")
    feed = {"x": RNG.standard_normal((3, 3, 2, 5)).astype(np.float32)}
    assert named(model, feed, dead=dead)["whole"] == "Concat"


def test_constants_that_are_nodes_stand_before_the_operators_that_read_them():
    model = from_text("""g (float[N, 2, 3] x) => (float[A, B, C] y) {
        k = Constant<value = float[2] {3, 4}>()  a = Transpose<perm = [0, 2, 1]>(x)
        [first] b = Add(a, k)  [second] c = Mul(k, b)  y = Transpose<perm = [0, 2, 1]>(c)
    }""")
    model.ir_version = 3
    found = named(model, {"x": RNG.standard_normal((3, 2, 3)).astype(np.float32)}, constants=False)
    assert [kind for kind in found.values() if kind != "Constant"] == ["Add", "Mul"]
    assert (found["first"], found["second"]) == ("Add", "Mul")


def test_a_reshape_that_takes_in_others_keeps_its_name():
    model = from_text(f"""g (float[N, 2, 3] x) => (float[A, B] y) <{ONE}, int64[2] flat = {{0, -1}}> {{
        [act] a = Relu(x)  b = Unsqueeze(a, one)  [mine] c = Reshape(b, flat)  [after] y = Neg(c)
    }}""")
    found = named(model, {"x": RNG.standard_normal((3, 2, 3)).astype(np.float32)})
    assert found == {"act": "Relu", "mine": "Reshape", "after": "Neg"}


def test_a_name_stands_for_the_same_values_as_before():
    """Who looks up what is inside a model by its name, as comparisons do, finds it as it was or not at all."""
    model = from_text(
        f"""g (float[N, 2, 4] x) => (float[A, B, C] y)
        <{ONE}, int64[3] flat = {{0, 2, 4}}> {{
        p = Relu(x)  q = Tanh(x)  a = Unsqueeze(p, one)  b = Unsqueeze(q, one)  c = Sub(a, b)
        d = Sigmoid(c)  e = Reshape(d, flat)
        f = Transpose<perm = [0, 2, 1]>(e)  g = Exp(f)  h = Transpose<perm = [0, 2, 1]>(g)  y = Neg(h)
    }}"""
    )
    feed = {"x": RNG.standard_normal((3, 2, 4)).astype(np.float32)}
    simple = simplified(model, feed)
    assert operators(simple) == ["Relu", "Tanh", "Sub", "Sigmoid", "Exp", "Neg"]
    before, after = (run(shown(graph), feed) for graph in (model, simple))
    for name in before.keys() & after.keys():
        np.testing.assert_allclose(after[name], before[name], rtol=1e-6, err_msg=name)


def shown(model: onnx.ModelProto) -> onnx.ModelProto:
    """The model with all values as outputs."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    outputs = {info.name for info in model.graph.output}
    inner = [name for node in model.graph.node for name in node.output if name not in outputs]
    copy.graph.output.extend(onnx.ValueInfoProto(name=name) for name in inner)
    return copy
