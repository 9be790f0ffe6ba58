"""Every trained model on every target that runs here: agreement with onnxruntime's CPU provider, speed, noise, what stays.

Each pair is measured in a process group of its own with a time limit, so that an engine that hangs or crashes costs its row and
nothing else. ``--only`` and ``--targets`` choose; a target that does not run here is listed with the reason. The second table
is int8 in the target's own style, the third one says what becomes of it in OpenVINO's kernels, the last one holds known traps,
each of which must be caught. With ``--json FILE --resume`` a run that was cut continues. Needs GRAPHOPT_ZOO.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from graphopt import answers, dataset, model, targets, timing
from graphopt.contracts import Silent
from graphopt.dataset.generate import generate
from graphopt.errors import GraphoptError

import common
import kernels
from encoder import encoder

LIMITS = {"models": 90, "int8": 300, "ceilings": 120, "traps": 180}
"""Seconds of one row. int8 chooses sites by timing them."""
TIMING_SECONDS = 4
_CPU = targets.load(targets.REFERENCE)
DIMS = {"T": 32}
"""Sizes of dynamic dimensions other than the batch."""
INT8 = {
    "openvino-cpu": ("cifar_resnet20", "squeezenet1_1", "mobilenet_v2", "encoder"),
    "web-wasm": ("cifar_resnet20", "mobilenet_v1_025", "encoder"),
}
GOALS = {"openvino-cpu": {"encoder": 3.0, "": 1.8}}
"""Least speed against onnxruntime float32, of a small transformer and of small CNNs."""
CEILINGS = ("Conv", "MatMul")
_QNN = "{like: qnn-htp, name: trap, summary: a trap, provider_options: {offload_graph_io_quantization: '0', backend_path: %s}}"
_JSEP = "{like: web-webgpu, name: trap, summary: a trap, provider_options: {library: ort.all.min.mjs}}"
TRAPS: Mapping[str, tuple[str, str, str, str | None]] = {
    "QNN's Saver, which computes nothing": ("qnn-htp", _QNN % "libQnnSaver.so", "cifar_resnet20", None),
    "QNN's Ir, which computes nothing": ("qnn-htp", _QNN % "libQnnIr.so", "cifar_resnet20", None),
    "QNN, a CNN with symmetric signed activations": ("qnn-htp", _QNN % "libQnnHtp.so", "mobilenet_v1_025", "QInt8"),
    "QNN, a transformer with symmetric signed activations": ("qnn-htp", _QNN % "libQnnHtp.so", "encoder", "QInt8"),
    "onnxruntime-web's JSEP build (ort.all), int8 on WebGPU": ("web-webgpu", _JSEP, "cifar_resnet20", "QUInt8"),
}
"""The target that it is like, the trap as a target, a model, and onnxruntime's type of activations that it is quantized to."""


