"""``prune.layers``, ``prune.heads`` and blocks in ``prune.channels``: what is left out, and what stands in its place."""

from __future__ import annotations

import dataclasses

import numpy as np
import onnx_ir as ir
import pytest

from graphopt import allocate, model
from graphopt.contracts import Grade, NodeTime, Plan, Setting, Site
from graphopt.model import parameters
from graphopt.passes.prune import PruneChannels, PruneHeads, PruneLayers, damage
from graphopt.passes.prune.refit import Past, Version

from channels import Net
from channels import feed as normal
from helpers import assert_same_outputs, run
from observing import context
from pruning import error


def chain(blocks: int = 3, *, preactivated: bool = False) -> ir.Model:
    """A residual network whose blocks add little."""
    net = Net(x=["N", 3, 8, 8])
    out = net("Relu", net.conv("x", 3, 8))
    for _ in range(blocks):
        branch = net("Mul", net.conv(net("Relu", net.conv(out, 8, 8)), 8, 8), net.constant(np.float32(0.02)))
        out = net("Add", branch, out)
        out = out if preactivated else net("Relu", out)
    return net.model(net.conv(net("Relu", out), 8, 4))


def transformer() -> ir.Model:
    net = Net(x=["N", 5, 16])
    heads = [
        net("Transpose", net("Reshape", net.linear("x", 16, 16), net.constant([0, 5, 4, 4])), perm=[0, 2, 1, 3])
        for _ in range(3)
    ]
    weights = net("Softmax", net("MatMul", heads[0], net("Transpose", heads[1], perm=[0, 1, 3, 2])), axis=-1)
    mixed = net("Reshape", net("Transpose", net("MatMul", weights, heads[2]), perm=[0, 2, 1, 3]), net.constant([0, 5, 16]))
    attended = net("Add", net.linear(mixed, 16, 16), "x")
    fed = net("Add", net.linear(net("Relu", net.linear(attended, 16, 32)), 32, 16), attended)
    return net.model(net.linear(fed, 16, 8))


def without(before: ir.Model, names: set[str], **options: object) -> ir.Model:
    """Blocks left out by name."""
    feed = normal(before, 96)
    with context(before, **feed) as made:
        rewrite = PruneLayers(PruneLayers.Options(**options))
        sites = rewrite.sites(before, made)
        candidate = model.clone(before)
        rewrite.apply(candidate, {site: site.settings[-1] for site in sites if site.name in names}, made)
    model.check(candidate)
    return candidate


def blocks_of(before: ir.Model) -> list[str]:
    with context(before, **normal(before, 4)) as made:
        return [site.name for site in PruneLayers().sites(before, made)]


@pytest.mark.parametrize("preactivated", [False, True])
def test_each_block_of_a_residual_network_can_be_left_out(preactivated: bool) -> None:
    before = chain(preactivated=preactivated)
    names = blocks_of(before)
    assert len(names) == 3
    for gone in ({names[0]}, {names[1], names[2]}, {*names}):
        after = without(before, gone)
        convs = sum(node.op_type == "Conv" for node in after.graph)
        assert convs == 8 - 2 * len(gone)
        for batch in (1, 3):
            [y] = run(after, normal(before, batch)).values()
            assert y.shape == (batch, 4, 8, 8)


def test_without_fitting_what_is_left_computes_the_network_without_the_branch() -> None:
    before = chain()
    names = blocks_of(before)
    zeroed = model.clone(before)
    [join] = [node for node in zeroed.graph if node.name == names[1]]
    for index in (0, 1):
        value = join.inputs[index]
        assert value is not None
        made = value.producer()
        if made is not None and made.op_type == "Mul":
            factor = made.inputs[1]
            assert factor is not None
            nothing = ir.Value(name="nothing", const_value=ir.tensor(np.float32(0), name="nothing"))
            zeroed.graph.register_initializer(nothing)
            made.replace_input_with(1, nothing)
    assert_same_outputs(zeroed, without(before, {names[1]}, reconstruct=False), normal(before, 3))


def test_the_layers_that_are_left_make_up_for_a_block() -> None:
    before = chain()
    names = blocks_of(before)
    held_out = normal(before, 48, seed=9)
    fitted, cut = (without(before, {names[0], names[1]}, reconstruct=on) for on in (True, False))
    assert error(before, fitted, held_out) < 0.9 * error(before, cut, held_out)


def test_a_branch_of_another_shape_stays() -> None:
    net = Net(x=["N", 3, 8, 8])
    wide = net.conv("x", 3, 8)
    gate = net.conv(net("GlobalAveragePool", wide), 8, 8, kernel=1)
    joined = net("Add", gate, wide)  # only the gate can go: without the rest there would be no picture
    before = net.model(net.conv(joined, 8, 4))
    [name] = blocks_of(before)
    after = without(before, {name})
    assert [node.op_type for node in after.graph] == ["Conv", "Conv"]


