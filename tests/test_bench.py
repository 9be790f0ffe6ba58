"""``graphopt bench``: figures, baselines and the gate, from the command line."""

from __future__ import annotations

import json
import subprocess
import sys
import xml.etree.ElementTree as ET
from pathlib import Path

import onnx
import pytest

from helpers import from_text, small_cnn, write


def graphopt(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "graphopt", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def twice_the_work(model: onnx.ModelProto) -> onnx.ModelProto:
    """The same model with its second convolution computed again, and added with weight nearly nothing."""
    graph = model.graph
    node = onnx.helper.make_node
    tiny = onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(graph.initializer[2]) * 1e-9, "w2b")
    graph.initializer.append(tiny)
    at = [n.name for n in graph.node].index("add")
    chain = ["r1"]
    for index in range(4):
        graph.node.insert(at + index, node("Conv", [chain[-1], "w2b"], [f"again{index}"], f"again{index}", pads=[1, 1, 1, 1]))
        chain.append(f"again{index}")
    graph.node.insert(at + 4, node("Add", ["c2", chain[-1]], ["c2b"], "more"))
    graph.node[at + 5].input[0] = "c2b"
    return model


@pytest.fixture
def baseline(tmp_path: Path) -> Path:
    write(small_cnn(channels=16), tmp_path / "m.onnx")
    done = graphopt("bench", tmp_path / "m.onnx", "--save-baseline", tmp_path / "bench.json", "--time-limit", "0.5")
    assert done.returncode == 0, done.stderr
    return tmp_path / "bench.json"


def test_latencies_are_told_for_every_model(tmp_path: Path) -> None:
    models = [write(small_cnn(channels=c), tmp_path / f"m{c}.onnx") for c in (4, 32)]
    done = graphopt("bench", *models, "--time-limit", "0.5", "--json")
    assert done.returncode == 0, done.stderr
    small, large = json.loads(done.stdout)
    assert 0 < small["p50_ms"] < large["p50_ms"]
    assert small["p50_ms"] <= small["p90_ms"] <= small["p99_ms"]
    assert (small["provider"], small["clock"], small["threads"]) == ("CPUExecutionProvider", "cpu", 1)
    assert "p99" in graphopt("bench", *models, "--time-limit", "0.5").stdout


def test_a_model_that_fails_is_a_row_with_the_reason_and_the_others_are_measured(tmp_path: Path) -> None:
    good = write(small_cnn(), tmp_path / "good.onnx")
    done = graphopt("bench", tmp_path / "no.onnx", good, "--time-limit", "0.5", "--json")
    assert done.returncode == 3
    bad, measured = json.loads(done.stdout)
    assert "no.onnx" in bad["error"]
    assert measured["p50_ms"] > 0


def test_the_same_model_passes_the_gate(baseline: Path) -> None:
    done = graphopt("bench", baseline.with_name("m.onnx"), "--baseline", baseline, "--time-limit", "3", "--json")
    assert done.returncode == 0, done.stdout
    [result] = json.loads(done.stdout)
    assert (result["how"], result["failed"]) == ("interleaved", False)


def test_a_slower_model_fails_the_gate_and_the_files_for_ci_say_so(baseline: Path, tmp_path: Path) -> None:
    (tmp_path / "new").mkdir()
    candidate = write(twice_the_work(small_cnn(channels=16)), tmp_path / "new" / "m.onnx")
    junit, summary = tmp_path / "b.xml", tmp_path / "b.md"
    done = graphopt("bench", candidate, "--baseline", baseline, "--junit", junit, "--markdown", summary, "--time-limit", "5")
    assert done.returncode == 5, done.stdout
    assert "SLOWER" in done.stdout
    suite = ET.parse(junit).getroot().find("testsuite")
    assert suite is not None
    assert (suite.get("tests"), suite.get("failures")) == ("1", "1")
    assert "slower" in summary.read_text(encoding="utf-8")


def test_without_the_baselines_model_the_stored_figures_serve_with_a_warning(baseline: Path, tmp_path: Path) -> None:
    candidate = tmp_path / "new" / "m.onnx"
    candidate.parent.mkdir()
    baseline.with_name("m.onnx").rename(candidate)
    done = graphopt("bench", candidate, "--baseline", baseline, "--max-regression", "200%", "--time-limit", "1", "--json")
    assert done.returncode == 0, done.stdout + done.stderr
    [result] = json.loads(done.stdout)
    assert result["how"] == "stored"
    assert "weaker" in result["warnings"][0]


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["--baseline", "no.json"], 2, "no.json"),
        (["--junit", "x.xml"], 2, "--baseline"),
        (["--baseline", "{baseline}", "--max-regression", "5"], 2, "5%"),
        (["--target", "cpuu"], 2, "'cpu'"),
    ],
)
def test_wrong_use_is_said(baseline: Path, arguments: list[str], code: int, words: str) -> None:
    done = graphopt("bench", baseline.with_name("m.onnx"), *(each.format(baseline=baseline) for each in arguments))
    assert done.returncode == code, done.stderr
    assert words in done.stderr
    assert "Traceback" not in done.stderr


def test_a_model_without_a_baseline_is_said(baseline: Path, tmp_path: Path) -> None:
    other = write(from_text("g (float[2] x) => (float[2] y) { y = Relu(x) }"), tmp_path / "other.onnx")
    done = graphopt("bench", other, "--baseline", baseline)
    assert done.returncode == 2
    assert "--save-baseline" in done.stderr
