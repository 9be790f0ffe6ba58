"""What is known about a candidate: its outputs and metric against the original's, and its time against the original's.

One ``Evidence`` serves a whole run: the original's outputs on the data are kept (``evaluate.Reference``). They are those that
onnxruntime's CPU provider gives, whatever the target is (``answers``); its time is taken on the target.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from . import evaluate, timing
from .answers import Answers, open_on
from .contracts import Array, NodeTime, Partition, Progress, Runtime, Session, SessionOptions, Silent
from .dataset import Dataset
from .errors import ModelError
from .metrics import MetricFactory
from .report.schema import (
    LeftBehind,
    MetricRow,
    OperatorTime,
    OutputDivergence,
    Placement,
    TargetAnswers,
    Timing,
    Validation,
)
from .targets import Target

_SHARE = 4
"""A plan that is one of several gets this part of the time limit; the written file gets all of it."""
_PROFILE_ROUNDS = 30
_LISTED_NODES = 100


class UnusableError(Exception):
    """A candidate cannot be loaded, or cannot run data that the original runs; the message says why."""


@contextmanager
def _unusable() -> Iterator[None]:
    try:
        yield
    except ModelError as error:
        raise UnusableError(f"the target cannot run the result: {error.what}") from error


class _Candidate(Session):
    """A session of a candidate; what it cannot run is told apart from what the original cannot run."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self.provider, self.clock, self.threads = session.provider, session.clock, session.threads
        self.load_seconds, self.inputs, self.outputs = session.load_seconds, session.inputs, session.outputs

    def run(self, feed: Mapping[str, Array]) -> dict[str, Array]:
        with _unusable():
            return self._session.run(feed)

    def time(self, feed: Mapping[str, Array], repeats: int) -> tuple[float, float]:
        with _unusable():
            return self._session.time(feed, repeats)

    def close(self) -> None:
        self._session.close()


@dataclass(frozen=True)
class Evidence:
    """How candidates are compared with the original, and on what."""

    original: Path
    runtime: Runtime
    target: Target
    reference: evaluate.Reference
    data: Dataset
    metric: MetricFactory | None
    max_drop: float | None
    lossy: bool
    """Whether the outputs may differ: then the metric's drop decides, not the outputs' tolerance."""
    time_limit: float
    seed: int
    progress: Progress
    judge: Target
    """Where the original's outputs come from."""
    between: Target
    """Where results of lossless passes are compared: the target, but for one that cannot run what is not ready for it yet."""
    own: Answers | None = None
    """What the target makes of the original; None when the target is the reference, or nothing is compared."""
    _compared: dict[tuple[Path, int, int], tuple[evaluate.Evaluation, list[str]]] = field(default_factory=dict)
    """What was found of files on all samples."""

    def open(self, path: Path) -> Session:
        """Open a file on the target."""
        return self.runtime.open(path, self.target, SessionOptions(threads=self.target.threads))

    def open_candidate(self, path: Path, where: Target | None = None) -> Session:
        """Open a result on the target; when it cannot be loaded or run, that is ``UnusableError``, not a ModelError."""
        try:
            return _Candidate(self.open(path) if where is None else open_on(where, path))
        except ModelError as error:
            raise UnusableError(f"the target cannot load the result: {error.what}") from error

    def open_between(self, path: Path) -> Session:
        """Open a file that may not be what the target can run yet."""
        return open_on(self.between, path)

    def refused(self, candidate: Path) -> str | None:
        """Why the target cannot load the file; None when it can."""
        try:
            self.open_candidate(candidate, self.between).close()
        except UnusableError as error:
            return str(error)
        return None

    def differences(self, candidate: Path, before: Path | None, samples: int) -> str | None:
        """Why the result of a lossless pass is not what it was, on the first samples; None when it is.

        Args:
            candidate: The model after the pass.
            before: The model before it; None when that is still equal to the original.
            samples: How many samples to compare.
        """
        data = self.data.first(samples)
        try:
            if before is None and data.spans == self.data.spans and self.between == self.target:
                _, problems = self._on_all(candidate)
            else:
                with self.open_candidate(candidate, self.between) as session, ExitStack() as stack:
                    reference = self.reference if before is None else stack.enter_context(self.open_between(before))
                    found = evaluate.compare(reference, session, data, progress=self.progress)
                    problems = evaluate.problems(found, session.outputs, self._tolerances())
        except UnusableError as error:
            return str(error)
        return f"the outputs changed: {'; '.join(problems)}" if problems else None

    def spent(self, candidate: Path, share: float = 1.0) -> tuple[float, str | None]:
        """The part of a share of the budget that a candidate spends on all samples, and why that is too much, if it is.

        Infinite where it cannot be run or compared.
        """
        try:
            found, _ = self._on_all(candidate)
        except UnusableError as error:
            return math.inf, str(error)
        problem, allowed = self._over_budget(found, share), share * (self.max_drop or 0.0)
        if problem is None and (found.metric is None or not allowed):
            return 0.0, None
        if found.mismatches or not allowed or not found.metric:
            return math.inf, problem
        return round(found.metric.drop / allowed, 9), problem  # what is the whole budget to the last bit is not more

    def validate(self, candidate: Path) -> Validation:
        """Compare the file with the original on all samples."""
        try:
            found, different = self._on_all(candidate)
            problems = [] if self.lossy else [*different]
        except UnusableError as error:
            found, problems = evaluate.Evaluation(0, {}, None), [str(error)]
        if (over := self._over_budget(found)) is not None and over not in problems:
            problems.append(over)
        return Validation(
            samples=found.samples,
            data=self.data.name,
            reference=self.judge.name,
            generated=self.data.generated,
            outputs={name: divergence_row(divergence) for name, divergence in found.outputs.items()},
            metric=metric_row(found.metric),
            max_drop=self.max_drop,
            passed=not problems,
            problems=problems,
        )

    def _on_all(self, candidate: Path) -> tuple[evaluate.Evaluation, list[str]]:
        """What comparing a file with the original on all samples shows, and what is not equal; done once for a file.

        Raises:
            UnusableError: The target cannot run it.
        """
        status = candidate.stat()
        key = candidate, status.st_mtime_ns, status.st_ino
        if key not in self._compared:
            with self.open_candidate(candidate) as session:
                found = evaluate.compare(self.reference, session, self.data, self.metric, progress=self.progress)
                self._compared[key] = found, evaluate.problems(found, session.outputs, self._tolerances())
        return self._compared[key]

    def _tolerances(self) -> Mapping[str, float]:
        return self.own.tolerances if self.own is not None else {}

    def _over_budget(self, found: evaluate.Evaluation, share: float = 1.0) -> str | None:
        if found.mismatches:
            return "; ".join(found.mismatched())
        if found.metric is None or self.max_drop is None or found.metric.drop <= share * self.max_drop + 1e-12:
            return None
        return f"{found.metric.name} falls by {found.metric.drop:.4g}, more than {share * self.max_drop:.3g}"

    def speedup(self, before: Path, candidate: Path, bound: float | None = None) -> float:
        """How many times as fast as ``before`` the candidate is, by the clock, in a share of the time limit.

        ``bound``: timing may end when it is clear on which side of this the speed-up lies.
        """
        feed = next(iter(self.data.first(1).batches())).feed
        measured = timing.compare(
            lambda: self.open(before),
            lambda: self.open(candidate),
            feed,
            limit_seconds=self.time_limit / _SHARE,
            bound=bound,
            rng=np.random.default_rng(self.seed),
            progress=Silent(),
        )
        return measured.speedup

    def profile(self, path: Path) -> Sequence[NodeTime]:
        """Time per node of a file, on the first sample."""
        return self.runtime.profile(path, self.target, next(iter(self.data.first(1).batches())).feed, _PROFILE_ROUNDS)

    def time(self, candidate: Path) -> Timing:
        """Time the file against the original, interleaved, one sample a run, and profile both by operator."""
        batch = next(iter(self.data.first(1).batches()))
        measured = timing.compare(
            lambda: self.open(self.original),
            lambda: self.open(candidate),
            batch.feed,
            limit_seconds=self.time_limit,
            rng=np.random.default_rng(self.seed),
            progress=self.progress,
        )
        with self.progress.stage("profiling by operator"):
            before = self.runtime.profile(self.original, self.target, batch.feed)
            after = self.runtime.profile(candidate, self.target, batch.feed)
        return Timing(
            target=self.target.name,
            provider=measured.provider,
            threads=measured.threads,
            clock=measured.clock,
            rounds=measured.rounds,
            before_ms=measured.before_ms,
            after_ms=measured.after_ms,
            speedup=measured.speedup,
            speedup_low=measured.speedup_low,
            speedup_high=measured.speedup_high,
            wall_before_ms=measured.wall_before_ms,
            wall_after_ms=measured.wall_after_ms,
            converged=measured.converged,
            verdict=timing.verdict(measured),
            operators=_by_operator(before, after),
        )


