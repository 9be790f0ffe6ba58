"""What is left learns to give what the whole network gave: layer by layer in topological order, by least squares.

    W', b' = argmin sum over rows | t - W'^T x' - b' |^2        x' what the layer reads now, t what it gave in the original

x' is taken from the changed network as it has become so far, so that each layer also mends what those before it did wrong.
Where the output goes into a sum with a value s' that is known by then, t is the original's sum minus s': a residual is
corrected too (after He, Zhang and Sun, "Channel pruning for accelerating very deep neural networks", 2017, section 3.2).

Both networks are replayed part by part (``graphopt.replay``): each part runs a few times, and memory holds one batch.
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Callable, Container, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx_ir as ir

from graphopt import sizes
from graphopt.contracts import Array, Change, Context
from graphopt.dataset import Dataset
from graphopt.graphs import site
from graphopt.replay import Replay

from . import rows
from .layers import Layer, addend, layers
from .squares import Moments, choose

_ROWS_PER_WEIGHT = 60
"""Rows for each element of a row, at least; more than these are drawn from."""
_LEAST_ROWS = 32768
_BATCH = 32
_BATCH_BYTES = 48 << 20
"""Of the largest value in a run, where one sample is not more already."""
_HELD_OUT = 5
"""One of so many rows judges what is fitted to the others."""
_MOST_BYTES = 1 << 29
"""Moments of a layer; larger ones, as of output layers with many classes, are left as they are."""
_LATE = 8
"""Layers after which values are kept on disk even where many cross the position."""


@dataclass(frozen=True)
class Step:
    """A layer to be fitted: ``target``, of the same name in the original, is to be met, less the value ``minus``.

    ``plus``: values of the original that are added to the target, branches that were left out. ``kept``: which of the target's
    channels are left; None: all.
    """

    layer: Layer
    target: ir.Value
    minus: str | None
    plus: tuple[str, ...] = ()
    kept: Array | None = None

    @property
    def made(self) -> str:
        """Name of what the layer's node computes."""
        return self.layer.node.outputs[0].name or ""

    @property
    def goals(self) -> list[str]:
        """Names of the original's values that the layer is to give, in sum."""
        return [self.target.name or "", *self.plus]


def affected(
    original: ir.Model,
    changed: ir.Model,
    touched: Container[ir.Node],
    stand_ins: Mapping[ir.Value, Sequence[str]] | None = None,
) -> list[Step]:
    """The layers of ``changed`` that were touched, or read or give what is no longer what it was; in its order.

    Args:
        original: The model before.
        changed: Values have the names that they have there.
        touched: Nodes of ``changed`` whose weights or inputs were changed.
        stand_ins: Values that stand for sums whose branches were left out, with what of the original they are to learn as well.
    """
    stand_ins = stand_ins or {}
    names = {value.name for node in original.graph for value in node.outputs}
    order = [*changed.graph]
    position = {node: place for place, node in enumerate(order)}
    known = layers(changed)
    tainted = {*stand_ins}
    found = []
    for node in order:
        layer = known.get(node)
        added = addend(layer, position) if layer is not None else None
        output = added[1] if added else layer.output if layer is not None else None
        now = node in touched or output in tainted or any(value in tainted for value in node.inputs if value is not None)
        if not now:
            continue
        tainted.update(node.outputs)
        if layer is not None and output is not None and output.name in names:
            found.append(Step(layer, output, added[0].name if added else None, tuple(stand_ins.get(output, ()))))
    return found


Put = Callable[[Step, Sequence[Moments], Sequence[Moments]], "Change | None"]
"""Changes a layer, given moments of each of its groups, of rows to fit and of others; says what it did, if anything."""


