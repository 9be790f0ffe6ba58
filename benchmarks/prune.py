"""``graphopt optimize --recipe prune`` without labels or training: accuracy on labelled data and measured speed, by MACs left.

Each model is pruned to a part of its multiply-accumulates on unlabelled calibration data; the file that is written is
evaluated on other, labelled data, and timed against the original, interleaved, on one thread. Needs GRAPHOPT_ZOO.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort

from graphopt import model as models

import common

CASES: Mapping[str, Mapping[float, str]] = {
    "cifar_resnet56": {0.81: "0.925", 0.69: "0.920", 0.5: "0.900"},
    "cifar_resnet20": {0.8: "0.890"},
    "mobilenet_v1_025": {0.9: "", 0.8: "", 0.7: ""},
    "mobilenet_v2": {0.9: "", 0.8: "", 0.7: ""},
    "squeezenet1_1": {0.9: "", 0.8: "", 0.7: ""},
}
"""Models, and the parts of their MACs that are to remain, each with the accuracy that is the goal."""

IN_ROUNDS = {"cifar_resnet56": 0.5, "mobilenet_v1_025": 0.8, "squeezenet1_1": 0.7}
"""Models, and the part of their MACs that is left, that are pruned in one round and in several."""
ROUNDS = (1, 2, 3)
SAMPLED, SAMPLED_AT = "cifar_resnet56", 0.69
SAMPLES = (250, 1000, 4000)
"""How many samples of the data are used of the model ``SAMPLED``. There are 1,000; they are repeated."""
_FIGURES = ("MACs", "top-1", "dB", "speed", "CPU s", "peak MB")


def main() -> None:
    parser = common.arguments(__doc__)
    parser.add_argument("--only", nargs="*", metavar="MODEL", help="these models only")
    parser.add_argument("--goal", choices=("latency", "size"), default="latency", help="what the command is told to save")
    parser.add_argument("--read", nargs="+", type=Path, help="make the page of figures that were measured with --json")
    options = parser.parse_args()
    figures: dict[str, Any] = {}
    for source in options.read or ():
        figures |= json.loads(source.read_text())["figures"]
    chosen = [model for model in CASES if not options.only or model in options.only]
    rows, more_rows, sample_rows = [], [], []
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        for model in chosen:
            rows += by_part(model, options, figures, folder)
        for model in chosen:
            more_rows += in_rounds(model, options, figures, folder) if model in IN_ROUNDS else []
        if SAMPLED in chosen:
            sample_rows += by_samples(options, figures, folder)
    header = ("model", "`--goal`", "MACs", "top-1 before", "top-1", "drop", "wanted", "dB", "parameters", "speed", "kept")
    text = (
        "No labels and no training: the calibration data have no labels, and top-1 is of other images; the method was"
        " tuned on those of cifar_resnet56. *MACs* and *parameters* are what is left. *Drop* has its standard error, of both "
        "models on the same images: there are 1,000 of CIFAR and 400 of ImageNet, so that a point or two between lines of the "
        "latter say nothing. *dB* is what the outputs on these images are above their error, which tells smaller differences "
        "apart. *Speed* is against the "
        "original, by CPU time on one thread, interleaved, with its 95 % interval; *kept* is the part of the speed "
        "that the MACs promise. Under `--goal latency` MACs that take time go first, under `--goal size` the MACs "
        "alone count. *CPU s* and *peak* are of the whole call, on one thread: pruning, fitting, evaluating and "
        "timing."
    )
    if options.only:
        text += f" Measured with `--only {' '.join(options.only)}`."
    parts = [text, common.table((*header, "CPU s", "peak MB"), rows)]
    if more_rows:
        text = (
            "`prune.channels.rounds`: the goal is reached in so many steps; between them scores, sensitivities, second moments "
            "and times are taken again from the model as it is then, and each is fitted to the whole network."
        )
        parts += ["## In several rounds", text, common.table(("model", "rounds", *_FIGURES), more_rows)]
    if sample_rows:
        text = (
            f"{SAMPLED} at {SAMPLED_AT} of the MACs, for `--goal size`, on more and more calibration images (there are "
            "1,000, which are repeated: only the memory says something from there on)."
        )
        parts += ["## Samples and memory", text, common.table(("samples", *_FIGURES), sample_rows)]
    common.publish("prune", "Pruned channels", parts, figures, options)


def by_part(model: str, options: Any, figures: dict[str, Any], folder: Path) -> list[Sequence[object]]:
    """Lines of the first table for one model."""
    rows = []
    for left, wanted in CASES[model].items():
        key = f"{model} {left} {options.goal}"
        if not options.read:
            figures[key] = pruned(model, left, folder / f"{model}-{left}.onnx", options.goal)
        if key in figures:
            rows.append(row(model, left, options.goal, wanted, figures[key]))
            print(*rows[-1], flush=True)
    return rows


def in_rounds(model: str, options: Any, figures: dict[str, Any], folder: Path) -> list[Sequence[object]]:
    """Lines of the second table for one model."""
    rows, left = [], IN_ROUNDS[model]
    for rounds in ROUNDS:
        key = f"{model} {left} {options.goal}" + (f" rounds={rounds}" if rounds > 1 else "")
        if not options.read and key not in figures:
            figures[key] = pruned(model, left, folder / "rounds.onnx", options.goal, (f"prune.channels.rounds={rounds}",))
        if key in figures:
            rows.append((model, rounds, *_told(figures[key])))
            print(*rows[-1], flush=True)
    return rows


def by_samples(options: Any, figures: dict[str, Any], folder: Path) -> list[Sequence[object]]:
    """Lines of the third table."""
    rows = []
    for count in SAMPLES:
        key = f"{SAMPLED} samples={count}"
        if not options.read:
            arrays = np.load(common.zoo() / common.DATA[SAMPLED].calibration)
            repeated = {name: np.resize(arrays[name], (count, *arrays[name].shape[1:])) for name in arrays.files}
            np.savez(folder / "samples.npz", **repeated)
            del arrays, repeated
            settings = (f"prune.channels.samples={count}",)
            data = common.Data(common.DATA[SAMPLED].labelled, str(folder / "samples.npz"))
            figures[key] = pruned(SAMPLED, SAMPLED_AT, folder / "samples.onnx", "size", settings, data)
        if key in figures:
            rows.append((count, *_told(figures[key])))
            print(*rows[-1], flush=True)
    return rows


def _told(found: dict[str, Any]) -> Sequence[object]:
    """A line's figures, as ``_FIGURES`` names them."""
    if "failed" in found:
        return (common.cell(found["failed"]), *[""] * (len(_FIGURES) - 1))
    return (
        f"{found['macs']:.3f}",
        f"{found['after']:.4f}",
        f"{found['db']:.1f}",
        common.interval(found),
        f"{found['cpu_seconds']:.1f}",
        f"{found['peak_bytes'] / 1e6:.0f}",
    )


