"""What can be removed from a model, how long it takes to find out, and whether removal is exact.

Each model goes through the recipe ``lossless``; then a quarter of the units of each group that can be pruned, at random, is
removed, and set to zero in a copy. The pruned file passes ONNX's full checker, and both are run on the same generated inputs.
Models of GRAPHOPT_ZOO, and files that are named.
"""

from __future__ import annotations

import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np

from graphopt import axes, model, optimize
from graphopt.comparison import compare_files
from graphopt.contracts import Silent

import common

RATIO = 0.25


def tried(source: Path, folder: Path) -> dict[str, Any]:
    """The figures of one model."""
    files = {name: folder / f"{name}.onnx" for name in ("lossless", "masked", "pruned")}
    optimize(source, files["lossless"], verify=False, timing=False)
    loaded = model.load(files["lossless"])
    axes.prepare(loaded)
    before, nodes = model.parameters(loaded), model.count_nodes(loaded)
    started = time.process_time()
    channels = axes.analyse(loaded)
    groups = channels.groups()
    seconds = time.process_time() - started
    rng = np.random.default_rng(0)
    removal = {group: group.choose(rng.permutation(group.size), int(RATIO * group.size)) for group in groups if group.prunable}
    model.save(axes.masked(loaded, channels, removal), files["masked"])
    axes.remove(loaded, channels, removal)
    model.check(loaded)
    model.save(loaded, files["pruned"])
    found = compare_files(
        files["masked"], files["pruned"], data=None, images=None, dims={}, metric=None, target="cpu", seed=0, progress=Silent()
    )
    return {
        "nodes": nodes,
        "cpu_seconds": seconds,
        "groups": len(groups),
        "prunable": len(removal),
        "parameters": before,
        "parameters_left": model.parameters(loaded),
        "mismatches": found.mismatches,
        "max_rel": max((row.max_rel for row in found.outputs.values()), default=0.0),
        "why": Counter(group.why.split(" '")[0] for group in groups if group.why).most_common(3),
    }


def main() -> None:
    parser = common.arguments(__doc__)
    parser.add_argument("models", nargs="*", type=Path, help="further models")
    options = parser.parse_args()
    figures, rows = {}, []
    for source in [*sorted((common.zoo() / "models").glob("*.onnx")), *options.models]:
        with tempfile.TemporaryDirectory() as folder:
            found = figures[source.stem] = tried(source, Path(folder))
        left = found["parameters_left"] / found["parameters"]
        why = "; ".join(f"{reason} ({count})" for reason, count in found["why"])
        equal = f"{found['max_rel']:.0e}" if not found["mismatches"] else "differs"
        counts = f"{found['prunable']} of {found['groups']}"
        rows.append((source.stem, found["nodes"], f"{found['cpu_seconds']:.2f}", counts, f"{left:.2f}", equal, why))
    header = ("model", "nodes", "analysis, CPU s", "groups pruned", "parameters left", "max rel", "what forbids the others")
    text = (
        "*Max rel* is the largest difference of any output between the pruned model and the one with the same channels zeroed, "
        "relative to the output's peak. What forbids a removal is counted by group."
    )
    title = f"What can be removed: {RATIO:.0%} of each group's units"
    common.publish("channels", title, [text, common.table(header, rows)], figures, options)


if __name__ == "__main__":
    main()
