"""The same int8 file on x64 with VNNI and without: its accuracy on both, for ``--target cpu`` and ``--target cpu-any``.

Without VNNI onnxruntime multiplies u8 by s8 with vpmaddubsw, which adds two products into a saturating int16. The processor
without VNNI is QEMU's emulation of one with AVX2 (qemu-user, 7.2 or newer): onnxruntime finds no VNNI there and runs the
kernels that it would run, instruction by instruction. What ``passes/quantize/saturate.py`` computes is compared with the same
emulation for each kind of layer. Every operator is quantized (``--timing off``), the hardest case. Needs GRAPHOPT_ZOO.
"""

from __future__ import annotations

import shutil
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
from int8 import SAMPLES, ZOO, Case
from onnx import helper, numpy_helper

from graphopt import dataset, model
from graphopt.passes.quantize import saturate
from graphopt.passes.quantize.scheme import Parameters

import common

MODELS = ("cifar_resnet20", "cifar_resnet56", "mobilenet_v1_025", "squeezenet1_1", "mobilenet_v2")
TARGETS = ("cpu", "cpu-any")
GOAL = 0.005
"""How far the accuracy of one file may differ between processors."""


@dataclass(frozen=True)
class Kind:
    """A layer with one u8 input of ``shape``: its weight's shape, its group, and what else is asked of it."""

    shape: tuple[int, ...]
    weight: tuple[int, ...]
    group: int = 1
    pads: int = 0


KINDS = {
    "Conv 3x3, 3 channels": Kind((1, 3, 12, 12), (16, 3, 3, 3), pads=1),
    "Conv 3x3, 16 channels": Kind((1, 16, 12, 12), (16, 16, 3, 3), pads=1),
    "Conv 1x1, 24 channels": Kind((1, 24, 12, 12), (32, 24, 1, 1)),
    "Conv 3x3, 5 channels": Kind((1, 5, 12, 12), (7, 5, 3, 3), pads=1),
    "Conv 3x3, 2 groups of 8": Kind((1, 16, 12, 12), (16, 8, 3, 3), 2, 1),
    "depthwise 3x3": Kind((1, 32, 12, 12), (32, 1, 3, 3), 32, 1),
    "MatMul, 64 x 48": Kind((20, 64), (64, 48)),
    "MatMul, 37 x 48": Kind((20, 37), (37, 48)),
}


def main() -> None:
    parser = common.arguments(__doc__)
    parser.add_argument("--only", nargs="*", default=[*MODELS], choices=MODELS, metavar="MODEL", help="these models only")
    parser.add_argument("--samples", type=int, default=400, help="labelled samples that are evaluated")
    parser.add_argument("--emulator", default="qemu-x86_64", help="qemu-user's program for x86-64")
    parser.add_argument("--processor", default="Haswell", help="the emulated processor: one without VNNI")
    options = parser.parse_args()
    if (emulator := shutil.which(options.emulator)) is None:
        sys.exit(f"{options.emulator} is not found: it comes with QEMU's user emulation (Debian: apt install qemu-user).")
    command = [emulator, "-cpu", options.processor]
    with tempfile.TemporaryDirectory() as folder:
        kinds = {name: layer(kind, command, Path(folder)) for name, kind in KINDS.items()}
        print(kinds, flush=True)
        files: dict[str, dict[str, Any]] = {}
        for case in (case for case in ZOO if case.source in options.only and case.name == case.source):
            for target in TARGETS:
                files[f"{case.name}, {target}"] = found = measured(case, target, command, options.samples, Path(folder))
                print(case.name, target, found, flush=True)
    parts = [page(files, options.samples, options.processor), order(kinds)]
    common.publish("portability", "int8 files on processors without VNNI", parts, {"files": files, "layers": kinds}, options)


