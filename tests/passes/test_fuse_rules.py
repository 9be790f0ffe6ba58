"""What ``fuse`` says in one operator instead of several."""

from __future__ import annotations

import re

import numpy as np
import onnx
import pytest

from graphopt import targets

from fusing import fuse, fused, listed_as_input, model, normal
from helpers import run
from quantizing import executed, kernels
from simplifying import operators, simplify

X = {"x": normal(2, 4, 8, 8, seed=9)}
W = normal(6, 4, 3, 3)
PADS = np.array([0, 0, 1, 2, 0, 0, 1, 0])
INF = np.array(-np.inf, np.float32)
SPECIAL = np.array([np.nan, np.inf, -np.inf, -0.0, 0.0, 7.0, -7.0, 0.5], np.float32)


def why(*args: object, **kwargs: object) -> list[str]:
    _, changes = fuse(model(*args, **kwargs))
    assert not any(change.done for change in changes)
    return [change.why for change in changes]


# -------------------------------------------------------------------------------------------------------------------- Pad


def test_zeros_around_an_image_are_padded_by_the_conv():
    proto = model("p = Pad(x, pads) y = Conv<pads = [1, 1, 1, 1], strides = [2, 2]>(p, w)", pads=PADS, w=W)
    assert operators(fused(proto, X)) == ["Conv"]


def test_a_pad_of_some_axes_and_one_of_old_opsets_are_padded_by_the_conv():
    named = model(
        'p = Pad(x, pads, , axes) y = Conv<auto_pad = "VALID">(p, w)', pads=np.array([1, 2, 3, 0]), axes=np.array([-1, 2]), w=W
    )
    assert operators(fused(named, X)) == ["Conv"]
    old = model("p = Pad<pads = [0, 0, 1, 2, 0, 0, 1, 0]>(x) y = Conv(p, w)", opset=9, w=W)
    assert operators(fused(old, X)) == ["Conv"]


def test_a_pad_that_two_convs_read_moves_into_both_or_none():
    both = "p = Pad(x, pads) a = Conv(p, w) b = Conv(p, w) y = Mul(a, b)"
    assert operators(fused(model(both, pads=PADS, w=W), X)) == ["Conv", "Conv", "Mul"]
    one = 'p = Pad(x, pads) a = Conv(p, w) b = Conv<auto_pad = "SAME_UPPER">(p, w) c = Relu(b) y = Conv(c, v)'
    assert "chooses its own padding" in why(one, pads=PADS, w=W, v=normal(6, 6, 1, 1))[0]


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        ('p = Pad<mode = "reflect">(x, pads) y = Conv(p, w)', "reflect"),
        ("p = Pad(x, pads, one) y = Conv(p, w)", "it pads with 1"),
        ("p = Pad(x, channels) y = Conv(p, v)", "pads batch or channels"),
        ("p = Pad(x, crop) y = Conv(p, w)", "negative"),
        (
            "s = Shape(x) t = Sub(s, s) u = Concat<axis = 0>(t, t) p = Pad(x, u) y = Conv(p, w)",
            "only known when the model runs",
        ),
    ],
)
def test_other_padding_stays(body: str, reason: str):
    channels, crop = np.array([0, 1, 0, 0, 0, 0, 0, 0]), np.array([0, 0, -1, 0, 0, 0, 0, 0])
    weights = {
        "pads": PADS,
        "w": W,
        "one": np.array(1, np.float32),
        "channels": channels,
        "v": normal(6, 5, 3, 3),
        "crop": crop,
    }
    assert (
        reason in why(body, **{name: array for name, array in weights.items() if f"{name})" in body or f"{name}," in body})[0]
    )


def test_padding_that_a_caller_may_override_stays():
    proto = listed_as_input(model("p = Pad(x, pads) y = Conv(p, w)", pads=PADS, w=W), "pads")
    assert operators(fuse(proto)[0]) == ["Pad", "Conv"]


