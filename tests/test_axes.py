"""What is removed together, and that removing it is what zeroing it is: convolutional networks."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from graphopt import axes
from graphopt.model import load, parameters

from channels import Net, assert_removal_is_exact, sizes, why
from helpers import from_text, small_cnn


def images(seed: int = 0, opset: int = 20, channels: int = 3) -> Net:
    return Net(seed, opset, x=["N", channels, 8, 8])


def head(net: Net, x: str, channels: int, *, flat: bool = False) -> ir.Model:
    """Pool, flatten, classify."""
    if not flat:
        return net.model(net("Gemm", net("Flatten", net("GlobalAveragePool", x)), net.weight(channels, 5), net.weight(5)))
    return net.model(net("Gemm", net("Flatten", x), net.weight(channels * 64, 5)))


def test_a_residual_sum_prunes_both_branches_together() -> None:
    model = ir.from_proto(small_cnn())
    first, last = axes.analyse(model).groups()
    assert [use.node.name for use in first.producers] == ["conv1", "conv2"]
    assert {(use.node.name, use.axis) for use in first.consumers} == {("conv2", 1), ("gemm", 1)}
    assert {(one.value.name, one.axis) for one in first.members} == {
        *(("w1", 0), ("b1", 0), ("w2", 0), ("w2", 1), ("b2", 0), ("w3", 1)),
    }
    assert not last.prunable
    assert last.why == "y is an output of the model"
    assert_removal_is_exact(model)


def test_a_group_tells_a_person_what_goes_together_and_why_not() -> None:
    first, last = axes.analyse(ir.from_proto(small_cnn())).groups()
    assert str(first) == (
        "conv1: 8 units\n"
        "  made by    Conv 'conv1' (w1 axis 0), Conv 'conv2' (w2 axis 0)\n"
        "  used by    Conv 'conv2' (w2 axis 1), Gemm 'gemm' (w3 axis 1)\n"
        "  and along  b1 axis 0, b2 axis 0"
    )
    assert "gemm: 10 units, cannot be removed: y is an output of the model" in str(last)


def test_ids_say_which_channels_are_the_same_and_dynamic_axes_have_none() -> None:
    model = ir.from_proto(small_cnn())
    channels = axes.analyse(model)
    values = {value.name: value for node in model.graph for value in (*node.inputs, *node.outputs) if value is not None}
    assert channels.ids(values["c1"])[0] is None
    np.testing.assert_array_equal(channels.ids(values["c1"])[1], channels.ids(values["w3"])[1])
    np.testing.assert_array_equal(channels.ids(values["c2"])[1], channels.ids(values["w1"])[0])
    assert len(np.unique(channels.ids(values["c1"])[1])) == 8


def test_flattened_positions_go_with_their_channel() -> None:
    net = images()
    model = head(net, net("MaxPool", net.conv("x", 3, 6), kernel_shape=[1, 1]), 6, flat=True)
    group = axes.analyse(model).groups()[0]
    assert group.size == 6
    assert len(group.consumers[0].index(2)) == 64
    assert_removal_is_exact(model)


def test_a_depthwise_filter_goes_with_its_channel() -> None:
    net = images()
    x = net.conv(net.norm(net.conv(net.conv("x", 3, 8), 8, 8, group=8), 8), 8, 6, kernel=1)
    model = head(net, x, 6)
    assert sizes(model) == [8, 6]
    pruned = assert_removal_is_exact(model, ratio=0.25)
    assert pruned.graph[1].attributes.get_int("group") == 6


def test_a_depthwise_multiplier_goes_whole() -> None:
    net = images()
    model = head(net, net.conv(net.conv(net.conv("x", 3, 4), 4, 8, group=4), 8, 6), 6)
    assert sizes(model) == [4, 6]
    assert_removal_is_exact(model)


def test_grouped_convolutions_lose_as_many_channels_from_each_group() -> None:
    net = images()
    model = head(net, net.conv(net.conv("x", 3, 12), 12, 10, group=2), 10)
    assert sizes(model) == [6, 5]
    assert_removal_is_exact(model)


def test_channel_shuffle_prunes() -> None:
    net = images()
    x = net.conv("x", 3, 12)
    x = net("Reshape", x, net.constant([0, 2, 6, 8, 8]))
    x = net("Transpose", x, perm=[0, 2, 1, 3, 4])
    x = net("Reshape", x, net.constant([0, -1, 8, 8]))
    first, second = net.many("Split", 2, x, net.constant([6, 6]), axis=1)
    model = head(net, net("Concat", net.conv(first, 6, 4), second, axis=1), 10)
    assert sizes(model)[0] == 6
    assert_removal_is_exact(model, ratio=0.34)


def test_squeeze_and_excite_prunes_inside_and_outside() -> None:
    net = images()
    x = net.conv("x", 3, 8)
    gate = net("Relu", net.conv(net("GlobalAveragePool", x), 8, 4, kernel=1))
    model = head(net, net("Mul", x, net("Sigmoid", net.conv(gate, 4, 8, kernel=1))), 8)
    assert sizes(model) == [8, 4]
    assert_removal_is_exact(model)


def test_dense_connections_prune_each_layer_by_itself() -> None:
    net = images()
    features, x = 4, net.conv("x", 3, 4)
    for _ in range(3):
        x = net("Concat", x, net("Relu", net.conv(x, features, 6)), axis=1)
        features += 6
    model = head(net, net.norm(x, features), features)
    assert sizes(model) == [4, 6, 6, 6]
    assert_removal_is_exact(model)


def test_a_padded_shortcut_ties_only_what_it_carries() -> None:
    net = images()
    x = net.conv("x", 3, 4)
    short = net("Slice", x, net.constant([0, 0]), net.constant([2**31, 2**31]), net.constant([2, 3]), net.constant([2, 2]))
    short = net("Pad", short, net.constant([0, 2, 0, 0, 0, 2, 0, 0]))
    weight = net.weight(8, 4, 3, 3)
    model = head(net, net("Add", net("Conv", x, weight, pads=[1] * 4, strides=[2, 2]), short), 8)
    assert sizes(model) == [4, 4]
    assert_removal_is_exact(model)


def test_what_is_alone_on_an_axis_is_not_all_removed() -> None:
    net = images()
    first, second = net.many("Split", 2, net.conv("x", 3, 6), net.constant([2, 4]), axis=1)
    model = head(net, net("Concat", net.conv(first, 2, 2), net.conv(second, 4, 2), axis=1), 4)
    channels = axes.analyse(model)
    group = channels.groups()[0]
    assert sorted(len(part) for part in group.parts) in ([2, 4],)
    assert len(group.choose(np.arange(6), 6)) == 4
    with pytest.raises(ValueError, match="left empty"):
        axes.remove(model, channels, {group: np.array([0, 1])})
    assert_removal_is_exact(model, ratio=0.67)


def test_all_units_of_a_group_are_never_removed_nor_those_of_an_output() -> None:
    model = ir.from_proto(small_cnn())
    channels = axes.analyse(model)
    first, last = channels.groups()
    with pytest.raises(ValueError, match="left empty"):
        axes.remove(model, channels, {first: np.arange(8)})
    with pytest.raises(ValueError, match="is an output of the model"):
        axes.remove(model, channels, {last: np.array([0])})
    with pytest.raises(ValueError, match="units 0 to 7"):
        axes.remove(model, channels, {first: np.array([8])})


@pytest.mark.parametrize(
    ("operator", "attributes", "what"),
    [
        ("LayerNormalization", {"axis": 1}, "statistics"),
        ("Softmax", {"axis": 1}, "statistics"),
        ("LRN", {"size": 3}, "statistics"),
        ("ReduceMean", {"axes": [1]}, "taken over all"),
        ("ReduceMax", {"axes": [1]}, "taken over all"),
        ("CumSum", {"axes": 1}, "taken over all"),
        ("Det", {}, "without a rule"),
    ],
)
def test_what_mixes_channels_forbids_to_remove_them_and_is_named(
    operator: str, attributes: dict[str, object], what: str
) -> None:
    net = images()
    x = net.conv("x", 3, 4)
    extra = [net.constant(attributes.pop("axes"))] if "axes" in attributes else []
    if operator == "LayerNormalization":
        extra = [net.weight(4, 8, 8)]
    model = net.model(net(operator, x, *extra, **attributes))
    (reason,) = why(model)
    assert operator in reason
    assert what in reason


def test_a_sum_over_channels_only_loses_what_was_removed() -> None:
    net = images()
    model = net.model(net("ReduceSum", net("Exp", net.conv("x", 3, 4)), net.constant([1])))
    assert sizes(model) == [4]
    assert_removal_is_exact(model)


def test_group_normalization_loses_whole_groups() -> None:
    net = Net(opset=21, x=["N", 3, 8, 8])
    x = net("GroupNormalization", net.conv("x", 3, 12), net.weight(12), net.weight(12), num_groups=4)
    model = head(net, x, 12)
    assert sizes(model) == [4]
    assert axes.analyse(model).groups()[0].producers[0].index(1).tolist() == [3, 4, 5]
    assert_removal_is_exact(model)


def test_group_normalization_that_was_decomposed_loses_whole_groups() -> None:
    net = images()
    x = net("Reshape", net.conv("x", 3, 12), net.constant([0, 4, -1]))
    x = net("InstanceNormalization", x, net.constant(np.ones(4, np.float32)), net.constant(np.zeros(4, np.float32)))
    x = net("Reshape", x, net.constant([-1, 12, 8, 8]))
    model = head(net, net("Mul", x, net.weight(12, 1, 1)), 12)
    assert sizes(model) == [4]
    assert_removal_is_exact(model)


@pytest.mark.parametrize("mode", ["DCR", "CRD"])
def test_depth_to_space_and_back_moves_channels_by_blocks(mode: str) -> None:
    net = images()
    x = net("DepthToSpace", net.conv("x", 3, 12), blocksize=2, mode=mode)
    x = net("SpaceToDepth", net.conv(x, 3, 5), blocksize=2)
    model = head(net, net.conv(x, 20, 6), 6)
    assert sizes(model) == [3, 5, 6]
    assert_removal_is_exact(model, ratio=0.4)


def test_transposed_convolutions_instance_norm_and_prelu_keep_channels_apart() -> None:
    net = images()
    x = net("ConvTranspose", net.conv("x", 3, 6), net.weight(6, 8, 2, 2), net.weight(8), strides=[2, 2])
    x = net("PRelu", net("InstanceNormalization", x, net.weight(8), net.weight(8)), net.weight(8, 1, 1))
    x = net("ConvTranspose", x, net.weight(8, 3, 2, 2), net.weight(6), group=2)
    model = head(net, net("AveragePool", x, kernel_shape=[2, 2]), 6)
    assert sizes(model) == [6, 4, 3]
    assert_removal_is_exact(model)


def test_sizes_in_resize_count_channels() -> None:
    net = Net(x=[2, 3, 8, 8])
    x = net("Resize", net.conv("x", 3, 6), "", "", net.constant([2, 6, 4, 4]), mode="nearest")
    model = head(net, x, 6)
    assert sizes(model) == [6]
    assert_removal_is_exact(model)


def test_constant_indices_are_renumbered_and_reversed_axes_follow() -> None:
    net = images()
    x = net("Gather", net.conv("x", 3, 6), net.constant([5, 0, 3, 2]), axis=1)
    x = net("Slice", x, net.constant([-1]), net.constant([-100]), net.constant([1]), net.constant([-1]))
    model = head(net, net.conv(x, 4, 4), 4)
    assert_removal_is_exact(model)


def test_three_dimensions_and_one_work_as_two() -> None:
    for rank in (1, 3):
        net = Net(x=["N", 3, *[5] * rank])
        x = net("Conv", "x", net.weight(8, 3, *[3] * rank), net.weight(8))
        model = net.model(net("Conv", x, net.weight(4, 8, *[1] * rank)))
        assert sizes(model) == [8]
        assert_removal_is_exact(model)


def test_a_weight_of_two_nodes_is_cut_once_and_its_readers_go_together() -> None:
    net = Net(x=["N", 4], y=["N", 4])
    weight = net.weight(4, 6)
    parts = [net("Relu", net("MatMul", name, weight)) for name in ("x", "y")]
    model = net.model(*(net("MatMul", part, net.weight(6, 2)) for part in parts))
    assert sizes(model) == [6]
    assert_removal_is_exact(model)


def test_constant_nodes_are_weights() -> None:
    model = ir.from_proto(
        from_text("""agraph (float[N, 2] x) => (float[N, 1] y) {
            w = Constant <value = float[2, 3] {1, 2, 3, 4, 5, 6}> ()
            v = Constant <value_floats = [1.0, 2.0, 3.0]> ()
            u = Constant <value = float[3, 1] {1, -1, 2}> ()
            h = MatMul (x, w)
            b = Add (h, v)
            y = MatMul (b, u)
        }""")
    )
    assert sizes(model) == [3]
    assert_removal_is_exact(model)


def test_weights_behind_quantization_are_weights_and_their_scales_go_too() -> None:
    net = Net(x=["N", 4])

    def quantized(rows: int, columns: int) -> str:
        values = net.rng.integers(-128, 127, (rows, columns)).astype(np.int8)
        name = net.constant(np.float32(0))
        net.weights[-1] = onnx.numpy_helper.from_array(values, name)
        zero = net.constant(np.float32(0))
        net.weights[-1] = onnx.numpy_helper.from_array(np.zeros(columns, np.int8), zero)
        return net("DequantizeLinear", name, net.weight(columns, positive=True), zero, axis=1)

    model = net.model(net("MatMul", net("Relu", net("MatMul", "x", quantized(4, 6))), quantized(6, 3)))
    group = axes.analyse(model).groups()[0]
    assert group.prunable
    assert [use.value.name for use in group.producers] == ["w0"]
    assert len(group.members) == 4
    assert_removal_is_exact(model)


def test_a_subgraph_that_captures_a_value_is_pruned_with_it() -> None:
    model = ir.from_proto(
        from_text("""agraph (float[N, 2] x, bool c) => (float[N, 2] y)
        <float[2, 4] w = {1, 2, 3, 4, 5, 6, 7, 8}, float[4, 2] u = {1, 0, 2, 1, 1, 0, 3, 1}, float[4] b = {1, 2, 3, 4}> {
            h = MatMul (x, w)
            y = If (c) <
                then_branch = yes () => (float[N, 2] p) { s = Add (h, b) p = MatMul (s, u) },
                else_branch = no () => (float[N, 2] q) { r = Relu (h) q = MatMul (r, u) }
            >
        }""")
    )
    assert sizes(model) == [4]
    feeds = [{"x": np.ones((n, 2), np.float32), "c": np.array(flag)} for n, flag in ((1, True), (2, False))]
    assert_removal_is_exact(model, feeds=feeds)


def test_weights_listed_as_inputs_are_left_alone_until_prepared() -> None:
    proto = small_cnn()
    for name, shape in (("w1", [8, 3, 3, 3]), ("b2", [8])):
        proto.graph.input.append(onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, shape))
    model = ir.from_proto(proto)
    assert "a caller may override it" in why(model)[0]
    (change,) = axes.prepare(model)
    assert "2 weights are no inputs any more" in change.what
    assert [value.name for value in model.graph.inputs] == ["x"]
    assert sizes(model) == [8]
    assert_removal_is_exact(model)


def test_equal_vectors_in_one_tensor_do_not_tie_layers() -> None:
    net = Net(x=["N", 4])
    bias, x = net.weight(6), "x"
    for features in (4, 6, 6):
        x = net("Relu", net("Gemm", x, net.weight(features, 6), bias))
    model = net.model(net("MatMul", x, net.weight(6, 2)))
    assert sizes(model) == [6]
    assert len(axes.prepare(model)) == 1
    assert sizes(model) == [6, 6, 6]
    assert_removal_is_exact(model)


def test_untouched_weights_are_the_same_tensors_and_stated_shapes_follow() -> None:
    net = images()
    model = head(net, net.conv(net.conv(net.conv("x", 3, 6), 6, 4), 4, 5), 5)
    before = {name: value.const_value for name, value in model.graph.initializers.items()}
    first = model.graph[0].outputs[0]
    first.shape = ir.Shape(["N", 6, 8, 8])
    channels = axes.analyse(model)
    assert axes.remove(model, channels, {}) == []
    axes.remove(model, channels, {channels.groups()[0]: np.array([5, 0])})
    changed = {name for name, value in model.graph.initializers.items() if value.const_value is not before[name]}
    assert changed == {"w0", "w1", "w2"}
    assert first.shape == ir.Shape(["N", 4, 8, 8])
    np.testing.assert_array_equal(model.graph.initializers["w1"].const_value.numpy(), before["w1"].numpy()[1:5])


def test_two_thousand_nodes_take_less_than_two_seconds() -> None:
    net = images()
    x = net.conv("x", 3, 16, kernel=1)
    while len(net.nodes) < 2000:
        y = net("Relu", net.norm(net.conv(x, 16, 16, kernel=1), 16))
        x = net("Relu", net("Add", net.norm(net.conv(y, 16, 16, kernel=1), 16), x))
    model = head(net, x, 16)
    started = time.process_time()
    groups = axes.analyse(model).groups()
    assert time.process_time() - started < 2
    assert len(groups) > 250


@pytest.mark.zoo
@pytest.mark.parametrize(
    ("name", "groups", "allowed"),
    [("cifar_resnet56", 31, 30), ("mobilenet_v1_025", 15, 14), ("squeezenet1_1", 26, 25), ("nanodet_m", 43, 38)],
)
def test_trained_networks_prune_exactly(zoo: Path, name: str, groups: int, allowed: int) -> None:
    model = load(zoo / "models" / f"{name}.onnx")
    axes.prepare(model)
    found = axes.analyse(model).groups()
    assert (len(found), sum(group.prunable for group in found)) == (groups, allowed)
    assert len({group.name for group in found}) == groups
    assert_removal_is_exact(model, ratio=0.25, rtol=1e-4)


def residual(net: Net, x: str, channels: int, width: int) -> tuple[str, int]:
    y = net.conv(net("Relu", net.norm(net.conv(x, channels, width), width)), width, channels)
    return net("Relu", net("Add", y, x)), channels


def dense(net: Net, x: str, channels: int, width: int) -> tuple[str, int]:
    return net("Concat", x, net("Tanh", net.conv(x, channels, width)), axis=1), channels + width


def shuffle(net: Net, x: str, channels: int, width: int) -> tuple[str, int]:
    y = net("Reshape", x, net.constant([0, 2, channels // 2, 8, 8]))
    return net("Reshape", net("Transpose", y, perm=[0, 2, 1, 3, 4]), net.constant([0, channels, 8, 8])), channels


def excite(net: Net, x: str, channels: int, width: int) -> tuple[str, int]:
    gate = net("Relu", net.conv(net("GlobalAveragePool", x), channels, width, kernel=1))
    return net("Mul", net("Sigmoid", net.conv(gate, width, channels, kernel=1)), x), channels


def branch(net: Net, x: str, channels: int, width: int) -> tuple[str, int]:
    parts = [net.conv(x, channels, width, kernel) for kernel in (1, 3)]
    pooled = net("MaxPool", x, kernel_shape=[3, 3], pads=[1] * 4)
    return net("Concat", *parts, pooled, axis=1), 2 * width + channels


def grouped(net: Net, x: str, channels: int, width: int) -> tuple[str, int]:
    return net("LeakyRelu", net.conv(x, channels, 2 * width, group=2)), 2 * width


def depthwise(net: Net, x: str, channels: int, width: int) -> tuple[str, int]:
    low, high = net.constant(np.float32(-1)), net.constant(np.float32(6))
    return net("Clip", net.conv(x, channels, channels, group=channels), low, high), channels


def instance(net: Net, x: str, channels: int, width: int) -> tuple[str, int]:
    y = net("InstanceNormalization", x, net.weight(channels), net.weight(channels))
    return net("PRelu", y, net.weight(channels, 1, 1)), channels


def halves(net: Net, x: str, channels: int, width: int) -> tuple[str, int]:
    first, second = net.many("Split", 2, x, net.constant([channels // 2] * 2), axis=1)
    return net("Concat", net.conv(second, channels // 2, channels // 2), first, axis=1), channels


def shortcut(net: Net, x: str, channels: int, width: int) -> tuple[str, int]:
    padded = net("Pad", x, net.constant([0, 1, 0, 0, 0, 1, 0, 0]))
    return net("Add", net.conv(x, channels, channels + 2), padded), channels + 2


def groups(net: Net, x: str, channels: int, width: int) -> tuple[str, int]:
    ones, zeros = net.constant(np.ones(2, np.float32)), net.constant(np.zeros(2, np.float32))
    y = net("InstanceNormalization", net("Reshape", x, net.constant([0, 2, -1])), ones, zeros)
    return net("Reshape", y, net.constant([0, channels, 8, 8])), channels


BLOCKS = [residual, dense, shuffle, excite, branch, grouped, depthwise, instance, halves, shortcut, groups]


@st.composite
def networks(draw: st.DrawFn) -> ir.Model:
    """Blocks of many kinds, one after the other."""
    net = images(draw(st.integers(0, 99)))
    channels = draw(st.sampled_from([4, 6, 8]))
    x = net.conv("x", 3, channels)
    for block in draw(st.lists(st.sampled_from(BLOCKS), min_size=1, max_size=5)):
        x, channels = block(net, x, channels, draw(st.sampled_from([2, 4, 6])))
    return head(net, x, channels, flat=draw(st.booleans()))


@settings(max_examples=60, deadline=None, derandomize=True)
@given(networks(), st.sampled_from([0.3, 0.5, 0.9]), st.integers(0, 9))
def test_any_network_without_the_channels_equals_it_with_the_channels_zeroed(model: ir.Model, ratio: float, seed: int) -> None:
    assert_removal_is_exact(model, ratio, seed)
    assert parameters(model)
