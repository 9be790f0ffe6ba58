"""How often does the regression gate alarm without cause, and how often does it catch a model that is 10 % slower?

1. A small CNN is built, and a second one that computes the same with one node more (a MatMul before the pooling), whose width
   is calibrated until the CPU time is 1.10 times that of the first. The calibration is a long measurement that shares no code
   with the gate.
2. The gate (``graphopt.baseline.judge``, bound 5 %) compares the first model with a byte-identical copy of itself 200 times,
   and with the slower model 100 times, in random order. Each comparison has a fresh process, as in CI.

Wanted: at most 1 % false alarms and at least 95 % caught. The exit code is 1 if either is missed.
"""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import onnx

from graphopt import baseline, targets, timing
from graphopt.contracts import Session, Silent
from graphopt.environment import fingerprint
from graphopt.registry import runtime

from common import arguments, publish, table

CHANNELS, SIZE, LAYERS = 32, 32, 6
SLOWDOWN, TOLERANCE = 1.10, 0.01
KEY = "first.onnx"


@dataclass(frozen=True)
class Trial:
    """One comparison by the gate."""

    folder: Path
    candidate: str
    seed: int
    bound: float
    limit: float


@dataclass(frozen=True)
class Outcome:
    """What came of it, and the machine's load average at its end."""

    candidate: str
    slowdown: float
    low: float
    high: float
    alarm: bool
    seconds: float
    cpu_seconds: float
    load: float


def build(columns: int) -> onnx.ModelProto:
    """Six Conv and Relu, pooling; with ``columns`` > 0 a MatMul that turns each row of the last map into copies of its mean."""
    rng = np.random.default_rng(0)
    node, value = onnx.helper.make_node, onnx.helper.make_tensor_value_info
    nodes, weights, last, channels = [], [], "x", 3
    for i in range(LAYERS):
        weight = rng.standard_normal((CHANNELS, channels, 3, 3)).astype(np.float32) * 0.1
        weights.append(onnx.numpy_helper.from_array(weight, f"w{i}"))
        nodes += [node("Conv", [last, f"w{i}"], [f"c{i}"], pads=[1, 1, 1, 1]), node("Relu", [f"c{i}"], [f"r{i}"])]
        last, channels = f"r{i}", CHANNELS
    if columns:
        mean = np.full((SIZE, columns), 1 / SIZE, np.float32)
        weights.append(onnx.numpy_helper.from_array(mean, "mean"))
        nodes.append(node("MatMul", [last, "mean"], ["rows"], "added"))
        last = "rows"
    nodes += [node("GlobalAveragePool", [last], ["p"]), node("Flatten", ["p"], ["y"])]
    x = value("x", onnx.TensorProto.FLOAT, [1, 3, SIZE, SIZE])
    y = value("y", onnx.TensorProto.FLOAT, [1, CHANNELS])
    graph = onnx.helper.make_graph(nodes, "cnn", [x], [y], weights)
    return onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 20)], ir_version=10)


def feed() -> dict[str, np.ndarray]:
    return {"x": np.random.default_rng(1).standard_normal((1, 3, SIZE, SIZE)).astype(np.float32)}


def open_session(path: Path) -> Session:
    target = targets.load("cpu")
    return runtime(target.runtime).open(path, target)


# ----------------------------------------------------------------------------------------------------------- calibration


def cpu_ratio(before: Path, after: Path, blocks: int) -> tuple[float, float]:
    """Ratio of the mean CPU times, outliers left out, and its standard error over blocks of newly opened sessions."""
    rng, inputs = np.random.default_rng(), feed()
    times = np.empty((blocks, 2, 30))
    for block in times:
        sessions = {side: open_session((before, after)[side]) for side in rng.permutation(2)}
        for session in sessions.values():
            for _ in range(5):
                session.run(inputs)
        for i in range(block.shape[1]):
            for side in rng.permutation(2):
                sessions[side].run(inputs)
                start = time.thread_time()
                for _ in range(3):
                    sessions[side].run(inputs)
                block[side, i] = time.thread_time() - start
    middle = np.sort(times, axis=2)[:, :, 3:-10].mean(axis=2)  # [block, side]
    ratios = np.log(middle[:, 1] / middle[:, 0])
    return float(np.exp(ratios.mean())), float(ratios.std() / np.sqrt(blocks))


def calibrate(folder: Path) -> tuple[int, float, float]:
    """Write both models; the number of columns, the true ratio and its standard error."""
    first, slower = folder / KEY, folder / "slower.onnx"
    onnx.save(build(0), first)
    columns = 96
    for _ in range(12):
        onnx.save(build(columns), slower)
        ratio, _ = cpu_ratio(first, slower, 60)
        say(f"calibration: {columns} columns, ratio {ratio:.4f}")
        if abs(ratio - SLOWDOWN) < TOLERANCE / 3:
            ratio, error = cpu_ratio(first, slower, 200)
            say(f"calibration: {columns} columns, ratio {ratio:.4f} +- {error:.4f} in a long measurement")
            if abs(ratio - SLOWDOWN) + 2 * error < TOLERANCE / 2:
                return columns, ratio, error
        columns = max(1, round(columns * (SLOWDOWN - 1) / max(ratio - 1, 0.01)))
    raise SystemExit("the slower model could not be calibrated: is the machine too busy?")


