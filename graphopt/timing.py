"""How fast a model is, and whether another one is faster: timing whose figures can be trusted on a shared machine.

What disturbs a measurement, and what is done about it:

1. *Other processes.* With one thread on the CPU the clock is the CPU time of that thread, which they hardly touch; other
   sessions are timed by wall clock. A model's time is the median of its samples by CPU time, and their lowest decile by wall
   clock, where an interruption only ever adds.
2. *Slow drifts* (frequency, temperature, neighbours). Both models are timed in turns, in random order, in one process; the run
   that finds its caches full of the other model's weights is not counted.
3. *The luck of a session.* Two sessions of the very same file may differ by some per cent for as long as they live, because of
   where their weights lie in memory. So sessions are opened anew, in random order, in several blocks.
4. *The clock's resolution, warm-up, the garbage collector.* A sample repeats a short model until it takes about 2 ms; the first
   runs are not counted; the collector rests.

The interval is a percentile bootstrap (Efron 1979) that resamples blocks, then the rounds within them, both sides together: it
holds the luck of sessions as well as the noise of rounds.
"""

from __future__ import annotations

import gc
import math
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Literal

import numpy as np

from .contracts import Array, Feed, Progress, Session

Clock = Literal["cpu", "wall"]
Verdict = Literal["faster", "same", "slower"]

_CLOCKS: tuple[Clock, Clock] = ("cpu", "wall")  # the last axis of samples
_QUANTILE: dict[Clock, float] = {"cpu": 0.5, "wall": 0.1}  # of the samples, taken as the model's time
_SAMPLE_SECONDS = 0.002
_WARM_UP_RUNS = 3  # onnxruntime plans its memory in the first run and uses the plan from the second on
_REFILL_SECONDS = 0.05  # a model that takes longer than this is not slowed measurably by caches that the other one filled
_WARM_UP_SECONDS = 0.2  # a model that takes longer than this is warm after one run
_BLOCKS = 6  # before which no interval counts as converged
_LEAST_ROUNDS, _FEW_ROUNDS, _MOST_ROUNDS = 3, 5, 20  # of a block: always, if time allows, at most
_RESAMPLED = 400_000  # samples drawn by one bootstrap, all resamples together
_LATENCY_RUNS = 1000
_PROFILE_WARM_UP = 2  # runs
_PROFILE_SECONDS = 10.0  # after which no further round is begun


@dataclass(frozen=True)
class Comparison:
    """Two models timed against each other; times are per run, by ``clock`` unless they are called wall."""

    before_ms: float
    after_ms: float
    speedup: float
    """before_ms / after_ms; its 95 % interval is speedup_low to speedup_high."""
    speedup_low: float
    speedup_high: float
    wall_before_ms: float
    """Median wall time; what other processes took is in it."""
    wall_after_ms: float
    clock: Clock
    rounds: int
    """Samples of each model, all blocks together."""
    blocks: int
    """How often both sessions were opened."""
    converged: bool
    """Whether the interval was narrow enough, or on one side of the bound, when timing ended."""
    seconds: float
    threads: int
    provider: str


@dataclass(frozen=True)
class Latency:
    """One model's time per run, by ``clock``."""

    p50_ms: float
    p90_ms: float
    p99_ms: float
    mean_ms: float
    wall_p50_ms: float
    throughput: float
    """Runs per second: 1000 / mean_ms."""
    rounds: int
    clock: Clock
    load_seconds: float
    threads: int
    provider: str


