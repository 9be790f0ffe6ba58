"""Memory and CPU time of graphopt on a model of more than 2 GB, beside what onnxruntime needs to run it.

The model is a chain of MatMul, each with 64 MB of random weights of its own, in one file of external data. Every row is a
process of its own; its peak is the most memory it ever had resident, files that it maps included.
"""

from __future__ import annotations

import argparse
import math
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

import common

WIDTH = 4096
LAYER_BYTES = 4 * WIDTH * WIDTH
CHUNK_ROWS = 512

LOAD_AND_SAVE = """
from graphopt import model
loaded = model.load({source!r})
model.save(loaded, {out!r})
"""
CHECK_TOO = """
from graphopt import model
loaded = model.load({source!r})
model.check(loaded)
model.save(loaded, {out!r})
"""
RUN = """
import numpy, onnxruntime
options = onnxruntime.SessionOptions()
options.intra_op_num_threads = 1
session = onnxruntime.InferenceSession({source!r}, options, providers=["CPUExecutionProvider"])
session.run(None, {{"x": numpy.ones((1, {width}), numpy.float32)}})
"""


def main() -> None:
    parser = common.arguments(__doc__)
    parser.add_argument("--gigabytes", type=float, default=2.4, help="size of the weights [default: 2.4]")
    parser.add_argument("--dir", type=Path, help="where the model and its copies go [default: a temporary folder]")
    parser.add_argument("--keep", action="store_true", help="leave the model where it is")
    parser.add_argument("--build", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    layers = math.ceil(options.gigabytes * 1e9 / LAYER_BYTES)
    if options.build:  # in a process of its own: a child's peak begins at its parent's
        build(options.build, layers)
        return
    folder = Path(tempfile.mkdtemp(dir=options.dir))
    try:
        measured = measure(folder, options.gigabytes)
    finally:
        if not options.keep:
            shutil.rmtree(folder)
    publish(measured, layers, options)


def build(path: Path, layers: int) -> None:
    """Write the model; no more than a few rows of a weight are ever in memory."""
    import numpy as np
    import onnx

    rng = np.random.default_rng(0)
    data = path.with_suffix(".data")
    graph = onnx.GraphProto(name="chain")
    make = onnx.helper.make_tensor_value_info
    graph.input.append(make("x", onnx.TensorProto.FLOAT, ["N", WIDTH]))
    with data.open("wb") as file:
        for layer in range(layers):
            tensor = graph.initializer.add(
                name=f"w{layer}", dims=[WIDTH, WIDTH], data_type=onnx.TensorProto.FLOAT, data_location=onnx.TensorProto.EXTERNAL
            )
            for key, value in (("location", data.name), ("offset", file.tell()), ("length", LAYER_BYTES)):
                tensor.external_data.add(key=key, value=str(value))
            for _ in range(0, WIDTH, CHUNK_ROWS):
                rows = rng.random((CHUNK_ROWS, WIDTH), dtype=np.float32) - np.float32(0.5)
                file.write((rows * np.float32(2 * math.sqrt(3 / WIDTH))).data)
            inputs = ["x" if layer == 0 else f"v{layer - 1}", tensor.name]
            graph.node.append(onnx.helper.make_node("MatMul", inputs, [f"v{layer}"], f"layer{layer}"))
    graph.output.append(make(f"v{layers - 1}", onnx.TensorProto.FLOAT, ["N", WIDTH]))
    opset = [onnx.helper.make_opsetid("", 20)]
    path.write_bytes(onnx.helper.make_model(graph, opset_imports=opset, ir_version=10).SerializeToString())


def measure(folder: Path, gigabytes: float) -> dict[str, dict[str, float]]:
    """Run everything once: a row's name to its peak in bytes and its CPU seconds."""
    source, out = folder / "model.onnx", folder / "copy" / "out.onnx"
    out.parent.mkdir()
    built = common.run([sys.executable, __file__, "--build", source, "--gigabytes", gigabytes])
    if built.returncode:
        sys.exit(built.stderr)
    names = {"source": str(source), "out": str(out), "width": WIDTH}
    commands: dict[str, list[Any]] = {
        "`import graphopt.model`": ["-c", "import graphopt.model"],
        "load, save": ["-c", LOAD_AND_SAVE.format(**names)],
        "load, check, save": ["-c", CHECK_TOO.format(**names)],
        "`graphopt optimize --verify off --timing off`": [
            *("-P", "-m", "graphopt", "optimize", source, "-o", out, "--verify", "off", "--timing", "off")
        ],
        "onnxruntime: load, run once": ["-c", RUN.format(**names)],
    }
    measured = {}
    for name, command in commands.items():
        ran = common.run([sys.executable, *command])
        if ran.returncode:
            sys.exit(f"{name} failed:\n{ran.stderr}")
        measured[name] = {"peak_rss_bytes": ran.peak_rss_bytes, "cpu_seconds": ran.cpu_seconds}
        shutil.rmtree(out.parent)
        out.parent.mkdir()
    return measured


def publish(measured: dict[str, dict[str, float]], layers: int, options: argparse.Namespace) -> None:
    bare = next(iter(measured.values()))["peak_rss_bytes"]
    rows = [
        (
            name,
            f"{figures['peak_rss_bytes'] / 1e6:,.0f}",
            f"{(figures['peak_rss_bytes'] - bare) / 1e6:,.0f}",
            f"{figures['cpu_seconds']:.1f}",
        )
        for name, figures in measured.items()
    ]
    text = f"{layers} MatMul of {WIDTH} x {WIDTH}: {layers * LAYER_BYTES / 1e9:.2f} GB of weights in one file of external data."
    header = ("process", "peak MB", "beyond the import", "CPU s")
    title = "A model of more than 2 GB"
    common.publish("large_model", title, [text, common.table(header, rows)], measured, options)


if __name__ == "__main__":
    main()
