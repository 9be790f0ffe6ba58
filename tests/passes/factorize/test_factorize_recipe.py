"""``optimize`` with the recipe ``lowrank``: goals are met, budgets hold, and what does not pay is undone."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from factorizing import low_rank, with_weights
from helpers import graphopt, write

RNG = np.random.default_rng(3)


def _model(folder: Path, size: int = 256, noise: float = 0.02) -> tuple[Path, Path]:
    """Two wide layers of nearly low rank and a small one, and their data."""
    weights = {
        name: low_rank(RNG, 12, size, size) + noise * RNG.standard_normal((size, size)).astype(np.float32) for name in "uv"
    }
    proto = with_weights(
        f"g (float[N, {size}] x) => (float[N, 4] y) "
        "{ a = MatMul(x, u)\n r = Relu(a)\n b = MatMul(r, v)\n s = Relu(b)\n y = MatMul(s, w) }",
        w=RNG.standard_normal((size, 4)).astype(np.float32),
        **weights,
    )
    data = folder / "data.npz"
    np.savez(data, x=RNG.standard_normal((64, size)).astype(np.float32))
    return write(proto, folder / "m.onnx"), data


def _optimize(model: Path, data: Path, *more: str) -> tuple[int, dict[str, Any], str]:
    out = model.with_suffix(".out.onnx")
    done = graphopt("optimize", model, "-o", out, "--recipe", "lowrank", "--data", data, "--time-limit", 3, "--json", *more)
    return done.returncode, json.loads(done.stdout) if done.stdout.startswith("{") else {}, done.stderr


def test_the_part_of_macs_that_may_remain_is_met(tmp_path: Path) -> None:
    model, data = _model(tmp_path)
    code, report, _ = _optimize(model, data, "--set", "factorize.macs=0.6", "--timing", "off", "--max-drop", "1")
    assert code == 0
    assert 0.4 < report["output"]["macs"] / report["input"]["macs"] <= 0.6


def test_singular_values_of_the_chosen_layers_are_drawn(tmp_path: Path) -> None:
    model, data = _model(tmp_path)
    _, report, _ = _optimize(model, data, "--set", "factorize.rank=vbmf", "--timing", "off", "--max-drop", "1")
    [figure] = report["passes"][-1]["figures"]
    assert len(figure["series"]) == 2
    for name, values in figure["series"].items():
        assert values[0] == 1
        assert values == sorted(values, reverse=True)
        assert figure["marks"][name] == 12  # the rank that the weights were made with


def test_a_goal_that_no_rank_reaches_is_told(tmp_path: Path) -> None:
    model, data = _model(tmp_path)
    code, report, _ = _optimize(model, data, "--set", "factorize.macs=0.001", "--timing", "off", "--max-drop", "1")
    step = next(one for one in report["passes"] if one["name"] == "factorize")
    assert not step["kept"]
    assert "remain at the harshest" in step["why"]
    assert code in {0, 5}


def test_energy_takes_the_cheapest_rank_that_keeps_it(tmp_path: Path) -> None:
    model, data = _model(tmp_path, noise=0.0)
    *_, report, _ = _optimize(model, data, "--set", "factorize.energy=0.999", "--timing", "off", "--max-drop", "1")
    changes = [change for change in report["passes"][-1]["changes"] if change["done"]]
    assert len(changes) == 2
    assert all(change["what"].startswith("rank 16,") for change in changes)  # 12, rounded up to the vector width


def test_rank_is_taken_as_given(tmp_path: Path) -> None:
    model, data = _model(tmp_path)
    *_, report, _ = _optimize(model, data, "--set", "factorize.rank=20", "--timing", "off", "--max-drop", "1")
    assert {c["what"].split(",")[0] for c in report["passes"][-1]["changes"] if c["done"]} == {"rank 20"}


def test_low_rank_layers_become_faster_and_the_budget_holds(tmp_path: Path) -> None:
    model, data = _model(tmp_path, size=768)
    code, report, _ = _optimize(model, data, "--max-drop", "0.02")
    assert code == 0
    assert report["validation"]["metric"]["drop"] <= 0.02
    assert report["timing"]["speedup"] > 1.2
    assert report["output"]["bytes"] < 0.6 * report["input"]["bytes"]


def test_a_network_that_is_too_small_to_gain_is_never_written_slower(tmp_path: Path) -> None:
    model, data = _model(tmp_path, size=24)
    code, report, _ = _optimize(model, data, "--max-drop", "1")
    written = model.with_suffix(".out.onnx").exists()
    assert written == (code == 0)
    assert not written or report["timing"]["verdict"] != "slower"


def test_a_rank_that_is_too_low_to_be_of_use_is_declined_with_the_reason(tmp_path: Path) -> None:
    table = RNG.standard_normal((400, 64)).astype(np.float32)  # all of its components are alike
    proto = with_weights("g (int64[N, 8] ids) => (float[N, 8, 64] y) { y = Gather(table, ids) }", table=table)
    data = tmp_path / "data.npz"
    np.savez(data, ids=RNG.integers(0, 400, (64, 8)))
    path = write(proto, tmp_path / "m.onnx")
    *_, report, _ = _optimize(path, data, "--set", "factorize.rank=8", "--timing", "off", "--max-drop", "1")
    step = report["passes"][-1]
    assert "bearable damage" in step["why"]
    assert "loses half of the outputs' energy" in step["changes"][0]["why"]


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("factorize.macs=1.5", "less than 1"),
        ("factorize.rank=0", "greater than or equal to 1"),
        ("factorize.form=cp", "form"),
    ],
)
def test_wrong_options_are_told(tmp_path: Path, setting: str, message: str) -> None:
    model, data = _model(tmp_path, size=24)
    code, _, stderr = _optimize(model, data, "--set", setting)
    assert code == 2
    assert message in stderr


def test_two_goals_exclude_one_another(tmp_path: Path) -> None:
    model, data = _model(tmp_path, size=24)
    code, _, stderr = _optimize(model, data, "--set", "factorize.macs=0.5", "--set", "factorize.rank=4")
    assert code == 2
    assert "exclude one another" in stderr