def compare(
    open_before: Callable[[], Session],
    open_after: Callable[[], Session],
    feed: Feed,
    *,
    limit_seconds: float = 10.0,
    width: float = 0.02,
    bound: float | None = None,
    rng: np.random.Generator,
    progress: Progress,
) -> Comparison:
    """Time two models against each other.

    Timing ends when the interval is at most ``width`` wide (relative to the speed-up), when it lies on one side of ``bound`` (a
    speed-up), or when the next block would exceed ``limit_seconds`` of wall time. At least two blocks of three rounds are taken
    whatever they last, or one block if opening and warming both models takes more than a sixth of the limit.

    Raises:
        ModelError, MissingError, DataError: A session cannot be opened or run.
    """
    start = time.perf_counter()
    openers = (open_before, open_after)
    with progress.stage("timing", limit_seconds) as advance, _collector_off():
        plan, first = _first_block(openers, feed, limit_seconds, rng)
        samples = first[None]  # [block, round, side, clock]
        advance(time.perf_counter() - start)
        while True:
            block_start = time.perf_counter()
            block_seconds = (block_start - start) / len(samples)
            last = block_start + block_seconds > start + limit_seconds and len(samples) >= plan.least_blocks
            if last or len(samples) >= _BLOCKS:
                speedup, low, high = _interval(samples[..., _CLOCKS.index(plan.clock)], _QUANTILE[plan.clock], rng)
                decided = bound is not None and (high < bound or low > bound)
                converged = len(samples) > 1 and (decided or high - low <= width * speedup)
                if last or converged:
                    break
            samples = np.concatenate([samples, _block(openers, feed, plan, rng)[None]])
            advance(time.perf_counter() - block_start)
    before_ms, after_ms = 1000 * np.quantile(samples[..., _CLOCKS.index(plan.clock)], _QUANTILE[plan.clock], axis=(0, 1))
    wall_before_ms, wall_after_ms = 1000 * np.median(samples[..., _CLOCKS.index("wall")], axis=(0, 1))
    return Comparison(
        before_ms=float(before_ms),
        after_ms=float(after_ms),
        speedup=speedup,
        speedup_low=low,
        speedup_high=high,
        wall_before_ms=float(wall_before_ms),
        wall_after_ms=float(wall_after_ms),
        clock=plan.clock,
        rounds=samples.shape[0] * samples.shape[1],
        blocks=samples.shape[0],
        converged=converged,
        seconds=time.perf_counter() - start,
        threads=plan.threads,
        provider=plan.provider,
    )


def verdict(comparison: Comparison, margin: float = 0.03) -> Verdict:
    """What a comparison shows beyond doubt.

    "faster" and "slower" are said only when the whole interval is more than ``margin`` away from no change: above 1 + margin or
    below 1 - margin. All else is "same": either equal within the margin, or not decided.
    """
    if comparison.speedup_low > 1 + margin:
        return "faster"
    return "slower" if comparison.speedup_high < 1 - margin else "same"


def measure(open_session: Callable[[], Session], feed: Feed, *, limit_seconds: float = 10.0, progress: Progress) -> Latency:
    """Time single runs of one model: at most 1000 of them, or as many as ``limit_seconds`` of wall time allow (three at least).

    Raises:
        ModelError, MissingError, DataError: The session cannot be opened or run.
    """
    start = time.perf_counter()
    times: list[tuple[float, float]] = []
    with progress.stage("timing", _LATENCY_RUNS) as advance, _collector_off(), open_session() as session:
        _warm_up(session, feed)
        while len(times) < _LEAST_ROUNDS or (len(times) < _LATENCY_RUNS and time.perf_counter() - start < limit_seconds):
            times.append(session.time(feed, 1))
            advance(1)
        clock, load_seconds = _clock(session), session.load_seconds
        threads, provider = session.threads, session.provider
    milliseconds = 1000 * np.array(times)  # [run, clock]
    p50, p90, p99 = np.quantile(milliseconds[:, _CLOCKS.index(clock)], [0.5, 0.9, 0.99])
    mean = milliseconds[:, _CLOCKS.index(clock)].mean()
    return Latency(
        p50_ms=float(p50),
        p90_ms=float(p90),
        p99_ms=float(p99),
        mean_ms=float(mean),
        wall_p50_ms=float(np.median(milliseconds[:, _CLOCKS.index("wall")])),
        throughput=float(1000 / mean),
        rounds=len(times),
        clock=clock,
        load_seconds=load_seconds,
        threads=threads,
        provider=provider,
    )


def profiled(session: Session, feed: Feed, rounds: int) -> Iterator[None]:
    """The runs of a profile: one yield after each run that counts, at least one. A slow model has fewer of them.

    Raises:
        ModelError, DataError: As ``Session.run``.
    """
    until = time.perf_counter() + _PROFILE_SECONDS
    for _ in range(_PROFILE_WARM_UP):
        session.run(feed)
        if time.perf_counter() > until:
            break
    for index in range(rounds):
        if index and time.perf_counter() > until:
            break
        session.run(feed)
        yield


# -------------------------------------------------------------------------------------------------------------- sampling

_Openers = tuple[Callable[[], Session], Callable[[], Session]]


