"""Random valid graphs through ``lossless``: the same outputs at three batch sizes, a valid graph, nothing left to do.

The generator is that of the property test (``tests/random_graphs.py``). Graph number N is drawn by N alone: ``--seed S`` draws
S million and what follows, and ``--number N`` judges one again. A graph that fails is written to the folder that ``--failures``
names, with the reason in its doc string. The exit code is 1 if any graph fails.

With ``--state FILE`` each finished chunk is noted there, and a run that was interrupted goes on from it, as long as the sources
are the same. An interrupted run (Ctrl-C) reports what it has.
"""

from __future__ import annotations

import argparse
import collections
import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import onnx
import onnx_ir as ir

from graphopt.contracts import Change
from graphopt.model import count_nodes

import lossless
from common import ROOT, arguments, publish, table


@dataclass
class Tally:
    """What became of some graphs."""

    graphs: int = 0
    nodes_before: int = 0
    nodes_after: int = 0
    cpu_seconds: float = 0.0
    """Of the passes."""


@dataclass(frozen=True)
class Failure:
    """One graph that came out wrong."""

    number: int
    """By which ``random_graphs.model`` draws it."""
    why: str


def check(proto: onnx.ModelProto, tally: Tally) -> str | None:
    """Why the graph did not come through; None if all is well."""
    import random_judge

    seconds: list[float] = []

    def rewrite(model: ir.Model) -> list[Change]:
        start = time.process_time()
        changes = lossless.apply(model)
        seconds.append(time.process_time() - start)
        return changes

    why, result = random_judge.complaint(proto, rewrite)
    if result is not None:
        tally.graphs += 1
        tally.cpu_seconds += seconds[0]
        tally.nodes_before += count_nodes(ir.from_proto(proto))
        tally.nodes_after += count_nodes(ir.from_proto(result))
    return why


def run_chunk(first: int, count: int, failures: Path | None) -> tuple[Tally, list[Failure]]:
    """Draw ``count`` graphs from number ``first`` on and judge each; failing ones go to the folder ``failures``."""
    lossless.tests_on_path()
    import random_graphs

    tally, found = Tally(), []
    for number in range(first, first + count):
        proto = random_graphs.model(number)
        why = check(proto, tally)
        if why is not None:
            found.append(Failure(number, why))
            if failures:
                proto.doc_string = why
                onnx.save(proto, failures / f"{number}.onnx")
    return tally, found


def shrink(path: Path) -> onnx.ModelProto:
    """Drop outputs and nodes of a failing graph for as long as it still fails in the same way."""
    lossless.tests_on_path()
    proto = onnx.load(path)
    kind = str(check(proto, Tally())).split(":")[0]
    smaller = True
    while smaller:
        smaller = False
        for field in ("output", "node", "initializer"):
            for index in reversed(range(len(getattr(proto.graph, field)))):
                trial = onnx.ModelProto.FromString(proto.SerializeToString())
                del getattr(trial.graph, field)[index]
                if trial.graph.output and _fails(trial, kind):
                    proto, smaller = trial, True
    return proto


def _fails(proto: onnx.ModelProto, kind: str) -> bool:
    try:
        return str(check(proto, Tally())).split(":")[0] == kind
    except Exception:  # not valid any more
        return False


def work(options: argparse.Namespace, first: int, count: int) -> tuple[Tally, list[Failure]]:
    """One chunk in a process of its own, which may crash."""
    command = [sys.executable, __file__, "--count", count, "--work", first]
    command += ["--failures", options.failures] if options.failures else []
    ended = subprocess.run([str(part) for part in command], capture_output=True, text=True, check=False)
    lines = [line for line in ended.stdout.splitlines() if line.startswith('{"tally"')]
    if not lines:
        return Tally(), [
            Failure(
                first,
                f"crashed: the process ended with {ended.returncode}: {ended.stderr[-300:]}",
            )
        ]
    found = json.loads(lines[-1])
    return Tally(**found["tally"]), [Failure(**failure) for failure in found["failures"]]


