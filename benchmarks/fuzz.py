"""Random valid graphs through ``lossless``: the same outputs at two batch sizes, a valid graph, nothing left to do.

The generator is that of the property test (``tests/random_graphs.py``). Graphs are drawn in chunks; each has a seed of its own,
made of ``--seed`` and the chunk's number, and is drawn and judged again by ``--chunk N``. A graph that fails is written to the
folder that ``--failures`` names, with the reason in its doc string. The exit code is 1 if any graph fails.
"""

from __future__ import annotations

import argparse
import collections
import os
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir

from graphopt.model import count_nodes

import lossless
from common import ROOT, arguments, publish, table

CHUNK = 250


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

    chunk: int
    index: int
    why: str


def check(proto: onnx.ModelProto, tally: Tally) -> str | None:
    """Why the graph did not come through; None if all is well."""
    import random_graphs
    from helpers import assert_same_outputs

    onnx.checker.check_model(proto, full_check=True)
    model = ir.from_proto(onnx.ModelProto.FromString(proto.SerializeToString()))
    before = count_nodes(model)
    start = time.process_time()
    try:
        lossless.apply(model)
    except Exception as error:
        return f"crashed: {type(error).__name__}: {error}"
    tally.cpu_seconds += time.process_time() - start
    tally.graphs += 1
    tally.nodes_before += before
    tally.nodes_after += count_nodes(model)
    result = ir.to_proto(model)
    feeds = [
        random_graphs.feed(1, flag=True),
        random_graphs.feed(3, flag=False),
        {**random_graphs.feed(2, flag=True), "w": np.array(-3, np.float32)},
    ]

    def same_outputs() -> None:
        for feed in feeds:
            assert_same_outputs(proto, result, feed)

    claims: dict[str, Callable[[], None]] = {
        "invalid": lambda: onnx.checker.check_model(result, full_check=True),
        "other inputs": lambda: _equal([*result.graph.input], [*proto.graph.input]),
        "other outputs' types": lambda: _equal([*result.graph.output], [*proto.graph.output]),
        "more nodes": lambda: _equal(count_nodes(model) > before, False),
        "other outputs": same_outputs,
        "not idempotent": lambda: _idempotent(result),
    }
    for claim, verify in claims.items():
        try:
            verify()
        except Exception as error:
            return f"{claim} ({type(error).__name__}): {' '.join(str(error).split())[:300]}"
    return None


def _equal(actual: object, expected: object) -> None:
    assert actual == expected


def _idempotent(proto: onnx.ModelProto) -> None:
    model = ir.from_proto(onnx.ModelProto.FromString(proto.SerializeToString()))
    changes = lossless.apply(model)
    assert not changes, "; ".join(f"{change.site}: {change.what}" for change in changes)
    assert ir.to_proto(model) == proto, "no change is listed but the file differs"


def run_chunk(seed: int, chunk: int, count: int, failures: Path | None) -> tuple[Tally, list[Failure]]:
    """Draw ``count`` graphs and judge each; failing ones go to the folder ``failures``."""
    lossless.tests_on_path()
    import hypothesis

    import random_graphs

    tally, found, drawn = Tally(), [], 0

    @hypothesis.seed(seed * 1_000_000 + chunk)
    @hypothesis.settings(
        max_examples=count,
        database=None,
        deadline=None,
        phases=[hypothesis.Phase.generate],
        suppress_health_check=list(hypothesis.HealthCheck),
    )
    @hypothesis.given(random_graphs.models())
    def judge(proto: onnx.ModelProto) -> None:
        nonlocal drawn
        drawn += 1
        why = check(proto, tally)
        if why is not None:
            found.append(Failure(chunk, drawn, why))
            if failures:
                proto.doc_string = why
                onnx.save(proto, failures / f"seed{seed}_chunk{chunk}_{drawn}.onnx")

    judge()
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


