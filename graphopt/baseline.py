"""The regression gate: has a model become slower than it was when its baseline was saved?

A baseline file holds, for each machine (its fingerprint) and each model (a key that the caller chooses), what was measured. The
stored figures are the weak half of it. Whenever the model file that they were taken of is still at hand, unchanged by its hash,
the candidate is timed against *that file*, interleaved, here and now (``timing.compare``): then it does not matter which
machine it is or how busy. Only without the file are the stored figures used, with a wide margin and a warning, and only on the
machine that they are from.

An alarm is raised when the whole interval of the slow-down lies beyond the bound; doubt is no alarm.
"""

from __future__ import annotations

import os
import re
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from . import timing
from .contracts import Feed, Progress, Session
from .errors import UsageError
from .model import file_sha256

SCHEMA: Literal[1] = 1

_STORED_SPREAD = 0.08
"""How far two CPU times of one model, taken at different times on one busy machine, were seen to be apart."""


class Entry(BaseModel):
    """What is stored of one model."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    model: str
    """Path of the model file, relative to the baseline file where that is possible."""
    sha256: str
    target: str
    threads: int
    clock: timing.Clock
    p50_ms: float
    p90_ms: float
    created: str
    """UTC, ISO 8601."""
    versions: dict[str, str]


class _File(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    schema_: Literal[1] = Field(alias="schema")
    machines: dict[str, dict[str, Entry]]
    """Entries by machine fingerprint, then by model key."""


@dataclass(frozen=True)
class Baseline:
    """A baseline file that was read: entries by machine fingerprint, then by model key."""

    path: Path
    machines: Mapping[str, Mapping[str, Entry]]


@dataclass(frozen=True)
class Regression:
    """How much slower a model has become, and whether that is an alarm."""

    model: str
    target: str
    before_ms: float
    after_ms: float
    slowdown: float
    """after_ms / before_ms: 1.1 is 10 % slower. Its 95 % interval is low to high."""
    low: float
    high: float
    bound: float
    """By which part the model may become slower: 0.05 is 5 %."""
    failed: bool
    """low > 1 + bound."""
    how: Literal["interleaved", "stored"]
    warnings: tuple[str, ...]


def parse_bound(text: str) -> float:
    """``5%`` or ``0.05`` as 0.05.

    Raises:
        UsageError: Not a number, negative, or 1 and more without a per cent sign.
    """
    match = re.fullmatch(r"\s*(\d+(?:\.\d*)?|\.\d+)\s*(%?)\s*", text)
    if match is None:
        raise UsageError(f"{text!r} is not a regression bound", hint="Write it as 5% or 0.05.")
    value = float(match[1])
    if match[2]:
        return value / 100
    if value >= 1:
        raise UsageError(f"a regression bound of {text.strip()} would allow {value:.0%}", hint=f"Did you mean {match[1]}%?")
    return value


def entry(model: Path, target: str, latency: timing.Latency, versions: Mapping[str, str]) -> Entry:
    """What to store of a model that was just measured."""
    return Entry(
        model=str(model),
        sha256=file_sha256(model),
        target=target,
        threads=latency.threads,
        clock=latency.clock,
        p50_ms=latency.p50_ms,
        p90_ms=latency.p90_ms,
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        versions=dict(versions),
    )


def load(path: Path) -> Baseline:
    """Read a baseline file.

    Raises:
        UsageError: There is none, or it is not one.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"the baseline cannot be read: {error}", where=str(path), hint=_SAVE_ONE) from None
    try:
        return Baseline(path, _File.model_validate_json(text).machines)
    except ValidationError as error:
        first = error.errors()[0]
        problem = f"{'.'.join(map(str, first['loc'])) or 'file'}: {first['msg']}"
        raise UsageError(f"not a baseline of schema {SCHEMA}: {problem}", where=str(path)) from None


def save(path: Path, machine: str, entries: Mapping[str, Entry]) -> None:
    """Put entries into the file under the machine's fingerprint, beside what it holds already; the file is replaced as a whole.

    Raises:
        UsageError: What is there is not a baseline, or the file cannot be written.
    """
    machines = {name: dict(stored) for name, stored in load(path).machines.items()} if path.exists() else {}
    machines.setdefault(machine, {}).update({key: _relative(value, path) for key, value in entries.items()})
    ordered = {name: dict(sorted(stored.items())) for name, stored in machines.items()}
    text = _File(schema=SCHEMA, machines=ordered).model_dump_json(indent=2, by_alias=True)
    try:
        with tempfile.NamedTemporaryFile("w", encoding="utf-8", dir=path.parent, prefix=f".{path.name}.", delete=False) as file:
            file.write(text + "\n")
            file.flush()
            os.fsync(file.fileno())
        Path(file.name).chmod(0o644)
        Path(file.name).replace(path)
    except OSError as error:
        raise UsageError(f"the baseline cannot be written: {error}", where=str(path)) from None