def test_a_padded_tensor_that_is_an_output_stays():
    body = "p = Pad(x, pads) y = Conv(p, w)"
    assert "is an output" in why(body, outputs="float[N, C, H, W] y, float[N, D, I, J] p", pads=PADS, w=W)[0]


def test_an_average_pool_counts_the_zeros_that_it_took_over():
    pool = "AveragePool<kernel_shape = [3, 3]{}>(p)"
    proto = model("p = Pad(x, pads) y = " + pool.format(""), pads=PADS)
    assert operators(fused(proto, X)) == ["AveragePool"]
    counted = model("p = Pad(x, pads) y = " + pool.format(", pads = [1, 0, 1, 0], count_include_pad = 1"), pads=PADS)
    assert operators(fused(counted, X)) == ["AveragePool"]
    assert "leaves that out of its mean" in why("p = Pad(x, pads) y = " + pool.format(", pads = [1, 0, 1, 0]"), pads=PADS)[0]
    assert "rounds up" in why("p = Pad(x, pads) y = " + pool.format(", ceil_mode = 1"), pads=PADS)[0]


def test_only_padding_by_minus_infinity_moves_into_a_max_pool():
    pool = "y = MaxPool<kernel_shape = [3, 3], pads = [1, 0, 1, 0]>(p)"
    assert operators(fused(model("p = Pad(x, pads, inf)" + pool, pads=PADS, inf=INF), X)) == ["MaxPool"]
    assert why("p = Pad(x, pads)" + pool, pads=PADS) == ["it pads with 0, and MaxPool with minus infinity"]


# ----------------------------------------------------------------------------------------------------------------- limits

LIMITS = {
    "a = Relu(x) y = Relu(a)": ["Relu"],
    "a = Relu(x) y = Clip(a, zero, six)": ["Clip"],
    "a = Relu(x) y = Clip(a, , six)": ["Clip"],
    "a = Relu(x) y = Clip(a, one)": ["Clip"],
    "a = Clip(x, one, six) y = Relu(a)": ["Clip"],
    "a = Clip(x, , minus) y = Relu(a)": ["Clip"],
    "a = Clip(x, , six) y = Clip(a, one)": ["Clip"],
    "a = Clip(x, one) y = Clip(a, , six)": ["Clip"],
    "a = Clip(x, six, one) y = Clip(a, zero, six)": ["Clip"],
    "a = Max(x, zero) y = Min(six, a)": ["Clip"],
    "a = Max(x, six) y = Min(a, one)": ["Clip"],
    "y = Max(x, zero)": ["Max"],  # infinity would become the largest finite number
    "a = Max(x, zero) y = Min(a, infinity)": ["Max", "Min"],
    "a = Min(x, six) y = Max(a, zero)": ["Min", "Max"],
}


@pytest.mark.parametrize("body", LIMITS)
def test_limits_are_merged_to_the_same_numbers_infinity_and_nan_included(body: str):
    numbers = {"zero": 0, "one": 1, "six": 6, "minus": -1, "infinity": np.inf}
    weights = {name: np.array(value, np.float32) for name, value in numbers.items() if name in body}
    proto = model(body, "float[N] x", "float[N] y", **weights)
    result = fused(proto)
    assert operators(result) == LIMITS[body]
    for feed in ({"x": SPECIAL}, {"x": np.concatenate([SPECIAL] * 5)}):
        np.testing.assert_array_equal(run(result, feed)["y"], run(proto, feed)["y"])


def test_where_limits_are_attributes_only_relus_merge():
    zero, six = np.array(0, np.float32), np.array(6, np.float32)
    body = "a = Max(x, zero) b = Min(six, a) c = Relu(b) y = Relu(c)"
    given = model(body, "float[N] x", "float[N] y", 10, 5, zero=zero, six=six)
    assert operators(fused(given, {"x": SPECIAL})) == ["Max", "Min", "Relu"]


