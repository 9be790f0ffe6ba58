"""Where passes try a model: it is written into a folder, opened on a target, and forgotten.

A pass holds a graph; a runtime reads files. What a pass is given (``Context.open_session``, ``.partition``) goes from one to
the other here, so that no pass writes files of its own.
"""

from __future__ import annotations

import gc
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import onnx_ir as ir

from . import answers, model, partitions, targets
from .contracts import Session
from .errors import MissingError, ModelError
from .model.weights import weight_bytes
from .targets import Target

_LARGE_BYTES = 32 << 20
"""Weights that are worth the time that a collection takes, which is most of that for opening a small model."""


@dataclass(frozen=True)
class Workbench:
    """Tries models for one run."""

    target: Target
    """What the model is deployed to."""
    here: Target
    """What stands in for it here: the target itself where it runs."""
    judge: Target
    """Where outputs are computed that are compared."""
    folder: Path

    @contextmanager
    def saved(self, candidate: ir.Model) -> Iterator[Path]:
        """The file of a model, for as long as the context lasts."""
        with tempfile.TemporaryDirectory(dir=self.folder, ignore_cleanup_errors=True) as folder:
            yield model.save(candidate, Path(folder) / "model.onnx", durable=False).path

    def open(self, candidate: ir.Model) -> Session:
        """Open a model on ``judge``.

        Raises:
            ModelError, MissingError: It cannot be run there.
        """
        if weight_bytes(candidate) >= _LARGE_BYTES:
            gc.collect()  # clones of the model that are done with hold their weights in cycles until then
        with self.saved(candidate) as path:
            return answers.open_on(self.judge, path)

    def partition(self, candidate: ir.Model) -> partitions.Cut | None:
        """How the target's provider would cut a model; None where nobody knows."""
        if self.here is not self.target:
            return partitions.estimate(candidate, self.target)
        with self.saved(candidate) as path:
            try:
                assigned = targets.runtime(self.target).partition(path, self.target)
            except (MissingError, ModelError):
                return None
            return partitions.from_provider(candidate, self.target, assigned)
