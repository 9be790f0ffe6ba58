"""The command line as a user meets it: real commands on real small models, their output, errors and exit codes."""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path

import numpy as np
import onnx
import pytest

from graphopt import optimize
from graphopt.errors import UsageError

from helpers import assert_same_outputs, from_text, graphopt, run, small_cnn, write

REDUNDANT = """
g (float[N, 4] x) => (float[N, 4] y) <float[4] one = {1.0, 1.0, 1.0, 1.0}, float[4] two = {2.0, 2.0, 2.0, 2.0}>
{
    three = Add(one, two)
    same = Identity(x)
    a = Mul(same, three)
    b = Mul(x, three)
    y = Add(a, b)
}
"""


def fails(code: int, *words: str, done: subprocess.CompletedProcess[str]) -> None:
    """The command ended with ``code`` and one short paragraph that holds all the words; no traceback."""
    assert done.returncode == code, done.stderr
    assert "Traceback" not in done.stderr
    assert len(done.stderr.strip().splitlines()) <= 6, done.stderr
    for word in words:
        assert word in done.stderr, done.stderr


@pytest.fixture
def redundant(tmp_path: Path) -> Path:
    return write(from_text(REDUNDANT), tmp_path / "m.onnx")


def test_optimize_writes_an_equal_smaller_graph_beside_the_input(redundant: Path, tmp_path: Path) -> None:
    before = redundant.read_bytes()
    done = graphopt("optimize", redundant, "--time-limit", "1")
    assert done.returncode == 0, done.stderr
    out = tmp_path / "m.opt.onnx"
    onnx.checker.check_model(out, full_check=True)
    assert len(onnx.load(out).graph.node) == 2
    for batch in (1, 3):
        assert_same_outputs(redundant, out, {"x": np.random.default_rng(0).standard_normal((batch, 4)).astype(np.float32)})
    assert redundant.read_bytes() == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["m.onnx", "m.opt.onnx"]
    assert "m.opt.onnx is written" in done.stdout
    assert done.stderr == ""


def test_the_same_job_writes_the_same_bytes(redundant: Path, tmp_path: Path) -> None:
    outputs = [tmp_path / "a" / "o.onnx", tmp_path / "b" / "o.onnx"]
    for out in outputs:
        out.parent.mkdir()
        assert graphopt("optimize", redundant, "-o", out, "--timing", "off").returncode == 0
    assert outputs[0].read_bytes() == outputs[1].read_bytes()


def test_json_is_the_only_thing_on_stdout_and_equals_the_report(redundant: Path, tmp_path: Path) -> None:
    done = graphopt("optimize", redundant, "--report", tmp_path / "r", "--json", "--time-limit", "1")
    assert done.returncode == 0, done.stderr
    printed = json.loads(done.stdout)
    assert printed == json.loads((tmp_path / "r" / "report.json").read_text(encoding="utf-8"))
    assert sorted(path.name for path in (tmp_path / "r").iterdir()) == ["report.html", "report.json", "report.md"]
    assert printed["schema"] == 1
    assert printed["input"]["nodes"] == 5
    assert printed["output"]["nodes"] == 2
    assert printed["validation"]["generated"]
    assert printed["validation"]["outputs"]["y"]["max_rel"] <= 1e-6
    assert printed["timing"]["clock"] == "cpu"
    assert printed["timing"]["speedup_low"] <= printed["timing"]["speedup"] <= printed["timing"]["speedup_high"]
    assert printed["peak_rss_bytes"] > 10_000_000
    assert printed["command"].startswith("graphopt optimize")


def test_a_metric_is_measured_before_and_after(tmp_path: Path) -> None:
    source = write(small_cnn(), tmp_path / "m.onnx")
    x = np.random.default_rng(0).standard_normal((64, 3, 8, 8)).astype(np.float32)
    labels = run(source, {"x": x})["y"].argmax(1)
    labels[:16] = (labels[:16] + 1) % 10
    np.savez(tmp_path / "eval.npz", x=x, labels=labels)
    done = graphopt("optimize", source, "--eval", tmp_path / "eval.npz", "--max-drop", "0", "--time-limit", "1", "--json")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)["validation"]
    assert found["metric"] == {"name": "top1", "before": 0.75, "after": 0.75, "drop": 0.0}
    assert found["samples"] == 64
    assert not found["generated"]


