"""Factors that are best for a layer's inputs against the plain singular value decomposition; and what a large weight takes.

Factors are made with second moments of calibration images; what they lose is judged on other images. The large weight is
decomposed in a process of its own, whose memory is counted. Needs GRAPHOPT_ZOO.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir

from graphopt import model, observe, targets
from graphopt.contracts import Array, Session, Silent
from graphopt.dataset import open_dataset
from graphopt.passes.factorize.decompose import decompose
from graphopt.passes.factorize.layers import layers

import common

_MODEL = "cifar_resnet20"
_PARTS = (0.125, 0.25, 0.375, 0.5, 0.625, 0.75)
_SAMPLES = 256
_ROWS = 128
_SIZE = 4096
_LARGE_RANKS = (256, 1024, 1944)
"""The last one is the largest that saves anything worth it, and so the largest that is asked for."""


def main() -> None:
    parser = common.arguments(__doc__)
    parser.add_argument("--large", type=int, metavar="RANK", help="only decompose the large weight and print what it took")
    options = parser.parse_args()
    if options.large is not None:
        print(*_large(options.large))
        return
    figures: dict[str, Any] = {"layers": _lost(), "large": []}
    rows = [
        (f"{part:g}", f"{np.mean(plain):.4f}", f"{np.mean(aware):.4f}", sum(np.less(aware, plain)))
        for part, plain, aware in figures["layers"]
    ]
    for rank in _LARGE_RANKS:
        ran = subprocess.run([sys.executable, __file__, "--large", str(rank)], capture_output=True, text=True, check=True)
        figures["large"].append((rank, *map(float, ran.stdout.split())))
    least = _least()
    count = len(figures["layers"][0][1])
    text = (
        f"The part of a layer's output energy that is lost, in the mean over {count} convolutions of {_MODEL} (not the first), "
        "by the part of the full rank that is kept; and for how many of them the factors on data lose less than the plain ones."
    )
    large = (
        f"A weight of {_SIZE}×{_SIZE} in float32 with second moments of its inputs: *CPU s* of the decomposition, and the most "
        "memory that it takes beyond the weight and the moments, as a multiple of the weight; *lost* is the part of the output "
        "energy that is lost, *least* what the best factors would lose, by all eigenvalues in float64. The weight is "
        "random, and so are the inputs: no case is harder, since components hardly differ."
    )
    header = ("rank", "plain SVD", "on data", "better on data")
    table = [
        (f"{rank}", f"{seconds:.1f}", f"{times:.1f}", f"{lost:.4f}", f"{best:.4f}")
        for (rank, seconds, times, lost), best in zip(figures["large"], least, strict=True)
    ]
    heads = ("rank", "CPU s", "memory / weight", "lost", "least")
    parts = [text, common.table(header, rows), large, common.table(heads, table)]
    common.publish("ranks", "Factors on data and plain factors", parts, figures, options)


def _lost() -> list[tuple[float, list[float], list[float]]]:
    """By part of the rank: what each layer loses, plain and on data."""
    zoo = common.zoo()
    loaded = model.load(zoo / "models" / f"{_MODEL}.onnx")
    chosen = [one for one in layers(loaded) if one.conv and not one.why and one.shape[1] > 3]
    seen, unseen = (moments(loaded, chosen, zoo / "data" / "cifar10" / f"{name}.npz") for name in ("calib", "eval"))
    found = []
    for part in _PARTS:
        lost: tuple[list[float], list[float]] = ([], [])
        for layer, gram, other in zip(chosen, seen, unseen, strict=True):
            [matrix] = layer.matrix()
            rank = max(1, round(part * min(matrix.shape)))
            for losses, given in zip(lost, (None, gram), strict=True):
                factors = decompose(matrix, given, rank)
                losses.append(energy(matrix - factors.a @ factors.b, other) / energy(matrix, other))
        found.append((part, *lost))
    return found


def energy(matrix: Array, gram: Array) -> float:
    return float(np.vdot(matrix, gram @ matrix))


def moments(loaded: ir.Model, chosen: Sequence[Any], path: Path) -> list[Array]:
    """Second moments of each layer's inputs on some images."""
    target = targets.load("cpu")
    data = open_dataset(str(path), model.input_specs(loaded)).first(_SAMPLES)
    asked = [(layer.uses[0].reads.name, observe.Gram(layer.patches(), _ROWS)) for layer in chosen]
    wanted: dict[str, list[observe.Gram]] = {}
    for name, gram in asked:
        wanted.setdefault(name, []).append(gram)
    with tempfile.TemporaryDirectory() as folder:

        def open_session(made: ir.Model) -> Session:
            return targets.runtime(target).open(model.save(made, Path(folder) / "m.onnx", durable=False).path, target)

        found = observe.collect(loaded, wanted, data=data, open_session=open_session, progress=Silent())
    return [found[name][wanted[name].index(gram)].products[0] for name, gram in asked]


def _given() -> tuple[Array, Array]:
    """A large weight, and second moments of its inputs as they are collected: in float64."""
    random = np.random.default_rng(0)
    matrix = random.standard_normal((_SIZE, _SIZE), dtype=np.float32)
    rows = random.standard_normal((_SIZE, _SIZE), dtype=np.float32)
    return matrix, (rows.T @ rows).astype(np.float64)


def _large(rank: int) -> tuple[float, float, float]:
    """CPU seconds, memory beyond what is given, of a large weight, and what is lost."""
    matrix, gram = _given()
    Path("/proc/self/clear_refs").write_text("5")  # the peak so far is forgotten
    held, begun = _bytes("VmRSS"), time.process_time()
    factors = decompose(matrix, gram, rank)
    spent, peak = time.process_time() - begun, _bytes("VmHWM")
    left, moments = matrix - factors.a @ factors.b, gram.astype(np.float32)
    return spent, (peak - held) / matrix.nbytes, energy(left, moments) / energy(matrix, moments)


def _least() -> list[float]:
    """What the best factors of each rank lose."""
    matrix, gram = _given()
    values = np.linalg.eigvalsh(matrix.T @ (gram @ matrix))[::-1]
    return [float(values[rank:].sum() / values.sum()) for rank in _LARGE_RANKS]


def _bytes(what: str) -> int:
    """What the kernel says of the process's memory."""
    status = Path("/proc/self/status").read_text()
    return 1024 * int(next(line for line in status.splitlines() if line.startswith(what)).split()[1])


if __name__ == "__main__":
    main()
