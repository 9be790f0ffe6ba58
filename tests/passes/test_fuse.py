"""What ``fuse`` folds into weights, and what it must leave alone."""

from __future__ import annotations

import time

import numpy as np
import onnx
import onnxruntime as ort
import pytest

from graphopt import registry

from fusing import fuse, fused, listed_as_input, model, normal
from simplifying import operators

X = {"x": normal(2, 4, 8, 8, seed=9)}
IMAGE = "float[N, 4, 8, 8] x"
CONV = "z = Conv<pads = [1, 1, 1, 1]>(x, w, b) "
NORM = "y = BatchNormalization(z, gamma, beta, mean, var) "
WEIGHTS = {"w": normal(6, 4, 3, 3), "b": normal(6, seed=1)}


def statistics(channels: int = 6) -> dict[str, np.ndarray]:
    return {
        "gamma": normal(channels, seed=2),
        "beta": normal(channels, seed=3),
        "mean": normal(channels, seed=4),
        "var": np.abs(normal(channels, seed=5)) + 0.1,
    }


def why(proto: onnx.ModelProto, **kwargs: object) -> list[str]:
    """The reasons for what was left alone; nothing else was done."""
    _, changes = fuse(proto, **kwargs)
    assert not any(change.done for change in changes)
    return [change.why for change in changes]


# ----------------------------------------------------------------------------------------------------- into what is before


@pytest.mark.parametrize("opset", [9, 13, 17, 20])
def test_batch_normalization_goes_into_the_conv_before_it(opset: int):
    proto = model(CONV + NORM, opset=opset, **WEIGHTS, **statistics())
    result = fused(proto, X)
    assert operators(result) == ["Conv"]
    assert len(result.graph.initializer) == 2


def test_a_conv_without_bias_gets_one():
    proto = model("z = Conv<group = 2>(x, w) " + NORM, w=normal(6, 2, 3, 3), **statistics())
    assert operators(fused(proto, X)) == ["Conv"]