def test_switched_off_checks_are_said(redundant: Path) -> None:
    done = graphopt("optimize", redundant, "--verify", "off", "--timing", "off", "--json")
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert report["validation"] is None
    assert report["timing"] is None
    assert any("--verify off" in note for note in report["notes"])
    assert any("--timing off" in note for note in report["notes"])


def test_initializers_that_a_caller_may_override_are_said_with_what_makes_constants_of_them(tmp_path: Path) -> None:
    proto = from_text(
        """
        <ir_version: 8, opset_import: ["" : 17]>
        main (float[N] x, float[1] w) => (float[N] y) <float[1] w = {2}> { v = Neg(w) y = Mul(x, v) }
        """
    )
    source = write(proto, tmp_path / "m.onnx")
    plain = graphopt("optimize", source, "--timing", "off")
    assert (
        "1 initializer is an input too, which a caller may override: if nobody does, --set simplify.freeze=true" in plain.stdout
    )
    frozen = graphopt("optimize", source, "--timing", "off", "--set", "simplify.freeze=true")
    assert "2 nodes became 1" in frozen.stdout
    assert "override" not in frozen.stdout


def test_an_optimal_model_is_written_as_it_is(redundant: Path, tmp_path: Path) -> None:
    first, second = tmp_path / "1.onnx", tmp_path / "2.onnx"
    assert graphopt("optimize", redundant, "-o", first, "--timing", "off").returncode == 0
    done = graphopt("optimize", first, "-o", second, "--timing", "off", "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["passes"][0]["why"] == "nothing to change"
    assert first.read_bytes() == second.read_bytes()


def test_an_existing_output_survives_a_failure_and_is_replaced_by_a_success(redundant: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.onnx"
    out.write_bytes(b"precious")
    fails(3, "no.onnx", done=graphopt("optimize", tmp_path / "no.onnx", "-o", out))
    assert out.read_bytes() == b"precious"
    assert graphopt("optimize", redundant, "-o", out, "--timing", "off").returncode == 0
    onnx.checker.check_model(out)


def test_the_output_is_never_the_input(redundant: Path, tmp_path: Path) -> None:
    fails(2, "the input", done=graphopt("optimize", redundant, "-o", redundant))
    link = tmp_path / "link.onnx"
    link.symlink_to(redundant)
    fails(2, "the input", done=graphopt("optimize", redundant, "-o", link))


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["--recipe", "losless"], 2, ["lossless"]),
        (["--target", "cpuu"], 2, ["'cpu'"]),
        (["--set", "simplify.fodl=1"], 2, ["'fold'"]),
        (["--set", "simplify"], 2, ["PASS.OPTION=VALUE"]),
        (["--dim", "N"], 2, ["NAME=SIZE"]),
        (["-o", "no/such/folder/x.onnx"], 2, ["does not exist"]),
        (["--goal", "beauty"], 2, ["latency"]),
        (["--report", "m.onnx"], 2, ["m.onnx"]),
        (["--report", "m.onnx/sub"], 2, ["report cannot be written"]),
        (["--data", "no.npz"], 4, ["no.npz"]),
        (["--max-drop", "0.1"], 4, ["--max-drop", "needs data"]),
        (["--metric", "top1"], 4, ["--metric", "needs data"]),
    ],
)
def test_wrong_use_is_said_in_a_paragraph(
    redundant: Path, tmp_path: Path, arguments: list[str], code: int, words: list[str]
) -> None:
    fails(code, *words, done=graphopt("optimize", redundant, *arguments, cwd=tmp_path))
    assert not (tmp_path / "m.opt.onnx").exists()


def test_data_that_does_not_fit_is_refused_before_any_work(redundant: Path, tmp_path: Path) -> None:
    x = np.ones((3, 4), np.float32)
    x[1, 2] = np.nan
    np.savez(tmp_path / "nan.npz", x=x)
    fails(4, "nan.npz", "x", done=graphopt("optimize", redundant, "--data", tmp_path / "nan.npz"))
    np.savez(tmp_path / "wide.npz", x=np.ones((3, 5), np.float32))
    fails(4, "wide.npz", done=graphopt("optimize", redundant, "--data", tmp_path / "wide.npz"))


def test_a_model_that_the_runtime_cannot_run_is_a_model_error(tmp_path: Path) -> None:
    text = '<ir_version: 10, opset_import: ["" : 20, "acme" : 1]>\ng (float[2] x) => (float[2] y) { y = acme.Magic(x) }'
    source = write(from_text(text), tmp_path / "m.onnx")
    fails(3, "Magic", done=graphopt("optimize", source))


