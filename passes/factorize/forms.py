"""The forms that a layer's weight can take as a product of smaller ones, what each costs, and the best factors for each rank.

    matrix    x W                -> (x A) B                                             r (k + n)
    channel   kh x kw, i -> o    -> kh x kw, i -> r;   1 x 1, r -> o       (by group)   r (i kh kw + o)
    spatial   kh x kw, i -> o    -> kh x 1, i -> r;    1 x kw, r -> o                   r (i kh s + o kw)
    tucker    kh x kw, i -> o    -> 1 x 1, i -> q;     kh x kw, q -> r;
                                    1 x 1, r -> o                                   q i s^2 + q r kh kw + r o
    cp        kh x kw, i -> o    -> 1 x 1, i -> r;     kh x 1 and 1 x kw, each
                                    channel by itself; 1 x 1, r -> o                r (i s^2 + kh s + kw + o)

in multiply-accumulates for an output position, s the stride. (Zhang et al. 2016 and Jaderberg et al. 2014 for the second and
the third; Kim et al. 2016 for Tucker-2.) The first factor is the best one for the layer's inputs as the form shows them
(``decompose``); the second then minimizes the error of the layer's outputs by least squares on all of G:

    B = (P^T G P)^-1 P^T G M,     loss = 1 - trace(B^T P^T G M) / trace(M^T G M),     P: the first factor as a map of patches

The P of a smaller rank is a part of that of a larger one, so one product with G serves all ranks.

CP has no closed form (``cp``): where asked for, of small layers alone, at few ranks (docs/cp.md has what it gives).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from graphopt.contracts import Array

from . import cp
from .decompose import RIDGE, Factors, decompose
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
_NEGLIGIBLE = 1e-9


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


# ------------------------------------------------------------------------------------------------------------- factors


@dataclass
class Factored:
    """A layer's factors in every form that is offered.

    ``loss`` by option: the part of the outputs' energy that is lost. ``nested``: A [group, k, R] and B [group, R, n], whose
    first r columns and rows are the factors of rank r. ``fitted`` by option: factors that each rank has its own of.
    ``spectra``: singular values of what is decomposed first, the largest as 1, up to the largest rank that is offered.
    """

    sizes: Sizes
    loss: dict[Option, float] = field(default_factory=dict)
    nested: tuple[Array, Array] | None = None
    fitted: dict[Option, tuple[Array, ...]] = field(default_factory=dict)
    spectra: dict[Kind, Array] = field(default_factory=dict)

    def parts(self, option: Option) -> tuple[Array, ...]:
        """The factors' weights as matrices.

        [group, k, r] and [group, r, n]; spatial [i kh, r] and [r kw, o]; Tucker [i, q], [q kh kw, r] and [r, o];
        CP [i, r], [kh, r], [kw, r] and [r, o].
        """
        if option in self.fitted:
            return self.fitted[option]
        assert self.nested is not None
        (rank,) = option.ranks
        return self.nested[0][:, :, :rank], self.nested[1][:, :rank]

    def product(self, option: Option) -> Array:
        """The factors multiplied [group, k, n]."""
        return product(self.sizes, option, self.parts(option))


def factorize(matrix: Array, grams: Array | None, sizes: Sizes, offered: Sequence[Option]) -> Factored:
    """The best factors of ``matrix`` [group, k, n] for every option; ``grams`` [group, k, k]: second moments of the inputs."""
    made = Factored(sizes)
    by_kind: dict[Kind, list[Option]] = {}
    for option in offered:
        by_kind.setdefault(option.kind, []).append(option)
    for kind, some in by_kind.items():
        if kind in {"matrix", "channel"}:
            _nested(made, matrix, grams, some)
            continue
        gram = _ridged(None if grams is None else grams[0], sizes.width)
        if kind == "cp":
            _by_descent(made, matrix[0].astype(np.float64), gram, some)
        else:
            _by_least_squares(made, matrix[0].astype(np.float64), gram, kind, some)
    return made


def _nested(made: Factored, matrix: Array, grams: Array | None, offered: Sequence[Option]) -> None:
    most = max(option.ranks[0] for option in offered)
    found = [decompose(part, None if grams is None else grams[group], most) for group, part in enumerate(matrix)]
    made.nested = np.stack([one.a for one in found]), np.stack([one.b for one in found])
    made.spectra[offered[0].kind] = _spectrum(found)
    for option in offered:
        made.loss[option] = float(np.mean([one.loss(option.ranks[0]) for one in found]))


def _by_least_squares(made: Factored, m: Array, gram: Array, kind: Kind, offered: Sequence[Option]) -> None:
    sizes = made.sizes
    product_ = gram @ m
    energy = float(np.vdot(m, product_))
    most = max(option.ranks[0] for option in offered)
    reduced = _first_factor(m, gram, sizes, kind, most)
    made.spectra[kind] = _spectrum([reduced])
    first = reduced.a
    p = as_map(first, sizes, kind)  # [k, most, taps]
    taps = p.shape[2]
    p = p.reshape(len(m), -1)
    inner, right = p.T @ (gram @ p), p.T @ product_
    for option in offered:
        size = option.ranks[0] * taps
        k = inner[:size, :size]
        second = np.linalg.solve(k + np.eye(size) * (_NEGLIGIBLE * np.trace(k) / size), right[:size])
        kept = first[:, : option.ranks[0]]
        if kind == "spatial":
            parts: tuple[Array, ...] = (kept, second)
            saved = float(np.vdot(second, right[:size]))
        else:
            values, vectors = np.linalg.eigh(second.T @ right[:size])
            v = vectors[:, ::-1][:, : option.ranks[1]]
            parts = (kept, second @ v, v.T)
            saved = float(np.sum(values[::-1][: option.ranks[1]]))
        made.loss[option] = min(1.0, max(0.0, 1 - saved / energy)) if energy > 0 else 0.0
        made.fitted[option] = tuple(part.astype(np.float32) for part in parts)


def _by_descent(made: Factored, m: Array, gram: Array, offered: Sequence[Option]) -> None:
    sizes = made.sizes
    energy = float(np.vdot(m, gram @ m))
    for option in offered:
        parts = cp.fit(m, gram, (sizes.inputs, *_kernel2(sizes)), option.ranks[0])
        left = m - cp.product(parts)
        made.loss[option] = min(1.0, float(np.vdot(left, gram @ left)) / energy) if energy > 0 else 0.0
        made.fitted[option] = parts


def _spectrum(found: Sequence[Factors]) -> Array:
    """Singular values, of groups in the mean; the largest as 1."""
    values = np.mean([np.sqrt(np.maximum(-np.diff(one.energy), 0)) for one in found], axis=0)
    return np.asarray(values / max(float(values.max(initial=0.0)), _NEGLIGIBLE))


def _first_factor(m: Array, gram: Array, sizes: Sizes, kind: Kind, rank: int) -> Factors:
    """What the inputs are reduced to: ``a`` is [i kh, rank] or [i, rank]."""
    i, (kh, kw), o = sizes.inputs, _kernel2(sizes), sizes.outputs
    taps = m.reshape(i, kh, kw, o)
    moments = gram.reshape(i, kh, kw, i, kh, kw)
    if kind == "spatial":
        return decompose(taps.reshape(i * kh, kw * o), np.einsum("ahwbgw->ahbg", moments).reshape(i * kh, i * kh), rank)
    return decompose(taps.reshape(i, kh * kw * o), np.einsum("ahwbhw->ab", moments), rank)


def as_map(first: Array, sizes: Sizes, kind: Kind) -> Array:
    """The first factor as a map from patches [k] to what the second one reads [rank, taps]."""
    i, (kh, kw) = sizes.inputs, _kernel2(sizes)
    r = first.shape[1]
    if kind == "spatial":
        return np.asarray(np.einsum("ahr,wv->ahwrv", first.reshape(i, kh, r), np.eye(kw)).reshape(-1, r, kw))
    return np.asarray(np.einsum("ar,xy->axry", first, np.eye(kh * kw)).reshape(-1, r, kh * kw))


def product(sizes: Sizes, option: Option, parts: tuple[Array, ...]) -> Array:
    """Factors multiplied [group, k, n]."""
    if option.kind in {"matrix", "channel"}:
        return np.asarray(np.matmul(parts[0], parts[1]))
    if option.kind == "cp":
        return cp.product(parts)[np.newaxis]
    p = as_map(parts[0], sizes, option.kind).reshape(sizes.width, -1)
    second = parts[1] if len(parts) == 2 else parts[1] @ parts[2]
    return np.asarray((p @ second)[np.newaxis])


def _kernel2(sizes: Sizes) -> tuple[int, int]:
    """A kernel of any number of axes as two: what is not the first is one."""
    return sizes.kernel[0], math.prod(sizes.kernel[1:])


def _ridged(gram: Array | None, k: int) -> Array:
    """Second moments of mean diagonal 1 with the ridge that ``decompose`` adds; the unit matrix when there are none."""
    scale = 0.0 if gram is None else float(np.trace(gram)) / k
    if gram is None or scale <= 0:
        return np.eye(k)
    return gram / scale + RIDGE * np.eye(k)
