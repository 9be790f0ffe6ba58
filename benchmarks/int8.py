"""``graphopt optimize --recipe int8`` beside other quantizers: accuracy on labelled data, speed by CPU time, integer kernels.

Every tool gets the same calibration samples; peers get the file after ``graphopt optimize`` with its default recipe, whose
folded BatchNorm some of them need. Every result is compared with the float original on the same labelled samples and timed
against it, interleaved, on one thread. Needs GRAPHOPT_ZOO; ``--exports`` adds models with random weights.
"""

from __future__ import annotations

import tempfile
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from graphopt import dataset, evaluate, metrics, model, targets, timing
from graphopt.contracts import Silent
from graphopt.dataset.generate import generate

import common
import quantizers
import rescaled

SAMPLES = 128
"""Calibration samples."""
_CPU = targets.load("cpu")


@dataclass(frozen=True)
class Case:
    """A model with its data and its goal."""

    name: str
    source: str
    data: common.Data | None
    """None: random weights, and generated samples."""
    max_drop: float = 0.002
    goal: str = ""
    how: str = "static"
    """Which call of the peers."""


def _trained(name: str, max_drop: float, goal: str) -> Case:
    return Case(name, name, common.DATA[name], max_drop, goal)


ZOO = (
    _trained("mobilenet_v1_025", 0.01, "drop <= 0.010 at 1.1x"),
    _trained("mobilenet_v2", 0.005, "drop <= 0.005 at 2.0x"),
    _trained("squeezenet1_1", 0.005, "drop <= 0.005 at 2.2x"),
    _trained("cifar_resnet20", 0.002, "drop <= 0.002 at 2.0x"),
    _trained("cifar_resnet56", 0.002, "drop <= 0.002 at 2.1x"),
    Case("cifar_resnet20, channels rescaled by 2^U(-4,4)", "rescaled", common.CIFAR, goal="drop <= 0.002"),
)
EXPORTS = (
    Case("resnet50_legacy", "resnet50_legacy", None, max_drop=1.0, goal="3.0x, 53 of 53 Conv"),
    Case("bert_dynamo", "bert_dynamo", None, max_drop=0.001, goal="3.7x, cosine 0.999", how="dynamic"),
    Case("distilbert_dynamo", "distilbert_dynamo", None, max_drop=0.001, goal="3.7x, cosine 0.999", how="dynamic"),
)


def main() -> None:
    parser = common.arguments(__doc__)
    parser.add_argument("--exports", type=Path, metavar="FOLDER", help="where resnet50_legacy.onnx and others lie")
    parser.add_argument("--envs", type=Path, default=Path(".int8-environments"), help="where the peers are installed")
    parser.add_argument("--only", nargs="*", metavar="MODEL", help="these models only")
    parser.add_argument("--peers", nargs="*", default=[*quantizers.PEERS], help="these peers only")
    options = parser.parse_args()
    figures: dict[str, Any] = {}
    rows: list[Sequence[object]] = []
    with tempfile.TemporaryDirectory() as temporary:
        for case in (*ZOO, *(EXPORTS if options.exports else ())):
            if options.only and case.source not in options.only:
                continue
            found = measured(case, Path(temporary) / case.source, options)
            figures[case.name] = found
            rows += [row(case, tool, result) for tool, result in found.items()]
    header = ("model", "tool", "metric before", "drop", "speed", "Conv, MatMul in integers", "MB", "CPU s", "peak MB")
    text = (
        "*Speed* is against the float original, by CPU time on one thread, interleaved, with its 95 % interval. "
        "*In integers*: kernels of the result, as onnxruntime runs it, that convolve or multiply matrices in integers. "
        "*CPU s* and *peak* are of the whole call: for graphopt with calibration, choosing sites by timing them, evaluating "
        "and the final comparison; for the others the call alone. resnet50, bert and distilbert have random weights: there "
        "the metric is the cosine of the outputs."
    )
    common.publish("int8", "int8 beside other quantizers", [text, common.table(header, rows)], figures, options)


def measured(case: Case, folder: Path, options: Any) -> dict[str, dict[str, Any]]:
    """What each tool made of a case: drop, speed, integer kernels, seconds, bytes; or ``failed``."""
    folder.mkdir()
    source = _source(case, folder, options)
    samples, checks = _data(case, source, folder)
    found = {"graphopt": _ours(case, source, folder / "graphopt.onnx", samples, checks)}
    if not options.peers:
        return found
    folded = folder / "folded.onnx"
    common.graphopt("optimize", source, "-o", folded, "--timing", "off")
    for name in options.peers:
        if not getattr(quantizers.PEERS[name], case.how):
            continue
        out = folder / f"{name}.onnx"
        called = quantizers.call(name, case.how, options.envs, folded, out, samples)
        found[name] = called if "failed" in called else {**called, **_judged(case, source, out, checks)}
        print(case.name, name, found[name], flush=True)
    return found