def test_attention_and_feed_forward_are_blocks_and_heads_are_groups() -> None:
    before = transformer()
    assert len(blocks_of(before)) == 2
    feed = normal(before, 64)
    with context(before, **feed) as made:
        heads = PruneHeads(PruneHeads.Options(ratio=0.5))
        offered = [site for site in heads.sites(before, made) if site.settings]
        assert [[setting.label for setting in site.settings] for site in offered] == [["2 of 4"]]
        candidate = model.clone(before)
        heads.apply(candidate, allocate.harshest(offered), made)
        without_heads = PruneChannels(PruneChannels.Options(ratio=0.5, heads=False))
        assert not any("of 4" in s.label for site in without_heads.sites(before, made) for s in site.settings)
    assert parameters(candidate) < parameters(before)
    assert run(candidate, normal(before, 2)).keys() == run(before, normal(before, 2)).keys()


def test_a_block_is_graded_by_what_it_saves_and_does() -> None:
    before = chain()
    with context(before, **normal(before, 96)) as made:
        rewrite = PruneChannels()
        sites = rewrite.sites(before, made)
        grades = rewrite.grades(before, [site for site in sites if site.settings], made)
        blocks = [grades[site, s] for site in sites for s in site.settings if s.label == "left out"]
    assert [grade.macs for grade in blocks] == [2 * 8 * 8 * 9 * 64] * 3
    assert all(0 < grade.damage < 0.1 for grade in blocks)


@pytest.mark.parametrize("index", [0, 2])
def test_the_damage_of_a_block_is_that_between_the_whole_models(index: int) -> None:
    before = chain()
    feed = normal(before, 96)
    with context(before, **feed) as made:
        rewrite = PruneLayers(PruneLayers.Options(reconstruct=False))
        site = [site for site in rewrite.sites(before, made) if site.settings][index]
        [grade] = rewrite.grades(before, [site], made).values()
        candidate = model.clone(before)
        rewrite.apply(candidate, {site: site.settings[0]}, made)
    judged = {name: array[-32:] for name, array in feed.items()}
    [expected], [found] = run(before, judged).values(), run(candidate, judged).values()
    assert grade.damage == pytest.approx(float(((expected - found) ** 2).sum() / (expected**2).sum()), rel=1e-3)


def test_the_time_of_fused_kernels_is_that_of_the_layer_and_saved_in_steps_of_the_targets_width() -> None:
    net = Net(x=["N", 3, 8, 8])
    before = net.model(net.conv(net("Relu", net.conv("x", 3, 32)), 32, 4))

    def profile(graph: ir.Model) -> list[NodeTime]:
        weight = next(node.inputs[1] for node in graph.graph if node.op_type == "Conv")
        assert weight is not None
        assert weight.const_value is not None
        return [NodeTime("relu1_nchwc", "Conv", "CPU", weight.const_value.shape.numpy()[0] / 32, origin="relu1")]

    with context(before, **normal(before, 12)) as made:
        timed = dataclasses.replace(made, profile=profile)
        rewrite = PruneChannels(PruneChannels.Options(macs=0.5))
        [site, *_] = [site for site in rewrite.sites(before, timed) if site.settings]
        grades = rewrite.grades(before, [site], timed)
    left = {int(setting.label.split()[0]): grade.milliseconds for (_, setting), grade in grades.items()}
    assert left[16] == pytest.approx(0.5)
    assert left[28] == pytest.approx(0.0 if made.target.channels_at_once == 16 else 0.125)
    assert all(count % 4 == 0 for count in left)


def test_several_savings_count_alike() -> None:
    site = [Site(name, "Conv", (Setting("all"),)) for name in "ab"]
    grades = {
        (site[0], site[0].settings[0]): Grade(1.0, macs=100, milliseconds=0.0),
        (site[1], site[1].settings[0]): Grade(1.0, macs=90, milliseconds=1.0),
    }

    def first(*savings: allocate.Saving) -> Plan:
        return allocate.frontier(site, grades, *savings)[-1]

    assert [*first("macs")] == [site[0]]
    assert [*first("macs", "milliseconds")] == [site[1]]


def test_what_a_block_saves_is_counted_with_the_sizes_that_the_data_have() -> None:
    net = Net(x=["N", "T", 8])
    fed = net("Add", net.linear(net("Relu", net.linear("x", 8, 16)), 16, 8), "x")
    before = net.model(net.linear(fed, 8, 4))
    feed = {"x": np.random.default_rng(0).standard_normal((32, 5, 8)).astype(np.float32)}
    with context(before, **feed) as made:
        rewrite = PruneLayers()
        [site] = rewrite.sites(before, made)
        [grade] = rewrite.grades(before, [site], made).values()
    assert grade.macs == 2 * 5 * 8 * 16


def test_of_blocks_that_stand_in_for_each_other_the_second_is_dear() -> None:
    start = Version(chain(1), Past.none(chain(1), {}))
    setting = Setting("left out", "left out")
    alone = {Site(name, "Add", (setting,)): one for name, one in [("a", 0.01), ("b", 0.011), ("c", 0.03)]}

    def change(version: Version, site: Site) -> Version:
        learned = {**version.past.learned, site.name: ()}
        return dataclasses.replace(version, past=dataclasses.replace(version.past, learned=learned))

    def harm(version: Version) -> float:
        gone = {*version.past.learned}
        return sum(one for site, one in alone.items() if site.name in gone) + (0.08 if gone >= {"a", "b"} else 0.0)

    found = damage.in_turn(start, alone, dict.fromkeys(alone, 1.0), change, harm)
    assert {site.name: round(one, 6) for site, one in found.items()} == {"a": 0.01, "b": 0.091, "c": 0.03}
