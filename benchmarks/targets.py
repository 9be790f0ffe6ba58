"""Every trained model on every target that runs here: agreement with onnxruntime's CPU provider, speed, noise, what stays.

Each model and target is measured in a process of its own with a time limit, so that an engine that hangs or crashes costs its
row and nothing else. ``--only`` and ``--targets`` choose; a target that does not run here is listed with the reason. The second
table is int8 in the target's own style; the third one holds known traps, each of which must be caught. Needs GRAPHOPT_ZOO.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import helper

from graphopt import answers, dataset, evaluate, model, targets, timing
from graphopt.contracts import Silent
from graphopt.dataset.generate import generate
from graphopt.errors import GraphoptError

import common

LIMIT_SECONDS = 150
"""Of one model on one target; int8, which chooses sites by timing them, may take four times as long."""
_CPU = targets.load(targets.REFERENCE)
_TORCH = "crop=224,scale=255,mean=0.485:0.456:0.406,std=0.229:0.224:0.225,channels=rgb"
DATA: Mapping[str, tuple[str, str]] = {
    "cifar_resnet20": ("data/cifar10/eval.npz", ""),
    "cifar_resnet20_legacy": ("data/cifar10/eval.npz", ""),
    "cifar_resnet56": ("data/cifar10/eval.npz", ""),
    "mnist_8": ("data/mnist/eval.npz", ""),
    "mobilenet_v1_025": ("data/imagenet/eval", _TORCH),
    "mobilenet_v2": ("data/imagenet/eval", "crop=224,scale=127.5,mean=1,std=1,label-offset=1,channels=rgb"),
    "squeezenet1_1": ("data/imagenet/eval", "crop=224,scale=1,channels=bgr,mean=104:117:123,std=1"),
}
"""Real data of a model; the others get generated inputs."""
DIMS = {"T": 32}
"""Sizes of dynamic dimensions other than the batch."""
INT8 = ("cifar_resnet20", "mobilenet_v2", "encoder")
GOALS = {"mobilenet_v2": "small CNN: 1.8", "cifar_resnet20": "small CNN: 1.8", "encoder": "small transformer: 3"}
TRAPS: Mapping[str, tuple[str, str]] = {
    "QNN's Saver, which computes nothing": ("libQnnSaver.so", "float"),
    "QNN's Ir, which computes nothing": ("libQnnIr.so", "float"),
    "QNN with symmetric signed activations": ("libQnnHtp.so", "signed"),
}


def main() -> None:
    parser = common.arguments(__doc__)
    parser.add_argument("--only", nargs="*", metavar="MODEL", help="these models only")
    parser.add_argument("--targets", nargs="*", metavar="NAME", help="these targets only")
    parser.add_argument("--int8", nargs="*", default=["openvino-cpu"], metavar="NAME", help="targets of the second table")
    parser.add_argument("--resume", action="store_true", help="take what --json FILE holds already, and measure the rest")
    parser.add_argument("--one", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one is not None:
        print(json.dumps(measured(Path(options.one[0]), targets.load(options.one[1]))))
        return
    wanted = [targets.load(name) for name in options.targets or targets.names()]
    wanted = [target for target in wanted if not targets.is_reference(target)]
    here = {target.name: targets.availability(target) for target in wanted}
    figures = collected([target for target in wanted if here[target.name].ok], options)
    absent = [f"- `{name}`: {found.why}." for name, found in here.items() if not found.ok]
    versions = {f"{target.runtime} {here[target.name].version}" for target in wanted if here[target.name].ok}
    parts = [f"Runtimes: {', '.join(sorted(versions))}.", MODELS_TEXT.strip(), models_table(figures["models"])]
    parts += ["## int8 in the target's own style", INT8_TEXT.strip(), int8_table(figures["int8"])]
    parts += ["## Known traps", TRAPS_TEXT.strip(), traps_table(figures["traps"])]
    parts += ["## Targets that do not run here", "\n".join(absent) or "None."]
    common.publish("targets", "Targets: agreement, speed, what stays behind", parts, figures, options)


MODELS_TEXT = """
*Largest difference* of any output from onnxruntime's CPU provider, relative to the output's peak, and the lowest
signal-to-noise ratio; *flagged*: the tool calls the target's answers wrong. *Speed* is against onnxruntime's CPU provider in
float32, interleaved, one sample a run, one thread, with its 95 % interval. *A/A* is the same measurement of the target against
itself: how far it is from 1 is what noise does. *Parts*: into how many pieces the target's provider cuts the model; *left*:
nodes that it leaves to others.
"""
INT8_TEXT = """
`graphopt optimize --recipe int8 --target T`, which chooses sites by their time on the target. *Metric* is of the labelled data
where there are any, else of what the original computes. The goal is about the speed *against onnxruntime float32*. `encoder`
is a transformer of 4 layers, 256 wide, on 128 tokens, with random weights.
"""
TRAPS_TEXT = """
Back ends that are known to give wrong answers without an error. Each must end in an error, in a flag, or in right answers.
"""


def collected(wanted: Sequence[Any], options: argparse.Namespace) -> dict[str, Any]:
    """The figures of all three tables, written to ``--json`` as they come."""
    paths = sorted((common.zoo() / "models").glob("*.onnx"))
    paths = [path for path in paths if not options.only or path.stem in options.only]
    figures: dict[str, Any] = {"models": {}, "int8": {}, "traps": {}}
    if options.resume and options.json and options.json.exists():
        figures = json.loads(options.json.read_text())["figures"]

    def once(part: str, name: str, measure: Callable[[], dict[str, Any]]) -> None:
        if name not in figures[part]:
            figures[part][name] = measure()
            print(part, name, figures[part][name], file=sys.stderr, flush=True)
            if options.json:
                options.json.write_text(json.dumps({"figures": figures}))

    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        for target in wanted:
            for path in paths:
                once("models", f"{path.stem} on {target.name}", partial(in_a_process, path, target, folder))
            for name in INT8 if target.name in options.int8 else ():
                once("int8", f"{name} on {target.name}", partial(int8, name, target, folder))
            for name, (library, how) in TRAPS.items() if target.name == "qnn-htp" else ():
                once("traps", name, partial(trap, library, how, folder))
    return figures


def in_a_process(path: Path, target: Any, folder: Path) -> dict[str, Any]:
    """Measure in a process with a time limit; ``failed`` says why there is nothing."""
    command = [sys.executable, __file__, "--one", str(path), target.name]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=LIMIT_SECONDS, cwd=folder, check=False)
    except subprocess.TimeoutExpired:
        return {"failed": f"not done after {LIMIT_SECONDS} s"}
    if done.returncode:
        return {"failed": (done.stderr.strip().splitlines() or [f"exit {done.returncode}"])[-1]}
    found: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return found


def measured(path: Path, target: Any) -> dict[str, Any]:
    """One model on one target."""
    name = path.stem
    loaded = model.load(path)
    with tempfile.TemporaryDirectory() as folder:
        try:
            if target.fixed_shapes:
                path = fixed(path, Path(folder))
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
    if name in DATA:
        source, images = DATA[name]
        return dataset.open_dataset(str(common.zoo() / source), model.input_specs(loaded), images=images or None).first(16)
    with targets.runtime(_CPU).open(path, _CPU) as session:
        symbols = {dim for spec in model.input_specs(loaded) for dim in spec.shape or ()}
        dims = {name: size for name, size in DIMS.items() if name in symbols}
        return generate(loaded, dims=dims, seed=0, runs=session.accepts).first(4)


def fixed(path: Path, folder: Path) -> Path:
    """The model for one sample, for targets that take fixed shapes only."""
    out = folder / path.name
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
        limit_seconds=6,
        rng=np.random.default_rng(0),
        progress=Silent(),
    )
    return {"speedup": found.speedup, "low": found.speedup_low, "high": found.speedup_high, "clock": found.clock}


def int8(name: str, target: Any, folder: Path) -> dict[str, Any]:
    """What the recipe int8 makes of a model for a target."""
    source = encoder(folder / "encoder.onnx") if name == "encoder" else common.zoo() / "models" / f"{name}.onnx"
    out = folder / f"{name}-{target.name}.onnx"
    more: list[object] = ["--max-drop", "0.01"]
    if name == "encoder":
        samples = folder / "samples.npz"
        np.savez(samples, x=np.random.default_rng(1).standard_normal((64, 128, 256)).astype(np.float32))
        more = ["--data", samples, "--metric", "cosine", "--max-drop", "0.01"]
    else:
        path, images = DATA[name]
        calibration = path.replace("eval", "calib")
        more += ["--data", common.zoo() / calibration, "--eval", common.zoo() / path]
        more += ["--images", images] if images else []
    arguments = ("--target", target.name, "--recipe", "int8", "--json", *more)
    command = [sys.executable, "-m", "graphopt", "optimize", str(source), "-o", str(out), *map(str, arguments)]
    try:
        ran = subprocess.run(command, capture_output=True, text=True, timeout=4 * LIMIT_SECONDS, check=False)
    except subprocess.TimeoutExpired:
        return {"failed": f"not done after {4 * LIMIT_SECONDS} s"}
    if not out.exists():
        said = json.loads(ran.stdout)["verdict"] if ran.stdout else ran.stderr
        return {"failed": said.strip()[:300]}
    report = json.loads(ran.stdout)
    where = str(more[1] if name == "encoder" else common.zoo() / DATA[name][0])
    images = DATA.get(name, ("", ""))[1]
    feed = dataset.open_dataset(where, model.input_specs(model.load(source)), images=images or None)
    metric, timed = report["validation"]["metric"], report["timing"]
    return {
        "metric": metric["name"],
        "before": metric["before"],
        "after": metric["after"],
        "own": {"speedup": timed["speedup"], "low": timed["speedup_low"], "high": timed["speedup_high"]},
        "cpu": against(_CPU, source, target, out, feed),
        "float": against(_CPU, source, target, source, feed),
        "integers": next((row["why"] for row in report["passes"] if row["name"] == "quantize.static"), ""),
        "bytes": model.file_bytes(out),
    }


def encoder(path: Path, width: int = 256, tokens: int = 128, layers: int = 4, heads: int = 4) -> Path:
    """A transformer's encoder with random weights: LayerNormalization before attention and before two matrices with a Gelu."""
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


