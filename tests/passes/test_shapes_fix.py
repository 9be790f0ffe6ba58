"""``shapes.fix``: the user gives dynamic dimensions a size, and is told when that cannot be."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from graphopt import pipeline, recipe, registry
from graphopt.contracts import Change, Context, Pass
from graphopt.errors import DataError, UsageError
from graphopt.passes.shapes import FixOptions, FixShapes

from helpers import assert_same_outputs, from_text, small_cnn, write
from simplifying import context

TEXT = from_text("""g (float[batch, seq, 4] x, float[batch, past, 4] cache, float[?, 4] z)
    => (float[batch, "past + seq", 4] y, float[rows, 4] r) {
    y = Concat <axis = 1> (cache, x)  r = Relu(z)
}""")


def fix(proto: onnx.ModelProto, **sizes: int) -> tuple[onnx.ModelProto, list[Change]]:
    model = ir.from_proto(onnx.ModelProto.FromString(proto.SerializeToString()))
    changes = FixShapes(FixOptions.model_validate(sizes)).apply(model, context())
    result = ir.to_proto(model)
    onnx.checker.check_model(result, full_check=True)
    return result, [*changes]


def dims(values: object) -> dict[str, list[int | str]]:
    return {
        v.name: [d.dim_value if d.HasField("dim_value") else d.dim_param for d in v.type.tensor_type.shape.dim] for v in values
    }


def test_a_symbol_gets_its_size_wherever_it_stands() -> None:
    result, [change] = fix(TEXT, batch=2)
    assert dims(result.graph.input) == {"x": [2, "seq", 4], "cache": [2, "past", 4], "z": ["", 4]}
    assert dims(result.graph.output)["y"] == [2, "past + seq", 4]
    assert (change.site, change.what) == ("batch", "fixed at 2")


def test_an_expression_gets_its_value_with_the_last_of_its_symbols() -> None:
    result, _ = fix(TEXT, batch=2, seq=3, past=5)
    assert dims(result.graph.output)["y"] == [2, 8, 4]
    feed = {"x": np.ones((2, 3, 4), np.float32), "cache": np.zeros((2, 5, 4), np.float32), "z": np.ones((3, 4), np.float32)}
    assert_same_outputs(TEXT, result, feed)


def test_a_dimension_without_a_name_is_named_by_its_place_and_outputs_follow() -> None:
    result, _ = fix(TEXT, **{"z:0": 7})
    assert dims(result.graph.input)["z"] == [7, 4]
    assert dims(result.graph.output)["r"] == [7, 4]


def test_outputs_follow_shapes_that_the_graph_computes() -> None:
    model = from_text("""g (float[N, 6] x) => (float[rows, columns] y) <int64[1] three = {3}, int64[1] rest = {-1}> {
        size = Shape <start = 0, end = 1> (x)  third = Div (size, three)
        to = Concat <axis = 0> (third, rest)  y = Reshape (x, to)
    }""")
    result, _ = fix(model, N=6)
    assert dims(result.graph.output)["y"] == [2, 18]
    assert_same_outputs(model, result, {"x": np.ones((6, 6), np.float32)})


def test_an_output_stays_dynamic_where_a_caller_may_still_change_it() -> None:
    model = from_text(
        """g (float[N, 6] x, int64[2] to) => (float[rows, columns] y) <int64[2] to = {-1, 3}> { y = Reshape (x, to) }"""
    )
    result, _ = fix(model, N=6)
    assert dims(result.graph.output)["y"] == ["rows", "columns"]


def test_shapes_inside_subgraphs_follow() -> None:
    model = from_text("""g (float[N, 3] x, bool flag) => (float[N, 3] y) {
        y = If (flag) <then_branch = t () => (float[N, 3] a) { a = Relu(x) },
                       else_branch = e () => (float[N, 3] b) { b = Neg(x) }>
    }""")
    result, _ = fix(model, N=4)
    branches = [attribute.g for attribute in result.graph.node[0].attribute]
    assert [dims(branch.output) for branch in branches] == [{"a": [4, 3]}, {"b": [4, 3]}]


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ({"bach": 1}, "Did you mean 'batch'"),
        ({"x:2": 3}, "this dimension is 4 already"),
        ({"batch": 1, "x:0": 2}, "'batch' is given two sizes"),
        ({"x:9": 1}, "unknown dynamic dimension"),
    ],
)
def test_a_size_that_does_not_fit_is_refused(sizes: dict[str, int], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        fix(TEXT, **sizes)


@pytest.mark.parametrize("value", ["0", "-1", "two", "1.5", "true"])
def test_a_size_is_a_whole_number_from_one_on(value: str) -> None:
    with pytest.raises(UsageError, match=r"wrong option of shapes\.fix: N"):
        recipe.parse("passes: [simplify]", "mine", [f"shapes.fix.N={value}"])


def optimize(tmp_path: Path, *settings: str, **choices: object) -> object:
    source = write(small_cnn(), tmp_path / "m.onnx")
    return pipeline.optimize(source, tmp_path / "o.onnx", settings=settings, timing=False, **choices)


def test_setting_an_option_is_enough_and_the_evidence_is_on_inputs_that_fit_both(tmp_path: Path) -> None:
    report = optimize(tmp_path, "shapes.fix.N=4")
    assert report.passes[0].name == "shapes.fix"
    assert report.passes[0].kept
    assert (report.input.inputs, report.output.inputs) == (["x float32 [N, 3, 8, 8]"], ["x float32 [4, 3, 8, 8]"])
    assert report.input.macs == report.output.macs
    assert report.validation.passed
    assert_same_outputs(tmp_path / "m.onnx", tmp_path / "o.onnx", {"x": np.ones((4, 3, 8, 8), np.float32)})


def test_the_same_size_may_be_given_twice_but_not_another(tmp_path: Path) -> None:
    assert optimize(tmp_path, "shapes.fix.N=4", dims={"N": 4}).passed
    with pytest.raises(UsageError, match="'N'"):
        optimize(tmp_path, "shapes.fix.N=4", dims={"N": 5})


def test_both_are_timed_on_the_same_feed(tmp_path: Path) -> None:
    source = write(small_cnn(), tmp_path / "m.onnx")
    report = pipeline.optimize(source, tmp_path / "o.onnx", settings=["shapes.fix.N=2"], time_limit=0.5, goal="size")
    assert report.timing is not None
    assert report.timing.rounds > 0


def test_data_of_another_size_is_refused(tmp_path: Path) -> None:
    np.savez(tmp_path / "d.npz", x=np.ones((3, 3, 8, 8), np.float32))
    with pytest.raises(DataError, match="3 samples do not fill one batch: the model takes 4"):
        optimize(tmp_path, "shapes.fix.N=4", data=str(tmp_path / "d.npz"))
    model = from_text("g (float[N, T] x) => (float[N, T] y) { y = Relu(x) }")
    np.savez(tmp_path / "d.npz", x=np.ones((2, 6), np.float32))
    with pytest.raises(DataError, match="6"):
        pipeline.optimize(
            write(model, tmp_path / "t.onnx"), tmp_path / "o.onnx", settings=["shapes.fix.T=5"], data=str(tmp_path / "d.npz")
        )


def test_an_unknown_symbol_stops_the_run_before_any_work(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="unknown dynamic dimension 'M'"):
        optimize(tmp_path, "shapes.fix.M=4")
    assert not (tmp_path / "o.onnx").exists()


class Narrower(Pass):
    name = "narrower"
    summary = "for tests"
    changes_signature = True

    def __init__(self, edit: str) -> None:
        super().__init__()
        self.edit = edit

    def apply(self, model: ir.Model, context: Context) -> list[Change]:
        value = model.graph.inputs[0]
        if self.edit == "rename":
            value.name = "other"
        elif self.edit == "loosen":
            value.shape = ir.Shape(["N", "C", 8, 8])
        else:
            value.shape = ir.Shape([1, 3, 8, 8])
        return [Change("x", self.edit, "for tests")]


@pytest.mark.parametrize(
    ("edit", "allowed", "kept"), [("fix", True, True), ("fix", False, False), ("rename", True, False), ("loosen", True, False)]
)
def test_only_dynamic_dimensions_may_change_and_only_by_who_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, edit: str, allowed: bool, kept: bool
) -> None:
    monkeypatch.setattr(Narrower, "changes_signature", allowed)
    steps = (recipe.Step("narrower", {}, Narrower(edit)),)
    source = write(small_cnn(), tmp_path / "m.onnx")
    report = pipeline.optimize(source, tmp_path / "o.onnx", recipe=recipe.Recipe("mine", "", steps), timing=False)
    assert report.passes[0].kept is kept
    if not kept:
        assert "inputs changed" in report.passes[0].why


def test_the_passes_are_listed() -> None:
    assert {"shapes.fix", "shapes.opset"} <= set(registry.pass_names())
