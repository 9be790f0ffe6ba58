"""``graphopt bench``: what models cost on targets, and the gate that notices when one became slower.

Latency, throughput and time to load are taken in this process, cold start and memory in a fresh one, energy where the
processor's counters can be read. A target that cannot run here, or a model that a target cannot run, is a row with the
reason, so that a table over many shows all of them. The gate itself is in ``baseline.py``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import product
from pathlib import Path
from typing import Literal

import numpy as np
from pydantic import BaseModel, ConfigDict

from . import answers, baseline, energy, environment, fresh, model, placement, targets, timing
from .baseline import Entry, Regression
from .contracts import Feed, Partition, Progress, Session, SessionOptions, TensorSpec
from .dataset import Dataset, open_dataset
from .dataset.generate import generate
from .errors import BudgetError, DataError, GraphoptError, MissingError, ModelError
from .targets import Target

_ENERGY_SECONDS = 1.0


class ColdStart(BaseModel):
    """The first answer of a fresh process: what is waited for (``fresh.py``)."""

    model_config = ConfigDict(frozen=True)

    import_ms: float
    load_ms: float
    first_run_ms: float

    @property
    def total_ms(self) -> float:
        """All of it."""
        return self.import_ms + self.load_ms + self.first_run_ms


class Measured(BaseModel):
    """One model on one target, with one batch size and number of threads.

    With ``error``, what is not known is None; ``exit_code`` is the error's. ``absent``: the target does not run here at all.
    """

    model_config = ConfigDict(frozen=True)

    model: str
    target: str
    batch: int = 1
    threads: int | None = None
    provider: str | None = None
    clock: Literal["cpu", "wall"] | None = None
    rounds: int | None = None
    p50_ms: float | None = None
    p90_ms: float | None = None
    p99_ms: float | None = None
    mean_ms: float | None = None
    wall_p50_ms: float | None = None
    runs_per_second: float | None = None
    samples_per_second: float | None = None
    """By the clock; by median wall time where numbers of threads are compared, since CPU time is one thread's."""
    load_ms: float | None = None
    """Time to load the model when the runtime is there already."""
    cold_start: ColdStart | None = None
    peak_bytes: int | None = None
    """Peak memory of a fresh process that has run the model, and of what it has started."""
    base_bytes: int | None = None
    """What of it was there before the model was loaded."""
    joules: float | None = None
    """Energy of a run, of the whole processor."""
    left_behind: int | None = None
    """Nodes that do not run on the target's provider; None: there is but one, or it does not tell."""
    agrees: bool | None = None
    """Whether the target computes what onnxruntime's CPU provider computes; None where there is nothing to compare with."""
    warnings: tuple[str, ...] = ()
    """What is wrong with what was timed."""
    notes: tuple[str, ...] = ()
    """Why a figure is missing."""
    error: str | None = None
    absent: bool = False
    exit_code: int = 0


@dataclass(frozen=True)
class Options:
    """What all measurements of one call share."""

    data: str | None = None
    images: str | None = None
    dims: Mapping[str, int] | None = None
    time_limit: float = 10.0
    seed: int = 0
    batches: Sequence[int] = ()
    """Samples in a run; none: the target's."""
    threads: Sequence[int] = ()
    """None: the target's."""
    cold: bool = True
    """Whether a fresh process tells the cold start and the memory."""
    strict_provider: bool = False
    """Whether a node on another provider than the target's is an error."""


@dataclass(frozen=True)
class _Case:
    """One row to be measured."""

    path: Path
    target: Target
    batch: int
    threads: int