def test_a_limited_value_that_others_read_keeps_its_limits():
    body, six = "a = Relu(x) y = Clip(a, , six) z = Neg(a)", np.array(6, np.float32)
    assert operators(fused(model(body, "float[N] x", "float[N] y, float[N] z", six=six))) == ["Relu", "Clip", "Neg"]
    assert operators(fused(model(body[:-11], "float[N] x", "float[N] y, float[N] a", six=six))) == ["Relu", "Clip"]
    overridable = listed_as_input(model("a = Relu(x) y = Clip(a, , six)", "float[N] x", "float[N] y", six=six), "six")
    assert operators(fused(overridable)) == ["Relu", "Clip"]


# ------------------------------------------------------------------------------------------------------------------- Gemm


def test_matmul_and_add_of_matrices_become_a_gemm():
    proto = model("a = MatMul(x, w) y = Add(b, a)", "float[N, 5] x", "float[N, 6] y", w=normal(5, 6), b=normal(6))
    assert operators(fused(proto, {"x": normal(3, 5)})) == ["Gemm"]
    weights_may_change = listed_as_input(listed_as_input(proto, "w"), "b")
    assert operators(fused(weights_may_change)) == ["Gemm"]


def test_a_product_of_rank_3_or_with_another_bias_is_no_gemm():
    batched = model("a = MatMul(x, w) y = Add(a, b)", "float[N, 3, 5] x", "float[N, 3, 6] y", w=normal(5, 6), b=normal(6))
    assert operators(fused(batched)) == ["MatMul", "Add"]
    residual = model("a = MatMul(x, w) y = Add(a, r)", "float[N, 5] x, float[N, 6] r", "float[N, 6] y", w=normal(5, 6))
    assert operators(fused(residual)) == ["MatMul", "Add"]
    read_twice = model(
        "a = MatMul(x, w) y = Add(a, b)", "float[N, 5] x", "float[N, 6] y, float[N, 6] a", w=normal(5, 6), b=normal(6)
    )
    assert operators(fused(read_twice)) == ["MatMul", "Add"]


def test_a_gemm_reads_matrices_before_they_are_transposed():
    body = "s = Transpose(x) t = Transpose<perm = [1, 0]>(w) y = Gemm<transB = 1>(s, t)"
    proto = model(body, "float[5, N] x, float[5, 6] w", "float[N, 6] y")
    assert operators(fused(proto, {"x": normal(5, 3), "w": normal(5, 6)})) == ["Gemm"]
    shown = model(body, "float[5, N] x, float[5, 6] w", "float[N, 6] y, float[N, 5] s")
    assert operators(fused(shown)) == ["Transpose", "Gemm"]


# --------------------------------------------------------------------------------------------- pooling and normalization


@pytest.mark.parametrize(("opset", "body"), [(18, "ReduceMean(x, axes)"), (13, "ReduceMean<axes = [-1, 2]>(x)")])
def test_a_mean_over_the_image_is_a_global_pool(opset: int, body: str):
    weights = {"axes": np.array([3, -2])} if opset == 18 else {}
    behind = f"c = Conv(x, w) s = Sigmoid(c) a = Mul(c, s) y = {body.replace('(x', '(a')}"
    proto = model(behind, opset=opset, outputs="float[N, 6, 1, 1] y", w=W, **weights)
    assert operators(fused(proto, X))[-1] == "GlobalAveragePool"
    elsewhere = model(f"y = {body}", opset=opset, outputs="float[N, 4, 1, 1] y", **weights)
    assert operators(fused(elsewhere, X)) == ["ReduceMean"]  # where no layout is kept, it is the faster of the two