def trap(library: str, how: str, folder: Path) -> dict[str, Any]:
    """What becomes of a model on a back end that is known to be wrong."""
    style = "\nquantization: {activations: int8, symmetric: true, fuses_activations: true}" if how == "signed" else ""
    chosen = folder / "trap.yaml"
    options = f"backend_path: {library}, offload_graph_io_quantization: '0'"
    text = f"like: qnn-htp\nname: trap\nsummary: a trap\nprovider_options: {{{options}}}{style}\n"
    chosen.write_text(text, encoding="utf-8")
    source, out = common.zoo() / "models" / "cifar_resnet20.onnx", folder / "trap.onnx"
    data = folder / "few.npz"
    arrays = np.load(common.zoo() / "data/cifar10/eval.npz")
    np.savez(data, **{key: arrays[key][:32] for key in ("input", "labels")})
    more = ["--recipe", "int8", "--data", data, "--max-drop", "0.01"] if how == "signed" else []
    ran = common.graphopt(
        *("optimize", source, "-o", out, "--target", chosen, "--eval", data, "--set", "shapes.fix.N=1", "--json", *more)
    )
    if not ran.stdout.strip():
        return {"exit": ran.returncode, "said": ran.stderr.strip().splitlines()[0]}
    report = json.loads(ran.stdout)
    wrong = 0.0
    if out.exists():
        flat = fixed(source, folder)
        judged = model.input_specs(model.load(flat))
        samples = dataset.open_dataset(str(data), judged).first(16)
        where = targets.load(str(chosen))
        with targets.runtime(_CPU).open(flat, _CPU) as right, targets.runtime(where).open(out, where) as session:
            wrong = min(one.sqnr_db for one in evaluate.compare(right, session, samples).outputs.values())
    return {"exit": ran.returncode, "said": report["verdict"], "sqnr_db": wrong}


