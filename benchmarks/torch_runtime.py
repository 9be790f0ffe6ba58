"""The torch runtime against onnxruntime: do the outputs agree, which operators are missing, are the gradients right.

Every model is run at two batch sizes where it leaves the batch open, on generated inputs. The models are those of
GRAPHOPT_ZOO, and with ``--also FOLDER`` all others in a folder; each as it is and as the lossless recipe leaves it.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir

from graphopt import model, targets, walk
from graphopt.contracts import Feed, Network
from graphopt.dataset.generate import generate
from graphopt.errors import GraphoptError
from graphopt.runtimes.torch.network import missing_operators

import common

DIMS = {"T": 24, "seq": 24, "sequence": 24}
AGREES = 1e-5
WEIGHTS = 3
"""By which gradients are checked: the first, the middle and the last that is a matrix or a kernel, moved together."""
STEP = 1e-6
"""Of the finite difference, as a part of each weight's norm."""
UNSEEN = 1e-9
"""A difference that is smaller than this part of what the outputs sum to is not told from rounding."""


def main() -> None:
    parser = common.arguments(__doc__)
    parser.add_argument("--also", type=Path, metavar="FOLDER", help="models in this folder, too")
    parser.add_argument("--only", nargs="*", metavar="MODEL", help="these models only")
    options = parser.parse_args()
    paths = [path for folder in (common.zoo() / "models", options.also) if folder for path in sorted(folder.glob("*.onnx"))]
    figures: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        for path in paths:
            if options.only and path.stem not in options.only:
                continue
            made = Path(folder) / path.name
            command = [sys.executable, "-P", "-m", "graphopt", "optimize", path, "-o", made, "--recipe", "lossless"]
            done = common.run([*command, "--timing", "off", "--verify", "off"])
            figures[path.stem] = measured(path, check=True)
            figures[f"{path.stem}, lossless"] = measured(made) if made.is_file() else {"failed": done.stderr.strip()}
            made.unlink(missing_ok=True)
            print(path.stem, figures[path.stem], figures[f"{path.stem}, lossless"], file=sys.stderr, flush=True)
    good = sum(found.get("largest", 1) <= AGREES for found in figures.values())
    text = (
        f"{good} of {len(figures)} models agree with onnxruntime to {AGREES:.0e}. *Difference* is the largest of any output, "
        "relative to the output's peak, over the batch sizes (those that the model takes of 1 and 2). *Gradient* is how far "
        f"the derivative by {WEIGHTS} weights, along their gradients, is from a finite difference (a step of {STEP:.0e} of "
        "each weight's norm), in float64; it is not asked again of what the lossless recipe leaves, and empty where outputs "
        "hardly depend on these weights."
    )
    header = ("model", "nodes", "batches", "agrees", "difference", "operators missing", "gradient")
    page = [text, common.table(header, [row(name, found) for name, found in figures.items()])]
    common.publish("torch", "The torch runtime", page, figures, options)


def measured(path: Path, check: bool = False) -> dict[str, Any]:
    """What is to be said of one file; ``check``: of its gradient, too."""
    loaded = model.load(path)
    found: dict[str, Any] = {"nodes": model.count_nodes(loaded), "missing": missing_operators(loaded)}
    if found["missing"]:
        return found
    runtimes = [targets.load(name) for name in (targets.REFERENCE, targets.GRADIENTS)]
    reference, own = (targets.runtime(target).open(path, target) for target in runtimes)
    found |= {"largest": 0.0, "batches": [], "exact": {}}
    feed: Feed = {}
    with reference, own:
        symbols = {spec.shape[0] for spec in model.input_specs(loaded) if spec.shape and isinstance(spec.shape[0], str)}
        known = {dim for spec in model.input_specs(loaded) for dim in spec.shape or ()}
        sizes = {name: size for name, size in DIMS.items() if name in known and name not in symbols}
        for batch in (2, 1) if symbols else (1,):
            data = generate(loaded, dims={**sizes, **dict.fromkeys(symbols, batch)}, samples=1, runs=reference.accepts)
            feed = next(data.batches()).feed
            try:
                wanted, answer = reference.run(feed), own.run(feed)
                found["largest"] = max(found["largest"], difference(wanted, answer))
                if difference(wanted, answer) > AGREES:
                    right = exact(loaded, feed)
                    found["exact"] = {"onnxruntime": difference(right, wanted), "torch": difference(right, answer)}
            except GraphoptError as error:
                return found | {"failed": str(error)}
            found["batches"].append(batch)
    return found | {"gradient": gradient(loaded, feed) if check else None}


