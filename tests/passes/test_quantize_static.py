"""``quantize.static``: what a user sees of it, on small models with onnxruntime's own kernels."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from graphopt import targets
from graphopt.contracts import Border
from graphopt.errors import ModelError, UsageError
from graphopt.passes.quantize import StaticOptions, StaticQuantize

from helpers import from_text, small_cnn
from observing import context
from quantizing import kernels, quantize, run_optimized, sqnr


def images(samples: int = 16, channels: int = 4, size: int = 8, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((samples, channels, size, size)).astype(np.float32)


def network(text: str, **weights: np.ndarray) -> onnx.ModelProto:
    """A model in ONNX's text syntax with these initializers."""
    proto = from_text(text)
    proto.graph.initializer.extend(onnx.numpy_helper.from_array(array, name) for name, array in weights.items())
    return onnx.shape_inference.infer_shapes(proto)


def conv_weight(out: int = 4, group_in: int = 4, kernel: int = 3, seed: int = 1) -> np.ndarray:
    shape = (out, group_in, kernel, kernel)
    return (np.random.default_rng(seed).standard_normal(shape) / np.sqrt(group_in * kernel**2)).astype(np.float32)


def nodes(proto: onnx.ModelProto, op_type: str) -> list[onnx.NodeProto]:
    return [node for node in proto.graph.node if node.op_type == op_type]


def initializer(proto: onnx.ModelProto, name: str) -> np.ndarray:
    return next(onnx.numpy_helper.to_array(tensor) for tensor in proto.graph.initializer if tensor.name == name)


def pair(proto: onnx.ModelProto, value: str) -> tuple[float, int]:
    """Scale and zero point of the Q that reads a value."""
    [q] = [node for node in nodes(proto, "QuantizeLinear") if node.input[0] == value]
    return float(initializer(proto, q.input[1])), int(initializer(proto, q.input[2]))


# ----------------------------------------------------------------------------------------------------- integer kernels


def test_a_residual_network_runs_in_integers_from_end_to_end() -> None:
    x = images(channels=3)
    done = quantize(small_cnn(), {"x": x})
    assert [site.op_type for site in done.planned] == ["Conv", "Conv", "Add", "GlobalAveragePool", "Gemm"]
    run = kernels(done.proto, {"x": x[:1]})
    assert (run["QLinearConv"], run["QLinearAdd"], run["QLinearGlobalAveragePool"], run["QGemm"]) == (2, 1, 1, 1)
    assert (run["QuantizeLinear"], run["DequantizeLinear"], run["Relu"]) == (1, 0, 0)
    assert sqnr(run_optimized(small_cnn(), {"x": x})["y"], run_optimized(done.proto, {"x": x})["y"]) > 25


def test_weights_are_int8_per_channel_activations_uint8_and_biases_int32_of_both_scales() -> None:
    proto = quantize(small_cnn(), {"x": images(channels=3)}).proto
    [conv] = [node for node in proto.graph.node if node.name == "conv1"]
    by_output = {node.output[0]: node for node in nodes(proto, "DequantizeLinear")}
    data, weight, bias = (by_output[name] for name in conv.input)
    assert initializer(proto, weight.input[0]).dtype == np.int8
    assert initializer(proto, weight.input[1]).shape == (8,)
    assert initializer(proto, bias.input[0]).dtype == np.int32
    assert initializer(proto, data.input[2]).dtype == np.uint8
    product = initializer(proto, data.input[1]) * initializer(proto, weight.input[1])
    np.testing.assert_allclose(initializer(proto, bias.input[1]), product, rtol=1e-6)


def test_relu_and_clip_are_done_by_the_range_of_the_output() -> None:
    text = """g (float[N,4,8,8] x) => (float[N,4,K,L] y) {
        a = Conv(x, w) b = Relu(a)  c = Conv(b, w) d = Clip(c, low, high)  y = Conv(d, w)
    }"""
    bounds = {"low": np.float32(0), "high": np.float32(0.5)}
    done = quantize(network(text, w=conv_weight(), **bounds), {"x": images()})
    assert pair(done.proto, "b")[1] == 0
    scale, zero = pair(done.proto, "d")
    assert (zero, scale) == (0, pytest.approx(0.5 / 255, rel=0.02))
    run = kernels(done.proto, {"x": images(1)})
    assert (run["QLinearConv"], run["Relu"], run["Clip"]) == (3, 0, 0)


