"""Passes and runtimes are found by entry point, a third party's too."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

import onnx
import pytest

from graphopt import recipe, registry, targets
from graphopt.errors import MissingError, UsageError

from helpers import graphopt, installed, small_cnn, write

THIRD_PARTY = '''
import os
import time

import numpy as np
import onnx_ir as ir
from graphopt.contracts import Change, LossyPass, Need, Pass, PassOptions, Setting, Site
from pydantic import Field


class Rename(Pass):
    """Lossless: gives the graph another name."""
    name = "rename"
    summary = "rename the graph"

    class Options(PassOptions):
        to: str = Field("renamed", description="the new name")

    def apply(self, model, context):
        model.graph.name = self.options.to
        return [Change("graph", f"called {self.options.to}", "asked for")]


class Coarse(LossyPass):
    """Lossy: rounds the weights of every Conv."""
    name = "coarse"
    summary = "round weights"
    needs = frozenset({Need.DATA})

    def sites(self, model, context):
        steps = tuple(Setting(f"step {step}", step) for step in (1e-6, 1e-3, 4.0))
        return [Site(node.name, node.op_type, steps) for node in model.graph if node.op_type == "Conv"]

    def apply(self, model, plan, context):
        step = {site.name: setting.value for site, setting in plan.items()}
        changes = []
        for node in model.graph:
            if node.name in step:
                weight = node.inputs[1]
                value = np.round(weight.const_value.numpy() / step[node.name]) * step[node.name]
                weight.const_value = ir.tensor(value.astype(np.float32), name=weight.name)
                changes.append(Change(node.name, f"rounded to {step[node.name]}", "planned"))
        return changes


class Wrong(Pass):
    """Claims to be lossless and is not."""
    name = "wrong"
    summary = "negate a weight"

    def apply(self, model, context):
        weight = next(node for node in model.graph if node.op_type == "Conv").inputs[1]
        weight.const_value = ir.tensor(-weight.const_value.numpy(), name=weight.name)
        return [Change(weight.name, "negated", "to be caught")]


class Slow(Pass):
    """Lossless, but computes a convolution four times over and adds almost nothing of it."""
    name = "slow"
    summary = "waste time"

    def apply(self, model, context):
        conv = next(node for node in model.graph if node.name == "conv2")
        weight = ir.Value(name="tiny", const_value=ir.tensor(conv.inputs[1].const_value.numpy() * 1e-9, name="tiny"))
        model.graph.register_initializer(weight)
        value, nodes = conv.inputs[0], []
        for index in range(4):
            nodes.append(ir.node("Conv", [value, weight], {"pads": [1, 1, 1, 1]}, name=f"waste{index}"))
            value = nodes[-1].outputs[0]
        [use] = conv.outputs[0].uses()
        nodes.append(ir.node("Add", [conv.outputs[0], value], name="waste"))
        use.node.replace_input_with(use.idx, nodes[-1].outputs[0])
        model.graph.insert_after(conv, nodes)
        return [Change("conv2", "computed again", "to be caught")]


class Bloat(Pass):
    """Lossless, but leaves 4 MB that nobody needs."""
    name = "bloat"
    summary = "waste bytes"

    def apply(self, model, context):
        waste = ir.tensor(np.zeros(1_000_000, np.float32), name="waste")
        model.graph.register_initializer(ir.Value(name="waste", const_value=waste))
        return [Change("waste", "added", "to be caught")]


class Magic(Pass):
    """Valid ONNX, with an operator that no runtime has."""
    name = "magic"
    summary = "use an unknown operator"

    def apply(self, model, context):
        [relu] = [node for node in model.graph if node.name == "relu1"]
        relu.domain, relu.op_type = "acme", "Magic"
        model.opset_imports["acme"] = 1
        return [Change("relu1", "made magic", "to be caught")]


class Later(Pass):
    """Valid ONNX that loads, and fails when it runs: a Reshape that fits no batch."""
    name = "later"
    summary = "fail at run time"

    def apply(self, model, context):
        [relu] = [node for node in model.graph if node.name == "relu1"]
        shape = ir.Value(name="shape", const_value=ir.tensor(np.array([-1, 8, 8, 7], np.int64), name="shape"))
        model.graph.register_initializer(shape)
        old = relu.outputs[0]
        uses = [*old.uses()]
        dynamic = ir.node("Identity", [shape], name="hidden")
        there = ir.node("Reshape", [old, dynamic.outputs[0]], name="there")
        like = ir.node("Shape", [old], name="like")
        back = ir.node("Reshape", [there.outputs[0], like.outputs[0]], name="back")
        model.graph.insert_after(relu, [dynamic, there, like, back])
        for use in uses:
            use.node.replace_input_with(use.idx, back.outputs[0])
        return [Change("relu1", "reshaped", "to be caught")]


class Sleep(Pass):
    """Changes nothing, and takes long when the environment says so."""
    name = "sleep"
    summary = "sleep"

    def apply(self, model, context):
        time.sleep(float(os.environ.get("SLEEP_SECONDS", "0")))
        return []


class Crash(Pass):
    name = "crash"
    summary = "raise"

    def apply(self, model, context):
        raise ZeroDivisionError("on purpose")
'''

ENTRY_POINTS = """[graphopt.passes]
rename = third_party:Rename
coarse = third_party:Coarse
wrong = third_party:Wrong
crash = third_party:Crash
magic = third_party:Magic
later = third_party:Later
sleep = third_party:Sleep
slow = third_party:Slow
bloat = third_party:Bloat
gone = not_installed_anywhere:Gone
text = json:dumps
"""


@pytest.fixture
def third_party(tmp_path: Path) -> dict[str, str]:
    """The environment of a process in which a third party's package is installed."""
    return installed(tmp_path, "third_party", THIRD_PARTY, ENTRY_POINTS)


