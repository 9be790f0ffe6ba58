"""``prune.channels`` beside Torch-Pruning: the groups that both find, and the accuracy that both leave before any training.

Torch-Pruning works on torch modules and needs an environment of its own, with torch, onnx, onnxscript and torch-pruning 1.6.1,
whose interpreter is given with ``--peer``. The networks are built there, grouped, and exported; cifar_resnet56 has the weights
of GRAPHOPT_ZOO's file. Its criteria that need neither labels nor training are used: with the same part of every group
and with all groups ranked together, of all groups and of those inside blocks alone.
"""

from __future__ import annotations

import json
import tempfile
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import prune

from graphopt import axes, model, optimize

import common

_INSIDE = Path(__file__).with_name("peer_pruning_torch.py")


def sizes(source: Path, folder: Path) -> list[int]:
    """Channels of each group that can be pruned."""
    lossless = folder / f"{source.stem}-lossless.onnx"
    optimize(source, lossless, verify=False, timing=False)
    loaded = model.load(lossless)
    axes.prepare(loaded)
    found = axes.analyse(loaded).groups()
    return sorted(sum(len(group.producers[0].index(u)) for u in range(group.size)) for group in found if group.prunable)


def listed(numbers: Sequence[int]) -> str:
    """Sizes and how often each occurs."""
    return ", ".join(f"{count} of {size}" for size, count in sorted(Counter(numbers).items())) or "none"


def main() -> None:
    parser = common.arguments(__doc__)
    parser.add_argument("--peer", required=True, metavar="PYTHON", help="interpreter of an environment with Torch-Pruning")
    parser.add_argument("--read", type=Path, help="figures of prune.py, as its --json wrote them, instead of pruning again")
    options = parser.parse_args()
    figures: dict[str, Any] = {}
    grouped: list[Sequence[object]] = []
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        ran = common.run([options.peer, "-P", _INSIDE, folder, common.zoo()])
        if ran.returncode:
            raise SystemExit(ran.stderr[-2000:])
        peer = json.loads((folder / "found.json").read_text())
        for name, theirs in peer["groups"].items():
            ours = sizes(folder / f"{name}.onnx", folder)
            figures[name] = {"ours": ours, "theirs": theirs}
            if isinstance(theirs, str):
                grouped.append((name, len(ours), theirs, "", ""))
                continue
            both = Counter(ours) & Counter(theirs)
            only_ours, only_theirs = Counter(ours) - both, Counter(theirs) - both
            grouped.append((name, len(ours), len(theirs), listed([*only_ours.elements()]), listed([*only_theirs.elements()])))
            print(*grouped[-1], flush=True)
        case = prune.CASES[0]
        measured: dict[str, dict[str, Any]] = dict(peer["accuracy"])
        read = json.loads(options.read.read_text())["figures"] if options.read else {}
        found = {left: read.get(f"{case.model} {left} latency") for left in case.left}
        for left, one in found.items():
            found[left] = one or prune.pruned(case, left, folder / f"{left}.onnx")
        measured["graphopt"] = {str(left): [one["macs"], one["after"]] for left, one in found.items()}
    figures["accuracy"] = measured
    lefts = [str(left) for left in case.left]
    rows = [(key, *(_told(found[left]) for left in lefts)) for key, found in measured.items()]
    text = [
        "Torch-Pruning 1.6.1 on the torch networks, graphopt on their exports after its lossless recipe. Groups are compared "
        "by their numbers of channels; heads of attention count with all their channels.",
        common.table(("network", "groups, graphopt", "groups, Torch-Pruning", "only graphopt", "only Torch-Pruning"), grouped),
        f"cifar_resnet56 before any training, and without labels: top-1 ({peer['before']:.3f} before), and in brackets the "
        "part of the MACs that is left. Shortcuts that pad channels with zeros are written as convolutions for Torch-Pruning, "
        "which fails on padded channels; graphopt prunes the file as it is.",
        common.table(("criterion", *(f"MACs {left}" for left in lefts)), rows),
    ]
    common.publish("peer_pruning", "Beside Torch-Pruning", text, figures, options)


def _told(found: list[float] | str) -> str:
    return found if isinstance(found, str) else f"{found[1]:.3f} ({found[0]:.3f})"


if __name__ == "__main__":
    main()