def test_slice_and_pad_between_kernels_stay_on_the_integers() -> None:
    """The shortcut of CIFAR's ResNets: half the positions, twice the channels, the new ones zero."""
    text = """g (float[N,4,8,8] x) => (float[N,8,4,4] y) {
        a = Conv(x, w) r = Relu(a)
        s = Slice(r, starts, ends, axes, steps)  p = Pad(s, pads)
        c = Conv<strides = [2, 2], pads = [1, 1, 1, 1]>(r, w2)
        y = Add(c, p)
    }"""
    text = text.replace("a = Conv(x, w)", "a = Conv<pads = [1, 1, 1, 1]>(x, w)")
    integers = {
        "starts": np.array([0, 0], np.int64),
        "ends": np.array([99, 99], np.int64),
        "axes": np.array([2, 3], np.int64),
        "steps": np.array([2, 2], np.int64),
        "pads": np.array([0, 2, 0, 0, 0, 2, 0, 0], np.int64),
    }
    proto = network(text, w=conv_weight(), w2=conv_weight(8), **integers)
    done = quantize(proto, {"x": images()})
    run = kernels(done.proto, {"x": images(1)})
    assert (run["QLinearConv"], run["QLinearAdd"], run["Pad"], run["Slice"]) == (2, 1, 1, 1)
    assert (run["QuantizeLinear"], run["DequantizeLinear"]) == (1, 1)
    assert sqnr(run_optimized(proto, {"x": images()})["y"], run_optimized(done.proto, {"x": images()})["y"]) > 30


def test_concat_of_convs_shares_one_scale_and_pooling_keeps_it() -> None:
    text = """g (float[N,4,8,8] x) => (float[N,4,K,L] y) {
        a = Conv(x, w) ra = Relu(a)  b = Conv(x, w2) rb = Relu(b)
        c = Concat<axis = 1>(ra, rb)  m = MaxPool<kernel_shape = [2, 2]>(c)  y = Conv(m, w3)
    }"""
    done = quantize(network(text, w=conv_weight(), w2=3 * conv_weight(seed=2), w3=conv_weight(4, 8)), {"x": images()})
    assert pair(done.proto, "ra") == pair(done.proto, "rb") == pair(done.proto, "c") == pair(done.proto, "m")
    run = kernels(done.proto, {"x": images(1)})
    assert (run["QLinearConv"], run["QLinearConcat"], run["NhwcMaxPool"] + run["MaxPool"]) == (3, 1, 1)
    assert (run["QuantizeLinear"], run["DequantizeLinear"]) == (1, 1)


def test_a_branch_whose_relu_needs_its_own_range_keeps_it() -> None:
    text = """g (float[N,4,8,8] x) => (float[N,4,K,L] y) {
        a = Conv(x, w) ra = Relu(a)  b = Conv(x, w2)  c = Concat<axis = 1>(ra, b)  y = Conv(c, w3)
    }"""
    done = quantize(network(text, w=conv_weight(), w2=conv_weight(seed=2), w3=conv_weight(4, 8)), {"x": images()})
    assert pair(done.proto, "ra")[1] == 0 != pair(done.proto, "c")[1]
    assert kernels(done.proto, {"x": images(1)})["QLinearConv"] == 3


def test_a_conv_that_is_left_in_floats_stays_in_floats_between_integer_ones() -> None:
    text = "g (float[N,4,8,8] x) => (float[N,4,K,L] y) { a = Conv(x, w) b = Conv(a, w) r = Relu(b) y = Conv(r, w) }"
    proto = network(text, w=conv_weight())
    done = quantize(proto, {"x": images()}, only=lambda site: site.name != "b")
    run = kernels(done.proto, {"x": images(1)})
    assert (run["QLinearConv"], run["Conv"] + run["FusedConv"]) == (2, 1)
    assert (run["QuantizeLinear"], run["DequantizeLinear"]) == (2, 2)


