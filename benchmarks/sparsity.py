"""``graphopt optimize --recipe sparse`` without labels or training: accuracy on labelled data and the size of the file.

Each model gets zeros on unlabelled calibration data, in two ways: which weights go is decided by one of the criteria, and
the others are fitted or left as they are. The file that is written is evaluated on other, labelled data. Needs GRAPHOPT_ZOO.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import common

_MODELS = ("cifar_resnet20", "cifar_resnet56")
_ZEROS = {"50 %": "amount=0.5", "70 %": "amount=0.7", "80 %": "amount=0.8", "2:4": "pattern=2:4", "4:8": "pattern=4:8"}
_WAYS: Mapping[str, tuple[str, ...]] = {
    "reconstruction, fitted": (),
    "wanda": ("criterion=wanda", "reconstruct=false"),
    "magnitude": ("criterion=magnitude", "reconstruct=false"),
}


def main() -> None:
    parser = common.arguments(__doc__)
    parser.add_argument("--only", nargs="*", metavar="MODEL", choices=_MODELS, help="these models only")
    parser.add_argument("--read", type=Path, metavar="FILE", help="make the page of figures that were measured with --json")
    options = parser.parse_args()
    figures: dict[str, Any] = json.loads(options.read.read_text())["figures"] if options.read else {}
    rows: list[Sequence[object]] = []
    with tempfile.TemporaryDirectory() as temporary:
        for model in options.only or _MODELS:
            for zeros, stated in _ZEROS.items():
                for way, settings in _WAYS.items():
                    key = f"{model} {zeros} {way}"
                    if not options.read:
                        figures[key] = made(model, (stated, *settings), Path(temporary) / "sparse.onnx")
                    if key not in figures:
                        continue
                    rows.append(row(model, zeros, way, figures[key]))
                    print(*rows[-1], flush=True)
    header = ("model", "zeros", "criterion", "top-1 before", "top-1", "kB before", "kB", "CPU s")
    text = (
        "No labels and no training: the calibration data have no labels, and top-1 is of other images. *Zeros* are the part of "
        "each layer's weights, or the pattern (2:4: two of four are kept). *Fitted*: the weights that stay make up for those "
        "that go; the other two criteria leave them as they are. *kB* is the file with `store=sparse`, against the file that "
        "was given: a weight is stored with its place where that takes less, from two thirds of zeros on. "
        "*CPU s* is the whole call on one thread: making zeros, fitting and evaluating."
    )
    common.publish("sparsity", "Zeros among weights", [text, common.table(header, rows)], figures, options)


def made(model: str, settings: Sequence[str], out: Path) -> dict[str, Any]:
    """What the command made of a model: its report's figures, or ``failed``."""
    source = common.zoo() / "models" / f"{model}.onnx"
    stated = [part for setting in (*settings, "store=sparse") for part in ("--set", f"prune.sparsity.{setting}")]
    asked = ("--recipe", "sparse", *stated, *common.DATA[model].given(), "--max-drop", 1, "--goal", "size")
    report, ran = common.optimized(source, "-o", out, *asked, env={"OPENBLAS_NUM_THREADS": "1"})
    if "failed" in report:
        return report
    return {
        "before": report["validation"]["metric"]["before"],
        "after": report["validation"]["metric"]["after"],
        "bytes_before": source.stat().st_size,
        "bytes": out.stat().st_size,
        "cpu_seconds": ran.cpu_seconds,
    }


def row(model: str, zeros: str, way: str, found: dict[str, Any]) -> Sequence[object]:
    """A line of the table."""
    if "failed" in found:
        return (model, zeros, way, "", common.cell(found["failed"]), "", "", "")
    return (
        model,
        zeros,
        way,
        f"{found['before']:.4f}",
        f"{found['after']:.4f}",
        f"{found['bytes_before'] / 1e3:.0f}",
        f"{found['bytes'] / 1e3:.0f}",
        f"{found['cpu_seconds']:.1f}",
    )


if __name__ == "__main__":
    main()
