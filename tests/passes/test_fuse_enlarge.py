"""A 1 x 1 Conv changes places with the Resize before it, and is folded into a MatMul before it."""

from __future__ import annotations

import re

import numpy as np
import onnx
import pytest

from fusing import fuse, fused, listed_as_input, model, normal
from helpers import assert_same_outputs
from simplifying import operators, simplify

SCALES = np.array([1, 1, 2, 2], np.float32)
SMALL = "float[N, 96, 4, 4] x"


def feed(*shapes: tuple[int, ...], names: str = "xz") -> dict[str, np.ndarray]:
    return {name: normal(*shape, seed=seed) for seed, (name, shape) in enumerate(zip(names, shapes, strict=False))}


def weight(outputs: int = 8, channels: int = 96) -> np.ndarray:
    return normal(outputs, channels, 1, 1, seed=5) / 10


def order(proto: onnx.ModelProto) -> list[str]:
    return [node.op_type for node in proto.graph.node]


@pytest.mark.parametrize(
    "mode",
    [
        'mode = "nearest", coordinate_transformation_mode = "asymmetric", nearest_mode = "floor"',
        'mode = "linear"',
        'mode = "linear", coordinate_transformation_mode = "align_corners"',
        'mode = "cubic"',
    ],
)
def test_a_conv_goes_before_the_resize_that_it_reads(mode: str):
    proto = model(f"a = Resize<{mode}>(x, , scales) y = Conv(a, w, b)", SMALL, scales=SCALES, w=weight(), b=normal(8))
    assert order(proto) == ["Resize", "Conv"]
    result = fused(proto, feed((1, 96, 4, 4)), feed((3, 96, 4, 4)), rtol=4e-6)
    assert order(result) == ["Conv", "Resize"]


def test_a_conv_is_spread_over_a_pyramid_whose_levels_are_enlarged():
    body = """a = Resize<mode = "linear">(x, , four) b = Resize<mode = "nearest">(z, , two)
        c = Concat<axis = 1>(a, u, b) d = Conv(c, w, bias) y = Relu(d)"""
    inputs = "float[N, 96, 4, 4] x, float[N, 96, 8, 8] z, float[N, 16, 16, 16] u"
    weights = {"four": np.array([1, 1, 4, 4], np.float32), "two": SCALES, "w": weight(12, 208), "bias": normal(12)}
    proto = model(body, inputs, **weights)
    values = {"x": normal(2, 96, 4, 4), "z": normal(2, 96, 8, 8, seed=1), "u": normal(2, 16, 16, 16, seed=2)}
    result, _ = fuse(proto)
    onnx.checker.check_model(result, full_check=True)
    assert sorted(order(result)) == ["Conv", "Conv", "Conv", "Relu", "Resize", "Resize", "Sum"]
    assert fuse(result)[0] == result
    assert_same_outputs(proto, result, values, 4e-6)


@pytest.mark.parametrize(
    ("body", "outputs", "why"),
    [
        ("a = Resize(x, , scales) y = Conv(a, w)", "float[N, C, H, W] y, float[N, D, I, J] a", "an output"),
        ("a = Resize(x, , scales) z = Relu(a) y = Conv(a, w)", "float[N, C, H, W] y, float[N, D, I, J] z", "read elsewhere"),
        ("a = Resize(x, , scales) y = Conv<strides = [2, 2]>(a, w)", "float[N, C, H, W] y", "strides"),
        ("a = Resize(x, , scales) y = Conv<pads = [1, 1, 1, 1]>(a, w)", "float[N, C, H, W] y", "pads"),
        ("a = Resize(x, , scales) y = Conv(a, w3)", "float[N, C, H, W] y", "3 x 3"),
        ("a = Resize(x, , less) y = Conv(a, w)", "float[N, C, H, W] y", "makes it smaller"),
        ("a = Resize(x, , scales) y = Conv(a, wide)", "float[N, C, H, W] y", "more channels to enlarge"),
        (
            "a = Resize(x, , scales) b = Concat<axis = 1>(a, big) y = Conv(b, both)",
            "float[N, C, H, W] y",
            "half of it is large",
        ),
    ],
)
def test_a_conv_stays_behind_a_resize_that_it_cannot_or_should_not_pass(body: str, outputs: str, why: str):
    weights = {
        "scales": SCALES,
        "less": np.array([1, 1, 0.5, 0.5], np.float32),
        "w": weight(),
        "w3": normal(8, 96, 3, 3) / 30,
        "wide": weight(200),
        "both": weight(8, 192),
    }
    given = {name: array for name, array in weights.items() if re.search(rf"\b{name}\b", body)}
    inputs = f"{SMALL}, float[N, 96, 8, 8] big" if "big" in body else SMALL
    proto = model(body.replace("Resize(", 'Resize<mode = "linear">('), inputs, outputs, **given)
    assert order(fused(proto)) == order(proto), why


def test_a_conv_whose_weight_a_caller_may_override_stays_behind():
    proto = model("a = Resize(x, , scales) y = Conv(a, w)", SMALL, scales=SCALES, w=weight())
    assert order(fused(listed_as_input(proto, "w"))) == ["Resize", "Conv"]


# ------------------------------------------------------------------------------------------------ from a sequence to a picture

SEQUENCE = "float[N, 64, 12] x"
BACK = {"target": np.array([0, 16, 8, 8], np.int64), "m": normal(12, 16) / 3}
PICTURE = "p = MatMul(x, m) {} t = Transpose<perm = [0, 2, 1]>(p1) r = Reshape(t, target) y = Conv(r, w, b)"