def test_a_pool_whose_integer_kernel_differs_is_kept_from_it() -> None:
    text = """g (float[N,4,8,8] x) => (float[N,4,K,L] y) {
        a = Conv<pads = [1, 1, 1, 1]>(x, w)
        p = AveragePool<kernel_shape = [3, 3], strides = [2, 2], ceil_mode = 1, count_include_pad = 1>(a)
        y = Conv(p, w2)
    }"""
    proto = network(text, w=conv_weight(), w2=conv_weight(kernel=1, seed=2))
    done = quantize(proto, {"x": images()})
    assert kernels(done.proto, {"x": images(1)})["QLinearConv"] == 2
    assert sqnr(run_optimized(proto, {"x": images()})["y"], run_optimized(done.proto, {"x": images()})["y"]) > 25


def test_the_last_layer_gives_floats_without_quantizing_them() -> None:
    text = "g (float[N,8] x) => (float[N,5] y) { h = Gemm(x, w, b) r = Relu(h) y = Gemm(r, w2, b2) }"
    rng = np.random.default_rng(0)
    weights = {"w": rng.standard_normal((8, 6)), "b": rng.standard_normal(6), "w2": rng.standard_normal((6, 5))}
    arrays = {name: array.astype(np.float32) for name, array in weights.items()}
    x = rng.standard_normal((32, 8)).astype(np.float32)
    done = quantize(network(text, **arrays, b2=np.ones(5, np.float32)), {"x": x})
    run = kernels(done.proto, {"x": x[:1]})
    assert (run["QGemm"], run["QuantizeLinear"], run["DequantizeLinear"]) == (2, 1, 0)


@pytest.mark.parametrize("shape", ["N,8", "N,3,8"])
def test_matmul_and_the_add_of_a_bias_are_one_site(shape: str) -> None:
    text = f"g (float[{shape}] x) => (float[{shape.replace('8', '6')}] y) {{ m = MatMul(x, w) y = Add(b, m) }}"
    rng = np.random.default_rng(0)
    arrays = {"w": rng.standard_normal((8, 6)).astype(np.float32), "b": rng.standard_normal(6).astype(np.float32)}
    x = rng.standard_normal((16, *([3] if "3" in shape else []), 8)).astype(np.float32)
    proto = network(text, **arrays)
    done = quantize(proto, {"x": x})
    assert [site.op_type for site in done.planned] == ["MatMul"]
    run = kernels(done.proto, {"x": x[:1]})
    assert run["QGemm"] + run["MatMulIntegerToFloat"] == 1
    assert sqnr(run_optimized(proto, {"x": x})["y"], run_optimized(done.proto, {"x": x})["y"]) > 30


def test_gemm_keeps_what_alpha_beta_and_transposed_inputs_mean() -> None:
    text = "g (float[8,16] x) => (float[16,5] y) { y = Gemm<transA = 1, transB = 1, alpha = 0.5, beta = 3.0>(x, w, b) }"
    rng = np.random.default_rng(0)
    proto = network(text, w=rng.standard_normal((5, 8)).astype(np.float32), b=np.full((1, 1), 0.7, np.float32))
    x = rng.standard_normal((8, 16)).astype(np.float32)
    done = quantize(proto, {"x": x})
    assert kernels(done.proto, {"x": x})["QGemm"] == 1
    assert sqnr(run_optimized(proto, {"x": x})["y"], run_optimized(done.proto, {"x": x})["y"]) > 35


@pytest.mark.parametrize(("rank", "text"), [(1, "float[N,4,16]"), (3, "float[N,4,4,4,4]")])
def test_convs_of_one_and_three_dimensions_are_quantized(rank: int, text: str) -> None:
    shape = (4, 4, *([3] * rank))
    weight = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
    proto = network(f"g ({text} x) => (float[N,K] y) {{ a = Conv(x, w) r = Relu(a) y = Flatten(r) }}", w=weight)
    x = np.random.default_rng(1).standard_normal((8, 4, *([16] if rank == 1 else [4] * 3))).astype(np.float32)
    done = quantize(proto, {"x": x})
    assert kernels(done.proto, {"x": x[:1]})["QLinearConv"] == 1
    assert sqnr(run_optimized(proto, {"x": x})["y"], run_optimized(done.proto, {"x": x})["y"]) > 30


# ---------------------------------------------------------------------------------------------------------- hard numbers


