"""What a run feeds its models: the user's data or generated inputs, in the shapes that the recipe leaves.

    --data  -> what passes may look at      --eval -> what results are judged on      neither -> generated, for both

A recipe may fix dimensions (``shapes.fix``). The original is fed what its result can be fed, so that both can be compared: the
data is opened for ``as_fed``, the original with those dimensions fixed.
"""

from __future__ import annotations

import onnx_ir as ir

from . import metrics, model, sizes
from .contracts import Context, Pass, Progress, Session
from .dataset import Dataset, open_dataset
from .dataset.generate import generate
from .errors import DataError, GraphoptError
from .job import Job
from .metrics import MetricFactory
from .recipe import Recipe
from .trial import is_narrowed

RUN_BYTES = 16 << 20
"""The largest value of one run of a model on the user's data."""


def as_fed(original: ir.Model, recipe: Recipe, context: Context) -> ir.Model:
    """The model with those dimensions fixed that the recipe will fix: what it can be fed, the original can be fed too.

    Raises:
        GraphoptError: A pass that fixes dimensions refuses its options.
    """
    narrower = [step.rewrite for step in recipe.steps if isinstance(step.rewrite, Pass) and step.rewrite.changes_signature]
    if not narrower:
        return original
    fed = model.clone(original)
    for rewrite in narrower:
        try:
            rewrite.apply(fed, context)
        except GraphoptError:
            raise
        except Exception:  # a defect: the pass will be undone, and named, when its turn comes
            return original
    return fed if is_narrowed(model.input_specs(original), model.input_specs(fed)) else original


def fixed(original: ir.Model, fed: ir.Model) -> dict[str, int]:
    """The sizes of the symbols that are fixed in the second model."""
    pairs = zip(model.input_specs(original), model.input_specs(fed), strict=True)
    dims = (pair for old, new in pairs for pair in zip(old.shape or (), new.shape or (), strict=False))
    return {was: now for was, now in dims if isinstance(was, str) and isinstance(now, int)}


def opened(
    job: Job, fed: ir.Model, dims: dict[str, int], session: Session | None, progress: Progress
) -> tuple[Dataset | None, Dataset | None, list[str]]:
    """The data that passes may look at, that on which results are judged, and notes on both.

    Args:
        job: Names the data.
        fed: The model as it is fed.
        dims: Sizes of dynamic dimensions, for generated inputs.
        session: Runs the original, to see which generated inputs it takes; None: nothing is generated.
        progress: Told what is done.

    Raises:
        UsageError, DataError: The data cannot be read, or does not fit the model.
    """
    specs, notes = model.input_specs(fed), []
    with progress.stage("checking the data"):
        given = open_dataset(job.data, specs, images=job.images) if job.data is not None else None
        checks = open_dataset(job.eval_data, specs, images=job.images) if job.eval_data is not None else given
        if checks is None and session is not None:
            checks = generate(fed, dims=dims, seed=job.seed, runs=session.accepts)
            notes.append("Inputs were generated: they show agreement and speed, not accuracy.")
    given, checks = _in_runs(fed, given), _in_runs(fed, checks)
    notes += [note for dataset in (given, checks) if dataset is not None for note in dataset.notes]
    return given, checks, list(dict.fromkeys(notes))


def metric_of(job: Job, checks: Dataset, session: Session) -> MetricFactory | None:
    """What says how good an answer is, on data of the user's; None: generated inputs say nothing about it.

    Raises:
        DataError: A metric or a bound on it was asked for, and there is no data.
        UsageError: No such metric.
    """
    if not checks.generated:
        return metrics.choose(job.metric, session.outputs, checks.labelled, labels_dtype=checks.labels_dtype)
    if job.metric or job.budget.max_drop is not None:
        option = "--metric" if job.metric else "--max-drop"
        raise DataError(f"{option} needs data: generated inputs say nothing about it", hint="Give --eval or --data.")
    return None


def _in_runs(fed: ir.Model, data: Dataset | None) -> Dataset | None:
    """The data in batches that are small enough: a runtime keeps the memory of its largest run, in every session."""
    if data is None or not data.splittable:
        return data
    feed = next(data.batched(1).batches()).feed
    return data.batched(max(1, min(data.batch, RUN_BYTES // sizes.largest_bytes(fed, feed))))