def models_table(found: Mapping[str, Mapping[str, Any]]) -> str:
    rows = []
    for name, one in sorted(found.items(), key=lambda pair: pair[0].split(" on ")[::-1]):
        if "failed" in one:
            rows.append((name, one["failed"].replace("|", "/").replace("\n", " ")[:160], *[""] * 6))
            continue
        rows.append(
            (
                name,
                f"{one['max_rel']:.1e}",
                f"{one['sqnr_db']:.0f} dB",
                "**flagged**" if one["problems"] else "agrees",
                speed(one.get("speed")),
                speed(one.get("same")),
                "?" if one["parts"] is None else one["parts"],
                f"{one['left']} of {one['nodes']}",
            )
        )
    header = ("model and target", "largest difference", "SQNR", "answers", "speed", "A/A", "parts", "left")
    wrong = [name for name, one in found.items() if "failed" not in one and one["sqnr_db"] < answers.LEAST_SQNR_DB]
    unflagged = [name for name in wrong if not found[name]["problems"]]
    summary = f"{len(found)} pairs; wrong answers: {len(wrong)}, of which not flagged: {len(unflagged)}."
    return f"{summary}\n\n{common.table(header, rows)}"


def speed(found: Mapping[str, Any] | None) -> str:
    if found is None:
        return "not timed"
    clock = "" if found.get("clock", "cpu") == "cpu" else ", wall"
    return f"{found['speedup']:.2f} ({found['low']:.2f} to {found['high']:.2f}{clock})"


def int8_table(found: Mapping[str, Mapping[str, Any]]) -> str:
    rows = []
    for name, one in found.items():
        goal = GOALS[name.partition(" ")[0]]
        if "failed" in one:
            rows.append((name, goal, one["failed"].replace("|", "/"), *[""] * 6))
            continue
        metric = f"{one['metric']} {one['before']:.4f} to {one['after']:.4f}"
        more = (speed(one["own"]), speed(one["float"]), speed(one["cpu"]), one["integers"], f"{one['bytes'] / 1e6:.2f}")
        rows.append((name, goal, metric, *more))
    against_ = ("against its own float", "its float against onnxruntime", "against onnxruntime float32")
    return common.table(("model and target", "goal", "metric", *against_, "sites", "MB"), rows)


def traps_table(found: Mapping[str, Mapping[str, Any]]) -> str:
    rows = [
        (name, one["exit"], one["said"].replace("|", "/")[:200], "" if "sqnr_db" not in one else f"{one['sqnr_db']:.0f} dB")
        for name, one in found.items()
    ]
    return common.table(("trap", "exit", "what the tool says", "SQNR of what was written"), rows)


if __name__ == "__main__":
    main()