def test_dead_channels_empty_channels_and_large_biases_keep_the_answer() -> None:
    weight = conv_weight(4)
    weight[0] = 0  # only its bias is left
    weight[1] *= 1e-9  # its bias would not fit in 32 bits with the scale of such weights
    bias = np.array([0.7, -0.9, 0.1, 5e4], np.float32)
    text = "g (float[N,4,8,8] x) => (float[N,4,K,L] y) { y = Conv(x, w, b) }"
    proto = network(text, w=weight, b=bias)
    done = quantize(proto, {"x": images()})
    before, after = run_optimized(proto, {"x": images()})["y"], run_optimized(done.proto, {"x": images()})["y"]
    step = pair(done.proto, next(node.input[0] for node in nodes(done.proto, "QuantizeLinear") if node.input[0] != "x"))[0]
    assert np.abs(before - after).max() < step
    by_output = {node.output[0]: node for node in nodes(done.proto, "DequantizeLinear")}
    [conv] = nodes(done.proto, "Conv")
    held = by_output[conv.input[2]]
    real = initializer(done.proto, held.input[0]) * initializer(done.proto, held.input[1]).astype(np.float64)
    np.testing.assert_allclose(real, bias, rtol=1e-3, atol=1e-3)


def test_an_activation_that_is_always_zero_stays_zero() -> None:
    text = "g (float[N,4,8,8] x) => (float[N,4,K,L] y) { a = Conv(x, w, b) r = Relu(a) y = Conv(r, w) }"
    proto = network(text, w=conv_weight(), b=np.full(4, -100, np.float32))
    done = quantize(proto, {"x": images()})
    assert not run_optimized(done.proto, {"x": images()})["y"].any()


def test_per_channel_weights_keep_what_one_scale_loses() -> None:
    weight = conv_weight() * np.array([1, 0.01, 0.001, 0.1], np.float32).reshape(4, 1, 1, 1)
    spread = np.array([1, 100, 1000, 10], np.float32).reshape(1, 4, 1, 1)
    text = "g (float[N,4,8,8] x) => (float[N,4,6,6] y) { c = Conv(x, w) y = Mul(c, s) }"
    proto = network(text, w=weight, s=spread)
    expected = run_optimized(proto, {"x": images()})["y"]
    only = {"only": lambda site: site.op_type == "Conv", "activations": "uint8"}
    fine = sqnr(expected, run_optimized(quantize(proto, {"x": images()}, **only).proto, {"x": images()})["y"])
    proto2 = quantize(proto, {"x": images()}, **only, per_channel=False).proto
    assert fine > sqnr(expected, run_optimized(proto2, {"x": images()})["y"])
    assert all(initializer(proto2, node.input[1]).shape == () for node in nodes(proto2, "DequantizeLinear"))


def test_seven_bits_of_weights_leave_the_upper_half_unused() -> None:
    proto = quantize(small_cnn(), {"x": images(channels=3)}, weight_bits=7).proto
    integers = [array for tensor in proto.graph.initializer if (array := onnx.numpy_helper.to_array(tensor)).dtype == np.int8]
    assert max(int(np.abs(array.astype(int)).max()) for array in integers if array.ndim > 1) == 63


# --------------------------------------------------------------------------------------------------------------- the graph


def test_outputs_and_names_stay_what_they_were() -> None:
    text = "g (float[N,4,8,8] x) => (float[N,4,K,L] y, float[N,4,P,Q] z) { y = Conv(x, w) z = Conv(y, w) }"
    proto = network(text, w=conv_weight())
    done = quantize(proto, {"x": images()}).proto
    assert [(v.name, v.type.tensor_type.elem_type) for v in done.graph.output] == [("y", 1), ("z", 1)]
    assert {node.name for node in proto.graph.node} <= {node.name for node in done.graph.node}
    assert kernels(done, {"x": images(1)})["QLinearConv"] == 2


