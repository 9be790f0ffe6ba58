"""``lossless`` beside the other simplifiers: nodes, CPU seconds, memory, whether the result is right, latency.

Takes every model of the folder ``--models`` (or GRAPHOPT_EXPORTS) and of the zoo (GRAPHOPT_ZOO). Every cell is kept in the
folder ``--cache`` under the file's hash and the tool's version: a run that was interrupted goes on, and after a change of
graphopt only its own cells are measured again.
"""

from __future__ import annotations

import json
import os
import re
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import onnx

from graphopt.model import file_sha256

import simplifiers
from common import ROOT, arguments, publish, table
from simplifiers import CHAIN, FROZEN, OURS, PEERS

TOLERANCE = 2e-6
REPEATS, ENOUGH_SECONDS = 3, 5.0
RIVAL, ROUNDS = "onnxsim", 7
CELLS = (*PEERS, "chain", OURS)
COST = "cost"
PARTS = ("load", "check", "rewrite", "save")
Cell = dict[str, Any]


@dataclass(frozen=True)
class Bench:
    """Where things are."""

    envs: Path
    cache: Path
    work: Path


def measured(bench: Bench, source: Path, cells: Sequence[str]) -> dict[str, Cell]:
    """The cells of one model, from the cache or new."""
    folder = bench.cache / f"{source.stem}-{file_sha256(source)[:12]}"
    folder.mkdir(parents=True, exist_ok=True)
    judge = _digest(ROOT / "benchmarks" / "judging.py")
    row = {"original": _cached(folder / f"original-{judge}.json", lambda: _judged(source, source))}
    for name in (*cells, *([FROZEN] if lists_initializers(source) else [])):
        version = "-".join(simplifiers.version(tool) for tool in (CHAIN if name == "chain" else [name]))
        row[name] = _cached(folder / f"{name}-{version}-{judge}.json", partial(_cell, bench, source, name))
        print(f"{source.stem} {name}: {row[name].get('nodes', row[name].get('failed'))}", file=sys.stderr, flush=True)
    version = f"{simplifiers.version(RIVAL)}-{simplifiers.version(OURS)}-{ROUNDS}"
    row[COST] = _cached(folder / f"{COST}-{version}.json", partial(_in_turn, bench, source))
    return row


def lists_initializers(source: Path) -> bool:
    """Whether a caller may override some of the file's initializers, because they are inputs too."""
    graph = onnx.load(source, load_external_data=False).graph
    return bool({value.name for value in graph.input} & {tensor.name for tensor in graph.initializer})


def _digest(path: Path) -> str:
    return file_sha256(path)[:8]


def _cached(path: Path, make: Callable[[], Cell]) -> Cell:
    if not path.exists():
        unfinished = path.with_suffix(".tmp")
        unfinished.write_text(json.dumps(make(), indent=1), encoding="utf-8")
        unfinished.replace(path)
    found: Cell = json.loads(path.read_text(encoding="utf-8"))
    return found


def _cell(bench: Bench, source: Path, name: str) -> Cell:
    """Simplify, judge, and for graphopt time; the fastest of a few calls counts, and the highest peak."""
    with tempfile.TemporaryDirectory(dir=bench.work) as temporary:
        taken, out = _simplified(bench, source, name, Path(temporary))
        if "failed" in taken:
            return taken
        cell = taken | _judged(source, out, *(["--twice"] if name in {OURS, FROZEN} else []))
        if name in {OURS, FROZEN} and "wrong" not in cell:
            cell["latency"] = simplifiers.printed([sys.executable, _JUDGE, source, out, "--time"])
            cell["kernels"] = simplifiers.printed([sys.executable, ROOT / "benchmarks" / "executed.py", source, out])
        return cell


_JUDGE = ROOT / "benchmarks" / "judging.py"


def _in_turn(bench: Bench, source: Path) -> Cell:
    """The fastest call of graphopt and of its fastest rival, called in turn, so that what else the machine does hits both."""
    best: dict[str, Cell] = {}
    spent = 0.0
    with tempfile.TemporaryDirectory(dir=bench.work) as folder:
        for turn in range(ROUNDS):
            for name in (RIVAL, OURS):
                if turn and spent > ENOUGH_SECONDS * len((RIVAL, OURS)):
                    continue
                called = simplifiers.call(name, bench.envs, source, Path(folder) / f"{turn}-{name}.onnx")
                if "failed" in called:
                    return called
                spent += called["cpu_seconds"]
                best[name] = min(best.get(name, called), called, key=lambda call: call["cpu_seconds"])
    return {RIVAL: best[RIVAL]["cpu_seconds"], OURS: best[OURS]["cpu_seconds"], **{part: best[OURS][part] for part in PARTS}}


