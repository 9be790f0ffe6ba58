"""``shapes.opset``: newer operators that mean the same, and a clear refusal where there are none."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from graphopt import model as files
from graphopt import pipeline
from graphopt.contracts import Change
from graphopt.errors import ModelError, UsageError
from graphopt.passes.shapes import OpsetOptions, UpgradeOpset

from helpers import assert_same_outputs, from_text, run, small_cnn
from simplifying import context

X = np.random.default_rng(0).standard_normal((2, 4, 6, 6)).astype(np.float32)


def upgrade(proto: onnx.ModelProto, version: int, *, full: bool = True) -> tuple[onnx.ModelProto, list[Change]]:
    model = ir.from_proto(onnx.ModelProto.FromString(proto.SerializeToString()))
    changes = UpgradeOpset(OpsetOptions(version=version)).apply(model, context())
    result = ir.to_proto(model)
    onnx.checker.check_model(result, full_check=full)
    return result, [*changes]


def at(opset: int, body: str, inputs: str = "float[2, 4, 6, 6] x", outputs: str = "float[A, B, C, D] y") -> onnx.ModelProto:
    version = onnx.helper.find_min_ir_version_for([onnx.helper.make_opsetid("", opset)])
    return from_text(f'<ir_version: {max(version, 4)}, opset_import: ["" : {opset}]> g ({inputs}) => ({outputs}) {body}')


def operators(proto: onnx.ModelProto) -> list[str]:
    return [node.op_type for node in proto.graph.node if node.op_type != "Constant"]


RANK_3, RANK_2 = "float[A, B, C] y", "float[A, B] y"
CASES = {
    "clip": (7, 13, "{ y = Clip <min = -0.5, max = 0.5> (x) }", "float[A, B, C, D] y"),
    "clip with one limit": (10, 20, "{ y = Clip <max = 0.25> (x) }", "float[A, B, C, D] y"),
    "pad": (10, 20, "{ y = Pad <pads = [0,0,1,2,0,0,1,0], value = 2.5> (x) }", "float[A, B, C, D] y"),
    "pad by reflection": (9, 13, '{ y = Pad <pads = [0,0,1,2,0,0,1,0], mode = "reflect"> (x) }', "float[A, B, C, D] y"),
    "slice": (9, 13, "{ y = Slice <starts = [1, 0], ends = [4, -1], axes = [1, 3]> (x) }", "float[A, B, C, D] y"),
    "slice without axes": (7, 20, "{ y = Slice <starts = [0, 1], ends = [2, 3]> (x) }", "float[A, B, C, D] y"),
    "topk": (9, 20, "{ y, i = TopK <k = 2, axis = 1> (x) }", "float[A, B, C, D] y, int64[E, F, G, H] i"),
    "dropout": (7, 20, "{ y = Dropout <ratio = 0.4> (x) }", "float[A, B, C, D] y"),
    "upsample by nearest": (7, 13, "{ y = Upsample <scales = [1., 1., 2., 3.]> (x) }", "float[A, B, C, D] y"),
    "upsample by line": (7, 20, '{ y = Upsample <mode = "linear", scales = [1., 1., 2., 2.]> (x) }', "float[A, B, C, D] y"),
    "resize by line": (
        10,
        19,
        '<float[4] s = {1, 1, 0.5, 1.5}> { y = Resize <mode = "linear"> (x, s) }',
        "float[A, B, C, D] y",
    ),
    "resize to sizes": (
        11,
        20,
        "<float[0] none = {}, int64[4] sizes = {2, 4, 9, 3}> { y = Resize (x, none, none, sizes) }",
        "float[A, B, C, D] y",
    ),
    "softmax over several axes": (11, 13, "{ y = Softmax <axis = 2> (x) }", "float[A, B, C, D] y"),
    "softmax by default": (7, 20, "{ y = Softmax (x) }", "float[A, B, C, D] y"),
    "logsoftmax by default": (11, 20, "{ y = LogSoftmax (x) }", "float[A, B, C, D] y"),
    "hardmax": (11, 13, "{ y = Hardmax <axis = 1> (x) }", "float[A, B, C, D] y"),
    "softmax over the last axis": (11, 13, "{ y = Softmax <axis = 3> (x) }", "float[A, B, C, D] y"),
    "unsqueeze, squeeze": (
        11,
        13,
        "{ a = Unsqueeze <axes = [0, 3]> (x)  y = Squeeze <axes = [0, 3]> (a) }",
        "float[A, B, C, D] y",
    ),
    "sum": (11, 18, "{ y = ReduceSum <axes = [1], keepdims = 0> (x) }", RANK_3),
    "reductions": (
        13,
        18,
        "{ a = ReduceMean <axes = [2]> (x)  b = ReduceMax <axes = [-1]> (x)  y = Add(a, b) }",
        "float[A, B, C, D] y",
    ),
    "mean of all": (13, 20, "{ y = ReduceMean(x) }", "float[A, B, C, D] y"),
    "split by sizes": (11, 13, "{ y, z = Split <axis = 1, split = [1, 3]> (x) }", "float[A, B, C, D] y, float[E, F, G, H] z"),
    "split in equal parts": (13, 18, "{ y, z = Split <axis = 1> (x) }", "float[A, B, C, D] y, float[E, F, G, H] z"),
    "scatter": (
        9,
        20,
        "<int64[1, 1, 1, 2] i = {1, 0}, float[1, 1, 1, 2] u = {7, 8}> { y = Scatter <axis = 1> (x, i, u) }",
        "float[A, B, C, D] y",
    ),
    "roi align": (
        11,
        16,
        "<float[1, 4] r = {0.5, 0.5, 4, 5}, int64[1] b = {1}> { y = RoiAlign <output_height = 2, output_width = 3> (x, r, b) }",
        "float[A, B, C, D] y",
    ),
    "grid sample": (
        16,
        20,
        "<float[2, 1, 2, 2] g = {0, 0.1, -0.4, 0.5, 0.2, -1, 0.9, 0.3}> { y = GridSample (x, g) }",
        "float[A, B, C, D] y",
    ),
    "group normalization": (
        18,
        21,
        "<float[2] s = {1, 2}, float[2] b = {0, 3}> { y = GroupNormalization <num_groups = 2> (x, s, b) }",
        "float[A, B, C, D] y",
    ),
    "batch normalization": (
        7,
        20,
        "<float[4] a = {1, 2, 3, 4}, float[4] b = {0, 1, 0, 1}> { y = BatchNormalization <spatial = 1> (x, a, b, b, a) }",
        "float[A, B, C, D] y",
    ),
    "erf": (9, 13, "{ y = Erf(x) }", "float[A, B, C, D] y"),
    "pool with padding": (
        7,
        22,
        "{ y = AveragePool <kernel_shape = [3, 3], pads = [1, 1, 1, 1]> (x) }",
        "float[A, B, C, D] y",
    ),
}


@pytest.mark.parametrize(("old", "new", "body", "outputs"), CASES.values(), ids=CASES)
def test_the_new_operators_compute_the_same(old: int, new: int, body: str, outputs: str) -> None:
    model = at(old, body, outputs=outputs)
    result, _ = upgrade(model, new)
    assert result.opset_import[0].version == new
    assert_same_outputs(model, result, {"x": X})


def test_a_fourier_transform_keeps_its_axis() -> None:
    model = at(17, "{ y = DFT(x) }", "float[2, 5, 4, 1] x", "float[A, B, C, D] y")
    result, _ = upgrade(model, 20)
    assert_same_outputs(model, result, {"x": X[:, :, :5, :1].transpose(0, 2, 1, 3)})


def test_limits_of_a_clip_get_the_type_of_what_they_limit() -> None:
    model = at(10, "{ a = Relu(x)  y = Clip <max = 6.0> (a) }", "float16[N] x", "float16[N] y")
    result, _ = upgrade(model, 13)
    assert_same_outputs(model, result, {"x": np.array([-1, 3, 9], np.float16)})


def test_softmax_stays_one_node_where_the_axes_after_it_have_one_element() -> None:
    model = at(11, "{ y = Softmax(x) }", "float[N, 10, 1, 1] x")
    result, _ = upgrade(model, 13)
    assert operators(result) == ["Softmax"]
    assert_same_outputs(model, result, {"x": X.reshape(-1)[:20].reshape(2, 10, 1, 1)})


@settings(max_examples=25, deadline=None)
@given(st.lists(st.integers(1, 4), min_size=1, max_size=4), st.data(), st.booleans())
def test_softmax_is_the_same_at_any_rank_and_axis(shape: list[int], data: st.DataObject, known: bool) -> None:
    axis = data.draw(st.integers(-len(shape), len(shape) - 1))
    dims = ", ".join(str(size) if known else f"D{index}" for index, size in enumerate(shape))
    model = at(11, f"{{ y = Softmax <axis = {axis}> (x) }}", f"float[{dims}] x", f"float[{dims}] y")
    result, _ = upgrade(model, 13)
    assert_same_outputs(model, result, {"x": np.resize(X, shape)})


def test_subgraphs_and_their_captured_values_are_upgraded() -> None:
    model = from_text("""<ir_version: 7, opset_import: ["" : 11]> g (float[2, 3] x, bool flag) => (float[D] y) {
        y = If (flag) <then_branch = t () => (float[D] a) { a = ReduceSum <axes = [0], keepdims = 0> (x) },
                       else_branch = e () => (float[D] b) { b = ReduceSum <axes = [1], keepdims = 0> (x) }>
    }""")
    result, _ = upgrade(model, 18)
    for flag in (True, False):
        assert_same_outputs(model, result, {"x": X[0, 0, :2, :3], "flag": np.array(flag)})


FUNCTION = """<ir_version: 8, opset_import: ["" : 12, "own" : 1]> g (float[2, 3] x) => (float[A, B, C] y)
{{ y = own.f{given} (x) }}
<domain: "own", opset_import: ["" : 12]> f {parameter} (x) => (y) {{ a = Relu(x)  y = Unsqueeze <axes{axes}> (a) }}"""


def test_functions_are_upgraded_from_their_own_version() -> None:
    model = from_text(FUNCTION.format(given="", parameter="", axes=" = [1]"))
    result, _ = upgrade(model, 18)
    assert [o.version for o in result.functions[0].opset_import if not o.domain] == [18]
    assert_same_outputs(model, result, {"x": X[0, 0, :2, :3]})


def test_new_names_do_not_collide() -> None:
    model = at(11, "{ y_constant = Relu(x)  y = Squeeze <axes = [0]> (y_constant) }", "float[1, 4] x", "float[4] y")
    result, _ = upgrade(model, 13)
    assert_same_outputs(model, result, {"x": X[0, 0, :1, :4]})


def test_initializers_of_an_old_file_stay_constants() -> None:
    """Up to IR version 3 they had to be listed as inputs; from 4 on that would make them replaceable."""
    model = from_text("""<ir_version: 3, opset_import: ["" : 7]> g (float[N, 2] x, float[2] w) => (float[N, 2] y)
        <float[2] w = {1, 2}> { y = Mul(x, w) }""")
    result, changes = upgrade(model, 13)
    assert [value.name for value in result.graph.input] == ["x"]
    assert any("no longer listed as inputs" in change.what for change in changes)
    assert_same_outputs(model, result, {"x": X[0, 0, :3, :2]})


def test_an_initializer_that_a_caller_may_replace_still_can_be() -> None:
    model = from_text("""<ir_version: 7, opset_import: ["" : 11]> g (float[1, 2] x, float[2] w) => (float[2] y)
        <float[2] w = {1, 2}> { a = Squeeze <axes = [0]> (x)  y = Mul(a, w) }""")
    result, _ = upgrade(model, 13)
    feed = {"x": X[0, 0, :1, :2], "w": np.array([5, 6], np.float32)}
    np.testing.assert_array_equal(run(result, feed)["y"], run(model, feed)["y"])


@pytest.mark.parametrize(
    ("model", "version", "message"),
    [
        (at(10, "<float[4] s = {1, 1, 0.5, 0.5}> { y = Resize(x, s) }"), 13, "Resize cannot be brought from version 10 to 11"),
        (at(7, "{ y, m = Dropout(x) }", outputs="float[A, B, C, D] y, float[A, B, C, D] m"), 13, "its mask is used"),
        (
            from_text(FUNCTION.format(given="<axes = [1]>", parameter="<axes>", axes=": ints = @axes")),
            13,
            "parameter of the function",
        ),
        (at(20, "{ y = Relu(x) }"), 19, "is at opset 20 already"),
        (at(20, "{ y = Relu(x) }"), 999, "takes at most opset"),
        (at(6, "{ y = Relu(x) }"), 13, "begin at opset 7"),
    ],
    ids=["nearest", "mask", "parameter", "lower", "unknown", "old"],
)
def test_what_cannot_be_upgraded_is_refused_with_the_reason(model: onnx.ModelProto, version: int, message: str) -> None:
    with pytest.raises((ModelError, UsageError), match=message):
        upgrade(model, version)


def test_a_change_of_definition_without_a_rule_names_operator_version_and_node() -> None:
    body = """g (float[2, 3, 4] x) => (float[A, B, C] y) { y = Scan <num_scan_inputs = 1,
        body = b (float[4] i) => (float[4] o) { o = Relu(i) }> (, x) }"""
    model = from_text('<ir_version: 4, opset_import: ["" : 8]> ' + body)
    with pytest.raises(ModelError, match="no rule that brings Scan from version 8 to 9") as caught:
        upgrade(model, 13)
    assert caught.value.where == "node 'y'"


def test_a_model_at_the_version_is_left_alone() -> None:
    model = small_cnn()
    result, [change] = upgrade(model, 20)
    assert not change.done
    assert result == ir.to_proto(ir.from_proto(model))


def test_large_external_weights_are_not_read(tmp_path: Path) -> None:
    weight = onnx.numpy_helper.from_array(np.ones((64, 64), np.float32), "w")
    model = at(11, "{ a = Squeeze <axes = [0]> (x)  y = MatMul(a, w) }", "float[1, N, 64] x, float[64, 64] w", "float[N, 64] y")
    del model.graph.input[1]
    model.graph.initializer.append(weight)
    onnx.save(model, tmp_path / "m.onnx", save_as_external_data=True, location="w.bin", size_threshold=0)
    loaded = files.load(tmp_path / "m.onnx")
    before = loaded.graph.initializers["w"].const_value
    UpgradeOpset(OpsetOptions(version=20)).apply(loaded, context())
    assert loaded.graph.initializers["w"].const_value is before


@pytest.mark.zoo
@pytest.mark.parametrize(
    ("name", "versions"),
    [
        ("squeezenet1_1", (13, 20)),
        ("mnist_8", (13, 20)),
        ("nanodet_m", (13, 20)),
        ("ppocr_cls", (13, 20)),
        ("silero_vad", (20,)),
        ("gtcrn_simple", (13, 20)),
    ],
)
def test_real_models_compute_the_same(zoo: Path, tmp_path: Path, name: str, versions: tuple[int, ...]) -> None:
    recipe = tmp_path / "upgrade.yaml"
    for version in versions:
        recipe.write_text(f"passes: [{{shapes.opset: {{version: {version}}}}}]", encoding="utf-8")
        report = pipeline.optimize(zoo / "models" / f"{name}.onnx", tmp_path / "o.onnx", recipe=str(recipe), timing=False)
        assert report.passes[0].kept, report.passes[0].why
        assert report.output is not None
        assert report.output.opset == version
        assert report.validation is not None
        assert all(output.max_rel < 2e-6 for output in report.validation.outputs.values())


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_onnx_own_cases_of_old_operators_compute_the_same() -> None:
    """The cases that come with the onnx package and that onnxruntime can run, from opset 7 to 17 to opset 21."""
    from onnx.backend.test.case.node import collect_testcases

    upgraded, wrong = 0, []
    for case in collect_testcases(None):
        opset = max((entry.version for entry in case.model.opset_import if entry.domain == ""), default=0)
        if not 7 <= opset <= 17 or len(case.model.graph.input) != len(case.data_sets[0][0]):
            continue
        feed = {value.name: array for value, array in zip(case.model.graph.input, case.data_sets[0][0], strict=True)}
        try:
            before = run(case.model, feed)
        except Exception:  # onnxruntime cannot run it in the first place
            continue
        try:
            result, _ = upgrade(case.model, 21, full=False)  # inference fails on some of the originals too
        except ModelError:
            continue
        after = run(result, feed)
        upgraded += 1
        if any(isinstance(a, np.ndarray) and not _equal(a, after[name]) for name, a in before.items()):
            wrong.append(case.name)
    assert wrong == []
    assert upgraded > 400


def _equal(a: np.ndarray, b: np.ndarray) -> bool:
    if a.dtype.kind != "f":
        return np.array_equal(a, b)
    return np.allclose(a, b, rtol=1e-5, atol=1e-6, equal_nan=True)