def measured(case: Case, target: str, emulated: Sequence[object], samples: int, folder: Path) -> dict[str, Any]:
    """Quantize a model for a target and evaluate the file on this processor and on the emulated one."""
    source = common.zoo() / "models" / f"{case.source}.onnx"
    specs = model.input_specs(model.load(source))
    assert case.data is not None
    calibration, out = folder / f"{case.source}.calibration.npz", folder / f"{case.source}.{target}.onnx"
    np.savez(calibration, **_samples(case.data.read(specs, calibration=True), SAMPLES)[0])
    feed, labels = _samples(case.data.read(specs), samples)
    np.savez(folder / "labelled.npz", **feed)
    asked = ("--recipe", "int8", "--target", target, "--data", calibration, "--timing", "off", "--max-drop", 1)
    report, _ = common.optimized(source, "-o", out, *asked, *case.data.checked())
    if "failed" in report:
        sys.exit(f"{case.name} for {target}: {report['failed']}")
    passes = {one["name"]: one for one in report["passes"]}
    changes = [change for change in passes["quantize.static"]["changes"] if change["done"]]
    float_, here, without = (
        answers(path, folder / "labelled.npz", on) for path, on in ((source, ()), (out, ()), (out, emulated))
    )
    return {
        "samples": len(labels),
        "sites": len(changes),
        "narrow": sum("7 bits" in change["what"] for change in changes),
        "float": _top1(float_, labels),
        "here": _top1(here, labels),
        "without": _top1(without, labels),
        "same_class": float(np.mean(here.argmax(-1) == without.argmax(-1))),
        "largest_difference": float(np.abs(here - without).max() / np.abs(here).max()),
    }


def answers(path: Path, samples: Path, on: Sequence[object]) -> np.ndarray:
    """A model's first output [samples, ...], by this processor or by what ``on`` emulates."""
    out = samples.with_suffix(".answers.npy")
    ran = common.run([*on, sys.executable, Path(__file__).with_name("answers.py"), path, samples, out])
    if ran.returncode:
        sys.exit(f"{path.name} does not run: {ran.stderr.strip()[-500:]}")
    found: np.ndarray = np.load(out)
    return found


def _samples(data: dataset.Dataset, count: int) -> tuple[dict[str, np.ndarray], np.ndarray]:
    batches = [*data.first(count).batches()]
    feed = {name: np.concatenate([batch.feed[name] for batch in batches]) for name in batches[0].feed}
    labels = [batch.labels for batch in batches if batch.labels is not None]
    return feed, np.concatenate(labels) if labels else np.zeros(0)


def _top1(outputs: np.ndarray, labels: np.ndarray) -> float:
    return float(np.mean(outputs.reshape(len(outputs), -1).argmax(-1) == labels.reshape(-1)))


def layer(kind: Kind, emulated: Sequence[object], folder: Path) -> dict[str, Any]:
    """One layer with loud inputs and large weights on both processors, beside what is computed of it."""
    rng = np.random.default_rng(0)
    weight = rng.choice(np.array([-127, -90, 30, 100, 127], np.int8), kind.weight)
    values = rng.integers(150, 256, kind.shape).astype(np.uint8)
    sums, exact = _sums(kind, weight, values)
    scale = float(2**-9)
    path, samples = folder / "layer.onnx", folder / "layer.npz"
    onnx.save(_model(kind, weight, scale), path)
    np.savez(samples, x=values)
    here, without = (answers(path, samples, on).astype(np.int64).reshape(exact.shape) for on in ((), emulated))
    expected, saturated = (np.clip(np.rint(total * scale) + _MIDDLE, 0, 255) for total in (exact, sums))
    return {
        "saturates": float(np.mean(sums != exact)),
        "here": bool(np.array_equal(here, expected)),
        "without": bool(np.array_equal(without, saturated)),
    }


_ZERO, _MIDDLE = 3, 128