def optimize(source: Path, out: Path, *arguments: object, env: dict[str, str]) -> subprocess.CompletedProcess[str]:
    return graphopt("optimize", source, "-o", out, "--time-limit", "1", "--json", *arguments, env=env)


def with_recipe(folder: Path, *passes: str) -> Path:
    path = folder / "mine.yaml"
    path.write_text("passes: [" + ", ".join(passes) + "]\n", encoding="utf-8")
    return path


def samples(folder: Path) -> Path:
    import numpy as np

    path = folder / "samples.npz"
    np.savez(path, x=np.random.default_rng(1).standard_normal((32, 3, 8, 8)).astype(np.float32))
    return path


def test_a_third_partys_pass_runs_through_its_entry_point(third_party: dict[str, str], tmp_path: Path) -> None:
    source = write(small_cnn(), tmp_path / "m.onnx")
    out = tmp_path / "out.onnx"
    mine = with_recipe(tmp_path, "rename")
    done = optimize(source, out, "--recipe", mine, "--set", "rename.to=other", env=third_party)
    assert done.returncode == 0, done.stderr
    [row] = json.loads(done.stdout)["passes"]
    assert (row["name"], row["kept"], row["options"]) == ("rename", True, {"to": "other"})
    assert onnx.load(out).graph.name == "other"


def test_a_lossy_pass_backs_off_to_the_harshest_setting_within_the_budget(third_party: dict[str, str], tmp_path: Path) -> None:
    source = write(small_cnn(seed=4), tmp_path / "m.onnx")
    mine, data = with_recipe(tmp_path, "coarse"), samples(tmp_path)
    done = optimize(source, tmp_path / "out.onnx", "--recipe", mine, "--data", data, "--max-drop", "0.05", env=third_party)
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    [row] = report["passes"]
    assert row["kept"]
    assert "not step 4.0: agreement falls by" in row["why"]
    assert {change["what"] for change in row["changes"]} == {"rounded to 0.001"}
    assert report["validation"]["metric"]["drop"] <= 0.05


def test_excluded_sites_are_left_alone(third_party: dict[str, str], tmp_path: Path) -> None:
    source = write(small_cnn(), tmp_path / "m.onnx")
    mine, data = with_recipe(tmp_path, "coarse"), samples(tmp_path)
    done = optimize(source, tmp_path / "out.onnx", "--recipe", mine, "--data", data, "--exclude", "conv1", env=third_party)
    assert done.returncode == 0, done.stderr
    [row] = json.loads(done.stdout)["passes"]
    assert [(c["site"], c["done"]) for c in row["changes"]] == [("conv2", True), ("conv1", False)]


def test_a_lossy_recipe_without_data_is_refused(third_party: dict[str, str], tmp_path: Path) -> None:
    source = write(small_cnn(), tmp_path / "m.onnx")
    done = optimize(source, tmp_path / "out.onnx", "--recipe", with_recipe(tmp_path, "coarse"), env=third_party)
    assert done.returncode == 4
    assert "--data" in done.stderr
    assert not (tmp_path / "out.onnx").exists()


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("wrong", "the outputs changed: "),
        ("crash", "ZeroDivisionError: on purpose"),
        ("magic", "the target cannot load the result"),
        ("later", "the target cannot run the result"),
    ],
)
def test_a_pass_that_does_wrong_is_undone_and_named(
    name: str, reason: str, third_party: dict[str, str], tmp_path: Path
) -> None:
    source = write(small_cnn(), tmp_path / "m.onnx")
    out = tmp_path / "out.onnx"
    done = optimize(source, out, "--recipe", with_recipe(tmp_path, name, "rename"), env=third_party)
    assert done.returncode == 0, done.stderr
    bad, good = json.loads(done.stdout)["passes"]
    assert not bad["kept"]
    assert reason in bad["why"]
    assert good["kept"]
    import numpy as np

    from helpers import assert_same_outputs

    assert_same_outputs(source, out, {"x": np.ones((2, 3, 8, 8), np.float32)})


