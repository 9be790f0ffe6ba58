"""From "these axes make that one" to "these ids go together".

A product flat = (a, b, ...) can only lose a block: whole slices along one axis. That axis is chosen here, for all products of
a model, and the others are locked:

    flat[.., i, ..]  together with  axis[i]          for the chosen axis
    locked                                           the other axes

A locked element of flat locks the indices that it stands at. So mostly one axis is left to choose: the channel, when positions
are flattened; the filter's group, when a convolution is depthwise. Where two are left (heads or their dimension; groups or
channels in each), the one goes that another product has chosen, then one that is not contracted between two activations
(heads rather than the dimension of queries and keys), then the longer one: finer steps.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import numpy as np
import numpy.typing as npt

from .analysis import Product
from .ids import FREE, Ids, UnionFind


def identify(union: UnionFind, products: Sequence[Product]) -> None:
    """Products of the same axes are the same channels, and the same channels taken apart alike have the same axes.

    Until nothing changes: what is split into heads and merged again has its channels back.
    """
    while True:
        changed = False
        by_axes: dict[tuple[bytes, ...], Ids] = {}
        by_flat: dict[tuple[object, ...], tuple[Ids, ...]] = {}
        for product in products:
            sizes = [len(ids) for ids in product.axes]
            roots = [union.find(ids) for ids in product.axes]
            order = sorted(range(len(roots)), key=lambda axis: int(roots[axis][0]))
            flat = product.flat.reshape(sizes).transpose(order).reshape(-1)
            known = by_axes.setdefault(tuple(roots[axis].tobytes() for axis in order), flat)
            changed |= union.same(known, flat)
            axes = by_flat.setdefault((union.find(product.flat).tobytes(), *sizes), product.axes)
            for one, other in zip(axes, product.axes, strict=True):
                changed |= union.same(one, other)
        if not changed:
            return


def resolve(union: UnionFind, products: Sequence[Product], paired: Iterable[Ids], locked: Callable[[str], int]) -> None:
    """Choose an axis of each product. ``locked`` numbers the reason given to the axes that are not chosen."""
    avoid, chosen = list(paired), [np.empty(0, np.int64)]
    pending = list(products)
    while pending:
        waiting = []
        for product in pending:
            free = _free(union, product)
            if len(free) > 1:
                waiting.append(product)
            else:
                _choose(union, product, free, chosen, locked)
        if len(waiting) == len(pending):
            product = waiting.pop(0)
            _choose(union, product, [_preferred(union, product, chosen, avoid)], chosen, locked)
        pending = waiting


def _free(union: UnionFind, product: Product) -> list[int]:
    """Axes along which something could be removed; locks of the product are passed on to its axes on the way."""
    why = union.why(product.flat).reshape([len(ids) for ids in product.axes])
    if (why < FREE).any():
        for axis, ids in enumerate(product.axes):
            least = why.min(axis=tuple(other for other in range(why.ndim) if other != axis))
            for reason in np.unique(least[least < FREE]):
                union.lock(ids[least == reason], int(reason))
    return [axis for axis, ids in enumerate(product.axes) if (union.why(ids) == FREE).any()]


def _preferred(union: UnionFind, product: Product, chosen: Sequence[Ids], avoid: Sequence[Ids]) -> int:
    def among(ids: Ids, others: Sequence[Ids]) -> bool:
        return bool(len(others)) and bool(np.isin(union.find(ids), union.find(np.concatenate(others))).any())

    def merit(axis: int) -> tuple[bool, bool, int, int]:
        ids = product.axes[axis]
        free: npt.NDArray[np.bool_] = union.why(ids) == FREE
        return among(ids, chosen), not among(ids, avoid), int(free.sum()), -axis

    return max((axis for axis in range(len(product.axes)) if (union.why(product.axes[axis]) == FREE).any()), key=merit)


def _choose(union: UnionFind, product: Product, axes: Sequence[int], chosen: list[Ids], locked: Callable[[str], int]) -> None:
    """Make slices along the one axis units, and lock the others; with no axis to choose, all of it."""
    if not axes:
        whole = union.why(product.axes[0])
        union.lock(product.flat, int(whole.min()))
        return
    axis = axes[0]
    sizes = [len(ids) for ids in product.axes]
    slices = np.moveaxis(product.flat.reshape(sizes), axis, 0).reshape(sizes[axis], -1)
    union.same(slices.reshape(-1), np.repeat(product.axes[axis], slices.shape[1]))
    chosen.append(product.axes[axis])
    for other, ids in enumerate(product.axes):
        if other != axis:
            reason = union.why(ids)
            union.lock(ids[reason == FREE], locked("it is merged with an axis that loses whole slices, so this one stays"))
