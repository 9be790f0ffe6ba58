"""Prune a small model by ``prune.channels`` alone, as far as it can be."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from graphopt import model
from graphopt.contracts import Change, Feed, Site
from graphopt.passes.prune import PruneChannels

from helpers import run
from observing import context


@dataclass(frozen=True)
class Pruned:
    """What came out: the model, what was said, and the sites."""

    model: ir.Model
    changes: Sequence[Change]
    sites: Sequence[Site]


def prune(before: ir.Model, feed: Feed, only: str = "", **options: object) -> Pruned:
    """Prune each site (or the one of that name) as harshly as it offers, on ``feed``; the result passes the checker."""
    with context(before, **feed) as made:
        rewrite = PruneChannels(PruneChannels.Options(**options))
        sites = rewrite.sites(before, made)
        candidate = model.clone(before)
        plan = {site: site.settings[-1] for site in sites if site.settings and site.name.startswith(only)}
        changes = rewrite.apply(candidate, plan, made)
    model.check(candidate)
    return Pruned(candidate, changes, sites)


def error(before: ir.Model, after: ir.Model, feed: Feed) -> float:
    """Noise to signal of all outputs together."""
    first, second = run(before, feed), run(after, feed)
    noise = sum(float(((first[name] - second[name]) ** 2).sum()) for name in first)
    return noise / sum(float((values**2).sum()) for values in first.values())


def correlated(samples: int, channels: int, rank: int, size: int = 8, seed: int = 0) -> np.ndarray:
    """Images [samples, channels, size, size] whose channels are mixtures of ``rank`` signals, and a little noise."""
    rng = np.random.default_rng(seed)
    signals = rng.standard_normal((samples, rank, size, size))
    mixture = np.random.default_rng(1).standard_normal((channels, rank))
    found = np.einsum("cr,srhw->schw", mixture, signals) + 0.01 * rng.standard_normal((samples, channels, size, size))
    return found.astype(np.float32)
