"""The loop: apply a pass, verify, evaluate, keep it or undo it; then write, compare, time, and keep only what pays.

    load -> the target opens the original -> data preflight
         -> each pass: clone, apply, checker, differential run or metric, kept or undone, a line in the journal
         -> the file as it will be written: compared on all data, timed against the original; what does not pay is undone
         -> rename, report, exit code

``optimize`` is the public function and what the command line calls. A pass that raises, breaks the graph, changes the
signature or changes an answer is undone and named in the report; nothing is written unless the verdict is good.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

import numpy as np
import onnx_ir as ir

from . import __version__, answers, feeding, inspection, joint, model, observe, partitions, placement, targets, verdict
from .contracts import Context, LossyPass, NodeTime, Progress, Session, Silent
from .dataset import Dataset
from .environment import environment, peak_rss_bytes
from .errors import BudgetError, GraphoptError, ModelError
from .evidence import Evidence, answers_row, placement_row
from .job import Job, prepare
from .journal import Done, Journal
from .model import ExternalData
from .recipe import Recipe, Settled, Step
from .report.schema import ChangeRow, FigureRow, PassRow, Report
from .stage import Outcome, Stage
from .targets import Target
from .trial import Trial
from .verdict import Judgement
from .workbench import Workbench

LISTED_CHANGES = 5000
"""Changes listed per pass in the report; the rest is counted."""


def optimize(
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
    progress: Progress | None = None,
    command: str = "graphopt.optimize",
) -> Report:
    """Optimize an ONNX file and return the evidence; the file is written only if the verdict is good (``report.passed``).

    Args:
        model: The ONNX file; it is never changed.
        output: Where to write; default ``MODEL.opt.onnx`` beside the input.
        recipe: A preset, a YAML file, or a ``Recipe``.
        target: A target, or the path of a YAML file with one.
        data: Unlabelled samples for calibration and comparison (``dataset/`` has the forms).
        eval_data: Labelled samples for the metric.
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
    job = prepare(
        model,
        output,
        recipe=recipe,
        target=target,
        data=data,
        eval_data=eval_data,
        images=images,
        dims=dims,
        metric=metric,
        max_drop=max_drop,
        goal=goal,
        settings=settings,
        exclude=exclude,
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
        return Run(job, progress or Silent(), stack).execute()


class Run:
    """One run of a job. ``stages`` grows by one for each pass that is kept, ``rows`` by one for each that was tried."""

    def __init__(self, job: Job, progress: Progress, stack: ExitStack) -> None:
        self.started = (time.perf_counter(), time.process_time())
        self.job = job
        self.progress = progress
        self.stack = stack
        self.notes: list[str] = []
        self.rows: list[PassRow] = []
        self.settled = Settled()
        self.data: Dataset | None = None
        self.evidence: Evidence | None = None
        self.lossy = any(isinstance(step.rewrite, LossyPass) for step in job.recipe.steps)
        self.here, said = placement.here(job.target, required=job.timing or job.strict_provider)
        self.notes += said
        self.runtime = targets.runtime(self.here)
        here = targets.availability(self.here)
        if not here.timed:
            self.notes.append(f"Not timed: {here.why}.")
            self.job = job = replace(job, timing=False)
        self.original = answers.Original(job.model, self.here, verify=job.verify)
        self.observed = observe.Cache(observe.cache_folder(), engine=self.original.judge.model_dump_json())
        self.temporary = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="graphopt-")))
        self.bench = Workbench(job.target, self.here, self.original.judge, self.temporary)
        with progress.stage(f"reading {job.model.name}"):
            original = model.load(job.model)
            as_fed = feeding.as_fed(original, job.recipe, self.context(data=None))
            fixed = feeding.fixed(original, as_fed)
            self.dims = {name: size for name, size in job.dims.items() if fixed.get(name) != size}
            self.input = inspection.facts(original, job.model, dims={**job.dims, **fixed})
        self.notes += original.meta.get("graphopt.notes", [])
        self.stages = [Stage(original, job.model, self.input.nodes, self.input.bytes)]
        if self.here.fixed_shapes and as_fed is not original:
            self.original.path = model.save(as_fed, self.temporary / job.model.name, durable=False).path
        runs = job.verify or job.timing or self.lossy
        self.placed = placement.of(self.original.path, self.here) if runs or job.strict_provider else None
        with ExitStack() as opened:
            session = opened.enter_context(self.original.open()) if runs else None
            self.data, self.evidence = self._open_data(as_fed, session)
        self.notes += self.original.notes
        if self.original.refused:
            self.job = replace(self.job, timing=False)

    # ------------------------------------------------------------------------------------------------------- preparation

    def _profile(self, candidate: ir.Model) -> Sequence[NodeTime]:
        """Time per node of a model that a pass asks about."""
        assert self.evidence is not None
        with self.bench.saved(candidate) as path:
            return self.evidence.profile(path)

    def context(self, data: Dataset | None, growth_bytes: int | None = None) -> Context:
        """What a pass of this run may use."""
        return Context(
            target=self.job.target,
            open_session=self.bench.open,
            data=data,
            rng=np.random.default_rng(self.job.seed),
            progress=self.progress,
            profile=self._profile if self.job.timing and self.evidence is not None else None,
            partition=self.bench.partition,
            goal=self.job.budget.goal,
            exclude=self.job.exclude,
            growth_bytes=growth_bytes,
            observed=self.observed,
        )

    def _open_data(self, as_fed: ir.Model, session: Session | None) -> tuple[Dataset | None, Evidence | None]:
        """The unlabelled data that passes may use, and the evidence on the data that the written file is checked on."""
        job = self.job
        given, checks, notes = feeding.opened(job, as_fed, self.dims, session, self.progress)
        self.notes += [note for note in notes if note not in self.notes]
        if session is None or checks is None:
            return given, None
        metric = feeding.metric_of(job, checks, session)
        reference = self.original.reference(checks, self.temporary)
        evidence = Evidence(
            original=self.original.path,
            runtime=self.runtime,
            target=self.here,
            reference=reference,
            data=checks,
            metric=metric,
            max_drop=job.budget.max_drop,
            lossy=self.lossy,
            time_limit=job.time_limit,
            seed=job.seed,
            progress=self.progress,
            judge=self.original.judge,
            between=self.original.between,
            own=self.original.own(session, reference, checks, self.stages[0].model, self.progress),
        )
        return given or checks, evidence

    def _key(self) -> dict[str, object]:
        """What decides the result; a journal is resumed only when all of it is the same."""
        job, checks = self.job, self.evidence and self.evidence.data
        return {
            "version": __version__,
            "input": self.input.sha256,
            "recipe": [(step.name, step.options) for step in job.recipe.steps],
            "target": job.target.model_dump(mode="json"),
            "data": [data and data.fingerprint for data in (self.data, checks)],
            "choices": [job.metric, job.budget.max_drop, job.budget.goal, job.exclude, job.external_data, job.seed, job.verify],
        }

    # --------------------------------------------------------------------------------------------------------- the passes

    def execute(self) -> Report:
        """Run every pass, then judge what would be written."""
        job = self.job
        journal = Journal(job.output, self._key(), resume=job.resume)
        if job.resume and not journal.done:
            self.notes.append("There was nothing to resume: the job was run from its beginning.")
        try:
            report = self._run(journal)
        except GraphoptError:  # the user will change something: this job is not going to be resumed
            journal.remove()
            raise
        journal.remove()
        return report

    def _run(self, journal: Journal) -> Report:
        job = self.job
        trial = self.trial()
        together = joint.span(job.recipe)
        for index, step in enumerate(job.recipe.steps):
            if index < len(journal.done):
                self._restore(journal.done[index], step)
                continue
            if index in together and len(journal.done) <= together.start:
                if index == together.start:
                    joint.Joint(self, journal, together).execute()
                continue
            with self.progress.stage(f"{step.name} ({index + 1} of {len(job.recipe.steps)})"):
                journal.add(*self.attempt(step, trial, journal.stage(index, step.name) / job.output.name))
        return self._finish(journal)

    def trial(self) -> Trial:
        """What each step is tried with."""
        job = self.job
        return Trial(
            full_check=_passes_full_check(self.stages[0].model),
            evidence=self.evidence,
            verify=job.verify,
            external_data=job.external_data,
            timing=job.timing,
            goal=job.budget.goal,
        )

    def _restore(self, done: Done, step: Step) -> None:
        self.rows.append(done.row)
        self.settled.note(step, changed=done.stage is not None, kept=done.row.kept)
        self.notes.append(f"{done.row.name} was finished by an earlier run and taken from its journal.")
        if done.stage is not None:
            self._push(model.load(done.stage), done.stage, len(self.rows) - 1, isinstance(step.rewrite, LossyPass))

    def _push(self, kept: ir.Model, path: Path, row: int | None, lossy: bool) -> None:
        size = model.file_bytes(path)
        self.stages.append(Stage(kept, path, model.count_nodes(kept), size, row, lossy or self.stages[-1].lossy))

    def attempt(self, step: Step, trial: Trial, path: Path) -> tuple[PassRow, Path | None]:
        """Try one step on the last stage; its row for the report, and the file of the new stage if there is one."""
        begun, before = time.perf_counter(), self.stages[-1]
        growth = verdict.growth_limit(self.input.bytes) - max(0, before.bytes - self.input.bytes)
        context = self.context(self.data, growth)
        if self.settled.holds(step):
            outcome = Outcome(True, "nothing has changed since it ran before")
        else:
            outcome = trial.run(step.rewrite, before, path, context, self.job.recipe.share(step))
        return self.record(step, before, outcome, begun)

    def record(self, step: Step, before: Stage, outcome: Outcome, begun: float) -> tuple[PassRow, Path | None]:
        """Go on with what came of a step that began at ``begun``; its row, and the file of the new stage if there is one."""
        if outcome.model is not None and outcome.path is not None:
            self._push(outcome.model, outcome.path, len(self.rows), isinstance(step.rewrite, LossyPass))
        self.settled.note(step, changed=outcome.model is not None, kept=outcome.kept)
        after = self.stages[-1]
        changes = [ChangeRow(site=c.site, what=c.what, why=c.why, done=c.done) for c in outcome.changes]
        row = PassRow(
            name=step.name,
            options=step.options,
            seconds=round(time.perf_counter() - begun, 3),
            kept=outcome.kept,
            why=outcome.why,
            nodes_before=before.nodes,
            nodes_after=after.nodes,
            bytes_before=before.bytes,
            bytes_after=after.bytes,
            changes=changes[:LISTED_CHANGES],
            changes_left_out=max(0, len(changes) - LISTED_CHANGES),
            sensitivity=[one.row() for one in outcome.sensitivities],
            figures=[FigureRow.model_validate(asdict(one)) for one in outcome.figures],
        )
        self.rows.append(row)
        return row, outcome.path

    # -------------------------------------------------------------------------------------------------------- the verdict

    def _finish(self, journal: Journal) -> Report:
        """Judge the file that would be written; put it in place, or undo the last pass and judge again."""
        job = self.job
        undone = not all(row.kept for row in self.rows)
        if len(self.stages) == 1 and not undone:  # nothing needed changing: the same graph is written
            path = journal.stage(len(self.rows), "unchanged") / job.output.name
            saved = model.save(self.stages[0].model, path, job.external_data)
            self._push(self.stages[0].model, saved.path, None, False)
        judged, strayed = Judgement(None, None, None, None), None
        while len(self.stages) > 1:
            stage = self.stages[-1]
            judged = self._judge(stage)
            strayed = strayed or judged.partition
            if judged.problem is None or stage.row is None:
                break
            row = self.rows[stage.row]
            self.rows[stage.row] = row.model_copy(update={"kept": False, "why": judged.problem})
            self.stages.pop()
        passed = len(self.stages) > 1 and judged.problem is None
        if job.strict_provider and not passed:
            placement.require_all(strayed or self.placed, self.here, job.model.name)
        if passed and (left := placement.left_behind(judged.partition, self.here)) is not None:
            self.notes.append(f"{left}.")
        if passed:
            if self.here is not job.target:
                ends = (partitions.estimate(stage.model, job.target) for stage in (self.stages[0], self.stages[-1]))
                self.notes += partitions.change(*ends)
            with self.progress.stage(f"writing {job.output.name}"):
                model.move(self.stages[-1].path, job.output)
        if not job.verify:
            self.notes.append("Not verified: the outputs were not compared with the original (--verify off).")
        if not (job.timing or self.original.refused) and targets.availability(self.here).timed:
            self.notes.append("Not timed: whether the output is faster is not known (--timing off).")
        return Report(
            schema=1,
            graphopt_version=__version__,
            command=job.command,
            created=datetime.now(UTC).isoformat(timespec="seconds"),
            seed=job.seed,
            seconds=round(time.perf_counter() - self.started[0], 3),
            cpu_seconds=round(time.process_time() - self.started[1], 3),
            peak_rss_bytes=peak_rss_bytes(),
            recipe=job.recipe.name,
            target=job.target.name,
            goal=job.budget.goal,
            verdict=verdict.sentence(self.input, judged, self.rows, passed=passed),
            passed=passed,
            exit_code=0 if passed else BudgetError.exit_code,
            environment=environment(),
            input=self.input,
            output=judged.facts if passed else None,
            passes=self.rows,
            validation=judged.validation,
            timing=judged.timing,
            target_answers=answers_row(self.evidence.own if self.evidence else None),
            placement=placement_row(self.here, self.placed, judged.partition),
            notes=self.notes,
        )

    def _judge(self, stage: Stage) -> Judgement:
        job, evidence = self.job, self.evidence
        facts = inspection.facts(stage.model, stage.path, job.output, job.dims)
        validation = evidence.validate(stage.path) if evidence and job.verify else None
        timing = evidence.time(stage.path) if evidence and job.timing and (validation is None or validation.passed) else None
        problem = verdict.problem(self.input, facts, validation, timing, job.budget.goal)
        partition = placement.of(stage.path, self.here) if evidence or job.strict_provider else None
        if problem is None and job.strict_provider:
            problem = placement.left_behind(partition, self.here)
        return Judgement(facts, validation, timing, problem, partition)


def _passes_full_check(loaded: ir.Model) -> bool:
    try:
        model.check(loaded, full=True)
    except ModelError:
        return False
    return True
