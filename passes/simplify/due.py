"""Where a step has to look again: close to what has changed since it looked there.

A rule is tried for one operator. It looks back along chains of operators, at what else reads the values on the way, and asks
what is known of their dimensions and contents. So a change makes due

    the nodes that are new, read something else, or are in another graph now
    all that reads what these read, or read before; and what gives it, if a rule looks at what reads what it gives
    the nodes that give a value of which something else is known now (``symbolic.py``, inference)
    what reads what these give, and what comes after that past operators that rules look past
"""

from __future__ import annotations

from collections.abc import Container, Iterable, Sequence
from itertools import chain

import onnx_ir as ir

from graphopt import walk
from graphopt.contracts import Change

from .contents import CONTENTS
from .dead import initializers, removals, remove_dead_nodes, remove_initializers
from .graph import Work
from .sink import ALONG_AN_AXIS, ONE_OPERAND, SINKING

_REACH = 64
"""So many operators in a row rules look back; those that merge whole chains may look further, and the next run finds it."""
_LOOKING_AHEAD = frozenset({"Dropout", "Slice"})
"""Operators with rules that look at what reads their outputs."""
_LOOKED_PAST = SINKING | ONE_OPERAND | ALONG_AN_AXIS | CONTENTS.keys() | {"ScatterND", "Slice", "Split"}

Where = set[ir.Node] | None
"""Where to look; None is everywhere."""


def together(a: Where, b: Where) -> Where:
    """All places of both."""
    return None if a is None or b is None else a | b


class Watch:
    """The model as it was when somebody last asked what has changed.

    What a step leaves without a reader is removed at once, if the user wants that: no other step needs to look at it.
    """

    def __init__(self, work: Work, *, dead: bool) -> None:
        self._work = work
        self._dead = dead
        self._inputs: dict[ir.Node, Sequence[ir.Value | None]] = {}
        self._homes: dict[ir.Node, ir.Graph] = {}
        self._initializers: set[ir.Value] = set()
        self.removed: list[Change] = []
        """What was removed."""
        work.changed()
        self._note()

    def _note(self) -> None:
        main, *functions = self._work.roots
        self._homes = main.homes
        for root in functions:
            self._homes = self._homes | root.homes
        self._inputs = {node: node.inputs for node in self._homes}

    def changed(self) -> set[ir.Node]:
        """Where there may be more to do, now that steps have changed the model."""
        before, homes = self._inputs, self._homes
        self._note()
        touched = {node: None for node, inputs in self._inputs.items() if before.get(node) is not inputs}
        if self._work.subgraphs:
            touched |= dict.fromkeys(node for node, home in self._homes.items() if homes.get(node) is not home)
        read = [inputs for node, inputs in before.items() if self._inputs.get(node) is not inputs]
        values = dict.fromkeys(chain(*read, *(node.inputs for node in touched)))
        if self._dead:
            unread = (value for value in values if value is not None and not value.uses())
            for node in self._without_dead([*touched, *_producers(unread)]):
                values |= dict.fromkeys(before.get(node, ()))
                touched.pop(node, None)
            self.removed += self._without_unread(values)
        readers = {use.node for value in values if value is not None and value.producer() for use in value.uses()}
        known = self._work.symbolic
        renewed = set() if known is None else known.update(self._inputs, known.rewired(touched))
        ahead = (node for node in _producers(values) if node.op_type in _LOOKING_AHEAD)
        return self._close_to({*touched, *ahead, *readers} | renewed)

    def _without_dead(self, nodes: Iterable[ir.Node]) -> Sequence[ir.Node]:
        """Remove those of the nodes that are dead, and what only they used: all nodes that are gone now."""
        dead = remove_dead_nodes(self._work, nodes)
        self.removed += removals(dead)
        inner = [node for outer in dead for graph in self._work.subgraphs.get(outer, ()) for node in walk.nodes(graph)]
        gone = [*dead, *inner]
        for root in self._work.roots if gone else []:
            root.forget(gone)
        for node in gone:
            self._homes.pop(node, None)
            self._inputs.pop(node, None)
        return gone

    def _without_unread(self, values: Container[ir.Value | None]) -> Sequence[Change]:
        """Remove those of the initializers that nothing reads: of those that there were, only some of ``values`` can be."""
        before, listed = self._initializers, initializers(self._work)
        self._initializers = {*listed}
        suspects = [value for value in listed if value in values or value not in before]
        return remove_initializers(self._work, suspects, self._work.annotated_names())

    def learnt(self) -> Where:
        """Where there may be more to do, now that inference has told more."""
        told, self._work.learnt = self._work.learnt, set()
        known = self._work.symbolic
        return told and self._close_to(told if known is None else told | known.update(self._inputs, known.news(told)))

    def in_order(self, where: Where) -> Sequence[ir.Node] | None:
        """The same nodes in the order of the graph."""
        return None if where is None else [node for node in self._inputs if node in where]

    def _close_to(self, front: set[ir.Node]) -> set[ir.Node]:
        near, past = {*front}, front
        for _ in range(_REACH):
            front = {use.node for node in past for output in node.outputs for use in output.uses()} - near
            if not front:
                break
            near |= front
            past = {node for node in front if node.op_type in _LOOKED_PAST}
        return near


def _producers(values: Iterable[ir.Value | None]) -> dict[ir.Node, None]:
    """The nodes that give the values."""
    return dict.fromkeys(node for value in values if value is not None and (node := value.producer()) is not None)
