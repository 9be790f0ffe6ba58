"""What ``simplify`` computes ahead of time: as onnxruntime would, within the limit on growth, nothing that a caller decides."""

from __future__ import annotations

import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper, numpy_helper
from onnx.reference.ops import load_op

from graphopt import model as models
from graphopt.passes.simplify import Simplify, direct
from graphopt.passes.simplify.evaluate import COMPUTES, LOWEST_OPSET, MOVES

from helpers import assert_same_outputs, from_text, run
from simplifying import context, operators, simplified, simplify

RNG = np.random.default_rng(0)
F = RNG.random((2, 3), np.float32) + np.float32(0.5)
NEGATIVE = (RNG.random((2, 3)) * 8 - 4).astype(np.float32)
WHOLE = np.array([[-7, 7, 5], [3, -2, 9]])
OTHER = np.array([[2, -2, 3], [-5, 4, 3]])
B = np.array([[True, False, True], [False, False, True]])
LATEST = 23
"""The highest opset that is tried."""


def ints(*values: int) -> np.ndarray:
    return np.array(values, np.int64)


def scalar(value: float, dtype: type = np.float32) -> np.ndarray:
    return np.array(value, dtype)


# Operator, inputs, attributes, and the opsets for which they are valid.
CASES: list[tuple[str, list[np.ndarray | None], dict[str, object], int, int]] = [
    *(
        (op, [NEGATIVE], {}, 7, LATEST)
        for op in ["Abs", "Ceil", "Cos", "Exp", "Floor", "Identity", "Neg", "Relu", "Sigmoid", "Sin", "Tanh"]
    ),
    *((op, [F], {}, 7, LATEST) for op in ["Log", "Reciprocal", "Sqrt"]),
    *((op, [NEGATIVE], {}, 9, LATEST) for op in ["Erf", "IsNaN", "NonZero", "Sign"]),
    *((op, [WHOLE], {}, 9, LATEST) for op in ["Abs", "Neg", "Sign"]),
    ("Round", [np.array([-2.5, -1.5, 0.5, 1.5, 2.4], np.float32)], {}, 11, LATEST),
    ("IsInf", [np.array([1, np.inf, -np.inf], np.float32)], {"detect_negative": 0}, 10, LATEST),
    *(
        (op, [NEGATIVE, F], {}, 7, LATEST)
        for op in ["Add", "Sub", "Mul", "Div", "Max", "Min", "Mean", "Sum", "Greater", "Less"]
    ),
    *((op, [WHOLE, OTHER], {}, 7, LATEST) for op in ["Add", "Sub", "Mul", "Div", "Equal"]),
    *((op, [WHOLE, OTHER], {}, 12, LATEST) for op in ["Max", "Min", "GreaterOrEqual", "LessOrEqual"]),
    *((op, [B, ~B], {}, 7, LATEST) for op in ["And", "Or", "Xor", "Equal"]),
    ("Not", [B], {}, 7, LATEST),
    ("Div", [WHOLE.astype(np.int32), OTHER.astype(np.int32)], {}, 7, LATEST),
    ("Mod", [WHOLE, OTHER], {}, 10, LATEST),
    ("Mod", [NEGATIVE, F], {"fmod": 1}, 10, LATEST),
    ("Pow", [F, scalar(2.5)], {}, 7, LATEST),
    ("Pow", [F, scalar(2, np.int64)], {}, 12, LATEST),
    ("Pow", [WHOLE, scalar(3, np.int64)], {}, 12, LATEST),
    ("Where", [B, F, scalar(-1)], {}, 9, LATEST),
    ("Clip", [NEGATIVE], {"min": -1.0, "max": 2.0}, 7, 10),
    ("Clip", [NEGATIVE, scalar(-1), scalar(2)], {}, 11, LATEST),
    ("Clip", [NEGATIVE, None, scalar(2)], {}, 11, LATEST),
    *(("Cast", [NEGATIVE], {"to": int(to)}, 7, LATEST) for to in (TensorProto.INT64, TensorProto.DOUBLE, TensorProto.BOOL)),
    ("Cast", [NEGATIVE], {"to": int(TensorProto.FLOAT16)}, 7, LATEST),
    ("Cast", [np.array([300, -1, 70000])], {"to": int(TensorProto.UINT8)}, 7, LATEST),
    ("Cast", [np.array([2**53 + 1, -3])], {"to": int(TensorProto.FLOAT)}, 7, LATEST),
    ("Concat", [F, NEGATIVE], {"axis": 1}, 7, LATEST),
    ("ConstantOfShape", [ints(2, 0, 3)], {}, 9, LATEST),
    ("ConstantOfShape", [ints(2, 3)], {"value": np.array([7], np.int32)}, 9, LATEST),
    ("CumSum", [F, scalar(1, np.int32)], {"exclusive": 1, "reverse": 1}, 11, LATEST),
    ("DepthToSpace", [np.arange(16, dtype=np.float32).reshape(1, 4, 2, 2)], {"blocksize": 2}, 7, LATEST),
    ("DepthToSpace", [np.arange(16, dtype=np.float32).reshape(1, 4, 2, 2)], {"blocksize": 2, "mode": "CRD"}, 11, LATEST),
    ("SpaceToDepth", [np.arange(16, dtype=np.float32).reshape(1, 1, 4, 4)], {"blocksize": 2}, 7, LATEST),
    ("Expand", [F, ints(4, 1, 3)], {}, 8, LATEST),
    ("EyeLike", [np.zeros((3, 4), np.int64)], {"k": 1}, 9, LATEST),
    ("Flatten", [F.reshape(1, 2, 3)], {"axis": 2}, 7, LATEST),
    ("Flatten", [F.reshape(1, 2, 3)], {"axis": -1}, 11, LATEST),
    ("Gather", [F, ints(2, 0)], {"axis": 1}, 7, LATEST),
    ("Gather", [F, scalar(-1, np.int64)], {}, 11, LATEST),
    ("GatherElements", [F, np.array([[0, 2], [1, -1]])], {"axis": 1}, 11, LATEST),
    ("GatherND", [F, np.array([[0, 1], [1, 2]])], {}, 11, LATEST),
    ("GatherND", [F, np.array([[1], [2]])], {"batch_dims": 1}, 12, LATEST),
    ("Gemm", [F, NEGATIVE, F[:, :2]], {"transB": 1, "alpha": 0.5, "beta": 2.0}, 7, LATEST),
    ("Gemm", [F, NEGATIVE], {"transB": 1}, 11, LATEST),
    ("MatMul", [F, NEGATIVE.T.copy()], {}, 7, LATEST),
    ("MatMul", [F.reshape(1, 2, 3), F[0]], {}, 7, LATEST),
    ("OneHot", [ints(0, -1, 5), scalar(3, np.int64), np.array([0, 1], np.float32)], {"axis": 0}, 11, LATEST),
    ("Pad", [F], {"pads": [0, 1, 1, 0], "value": 2.0}, 7, 10),
    ("Pad", [F, ints(0, 1, 1, 0), scalar(2)], {}, 11, LATEST),
    ("Pad", [F, ints(0, 2, 0, 1)], {"mode": "reflect"}, 11, LATEST),
    ("Pad", [F, ints(1, 2), None, ints(1)], {"mode": "edge"}, 18, LATEST),
    ("Range", [scalar(5, np.int64), scalar(-4, np.int64), scalar(-2, np.int64)], {}, 11, LATEST),
    ("Range", [scalar(0), scalar(1), scalar(0.1)], {}, 11, LATEST),
    *(
        (f"Reduce{kind}", [F], {"axes": [1]}, 7, 12 if kind == "Sum" else 17)
        for kind in ["L1", "L2", "Max", "Mean", "Min", "Prod", "Sum"]
    ),
    *(
        (f"Reduce{kind}", [F, ints(-1)], {"keepdims": 0}, 18, LATEST)
        for kind in ["L1", "L2", "Max", "Mean", "Min", "Prod", "SumSquare"]
    ),
    ("ReduceSum", [WHOLE], {}, 7, LATEST),
    ("ReduceSum", [F, ints(0)], {"noop_with_empty_axes": 1}, 13, LATEST),
    ("ReduceSum", [F], {"noop_with_empty_axes": 1}, 13, LATEST),
    ("ReduceSumSquare", [WHOLE], {"axes": [0]}, 7, 17),
    *((op, [WHOLE], {"axis": 1, "keepdims": 0}, 7, LATEST) for op in ("ArgMax", "ArgMin")),
    ("ArgMax", [ints(1, 3, 3)], {"select_last_index": 1}, 12, LATEST),
    ("Reshape", [F, ints(0, -1, 1)], {}, 7, LATEST),
    ("Reshape", [np.zeros((0, 3), np.float32), ints(3, 0)], {"allowzero": 1}, 14, LATEST),
    ("ScatterND", [F, np.array([[0], [1]]), NEGATIVE], {}, 11, LATEST),
    ("ScatterND", [F, np.array([[0, 1], [0, 1]]), np.array([1, 2], np.float32)], {"reduction": "add"}, 16, LATEST),
    ("Slice", [F], {"starts": [0, -2], "ends": [1, 9], "axes": [0, 1]}, 7, 9),
    ("Slice", [F, ints(-1, 0), ints(-9, 3), ints(1, 0), ints(-2, 1)], {}, 10, LATEST),
    ("Split", [F], {"axis": 1, "split": [1, 2]}, 7, 12),
    ("Split", [F, ints(1, 2)], {"axis": 1}, 13, LATEST),
    ("Split", [F], {"axis": 1, "num_outputs": 2}, 18, LATEST),
    ("Squeeze", [F.reshape(1, 2, 3, 1)], {"axes": [0]}, 7, 12),
    ("Squeeze", [F.reshape(1, 2, 3, 1), ints(-1)], {}, 13, LATEST),
    ("Squeeze", [F.reshape(1, 2, 3, 1)], {}, 7, LATEST),
    ("Tile", [F, ints(2, 1)], {}, 7, LATEST),
    ("Transpose", [F.reshape(1, 2, 3)], {"perm": [2, 0, 1]}, 7, LATEST),
    ("Transpose", [F], {}, 7, LATEST),
    ("Trilu", [F, scalar(1, np.int64)], {"upper": 0}, 14, LATEST),
    ("Unsqueeze", [F], {"axes": [0, 3]}, 7, 12),
    ("Unsqueeze", [F, ints(-1, 0)], {}, 13, LATEST),
]


