"""What it is to the model's outputs when one group is pruned, or one block left out, by itself.

    damage = |y - y'|^2 / |y|^2        y the outputs, y' those with the one change

A group is pruned by about half, with the best weights of its readers in closed form; a block's branch is replaced by its mean.
Both on samples that nothing was fitted to, where there are enough. The error of a group's other settings is in proportion.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

import numpy as np
import onnx_ir as ir

from graphopt import axes, sensitivity
from graphopt import model as models
from graphopt.contracts import Array, Context, Setting, Site
from graphopt.dataset import Batch, Dataset, Span
from graphopt.observe import ChannelMean, ChannelMoments, observable
from graphopt.reconstruct import layers

from .blocks import Block
from .selection import Selection

if TYPE_CHECKING:
    from graphopt.contracts import Session

_T = TypeVar("_T")
_SAMPLES = 96
"""On which the damage of each site is measured; of few data a third. Nothing is fitted to them."""


@dataclass(frozen=True)
class Alone:
    """Makes models that are changed at one site; ``fitted`` as the engine has it, of the settings in the middle."""

    model: ir.Model
    blocks: Mapping[str, Block]
    selections: Mapping[str, Selection]
    fitted: Mapping[str, Mapping[str, list[tuple[Array, Array]]]]

    def pruned(self, name: str, count: int) -> ir.Model:
        """Without the first ``count`` units of a group."""
        from .structured import by_name

        candidate = models.clone(self.model)
        found = axes.analyse(candidate)
        group = by_name(found)[name]
        gone = self.selections[name].order[:count]
        made = {use.value.name: ~np.isin(use.units, gone) for use in group.producers}
        axes.remove(candidate, found, {group: gone})
        for layer in layers(candidate).values() if name in self.fitted else ():
            parts = self.fitted[name].get(layer.weight.name or "")
            if not parts or (len(parts) > 1 and layer.weight.name in made):
                continue
            weights, shift = np.stack([one for one, _ in parts]), np.concatenate([added for _, added in parts])
            if len(shift) != len(layer.offset()):  # the layer makes units of the group too
                stay = made[layer.weight.name]
                weights, shift = weights[:, :, stay], shift[stay]
            layer.put(weights, layer.offset() + shift)
        return candidate

    def without(self, name: str, mean: Array | None) -> ir.Model:
        """With the mean [channels, 1, ...] of a block's branch, or 0, in its place."""
        candidate = models.clone(self.model)
        block = self.blocks[name]
        join = next(node for node in candidate.graph if node.outputs[0].name == block.join.outputs[0].name)
        dtype = block.branch.dtype or ir.DataType.FLOAT
        array = np.zeros(()) if mean is None else mean
        value = ir.Value(name=f"{block.branch.name} mean", const_value=ir.tensor(array.astype(dtype.numpy()), dtype=dtype))
        value.shape, value.type = ir.Shape(array.shape), ir.TensorType(dtype)
        candidate.graph.register_initializer(value)
        join.replace_input_with(block.index, value)
        for node in reversed(candidate.graph):
            if not any(output.uses() or output.is_graph_output() for output in node.outputs):
                candidate.graph.remove(node, safe=True)
        return candidate


def measured(alone: Alone, sites: Sequence[Site], context: Context) -> dict[Site, float]:
    """The damage of each site, at its setting in the middle."""
    assert context.data is not None, "the pass says that it needs data"
    means = _means(alone, context)

    def open_with(site: Site, setting: Setting) -> Session:
        if site.name in alone.blocks:
            return context.open_session(alone.without(site.name, means.get(site.name)))
        assert isinstance(setting.value, int)
        return context.open_session(alone.pruned(site.name, setting.value))

    with context.open_session(alone.model) as session:
        settings = [(site, middle(site.settings)) for site in sites]
        samples = _spare(context.data)
        data = _last(context.data, samples)
        return {
            one.site: one.damage for one in sensitivity.alone(settings, open_with, session, data, context.progress, samples)
        }


def middle(values: Sequence[_T]) -> _T:
    """The one that is tried to see what a group is to the outputs."""
    return values[len(values) // 2]


def fitted_on(data: Dataset, samples: int) -> int:
    """Samples on which units are weighed: others are left to measure the damage on."""
    return max(1, min(samples, data.size - _spare(data)))


def _spare(data: Dataset) -> int:
    return max(1, min(_SAMPLES, data.size // 3))


def _means(alone: Alone, context: Context) -> dict[str, Array]:
    """What each block adds in the mean, by channel, to broadcast."""
    names = observable(alone.model)
    known = layers(alone.model)
    wanted: dict[str, list[ChannelMean]] = {}
    axis = {}
    for name, block in alone.blocks.items():
        made = block.branch.producer()
        if made is not None and block.branch.name in names:
            axis[name] = 1 if made in known and known[made].patches is not None else -1
            wanted[block.branch.name] = [ChannelMean(axis[name])]
    found = context.observe(alone.model, wanted, samples=_SAMPLES) if wanted else {}
    means = {}
    for name in axis:
        block = alone.blocks[name]
        [moments] = found[block.branch.name or ""]
        assert isinstance(moments, ChannelMoments)
        made = block.branch.producer()
        layer = None if made is None else known.get(made)
        spatial = len(layer.patches.kernel) if layer is not None and layer.patches is not None else 0
        means[name] = moments.mean.reshape(-1, *[1] * spatial)
    return means


def _last(data: Dataset, samples: int) -> Dataset:
    """The last batches, of so many samples at least: where there are enough data, nothing was fitted to them."""
    place = max((place for place, (start, _) in enumerate(data.spans) if data.size - start >= samples), default=0)
    skipped, offset = data.spans[:place], data.spans[place][0]
    spans = tuple((start - offset, end - offset) for start, end in data.spans[place:])

    def stream(wanted: Sequence[Span]) -> Iterator[Batch]:
        whole = (*skipped, *((start + offset, end + offset) for start, end in wanted))
        return itertools.islice(data.stream(whole), place, None)

    return dataclasses.replace(data, spans=spans, stream=stream)
