"""Scales that make a model easier to quantize, channel by channel, without changing what it computes.

A group of channels that can be scaled (``scaling.py``) is divided by s where it is made and multiplied by s in the weights
that read it. For a weight W that reads x, with one scale for the tensor x and, per output channel i, one for a row of W, the
error of output i is to first order that of two independent roundings:

    noise_i(s) = D_x^2 / 12  sum_j W_ij^2 s_j^2  +  sum_j d_ij^2 E[x_j^2] / s_j^2
    D_x = range(x / s) / 255                        d_ij what rounding W_ij s_j to steps of max_j |W_ij s_j| / 127 loses

Candidates, with a_j the largest |x_j| and r_j the largest |W_ij| of channel j, each a part of the largest of its tensor:

    s_j = a_j^alpha / r_j^(1 - alpha)               Xiao et al. 2023, eq. 4; 0 < alpha < 1, more for activations
    s_j = (p_j / r_j)^(1/2)                         Nagel et al. 2019, eq. 11; p_j the largest weight that makes channel j

Each also at half strength, s^(1/2). The noise of output i counts as much as the weights that read it, so that the sum over i
does not depend on how channels were scaled before; per group the candidate with the least mean of log sum_i noise_i over its
readers is taken. Whether the whole is a gain, and whether a weaker one is a larger gain, is then measured.
"""

from __future__ import annotations

import fnmatch
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from graphopt.contracts import Array, Change, Context
from graphopt.graphs import constant, is_overridable, site
from graphopt.observe import ChannelMean, ChannelRange, Observer, observable
from graphopt.targets import Quantization

from . import fake, scaling, scheme
from .scales import FIXED, Factor, Scaling

ALPHAS = (0.25, 0.5, 0.75)
"""Not 1: where every channel fills the range of its tensor, what calibration did not see is cut off in every channel."""
_STRENGTHS = (0.5, 1.0)
_POWERS = (1.0, 0.5, 0.25)
_LARGEST = 2.0**12
_LEAST_GAIN = 0.1
"""dB by which the estimated noise of a group's readers must fall for the group to be scaled."""
_LEAST_MEASURED = 0.2
"""dB that the outputs must gain, on samples that the ranges were not taken from; less is chance."""


@dataclass(frozen=True, eq=False)
class Reader:
    """A node that reads scalable channels in integers, and what calibration saw of them.

    A node without a weight (Add, LeakyRelu, ...) hands the error of its input on: that counts as if its weight were 1.
    """

    node: ir.Node
    weight: Array | None
    """As the model holds it: no copy."""
    columns: Array
    """Classes of the weight's input channels, broadcasting with the weight; without one, of the input's."""
    factors: tuple[Factor, ...]
    """All that scale the weight."""
    channels: Array
    """[C]: classes of the channels of its input."""
    low: Array
    high: Array
    square: Array
    """[C]: least and largest value and mean square of each channel."""
    importance: Array
    """Of an error in each output channel, broadcasting with the weight: the power of the weights that read it."""


@dataclass(frozen=True, eq=False)
class Group:
    """Classes of channels that meet in some tensor, and the weights that read them."""

    classes: Array
    readers: tuple[Reader, ...]

    @property
    def name(self) -> str:
        """What a user can find the group by: the value that its first reader reads."""
        node = self.readers[0].node
        read = node.inputs[0]
        assert read is not None
        return read.name or site(node)

    @property
    def op_types(self) -> frozenset[str]:
        """Operators of the weights."""
        return frozenset(reader.node.op_type for reader in self.readers if reader.weight is not None)


@dataclass(frozen=True, eq=False)
class Chosen:
    """Scales for a group's classes, how they were chosen, and by how many dB the estimated noise of its readers falls."""

    scales: Array
    how: str
    gain: float


