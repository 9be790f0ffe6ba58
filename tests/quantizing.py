"""Quantize a small model by ``quantize.static`` alone, and see what the runtime makes of it."""

from __future__ import annotations

import tempfile
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir

from graphopt import model, targets
from graphopt.contracts import Change, Feed, NodeTime, Site
from graphopt.passes.quantize import StaticOptions, StaticQuantize
from graphopt.targets import Target

from helpers import write
from observing import context


@dataclass(frozen=True)
class Quantized:
    """What came out: the file's model, what was said, and the sites that were planned."""

    proto: onnx.ModelProto
    changes: Sequence[Change]
    planned: Sequence[Site]
    offered: Sequence[Site]


def quantize(
    proto: onnx.ModelProto,
    feed: Feed,
    *,
    only: Callable[[Site], bool] = lambda site: True,
    target: Target | None = None,
    **options: object,
) -> Quantized:
    """Quantize all sites for which ``only`` is true, calibrated on ``feed``; the result passes the checker."""
    loaded = ir.from_proto(proto)
    with context(loaded, **feed) as made:
        used = replace(made, target=target or targets.load("cpu"))
        rewrite = StaticQuantize(StaticOptions(**options))
        offered = rewrite.sites(loaded, used)
        planned = [site for site in offered if site.settings and only(site)]
        candidate = model.clone(loaded)
        changes = rewrite.apply(candidate, {site: site.settings[0] for site in planned}, used)
    model.check(candidate, full=True)
    return Quantized(ir.to_proto(candidate), changes, planned, offered)


def kernels(proto: onnx.ModelProto, feed: Mapping[str, np.ndarray]) -> Counter[str]:
    """The operators that onnxruntime executes, after its own optimization."""
    return Counter(node.op_type for node in executed(proto, feed))


def executed(proto: onnx.ModelProto, feed: Mapping[str, np.ndarray]) -> Sequence[NodeTime]:
    """The nodes that onnxruntime executes, in their order."""
    target = targets.load("cpu")
    with tempfile.TemporaryDirectory() as folder:
        path = write(proto, Path(folder) / "m.onnx")
        return targets.runtime(target).profile(path, target, dict(feed), rounds=1)


def run_optimized(proto: onnx.ModelProto, feed: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Run as deployed: with the runtime's optimizations, so with its integer kernels."""
    target = targets.load("cpu")
    with tempfile.TemporaryDirectory() as folder:
        path = write(proto, Path(folder) / "m.onnx")
        with targets.runtime(target).open(path, target) as session:
            return session.run(feed)


def sqnr(expected: np.ndarray, actual: np.ndarray) -> float:
    """Signal to quantization noise, dB; infinite where there is no noise."""
    signal, noise = float((expected**2).sum()), float(((expected - actual) ** 2).sum())
    if noise == 0:
        return float("inf")
    return float(10 * np.log10(signal / noise)) if signal else -float("inf")
