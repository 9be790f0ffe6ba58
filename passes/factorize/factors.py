"""The best factors of a layer for every form and rank that is offered (``forms``), from one decomposition a form.

The first factor is the best one for the layer's inputs as the form shows them
(``decompose``); the second then minimizes the error of the layer's outputs by least squares on all of G:

    B = (P^T G P)^-1 P^T G M,     loss = 1 - trace(B^T P^T G M) / trace(M^T G M),     P: the first factor as a map of patches

The P of a smaller rank is a part of that of a larger one, so one product with G serves all ranks.

CP has no closed form (``cp``): where asked for, of small layers alone, at few ranks (docs/cp.md has what it gives).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from graphopt.contracts import Array

from . import cp
from .decompose import RIDGE, Factors, decompose
from .forms import Kind, Option, Sizes

_NEGLIGIBLE = 1e-9


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


def factorize(
    matrix: Array, grams: Array | None, sizes: Sizes, offered: Sequence[Option], outputs: Array | None = None
) -> Factored:
    """The best factors of ``matrix`` [group, k, n] for every option.

    Args:
        matrix: So that the layer gives x @ matrix.
        grams: Second moments of the inputs [group, k, k], or their diagonals [group, k]; None: all directions alike.
        sizes: Of the layer.
        offered: The options.
        outputs: What an error of each output counts [n], for matrices alone; None: all alike.
    """
    made = Factored(sizes)
    by_kind: dict[Kind, list[Option]] = {}
    for option in offered:
        by_kind.setdefault(option.kind, []).append(option)
    for kind, some in by_kind.items():
        if kind in {"matrix", "channel"}:
            _nested(made, matrix, grams, some, np.ones(sizes.outputs) if outputs is None else np.sqrt(outputs))
            continue
        gram = _ridged(None if grams is None else grams[0], sizes.width)
        if kind == "cp":
            _by_descent(made, matrix[0].astype(np.float64), gram, some)
        else:
            _by_least_squares(made, matrix[0].astype(np.float64), gram, kind, some)
    return made


def _nested(made: Factored, matrix: Array, grams: Array | None, offered: Sequence[Option], counts: Array) -> None:
    most = max(option.ranks[0] for option in offered)
    scaled = matrix * counts.astype(matrix.dtype)
    found = [decompose(part, None if grams is None else grams[group], most) for group, part in enumerate(scaled)]
    made.nested = np.stack([one.a for one in found]), np.stack([(one.b / counts).astype(one.b.dtype) for one in found])
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
        parts = cp.fit(m, gram, (sizes.inputs, *sizes.kernel2), option.ranks[0])
        left = m - cp.product(parts)
        made.loss[option] = min(1.0, float(np.vdot(left, gram @ left)) / energy) if energy > 0 else 0.0
        made.fitted[option] = parts


def _spectrum(found: Sequence[Factors]) -> Array:
    """Singular values, of groups in the mean; the largest as 1."""
    values = np.mean([np.sqrt(np.maximum(-np.diff(one.energy), 0)) for one in found], axis=0)
    return np.asarray(values / max(float(values.max(initial=0.0)), _NEGLIGIBLE))


def _first_factor(m: Array, gram: Array, sizes: Sizes, kind: Kind, rank: int) -> Factors:
    """What the inputs are reduced to: ``a`` is [i kh, rank] or [i, rank]."""
    i, (kh, kw), o = sizes.inputs, sizes.kernel2, sizes.outputs
    taps = m.reshape(i, kh, kw, o)
    moments = gram.reshape(i, kh, kw, i, kh, kw)
    if kind == "spatial":
        return decompose(taps.reshape(i * kh, kw * o), np.einsum("ahwbgw->ahbg", moments).reshape(i * kh, i * kh), rank)
    return decompose(taps.reshape(i, kh * kw * o), np.einsum("ahwbhw->ab", moments), rank)


def as_map(first: Array, sizes: Sizes, kind: Kind) -> Array:
    """The first factor as a map from patches [k] to what the second one reads [rank, taps]."""
    i, (kh, kw) = sizes.inputs, sizes.kernel2
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


def _ridged(gram: Array | None, k: int) -> Array:
    """Second moments of mean diagonal 1 with the ridge that ``decompose`` adds; the unit matrix when there are none."""
    scale = 0.0 if gram is None else float(np.trace(gram)) / k
    if gram is None or scale <= 0:
        return np.eye(k)
    return gram / scale + RIDGE * np.eye(k)