def difference(wanted: Mapping[str, Any], found: Mapping[str, Any]) -> float:
    """The largest of any output, relative to its peak; integers must be equal."""
    worst = 0.0
    for name, right in wanted.items():
        if right.dtype.kind != "f":
            worst = max(worst, 0.0 if np.array_equal(right, found[name]) else np.inf)
        elif right.size:
            worst = max(worst, float(np.abs(right - found[name]).max() / max(float(np.abs(right).max()), 1e-30)))
    return worst


def exact(loaded: ir.Model, feed: Feed) -> dict[str, Any]:
    """The outputs computed in float64."""
    import torch

    wide = doubled(loaded)
    with torch.no_grad():
        found = targets.runtime(targets.load(targets.GRADIENTS)).network(wide).run(doubled_feed(feed))
    return {value.name: found[value].numpy() for value in wide.graph.outputs}


def gradient(loaded: ir.Model, feed: Feed) -> float | None:
    """How far a derivative is from the finite difference, relative to it; None where there is hardly one."""
    import torch

    loaded = doubled(loaded)
    feed = doubled_feed(feed)
    network: Network = targets.runtime(targets.load(targets.GRADIENTS)).network(loaded)
    weights = network.weights
    read = [value for value, weight in weights.items() if weight.ndim > 1 and value.uses() and weight.numel() > 8]
    chosen = [read[place] for place in sorted({0, len(read) // 2, len(read) - 1})] if read else []

    def loss() -> tuple[Any, float]:
        """Outputs summed with random weights, and how large the terms are."""
        random = torch.Generator().manual_seed(0)
        outputs = network.run(feed)
        given = [outputs[value].double() for value in loaded.graph.outputs if outputs[value].is_floating_point()]
        terms = [(y * torch.randn(y.shape, generator=random, dtype=y.dtype)).reshape(-1) for y in given]
        return torch.cat(terms).sum(), float(torch.cat(terms).detach().abs().sum())

    for value in chosen:
        weights[value].requires_grad_()
    total, size = loss()
    if not total.requires_grad:
        return None
    total.backward()
    starts = {value: weights[value].detach().clone() for value in chosen}
    slopes = {value: slope for value in chosen if (slope := weights[value].grad) is not None and float(slope.norm())}
    steps = {value: slope / slope.norm() * starts[value].norm() * STEP for value, slope in slopes.items()}
    expected = 2 * sum(float((slope * steps[value]).sum()) for value, slope in slopes.items())
    if abs(expected) < UNSEEN * size:
        return None
    sides = []
    with torch.no_grad():
        for sign in (1, -1):
            for value, step in steps.items():
                weights[value].copy_(starts[value] + sign * step)
            sides.append(float(loss()[0]))
    finite = sides[0] - sides[1]
    return abs(expected - finite) / max(abs(finite), 1e-30)


def doubled(loaded: ir.Model) -> ir.Model:
    """The model with numbers of float64 in place of those of float32."""
    wide = model.clone(loaded)
    single, double = ir.DataType.FLOAT, ir.DataType.DOUBLE
    for graph in walk.graphs(wide.graph):
        for value in graph.initializers.values():
            if value.const_value is not None and value.const_value.dtype == single:
                value.const_value = ir.tensor(value.const_value.numpy().astype(np.float64))
        for node in graph:
            for name, one in [*node.attributes.items()]:
                if one.type == ir.AttributeType.TENSOR and one.value.dtype == single:
                    node.attributes[name] = ir.AttrTensor(name, ir.tensor(one.value.numpy().astype(np.float64)))
                if node.op_type == "Cast" and one.value == single:
                    node.attributes[name] = ir.AttrInt64(name, double)
    return wide


def doubled_feed(feed: Feed) -> Feed:
    """The same numbers in float64, where they were in float32."""
    return {name: array.astype(np.float64) if array.dtype == np.float32 else array for name, array in feed.items()}


def row(name: str, found: Mapping[str, Any]) -> Sequence[object]:
    if "failed" in found or "largest" not in found:
        why = found.get("failed", "").replace("\n", " ")[:200]
        return (
            name,
            found.get("nodes", ""),
            "",
            f"no: {why}" if why else "no",
            "",
            ", ".join(found.get("missing", ())),
            "",
        )
    slope = found["gradient"]
    apart = " and ".join(f"{name} is {error:.0e}" for name, error in found["exact"].items())
    return (
        name,
        found["nodes"],
        ", ".join(map(str, sorted(found["batches"]))),
        "yes" if found["largest"] <= AGREES else f"no: {apart} from float64",
        f"{found['largest']:.0e}",
        "",
        "" if slope is None else f"{slope:.0e}",
    )


if __name__ == "__main__":
    main()
