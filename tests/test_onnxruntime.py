import subprocess
import sys
import tempfile
import time
from pathlib import Path

import ml_dtypes
import numpy as np
import onnx
import pytest

from graphopt import targets
from graphopt.contracts import Session, SessionOptions, TensorSpec
from graphopt.errors import DataError, MissingError, ModelError
from graphopt.runtimes.onnxruntime import OnnxRuntime
from graphopt.targets import Target

import helpers

RUNTIME = OnnxRuntime()
CPU = targets.load("cpu")
IMAGE = {"x": np.linspace(-1, 1, 192, dtype=np.float32).reshape(1, 3, 8, 8)}


def other(provider: str) -> Target:
    return Target(name="other", summary="", runtime="onnxruntime", provider=provider)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "model.onnx"


def opened(path: Path, model: str | onnx.ModelProto) -> Session:
    return RUNTIME.open(helpers.write(helpers.from_text(model) if isinstance(model, str) else model, path), CPU)


# --------------------------------------------------------------------------------------------------------- availability


def test_the_cpu_is_available_and_asked_once() -> None:
    found = RUNTIME.availability(CPU)
    assert found.ok
    assert found.version
    assert RUNTIME.availability(CPU) is found


def test_a_provider_that_this_build_lacks_is_missing_instead_of_replaced_by_the_cpu(path: Path) -> None:
    found = RUNTIME.availability(other("CUDAExecutionProvider"))
    assert not found.ok
    assert "has no CUDAExecutionProvider" in found.why
    helpers.write(helpers.small_cnn(), path)
    with pytest.raises(MissingError, match="has no CUDAExecutionProvider"):
        RUNTIME.open(path, other("CUDAExecutionProvider"))


def test_a_provider_that_takes_no_node_is_missing_although_it_is_listed() -> None:
    found = RUNTIME.availability(other("AzureExecutionProvider"))
    assert not found.ok
    assert "CPUExecutionProvider would run the model" in found.why