@pytest.mark.parametrize("outputs", [16, 5])
@pytest.mark.parametrize("add", ["p1 = Add(p, c)", "p1 = Add(c, p)", "p1 = Identity(p)"])
def test_a_conv_is_folded_into_the_matmul_before_the_picture(outputs: int, add: str):
    body = PICTURE.format(add) if "Add" in add else PICTURE.format("").replace("p1", "p")
    biases = {"c": normal(16, seed=2)} if "Add" in add else {}
    proto = model(body, SEQUENCE, w=weight(outputs, 16), b=normal(outputs), **BACK, **biases)
    result = fused(proto, feed((1, 64, 12)), feed((3, 64, 12)), rtol=4e-6)
    assert operators(result) == ["MatMul", "Add", "Transpose", "Reshape"]


def test_without_any_bias_nothing_is_added():
    proto = model(PICTURE.format("").replace("p1", "p").replace(", b)", ")"), SEQUENCE, w=weight(5, 16), **BACK)
    assert operators(fused(proto, feed((2, 64, 12)), rtol=4e-6)) == ["MatMul", "Transpose", "Reshape"]


def test_a_shape_that_the_model_has_already_is_not_made_again():
    body = PICTURE.format("").replace("p1", "p").replace("y =", "z =") + " f = Reshape(v, wanted) y = Add(z, f)"
    wanted = np.array([0, 5, 8, 8], np.int64)
    proto = model(body, f"{SEQUENCE}, float[N, 320] v", w=weight(5, 16), b=normal(5), wanted=wanted, **BACK)
    result = fused(proto, feed((2, 64, 12)) | {"v": normal(2, 320)}, rtol=4e-6)
    assert [tensor.name for tensor in result.graph.initializer if tensor.data_type == onnx.TensorProto.INT64] == ["wanted"]


def test_two_maps_through_few_channels_stay_two():
    few = {"target": np.array([0, 2, 8, 8], np.int64), "m": normal(12, 2) / 3}
    proto = model(PICTURE.format("").replace("p1", "p"), SEQUENCE, w=weight(16, 2), b=normal(16), **few)
    assert operators(fused(proto)) == operators(proto)


def test_a_picture_that_something_else_reads_stays():
    body = PICTURE.format("").replace("p1", "p")
    proto = model(body, SEQUENCE, "float[N, C, H, W] y, float[N, D, H, W] r", w=weight(5, 16), b=normal(5), **BACK)
    assert operators(fused(proto)) == operators(proto)


# ---------------------------------------------------------------------------------------------------------- any pyramid at all

MODES = [
    ("nearest", "asymmetric"),
    ("nearest", "half_pixel"),
    ("linear", "half_pixel"),
    ("linear", "align_corners"),
    ("linear", "pytorch_half_pixel"),
    ("linear", "asymmetric"),
    ("cubic", "half_pixel"),
]


@pytest.mark.parametrize("seed", range(20))
def test_any_pyramid_gives_the_same_answers(seed: int):
    rng = np.random.default_rng(seed)
    outputs, levels = int(rng.integers(1, 70)), int(rng.integers(1, 5))
    body, inputs, channels, weights = [], [], [], {}
    for level in range(levels):
        channels.append(int(rng.integers(40, 130)))
        ratio, name = int(rng.choice([1, 2, 4, 8])), f"x{level}"
        inputs.append(f"float[N, {channels[-1]}, {16 // ratio}, {16 // ratio}] {name}")
        mode, coordinates = MODES[int(rng.integers(len(MODES)))]
        attributes = f'mode = "{mode}", coordinate_transformation_mode = "{coordinates}"'
        if rng.random() < 0.3:  # to sizes that are computed
            weights[f"rest{level}"] = np.array([channels[-1], 16, 16])
            body += [
                f"n{level} = Shape<start = 0, end = 1>({name})",
                f"s{level} = Concat<axis = 0>(n{level}, rest{level})",
                f"r{level} = Resize<{attributes}>({name}, , , s{level})",
            ]
        else:
            weights[f"scale{level}"] = np.array([1, 1, ratio, ratio], np.float32)
            body.append(f"r{level} = Resize<{attributes}>({name}, , scale{level})")
    whole = ", ".join(f"r{level}" for level in range(levels))
    weights["w"] = rng.standard_normal((outputs, sum(channels), 1, 1)).astype(np.float32) / 10
    bias = ""
    if rng.random() < 0.6:
        weights["b"], bias = rng.standard_normal(outputs).astype(np.float32), ", b"
    body += [f"c = Concat<axis = 1>({whole})", f"y = Conv(c, w{bias})"]
    proto = model("\n".join(body), ", ".join(inputs), opset=int(rng.choice([16, 18, 20])), **weights)
    result = lossless(proto)
    onnx.checker.check_model(result, full_check=True)
    assert lossless(result) == result
    for batch in (1, 3):
        feeds = {
            value.name: rng.standard_normal([batch, *(dim.dim_value for dim in value.type.tensor_type.shape.dim[1:])])
            for value in proto.graph.input
        }
        assert_same_outputs(proto, result, {name: array.astype(np.float32) for name, array in feeds.items()}, 1e-5)


def lossless(proto: onnx.ModelProto) -> onnx.ModelProto:
    for rewrite in (simplify, fuse, simplify):
        proto, _ = rewrite(proto)
    return proto