def improve(model: ir.Model, context: Context, samples: int, wanted: Callable[[Group], bool]) -> list[Change]:
    """Scale the wanted groups of ``model`` in place if its quantized outputs gain by it; say what was done or why not."""

    def excluded(node: ir.Node) -> bool:
        return any(fnmatch.fnmatchcase(site(node), pattern) for pattern in context.exclude)

    style = context.target.quantization
    if style is None:
        return [_declined("model", f"nothing is known of integers on the target {context.target.name!r}")]
    if model.opset_imports.get("", 1) < fake.OPSET:
        return [_declined("model", f"opset {model.opset_imports.get('', 1)} has no QuantizeLinear: it comes with {fake.OPSET}")]
    analysis = scaling.analyse(model, excluded)
    every = find(model, analysis, context, samples)
    groups = [group for group in every if wanted(group)]
    if not groups:
        return [_declined("model", _why_none(model, every))]
    scales = np.ones(analysis.count)
    changes: list[Change] = []
    for group in groups:
        chosen = choose(group, analysis, scales, style)
        if chosen.gain < _LEAST_GAIN:
            why = f"the best scales ({chosen.how}) change the estimated error of its readers by {-chosen.gain:+.2f} dB"
            changes.append(_declined(group.name, why))
            continue
        scales[group.classes] = chosen.scales
        spread = f"by {chosen.scales.min():.3g} to {chosen.scales.max():.3g}"
        count = sum(reader.weight is not None for reader in group.readers)
        what = f"{len(group.classes)} channels divided {spread}, the weights that read them ({count}) multiplied"
        changes.append(Change(group.name, what, f"{chosen.how}: estimated error of its readers {-chosen.gain:+.2f} dB"))
    if (scales == 1).all():
        return changes
    with context.progress.stage("measuring the quantized outputs"):
        strength, before, after = _measured(model, scales, excluded, context, samples)
    measured = f"signal to noise of the quantized outputs {before:.2f} -> {after:.2f} dB"
    if after < before + _LEAST_MEASURED:
        return [_declined(change.site, f"{change.why}; nothing gained in all: {measured}") for change in changes]
    scaling.apply(model, analysis, scales**strength)
    measured = f"in all {measured}" if strength == 1 else f"in all, with s^{strength:g}, {measured}"
    return [Change(c.site, c.what, f"{c.why}; {measured}" if c.done else c.why, c.done) for c in changes]


def _measured(
    model: ir.Model, scales: Array, excluded: Callable[[ir.Node], bool], context: Context, samples: int
) -> tuple[float, float, float]:
    """The power of the scales that gains most, and the signal to noise before and after, dB.

    Scales that are right for what calibration saw may leave too little room for what it did not see: weaker ones are tried.
    """
    before = fake.decibels(fake.noise(model, context, samples))
    best, most = 1.0, -np.inf
    for strength in _POWERS:
        trial = model.clone()
        scaling.apply(trial, scaling.analyse(trial, excluded), scales**strength)
        after = fake.decibels(fake.noise(trial, context, samples))
        if after < most and most > before:
            break
        if after > most:
            best, most = strength, after
    return best, before, most


def _why_none(model: ir.Model, groups: Sequence[Group]) -> str:
    if groups:
        read = ", ".join(sorted({op_type for group in groups for op_type in group.op_types}))
        return f"the channels that can be scaled are read by {read}, which the other one of equalize and smooth looks after"
    if any(is_overridable(value) for value in model.graph.inputs):
        return "no channel between two layers can be scaled: weights are listed as inputs, so a caller may replace them"
    return "no channel between two layers can be scaled: operators between them are not positive-homogeneous"


def _declined(where: str, why: str) -> Change:
    return Change(where, "not scaled", why, done=False)


# ---------------------------------------------------------------------------------------------------------------- groups


