"""Partitions and nodes left behind, before and after ``fit``, on targets that are not here; beside onnxruntime's own checker.

Dynamic dimensions are fixed first, at the sizes of generated inputs, as a phone wants it; then the lossless passes run (with
``simplify.freeze`` where initializers are listed as inputs), then ``fit`` for each target. Partitions are counted by the
tables of ``graphopt/operators``. Outputs are those of onnxruntime's CPU provider on generated inputs: the largest difference
from the original's, relative to the largest value. onnxruntime's checker (``check_onnx_model_mobile_usability``) counts by its
lists of operators alone: its own optimizations are off here, so that both count one graph. Needs GRAPHOPT_ZOO; further models
are given by ``--models``.
"""

from __future__ import annotations

import gc
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import onnx_ir as ir

from graphopt import model, partitions, targets
from graphopt.dataset.generate import generate
from graphopt.dataset.preflight import symbol
from graphopt.errors import GraphoptError
from graphopt.pipeline import optimize
from graphopt.recipe import parse
from graphopt.targets import Target

import common

NEURAL_NETWORK = "coreml, NeuralNetwork"
TARGETS: Mapping[str, Target] = {
    **{name: targets.load(name) for name in ("nnapi", "coreml")},
    NEURAL_NETWORK: targets.load("coreml").model_copy(update={"operators": "coreml-neuralnetwork"}),
    **{name: targets.load(name) for name in ("xnnpack", "qnn-htp", "tensorrt", "web-webgpu")},
}
CHECKED = {"nnapi": "NNAPI", "coreml": "MLProgram", NEURAL_NETWORK: "NeuralNetwork"}
"""Targets that onnxruntime's checker knows."""


@dataclass(frozen=True)
class Count:
    """Partitions and nodes left behind."""

    partitions: int
    left: int
    nodes: int

    def __str__(self) -> str:
        return f"{self.partitions} / {self.left}"


@dataclass(frozen=True)
class Row:
    """One model on one target."""

    model: str
    target: str
    exported: Count
    lossless: Count
    fit: Count
    difference: float | None
    """None: ``fit`` was undone."""
    why: str
    ours: tuple[int, int] | None = None
    """Partitions and nodes taken after ``fit``, and the same by onnxruntime's checker."""
    checker: tuple[int, int] | None = None
    stricter: str = ""


def main() -> None:
    parser = common.arguments(__doc__)
    parser.add_argument("--models", nargs="*", type=Path, default=[], help="further models")
    parser.add_argument("--only", nargs="*", metavar="NAME", help="these models only, by the file's name")
    options = parser.parse_args()
    paths = [*sorted((common.zoo() / "models").glob("*.onnx")), *options.models]
    rows: list[Row] = []
    for path in paths:
        if options.only and path.stem not in options.only:
            continue
        print(path.stem, file=sys.stderr, flush=True)
        try:
            rows += measure(path)
        except GraphoptError as error:
            print(f"{path.stem}: {error}", file=sys.stderr)
        gc.collect()
    parts = page(rows)
    publish_rows = [asdict(row) for row in rows]
    common.publish("partitions", "Partitions on targets that are not here", parts, publish_rows, options)


def page(rows: list[Row]) -> list[str]:
    """The parts of the page."""
    return [
        "Each cell is *partitions / nodes left behind*. **exported**: as the exporter wrote it, with its sizes fixed; "
        "**lossless**: after the lossless passes; **fit**: after `--recipe fit`. *difference*: of the outputs from those of "
        "the lossless file, relative to the largest value. One partition and nothing left behind is what a phone wants. The "
        "lossless passes may raise the count: they make one operator of several (HardSwish), which a target may lack; `fit` "
        "writes it out again.",
        *(f"## {name}\n\n{partition_table(name, rows)}" for name in TARGETS),
        f"## Beside onnxruntime's own checker\n\n{CHECKER}\n\n{checker_table(rows)}",
    ]


CHECKER = (
    "*partitions / nodes taken*, of the file after `fit`. The checker asks for the operator, fixed shapes and the rank; our "
    "table asks for types, constants and attributes too, so that it takes fewer nodes: the last column has the reasons. Where "
    "that column is empty both agree, or the checker takes fewer: an input that is left out, such as the regions of a Resize, "
    "is one of unknown shape to it."
)


def measure(path: Path) -> list[Row]:
    """One model on all targets."""
    with tempfile.TemporaryDirectory() as folder:
        fixed, lossless = Path(folder) / "fixed.onnx", Path(folder) / "lossless.onnx"
        settings = sizes(path)
        frozen = ["simplify.freeze=true"] if overridable(path) else []
        done = optimize(path, lossless, target="nnapi", settings=[*settings, *frozen], timing=False)
        if not done.passed:
            print(f"{path.stem}: {done.verdict}", file=sys.stderr)
            return []
        model.save(as_exported(path, settings), fixed)
        return [one(path, Path(folder), name, target) for name, target in TARGETS.items()]


