"""``prune.channels``: what is removed, in which order, and how the rest makes up for it."""

from __future__ import annotations

import dataclasses
import itertools

import numpy as np
import onnx_ir as ir
import pytest
from pydantic import ValidationError

from graphopt import allocate, cost, model
from graphopt.model import parameters
from graphopt.passes.prune import PruneChannels

from channels import Net
from channels import feed as normal
from helpers import assert_same_outputs, run
from observing import context
from pruning import correlated, error, prune


def residual() -> ir.Model:
    net = Net(x=["N", 3, 8, 8])
    stem = net("Relu", net.conv("x", 3, 8))
    inner = net("Relu", net.conv(stem, 8, 12))
    out = net("Relu", net("Add", net.conv(inner, 12, 8), stem))
    return net.model(net("Gemm", net("Flatten", net("GlobalAveragePool", out)), net.weight(8, 5), net.weight(5)))


def depthwise() -> ir.Model:
    net = Net(x=["N", 3, 8, 8])
    wide = net("Relu", net.conv("x", 3, 16, kernel=1))
    return net.model(net.conv(net("Relu", net.conv(wide, 16, 16, group=16)), 16, 4, kernel=1))


def concat() -> ir.Model:
    net = Net(x=["N", 3, 8, 8])
    branches = [net("Relu", net.conv("x", 3, channels)) for channels in (8, 4)]
    return net.model(net.conv(net("Concat", *branches, axis=1), 12, 4))


def mlp() -> ir.Model:
    net = Net(x=["N", 6])
    return net.model(net.linear(net("Relu", net.linear("x", 6, 16)), 16, 4))


def attention() -> ir.Model:
    net = Net(x=["N", 5, 16])
    heads = [
        net("Transpose", net("Reshape", net.linear("x", 16, 16), net.constant([0, 5, 4, 4])), perm=[0, 2, 1, 3])
        for _ in range(3)
    ]
    weights = net("Softmax", net("MatMul", heads[0], net("Transpose", heads[1], perm=[0, 1, 3, 2])), axis=-1)
    mixed = net("Transpose", net("MatMul", weights, heads[2]), perm=[0, 2, 1, 3])
    return net.model(net.linear(net("Reshape", mixed, net.constant([0, 5, 16])), 16, 8))


NETWORKS = {"residual": residual, "depthwise": depthwise, "concat": concat, "mlp": mlp, "attention": attention}


@pytest.mark.parametrize("name", NETWORKS)
def test_a_quarter_of_each_group_goes_and_the_result_runs_at_two_batch_sizes(name: str) -> None:
    before = NETWORKS[name]()
    pruned = prune(before, normal(before, 64), ratio=0.25)
    assert parameters(pruned.model) < parameters(before)
    for batch in (1, 3):
        given = normal(before, batch, seed=batch)
        assert {k: v.shape for k, v in run(before, given).items()} == {k: v.shape for k, v in run(pruned.model, given).items()}


@pytest.mark.parametrize("name", NETWORKS)
def test_fitting_the_rest_makes_the_error_smaller(name: str) -> None:
    before = NETWORKS[name]()
    fitted, cut = (prune(before, normal(before, 128), ratio=0.25, reconstruct=on).model for on in (True, False))
    held_out = normal(before, 64, seed=7)
    assert error(before, fitted, held_out) < error(before, cut, held_out)


def test_channels_that_others_can_stand_in_for_go_without_loss() -> None:
    net = Net(x=["N", 4, 8, 8])
    before = net.model(net.conv(net.conv("x", 4, 12, kernel=1), 12, 5, kernel=3))  # 12 mixtures of 4 channels
    feed = {"x": np.random.default_rng(0).standard_normal((64, 4, 8, 8)).astype(np.float32)}
    pruned = prune(before, feed, ratio=0.5)
    assert sizes(pruned.model) == [6]
    assert error(before, pruned.model, feed) < 1e-4


def sizes(pruned: ir.Model) -> list[int]:
    """Output channels of the convolutions but the last."""
    convs = [node for node in pruned.graph if node.op_type == "Conv"]
    return [node.inputs[1].const_value.shape.numpy()[0] for node in convs[:-1]]


@pytest.mark.parametrize("other", ["l1", "l2", "random", "fpgm", "batchnorm", "activation", "apoz", "wanda"])
def test_the_surgeon_leaves_less_error_than_other_criteria_on_correlated_channels(other: str) -> None:
    net = Net(x=["N", 12, 8, 8])
    before = net.model(net.conv(net.conv("x", 12, 12, kernel=1), 12, 5))
    feed = {"x": correlated(96, 12, rank=5)}
    surgeon, another = (prune(before, feed, ratio=0.5, criterion=criterion).model for criterion in ("reconstruction", other))
    held_out = {"x": correlated(32, 12, rank=5, seed=3)}
    assert sizes(surgeon) == sizes(another) == [6]
    assert error(before, surgeon, held_out) <= error(before, another, held_out) * 1.02


