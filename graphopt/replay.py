"""A model run part by part over data: values that are kept are not computed again, whatever is changed behind them.

    replay = Replay(model, data, open_session, folder)
    for values in replay.run(["conv1_out"]):              # as often as wanted, the model may be changed in between
        ...
    replay.advance(replay.position_of("conv2_out"))       # the values that this node and later ones read are kept, others not
    replay.keep(["conv3_out"])                            # so are these
    Replay(changed, replay, open_session, other_folder)   # what a changed model computes alike is taken from there

To compute a value only the nodes run that are between it and what is kept. Positions count the nodes of the main graph. Memory
holds one batch, whatever the number of samples; what is kept are files of ``folder``, one for each value and batch.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx_ir as ir
from onnx_ir import convenience

from .contracts import Array, Session
from .dataset import Dataset
from .graphs import constant
from .walk import subgraphs

ROOM = 4 << 30
"""Bytes of files that ``keep`` makes at most; values beyond are computed again each time."""


@dataclass(frozen=True)
class _Kept:
    """Files with a value, batch by batch."""

    stem: Path
    type: ir.DataType
    rank: int

    def file(self, number: int) -> Path:
        return self.stem.with_name(f"{self.stem.name}.{number}.npy")


class Replay:
    """One model and the values that are kept of it.

    Args:
        model: Its nodes stay where they are; weights may be changed behind what is kept.
        source: What to run on, in batches of a size that fits memory; or the replay of a model that this one was made from:
            what both compute alike is kept there, for both, and taken from there. That one is not to advance any more.
        open_session: Opens a model.
        folder: Where values are kept; it exists, and belongs to this replay alone.
        changing: Nodes whose weights are going to be changed, where ``source`` is a replay.
    """

    def __init__(
        self,
        model: ir.Model,
        source: Dataset | Replay,
        open_session: Callable[[ir.Model], Session],
        folder: Path,
        changing: Collection[ir.Node] = (),
    ) -> None:
        self.model = model
        self.position = 0
        self._open = open_session
        self._folder = folder
        self._room = ROOM
        self._files = 0
        self._reads = [[value.name or "" for value in _read(node)] for node in model.graph]
        self._last = {name: place for place, names in enumerate(self._reads) for name in names}
        self._made = {value.name or "": -1 for value in model.graph.inputs if not value.is_initializer()}
        for place, node in enumerate(model.graph):
            self._made |= {value.name: place for value in node.outputs if value.name and node.op_type != "Constant"}
        self._held: dict[str, _Kept] = {}
        self.samples: int
        self._batches: int
        if isinstance(source, Replay):
            same = alike(source.model, model, changing)
            source.keep(_border(model, same))
            self.samples, self._batches = source.samples, source._batches
            self._held = {name: kept for name, kept in source._held.items() if name in same}
        else:
            self.samples, wanted = source.size, self.crossing(0)
            self._batches = self._write({name: batch.feed[name] for name in wanted} for batch in source.batches())

    def crossing(self, position: int) -> list[str]:
        """Names of the values that are computed, or given, before the node at this position, and read by it or later."""
        return [name for name, made in self._made.items() if made < position and self._last.get(name, -1) >= position]

    def position_of(self, name: str) -> int:
        """The position of the node that computes a value."""
        return self._made[name]

    def run(self, names: Sequence[str]) -> Iterator[dict[str, Array]]:
        """Yield the named values, batch by batch; they are kept, or computed from what is.

        Raises:
            ModelError: The runtime cannot run the part.
        """
        inner = [name for name in names if name not in self._held]
        given = self._given(inner)
        read = dict.fromkeys([*given, *(name for name in names if name in self._held)])
        with self._open(self._part(given, inner)) if inner else nullcontext() as session:
            for number in range(self._batches):
                held = {name: np.load(self._held[name].file(number)) for name in read}
                found = {} if session is None else session.run({name: held[name] for name in given})
                yield {name: found[name] if name in found else held[name] for name in names}

    def advance(self, position: int, names: Iterable[str] = ()) -> None:
        """Go on to a position; what was before cannot be asked for any more, but for the named values."""
        wanted = [*dict.fromkeys([*self.crossing(position), *names])]
        gone = [kept for name, kept in self._held.items() if name not in wanted and kept.stem.parent == self._folder]
        self._write(self.run([name for name in wanted if name not in self._held]), gone)
        self._held = {name: self._held[name] for name in wanted}
        self.position = position

    def keep(self, names: Iterable[str]) -> None:
        """Keep these values as well, as far as there is room.

        Raises:
            ModelError: The runtime cannot run the part.
        """
        missing = [name for name in names if name not in self._held]
        if missing:
            self._write(self._that_fit(self.run(missing)))

    def _given(self, names: Iterable[str]) -> list[str]:
        """The kept values that the named ones are computed from."""
        found: dict[str, None] = {}
        seen, asked = set[str](), [*names]
        while asked:
            name = asked.pop()
            if name in self._held:
                found[name] = None
            elif name in self._made and name not in seen:
                seen.add(name)
                assert self._made[name] >= 0, f"{name!r} is before what is kept"
                asked += self._reads[self._made[name]]
        return sorted(found)

    def _part(self, given: Sequence[str], names: Sequence[str]) -> ir.Model:
        """What computes the named values from those that are given, and nothing else."""
        graph = convenience.extract(self.model.graph, given, names)
        for value in graph.inputs:
            kept = self._held[value.name or ""]
            value.type, value.shape = ir.TensorType(kept.type), ir.Shape([None] * kept.rank)
        for value in graph.outputs:
            value.shape = None
        return ir.Model(graph, ir_version=self.model.ir_version, functions=[*self.model.functions.values()])

    def _that_fit(self, found: Iterable[dict[str, Array]]) -> Iterator[dict[str, Array]]:
        """Of the values those that there is room for."""
        names: list[str] | None = None
        for values in found:
            if names is None:
                names = []
                for name, array in values.items():
                    size = array.nbytes * self._batches
                    if size <= self._room:
                        self._room -= size
                        names.append(name)
            yield {name: values[name] for name in names}

    def _write(self, found: Iterable[dict[str, Array]], gone: Sequence[_Kept] = ()) -> int:
        """Keep values that are found batch by batch, in the place of others; how many batches there were."""
        made: dict[str, _Kept] = {}
        batches = 0
        for number, values in enumerate(found):
            for name, array in values.items():
                if name not in made:
                    made[name] = _Kept(self._folder / str(self._files), ir.DataType.from_numpy(array.dtype), array.ndim)
                    self._files += 1
                np.save(made[name].file(number), array)
            for kept in gone:
                kept.file(number).unlink()
            batches = number + 1
        self._held |= made
        return batches


def alike(before: ir.Model, after: ir.Model, changing: Collection[ir.Node] = ()) -> set[str]:
    """Names of the values that two models compute alike: by equal nodes with the same constants, from values that are alike.

    Args:
        before: A model.
        after: One that was made from it: a clone shares its constants, and keeps the names of its values.
        changing: Nodes of ``after`` that count as changed.
    """
    known = {node.outputs[0].name: node for node in before.graph if node.outputs}
    given = [{value.name for value in model.graph.inputs if not value.is_initializer()} for model in (before, after)]
    same = given[0] & given[1]
    for node in after.graph:
        old = known.get(node.outputs[0].name) if node.outputs else None
        if old is None or node in changing or not all(value.name in same for value in _read(node)):
            continue
        if _function(old) == _function(node):
            same.update(value.name for value in node.outputs)
    return {name for name in same if name}


def _function(node: ir.Node) -> tuple[object, ...]:
    """What a node does: equal for nodes that do the same with the same values."""
    constants = [constant(value) for value in node.inputs]
    names = [
        value.name if value is not None and tensor is None else "" for value, tensor in zip(node.inputs, constants, strict=True)
    ]
    return node.op_identifier(), constants, names, [value.name for value in node.outputs], {**node.attributes}


def _border(model: ir.Model, same: Collection[str]) -> list[str]:
    """Those of the values that others are computed from, or that the model gives."""
    found = [value.name or "" for value in model.graph.outputs]
    for node in model.graph:
        if any(value.name not in same for value in node.outputs):
            found += [value.name or "" for value in _read(node)]
    return [name for name in dict.fromkeys(found) if name in same]


def _read(node: ir.Node) -> Iterator[ir.Value]:
    """What a node reads that is no constant, subgraphs included."""
    for value in node.inputs:
        if value is not None and constant(value) is None:
            yield value
    for graph in subgraphs(node):
        for inner in graph:
            yield from _read(inner)