def test_a_weight_that_two_nodes_share_and_one_in_a_constant_node_are_quantized_and_gone() -> None:
    text = """g (float[N,4,8,8] x) => (float[N,4,K,L] y) {
        k = Constant<value = float[4,4,1,1] {1,2,3,4,5,6,7,8,9,1,2,3,4,5,6,7}>()
        a = Conv(x, k) b = Conv(a, w) y = Conv(b, w)
    }"""
    done = quantize(network(text, w=conv_weight()), {"x": images()}).proto
    assert kernels(done, {"x": images(1)})["QLinearConv"] == 3
    assert not nodes(done, "Constant")
    assert "w" not in {tensor.name for tensor in done.graph.initializer}
    shapes = [tuple(tensor.dims) for tensor in done.graph.initializer if tensor.data_type == onnx.TensorProto.INT8]
    assert shapes.count((4, 4, 3, 3)) == 1


def test_what_a_subgraph_reads_comes_from_the_integers() -> None:
    text = """g (float[N,4,8,8] x) => (float[N,4,6,6] y) {
        a = Conv(x, w)  s = ReduceSum<keepdims = 0>(x)  c = Greater(s, zero)
        y = If(c)<then_branch = t () => (float[N,4,6,6] p) { p = Neg(a) },
                  else_branch = e () => (float[N,4,6,6] q) { q = Exp(a) }>
    }"""
    proto = network(text, w=conv_weight(), zero=np.float32(0))
    done = quantize(proto, {"x": images()}).proto
    assert kernels(done, {"x": images(1)})["QLinearConv"] == 1
    assert sqnr(run_optimized(proto, {"x": images()})["y"], run_optimized(done, {"x": images()})["y"]) > 25


# ------------------------------------------------------------------------------------------------------------ what is offered


def reasons(proto: onnx.ModelProto, feed: dict[str, np.ndarray], **options: object) -> dict[str, str]:
    """Why each operator that is not offered is not, by its name."""
    loaded = ir.from_proto(proto)
    with context(loaded, **feed) as made:
        sites = StaticQuantize(StaticOptions(required=False, **options)).sites(loaded, made)
    return {site.name: site.why for site in sites if not site.settings}


def test_what_cannot_be_quantized_is_told_with_why() -> None:
    text = """g (float[N,4,8,8] x, float[4,4,3,3] v) => (float[N,4,K,L] y, double[N,4,8,8] z) {
        i = Conv(x, v)  n = Neg(v)  j = Conv(x, n)  y = Add(i, j)
        e = Cast<to = 11>(x)  z = Add(e, e)
    }"""
    proto = network(text)
    proto.graph.initializer.append(onnx.numpy_helper.from_array(conv_weight(), "v"))
    named = {output: node for node in proto.graph.node for output in node.output}
    for output, node in named.items():
        node.name = output
    found = reasons(proto, {"x": images()})
    assert found["i"] == "its weight is an input that a caller may replace"
    assert found["j"] == "its weight is computed"
    assert found["y"] == "its inputs are there as floats"
    assert found["z"] == "its type is double, not float"


def test_nodes_in_bodies_and_quantized_ones_are_declined() -> None:
    text = """g (float[N,4,8,8] x) => (float[N,4,6,6] y) {
        s = ReduceSum<keepdims = 0>(x)  c = Greater(s, zero)
        y = If(c)<then_branch = t () => (float[N,4,6,6] p) { p = Conv(x, w) },
                  else_branch = e () => (float[N,4,6,6] q) { q = Conv(x, w) }>
    }"""
    proto = network(text, w=conv_weight(), zero=np.float32(0))
    assert set(reasons(proto, {"x": images()}).values()) == {
        "it is in the body of another node, where values cannot be observed"
    }
    twice = quantize(small_cnn(), {"x": images(channels=3)}).proto
    assert reasons(twice, {"x": images(channels=3)})["conv1"] == "it is quantized already"
    with pytest.raises(ModelError, match="quantized already: start from the float model"):
        quantize(twice, {"x": images(channels=3)})


def test_weights_that_are_listed_as_inputs_are_quantized_when_the_user_freezes_them() -> None:
    proto = network("g (float[N,4,8,8] x, float[4,4,3,3] w) => (float[N,4,K,L] y) { y = Conv(x, w) }", w=conv_weight())
    with pytest.raises(ModelError, match="a caller may replace") as raised:
        quantize(proto, {"x": images()})
    assert raised.value.hint == "If no caller does: --set quantize.static.freeze=true"
    done = quantize(proto, {"x": images()}, freeze=True).proto
    assert [value.name for value in done.graph.input] == ["x"]
    proto.ir_version = 3  # then all initializers are listed, and no caller can replace one
    old = quantize(proto, {"x": images()}).proto
    assert kernels(done, {"x": images(1)})["QLinearConv"] == kernels(old, {"x": images(1)})["QLinearConv"] == 1


