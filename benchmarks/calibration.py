"""Calibrating a ResNet-50: memory and CPU seconds of each method, beside onnxruntime's own min-max calibrator.

Weights and images are random: what is observed does not matter here, only what it costs. Every figure is a process of its own.
"""

from __future__ import annotations

import json
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir

from graphopt.environment import peak_rss_bytes

import common

METHODS = ("minmax", "moving-average", "percentile", "mse", "entropy")
PEER = "onnxruntime"
ROUNDS = 3
SAMPLES = (16, 512)
STAGES = ((64, 256, 3, 1), (128, 512, 4, 2), (256, 1024, 6, 2), (512, 2048, 3, 2))
"""Width inside, width outside, blocks, stride of a ResNet-50's stages (He et al., 2016, table 1)."""


def main() -> None:
    parser = common.arguments(__doc__)
    parser.add_argument("--child", nargs=3, metavar=("METHOD", "MODEL", "SAMPLES"), help="measure one, in this process")
    options = parser.parse_args()
    if options.child:
        method, path, samples = options.child
        print(json.dumps(measure(method, Path(path), int(samples))))
        return
    figures: dict[str, dict[str, float]] = {}
    with tempfile.TemporaryDirectory() as folder:
        model = Path(folder) / "resnet50.onnx"
        onnx.save(resnet50(), model)
        for samples in SAMPLES:
            rounds = ROUNDS if samples < 100 else 1
            runs: dict[str, list[dict[str, float]]] = {}
            for _ in range(rounds):  # one after the other, so that all meet the same machine
                for method in (*METHODS, PEER) if samples < 100 else METHODS:
                    runs.setdefault(method, []).append(child(method, model, samples))
            for method, found in runs.items():
                figures[f"{method} {samples}"] = {key: statistics.median(run[key] for run in found) for key in found[0]}
    common.publish("calibration", "Calibrating a ResNet-50", [page(figures)], figures, options)


def page(figures: dict[str, dict[str, float]]) -> str:
    few, many = SAMPLES
    peer, base = figures[f"{PEER} {few}"], figures[f"{METHODS[0]} {few}"]

    def row(method: str) -> tuple[object, ...]:
        here, there = figures[f"{method} {few}"], figures.get(f"{method} {many}")
        seconds = here["cpu_seconds"]
        shares = f"{seconds / peer['cpu_seconds']:.2f}", f"{seconds / base['cpu_seconds']:.2f}"
        memory = [f"{found['peak_rss_bytes'] / 1e6:.0f}" if found else "" for found in (here, there)]
        growth = f"{there['peak_rss_bytes'] / here['peak_rss_bytes'] - 1:+.1%}" if there else ""
        return (method, f"{seconds:.2f}", *shares, *memory, growth)

    header = ("method", "CPU s", f"of {PEER}'s", f"of {METHODS[0]}'s", f"peak MB, {few}", f"peak MB, {many}", "growth")
    text = (
        f"From the model's file (102 MB of weights) to the ranges of all {base['tensors']:.0f} float tensors. CPU seconds are "
        f"for {few} images, medians of {ROUNDS} interleaved rounds, without imports; peaks are of resident memory of the whole "
        f"process on {few} and on {many} images. `{PEER}` is the min-max calibrator of `onnxruntime.quantization` on the same "
        "images and tensors. Goals: at most 1.00 of its CPU seconds for min-max, methods with histograms at most 1.5 of ours, "
        "peaks under 800 MB and within 5 % of each other."
    )
    return text + "\n\n" + common.table(header, map(row, (*METHODS, PEER)))


def child(method: str, model: Path, samples: int) -> dict[str, float]:
    ran = common.run([sys.executable, __file__, "--child", method, model, samples])
    assert ran.returncode == 0, ran.stderr
    found: dict[str, float] = json.loads(ran.stdout)
    return found


def measure(method: str, path: Path, samples: int) -> dict[str, float]:
    """CPU seconds from the model's file to the ranges of all its float tensors; imports are not counted."""
    run = peer if method == PEER else ours
    if method == PEER:
        import onnxruntime.quantization.calibrate  # noqa: F401
    begun = time.process_time()
    tensors = run(method, path, samples)
    return {"cpu_seconds": time.process_time() - begun, "tensors": tensors, "peak_rss_bytes": peak_rss_bytes()}


