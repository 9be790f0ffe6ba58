"""Empirical bias correction (Nagel et al. 2019, section 4.2): the mean of each channel is what it was before quantization.

    d_c = E[y_c] - E[y'_c]        y of the float model, y' of the quantized one, over samples and positions
    b_c <- b_c + d_c              layer by layer in the order of the graph, y' computed from what is corrected so far

Rounding and clipping errors have a mean, which adds up from layer to layer and is the part that needs no more arithmetic
to remove. The quantized model is run piece by piece, from one layer's output to the next: the correction is added to a layer's
output before the next piece is run, so each piece is run once and no graph is changed. The pieces' values are kept for as many
samples as fit into ``LIMIT_BYTES``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import onnx_ir as ir

from graphopt import sizes
from graphopt.contracts import Array, Context
from graphopt.observe import ChannelMean
from graphopt.shapes import subgraphs

LIMIT_BYTES = 128 << 20
"""What the largest value of all samples may take; a few values are kept at a time."""


@dataclass(frozen=True)
class Output:
    """A layer's output, by its name in both models, with its axis of channels."""

    name: str
    axis: int


def shifts(
    original: ir.Model, quantized: ir.Model, outputs: Sequence[Output], context: Context, samples: int
) -> dict[str, Array]:
    """What to add to each layer's bias, float64 [C] by the name of the output; both models stay as they are.

    Args:
        original: The float model.
        quantized: The same with Q and DQ; the values of the outputs are floats there too.
        outputs: Layers whose bias can be changed.
        context: For data and sessions.
        samples: How many samples at most.
    """
    assert context.data is not None
    data = context.data.first(_fitting(original, context, samples))
    wanted = {output.name: [ChannelMean(output.axis)] for output in outputs}
    means = {name: found[0].mean for name, found in context.observe(original, wanted, samples=data.size).items()}
    state: list[dict[str, Array]] = [dict(batch.feed) for batch in data.batches()]
    found: dict[str, Array] = {}
    pieces = _pieces(quantized, outputs)
    with context.progress.stage("correcting biases", total=len(pieces)) as step:
        for piece in pieces:
            _run(quantized, piece, state, context)
            if piece.output is not None:
                axis = piece.output.axis
                values = [batch[piece.output.name] for batch in state]
                found[piece.output.name] = shift = means[piece.output.name] - _mean(values, axis)
                shape = [1] * values[0].ndim
                shape[axis] = -1
                for batch in state:
                    batch[piece.output.name] = batch[piece.output.name] + shift.reshape(shape).astype(np.float32)
            for batch in state:
                for name in [name for name in batch if name not in piece.needed_later]:
                    del batch[name]
            step(1)
    return found


@dataclass(frozen=True)
class _Piece:
    """A run of nodes of the graph, the last of which gives ``output``; None at the end of the graph."""

    start: int
    stop: int
    output: Output | None
    needed_later: frozenset[str]


def _pieces(model: ir.Model, outputs: Sequence[Output]) -> list[_Piece]:
    by_name = {output.name: output for output in outputs}
    nodes = [*model.graph]
    ends = {index + 1: by_name[v.name] for index, node in enumerate(nodes) for v in node.outputs if v.name in by_name}
    last_read: dict[str, int] = {}
    for index, node in enumerate(nodes):
        last_read.update(dict.fromkeys(_read(node), index))
    bounds = [0, *ends]
    return [
        _Piece(start, stop, ends[stop], frozenset(name for name, index in last_read.items() if index >= stop))
        for start, stop in pairwise(bounds)
    ]


def _read(node: ir.Node) -> set[str]:
    """Names of what a node and its subgraphs read."""
    inner = (value for graph in subgraphs(node) for other in graph.all_nodes() for value in other.inputs)
    results = (value for graph in subgraphs(node) for value in graph.outputs)
    return {value.name for value in (*node.inputs, *inner, *results) if value is not None and value.name}


def _run(model: ir.Model, piece: _Piece, state: list[dict[str, Array]], context: Context) -> None:
    """Add to each batch what the piece computes and others need."""
    part, feeds = _part(model, piece, state[0])
    if not len(part.graph.outputs):
        return
    with context.open_session(part) as session:
        for batch in state:
            batch.update(session.run({name: batch[name] for name in feeds}))


def _part(model: ir.Model, piece: _Piece, known: Mapping[str, Array]) -> tuple[ir.Model, list[str]]:
    """A clone of the model with the nodes of a piece alone, and the names of its inputs."""
    clone = model.clone()
    graph = clone.graph
    nodes = [*graph]
    kept = nodes[piece.start : piece.stop]
    graph.outputs.clear()
    wanted = set(piece.needed_later) | ({piece.output.name} if piece.output else set())
    made = [value for node in kept for value in node.outputs if value.name in wanted]
    read = {name for node in kept for name in _read(node)}
    before = [value for value in graph.inputs if not value.is_initializer()]
    before += [value for node in nodes[: piece.start] for value in node.outputs]
    constants = {value for node in nodes[: piece.start] if node.op_type == "Constant" for value in node.outputs}
    feeds: list[str] = []
    inputs: list[ir.Value] = []
    for value in before:
        if value.name not in read or value in constants:
            continue
        array = known[value.name or ""]
        new = ir.Value(name=value.name, type=ir.TensorType(ir.DataType.from_numpy(array.dtype)), shape=_open_shape(array))
        value.name = None
        value.replace_all_uses_with(new)
        inputs.append(new)
        feeds.append(new.name or "")
    for node in [*nodes[piece.stop :][::-1], *nodes[: piece.start][::-1]]:
        if not (node.op_type == "Constant" and node.outputs[0].uses()):
            for inner in (inner for body in subgraphs(node) for inner in body.all_nodes()):
                for index in range(len(inner.inputs)):
                    inner.replace_input_with(index, None)
            graph.remove(node, safe=True)
    graph.inputs.clear()
    graph.inputs.extend(inputs)
    for value in made:
        value.shape = None
        graph.outputs.append(value)
    for name, value in [*graph.initializers.items()]:
        if not value.uses():
            del graph.initializers[name]
    return clone, feeds


def _open_shape(array: Array) -> ir.Shape:
    return ir.Shape([None] * array.ndim)


def _mean(values: Sequence[Array], axis: int) -> Array:
    sums: Array | float = 0.0
    count = 0
    for array in values:
        others = tuple(i for i in range(array.ndim) if i != axis % array.ndim)
        sums = sums + array.sum(axis=others, dtype=np.float64)
        count += array.size // array.shape[axis]
    return np.asarray(sums) / count


def _fitting(model: ir.Model, context: Context, samples: int) -> int:
    """How many samples can be kept."""
    assert context.data is not None
    feed = next(context.data.batched(1).batches()).feed
    return max(8, min(samples, LIMIT_BYTES // sizes.largest_bytes(model, feed)))
