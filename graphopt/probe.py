"""Does a target really run here? A model of one node is run on it, and what it computes is looked at.

Names in a list prove nothing: onnxruntime lists CUDA on machines without a GPU, runs on the CPU what a provider does not take,
and has back ends that only write files (QNN's Saver): these load every model and answer zeros.
"""

from __future__ import annotations

import tempfile
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from .contracts.runtimes import Availability, Runtime, SessionOptions
from .errors import GraphoptError

if TYPE_CHECKING:
    from .targets import Target

_GIVEN, _EXPECTED = [-1, 2], [0, 2]
_NEAR = 1e-2  # for types of 16 bits


def probe(runtime: Runtime, target: Target) -> Availability:
    """Run Relu on two numbers."""
    try:
        found = runtime.find(target)
        with tempfile.TemporaryDirectory(prefix="graphopt-") as folder:
            path = Path(folder) / "probe.onnx"
            path.write_bytes(_one_node())
            with runtime.load(path, target, SessionOptions(threads=target.threads)) as session:
                result = session.run({"x": np.array(_GIVEN, np.float32)})["y"]
    except GraphoptError as error:
        return Availability(ok=False, why=error.what, hint=error.hint or "")
    if not np.allclose(result, _EXPECTED, atol=_NEAR):
        return replace(found, ok=False, why=f"{target.provider} computes Relu({_GIVEN}) = {result.tolist()}")
    return found


def _one_node() -> bytes:
    import onnx

    x, y = (onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [2]) for name in "xy")
    graph = onnx.helper.make_graph([onnx.helper.make_node("Relu", ["x"], ["y"])], "probe", [x], [y])
    opset = onnx.helper.make_opsetid("", 14)
    model: bytes = onnx.helper.make_model(graph, opset_imports=[opset], ir_version=8).SerializeToString()
    return model