def pruned(
    model: str, left: float, out: Path, goal: str = "latency", settings: Sequence[str] = (), data: common.Data | None = None
) -> dict[str, Any]:
    """What the command made of a model: its report's figures, or ``failed``."""
    stated = [part for setting in (f"prune.channels.macs={left}", *settings) for part in ("--set", setting)]
    asked = ("--recipe", "prune", *stated, *(data or common.DATA[model]).given(), "--max-drop", 1, "--goal", goal)
    report, ran = common.optimized(
        common.zoo() / "models" / f"{model}.onnx", "-o", out, *asked, env={"OPENBLAS_NUM_THREADS": "1"}
    )
    if "failed" in report:
        return report
    return {
        "standard_error": standard_error(model, out),
        "macs": report["output"]["macs"] / report["input"]["macs"],
        "parameters": report["output"]["parameters"] / report["input"]["parameters"],
        "before": report["validation"]["metric"]["before"],
        "after": report["validation"]["metric"]["after"],
        "db": min(output["sqnr_db"] for output in report["validation"]["outputs"].values()),
        **{name: report["timing"][name] for name in ("speedup", "speedup_low", "speedup_high")},
        "cpu_seconds": ran.cpu_seconds,
        "peak_bytes": report["peak_rss_bytes"],  # its own: a child's begins at its parent's
    }


def standard_error(name: str, out: Path) -> float:
    """Of the drop: how often one of the two models is right where the other is wrong, over the labelled images."""
    source = common.zoo() / "models" / f"{name}.onnx"
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    sessions = [ort.InferenceSession(path, options, providers=["CPUExecutionProvider"]) for path in (source, out)]
    drops: list[int] = []
    for batch in common.DATA[name].read(models.input_specs(models.load(source))).batches():
        labels = np.asarray(batch.labels)
        given = [session.run(None, dict(batch.feed))[0].reshape(len(labels), -1).argmax(1) == labels for session in sessions]
        drops += (given[0].astype(int) - given[1]).tolist()
    return float(np.std(drops) / np.sqrt(len(drops)))


def row(model: str, left: float, goal: str, wanted: str, found: dict[str, Any]) -> Sequence[object]:
    """A line of the table."""
    if "failed" in found:
        return (model, goal, f"{left:.2f}", "", common.cell(found["failed"]), "", wanted, *[""] * 6)
    return (
        model,
        goal,
        f"{found['macs']:.3f}",
        f"{found['before']:.4f}",
        f"{found['after']:.4f}",
        f"{found['before'] - found['after']:.3f} ± {found['standard_error']:.3f}",
        wanted,
        f"{found['db']:.1f}",
        f"{found['parameters']:.2f}",
        common.interval(found),
        f"{found['speedup'] * found['macs']:.2f}",
        f"{found['cpu_seconds']:.1f}",
        f"{found['peak_bytes'] / 1e6:.0f}",
    )


if __name__ == "__main__":
    main()