def test_another_mean_is_none():
    for axes, keep, shape in (([2], 1, "N, 4, 1, 8"), ([1, 2], 1, "N, 1, 1, 8"), ([2, 3], 0, "N, 4")):
        body = f"c = Conv(x, w) y = ReduceMean<keepdims = {keep}>(c, axes)"
        proto = model(body, outputs=f"float[{shape}] y", axes=np.array(axes), w=normal(4, 4, 1, 1))
        assert operators(fused(proto, X)) == ["Conv", "ReduceMean"]
    unknown = model("c = Conv(x, w) y = ReduceMean(c, axes)", "float[N, 4, 8, 8] x, int64[K] axes", "float[A, B, C, D] y", w=W)
    assert operators(fused(unknown)) == ["Conv", "ReduceMean"]


NORM = "m = ReduceMean(x, axes) d = Sub(x, m) {square} v = ReduceMean(q, axes) e = Add(v, eps) r = Sqrt(e) {divide} "
NORM_WEIGHTS = {
    "axes": np.array([-1]),
    "eps": np.array(1e-5, np.float32),
    "g": normal(16, seed=1),
    "b": normal(16, seed=2),
}
ROWS = {"x": normal(2, 3, 16)}


def normalization(
    square: str = "q = Mul(d, d)", divide: str = "n = Div(d, r)", end: str = "s = Mul(n, g) y = Add(s, b)", **kwargs: object
):
    weights = NORM_WEIGHTS | ({"two": np.array(2, np.float32)} if "two" in square else {})
    weights = {name: array for name, array in weights.items() if name != "b" or "b)" in end}
    kwargs = {"inputs": "float[N, L, 16] x", "outputs": "float[N, L, 16] y"} | kwargs
    return model(NORM.format(square=square, divide=divide) + end, **kwargs, **weights)


@pytest.mark.parametrize("square", ["q = Mul(d, d)", "q = Pow(d, two)", "d2 = Sub(x, m) q = Pow(d2, two)"])
@pytest.mark.parametrize("divide", ["n = Div(d, r)", "i = Reciprocal(r) n = Mul(i, d)"])
def test_a_layer_normalization_that_is_written_out_becomes_one(square: str, divide: str):
    assert operators(fused(normalization(square, divide, opset=18), ROWS)) == ["LayerNormalization"]


def test_a_layer_normalization_without_shift_and_one_whose_weights_may_change_become_one():
    assert operators(fused(normalization(end="y = Mul(g, n)"), ROWS)) == ["LayerNormalization"]
    overridable = listed_as_input(listed_as_input(normalization(), "g"), "b")
    assert operators(fused(overridable, ROWS)) == ["LayerNormalization"]


def test_a_layer_normalization_whose_parts_are_read_stays():
    for extra in ("m", "d", "v", "n"):
        shape = "float[N, L, 1]" if extra in "mv" else "float[N, L, 16]"
        proto = normalization(outputs=f"float[N, L, 16] y, {shape} {extra}")
        assert "LayerNormalization" not in operators(fused(proto, ROWS))


RMS = [
    "p = Pow(x, two) m = ReduceMean(p, last) v = Add(m, e) r = Sqrt(v) n = Div(x, r) y = Mul(n, g)",
    "p = Mul(x, x) m = ReduceMean(p, last) v = Add(e, m) r = Sqrt(v) i = Reciprocal(r) n = Mul(x, i) y = Mul(g, n)",
]


def rms(
    body: str, opset: int = 23, outputs: str = "float[N, L, 16] y", axis: int = -1, **changed: np.ndarray
) -> onnx.ModelProto:
    weights = {name: np.array(value, np.float32) for name, value in (("one", 1), ("two", 2), ("e", 1e-5))}
    weights |= {"last": np.array([axis]), "g": normal(16)}
    used = {name: array for name, array in (weights | changed).items() if re.search(rf"\b{name}\b", body)}
    return model(body, "float[N, L, 16] x", outputs, opset, ir_version=11, **used)


@pytest.mark.parametrize("body", RMS)
def test_an_rms_normalization_written_out_becomes_one_where_the_opset_has_it(body: str):
    assert operators(fused(rms(body), ROWS)) == ["RMSNormalization"]
    assert operators(fused(listed_as_input(rms(body), "g"), ROWS)) == ["RMSNormalization"]