def work(options: argparse.Namespace, chunk: int, count: int) -> tuple[Tally, list[Failure]]:
    """One chunk in a process of its own, which may crash."""
    import json

    command = [sys.executable, __file__, "--seed", options.seed, "--count", count, "--work", chunk]
    command += ["--failures", options.failures] if options.failures else []
    ended = subprocess.run([str(part) for part in command], capture_output=True, text=True, check=False)
    lines = [line for line in ended.stdout.splitlines() if line.startswith('{"tally"')]
    if not lines:
        return Tally(), [Failure(chunk, 0, f"crashed: the process ended with {ended.returncode}: {ended.stderr[-300:]}")]
    found = json.loads(lines[-1])
    return Tally(**found["tally"]), [Failure(**failure) for failure in found["failures"]]


def main() -> int:
    import json

    parser = arguments(__doc__)
    parser.add_argument("--count", type=int, default=50_000, help="graphs to draw [default: 50000]")
    parser.add_argument("--seed", type=int, default=0, help="decides all graphs [default: 0]")
    parser.add_argument("--seconds", type=float, help="start no new chunk after so long")
    parser.add_argument("--jobs", type=int, default=2, help="processes at a time [default: 2]")
    parser.add_argument("--failures", type=Path, metavar="FOLDER", help="where graphs that fail go")
    parser.add_argument("--chunk", type=int, help=f"judge this chunk of {CHUNK} graphs only")
    parser.add_argument("--shrink", type=Path, metavar="FILE", help="print a small part of a failing graph that still fails")
    parser.add_argument("--work", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.shrink:
        smallest = shrink(options.shrink)
        print(onnx.printer.to_text(smallest), check(smallest, Tally()), sep="\n")
        return 0
    if options.failures:
        options.failures.mkdir(parents=True, exist_ok=True)
    if options.work is not None:
        tally, failures = run_chunk(options.seed, options.work, options.count, options.failures)
        print(json.dumps({"tally": asdict(tally), "failures": [asdict(failure) for failure in failures]}))
        return 0
    os.environ["PYTHONPATH"] = os.pathsep.join([str(ROOT / "benchmarks"), os.environ.get("PYTHONPATH", "")])
    total, failures = run(options)
    figures: dict[str, Any] = {"seed": options.seed, **asdict(total), "failures": [asdict(failure) for failure in failures]}
    publish("fuzz", "Random graphs through `lossless`", page(options.seed, total, failures), figures, options)
    return 1 if failures else 0


def run(options: argparse.Namespace) -> tuple[Tally, list[Failure]]:
    """All chunks, several at a time."""
    chunks = range(-(-options.count // CHUNK)) if options.chunk is None else [options.chunk]
    deadline = time.monotonic() + (options.seconds or float("inf"))
    total, failures = Tally(), []

    def one(chunk: int) -> tuple[Tally, list[Failure]]:
        if time.monotonic() > deadline:
            return Tally(), []
        count = CHUNK if options.chunk is not None else min(CHUNK, options.count - chunk * CHUNK)
        return work(options, chunk, count)

    with ThreadPoolExecutor(options.jobs) as pool:
        for tally, found in pool.map(one, chunks):
            total = Tally(*(a + b for a, b in zip(asdict(total).values(), asdict(tally).values(), strict=True)))
            failures += found
            print(f"{total.graphs} graphs, {len(failures)} failures", file=sys.stderr, flush=True)
    return total, failures


def page(seed: int, total: Tally, failures: list[Failure]) -> list[str]:
    """The page's paragraphs."""
    text = (
        "Each graph mixes elementwise operators, MatMul, Conv, Reshape by computed shapes, Concat, Split, random numbers, "
        "If and Loop with captured values, function calls, an initializer that a caller may override. It must pass the full "
        "checker afterwards, keep its inputs' and outputs' names and types, have no more nodes, give the same outputs (within "
        "1e-5 of the largest) at three batch sizes, for both values of the flag and with the initializer overridden, and not "
        "change in a second run."
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
        listed = [(f"`--seed {seed} --chunk {failure.chunk}`", failure.index, failure.why[:160]) for failure in failures[:50]]
        counted = ", ".join(f"{count} {kind}" for kind, count in kinds.items())
        parts += ["## Failures", f"{counted}; the first ones are", table(("chunk", "graph", "why"), listed)]
    return parts


if __name__ == "__main__":
    raise SystemExit(main())
