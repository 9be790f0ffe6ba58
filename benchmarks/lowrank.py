"""``graphopt optimize --recipe lowrank``: multiply-accumulates, accuracy and speed; data-aware factors beside the plain SVD.

No labels are given to the pass: it sees the calibration samples, the metric is taken on labelled ones. Speed is against the
same model after the lossless recipe, so that it is the factors' own. Needs GRAPHOPT_ZOO; ``--wide FOLDER`` adds the network
that ``wide_digits.py`` trains, ``--exports FOLDER`` transformers with random weights, for structure and speed alone.
``--refit`` makes docs/refit.md instead: accuracy with and without the fitting of layers one after the other, nothing timed.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from graphopt import model, targets
from graphopt.dataset.generate import generate
from graphopt.passes.factorize.decompose import decompose

import common

_SAMPLES = 8
"""Generated samples for models with random weights."""


@dataclass(frozen=True)
class Case:
    """A model with its goal; ``macs``: the part that may remain, None: whatever pays within ``max_drop``."""

    name: str
    source: Path
    data: common.Data
    macs: float | None
    goal: str
    max_drop: float = 1.0
    more: tuple[str, ...] = ()


def main() -> None:
    parser = common.arguments(__doc__)
    parser.add_argument("--wide", type=Path, metavar="FOLDER", help="what wide_digits.py wrote")
    parser.add_argument("--exports", type=Path, metavar="FOLDER", help="where bert_dynamo.onnx and others lie")
    parser.add_argument("--only", nargs="*", metavar="MODEL", help="these models only")
    parser.add_argument("--page", default="lowrank", metavar="NAME", help="the page in docs/ (default: lowrank)")
    parser.add_argument("--measured", type=Path, metavar="FILE", help="what an earlier run wrote with --json")
    parser.add_argument("--refit", action="store_true", help="compare with and without the fitting of layers")
    options = parser.parse_args()
    if options.refit:
        _refit(options)
        return
    measured = json.loads(options.measured.read_text())["figures"] if options.measured else {}
    figures: dict[str, Any] = {"svd": _ranks()}
    rows: list[Sequence[object]] = []
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        for number, case in enumerate(_cases(options, folder)):
            if options.only and case.name not in options.only:
                continue
            found = measured.get(f"{case.name} {case.macs}") or _measured(case, folder / str(number))
            figures[f"{case.name} {case.macs}"] = found
            rows.append(_row(case, found))
            print(case.name, found, flush=True)
    text = (
        "*MACs* are what remains of the model's multiply-accumulates. *Speed* is against the model after the lossless recipe, "
        "by CPU time on one thread, interleaved, with its 95 % interval. Transformers have random weights: their metric is the "
        "cosine of the outputs on the calibration samples, which says nothing of accuracy."
    )
    header = ("model", "goal", "MACs", "metric before", "drop", "speed", "MB before", "MB after", "layers", "CPU s", "peak MB")
    svd = [(rank, f"{plain:.4f}", f"{aware:.4f}") for rank, plain, aware in figures["svd"]]
    parts = [text, common.table(header, rows), _RANKS, common.table(("rank", "plain SVD", "on data"), svd)]
    common.publish(options.page, "Low rank: what it saves and costs", parts, figures, options)


_RANKS = (
    "The part of a layer's output energy that is lost, on samples that the factors were not made from: the 64 channels of a "
    "convolution's input mixed so that their energies fall geometrically, a random weight of 64 by 96."
)


_PARTS = (0.7, 0.55, 0.4)
"""Of the multiply-accumulates that remain, in the comparison with and without refit."""
_WIDE_PARTS = (0.15,)


def _refit(options: Any) -> None:
    """Accuracy and CPU seconds with and without refit."""
    figures: dict[str, Any] = {}
    rows: list[Sequence[object]] = []
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        cases = {case.name: case for case in _cases(options, folder) if not case.data.images and not case.more}
        for name, case in cases.items():
            if options.only and name not in options.only:
                continue
            for macs in _PARTS if name.startswith("cifar") else _WIDE_PARTS:
                found = []
                for on in ("false", "true"):
                    more = ("--timing", "off", "--set", f"factorize.refit={on}")
                    found.append(_measured(replace(case, macs=macs, max_drop=1.0, more=more), folder / f"{name} {macs} {on}"))
                figures[f"{name} {macs}"] = found
                without, fitted = found
                before, *after = (found[0]["metric"]["before"], *(one["metric"]["after"] for one in found))
                spent = [f"{one['cpu_seconds']:.0f}" for one in found]
                rows.append((name, f"{fitted['macs']:.3f}", *(f"{one:.4f}" for one in (before, *after)), *spent))
                print(*rows[-1], without["macs"], flush=True)
    text = (
        "Top-1 on labelled samples that nothing was fitted to, at the same ranks: *without* the layers' factors stand as "
        "each was found by itself, *with refit* the second factors and the layers behind them were then fitted one after "
        "the other to what the original gives (`factorize.refit`, the default). The standard error of the two is about "
        "0.008 on CIFAR-10's 1,000 images; CPU seconds are of the whole command, untimed."
    )
    header = ("model", "MACs", "top-1 before", "without", "with refit", "CPU s without", "CPU s with")
    common.publish("refit", "Low rank with and without refit", [text, common.table(header, rows)], figures, options)


def _ranks() -> list[tuple[int, float, float]]:
    """Loss by rank of the plain SVD and of the factors for the data."""
    random = np.random.default_rng(0)
    mix = random.standard_normal((64, 64)) * 0.9 ** np.arange(64)[:, np.newaxis]
    seen, unseen = (random.standard_normal((count, 64)) @ mix for count in (2000, 2000))
    weight = random.standard_normal((64, 96))
    total = float(np.square(unseen @ weight).sum())
    found = []
    for rank in (4, 8, 12, 16, 24, 32):
        lost = []
        for gram in (None, seen.T @ seen):
            factors = decompose(weight, gram, rank)
            lost.append(float(np.square(unseen @ (weight - factors.a @ factors.b)).sum()) / total)
        found.append((rank, lost[0], lost[1]))
    return found


def _cases(options: Any, folder: Path) -> list[Case]:
    models = common.zoo() / "models"
    cases = [
        Case(name, models / f"{name}.onnx", common.DATA[name], macs, f"-{100 * (1 - macs):.0f} % MACs, drop <= {drop}")
        for name in ("cifar_resnet20", "cifar_resnet56")
        for macs, drop in ((0.8, "0.010"), (0.7, "0.025"))
    ]
    cases += [
        Case(name, models / f"{name}.onnx", common.DATA[name], None, "never slower", 0.01)
        for name in ("mobilenet_v1_025", "mobilenet_v2")
    ]
    if options.wide:
        wide = options.wide.resolve()
        source, data = wide / "wide_digits.onnx", common.Data(str(wide / "eval.npz"), str(wide / "calib.npz"))
        goals = {0.55: "-45 % MACs, drop <= 0.010, 1.3x", None: "as fast as a drop of 0.010 allows"}
        cases += [Case("wide_digits", source, data, macs, goal, max_drop=0.01) for macs, goal in goals.items()]
    for name in ("bert_dynamo", "gpt2_dynamo", "llama_dynamo", "vit_dynamo") if options.exports else ():
        if options.only and name not in options.only:
            continue
        source = options.exports / f"{name}.onnx"
        samples = str(_generated(source, folder / f"{name}.npz"))
        more = ("--metric", "cosine")
        goal = "-30 % MACs, 0.7 of 1.43x"
        cases.append(Case(name, source, common.Data(samples, samples), 0.7, goal, max_drop=2.0, more=more))
    return cases


def _generated(source: Path, path: Path) -> Path:
    """Samples for a model with random weights."""
    target, loaded = targets.load("cpu"), model.load(source)
    with targets.runtime(target).open(source, target) as session:
        data = generate(loaded, dims={}, seed=0, runs=session.accepts).first(_SAMPLES)
    feeds = [batch.feed for batch in data.batches()]
    np.savez(path, **{name: np.concatenate([feed[name] for feed in feeds]) for name in feeds[0]})
    return path


def _measured(case: Case, folder: Path) -> dict[str, Any]:
    folder.mkdir()
    lossless, out = folder / "lossless.onnx", folder / "out.onnx"
    common.graphopt("optimize", case.source, "-o", lossless, "--timing", "off")
    source = lossless if lossless.exists() else case.source
    goal = ["--set", f"factorize.macs={case.macs}"] if case.macs else []
    asked = ("--recipe", "lowrank", *case.data.given(), "--max-drop", case.max_drop)
    report, ran = common.optimized(source, "-o", out, *asked, *goal, *case.more)
    peak = report.get("peak_rss_bytes", 0)  # its own: a child's begins at its parent's
    cost = {"cpu_seconds": ran.cpu_seconds, "peak_bytes": peak}
    if "failed" in report:
        return {"failed": report["failed"], **cost}
    step = next(one for one in report["passes"] if one["name"] == "factorize")
    if not step["kept"]:
        return {"failed": step["why"], **cost}
    before, after = report["input"], report["output"]
    return {
        "macs": after["macs"] / before["macs"] if before["macs"] and after["macs"] else None,
        "metric": report["validation"]["metric"],
        "speed": [report["timing"][key] for key in ("speedup", "speedup_low", "speedup_high")] if report["timing"] else None,
        "bytes": [before["bytes"], after["bytes"]],
        "layers": step["why"].split(",")[0],
        **cost,
    }


def _row(case: Case, found: dict[str, Any]) -> Sequence[object]:
    cost = (f"{found['cpu_seconds']:.0f}", f"{found['peak_bytes'] / 1e6:.0f}")
    if "failed" in found:
        return (case.name, case.goal, f"declined: {common.cell(found['failed'])}", *[""] * 6, *cost)
    metric, (speed, low, high) = found["metric"], found["speed"]
    return (
        case.name,
        case.goal,
        f"{found['macs']:.3f}" if found["macs"] else "dynamic sizes",
        f"{metric['name']} {metric['before']:.4f}",
        f"{metric['drop']:.4f}",
        f"{speed:.2f} ({low:.2f} to {high:.2f})",
        *(f"{size / 1e6:.2f}" for size in found["bytes"]),
        found["layers"],
        *cost,
    )


if __name__ == "__main__":
    main()