def judge(
    baseline: Baseline,
    key: str,
    candidate: Path,
    *,
    machine: str,
    target: str,
    max_regression: float,
    open_session: Callable[[Path], Session],
    feed: Feed,
    versions: Mapping[str, str],
    limit_seconds: float = 10.0,
    rng: np.random.Generator,
    progress: Progress,
) -> Regression:
    """Compare a candidate with what is stored under ``key``, interleaved if the baseline's model file is at hand.

    Args:
        baseline: The baseline file.
        key: The model's name in it.
        candidate: The model file of today.
        machine: This machine's fingerprint.
        target: Name of the target that both are timed on.
        max_regression: The bound: 0.05 allows 5 %.
        open_session: Opens a file on the target.
        feed: What both are run with.
        versions: Today's versions of what matters for speed; a difference is a warning when stored figures are used.
        limit_seconds: Wall time to spend.
        rng: Random order and bootstrap.
        progress: Told what is done.

    Raises:
        UsageError: Nothing comparable is stored under the key.
        ModelError, MissingError, DataError: A model cannot be opened or run.
    """
    stored, here = _find(baseline, key, machine, target)
    original = baseline.path.parent / stored.model
    warnings = []
    if original.is_file() and file_sha256(original) == stored.sha256:
        if not here:
            warnings.append("the baseline is from another machine; its model file was run here instead")
        found = timing.compare(
            lambda: open_session(original),
            lambda: open_session(candidate),
            feed,
            limit_seconds=limit_seconds,
            bound=1 / (1 + max_regression),
            rng=rng,
            progress=progress,
        )
        if not found.converged:
            warnings.append(f"the interval was still wide after {found.seconds:.0f} s")
        before, after = found.before_ms, found.after_ms
        low, high = 1 / found.speedup_high, 1 / found.speedup_low
        how: Literal["interleaved", "stored"] = "interleaved"
    elif here:
        latency = timing.measure(lambda: open_session(candidate), feed, limit_seconds=limit_seconds, progress=progress)
        if (latency.clock, latency.threads) != (stored.clock, stored.threads):
            was, now = f"{stored.clock} with {stored.threads}", f"{latency.clock} with {latency.threads}"
            raise UsageError(f"the baseline of {key!r} was timed by {was} threads, now it is {now}", where=str(baseline.path))
        warnings.append(
            f"the baseline's model file {stored.model} is gone or changed: compared with stored figures, which is weaker "
            f"(they vary by {_STORED_SPREAD:.0%} from one time to another)"
        )
        changed = [
            f"{name} {old} is now {versions.get(name)}" for name, old in stored.versions.items() if versions.get(name) != old
        ]
        warnings += [f"versions differ: {', '.join(changed)}"] if changed else []
        before, after = stored.p50_ms, latency.p50_ms
        low, high = after / before / (1 + _STORED_SPREAD), after / before * (1 + _STORED_SPREAD)
        how = "stored"
    else:
        raise UsageError(
            f"the baseline of {key!r} is from another machine and its model file {stored.model} is not at hand",
            where=str(baseline.path),
            hint=_SAVE_ONE,
        )
    return Regression(
        model=key,
        target=target,
        before_ms=before,
        after_ms=after,
        slowdown=after / before,
        low=low,
        high=high,
        bound=max_regression,
        failed=low > 1 + max_regression,
        how=how,
        warnings=tuple(warnings),
    )


# --------------------------------------------------------------------------------------------------------------- details

_SAVE_ONE = "Save one on this machine: graphopt bench MODEL --save-baseline FILE."


def _find(baseline: Baseline, key: str, machine: str, target: str) -> tuple[Entry, bool]:
    """The entry for the key, this machine's if it has one, and whether it is this machine's."""
    order = sorted(baseline.machines, key=lambda name: name != machine)
    for name in order:
        stored = baseline.machines[name].get(key)
        if stored is not None and stored.target == target:
            return stored, name == machine
    known = sorted({key for entries in baseline.machines.values() for key in entries})
    what = f"there is no baseline for {key!r} on target {target!r}"
    raise UsageError(what, where=str(baseline.path), hint=f"It holds {', '.join(known) or 'nothing'}. {_SAVE_ONE}")


def _relative(value: Entry, path: Path) -> Entry:
    try:
        relative = os.path.relpath(Path(value.model).resolve(), path.parent.resolve())
    except ValueError:  # on another drive
        return value
    return value.model_copy(update={"model": Path(relative).as_posix()})
