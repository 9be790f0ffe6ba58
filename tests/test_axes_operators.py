"""Each rule against ONNX's own examples of its operator: along each axis of each input, removal is exact or forbidden."""

from __future__ import annotations

import collections
import functools
import warnings
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper, numpy_helper

from graphopt import axes
from graphopt.axes.rules import RULES
from graphopt.model import check

from helpers import assert_same_outputs, run

CASES = 3
"""Examples of each operator that are tried."""


@functools.cache
def examples() -> dict[str, list[Any]]:
    from onnx.backend.test.case.node import collect_testcases

    found: dict[str, list[Any]] = collections.defaultdict(list)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for case in collect_testcases(None):
            plain = all(isinstance(array, np.ndarray) for array in case.data_sets[0][0]) if case.data_sets else False
            if len(case.model.graph.node) == 1 and plain:
                found[case.model.graph.node[0].op_type].append(case)
    return found


def embedded(case: Any, which: int, axis: int) -> ir.Model:
    """The example with one axis of an input made by a weight, its other inputs constant, and its float outputs summed."""
    model, (inputs, outputs) = onnx.ModelProto(), case.data_sets[0]
    model.CopyFrom(case.model)
    graph, rng = model.graph, np.random.default_rng(0)
    names, rank, size = [value.name for value in graph.input], inputs[which].ndim, inputs[which].shape[axis]
    del graph.input[:], graph.value_info[:]
    graph.initializer.extend(
        numpy_helper.from_array(np.asarray(array), name)
        for name, array in zip(names, inputs, strict=True)
        if name != names[which]
    )
    graph.input.append(helper.make_tensor_value_info("raw", TensorProto.FLOAT, inputs[which].shape))
    matrix = np.eye(size) + 0.1 * rng.random((size, size))
    matrix /= matrix.sum(0)  # means of the example's values: where it is defined for these, it is for those
    graph.initializer.append(numpy_helper.from_array(matrix.astype(np.float32), "made"))
    last = [*(other for other in range(rank) if other != axis), axis]
    before = [
        helper.make_node("Transpose", ["raw"], ["moved"], perm=last),
        helper.make_node("MatMul", ["moved", "made"], ["product"]),
        helper.make_node("Transpose", ["product"], [names[which]], perm=[last.index(other) for other in range(rank)]),
    ]
    after, results = [], []
    for place, (value, array) in enumerate(zip(graph.output, outputs, strict=True)):
        if np.asarray(array).dtype != np.float32 or not np.asarray(array).ndim:
            results.append(value)
            continue
        graph.initializer.append(numpy_helper.from_array(rng.standard_normal(array.shape).astype(np.float32), f"weight{place}"))
        after.append(helper.make_node("Mul", [value.name, f"weight{place}"], [f"weighted{place}"]))
        after.append(helper.make_node("ReduceSum", [f"weighted{place}"], [f"sum{place}"], keepdims=0))
        results.append(helper.make_tensor_value_info(f"sum{place}", TensorProto.FLOAT, None))
    nodes = [*before, *graph.node, *after]
    del graph.node[:]
    graph.node.extend(nodes)
    del graph.output[:]
    graph.output.extend(results)
    return ir.from_proto(model)


def assert_exact_or_forbidden(model: ir.Model, feed: dict[str, np.ndarray]) -> bool:
    """Whether anything could be removed."""
    channels = axes.analyse(model)
    removal = {
        group: chosen
        for group in channels.groups()
        if any(use.value.name == "made" for use in group.producers)
        and group.prunable
        and len(chosen := group.choose(np.arange(group.size)[::-1], max(1, group.size // 2)))
    }
    if not removal:
        return False
    masked = axes.masked(model, channels, removal)
    try:
        run(masked, feed)
    except Exception:
        return False
    axes.remove(model, channels, removal)
    check(model)
    assert_same_outputs(masked, model, feed, rtol=1e-3)
    return True


OPERATORS = sorted({name for name in RULES if "." not in name} - {"Constant", "ConstantOfShape", "MeanVarianceNormalization"})


@pytest.mark.parametrize("operator", OPERATORS)
def test_removal_is_exact_or_forbidden_along_each_axis_of_an_operator(operator: str) -> None:
    for case in examples()[operator][:CASES]:
        for which, array in enumerate(case.data_sets[0][0]):
            if array.dtype != np.float32:
                continue
            for axis in range(array.ndim):
                if 1 < array.shape[axis] < 100:
                    assert_exact_or_forbidden(embedded(case, which, axis), {"raw": array})
