"""A job: everything that decides one run, made and checked before any work is done."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from . import recipe as recipes
from . import targets
from .contracts import Budget, LossyPass, Need
from .errors import DataError, UsageError
from .model import ExternalData
from .recipe import Recipe
from .targets import Target

LOSSY_MAX_DROP = 0.01
"""The budget of recipes with lossy passes when the user gives none."""


@dataclass(frozen=True)
class Job:
    """Everything that decides one run; made and checked by ``optimize``."""

    model: Path
    output: Path
    recipe: Recipe
    target: Target
    data: str | None
    eval_data: str | None
    images: str | None
    dims: Mapping[str, int]
    metric: str | None
    budget: Budget
    exclude: tuple[str, ...]
    external_data: ExternalData
    verify: bool
    timing: bool
    time_limit: float
    strict_provider: bool
    resume: bool
    seed: int
    command: str


def prepare(
    model: str | Path,
    output: str | Path | None = None,
    *,
    recipe: str | Recipe = "lossless",
    target: str | Target = "cpu",
    data: str | None = None,
    eval_data: str | None = None,
    images: str | None = None,
    dims: Mapping[str, int] | None = None,
    metric: str | None = None,
    max_drop: float | None = None,
    goal: Literal["latency", "size"] = "latency",
    settings: Iterable[str] = (),
    exclude: Iterable[str] = (),
    external_data: ExternalData = "auto",
    verify: bool = True,
    timing: bool = True,
    time_limit: float = 10.0,
    strict_provider: bool = False,
    resume: bool = False,
    seed: int = 0,
    command: str = "graphopt.optimize",
) -> Job:
    """Check what can be checked before any work; the arguments are those of ``optimize``.

    Raises:
        UsageError: A wrong name, option or path.
        DataError: The recipe needs data that is not given.
    """
    source = Path(model)
    chosen = recipes.load(recipe, settings) if isinstance(recipe, str) else recipe
    lossy = [step.rewrite for step in chosen.steps if isinstance(step.rewrite, LossyPass)]
    if max_drop is None and any(not rewrite.decided() for rewrite in lossy):
        max_drop = LOSSY_MAX_DROP
    job = Job(
        model=source,
        output=_output(source, output),
        recipe=chosen,
        target=targets.load(target) if isinstance(target, str) else target,
        data=data,
        eval_data=eval_data,
        images=images,
        dims=dict(dims or {}),
        metric=metric,
        budget=Budget(max_drop, goal),
        exclude=tuple(exclude),
        external_data=external_data,
        verify=verify,
        timing=timing,
        time_limit=time_limit,
        strict_provider=strict_provider,
        resume=resume,
        seed=seed,
        command=command,
    )
    needs = {need for step in chosen.steps for need in step.rewrite.needs}
    if (lossy or Need.DATA in needs) and not (data or eval_data):
        raise DataError(
            f"the recipe {chosen.name!r} needs data: generated inputs cannot show what it costs",
            hint="Give --data with samples of what the model will see, or --eval with labels too.",
        )
    if Need.LABELS in needs and not eval_data:
        raise DataError(f"the recipe {chosen.name!r} needs labels", hint="Give --eval with labelled samples.")
    return job


def _output(source: Path, output: str | Path | None) -> Path:
    """The path to write to, checked before any work.

    Raises:
        UsageError: It is the input itself, a folder, or in a folder that is not there or cannot be written to.
    """
    path = source.with_suffix(".opt.onnx") if output is None else Path(output)
    if path.exists() and source.exists() and path.samefile(source):
        raise UsageError("the output is the input, which is never changed", where=str(path), hint="Choose another -o.")
    if path.is_dir():
        raise UsageError("the output is a folder", where=str(path), hint="Give the name of a file, such as model.opt.onnx.")
    folder = path.parent
    if not folder.is_dir():
        raise UsageError("the folder of the output does not exist", where=str(folder), hint=f"mkdir -p {folder}")
    if not os.access(folder, os.W_OK):
        raise UsageError("the folder of the output cannot be written to", where=str(folder), hint="Choose another -o.")
    return path
