"""Models in a browser: the answers of WebAssembly and WebGPU, the time of a run, what int8 brings, and the noise of timing.

Each model of the zoo runs in a headless Chromium (``--target web-wasm``, ``web-webgpu``) on a generated sample and is compared
with onnxruntime's CPU provider; WebGPU computes on the processor and is not timed. *A/A* is the model timed against itself, as
two files are timed against each other. int8 is what ``graphopt optimize --recipe int8-static`` makes of the networks that have
data: once under the goal of size, which takes every site that can be, to show what integers do in a browser, and once under
that of latency. Needs GRAPHOPT_ZOO, Chromium and the npm package onnxruntime-web.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np

from graphopt import evaluate, model, targets, timing
from graphopt.contracts import Array, Feed, Runtime, Silent
from graphopt.dataset.generate import generate
from graphopt.errors import GraphoptError
from graphopt.runtimes.web import engine, npm

import common

INT8 = ("cifar_resnet20", "mobilenet_v1_025")
"""The networks that are quantized."""


def main() -> None:
    options = common.arguments(__doc__).parse_args()
    wasm, webgpu, cpu = (targets.load(name) for name in ("web-wasm", "web-webgpu", "cpu"))
    web, native = targets.runtime(wasm), targets.runtime(cpu)
    figures: list[dict[str, Any]] = []
    for path in sorted((common.zoo() / "models").glob("*.onnx")):
        with native.open(path, cpu) as session:
            feed = next(iter(generate(model.load(path), samples=1, runs=session.accepts).batches())).feed
            expected = session.run(feed)
            native_ms = 1000 * min(session.time(feed, 3)[0] for _ in range(5))
        same = timing.compare(
            lambda path=path: web.open(path, wasm),
            lambda path=path: web.open(path, wasm),
            feed,
            rng=np.random.default_rng(0),
            progress=Silent(),
        )
        figures.append(
            {
                "model": path.stem,
                "wasm": _difference(web, path, wasm, feed, expected),
                "webgpu": _difference(web, path, webgpu, feed, expected),
                "wasm_ms": same.before_ms,
                "native_ms": native_ms,
                "aa": [same.speedup, same.speedup_low, same.speedup_high],
                "clock": same.clock,
            }
        )
    quantized = [row for name in INT8 for row in _int8(name)]
    browser = engine.browser()[0].version
    text = (
        f"In {browser} with onnxruntime-web {npm.package()[1]}. *Difference*: the largest of any output, relative to its peak. "
        "*ms*: CPU time of the page's main thread, one thread. "
        "*A/A*: the speed-up of a file over itself, and its 95 % interval. What is called wrong, `optimize` and `compare` flag."
    )
    parts = [
        text,
        common.table(
            ("model", "difference, WebAssembly", "difference, WebGPU", "ms, WebAssembly", "ms, native", "slower by", "A/A"),
            [_cells(row) for row in figures],
        ),
        "## int8 in WebAssembly\n\n"
        "Speed relative to float32 in the same browser. "
        "*Goal size*: everything that can be quantized is, even where it is slower; "
        "*goal latency*, the default: sites are chosen by measurement on the target, and what does not pay is undone.",
        common.table(("model", "", "speed-up, 95 % interval", "top-1", "verdict"), [_int8_cells(row) for row in quantized]),
    ]
    common.publish("web", "Models in a browser", parts, {"models": figures, "int8": quantized}, options)


def _difference(web: Runtime, path: Path, target: targets.Target, feed: Feed, expected: dict[str, Array]) -> float | str:
    """The largest difference of any output from what the CPU provider answers, relative to the output's peak; else why not."""
    try:
        with web.open(path, target) as session:
            found = session.run(feed)
    except GraphoptError as error:
        return error.what
    return max(_relative(found[name], value) for name, value in expected.items())


def _relative(actual: Array, expected: Array) -> float:
    if expected.size == 0:
        return 0.0
    peak = float(np.max(np.abs(expected.astype(np.float64)))) or 1.0
    return float(np.max(np.abs(actual.astype(np.float64) - expected.astype(np.float64)))) / peak


def _int8(name: str) -> Iterator[dict[str, Any]]:
    """Quantize once with everything, and once as it comes."""
    source = common.zoo() / "models" / f"{name}.onnx"
    for how, more in (("goal size", ["--goal", "size"]), ("goal latency", [])):
        with ExitStack() as stack:
            out = Path(stack.enter_context(tempfile.TemporaryDirectory())) / "int8.onnx"
            asked = ("--target", "web-wasm", "--recipe", "int8-static", *common.DATA[name].given(), *more, "--json")
            ran = common.graphopt("optimize", source, "-o", out, *asked)
            report = json.loads(ran.stdout)
            timed, metric = report["timing"], report["validation"] and report["validation"]["metric"]
            step = next((each for each in report["passes"] if each["name"] == "quantize.static"), None)
            yield {
                "model": name,
                "int8": how,
                "speedup": timed and [timed["speedup"], timed["speedup_low"], timed["speedup_high"]],
                "top1": metric and [metric["before"], metric["after"]],
                "verdict": report["verdict"],
                "kept": bool(step and step["kept"]),
                "why": step["why"] if step else "",
            }


def _cells(row: dict[str, Any]) -> tuple[object, ...]:
    differences = [_judged(value) for value in (row["wasm"], row["webgpu"])]
    speedup, low, high = row["aa"]
    return (
        row["model"],
        *differences,
        f"{row['wasm_ms']:.3f}",
        f"{row['native_ms']:.3f}",
        f"{row['wasm_ms'] / row['native_ms']:.1f}×",
        f"{speedup:.3f} ({low:.3f} to {high:.3f})",
    )


def _judged(difference: float | str) -> str:
    """A difference, and whether graphopt calls the answers wrong for it."""
    if isinstance(difference, str):
        return difference
    return f"{difference:.1e}{'' if difference <= evaluate.TOLERANCES['float32'] else ': wrong'}"


def _int8_cells(row: dict[str, Any]) -> tuple[object, ...]:
    speed = "{:.2f} ({:.2f} to {:.2f})".format(*row["speedup"]) if row["speedup"] else ""
    top1 = "{:.3f} → {:.3f}".format(*row["top1"]) if row["top1"] else ""
    return (row["model"], row["int8"], speed, top1, f"{'kept' if row['kept'] else 'undone'}: {row['why']}")


if __name__ == "__main__":
    main()
