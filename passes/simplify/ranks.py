"""Which branch of an If can be taken at all: by the number of axes that what reads its output asks for.

    y = If(c, a, b), z = LSTM(y)   ->   c is true, if b has not the 3 axes that an LSTM takes, and a may have them

Exporters write such an If for what the source asks of a shape, as in ``if x.dim() == 2``, ``x.squeeze(-1)``. Were the other
branch taken, the run would end with an error: wherever there are outputs, it was not. What must have so many axes:

    X and the initial states of LSTM, GRU and RNN    3
    X of Conv, ConvTranspose                         as many as the weight
    A, B of Gemm                                     2
    x in Transpose(x, perm)                          as many as perm
    x in Unsqueeze(x, axes), Squeeze(x, axes)        what their output must have, less, or and, as many as axes
    x in f(x), f elementwise                         what its output must have

Only readers in the graph of the If itself count: they run whenever it does. A branch's output has as many axes as inference
says; else Unsqueeze, Squeeze and elementwise operators are followed up, and of an inner If both branches are possible.
"""

from __future__ import annotations

import onnx_ir as ir

from graphopt.graphs import constant

from .graph import Work
from .sink import ONE_OPERAND

_DEEPEST = 16
"""So many operators are followed up or down."""
_RECURRENT = frozenset({"GRU", "LSTM", "RNN"})
_CONVOLUTIONS = frozenset({"Conv", "ConvTranspose"})
_SAME = ONE_OPERAND | {"Identity"}
_TOLD = _SAME | {"Squeeze", "Unsqueeze"}
"""Operators of which the number of axes before tells the number after, and the other way round."""
_Ranks = frozenset[int] | None
"""Numbers of axes, one of which it is; None if nothing is known."""


def only_branch(work: Work, node: ir.Node) -> tuple[str, str] | None:
    """The name of the one branch of an If that can be taken, and why; None if that is not known."""
    for index, output in enumerate(node.outputs):
        needed = _needed(work, output, node.graph, _DEEPEST)
        if needed is None:
            continue
        given = {name: _given(work, _branch_output(node, name, index), _DEEPEST) for name in ("then_branch", "else_branch")}
        possible = [name for name, ranks in given.items() if ranks is None or ranks & needed]
        if len(possible) == 1:
            rank = ", ".join(map(str, sorted(needed)))
            return possible[0], f"what reads it takes {rank} axes, which only its {possible[0].replace('_', ' ')} may give"
    return None


def _branch_output(node: ir.Node, name: str, index: int) -> ir.Value | None:
    branch = node.attributes.get(name)
    return None if branch is None or branch.is_ref() else branch.as_graph().outputs[index]


def _axes(node: ir.Node) -> int | None:
    """How many axes an Unsqueeze or Squeeze names."""
    attribute = node.attributes.get("axes")
    if attribute is not None:
        return None if attribute.is_ref() else len(attribute.as_ints())
    tensor = constant(node.inputs[1]) if len(node.inputs) > 1 else None
    return None if tensor is None else tensor.size


def _rank(work: Work, value: ir.Value | None) -> int | None:
    tensor, known = constant(value), None if value is None else work.facts.get(value)
    if tensor is not None:
        return tensor.shape.rank()
    if known is None or known.shape is None or not isinstance(known.type, ir.TensorType):
        return None
    return known.shape.rank()


def _plus(ranks: _Ranks, count: int | None) -> _Ranks:
    return None if ranks is None or count is None else frozenset(rank + count for rank in ranks)


def _needed(work: Work, value: ir.Value, graph: ir.Graph | ir.Function | None, depth: int) -> _Ranks:
    """How many axes a value must have for its readers not to fail."""
    needed: _Ranks = None
    for use in value.uses() if depth else ():
        found = _needed_by(work, use.node, use.idx, depth) if use.node.graph is graph and work.is_operator(use.node) else None
        if found is not None:
            needed = found if needed is None else needed & found
    return needed


def _needed_by(work: Work, node: ir.Node, index: int, depth: int) -> _Ranks:
    rank: int | None = None
    if node.op_type in _RECURRENT and index in {0, 5, 6}:
        rank = 3
    elif node.op_type in _CONVOLUTIONS and index == 0:
        rank = _rank(work, node.inputs[1])
    elif node.op_type == "Gemm" and index < 2:
        rank = 2
    elif node.op_type == "Transpose" and (perm := node.attributes.get("perm")) is not None:
        rank = None if perm.is_ref() else len(perm.as_ints())
    elif index == 0 and node.op_type in _TOLD:
        after, count = _needed(work, node.outputs[0], node.graph, depth - 1), 0 if node.op_type in _SAME else _axes(node)
        return _plus(after, -count if node.op_type == "Unsqueeze" and count is not None else count)
    return None if rank is None else frozenset({rank})


def _given(work: Work, value: ir.Value | None, depth: int) -> _Ranks:
    """How many axes a value may have."""
    rank = _rank(work, value)
    producer = None if value is None else value.producer()
    if rank is not None or producer is None or not depth or not work.is_operator(producer):
        return None if rank is None else frozenset({rank})
    if producer.op_type == "If":
        index = producer.outputs.index(value)
        branches = [_branch_output(producer, name, index) for name in ("then_branch", "else_branch")]
        ranks = [_given(work, output, depth - 1) for output in branches]
        return None if ranks[0] is None or ranks[1] is None else ranks[0] | ranks[1]
    if producer.op_type not in _TOLD:
        return None
    before, count = _given(work, producer.inputs[0], depth - 1), 0 if producer.op_type in _SAME else _axes(producer)
    return _plus(before, -count if producer.op_type == "Squeeze" and count is not None else count)
