"""How the passes of ``lossless`` scale: CPU seconds for graphs that take others minutes, and for 1,000 to 50,000 nodes.

Each graph is built in memory and goes through the passes once; building and writing are not counted.
"""

from __future__ import annotations

import itertools
import time
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
from onnx import TensorProto, helper, numpy_helper

from graphopt.model import count_nodes

import lossless
from common import arguments, publish, table

BLOCK_NODES = 21


def model(nodes: list[onnx.NodeProto], outputs: list[str], weights: list[onnx.TensorProto]) -> onnx.ModelProto:
    """A graph with the inputs x float[N, 8, 16] and flag bool[]."""
    value = helper.make_tensor_value_info
    inputs = [value("x", TensorProto.FLOAT, ["N", 8, 16]), value("flag", TensorProto.BOOL, [])]
    results = [value(name, TensorProto.FLOAT, None) for name in outputs]
    graph = helper.make_graph(nodes, "graph", inputs, results, weights)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


def chain(count: int) -> onnx.ModelProto:
    """``count`` Adds, one after the other: nothing to simplify."""
    names = ["x", *(f"v{i}" for i in range(count))]
    return model([helper.make_node("Add", [a, "x"], [b]) for a, b in itertools.pairwise(names)], names[-1:], [])


def fan(count: int) -> onnx.ModelProto:
    """``count`` different nodes that all use one input."""
    names = [f"v{i}" for i in range(count)]
    nodes = [helper.make_node("LeakyRelu", ["x"], [name], alpha=1 / (i + 2)) for i, name in enumerate(names)]
    return model([*nodes, helper.make_node("Sum", names, ["y"])], ["y"], [])


def nested(depth: int) -> onnx.ModelProto:
    """``depth`` Ifs, each in the then-branch of the one before; the innermost branch and all others capture x."""
    node = helper.make_node("Relu", ["x"], [f"y{depth}"])
    for level in reversed(range(depth)):
        info = helper.make_tensor_value_info
        inner = info(f"y{level + 1}", TensorProto.FLOAT, None)
        other = helper.make_node("Neg", ["x"], [f"else{level}"])
        branches = {
            "then_branch": helper.make_graph([node], f"then{level}", [], [inner]),
            "else_branch": helper.make_graph([other], f"else{level}", [], [info(f"else{level}", TensorProto.FLOAT, None)]),
        }
        node = helper.make_node("If", ["flag"], [f"y{level}"], **branches)
    return model([node], ["y0"], [])


def blocks(count: int) -> onnx.ModelProto:
    """``count`` nodes as exporters write them: a Reshape by a computed shape, a normalization, a MatMul, a residual Add."""
    rng = np.random.default_rng(0)
    weights = [
        numpy_helper.from_array((rng.standard_normal((16, 16)) / 8).astype(np.float32), "weight"),
        *(numpy_helper.from_array(np.array(v, np.int64), n) for n, v in (("zero", 0), ("front", [0]), ("tail", [8, 16]))),
        *(numpy_helper.from_array(np.array(v, np.float32), n) for n, v in (("two", 2.0), ("eps", 1e-5))),
        numpy_helper.from_array(np.array([-1], np.int64), "last"),
    ]
    nodes: list[onnx.NodeProto] = []
    value = "x"
    for index in range(count // BLOCK_NODES):
        value = _block(nodes, value, f"b{index}_")
    return model(nodes, [value], weights)


def _block(nodes: list[onnx.NodeProto], source: str, prefix: str) -> str:
    def node(op_type: str, *inputs: str, **attributes: Any) -> str:
        name = f"{prefix}{len(nodes)}"
        nodes.append(helper.make_node(op_type, [*inputs], [name], name=f"n{name}", **attributes))
        return name

    count = node("Unsqueeze", node("Gather", node("Shape", source), "zero"), "front")
    flat = node("Reshape", source, node("Concat", count, "last", axis=0))
    back = node("Reshape", flat, node("Concat", count, "tail", axis=0))
    centred = node("Sub", back, node("ReduceMean", back, "last"))
    variance = node("ReduceMean", node("Pow", centred, "two"), "last")
    normal = node("Div", centred, node("Sqrt", node("Add", variance, "eps")))
    product = node("MatMul", node("Identity", normal), node("Transpose", "weight", perm=[1, 0]))
    same = node("Cast", product, to=TensorProto.FLOAT)
    return node("Add", node("Dropout", node("Relu", same)), source)


def main() -> None:
    options = arguments(__doc__).parse_args()
    cases = {
        "3,000 chained Adds": (chain(3000), 2.0),
        "1,000 nodes off one input": (fan(1000), 2.0),
        "25 nested Ifs": (nested(25), 1.0),
        "1,000 mixed nodes": (blocks(1000), None),
        "10,000 mixed nodes": (blocks(10_000), None),
        "50,000 mixed nodes": (blocks(50_000), None),
    }
    figures = {}
    rows = []
    for name, (proto, bound) in cases.items():
        graph = ir.from_proto(proto)
        before = count_nodes(graph)
        start = time.process_time()
        lossless.apply(graph)
        seconds = time.process_time() - start
        after = count_nodes(graph)
        figures[name] = {"before": before, "after": after, "cpu_seconds": seconds, "bound_seconds": bound}
        each = f"{1e6 * seconds / before:,.0f}"
        rows.append((name, f"{before:,} → {after:,}", f"{seconds:.2f}", each, "" if bound is None else f"{bound:g}"))
    text = (
        "CPU seconds of the passes of `lossless`, without reading and writing. The mixed graphs repeat a block of "
        f"{BLOCK_NODES} nodes: a Reshape by a computed shape, a normalization, a MatMul, a residual Add."
    )
    header = ("graph", "nodes", "CPU s", "µs a node", "bound, CPU s")
    publish("scaling", "Cost of the lossless passes by the size of the graph", [text, table(header, rows)], figures, options)


if __name__ == "__main__":
    main()
