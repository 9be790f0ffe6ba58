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
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from graphopt import model, targets
from graphopt.contracts import SessionOptions
from graphopt.cost import node_macs
from graphopt.dataset.preflight import is_fixed
from graphopt.model import file_sha256
from graphopt.registry import runtime

import simplifiers
from common import ROOT, arguments, publish, table
from simplifiers import ALONE, CHAIN, FROZEN, OURS, PEERS

TOLERANCE = 2e-6
REPEATS, ENOUGH_SECONDS = 3, 5.0
CELLS = (*PEERS, "chain", OURS)
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
    for name in (*cells, ALONE, *([FROZEN] if lists_initializers(source) else [])):
        version = "-".join(simplifiers.version(tool) for tool in (CHAIN if name == "chain" else [name]))
        row[name] = _cached(folder / f"{name}-{version}-{judge}.json", partial(_cell, bench, source, name))
        print(f"{source.stem} {name}: {row[name].get('nodes', row[name].get('failed'))}", file=sys.stderr, flush=True)
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
        if "failed" in taken or name == ALONE:
            return taken
        cell = taken | _judged(source, out, *(["--twice"] if name in {OURS, FROZEN} else []))
        if name in {OURS, FROZEN} and "wrong" not in cell:
            cell["latency"] = simplifiers.last_line([sys.executable, _JUDGE, source, out, "--time"])
            cell["macs"] = multiplications(out)
        return cell


_JUDGE = ROOT / "benchmarks" / "judging.py"


def multiplications(path: Path) -> int | None:
    """How many a run takes for one sample; None where other sizes than that of the batch are dynamic."""
    loaded = model.load(path)
    if any(not is_fixed(dim) for spec in model.input_specs(loaded) for dim in (spec.shape or (None, None))[1:]):
        return None
    return sum(node_macs(loaded).values())


def fastest_conv(bench: Bench) -> float:
    """Multiplications a millisecond of a convolution that suits the machine: 3 x 3, 128 channels, 56 x 56 places."""
    rng = np.random.default_rng(0)
    w = onnx.numpy_helper.from_array(rng.standard_normal((128, 128, 3, 3)).astype(np.float32), "w")
    x, y = (onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [1, 128, 56, 56]) for name in "xy")
    node = onnx.helper.make_node("Conv", ["x", "w"], ["y"], pads=[1, 1, 1, 1])
    path = bench.work / "conv.onnx"
    graph, opset = onnx.helper.make_graph([node], "conv", [x], [y], [w]), onnx.helper.make_opsetid("", 20)
    onnx.save(onnx.helper.make_model(graph, opset_imports=[opset], ir_version=10), path)
    target = targets.load("cpu")
    with runtime(target.runtime).open(path, target, SessionOptions(threads=1)) as session:
        feed = {"x": rng.standard_normal((1, 128, 56, 56)).astype(np.float32)}
        session.run(feed)
        took = []
        for _ in range(50):
            start = time.process_time()
            session.run(feed)
            took.append(time.process_time() - start)
    return 128 * 128 * 9 * 56 * 56 / min(took) / 1000


def _judged(source: Path, out: Path, *flags: str) -> Cell:
    judged = simplifiers.last_line([sys.executable, _JUDGE, source, out, *flags])
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


def page(rows: Mapping[str, Mapping[str, Cell]], rate: float) -> list[str]:
    nodes, costs, results, troubles = [], [], [], []
    for name, row in rows.items():
        ours, least = row[OURS], best(row)
        more = least is not None and "nodes" in ours and ours["nodes"] > least
        note = (
            f"{'**more**; ' if more else ''}{_nodes(row[FROZEN])} with freeze" if FROZEN in row else "**more**" if more else ""
        )
        nodes.append((name, row["original"].get("nodes", "?"), *(_nodes(row[name]) for name in CELLS), note))
        costs.append((name, *(_figure(row[n], "cpu_seconds", 1, "{:.2f}") for n in CELLS)))
        costs[-1] += (_figure(row[ALONE], "cpu_seconds", 1, "{:.2f}"), f"{row['original'].get('bytes', 0) / 1e6:,.0f}")
        costs[-1] += tuple(_figure(row[n], "peak_bytes", 1e6, "{:,.0f}") for n in (*PEERS, OURS))
        latency = ours.get("latency", {})
        speed = "{speedup:.3f} ({speedup_low:.3f} to {speedup_high:.3f})".format(**latency) if "speedup" in latency else "-"
        sizes = ours.get("max_rel", {})
        bound = f"{latency['before_ms'] * rate / ours['macs']:.2f}" if ours.get("macs") and "before_ms" in latency else "-"
        results.append((name, ", ".join(f"{value:.0e}" for value in sizes.values()), ", ".join(sizes), speed, bound))
        judged = {tool: cell for tool, cell in row.items() if tool != ALONE}
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
        "CPU seconds of the call from file to file, without the imports (the best of up to three calls), and the most memory "
        "in MB beyond the imports. graphopt takes more CPU seconds than onnxsim, which is written in C++, on "
        f"{sum(_slower(row) for row in rows.values())} of {len(rows)} models. *load, save*: of them, reading, checking "
        "and writing the file without any rewriting."
    )
    result = (
        "graphopt's file against the original: the largest difference of an output relative to its peak, at the sizes named, "
        "without onnxruntime's optimizations; and original time / new time with them, one thread, CPU time, 95 % interval. "
        "*At most*: what the speed-up would be if graphopt's file did nothing but its multiplications, at "
        f"{2 * rate / 1e6:,.0f} GFLOP/s, as a Conv of 3 x 3 with 128 channels does here; for models of a fixed size."
    )
    wrong = (
        "Not right is what the full checker refuses, onnxruntime does not load, or gives outputs more than "
        f"{TOLERANCE:.0e} off; for graphopt also what a second run changes."
    )
    header = (
        "model",
        *(f"CPU s: {name}" for name in CELLS),
        "load, save",
        "file MB",
        *(f"MB: {name}" for name in (*PEERS, OURS)),
    )
    return [
        *(text, table(("model", "original", *CELLS, ""), nodes)),
        *("## Cost", cost, table(header, costs)),
        *("## Result", result, table(("model", "difference", "at", "speed-up", "at most"), results)),
        *("## Not right", wrong, table(("model", "tool", "why"), troubles) if troubles else "Nothing."),
    ]


def _slower(row: Mapping[str, Cell]) -> bool:
    ours, theirs = row[OURS], row["onnxsim"]
    return "cpu_seconds" in ours and "cpu_seconds" in theirs and round(ours["cpu_seconds"], 2) > round(theirs["cpu_seconds"], 2)


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
        rate = fastest_conv(bench)
    figures = rows | {"multiplications a millisecond": rate}
    publish("simplify", "`lossless` beside other simplifiers", page(rows, rate), figures, options)


if __name__ == "__main__":
    main()
