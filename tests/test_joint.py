"""Several lossy passes under one budget: which share it, in what order they buy, and what the report says of it."""

from __future__ import annotations

from importlib import resources
from pathlib import Path

import numpy as np
import pytest

from graphopt import joint, optimize, recipe
from graphopt.report.schema import Report

_DEMO = resources.files("graphopt.demo")


def ran(folder: Path, name: str, **options: object) -> Report:
    """Optimize the demo's network, by its size."""
    (folder / "digits.onnx").write_bytes((_DEMO / "digits.onnx").read_bytes())
    (folder / "digits.npz").write_bytes((_DEMO / "digits.npz").read_bytes())
    data = str(folder / "digits.npz")
    return optimize(
        folder / "digits.onnx",
        folder / "out.onnx",
        recipe=name,
        data=data,
        eval_data=data,
        goal="size",
        timing=False,
        **options,  # type: ignore[arg-type]
    )


def test_passes_share_a_budget_from_the_first_graded_one_on() -> None:
    compact = recipe.load("compact")
    names = [compact.steps[at].name for at in compact.joint]
    assert names == [step.name for step in compact.steps[3:]]
    assert names[:2] == ["prune.channels", "factorize"]


@pytest.mark.parametrize("name", ["lossless", "int8", "prune", "lowrank"])
def test_a_recipe_with_one_kind_of_loss_shares_nothing(name: str) -> None:
    assert not recipe.load(name).joint


def test_a_pass_whose_goal_the_user_states_is_not_for_sale() -> None:
    made = recipe.load("compact", ["prune.channels.macs=0.8"])
    assert made.steps[made.joint.start].name == "factorize"


def test_damage_counts_the_last_setting_of_each_site() -> None:
    order = [
        joint.Bought(9.0, 3, "a", "gentle", 0.1),
        joint.Bought(8.0, 4, "a", "gentle", 0.01),
        joint.Bought(7.0, 3, "a", "harsh", 0.3),
    ]
    np.testing.assert_allclose(joint.sums(order), [0.1, 0.11, 0.31])


def test_a_layer_is_changed_by_one_pass() -> None:
    steps = [(3, "a", ("n1", "n2")), (4, "b", ("n2", "n3")), (3, "c", ("n3",)), (4, "d", ("n4",))]
    order = [joint.Bought(9.0 - rank, place, site, "", 0.1, nodes) for rank, (place, site, nodes) in enumerate(steps)]
    assert [step.site for step in joint.apart(order)] == ["a", "c", "d"]


def test_pruning_before_int8_makes_a_smaller_file_than_int8_alone(tmp_path: Path) -> None:
    text = "passes: [{shapes.opset: {version: 20, at_least: true}}, simplify, prune.channels, quantize.static]"
    (tmp_path / "two.yaml").write_text(text)
    fast = ["quantize.static.rounding=nearest", "quantize.static.bias_correction=off", "prune.channels.samples=100"]
    report = ran(tmp_path, str(tmp_path / "two.yaml"), max_drop=0.01, settings=fast)
    assert report.passed
    assert report.output is not None
    assert report.validation is not None
    assert report.validation.metric is not None
    assert report.validation.metric.drop <= 0.01
    assert [row.name for row in report.passes] == ["shapes.opset", "simplify", "prune.channels", "quantize.static"]
    [note] = [note for note in report.notes if note.startswith("Tried under one budget")]
    assert "alone" in note
    assert "× as small" in note
    assert report.output.parameters < report.input.parameters
    assert report.output.bytes < report.input.bytes / 5


def test_a_budget_of_nothing_is_kept_to(tmp_path: Path) -> None:
    (tmp_path / "two.yaml").write_text("passes: [{prune.channels: {samples: 100}}, {factorize: {samples: 100}}]")
    report = ran(tmp_path, str(tmp_path / "two.yaml"), max_drop=0.0)
    assert report.validation is not None
    assert report.validation.metric is not None
    assert report.validation.metric.drop <= 0
