"""Scales move between layers without changing the function, and only where quantization gains by it."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from graphopt.contracts import Change
from graphopt.passes.quantize import Equalize, Smooth, scales, scaling
from graphopt.passes.quantize.balance import find
from graphopt.passes.quantize.fake import decibels, noise

from fusing import listed_as_input, model, normal
from helpers import assert_same_outputs
from observing import context

X = normal(16, 4, 8, 8, seed=9)


def spread(count: int, seed: int = 0) -> np.ndarray:
    """Factors 2^U(-4, 4)."""
    return (2.0 ** np.random.default_rng(seed).uniform(-4, 4, count)).astype(np.float32)


def rescaled(proto: onnx.ModelProto, seed: int = 0) -> tuple[onnx.ModelProto, int]:
    """Every class of channels that can be scaled is, at random; and how many there are."""
    loaded = ir.from_proto(proto)
    analysis = scaling.analyse(loaded)
    made = np.unique(np.concatenate([analysis.roots(f.ids).reshape(-1) for f in analysis.factors] or [np.zeros(1, int)]))
    classes = made[made != scales.FIXED]
    chosen = np.ones(analysis.count)
    chosen[classes] = spread(len(classes), seed)
    scaling.apply(loaded, analysis, chosen)
    return ir.to_proto(loaded), len(classes)


def equalized(
    proto: onnx.ModelProto, rewrite: type[Equalize | Smooth] = Equalize, exclude: Sequence[str] = (), **arrays: np.ndarray
) -> tuple[onnx.ModelProto, Sequence[Change], float, float]:
    """The model, the changes, and the signal to noise of quantized outputs before and after, dB."""
    loaded = ir.from_proto(proto)
    with context(loaded, **(arrays or {"x": X})) as made:
        used = dataclasses.replace(made, exclude=exclude)
        before = decibels(noise(loaded, used, 16))
        changes = rewrite().apply(loaded, used)
        after = decibels(noise(loaded, used, 16))
    result = ir.to_proto(loaded)
    onnx.checker.check_model(result, full_check=True)
    return result, changes, before, after


def assert_rescales(proto: onnx.ModelProto, classes: int) -> onnx.ModelProto:
    """The model with this many classes of channels rescaled, which leaves the function as it is."""
    hard, found = rescaled(proto)
    assert found == classes
    assert_same_outputs(proto, hard, {"x": X})
    return hard


def assert_restored(proto: onnx.ModelProto, hard: onnx.ModelProto, gain: float) -> None:
    """Equalization keeps the function of a rescaled model, and quantized outputs gain by it, dB."""
    result, _, before, after = equalized(hard)
    assert_same_outputs(proto, result, {"x": X})
    assert after > before + gain


def is_same(a: onnx.ModelProto, b: onnx.ModelProto) -> bool:
    """Whether the nodes and the weights are the same, whatever the files say of names and types."""
    nodes = [[(node.op_type, [*node.input]) for node in proto.graph.node] for proto in (a, b)]
    weights = [{t.name: onnx.numpy_helper.to_array(t).tobytes() for t in proto.graph.initializer} for proto in (a, b)]
    return nodes[0] == nodes[1] and weights[0] == weights[1]


def two_convs(between: str = "r = Relu(c)", groups: bool = False) -> onnx.ModelProto:
    """Conv, something, Conv, with channels in between that differ by 2^U(-4, 4)."""
    s = spread(6)
    w, v = normal(6, 4, 3, 3, seed=1), normal(5, 6, 3, 3, seed=2)
    return model(
        f"c = Conv(x, w, b) {between} y = Conv(r, v)",
        w=w * s[:, None, None, None],
        b=normal(6, seed=3) * s,
        v=v / s[None, :, None, None],
    )


PASSING = {
    "LeakyRelu": "r = LeakyRelu <alpha = 0.2> (c)",
    "PRelu": "r = PRelu(c, slope)",
    "MaxPool": "r = MaxPool <kernel_shape = [2, 2]> (c)",
    "AveragePool": "r = AveragePool <kernel_shape = [2, 2]> (c)",
    "Clip at zero": "zero = Constant <value_float = 0.0> () r = Clip(c, zero)",
    "Pad": "pads = Constant <value_ints = [0, 0, 1, 1, 0, 0, 1, 1]> () r = Pad(c, pads)",
}


@pytest.mark.parametrize("between", PASSING.values(), ids=PASSING)
def test_scales_move_through_what_commutes_with_them(between: str) -> None:
    proto = two_convs(between) if "slope" not in between else None
    if proto is None:
        s = spread(6)
        proto = model(
            f"c = Conv(x, w) {between} y = Conv(r, v)",
            w=normal(6, 4, 3, 3, seed=1) * s[:, None, None, None],
            v=normal(5, 6, 3, 3, seed=2) / s[None, :, None, None],
            slope=normal(6, 1, 1, seed=4),
        )
    result, changes, before, after = equalized(proto)
    assert_same_outputs(proto, result, {"x": X})
    assert after > before + 6
    assert any(change.done for change in changes)


@pytest.mark.parametrize(
    "between",
    [
        "six = Constant <value_float = 6.0> () zero = Constant <value_float = 0.0> () r = Clip(c, zero, six)",
        "r = Sigmoid(c)",
        "r = Softplus(c)",
    ],
    ids=["Relu6", "Sigmoid", "Softplus"],
)
def test_what_does_not_commute_is_declined(between: str) -> None:
    proto = two_convs(between)
    result, changes, _, _ = equalized(proto)
    assert is_same(result, proto)
    assert [change.done for change in changes] == [False]
    assert "not positive-homogeneous" in changes[0].why


def test_a_residual_sum_scales_all_its_branches_together() -> None:
    proto = model(
        "a = Conv(x, w) b = Conv <pads = [1, 1, 1, 1]> (a, v) s = Add(a, b) r = Relu(s) y = Conv(r, u)",
        w=normal(6, 4, 1, 1, seed=1),
        v=normal(6, 6, 3, 3, seed=2),
        u=normal(3, 6, 1, 1, seed=3),
    )
    loaded = ir.from_proto(proto)
    analysis = scaling.analyse(loaded)
    values = {node.outputs[0].name: analysis.roots(analysis.ids(node.outputs[0])).reshape(-1) for node in loaded.graph}
    np.testing.assert_array_equal(values["a"], values["b"])
    np.testing.assert_array_equal(values["a"], values["r"])
    assert len(set(values["a"])) == 6
    assert_restored(proto, assert_rescales(proto, classes=6), gain=6)


def test_concat_and_split_keep_the_scales_of_their_parts() -> None:
    proto = model(
        "a = Conv(x, w) b = Conv(x, v) c = Concat <axis = 1> (a, b) p, q = Split <axis = 1, num_outputs = 2> (c) "
        "d = Add(p, q) e = Concat <axis = 1> (d, b) y = Conv(e, u)",
        w=normal(4, 4, 1, 1, seed=1),
        v=normal(6, 4, 1, 1, seed=2),
        u=normal(3, 11, 1, 1, seed=3),
    )
    assert_restored(proto, assert_rescales(proto, classes=5), gain=0)  # of 10 channels, as p and q are added


def test_a_depthwise_conv_has_other_scales_before_and_behind_it() -> None:
    proto = model(
        "a = Conv(x, w) r = Relu(a) b = Conv <group = 6> (r, v) s = Relu(b) y = Conv(s, u)",
        w=normal(6, 4, 1, 1, seed=1),
        v=normal(6, 1, 3, 3, seed=2),
        u=normal(3, 6, 1, 1, seed=3),
    )
    assert_restored(proto, assert_rescales(proto, classes=12), gain=6)


def test_a_channel_shuffle_and_a_grouped_conv_keep_the_function() -> None:
    proto = model(
        "a = Conv(x, w) five = Constant <value_ints = [0, 2, 3, 8, 8]> () four = Constant <value_ints = [0, 6, 8, 8]> () "
        "g = Reshape(a, five) t = Transpose <perm = [0, 2, 1, 3, 4]> (g) f = Reshape(t, four) "
        "h = Conv <group = 3> (f, v) y = Conv(h, u)",
        w=normal(6, 4, 1, 1, seed=1),
        v=normal(6, 2, 1, 1, seed=2),
        u=normal(3, 6, 1, 1, seed=3),
    )
    assert_rescales(proto, classes=12)


def test_a_flattened_map_shares_the_scale_of_its_channel() -> None:
    proto = model(
        "a = Conv(x, w) r = Relu(a) f = Flatten(r) y = Gemm(f, v, c)",
        outputs="float[N, K] y",
        w=normal(6, 4, 1, 1, seed=1),
        v=normal(6 * 64, 5, seed=2),
        c=normal(5, seed=3),
    )
    assert_rescales(proto, classes=6)


def test_a_gate_keeps_its_scale_and_what_it_gates_need_not() -> None:
    proto = model(
        "a = Conv(x, w) p = GlobalAveragePool(a) q = Conv(p, v) g = Sigmoid(q) m = Mul(a, g) y = Conv(m, u)",
        w=normal(6, 4, 1, 1, seed=1),
        v=normal(6, 6, 1, 1, seed=2),
        u=normal(3, 6, 1, 1, seed=3),
    )
    assert_rescales(proto, classes=6)


def test_batch_norm_takes_one_scale_and_gives_another() -> None:
    proto = model(
        "a = Conv(x, w) n = BatchNormalization(a, gamma, beta, mean, var) r = Relu(n) y = Conv(r, u)",
        w=normal(6, 4, 1, 1, seed=1),
        gamma=normal(6, seed=2),
        beta=normal(6, seed=3),
        mean=normal(6, seed=4),
        var=np.abs(normal(6, seed=5)) + 0.1,
        u=normal(3, 6, 1, 1, seed=6),
    )
    assert_rescales(proto, classes=12)


def test_a_weight_that_a_caller_may_replace_or_another_node_reads_is_left_alone() -> None:
    listed = listed_as_input(two_convs(), "w")
    assert rescaled(listed)[1] == 0
    assert "a caller may replace" in equalized(listed)[1][0].why
    tied = model(
        "a = Conv(x, w) b = Relu(a) y = Conv(b, w)",
        inputs="float[N, 64, 8, 8] x",
        w=normal(64, 64, 1, 1, seed=1),
    )
    result, classes = rescaled(tied)
    assert classes == 64  # 16 kB: copied for one of them
    assert_same_outputs(tied, result, {"x": normal(2, 64, 8, 8)})


def test_an_output_in_between_keeps_its_scale() -> None:
    proto = model(
        "c = Conv(x, w) r = Relu(c) y = Conv(r, v)",
        outputs="float[N, C, H, W] y, float[N, D, H, W] r",
        w=normal(6, 4, 1, 1, seed=1),
        v=normal(3, 6, 1, 1, seed=2),
    )
    assert rescaled(proto)[1] == 0


def test_a_model_that_gains_nothing_is_left_as_it_is() -> None:
    proto = model(
        "c = Conv(x, w) r = Relu(c) y = Conv(r, v)", w=np.ones((6, 4, 1, 1), np.float32), v=np.ones((3, 6, 1, 1), np.float32)
    )
    result, changes, _, _ = equalized(proto)
    assert is_same(result, proto)
    assert [change.done for change in changes] == [False]
    assert "dB" in changes[0].why


def test_an_excluded_node_keeps_its_weights() -> None:
    proto = two_convs()
    proto.graph.node[0].name = "first"
    result, _, _, _ = equalized(proto, exclude=["first"])
    assert is_same(result, proto)


def transformer_block() -> tuple[onnx.ModelProto, np.ndarray]:
    """LayerNormalization with three channels far above the others, read by two MatMuls."""
    gamma = np.ones(16, np.float32)
    gamma[[2, 7, 11]] = 60
    proto = model(
        "n = LayerNormalization(x, gamma, beta) q = MatMul(n, wq) k = MatMul(n, wk) a = Add(q, k) r = Relu(a) "
        "y = MatMul(r, wo)",
        inputs="float[N, 5, 16] x",
        outputs="float[N, T, C] y",
        gamma=gamma,
        beta=normal(16, seed=1),
        wq=normal(16, 16, seed=2) / gamma[:, None],
        wk=normal(16, 16, seed=3) / gamma[:, None],
        wo=normal(16, 8, seed=4),
    )
    return proto, normal(32, 5, 16, seed=5)


def test_smoothing_moves_outliers_from_layer_norm_into_all_weights_that_read_it() -> None:
    proto, x = transformer_block()
    result, changes, before, after = equalized(proto, Smooth, x=x)
    assert_same_outputs(proto, result, {"x": x})
    assert after > before + 6
    assert any("alpha" in change.why for change in changes if change.done)


def test_smoothing_leaves_convolutions_to_equalization_and_the_other_way_round() -> None:
    proto, x = transformer_block()
    assert not any(change.done for change in equalized(proto, Equalize, x=x)[1])
    assert not any(change.done for change in equalized(two_convs(), Smooth)[1])


@pytest.mark.zoo
def test_a_trained_network_with_rescaled_channels_is_quantized_as_well_as_before(zoo: Path) -> None:
    proto = onnx.load(zoo / "models/cifar_resnet20.onnx")
    images = np.load(zoo / "data/cifar10/calib.npz")["input"][:128]
    hard, classes = rescaled(proto)
    assert classes == 400
    loaded, easy = ir.from_proto(hard), ir.from_proto(proto)
    with context(loaded, input=images) as made:
        assert decibels(noise(loaded, made, 128)) < 5
        Equalize().apply(loaded, made)
        assert decibels(noise(loaded, made, 128)) > decibels(noise(easy, made, 128)) - 1
    assert_same_outputs(proto, ir.to_proto(loaded), {"input": images[:8]})


def test_groups_are_named_by_what_is_read() -> None:
    loaded = ir.from_proto(two_convs())
    with context(loaded, x=X) as made:
        groups = find(loaded, scaling.analyse(loaded), made, 16)
    assert [(group.name, len(group.classes)) for group in groups] == [("r", 6)]


def test_classes_are_the_same_when_they_are_looked_up_as_when_they_are_searched() -> None:
    analysis = scales.Scaling(ir.from_proto(model("y = Relu(x)")))
    ids = analysis.fresh(8)
    analysis.unify([ids[:3], ids[5:]])
    analysis.fix(ids[3:4])
    searched = analysis.roots(ids)
    analysis.settle()
    np.testing.assert_array_equal(analysis.roots(ids), searched)
    assert (searched[:3] == searched[5:]).all()
    assert analysis.is_fixed(ids[3:4])
