"""Which sites matter most: the whole of ``graphopt sensitivity``.

The passes of a recipe are applied up to its first lossy one. Then every site that the lossy passes offer is changed alone, on
that same model, and the outputs are compared (``sensitivity.py``). Nothing is written.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterable
from contextlib import ExitStack
from pathlib import Path

from pydantic import BaseModel, ConfigDict

from . import recipe as recipes
from . import targets
from .candidates import Work
from .contracts import LossyPass, Progress, Silent
from .environment import environment
from .errors import UsageError
from .job import Job, budgeted
from .report.schema import ChangeRow, Environment, SensitivityRow
from .run import Run


class PassRanking(BaseModel):
    """The sites of one pass."""

    model_config = ConfigDict(frozen=True, ser_json_inf_nan="strings")

    name: str
    sites: list[SensitivityRow]
    """The most sensitive first."""
    declined: list[ChangeRow]
    """Sites that cannot be changed, with why."""


class Ranking(BaseModel):
    """What ``graphopt sensitivity`` found."""

    model_config = ConfigDict(frozen=True, ser_json_inf_nan="strings")

    model: str
    recipe: str
    target: str
    data: str
    samples: int
    seconds: float
    environment: Environment
    passes: list[PassRanking]
    notes: list[str]


def rank(
    model: str | Path,
    *,
    recipe: str = "int8-static",
    target: str = "cpu",
    data: str | None = None,
    images: str | None = None,
    settings: Iterable[str] = (),
    exclude: Iterable[str] = (),
    samples: int = 32,
    seed: int = 0,
    progress: Progress | None = None,
) -> Ranking:
    """Rank the sites of a recipe's lossy passes by what each does to the outputs when it alone is changed.

    Args:
        model: The ONNX file.
        recipe: A preset or a YAML file with at least one lossy pass.
        target: What the model is deployed to.
        data: Samples, for calibration and for the comparison; labels are not needed.
        images: How images in folders become tensors.
        settings: ``PASS.OPTION=VALUE`` overrides.
        exclude: Glob patterns of sites that are not tried.
        samples: How many samples the outputs are compared on.
        seed: One seed, one result.
        progress: Told what is being done.

    Raises:
        UsageError: A wrong name or option, or a recipe without a lossy pass.
        ModelError, DataError, MissingError: As ``pipeline.optimize``.
    """
    begun = time.perf_counter()
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="graphopt-")))
        chosen = recipes.load(recipe, settings)
        job = Job(
            model=Path(model),
            output=folder / "unused.onnx",
            recipe=chosen,
            target=targets.load(target),
            budget=budgeted(chosen, None, "latency"),
            data=data,
            images=images,
            exclude=tuple(exclude),
            timing=False,
            seed=seed,
        )
        lossy = [step for step in job.recipe.steps if isinstance(step.rewrite, LossyPass)]
        if not lossy:
            raise UsageError(
                f"the recipe {job.recipe.name!r} has no pass that costs accuracy",
                where=f"--recipe {recipe}",
                hint="Choose one that has, such as int8-static.",
            )
        run = Run(job, progress or Silent(), stack)
        found: list[PassRanking] = []
        trial = run.trial()
        for number, step in enumerate(job.recipe.steps):
            if not isinstance(step.rewrite, LossyPass):
                if not found:
                    (folder / str(number)).mkdir()
                    run.attempt(step, trial, folder / str(number) / "model.onnx")
                continue
            work = Work.begin(trial, step.rewrite, run.stages[-1], folder / "site" / "model.onnx", run.context(run.data))
            found.append(
                PassRanking(
                    name=step.name,
                    sites=[one.row() for one in work.ranking(samples)],
                    declined=[ChangeRow(site=c.site, what=c.what, why=c.why, done=False) for c in work.declined],
                )
            )
        assert run.data is not None, "a lossy pass is not started without data"
        return Ranking(
            model=str(model),
            recipe=job.recipe.name,
            target=job.target.name,
            data=run.data.name,
            samples=min(samples, run.data.size or samples),
            seconds=round(time.perf_counter() - begun, 3),
            environment=environment(),
            passes=found,
            notes=run.notes,
        )
