"""What is known about a candidate: its outputs and metric against the original's, and its time against the original's.

One ``Evidence`` serves a whole run: the original's outputs on the data are kept (``evaluate.Reference``). They are those that
onnxruntime's CPU provider gives, whatever the target is (``answers``); its time is taken on the target.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np

from . import evaluate, noise, pieces, timing
from .answers import Answers, open_on
from .contracts import Array, NodeTime, Partition, Progress, Runtime, Session, SessionOptions, Silent, TensorSpec
from .dataset import Dataset, Span
from .errors import ModelError
from .metrics import MetricFactory
from .report.schema import (
    LeftBehind,
    MetricRow,
    NoiseRow,
    OperatorTime,
    OutputDivergence,
    Placement,
    TargetAnswers,
    Timing,
    Validation,
)
from .targets import Target

CHECK_SAMPLES = 16
"""Samples of the differential run after a lossless pass; the written file is compared on all."""
_PIECES_SAMPLES = 4
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
    _compared: dict[tuple[Path, int, int], tuple[evaluate.Evaluation, Sequence[TensorSpec]]] = field(default_factory=dict)
    """What was found of files on all samples, and their outputs."""
    _apart: dict[tuple[Path, Path, int, int], pieces.Pieces | None] = field(default_factory=dict)
    """What was found of files piece by piece."""
    _trials: dict[tuple[Span, ...], noise.Trials] = field(default_factory=dict)
    """The original's own noise, by the samples."""

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

    def same(self, candidate: Path, before: Path | None) -> noise.Judged:
        """Whether the result of a lossless pass is what it was, on the first samples.

        Args:
            candidate: The model after the pass.
            before: The model before it; None when that is still equal to the original.

        Raises:
            UnusableError: The target cannot run it.
        """
        data = self.data.first(CHECK_SAMPLES)
        if before is None and data.spans == self.data.spans and self.between == self.target:
            return self._judged(candidate)
        reference, trials = self.reference, self._own_trials(data)
        if before is not None:
            reference = evaluate.Reference(partial(self.open_between, before), data)
            trials = noise.Trials(before, self.open_between, reference, data, seed=self.seed, progress=self.progress)
        with self.open_candidate(candidate, self.between) as session:
            found, outputs = evaluate.compare(reference, session, data, progress=self.progress), session.outputs
        return noise.judge(found, outputs, self._tolerances(), trials, self._in_pieces(before or self.original, candidate))

    def _judged(self, candidate: Path) -> noise.Judged:
        """Whether a result of lossless passes is the original, on all samples.

        Raises:
            UnusableError: The target cannot run it.
        """
        found, outputs = self._on_all(candidate)
        in_pieces = self._in_pieces(self.original, candidate)
        return noise.judge(found, outputs, self._tolerances(), self._own_trials(self.data), in_pieces)

    def _in_pieces(self, before: Path, after: Path) -> Callable[[], pieces.Pieces | None]:
        """What compares two files piece by piece, if it has not been done."""

        def compared() -> pieces.Pieces | None:
            key = before, *_state(after)
            if key not in self._apart:
                data = self.data.first(_PIECES_SAMPLES)
                with self.progress.stage("comparing piece by piece"):
                    self._apart[key] = pieces.compare(before, after, partial(open_on, self.judge), data)
            return self._apart[key]

        return compared

    def _own_trials(self, data: Dataset) -> noise.Trials:
        """The original's noise on a part of the data."""
        if data.spans not in self._trials:
            open_ = partial(open_on, self.judge)
            trials = noise.Trials(self.original, open_, self.reference, data, seed=self.seed, progress=self.progress)
            self._trials[data.spans] = trials
        return self._trials[data.spans]

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
            found, _ = self._on_all(candidate)
            judged = noise.Judged(found, []) if self.lossy else self._judged(candidate)
        except UnusableError as error:
            judged = noise.Judged(evaluate.Evaluation(0, {}, None), [str(error)])
        found, problems = judged.found, [*judged.problems]
        if (over := self._over_budget(found)) is not None and over not in problems:
            problems.append(over)
        return Validation(
            samples=found.samples,
            data=self.data.name,
            reference=self.judge.name,
            generated=self.data.generated,
            outputs={name: divergence_row(divergence) for name, divergence in found.outputs.items()},
            noise=noise_row(judged),
            metric=metric_row(found.metric),
            max_drop=self.max_drop,
            passed=not problems,
            problems=problems,
        )

    def _on_all(self, candidate: Path) -> tuple[evaluate.Evaluation, Sequence[TensorSpec]]:
        """What comparing a file with the original on all samples shows, and the file's outputs; done once for a file.

        Raises:
            UnusableError: The target cannot run it.
        """
        key = _state(candidate)
        if key not in self._compared:
            with self.open_candidate(candidate) as session:
                found = evaluate.compare(self.reference, session, self.data, self.metric, progress=self.progress)
                self._compared[key] = found, session.outputs
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


def _state(path: Path) -> tuple[Path, int, int]:
    """What is another when the file is written again."""
    status = path.stat()
    return path, status.st_mtime_ns, status.st_ino


def divergence_row(found: evaluate.Divergence) -> OutputDivergence:
    """A divergence as the report holds it."""
    return OutputDivergence(max_abs=found.max_abs, max_rel=found.max_rel, cosine=found.cosine, sqnr_db=found.sqnr_db)


def noise_row(judged: noise.Judged) -> NoiseRow | None:
    """What had to be known of the original's own noise, as the report holds it."""
    if judged.noise is None:
        return None
    outputs = {name: divergence_row(divergence) for name, divergence in judged.noise.outputs.items()}
    apart = judged.pieces if not judged.problems else None
    return NoiseRow(trials=judged.noise.trials, outputs=outputs, jumps=apart.jumps if apart is not None else None)


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
