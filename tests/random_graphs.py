"""Random valid models for property tests: what exporters write, mixed without sense but within the rules.

Inputs: x float[N, 4, 4, 4], y float[N, 6], flag bool[], w float[] (an initializer that a caller may override), u, which nobody
uses, and such other initializers as a caller may override. Everything that is drawn is valid ONNX and runs on onnxruntime at
every batch size N. ``random_steps``, ``random_moves`` and ``random_layers`` hold what
models are made of.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from contextlib import suppress

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

import random_layers as layers
import random_moves as moves
import random_steps as steps
import random_types as types
import random_windows as windows
from random_builder import INPUTS, Graph, UnfitError, Value, float_info

OPSETS = (9, 10, 11, 12, 13, 14, 15, 16, 17, 17, 18, 18, 19, 20, 20, 21, 22, 23, 23)
_FIRST_IR_VERSION, _OLD_IR_VERSION = {19: 9, 21: 10, 23: 11}, 3


def branches(g: Graph) -> None:
    """If on an input or a constant; the branches capture what they like."""
    if g.depth < 2:
        source = g.pick()
        steps.if_graph(g, source, [_branch(g, source) for _ in range(2)])


def _branch(g: Graph, source: Value) -> onnx.GraphProto:
    inner = Graph(g.random, g.opset, g.names, g.depth + 1, [*g.outer, *g.own], weights=[*g.weights])
    inner.old_ir, inner.arrays = g.old_ir, {**g.arrays}
    grow(inner, g.choose(0, 1, 2, 3))
    result = g.choose(*([v for v in inner.own if v.dims == source.dims] or [source]))
    name = inner.one(g.choose("Identity", "Neg"), result)
    return helper.make_graph(inner.nodes, f"branch{g.depth}", [], [float_info(name, None)], inner.initializers)


_OFTEN: dict[Callable[[Graph], None], int] = {
    branches: 2,
    layers.activation: 3,
    layers.attention: 1,
    layers.convolution: 4,
    layers.double: 1,
    layers.gemm: 2,
    layers.limits: 1,
    layers.matmul: 2,
    layers.neutral: 1,
    layers.normalization: 2,
    layers.padded: 2,
    layers.pooled: 1,
    layers.recurrent: 1,
    moves.moved: 3,
    moves.parts: 1,
    steps.binary: 2,
    steps.call: 1,
    steps.computed: 2,
    steps.concat: 1,
    steps.constants: 1,
    steps.dimension: 1,
    steps.filled: 1,
    steps.flatten: 1,
    steps.loop: 1,
    steps.overridable: 1,
    steps.random: 1,
    steps.round_trip: 2,
    steps.sequence: 1,
    steps.split: 1,
    steps.unary: 3,
    steps.where: 1,
    types.counted: 1,
    types.empty: 1,
    types.extremes: 1,
    types.selected: 1,
    types.topped: 1,
    types.typed: 4,
    windows.either: 1,
    windows.enlarged: 2,
    windows.ladder: 4,
    windows.mapped: 1,
    windows.scanned: 1,
    windows.scattered: 2,
}
_STEPS = [step for step, often in _OFTEN.items() for _ in range(often)]


def grow(g: Graph, count: int) -> None:
    for _ in range(count):
        with suppress(UnfitError):  # what a step has made so far stays, read by nobody
            g.choose(*_STEPS)(g)


def model(seed: int, most: int = 8) -> onnx.ModelProto:
    """The model number ``seed``, of some 5 to 80 nodes."""
    chance = random.Random(seed)
    g = Graph(chance, chance.choice(OPSETS))
    g.old_ir = g.opset < 13 and g.chance(6)
    g.own += [Value(name, dims) for name, dims in INPUTS.items() if name != "u"]
    grow(g, chance.randint(1, most))
    made = g.own[2:] or g.own[:1]
    used = {name for node in g.nodes for name in node.input}
    sinks = [value for value in made if value.name not in used]  # so that little is dead
    results = [*sinks[-6:], *chance.sample(made, min(len(made), chance.randrange(3)))] or made[-1:]
    results = [*dict.fromkeys(results)]
    if results[0].name in INPUTS:
        results = [g.add("Identity", [results[0]], results[0].dims)]
    inputs = [float_info(name, dims) for name, dims in INPUTS.items()]
    inputs += [helper.make_tensor_value_info("flag", TensorProto.BOOL, []), float_info("w", ())]
    inputs += [helper.make_tensor_value_info(t.name, t.data_type, t.dims) for t in g.overridable]
    outputs = [float_info(value.name, value.dims) for value in dict.fromkeys([*results, *g.given])]
    override = numpy_helper.from_array(np.array(2.0, np.float32), "w")
    if chance.randrange(4) == 0:
        _leave_notes(g)
    graph = helper.make_graph(g.nodes, "random", inputs, outputs, [*g.initializers, override])
    version = max(number for since, number in {0: 8, **_FIRST_IR_VERSION}.items() if g.opset >= since)
    opsets = [helper.make_opsetid("", g.opset), helper.make_opsetid("local", 1)]
    body = [helper.make_node("Identity", ["a"], ["b"]), helper.make_node("Add", ["b", "a"], ["c"])]
    function = helper.make_function("local", "twice", ["a"], ["c"], body, opsets[:1])
    if g.old_ir:
        return helper.make_model(graph, opset_imports=opsets[:1], ir_version=_OLD_IR_VERSION)
    return helper.make_model(graph, opset_imports=opsets, ir_version=version, functions=[function])


def _leave_notes(g: Graph) -> None:
    """What exporters leave in nodes about their own run."""
    for node in g.nodes[::3]:
        node.doc_string = g.choose("", "/home/me/model.py(12): forward\n", "what a person wrote")
        helper.set_model_props(node, {g.choose("pkg.torch.onnx.stack_trace", "namespace", "mine"): "here"})


def feeds(proto: onnx.ModelProto) -> list[dict[str, np.ndarray]]:
    """Three batch sizes, both values of the flag, and the overridable float initializers overridden, where they are that."""
    given = {tensor.name: tensor for tensor in proto.graph.initializer}
    overridable = [given[i.name] for i in proto.graph.input if i.name in given and given[i.name].data_type == TensorProto.FLOAT]
    overridable = overridable if proto.ir_version > _OLD_IR_VERSION else []
    override = {tensor.name: np.asarray(numpy_helper.to_array(tensor) * 0.5 + 0.25, np.float32) for tensor in overridable}
    return [feed(1, flag=True), feed(3, flag=False), {**feed(2, flag=True), **override}]


def feed(batch: int, *, flag: bool, seed: int = 0) -> dict[str, np.ndarray]:
    """Inputs for a ``model``."""
    rng = np.random.default_rng(seed)
    arrays = {n: rng.standard_normal((batch, *map(int, dims[1:]))).astype(np.float32) for n, dims in INPUTS.items()}
    return {**arrays, "flag": np.array(flag)}
