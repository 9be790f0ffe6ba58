"""``prune.channels`` beside Torch-Pruning: the groups that both find, and the accuracy that both leave before any training.

Torch-Pruning works on torch modules and needs an environment of its own, with torch, onnx, onnxscript and torch-pruning, whose
interpreter is given with ``--peer``; this script needs none of them. The networks are built there, grouped, and exported;
cifar_resnet56 has the weights of GRAPHOPT_ZOO's file. All takes about ten minutes of one core.

Its criteria that need neither labels nor training are used: with the same part of every group and with all groups ranked
together, of all groups and of those inside blocks alone. Both tools get the same unlabelled images.
"""

from __future__ import annotations

import hashlib
import json
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
import prune

from graphopt import axes, model, optimize
from graphopt.dataset import open_dataset

import common

_INSIDE = Path(__file__).with_name("peer_pruning_torch.py")
MODEL = "cifar_resnet56"
"""What is pruned by both."""
TOOLS = ("graphopt", "Torch-Pruning")
_LISTED = 6
"""Layers of a group that are named."""
_OTHER = 5
"""One of so many of the JPEG images of the training set is evaluated on."""
_IMAGES = "scale=255,mean=0.485:0.456:0.406,std=0.229:0.224:0.225,channels=rgb"


@dataclass(frozen=True)
class Found:
    """A group: how many channels, the torch layers that make them; why it cannot be pruned, or what is wrong with it."""

    tool: str
    size: int
    layers: frozenset[str]
    why: str = ""
    prunable: bool = True

    @property
    def key(self) -> tuple[int, frozenset[str]]:
        """What groups of two tools are compared by."""
        return self.size, self.layers

    def __str__(self) -> str:
        names = sorted(self.layers)
        more = f" and {len(names) - _LISTED} more" if len(names) > _LISTED else ""
        return f"{self.size} of {', '.join(names[:_LISTED])}{more}" + (f" ({self.why})" if self.why else "")


def ours(source: Path, folder: Path, transposed: Mapping[str, str]) -> list[Found]:
    """The groups that graphopt finds in an export; of heads, all channels count.

    ``transposed``: torch layers by the SHA-256 of their transposed weights.
    """
    lossless = folder / f"{source.stem}-lossless.onnx"
    optimize(source, lossless, verify=False, timing=False)
    loaded = model.load(lossless)
    axes.prepare(loaded)
    groups = []
    for group in axes.analyse(loaded).groups():
        size = sum(len(group.producers[0].index(unit)) for unit in range(group.size))
        layers = frozenset(layer(use.value, transposed) for use in group.producers)
        why = "" if group.prunable else f"declined: {group.why}"
        groups.append(Found(TOOLS[0], size, layers, why, group.prunable))
    return groups


def theirs(groups: Sequence[Mapping[str, Any]]) -> list[Found]:
    """The groups that Torch-Pruning found."""
    made = []
    for group in groups:
        beyond = [f"{count} that {name} does not have" for name, count in group["unknown"].items()]
        why = f"and of channels {', '.join(beyond)}" if beyond else ""
        made.append(Found(TOOLS[1], group["size"], frozenset(group["layers"]), why))
    return made


def layer(weight: ir.Value, transposed: Mapping[str, str]) -> str:
    """The torch layer that a weight is of."""
    name = (weight.name or "").removesuffix(".weight")
    digest = hashlib.sha256(weight.const_value.tobytes() if weight.const_value is not None else b"").hexdigest()
    return transposed.get(digest, name)


def apart(groups: Sequence[Found]) -> list[list[Found]]:
    """Groups of both tools that are not the same, those together that share a layer."""
    clusters: list[list[Found]] = []
    for group in groups:
        touching = [cluster for cluster in clusters if any(group.layers & other.layers for other in cluster)]
        clusters = [*(cluster for cluster in clusters if cluster not in touching), [*chain(*touching), group]]

    def keys(cluster: Sequence[Found], tool: str) -> set[object]:
        return {group.key for group in cluster if group.tool == tool and group.prunable}

    return [cluster for cluster in clusters if keys(cluster, TOOLS[0]) != keys(cluster, TOOLS[1])]


def told(cluster: Sequence[Found], tool: str) -> str:
    """What a tool makes of some layers."""
    return "; ".join(str(group) for group in cluster if group.tool == tool).replace("|", "/") or "none"