def test_channels_with_the_smallest_scales_of_batch_norms_go_first() -> None:
    net = Net(x=["N", 4, 8, 8])
    before = net.model(net.conv(net("Relu", net.norm(net.conv("x", 4, 8), 8)), 8, 4))
    [scale] = [node.inputs[1] for node in before.graph if node.op_type == "BatchNormalization"]
    assert scale is not None
    assert scale.const_value is not None
    largest = np.sort(np.abs(scale.const_value.numpy()))[4:]
    after = prune(before, normal(before, 16), ratio=0.5, criterion="batchnorm", reconstruct=False).model
    [left] = [node.inputs[1] for node in after.graph if node.op_type == "BatchNormalization"]
    assert left is not None
    assert left.const_value is not None
    np.testing.assert_array_equal(np.sort(np.abs(left.const_value.numpy())), largest)


@pytest.mark.parametrize("kind", ["conv", "linear"])
def test_apoz_removes_the_units_that_are_zero_most_often(kind: str) -> None:
    shape = [4, 8, 8] if kind == "conv" else [8]
    net = Net(x=["N", *shape])
    inputs = shape[0]
    shift = np.where(np.arange(12) % 2, 3.0, -3.0).astype(np.float32)  # units with odd numbers are rarely zero
    made = net.conv("x", inputs, 12) if kind == "conv" else net.linear("x", inputs, 12)
    hidden = net("Relu", net("Add", made, net.constant(shift.reshape(-1, 1, 1) if kind == "conv" else shift)))
    before = net.model(net.conv(hidden, 12, 4) if kind == "conv" else net.linear(hidden, 12, 4))
    after = prune(before, normal(before, 64), ratio=0.5, criterion="apoz", reconstruct=False).model
    left = [tensor.numpy() for value in after.graph.initializers.values() if (tensor := value.const_value) is not None]
    [shifts] = [array.reshape(-1) for array in left if np.all(np.abs(array) == 3)]
    np.testing.assert_array_equal(shifts, np.full(6, 3.0))


def test_apoz_weighs_by_the_weights_where_nothing_is_zero() -> None:
    net = Net(x=["N", 6])
    before = net.model(net.linear(net.linear("x", 6, 16), 16, 4))
    given = normal(before, 32)
    apoz, l2 = (prune(before, given, ratio=0.5, criterion=name).model for name in ("apoz", "l2"))
    assert_same_outputs(apoz, l2, given)


def test_the_fitted_layer_is_the_least_squares_optimum() -> None:
    net = Net(x=["N", 6])
    hidden = net("Relu", net.linear("x", 6, 16))
    before = net.model(net.linear(hidden, 16, 4))
    feed = normal(before, 512)
    after = prune(before, feed, ratio=0.5).model
    last = [node for node in after.graph if node.op_type == "MatMul"][-1]
    reads = last.inputs[0]
    assert reads is not None
    probe = model.clone(after)
    probe.graph.outputs.append(next(v for node in probe.graph for v in node.outputs if v.name == reads.name))
    found = run(probe, feed)
    x, target = found[reads.name or ""], next(iter(run(before, feed).values()))
    ones = np.column_stack([x, np.ones(len(x))])
    best = target - ones @ np.linalg.lstsq(ones, target, rcond=None)[0]
    left = target - next(iter(found.values()))
    assert (left**2).sum() <= 1.01 * (best**2).sum() + 1e-6


def test_a_residual_sum_is_met_rather_than_each_branch() -> None:
    net = Net(x=["N", 3, 8, 8])
    stem = net.conv("x", 3, 8)
    before = net.model(net("Add", net.conv(net("Relu", net.conv(stem, 8, 16)), 16, 8), stem))
    pruned = prune(before, normal(before, 128), ratio=0.25, only="conv1")
    assert error(before, pruned.model, normal(before, 32, seed=5)) < 0.1


def test_what_stands_before_the_removal_stays_as_it_was() -> None:
    before = residual()
    pruned = prune(before, normal(before, 32), ratio=0.5, only="conv2")  # the inner convolution
    assert [change.site for change in pruned.changes if "channels are left" in change.what] == ["conv2"]
    stem = before.graph.node(0)
    untouched = {value.name: value.const_value for value in stem.inputs[1:] if value is not None}
    for name, tensor in untouched.items():
        assert pruned.model.graph.initializers[name].const_value is tensor
    assert [value.name for value in pruned.model.graph.outputs] == [value.name for value in before.graph.outputs]


