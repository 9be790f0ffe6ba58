"""Where a run stands: the model after the passes that were kept, and what became of the last one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import onnx_ir as ir

from .contracts import Change, Figure
from .sensitivity import Sensitivity


@dataclass(frozen=True)
class Stage:
    """The model after a pass that was kept, and the file that it is in. The first stage of a run is the input."""

    model: ir.Model
    path: Path
    nodes: int
    bytes: int
    row: int | None = None
    """Index of the pass in the report; None: no pass changed anything."""
    lossy: bool = False
    """Whether a lossy pass was kept up to here."""


@dataclass(frozen=True)
class Outcome:
    """What became of a pass. With a ``model``, that is the new stage, and ``path`` is its file; else all is as before."""

    kept: bool
    why: str
    changes: Sequence[Change] = ()
    model: ir.Model | None = None
    path: Path | None = None
    sensitivities: Sequence[Sensitivity] = ()
    """What each site does alone, where that had to be measured; the most sensitive first."""
    figures: Sequence[Figure] = ()
