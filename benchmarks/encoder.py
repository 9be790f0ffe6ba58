"""A transformer's encoder with random weights: LayerNormalization before attention and before two matrices with a Gelu."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import helper


def encoder(path: Path, width: int = 256, tokens: int = 128, layers: int = 4, heads: int = 4) -> Path:
    """Write it to a file: float32 [N, tokens, width] in and out."""
    rng, nodes, weights = np.random.default_rng(0), [], []

    def constant(array: np.ndarray) -> str:
        weights.append(onnx.numpy_helper.from_array(array, f"w{len(weights)}"))
        return f"w{len(weights) - 1}"

    def node(op_type: str, *inputs_: str, **attributes: Any) -> str:
        nodes.append(helper.make_node(op_type, inputs_, [f"v{len(nodes)}"], name=f"n{len(nodes)}", **attributes))
        return f"v{len(nodes) - 1}"

    def linear(x: str, rows: int, columns: int) -> str:
        weight = constant((rng.standard_normal((rows, columns)) / np.sqrt(rows)).astype(np.float32))
        return node("Add", node("MatMul", x, weight), constant(np.zeros(columns, np.float32)))

    def normed(x: str) -> str:
        return node("LayerNormalization", x, constant(np.ones(width, np.float32)), constant(np.zeros(width, np.float32)))

    def split(x: str, order: Sequence[int]) -> str:
        shape = constant(np.array([0, tokens, heads, width // heads]))
        return node("Transpose", node("Reshape", linear(x, width, width), shape), perm=order)

    x = "x"
    for _ in range(layers):
        before = normed(x)
        query, key, value = (split(before, order) for order in ((0, 2, 1, 3), (0, 2, 3, 1), (0, 2, 1, 3)))
        scores = node("Mul", node("MatMul", query, key), constant(np.float32((width // heads) ** -0.5)))
        mixed = node("Transpose", node("MatMul", node("Softmax", scores, axis=-1), value), perm=(0, 2, 1, 3))
        x = node("Add", x, linear(node("Reshape", mixed, constant(np.array([0, tokens, width]))), width, width))
        x = node("Add", x, linear(node("Gelu", linear(normed(x), width, 4 * width)), 4 * width, width))
    nodes.append(helper.make_node("Identity", [normed(x)], ["y"]))
    given, made = (helper.make_tensor_value_info(name, 1, ["N", tokens, width]) for name in "xy")
    graph = helper.make_graph(nodes, "encoder", [given], [made], weights)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10), path)
    return path