def images(samples: int) -> Iterator[np.ndarray]:
    for index in range(samples):
        yield np.random.default_rng(index).standard_normal((1, 3, 224, 224), np.float32)


def ours(method: str, path: Path, samples: int) -> int:
    from graphopt import model, observe, targets
    from graphopt.contracts import Session, SessionOptions
    from graphopt.dataset import Batch, Dataset
    from graphopt.passes.quantize import ranges

    def stream(spans: Sequence[tuple[int, int]]) -> Iterator[Batch]:
        source = images(samples)
        for start, stop in spans:
            yield Batch({"x": np.concatenate([next(source) for _ in range(stop - start)])}, None, stop - start)

    data = Dataset("random images", ((0, samples),), stream, lambda: "", splittable=True)
    loaded = model.load(path)
    target = targets.load("cpu")
    with tempfile.TemporaryDirectory() as folder:

        def open_session(candidate: ir.Model) -> Session:
            saved = model.save(candidate, Path(folder) / "part.onnx").path
            return targets.runtime(target).open(saved, target, SessionOptions())

        asked = {name: [ranges.OBSERVERS[method]] for name in sorted(observe.observable(loaded))}
        found = observe.collect(loaded, asked, data=data, open_session=open_session)
    chosen = {name: ranges.choose(result, method) for name, (result,) in found.items()}
    return len(chosen)


def peer(_method: str, path: Path, samples: int) -> int:
    from onnxruntime.quantization.calibrate import CalibrationDataReader, CalibrationMethod, create_calibrator

    class Reader(CalibrationDataReader):
        def __init__(self) -> None:
            self.source = images(samples)

        def get_next(self) -> dict[str, np.ndarray] | None:
            found = next(self.source, None)
            return None if found is None else {"x": found}

    with tempfile.TemporaryDirectory() as folder:
        augmented = str(Path(folder) / "augmented.onnx")
        calibrator: Any = create_calibrator(path, None, augmented, calibrate_method=CalibrationMethod.MinMax)
        calibrator.collect_data(Reader())
        return len(calibrator.compute_data().data)


def resnet50() -> onnx.ModelProto:
    """ResNet-50 with random weights, its BatchNorms folded: 53 Conv, 16 Add."""
    rng = np.random.default_rng(0)
    nodes: list[onnx.NodeProto] = []
    weights: list[onnx.TensorProto] = []

    def add(op_type: str, *inputs: str, **attributes: object) -> str:
        nodes.append(onnx.helper.make_node(op_type, inputs, [f"v{len(nodes)}"], f"{op_type}_{len(nodes)}", **attributes))
        return str(nodes[-1].output[0])

    def constant(*shape: int) -> str:
        array = rng.standard_normal(shape, np.float32) * np.float32(np.sqrt(2 / max(1, np.prod(shape[1:]))))
        weights.append(onnx.numpy_helper.from_array(array, f"w{len(weights)}"))
        return str(weights[-1].name)

    def conv(x: str, wide: tuple[int, int], kernel: int, stride: int) -> str:
        there, here = wide
        pads, shape = [kernel // 2] * 4, (here, there, kernel, kernel)
        return add("Conv", x, constant(*shape), constant(here), kernel_shape=shape[2:], strides=[stride] * 2, pads=pads)

    x = add("MaxPool", add("Relu", conv("x", (3, 64), 7, 2)), kernel_shape=[3, 3], strides=[2, 2], pads=[1] * 4)
    before = 64
    for inside, outside, blocks, stride in STAGES:
        for block in range(blocks):
            step = stride if block == 0 else 1
            skip = x if block else conv(x, (before, outside), 1, step)
            y = add("Relu", conv(x, (before, inside), 1, 1))
            y = add("Relu", conv(y, (inside, inside), 3, step))
            x = add("Relu", add("Add", conv(y, (inside, outside), 1, 1), skip))
            before = outside
    y = add("Gemm", add("Flatten", add("GlobalAveragePool", x)), constant(1000, before), constant(1000), transB=1)
    value = onnx.helper.make_tensor_value_info
    graph = onnx.helper.make_graph(nodes, "resnet50", [value("x", 1, ["N", 3, 224, 224])], [value(y, 1, ["N", 1000])], weights)
    made = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=8)
    return onnx.shape_inference.infer_shapes(made)


if __name__ == "__main__":
    main()