@pytest.mark.parametrize(
    "body", [RMS[1], RMS[1].replace("Reciprocal(r)", "Div(one, r)"), RMS[1].replace("Mul(x, x)", "Pow(x, two)")]
)
def test_before_there_was_one_an_rms_normalization_is_written_as_the_runtime_knows_it(body: str):
    proto = rms(body, opset=18)
    result = fused(proto, ROWS, rtol=0)
    assert operators(result) == ["Pow", "ReduceMean", "Add", "Sqrt", "Div", "Mul", "Mul"]
    assert kernels(result, ROWS) == {"SimplifiedLayerNormalization": 1}


@pytest.mark.parametrize("body", RMS)
def test_what_only_looks_like_an_rms_normalization_stays(body: str):
    for proto in (
        rms(body, outputs="float[N, L, 16] y, float[N, L, 1] v"),
        rms(body, axis=1),
        rms(body, g=normal(1, 16)),
        listed_as_input(rms(body), "e"),
    ):
        assert "RMSNormalization" not in operators(fused(proto, ROWS))


# ------------------------------------------------------------------------------------------------------------- activations

NUMBERS = {
    "root": np.sqrt(2), "half_root": np.sqrt(0.5), "one": 1, "half": 0.5, "c": 0.044715, "k": np.sqrt(2 / np.pi),
    "three": 3, "zero": 0, "six": 6, "sixth": 1 / 6,
}  # fmt: skip
GELU = [
    "d = Div(x, root) e = Erf(d) a = Add(e, one) m = Mul(x, a) y = Mul(m, half)",
    "h = Mul(half, x) d = Mul(x, half_root) e = Erf(d) a = Add(one, e) y = Mul(h, a)",
    "d = Div(x, root) e = Erf(d) a = Add(e, one) h = Mul(a, half) y = Mul(x, h)",
    "p = Pow(x, three) q = Mul(p, c) r = Add(x, q) s = Mul(r, k) t = Tanh(s) u = Add(t, one) h = Mul(x, half) y = Mul(h, u)",
    "p1 = Mul(x, x) p = Mul(p1, x) q = Mul(c, p) r = Add(x, q) s = Mul(k, r) t = Tanh(s) u = Add(one, t) m = Mul(x, u) "
    "y = Mul(half, m)",
]
HARD_SWISH = [
    "a = Add(x, three) l = Clip(a, zero, six) m = Mul(x, l) y = Div(m, six)",
    "a = Add(three, x) l = Clip(a, zero, six) d = Div(l, six) y = Mul(d, x)",
    "a = Add(x, three) l = Clip(a, zero, six) d = Mul(l, sixth) y = Mul(x, d)",
    "l = HardSigmoid<alpha = 0.16666667, beta = 0.5>(x) y = Mul(x, l)",
]


def activation(body: str, outputs: str = "float[N, 64] y", opset: int = 20) -> onnx.ModelProto:
    read = set(re.findall(r"\w+", body))
    weights = {name: np.array(value, np.float32) for name, value in NUMBERS.items() if name in read}
    return model(body, "float[N, 64] x", outputs, opset, **weights)


@pytest.mark.parametrize("body", GELU)
def test_a_gelu_that_is_written_out_becomes_one(body: str):
    assert operators(fused(activation(body), {"x": 3 * normal(4, 64)})) == ["Gelu"]
    assert "Gelu" not in operators(fused(activation(body, opset=18)))


@pytest.mark.parametrize("body", HARD_SWISH)
def test_a_hard_swish_that_is_written_out_becomes_one(body: str):
    assert operators(fused(activation(body), {"x": 4 * normal(4, 64)})) == ["HardSwish"]
    assert operators(fused(activation(body, opset=13), {"x": 4 * normal(4, 64)})) == ["HardSigmoid", "Mul"]


