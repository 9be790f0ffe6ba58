"""Several lossy passes under one budget of accuracy: they all buy at one price.

    maximize over the settings of all passes   sum of what is saved      subject to   drop of the metric <= budget

At the best split every pass spends up to the same price: were damage dearer to one of them, what it bought last would save
more elsewhere (Everett 1963). So the steps of all passes whose settings are graded (pruning, low rank) stand in one order, by
what they save for the damage that they do, and a split of the budget is a number: how many steps are taken.

What a step saves is what it saves in the end. The passes that follow the graded ones (the tail: int8) are run alone first; from
then on a model's times are those that it has after them. Then, each judged end to end, by the file that would be written:

    the tail alone;   as many steps as the rest of the budget allows, then the tail;   if that does not hold or pay, fewer steps

A layer is changed by one of the graded passes: what another one saves there was graded without it.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import onnx_ir as ir

from . import allocate, search
from .candidates import Work
from .contracts import Context, Grade, LossyPass, NodeTime
from .stage import Outcome, Stage

if TYPE_CHECKING:
    from .journal import Journal
    from .report.schema import PassRow
    from .run import Run

_FEWER = 3.0
"""How many times less damage is tried where one split alone held the budget."""
_TIMED_ON = 16
"""Samples for the ranges of a model that is only timed."""
_CLOSE = 1.02
"""Times as good as the tail alone that a split must be: less may be noise."""
_TAKEN_BACK = 0.1
"""The part of all changes that the budget may take back without a gentler split being tried."""
_LEAST_ROOM = 0.5
"""The part of the budget that is left to the graded passes at least."""
_NOT_TAKEN = "left out: what it saves for the accuracy that it costs is less than other passes save"


@dataclass(frozen=True)
class _Head:
    """The model after the graded passes with some steps taken."""

    stages: Sequence[Stage]
    rows: Sequence[PassRow]
    files: Sequence[Path | None]
    spent: float
    """The part of the budget; below zero where the metric has risen."""


@dataclass(frozen=True)
class _End:
    """What came of one split: the stages and rows that the run would go on with."""

    said: str
    stages: Sequence[Stage]
    rows: Sequence[PassRow]
    files: Sequence[Path | None]
    spent: float
    """The part of the budget."""
    speedup: float
    """How many times as fast as the original; 1 where time does not count."""
    smaller: float

    @property
    def score(self) -> float:
        """A part of the file counts like the same part of the time, as it does where steps are ordered."""
        return self.speedup * self.smaller if self.spent <= 1 else 0.0

    @property
    def whole(self) -> bool:
        """Whether the budget let the passes do nearly all that pays."""
        changes = [change for row in self.rows for change in row.changes]
        taken_back = sum(change.why == allocate.TAKEN_BACK for change in changes)
        return taken_back <= _TAKEN_BACK * sum(change.done for change in changes)

    def pays(self, alone: _End) -> bool:
        """Whether it is better than the tail alone, and no slower."""
        return self.score > _CLOSE * alone.score and _CLOSE * self.speedup > alone.speedup


@dataclass(frozen=True)
class Bought:
    """One step: a site's next setting, and what it saves for the damage that it does more than the one before."""

    gain: float
    place: int
    """Of the pass in the recipe."""
    site: str
    setting: str
    damage: float
    """Of the site with this setting."""
    nodes: tuple[str, ...] = ()
    """That the site covers."""