def _sums(kind: Kind, weight: np.ndarray, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """A layer's sums in int32 in the shape of its output: with pairs in 16 bits, and exact."""
    conv = len(kind.weight) > 2
    loaded = ir.from_proto(_model(kind, weight, 1.0))
    node = next(node for node in loaded.graph if node.op_type.startswith("QLinear"))
    inputs = [ir.Value(name="x"), ir.Value(name="w", shape=ir.Shape(kind.weight))]
    plain = ir.Node("", "Conv" if conv else "MatMul", inputs, [*node.attributes.values()])
    read = Parameters(np.float32(1), np.uint8(_ZERO), ir.DataType.UINT8, None, 0, 255)
    described = saturate.Layer("layer", plain, weight, 0 if conv else 1, read)
    rows = saturate.kernel_rows(described, values.astype(np.float32) - _ZERO).astype(np.int64)  # [groups, rows, K]
    kernels = saturate.kernel_weight(described).astype(np.int64)  # [groups, out / groups, K]
    exact = rows @ kernels.swapaxes(1, 2)
    saturated = exact
    if kind.group == 1 or kind.weight[1] > 1:
        products = saturate.pairs(rows)[:, :, None] * saturate.pairs(kernels)[:, None]
        saturated = products.sum(-1).clip(saturate.LOWEST, saturate.HIGHEST).sum(-1)
    less = _ZERO * kernels.sum(-1)[:, None]

    def shaped(sums: np.ndarray) -> np.ndarray:
        flat = np.concatenate([*(sums - less)], axis=-1)  # [rows, out]
        return flat.T.reshape(1, -1, *_spatial(kind)) if conv else flat

    return shaped(saturated), shaped(exact)


def _spatial(kind: Kind) -> tuple[int, ...]:
    return tuple(size + 2 * kind.pads - k + 1 for size, k in zip(kind.shape[2:], kind.weight[2:], strict=True))


def _model(kind: Kind, weight: np.ndarray, scale: float) -> onnx.ModelProto:
    conv = len(kind.weight) > 2
    constants = {
        "one": np.float32(1),
        "zero": np.uint8(_ZERO),
        "w": weight,
        "w_zero": np.int8(0),
        "y_scale": np.float32(1 / scale),
        "middle": np.uint8(_MIDDLE),
    }
    attributes = {"group": kind.group, "pads": [kind.pads] * 4} if conv else {}
    names = ["x", "one", "zero", "w", "one", "w_zero", "y_scale", "middle"]
    node = helper.make_node("QLinearConv" if conv else "QLinearMatMul", names, ["y"], **attributes)
    u8 = onnx.TensorProto.UINT8
    graph = helper.make_graph(
        [node],
        "layer",
        [helper.make_tensor_value_info("x", u8, [None, *kind.shape[1:]])],
        [helper.make_tensor_value_info("y", u8, None)],
        [numpy_helper.from_array(np.asarray(array), name) for name, array in constants.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)


def page(files: dict[str, dict[str, Any]], samples: int, processor: str) -> str:
    """The table of files."""
    header = ("file", "operators in int8", "of 7 bits", "top-1 float", "with VNNI", "without", "difference", "same class")
    rows = [
        (
            name,
            found["sites"],
            found["narrow"],
            *(f"{found[key]:.4f}" for key in ("float", "here", "without")),
            f"{found['without'] - found['here']:+.4f}",
            f"{found['same_class']:.1%}",
        )
        for name, found in files.items()
    ]
    worst = {
        target: max((abs(f["without"] - f["here"]) for n, f in files.items() if n.endswith(f", {target}")), default=0)
        for target in TARGETS
    }
    kept = "holds" if worst["cpu-any"] <= GOAL else "does not hold"
    text = (
        f"{samples} labelled samples, the same files on both processors; *without*: onnxruntime on an emulated {processor}. "
        f"*Same class*: samples whose answer is the same on both. The goal is a difference of at most {GOAL:.3f} for "
        f"`cpu-any`: it {kept} (largest {worst['cpu-any']:.4f}). A file for `cpu` promises nothing without VNNI (largest "
        f"{worst['cpu']:.4f})."
    )
    if left := [name for name in MODELS if not any(file.startswith(f"{name}, ") for file in files)]:
        text += f" Not measured this time (`--only`): {', '.join(left)}."
    return f"{text}\n\n{common.table(header, rows)}"


def order(kinds: dict[str, dict[str, Any]]) -> str:
    """The table of kinds of layers."""
    rows = [
        (name, f"{found['saturates']:.1%}", *("yes" if found[key] else "**no**" for key in ("here", "without")))
        for name, found in kinds.items()
    ]
    header = ("layer", "outputs that saturate", "exact with VNNI", "as computed without")
    text = (
        "## Which products are added in pairs\n\n`saturate.py` takes the reduction of a layer as the kernels store it: kernel "
        "position first, channel last, in pairs, a zero behind an odd number; depthwise kernels add in 32 bits. Layers with "
        "loud inputs and large weights, every output of both processors compared with that:"
    )
    return f"{text}\n\n{common.table(header, rows)}"


if __name__ == "__main__":
    main()