def _judged(source: Path, out: Path, *flags: str) -> Cell:
    judged = simplifiers.printed([sys.executable, _JUDGE, source, out, *flags])
    return {"wrong": f"judging {judged['failed']}"} if "failed" in judged else judged


def _simplified(bench: Bench, source: Path, name: str, folder: Path) -> tuple[Cell, Path]:
    steps = CHAIN if name == "chain" else (name,)
    total: Cell = {"cpu_seconds": 0.0, "import_cpu_seconds": 0.0, "peak_bytes": 0}
    given = source
    for step in steps:
        out = folder / f"{step}.onnx"
        calls: list[Cell] = []
        while len(calls) < (1 if name == "chain" else REPEATS) and sum(c["cpu_seconds"] for c in calls) < ENOUGH_SECONDS:
            out.unlink(missing_ok=True)
            calls.append(simplifiers.call(step, bench.envs, given, out))
            if "failed" in calls[-1]:
                return {"failed": f"{step}: {calls[-1]['failed']}"}, out
        total["cpu_seconds"] += min(c["cpu_seconds"] for c in calls)
        total["import_cpu_seconds"] += min(c["import_cpu_seconds"] for c in calls)
        total["peak_bytes"] = max(total["peak_bytes"], *(c["peak_bytes"] for c in calls))
        given = out
    return total, given


# ------------------------------------------------------------------------------------------------------------- the page


def best(row: Mapping[str, Cell]) -> int | None:
    """The fewest nodes that any peer or their chain came to, right or wrong."""
    return min((row[name]["nodes"] for name in (*PEERS, "chain") if "nodes" in row.get(name, {})), default=None)


def trouble(cell: Cell) -> str | None:
    """What is wrong with a result."""
    if "failed" in cell or "wrong" in cell:
        return str(cell.get("failed") or cell.get("wrong"))
    if cell["max_rel"] and max(cell["max_rel"].values()) > TOLERANCE:
        return f"outputs differ by {max(cell['max_rel'].values()):.1e}"
    return f"a second run changes {len(cell['again'])} places" if cell.get("again") else None