def versions(op_type: str, lowest: int, highest: int) -> list[int]:
    """The opsets between the two in which the operator was changed, and the two themselves."""
    history = {schema.since_version for schema in onnx.defs.get_all_schemas_with_history() if schema.name == op_type}
    return sorted({lowest, highest} | {version for version in history if lowest < version < highest})


def constant_model(op_type: str, inputs: list[np.ndarray | None], attributes: dict[str, object], opset: int) -> onnx.ModelProto:
    """The operator on initializers; its outputs are the model's."""
    names = [f"c{i}" if array is not None else "" for i, array in enumerate(inputs)]
    outputs = ["y0", "y1"] if op_type == "Split" else ["y0"]
    fixed = {n: numpy_helper.from_array(v) if isinstance(v, np.ndarray) else v for n, v in attributes.items()}
    node = helper.make_node(op_type, names, outputs, **fixed)
    initializers = [numpy_helper.from_array(a, n) for n, a in zip(names, inputs, strict=True) if a is not None]
    imports = [helper.make_opsetid("", opset)]
    results = [helper.make_empty_tensor_value_info(name) for name in outputs]
    model = helper.make_model(helper.make_graph([node], "g", [], results, initializers), opset_imports=imports, ir_version=8)
    inferred = onnx.shape_inference.infer_shapes(model, data_prop=True)
    for result, known in zip(model.graph.output, inferred.graph.output, strict=True):
        result.CopyFrom(helper.make_tensor_value_info(result.name, known.type.tensor_type.elem_type, None))
    return model


