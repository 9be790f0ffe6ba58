"""A model run part by part over data: a layer can be looked at, changed and passed, and what was before is not run again.

    replay = Replay(model, data, open_session, folder)
    for values in replay.run(["conv1_out"]):              # as often as wanted, the model may be changed in between
        ...
    replay.advance(replay.position_of("conv2_out"))       # the values that this node and later ones read are kept on disk

Positions count the nodes of the main graph. Memory holds one batch, whatever the number of samples; what is kept between parts
are the values that cross the position, batch by batch, in files of ``folder``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import onnx_ir as ir

from .contracts import Array, Session
from .dataset import Dataset
from .graphs import constant
from .walk import subgraphs


class Replay:
    """One model and the values where it stands.

    Args:
        model: Its nodes stay where they are; weights may be changed behind the position.
        data: What to run on, in batches of a size that fits memory.
        open_session: Opens a model.
        folder: Where values are kept; it exists, and belongs to this replay alone.
    """

    def __init__(self, model: ir.Model, data: Dataset, open_session: Callable[[ir.Model], Session], folder: Path) -> None:
        self.model = model
        self.position = 0
        self._open = open_session
        self._folder = folder
        self._reads = [[value.name or "" for value in _read(node)] for node in model.graph]
        self._last = {name: place for place, names in enumerate(self._reads) for name in names}
        self._made = {value.name or "": -1 for value in model.graph.inputs if not value.is_initializer()}
        for place, node in enumerate(model.graph):
            self._made |= {value.name: place for value in node.outputs if value.name and node.op_type != "Constant"}
        self._types: dict[str, tuple[ir.DataType, int]] = {}
        self._batches = 0
        wanted = self.crossing(0)
        for number, batch in enumerate(data.batches()):
            self._store(number, {name: batch.feed[name] for name in wanted})
            self._batches = number + 1

    def crossing(self, position: int) -> list[str]:
        """Names of the values that are computed, or given, before the node at this position, and read by it or later."""
        return [name for name, made in self._made.items() if made < position and self._last.get(name, -1) >= position]

    def position_of(self, name: str) -> int:
        """The position of the node that computes a value."""
        return self._made[name]

    def run(self, names: Sequence[str]) -> Iterator[dict[str, Array]]:
        """Yield the named values, batch by batch; they are computed, or read, at the position where the replay stands or later.

        Raises:
            ModelError: The runtime cannot run the part.
        """
        held = set(self.crossing(self.position))
        inner = [name for name in names if name not in held]
        with self._open(self._part(held, inner)) if inner else nullcontext() as session:
            for number in range(self._batches):
                feed = self._load(number)
                found = {} if session is None else session.run({spec.name: feed[spec.name] for spec in session.inputs})
                yield {name: found[name] if name in found else feed[name] for name in names}

    def advance(self, position: int) -> None:
        """Go on to a position; what was before cannot be asked for any more."""
        wanted = self.crossing(position)
        for number, values in enumerate(self.run(wanted)):
            self._store(number, values)
        self.position = position

    def _part(self, held: set[str], names: Sequence[str]) -> ir.Model:
        """A clone that computes the named values from those that are held, and nothing else."""
        clone = self.model.clone()
        graph = clone.graph
        values = {value.name: value for node in graph for value in node.outputs}
        graph.outputs[:] = [values[name] for name in names]
        for value in [*graph.inputs]:
            if not value.is_initializer():
                graph.inputs.remove(value)
                values[value.name] = value
        for name in sorted(held):
            kind, rank = self._types[name]
            given = ir.Value(name=name, type=ir.TensorType(kind), shape=ir.Shape([None] * rank))
            values[name].replace_all_uses_with(given)
            values[name].name = f"{name} before"
            graph.inputs.append(given)
        for value in graph.outputs:
            value.shape = None
        for node in reversed(graph):
            if not any(output.uses() or output.is_graph_output() for output in node.outputs):
                graph.remove(node, safe=True)
        for name, value in [*graph.initializers.items()]:
            if not value.uses() and not value.is_graph_output():
                del graph.initializers[name]
                if value.is_graph_input():
                    graph.inputs.remove(value)
        graph.inputs[:] = [value for value in graph.inputs if value.uses() or value.is_initializer()]
        return clone

    def _store(self, number: int, values: dict[str, Array]) -> None:
        for place, (name, array) in enumerate(values.items()):
            self._types[name] = ir.DataType.from_numpy(array.dtype), array.ndim
            np.save(self._folder / f"{number}.{place}.part.npy", array)
        for old in self._folder.glob(f"{number}.*.kept.npy"):
            old.unlink()
        for place in range(len(values)):
            (self._folder / f"{number}.{place}.part.npy").rename(self._folder / f"{number}.{place}.kept.npy")

    def _load(self, number: int) -> dict[str, Array]:
        names = self.crossing(self.position)
        return {name: np.load(self._folder / f"{number}.{place}.kept.npy") for place, name in enumerate(names)}


def _read(node: ir.Node) -> Iterator[ir.Value]:
    """What a node reads that is no constant, subgraphs included."""
    for value in node.inputs:
        if value is not None and constant(value) is None:
            yield value
    for graph in subgraphs(node):
        for inner in graph:
            yield from _read(inner)