def test_a_metric_that_fails_is_said_and_leaves_nothing_behind(tmp_path: Path) -> None:
    source = write(small_cnn(), tmp_path / "m.onnx")
    (tmp_path / "mine.py").write_text("def bad(outputs, labels):\n    return 1 / 0\n", encoding="utf-8")
    np.savez(tmp_path / "d.npz", x=np.ones((2, 3, 8, 8), np.float32))
    done = graphopt("optimize", source, "--data", tmp_path / "d.npz", "--metric", "mine:bad", cwd=tmp_path)
    fails(2, "mine:bad", "ZeroDivisionError", done=done)
    assert sorted(path.name for path in tmp_path.iterdir() if path.name != "__pycache__") == ["d.npz", "m.onnx", "mine.py"]


def test_an_output_without_its_option_is_answered_with_the_line_that_works(redundant: Path) -> None:
    fails(
        2, "'out.onnx' is one path too many", f"{redundant.name} -o out.onnx", done=graphopt("optimize", redundant, "out.onnx")
    )


def test_optimize_tells_what_became_of_the_operators(redundant: Path) -> None:
    assert re.search(r"Operators: (\w+ \d+ to \d+(, |\.$))+", graphopt("optimize", redundant, "--timing", "off").stdout, re.M)


def test_an_unknown_command_is_answered_with_the_nearest() -> None:
    fails(2, "'optimize'", done=graphopt("optimise", "m.onnx"))


@pytest.mark.parametrize(
    "command", ["optimize", "inspect", "compare", "bench", "passes", "targets", "recipes", "doctor", "demo"]
)
def test_every_command_explains_itself_with_an_example(command: str) -> None:
    done = graphopt(command, "--help")
    assert done.returncode == 0
    assert f"graphopt {command}" in done.stdout.split("Options:")[0].split("Usage:")[1].split("\n", 1)[1]


def test_inspect_tells_what_the_model_is_made_of(tmp_path: Path) -> None:
    source = write(small_cnn(), tmp_path / "m.onnx")
    facts = json.loads(graphopt("inspect", source, "--json").stdout)
    assert (facts["nodes"], facts["opset"], facts["inputs"]) == (8, 20, ["x float32 [N, 3, 8, 8]"])
    assert facts["parameters"] == 8 * 27 + 8 + 8 * 72 + 8 + 80 + 10
    assert facts["macs"] == 64 * (8 * 27 + 8 * 72) + 80
    assert facts["heaviest"][0]["name"] == "conv2"
    target = next(row for row in facts["targets"] if row["target"] == "cpu")
    assert (target["target"], target["available"], target["nodes"]["CPUExecutionProvider"] > 0) == ("cpu", True, True)
    assert "conv2" in graphopt("inspect", source).stdout


def test_inspect_counts_quantized_weights_as_those_of_the_layer_that_uses_them(tmp_path: Path) -> None:
    text = (
        "g (float[1, 3, 9, 9] x) => (float[1, 1, 9, 9] y) <int8[1, 3, 1, 1] q = {1, 2, 3}, float s = {0.5}> "
        "{ w = DequantizeLinear(q, s) y = Conv(x, w) }"
    )
    found = json.loads(graphopt("inspect", write(from_text(text), tmp_path / "m.onnx"), "--json").stdout)["heaviest"][0]
    assert (found["op_type"], found["parameters"], found["weight_bytes"]) == ("Conv", 3, 3)


def test_compare_finds_equal_models_equal_and_different_ones_different(tmp_path: Path) -> None:
    a, b = write(small_cnn(), tmp_path / "a.onnx"), write(small_cnn(seed=1), tmp_path / "b.onnx")
    x = np.random.default_rng(0).standard_normal((16, 3, 8, 8)).astype(np.float32)
    np.savez(tmp_path / "d.npz", x=x)
    same = graphopt("compare", a, a, "--data", tmp_path / "d.npz", "--max-rel", "0", "--max-drop", "0", "--json")
    assert same.returncode == 0, same.stderr
    assert json.loads(same.stdout)["metric"]["after"] == 1
    other = graphopt("compare", a, b, "--data", tmp_path / "d.npz", "--max-drop", "0.01", "--json")
    assert other.returncode == 5
    found = json.loads(other.stdout)
    expected = np.abs(run(a, {"x": x})["y"] - run(b, {"x": x})["y"]).max()
    assert found["outputs"]["y"]["max_abs"] == pytest.approx(expected, rel=1e-4)
    assert found["problems"]