@pytest.mark.parametrize("op_type", sorted({case[0] for case in CASES}))
def test_what_is_computed_ahead_of_time_is_what_onnxruntime_gives_in_every_opset(op_type: str):
    for name, inputs, attributes, lowest, highest in CASES:
        for opset in versions(name, lowest, highest) if name == op_type else ():
            model = constant_model(name, inputs, attributes, opset)
            result, changes = simplify(model)
            assert operators(result) == [], (opset, attributes, changes)
            assert_same_outputs(model, result, {})


def test_every_operator_that_is_computed_is_tried_above():
    assert {case[0] for case in CASES} == MOVES | COMPUTES
    assert min(case[3] for case in CASES) == LOWEST_OPSET


def test_the_usual_operators_give_what_the_reference_implementation_gives():
    compared = set()
    for name, inputs, attributes, lowest, highest in CASES:
        for opset in versions(name, lowest, highest):
            node = ir.from_proto(constant_model(name, inputs, attributes, opset)).graph[0]
            found = direct.compute(node, inputs)
            if found is not None:
                given = {key: numpy_helper.from_array(v) if isinstance(v, np.ndarray) else v for key, v in attributes.items()}
                wanted = load_op("", name, opset).eval(*inputs, n_outputs=len(node.outputs), **given)
                assert isinstance(found, list) == (name == "Split")
                pairs = zip(found, wanted, strict=True) if isinstance(found, list) else [(found, np.asarray(wanted))]
                for ours, theirs in pairs:
                    np.testing.assert_array_equal(ours, theirs, strict=True, err_msg=f"{name} {opset}")
                compared.add(name)
    assert compared == direct.COVERED


