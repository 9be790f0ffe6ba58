"""If, Loop and functions are taken apart where their way is known."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from helpers import from_text, run
from simplifying import operators, simplified, simplify

X = np.arange(-4, 4, dtype=np.float32).reshape(2, 4)
FEEDS = [{"x": X}, {"x": X[:1]}]


@pytest.mark.parametrize(("condition", "expected"), [(1, ["Relu", "Add", "Neg"]), (0, ["Relu", "Sub", "Neg"])])
def test_an_if_with_a_constant_condition_is_the_branch_that_it_takes(condition: int, expected: list[str]):
    model = from_text(f"""g (float[N, 4] x) => (float[N, 4] y) <bool known = {{{condition}}}> {{
        a = Relu(x)
        b = If(known) <
            then_branch = t () => (float[N, 4] p) <float[4] w = {{1, 2, 3, 4}}> {{ p = Add(a, w) }},
            else_branch = e () => (float[N, 4] q) <float[4] w = {{5, 6, 7, 8}}> {{ q = Sub(a, w) }}
        >
        y = Neg(b)
    }}""")
    assert operators(simplified(model, *FEEDS)) == expected


def test_branches_that_use_the_same_names_are_told_apart():
    model = from_text("""g (float[N, 4] x) => (float[N, 4] y, float[N, 4] z) <bool yes = {1}, bool no = {0}> {
        y = If(yes) <
            then_branch = t () => (float[N, 4] p) <float[4] w = {1, 2, 3, 4}> { v = Add(x, w)  p = Relu(v) },
            else_branch = e () => (float[N, 4] q) { q = Neg(x) }
        >
        z = If(no) <
            then_branch = t () => (float[N, 4] p) { p = Neg(x) },
            else_branch = e () => (float[N, 4] p) <float[4] w = {5, 6, 7, 8}> { v = Add(x, w)  p = Tanh(v) }
        >
    }""")
    result = simplified(model, *FEEDS)
    assert operators(result) == ["Add", "Relu", "Add", "Tanh"]
    assert [output.name for output in result.graph.output] == ["y", "z"]


def test_new_names_do_not_meet_others_of_the_branch():
    model = from_text("""g (float[N, 4] x) => (float[N, 4] y, float[N, 4] v) <bool yes = {1}> {
        v = Relu(x)
        y = If(yes) <
            then_branch = t () => (float[N, 4] p) { v = Neg(x)  v_1 = Exp(v)  v_2 = Tanh(v_1)  p = Abs(v_2) },
            else_branch = e () => (float[N, 4] q) { q = Neg(x) }
        >
    }""")
    result, _ = simplify(model)
    onnx.checker.check_model(result, full_check=True)
    assert operators(result) == ["Relu", "Neg", "Exp", "Tanh", "Abs"]


def test_a_branch_that_gives_an_outer_value_or_one_value_twice():
    model = from_text("""g (float[N, 4] x) => (float[N, 4] y, float[N, 4] z, float[N, 4] u) <bool yes = {1}> {
        y, z, u = If(yes) <
            then_branch = t () => (float[N, 4] x1, float[N, 4] p, float[N, 4] q) {
                x1 = Identity(x)  p = Relu(x)  q = Identity(p)
            },
            else_branch = e () => (float[N, 4] r, float[N, 4] s, float[N, 4] v) { r = Neg(x)  s = Tanh(x)  v = Exp(x) }
        >
    }""")
    assert operators(simplified(model, *FEEDS)) == ["Identity", "Relu", "Identity"]


def test_nested_ifs_are_taken_apart_and_those_on_an_input_stay():
    model = from_text("""g (float[N, 4] x, bool flag) => (float[N, 4] y) <bool yes = {1}> {
        y = If(flag) <
            then_branch = t () => (float[N, 4] p) {
                a = Relu(x)
                p = If(yes) <
                    then_branch = t2 () => (float[N, 4] c) { b = Add(a, x)  c = Neg(b) },
                    else_branch = e2 () => (float[N, 4] d) { d = Neg(x) }
                >
            },
            else_branch = e () => (float[N, 4] q) { q = Neg(x) }
        >
    }""")
    result = simplified(model, *({**feed, "flag": np.array(flag)} for feed in FEEDS for flag in (True, False)))
    assert operators(result) == ["If"]
    inner = next(a.g for a in result.graph.node[0].attribute if a.name == "then_branch")
    assert [node.op_type for node in inner.node] == ["Relu", "Add", "Neg"]


def test_what_a_branch_hands_on_hides_nothing_from_other_rules():
    model = from_text("""g (float[1, N, 4] x, float[1, N, 4] w) => (float[2, N, 4] y, float[N, 4] z)
    <bool yes = {1}, int64[1] front = {0}> {
        s = Squeeze(x, front)  t = Squeeze(w, front)
        a, b = If(yes) <
            then_branch = i () => (float[N, 4] p, float[N, 4] q) { p = Identity(s)  q = Identity(t) },
            else_branch = e () => (float[N, 4] r, float[N, 4] v) { r = Neg(s)  v = Neg(t) }
        >
        c = Unsqueeze(a, front)  d = Unsqueeze(b, front)
        y = Concat<axis = 0>(c, d)
        z = Neg(s)
    }""")
    feed = {"x": X[None], "w": -X[None]}
    assert operators(simplified(model, feed)) == ["Squeeze", "Concat", "Neg"]


def test_a_condition_that_a_caller_may_override_is_not_known():
    model = from_text("""g (float[N, 4] x, bool flag) => (float[N, 4] y) <bool flag = {1}> {
        y = If(flag) <
            then_branch = t () => (float[N, 4] p) { p = Relu(x) },
            else_branch = e () => (float[N, 4] q) { q = Neg(x) }
        >
    }""")
    assert operators(simplified(model, {"x": X}, {"x": X, "flag": np.array(False)})) == ["If"]


def loop(trips: int, *, scanned: bool = True) -> onnx.ModelProto:
    """Y = x * w, ``trips`` times; z is what each round gives, if it is asked for."""
    info = helper.make_tensor_value_info
    body = helper.make_graph(
        [
            helper.make_node("Mul", ["state", "w"], ["next"]),
            helper.make_node("Cast", ["i"], ["number"], to=TensorProto.FLOAT),
            helper.make_node("Add", ["next", "number"], ["each"]),
            helper.make_node("Identity", ["go"], ["on"]),
        ],
        "body",
        [info("i", TensorProto.INT64, []), info("go", TensorProto.BOOL, []), info("state", TensorProto.FLOAT, None)],
        [info("on", TensorProto.BOOL, []), info("next", TensorProto.FLOAT, None), info("each", TensorProto.FLOAT, None)],
    )
    count = onnx.numpy_helper.from_array(np.array(trips), "trips")
    weight = onnx.numpy_helper.from_array(np.arange(1, 5, dtype=np.float32), "w")
    types = [info("y", TensorProto.FLOAT, ["N", 4]), info("z", TensorProto.FLOAT, ["T", "N", 4])]
    graph = helper.make_graph(
        [helper.make_node("Relu", ["x"], ["a"]), helper.make_node("Loop", ["trips", "", "a"], ["y", "z"], body=body)],
        "g",
        [info("x", TensorProto.FLOAT, ["N", 4])],
        types if scanned else types[:1],
        [count, weight],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


def test_a_loop_that_runs_once_is_its_body():
    assert operators(simplified(loop(1, scanned=False), *FEEDS)) == ["Relu", "Mul"]
    assert "Loop" not in operators(simplified(loop(1), *FEEDS))


def test_a_loop_that_never_runs_hands_on_what_it_was_given():
    assert operators(simplified(loop(0, scanned=False), *FEEDS)) == ["Relu"]
    assert "Loop" in operators(simplified(loop(0), *FEEDS))  # its scanned output is empty, but of what shape?


def test_a_loop_that_runs_more_often_stays():
    assert "Loop" in operators(simplified(loop(2), *FEEDS))


FUNCTIONS = """<ir_version: 10, opset_import: ["" : 20, "local" : 1]>
g (float[N, 4] x, bool flag) => (float[N, 4] y, float[N, 4] z) {
    v = Relu(x)
    y = local.outer<slope = 0.5>(v)
    z = If(flag) <
        then_branch = t () => (float[N, 4] p) { p = local.outer(v) },
        else_branch = e () => (float[N, 4] q) { o = local.leaky<slope = 0.25>(x)  q = Neg(o) }
    >
}
<opset_import: ["" : 20], domain: "local">
leaky <slope>(v) => (w) { w = LeakyRelu<alpha: float = @slope>(v) }
<opset_import: ["" : 20, "local" : 1], domain: "local">
outer <slope: float = 0.125>(x) => (w) {
    v = local.leaky<slope: float = @slope>(x)  u = Neg(v)
    w = local.leaky<slope = 0.75>(u) }
