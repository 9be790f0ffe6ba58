"""``prune.channels`` beside Torch-Pruning: the groups that both find, and the accuracy that both leave before any training.

Torch-Pruning works on torch modules and needs an environment of its own, with torch, onnx, onnxscript and torch-pruning 1.6.1,
whose interpreter is given with ``--peer``. The networks are built there, grouped, and exported; cifar_resnet56 has the weights
of GRAPHOPT_ZOO's file. Its criteria that need neither labels nor training are used: with the same part of every group
and with all groups ranked together, of all groups and of those inside blocks alone. Both tools get the same unlabelled images.
"""

from __future__ import annotations

import json
import tempfile
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import prune

from graphopt import axes, model, optimize
from graphopt.dataset import open_dataset

import common

_INSIDE = Path(__file__).with_name("peer_pruning_torch.py")
_OTHER = 5
"""One of so many of the JPEG images of the training set is evaluated on."""
_IMAGES = "scale=255,mean=0.485:0.456:0.406,std=0.229:0.224:0.225,channels=rgb"


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


def others(zoo: Path, out: Path) -> int:
    """Write images to ``out`` that neither tool was ever tuned on, with labels; how many."""
    specs = model.input_specs(model.load(zoo / "models" / f"{prune.CASES[0].model}.onnx"))
    batches = [*open_dataset(zoo / "data" / "cifar10" / "train", specs, images=_IMAGES).batches()]
    images = np.concatenate([next(iter(batch.feed.values())) for batch in batches])[::_OTHER]
    labels = np.concatenate([batch.labels for batch in batches if batch.labels is not None])[::_OTHER]
    np.savez(out, images=images, labels=labels)
    return len(images)


def top1(source: Path, data: Path) -> float:
    """Of a file, on images with labels."""
    session, arrays = ort.InferenceSession(source, providers=["CPUExecutionProvider"]), np.load(data)
    [given] = session.run(None, {session.get_inputs()[0].name: arrays["images"]})
    return float((np.argmax(given, axis=1) == arrays["labels"]).mean())


def main() -> None:
    parser = common.arguments(__doc__)
    parser.add_argument("--peer", required=True, metavar="PYTHON", help="interpreter of an environment with Torch-Pruning")
    options = parser.parse_args()
    figures: dict[str, Any] = {}
    grouped: list[Sequence[object]] = []
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        count = others(common.zoo(), folder / "others.npz")
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
        measured["graphopt"] = {}
        for left in case.left:
            out = folder / f"{left}.onnx"
            one = prune.pruned(case, left, out)
            if "failed" in one:
                measured["graphopt"][str(left)] = one["failed"]
            else:
                measured["graphopt"][str(left)] = [one["macs"], one["after"], top1(out, folder / "others.npz")]
    figures["accuracy"] = measured
    lefts = [str(left) for left in case.left]
    rows = [(key, *(_told(found[left]) for left in lefts)) for key, found in measured.items()]
    text = [
        "Torch-Pruning 1.6.1 on the torch networks, graphopt on their exports after its lossless recipe. Groups are compared "
        "by their numbers of channels; heads of attention count with all their channels.",
        common.table(("network", "groups, graphopt", "groups, Torch-Pruning", "only graphopt", "only Torch-Pruning"), grouped),
        "cifar_resnet56 before any training, and without labels. Both get the same 1,000 images: graphopt as calibration "
        "data, Torch-Pruning for *Taylor*, whose gradients are those of the cross entropy with the network's own answers; its "
        "other criteria look at weights alone. Two figures of top-1, and in brackets the part of the MACs that is left: first "
        f"on the 1,000 test images ({peer['before'][0]:.3f} before), on which graphopt's settings were chosen while it was "
        f"built; then on {count:,} other images, compressed as JPEG ({peer['before'][1]:.3f} before), on which nothing was. "
        "Shortcuts that pad channels with zeros are written as convolutions for Torch-Pruning, which fails on padded channels; "
        "graphopt prunes the file as it is.",
        common.table(("criterion", *(f"MACs {left}" for left in lefts)), rows),
    ]
    common.publish("peer_pruning", "Beside Torch-Pruning", text, figures, options)


def _told(found: list[float] | str) -> str:
    return found if isinstance(found, str) else f"{found[1]:.3f}, {found[2]:.3f} ({found[0]:.3f})"


if __name__ == "__main__":
    main()
