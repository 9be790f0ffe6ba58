"""``graphopt optimize --recipe prune`` without labels or training: accuracy on labelled data and measured speed, by MACs left.

Each model is pruned to a part of its multiply-accumulates on unlabelled calibration data; the file that is written is
evaluated on other, labelled data, and timed against the original, interleaved, on one thread. Needs GRAPHOPT_ZOO.
"""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

import common

_IMAGENET = ("data/imagenet/calib", "data/imagenet/eval")
_CIFAR = ("data/cifar10/calib.npz", "data/cifar10/eval.npz")
_TORCH = "crop=224,scale=255,mean=0.485:0.456:0.406,std=0.229:0.224:0.225,channels=rgb"


@dataclass(frozen=True)
class Case:
    """A model with its data, and the parts of its MACs that are to remain, each with the accuracy that is the goal."""

    model: str
    calibration: str
    labelled: str
    left: dict[float, str]
    images: str = ""


CASES = (
    Case("cifar_resnet56", *_CIFAR, {0.81: "0.925", 0.69: "0.920", 0.5: "0.900"}),
    Case("cifar_resnet20", *_CIFAR, {0.8: "0.890"}),
    Case("mobilenet_v1_025", *_IMAGENET, {0.9: "", 0.8: "", 0.7: ""}, _TORCH),
    Case(
        "mobilenet_v2",
        *_IMAGENET,
        {0.9: "", 0.8: "", 0.7: ""},
        "crop=224,scale=127.5,mean=1,std=1,label-offset=1,channels=rgb",
    ),
    Case("squeezenet1_1", *_IMAGENET, {0.9: "", 0.8: "", 0.7: ""}, "crop=224,scale=1,channels=bgr,mean=104:117:123,std=1"),
)

IN_ROUNDS = {"cifar_resnet56": 0.5, "mobilenet_v1_025": 0.8, "squeezenet1_1": 0.7}
"""Models, and the part of their MACs that is left, that are pruned in one round and in several."""
ROUNDS = (1, 2, 3)
_SAMPLED_AT = 0.69
SAMPLES = (250, 1000, 4000)
"""Of cifar_resnet56: how many samples of the data are used. There are 1,000; they are repeated."""
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
    cases = [case for case in CASES if not options.only or case.model in options.only]
    rows, more_rows, sample_rows = [], [], []
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        for case in cases:
            rows += by_part(case, options, figures, folder)
        for case in cases:
            more_rows += in_rounds(case, options, figures, folder) if case.model in IN_ROUNDS else []
        if CASES[0] in cases:
            sample_rows += by_samples(CASES[0], options, figures, folder)
    header = ("model", "`--goal`", "MACs", "top-1 before", "top-1", "wanted", "parameters", "speed", "kept", "CPU s", "peak MB")
    text = (
        "No labels and no training: the calibration data have no labels, and top-1 is of other images; the method was"
        " tuned on those of cifar_resnet56. *MACs* and *parameters* are what is left. *Speed* is against the "
        "original, by CPU time on one thread, interleaved, with its 95 % interval; *kept* is the part of the speed "
        "that the MACs promise. Under `--goal latency` MACs that take time go first, under `--goal size` the MACs "
        "alone count. *CPU s* and *peak* are of the whole call, on one thread: pruning, fitting, evaluating and "
        "timing."
    )
    if options.only:
        text += f" Measured with `--only {' '.join(options.only)}`."
    parts = [text, common.table(header, rows)]
    if more_rows:
        text = (
            "`prune.channels.rounds`: the goal is reached in so many steps; between them scores, sensitivities, second moments "
            "and times are taken again from the model as it is then, and each is fitted to the whole network. *dB* is what "
            "the outputs on the labelled images are above their error, which tells smaller differences apart than top-1."
        )
        parts += ["## In several rounds", text, common.table(("model", "rounds", *_FIGURES), more_rows)]
    if sample_rows:
        text = (
            f"{CASES[0].model} at {_SAMPLED_AT} of the MACs, for `--goal size`, on more and more calibration images (there are "
            "1,000, which are repeated: only the memory says something from there on)."
        )
        parts += ["## Samples and memory", text, common.table(("samples", *_FIGURES), sample_rows)]
    common.publish("prune", "Pruned channels", parts, figures, options)


def by_part(case: Case, options: Any, figures: dict[str, Any], folder: Path) -> list[Sequence[object]]:
    """Lines of the first table for one model."""
    rows = []
    for left, wanted in case.left.items():
        key = f"{case.model} {left} {options.goal}"
        if not options.read:
            figures[key] = pruned(case, left, folder / f"{case.model}-{left}.onnx", options.goal)
        if key in figures:
            rows.append(row(case, left, options.goal, wanted, figures[key]))
            print(*rows[-1], flush=True)
    return rows