"""


def test_functions_are_taken_apart_with_their_attributes_and_names():
    model = from_text(FUNCTIONS)
    result = simplified(model, *({**feed, "flag": np.array(flag)} for feed in FEEDS for flag in (True, False)))
    assert not result.functions
    assert operators(result) == ["Relu", "LeakyRelu", "Neg", "LeakyRelu", "If"]
    slopes = [node.attribute[0].f for node in result.graph.node if node.op_type == "LeakyRelu"]
    assert slopes == [0.5, 0.75]


def test_a_function_of_another_opset_is_still_called():
    model = from_text("""<ir_version: 10, opset_import: ["" : 20, "local" : 1]>
    g (float[N, 4] x) => (float[N, 4] y) { a = Relu(x)  y = local.f(a) }
    <opset_import: ["" : 18], domain: "local"> f (v) => (w) { u = Neg(v)  w = Tanh(u) }
    """)
    result = simplified(model, *FEEDS)
    assert operators(result) == ["Relu", "f"]
    assert operators(simplified(model, *FEEDS, inline=False)) == ["Relu", "f"]


def test_an_excluded_call_stays_a_call():
    model = from_text("""<ir_version: 10, opset_import: ["" : 20, "local" : 1]>
    g (float[N, 4] x) => (float[N, 4] y) { a = Relu(x)  [call] y = local.f(a) }
    <opset_import: ["" : 20], domain: "local"> f (v) => (w) { u = Neg(v)  w = Tanh(u) }
    """)
    assert operators(simplified(model, *FEEDS, exclude=["call"])) == ["Relu", "f"]
    assert operators(simplified(model, *FEEDS)) == ["Relu", "Neg", "Tanh"]


def test_range_is_given_a_number_where_a_branch_gives_a_list_of_one() -> None:
    model = from_text("""g (float[N] x) => (int64[M] r, float[N] y) <int64 zero = {0}, int64 one = {1}, bool yes = {1}> {
        d = If (yes) <
            then_branch = t () => (int64[K] a) { v = Constant <value = int64[1] {4}> ()  a = Identity(v) },
            else_branch = e () => (int64[K] b) { w = Constant <value = int64[1] {7}> ()  b = Identity(w) }
        >
        r = Range(zero, d, one)
        y = Neg(x)
    }""")
    result = simplified(model, fold=False)
    assert run(result, {"x": np.ones(2, np.float32)})["r"].tolist() == [0, 1, 2, 3]


# ------------------------------------------------------------------------------------------- branches that cannot be taken

GEMM = "float[4, 2] w = {1, 2, 3, 4, 5, 6, 7, 8}"
FLAGGED = [{"x": np.ones((2, 4, 1), np.float32), "flag": np.array(True)}]


def test_a_branch_after_which_the_run_would_fail_is_never_taken():
    model = from_text(f"""g (float[N, 4, M] x, bool flag) => (float[A, B] y) <{GEMM}, int64[1] axis = {{-1}}> {{
        a = If(flag) <
            then_branch = t () => (float[C, D] p) {{ p = Squeeze(x, axis) }},
            else_branch = e () => (float[C, D, E] q) {{ q = Identity(x) }}
        >
        b = Relu(a)
        y = Gemm(b, w)
    }}""")
    result, changes = simplify(model)
    assert operators(result) == ["Squeeze", "Relu", "Gemm"]
    assert "which only its then branch may give" in next(change.why for change in changes if "If" in change.what)
    onnx.checker.check_model(result, full_check=True)
    for name, expected in run(model, FLAGGED[0]).items():
        np.testing.assert_array_equal(run(result, FLAGGED[0])[name], expected)
    assert run_fails(result, {"x": np.ones((2, 4, 3), np.float32), "flag": np.array(True)})


def run_fails(model: onnx.ModelProto, feed: dict[str, np.ndarray]) -> bool:
    with pytest.raises(Exception, match="Squeeze"):
        run(model, feed)
    return True


def test_ifs_that_ask_one_after_the_other_how_many_axes_there_are_all_go():
    model = from_text(f"""g (float[N, 4, M] x) => (float[A, B] y)
    <{GEMM}, int64 two = {{2}}, int64[1] axis = {{-1}}, int64[1] front = {{0}}, int64 one = {{1}}> {{
        s = Shape(x)  m = Gather(s, two)  flat = Equal(m, one)
        a = If(flat) <
            then_branch = t () => (float[C, D] p) {{ p = Squeeze(x, axis) }},
            else_branch = e () => (float[C, D, E] q) {{ q = Identity(x) }}
        >
        s2 = Shape(a)  rank = Size(s2)  is_two = Equal(rank, two)  other = Not(is_two)
        b = If(other) <
            then_branch = t () => (float[C, D, E] p) {{ p = Unsqueeze(a, front) }},
            else_branch = e () => (float[C, D] q) {{ q = Identity(a) }}
        >
        y = Gemm(b, w)
    }}""")
    result, _ = simplify(model)
    assert operators(result) == ["Squeeze", "Gemm"]
    feed = {"x": np.ones((2, 4, 1), np.float32)}
    np.testing.assert_array_equal(run(result, feed)["y"], run(model, feed)["y"])


@pytest.mark.parametrize("body", ["y = Relu(a)", "y = Softmax(a)", "z = Add(a, x)  y = Abs(z)"])
def test_an_if_stays_where_what_reads_it_takes_any_number_of_axes(body: str):
    model = from_text(f"""g (float[N, 4, 1] x, bool flag) => (float y) <int64[1] axis = {{-1}}> {{
        a = If(flag) <
            then_branch = t () => (float[C, D] p) {{ p = Squeeze(x, axis) }},
            else_branch = e () => (float[C, D, E] q) {{ q = Neg(x) }}
        >
        {body}
    }}""")
    model.graph.output[0].type.tensor_type.ClearField("shape")
    result, _ = simplify(model)
    assert operators(result)[0] == "If"


def test_an_if_stays_where_only_another_branch_asks_for_its_axes():
    model = from_text(f"""g (float[N, 4, 1] x, bool flag) => (float y) <{GEMM}, int64[1] axis = {{-1}}> {{
        a = If(flag) <
            then_branch = t () => (float[C, D] p) {{ p = Squeeze(x, axis) }},
            else_branch = e () => (float[C, D, E] q) {{ q = Neg(x) }}
        >
        y = If(flag) <
            then_branch = t2 () => (float[F, G] r) {{ r = Gemm(a, w) }},
            else_branch = e2 () => (float[F, G, H] s) {{ s = Abs(a) }}
        >
    }}""")
    model.graph.output[0].type.tensor_type.ClearField("shape")
    result, _ = simplify(model)
    assert operators(result) == ["If", "If"]
    for flag in (True, False):
        feed = {**FLAGGED[0], "flag": np.array(flag)}
        np.testing.assert_array_equal(run(result, feed)["y"], run(model, feed)["y"])