def refit(
    original: ir.Model, changed: ir.Model, steps: Sequence[Step], context: Context, data: Dataset, put: Put | None = None
) -> list[Change]:
    """Fit layers of ``changed`` one after the other, in place.

    Args:
        original: The model before.
        changed: Its nodes stay; weights are changed.
        steps: Its layers in its order.
        context: Opens sessions.
        data: What both are run on.
        put: Changes each layer; None: to its best weights.

    Raises:
        ModelError: The runtime cannot run one of them.
    """
    if not steps:
        return []
    random = np.random.default_rng(0)
    data = data.batched(samples_a_run(original))
    changes = []
    with (
        tempfile.TemporaryDirectory(prefix="graphopt-refit-") as temporary,
        context.progress.stage("refitting", len(steps)) as step,
    ):
        folders = [Path(temporary) / name for name in ("original", "changed")]
        for folder in folders:
            folder.mkdir()
        before = Replay(original, data, context.open_session, folders[0])
        after = Replay(changed, data, context.open_session, folders[1])
        late = 0
        for place, one in enumerate(steps):
            late += 1
            position = after.position_of(one.made)
            if len(after.crossing(position)) <= len(after.crossing(after.position)) or late > _LATE:
                goal = min((goal for later in steps[place:] for goal in later.goals), key=before.position_of)
                before.advance(before.position_of(goal) + 1, [goal])
                after.advance(position)
                late = 0
            moments = _moments(one, before, after, random)
            if moments and (change := (put or best)(one, *moments)):
                changes.append(change)
            step(1)
    return changes


def fit_some(steps: Sequence[Step], before: Replay, after: Replay) -> None:
    """Fit a few layers to their best weights one after the other, in place, where replays of both models stand.

    Args:
        steps: Layers of the changed model, in its order.
        before: The original; what the layers are to give is kept.
        after: The changed model; nothing is kept of it that these layers change.
    """
    before.keep(name for one in steps for name in one.goals)
    random = np.random.default_rng(0)
    for one in steps:
        if moments := _moments(one, before, after, random):
            best(one, *moments)


def samples_a_run(model: ir.Model) -> int:
    """As many that no value takes more than some megabytes."""
    shapes = [known.shape for known in sizes.infer(model).values() if known.shape is not None and known.shape.is_static()]
    largest = max((4 * math.prod(shape.numpy()) for shape in shapes), default=1)
    return max(1, min(_BATCH, _BATCH_BYTES // max(largest, 1)))


def _moments(
    one: Step, before: Replay, after: Replay, random: np.random.Generator
) -> tuple[list[Moments], list[Moments]] | None:
    """Second moments of each group of the layer, of rows to fit and of others; None where shapes differ or it is too large."""
    reads, asked = one.layer.reads.name or "", one.layer.patches
    matrix = one.layer.matrix()
    groups, k, out = matrix.shape
    if 16 * groups * k * (k + out) > _MOST_BYTES:
        return None
    found = tuple([Moments.empty(k, out) for _ in range(groups)] for _ in range(2))
    wanted = max(_LEAST_ROWS, _ROWS_PER_WEIGHT * k)
    names, goals = [reads, *([one.minus] if one.minus else [])], one.goals
    for number, (whole, now) in enumerate(zip(before.run(goals), after.run(names), strict=True)):
        target = sum((whole[name] for name in goals[1:]), whole[goals[0]])
        if one.kept is not None and not one.kept.all():
            target = np.compress(one.kept, target, axis=1 if asked else -1)
        if one.minus:
            if now[one.minus].shape != target.shape:
                return None
            target = target - now[one.minus]
        batch = len(target)
        count = rows.positions(target, asked)
        each = -(-wanted * batch // before.samples) // (batch if asked else 1)
        chosen = np.sort(random.permutation(count)[: max(1, each)]) if each < count else np.arange(count)
        x, t = rows.inputs(now[reads], asked, chosen), rows.outputs(target, asked, chosen)
        if x.shape[:2] != t.shape[:2]:
            return None
        rest = round(x.shape[1] * (1 - 1 / _HELD_OUT)) if x.shape[1] >= _HELD_OUT else int(number % _HELD_OUT < _HELD_OUT - 1)
        for fitted, held_out, xs, ts in zip(*found, x, t, strict=True):
            fitted.add(xs[:rest], ts[:rest])
            held_out.add(xs[rest:], ts[rest:])
    return found[0], found[1]


def best(step: Step, fitted: Sequence[Moments], held_out: Sequence[Moments]) -> Change | None:
    """Fit a layer to its target (a ``Put``)."""
    found, matrix, offset = step.layer, step.layer.matrix(), step.layer.offset()
    better = choose(fitted, held_out, matrix, offset.reshape(len(matrix), -1), fixed=not found.free)
    if better is None:
        return None
    found.put(np.stack([weights for weights, _ in better]), np.concatenate([b for _, b in better]) if found.free else None)
    return Change(site(found.node), "weights are fitted", "to give what the original gives there")
