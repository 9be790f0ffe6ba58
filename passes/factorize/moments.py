"""Second moments of what layers read, pack by pack, as memory allows.

Of a layer whose bias can be changed they are taken about the mean: what is lost on average the bias makes up for.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from graphopt import observe
from graphopt.contracts import Array, Context
from graphopt.dataset import Dataset

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
    """Of a layer's inputs: second moments [group, k, k] (covariances where the bias can be changed) and means [group, k]."""

    grams: Array | None = None
    means: Array | None = None


def packs(some: Sequence[Layer]) -> Iterator[list[Layer]]:
    """Layers whose second moments fit in memory together."""
    return observe.packs(some, lambda layer: 8 * layer.group * Sizes.of(layer).width ** 2, _PACK_BYTES)


def moments(model: ir.Model, pack: Sequence[Layer], data: Dataset, context: Context) -> dict[str, Moments]:
    """By name of the layer; no entry where what it reads cannot be observed.

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
    if not wanted:
        return {}
    found = observe.collect(
        model,
        {name: [*grams] for name, grams in wanted.items()},
        data=data,
        open_session=context.open_session,
        progress=context.progress,
        samples=data.size,
    )
    results = {(name, gram): result for name, grams in wanted.items() for gram, result in zip(grams, found[name], strict=True)}
    by_name = {layer.name: layer for layer in pack}
    return {name: _centred(by_name[name], [results[key] for key in keys]) for name, keys in asked.items()}


def _centred(layer: Layer, found: Sequence[observe.Grams]) -> Moments:
    """Moments of all uses together; of one whose bias can be changed about the mean, which the bias makes up for."""
    if len(found) == 1 and len(layer.uses) == 1 and bias_of(layer, layer.uses[0]) is not None:
        (one,) = found
        means = one.sums / max(one.count, 1)
        outer = means[:, :, np.newaxis] * means[:, np.newaxis, :]
        return Moments(one.products - one.count * outer, means)
    return Moments(np.sum([one.products for one in found], axis=0))
