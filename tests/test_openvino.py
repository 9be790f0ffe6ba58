"""OpenVINO, directly: equal answers to onnxruntime's CPU provider, honest clocks, and the errors."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import ml_dtypes
import numpy as np
import onnx
import pytest

from graphopt import targets
from graphopt.contracts import Session, SessionOptions
from graphopt.errors import DataError, MissingError, ModelError

from helpers import from_text, graphopt, small_cnn, write
from quantizing import quantize

TARGET = targets.load("openvino-cpu")
IMAGE = {"x": np.linspace(-1, 1, 192, dtype=np.float32).reshape(1, 3, 8, 8)}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "model.onnx"


def opened(path: Path, model: str | onnx.ModelProto) -> Session:
    write(from_text(model) if isinstance(model, str) else model, path)
    return targets.runtime(TARGET).open(path, TARGET)


def test_without_openvino_the_error_names_the_extra(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from graphopt.runtimes.openvino import OpenVino, _core

    _core.cache_clear()
    monkeypatch.setitem(sys.modules, "openvino", None)
    write(small_cnn(), path)
    with pytest.raises(MissingError, match=r"pip install 'graphopt\[openvino\]'") as caught:
        OpenVino().open(path, TARGET)
    assert caught.value.exit_code == 6
    _core.cache_clear()


@pytest.mark.openvino
class TestInstalled:
    def test_it_computes_what_onnxruntime_computes(self, path: Path) -> None:
        session = opened(path, small_cnn())
        cpu = targets.load("cpu")
        with targets.runtime(cpu).open(path, cpu) as other:
            np.testing.assert_allclose(session.run(IMAGE)["y"], other.run(IMAGE)["y"], rtol=1e-4, atol=1e-5)
            assert [(s.name, s.dtype) for s in session.outputs] == [(s.name, s.dtype) for s in other.outputs]

    def test_outputs_come_by_name_in_the_models_order(self, path: Path) -> None:
        session = opened(
            path, "g (float[N] x) => (float[N] b, float[N] a, float[N] c) { b = Neg(x) a = Abs(x) c = Identity(a) }"
        )
        found = session.run({"x": np.array([-1, 2], np.float32)})
        assert list(found) == ["b", "a", "c"]
        np.testing.assert_array_equal(found["c"], [1, 2])

    def test_bfloat16_and_bool_outputs_keep_their_types(self, path: Path) -> None:
        session = opened(path, "g (float[N] x) => (bfloat16[N] y, bool[N] z) { y = Cast<to=16>(x) z = Greater(x, x) }")
        found = session.run({"x": np.array([1, 2], np.float32)})
        assert found["y"].dtype == ml_dtypes.bfloat16
        assert found["y"].astype(np.float32).tolist() == [1, 2]
        assert found["z"].dtype == bool

    def test_float32_is_computed_in_float32_whatever_the_processor_prefers(self, path: Path) -> None:
        x, w = (np.random.default_rng(seed).standard_normal((64, 64)).astype(np.float32) for seed in range(2))
        session = opened(path, "g (float[64,64] x, float[64,64] w) => (float[64,64] y) { y = MatMul(x, w) }")
        np.testing.assert_allclose(session.run({"x": x, "w": w})["y"], x @ w, rtol=1e-4, atol=1e-4)

    def test_one_thread_runs_in_the_calling_thread_alone(self, path: Path) -> None:
        session = opened(path, small_cnn(channels=64))
        assert (session.clock, session.threads, session.provider) == ("cpu", 1, "CPU")
        feed = {"x": np.ones((16, 3, 8, 8), np.float32)}
        session.run(feed)
        thread, process = time.thread_time(), time.process_time()
        for _ in range(30):
            session.run(feed)
        thread, process = time.thread_time() - thread, time.process_time() - process
        assert thread > 0.9 * process

    def test_with_two_threads_the_wall_clock_is_the_one_to_trust(self, path: Path) -> None:
        write(small_cnn(), path)
        assert targets.runtime(TARGET).open(path, TARGET, SessionOptions(threads=2)).clock == "wall"

    @pytest.mark.parametrize(
        ("feed", "what"),
        [
            ({}, "misses 'x'"),
            ({"x": IMAGE["x"].astype(np.float64)}, "float64"),
            ({"x": np.zeros((1, 4, 8, 8), np.float32)}, "has shape"),
        ],
    )
    def test_a_feed_that_openvino_would_take_quietly_is_refused(
        self, path: Path, feed: dict[str, np.ndarray], what: str
    ) -> None:
        with pytest.raises(DataError, match=what):
            opened(path, small_cnn()).run(feed)

    def test_an_operator_that_it_does_not_know_is_named(self, path: Path) -> None:
        model = from_text("g (float[N] x) => (float[N] y) { y = Foo(x) }")
        model.graph.node[0].domain = "else.where"
        model.opset_import.append(onnx.helper.make_opsetid("else.where", 1))
        path.write_bytes(model.SerializeToString())
        with pytest.raises(ModelError, match=r"it has no else\.where\.Foo"):
            targets.runtime(TARGET).open(path, TARGET)

    def test_the_profile_shows_the_compiled_graph(self, path: Path) -> None:
        write(small_cnn(), path)
        times = targets.runtime(TARGET).profile(path, TARGET, IMAGE, rounds=3)
        assert [node.op_type for node in times].count("Convolution") == 2
        assert all(node.milliseconds >= 0 for node in times)

    def test_the_profile_finds_the_models_nodes_by_their_names_with_slashes_too(self, path: Path) -> None:
        model = small_cnn()
        for node in model.graph.node:
            node.name = f"net/block/{node.name}/{node.op_type}"
        write(model, path)
        found = {node.origin: node.integer for node in targets.runtime(TARGET).profile(path, TARGET, IMAGE, rounds=1)}
        assert {node.name for node in model.graph.node if node.op_type in {"Conv", "Gemm"}} <= set(found)
        assert not any(found.values())

    def test_the_profile_says_which_kernels_compute_in_integers(self, path: Path) -> None:
        feed = {"x": np.repeat(IMAGE["x"], 4, axis=0)}
        write(quantize(small_cnn(), feed, target=TARGET).proto, path)
        integer = [node.origin for node in targets.runtime(TARGET).profile(path, TARGET, IMAGE, rounds=1) if node.integer]
        assert sorted(integer) == sorted(node.name for node in small_cnn().graph.node if node.op_type in {"Conv", "Gemm"})

    def test_every_node_of_a_plain_model_is_taken(self, path: Path) -> None:
        write(small_cnn(), path)
        found = targets.runtime(TARGET).partition(path, TARGET)
        assert (found.nodes, found.left_behind, found.parts) == ({"CPU": 8}, [], 1)

    def test_optimize_compares_with_onnxruntime_and_says_so(self, path: Path, tmp_path: Path) -> None:
        write(small_cnn(), path)
        asked = ("--target", "openvino-cpu", "--time-limit", "1", "--strict-provider")
        done = graphopt("optimize", path, "-o", tmp_path / "out.onnx", "--json", *asked)
        assert done.returncode == 0, done.stderr
        report = json.loads(done.stdout)
        assert (report["timing"]["target"], report["timing"]["clock"]) == ("openvino-cpu", "cpu")
        assert report["validation"]["reference"] == "cpu"
        assert report["target_answers"]["agrees"]
        assert report["placement"]["left_behind"] == []

    def test_a_device_that_is_not_there_is_missing(self) -> None:
        found = targets.availability(targets.load("openvino-npu").model_copy(update={"provider": "TPU"}))
        assert not found.ok
        assert "finds no TPU on this machine" in found.why


@pytest.mark.openvino
def test_importing_openvino_tells_nobody_and_writes_nothing_at_home(tmp_path: Path) -> None:
    code = """
    import os, sys
    os.fork = None  # its telemetry sends from a process of its own
    from graphopt import targets
    assert targets.availability(targets.load("openvino-cpu")).ok
    assert sys.modules.get("openvino_telemetry") is None
    """
    clean = {name: value for name, value in os.environ.items() if name not in {"CI", "TF_BUILD", "JENKINS_URL"}}
    command = [sys.executable, "-c", textwrap.dedent(code)]
    done = subprocess.run(command, env={**clean, "HOME": str(tmp_path)}, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert list(tmp_path.iterdir()) == []