def test_what_models_usually_compute_ahead_of_time_does_not_need_the_reference_implementation():
    code = """if True:
        import sys
        import onnx, onnx_ir as ir
        sys.path.insert(0, %r)
        from simplifying import simplify
        model = onnx.parser.parse_model('''<ir_version: 10, opset_import: ["" : 20]>
            g (float[N, 4] x) => (float[N, 4] y) <float[2, 2] w = {1, 2, 3, 4}, int64[1] four = {4}> {
                flat = Reshape(w, four)
                wide = Unsqueeze(flat, axis)
                root = Sqrt(wide)
                y = Mul(x, root)
            }''')
        model.graph.initializer.append(onnx.helper.make_tensor("axis", 7, [1], [0]))
        result, _ = simplify(model)
        assert [node.op_type for node in result.graph.node] == ["Mul"]
        assert "onnx.reference" not in sys.modules
    """
    subprocess.run([sys.executable, "-c", code % str(Path(__file__).parents[1])], check=True)


@pytest.mark.parametrize(
    ("op_type", "inputs", "attributes"),
    [
        ("Div", [WHOLE, np.zeros((2, 3), np.int64)], {}),
        ("Div", [F, scalar(0)], {}),
        ("Mod", [WHOLE, scalar(0, np.int64)], {}),
        ("Log", [scalar(0)], {}),
        ("Sqrt", [scalar(-1)], {}),
        ("Exp", [scalar(1000)], {}),
        ("Cast", [scalar(math.nan)], {"to": int(TensorProto.INT64)}),
        ("Cast", [scalar(3e9)], {"to": int(TensorProto.INT32)}),
        ("Cast", [scalar(1e30)], {"to": int(TensorProto.FLOAT16)}),
        ("Pow", [WHOLE, scalar(-1, np.int64)], {}),
    ],
)
def test_errors_and_undefined_results_are_left_to_the_runtime(
    op_type: str, inputs: list[np.ndarray | None], attributes: dict[str, object]
):
    result, changes = simplify(constant_model(op_type, inputs, attributes, 20))
    assert operators(result) == [op_type]
    assert [(change.site, change.done) for change in changes] == [("y0", False)]


def test_nothing_is_computed_before_opset_7():
    model = constant_model("Exp", [F], {}, 6)
    assert operators(simplify(model)[0]) == ["Exp"]


# ------------------------------------------------------------------------------------------------------------------ shapes


def test_the_bias_that_torch_exports_for_a_convolution_without_one_becomes_a_constant():
    model = from_text("""g (float[N, 3, 8, 8] x) => (float[N, 4, 8, 8] y)
    <float zero = {0}, int64[1] a = {0}, int64[1] b = {1}> {
        like = CastLike(zero, x)
        shape = Shape(w)
        count = Slice(shape, a, b)
        bias = Expand(like, count)
        y = Conv(x, w, bias)
    }""")
    weight = RNG.standard_normal((4, 3, 1, 1)).astype(np.float32)
    model.graph.initializer.append(numpy_helper.from_array(weight, "w"))
    result = simplified(model, {"x": RNG.random((2, 3, 8, 8), np.float32)})
    assert operators(result) == ["Conv"]
    assert {tensor.name: list(tensor.dims) for tensor in result.graph.initializer} == {"w": [4, 3, 1, 1], "bias": [4]}


