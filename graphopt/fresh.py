"""What a model costs in a process of its own: until the first answer, and at the peak of memory.

    import the engine and try it  ->  load the model  ->  first run        then a few more for the peak of memory

``measure`` starts ``python -m graphopt.fresh``, which reads a request from stdin and prints what it found. Memory is that of
the process and of those that it has started, at their peaks; where the system does not tell (no /proc), of the process alone.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from .contracts import Feed, SessionOptions
from .environment import peak_rss_bytes
from .errors import GraphoptError, ModelError
from .targets import Target

_RUNS = 3  # a runtime plans its memory in the first
_LIMIT_SECONDS = 300


@dataclass(frozen=True)
class Fresh:
    """A cold start, in milliseconds, and memory in bytes."""

    import_ms: float
    """Importing the engine and trying it with a model of one node."""
    load_ms: float
    first_run_ms: float
    base_bytes: int
    """The peak before the model was loaded: Python, graphopt and the engine."""
    peak_bytes: int


def measure(model: Path, target: Target, threads: int, feed: Feed) -> Fresh:
    """Start a process, load the model there and run it.

    Raises:
        ModelError: The process failed, or took longer than five minutes.
    """
    with tempfile.TemporaryDirectory(prefix="graphopt-") as folder:
        inputs = Path(folder) / "feed.npz"
        np.savez(inputs, allow_pickle=False, **{f"input{index}": array for index, array in enumerate(feed.values())})
        request = {
            "model": str(model.resolve()),
            "target": target.model_dump(mode="json"),
            "threads": threads,
            "names": [*feed],
            "feed": str(inputs),
        }
        command = [sys.executable, "-P", "-m", "graphopt.fresh"]
        try:
            done = subprocess.run(  # noqa: S603 - our own module
                command, input=json.dumps(request), capture_output=True, text=True, check=False, timeout=_LIMIT_SECONDS
            )
        except subprocess.TimeoutExpired:
            raise ModelError(f"a fresh process was not done after {_LIMIT_SECONDS} s", where=str(model)) from None
    if done.returncode != 0:
        reason = (done.stderr.strip().splitlines() or ["it ended without a word"])[-1]
        raise ModelError(f"a fresh process failed: {reason}", where=str(model))
    return Fresh(**json.loads(done.stdout.strip().splitlines()[-1]))


def start(request: Mapping[str, object]) -> Fresh:
    """Carry out a request in this process, which has not imported the runtime yet.

    Raises:
        GraphoptError: The target cannot run here, or not this model.
    """
    from . import registry, targets

    target = Target.model_validate(request["target"])
    with np.load(str(request["feed"])) as arrays:
        values = [arrays[f"input{index}"] for index in range(len(arrays.files))]
    names = request["names"]
    assert isinstance(names, list)
    feed = dict(zip(names, values, strict=True))
    registry.runtime(target.runtime)  # graphopt's own modules are no part of what is measured
    begun = time.perf_counter()
    runtime = targets.runtime(target)
    imported, base = time.perf_counter(), _peak_bytes()
    threads = request["threads"]
    assert isinstance(threads, int)
    with runtime.open(Path(str(request["model"])), target, SessionOptions(threads=threads)) as session:
        loaded = time.perf_counter()
        session.run(feed)
        ran = time.perf_counter()
        for _ in range(_RUNS - 1):
            session.run(feed)
        peak = _peak_bytes()
    return Fresh(1000 * (imported - begun), 1000 * (loaded - imported), 1000 * (ran - loaded), base, peak)


def _peak_bytes() -> int:
    """Peak memory of this process and of all that it has started, which run still."""
    processes = Path("/proc")
    if not (processes / "self" / "stat").is_file():
        return peak_rss_bytes()
    parents, peaks = {}, {}
    for folder in processes.glob("[0-9]*"):
        try:
            fields = dict(line.split(":", 1) for line in (folder / "status").read_text().splitlines() if ":" in line)
        except OSError:  # it has ended
            continue
        parents[int(folder.name)] = int(fields["PPid"])
        peaks[int(folder.name)] = int(fields.get("VmHWM", "0 kB").split()[0]) * 1024
    own, total = int((processes / "self").resolve().name), 0
    for process, peak in peaks.items():
        ancestor = process
        while ancestor not in {own, 0}:
            ancestor = parents.get(ancestor, 0)
        total += peak if ancestor == own else 0
    return total


if __name__ == "__main__":
    try:
        print(json.dumps(asdict(start(json.load(sys.stdin)))))
    except GraphoptError as error:
        sys.exit(str(error).replace("\n", " "))
