"""A run of a job: what it was given, the stages that passes made of the model so far, and one step more.

    stage 0 = the input      stage n + 1 = stage n after a pass that was kept      row n = what became of a pass that was tried

The reference, the data and the evidence of a run are made once; every pass is tried with them.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path

import numpy as np
import onnx_ir as ir

from . import answers, cost, feeding, inspection, lossy, model, observe, placement, targets, verdict
from .contracts import Context, LossyPass, NodeTime, Progress, Session
from .dataset import Dataset
from .errors import ModelError
from .evidence import CHECK_SAMPLES, Evidence
from .job import Job
from .recipe import Settled, Step
from .report.schema import ChangeRow, FigureRow, PassRow
from .stage import Outcome, Stage
from .trial import Trial
from .workbench import Workbench

LISTED_CHANGES = 5000
"""Changes listed per pass in the report; the rest is counted."""


class Run:
    """One run of a job. ``stages`` grows by one for each pass that is kept, ``rows`` by one for each that was tried."""

    def __init__(self, job: Job, progress: Progress, stack: ExitStack) -> None:
        self.started = (time.perf_counter(), time.process_time())
        self.job = job
        self.progress = progress
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
        if self.data is not None and self.input.macs is None:  # they depend on sizes that the data has
            self.dims = {**cost.dims_as_fed(original, self.data), **self.dims}
            self.input = self.input.model_copy(update={"macs": cost.total_macs(original, {**self.dims, **fixed})})
        self.notes += self.original.notes
        if self.original.refused:
            self.job = replace(self.job, timing=False)

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
        if job.verify and not self.original.refused and self.original.judge == self.here:
            reference.start(session, CHECK_SAMPLES)
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

    def push(self, kept: ir.Model, path: Path, row: int | None, lossy: bool) -> None:
        """Go on with a model that is in a file; ``row`` is the index of the pass that made it."""
        size = model.file_bytes(path)
        self.stages.append(Stage(kept, path, model.count_nodes(kept), size, row, lossy or self.stages[-1].lossy))

    def attempt(self, step: Step, trial: Trial, path: Path) -> tuple[PassRow, Path | None]:
        """Try one step on the last stage; its row for the report, and the file of the new stage if there is one."""
        begun, before = time.perf_counter(), self.stages[-1]
        growth = verdict.growth_limit(self.input.bytes) - max(0, before.bytes - self.input.bytes)
        context = self.context(self.data, growth)
        rewrite, share = step.rewrite, self.job.recipe.share(step)
        if self.settled.holds(step):
            outcome = Outcome(True, "nothing has changed since it ran before")
        elif isinstance(rewrite, LossyPass):
            outcome = trial.guarded(rewrite, partial(lossy.attempt, trial, rewrite, before, path, context, share))
        else:
            outcome = trial.guarded(rewrite, partial(trial.lossless, rewrite, before, path, context))
        return self.record(step, before, outcome, begun)

    def record(self, step: Step, before: Stage, outcome: Outcome, begun: float) -> tuple[PassRow, Path | None]:
        """Go on with what came of a step that began at ``begun``; its row, and the file of the new stage if there is one."""
        if outcome.model is not None and outcome.path is not None:
            self.push(outcome.model, outcome.path, len(self.rows), isinstance(step.rewrite, LossyPass))
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


def _passes_full_check(loaded: ir.Model) -> bool:
    try:
        model.check(loaded, full=True)
    except ModelError:
        return False
    return True
