"""The loop: apply a pass, verify, evaluate, keep it or undo it; then write, compare, time, and keep only what pays.

    load -> the target opens the original -> data preflight
         -> each pass: clone, apply, checker, differential run or metric, kept or undone, a line in the journal
         -> the file as it will be written: compared on all data, timed against the original; what does not pay is undone
         -> rename, report, exit code

``optimize`` is the public function and what the command line calls. A pass that raises, breaks the graph, changes the
signature or changes an answer is undone and named in the report; nothing is written unless the verdict is good.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from contextlib import ExitStack
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

from . import __version__, inspection, model, partitions, placement, targets, verdict
from . import recipe as recipes
from .contracts import LossyPass, Progress, Silent
from .dataset import Source
from .environment import environment, peak_rss_bytes
from .errors import BudgetError, GraphoptError, UsageError
from .evidence import answers_row, placement_row
from .graphs import is_overridable
from .job import Job, budgeted, output_path
from .joint import Joint
from .journal import Done, Journal
from .model import ExternalData
from .recipe import Recipe, Step
from .report.schema import Report
from .run import Run
from .stage import Stage
from .targets import Target
from .verdict import Judgement


def optimize(
    model: str | Path,
    output: str | Path | None = None,
    *,
    recipe: str | Recipe = "lossless",
    target: str | Target = "cpu",
    data: Source | None = None,
    eval_data: Source | None = None,
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
    progress: Progress | None = None,
    command: str = "graphopt.optimize",
) -> Report:
    """Optimize an ONNX file and return the evidence; the file is written only if the verdict is good (``report.passed``).

    Args:
        model: The ONNX file; it is never changed.
        output: Where to write; default ``MODEL.opt.onnx`` beside the input.
        recipe: A preset, a YAML file, or a ``Recipe``.
        target: A target, or the path of a YAML file with one.
        data: Unlabelled samples for calibration and comparison: a path (``dataset/`` has the forms), arrays by the names of
            the inputs with the samples first, or a function that yields feeds.
        eval_data: Samples with labels for the metric, in the same forms; arrays hold them as ``labels``.
        images: How images in folders become tensors (``dataset/images.py``).
        dims: Sizes of dynamic dimensions for generated inputs, by symbol.
        metric: ``top1``, ``agreement``, ... or ``module:function``; default by what the data holds.
        max_drop: How far the metric may fall, absolute. Default: 0.01 for recipes with lossy passes.
        goal: ``latency``: never slower; ``size``: never larger.
        settings: ``PASS.OPTION=VALUE`` overrides.
        exclude: Glob patterns of sites that are left alone.
        external_data: ``auto`` embeds weights under 1.5 GB.
        verify: False skips every comparison with the original; the report says so.
        timing: False skips timing; the report says so.
        time_limit: Seconds for the timing at most.
        strict_provider: True: no node of the written file may run on another provider than the target's.
        resume: Continue a run of the same job that was killed.
        seed: One seed makes a run reproducible to the byte.
        progress: Told what is being done.
        command: The command line, for the report.

    Raises:
        UsageError: A wrong name, option or path.
        ModelError: The model cannot be read or run.
        DataError: The data does not fit the model.
        MissingError: The target's runtime is not there (with ``timing=False`` this processor stands in for it), or
            ``strict_provider`` was not kept.
    """
    if not isinstance(model, str | Path):
        hint = "Save it first: onnx.save(model, 'model.onnx')."
        raise UsageError(f"the model is given as a {type(model).__name__}, not as the path of its file", hint=hint)
    chosen = recipes.load(recipe, settings) if isinstance(recipe, str) else recipe
    job = Job(
        model=Path(model),
        output=output_path(Path(model), output),
        recipe=chosen,
        target=targets.load(target) if isinstance(target, str) else target,
        budget=budgeted(chosen, max_drop, goal),
        data=data,
        eval_data=eval_data,
        images=images,
        dims=dict(dims or {}),
        metric=metric,
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
    with ExitStack() as stack:
        return _execute(Run(job, progress or Silent(), stack))


def _execute(run: Run) -> Report:
    """Run every pass, then judge what would be written."""
    job = run.job
    journal = Journal(job.output, _key(run), resume=job.resume)
    if job.resume and not journal.done:
        run.notes.append("There was nothing to resume: the job was run from its beginning.")
    try:
        _run_passes(run, journal)
        report = _finish(run, journal)
    except GraphoptError:  # the user will change something: this job is not going to be resumed
        journal.remove()
        raise
    journal.remove()
    return report


def _run_passes(run: Run, journal: Journal) -> None:
    """Try each step of the recipe; those that share the budget together, and not those that the journal has."""
    steps, together, trial = run.job.recipe.steps, run.job.recipe.joint, run.trial()
    for index, step in enumerate(steps):
        if index < len(journal.done):
            _restore(run, journal.done[index], step)
        elif index in together and len(journal.done) <= together.start:
            if index == together.start:
                Joint(run, journal, together).execute()
        else:
            with run.progress.stage(f"{step.name} ({index + 1} of {len(steps)})"):
                journal.add(*run.attempt(step, trial, journal.stage(index, step.name) / run.job.output.name))


def _key(run: Run) -> dict[str, object]:
    """What decides the result; a journal is resumed only when all of it is the same."""
    job, checks = run.job, run.evidence and run.evidence.data
    return {
        "version": __version__,
        "input": run.input.sha256,
        "recipe": [(step.name, step.options) for step in job.recipe.steps],
        "target": job.target.model_dump(mode="json"),
        "data": [data and data.fingerprint for data in (run.data, checks)],
        "choices": [job.metric, job.budget.max_drop, job.budget.goal, job.exclude, job.external_data, job.seed, job.verify],
    }


def _restore(run: Run, done: Done, step: Step) -> None:
    run.rows.append(done.row)
    run.settled.note(step, changed=done.stage is not None, kept=done.row.kept)
    run.notes.append(f"{done.row.name} was finished by an earlier run and taken from its journal.")
    if done.stage is not None:
        run.push(model.load(done.stage), done.stage, len(run.rows) - 1, isinstance(step.rewrite, LossyPass))


def _frozen_if_asked(run: Run) -> list[str]:
    """What to say where initializers are inputs too, and the recipe has a pass that could make constants of them."""
    count = sum(map(is_overridable, run.stages[0].model.graph.inputs))
    asks = [step.name for step in run.job.recipe.steps if getattr(step.rewrite.options, "freeze", None) is False]
    if not count or not asks:
        return []
    what = "1 initializer is an input" if count == 1 else f"{count} initializers are inputs"
    return [f"{what} too, which a caller may override: if nobody does, --set {asks[0]}.freeze=true makes constants of them."]


def _finish(run: Run, journal: Journal) -> Report:
    """Judge the file that would be written; put it in place, or undo the last pass and judge again."""
    job = run.job
    undone = not all(row.kept for row in run.rows)
    if len(run.stages) == 1 and not undone:  # nothing needed changing: the same graph is written
        path = journal.stage(len(run.rows), "unchanged") / job.output.name
        saved = model.save(run.stages[0].model, path, job.external_data)
        run.push(run.stages[0].model, saved.path, None, False)
    judged, strayed = Judgement(None, None, None, None), None
    while len(run.stages) > 1:
        stage = run.stages[-1]
        judged = _judge(run, stage)
        strayed = strayed or judged.partition
        if judged.problem is None or stage.row is None:
            break
        row = run.rows[stage.row]
        run.rows[stage.row] = row.model_copy(update={"kept": False, "why": judged.problem})
        run.stages.pop()
    passed = len(run.stages) > 1 and judged.problem is None
    if job.strict_provider and not passed:
        placement.require_all(strayed or run.placed, run.here, job.model.name)
    if passed and (left := placement.left_behind(judged.partition, run.here)) is not None:
        run.notes.append(f"{left}.")
    if passed:
        if run.here is not job.target:
            ends = (partitions.estimate(stage.model, job.target) for stage in (run.stages[0], run.stages[-1]))
            run.notes += partitions.change(*ends)
        with run.progress.stage(f"writing {job.output.name}"):
            model.move(run.stages[-1].path, job.output)
    run.notes += [*_frozen_if_asked(run), *verdict.explained(judged.validation)]
    if not job.verify:
        run.notes.append("Not verified: the outputs were not compared with the original (--verify off).")
    if not (job.timing or run.original.refused) and targets.availability(run.here).timed:
        run.notes.append("Not timed: whether the output is faster is not known (--timing off).")
    return Report(
        schema=1,
        graphopt_version=__version__,
        command=job.command,
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        seed=job.seed,
        seconds=round(time.perf_counter() - run.started[0], 3),
        cpu_seconds=round(time.process_time() - run.started[1], 3),
        peak_rss_bytes=peak_rss_bytes(),
        recipe=job.recipe.name,
        target=job.target.name,
        goal=job.budget.goal,
        verdict=verdict.sentence(run.input, judged, run.rows, passed=passed),
        passed=passed,
        exit_code=0 if passed else BudgetError.exit_code,
        environment=environment(),
        input=run.input,
        output=judged.facts if passed else None,
        passes=run.rows,
        validation=judged.validation,
        timing=judged.timing,
        target_answers=answers_row(run.evidence.own if run.evidence else None),
        placement=placement_row(run.here, run.placed, judged.partition),
        notes=run.notes,
    )


def _judge(run: Run, stage: Stage) -> Judgement:
    job, evidence = run.job, run.evidence
    facts = inspection.facts(stage.model, stage.path, job.output, run.dims)
    validation = evidence.validate(stage.path) if evidence and job.verify else None
    timing = evidence.time(stage.path) if evidence and job.timing and (validation is None or validation.passed) else None
    problem = verdict.problem(run.input, facts, validation, timing, job.budget.goal)
    partition = placement.of(stage.path, run.here) if evidence or job.strict_provider else None
    if problem is None and job.strict_provider:
        problem = placement.left_behind(partition, run.here)
    return Judgement(facts, validation, timing, problem, partition)
