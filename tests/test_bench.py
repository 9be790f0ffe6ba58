"""``graphopt bench``: figures, baselines and the gate, from the command line."""

from __future__ import annotations

import json
import xml.etree.ElementTree as ET
from pathlib import Path

import onnx
import pytest

from graphopt import energy

from helpers import from_text, graphopt, small_cnn, write


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


# ------------------------------------------------------------------------------------------------ targets, sweeps, cold start


def test_a_fresh_process_tells_cold_start_and_memory(tmp_path: Path) -> None:
    done = graphopt("bench", write(small_cnn(), tmp_path / "m.onnx"), "--time-limit", "0.3", "--json")
    [row] = json.loads(done.stdout)
    cold = row["cold_start"]
    assert min(cold["import_ms"], cold["load_ms"], cold["first_run_ms"]) > 0
    assert cold["import_ms"] > row["p50_ms"]
    assert row["peak_bytes"] >= row["base_bytes"] > 10_000_000
    off = graphopt("bench", tmp_path / "m.onnx", "--time-limit", "0.3", "--cold-start", "off", "--json")
    assert json.loads(off.stdout)[0]["cold_start"] is None


def test_batch_sizes_and_threads_are_swept(tmp_path: Path) -> None:
    source = write(small_cnn(), tmp_path / "m.onnx")
    arguments = ["--batch", "1,4", "--threads", "1,2", "--time-limit", "0.2", "--cold-start", "off"]
    rows = json.loads(graphopt("bench", source, *arguments, "--json").stdout)
    assert [(row["batch"], row["threads"]) for row in rows] == [(1, 1), (1, 2), (4, 1), (4, 2)]
    assert {row["clock"] for row in rows} == {"cpu", "wall"}
    for row in rows:
        assert row["samples_per_second"] == pytest.approx(row["batch"] * 1000 / row["wall_p50_ms"])  # CPU time is one thread's
    text = graphopt("bench", source, *arguments).stdout
    assert "batch" in text
    assert "samples/s" in text


def test_a_fixed_batch_size_is_said(tmp_path: Path) -> None:
    source = write(small_cnn(1), tmp_path / "m.onnx")
    done = graphopt("bench", source, "--batch", "1,4", "--time-limit", "0.2", "--cold-start", "off", "--json")
    assert done.returncode == 4
    one, four = json.loads(done.stdout)
    assert one["error"] is None
    assert "fixed at 1" in four["error"]


def test_a_named_target_that_is_not_here_is_a_row_and_exit_6(tmp_path: Path) -> None:
    source = write(small_cnn(), tmp_path / "m.onnx")
    arguments = ["--target", "cpu", "--target", "nnapi", "--time-limit", "0.2", "--cold-start", "off"]
    done = graphopt("bench", source, *arguments)
    assert done.returncode == 6
    assert "not here: nnapi (it is for Android" in done.stdout
    assert "samples/s" in done.stdout
    cpu, nnapi = json.loads(graphopt("bench", source, *arguments, "--json").stdout)
    assert cpu["p50_ms"] > 0
    assert (nnapi["absent"], nnapi["exit_code"]) == (True, 6)


def test_a_file_that_is_no_model_is_an_error_where_nothing_is_timed_too(tmp_path: Path) -> None:
    board = tmp_path / "board.yaml"
    board.write_text("{like: cpu, name: board, summary: another processor, machine: riscv64, elsewhere: untimed}")
    done = graphopt("bench", tmp_path / "absent.onnx", "--target", board)
    assert done.returncode == 3
    assert "there is no such file" in done.stdout


def test_what_was_measured_is_a_page_too(tmp_path: Path) -> None:
    source = write(small_cnn(), tmp_path / "<b>.onnx")
    done = graphopt("bench", source, "--batch", "1,2", "--time-limit", "0.2", "--report", tmp_path / "out")
    assert done.returncode == 0, done.stderr
    page = (tmp_path / "out" / "bench.html").read_text(encoding="utf-8")
    assert page.count('<svg class="chart"') == 3  # latency, throughput, cold start
    assert "<b>.onnx" not in page
    assert "http" not in page.replace("http-equiv", "")
    stored = json.loads((tmp_path / "out" / "bench.json").read_text(encoding="utf-8"))
    assert [row["batch"] for row in stored["rows"]] == [1, 2]
    assert stored["environment"]["cores"] >= 1


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--batch", "1,x"], "1,4,16"),
        (["--threads", "0"], "at least 1"),
        (["--batch", "4", "--save-baseline", "b.json"], "--batch"),
        (["--target", "all", "--save-baseline", "b.json"], "Name the targets"),
    ],
)
def test_wrong_sweeps_are_said(tmp_path: Path, arguments: list[str], words: str) -> None:
    done = graphopt("bench", write(small_cnn(), tmp_path / "m.onnx"), *arguments)
    assert done.returncode == 2, done.stderr
    assert words in done.stderr


def test_energy_is_what_the_counters_show_and_they_may_begin_again(tmp_path: Path) -> None:
    package = tmp_path / "intel-rapl:0"
    (package / "intel-rapl:0:0").mkdir(parents=True)
    (package / "max_energy_range_uj").write_text("1000000\n")
    (package / "energy_uj").write_text("900000\n")
    found = energy.counters(tmp_path)
    before = found.read()
    assert [*before] == [package]
    (package / "energy_uj").write_text("400000\n")
    assert found.joules(before, found.read()) == pytest.approx(0.5)
    assert "no energy counters" in energy.counters(tmp_path / "nothing").why
