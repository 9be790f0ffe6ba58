from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from graphopt import targets
from graphopt.contracts import Change
from graphopt.passes.fuse.residual import KeepResidual

from fusing import model
from helpers import assert_same_outputs
from simplifying import context

POST_NORM = "r = Relu (x)  s = Add (r, y)  z = LayerNormalization (s, g, b)"
INPUTS = "float[N, 4, 8] x, float[N, 4, 8] y"
WEIGHTS = {"g": np.ones(8, np.float32), "b": np.zeros(8, np.float32)}


def separate(proto: onnx.ModelProto, exclude: tuple[str, ...] = ()) -> tuple[onnx.ModelProto, list[Change]]:
    changed = ir.from_proto(proto)
    changes = KeepResidual().apply(changed, context(exclude=exclude))
    return ir.to_proto(changed), [*changes]


def operators(proto: onnx.ModelProto) -> list[str]:
    return [node.op_type for node in proto.graph.node]


def test_the_sum_before_a_normalization_is_written_so_that_the_target_runs_both_apart() -> None:
    proto = model(POST_NORM, INPUTS, "float[N, 4, 8] z", **WEIGHTS)
    result, changes = separate(proto)
    assert operators(result) == ["Relu", "Sum", "LayerNormalization"]
    assert "SkipLayerNormalization" in changes[0].why
    feed = {name: np.random.default_rng(0).standard_normal((2, 4, 8)).astype(np.float32) for name in "xy"}
    assert_same_outputs(proto, result, feed, rtol=0)


@pytest.mark.parametrize(
    ("body", "outputs"),
    [
        (POST_NORM + "  t = Neg (s)", "float[N, 4, 8] z, float[N, 4, 8] t"),
        (POST_NORM, "float[N, 4, 8] z, float[N, 4, 8] s"),
        ("s = Add (x, b)  z = LayerNormalization (s, g, b)", "float[N, 4, 8] z"),
        ("s = Mul (x, y)  z = LayerNormalization (s, g, b)", "float[N, 4, 8] z"),
    ],
)
def test_a_sum_that_the_target_does_not_fuse_stays(body: str, outputs: str) -> None:
    proto = model(body, INPUTS, outputs, **WEIGHTS)
    result, changes = separate(proto)
    assert changes == []
    assert operators(result) == operators(proto)


def test_an_excluded_sum_stays() -> None:
    _, changes = separate(model(POST_NORM, INPUTS, "float[N, 4, 8] z", **WEIGHTS), exclude=("s",))
    assert changes == []


def test_only_targets_with_the_slow_kernel_are_concerned() -> None:
    assert "SkipLayerNormalization" in targets.load("cpu").slow_kernels
    assert targets.load("tensorrt").slow_kernels == ()
