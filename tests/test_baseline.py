import json
import xml.etree.ElementTree as ET
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from graphopt import baseline, timing
from graphopt.baseline import Entry, Regression
from graphopt.contracts import Silent
from graphopt.errors import UsageError
from graphopt.report import gate

from spinning import open_file

RESULT = Regression("m.onnx", "cpu", 1.0, 1.12, 1.12, 1.09, 1.15, 0.05, failed=True, how="interleaved", warnings=())


def model(path: Path, milliseconds: float) -> Path:
    path.parent.mkdir(exist_ok=True)
    path.write_text(str(milliseconds))
    return path


def measured(path: Path, **changes: object) -> Entry:
    latency = timing.measure(lambda: open_file(path), {}, limit_seconds=0.05, progress=Silent())
    return baseline.entry(path, "cpu", latency, {"onnxruntime": "1.0"}).model_copy(update=changes)


def judge(file: Path, candidate: Path, machine: str = "here", **options: object) -> Regression:
    defaults = {"target": "cpu", "max_regression": 0.05, "versions": {"onnxruntime": "1.0"}, "limit_seconds": 1.0}
    return baseline.judge(
        baseline.load(file),
        "m",
        candidate,
        machine=machine,
        open_session=open_file,
        feed={},
        rng=np.random.default_rng(0),
        progress=Silent(),
        **{**defaults, **options},
    )


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """A baseline with one model, old/m.onnx, that takes 0.4 ms."""
    path = tmp_path / "baseline.json"
    baseline.save(path, "here", {"m": measured(model(tmp_path / "old" / "m.onnx", 0.4))})
    return path


# --------------------------------------------------------------------------------------------------------------- the gate


def test_an_unchanged_model_passes(file: Path, tmp_path: Path) -> None:
    found = judge(file, model(tmp_path / "m.onnx", 0.4))
    assert not found.failed
    assert found.how == "interleaved"
    assert found.low <= found.slowdown <= found.high
    assert found.warnings == ()


def test_a_model_that_became_10_percent_slower_fails(file: Path, tmp_path: Path) -> None:
    found = judge(file, model(tmp_path / "m.onnx", 0.44))
    assert found.failed
    assert found.slowdown == pytest.approx(1.1, rel=0.02)
    assert 1.05 < found.low <= found.slowdown <= found.high
    assert not judge(file, model(tmp_path / "m.onnx", 0.44), max_regression=0.2).failed


def test_on_another_machine_the_baselines_model_file_is_run_there(file: Path, tmp_path: Path) -> None:
    found = judge(file, model(tmp_path / "m.onnx", 0.5), machine="elsewhere")
    assert (found.failed, found.how) == (True, "interleaved")
    assert "another machine" in found.warnings[0]


def test_without_the_models_file_stored_figures_serve_with_a_warning_and_a_wide_margin(file: Path, tmp_path: Path) -> None:
    (tmp_path / "old" / "m.onnx").unlink()
    found = judge(file, model(tmp_path / "m.onnx", 0.43))
    assert (found.failed, found.how) == (False, "stored")
    assert "weaker" in found.warnings[0]
    assert judge(file, model(tmp_path / "m.onnx", 0.6)).failed


def test_a_model_file_that_changed_since_is_not_the_baseline(file: Path, tmp_path: Path) -> None:
    model(tmp_path / "old" / "m.onnx", 0.2)
    found = judge(file, model(tmp_path / "m.onnx", 0.4), versions={"onnxruntime": "2.0"})
    assert (found.failed, found.how) == (False, "stored")
    assert "onnxruntime 1.0 is now 2.0" in found.warnings[1]


def test_stored_figures_of_another_machine_are_no_verdict(file: Path, tmp_path: Path) -> None:
    (tmp_path / "old" / "m.onnx").unlink()
    with pytest.raises(UsageError, match=r"(?s)another machine.*--save-baseline"):
        judge(file, model(tmp_path / "m.onnx", 0.4), machine="elsewhere")


def test_stored_figures_by_another_clock_are_no_verdict(tmp_path: Path) -> None:
    old = model(tmp_path / "old" / "m.onnx", 0.4)
    baseline.save(tmp_path / "b.json", "here", {"m": measured(old, clock="wall")})
    old.unlink()
    with pytest.raises(UsageError, match="timed by wall with 1 thread"):
        judge(tmp_path / "b.json", model(tmp_path / "m.onnx", 0.4))