def find(model: ir.Model, analysis: Scaling, context: Context, samples: int) -> list[Group]:
    """The groups that some weight reads and some constant makes, in the order of the graph, with statistics."""
    style = context.target.quantization
    assert style is not None
    rows = [analysis.roots(factor.ids).reshape(-1) for factor in analysis.factors if factor.power < 0]
    made = {*np.concatenate(rows).tolist()} if rows else set()
    columns = {
        factor.node: factor
        for factor in analysis.factors
        if factor.power > 0 and factor.index == 1 and factor.node.op_type in fake.CHANNEL_AXIS
    }
    places = _places(model, analysis, {*columns}, style)
    observers: dict[str, list[Observer]] = {}
    for value, _, axis in places:
        observers[value.name or ""] = [ChannelRange(axis), ChannelMean(axis)]
    found = context.observe(model, observers, samples=samples)
    read = _read_power(analysis, [columns[node] for _, node, _ in places if node in columns])
    readers = []
    for value, node, _ in places:
        ranges, moments = found[value.name or ""]
        channels = np.broadcast_to(analysis.roots(analysis.ids(value)).reshape(-1), ranges.low.shape)
        statistics = channels, ranges.low, ranges.high, moments.square
        if node not in columns:
            readers.append(Reader(node, None, channels, (), *statistics, read[channels]))
            continue
        tensor = constant(node.inputs[1])
        assert tensor is not None
        factors = tuple(factor for factor in analysis.factors if factor.node is node and factor.index == 1)
        made_here = [analysis.roots(factor.ids) for factor in factors if factor.power < 0]
        importance = read[made_here[0]] if made_here else np.ones(1)
        readers.append(Reader(node, tensor.numpy(), analysis.roots(columns[node].ids), factors, *statistics, importance))
    return [group for group in _connected(readers, made) if any(reader.weight is not None for reader in group.readers)]


def _places(
    model: ir.Model, analysis: Scaling, weighted: set[ir.Node], style: Quantization
) -> list[tuple[ir.Value, ir.Node, int]]:
    """Values with scalable channels that become integers, what reads them, and their axis of channels.

    Each value once for all nodes without a weight.
    """
    seen = observable(model)
    places: list[tuple[ir.Value, ir.Node, int]] = []
    handed_on: set[ir.Value] = set()
    for node in model.graph:
        if node.domain != "" or not (node in weighted or node.op_type in style.static):
            continue
        for value in node.inputs[:1] if node in weighted else node.inputs:
            if value is None or value.name not in seen or value in handed_on or constant(value) is not None:
                continue
            axis = _axis(analysis.ids(value))
            if axis is None or analysis.is_fixed(analysis.ids(value)):
                continue
            places.append((value, node, axis))
            if node not in weighted:
                handed_on.add(value)
    read = {value for value, node, _ in places if node in weighted}
    return [(value, node, axis) for value, node, axis in places if node in weighted or value not in read]


def _read_power(analysis: Scaling, columns: Sequence[Factor]) -> Array:
    """By class: the sum of squares of the weights that read it; 1 where none does."""
    power = np.zeros(analysis.count)
    for factor in columns:
        tensor = constant(factor.node.inputs[factor.index])
        assert tensor is not None
        squares = tensor.numpy().astype(np.float64) ** 2
        np.add.at(power, np.broadcast_to(analysis.roots(factor.ids), squares.shape).reshape(-1), squares.reshape(-1))
    power[FIXED] = 0.0
    return np.where(power > 0, power, 1.0)


def _axis(ids: Array) -> int | None:
    """The one axis along which ids differ."""
    axes = [axis for axis, size in enumerate(ids.shape) if size > 1]
    return axes[0] if len(axes) == 1 else None


def _connected(readers: Sequence[Reader], made: set[int]) -> list[Group]:
    """Readers that share a class, directly or through others, are in one group."""
    groups: list[tuple[set[int], list[Reader]]] = []
    for reader in readers:
        classes = {*reader.channels.tolist()} - {FIXED}
        touched = [group for group in groups if group[0] & classes]
        merged = (classes.union(*(group[0] for group in touched)), [r for group in touched for r in group[1]] + [reader])
        position = groups.index(touched[0]) if touched else len(groups)
        groups = [group for group in groups if group not in touched]
        groups.insert(position, merged)
    return [Group(np.array(sorted(classes & made)), tuple(members)) for classes, members in groups if classes & made]


# ---------------------------------------------------------------------------------------------------------------- choice


