"""``graphopt optimize --recipe compact``: pruning, low rank and int8 under one budget of accuracy, beside int8 alone.

Both are given the same unlabelled calibration data, and are evaluated on other, labelled data; the files that are written are
timed against the float original, interleaved, on one thread. Needs GRAPHOPT_ZOO.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import common

_MODELS = ("cifar_resnet56", "cifar_resnet20", "squeezenet1_1")
_RECIPES = ("int8", "compact")


def main() -> None:
    parser = common.arguments(__doc__)
    parser.add_argument("--max-drop", type=float, default=0.01, help="the budget (default: 0.01)")
    parser.add_argument("--models", nargs="*", default=_MODELS, metavar="MODEL", help="these models only")
    options = parser.parse_args()
    figures: dict[str, Any] = {}
    rows: list[Sequence[object]] = []
    notes: list[str] = []
    with tempfile.TemporaryDirectory() as folder:
        for name in options.models:
            for recipe in _RECIPES:
                found = measured(name, recipe, options.max_drop, Path(folder) / f"{name}-{recipe}.onnx")
                figures[f"{name} {recipe}"] = found
                rows.append(row(name, recipe, found))
                notes += [f"- {name}: {note}" for note in found.get("notes", [])]
                print(*rows[-1], flush=True)
    text = (
        f"Budget: top-1 may fall by {options.max_drop:g}. *Speed* is against the float original, by CPU time on one thread, "
        "interleaved, with its 95 % interval. *Smaller*: the size of the original by that of the new file. *CPU s* is of the "
        "whole command."
    )
    header = ("model", "recipe", "top-1 before", "drop", "speed", "smaller", "MACs", "parameters", "CPU s", "peak MB")
    parts = [text, common.table(header, rows), "What was compared, each end to end:", "\n".join(notes)]
    common.publish("compact", "Pruning, low rank and int8 under one budget", parts, figures, options)


def measured(name: str, recipe: str, max_drop: float, out: Path) -> dict[str, Any]:
    """What the command made of a model, or ``failed``."""
    source = common.zoo() / "models" / f"{name}.onnx"
    report, ran = common.optimized(source, "-o", out, "--recipe", recipe, *common.DATA[name].given(), "--max-drop", max_drop)
    cost = {"cpu_seconds": ran.cpu_seconds, "peak_bytes": ran.peak_rss_bytes}
    if "failed" in report:
        return {**report, **cost}
    before, after = report["input"], report["output"]
    return {
        "metric": report["validation"]["metric"],
        "speed": {key: report["timing"][key] for key in ("speedup", "speedup_low", "speedup_high")},
        "smaller": before["bytes"] / after["bytes"],
        "macs": after["macs"] / before["macs"] if before["macs"] and after["macs"] else None,
        "parameters": after["parameters"] / before["parameters"],
        "notes": [note for note in report["notes"] if note.startswith("Tried under one budget")],
        **cost,
    }


def row(name: str, recipe: str, found: dict[str, Any]) -> Sequence[object]:
    """A line of the table."""
    cost = (f"{found['cpu_seconds']:.0f}", f"{found['peak_bytes'] / 1e6:.0f}")
    if "failed" in found:
        return (name, recipe, common.cell(found["failed"]), *[""] * 5, *cost)
    metric = found["metric"]
    return (
        name,
        recipe,
        f"{metric['before']:.4f}",
        f"{metric['drop']:.4f}",
        common.interval(found["speed"]),
        f"{found['smaller']:.2f}",
        "" if found["macs"] is None else f"{found['macs']:.3f}",
        f"{found['parameters']:.3f}",
        *cost,
    )


if __name__ == "__main__":
    main()