def test_a_killed_run_is_resumed_without_repeating_what_was_done(third_party: dict[str, str], tmp_path: Path) -> None:
    source = write(small_cnn(), tmp_path / "m.onnx")
    out, mine = tmp_path / "out.onnx", with_recipe(tmp_path, "rename", "sleep")
    arguments = [sys.executable, "-m", "graphopt", "optimize", source, "-o", out, "--recipe", mine]
    process = subprocess.Popen(list(map(str, arguments)), env={**third_party, "SLEEP_SECONDS": "600"})
    journal = tmp_path / ".out.onnx.graphopt" / "journal.jsonl"
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and not (journal.is_file() and len(journal.read_text().splitlines()) == 2):
        time.sleep(0.02)
    process.kill()
    process.wait()
    assert not out.exists()
    done = optimize(source, out, "--recipe", mine, "--resume", env=third_party)
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert [row["name"] for row in report["passes"]] == ["rename", "sleep"]
    assert "rename was finished by an earlier run and taken from its journal." in report["notes"]
    assert onnx.load(out).graph.name == "renamed"
    assert not journal.parent.exists()


@pytest.mark.parametrize(("name", "reason"), [("slow", "slower than the original"), ("bloat", "larger than the original")])
def test_a_pass_that_does_not_pay_is_undone_and_what_pays_is_kept(
    name: str, reason: str, third_party: dict[str, str], tmp_path: Path
) -> None:
    source = write(small_cnn(channels=32), tmp_path / "m.onnx")
    out = tmp_path / "out.onnx"
    done = optimize(source, out, "--recipe", with_recipe(tmp_path, "rename", name), env=third_party)
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    good, bad = report["passes"]
    assert good["kept"]
    assert not bad["kept"]
    assert reason in bad["why"]
    assert report["output"]["nodes"] == 8
    alone = optimize(source, tmp_path / "alone.onnx", "--recipe", with_recipe(tmp_path, name), env=third_party)
    assert alone.returncode == 5
    assert reason in json.loads(alone.stdout)["verdict"]
    assert not (tmp_path / "alone.onnx").exists()


def test_the_goal_size_refuses_a_larger_file(third_party: dict[str, str], tmp_path: Path) -> None:
    source = write(small_cnn(channels=32), tmp_path / "m.onnx")
    mine = with_recipe(tmp_path, "slow")
    done = optimize(source, tmp_path / "out.onnx", "--recipe", mine, "--goal", "size", env=third_party)
    assert done.returncode == 5
    assert "larger than the original" in json.loads(done.stdout)["verdict"]


def test_when_every_pass_is_undone_nothing_is_written_and_the_exit_code_says_so(
    third_party: dict[str, str], tmp_path: Path
) -> None:
    source = write(small_cnn(), tmp_path / "m.onnx")
    out = tmp_path / "out.onnx"
    done = optimize(source, out, "--recipe", with_recipe(tmp_path, "wrong"), env=third_party)
    assert done.returncode == 5, done.stderr
    assert not out.exists()
    assert sorted(path.name for path in tmp_path.iterdir() if path.name != "site") == ["m.onnx", "mine.yaml"]


def test_an_entry_point_that_cannot_be_imported_is_named(third_party: dict[str, str], tmp_path: Path) -> None:
    done = graphopt("passes", "gone", env=third_party)
    assert done.returncode == 6
    assert "not_installed_anywhere" in done.stderr


def test_an_entry_point_that_is_no_pass_is_refused(third_party: dict[str, str], tmp_path: Path) -> None:
    done = graphopt("passes", "text", env=third_party)
    assert done.returncode == 2
    assert "is not a BasePass" in done.stderr


def test_shipped_names_resolve() -> None:
    assert "simplify" in registry.pass_names()
    for name in registry.pass_names():
        assert registry.pass_class(name).name == name
    for name in registry.runtime_names():
        assert registry.runtime(name).name == name
    for name in recipe.names():
        assert recipe.load(name).steps
    for name in targets.names():
        assert targets.load(name).name == name


def test_a_wrong_name_is_answered_with_the_nearest() -> None:
    with pytest.raises(UsageError, match="'simplify'"):
        registry.pass_class("simplfy")
    with pytest.raises(UsageError, match="'lossless'"):
        recipe.load("losless")
    with pytest.raises(UsageError, match="Known: coreml, cpu"):
        targets.load("zzz")


def test_a_target_that_cannot_run_is_a_missing_error_with_the_way_out() -> None:
    text = "{name: x, summary: s, runtime: onnxruntime, provider: NoSuchExecutionProvider}"
    with pytest.raises(MissingError, match="cannot run here"):
        targets.runtime(targets.parse(text, "x.yaml"))


@pytest.mark.parametrize("text", ["name: [", "name: x", "{name: x, summary: s, runtime: r, provider: p, threads: 0}", "- 1"])
def test_a_broken_target_file_is_a_usage_error(text: str) -> None:
    with pytest.raises(UsageError):
        targets.parse(text, "x.yaml")