def main() -> None:
    parser = common.arguments(__doc__)
    parser.add_argument("--only", nargs="*", metavar="MODEL", help="these models only, without int8 and traps")
    parser.add_argument("--targets", nargs="*", metavar="NAME", help="these targets only")
    parser.add_argument("--resume", action="store_true", help="take what --json FILE holds already, and measure the rest")
    parser.add_argument("--one", nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one is not None:
        part, name, folder = options.one
        print(json.dumps(MEASURES[part](name, Path(folder))))
        return
    wanted = [targets.load(name) for name in options.targets or targets.names()]
    wanted = [target for target in wanted if not targets.is_reference(target)]
    here = {target.name: targets.availability(target) for target in wanted}
    figures = collected([target.name for target in wanted if here[target.name].ok], options)
    absent = [f"- `{name}`: {found.why}." for name, found in here.items() if not found.ok]
    versions = {f"{target.runtime} {here[target.name].version}" for target in wanted if here[target.name].ok}
    minutes = sum(one["seconds"] for part in figures.values() for one in part.values()) / 60
    parts = [f"Runtimes: {', '.join(sorted(versions))}. Measuring took {minutes:.0f} minutes."]
    parts += [MODELS_TEXT.strip(), models_table(figures["models"])]
    parts += ["## int8 in the target's own style", INT8_TEXT.strip(), int8_table(figures["int8"])]
    parts += ["## int8 in OpenVINO's kernels", KERNELS_TEXT.strip(), kernels_table(figures["int8"])]
    parts += [CEILINGS_TEXT.strip(), ceilings_table(figures["ceilings"])]
    parts += ["## Known traps", TRAPS_TEXT.strip(), traps_table(figures["traps"])]
    parts += ["## Targets that do not run here", "\n".join(absent) or "None."]
    common.publish("targets", "Targets: agreement, speed, what stays behind", parts, figures, options)


MODELS_TEXT = """
*Largest difference* of any output from onnxruntime's CPU provider, relative to the output's peak, and the lowest
signal-to-noise ratio; *flagged*: the tool calls the target's answers wrong. *Speed* is against onnxruntime's CPU provider in
float32, interleaved, one sample a run, one thread, with its 95 % interval. *A/A* is the same measurement of the target against
itself: how far it is from 1 is what noise does. *Parts*: into how many pieces the target's provider cuts the model; *left*:
nodes that it leaves to others. web-webgpu computes on a software adapter and QNN in a simulator: only answers count there.
"""
INT8_TEXT = """
`graphopt optimize --recipe int8 --target T`, which chooses sites by their time on the target. *Metric* is of the labelled data
where there are any, else of what the original computes. The goal is about the speed *against onnxruntime float32*. `encoder`
is a transformer of 4 layers, 256 wide, on 128 tokens, with random weights. What is not quantized is computed in float32, on
processors with bfloat16 too.
"""
KERNELS_TEXT = """
What takes the time in these files, by OpenVINO's own counters: kernels that compute with integers, conversions between types
and layouts, and the rest in float32. A kernel's name tells its instruction set (`avx512`; with AMX it has `amx` in it).
"""
CEILINGS_TEXT = """
What integers can gain at most on this processor: OpenVINO's int8 against its own float32 on one large Conv (256 channels, 3x3,
28x28) and one large MatMul (256x1024 by 1024x2048), quantized by the same recipe.
"""
TRAPS_TEXT = """
Back ends that are known to give wrong answers without an error: `graphopt compare M M --target TRAP`. Each must end in an
error (exit 6), in a flag (exit 5), or in right answers. The quantized models are onnxruntime's own (`quantize_static`).
"""


def collected(here: Sequence[str], options: argparse.Namespace) -> dict[str, Any]:
    """The figures of all tables, written to ``--json`` as they come."""
    paths = sorted((common.zoo() / "models").glob("*.onnx"))
    figures: dict[str, Any] = {part: {} for part in MEASURES}
    if options.resume and options.json and options.json.exists():
        figures |= json.loads(options.json.read_text())["figures"]
    rows = [("models", f"{path.stem} on {name}") for name in here for path in paths]
    rows += [("int8", f"{of} on {name}") for name in here for of in INT8.get(name, ())]
    rows += [("ceilings", kind) for kind in CEILINGS if "openvino-cpu" in here]
    rows += [("traps", name) for name, (like, *_) in TRAPS.items() if like in here]
    if options.only:
        rows = [(part, name) for part, name in rows if part == "models" and name.partition(" ")[0] in options.only]
    for part, name in rows:
        if name not in figures[part]:
            begun = time.monotonic()
            found = in_a_process(part, name)
            figures[part][name] = {**found, "seconds": round(time.monotonic() - begun, 1)}
            print(part, name, figures[part][name], file=sys.stderr, flush=True)
            if options.json:
                options.json.write_text(json.dumps({"figures": figures}))
    return figures


def in_a_process(part: str, name: str) -> dict[str, Any]:
    """Measure in a process group with a time limit, all of which is ended then; ``failed`` says why there is nothing."""
    with tempfile.TemporaryDirectory() as folder, tempfile.TemporaryFile("w+") as said:
        command = [sys.executable, __file__, "--one", part, name, folder]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=said, text=True, cwd=folder, start_new_session=True)
        try:
            printed = process.communicate(timeout=LIMITS[part])[0]
        except subprocess.TimeoutExpired:
            return {"failed": f"not done after {LIMITS[part]} s"}
        finally:
            if process.returncode is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
        said.seek(0)
        if process.returncode:
            return {"failed": (said.read().strip().splitlines() or [f"exit {process.returncode}"])[-1]}
        found: dict[str, Any] = json.loads(printed.strip().splitlines()[-1])
        return found


