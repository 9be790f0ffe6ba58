"""Running a model for its inner values: which of them in one sweep over the data, how many samples a run, which part of it.

A sweep opens a clone of the model whose outputs are the wanted values and which ends with the last of them; weights are shared
with the model, or not in the clone at all. The values of one run are all in memory at once, so runs take as many samples as fit
into ``BATCH_BYTES``; where the values of one sample are more than ``SWEEP_BYTES``, they are shared out among several sweeps in
the order of the graph, each running the graph only as far as its own values.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass

import onnx_ir as ir

from graphopt import sizes
from graphopt.contracts import Array, Feed, Session, TensorSpec
from graphopt.dataset import Batch, Dataset
from graphopt.model import input_specs
from graphopt.shapes import Facts

BATCH_BYTES = 64 << 20
"""Wanted values of one run, where one sample's are not more already."""
SWEEP_BYTES = 256 << 20
"""Wanted values of one sample that are observed in one sweep; more need several."""
_BATCH = 32
"""Samples a run at most, and no more than the data come with: the runtime holds other values too."""
_FLOATS = frozenset({ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.DOUBLE})


@dataclass(frozen=True)
class Plan:
    """Names of values, sweep by sweep in the order of the graph, and the data in batches of a size that fits them."""

    sweeps: tuple[tuple[str, ...], ...]
    data: Dataset
    types: Mapping[str, ir.TypeProtocol]
    """The type of each observable value."""


def values(model: ir.Model) -> dict[str, ir.Value]:
    """Inputs and results of nodes of the main graph, in its order; constants are not among them."""
    inputs = [value for value in model.graph.inputs if not value.is_initializer()]
    nodes = [node for node in model.graph if node.op_type != "Constant"]
    return {value.name: value for value in (*inputs, *(out for node in nodes for out in node.outputs)) if value.name}


def observable(model: ir.Model, found: Facts | None = None) -> dict[str, ir.TypeProtocol]:
    """The values that can be observed, with their types: float tensors of the main graph.

    Values inside If, Loop and Scan and inside functions cannot become outputs of the model.
    """
    found = sizes.infer(model) if found is None else found
    types = {name: _type(value, found) for name, value in values(model).items()}
    return {name: kind for name, kind in types.items() if isinstance(kind, ir.TensorType) and kind.dtype in _FLOATS}


def plan(model: ir.Model, names: Sequence[str], data: Dataset) -> Plan:
    """Share values out among sweeps; one of unknown size is taken to be as large as the largest that is known."""
    feed = next(data.batched(1).batches()).feed
    found = sizes.infer(model, _dims(input_specs(model), feed))
    types = observable(model, found)
    missing = [name for name in names if name not in types]
    assert not missing, f"no float values of the main graph: {missing}"
    order = values(model)
    known = {name: _bytes(found.get(value)) for name, value in order.items() if name in types}
    largest = max((size for size in known.values() if size is not None), default=0)
    weights = {name: size if size is not None else largest for name, size in known.items() if name in set(names)}
    sweeps: list[list[str]] = [[]]
    loads = [0]
    for name, size in weights.items():
        if sweeps[-1] and loads[-1] + size > SWEEP_BYTES:
            sweeps.append([])
            loads.append(0)
        sweeps[-1].append(name)
        loads[-1] += size
    batch = max(1, min(_BATCH, data.batch, BATCH_BYTES // max(1, *loads)))
    return Plan(tuple(map(tuple, sweeps)), data.batched(batch), types)


def run(
    model: ir.Model, names: Sequence[str], planned: Plan, open_session: Callable[[ir.Model], Session]
) -> Iterator[tuple[int, Batch, dict[str, Array]]]:
    """Yield the number of the first sample, the batch, and the named values (in this order) of each run of one sweep."""
    inputs = {value.name for value in model.graph.inputs}
    inner = [name for name in names if name not in inputs]
    with open_session(part(model, inner, planned.types)) if inner else nullcontext() as session:
        start = 0
        for batch in planned.data.batches():
            outputs = session.run(batch.feed) if session is not None else {}
            found = {name: outputs[name] if name in outputs else batch.feed[name] for name in names}
            del outputs  # who takes the values one by one can let go of them
            yield start, batch, found
            del found
            start += batch.samples


def part(model: ir.Model, names: Sequence[str], types: Mapping[str, ir.TypeProtocol]) -> ir.Model:
    """A clone that computes the named results of nodes, which are its outputs, and nothing else."""
    clone = model.clone()
    graph, found = clone.graph, values(clone)
    graph.outputs.clear()
    for name in names:
        value = found[name]
        value.type, value.shape = types[name], None  # what a file states of a shape may be wrong
        graph.outputs.append(value)
    for node in reversed(graph):
        if not any(output.uses() or output.is_graph_output() for output in node.outputs):
            graph.remove(node, safe=True)
    for name, value in [*graph.initializers.items()]:
        if not value.uses() and not value.is_graph_input():
            del graph.initializers[name]
    return clone


def _type(value: ir.Value, found: Facts) -> ir.TypeProtocol | None:
    return found[value].type if value in found else value.type


def _bytes(known: ir.TypeAndShape | None) -> int | None:
    if known is None or known.shape is None or not known.shape.is_static() or not isinstance(known.type, ir.TensorType):
        return None
    return math.prod(known.shape.numpy()) * int(known.type.dtype.itemsize)


def _dims(specs: Sequence[TensorSpec], feed: Feed) -> dict[str, int]:
    """Sizes of the symbolic dimensions of the inputs in one feed."""
    pairs = (pair for spec in specs for pair in zip(spec.shape or (), feed[spec.name].shape, strict=False))
    return {dim: size for dim, size in pairs if isinstance(dim, str)}