@pytest.mark.parametrize("opset", [12, 20])
def test_a_hard_sigmoid_that_is_written_out_becomes_one(opset: int):
    body = "a = Add(x, three) l = Clip(a, zero, six) y = Div(l, six)"
    assert operators(fused(activation(body, opset=opset), {"x": 4 * normal(4, 64)})) == ["HardSigmoid"]
    assert "HardSigmoid" not in operators(fused(activation(body.replace("a, zero", "a, one"), opset=opset)))
    assert "HardSigmoid" not in operators(fused(activation(body, "float[N, 64] y, float[N, 64] l", opset)))


def test_an_activation_with_other_numbers_or_other_readers_stays():
    assert "Gelu" not in operators(fused(activation(GELU[0].replace("half)", "six)"))))
    assert "Gelu" not in operators(fused(activation(GELU[0], "float[N, 64] y, float[N, 64] e")))
    assert "HardSwish" not in operators(fused(activation(HARD_SWISH[0], "float[N, 64] y, float[N, 64] a")))
    assert "HardSwish" not in operators(fused(activation(HARD_SWISH[3].replace("0.5", "0.4"))))
    overridable = listed_as_input(activation(HARD_SWISH[0]), "three")
    assert "HardSwish" not in operators(fused(overridable))


def test_silu_stays_a_product():
    assert operators(fused(activation("s = Sigmoid(x) y = Mul(x, s)"))) == ["Sigmoid", "Mul"]


# -------------------------------------------------------------------------------------------------- recurrence, sequences


@pytest.mark.parametrize(("operator", "gates", "states"), [("LSTM", 4, "h, c"), ("GRU", 3, "h"), ("RNN", 1, "h")])
def test_an_initial_state_of_zeros_is_left_out_with_what_built_it(operator: str, gates: int, states: str):
    body = f"""n = Shape<start = 1, end = 2>(x) s = Concat<axis = 0>(two, n, five) z = Expand(zero, s)
        h = Slice(z, start, end, start) fill = ConstantOfShape(s) c = Slice(fill, end, two, start)
        y, yh = {operator}<hidden_size = 5>(x, w, r, , , {states})"""
    weights = {
        "two": np.array([2]), "five": np.array([5]), "start": np.array([0]), "end": np.array([1]),
        "zero": np.array(0, np.float32), "w": normal(1, gates * 5, 4), "r": normal(1, gates * 5, 5),
    }  # fmt: skip
    if operator != "LSTM":
        body = body.replace("fill = ConstantOfShape(s) c = Slice(fill, end, two, start)", "")
    proto = model(body, "float[L, N, 4] x", "float[L, 1, N, 5] y, float[1, N, 5] yh", **weights)
    assert operators(fused(proto, {"x": normal(3, 2, 4)})) == [operator]


def test_an_initial_state_that_is_not_zero_or_may_be_overridden_stays():
    weights = {"w": normal(1, 5, 4), "r": normal(1, 5, 5), "h": np.zeros((1, 2, 5), np.float32)}
    body = "y = RNN<hidden_size = 5>(x, w, r, , , h)"
    overridable = listed_as_input(model(body, "float[3, 2, 4] x", "float[3, 1, 2, 5] y", **weights), "h")
    assert len(fused(overridable).graph.node[0].input) == 6
    weights["h"] = weights["h"] + 1
    assert len(fused(model(body, "float[3, 2, 4] x", "float[3, 1, 2, 5] y", **weights)).graph.node[0].input) == 6


def test_a_zero_state_that_others_read_stays_for_them():
    weights = {"w": normal(1, 5, 4), "r": normal(1, 5, 5), "h": np.zeros((1, 2, 5), np.float32)}
    proto = model(
        "y = RNN<hidden_size = 5>(x, w, r, , , h)", "float[3, 2, 4] x", "float[3, 1, 2, 5] y, float[1, 2, 5] h", **weights
    )
    result = fused(proto, {"x": normal(3, 2, 4)})
    assert len(result.graph.node[0].input) == 3
    assert [output.name for output in result.graph.output] == ["y", "h"]


