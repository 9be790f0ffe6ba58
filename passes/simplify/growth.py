"""Which of the values computed ahead of time may be written into the file as constants.

Computing E nodes ahead of time writes the values that the rest of the graph needs (the frontier), equal ones once, and lets the
constants die that only these nodes used:

    growth = sum of bytes(v), v on the frontier of E  -  sum of bytes(c), c a constant used by E alone

When growth exceeds what is allowed, values on the frontier are taken in the order of their own growth, bytes(v) less the dying
constants that v was computed from, until the allowance is spent; the nodes behind the others are taken out of E, and
everything is counted again, because what those nodes read is on the frontier now.

A file in which something was left out says so in its metadata: the next run lets it grow no further. Otherwise that run, which
has the whole allowance again, would write what this one did not.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass

import onnx_ir as ir

from graphopt.graphs import constant
from graphopt.model.weights import tensor_bytes

_NOTE = "graphopt.growth_limit"
_REACHED = "reached"


def allowance(model: ir.Model, growth: int) -> int:
    """By how many bytes the weights may grow, of ``growth`` that the caller allows."""
    return 0 if model.metadata_props.get(_NOTE) == _REACHED else growth


def note_limit(model: ir.Model) -> None:
    """Write into the model that something was left out because of the limit."""
    model.metadata_props[_NOTE] = _REACHED


@dataclass(frozen=True)
class Choice:
    """What is computed ahead of time."""

    nodes: Mapping[ir.Node, None]
    """In the order of the graph."""
    constants: Sequence[Sequence[ir.Value]]
    """Outputs of the nodes to be written; each group is one constant."""
    left_out: Mapping[ir.Node, int]
    """The other candidates, with the bytes by which each would make the file grow."""


def choose(
    candidates: Sequence[ir.Node],
    tensors: Mapping[ir.Value, ir.TensorProtocol],
    identity: Callable[[ir.Value], Hashable],
    room: Callable[[int], int],
) -> Choice:
    """Choose the nodes to compute ahead of time.

    Args:
        candidates: Nodes whose outputs are known, sorted.
        tensors: The tensor of each of their outputs.
        identity: Equal for outputs that can be written as one constant.
        room: By how many bytes the weights may grow, if so many are wanted.
    """
    chosen = dict.fromkeys(candidates)
    left_out: dict[ir.Node, int] = {}
    while True:
        groups: dict[Hashable, list[ir.Value]] = {}
        for value in _frontier(chosen):
            groups.setdefault(identity(value), []).append(value)
        dying = _dying(chosen)
        size = {key: tensor_bytes(tensors[values[0]]) for key, values in groups.items()}
        grown = sum(size.values()) - sum(dying.values())
        allowed = room(grown)
        if grown <= allowed:
            return Choice(chosen, [*groups.values()], left_out)
        growth = {key: size[key] - _behind(values, chosen, dying) for key, values in groups.items()}
        for key in _too_much(growth, size, allowed):
            for value in groups[key]:
                producer = value.producer()
                assert producer is not None
                chosen.pop(producer, None)
                left_out[producer] = growth[key] if growth[key] > 0 else size[key]


def _frontier(chosen: Mapping[ir.Node, None]) -> list[ir.Value]:
    """Outputs of the chosen nodes that something else reads."""
    return [v for node in chosen for v in node.outputs if v.is_graph_output() or any(u.node not in chosen for u in v.uses())]


def _dying(chosen: Mapping[ir.Node, None]) -> dict[ir.Value, int]:
    """Constants that only the chosen nodes read, with their bytes."""
    dying: dict[ir.Value, int] = {}
    seen: set[ir.Value] = set()
    for node in chosen:
        for value in node.inputs:
            if value is None or value in seen:
                continue
            seen.add(value)
            tensor = constant(value)
            if tensor is not None and not value.is_graph_output() and all(use.node in chosen for use in value.uses()):
                dying[value] = tensor_bytes(tensor)
    return dying


def _too_much(growth: Mapping[Hashable, int], size: Mapping[Hashable, int], allowed: int) -> list[Hashable]:
    """The constants that no longer fit, at least one."""
    total = 0
    out = []
    for key in sorted(growth, key=lambda key: growth[key]):
        if growth[key] > max(0, allowed - total):
            out.append(key)
        else:
            total += growth[key]
    return out or [max(size, key=lambda key: size[key])]  # dying constants behind several values were counted for each


def _behind(values: Sequence[ir.Value], chosen: Mapping[ir.Node, None], dying: Mapping[ir.Value, int]) -> int:
    """Bytes of the dying constants that the values were computed from."""
    waiting, seen, total = [*values], set(values), 0
    while waiting:
        current = waiting.pop()
        total += dying.get(current, 0)
        producer = current.producer()
        if producer is None or producer not in chosen:
            continue
        for source in producer.inputs:
            if source is not None and source not in seen:
                seen.add(source)
                waiting.append(source)
    return total