def test_an_unknown_model_or_target_is_an_error_that_says_what_there_is(file: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no baseline for 'm' on target 'phone'"):
        judge(file, tmp_path / "m.onnx", target="phone")
    with pytest.raises(UsageError, match="holds m"):
        judge(file, tmp_path / "m.onnx", target="phone")


def test_this_machines_figures_go_before_anothers(file: Path, tmp_path: Path) -> None:
    baseline.save(file, "a machine before it in the alphabet", {"m": measured(model(tmp_path / "o.onnx", 0.2))})
    assert not judge(file, model(tmp_path / "m.onnx", 0.4)).failed


# --------------------------------------------------------------------------------------------------------------- the file


def test_saving_merges_and_keeps_paths_relative_to_the_file(file: Path, tmp_path: Path) -> None:
    other = measured(model(tmp_path / "n.onnx", 0.1))
    baseline.save(file, "here", {"n": other})
    baseline.save(file, "elsewhere", {"m": other})
    machines = baseline.load(file).machines
    assert set(machines["here"]) == {"m", "n"}
    assert machines["here"]["m"].model == "old/m.onnx"
    assert machines["elsewhere"]["m"].model == "n.onnx"
    assert json.loads(file.read_text())["schema"] == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["baseline.json", "n.onnx", "old"]


@pytest.mark.parametrize(
    "text", ["", "[]", '{"machines": {}}', '{"schema": 2, "machines": {}}', '{"schema": 1, "machines": 3}']
)
def test_what_is_not_a_baseline_is_refused_and_not_overwritten(tmp_path: Path, text: str) -> None:
    path = tmp_path / "b.json"
    path.write_text(text)
    with pytest.raises(UsageError, match="not a baseline of schema 1"):
        baseline.load(path)
    with pytest.raises(UsageError):
        baseline.save(path, "here", {})
    assert path.read_text() == text


def test_a_baseline_that_is_not_there_is_an_error_that_says_how_to_make_one(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="--save-baseline"):
        baseline.load(tmp_path / "none.json")
    with pytest.raises(UsageError, match="cannot be written"):
        baseline.save(tmp_path / "no" / "such" / "folder.json", "here", {})


# ---------------------------------------------------------------------------------------------------------------- reports


def test_junit_has_a_case_for_each_model_and_a_failure_for_each_alarm() -> None:
    results = [RESULT, replace(RESULT, model="n", failed=False, low=0.9, warnings=("odd", "very odd"))]
    suite = ET.fromstring(gate.junit_xml(results))[0]
    assert (suite.get("tests"), suite.get("failures")) == ("2", "1")
    first, second = suite.findall("testcase")
    assert "12.0% slower" in str(first.find("failure").get("message"))
    assert {p.get("name"): p.get("value") for p in first.iter("property")}["slowdown"] == "1.12"
    assert second.find("failure") is None
    assert second.find("system-out").text == "odd\nvery odd"


@given(st.text())
def test_junit_is_valid_xml_and_markdown_one_row_a_model_for_any_name(name: str) -> None:
    result = replace(RESULT, model=name)
    ET.fromstring(gate.junit_xml([result]).encode("utf-8", "surrogatepass"))
    rows = [line for line in gate.markdown([result]).splitlines() if line.startswith("|")]
    assert len(rows) == 3
    assert len(rows[0].replace("\\|", "").split("|")) == len(rows[2].replace("\\|", "").split("|"))


def test_markdown_says_the_verdict_first_and_the_warnings_last() -> None:
    text = gate.markdown([RESULT, replace(RESULT, model="a|b", failed=False, warnings=("odd",))])
    assert text.startswith("**1 of 2 slower than allowed**")
    assert "| m.onnx | cpu | 1.000 ms | 1.120 ms | +12.0% | +9.0% to +15.0% | +5.0% | interleaved | **slower** |" in text
    assert text.endswith("- a\\|b: odd\n")
    assert gate.markdown([]).startswith("**No regression**")


@pytest.mark.parametrize(
    ("text", "bound"), [("5%", 0.05), ("0.05", 0.05), (" 12.5 % ", 0.125), ("0", 0.0), (".1", 0.1), ("150%", 1.5)]
)
def test_a_bound_is_a_percentage_or_a_fraction(text: str, bound: float) -> None:
    assert baseline.parse_bound(text) == pytest.approx(bound)


@pytest.mark.parametrize("text", ["", "five", "-5%", "5", "nan", "inf", "5%%", "1e-2"])
def test_what_is_not_a_bound_is_refused(text: str) -> None:
    with pytest.raises(UsageError):
        baseline.parse_bound(text)
