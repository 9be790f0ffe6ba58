"""The passes of the recipe ``lossless`` by themselves: no comparison, no timing, nothing undone.

What these benchmarks look for is what the pipeline would otherwise catch and undo.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from functools import cache

import numpy as np
import onnx_ir as ir

from graphopt import recipe, targets
from graphopt.contracts import Change, Context, Pass, Session, Silent

from common import ROOT

TESTS = ROOT / "tests"


def apply(model: ir.Model, settings: Sequence[str] = ()) -> list[Change]:
    """Rewrite ``model`` in place by every pass of the recipe, and return what they did; settings as ``--set`` takes them."""
    changes: list[Change] = []
    for rewrite in _passes(tuple(settings)):
        changes += rewrite.apply(model, _context())
    return [change for change in changes if change.done]


@cache
def _passes(settings: tuple[str, ...]) -> list[Pass]:
    rewrites = [step.rewrite for step in recipe.load("lossless", settings).steps]
    return [rewrite for rewrite in rewrites if isinstance(rewrite, Pass)]


def tests_on_path() -> None:
    """Make the modules of tests/ importable."""
    sys.path.insert(0, str(TESTS))


def _context() -> Context:
    def no_session(_model: ir.Model) -> Session:
        raise AssertionError("a lossless pass opened a session")

    return Context(
        target=targets.load("cpu"), open_session=no_session, data=None, rng=np.random.default_rng(0), progress=Silent()
    )