def test_the_ratio_is_met_in_every_group() -> None:
    before = residual()
    assert sizes(prune(before, normal(before, 32), ratio=0.25).model) == [6, 9]
    assert sizes(prune(before, normal(before, 32), ratio=0.5, min_channels=5).model) == [5, 6]
    assert sizes(prune(before, normal(before, 32), ratio=0.3, multiple=4).model) == [8, 8]


def test_the_frontier_meets_a_number_of_macs_with_little_to_spare() -> None:
    before = residual()
    total = cost.total_macs(before)
    assert total
    with context(before, **normal(before, 32)) as made:
        rewrite = PruneChannels(PruneChannels.Options(macs=0.6, blocks=False))
        sites = [site for site in rewrite.sites(before, made) if site.settings]
        plans = allocate.frontier(sites, rewrite.grades(before, sites, made), "macs")

        def left(plan: object) -> float:
            candidate = model.clone(before)
            rewrite.apply(candidate, plan, dataclasses.replace(made, draft=True))  # type: ignore[arg-type]
            return (cost.total_macs(candidate) or 0) / total

        parts = [left(plan) for plan in plans]
    assert parts == sorted(parts)
    assert parts[0] < 0.3
    assert max(b - a for a, b in itertools.pairwise(parts)) < 0.1


def test_a_grade_foresees_what_its_setting_saves() -> None:
    before = residual()
    with context(before, **normal(before, 32)) as made:
        rewrite = PruneChannels()
        sites = [site for site in rewrite.sites(before, made) if site.settings]
        grades = rewrite.grades(before, sites, made)
        for site in sites:
            candidate = model.clone(before)
            rewrite.apply(candidate, {site: site.settings[-1]}, dataclasses.replace(made, draft=True))
            saved = (cost.total_macs(before) or 0) - (cost.total_macs(candidate) or 0)
            assert grades[site, site.settings[-1]].macs == pytest.approx(saved, rel=0.01)
            damages = [grades[site, setting].damage for setting in site.settings]
            assert damages == sorted(damages)
            assert damages[0] > 0


def test_a_harsher_setting_removes_all_that_a_gentler_one_does() -> None:
    before = depthwise()
    feed = normal(before, 32)
    weights = []
    for ratio in (0.25, 0.5):
        after = prune(before, feed, ratio=ratio, reconstruct=False).model
        weights.append({row.tobytes() for row in after.graph.node(0).inputs[1].const_value.numpy()})
    assert weights[1] < weights[0]


def test_groups_that_cannot_be_pruned_are_named_with_the_operator_that_forbids_it() -> None:
    net = Net(x=["N", 6])
    before = net.model(net("Softmax", net.linear("x", 6, 8), axis=-1))
    pruned = prune(before, normal(before, 8), ratio=0.5)
    assert [(site.settings, "Softmax" in site.why) for site in pruned.sites] == [((), True)]
    assert_same_outputs(before, pruned.model, normal(before, 2))


def test_on_the_clock_what_stays_fills_the_targets_vectors() -> None:
    net = Net(x=["N", 3, 8, 8])
    before = net.model(net.conv(net.conv(net.conv("x", 3, 64), 64, 16), 16, 4))
    with context(before, **normal(before, 4)) as made:
        timed = dataclasses.replace(made, profile=lambda _: ())
        wide, narrow, _ = PruneChannels().sites(before, timed)
        assert [setting.value for setting in wide.settings] == [16, 32, 48]
        assert not narrow.settings
        assert "16" in narrow.why


def test_weights_in_constant_nodes_and_float16_are_pruned_and_fitted() -> None:
    before = mlp()
    for value in before.graph.initializers.values():
        assert value.const_value is not None
        half = value.const_value.numpy().astype(np.float16)
        value.const_value, value.type = ir.tensor(half, name=value.name), ir.TensorType(ir.DataType.FLOAT16)
    for value in (*before.graph.inputs, *before.graph.outputs):
        value.type = ir.TensorType(ir.DataType.FLOAT16)
    given = {"x": np.random.default_rng(0).standard_normal((64, 6)).astype(np.float16)}
    after = prune(before, given, ratio=0.25).model
    assert {tensor.const_value.dtype for tensor in after.graph.initializers.values()} == {ir.DataType.FLOAT16}
    assert error(before, after, given) < 0.1


def test_one_goal_at_a_time() -> None:
    with pytest.raises(ValidationError, match="exclude one another"):
        PruneChannels.Options(ratio=0.5, macs=0.5)