def in_rounds(case: Case, options: Any, figures: dict[str, Any], folder: Path) -> list[Sequence[object]]:
    """Lines of the second table for one model."""
    rows, left = [], IN_ROUNDS[case.model]
    for rounds in ROUNDS:
        key = f"{case.model} {left} {options.goal}" + (f" rounds={rounds}" if rounds > 1 else "")
        if not options.read and key not in figures:
            figures[key] = pruned(case, left, folder / "rounds.onnx", options.goal, (f"prune.channels.rounds={rounds}",))
        if key in figures:
            rows.append((case.model, rounds, *_told(figures[key])))
            print(*rows[-1], flush=True)
    return rows


def by_samples(case: Case, options: Any, figures: dict[str, Any], folder: Path) -> list[Sequence[object]]:
    """Lines of the third table."""
    rows = []
    for count in SAMPLES:
        key = f"{case.model} samples={count}"
        if not options.read:
            arrays = np.load(common.zoo() / case.calibration)
            repeated = {name: np.resize(arrays[name], (count, *arrays[name].shape[1:])) for name in arrays.files}
            np.savez(folder / "samples.npz", **repeated)
            del arrays, repeated
            settings = (f"prune.channels.samples={count}",)
            figures[key] = pruned(case, _SAMPLED_AT, folder / "samples.onnx", "size", settings, folder / "samples.npz")
        if key in figures:
            rows.append((count, *_told(figures[key])))
            print(*rows[-1], flush=True)
    return rows


def _told(found: dict[str, Any]) -> Sequence[object]:
    """A line's figures, as ``_FIGURES`` names them."""
    if "failed" in found:
        return (found["failed"].replace("|", "/").replace("\n", " "), *[""] * (len(_FIGURES) - 1))
    return (
        f"{found['macs']:.3f}",
        f"{found['after']:.4f}",
        f"{found['db']:.1f}",
        f"{found['speedup']:.2f} ({found['speedup_low']:.2f} to {found['speedup_high']:.2f})",
        f"{found['cpu_seconds']:.1f}",
        f"{found['peak_bytes'] / 1e6:.0f}",
    )


def pruned(
    case: Case, left: float, out: Path, goal: str = "latency", settings: Sequence[str] = (), data: Path | None = None
) -> dict[str, Any]:
    """What the command made of a model: its report's figures, or ``failed``."""
    zoo = common.zoo()
    ran = common.run(
        [
            sys.executable,
            "-P",
            "-m",
            "graphopt",
            "optimize",
            zoo / "models" / f"{case.model}.onnx",
            *("-o", out, "--recipe", "prune", "--set", f"prune.channels.macs={left}"),
            *(part for setting in settings for part in ("--set", setting)),
            *(
                "--data",
                data or zoo / case.calibration,
                "--eval",
                zoo / case.labelled,
                "--max-drop",
                1,
                "--goal",
                goal,
                "--json",
            ),
            *(["--images", case.images] if case.images else []),
        ],
        env={"OPENBLAS_NUM_THREADS": "1"},
    )
    if not ran.stdout.startswith("{"):
        return {"failed": f"exit {ran.returncode}: {ran.stderr.strip()[:200]}"}
    report = json.loads(ran.stdout)
    if report["output"] is None:
        return {"failed": report["verdict"]}
    return {
        "macs": report["output"]["macs"] / report["input"]["macs"],
        "parameters": report["output"]["parameters"] / report["input"]["parameters"],
        "before": report["validation"]["metric"]["before"],
        "after": report["validation"]["metric"]["after"],
        "db": min(output["sqnr_db"] for output in report["validation"]["outputs"].values()),
        **{name: report["timing"][name] for name in ("speedup", "speedup_low", "speedup_high")},
        "cpu_seconds": ran.cpu_seconds,
        "peak_bytes": ran.peak_rss_bytes,
    }


def row(case: Case, left: float, goal: str, wanted: str, found: dict[str, Any]) -> Sequence[object]:
    """A line of the table."""
    if "failed" in found:
        return (case.model, goal, f"{left:.2f}", "", found["failed"].replace("|", "/").replace("\n", " "), wanted, *[""] * 5)
    return (
        case.model,
        goal,
        f"{found['macs']:.3f}",
        f"{found['before']:.4f}",
        f"{found['after']:.4f}",
        wanted,
        f"{found['parameters']:.2f}",
        f"{found['speedup']:.2f} ({found['speedup_low']:.2f} to {found['speedup_high']:.2f})",
        f"{found['speedup'] * found['macs']:.2f}",
        f"{found['cpu_seconds']:.1f}",
        f"{found['peak_bytes'] / 1e6:.0f}",
    )


if __name__ == "__main__":
    main()