@dataclass(frozen=True)
class _Plan:
    """What the first block shows about both models, and how the blocks are cut because of it."""

    clock: Clock
    threads: int
    provider: str
    repeats: int
    """Timed runs in a sample, the same for both models."""
    refill: bool
    """Whether an untimed run comes before each sample."""
    rounds: int
    """Rounds in a block."""
    least_blocks: int


def _first_block(openers: _Openers, feed: Feed, limit: float, rng: np.random.Generator) -> tuple[_Plan, Array]:
    start = time.perf_counter()
    with _opened(openers, feed, rng) as sessions:
        plan = _plan(sessions, feed, time.perf_counter() - start, limit)
        return plan, _rounds(sessions, feed, plan, rng)


def _block(openers: _Openers, feed: Feed, plan: _Plan, rng: np.random.Generator) -> Array:
    with _opened(openers, feed, rng) as sessions:
        return _rounds(sessions, feed, plan, rng)


@contextmanager
def _opened(openers: _Openers, feed: Feed, rng: np.random.Generator) -> Iterator[list[Session]]:
    """Both sessions, opened in random order and warm."""
    with ExitStack() as stack:
        order = rng.permutation(2)
        opened = {side: stack.enter_context(openers[side]()) for side in order}
        for session in opened.values():
            _warm_up(session, feed)
        yield [opened[0], opened[1]]


def _plan(sessions: list[Session], feed: Feed, open_seconds: float, limit: float) -> _Plan:
    """Sample for as long as opening takes, and so that three blocks fit into the limit."""
    clocks = {_clock(session) for session in sessions}
    clock: Clock = "cpu" if clocks == {"cpu"} else "wall"
    once = [min(session.time(feed, 1)[_CLOCKS.index(clock)] for _ in range(_LEAST_ROUNDS)) for session in sessions]
    repeats = max(1, math.ceil(_SAMPLE_SECONDS / max(min(once), 1e-7)))
    refill = max(once) < _REFILL_SECONDS
    round_seconds = (repeats + refill) * sum(once)
    expensive = open_seconds > limit / 6
    share = limit if expensive else limit / 3
    affordable = int((share - open_seconds) / round_seconds)
    rounds = min(max(int(open_seconds / round_seconds), _FEW_ROUNDS), _MOST_ROUNDS)
    return _Plan(
        clock=clock,
        threads=sessions[1].threads,
        provider=sessions[1].provider,
        repeats=repeats,
        refill=refill,
        rounds=max(min(_MOST_ROUNDS if expensive else rounds, affordable), _LEAST_ROUNDS),
        least_blocks=1 if expensive else 2,
    )


def _rounds(sessions: list[Session], feed: Feed, plan: _Plan, rng: np.random.Generator) -> Array:
    """Samples of both sessions in turns: [round, side, clock], in seconds per run."""
    samples = np.empty((plan.rounds, 2, 2))
    for row in samples:
        for side in rng.permutation(2):
            if plan.refill:
                sessions[side].time(feed, 1)
            row[side] = sessions[side].time(feed, plan.repeats)
    return samples


def _warm_up(session: Session, feed: Feed) -> None:
    start = time.perf_counter()
    for _ in range(_WARM_UP_RUNS):
        session.run(feed)
        if time.perf_counter() - start > _WARM_UP_SECONDS:
            break


def _clock(session: Session) -> Clock:
    """CPU time where the session allows it and the clock ticks finely enough: on Windows it moves in steps of 16 ms."""
    return session.clock if sys.platform != "win32" else "wall"


@contextmanager
def _collector_off() -> Iterator[None]:
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


# -------------------------------------------------------------------------------------------------------------- interval


def _interval(samples: Array, quantile: float, rng: np.random.Generator) -> tuple[float, float, float]:
    """Speed-up before / after of samples [block, round, side], and its 95 % interval."""
    blocks, rounds, _ = samples.shape
    resamples = max(400, min(2000, _RESAMPLED // (blocks * rounds)))
    block = rng.integers(blocks, size=(resamples, blocks, 1))
    drawn = samples[block, rng.integers(rounds, size=(resamples, blocks, rounds))]
    typical = np.quantile(drawn.reshape(resamples, blocks * rounds, 2), quantile, axis=1)
    low, high = np.quantile(typical[:, 0] / typical[:, 1], [0.025, 0.975])
    before, after = np.quantile(samples, quantile, axis=(0, 1))
    return float(before / after), float(low), float(high)