def test_without_onnxruntime_the_error_names_the_extra(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(MissingError, match=r"pip install 'graphopt\[cpu\]'") as caught:
        OnnxRuntime().open(path, CPU)
    assert caught.value.exit_code == 6


def test_telemetry_is_off_before_onnxruntime_is_imported() -> None:
    code = """
        import os
        from graphopt import targets
        from graphopt.runtimes.onnxruntime import OnnxRuntime
        assert OnnxRuntime().availability(targets.load("cpu")).ok
        assert os.environ["ORT_DISABLE_TELEMETRY"] == "1"
    """
    subprocess.run([sys.executable, "-c", "if True:" + code], check=True)


# -------------------------------------------------------------------------------------------------------------- sessions


def test_outputs_come_by_name_in_the_models_order(path: Path) -> None:
    model = helpers.from_text("g (float[N] x) => (float[N] b, float[N] a) { b = Neg(x) a = Abs(x) }")
    feed = {"x": np.array([-1, 2], np.float32)}
    found = opened(path, model).run(feed)
    assert list(found) == ["b", "a"]
    np.testing.assert_array_equal(found["a"], [1, 2])


def test_a_session_tells_what_it_is(path: Path) -> None:
    with opened(path, helpers.small_cnn()) as session:
        assert (session.provider, session.clock) == ("CPUExecutionProvider", "cpu")
        assert session.load_seconds > 0
        assert session.inputs == (TensorSpec("x", np.dtype(np.float32), ("N", 3, 8, 8)),)
        assert session.outputs == (TensorSpec("y", np.dtype(np.float32), ("N", 10)),)


def test_initializers_that_are_also_inputs_are_not_asked_of_the_user(path: Path) -> None:
    model = helpers.small_cnn()
    model.graph.input.append(onnx.helper.make_tensor_value_info("b1", onnx.TensorProto.FLOAT, [8]))
    session = opened(path, model)
    assert [spec.name for spec in session.inputs] == ["x"]
    session.run(IMAGE)


def test_with_two_threads_the_wall_clock_is_the_one_to_trust(path: Path) -> None:
    helpers.write(helpers.small_cnn(), path)
    assert RUNTIME.open(path, CPU, SessionOptions(threads=2)).clock == "wall"


def test_one_thread_runs_in_the_calling_thread_alone(path: Path) -> None:
    session = opened(path, helpers.small_cnn(channels=64))
    feed = {"x": np.ones((16, 3, 8, 8), np.float32)}
    session.run(feed)
    thread, process = time.thread_time(), time.process_time()
    for _ in range(30):
        session.run(feed)
    thread, process = time.thread_time() - thread, time.process_time() - process
    assert thread > 0.8 * process


def test_without_optimization_the_outputs_are_the_same(path: Path) -> None:
    expected = opened(path, helpers.small_cnn()).run(IMAGE)["y"]
    found = RUNTIME.open(path, CPU, SessionOptions(optimize=False)).run(IMAGE)["y"]
    np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_text_goes_in_and_out(path: Path) -> None:
    session = opened(path, "g (string[N] x) => (string[N] y) { y = Identity(x) }")
    assert session.inputs[0].dtype == object
    assert session.run({"x": np.array(["a", "bc"])})["y"].tolist() == ["a", "bc"]


@pytest.mark.parametrize(
    ("name", "dtype"),
    [
        ("bfloat16", ml_dtypes.bfloat16),
        ("float8e4m3fn", ml_dtypes.float8_e4m3fn),
        ("float8e5m2fnuz", ml_dtypes.float8_e5m2fnuz),
    ],
)
def test_dtypes_that_numpy_lacks_go_in_and_out(path: Path, name: str, dtype: type) -> None:
    body = "{ y = Cast<to=1>(x) z = Identity(x) j = Neg(k) }"
    text = f"g ({name}[N,M] x, int64[1] k) => (float[N,M] y, {name}[N,M] z, int64[1] j) {body}"
    session = opened(path, text)
    assert session.inputs[0].dtype == session.outputs[1].dtype == dtype
    x = np.arange(6).reshape(3, 2).astype(dtype).T  # not contiguous
    found = session.run({"x": x, "k": np.array([3])})
    assert found["z"].dtype == dtype
    np.testing.assert_array_equal(found["z"], x)
    np.testing.assert_array_equal(found["y"], [[0, 2, 4], [1, 3, 5]])
    np.testing.assert_array_equal(found["j"], [-3])


def test_a_sequence_is_an_array_with_its_tensors_as_rows_or_all_values_in_a_row(path: Path) -> None:
    body = "s = ReduceSum(x) y = SequenceConstruct(x, x) z = SequenceConstruct(x, s)"
    text = f"g (float[N] x) => (seq(float[N]) y, seq(float[N]) z) {{ {body} }}"
    session = opened(path, text)
    assert {spec.dtype for spec in session.outputs} == {np.dtype(np.float32)}
    found = session.run({"x": np.array([1, 2], np.float32)})
    assert (found["y"].tolist(), found["z"].tolist()) == ([[1, 2], [1, 2]], [1, 2, 3])


# ---------------------------------------------------------------------------------------------------------------- errors


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("g (float[2] x) => (float[2] y) { [here] y = Nope(x) }", "here.*No Op registered for Nope"),
        ("g (bfloat16[2] x) => (bfloat16[2] y) { [here] y = Erf(x) }", r"(?s)'here'.*no kernel"),
        ("g (float[2] x, int64[2] b) => (float[2] y) { [here] y = Add(x, b) }", "bound to different types.*here"),
        ("g (float[2] x) => (float[2] y) { y = Relu(z) }", "'z' is not a graph input"),
        ('<ir_version: 10, opset_import: ["": 99]> g (float[2] x) => (float[2] y) { y = Relu(x) }', "opset 99.*newer"),
        ('<ir_version: 99, opset_import: ["": 20]> g (float[2] x) => (float[2] y) { y = Relu(x) }', "IR version: 99"),
        ('<ir_version: 10, opset_import: ["": 20, "my": 1]> g (float[2] x) => (float[2] y) { y = my.Foo(x) }', "my:Foo"),
    ],
)
def test_a_model_that_cannot_be_loaded_is_refused_by_name(
    path: Path, text: str, message: str, capfd: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(ModelError, match=message) as caught:
        opened(path, text)
    assert caught.value.where == str(path)
    assert "ONNXRuntimeError" not in str(caught.value)
    assert "onnxruntime_src" not in str(caught.value)
    assert "\n" not in caught.value.what
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("content", [b"", b"not an onnx file at all" * 9])
def test_garbage_is_refused(path: Path, content: bytes) -> None:
    path.write_bytes(content)
    with pytest.raises(ModelError, match="cannot load it"):
        RUNTIME.open(path, CPU)


def test_missing_files_are_named(path: Path) -> None:
    with pytest.raises(ModelError, match="doesn't exist"):
        RUNTIME.open(path, CPU)
    onnx.save(helpers.small_cnn(), path, save_as_external_data=True, location="weights.bin", size_threshold=0)
    path.with_name("weights.bin").unlink()
    with pytest.raises(ModelError, match=r"weights\.bin"):
        RUNTIME.open(path, CPU)


@pytest.mark.parametrize(
    ("feed", "message"),
    [
        ({}, "misses 'x'"),
        ({**IMAGE, "z": IMAGE["x"]}, "unknown 'z'"),
        ({"x": IMAGE["x"].astype(np.float64)}, "'x': is float64 but the model takes float32"),
        ({"x": IMAGE["x"][0]}, r"'x': has shape \[3, 8, 8\] but the model takes \[N, 3, 8, 8\]"),
        ({"x": IMAGE["x"][:, :2]}, r"has shape \[1, 2, 8, 8\]"),
    ],
)
def test_a_feed_that_does_not_fit_is_the_datas_error(path: Path, feed: dict[str, np.ndarray], message: str) -> None:
    with pytest.raises(DataError, match=message):
        opened(path, helpers.small_cnn()).run(feed)


def test_numbers_for_text_are_the_datas_error(path: Path) -> None:
    with pytest.raises(DataError, match="expected"):
        opened(path, "g (string[N] x) => (string[N] y) { y = Identity(x) }").run({"x": np.array([1, 2])})


def test_a_node_that_fails_is_named(path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    session = opened(path, "g (float[N,K] x, float[K,M] b) => (float[N,M] y) { [product] y = MatMul(x, b) }")
    with pytest.raises(ModelError, match=r"MatMul node 'product'.*dimension mismatch") as caught:
        session.run({"x": np.ones((2, 3), np.float32), "b": np.ones((4, 3), np.float32)})
    assert "matmul_helper" not in str(caught.value)
    assert capfd.readouterr() == ("", "")


# ------------------------------------------------------------------------------------------------- profile and partition


def test_the_profile_shows_the_fused_graph_and_leaves_no_file(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    helpers.write(helpers.small_cnn(), path)
    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    times = RUNTIME.profile(path, CPU, IMAGE, rounds=5)
    operators = [node.op_type for node in times]
    assert operators.count("Conv") == 2
    assert "Relu" not in operators  # fused into the Conv before it
    assert len(times) == len({node.name for node in times})
    assert all(node.provider == "CPUExecutionProvider" for node in times)
    assert 0 < sum(node.milliseconds for node in times) < 50
    assert list((tmp_path / "temporary").iterdir()) == []


def test_a_loops_own_time_does_not_include_its_bodys(path: Path) -> None:
    model = helpers.from_text("""
        g (float[256,256] x) => (float[256,256] y) {
            trips = Constant<value_int=5>()
            yes = Constant<value: tensor = bool {1}>()
            y = Loop(trips, yes, x) <body = b (int64 i, bool c, float[256,256] a) => (bool d, float[256,256] z) {
                d = Identity(c)
                [inner] z = MatMul(a, x)
            }>
        }""")
    helpers.write(model, path)
    times = {node.op_type: node.milliseconds for node in RUNTIME.profile(path, CPU, {"x": np.zeros((256, 256), np.float32)})}
    assert times["MatMul"] > times["Loop"] >= 0


def test_a_profile_with_a_wrong_feed_is_the_datas_error(path: Path) -> None:
    helpers.write(helpers.small_cnn(), path)
    with pytest.raises(DataError):
        RUNTIME.profile(path, CPU, {})


def test_the_partition_counts_the_nodes_of_each_provider(path: Path) -> None:
    helpers.write(helpers.small_cnn(), path)
    found = RUNTIME.partition(path, CPU)
    assert found.nodes == {"CPUExecutionProvider": 8}
    assert found.left_behind == []


@pytest.mark.zoo
def test_nodes_inside_if_branches_are_profiled_and_counted(zoo: Path) -> None:
    model = zoo / "models" / "silero_vad.onnx"
    feed = {"input": np.zeros((1, 512), np.float32), "state": np.zeros((2, 1, 128), np.float32), "sr": np.array(16000)}
    assert "LSTM" in {node.op_type for node in RUNTIME.profile(model, CPU, feed, rounds=2)}
    assert sum(RUNTIME.partition(model, CPU).nodes.values()) > 100