def test_compare_refuses_models_with_other_inputs(tmp_path: Path) -> None:
    a = write(small_cnn(), tmp_path / "a.onnx")
    b = write(from_text("g (float[2] z) => (float[2] y) { y = Relu(z) }"), tmp_path / "b.onnx")
    fails(3, "inputs differ", "x", "z", done=graphopt("compare", a, b))


def test_the_lists_list_what_is_there() -> None:
    passes = {row["name"] for row in json.loads(graphopt("passes", "--json").stdout)}
    assert {"quantize.dynamic", "shapes.fix", "shapes.opset", "simplify"} <= passes
    recipes = {row["name"] for row in json.loads(graphopt("recipes", "--json").stdout)}
    assert {"int8-dynamic", "int8-static", "lossless"} <= recipes
    available = {row["name"]: row["available"] for row in json.loads(graphopt("targets", "--json").stdout)}
    assert available["cpu"]
    assert not available["tensorrt"]
    assert "simplify.fold" in graphopt("passes", "simplify").stdout
    assert "shapes.fix.NAME" in graphopt("passes", "shapes.fix").stdout


def test_passes_say_which_values_an_option_takes() -> None:
    shown = {name: graphopt("passes", name).stdout for name in ("prune.channels", "factorize", "prune.sparsity")}
    assert "wanda" in shown["prune.channels"]
    assert "whole number, vbmf" in shown["factorize"]
    assert "{NAME: number, ...}" in shown["prune.sparsity"]
    assert not [word for word in ("None", "Literal", "Annotated", "Undefined") for text in shown.values() if word in text]


def test_output_that_is_a_folder_or_in_no_real_folder_is_a_usage_error(redundant: Path, tmp_path: Path) -> None:
    fails(2, "newdir", "is a folder", done=graphopt("optimize", redundant, "-o", f"{tmp_path}/newdir/"))
    fails(2, "/proc", "cannot be written", done=graphopt("optimize", redundant, "-o", "/proc/m.onnx"))


def test_doctor_finds_this_installation_well() -> None:
    done = graphopt("doctor", "--json")
    assert done.returncode == 0, done.stdout
    findings = {row["what"]: row for row in json.loads(done.stdout)}
    assert findings["target cpu"]["state"] == "ok"
    assert findings["pass simplify"]["state"] == "ok"


def test_doctor_detects_two_distributions_that_provide_the_same_module(tmp_path: Path) -> None:
    info = tmp_path / "onnxruntime_gpu-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: onnxruntime-gpu\nVersion: 1.0\n", encoding="utf-8")
    (info / "top_level.txt").write_text("onnxruntime\n", encoding="utf-8")
    done = graphopt("doctor", "--json", env={"PYTHONPATH": str(tmp_path)})
    assert done.returncode == 6
    [clash] = [row for row in json.loads(done.stdout) if "both provide" in row["found"]]
    assert "onnxruntime and onnxruntime-gpu" in clash["found"]
    assert clash["mend"] == "pip uninstall -y onnxruntime onnxruntime-gpu && pip install onnxruntime-gpu"


def test_without_onnxruntime_the_extra_is_named(redundant: Path, tmp_path: Path) -> None:
    (tmp_path / "hide").mkdir()
    (tmp_path / "hide" / "onnxruntime.py").write_text("raise ImportError('hidden')\n", encoding="utf-8")
    fails(6, "graphopt[cpu]", done=graphopt("optimize", redundant, env={"PYTHONPATH": str(tmp_path / "hide")}))


def test_optimize_knows_the_macs_of_dynamic_shapes_from_its_data_and_says_what_else_there_is(tmp_path: Path) -> None:
    text = "g (float[N, T, 4] x) => (float[N, T, 2] y) <float[4, 2] w = {1, 2, 3, 4, 5, 6, 7, 8}> { y = MatMul(x, w) }"
    done = graphopt("optimize", write(from_text(text), tmp_path / "m.onnx"), "--time-limit", "1", "--dim", "T=16")
    [macs] = [line.split() for line in done.stdout.splitlines() if "MACs" in line]
    assert macs[-3:] == ["128", "128", "same"]
    assert "Same speed" in done.stdout
    assert "--recipe int8" in done.stdout


