"""A target's own answers: what computes wrongly is flagged, and two wrongs that agree do not pass for right."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import numpy as np
import pytest

from helpers import graphopt, installed, small_cnn, write

BENT = '''
"""onnxruntime's CPU provider, bent: outputs are spoilt, nodes seem to run elsewhere, a float model is refused."""
from dataclasses import replace

from graphopt.contracts import Partition
from graphopt.errors import ModelError
from graphopt.model import load, nodes
from graphopt.runtimes.onnxruntime import OnnxRuntime


class Spoilt:
    def __init__(self, session, by):
        self._session, self._by = session, by

    def __getattr__(self, name):
        return getattr(self._session, name)

    def run(self, feed):
        return {name: value * self._by for name, value in self._session.run(feed).items()}

    def __enter__(self):
        return self

    def __exit__(self, *exc):
        self._session.close()


class Bent(OnnxRuntime):
    name = "bent"
    summary = "for tests"

    def open(self, model, target, options=None):
        if "integers only" in target.summary and not any(n.op_type == "QuantizeLinear" for n in nodes(load(model))):
            raise ModelError("it computes in integers only")
        session = super().open(model, cpu(target), *([options] if options else []))
        session.partition = self.partition(model, target)
        return Spoilt(session, 1.5 if "wrong" in target.summary else 1 + 1e-6)

    def partition(self, model, target):
        left = [("conv2", "Conv", "CPUExecutionProvider")] if "leaves one" in target.summary else []
        return Partition({"CPUExecutionProvider": 8}, left)

    def availability(self, target):
        return super().availability(cpu(target))

    def profile(self, model, target, feed, rounds=10):
        return super().profile(model, cpu(target), feed, rounds)


def cpu(target):
    return target.model_copy(update={"runtime": "onnxruntime"})
'''


@pytest.fixture
def bent(tmp_path: Path) -> dict[str, str]:
    """The environment of a process in which the bent runtime is installed."""
    return installed(tmp_path, "bent", BENT, "[graphopt.runtimes]\nbent = bent:Bent\n")


def target(folder: Path, how: str) -> Path:
    path = folder / "bent.yaml"
    path.write_text(f"{{like: cpu, name: bent, summary: {how}, runtime: bent}}", encoding="utf-8")
    return path


def optimize(env: dict[str, str], folder: Path, how: str, *more: object) -> subprocess.CompletedProcess[str]:
    source = write(small_cnn(), folder / "m.onnx")
    choices = ("--target", target(folder, how), "--time-limit", "0.5", "--json", *more)
    return graphopt("optimize", source, "-o", folder / "out.onnx", *choices, env=env)


def test_results_on_another_target_are_compared_with_the_original_on_the_cpu(bent: dict[str, str], tmp_path: Path) -> None:
    done = optimize(bent, tmp_path, "right")
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert report["validation"]["reference"] == "cpu"
    assert report["validation"]["outputs"]["y"]["max_rel"] == pytest.approx(1e-6, rel=0.5)
    assert (report["target_answers"]["agrees"], report["target_answers"]["reference"]) == (True, "cpu")


def test_a_target_that_is_wrong_in_the_same_way_before_and_after_passes_for_nothing(
    bent: dict[str, str], tmp_path: Path
) -> None:
    done = optimize(bent, tmp_path, "wrong")
    assert done.returncode == 5
    assert not (tmp_path / "out.onnx").exists()
    report = json.loads(done.stdout)
    assert not report["target_answers"]["agrees"]
    assert any("The target bent computes m.onnx wrongly, by cpu: output 'y' differs by 0.5" in n for n in report["notes"])


def test_compare_flags_a_target_that_computes_the_first_model_wrongly(bent: dict[str, str], tmp_path: Path) -> None:
    source = write(small_cnn(), tmp_path / "m.onnx")
    done = graphopt("compare", source, source, "--target", target(tmp_path, "wrong"), "--json", env=bent)
    assert done.returncode == 5
    [problem] = json.loads(done.stdout)["problems"]
    assert "The target bent computes m.onnx wrongly, by cpu" in problem
    assert graphopt("compare", source, source, "--target", target(tmp_path, "right"), env=bent).returncode == 0


def test_bench_flags_times_of_wrong_answers_and_nodes_on_other_providers(bent: dict[str, str], tmp_path: Path) -> None:
    source = write(small_cnn(), tmp_path / "m.onnx")
    how = ("bench", source, "--time-limit", "0.2", "--cold-start", "off", "--json", "--target")
    wrong = graphopt(*how, target(tmp_path, "wrong and leaves one"), env=bent)
    assert wrong.returncode == 5, wrong.stderr
    [row] = json.loads(wrong.stdout)
    assert (row["agrees"], row["left_behind"]) == (False, 1)
    assert any("computes m.onnx wrongly" in warning for warning in row["warnings"])
    assert any("conv2 (Conv, on CPUExecutionProvider)" in warning for warning in row["warnings"])
    assert graphopt(*how, target(tmp_path, "leaves one"), "--strict-provider", env=bent).returncode == 6
    right = graphopt(*how, target(tmp_path, "right"), env=bent)
    assert (right.returncode, json.loads(right.stdout)[0]["agrees"]) == (0, True)


def test_a_baseline_is_not_compared_with_nodes_on_other_providers_when_that_is_refused(
    bent: dict[str, str], tmp_path: Path
) -> None:
    source, stored = write(small_cnn(), tmp_path / "m.onnx"), tmp_path / "baseline.json"
    how = ("bench", source, "--target", target(tmp_path, "leaves one"), "--time-limit", "0.2", "--cold-start", "off")
    assert graphopt(*how, "--save-baseline", stored, env=bent).returncode == 0
    refused = graphopt(*how, "--baseline", stored, "--strict-provider", env=bent)
    assert refused.returncode == 6
    assert "conv2 (Conv, on CPUExecutionProvider)" in refused.stderr
    assert graphopt(*how, "--baseline", stored, "--max-regression", "900%", env=bent).returncode == 0


def test_nodes_that_run_elsewhere_are_told_and_an_error_when_asked(bent: dict[str, str], tmp_path: Path) -> None:
    done = optimize(bent, tmp_path, "leaves one")
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert report["placement"]["left_behind"] == [{"name": "conv2", "op_type": "Conv", "provider": "CPUExecutionProvider"}]
    assert any("1 of 8 nodes do not run on" in note for note in report["notes"])
    refused = optimize(bent, tmp_path, "leaves one", "--strict-provider")
    assert refused.returncode == 6
    assert "conv2 (Conv, on CPUExecutionProvider)" in refused.stderr
    source, chosen = tmp_path / "m.onnx", tmp_path / "bent.yaml"
    compared = graphopt("compare", source, source, "--strict-provider", "--target", chosen, env=bent)
    assert compared.returncode == 6


def test_an_original_that_the_target_refuses_may_become_one_that_it_takes(bent: dict[str, str], tmp_path: Path) -> None:
    data = tmp_path / "data.npz"
    np.savez(data, x=np.random.default_rng(0).standard_normal((16, 3, 8, 8)).astype(np.float32))
    done = optimize(bent, tmp_path, "integers only", "--recipe", "int8", "--data", data, "--max-drop", "1")
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert (report["timing"], report["target_answers"]) == (None, None)
    assert any("cannot run the original" in note for note in report["notes"])
    assert (tmp_path / "out.onnx").exists()
    assert optimize(bent, tmp_path, "integers only").returncode == 5