def place(name: str, folder: Path) -> tuple[str, Path, targets.Target]:
    """A row's model, its file, and its target."""
    of, _, target = name.partition(" on ")
    return of, source(of, folder), targets.load(target)


def source(of: str, folder: Path) -> Path:
    """A model's file."""
    return encoder(folder / "encoder.onnx") if of == "encoder" else common.zoo() / "models" / f"{of}.onnx"


def measured(row: str, folder: Path) -> dict[str, Any]:
    """One model on one target."""
    name, path, target = place(row, folder)
    loaded = model.load(path)
    try:
        if target.fixed_shapes:
            path = fixed(path, folder)
        data = inputs(name, path)
        own = answers.check_file(path, target, data)
        assert own is not None
        partition = targets.runtime(target).partition(path, target)
    except GraphoptError as error:
        return {"failed": error.what}
    found = {
        "max_rel": max((one.max_rel for one in own.outputs.values()), default=0.0),
        "sqnr_db": min((one.sqnr_db for one in own.outputs.values()), default=0.0),
        "samples": own.samples,
        "problems": list(own.problems),
        "quantized": answers.is_quantized(loaded),
        "parts": partition.parts,
        "left": len(partition.left_behind),
        "nodes": sum(partition.nodes.values()),
    }
    if targets.availability(target).timed:
        found |= {"speed": against(_CPU, path, target, path, data), "same": against(target, path, target, path, data)}
    return found


def inputs(name: str, path: Path) -> dataset.Dataset:
    """The model's real data, or generated ones."""
    loaded = model.load(path)
    if name in common.DATA:
        return common.DATA[name].read(model.input_specs(loaded)).first(16)
    with targets.runtime(_CPU).open(path, _CPU) as session:
        symbols = {dim for spec in model.input_specs(loaded) for dim in spec.shape or ()}
        dims = {name: size for name, size in DIMS.items() if name in symbols}
        return generate(loaded, dims=dims, seed=0, runs=session.accepts).first(4)


def fixed(path: Path, folder: Path) -> Path:
    """The model for one sample, for targets that take fixed shapes only."""
    out = folder / f"fixed_{path.name}"
    named = [dim for spec in model.input_specs(model.load(path)) for dim in spec.shape or () if isinstance(dim, str)]
    sizes = [f"shapes.fix.{name}={DIMS.get(name, 1)}" for name in dict.fromkeys(named)]
    if not sizes:
        return path
    options = [part for size in sizes for part in ("--set", size)]
    common.graphopt("optimize", path, "-o", out, "--timing", "off", *options)
    return out if out.exists() else path


def against(where: Any, first: Path, other: Any, second: Path, data: dataset.Dataset) -> dict[str, float]:
    """How many times as fast the second file on its target is as the first on its own."""
    found = timing.compare(
        partial(targets.runtime(where).open, first, where),
        partial(targets.runtime(other).open, second, other),
        next(iter(data.first(1).batches())).feed,
        limit_seconds=TIMING_SECONDS,
        rng=np.random.default_rng(0),
        progress=Silent(),
    )
    return {"speedup": found.speedup, "low": found.speedup_low, "high": found.speedup_high, "clock": found.clock}


