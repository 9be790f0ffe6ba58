"""Whether the CP form of a convolution would pay: what it loses on data, beside the forms of ``factorize``, at equal speed.

    k x k, C -> C    ->    1 x 1, C -> r;    k x 1 and 1 x k, each channel by itself;    1 x 1, r -> C          (CP, rank r)

Second moments of what each convolution reads are taken on calibration images, and what a form loses of the outputs' energy is
judged with those of other images. The factors are those that ``factorize`` finds, of CP with ``factorize.cp=true``. Time is
measured for each form at each rank. Needs GRAPHOPT_ZOO.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
from onnx import helper, numpy_helper
from ranks import energy, moments

from graphopt import model, targets, timing
from graphopt.contracts import Array, Session, Silent
from graphopt.passes.factorize.factors import factorize
from graphopt.passes.factorize.forms import Option, Sizes
from graphopt.passes.factorize.layers import layers

import common

_MODEL = "cifar_resnet20"
_PIXELS = {16: 32, 32: 16, 64: 8}
"""Along each side, by channels."""
_PARTS = (0.6, 0.45, 0.33, 0.25, 0.18, 0.12)
"""Of the multiply-accumulates."""
_STEP = 4
"""Ranks are multiples of it."""
_LAYERS = 3
"""Of each number of channels."""
_DEPTH = 8
"""Convolutions in a row."""
_Conv = tuple[int, int, tuple[int, int], int]
"""Inputs, outputs, kernel, groups."""


@dataclass(frozen=True)
class Point:
    """A form at a rank: its part of the multiply-accumulates, how many times as fast it is, the part of the energy it loses."""

    label: str
    macs: float
    speed: float
    lost: float

    @property
    def told(self) -> tuple[str, str, str]:
        """Cells of the table."""
        return f"{self.label} ({self.macs:.2f})", f"{self.speed:.2f}", f"{self.lost:.3f}"


def main() -> None:
    options = common.arguments(__doc__).parse_args()
    rows: list[Sequence[object]] = []
    better = 0
    zoo = common.zoo()
    loaded = model.load(zoo / "models" / f"{_MODEL}.onnx")
    square = [one for one in layers(loaded) if one.conv and one.shape[0] == one.shape[1] and one.shape[2:] == (3, 3)]
    chosen = [one for channels in _PIXELS for one in [one for one in square if one.shape[0] == channels][:_LAYERS]]
    seen, unseen = (moments(loaded, chosen, zoo / "data" / "cifar10" / f"{name}.npz") for name in ("calib", "eval"))
    judged = [*zip([one.matrix()[0].astype(np.float64) for one in chosen], seen, unseen, strict=True)]
    with tempfile.TemporaryDirectory() as folder:
        for channels in _PIXELS:
            known = [one for one in judged if one[0].shape[1] == channels]
            ranks = sorted({_rounded(part * 9 * channels**2 / (2 * channels + 6)) for part in _PARTS}, reverse=True)
            lost = _lost([*_others(channels), *(Option("cp", (rank,)) for rank in ranks)], channels, known)
            others = [
                _point(f"{one.kind} {one.ranks[-1]}", _convs(one, channels), lost[one], folder) for one in _others(channels)
            ]
            for rank in ranks:
                option = Option("cp", (rank,))
                found = _point(f"{rank}", _convs(option, channels), lost[option], folder)
                best = min((one for one in others if one.speed >= found.speed), key=lambda one: one.lost, default=None)
                better += best is None or found.lost < best.lost
                rows.append((channels, *found.told, *(best.told if best else ("none", "", ""))))
                print(*rows[-1], flush=True)
    text = (
        f"3×3 convolutions of {_MODEL}, in the mean over {_LAYERS} of each number of channels: the part of the outputs' energy "
        "that is lost on images that nothing was fitted to, and how many times as fast as the convolution the form is, by CPU "
        "time on one thread; in brackets its part of the multiply-accumulates. Beside each rank of CP stands what loses least "
        f"of the other forms of `factorize`, at {len(_PARTS)} ranks each, of those that are at least as fast; CP is tried only "
        f"with `factorize.cp=true`. It loses less in {better} of {len(rows)} rows."
    )
    header = ("channels", "CP rank", "speed", "lost", "another form", "speed", "lost")
    common.publish("cp", "The CP form of convolutions", [text, common.table(header, rows)], {"rows": rows}, options)


def _rounded(rank: float) -> int:
    return max(_STEP, round(rank / _STEP) * _STEP)


def _others(channels: int) -> list[Option]:
    """The other forms at ranks of these parts of the multiply-accumulates."""
    found = []
    for part in _PARTS:
        macs = part * 9 * channels**2
        tucker = _rounded((np.sqrt(channels**2 + 9 * macs) - channels) / 9)
        found.append(Option("channel", (_rounded(macs / (10 * channels)),)))
        found.append(Option("spatial", (_rounded(macs / (6 * channels)),)))
        found.append(Option("tucker", (tucker, tucker)))
    return [*dict.fromkeys(found)]


def _convs(option: Option, channels: int) -> list[_Conv]:
    r = option.ranks[-1]
    if option.kind == "channel":
        return [(channels, r, (3, 3), 1), (r, channels, (1, 1), 1)]
    if option.kind == "spatial":
        return [(channels, r, (3, 1), 1), (r, channels, (1, 3), 1)]
    if option.kind == "cp":
        return [(channels, r, (1, 1), 1), (r, r, (3, 1), r), (r, r, (1, 3), r), (r, channels, (1, 1), 1)]
    return [(channels, r, (1, 1), 1), (r, r, (3, 3), 1), (r, channels, (1, 1), 1)]


def _lost(offered: Sequence[Option], channels: int, known: Sequence[tuple[Array, Array, Array]]) -> dict[Option, float]:
    """What each form loses, in the mean."""
    sizes = Sizes(1, channels, channels, (3, 3), (1, 1))
    made = [factorize(m[np.newaxis], gram[np.newaxis], sizes, offered) for m, gram, _ in known]

    def lost(option: Option) -> float:
        left = [(m - one.product(option)[0], m, other) for one, (m, _, other) in zip(made, known, strict=True)]
        return float(np.mean([energy(error, other) / energy(m, other) for error, m, other in left]))

    return {option: lost(option) for option in offered}


def _point(label: str, form: Sequence[_Conv], lost: float, folder: str) -> Point:
    channels = form[0][0]
    whole: list[_Conv] = [(channels, channels, (3, 3), 1)]
    return Point(label, _macs(form) / _macs(whole), _speed(Path(folder), whole, form, channels, _PIXELS[channels]), lost)


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
        limit_seconds=0.5,
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