def test_only_fixed_dimensions_are_constant():
    model = from_text("""g (float[N, 4] x, float[2, 4] y) => (int64[2] a, int64[1] b, int64 c) {
        a = Shape(x)
        b = Shape<start = -1>(y)
        c = Size(y)
    }""")
    assert operators(simplified(model, {"x": np.ones((3, 4), np.float32), "y": np.ones((2, 4), np.float32)})) == ["Shape"]


def test_shapes_that_the_file_states_inside_the_graph_are_not_believed():
    model = from_text("g (float[N, 4] x) => (int64[2] y) { a = Relu(x)  y = Shape(a) }")
    model.graph.value_info.append(helper.make_tensor_value_info("a", TensorProto.FLOAT, [1, 4]))
    assert operators(simplify(model)[0]) == ["Relu", "Shape"]


def test_a_shape_that_a_caller_may_override_is_not_believed():
    model = from_text("""g (float[8] x, int64[2] target) => (int64[2] y, float[a, b] z) <int64[2] target = {2, 4}> {
        z = Reshape(x, target)
        y = Shape(z)
    }""")
    x = {"x": np.ones(8, np.float32)}
    assert operators(simplified(model, x, {**x, "target": ints(4, 2)})) == ["Reshape", "Shape"]


def test_a_shape_inside_a_loop_is_not_that_of_its_first_trip():
    model = from_text("""g (float[n] x) => (float[m] y) <int64 trips = {3}> {
        y = Loop(trips, , x) <
            body = b (int64 i, bool go, float[n] s) => (bool on, float[k] t) {
                on = Identity(go)
                size = Shape(s)
                f = Cast<to = 1>(size)
                t = Concat<axis = 0>(s, f)
            }
        >
    }""")
    simplified(model, {"x": np.ones(2, np.float32)})
    fixed = from_text(onnx.printer.to_text(model).replace("float[n] x", "float[2] x"))
    assert run(simplify(fixed)[0], {"x": np.ones(2, np.float32)})["y"].tolist() == [1, 1, 2, 3, 4]


def test_branches_with_the_same_names_are_told_apart():
    # ONNX's shape inference takes the ends of the slice from the other branch: it looks them up by name.
    text = "{ j = Constant<value_ints = [%d]>()  s = Shape(w)  p = Slice(s, zero, j)  r = Expand(k, p) }"
    model = from_text(f"""g (bool flag) => (float[a] y, float[b] z) <float k = {{1}}, int64[1] zero = {{0}}> {{
        y = If(flag) <then_branch = t () => (float[d] r) {text % 3}, else_branch = e () => (float[d] r) {text % 3}>
        z = If(flag) <then_branch = t () => (float[d] r) {text % 1}, else_branch = e () => (float[d] r) {text % 1}>
    }}""")
    model.graph.initializer.append(numpy_helper.from_array(np.ones((4, 4, 1, 1), np.float32), "w"))
    result, _ = simplify(model)
    for flag in (True, False):
        assert_same_outputs(model, result, {"flag": np.array(flag)})


# ---------------------------------------------------------------------------------------------------- who else uses it


def test_constants_that_are_shared_captured_or_outputs_stay_where_they_are_needed():
    model = from_text("""g (float[N, 4] x, bool flag) => (float[N, 4] y, float[4] n) <float[4] w = {1, 2, 3, 4}> {
        n = Neg(w)
        a = Mul(x, n)
        b = Add(a, w)
        y = If(flag) <
            then_branch = t () => (float[N, 4] d) { c = Exp(n)  d = Add(b, c) },
            else_branch = e () => (float[N, 4] d) { c = Exp(n)  d = Sub(b, c) }
        >
    }""")
    x = {"x": np.ones((2, 4), np.float32)}
    result = simplified(model, {**x, "flag": np.array(True)}, {**x, "flag": np.array(False)})
    assert operators(result) == ["Mul", "Add", "If"]
    # Both branches computed the same from a constant outside: it is there once, beside that constant.
    assert len(result.graph.initializer) == 2
    assert [len(attribute.g.initializer) for node in result.graph.node for attribute in node.attribute if attribute.g.node] == [
        0,
        0,
    ]