def main() -> int:
    parser = arguments(__doc__)
    parser.add_argument("--count", type=int, default=50_000, help="graphs to draw [default: 50000]")
    parser.add_argument("--seed", type=int, default=0, help="decides all graphs [default: 0]")
    parser.add_argument("--seconds", type=float, help="start no new chunk after so long")
    parser.add_argument("--jobs", type=int, default=2, help="processes at a time [default: 2]")
    parser.add_argument("--state", type=Path, metavar="FILE", help="note finished chunks here, and go on from what it holds")
    parser.add_argument("--failures", type=Path, metavar="FOLDER", help="where graphs that fail go")
    parser.add_argument("--chunk", type=int, default=500, help="graphs that a process judges [default: 500]")
    parser.add_argument("--number", type=int, metavar="N", help="judge this graph only")
    parser.add_argument("--shrink", type=Path, metavar="FILE", help="print a small part of a failing graph that still fails")
    parser.add_argument("--work", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.shrink:
        smallest = shrink(options.shrink)
        print(onnx.printer.to_text(smallest), check(smallest, Tally()), sep="\n")
        return 0
    if options.number is not None:
        lossless.tests_on_path()
        import random_graphs

        why = check(random_graphs.model(options.number), Tally())
        print(why or "all is well")
        return 1 if why else 0
    if options.failures:
        options.failures.mkdir(parents=True, exist_ok=True)
    if options.work is not None:
        tally, failures = run_chunk(options.work, options.count, options.failures)
        print(json.dumps({"tally": asdict(tally), "failures": [asdict(failure) for failure in failures]}))
        return 0
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # as Ctrl-C
    os.environ["PYTHONPATH"] = os.pathsep.join([str(ROOT / "benchmarks"), os.environ.get("PYTHONPATH", "")])
    total, failures = run(options)
    figures: dict[str, Any] = {"seed": options.seed, **asdict(total), "failures": [asdict(failure) for failure in failures]}
    publish("fuzz", "Random graphs through `lossless`", page(options.seed, total, failures), figures, options)
    return 1 if failures else 0


def run(options: argparse.Namespace) -> tuple[Tally, list[Failure]]:
    """All chunks, several at a time; those that are done when the run is interrupted."""
    deadline = time.monotonic() + (options.seconds or float("inf"))
    begin, end = options.seed * 1_000_000, options.seed * 1_000_000 + options.count
    counts = {first: min(options.chunk, end - first) for first in range(begin, end, options.chunk)}
    state = State(options.state, options.seed)
    total, failures = Tally(), []

    def one(first: int) -> tuple[Tally, list[Failure]] | None:
        if time.monotonic() > deadline:
            return None
        return work(options, first, counts[first])

    def add(tally: Tally, found: list[Failure]) -> None:
        nonlocal total
        total = Tally(*(a + b for a, b in zip(asdict(total).values(), asdict(tally).values(), strict=True)))
        failures.extend(found)

    for first, count in list(counts.items()):
        if (first, count) in state.done:
            add(*state.done[first, count])
            del counts[first]
    with ThreadPoolExecutor(options.jobs) as pool:
        running = {pool.submit(one, first): first for first in counts}
        try:
            for future in as_completed(running):
                result = future.result()
                if result is not None:
                    add(*result)
                    state.note(running[future], counts[running[future]], *result)
                    print(f"{total.graphs} graphs, {len(failures)} failures", file=sys.stderr, flush=True)
        except KeyboardInterrupt:
            pool.shutdown(wait=False, cancel_futures=True)
    return total, sorted(failures, key=lambda failure: failure.number)


class State:
    """The chunks that earlier runs on the same sources have finished, in a file of a line each; none without a file."""

    def __init__(self, path: Path | None, seed: int) -> None:
        self._path = path
        self._key = [seed, _sources()]
        self.done: dict[tuple[int, int], tuple[Tally, list[Failure]]] = {}
        for line in path.read_text(encoding="utf-8").splitlines() if path is not None and path.exists() else ():
            try:
                noted = json.loads(line)
            except json.JSONDecodeError:  # empty, or the run was killed while it wrote
                continue
            if noted["key"] == self._key:
                found = Tally(**noted["tally"]), [Failure(**failure) for failure in noted["failures"]]
                self.done[noted["first"], noted["count"]] = found

    def note(self, first: int, count: int, tally: Tally, failures: list[Failure]) -> None:
        """Add a finished chunk to the file."""
        if self._path is None:
            return
        noted = {"key": self._key, "first": first, "count": count, "tally": asdict(tally)}
        with self._path.open("a", encoding="utf-8") as file:
            file.write("\n" + json.dumps(noted | {"failures": [asdict(failure) for failure in failures]}))


def _sources() -> str:
    """What decides the results: the rewrites, the generator and the judge."""
    digest = hashlib.sha256()
    for path in sorted(
        [*(ROOT / "graphopt").rglob("*.py"), *(ROOT / "passes").rglob("*.py"), *(ROOT / "tests").glob("random_*.py")]
    ):
        digest.update(path.read_bytes())
    return digest.hexdigest()[:12]


def page(seed: int, total: Tally, failures: list[Failure]) -> list[str]:
    """The page's paragraphs."""
    text = (
        "Each graph mixes what exporters write: Conv, ConvTranspose, Gemm and MatMul with BatchNormalization and"
        " arithmetic around them, Pad and pooling, Gelu, HardSwish and SiLU, LayerNormalization and RMSNormalization"
        " written out, LSTM, GRU and RNN with computed initial states, attention, reshapes by computed shapes, round trips"
        " of Split, Concat, Slice, Transpose and Cast, sequences, random numbers, If and Loop with captured values,"
        " function calls; weights that several nodes read, that a caller may override, that are outputs too; other types, parts"
        " that hold nothing, rows that data choose; opsets 9 to"
        " 23. It must pass the full checker afterwards, keep its inputs' and outputs' names and types, have no more nodes,"
        " and not change in a second run. At three batch sizes, for both values of the flag and with initializers"
        " overridden, it must give the same outputs: within 1e-5 of the largest, or within what changing all weights and"
        " inputs by a millionth changes, since some graphs blow up every rounding."
    )
    rows = [
        ("graphs", f"{total.graphs:,}"),
        ("seed", seed),
        ("nodes in all", f"{total.nodes_before:,} → {total.nodes_after:,}"),
        ("CPU ms of the passes, a graph", f"{1000 * total.cpu_seconds / max(1, total.graphs):.1f}"),
        ("failures", len(failures)),
    ]
    kinds = collections.Counter(failure.why.split(":")[0] for failure in failures)
    parts = [text, table(("what", "figure"), rows)]
    if failures:
        listed = [(failure.number, failure.why[:160]) for failure in failures[:50]]
        counted = ", ".join(f"{count} {kind}" for kind, count in kinds.items())
        parts += ["## Failures", f"{counted}; the first ones are", table(("graph", "why"), listed)]
    return parts


if __name__ == "__main__":
    raise SystemExit(main())