def one(path: Path, folder: Path, name: str, target: Target) -> Row:
    """One model on one target."""
    counts = [count(model.load(folder / file), target) for file in ("fixed.onnx", "lossless.onnx")]
    out, lossless = folder / "fit.onnx", folder / "lossless.onnx"
    kept, why = False, "nothing stays behind"
    difference: float | None = 0.0
    if counts[-1].left:
        recipe = parse("summary: fit\npasses: [fit]", "fit")
        done = optimize(lossless, out, recipe=recipe, target=target, timing=False)
        kept, why = done.passes[-1].kept and done.passed, done.passes[-1].why
        outputs = done.validation.outputs if done.validation else {}
        difference = max((each.max_rel for each in outputs.values()), default=0.0) if kept else None
    file = out if kept else lossless
    result = model.load(file)
    ours = checker = None
    reasons = ""
    if name in CHECKED:
        cut = partitions.estimate(result, target)
        assert cut is not None
        ours, checker = (cut.partitions, cut.taken), by_checker(file, name)
        known = [f"{operator}: {why}" for operator, why, _ in cut.reasons if "no such operator" not in why]
        reasons = "; ".join(known[:3]) if ours != checker else ""
    return Row(path.stem, name, *counts, count(result, target), difference, why, ours, checker, reasons)


def sizes(path: Path) -> list[str]:
    """Options that fix each dynamic dimension at the size that generated inputs have."""
    loaded = model.load(path)
    runtime = targets.runtime(targets.load("cpu"))
    with runtime.open(path, targets.load("cpu")) as session:
        feed = next(generate(loaded, samples=1, runs=session.accepts).batches()).feed
    found = {}
    for spec in model.input_specs(loaded):
        for axis, dim in enumerate(spec.shape or ()):
            if not isinstance(dim, int):
                found[symbol(dim) or f"{spec.name}:{axis}"] = feed[spec.name].shape[axis]
    return [f"shapes.fix.{name}={size}" for name, size in found.items()]


def as_exported(path: Path, settings: list[str]) -> ir.Model:
    """The model with its sizes fixed, and nothing else done to it."""
    from graphopt.passes.shapes import FixOptions, FixShapes

    loaded = model.load(path)
    if settings:
        chosen = (setting.removeprefix("shapes.fix.").rpartition("=") for setting in settings)
        FixShapes(FixOptions(**{name: int(size) for name, _, size in chosen})).apply(loaded, None)  # type: ignore[arg-type]
    return loaded


def overridable(path: Path) -> bool:
    """Whether initializers are listed as inputs, so that a caller may replace them."""
    return any(value.is_graph_input() for value in model.load(path).graph.initializers.values())


def count(loaded: ir.Model, target: Target) -> Count:
    """How the target's provider would cut a model, by its table."""
    cut = partitions.estimate(loaded, target)
    assert cut is not None
    return Count(cut.partitions, len(cut.left), cut.nodes)


def by_checker(path: Path, name: str) -> tuple[int, int]:
    """Partitions and nodes taken, by onnxruntime's checker."""
    from onnxruntime.tools.mobile_helpers import usability_checker as checker
    from onnxruntime.tools.onnx_model_utils import ModelProtoWithShapeInfo

    proto = ModelProtoWithShapeInfo(path).model_with_shape_info
    if name == "nnapi":
        found = checker.check_nnapi_partitions(proto, require_fixed_input_sizes=True)
    else:
        listed = f"coreml_supported_{CHECKED[name].lower()}_ops.md"
        found = checker.check_coreml_partitions(proto, require_fixed_input_sizes=True, config_filename=listed)
    return found.num_partitions, found.num_supported_nodes


def partition_table(target: str, rows: list[Row]) -> str:
    """The counts of one target."""
    cells = []
    for row in rows:
        if row.target == target:
            outcome = "undone: " + row.why if row.difference is None else f"{row.difference:.1e}" if row.difference else "equal"
            cells.append((row.model, row.exported, row.lossless, f"**{row.fit}**", outcome))
    return common.table(("model", "exported", "lossless", "fit", "difference"), cells)


def checker_table(rows: list[Row]) -> str:
    """Our counts beside the checker's."""
    cells = []
    for row in rows:
        if row.ours is not None and row.checker is not None:
            pair = (f"{each[0]} / {each[1]}" for each in (row.ours, row.checker))
            cells.append((row.model, row.target, *pair, row.stricter))
    return common.table(("model", "target", "table", "checker", "why the table takes fewer"), cells)


if __name__ == "__main__":
    main()