def test_what_reads_a_weight_that_a_caller_may_override_is_computed_at_run_time_and_the_report_says_why():
    model = from_text(
        "g (float[N, 4] x, float[4] w) => (float[N, 4] y) <float[4] w = {1, 2, 3, 4}> { a = Neg(w)  y = Mul(x, a) }"
    )
    x = {"x": np.ones((2, 4), np.float32)}
    assert operators(simplified(model, x, {**x, "w": np.full(4, 7, np.float32)})) == ["Neg", "Mul"]
    _, changes = simplify(model)
    assert [(change.site, change.done) for change in changes] == [("a", False)]
    assert "override" in changes[0].why


def test_old_files_and_functions_get_constants_as_nodes():
    old = from_text('<ir_version: 3, opset_import: ["" : 9]> g (float[2, 4] x) => (float[2, 4] y) { y = Add(x, x) }')
    weight = helper.make_node("Constant", [], ["w"], value=numpy_helper.from_array(np.ones(4, np.float32)))
    old.graph.node.insert(0, weight)
    old.graph.node.insert(1, helper.make_node("Neg", ["w"], ["n"]))
    old.graph.node[2].input[1] = "n"
    result = simplified(old, {"x": np.ones((2, 4), np.float32)})
    assert [node.op_type for node in result.graph.node] == ["Constant", "Add"]
    assert len(result.graph.initializer) == 0

    function = from_text("""<ir_version: 10, opset_import: ["" : 20, "local" : 1]>
    g (float[2, 4] x) => (float[2, 4] y) { y = local.f<factor = 2>(x) }
    <domain: "local", opset_import: ["" : 20]>
    f <factor>(p) => (q) {
        a = Constant<value_float = 2.0>()
        b = Exp(a)
        c = Constant<value_int : int = @factor>()
        d = CastLike(c, p)
        e = Mul(p, b)
        q = Add(e, d)
    }""")
    result = simplified(function, {"x": np.ones((2, 4), np.float32)}, inline=False)
    assert [node.op_type for node in result.functions[0].node] == ["Constant", "Constant", "CastLike", "Mul", "Add"]


def test_constants_become_initializers_that_equal_ones_share():
    model = from_text("""g (float[N, 4] x) => (float[N, 4] y) {
        a = Constant<value_float = 2.0>()
        b = Constant<value = float {2}>()
        c = Mul(x, a)
        y = Add(c, b)
    }""")
    result = simplified(model, {"x": np.ones((2, 4), np.float32)})
    assert [tensor.name for tensor in result.graph.initializer] == ["a"]


# ------------------------------------------------------------------------------------------------------------------ growth


def growing(elements: int) -> onnx.ModelProto:
    """Two constants that would take 4 bytes an element, and one that shrinks again before it is used."""
    return from_text(f"""g (float[N, 1] x) => (float[N, {elements}] y, float[N, {elements}] z, float[N, 1] s)
    <float one = {{1}}, float two = {{2}}, int64[1] shape = {{{elements}}}> {{
        a = Expand(one, shape)
        y = Mul(x, a)
        b = Expand(two, shape)
        z = Mul(x, b)
        c = ReduceMax(b)
        s = Mul(x, c)
    }}""")


def test_the_file_never_grows_by_more_than_the_limit():
    model, x = growing(1000), {"x": np.ones((2, 1), np.float32)}
    assert operators(simplified(model, x)) == ["Mul", "Mul", "Mul"]
    assert operators(simplified(model, x, growth_bytes=100)) == ["Expand", "Mul", "Expand", "Mul", "Mul"]
    for limit, constants in ((100, 0), (5000, 1), (9000, 2)):
        result, _ = simplify(model, growth_bytes=limit)
        assert operators(result).count("Expand") == 2 - constants
        assert models.weight_bytes(ir.from_proto(result)) <= models.weight_bytes(ir.from_proto(model)) + limit
        assert_same_outputs(model, result, x)
    _, changes = simplify(model, growth_bytes=100)
    assert [(change.site, change.what) for change in changes if not change.done] == [
        ("a", "left Expand to the runtime"),
        ("b", "left Expand to the runtime"),
    ]
    assert "would add 3,9" in changes[-1].why


