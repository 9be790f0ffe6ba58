"""Recipes are validated before any work, and a wrong name is answered with the right one."""

from __future__ import annotations

from pathlib import Path

import pytest

from graphopt import recipe
from graphopt.contracts import Remains
from graphopt.errors import UsageError


def test_options_come_from_the_file_and_settings_override_them() -> None:
    made = recipe.parse("passes:\n  - simplify: {fold: false, cse: false}\n", "mine", ["simplify.fold=true"])
    [step] = made.steps
    assert (step.options["fold"], step.options["cse"]) == (True, False)


def test_a_preset_loads_by_name_and_a_file_by_path(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("passes: [simplify]\n", encoding="utf-8")
    assert [step.name for step in recipe.load(str(path)).steps] == ["simplify"]
    assert recipe.load("lossless").steps[0].name == "simplify"


@pytest.mark.parametrize(
    ("text", "settings", "message"),
    [
        ("passes: [simplifi]", [], "'simplify'"),
        ("passes: [{simplify: {folding: true}}]", [], "Did you mean 'fold'"),
        ("passes: [{simplify: {fold: maybe}}]", [], "wrong option of simplify: fold"),
        ("passes: []", [], "not a valid recipe"),
        ("steps: [simplify]", [], "not a valid recipe"),
        ("passes: [{simplify: {}, fuse: {}}]", [], "one list item holds 2 passes"),
        ("passes: [", [], "not valid YAML"),
        ("passes: [simplify]", ["simplify.fold"], "not PASS.OPTION=VALUE"),
        ("passes: [simplify]", ["fold=true"], "not PASS.OPTION=VALUE"),
        ("passes: [simplify]", ["simplif.fold=true"], "'simplify'"),
        ("passes: [simplify]", ["simplify.fld=true"], "'fold'"),
        ("passes: [shapes.opset]", ["simplify.fold=true"], "has no pass 'simplify'"),
        ("passes: [simplify]", ["prune.channels.macs=0.5"], "--recipe compact or prune"),
        ("passes: [{shapes.opset: {versoin: 20}}]", [], "'version'"),
        ("passes: [{shapes.fix: {N: 0}}]", [], "wrong option of shapes.fix: N"),
        ("passes: [simplify]", ["shapes.fix=1"], "unknown pass 'shapes'"),
    ],
)
def test_what_is_wrong_is_said(text: str, settings: list[str], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        recipe.parse(text, "mine", settings)


def test_a_file_that_is_not_there_is_said(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no such recipe file"):
        recipe.load(str(tmp_path / "no.yaml"))


def test_a_recipe_names_a_models_own_symbols() -> None:
    [step, _] = recipe.parse("passes: [{shapes.fix: {N: 1, 'input.1:0': 4}}, simplify]", "mine").steps
    assert step.options == {"N": 1, "input.1:0": 4}


def test_passes_that_are_asked_for_by_an_option_come_first_in_the_order_of_the_options() -> None:
    settings = ["shapes.opset.version=21", "simplify.fold=false", "shapes.fix.input.1:0=4", "shapes.fix.N=2"]
    made = recipe.parse("passes: [simplify]", "mine", settings)
    assert [step.name for step in made.steps] == ["shapes.opset", "shapes.fix", "simplify"]
    assert made.steps[1].options == {"input.1:0": 4, "N": 2}


def test_a_step_that_the_recipe_has_is_not_added_again() -> None:
    made = recipe.parse("passes: [simplify, {shapes.fix: {N: 1}}]", "mine", ["shapes.fix.N=8"])
    assert [(step.name, step.options.get("N")) for step in made.steps] == [("simplify", None), ("shapes.fix", 8)]


def test_on_and_off_are_words_where_an_option_takes_them() -> None:
    found = recipe.load("int8-static", ["quantize.static.bias_correction=off"])
    assert found.steps[-1].options["bias_correction"] == "off"


def test_families_of_lossy_passes_that_are_not_for_sale_share_the_budget_in_turn() -> None:
    made = recipe.parse("passes: [simplify, {prune.channels: {macs: 0.8}}, quantize.static, quantize.dynamic]", "mine")
    assert [made.share(step) for step in made.steps] == [1.0, 0.5, 1.0, 1.0]


def test_options_of_one_name_state_the_goal_in_every_pass() -> None:
    for setting in ("prune.channels.macs=0.7", "factorize.macs=0.7"):
        name = "prune" if setting.startswith("prune") else "lowrank"
        rewrite = recipe.load(name, [setting]).steps[-1].rewrite
        assert rewrite.remains() == Remains("macs", 0.7)
