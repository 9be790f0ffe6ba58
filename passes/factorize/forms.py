"""The forms that a layer's weight can take as a product of smaller ones, and what each costs.

    matrix    x W                -> (x A) B                                             r (k + n)
    channel   kh x kw, i -> o    -> kh x kw, i -> r;   1 x 1, r -> o       (by group)   r (i kh kw + o)
    spatial   kh x kw, i -> o    -> kh x 1, i -> r;    1 x kw, r -> o                   r (i kh s + o kw)
    tucker    kh x kw, i -> o    -> 1 x 1, i -> q;     kh x kw, q -> r;
                                    1 x 1, r -> o                                   q i s^2 + q r kh kw + r o
    cp        kh x kw, i -> o    -> 1 x 1, i -> r;     kh x 1 and 1 x kw, each
                                    channel by itself; 1 x 1, r -> o                r (i s^2 + kh s + kw + o)

in multiply-accumulates for an output position, s the stride. (Zhang et al. 2016 and Jaderberg et al. 2014 for the second and
the third; Kim et al. 2016 for Tucker-2.)
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from graphopt.contracts import Array, Setting

from .layers import Layer, spatial

Kind = Literal["matrix", "channel", "spatial", "tucker", "cp"]
_STEPS = 14
"""Ranks of a form that are offered at most."""
_CP_STEPS = 5
"""Of CP, each of which is fitted by itself."""
_CP_WIDEST = 640
"""Elements of a patch, up to which CP is fitted: one layer takes seconds then."""
_LEAST_SAVED = 0.05
"""Part of the layer's multiply-accumulates that a rank must save to be offered."""
_VECTOR = 8
"""Numbers in a vector register; ranks of wide layers are multiples of it."""


@dataclass(frozen=True)
class Option:
    """A form at a rank; ``ranks`` are (r,), of Tucker (q, r)."""

    kind: Kind
    ranks: tuple[int, ...]

    @property
    def label(self) -> str:
        """For people."""
        rank = ", ".join(map(str, self.ranks))
        return f"rank {rank}" if self.kind in {"matrix", "channel"} else f"{self.kind} rank {rank}"


