"""Whether the CP form of a convolution could pay: its four operators timed against the convolution and the form of two.

    k x k, C -> C    ->    1 x 1, C -> r;    k x 1 and 1 x k, each channel by itself;    1 x 1, r -> C          (CP, rank r)
    k x k, C -> C    ->    k x 1, C -> r;    1 x k, r -> C                                                   (spatial, rank r)

Time is measured with random weights; what is lost, on the convolutions of a trained network, as the part of the weight's energy
that the best form found leaves out (alternating least squares for CP). Needs GRAPHOPT_ZOO.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
from onnx import helper, numpy_helper

from graphopt import model, targets, timing
from graphopt.contracts import Session, Silent
from graphopt.passes.factorize.layers import layers

import common

_SHAPES = ((16, 32), (32, 16), (64, 8), (64, 56), (128, 28), (256, 14))
"""Channels, and pixels along each side."""
_SPATIAL = (0.5, 0.75)
"""Ranks of the spatial form, as parts of the channels."""
_RANKS = (0.5, 1.0, 2.0)
"""Of the CP form."""
_MODEL = "cifar_resnet20"
_ITERATIONS = 60
_DEPTH = 8
"""Convolutions in a row."""
_Conv = tuple[int, int, tuple[int, int], int]
"""Inputs, outputs, kernel, groups."""


def main() -> None:
    options = common.arguments(__doc__).parse_args()
    rows: list[Sequence[object]] = []
    figures = {}
    with tempfile.TemporaryDirectory() as temporary:
        for channels, size in _SHAPES:
            whole: list[_Conv] = [(channels, channels, (3, 3), 1)]
            forms: dict[str, list[_Conv]] = {}
            for part in _SPATIAL:
                r = int(part * channels)
                forms[f"spatial {part:g}"] = [(channels, r, (3, 1), 1), (r, channels, (1, 3), 1)]
            for part in _RANKS:
                r = int(part * channels)
                forms[f"CP {part:g}"] = [
                    (channels, r, (1, 1), 1),
                    (r, r, (3, 1), r),
                    (r, r, (1, 3), r),
                    (r, channels, (1, 1), 1),
                ]
            speeds = [_speed(Path(temporary), whole, form, channels, size) for form in forms.values()]
            macs = [_macs(form) / _macs(whole) for form in forms.values()]
            figures[f"{channels}x{size}"] = dict(zip(forms, zip(macs, speeds, strict=True), strict=True))
            rows.append(
                (f"{channels} channels, {size}×{size}", *(f"{s:.2f} ({m:.2f})" for s, m in zip(speeds, macs, strict=True)))
            )
            header = ("3×3 convolution", *forms)
    text = (
        "How many times as fast as the convolution each form is, by CPU time on one thread, and in brackets its part of the "
        "multiply-accumulates. The number is the rank as a part of the channels."
    )
    lost = _lost()
    figures["lost"] = lost
    told = (
        f"The part of the energy of {_MODEL}'s 3×3 convolutions that is lost, in the mean over those with as many inputs as "
        "outputs. Weights alone: no data."
    )
    losses = [(f"{channels} channels", *(f"{loss:.3f}" for loss in some)) for channels, some in lost.items()]
    parts = [text, common.table(header, rows), told, common.table(("3×3 convolution", *header[1:]), losses)]
    common.publish("cp", "The CP form of convolutions", parts, figures, options)


def _lost() -> dict[int, list[float]]:
    """By channels: the energy lost by the forms, in the order of the other table."""
    found: dict[int, list[list[float]]] = {}
    for layer in layers(model.load(common.zoo() / "models" / f"{_MODEL}.onnx")):
        outputs, inputs, *kernel = layer.shape if layer.conv else (0, 1)
        if outputs == inputs and kernel == [3, 3]:
            weight = layer.weights[0].const_value
            assert weight is not None
            array = weight.numpy().astype(np.float64)
            squares = np.linalg.svd(array.transpose(1, 2, 0, 3).reshape(3 * inputs, -1), compute_uv=False) ** 2
            spatial = [float(squares[int(part * inputs) :].sum() / squares.sum()) for part in _SPATIAL]
            found.setdefault(inputs, []).append([*spatial, *(_cp_loss(array, int(part * inputs)) for part in _RANKS)])
    return {channels: np.mean(some, axis=0).tolist() for channels, some in found.items()}


def _cp_loss(array: np.ndarray, rank: int) -> float:
    """The part of the energy of [o, i, 3, 3] that a sum of so many outer products leaves out."""
    random = np.random.default_rng(0)
    factors = [random.standard_normal((size, rank)) for size in array.shape]
    for _ in range(_ITERATIONS):
        for axis in range(4):
            others = [factor for place, factor in enumerate(factors) if place != axis]
            gram = np.prod([factor.T @ factor for factor in others], axis=0)
            product = np.einsum("abcd,br,cr,dr->ar", np.moveaxis(array, axis, 0), *others, optimize=True)
            factors[axis] = product @ np.linalg.pinv(gram)
            if axis < 3:
                factors[axis] /= np.linalg.norm(factors[axis], axis=0)
    made = np.einsum("ar,br,cr,dr->abcd", *factors, optimize=True)
    return float(np.square(array - made).sum() / np.square(array).sum())


def _macs(form: Sequence[_Conv]) -> int:
    """For each output position."""
    return sum(i // group * o * kernel[0] * kernel[1] for i, o, kernel, group in form)


def _speed(folder: Path, whole: Sequence[_Conv], form: Sequence[_Conv], channels: int, size: int) -> float:
    """How many times as fast the form is."""
    feed = {"x": np.random.default_rng(0).standard_normal((1, channels, size, size), dtype=np.float32)}
    target = targets.load("cpu")

    def opened(some: Sequence[_Conv], name: str) -> Session:
        path = folder / f"{name}.onnx"
        onnx.save(_model(some, channels, size), path)
        return targets.runtime(target).open(path, target)

    found = timing.compare(
        lambda: opened(whole, "whole"),
        lambda: opened(form, "form"),
        feed,
        limit_seconds=1.0,
        rng=np.random.default_rng(0),
        progress=Silent(),
    )
    return found.speedup


def _model(form: Sequence[_Conv], channels: int, size: int) -> onnx.ModelProto:
    """The form several times in a row, with an activation behind each."""
    random = np.random.default_rng(0)
    nodes, weights, value = [], [], "x"
    for number in range(_DEPTH):
        for place, (i, o, kernel, group) in enumerate(form):
            name = f"{number}_{place}"
            array = random.standard_normal((o, i // group, *kernel), dtype=np.float32) * np.float32(
                (i * kernel[0] * kernel[1]) ** -0.5
            )
            weights.append(numpy_helper.from_array(array, f"w{name}"))
            pads = [kernel[0] // 2, kernel[1] // 2] * 2
            nodes.append(helper.make_node("Conv", [value, f"w{name}"], [f"y{name}"], pads=pads, group=group))
            value = f"y{name}"
        nodes.append(helper.make_node("Relu", [value], [f"a{number}"]))
        value = f"a{number}"
    shape = [1, channels, size, size]
    given, out = (helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, shape) for name in ("x", value))
    graph = helper.make_graph(nodes, "form", [given], [out], weights)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


if __name__ == "__main__":
    main()