def test_nothing_to_quantize_is_an_error_that_says_why() -> None:
    proto = network("g (float[N,8] x) => (float[N,8] y) { y = Tanh(x) }")
    with pytest.raises(ModelError, match="the model has none of these"):
        quantize(proto, {"x": np.ones((4, 8), np.float32)})
    assert quantize(proto, {"x": np.ones((4, 8), np.float32)}, required=False).offered == []


def test_an_old_opset_is_an_error_that_says_how_to_raise_it() -> None:
    proto = small_cnn()
    proto.opset_import[0].version = 12
    with pytest.raises(ModelError, match="needs 13") as raised:
        quantize(proto, {"x": images(channels=3)})
    assert "--set shapes.opset.version=" in (raised.value.hint or "")


def test_operators_fed_by_floats_are_left_alone() -> None:
    """x Phi(x): Phi needs x in floats anyway. After a MatMul floats cost nothing."""
    text = """g (float[N,8] x) => (float[N,5] y) {
        m = MatMul(x, w)  s = Sigmoid(m)  g = Mul(m, s)  y = MatMul(g, w2)
    }"""
    rng = np.random.default_rng(0)
    weights = {"w": rng.standard_normal((8, 6)).astype(np.float32), "w2": rng.standard_normal((6, 5)).astype(np.float32)}
    proto = network(text, **weights)
    done = quantize(proto, {"x": rng.standard_normal((8, 8)).astype(np.float32)})
    assert [site.op_type for site in done.planned] == ["MatMul", "MatMul"]
    assert kernels(done.proto, {"x": np.ones((1, 8), np.float32)})["MatMulIntegerToFloat"] == 2


def test_borders_say_how_many_numbers_pass_between_which_sites() -> None:
    loaded = ir.from_proto(small_cnn())
    with context(loaded, x=images(channels=3)) as made:
        rewrite = StaticQuantize()
        sites = {site.name: site for site in rewrite.sites(loaded, made)}
        borders = set(rewrite.borders(loaded, list(sites.values())))
    map_size = 8 * 8 * 8
    assert borders == {
        Border(None, sites["conv1"], 3 * 8 * 8),
        Border(sites["conv1"], sites["conv2"], map_size),
        Border(sites["conv1"], sites["add"], map_size),
        Border(sites["conv2"], sites["add"], map_size),
        Border(sites["add"], sites["pool"], map_size),
        Border(sites["pool"], sites["gemm"], 8),
    }
    assert sites["add"].nodes == ("add", "relu2")


# ---------------------------------------------------------------------------------------------------------------- targets


def test_each_target_gets_its_own_style() -> None:
    feed = {"x": images(channels=3)}
    arm = quantize(small_cnn(), feed, target=targets.load("cpu-arm64")).proto
    assert {initializer(arm, node.input[2]).dtype for node in nodes(arm, "QuantizeLinear")} == {np.dtype(np.int8)}
    assert pair(arm, "r1")[1] == -128
    trt = quantize(small_cnn(), feed, target=targets.load("tensorrt")).proto
    assert {int(initializer(trt, node.input[2])) for node in nodes(trt, "QuantizeLinear")} == {0}
    assert all(tensor.data_type != onnx.TensorProto.INT32 for tensor in trt.graph.initializer)
    openvino = quantize(small_cnn(), feed, target=targets.load("openvino-cpu")).proto
    kinds = {node.input[0]: initializer(openvino, node.input[2]) for node in nodes(openvino, "QuantizeLinear")}
    assert (kinds["x"].dtype, kinds["r1"].dtype) == (np.int8, np.uint8), "unsigned where nothing is negative"
    assert {int(zero_point) for zero_point in kinds.values()} == {0}
    one = quantize(small_cnn(), feed, target=targets.load("openvino-cpu"), activations="int8").proto
    assert {initializer(one, node.input[2]).dtype for node in nodes(one, "QuantizeLinear")} == {np.dtype(np.int8)}
    qnn = small_cnn()
    qnn.opset_import[0].version = 21
    wide = quantize(qnn, feed, target=targets.load("qnn-htp"), activations="uint16").proto
    assert {initializer(wide, node.input[2]).dtype for node in nodes(wide, "QuantizeLinear")} == {np.dtype(np.uint16)}
    expected = run_optimized(small_cnn(), feed)["y"]
    assert sqnr(expected, run_optimized(wide, feed)["y"]) > sqnr(expected, run_optimized(arm, feed)["y"]) > 20