def test_parts_are_taken_without_a_sequence():
    body = """s = SplitToSequence<axis = 1>(x, sizes) a = SequenceAt(s, zero) b = SequenceAt(s, last) y = Add(a, b)
        z = SequenceAt(s, one)"""
    numbers = {"zero": np.array(0), "last": np.array(-1), "one": np.array(1)}
    outputs = "float[N, C, H, W] y, float[N, D, H, W] z"
    proto = model(body, outputs=outputs, sizes=np.array([1, 2, 1]), **numbers)
    assert operators(fused(proto, X)) == ["Split", "Add"]
    even = model(body, outputs=outputs, sizes=np.array(2), **(numbers | {"one": np.array(-2)}))
    assert operators(fused(even, X)) == ["Split", "Add"]
    overridable = listed_as_input(proto, "sizes")
    assert "SplitToSequence" in operators(fuse(overridable)[0])


def test_a_part_whose_position_is_not_known_is_taken_from_the_sequence():
    body = "s = SplitToSequence<axis = 1>(x, sizes) y = SequenceAt(s, i)"
    proto = model(body, "float[N, 4, 8, 8] x, int64 i", sizes=np.array([1, 3]))
    assert operators(fused(proto, {**X, "i": np.array(1)})) == ["SplitToSequence", "SequenceAt"]


# ------------------------------------------------------------------------------------------------------------------ whole


def lossless(proto: onnx.ModelProto) -> onnx.ModelProto:
    """What the recipe's three passes make of a model."""
    return simplify(fuse(simplify(proto)[0])[0])[0]


@pytest.mark.parametrize("body", GELU)
def test_the_factor_of_a_gelu_is_not_taken_into_the_conv_behind_it(body: str):
    body = body.replace("y =", "g =") + " y = Conv(g, w)"
    read = set(re.findall(r"\w+", body))
    weights = {name: np.array(value, np.float32) for name, value in NUMBERS.items() if name in read}
    proto = model(body, outputs="float[N, 6, 6, 6] y", opset=17, w=W, **weights)
    before, after = (kernels(either, X) for either in (proto, fused(proto, X)))
    assert after == before


@pytest.mark.parametrize("opset", [13, 17])
def test_a_normalization_that_the_runtime_knows_keeps_a_weight_of_one_and_a_shift_of_zero(opset: int):
    mean = "ReduceMean<axes = [-1]>"
    body = f"m = {mean}(x) d = Sub(x, m) q = Pow(d, two) v = {mean}(q) e = Add(v, eps) r = Sqrt(e) n = Div(d, r) "
    body += "s = Mul(n, g) y = Add(s, b)"
    weights = NORM_WEIGHTS | {"g": np.ones(16, np.float32), "b": np.zeros(16, np.float32), "two": np.array(2, np.float32)}
    del weights["axes"]
    proto = model(body, "float[N, L, 16] x", "float[N, L, 16] y", opset, **weights)
    assert kernels(lossless(proto), ROWS) == {"LayerNormalization": 1}


@pytest.mark.parametrize("body", RMS)
@pytest.mark.parametrize("opset", [18, 23])
def test_an_rms_normalization_keeps_a_weight_of_one(body: str, opset: int):
    found = kernels(lossless(rms(body, opset, g=np.ones(16, np.float32))), ROWS)
    assert sum(found.values()) == 1


def test_a_normalization_before_a_gemm_keeps_its_end_where_it_is_no_operator():
    mean = "ReduceMean<axes = [-1]>"
    body = f"m = {mean}(x) d = Sub(x, m) q = Pow(d, two) v = {mean}(q) e = Add(v, eps) r = Sqrt(e) n = Div(d, r) "
    body += "s = Mul(n, g) t = Add(s, b) y = Gemm(t, w, c)"
    weights = {name: array for name, array in NORM_WEIGHTS.items() if name != "axes"} | {"two": np.array(2, np.float32)}
    proto = model(body, "float[N, 16] x", "float[N, 5] y", 13, w=normal(16, 5), c=normal(5), **weights)
    rows = {"x": normal(3, 16)}
    assert kernels(fused(proto, rows), rows) == {"LayerNormalization": 1, "Gemm": 1}