def others(zoo: Path, out: Path) -> int:
    """Write images to ``out`` that neither tool was ever tuned on, with labels; how many."""
    specs = model.input_specs(model.load(zoo / "models" / f"{MODEL}.onnx"))
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


def groups(peer: Mapping[str, Any], folder: Path) -> tuple[dict[str, Any], list[Sequence[object]], list[Sequence[object]]]:
    """Figures of each network, a line of the table for each, and one for each difference."""
    figures: dict[str, Any] = {}
    rows: list[Sequence[object]] = []
    differences: list[Sequence[object]] = []
    for name, listed in peer["groups"].items():
        found = ours(folder / f"{name}.onnx", folder, peer["transposed"])
        count = sum(group.prunable for group in found)
        if isinstance(listed, str):
            figures[name] = {"graphopt": count, "failed": listed}
            rows.append((name, count, listed.replace("|", "/"), ""))
            continue
        differing = apart([*found, *theirs(listed)])
        same = count - sum(group.tool == TOOLS[0] and group.prunable for group in chain(*differing))
        rows.append((name, count, len(listed), same))
        differences += [(name, *(told(cluster, tool) for tool in TOOLS)) for cluster in differing]
        figures[name] = {**dict(zip(TOOLS, (count, len(listed)), strict=True)), "same": same}
        print(*rows[-1], file=sys.stderr, flush=True)
    return figures, rows, differences


def accuracy(folder: Path) -> dict[str, list[float] | str]:
    """What graphopt leaves of the first model: by part of the MACs what is left of them, and top-1 on two sets of images."""
    found: dict[str, list[float] | str] = {}
    for left in prune.CASES[MODEL]:
        out = folder / f"{left}.onnx"
        one = prune.pruned(MODEL, left, out)
        found[str(left)] = one["failed"] if "failed" in one else [one["macs"], one["after"], top1(out, folder / "others.npz")]
    return found


def main() -> None:
    parser = common.arguments(__doc__)
    parser.add_argument("--peer", required=True, metavar="PYTHON", help="interpreter of an environment with Torch-Pruning")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        count = others(common.zoo(), folder / "others.npz")
        ran = common.run([options.peer, "-P", _INSIDE, folder, common.zoo()])
        if ran.returncode:
            raise SystemExit(ran.stderr[-2000:])
        peer = json.loads((folder / "found.json").read_text())
        figures, rows, differences = groups(peer, folder)
        measured = {**peer["accuracy"], "graphopt": accuracy(folder)}
    lefts = [str(left) for left in prune.CASES[MODEL]]
    versions = peer["versions"]
    text = [
        f"Torch-Pruning {versions['torch-pruning']} (torch {versions['torch']}) on the torch networks, graphopt on their "
        "exports after its lossless recipe. A group is the same if it has as many channels, made by the same layers; heads of "
        "attention count with all their channels.",
        common.table(("network", "groups, graphopt", "groups, Torch-Pruning", "the same"), rows),
        "Layers that the two group differently. What graphopt declines it never prunes: an output keeps its channels, and "
        "a mean over channels is not the same without some.",
        common.table(("network", *TOOLS), differences),
        "cifar_resnet56 before any training, and without labels. Both get the same 1,000 images: graphopt as calibration "
        "data, Torch-Pruning for *Taylor*, whose gradients are those of the cross entropy with the network's own answers; its "
        "other criteria look at weights alone. It has no step that fits what is left to data: it is made to be followed by "
        "training. Two figures of top-1, and in brackets the part of the MACs that is left: first "
        f"on the 1,000 test images ({peer['before'][0]:.3f} before), on which graphopt's settings were chosen while it was "
        f"built; then on {count:,} other images, compressed as JPEG ({peer['before'][1]:.3f} before), on which nothing was. "
        "Shortcuts that pad channels with zeros are written as convolutions for Torch-Pruning, which fails on padded channels; "
        "graphopt prunes the file as it is.",
        common.table(
            ("criterion", *(f"MACs {left}" for left in lefts)),
            [(key, *(_told(found[left]) for left in lefts)) for key, found in measured.items()],
        ),
    ]
    common.publish(
        "peer_pruning", "Beside Torch-Pruning", text, {**figures, "accuracy": measured, "versions": versions}, options
    )


def _told(found: list[float] | str) -> str:
    return found if isinstance(found, str) else f"{found[1]:.3f}, {found[2]:.3f} ({found[0]:.3f})"


if __name__ == "__main__":
    main()
