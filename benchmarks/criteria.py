"""What decides which channels go: every criterion at the same number of MACs, with and without fitting what is left.

No labels and no training; groups and blocks are chosen as always, by the damage that is measured, so that the
criterion decides only which units of a group go. Needs GRAPHOPT_ZOO, and torch for the criteria by gradients. Takes about
fifteen minutes of one core.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from graphopt.registry import pass_class

import common

MODELS, LEFT = ("cifar_resnet20", "cifar_resnet56"), 0.69


def main() -> None:
    parser = common.arguments(__doc__)
    parser.add_argument("--models", nargs="*", default=MODELS, metavar="MODEL", help="these models of the zoo on CIFAR-10 only")
    parser.add_argument("--only", nargs="*", metavar="CRITERION", help="these criteria only")
    options = parser.parse_args()
    criteria = options.only or pass_class("prune.channels").Options.model_json_schema()["properties"]["criterion"]["enum"]
    figures: dict[str, Any] = {model: {} for model in options.models}
    parts = [
        f"Pruned to at most {LEFT} of the MACs with `--goal size` and `blocks=false`: 1,000 images without labels, top-1 of "
        "1,000 others, which is known to about a point. *Fitted* is as pruning does by default; without it "
        "(`reconstruct=false`) the weights that are left stay as they are. *CPU s* is of the whole call with fitting, on one "
        "thread, without timing."
    ]
    header = ("criterion", "top-1, fitted", "MACs", "top-1, not fitted", "MACs", "CPU s")
    with tempfile.TemporaryDirectory() as folder:
        for model, found in figures.items():
            for criterion in criteria:
                found[criterion] = {fit: pruned(model, criterion, fit, Path(folder) / "out.onnx") for fit in ("on", "off")}
                print(model, criterion, found[criterion], file=sys.stderr, flush=True)
            before = next((one["before"] for both in found.values() for one in both.values() if "before" in one), None)
            title = f"## {model}" + (f", top-1 {before:.4f} before" if before else "")
            parts += [title, common.table(header, [row(*one) for one in found.items()])]
    common.publish("criteria", "Which channels go", parts, figures, options)


def pruned(model: str, criterion: str, fit: str, out: Path) -> dict[str, Any]:
    """What the command made of the model: its report's figures, or ``failed``."""
    settings = {"macs": LEFT, "criterion": criterion, "blocks": "false", "reconstruct": "true" if fit == "on" else "false"}
    report, ran = common.optimized(
        *(common.zoo() / "models" / f"{model}.onnx", "-o", out, "--recipe", "prune", *common.DATA[model].given()),
        *("--max-drop", 1, "--goal", "size", "--timing", "off"),
        *(part for name, value in settings.items() for part in ("--set", f"prune.channels.{name}={value}")),
        env={"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"},
    )
    if "failed" in report:
        return report
    metric = report["validation"]["metric"]
    macs = report["output"]["macs"] / report["input"]["macs"]
    return {"before": metric["before"], "after": metric["after"], "macs": macs, "cpu_seconds": ran.cpu_seconds}


def row(criterion: str, found: dict[str, Any]) -> Sequence[object]:
    """A line of the table."""
    cells: list[object] = [f"`{criterion}`"]
    for fit in ("on", "off"):
        one = found[fit]
        cells += [common.cell(one["failed"]), ""] if "failed" in one else [f"{one['after']:.4f}", f"{one['macs']:.3f}"]
    return (*cells, f"{found['on'].get('cpu_seconds', 0):.1f}")


if __name__ == "__main__":
    main()
