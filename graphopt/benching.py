"""``graphopt bench``: the latency of models on targets, and the gate that notices when one became slower.

A target that cannot run here, or a model that a target cannot run, is a row with the reason, so that a table over many
shows all of them. The gate itself is in ``baseline.py``.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal

import numpy as np
from pydantic import BaseModel, ConfigDict

from . import baseline, environment, model, targets, timing
from .baseline import Entry, Regression
from .contracts import Feed, Progress, Session, SessionOptions
from .dataset import open_dataset
from .dataset.generate import generate
from .errors import GraphoptError
from .targets import Target


class Measured(BaseModel):
    """One model on one target. With ``error``, what is not known is None; ``exit_code`` is the error's."""

    model_config = ConfigDict(frozen=True)

    model: str
    target: str
    provider: str | None = None
    clock: Literal["cpu", "wall"] | None = None
    threads: int | None = None
    rounds: int | None = None
    p50_ms: float | None = None
    p90_ms: float | None = None
    p99_ms: float | None = None
    mean_ms: float | None = None
    wall_p50_ms: float | None = None
    runs_per_second: float | None = None
    load_ms: float | None = None
    error: str | None = None
    exit_code: int = 0


@dataclass(frozen=True)
class Options:
    """What all measurements of one call share."""

    data: str | None = None
    images: str | None = None
    dims: Mapping[str, int] | None = None
    time_limit: float = 10.0
    seed: int = 0


def measure(
    models: Sequence[Path], wanted: Sequence[Target], options: Options, progress: Progress
) -> Iterator[tuple[Measured, str, Entry | None]]:
    """Measure every model on every target; each comes with its key and what a baseline would store of it."""
    for target in wanted:
        for path, key in zip(models, keys(models), strict=True):
            try:
                with progress.stage(f"{path.name} on {target.name}"):
                    feed = _feed(path, target, options)
                    found = timing.measure(
                        partial(_open, target, path), feed, limit_seconds=options.time_limit, progress=progress
                    )
            except GraphoptError as error:
                yield Measured(model=str(path), target=target.name, error=str(error), exit_code=error.exit_code), key, None
                continue
            row = Measured(
                model=str(path),
                target=target.name,
                provider=found.provider,
                clock=found.clock,
                threads=found.threads,
                rounds=found.rounds,
                p50_ms=found.p50_ms,
                p90_ms=found.p90_ms,
                p99_ms=found.p99_ms,
                mean_ms=found.mean_ms,
                wall_p50_ms=found.wall_p50_ms,
                runs_per_second=found.throughput,
                load_ms=1000 * found.load_seconds,
            )
            yield row, f"{key}@{target.name}", baseline.entry(path, target.name, found, versions())


def gate(
    models: Sequence[Path], wanted: Sequence[Target], against: Path, max_regression: float, options: Options, progress: Progress
) -> list[Regression]:
    """Compare every model on every target with its baseline.

    Raises:
        UsageError: The baseline cannot be read or holds nothing comparable.
        ModelError, DataError, MissingError: A model cannot be read or run.
    """
    stored = baseline.load(against)
    results = []
    for target in wanted:
        for path, key in zip(models, keys(models), strict=True):
            with progress.stage(f"{path.name} on {target.name} against its baseline"):
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


def _open(target: Target, path: Path) -> Session:
    return targets.runtime(target).open(path, target, SessionOptions(threads=target.threads))


def _feed(path: Path, target: Target, options: Options) -> Feed:
    """One sample: the data's first, or a generated one."""
    loaded = model.load(path)
    if options.data is not None:
        data = open_dataset(options.data, model.input_specs(loaded), images=options.images)
    else:
        with _open(target, path) as session:
            data = generate(loaded, dims=options.dims or {}, samples=1, seed=options.seed, runs=session.accepts)
    return next(iter(data.first(1).batches())).feed
