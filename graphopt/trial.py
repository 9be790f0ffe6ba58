"""One pass on trial: applied to a clone, checked, and kept only if the answers stay right.

A lossless pass must leave every output equal; a lossy one must hold the budget (``lossy.py``). A pass that raises, writes an
invalid graph or touches the signature is undone, and the outcome says why.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import onnx_ir as ir

from . import model
from .contracts import Context, LossyPass, Pass, TensorSpec
from .errors import GraphoptError, ModelError
from .evidence import Evidence, UnusableError
from .stage import Outcome, Stage

_LOG = logging.getLogger(__name__)


@dataclass(frozen=True)
class Trial:
    """What a trial needs: how to check, how to compare, and where to write."""

    full_check: bool
    """Whether strict shape inference must accept the result: only if it accepts the original."""
    evidence: Evidence | None
    verify: bool
    external_data: model.ExternalData
    timing: bool
    """Whether candidates of lossy passes may be timed."""
    goal: Literal["latency", "size"]

    def guarded(self, rewrite: Pass | LossyPass, work: Callable[[], Outcome]) -> Outcome:
        """What ``work`` of a pass came to; a defect is an outcome too.

        Raises:
            GraphoptError: The pass needs something from the user.
        """
        try:
            return work()
        except GraphoptError:
            raise
        except Exception as error:  # whatever a pass does wrong must not lose the run
            _LOG.debug("the pass %s failed", rewrite.name, exc_info=True)
            return Outcome(False, f"the pass failed with {type(error).__name__}: {error}")

    def lossless(self, rewrite: Pass, before: Stage, path: Path, context: Context) -> Outcome:
        """Try a lossless pass on the model ``before``; a result that is kept is written to ``path``."""
        candidate = model.clone(before.model)
        changes = rewrite.apply(candidate, context)
        if not any(change.done for change in changes):
            return Outcome(True, "nothing to change", changes)
        problem = self.write(before, candidate, path, narrower=rewrite.changes_signature)
        kept, why = self._is_same(path, before) if problem is None else (False, problem)
        return Outcome(kept, why, changes, candidate, path) if kept else Outcome(False, why, changes)

    def _is_same(self, path: Path, before: Stage) -> tuple[bool, str]:
        """Whether what a lossless pass made may be kept, and why or why not."""
        if self.evidence is None or not self.verify:
            refused = self.evidence.refused(path) if self.evidence is not None else None
            return refused is None, refused or "not compared (--verify off)"
        try:
            judged = self.evidence.same(path, before.path if before.lossy else None)
        except UnusableError as error:
            return False, str(error)
        return not judged.problems, str(judged)

    def write(self, before: Stage, candidate: ir.Model, path: Path, *, narrower: bool = False) -> str | None:
        """Check a candidate and write it; what is wrong with it, if anything.

        With ``narrower`` it may take fewer shapes than the model before.
        """
        for side, specs in (("inputs", model.input_specs), ("outputs", model.output_specs)):
            old, new = specs(before.model), specs(candidate)
            if old != new and not (narrower and is_narrowed(old, new)):
                return f"the model's {side} changed"
        try:
            model.check(candidate, full=self.full_check)
        except ModelError as error:
            return f"the result is not valid: {error.what}"
        model.save(candidate, path, self.external_data)
        return None


def is_narrowed(old: Sequence[TensorSpec], new: Sequence[TensorSpec]) -> bool:
    """Whether the specs are the same but for dynamic dimensions that are fixed, or known, now."""
    if [(spec.name, spec.dtype) for spec in old] != [(spec.name, spec.dtype) for spec in new]:
        return False
    for before, after in zip(old, new, strict=True):
        if len(before.shape or ()) != len(after.shape or ()) or (before.shape is None) != (after.shape is None):
            return False
        for was, now in zip(before.shape or (), after.shape or (), strict=True):
            if was != now and (isinstance(was, int) or not isinstance(now, int)):
                return False
    return True