@dataclass(frozen=True)
class Sizes:
    """What the costs of a layer depend on."""

    group: int
    inputs: int
    """Of a group."""
    outputs: int
    """Of a group."""
    kernel: tuple[int, ...] = ()
    strides: tuple[int, ...] = ()

    @classmethod
    def of(cls, layer: Layer) -> Sizes:
        """Of a layer."""
        shape = layer.shape
        asked = layer.patches()
        if asked is None:
            k, n = shape[::-1] if layer.transposed else shape
            return cls(1, k, n)
        return cls(layer.group, shape[1], shape[0] // layer.group, asked.kernel, asked.strides)

    @property
    def width(self) -> int:
        """Elements of a patch of one group, k."""
        return self.inputs * math.prod(self.kernel)

    @property
    def kernel2(self) -> tuple[int, int]:
        """A kernel of any number of axes as two: what is not the first is one."""
        return math.prod(self.kernel[:1]), math.prod(self.kernel[1:])

    def cost(self, option: Option, *, strided: bool = True) -> int:
        """Multiply-accumulates for an output position; without strides, the numbers in the weights."""
        area = math.prod(self.strides) if strided else 1
        r = option.ranks[-1]
        if option.kind == "spatial":
            across = self.strides[1] if strided else 1
            return r * (self.inputs * self.kernel[0] * across + self.outputs * self.kernel[1])
        if option.kind == "cp":
            across = self.strides[1] if strided else 1
            return r * (self.inputs * area + self.kernel[0] * across + self.kernel[1] + self.outputs)
        if option.kind == "tucker":
            q = option.ranks[0]
            return q * self.inputs * area + q * r * math.prod(self.kernel) + r * self.outputs
        return self.group * r * (self.width + self.outputs)

    def whole(self, layer: Layer, *, strided: bool = True) -> int:
        """The same of the layer as it is."""
        if not layer.is_pair:
            return self.group * self.width * self.outputs
        kind: Kind = "matrix" if not layer.conv else "spatial" if spatial(layer.uses[0]) else "channel"
        return self.cost(Option(kind, (layer.rank,)), strided=strided)


def options(layer: Layer, rank: int | None = None, multiple: int | None = None, *, cp: bool = False) -> list[Option]:
    """Forms and ranks that cost less than the layer does, from dear to cheap.

    Args:
        layer: One that can be factorized.
        rank: The only rank that is wanted.
        multiple: Ranks are multiples of it; None: of what suits the layer's width.
        cp: Whether CP is among the forms.
    """
    sizes = Sizes.of(layer)
    limit = (1 - _LEAST_SAVED) * sizes.whole(layer)
    if layer.node.op_type == "Gather":
        limit = (1 - _LEAST_SAVED) * sizes.whole(layer, strided=False)
    found: list[Option] = []
    for kind in _kinds(layer, sizes, cp):
        every = [one for one in _ranks(layer, sizes, kind, rank, multiple) if sizes.cost(one) <= limit]
        most = _CP_STEPS if kind == "cp" else _STEPS
        if len(every) > most:
            every = [every[round(place)] for place in np.linspace(0, len(every) - 1, most)]
        found += every
    return sorted(found, key=lambda one: (-sizes.cost(one), one.kind))


def _kinds(layer: Layer, sizes: Sizes, with_cp: bool) -> list[Kind]:
    if not layer.conv:
        return ["matrix"]
    kinds: list[Kind] = ["channel"]
    if sizes.group == 1 and len(sizes.kernel) == 2 and min(sizes.kernel) > 1:
        kinds.append("spatial")
    if sizes.group == 1 and math.prod(sizes.kernel) > 1 and sizes.inputs > 3:
        kinds.append("tucker")
        if with_cp and len(sizes.kernel) == 2 and min(sizes.kernel) > 1 and sizes.width <= _CP_WIDEST:
            kinds.append("cp")
    return kinds


def _ranks(layer: Layer, sizes: Sizes, kind: Kind, rank: int | None, multiple: int | None) -> list[Option]:
    if kind == "tucker":
        if rank is not None:
            return [Option(kind, (min(rank, sizes.inputs), min(rank, sizes.outputs)))]
        parts = [step / 16 for step in range(2, 16)]
        steps = [multiple or _step(size) for size in (sizes.inputs, sizes.outputs)]
        pairs = [
            tuple(
                max(step, round(part * size / step) * step)
                for size, step in zip((sizes.inputs, sizes.outputs), steps, strict=True)
            )
            for part in parts
        ]
        return [Option(kind, pair) for pair in dict.fromkeys(pairs)]
    full = min(sizes.width, sizes.outputs)
    if kind == "spatial":
        full = min(sizes.inputs * sizes.kernel[0], sizes.outputs * sizes.kernel[1])
    elif kind == "cp":
        full = sizes.width * sizes.outputs // sum((sizes.inputs, *sizes.kernel, sizes.outputs))
    if layer.is_pair and kind != "cp":
        full = min(full, layer.rank - 1)
    if rank is not None:
        return [Option(kind, (rank,))] if rank <= full else []
    step = multiple or _step(full)
    return [Option(kind, (r,)) for r in range(step, full + 1, step)]


def _step(full: int) -> int:
    """Of how many ranks is one offered: vectors of wide layers; a 16th of what narrow ones have."""
    return max(1, min(_VECTOR, 1 << max(0, full // 16).bit_length() - 1)) if full >= 16 else 1


def option_of(setting: Setting) -> Option:
    """What a setting of the pass is."""
    assert isinstance(setting.value, Option)
    return setting.value


def zeros(sizes: Sizes, option: Option) -> tuple[Array, ...]:
    """Factors of the shapes that ``Factored.parts`` gives."""
    i, (kh, kw), o, r = sizes.inputs, sizes.kernel2, sizes.outputs, option.ranks
    shapes: Mapping[Kind, Sequence[tuple[int, ...]]] = {
        "spatial": [(i * kh, r[0]), (r[0] * kw, o)],
        "tucker": [(i, r[0]), (r[0] * kh * kw, r[-1]), (r[-1], o)],
        "cp": [(i, r[0]), (kh, r[0]), (kw, r[0]), (r[0], o)],
    }
    whole = [(sizes.group, sizes.width, r[0]), (sizes.group, r[0], o)]
    return tuple(np.zeros(shape, np.float32) for shape in shapes.get(option.kind, whole))