def int8(row: str, folder: Path) -> dict[str, Any]:
    """What the recipe int8 makes of a model for a target."""
    name, path, target = place(row, folder)
    out = folder / "int8.onnx"
    specs = model.input_specs(model.load(path))
    if name == "encoder":
        samples = folder / "samples.npz"
        np.savez(samples, x=np.random.default_rng(1).standard_normal((64, 128, 256)).astype(np.float32))
        data, given = dataset.open_dataset(str(samples), specs), ["--data", samples, "--metric", "cosine"]
    else:
        data, given = common.DATA[name].read(specs), common.DATA[name].given()
    asked = ("--target", target.name, "--recipe", "int8", "--max-drop", "0.01", *given)
    report, _ = common.optimized(path, "-o", out, *asked)
    if "failed" in report:
        return report
    metric, timed = report["validation"]["metric"], report["timing"]
    found = {
        "metric": metric["name"],
        "before": metric["before"],
        "after": metric["after"],
        "own": {"speedup": timed["speedup"], "low": timed["speedup_low"], "high": timed["speedup_high"]},
        "cpu": against(_CPU, path, target, out, data),
        "float": against(_CPU, path, target, path, data),
        "integers": next((each["why"] for each in report["passes"] if each["name"] == "quantize.static"), ""),
        "bytes": model.file_bytes(out),
    }
    if target.runtime == "openvino":
        found["kernels"] = kernels.kernels(out, next(iter(data.first(1).batches())).feed)
    return found


def ceiling(kind: str, folder: Path) -> dict[str, Any]:
    """How many times as fast as float32 integers are on one large operator."""
    path, out, samples = folder / "large.onnx", folder / "int8.onnx", folder / "samples.npz"
    shape = kernels.large(kind, path)
    np.savez(samples, x=np.random.default_rng(1).standard_normal((4, *shape[1:])).astype(np.float32))
    more = ("--recipe", "int8", "--goal", "size", "--timing", "off", "--data", samples)
    ran = common.graphopt("optimize", path, "-o", out, "--target", "openvino-cpu", *more)
    if not out.exists():
        return {"failed": ran.stderr.strip()[:300]}
    target = targets.load("openvino-cpu")
    data = dataset.open_dataset(str(samples), model.input_specs(model.load(path)))
    feed = next(iter(data.first(1).batches())).feed
    speed = against(target, path, target, out, data)
    return {"speed": speed, "before": kernels.kernels(path, feed), "after": kernels.kernels(out, feed)}


def trap(name: str, folder: Path) -> dict[str, Any]:
    """What becomes of a model on a back end that is known to be wrong."""
    _, text, of, activations = TRAPS[name]
    chosen = folder / "trap.yaml"
    chosen.write_text(text, encoding="utf-8")
    path = fixed(source(of, folder), folder)
    if activations is not None:
        path = quantized(path, folder / "quantized.onnx", activations)
    ran = common.graphopt("compare", path, path, "--target", chosen, "--json")
    if not ran.stdout.strip():
        return {"exit": ran.returncode, "said": ran.stderr.strip().splitlines()[0].replace(f"{folder}/", "")}
    report = json.loads(ran.stdout)
    lowest = min(float(one["sqnr_db"]) for one in report["outputs"].values())
    return {"exit": ran.returncode, "said": "; ".join(report["problems"]) or "agrees", "sqnr_db": lowest}


def quantized(path: Path, out: Path, activations: str) -> Path:
    """The model as onnxruntime quantizes it; signed activations are symmetric."""
    from onnxruntime.quantization import CalibrationDataReader, QuantType, quantize_static

    batches = iter([batch.feed for batch in inputs("", path).first(8).batches()])

    class Reader(CalibrationDataReader):  # type: ignore[misc]
        def get_next(self) -> Any:
            return next(batches, None)

    kind, more = getattr(QuantType, activations), {"ActivationSymmetric": activations == "QInt8"}
    quantize_static(
        path, out, Reader(), activation_type=kind, weight_type=QuantType.QInt8, per_channel=True, extra_options=more
    )
    return out


MEASURES: Mapping[str, Callable[[str, Path], dict[str, Any]]] = {
    "models": measured,
    "int8": int8,
    "ceilings": ceiling,
    "traps": trap,
}


