"""Caches that a model writes part by part: reads beside what was written, and writes that fill the tensor."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from simplifying import operators, simplified

RNG = np.random.default_rng(0)
SHAPE = (2, 6, 3)


def grid(begin: int, end: int, axes: int = 2) -> np.ndarray:
    """Indices of x[:, begin:end] of a tensor of SHAPE, by its first two axes or by all three."""
    ranges = [np.arange(SHAPE[0]), np.arange(begin, end), np.arange(SHAPE[2])][:axes]
    return np.stack(np.meshgrid(*ranges, indexing="ij"), axis=-1).astype(np.int64)


def streaming(windows: Sequence[np.ndarray], reads: Sequence[tuple[int, int]] = (), **attributes: str) -> onnx.ModelProto:
    """x is written window by window with u0, u1, ...; z0, z1, ... are what is then read of it, y the whole."""
    value, inputs, nodes = "x", [helper.make_tensor_value_info("x", TensorProto.FLOAT, SHAPE)], []
    tensors, outputs = [], [helper.make_tensor_value_info("y", TensorProto.FLOAT, SHAPE)]
    for i, window in enumerate(windows):
        dims = [*window.shape[:-1], *SHAPE[window.shape[-1] :]]
        inputs.append(helper.make_tensor_value_info(f"u{i}", TensorProto.FLOAT, dims))
        tensors.append(numpy_helper.from_array(window, f"i{i}"))
        nodes.append(helper.make_node("ScatterND", [value, f"i{i}", f"u{i}"], [f"x{i}"], f"write{i}", **attributes))
        value = f"x{i}"
    for i, (begin, end) in enumerate(reads):
        tensors += [
            numpy_helper.from_array(np.array([n]), name) for n, name in ((begin, f"b{i}"), (end, f"e{i}"), (1, f"a{i}"))
        ]
        nodes.append(helper.make_node("Slice", [value, f"b{i}", f"e{i}", f"a{i}"], [f"r{i}"], f"read{i}"))
        nodes.append(helper.make_node("Neg", [f"r{i}"], [f"z{i}"]))
        outputs.append(helper.make_tensor_value_info(f"z{i}", TensorProto.FLOAT, ["A", f"B{i}", "C"]))
    nodes.append(helper.make_node("Neg", [value], ["y"]))
    graph = helper.make_graph(nodes, "g", inputs, outputs, tensors)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)


def result_of(model: onnx.ModelProto) -> list[str]:
    dims = {v.name: [d.dim_value for d in v.type.tensor_type.shape.dim] for v in model.graph.input}
    return operators(simplified(model, {name: RNG.standard_normal(shape).astype(np.float32) for name, shape in dims.items()}))


@pytest.mark.parametrize("axes", [2, 3])
@pytest.mark.parametrize("bounds", [(0, 2, 6), (0, 1, 2, 6)])
def test_writes_that_fill_a_tensor_put_it_together(axes: int, bounds: tuple[int, ...]):
    windows = [grid(a, b, axes) for a, b in itertools.pairwise(bounds)]
    assert result_of(streaming(windows)) == ["Concat", "Neg"]
    assert result_of(streaming(windows[::-1])) == ["Concat", "Neg"]
    negative = windows[0] - np.array(SHAPE[:axes])
    assert result_of(streaming([negative, *windows[1:]])) == ["Concat", "Neg"]


def test_a_write_of_everything_is_what_it_writes():
    assert result_of(streaming([grid(0, 6)])) == ["Neg"]


@pytest.mark.parametrize(
    "windows",
    [
        [grid(0, 2), grid(3, 6)],
        [grid(0, 3), grid(2, 6)],
        [grid(0, 2), grid(2, 6)[:, ::-1].copy()],
        [grid(0, 2), grid(2, 6)[:1]],
    ],
)
def test_writes_that_leave_out_overlap_or_turn_around_stay(windows: list[np.ndarray]):
    assert result_of(streaming(windows)) == ["ScatterND", "ScatterND", "Neg"]


def test_writes_that_add_stay():
    assert result_of(streaming([grid(0, 2), grid(2, 6)], reduction="add")) == ["ScatterND", "ScatterND", "Neg"]


def test_a_read_beside_what_is_written_does_not_wait_for_it():
    model = streaming([grid(1, 3)], [(3, 6), (0, 1), (1, 3), (2, 5)])
    result = simplified(model, {"x": RNG.random(SHAPE, np.float32), "u0": RNG.random((2, 2, 3), np.float32)})
    sources = {node.output[0]: node.input[0] for node in result.graph.node if node.op_type == "Slice"}
    assert sources == {"r0": "x", "r1": "x", "r2": "x0", "r3": "x0"}


@pytest.mark.parametrize(("index", "source"), [(0, "x"), (-1, "x"), (2, "x0"), ([0, 4], "x0"), ([3, 5], "x")])
def test_a_gather_beside_what_is_written_does_not_wait_for_it(index: int | list[int], source: str):
    model = streaming([grid(1, 3)])
    model.graph.initializer.append(numpy_helper.from_array(np.array(index, np.int64), "index"))
    model.graph.node.append(helper.make_node("Gather", ["x0", "index"], ["g"], axis=1))
    model.graph.node.append(helper.make_node("Neg", ["g"], ["z"]))
    model.graph.output.append(helper.make_tensor_value_info("z", TensorProto.FLOAT, ["A", *["B"] * np.ndim(index), "C"]))
    result = simplified(model, {"x": RNG.random(SHAPE, np.float32), "u0": RNG.random((2, 2, 3), np.float32)})
    assert next(node.input[0] for node in result.graph.node if node.op_type == "Gather") == source


def test_indices_that_a_caller_may_override_decide_nothing():
    model = streaming([grid(0, 6)])
    model.graph.input.append(helper.make_tensor_value_info("i0", TensorProto.INT64, [2, 6, 2]))
    assert operators(simplified(model)) == ["ScatterND", "Neg"]


def test_a_write_that_is_an_output_or_read_by_a_branch_stays_for_them():
    model = streaming([grid(0, 2), grid(2, 6)])
    model.graph.output.append(helper.make_tensor_value_info("x0", TensorProto.FLOAT, SHAPE))
    feed = {
        "x": RNG.random(SHAPE, np.float32),
        "u0": RNG.random((2, 2, 3), np.float32),
        "u1": RNG.random((2, 4, 3), np.float32),
    }
    assert operators(simplified(model, feed)) == ["ScatterND", "Concat", "Neg"]