def measure(
    models: Sequence[Path], wanted: Sequence[Target], options: Options, progress: Progress
) -> Iterator[tuple[Measured, str, Entry | None]]:
    """Measure every model on every target, in every batch size and number of threads.

    Each row comes with its key, and with what a baseline would store of it.
    """
    meter = energy.counters()
    for target in wanted:
        here = targets.availability(target)
        for path, key in zip(models, keys(models), strict=True):
            row = Measured(model=str(path), target=target.name)
            if not here.ok or not here.timed:
                said = {"error": here.why, "absent": not here.ok, "exit_code": 0 if here.ok else MissingError.exit_code}
                if here.ok and (problem := _unreadable(path)) is not None:
                    said |= {"error": str(problem), "exit_code": problem.exit_code}
                yield row.model_copy(update=said), key, None
                continue
            for batch, threads in product(options.batches or (target.batch,), options.threads or (target.threads,)):
                case = _Case(path, target, batch, threads)
                try:
                    with progress.stage(_label(case, options)):
                        done, found = _row(case, options, meter, progress)
                except GraphoptError as error:
                    said = {"batch": batch, "threads": threads, "error": str(error), "exit_code": error.exit_code}
                    yield row.model_copy(update=said), key, None
                    continue
                yield done, f"{key}@{target.name}", baseline.entry(path, target.name, found, versions())


def _unreadable(path: Path) -> GraphoptError | None:
    """Why a file is no model; None when it is one."""
    try:
        model.load(path)
    except GraphoptError as error:
        return error
    return None


def _label(case: _Case, options: Options) -> str:
    swept = [f"batch {case.batch}"] if options.batches else []
    swept += [f"{case.threads} threads"] if options.threads else []
    return f"{case.path.name} on {case.target.name}{''.join(f', {each}' for each in swept)}"


def _row(case: _Case, options: Options, meter: energy.Counters, progress: Progress) -> tuple[Measured, timing.Latency]:
    """Measure one row.

    Raises:
        GraphoptError: The model cannot be run like this.
    """
    data = _samples(case.path, case.target, options, case.batch)
    feed = next(iter(data.batches())).feed
    judged = _judged(case, data, options)
    open_session = partial(_open, case.target, case.path, case.threads)
    found = timing.measure(open_session, feed, limit_seconds=options.time_limit, progress=progress)
    notes = [] if meter.packages else [f"energy: {meter.why}"]
    if len(options.threads) > 1:
        notes.append("CPU time with several threads: compare samples/s there, which is by wall time")
    fields: dict[str, object] = {**judged}
    if options.cold:
        with progress.stage("a fresh process"):
            try:
                first = fresh.measure(case.path, case.target, case.threads, feed)
            except ModelError as error:
                notes.append(f"cold start and memory: {error.what}")
            else:
                cold = ColdStart(import_ms=first.import_ms, load_ms=first.load_ms, first_run_ms=first.first_run_ms)
                fields |= {"cold_start": cold, "peak_bytes": first.peak_bytes, "base_bytes": first.base_bytes}
    row = Measured(
        model=str(case.path),
        target=case.target.name,
        batch=case.batch,
        threads=found.threads,
        provider=found.provider,
        clock=found.clock,
        rounds=found.rounds,
        p50_ms=found.p50_ms,
        p90_ms=found.p90_ms,
        p99_ms=found.p99_ms,
        mean_ms=found.mean_ms,
        wall_p50_ms=found.wall_p50_ms,
        runs_per_second=found.throughput,
        samples_per_second=case.batch * (1000 / found.wall_p50_ms if len(options.threads) > 1 else found.throughput),
        load_ms=1000 * found.load_seconds,
        joules=_joules(open_session, feed, meter, found) if meter.packages else None,
        notes=tuple(notes),
    )
    return row.model_copy(update=fields), found


def _judged(case: _Case, data: Dataset, options: Options) -> dict[str, object]:
    """Whether what is timed is what the model says, and all on the target's provider.

    Raises:
        MissingError: It is not, and ``strict_provider`` was asked for.
        ModelError, DataError: The target cannot run the model.
    """
    partition = _placed(case.path, case.target, options)
    own = answers.check_file(case.path, case.target, data)
    left = placement.left_behind(partition, case.target)
    wrong = answers.wrong(case.path.name, case.target, own) if own is not None and own.problems else None
    return {
        "left_behind": None if partition is None else len(partition.left_behind),
        "agrees": None if own is None else not own.problems,
        "warnings": tuple(each for each in (left and f"{case.path.name} on {case.target.name}: {left}.", wrong) if each),
        "exit_code": 0 if wrong is None else BudgetError.exit_code,
    }


