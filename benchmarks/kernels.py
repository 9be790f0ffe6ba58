"""Which kernels OpenVINO chooses for a model, how much of its time each kind takes, and what integers can gain at most here.

The counters name a kernel by its instruction set and type: ``brgconv_avx512_I8`` multiplies integers with AVX-512 (VNNI),
``brgconv_avx512_amx_I8`` with AMX.
"""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import onnx
from onnx import helper

from graphopt.contracts import Feed

RUNS, WARM_UP = 40, 5
_CONVERT = ("Reorder", "FakeQuantize", "Convert", "PowerStatic", "Quantize", "Dequantize")
"""How the types of nodes begin that bring numbers from one type, or layout, to another."""


def kernels(path: Path, feed: Feed) -> dict[str, Any]:
    """Parts of the time, by kind and by kernel, the largest first; microseconds of a run in all."""
    import openvino

    properties = {"INFERENCE_NUM_THREADS": "1", "NUM_STREAMS": "1", "INFERENCE_PRECISION_HINT": "f32", "PERF_COUNT": "YES"}
    request = openvino.Core().compile_model(str(path), "CPU", properties).create_infer_request()
    times: defaultdict[tuple[str, str, str], list[float]] = defaultdict(list)
    for index in range(WARM_UP + RUNS):
        request.infer(dict(feed))
        for node in request.get_profiling_info() if index >= WARM_UP else ():
            if node.status.name == "EXECUTED":
                times[node.node_name, node.node_type, node.exec_type].append(1e6 * node.real_time.total_seconds())
    kinds: defaultdict[str, float] = defaultdict(float)
    names: defaultdict[str, float] = defaultdict(float)
    for (_, node_type, kernel), microseconds in times.items():
        taken = median(microseconds)
        kinds[_kind(node_type, kernel)] += taken
        names[f"{node_type} {kernel}"] += taken
    total = sum(kinds.values()) or 1.0
    return {
        "microseconds": total,
        **{kind: kinds[kind] / total for kind in ("integer", "conversion", "float")},
        "kernels": {name: taken / total for name, taken in sorted(names.items(), key=lambda item: -item[1])},
    }


def _kind(node_type: str, kernel: str) -> str:
    if node_type.startswith(_CONVERT):
        return "conversion"
    return "integer" if kernel.lower().endswith(("i8", "u8")) else "float"


def large(kind: str, path: Path) -> tuple[int, ...]:
    """Write a model of one large Conv or MatMul, with as much work as fills any kernel; the shape of its input ``x``."""
    rng = np.random.default_rng(0)
    shape, weight = {"Conv": ((1, 256, 28, 28), (256, 256, 3, 3)), "MatMul": ((1, 256, 1024), (1024, 2048))}[kind]
    attributes = {"pads": [1, 1, 1, 1]} if kind == "Conv" else {}
    array = (rng.standard_normal(weight) / 50).astype(np.float32)
    nodes = [helper.make_node("Relu", ["x"], ["r"], name="relu")]
    nodes.append(helper.make_node(kind, ["r", "w"], ["y"], name=kind, **attributes))
    given, made = (helper.make_tensor_value_info(name, 1, size) for name, size in (("x", shape), ("y", None)))
    graph = helper.make_graph(nodes, kind, [given], [made], [onnx.numpy_helper.from_array(array, "w")])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    onnx.save(onnx.shape_inference.infer_shapes(model), path)
    return shape
