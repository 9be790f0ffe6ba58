"""New names: no value and no node of the model has one, so that none hides another."""

from __future__ import annotations

import itertools

import onnx_ir as ir

from . import walk


class Names:
    """The names of the values and nodes of a model's graph, those of bodies included; each new one is added."""

    def __init__(self, graph: ir.Graph) -> None:
        graphs = [*walk.graphs(graph)]
        self._taken = {value.name for graph in graphs for value in walk.defined(graph)}
        self._taken |= {node.name for graph in graphs for node in graph}

    def new(self, wanted: str) -> str:
        """``wanted`` if it is new, else with the first number that makes it so."""
        numbered = itertools.chain([wanted], (f"{wanted}_{number}" for number in itertools.count(1)))
        name = next(name for name in numbered if name not in self._taken)
        self._taken.add(name)
        return name