def models_table(found: Mapping[str, Mapping[str, Any]]) -> str:
    rows = []
    for name, one in sorted(found.items(), key=lambda pair: pair[0].split(" on ")[::-1]):
        if "failed" in one:
            rows.append((name, common.cell(one["failed"])[:160], *[""] * 6))
            continue
        rows.append(
            (
                name,
                f"{one['max_rel']:.1e}",
                f"{one['sqnr_db']:.0f} dB",
                judged(one),
                speed(one.get("speed")),
                speed(one.get("same")),
                "?" if one["parts"] is None else one["parts"],
                f"{one['left']} of {one['nodes']}",
            )
        )
    header = ("model and target", "largest difference", "SQNR", "answers", "speed", "A/A", "parts", "left")
    ran = {name: one for name, one in found.items() if "failed" not in one}
    wrong = [name for name, one in ran.items() if one["problems"] or one["sqnr_db"] < answers.LEAST_SQNR_DB]
    unflagged = [name for name in wrong if not found[name]["problems"]]
    summary = f"{len(found)} pairs, {len(ran)} ran; wrong answers: {len(wrong)}, of which not flagged: {len(unflagged)}."
    return f"{summary}\n\n{common.table(header, rows)}"


def judged(one: Mapping[str, Any]) -> str:
    """What the tool says of a target's answers; those of nodes that ran elsewhere say nothing of the target."""
    if one["problems"]:
        return "**flagged**"
    return "agrees" if 2 * one["left"] < one["nodes"] else "says nothing: most ran elsewhere"


def speed(found: Mapping[str, Any] | None) -> str:
    if found is None:
        return "not timed"
    clock = "" if found.get("clock", "cpu") == "cpu" else ", wall"
    return f"{found['speedup']:.2f} ({found['low']:.2f} to {found['high']:.2f}{clock})"


def int8_table(found: Mapping[str, Mapping[str, Any]]) -> str:
    rows = []
    for name, one in found.items():
        of, _, target = name.partition(" on ")
        goals = GOALS.get(target, {})
        goal = goals.get(of, goals.get(""))
        if "failed" in one:
            rows.append((name, goal or "", common.cell(one["failed"]), *[""] * 6))
            continue
        reached = "" if goal is None else f"{goal:g}: {'met' if one['cpu']['speedup'] >= goal else 'missed'}"
        metric = f"{one['metric']} {one['before']:.4f} to {one['after']:.4f}"
        more = (speed(one["own"]), speed(one["float"]), speed(one["cpu"]), one["integers"], f"{one['bytes'] / 1e6:.2f}")
        rows.append((name, reached, metric, *more))
    against_ = ("against its own float", "its float against onnxruntime", "against onnxruntime float32")
    return common.table(("model and target", "goal", "metric", *against_, "sites", "MB"), rows)


def kernels_table(found: Mapping[str, Mapping[str, Any]]) -> str:
    rows = [
        (name, *(f"{one['kernels'][kind]:.0%}" for kind in ("integer", "conversion", "float")), mostly(one["kernels"]))
        for name, one in found.items()
        if "kernels" in one
    ]
    return common.table(("model and target", "integers", "conversions", "float32", "kernels that take most"), rows)


def mostly(found: Mapping[str, Any], most: int = 3) -> str:
    """The kernels that take the most time."""
    return ", ".join(f"`{name}` {part:.0%}" for name, part in [*found["kernels"].items()][:most])


def ceilings_table(found: Mapping[str, Mapping[str, Any]]) -> str:
    rows = []
    for kind, one in found.items():
        if "failed" in one:
            rows.append((kind, common.cell(one["failed"]), "", ""))
        else:
            rows.append((kind, speed(one["speed"]), mostly(one["before"], 1), mostly(one["after"], 2)))
    return common.table(("operator", "int8 against float32", "kernel in float32", "kernels in int8"), rows)


def traps_table(found: Mapping[str, Mapping[str, Any]]) -> str:
    rows = [
        (name, "", common.cell(one["failed"]), "")
        if "failed" in one
        else (name, one["exit"], common.cell(one["said"])[:250], f"{one['sqnr_db']:.0f} dB" if "sqnr_db" in one else "")
        for name, one in found.items()
    ]
    return common.table(("trap", "exit", "what the tool says", "SQNR of the answers"), rows)


if __name__ == "__main__":
    main()