def _placed(path: Path, target: Target, options: Options) -> Partition | None:
    """Which provider takes which nodes.

    Raises:
        MissingError: Some are left to others, and ``strict_provider`` was asked for.
    """
    partition = placement.of(path, target)
    if options.strict_provider:
        placement.require_all(partition, target, path.name)
    return partition


def _joules(open_session: Callable[[], Session], feed: Feed, meter: energy.Counters, found: timing.Latency) -> float:
    """Energy of one run, over about a second of runs."""
    runs = max(3, round(_ENERGY_SECONDS * found.throughput))
    with open_session() as session:
        session.run(feed)
        before = meter.read()
        for _ in range(runs):
            session.run(feed)
        return meter.joules(before, meter.read()) / runs


def gate(
    models: Sequence[Path], wanted: Sequence[Target], against: Path, max_regression: float, options: Options, progress: Progress
) -> list[Regression]:
    """Compare every model on every target with its baseline.

    Raises:
        UsageError: The baseline cannot be read or holds nothing comparable.
        ModelError, DataError: A model cannot be read or run.
        MissingError: A target is not here, or leaves nodes to others and ``strict_provider`` was asked for.
    """
    stored = baseline.load(against)
    results = []
    for target in wanted:
        for path, key in zip(models, keys(models), strict=True):
            with progress.stage(f"{path.name} on {target.name} against its baseline"):
                _placed(path, target, options)
                results.append(
                    baseline.judge(
                        stored,
                        f"{key}@{target.name}",
                        path,
                        machine=environment.fingerprint(),
                        target=target.name,
                        max_regression=max_regression,
                        open_session=partial(_open, target),
                        feed=_feed(path, target, options),
                        versions=versions(),
                        limit_seconds=options.time_limit,
                        rng=np.random.default_rng(options.seed),
                        progress=progress,
                    )
                )
    return results


def keys(models: Sequence[Path]) -> list[str]:
    """Each model's name in a baseline: the file's name, or the path as given where two files have the same name."""
    names = [path.name for path in models]
    return [name if names.count(name) == 1 else path.as_posix() for name, path in zip(names, models, strict=True)]


def versions() -> dict[str, str]:
    """The versions that decide speed."""
    here = environment.environment()
    return {"onnxruntime": str(here.onnxruntime), "python": here.python}


def _open(target: Target, path: Path, threads: int | None = None) -> Session:
    return targets.runtime(target).open(path, target, SessionOptions(threads=threads or target.threads))


def _feed(path: Path, target: Target, options: Options) -> Feed:
    """One sample, as ``_samples``."""
    return next(iter(_samples(path, target, options).batches())).feed


def _samples(path: Path, target: Target, options: Options, batch: int = 1) -> Dataset:
    """The data's first samples, or generated ones, in one run.

    Raises:
        DataError: The model, or the data, cannot be batched like this.
        UsageError, ModelError: The data or the model cannot be read.
    """
    loaded = model.load(path)
    specs = model.input_specs(loaded)
    if options.data is not None:
        data = open_dataset(options.data, specs, images=options.images)
    else:
        with _open(target, path) as session:
            dims = {**_batched(specs, batch), **(options.dims or {})}
            data = generate(loaded, dims=dims, samples=batch, seed=options.seed, runs=session.accepts)
    data = (data.batched(batch) if data.splittable else data).first(batch)
    found = next(iter(data.batches()))
    if batch > 1 and found.samples != batch:
        raise DataError(
            f"a run of {batch} samples is not possible: the batch size is fixed at {found.samples}", where=str(path)
        )
    return data


def _batched(specs: Sequence[TensorSpec], batch: int) -> dict[str, int]:
    """The size of the dynamic first dimensions, for a batch of more than one."""
    first = {spec.shape[0] for spec in specs if spec.shape}
    return {dim: batch for dim in first if isinstance(dim, str)} if batch > 1 else {}
