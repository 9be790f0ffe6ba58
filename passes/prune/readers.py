"""The layers that read a group of channels, with second moments of what they read: collected pack by pack, as memory allows."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from graphopt.axes import Group
from graphopt.contracts import Array, Context
from graphopt.observe import ChannelZeros, Gram, Grams, observable
from graphopt.observe import packs as packed
from graphopt.reconstruct import Layer, layers

from .selection import Reader

_PACK_BYTES = 384 << 20
_LARGEST = 2400
"""Elements of a row at most (46 MB of moments, seconds to invert): what reads more is not asked; a group is then weighed by
the weights that make it."""
_INDEPENDENT = 32
"""Positions of a sample that count as rows of their own: neighbours are alike."""
_ROWS = 20000
"""Rows that moments are made of, or a few for each element of a row."""


@dataclass(frozen=True)
class Reading:
    """A layer that reads units of a group; ``units`` [k] as in ``Reader``."""

    layer: Layer
    units: Array
    value: str
    gram: Gram

    @property
    def bytes(self) -> int:
        """Of the moments."""
        return 8 * self.layer.groups * len(self.units) ** 2


def packs(
    model: ir.Model, groups: Mapping[str, Group], context: Context, samples: int
) -> Iterator[dict[str, list[tuple[Reading, list[Reader]]]]]:
    """Groups by name, a few at a time, each with the layers that read it and can be weighed, and these with their moments.

    Raises:
        DataError, ModelError: As ``Context.observe``.
    """
    assert context.data is not None, "the pass says that it needs data"
    known, names = layers(model), observable(model)
    size = min(samples, context.data.size)
    found = {name: [*_readings(group, known, names, size)] for name, group in groups.items()}
    for several in packed(found, lambda name: sum(reading.bytes for reading in found[name]), _PACK_BYTES):
        pack = {name: found[name] for name in several}
        wanted: dict[str, list[Gram]] = {}
        for reading in (reading for readings in pack.values() for reading in readings):
            if reading.gram not in wanted.setdefault(reading.value, []):
                wanted[reading.value].append(reading.gram)
        results = context.observe(model, wanted, samples=samples) if wanted else {}
        moments = {(name, gram): one for name, grams in wanted.items() for gram, one in zip(grams, results[name], strict=True)}
        yield {
            name: [(one, _readers(one, moments[one.value, one.gram], size)) for one in readings]
            for name, readings in pack.items()
        }


def active(model: ir.Model, groups: Mapping[str, Group], context: Context, samples: int) -> dict[str, Array]:
    """By name of a group, the part of what layers read of each unit that is not zero [size]; no entry where it is all of it.

    Raises:
        DataError, ModelError: As ``Context.observe``.
    """
    known, names = layers(model), observable(model)
    read: dict[str, list[tuple[str, ChannelZeros, Array]]] = {}
    wanted: dict[str, list[ChannelZeros]] = {}
    for name, group in groups.items():
        for use in group.consumers:
            layer = known.get(use.node)
            if layer is not None and use.value is layer.weight and use.axis == layer.axis and layer.reads.name in names:
                value, observer = layer.reads.name or "", ChannelZeros(-1 if layer.patches is None else 1)
                read.setdefault(name, []).append((value, observer, np.tile(use.units, layer.groups)))
                wanted[value] = [*dict.fromkeys([*wanted.get(value, []), observer])]
    results = context.observe(model, wanted, samples=samples) if wanted else {}
    found = {}
    for name, reads in read.items():
        zeros, count = np.zeros(groups[name].size), np.zeros(groups[name].size)
        for value, observer, units in reads:
            share, within = results[value][wanted[value].index(observer)].share, units >= 0
            zeros += np.bincount(units[within], share[within], len(zeros))
            count += np.bincount(units[within], minlength=len(zeros))
        if zeros.any():
            found[name] = 1 - zeros / np.maximum(count, 1)
    return found


def _readings(group: Group, known: Mapping[ir.Node, Layer], names: frozenset[str], samples: int) -> Iterator[Reading]:
    for use in group.consumers:
        layer = known.get(use.node)
        if layer is None or use.value is not layer.weight or use.axis != layer.axis or layer.reads.name not in names:
            continue
        units = np.repeat(use.units, layer.kernel)
        if len(units) <= _LARGEST:
            rows = max(_ROWS, 10 * len(units))
            yield Reading(layer, units, layer.reads.name, Gram(layer.patches, rows=-(-rows // samples)))


def _readers(reading: Reading, moments: Grams, samples: int) -> list[Reader]:
    matrix = reading.layer.matrix()
    independent = min(moments.count, samples * _INDEPENDENT)
    return [
        Reader.of(part, products, sums, moments.count, independent, reading.units)
        for part, products, sums in zip(matrix, moments.products, moments.sums, strict=True)
    ]
