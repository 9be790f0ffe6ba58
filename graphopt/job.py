"""A job: everything that decides one run, made and checked before any work is done."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from .contracts import Budget, LossyPass, Need
from .dataset import Source
from .errors import DataError, UsageError
from .model import ExternalData
from .recipe import Recipe
from .targets import Target

LOSSY_MAX_DROP = 0.01
"""The budget of recipes with lossy passes when the user gives none."""


@dataclass(frozen=True)
class Job:
    """Everything that decides one run; the fields are arguments of ``pipeline.optimize``.

    Raises:
        DataError: The recipe needs data that is not given.
    """

    model: Path
    output: Path
    recipe: Recipe
    target: Target
    budget: Budget
    data: Source | None = None
    eval_data: Source | None = None
    images: str | None = None
    dims: Mapping[str, int] = field(default_factory=dict)
    metric: str | None = None
    exclude: tuple[str, ...] = ()
    external_data: ExternalData = "auto"
    verify: bool = True
    timing: bool = True
    time_limit: float = 10.0
    strict_provider: bool = False
    resume: bool = False
    seed: int = 0
    command: str = ""

    def __post_init__(self) -> None:
        rewrites = [step.rewrite for step in self.recipe.steps]
        needs = {need for rewrite in rewrites for need in rewrite.needs}
        lossy = any(isinstance(rewrite, LossyPass) for rewrite in rewrites)
        if (lossy or Need.DATA in needs) and self.data is None and self.eval_data is None:
            raise DataError(
                f"the recipe {self.recipe.name!r} needs data: generated inputs cannot show what it costs",
                hint="Give --data with samples of what the model will see, or --eval with labels too.",
            )
        if Need.LABELS in needs and self.eval_data is None:
            raise DataError(f"the recipe {self.recipe.name!r} needs labels", hint="Give --eval with labelled samples.")


def budgeted(recipe: Recipe, max_drop: float | None, goal: Literal["latency", "size"]) -> Budget:
    """The budget; where the user gives no ``max_drop``, lossy passes that do not say themselves how much get one."""
    lossy = [step.rewrite for step in recipe.steps if isinstance(step.rewrite, LossyPass)]
    if max_drop is None and any(not rewrite.decided() for rewrite in lossy):
        max_drop = LOSSY_MAX_DROP
    return Budget(max_drop, goal)


def output_path(source: Path, output: str | Path | None) -> Path:
    """The path to write to, checked before any work.

    Raises:
        UsageError: It is the input itself, a folder, or in a folder that is not there or cannot be written to.
    """
    path = source.with_suffix(".opt.onnx") if output is None else Path(output)
    if path.exists() and source.exists() and path.samefile(source):
        raise UsageError("the output is the input, which is never changed", where=str(path), hint="Choose another -o.")
    if path.is_dir() or str(output).endswith(("/", os.sep)):
        raise UsageError("the output is a folder", where=str(path), hint="Give the name of a file, such as model.opt.onnx.")
    folder = path.parent
    if not folder.is_dir():
        raise UsageError("the folder of the output does not exist", where=str(folder), hint=f"mkdir -p {folder}")
    if not os.access(folder, os.W_OK):
        raise UsageError("the folder of the output cannot be written to", where=str(folder), hint="Choose another -o.")
    return path
