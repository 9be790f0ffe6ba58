"""Factorize a small model by ``factorize`` alone, at chosen options."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import onnx
import onnx_ir as ir

from graphopt import model
from graphopt.contracts import Change, Setting, Site
from graphopt.passes.factorize import Factorize, FactorizeOptions

from helpers import HEADER, from_text
from observing import context


@dataclass(frozen=True)
class Done:
    """What came out: the model, what was said, what was offered."""

    proto: onnx.ModelProto
    changes: Sequence[Change]
    offered: Sequence[Site]

    def site(self, name: str) -> Site:
        return next(site for site in self.offered if site.name == name)

    @property
    def operators(self) -> list[str]:
        return [node.op_type for node in self.proto.graph.node]


def low_rank(rng: np.random.Generator, rank: int, k: int, n: int) -> np.ndarray:
    """A matrix [k, n] of that rank."""
    return (rng.standard_normal((k, rank)) @ rng.standard_normal((rank, n)) / rank).astype(np.float32)


def with_weights(text: str, **weights: np.ndarray) -> onnx.ModelProto:
    """A model in text with these initializers."""
    made = from_text(HEADER + text)
    made.graph.initializer.extend(onnx.numpy_helper.from_array(array, name) for name, array in weights.items())
    onnx.checker.check_model(made)
    return made


def factorize(
    proto: onnx.ModelProto,
    choose: Callable[[Site], Setting | None] = lambda site: site.settings[0],
    *,
    pass_options: dict[str, object] | None = None,
    **arrays: np.ndarray,
) -> Done:
    """Apply the setting that ``choose`` takes at each site that offers some; the result passes the checker."""
    loaded = ir.from_proto(proto)
    with context(loaded, **arrays) as made:
        rewrite = Factorize(FactorizeOptions(**(pass_options or {})))
        offered = rewrite.sites(loaded, made)
        plan = {site: setting for site in offered if site.settings and (setting := choose(site)) is not None}
        assert plan, [[setting.label for setting in site.settings] or site.why for site in offered]
        candidate = model.clone(loaded)
        changes = rewrite.apply(candidate, plan, made)
    model.check(candidate, full=True)
    return Done(ir.to_proto(candidate), changes, offered)


def labelled(label: str) -> Callable[[Site], Setting | None]:
    """Chooses the setting with that label."""
    return lambda site: next((setting for setting in site.settings if setting.label == label), None)