def divergence_row(found: evaluate.Divergence) -> OutputDivergence:
    """A divergence as the report holds it."""
    return OutputDivergence(max_abs=found.max_abs, max_rel=found.max_rel, cosine=found.cosine, sqnr_db=found.sqnr_db)


def answers_row(found: Answers | None) -> TargetAnswers | None:
    """What a target makes of the original, as the report holds it."""
    if found is None:
        return None
    outputs = {name: divergence_row(divergence) for name, divergence in found.outputs.items()}
    return TargetAnswers(
        reference=found.reference,
        samples=found.samples,
        outputs=outputs,
        agrees=not found.problems,
        problems=list(found.problems),
    )


def placement_row(target: Target, before: Partition | None, after: Partition | None) -> Placement | None:
    """Which provider takes which nodes of both files, as the report holds it."""
    if before is None or after is None:
        return None
    left = [LeftBehind(name=name, op_type=op, provider=provider) for name, op, provider in after.left_behind[:_LISTED_NODES]]
    return Placement(
        provider=target.provider,
        nodes_before=dict(before.nodes),
        nodes_after=dict(after.nodes),
        parts=after.parts,
        left_behind=left,
    )


def metric_row(found: evaluate.MetricResult | None) -> MetricRow | None:
    """A metric as the report holds it."""
    if found is None:
        return None
    return MetricRow(name=found.name, before=found.before, after=found.after, drop=found.drop)


def _by_operator(before: Sequence[NodeTime], after: Sequence[NodeTime]) -> list[OperatorTime]:
    """Time and number of nodes by operator type, before and after; the most expensive first."""
    rows: defaultdict[str, list[float]] = defaultdict(lambda: [0.0, 0.0, 0, 0])
    for side, nodes in enumerate((before, after)):
        for node in nodes:
            rows[node.op_type][side] += node.milliseconds
            rows[node.op_type][2 + side] += 1
    return [
        OperatorTime(op_type=name, before_ms=b, after_ms=a, before_count=int(before_count), after_count=int(after_count))
        for name, (b, a, before_count, after_count) in sorted(rows.items(), key=lambda row: -max(row[1][:2]))
    ]
