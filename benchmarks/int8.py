"""``graphopt optimize --recipe int8`` beside other quantizers: accuracy on labelled data, speed by CPU time, integer kernels.

Every tool gets the same calibration samples; peers get the file after ``graphopt optimize`` with its default recipe, whose
folded BatchNorm some of them need. Every result is compared with the float original on the same labelled samples and timed
against it, interleaved, on one thread. Needs GRAPHOPT_ZOO; ``--exports`` adds models with random weights.
"""

from __future__ import annotations

import json
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
    calibration: str
    labelled: str
    images: str = ""
    max_drop: float = 0.002
    goal: str = ""
    how: str = "static"
    """Which call of the peers."""


_IMAGENET = ("data/imagenet/calib", "data/imagenet/eval")
_CIFAR = ("data/cifar10/calib.npz", "data/cifar10/eval.npz")
_TORCH = "crop=224,scale=255,mean=0.485:0.456:0.406,std=0.229:0.224:0.225,channels=rgb"
ZOO = (
    Case("mobilenet_v1_025", "mobilenet_v1_025", *_IMAGENET, _TORCH, 0.01, "drop <= 0.010 at 1.1x"),
    Case(
        "mobilenet_v2",
        "mobilenet_v2",
        *_IMAGENET,
        "crop=224,scale=127.5,mean=1,std=1,label-offset=1,channels=rgb",
        0.005,
        "drop <= 0.005 at 2.0x",
    ),
    Case(
        "squeezenet1_1",
        "squeezenet1_1",
        *_IMAGENET,
        "crop=224,scale=1,channels=bgr,mean=104:117:123,std=1",
        0.005,
        "drop <= 0.005 at 2.2x",
    ),
    Case("cifar_resnet20", "cifar_resnet20", *_CIFAR, goal="drop <= 0.002 at 2.0x"),
    Case("cifar_resnet56", "cifar_resnet56", *_CIFAR, goal="drop <= 0.002 at 2.1x"),
    Case("cifar_resnet20, channels rescaled by 2^U(-4,4)", "rescaled", *_CIFAR, goal="drop <= 0.002"),
)
EXPORTS = (
    Case("resnet50_legacy", "resnet50_legacy", "", "", max_drop=1.0, goal="3.0x, 53 of 53 Conv"),
    Case("bert_dynamo", "bert_dynamo", "", "", max_drop=0.001, goal="3.7x, cosine 0.999", how="dynamic"),
    Case("distilbert_dynamo", "distilbert_dynamo", "", "", max_drop=0.001, goal="3.7x, cosine 0.999", how="dynamic"),
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
    if case in EXPORTS:
        return Path(options.exports / f"{case.source}.onnx")
    if case.source != "rescaled":
        return common.zoo() / "models" / f"{case.source}.onnx"
    changed = model.load(common.zoo() / "models" / "cifar_resnet20.onnx")
    rescaled.rescale(changed)
    return model.save(changed, folder / "rescaled.onnx").path


def _data(case: Case, source: Path, folder: Path) -> tuple[Path, Path]:
    """Calibration samples as an .npz that every tool reads, and what is evaluated on."""
    loaded = model.load(source)
    specs = model.input_specs(loaded)
    path = folder / "samples.npz"
    if case in EXPORTS:
        with targets.runtime(_CPU).open(source, _CPU) as session:
            data = generate(loaded, dims={}, seed=0, runs=session.accepts).first(16)
    else:
        data = dataset.open_dataset(str(common.zoo() / case.calibration), specs, images=case.images or None).first(SAMPLES)
    feeds = [batch.feed for batch in data.batches()]
    np.savez(path, **{name: np.concatenate([feed[name] for feed in feeds]) for name in feeds[0]})
    return path, path if case in EXPORTS else common.zoo() / case.labelled


def _ours(case: Case, source: Path, out: Path, samples: Path, checks: Path) -> dict[str, Any]:
    more = ["--images", case.images] if case.images else []
    more += ["--metric", "cosine"] if case in EXPORTS else []
    arguments = ("--recipe", "int8", "--data", samples, "--eval", checks, "--max-drop", case.max_drop, "--json", *more)
    ran = common.graphopt("optimize", source, "-o", out, *arguments)
    if not out.exists():
        return {"failed": f"exit {ran.returncode}: {(ran.stderr or json.loads(ran.stdout)['verdict']).strip()[:200]}"}
    report = json.loads(ran.stdout)
    print(case.name, report["verdict"], flush=True)
    return {
        "cpu_seconds": ran.cpu_seconds,
        "peak_bytes": report["peak_rss_bytes"],
        **_judged(case, source, out, checks),
        "passes": {one["name"]: one["why"] for one in report["passes"]},
    }


def _judged(case: Case, source: Path, out: Path, checks: Path) -> dict[str, Any]:
    """The metric's drop, the speed and the integer kernels of a result, all measured the same way for every tool."""
    runtime = targets.runtime(_CPU)
    specs = model.input_specs(model.load(source))
    data = dataset.open_dataset(str(checks), specs, images=case.images or None)
    feed = next(iter(data.first(1).batches())).feed
    try:
        with runtime.open(source, _CPU) as before, runtime.open(out, _CPU) as after:
            chosen = metrics.choose("cosine" if case in EXPORTS else None, before.outputs, data.labelled)
            found = evaluate.compare(before, after, data, chosen)
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
        return (name, tool, "", found["failed"].replace("|", "/").replace("\n", " "), "", "", "", "", "")
    return (
        name,
        tool,
        f"{found['metric']} {found['before']:.4f}",
        f"{found['drop']:.4f}",
        f"{found['speedup']:.2f} ({found['speedup_low']:.2f} to {found['speedup_high']:.2f})",
        f"{found['integer']} of {found['heavy']}",
        f"{found['bytes'] / 1e6:.2f}",
        f"{found['cpu_seconds']:.1f}",
        f"{found['peak_bytes'] / 1e6:.0f}",
    )


if __name__ == "__main__":
    main()