def choose(group: Group, analysis: Scaling, scales: Array, style: Quantization) -> Chosen:
    """The candidate with the least estimated noise; ``scales`` are those of the groups before it, by id."""
    activations, columns = np.zeros(analysis.count), np.zeros(analysis.count)
    for reader in group.readers:
        _largest(activations, reader.channels, _relative(np.maximum(np.abs(reader.low), np.abs(reader.high))))
        if reader.weight is not None:
            _largest(columns, np.broadcast_to(reader.columns, reader.weight.shape), _relative(np.abs(reader.weight)))
    a, r = activations[group.classes], columns[group.classes]
    usable = (a > 0) & (r > 0)
    a, r = np.where(usable, a, 1.0), np.where(usable, r, 1.0)
    candidates = {f"alpha {alpha:g}": a**alpha / r ** (1 - alpha) for alpha in ALPHAS}
    candidates["weight ranges"] = np.sqrt(np.where(usable, _produced(group, analysis), 1.0) / r)
    before = _noise(group, analysis, scales, style)
    best = Chosen(np.ones(len(group.classes)), "none", 0.0)
    for how, full in candidates.items():
        for strength in _STRENGTHS:
            s = np.clip(np.where(usable, full**strength, 1.0), 1 / _LARGEST, _LARGEST)
            trial = scales.copy()
            trial[group.classes] = s
            gain = 10 * (before - _noise(group, analysis, trial, style))
            if best.how == "none" or gain > best.gain:
                best = Chosen(s, how + (" at half strength" if strength < 1 else ""), gain)
    return best


def _relative(array: Array) -> Array:
    peak = array.max(initial=0.0)
    return array / peak if peak > 0 else array


def _largest(by_class: Array, classes: Array, values: Array) -> None:
    np.maximum.at(by_class, classes.reshape(-1), values.reshape(-1))


def _produced(group: Group, analysis: Scaling) -> Array:
    """The largest weight that makes each class, as a part of the largest of its tensor."""
    found = np.zeros(analysis.count)
    for factor in analysis.factors:
        tensor = constant(factor.node.inputs[factor.index])
        if factor.power > 0 or factor.index != 1 or factor.node.op_type not in fake.CHANNEL_AXIS or tensor is None:
            continue
        classes = analysis.roots(factor.ids)
        if np.isin(classes, group.classes).any():
            weight = tensor.numpy()
            _largest(found, np.broadcast_to(classes, weight.shape), _relative(np.abs(weight)))
    produced = found[group.classes]
    return np.where(produced > 0, produced, 1.0)


def _noise(group: Group, analysis: Scaling, scales: Array, style: Quantization) -> float:
    """Mean over the readers of log10 of the sum of noise_i, weighted by how much an error of output i matters."""
    steps = 2 ** (16 if style.activations == "uint16" else 8) - 1
    levels = 2 ** (style.weight_bits - 1) - 1
    found = []
    for reader in group.readers:
        s = scales[reader.channels]
        low, high = min((reader.low / s).min(), 0.0), max((reader.high / s).max(), 0.0)
        span = 2 * max(-low, high) if scheme.kind(low, style)[1] else high - low
        squares = np.zeros(len(scales))
        squares[reader.channels] = reader.square
        squares = squares[reader.columns] / scales[reader.columns] ** 2
        rounding = np.minimum((span / steps) ** 2, 12 * squares)
        if reader.weight is None:
            total = float((rounding * scales[reader.columns] ** 2 * reader.importance).sum())
        else:
            weight, rows = reader.weight.astype(np.float64), np.ones(1)
            for factor in reader.factors:
                weight = weight * scales[analysis.roots(factor.ids)] ** factor.power
                rows = rows * (scales[analysis.roots(factor.ids)] if factor.power < 0 else 1.0)
            axis = fake.channel_axis(reader.node) % weight.ndim
            others = tuple(i for i in range(weight.ndim) if i != axis)
            step = np.abs(weight).max(axis=others if style.per_channel else None, keepdims=True) / levels
            lost = weight - np.rint(weight / np.where(step > 0, step, 1.0)) * step
            noise = rounding * weight**2 + 12 * lost**2 * squares
            total = float((noise * rows**2 * reader.importance).sum())
        found.append(np.log10(total) if total > 0 else 0.0)
    return float(np.mean(found))