@dataclass
class Joint:
    """The steps ``places`` of a run's recipe, tried together."""

    run: Run
    journal: Journal
    places: range
    ends: list[_End] = field(default_factory=list)
    files: int = 0
    """Places that were given to models so far."""

    def __post_init__(self) -> None:
        run, steps = self.run, self.run.job.recipe.steps
        assert run.evidence is not None, "a recipe with a lossy pass is not started without data"
        self.evidence, self.trial = run.evidence, run.trial()
        self.steps = {at: steps[at] for at in self.places}
        self.priced = [at for at in self.places if steps[at].priced]
        self.tail = range(self.priced[-1] + 1, self.places.stop)
        self.base = (len(run.stages), len(run.rows))

    def execute(self) -> None:
        """Try splits of the budget; the run goes on with the best."""
        run = self.run
        self._end(self._head(()), self._named(self.tail) + " alone" if self.tail else "nothing")
        order = self._order()
        for head in self._within_budget(order):
            self._end(head, f"{self._named(self.priced)} with {max(head.spent, 0):.0%} of the budget, then the others")
            if self.ends[-1].whole and self.ends[-1].pays(self.ends[0]):
                break
        alone, *others = self.ends
        best = max((end for end in others if end.pays(alone)), key=lambda end: end.score, default=alone)
        run.stages += best.stages
        run.rows += best.rows
        for row, path in zip(best.rows, best.files, strict=True):
            self.journal.add(row, path)
        told = "; ".join(f"{end.said}: {self._told(end)}" for end in self.ends)
        run.notes.append(f"Tried under one budget: {told}. Kept: {best.said}.")

    def _told(self, end: _End) -> str:
        if end.spent > 1:
            return "over the budget"
        speed = f"{end.speedup:.2f}× as fast, " if self._on_the_clock else ""
        return f"{speed}{end.smaller:.2f}× as small"

    def _named(self, places: Iterable[int]) -> str:
        return " + ".join(dict.fromkeys(self.steps[at].name for at in places))

    @property
    def _on_the_clock(self) -> bool:
        return self.trial.timing and self.trial.goal == "latency"

    # -------------------------------------------------------------------------------------------------------------- order

    def _order(self) -> list[Bought]:
        """All steps, those that save most for their damage first."""
        run, before = self.run, self.run.stages[-1]
        context = run.context(run.data)
        if self._on_the_clock and self.tail:
            context = replace(context, profile=self._times_in_the_end)
        worth = self._worth(context)
        found: list[Bought] = []
        for at in self.priced:
            rewrite = self.steps[at].rewrite
            assert isinstance(rewrite, LossyPass)

            def graded(rewrite: LossyPass = rewrite, at: int = at) -> Outcome:
                work = Work.begin(self.trial, rewrite, before, run.temporary / "grading" / "model.onnx", context)
                with run.progress.stage(f"grading sites of {rewrite.name}"):
                    grades = rewrite.grades(work.before.model, work.sites, work.context)
                steps = allocate.steps(work.sites, grades, worth)
                for gain, site, setting in steps:
                    found.append(Bought(gain, at, site.name, setting.label, grades[site, setting].damage, site.nodes))
                return Outcome(True, "")

            outcome = self.trial.guarded(rewrite, graded)
            if not outcome.kept:
                run.notes.append(f"{rewrite.name} was left out: {outcome.why}.")
        return apart(sorted(found, key=lambda step: -step.gain))  # stable: a site's own steps stay in order

    def _worth(self, context: Context) -> Callable[[Grade], float]:
        """What a saving is worth: the part of the file, and as much for the same part of the time where that is the goal."""
        before = self.run.stages[-1]
        if not self._on_the_clock or context.profile is None:
            return lambda grade: grade.bytes / before.bytes
        whole = sum(kernel.milliseconds for kernel in context.profile(before.model)) or 1.0
        return lambda grade: grade.milliseconds / whole + grade.bytes / before.bytes if grade.milliseconds > 0 else 0.0

    def _times_in_the_end(self, graph: ir.Model) -> Sequence[NodeTime]:
        """Time of each node of a model as it is after the tail's first pass that changes sites one by one."""
        run, alone = self.run, {row.name: row for row in self.ends[0].rows}
        context = run.context(None if run.data is None else run.data.first(_TIMED_ON))
        for at in self.tail:
            rewrite = self.steps[at].rewrite
            if isinstance(rewrite, LossyPass) and rewrite.per_site and (row := alone[rewrite.name]).kept:
                left = {change.site for change in row.changes if not change.done}
                stage = replace(run.stages[-1], model=graph)
                work = Work.begin(self.trial, rewrite, stage, run.temporary / "in-the-end" / "model.onnx", context)
                sites = [site for site in work.sites if site.name not in left]
                if sites and (times := work.times_changed(sites)) is not None:
                    return times
        assert context.profile is not None, "what is timed can be profiled"
        return context.profile(graph)

    # ------------------------------------------------------------------------------------------------------------- splits

    def _within_budget(self, order: Sequence[Bought]) -> Iterator[_Head]:
        """Yield the graded passes with as many steps taken as the budget allows, then, if asked for more, with fewer."""
        found, taken = list[_Head](), list[Sequence[Bought]]()
        room = max(1 - max(self.ends[0].spent, 0.0), _LEAST_ROOM) if self.tail else 1.0
        with self.run.progress.stage("choosing how much of each pass") as step:

            def spent(some: Sequence[Bought]) -> float:
                head = self._head(some)
                if head.spent <= room:
                    found[:], taken[:] = [head, *found[:1]], [some]
                step(1)
                return head.spent / room

            search.best_within(order, sums, spent, lambda step: (step.place, step.site))
        yield from found
        if len(found) == 1:
            damage = sums(taken[0])
            if fewer := int(np.searchsorted(damage, damage[-1] / _FEWER, side="right")):
                head = self._head(taken[0][:fewer])
                if head.spent <= 1:
                    yield head

    def _end(self, head: _Head, said: str) -> None:
        """Let the tail follow what was taken."""
        run = self.run
        run.stages += head.stages
        run.rows += head.rows
        files = [*head.files, *(run.attempt(self.steps[at], self.trial, self._file(at))[1] for at in self.tail)]
        last = run.stages[-1].path
        spent = self.evidence.spent(last)[0] if self.tail else head.spent
        speedup = self.evidence.speedup(run.job.model, last) if self._on_the_clock and spent <= 1 else 1.0
        smaller = run.input.bytes / run.stages[-1].bytes
        self.ends.append(_End(said, *self._taken_back(), files, spent, speedup, smaller))

    def _head(self, taken: Sequence[Bought]) -> _Head:
        """Run the steps before the tail, the graded passes with the settings that were taken."""
        run = self.run
        context = run.context(run.data)
        wanted = {at: {step.site: step.setting for step in taken if step.place == at} for at in self.priced}
        files = []
        for at in range(self.places.start, self.tail.start):
            step, path = self.steps[at], self._file(at)
            if at not in wanted:
                files.append(run.attempt(step, self.trial, path)[1])
                continue
            begun, before, rewrite = time.perf_counter(), run.stages[-1], step.rewrite
            assert isinstance(rewrite, LossyPass)

            def planned(rewrite: LossyPass = rewrite, before: Stage = before, path: Path = path, at: int = at) -> Outcome:
                return Work.begin(self.trial, rewrite, before, path, context).planned(wanted[at])

            outcome = self.trial.guarded(rewrite, planned) if wanted[at] else Outcome(True, _NOT_TAKEN)
            files.append(run.record(step, before, outcome, begun)[1])
        spent = self.evidence.spent(run.stages[-1].path)[0] if taken else 0.0
        return _Head(*self._taken_back(), files, spent)

    def _taken_back(self) -> tuple[list[Stage], list[PassRow]]:
        """The stages and rows since the beginning; the run is as it was before."""
        stages, rows = self.base
        found = self.run.stages[stages:], self.run.rows[rows:]
        del self.run.stages[stages:], self.run.rows[rows:]
        return found

    def _file(self, at: int) -> Path:
        """A place for the model after a step, another one each time."""
        self.files += 1
        return self.journal.stage(at, f"{self.steps[at].name}-{self.files}") / self.run.job.output.name


def apart(order: Sequence[Bought]) -> list[Bought]:
    """The steps without those at nodes where another pass has an earlier one."""
    owner: dict[str, int] = {}
    found: list[Bought] = []
    for step in order:
        if {owner.get(node, step.place) for node in step.nodes} <= {step.place}:
            owner |= dict.fromkeys(step.nodes, step.place)
            found.append(step)
    return found


def sums(order: Sequence[Bought]) -> list[float]:
    """For each step the damage of all that is taken up to it; of a site, of its last setting alone."""
    before: dict[tuple[int, str], float] = {}
    added = []
    for step in order:
        added.append(step.damage - before.get((step.place, step.site), 0.0))
        before[step.place, step.site] = step.damage
    return [*itertools.accumulate(added)]