def test_optimize_compares_outputs_that_are_sequences(tmp_path: Path) -> None:
    text = """g (float[N, 4] x) => (seq(float[N, 4]) parts, float[N, 4] y) {
        same = Identity(x) a = Relu(same) short = ReduceSum(a) b = Neg(same)
        parts = SequenceConstruct(a, b, short) y = Relu(x) }"""
    done = graphopt("optimize", write(from_text(text), tmp_path / "m.onnx"), "--time-limit", "1")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "outputs equal" in done.stdout
    assert len(onnx.load(tmp_path / "m.opt.onnx").graph.node) == 4


def test_inspect_lists_the_targets_that_it_can_judge_and_says_who_needs_fixed_shapes(redundant: Path) -> None:
    shown = graphopt("inspect", redundant).stdout
    assert "fixed shapes only, which --dim NAME=SIZE gives: nnapi" in shown
    assert "Not known here: " in shown
    assert "fixed shapes" not in graphopt("inspect", redundant, "--dim", "N=1").stdout


def test_an_operator_of_an_unknown_library_is_named_and_can_be_left_alone(tmp_path: Path) -> None:
    text = """<ir_version: 9, opset_import: ["": 20, "my.plugins": 1]>
        g (float[N, 4] x) => (float[N, 4] y) { same = Identity(x) y = my.plugins.Foo(same) }"""
    path = write(from_text(text), tmp_path / "m.onnx")
    fails(3, "my.plugins:Foo", "--verify off --timing off", done=graphopt("optimize", path))
    assert graphopt("optimize", path, "--verify", "off", "--timing", "off").returncode == 0
    assert [node.op_type for node in onnx.load(tmp_path / "m.opt.onnx").graph.node] == ["Foo"]


def test_python_takes_arrays_and_shows_a_short_report(tmp_path: Path) -> None:
    path, images = write(small_cnn(), tmp_path / "m.onnx"), np.random.default_rng(0).random((8, 3, 8, 8), np.float32)
    report = optimize(path, eval_data={"x": images, "labels": np.arange(8)}, timing=False)
    assert report.validation is not None
    assert report.validation.samples == 8
    assert len(repr(report)) < 300
    assert report.verdict in report._repr_markdown_()
    with pytest.raises(UsageError, match="Save it first"):
        optimize(onnx.load(path))  # type: ignore[arg-type]


def test_demo_runs_the_main_job_on_a_real_model(tmp_path: Path) -> None:
    done = graphopt("demo", "-o", tmp_path / "demo")
    assert done.returncode == 0, done.stderr
    report = json.loads((tmp_path / "demo" / "report" / "report.json").read_text(encoding="utf-8"))
    assert report["validation"]["metric"]["before"] == report["validation"]["metric"]["after"] > 0.98
    assert report["output"]["nodes"] < report["input"]["nodes"]
    assert (tmp_path / "demo" / "digits.opt.onnx").is_file()


@pytest.mark.zoo
@pytest.mark.parametrize(
    "name",
    [
        *("cifar_resnet20", "cifar_resnet20_legacy", "cifar_resnet56", "mobilenet_v1_025", "squeezenet1_1", "mobilenet_v2"),
        *("mnist_8", "nanodet_m", "silero_vad", "ppocr_cls", "gtcrn_simple", "stories260k"),
    ],
)
def test_every_model_of_the_zoo_is_optimized(zoo: Path, tmp_path: Path, name: str) -> None:
    source, out = zoo / "models" / f"{name}.onnx", tmp_path / "o.onnx"
    done = graphopt("optimize", source, "-o", out, "--report", tmp_path / "r", "--time-limit", "2", "--json")
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    onnx.checker.check_model(out, full_check=True)
    assert report["validation"]["passed"]
    assert report["output"]["nodes"] <= report["input"]["nodes"]
    assert all((tmp_path / "r" / each).stat().st_size for each in ("report.json", "report.md", "report.html"))


@pytest.mark.zoo
def test_the_metric_of_cifar_resnet20_reads_0915_before_and_after(zoo: Path, tmp_path: Path) -> None:
    data = zoo / "data" / "cifar10" / "eval.npz"
    done = graphopt(
        "optimize",
        zoo / "models" / "cifar_resnet20.onnx",
        "-o",
        tmp_path / "o.onnx",
        "--eval",
        data,
        "--time-limit",
        "2",
        "--json",
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["validation"]["metric"] == {"name": "top1", "before": 0.915, "after": 0.915, "drop": 0.0}
