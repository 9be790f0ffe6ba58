"""Tiny models, the command line, and one assertion, shared by all tests."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort

HEADER = '<ir_version: 10, opset_import: ["" : 20]>\n'


def from_text(text: str) -> onnx.ModelProto:
    """A model in ONNX's text syntax; the header (IR version, opset 20) is added when there is none."""
    return onnx.parser.parse_model(text if text.lstrip().startswith("<") else HEADER + text)


def write(model: onnx.ModelProto | ir.Model, path: Path) -> Path:
    proto = ir.to_proto(model) if isinstance(model, ir.Model) else model
    onnx.save(proto, path)
    return path


def small_cnn(batch: int | str = "N", seed: int = 0, channels: int = 8) -> onnx.ModelProto:
    """Conv, Relu, Conv with a residual, global pooling, Gemm: x [batch, 3, 8, 8] -> y [batch, 10]."""
    rng = np.random.default_rng(seed)

    def tensor(name: str, *shape: int) -> onnx.TensorProto:
        return onnx.numpy_helper.from_array((rng.standard_normal(shape) * 0.3).astype(np.float32), name)

    node = onnx.helper.make_node
    nodes = [
        node("Conv", ["x", "w1", "b1"], ["c1"], "conv1", pads=[1, 1, 1, 1]),
        node("Relu", ["c1"], ["r1"], "relu1"),
        node("Conv", ["r1", "w2", "b2"], ["c2"], "conv2", pads=[1, 1, 1, 1]),
        node("Add", ["c2", "r1"], ["a"], "add"),
        node("Relu", ["a"], ["r2"], "relu2"),
        node("GlobalAveragePool", ["r2"], ["p"], "pool"),
        node("Flatten", ["p"], ["f"], "flatten"),
        node("Gemm", ["f", "w3", "b3"], ["y"], "gemm", transB=1),
    ]
    c = channels
    weights = [tensor("w1", c, 3, 3, 3), tensor("b1", c), tensor("w2", c, c, 3, 3), tensor("b2", c)]
    weights += [tensor("w3", 10, c), tensor("b3", 10)]
    value = onnx.helper.make_tensor_value_info
    graph = onnx.helper.make_graph(
        nodes,
        "small_cnn",
        [value("x", onnx.TensorProto.FLOAT, [batch, 3, 8, 8])],
        [value("y", onnx.TensorProto.FLOAT, [batch, 10])],
        weights,
    )
    return onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 20)], ir_version=10)


def graphopt(
    *arguments: object, env: Mapping[str, str] | None = None, cwd: Path | None = None
) -> subprocess.CompletedProcess[str]:
    """Run the command line in a process of its own; ``env`` has more variables for it."""
    command, variables = [sys.executable, "-m", "graphopt", *map(str, arguments)], {**os.environ, **(env or {})}
    return subprocess.run(command, capture_output=True, text=True, env=variables, cwd=cwd, check=False)


def installed(folder: Path, module: str, source: str, entry_points: str) -> dict[str, str]:
    """The environment of a process in which a third party's package of one module is installed."""
    site = folder / "site"
    info = site / f"{module}-1.0.dist-info"
    info.mkdir(parents=True)
    (site / f"{module}.py").write_text(source, encoding="utf-8")
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {module}\nVersion: 1.0\n", encoding="utf-8")
    (info / "entry_points.txt").write_text(entry_points, encoding="utf-8")
    return {**os.environ, "PYTHONPATH": str(site)}


def run(model: onnx.ModelProto | ir.Model | Path, feed: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Run once on plain onnxruntime, without graph optimizations: the ground truth of the tests."""
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 3
    if isinstance(model, ir.Model):
        model = ir.to_proto(model)
    source = str(model) if isinstance(model, Path) else model.SerializeToString()
    session = ort.InferenceSession(source, options, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(names, dict(feed)), strict=True))


def assert_same_outputs(
    a: onnx.ModelProto | ir.Model | Path,
    b: onnx.ModelProto | ir.Model | Path,
    feed: Mapping[str, np.ndarray],
    rtol: float = 1e-5,
) -> None:
    """Both models have the same outputs: names, shapes, dtypes, and values within ``rtol`` of the output's largest."""
    first, second = run(a, feed), run(b, feed)
    assert list(first) == list(second)
    for name, expected in first.items():
        actual = second[name]
        assert actual.dtype == expected.dtype, name
        assert actual.shape == expected.shape, name
        if np.issubdtype(expected.dtype, np.floating):
            peak = float(np.nanmax(np.abs(expected), initial=0.0, where=np.isfinite(expected)))
            np.testing.assert_allclose(actual, expected, rtol=rtol, atol=rtol * peak, err_msg=name)
        else:
            np.testing.assert_array_equal(actual, expected, err_msg=name)
