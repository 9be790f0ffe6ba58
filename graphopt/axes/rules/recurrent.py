"""LSTM, GRU and RNN: a hidden unit has a row in each gate, a column in the recurrence, and an element in each state."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from graphopt.axes.analysis import Analysis, Axes, Unknown
from graphopt.axes.ids import Symbol

from .table import rule

_TIME = "samples, time or direction"
_GATES = {"LSTM": 4, "GRU": 3, "RNN": 1}


@rule(*_GATES)
def recurrent(a: Analysis, node: ir.Node) -> Sequence[Axes | None]:
    """h[t] = gates(W x[t] + R h[t-1] + B); with G gates and H units, directions d:

        x [t, n, I]   W [d, (G, H), I]   R [d, (G, H), H]   B [d, (2, G, H)]   h0, c0 [d, n, H]   P [d, (3, H)]
        Y [t, d, n, H]   Y_h, Y_c [d, n, H]              (layout 1: n before t and d)

    Unit h is the same in all gates, the recurrence and both directions (Y has one axis for it); ``hidden_size`` counts it.
    """
    gates, layout = _GATES[node.op_type], node.attributes.get_int("layout", 0)
    w, r, x = a.of(node, 1), a.of(node, 2), a.of(node, 0)
    hidden = r[2]
    if isinstance(hidden, Symbol):
        raise Unknown("a dynamic number of units")
    a.contract(node, (0, 2), (1, 2))
    a.takes(node, 2, 2)
    a.summed(node, 2, 2)
    for index, copies in ((1, gates), (2, gates), (3, 2 * gates), (7, 3)):
        stacked = a.maybe(node, index)
        if stacked is not None:
            a.same(stacked[1], np.tile(hidden, copies), node)
            a.lock(stacked[:1], node, _TIME)
    a.gives(node, 1, 1)
    directions = w[0]
    a.lock((directions, *x[:2]), node, _TIME)
    state: Axes = (directions, x[1], hidden) if layout == 0 else (x[0], directions, hidden)
    for index in (5, 6):
        initial = a.maybe(node, index)
        if initial is not None:
            a.same(initial[2], hidden, node)
            a.lock(initial[:2], node, _TIME)
    a.count_attribute(node, "hidden_size", hidden)
    whole: Axes = (x[0], directions, x[1], hidden) if layout == 0 else (x[0], x[1], directions, hidden)
    return [whole, state, state][: len(node.outputs)]
