"""The passes of the recipe ``lossless`` by themselves: no comparison, no timing, nothing undone.

What these benchmarks look for is what the pipeline would otherwise catch and undo.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Sequence
from functools import cache
from itertools import pairwise
from typing import Any
from unittest import mock

import numpy as np
import onnx_ir as ir

from graphopt import model, recipe, targets
from graphopt.contracts import Change, Context, Pass, Session, Silent
from graphopt.model import checker

from common import ROOT

TESTS = ROOT / "tests"


def apply(given: ir.Model, settings: Sequence[str] = ()) -> list[Change]:
    """Rewrite a model in place by every pass of the recipe, and return what they did; settings as ``--set`` takes them."""
    changes: list[Change] = []
    settled = recipe.Settled()
    for step in _steps(tuple(settings)):
        if not settled.holds(step):
            assert isinstance(step.rewrite, Pass)
            done = [change for change in step.rewrite.apply(given, _context()) if change.done]
            settled.note(step, changed=bool(done))
            changes += done
    return changes


def file_to_file(source: str, out: str, settings: Sequence[str] = ()) -> dict[str, float]:
    """Simplify a file as a user would; CPU seconds of ``load`` without checking, of ``check``, ``rewrite`` and ``save``."""
    checked = 0.0

    def timed(check: Callable[..., Any]) -> Callable[..., Any]:
        def run(*given: Any, **named: Any) -> Any:
            nonlocal checked
            begun = time.process_time()
            found = check(*given, **named)
            checked += time.process_time() - begun
            return found

        return run

    marks = [time.process_time()]
    with mock.patch.multiple(model, validate=timed(model.validate)), mock.patch.multiple(checker, run=timed(checker.run)):
        loaded = model.load(source)
    marks.append(time.process_time())
    apply(loaded, settings)
    marks.append(time.process_time())
    model.save(loaded, out, durable=False)  # as the others: without waiting until the disk has it
    marks.append(time.process_time())
    load, rewrite, save = (after - before for before, after in pairwise(marks))
    return {"load": load - checked, "check": checked, "rewrite": rewrite, "save": save}


def prepare() -> None:
    """What a process does once, whatever its files: import the passes, read the recipe and the target."""
    _steps(())
    _context()


@cache
def _steps(settings: tuple[str, ...]) -> Sequence[recipe.Step]:
    return recipe.load("lossless", settings).steps


def tests_on_path() -> None:
    """Make the modules of tests/ importable."""
    sys.path.insert(0, str(TESTS))


def _context() -> Context:
    def no_session(_model: ir.Model) -> Session:
        raise AssertionError("a lossless pass opened a session")

    return Context(
        target=targets.load("cpu"), open_session=no_session, data=None, rng=np.random.default_rng(0), progress=Silent()
    )