def _source(case: Case, folder: Path, options: Any) -> Path:
    if case.data is None:
        return Path(options.exports / f"{case.source}.onnx")
    if case.source != "rescaled":
        return common.zoo() / "models" / f"{case.source}.onnx"
    changed = model.load(common.zoo() / "models" / "cifar_resnet20.onnx")
    rescaled.rescale(changed)
    return model.save(changed, folder / "rescaled.onnx").path


def _data(case: Case, source: Path, folder: Path) -> tuple[Path, dataset.Dataset]:
    """Calibration samples as an .npz that every tool reads, and what is evaluated on."""
    loaded = model.load(source)
    specs = model.input_specs(loaded)
    path = folder / "samples.npz"
    if case.data is None:
        with targets.runtime(_CPU).open(source, _CPU) as session:
            data = generate(loaded, dims={}, seed=0, runs=session.accepts).first(16)
    else:
        data = case.data.read(specs, calibration=True).first(SAMPLES)
    feeds = [batch.feed for batch in data.batches()]
    np.savez(path, **{name: np.concatenate([feed[name] for feed in feeds]) for name in feeds[0]})
    return path, dataset.open_dataset(str(path), specs) if case.data is None else case.data.read(specs)


def _ours(case: Case, source: Path, out: Path, samples: Path, checks: dataset.Dataset) -> dict[str, Any]:
    judged = ["--eval", samples, "--metric", "cosine"] if case.data is None else case.data.checked()
    asked = ("--recipe", "int8", "--data", samples, *judged, "--max-drop", case.max_drop)
    report, ran = common.optimized(source, "-o", out, *asked)
    if "failed" in report:
        return report
    print(case.name, report["verdict"], flush=True)
    return {
        "cpu_seconds": ran.cpu_seconds,
        "peak_bytes": report["peak_rss_bytes"],
        **_judged(case, source, out, checks),
        "passes": {one["name"]: one["why"] for one in report["passes"]},
    }


def _judged(case: Case, source: Path, out: Path, checks: dataset.Dataset) -> dict[str, Any]:
    """The metric's drop, the speed and the integer kernels of a result, all measured the same way for every tool."""
    runtime = targets.runtime(_CPU)
    feed = next(iter(checks.first(1).batches())).feed
    try:
        with runtime.open(source, _CPU) as before, runtime.open(out, _CPU) as after:
            chosen = metrics.choose("cosine" if case.data is None else None, before.outputs, checks.labelled)
            found = evaluate.compare(before, after, checks, chosen)
    except Exception as error:  # a peer's file may be anything
        return {"failed": f"does not run: {str(error).replace(str(out), out.name)[:160]}"}
    assert found.metric is not None
    timed = timing.compare(
        lambda: runtime.open(source, _CPU),
        lambda: runtime.open(out, _CPU),
        feed,
        limit_seconds=20,
        rng=np.random.default_rng(0),
        progress=Silent(),
    )
    kernels = Counter(kernel.integer for kernel in runtime.profile(out, _CPU, feed) if _is_heavy(kernel.op_type))
    return {
        "metric": found.metric.name,
        "before": found.metric.before,
        "drop": found.metric.drop,
        "speedup": timed.speedup,
        "speedup_low": timed.speedup_low,
        "speedup_high": timed.speedup_high,
        "integer": kernels[True],
        "heavy": kernels.total(),
        "bytes": model.file_bytes(out),
    }


def _is_heavy(op_type: str) -> bool:
    """Whether a kernel convolves or multiplies matrices."""
    return any(part in op_type for part in ("Conv", "Gemm", "MatMul", "Attention", "LSTM"))


def row(case: Case, tool: str, found: dict[str, Any]) -> Sequence[object]:
    """A line of the table."""
    name = f"{case.name} (goal: {case.goal})" if tool == "graphopt" else ""
    if "failed" in found:
        return (name, tool, "", common.cell(found["failed"]), "", "", "", "", "")
    return (
        name,
        tool,
        f"{found['metric']} {found['before']:.4f}",
        f"{found['drop']:.4f}",
        common.interval(found),
        f"{found['integer']} of {found['heavy']}",
        f"{found['bytes'] / 1e6:.2f}",
        f"{found['cpu_seconds']:.1f}",
        f"{found['peak_bytes'] / 1e6:.0f}",
    )


if __name__ == "__main__":
    main()