def test_a_target_without_a_style_is_an_error() -> None:
    target = targets.load("cpu").model_copy(update={"quantization": None})
    with pytest.raises(UsageError, match="nothing is known of integers"):
        quantize(small_cnn(), {"x": images(channels=3)}, target=target)


@pytest.mark.parametrize("method", ["minmax", "moving-average", "percentile", "mse", "entropy"])
def test_every_method_of_choosing_ranges_works(method: str) -> None:
    feed = {"x": images(64, channels=3)}
    done = quantize(small_cnn(), feed, method=method, weight_method="mse")
    assert sqnr(run_optimized(small_cnn(), feed)["y"], run_optimized(done.proto, feed)["y"]) > 15


def test_ranges_are_chosen_by_what_they_leave_of_the_outputs() -> None:
    """One value in ten thousand is a hundred times as large as the others, and leaves nothing of them to min-max."""
    x = images(64)
    x[0, 0, 0, 0] = 400
    text = """g (float[N,4,8,8] x) => (float[N,4] y) {
        a = Conv(x, w)  l = LeakyRelu<alpha = 0.1>(a)  p = GlobalAveragePool(l)  y = Flatten(p)
    }"""
    proto = network(text, w=conv_weight())
    expected = run_optimized(proto, {"x": x})["y"]
    found = {m: run_optimized(quantize(proto, {"x": x}, method=m).proto, {"x": x})["y"] for m in ("auto", "minmax", "mse")}
    noise = {method: float(((actual - expected)[:32] ** 2).sum()) for method, actual in found.items()}
    assert noise["auto"] == min(noise.values()) < max(noise.values())


def test_applying_another_plan_observes_nothing_again() -> None:
    loaded = ir.from_proto(small_cnn())
    with context(loaded, x=images(channels=3)) as made:
        rewrite = StaticQuantize()
        sites = rewrite.sites(loaded, made)
        first = loaded.clone()
        rewrite.apply(first, {site: site.settings[0] for site in sites}, made)
        second = loaded.clone()
        rewrite.apply(second, {sites[0]: sites[0].settings[0]}, made)
    ops = [node.op_type for node in second.graph]
    assert ops.count("QuantizeLinear") == 2


def test_attention_runs_in_integer_products_around_a_float_softmax() -> None:
    text = """g (float[N,6,8] x) => (float[N,6,8] y) {
        q = MatMul(x, wq)  k = MatMul(x, wk)  v = MatMul(x, wv)
        kt = Transpose<perm = [0, 2, 1]>(k)  s = MatMul(q, kt)  p = Softmax(s)
        c = MatMul(p, v)  o = MatMul(c, wo)  a = Add(o, bo)  y = Add(a, x)
    }"""
    rng = np.random.default_rng(0)
    weights = {name: (rng.standard_normal((8, 8)) / 3).astype(np.float32) for name in ("wq", "wk", "wv", "wo")}
    proto = network(text, **weights, bo=rng.standard_normal(8).astype(np.float32))
    x = rng.standard_normal((16, 6, 8)).astype(np.float32)
    done = quantize(proto, {"x": x})
    assert [site.op_type for site in done.planned] == ["MatMul"] * 6
    run = kernels(done.proto, {"x": x[:1]})
    assert run["QLinearMatMul"] + run["MatMulIntegerToFloat"] + run["QGemm"] == 6
    assert (run["Softmax"], run["QLinearSoftmax"], run["QLinearAdd"]) == (1, 0, 0)
    assert sqnr(run_optimized(proto, {"x": x})["y"], run_optimized(done.proto, {"x": x})["y"]) > 30
