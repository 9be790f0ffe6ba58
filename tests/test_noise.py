"""What a quantized model's own rounding noise allows, and what it does not hide."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path

import ml_dtypes
import numpy as np
import onnx
import pytest

from graphopt import evaluate, model, noise, pieces
from graphopt.answers import open_on
from graphopt.dataset.generate import generate
from graphopt.targets import load

import helpers

_OPEN = partial(open_on, load("cpu"))
_ROWS, _WIDTH, _LAYERS = 512, 48, 5


def _tensor(name: str, array: np.ndarray) -> onnx.TensorProto:
    return onnx.numpy_helper.from_array(array, name)


def _quantized(*, tokens: bool = False) -> onnx.ModelProto:
    """A float layer, what scales its outputs, and layers in integers with ranges found in each run: x [N, 512, 48] -> y alike.

    With ``tokens`` the first layer is a table that integers x [N, 512] index.
    """
    rng, node = np.random.default_rng(0), onnx.helper.make_node
    values = [_tensor("w", rng.standard_normal((_WIDTH, _WIDTH)).astype(np.float32) / 7)]
    values += [_tensor("g", rng.uniform(0.5, 1.5, _WIDTH).astype(np.float32))]
    values += [_tensor("h", rng.standard_normal(_WIDTH).astype(np.float32))]
    x = onnx.helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, ["N", _ROWS, _WIDTH])
    first = node("MatMul", ["x", "w"], ["m"])
    if tokens:
        x = onnx.helper.make_tensor_value_info("x", onnx.TensorProto.INT64, ["N", _ROWS])
        first = node("Gather", ["w", "x"], ["m"])
    nodes = [first, node("Mul", ["m", "g"], ["a"]), node("Add", ["a", "h"], ["x0"])]
    for k in range(_LAYERS):
        values += [_tensor(f"w{k}", rng.integers(-127, 128, (_WIDTH, _WIDTH)).astype(np.int8))]
        values += [_tensor(f"s{k}", np.float32(0.0021)), _tensor(f"b{k}", rng.standard_normal(_WIDTH).astype(np.float32))]
        nodes += [
            node("DynamicQuantizeLinear", [f"x{k}"], [f"q{k}", f"d{k}", f"z{k}"], f"quantize{k}"),
            node("MatMulInteger", [f"q{k}", f"w{k}", f"z{k}"], [f"i{k}"]),
            node("Cast", [f"i{k}"], [f"f{k}"], to=onnx.TensorProto.FLOAT),
            node("Mul", [f"d{k}", f"s{k}"], [f"e{k}"]),
            node("Mul", [f"f{k}", f"e{k}"], [f"r{k}"]),
            node("Add", [f"r{k}", f"b{k}"], [f"c{k}"]),
            node("Tanh", [f"c{k}"], [f"x{k + 1}" if k < _LAYERS - 1 else "y"]),
        ]
    y = onnx.helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, ["N", _ROWS, _WIDTH])
    graph = onnx.helper.make_graph(nodes, "quantized", [x], [y], values)
    return onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=8)


def _changed(proto: onnx.ModelProto, name: str, array: np.ndarray) -> onnx.ModelProto:
    """The model with another value of an initializer."""
    changed = onnx.ModelProto.FromString(proto.SerializeToString())
    next(tensor for tensor in changed.graph.initializer if tensor.name == name).CopyFrom(_tensor(name, array))
    return changed


def _value(proto: onnx.ModelProto, name: str) -> np.ndarray:
    return onnx.numpy_helper.to_array(next(tensor for tensor in proto.graph.initializer if tensor.name == name))


def _rounded_otherwise(proto: onnx.ModelProto) -> onnx.ModelProto:
    """The model with (x w) g computed as (x (w / 3)) (3 g)."""
    return _changed(_changed(proto, "w", _value(proto, "w") / 3), "g", _value(proto, "g") * 3)


def _judged(folder: Path, first: onnx.ModelProto, second: onnx.ModelProto) -> noise.Judged:
    """What is said of the second as a rewrite of the first."""
    a, b = helpers.write(first, folder / "a.onnx"), helpers.write(second, folder / "b.onnx")
    with _OPEN(a) as before, _OPEN(b) as after:
        data = generate(model.load(a))
        reference = evaluate.Reference(before, data)
        found = evaluate.compare(reference, after, data)
        trials = noise.Trials(a, _OPEN, reference, data)
        return noise.judge(found, after.outputs, {}, trials, partial(pieces.compare, a, b, _OPEN, data))


def test_an_exact_rewrite_of_a_quantized_model_is_kept_and_the_report_says_why(tmp_path: Path) -> None:
    path = helpers.write(_quantized(), tmp_path / "model.onnx")
    done = helpers.graphopt("optimize", path, "-o", tmp_path / "out.onnx", "--timing", "off", "--report", tmp_path)
    assert done.returncode == 0, done.stderr
    text = " ".join(done.stdout.split())
    assert "which move by" in text
    assert "given the original's decisions at 5 quantizers and other jumps, all values agree" in text
    assert "The original blows up rounding" in text
    validation = json.loads((tmp_path / "report.json").read_text(encoding="utf-8"))["validation"]
    assert 1e-4 < validation["outputs"]["y"]["max_rel"] <= validation["noise"]["outputs"]["y"]["max_rel"] < 0.05
    assert validation["noise"]["jumps"] == 5
    for page in ("report.html", "report.md"):
        assert "y, own noise" in (tmp_path / page).read_text(encoding="utf-8")


def test_what_rounds_otherwise_is_rounding(tmp_path: Path) -> None:
    proto = _quantized()
    judged = _judged(tmp_path, proto, _rounded_otherwise(proto))
    assert judged.found.outputs["y"].max_rel > 1e-4
    assert not judged.problems
    assert judged.pieces is not None


_DEFECTS = {
    "a weight is 0.05 % larger": lambda m: _changed(m, "s2", _value(m, "s2") * np.float32(1.0005)),
    "two channels are swapped": lambda m: _changed(m, "w3", _value(m, "w3")[:, [1, 0, *range(2, _WIDTH)]]),
    "a bias is left out": lambda m: _changed(m, "b1", 0 * _value(m, "b1")),
    "one bias is 0.2 % larger": lambda m: _changed(m, "b4", _value(m, "b4") * _one_larger(0.002)),
}


def _one_larger(part: float) -> np.ndarray:
    return np.where(np.arange(_WIDTH) == 5, 1 + part, 1).astype(np.float32)


@pytest.mark.parametrize("defect", _DEFECTS)
def test_a_defect_is_no_rounding_however_small(tmp_path: Path, defect: str) -> None:
    proto = _quantized()
    assert _judged(tmp_path, proto, _DEFECTS[defect](proto)).problems


def test_what_hides_in_the_noise_shows_between_the_quantizers(tmp_path: Path) -> None:
    proto = _quantized()
    judged = _judged(tmp_path, proto, _DEFECTS["one bias is 0.2 % larger"](proto))
    assert judged.noise is not None
    assert judged.noise.explains("y", judged.found.outputs["y"])
    assert "given the original's decisions at 5 quantizers and other jumps, output 'y' differs" in str(judged)


def test_a_class_that_two_outputs_tie_for_may_change(tmp_path: Path) -> None:
    def classes(weights: np.ndarray, factor: float) -> onnx.ModelProto:
        body = "m = MatMul(x, w)\n n = Mul(m, c)\n y = ArgMax<axis = 2, keepdims = 0>(n)"
        proto = helpers.from_text(f"g (float[N, 200, 48] x) => (int64[N, 200] y) {{ {body} }}")
        proto.graph.initializer.extend([_tensor("w", weights), _tensor("c", np.float32(factor))])
        return proto

    rng = np.random.default_rng(1)
    w = rng.standard_normal((48, 9)).astype(np.float32)
    w[:, 8] = w[:, 7] * (1 + 2.0**-23 * rng.integers(-1, 2, 48))
    judged = _judged(tmp_path, classes(w, 0.7), classes(w * 3, 0.7 / 3))
    assert judged.found.outputs["y"].max_abs == 1
    assert not judged.problems
    assert _judged(tmp_path, classes(w, 0.7), classes(np.roll(w, 1, axis=1), 0.7)).problems


def test_without_blowing_up_a_difference_is_a_defect(tmp_path: Path) -> None:
    proto = helpers.small_cnn()
    judged = _judged(tmp_path, proto, _changed(proto, "b3", _value(proto, "b3") * np.float32(1.01)))
    assert judged.problems
    assert judged.noise is not None
    assert judged.noise.outputs["y"].max_rel < 1e-5


@pytest.mark.parametrize("tokens", [False, True])
def test_noise_is_the_same_each_time_and_needs_no_inputs_in_floating_point(tmp_path: Path, tokens: bool) -> None:
    path = helpers.write(_quantized(tokens=tokens), tmp_path / "model.onnx")
    data = generate(model.load(path))
    with _OPEN(path) as session:
        found = [next(iter(noise.Trials(path, _OPEN, evaluate.Reference(session, data), data))) for _ in range(2)]
    assert found[0] == found[1]
    assert found[0].outputs["y"].max_rel > 1e-4


@pytest.mark.parametrize("dtype", [np.float64, np.float32, np.float16, ml_dtypes.bfloat16])
def test_only_last_places_change(dtype: np.dtype) -> None:
    values = np.random.default_rng(0).standard_normal(1000).astype(dtype)
    moved = noise.nudge(values, np.random.default_rng(1))
    eps = float(ml_dtypes.finfo(dtype).eps)
    assert moved.dtype == values.dtype
    assert (moved != values).mean() > 0.5
    assert np.all(np.abs(moved.astype(np.float64) - values.astype(np.float64)) <= 5 * eps * np.abs(values.astype(np.float64)))


def test_masks_sizes_and_integers_stay() -> None:
    rng = np.random.default_rng(0)
    for exact in (np.array([0, 1, 0.5, -3, np.inf, np.finfo(np.float32).min], np.float32), np.arange(9)):
        np.testing.assert_array_equal(noise.nudge(exact, rng), exact)


def test_a_model_without_quantizers_is_in_one_piece(tmp_path: Path) -> None:
    path = helpers.write(helpers.small_cnn(), tmp_path / "model.onnx")
    assert pieces.compare(path, path, _OPEN, generate(model.load(path))) is None
