"""Is a simplified file right? Nodes, the full checker, onnxruntime's loading, and equal outputs at several sizes.

Run as a script with the original and the candidate; prints one line of JSON. A process of its own, since it may crash.
``--twice`` also looks whether a second run of ``lossless`` changes anything; ``--time`` only times both files.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from graphopt import model, targets, timing
from graphopt.contracts import Array, Feed, Session, SessionOptions, Silent
from graphopt.dataset.generate import generate
from graphopt.dataset.preflight import is_fixed, symbol
from graphopt.errors import GraphoptError
from graphopt.registry import runtime

import lossless

BATCH, LENGTH = 3, 29
TIMING_SECONDS = 20.0


def main(original: Path, candidate: Path, flags: set[str]) -> dict[str, Any]:
    if "--time" in flags:
        return asdict(timed(original, candidate))
    proto = onnx.load(candidate)
    result: dict[str, Any] = {
        "nodes": _count(proto.graph) + sum(_count(function) for function in proto.functions),
        "bytes": candidate.stat().st_size,
    }
    del proto
    try:
        onnx.checker.check_model(candidate, full_check=True)
    except Exception as error:
        return result | {"wrong": f"the full checker: {_short(error)}"}
    try:
        result["max_rel"] = differences(original, candidate)
    except Exception as error:
        return result | {"wrong": f"onnxruntime: {_short(error)}"}
    if "--twice" in flags:
        again = model.load(candidate)
        result["again"] = [f"{change.site}: {change.what}" for change in lossless.apply(again)]
    return result


def _count(graph: onnx.GraphProto | onnx.FunctionProto) -> int:
    """Nodes with those of subgraphs; Constant does nothing and is not counted."""
    inner = (g for node in graph.node for a in node.attribute for g in ([a.g] if a.HasField("g") else a.graphs))
    return sum(node.op_type != "Constant" for node in graph.node) + sum(map(_count, inner))


def opened(path: Path, *, optimize: bool = False) -> Session:
    target = targets.load("cpu")
    return runtime(target.runtime).open(path, target, SessionOptions(threads=1, optimize=optimize))


def differences(original: Path, candidate: Path) -> dict[str, float]:
    """Largest difference of any output relative to its peak, for each set of sizes that the original runs with.

    Neither file is changed by onnxruntime's own optimizations, whose rounding is not the simplifier's.
    """
    with opened(original) as session:
        answers = [(name, feed, session.run(feed)) for name, feed in feeds(original, session)]
    with opened(candidate) as session:
        return {name: _difference(expected, session.run(feed)) for name, feed, expected in answers}


def feeds(path: Path, session: Session) -> Iterator[tuple[str, Feed]]:
    """Generated inputs of the usual sizes, at another batch size, and at another length."""
    graph = model.load(path)
    keys: dict[str, bool] = {}
    for spec in model.input_specs(graph):
        for axis, dim in enumerate(spec.shape or ()):
            if not is_fixed(dim):
                key = symbol(dim) or f"{spec.name}:{axis}"
                keys[key] = keys.get(key, False) or axis == 0
    batch = {key: BATCH for key, first in keys.items() if first}
    length = {key: LENGTH for key, first in keys.items() if not first}
    wanted = {"usual sizes": {}, f"batch {BATCH}": batch, f"length {LENGTH}": length}
    for name, dims in wanted.items():
        if dims or name == "usual sizes":
            try:
                data = generate(graph, dims=dims, samples=1, runs=session.accepts)
            except GraphoptError:
                if not dims:
                    raise
                continue  # the original takes no such size
            yield name, next(data.stream(data.spans)).feed


def _difference(expected: dict[str, Array], actual: dict[str, Array]) -> float:
    assert list(expected) == list(actual), f"the outputs are {list(actual)}, not {list(expected)}"
    worst = 0.0
    for name, first in expected.items():
        second = actual[name]
        assert (first.dtype, first.shape) == (second.dtype, second.shape), f"{name} is {second.dtype}{list(second.shape)}"
        if np.array_equal(first, second, equal_nan=first.dtype.kind == "f"):
            continue
        assert first.dtype.kind == "f", f"{name} differs"
        assert np.array_equal(np.isfinite(first), np.isfinite(second)), f"{name} has other NaN or infinities"
        finite = np.isfinite(first)
        off = np.abs(first[finite].astype(np.float64) - second[finite])
        worst = max(worst, float(off.max() / max(np.abs(first[finite]).max(), 1e-30)))
    return worst


def timed(original: Path, candidate: Path) -> timing.Comparison:
    """Both files as they are deployed, one thread, CPU time."""
    with opened(original) as session:
        _, feed = next(feeds(original, session))
    return timing.compare(
        lambda: opened(original, optimize=True),
        lambda: opened(candidate, optimize=True),
        feed,
        limit_seconds=TIMING_SECONDS,
        rng=np.random.default_rng(0),
        progress=Silent(),
    )


def _short(error: Exception) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())[:300]


if __name__ == "__main__":
    print("\n" + json.dumps(main(Path(sys.argv[1]), Path(sys.argv[2]), {*sys.argv[3:]})))