@pytest.mark.parametrize("group", [1, 2])
def test_batch_normalization_goes_into_a_transposed_conv(group: int):
    proto = model(f"z = ConvTranspose<group = {group}>(x, w) " + NORM, w=normal(4, 6 // group, 3, 3), **statistics())
    assert operators(fused(proto, X)) == ["ConvTranspose"]


@pytest.mark.parametrize("trans_b", [0, 1])
def test_batch_normalization_goes_into_a_gemm_with_alpha_and_beta(trans_b: int):
    proto = model(
        f"z = Gemm<alpha = 0.5, beta = 3.0, transB = {trans_b}>(x, w, b) " + NORM,
        "float[N, 5] x",
        "float[N, 6] y",
        w=normal(6, 5) if trans_b else normal(5, 6),
        b=normal(1, 6),
        **statistics(),
    )
    assert operators(fused(proto, {"x": normal(3, 5)})) == ["Gemm"]


def test_batch_normalization_behind_a_matmul_of_matrices_becomes_a_gemm():
    proto = model("z = MatMul(x, w) " + NORM, "float[N, 5] x", "float[N, 6] y", w=normal(5, 6), **statistics())
    assert operators(fused(proto, {"x": normal(3, 5)})) == ["Gemm"]


def test_arithmetic_with_a_number_per_channel_goes_into_the_conv():
    proto = model(
        CONV + "d = Mul(z, s)  e = Sub(d, t)  f = Div(e, u)  y = Sub(u, f)",
        **WEIGHTS,
        s=normal(6, 1, 1),
        t=normal(1, 6, 1, 1, seed=7),
        u=np.array(1.7, np.float32),
    )
    assert operators(fused(proto, X)) == ["Conv"]


def test_arithmetic_along_another_axis_stays():
    proto = model(CONV + "y = Mul(z, s)", **WEIGHTS, s=normal(8))
    assert operators(fused(proto, X)) == ["Conv", "Mul"]
    wider = model("z = Conv(x, w) y = Mul(z, s)", w=normal(1, 4, 3, 3), s=normal(6, 1, 1))
    assert operators(fused(wider, X)) == ["Conv", "Mul"]


def test_a_scale_behind_matmul_and_bias_goes_into_both():
    proto = model(
        "z = MatMul(x, w) a = Add(b, z) y = Mul(s, a)",
        "float[N, L, 5] x",
        "float[N, L, 6] y",
        w=normal(5, 6),
        b=normal(6, seed=1),
        s=normal(6, seed=2),
    )
    assert operators(fused(proto, {"x": normal(2, 3, 5)})) == ["MatMul", "Add"]


def test_one_number_passes_through_what_moves_elements():
    body = "z = MatMul(x, w) a = Add(b, z) r = Reshape(a, dims) t = Transpose<perm = [0, 2, 1, 3]>(r) y = Mul(t, s)"
    weights = {"w": normal(5, 6), "b": normal(6, seed=1), "dims": np.array([0, 0, 2, 3]), "s": np.array([0.7], np.float32)}
    proto = model(body, "float[N, L, 5] x", "float[N, 2, L, 3] y", **weights)
    assert operators(fused(proto, {"x": normal(2, 3, 5)})) == ["MatMul", "Add", "Reshape", "Transpose"]
    body_of_conv, three = "c = Conv(x, w) f = Flatten(c) y = Div(f, s)", np.array(3, np.float32)
    conv = model(body_of_conv, outputs="float[N, K] y", w=normal(6, 4, 3, 3), s=three)
    assert operators(fused(conv, X)) == ["Conv", "Flatten"]
    several = model(body, "float[N, L, 5] x", "float[N, 2, L, 3] y", **(weights | {"s": normal(3)}))
    assert operators(fused(several, {"x": normal(2, 3, 5)}))[-1] == "Mul"
    looked_at = model(body, "float[N, L, 5] x", "float[N, 2, L, 3] y, float[N, L, 2, 3] r", **weights)
    assert operators(fused(looked_at))[-1] == "Mul"


def test_a_constant_that_raises_the_rank_of_a_product_stays():
    proto = model("z = MatMul(x, w) y = Mul(z, s)", "float[N, 5] x", "float[1, N, 6] y", w=normal(5, 6), s=normal(1, 1, 6))
    assert operators(fused(proto, {"x": normal(2, 5)})) == ["MatMul", "Mul"]


def test_half_precision_is_computed_wide_and_rounded_once():
    weights = {name: array.astype(np.float16) for name, array in (WEIGHTS | statistics()).items()}
    proto = model(CONV + NORM, "float16[N, 4, 8, 8] x", "float16[N, C, H, W] y", **weights)
    result, _ = fuse(proto)
    assert operators(result) == ["Conv"]
    w = next(onnx.numpy_helper.to_array(t) for t in result.graph.initializer if t.name == "w")
    wide = {name: array.astype(np.float64) for name, array in weights.items()}
    scale = wide["gamma"] / np.sqrt(wide["var"] + np.float32(1e-5))
    np.testing.assert_array_equal(w, (wide["w"] * scale.reshape(-1, 1, 1, 1)).astype(np.float16))


def test_a_weight_that_would_overflow_is_left_alone():
    weights = {name: array.astype(np.float16) for name, array in (WEIGHTS | statistics()).items()}
    weights["w"] *= 10000
    weights["gamma"] += 100
    proto = model(CONV + NORM, "float16[N, 4, 8, 8] x", "float16[N, C, H, W] y", **weights)
    assert why(proto) == ["a weight would not be finite"]


# ------------------------------------------------------------------------------------------------ who else reads a value


def test_a_shared_weight_is_copied_for_the_conv_that_changes():
    proto = model(CONV + NORM + " v = Conv<pads = [1, 1, 1, 1]>(x, w, b)", outputs="float[N, C, H, W] y, float[N, D, H, W] v",
                  **WEIGHTS, **statistics())  # fmt: skip
    assert sorted(operators(fused(proto, X))) == ["Conv", "Conv"]
    assert "the weights would grow" in why(proto, growth_bytes=100)[0]


def test_a_weight_that_a_branch_captures_stays_as_it_is():
    proto = model(
        CONV + NORM + """
        v = If(flag) <
            then_branch = t () => (float[6, 4, 3, 3] p) { p = Neg(w) },
            else_branch = e () => (float[6, 4, 3, 3] q) { q = Abs(w) }
        >""",
        "float[N, 4, 8, 8] x, bool flag",
        "float[N, C, H, W] y, float[6, 4, 3, 3] v",
        **WEIGHTS,
        **statistics(),
    )  # fmt: skip
    assert operators(fused(proto, {**X, "flag": np.array(True)})) == ["Conv", "If"]


@pytest.mark.parametrize("name", ["w", "b", "gamma", "var"])
def test_a_weight_that_a_caller_may_override_is_no_constant(name: str):
    proto = listed_as_input(model(CONV + NORM, **WEIGHTS, **statistics()), name)
    assert why(proto) == [f"{name!r} is an input of the model too: a caller may override it"]


def test_a_weight_that_is_an_output_keeps_its_value():
    proto = model(CONV + NORM, outputs="float[N, C, H, W] y, float[6, 4, 3, 3] w", **WEIGHTS, **statistics())
    result, _ = fuse(proto)
    assert operators(result) == ["Conv"]
    assert [output.name for output in result.graph.output] == ["y", "w"]
    kept = next(tensor for tensor in result.graph.initializer if tensor.name == "w")
    np.testing.assert_array_equal(onnx.numpy_helper.to_array(kept), WEIGHTS["w"])


@pytest.mark.parametrize("extra", ["z", "v"])
def test_a_conv_that_others_read_keeps_its_normalization(extra: str):
    body = CONV + NORM + ("" if extra == "z" else "v = Relu(z)")
    proto = model(body, outputs=f"float[N, C, H, W] y, float[N, D, H, W] {extra}", **WEIGHTS, **statistics())
    assert why(proto) == ["what it scales is used elsewhere or is an output"]


def test_batch_normalization_in_training_mode_stays():
    body = CONV + "y, m, v = BatchNormalization<training_mode = 1>(z, gamma, beta, mean, var)"
    proto = model(body, **WEIGHTS, **statistics())
    assert why(proto) == ["it is in training mode, or its other outputs are used"]


def test_a_node_that_the_user_excludes_stays():
    proto = model(CONV + NORM, **WEIGHTS, **statistics())
    proto.graph.node[1].name = "head/norm"
    assert operators(fused(proto, exclude=["head/*"])) == ["Conv", "BatchNormalization"]


def test_a_conv_in_a_branch_is_fused_and_one_outside_of_it_is_not():
    proto = model(
        """a = Relu(x) z = Conv(x, w, b)
        y = If(flag) <
            then_branch = t () => (float[N, C, H, W] p) {
                c = Conv(a, w, b)  p = BatchNormalization(c, gamma, beta, mean, var) },
            else_branch = e () => (float[N, C, H, W] q) { q = BatchNormalization(z, gamma, beta, mean, var) }
        >""",
        "float[N, 4, 8, 8] x, bool flag",
        **WEIGHTS,
        **statistics(),
    )
    result = fused(proto, *({**X, "flag": np.array(flag)} for flag in (True, False)))
    branches = {a.name: [node.op_type for node in a.g.node] for a in result.graph.node[-1].attribute}
    assert branches == {"then_branch": ["Conv"], "else_branch": ["BatchNormalization"]}


def test_files_without_initializers_that_are_no_inputs_keep_their_constants_in_nodes():
    tensors = " ".join(f"{name} = Constant<value_floats = {array.tolist()}>()" for name, array in statistics().items())
    flat = ", ".join(map(str, WEIGHTS["w"].reshape(-1).tolist()))
    body = f"w = Constant<value = float[6, 4, 3, 3] {{{flat}}}>() {tensors} z = Conv(x, w) {NORM}"
    assert operators(fused(model(body, ir_version=3, opset=13), X)) == ["Conv"]


# ------------------------------------------------------------------------------------------------------------ in front of


def test_batch_normalization_before_a_conv_without_padding_goes_into_it():
    proto = model("n = BatchNormalization(x, gamma, beta, mean, var) y = Conv<group = 2>(n, w, b)",
                  w=normal(6, 2, 3, 3), b=normal(6), **statistics(4))  # fmt: skip
    assert operators(fused(proto, X)) == ["Conv"]


def test_before_a_conv_that_pads_only_a_scale_goes_into_it():
    body = "y = Conv<pads = [1, 1, 1, 1]>(n, w)"
    assert operators(fused(model("n = Mul(x, s)" + body, w=normal(6, 4, 3, 3), s=normal(4, 1, 1)), X)) == ["Conv"]
    shifted = model("n = Add(x, s)" + body, w=normal(6, 4, 3, 3), s=normal(4, 1, 1))
    assert why(shifted) == ["the Conv pads with zeros, which the shift would have to reach"]


@pytest.mark.parametrize("trans_b", [0, 1])
def test_batch_normalization_before_a_gemm_goes_into_it(trans_b: int):
    proto = model(
        f"n = BatchNormalization(x, gamma, beta, mean, var) y = Gemm<transB = {trans_b}>(n, w, b)",
        "float[N, 4] x",
        "float[N, 6] y",
        w=normal(6, 4) if trans_b else normal(4, 6),
        b=normal(6),
        **statistics(4),
    )
    assert operators(fused(proto, {"x": normal(3, 4)})) == ["Gemm"]


def test_a_scale_that_makes_many_channels_of_one_stays():
    gray = model("n = Mul(x, s) y = Conv(n, w)", "float[N, 1, 8, 8] x", w=normal(6, 4, 3, 3), s=normal(4, 1, 1))
    assert operators(fused(gray, {"x": normal(2, 1, 8, 8)})) == ["Mul", "Conv"]
    lone = model(
        "n = Mul(x, s) y = Conv(n, w)", "float[4, 8, 8] x", "float[1, C, H, W] y", w=normal(6, 4, 3, 3), s=normal(1, 4, 1, 1)
    )
    assert operators(fused(lone, {"x": normal(4, 8, 8)})) == ["Mul", "Conv"]


def test_a_shift_that_would_cost_precision_stays():
    proto = model("n = Sub(x, s) y = Conv(n, w)", w=normal(6, 4, 3, 3), s=normal(4, 1, 1) + 1000)
    assert "would cost precision" in why(proto)[0]


# ---------------------------------------------------------------------------------------------------------------- neutral


def test_arithmetic_that_changes_nothing_goes():
    zero, one = np.zeros((1, 4, 1, 1), np.float32), np.array(1, np.float32)
    proto = model(
        "a = Relu(x) b = Add(zero, a) c = Sub(b, zero) d = Mul(c, one) e = Div(d, one) y = Sigmoid(e)", zero=zero, one=one
    )
    assert operators(fused(proto, X)) == ["Relu", "Sigmoid"]


def test_a_zero_that_widens_what_it_is_added_to_stays():
    proto = model("a = Relu(x) y = Add(a, zero)", "float[N, 1] x", "float[N, 4] y", zero=np.zeros((1, 4), np.float32))
    assert operators(fused(proto, {"x": normal(2, 1)})) == ["Relu", "Add"]
    proto = model("a = Relu(x) y = Sub(zero, a)", zero=np.zeros(1, np.float32))
    assert operators(fused(proto, X)) == ["Relu", "Sub"]


# -------------------------------------------------------------------------------------------------------------- the whole


def test_a_large_network_is_fused_in_a_moment_and_runs():
    layers = 500
    body = "v0 = Relu(x) " + "".join(
        f"c{i} = Conv(v{i}, w) n{i} = BatchNormalization(c{i}, gamma, beta, mean, var) "
        f"m{i} = Mul(n{i}, s) v{i + 1} = Relu(m{i}) "
        for i in range(layers)
    )
    proto = model(
        body + f"y = Identity(v{layers})", w=normal(4, 4, 1, 1), s=np.full((4, 1, 1), 0.5, np.float32), **statistics(4)
    )
    start = time.process_time()
    result, _ = fuse(proto)
    assert time.process_time() - start < 2
    assert operators(result).count("Conv") == layers
    assert "Mul" not in operators(result)
    assert "BatchNormalization" not in operators(result)
    ort.InferenceSession(result.SerializeToString(), providers=["CPUExecutionProvider"])


def test_the_pass_is_found_by_its_name():
    assert registry.pass_class("fuse").name == "fuse"
