"""QNN's simulator of Qualcomm's processor: it computes, it is not timed, and its back ends that compute nothing are refused."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import numpy as np
import onnx
import pytest

from graphopt import targets
from graphopt.errors import MissingError

from helpers import from_text, graphopt, small_cnn, write

pytestmark = pytest.mark.qnn
TARGET = targets.load("qnn-htp")


@pytest.fixture(autouse=True)
def _own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its back ends write files into the current folder."""
    monkeypatch.chdir(tmp_path)


def fixed_cnn() -> onnx.ModelProto:
    model = small_cnn()
    for value in (*model.graph.input, *model.graph.output):
        value.type.tensor_type.shape.dim[0].dim_value = 1
    return model


def test_the_simulator_runs_a_model_and_is_not_timed(tmp_path: Path) -> None:
    found = targets.availability(TARGET)
    assert (found.ok, found.timed) == (True, False), found.why
    path = write(fixed_cnn(), tmp_path / "m.onnx")
    cpu, feed = targets.load("cpu"), {"x": np.linspace(-1, 1, 192, dtype=np.float32).reshape(1, 3, 8, 8)}
    with targets.runtime(TARGET).open(path, TARGET) as session, targets.runtime(cpu).open(path, cpu) as other:
        assert session.partition is not None
        assert list(session.partition.nodes) == ["QNNExecutionProvider"]
        np.testing.assert_allclose(session.run(feed)["y"], other.run(feed)["y"], rtol=5e-3, atol=5e-3)


@pytest.mark.parametrize("library", ["libQnnSaver.so", "libQnnIr.so"])
def test_back_ends_that_compute_nothing_are_never_used(library: str) -> None:
    target = TARGET.model_copy(update={"provider_options": {"backend_path": library}})
    with pytest.raises(MissingError, match="cannot run here"):
        targets.runtime(target)


def test_a_model_with_dynamic_shapes_is_refused_with_the_options_that_fix_them(tmp_path: Path) -> None:
    path = write(small_cnn(), tmp_path / "m.onnx")
    with pytest.raises(MissingError, match=r"--set shapes\.fix\.N=1"):
        targets.runtime(TARGET).open(path, TARGET)


@pytest.mark.parametrize("size", ["N=1", "x:0=1"])
def test_inspect_asks_the_provider_how_it_cuts_a_model_that_is_given_sizes(tmp_path: Path, size: str) -> None:
    path = write(small_cnn(), tmp_path / "m.onnx")
    done = graphopt("inspect", path, "--target", "qnn-htp", "--dim", size, "--json")
    (target,) = json.loads(done.stdout)["targets"]
    assert (target["judged_by"], target["partitions"], target["left_behind"]) == ("provider", 1, [])


def optimize(path: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return graphopt("optimize", path, "-o", "out.onnx", "--target", "qnn-htp", "--json", *arguments)


def test_optimize_checks_on_the_simulator_and_prints_nothing_but_json(tmp_path: Path) -> None:
    done = optimize(write(small_cnn(), tmp_path / "m.onnx"), "--set", "shapes.fix.N=1", "--strict-provider")
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert report["timing"] is None
    assert any("a simulator runs it here" in note for note in report["notes"])
    assert report["target_answers"]["agrees"]


def test_nodes_that_stay_behind_are_told_and_refused_when_asked(tmp_path: Path) -> None:
    model = from_text("g (float[1,4] x) => (float[1,4] y) { a = Relu(x) [odd] b = Erf(a) y = Relu(b) }")
    path = write(model, tmp_path / "m.onnx")
    done = optimize(path)
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert [node["name"] for node in report["placement"]["left_behind"]] == ["odd"]
    assert report["placement"]["parts"] == 2 or report["placement"]["parts"] is None
    refused = optimize(path, "--strict-provider")
    assert refused.returncode == 6
    assert "odd (Erf, on CPUExecutionProvider)" in refused.stderr