def test_a_second_run_does_not_write_what_the_limit_kept_out_of_the_first():
    model, x = growing(1000), {"x": np.ones((2, 1), np.float32)}
    result = simplified(model, x, growth_bytes=5000)
    assert operators(result).count("Expand") == 1
    assert {prop.key: prop.value for prop in result.metadata_props} == {"graphopt.growth_limit": "reached"}
    assert not simplified(growing(10), {"x": np.ones((2, 1), np.float32)}).metadata_props


@pytest.mark.parametrize("elements", [1_000_000, 10_000_000_000])
def test_a_small_file_is_never_blown_up(elements: int):
    model = growing(elements)
    result, _ = simplify(model)
    assert operators(result).count("Expand") == 2
    assert result.ByteSize() < model.ByteSize() + 1000


def test_weights_are_moved_when_they_are_written_and_not_read_before(tmp_path: Path):
    weight = RNG.standard_normal((600, 700)).astype(np.float32)
    model = from_text("""g (float[N, 600] x) => (float[N, 2, 350] y) <int64[3] shape = {0, 2, 350}, int64[2] cut = {300, 400}> {
        a = Transpose(w)
        l, r = Split<axis = 0>(a, cut)
        b = Concat<axis = 0>(r, l)
        c = Transpose(b)
        d = MatMul(x, c)
        y = Reshape(d, shape)
    }""")
    model.graph.initializer.append(numpy_helper.from_array(weight, "w"))
    path = tmp_path / "model.onnx"
    onnx.save(model, path, save_as_external_data=True, location="weights.bin")
    loaded = models.load(path)
    data = (tmp_path / "weights.bin").read_bytes()
    changes = Simplify().apply(loaded, context(growth_bytes=0))
    assert [change for change in changes if not change.done] == []
    constant = loaded.graph.initializers["c"].const_value
    assert isinstance(constant, ir.LazyTensor)
    written = models.save(loaded, tmp_path / "out.onnx", "always")
    assert written.path.stat().st_size < 2000
    assert (tmp_path / "weights.bin").read_bytes() == data
    assert_same_outputs(path, written.path, {"x": RNG.random((2, 600), np.float32)})


def test_small_weights_that_were_moved_need_their_file_no_more(tmp_path: Path):
    weight = RNG.standard_normal((200, 300)).astype(np.float32)
    model = from_text("g (float[N, 300] x) => (float[N, 200] y) { a = Transpose(w)  y = MatMul(x, a) }")
    model.graph.initializer.append(numpy_helper.from_array(weight, "w"))
    onnx.save(model, tmp_path / "model.onnx", save_as_external_data=True, location="weights.bin")
    loaded = models.load(tmp_path / "model.onnx")
    Simplify().apply(loaded, context())
    (tmp_path / "weights.bin").write_bytes(b"")
    moved = loaded.graph.initializers["a"].const_value
    assert moved is not None
    np.testing.assert_array_equal(moved.numpy(), weight.T)


def test_equal_weights_in_a_file_are_found_without_loading_them(tmp_path: Path):
    weights = np.zeros((3, 500_000), np.float32)
    weights[1, -1] = 1
    model = from_text("g (float[N, 500000] x) => (float[N, 500000] y) { a = Add(x, w0)  b = Add(a, w1)  y = Add(b, w2) }")
    model.graph.initializer.extend(numpy_helper.from_array(w, f"w{i}") for i, w in enumerate(weights))
    onnx.save(model, tmp_path / "model.onnx", save_as_external_data=True, location="weights.bin")
    loaded = models.load(tmp_path / "model.onnx")
    Simplify().apply(loaded, context())
    assert list(loaded.graph.initializers) == ["w0", "w1"]