# --------------------------------------------------------------------------------------------------------------- residual


def test_a_residual_add_is_not_left_to_the_slower_fused_kernel() -> None:
    tokens = {"x": normal(2, 5, 8, seed=1)}
    body = "h = MatMul(x, w) a = Add(h, x) n = LayerNormalization(a, gamma, beta) y = MatMul(n, w)"
    weights = {"w": normal(8, 8, seed=2), "gamma": normal(8, seed=3), "beta": normal(8, seed=4)}
    shapes = {"inputs": "float[N, T, 8] x", "outputs": "float[N, T, 8] y"}
    result = fused(model(body, **shapes, **weights), tokens)
    assert operators(result) == ["MatMul", "Sum", "LayerNormalization", "MatMul"]
    before, after = (kernels(proto, tokens) for proto in (model(body, **shapes, **weights), result))
    assert (before["SkipLayerNormalization"], after["SkipLayerNormalization"]) == (1, 0)


@pytest.mark.parametrize("more", [" t = Neg(a)", " t = Identity(a)"])
def test_a_residual_add_that_something_else_reads_stays(more: str) -> None:
    tokens = {"x": normal(2, 5, 8, seed=1)}
    body = "h = MatMul(x, w) a = Add(h, x) y = LayerNormalization(a, gamma, beta)" + more
    weights = {"w": normal(8, 8, seed=2), "gamma": normal(8, seed=3), "beta": normal(8, seed=4)}
    proto = model(body, "float[N, T, 8] x", "float[N, T, 8] y, float[N, T, 8] t", **weights)
    assert "Add" in operators(fused(proto, tokens))


def test_only_targets_with_the_slow_kernel_are_concerned() -> None:
    assert "SkipLayerNormalization" in targets.load("cpu").slow_kernels
    assert targets.load("tensorrt").slow_kernels == ()


# ------------------------------------------------------------------------------------------------------------------ order

ATTENTION = """
    qm = MatMul(x, wq) q0 = Reshape(qm, heads) q = Transpose<perm = [0, 2, 1, 3]>(q0)
    km = MatMul(x, wk) k0 = Reshape(km, heads) k = Transpose<perm = [0, 2, 3, 1]>(k0)
    vm = MatMul(x, wv) vb = Add(vm, bias) v0 = Reshape(vb, heads) v = Transpose<perm = [0, 2, 1, 3]>(v0)
    s = MatMul(q, k) p = Softmax<axis = -1>(s) {where} a = MatMul({weights}, v)
    t = Transpose<perm = [0, 2, 1, 3]>(a) r = Reshape(t, whole) y = MatMul(r, wo)
"""


@pytest.mark.parametrize("where", ["", "i = IsNaN(p) z = Where(i, zero, p)"])
def test_the_values_of_an_attention_are_computed_while_the_caches_hold_its_input(where: str):
    weights = {f"w{name}": normal(16, 16, seed=index) for index, name in enumerate("qkvo")} | {"bias": normal(16, seed=5)}
    weights |= {"heads": np.array([0, 0, 2, 8]), "whole": np.array([0, 0, 16])}
    weights |= {"zero": np.array(0, np.float32)} if where else {}
    body = ATTENTION.format(where=where, weights="z" if where else "p")
    proto = model(body, "float[N, L, 16] x", "float[N, L, 16] y", **weights)
    for node in proto.graph.node:
        node.name = node.output[0]
    before, after = ([node.name for node in executed(either, ROWS)] for either in (proto, fused(proto, ROWS)))
    assert before.index("p") < before.index("vm")
    assert after.index("vm") < after.index("p")