def page(rows: Mapping[str, Mapping[str, Cell]]) -> list[str]:
    nodes, costs, results, troubles, broken = [], [], [], [], []
    for name, row in rows.items():
        ours, least = row[OURS], best(row)
        more = least is not None and "nodes" in ours and ours["nodes"] > least
        note = (
            f"{'**more**; ' if more else ''}{_nodes(row[FROZEN])} with freeze" if FROZEN in row else "**more**" if more else ""
        )
        nodes.append((name, row["original"].get("nodes", "?"), *(_nodes(row[name]) for name in CELLS), note))
        costs.append((name, *(_figure(row[n], "cpu_seconds", 1, "{:.2f}") for n in CELLS if n not in {RIVAL, OURS})))
        costs[-1] += tuple(_figure(row[COST], part, 1, "{:.3f}") for part in (RIVAL, OURS, *PARTS))
        costs[-1] += (f"{row['original'].get('bytes', 0) / 1e6:,.0f}",)
        costs[-1] += tuple(_figure(row[n], "peak_bytes", 1e6, "{:,.0f}") for n in (*PEERS, OURS))
        latency = ours.get("latency", {})
        speed = "{speedup:.3f} ({speedup_low:.3f} to {speedup_high:.3f})".format(**latency) if "speedup" in latency else "-"
        sizes = ours.get("max_rel", {})
        kernels = ours.get("kernels", {})
        multiplying = [_figure(kernels, f"multiplying_{when}_ms", 1, "{:.2f}") for when in ("before", "after")]
        part = kernels.get("multiplying_after_part")
        bound = f"{latency['speedup'] / part:.2f}" if part and "speedup" in latency else "-"
        results.append((name, ", ".join(f"{value:.0e}" for value in sizes.values()), ", ".join(sizes), speed))
        results[-1] += (*multiplying, "-" if part is None else f"{part:.0%}", bound)
        gone = ", ".join(f"{kind}: {was} to {now}" for kind, (was, now) in kernels.get("gone", {}).items())
        broken += [(name, gone)] if gone else []
        judged = {tool: cell for tool, cell in row.items() if tool != COST}
        troubles += [(name, tool, why.replace("|", "\\|")) for tool, cell in judged.items() if (why := trouble(cell))]
    behind = sum("more" in row[-1] for row in nodes)
    text = (
        "Nodes of all graphs and functions, Constant left out. *Chain* is "
        f"{', then '.join(CHAIN)}. ✗: the result is not right, see below; -: no result. graphopt has more nodes than the best "
        f"of the others, right or not, on {behind} of {len(nodes)} models. *With freeze*: some files list initializers as "
        "inputs too, so that a caller may override them; graphopt leaves that as it is unless asked with "
        "`--set simplify.freeze=true`, where others take them for constants."
    )
    cost = (
        "CPU seconds of the call from file to file, without the imports and, of graphopt, without reading the recipe and the "
        "target (the best of up to three calls), and the most memory in MB beyond the imports. graphopt and "
        f"{RIVAL}, which is written in C++, are called in turn, up to {ROUNDS} times each: graphopt takes more CPU seconds on "
        f"{sum(_slower(row) for row in rows.values())} of {len(rows)} models. "
        "*load*, *check*, *rewrite*, *save*: the parts of graphopt's call; *check* is ONNX's checker and graphopt's own "
        "validation, which names the node that is wrong, when the file is read."
    )
    result = (
        "graphopt's file against the original: the largest difference of an output relative to its peak, at the sizes named, "
        "without onnxruntime's optimizations; and original time / new time with them, one thread, CPU time, 95 % interval. "
        "*Multiplying*: what the kernels that multiply matrices (Conv, Gemm, MatMul, LSTM, ..., with what onnxruntime fused "
        "into them) take in the original and in graphopt's file, in ms, by onnxruntime's profiler, and which part of all "
        "kernels of graphopt's file that is. *At most*: what the speed-up would be if all others took no time at all."
    )
    fusion = (
        "Kernels that onnxruntime makes of several nodes: how many it makes of the original, and how many of graphopt's file, "
        "where those are fewer. That is meant where a part of the pattern is computed no more (a bias of zero before a Gelu, "
        "a factor that went into the weights), where the file has an operator for the whole, or where the kernel is slower "
        "than its parts (SkipLayerNormalization)."
    )
    wrong = (
        "Not right is what the full checker refuses, onnxruntime does not load, or gives outputs more than "
        f"{TOLERANCE:.0e} off; for graphopt also what a second run changes."
    )
    header = (
        "model",
        *(f"CPU s: {name}" for name in (*(n for n in CELLS if n not in {RIVAL, OURS}), RIVAL, OURS)),
        *PARTS,
        "file MB",
        *(f"MB: {name}" for name in (*PEERS, OURS)),
    )
    return [
        *(text, table(("model", "original", *CELLS, ""), nodes)),
        *("## Cost", cost, table(header, costs)),
        *("## Result", result, table(_RESULT, results)),
        *("## Fusions that are gone", fusion, table(("model", "kernels"), broken) if broken else "None."),
        *("## Not right", wrong, table(("model", "tool", "why"), troubles) if troubles else "Nothing."),
    ]


_RESULT = ("model", "difference", "at", "speed-up", "multiplying: original", "graphopt", "part", "at most")


def _slower(row: Mapping[str, Cell]) -> bool:
    return OURS in row[COST] and row[COST][OURS] > row[COST][RIVAL]


def _nodes(cell: Cell) -> str:
    return "-" if "nodes" not in cell else f"{cell['nodes']}{' ✗' if trouble(cell) else ''}"


def _figure(cell: Cell, key: str, unit: float, form: str) -> str:
    return form.format(cell[key] / unit) if key in cell else "-"


def main() -> None:
    parser = arguments(__doc__)
    given = os.environ.get("GRAPHOPT_EXPORTS")
    default = Path(tempfile.gettempdir()) / "graphopt-benchmark"
    parser.add_argument("--models", type=Path, default=given, metavar="DIR", help="models to take [default: $GRAPHOPT_EXPORTS]")
    parser.add_argument("--only", default="", metavar="REGEX", help="only models whose name matches")
    parser.add_argument("--envs", type=Path, default=default / "envs", metavar="DIR", help="the peers' environments")
    parser.add_argument("--cache", type=Path, default=default / "cells", metavar="DIR", help="what is measured already")
    options = parser.parse_args()
    folders = [options.models, *([Path(zoo) / "models"] if (zoo := os.environ.get("GRAPHOPT_ZOO")) else [])]
    sources = [p for folder in folders if folder for p in sorted(folder.glob("*.onnx")) if re.search(options.only, p.stem)]
    if not sources:
        sys.exit("No models: give --models, or set GRAPHOPT_EXPORTS or GRAPHOPT_ZOO.")
    for name in PEERS:
        simplifiers.environment(name, options.envs)
    with tempfile.TemporaryDirectory() as work:
        bench = Bench(options.envs, options.cache, Path(work))
        rows = {source.stem: measured(bench, source, CELLS) for source in sources}
    publish("simplify", "`lossless` beside other simplifiers", page(rows), rows, options)


if __name__ == "__main__":
    main()
