"""Second moments of what layers read, pack by pack, as memory allows.

Of a layer whose bias can be changed they are taken about the mean: what is lost on average the bias makes up for.

An embedding reads rows that are one-hot, so its moments are diagonal: f, how often each row is looked up on the data, and once
more, for rows that the data lack. Where its weight is the last layer's too (tied: W [rows, k] is multiplied from behind, by
inputs with moments G) the sum of both errors, each as a part of its own whole, has no closed form; the product that is nearest
to it in kind has one, and loses some per cent more:

    sum over rows of (W - W')_v (f_v + G) (W - W')_v^T      ~      rows weigh f + 1, columns 1 + G, all of mean 1
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from graphopt import observe, sizes
from graphopt.contracts import Array, Context
from graphopt.dataset import Dataset
from graphopt.observe import sweeps

from .forms import Sizes
from .layers import Layer
from .write import bias_of

_ROWS_PER_WEIGHT = 20
"""Rows for each element of a row, at least; more than these are drawn from."""
_LEAST_ROWS = 16384
_PACK_BYTES = 256 << 20
"""Second moments that are held at a time."""


@dataclass(frozen=True)
class Moments:
    """Of a layer's inputs: second moments [group, k, k] (covariances where the bias can be changed) and means [group, k].

    Of one that only looks rows up the diagonal of the moments [1, k].
    """

    grams: Array | None = None
    means: Array | None = None
    outputs: Array | None = None
    """What an error of each output counts [n]; None: all alike."""


def packs(some: Sequence[Layer]) -> Iterator[list[Layer]]:
    """Layers whose second moments fit in memory together."""

    def size(layer: Layer) -> int:
        width = Sizes.of(layer).width
        return 8 * layer.group * width * (1 if all(use.node.op_type == "Gather" for use in layer.uses) else width)

    return observe.packs(some, size, _PACK_BYTES)


def moments(model: ir.Model, pack: Sequence[Layer], data: Dataset, context: Context) -> dict[str, Moments]:
    """By name of the layer; empty ones where what it reads cannot be observed.

    Raises:
        DataError, ModelError: As ``Context.observe``.
    """
    can = observe.observable(model)
    wanted: dict[str, dict[observe.Gram, list[observe.Grams]]] = {}
    asked: dict[str, list[tuple[str, observe.Gram]]] = {}
    for layer in pack:
        rows = -(-max(_LEAST_ROWS, _ROWS_PER_WEIGHT * Sizes.of(layer).width) // data.size)
        for use in layer.uses:
            name = use.reads.name or ""
            turned = use.node.op_type == "Gemm" and bool(use.node.attributes.get_int("transA", 0))
            if use.node.op_type != "Gather" and name in can and not turned:
                gram = observe.Gram(layer.patches(), rows)
                wanted.setdefault(name, {})[gram] = []
                asked.setdefault(layer.name, []).append((name, gram))
    looked_up = _looked_up(model, pack, data, context)
    if not wanted:
        return {layer.name: _joined(layer, [], looked_up) for layer in pack}
    found = observe.collect(
        model,
        {name: [*grams] for name, grams in wanted.items()},
        data=data,
        open_session=context.open_session,
        progress=context.progress,
        samples=data.size,
    )
    results = {(name, gram): result for name, grams in wanted.items() for gram, result in zip(grams, found[name], strict=True)}
    return {layer.name: _joined(layer, [results[key] for key in asked.get(layer.name, [])], looked_up) for layer in pack}


def _looked_up(model: ir.Model, pack: Sequence[Layer], data: Dataset, context: Context) -> dict[str, Array]:
    """How often each row is looked up [rows], by the name of the value that says which; none of values of unknown type."""
    known, facts = sweeps.values(model), sizes.infer(model)
    rows = {use.reads.name or "": layer.shape[0] for layer in pack for use in layer.uses if use.node.op_type == "Gather"}
    types = {name: value.type or (facts[value].type if value in facts else None) for name, value in known.items()}
    rows = {name: count for name, count in rows.items() if types.get(name) is not None}
    if not rows:
        return {}
    counts = {name: np.zeros(count) for name, count in rows.items()}
    given = {value.name for value in model.graph.inputs}
    inner = [name for name in rows if name not in given]
    part = sweeps.part(model, inner, {name: kind for name in inner if (kind := types[name]) is not None})
    with context.open_session(part) if inner else nullcontext() as session:
        for batch in data.batches():
            seen = {**batch.feed, **(session.run(batch.feed) if session is not None else {})}
            for name, count in rows.items():
                counts[name] += np.bincount(seen[name].reshape(-1).astype(np.int64) % count, minlength=count)
    return counts


def _joined(layer: Layer, found: Sequence[observe.Grams], looked_up: Mapping[str, Array]) -> Moments:
    """Moments of all uses together."""
    names = [use.reads.name or "" for use in layer.uses if use.node.op_type == "Gather"]
    counts = [looked_up[name] for name in names if name in looked_up]
    if not counts:
        return _centred(layer, found) if found else Moments()
    often = np.sum(counts, axis=0) + 1
    often /= often.mean()
    if not found:
        return Moments() if layer.transposed else Moments(often[np.newaxis])
    gram = np.sum([one.products for one in found], axis=0)
    gram /= max(float(np.trace(gram[0])) / gram.shape[1], np.finfo(float).tiny)
    if layer.transposed:
        return Moments(gram + np.eye(gram.shape[1]), outputs=often + 1)
    return Moments(gram + np.diag(often))


def _centred(layer: Layer, found: Sequence[observe.Grams]) -> Moments:
    """Moments of all uses together; of one whose bias can be changed about the mean, which the bias makes up for."""
    if len(found) == 1 and len(layer.uses) == 1 and bias_of(layer, layer.uses[0]) is not None:
        (one,) = found
        means = one.sums / max(one.count, 1)
        outer = means[:, :, np.newaxis] * means[:, np.newaxis, :]
        return Moments(one.products - one.count * outer, means)
    return Moments(np.sum([one.products for one in found], axis=0))