# ----------------------------------------------------------------------------------------------------------------- trials


def run_trial(trial: Trial) -> Outcome:
    start, cpu = time.perf_counter(), time.process_time()
    result = baseline.judge(
        baseline.load(trial.folder / "baseline.json"),
        KEY,
        trial.folder / trial.candidate,
        machine=fingerprint(),
        target="cpu",
        max_regression=trial.bound,
        open_session=open_session,
        feed=feed(),
        versions={},
        limit_seconds=trial.limit,
        rng=np.random.default_rng(trial.seed),
        progress=Silent(),
    )
    seconds, cpu_seconds = time.perf_counter() - start, time.process_time() - cpu
    load = os.getloadavg()[0]
    return Outcome(trial.candidate, result.slowdown, result.low, result.high, result.failed, seconds, cpu_seconds, load)


def run_all(folder: Path, counts: dict[str, int], bound: float, limit: float) -> list[Outcome]:
    latency = timing.measure(lambda: open_session(folder / KEY), feed(), limit_seconds=2, progress=Silent())
    baseline.save(folder / "baseline.json", fingerprint(), {KEY: baseline.entry(folder / KEY, "cpu", latency, {})})
    names = [name for name, count in counts.items() for _ in range(count)]
    names = [names[i] for i in np.random.default_rng(0).permutation(len(names))]
    trials = [Trial(folder, name, seed, bound, limit) for seed, name in enumerate(names)]
    outcomes: list[Outcome] = []
    with get_context("spawn").Pool(1, maxtasksperchild=1) as pool:
        for outcome in pool.imap(run_trial, trials):
            outcomes.append(outcome)
            interval = f"{outcome.slowdown:.4f} [{outcome.low:.4f}, {outcome.high:.4f}]"
            say(f"{len(outcomes)}/{len(trials)} {outcome.candidate} {interval} {'alarm' if outcome.alarm else ''}")
    return outcomes


# ----------------------------------------------------------------------------------------------------------------- report


def row(name: str, true: str, outcomes: list[Outcome], wanted: str) -> list[object]:
    low, middle, high = np.quantile([outcome.slowdown for outcome in outcomes], [0.05, 0.5, 0.95])
    wall, cpu = (np.median([getattr(outcome, field) for outcome in outcomes]) for field in ("seconds", "cpu_seconds"))
    alarms = sum(outcome.alarm for outcome in outcomes)
    spread = f"{middle:.3f} ({low:.3f} to {high:.3f})"
    return [name, true, len(outcomes), alarms, wanted, spread, f"{wall:.2f} s", f"{cpu:.2f} s"]


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def main() -> int:
    parser = arguments(__doc__)
    parser.add_argument("--same", type=int, default=200, help="comparisons of the model with itself")
    parser.add_argument("--slower", type=int, default=100, help="comparisons with the model that is 10 %% slower")
    parser.add_argument("--max-regression", default="5%", help="bound of the gate")
    parser.add_argument("--limit", type=float, default=2.0, help="seconds that one comparison may take")
    options = parser.parse_args()
    bound = baseline.parse_bound(options.max_regression)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        columns, ratio, error = calibrate(folder)
        shutil.copyfile(folder / KEY, folder / "same.onnx")
        outcomes = run_all(folder, {"same.onnx": options.same, "slower.onnx": options.slower}, bound, options.limit)
    same = [outcome for outcome in outcomes if outcome.candidate == "same.onnx"]
    slower = [outcome for outcome in outcomes if outcome.candidate == "slower.onnx"]
    allowed, wanted = options.same // 100, -(-options.slower * 95 // 100)
    reached = sum(outcome.alarm for outcome in same) <= allowed and sum(outcome.alarm for outcome in slower) >= wanted
    load = [outcome.load for outcome in outcomes]
    setting = (
        f"`baseline.judge`, which is what `graphopt bench --baseline` calls, with a bound of {options.max_regression} and at "
        f"most {options.limit:g} s a comparison: a CNN of {LAYERS} layers against a copy of itself, and against the same "
        f"network with an added MatMul of {columns} columns, which makes it {ratio:.4f} times slower (CPU time; standard error "
        f"{error:.4f}; measured separately). Each comparison has a fresh process. The machine's load average was "
        f"{min(load):.1f} to {max(load):.1f}."
    )
    header = ["candidate", "true slow-down", "comparisons", "alarms", "wanted", "measured: median (5 % to 95 %)", "wall", "CPU"]
    rows = [
        row("the same file", "1", same, f"at most {allowed}"),
        row("one node more", f"{ratio:.3f}", slower, f"at least {wanted}"),
    ]
    figures = {"bound": bound, "limit": options.limit, "true_slowdown": ratio, "standard_error": error, "columns": columns}
    figures |= {"reached": reached, "comparisons": [asdict(outcome) for outcome in outcomes]}
    parts = [setting, table(header, rows), "Reached." if reached else "**Not reached.**"]
    publish("regression_gate", "The regression gate: false alarms and misses", parts, figures, options)
    return 0 if reached else 1


if __name__ == "__main__":
    raise SystemExit(main())
