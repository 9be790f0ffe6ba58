"""ONNX's backend test suite through ``lossless``: every model must give the outputs that the suite expects, or none at all.

The suite ships in the package ``onnx`` (``onnx.backend.test``): node cases, simple ones, those converted from PyTorch, and
the models of which only the graph is in the package (their weights are made by the graph). The judge is onnxruntime; where
it cannot run a model in the first place, ONNX's reference implementation is, and where neither reproduces what the suite
expects, the model must still come out valid. Each worker is a process that may crash without ending the run.

The exit code is 1 if anything is wrong or crashed.
"""

from __future__ import annotations

import argparse
import collections
import json
import math
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from common import ROOT, arguments, publish, table

KINDS = ("node", "simple", "pytorch-converted", "pytorch-operator", "light")
SECONDS_A_CASE = 300
ONNXRUNTIME_IR = 13
"""The newest file format that onnxruntime reads; nothing in the suite's models needs a newer one."""
Feeds = list[tuple[list[Any], list[Any]]]
Run = Callable[[onnx.ModelProto, list[Any]], list[Any]]


# ------------------------------------------------------------------------------------------------------------- the cases


def cases(kind: str) -> dict[str, Any]:
    """The cases of one kind, by name."""
    from onnx.backend.test import loader

    if kind == "light":
        return {path.stem: path for path in sorted((Path(loader.DATA_DIR) / "light").glob("*.onnx"))}
    return {case.name: case for case in sorted(loader.load_model_tests(kind=kind), key=lambda case: case.name)}


def opened(case: Any) -> tuple[onnx.ModelProto, Feeds, float, float]:
    """The model, pairs of inputs and expected outputs, and how far outputs may be off: relative, absolute."""
    if isinstance(case, Path):
        model = onnx.load(case)
        return model, [_made_up(case, model)], 1e-3, 1e-5
    if case.model is not None:
        feeds = [([_array(x) for x in inputs], [_array(y) for y in outputs]) for inputs, outputs in case.data_sets]
        return case.model, feeds, case.rtol, case.atol
    folder = Path(case.model_dir)
    model = onnx.load(folder / "model.onnx")
    sets = [
        (_stored(data, "input", model.graph.input), _stored(data, "output", model.graph.output))
        for data in sorted(folder.glob("test_data_set*"))
    ]
    return model, sets, case.rtol, case.atol


def _made_up(path: Path, model: onnx.ModelProto) -> tuple[list[Any], list[Any]]:
    """What the suite feeds to the models without data, and the outputs that are stored beside them."""
    from onnx.backend.test.runner import Runner

    given = {tensor.name for tensor in model.graph.initializer}
    inputs = [Runner.generate_dummy_data(x) for x in model.graph.input if x.name not in given]
    stored = [path.with_name(f"{path.stem}_output_{index}.pb") for index in range(len(model.graph.output))]
    return inputs, [onnx.numpy_helper.to_array(onnx.TensorProto.FromString(file.read_bytes())) for file in stored]


def _stored(folder: Path, prefix: str, values: Sequence[onnx.ValueInfoProto]) -> list[Any]:
    arrays: list[Any] = []
    for index, _ in enumerate(folder.glob(f"{prefix}_*.pb")):
        content = (folder / f"{prefix}_{index}.pb").read_bytes()
        kind = values[index].type.WhichOneof("value")
        if kind == "sequence_type":
            arrays.append(onnx.numpy_helper.to_list(onnx.SequenceProto.FromString(content)))
        elif kind == "optional_type":
            arrays.append(onnx.numpy_helper.to_optional(onnx.OptionalProto.FromString(content)))
        else:
            arrays.append(onnx.numpy_helper.to_array(onnx.TensorProto.FromString(content)))
    return arrays


def _array(value: Any) -> Any:
    if isinstance(value, onnx.TensorProto):
        return onnx.numpy_helper.to_array(value)
    return np.asarray(value) if isinstance(value, np.generic) else value


# ------------------------------------------------------------------------------------------------------------- one case


def by_onnxruntime(model: onnx.ModelProto, inputs: list[Any]) -> list[Any]:
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = 1
    readable = onnx.ModelProto.FromString(model.SerializeToString())
    readable.ir_version = min(model.ir_version, ONNXRUNTIME_IR)
    session = ort.InferenceSession(readable.SerializeToString(), options, providers=["CPUExecutionProvider"])
    names = [given.name for given in session.get_inputs()]
    outputs: list[Any] = session.run(None, dict(zip(names, inputs, strict=False)))
    return outputs


def by_reference(model: onnx.ModelProto, inputs: list[Any]) -> list[Any]:
    from onnx.reference import ReferenceEvaluator

    given = {tensor.name for tensor in model.graph.initializer}
    names = [x.name for x in model.graph.input if x.name not in given] or [x.name for x in model.graph.input]
    return [*ReferenceEvaluator(model).run(None, dict(zip(names, inputs, strict=False)))]


JUDGES: dict[str, Run] = {"onnxruntime": by_onnxruntime, "reference": by_reference}


def judged(case: Any) -> dict[str, Any]:
    """What became of one case: verdict, judge, node counts, and the reason of what went wrong."""
    import onnx_ir as ir

    from graphopt.model import count_nodes

    import lossless

    model, feeds, rtol, atol = opened(case)
    content = model.SerializeToString()
    result: dict[str, Any] = {"before": count_nodes(ir.from_proto(model))}
    judge, reasons = None, {}
    for name, run in JUDGES.items():
        reasons[name] = _difference(run, model, feeds, rtol, atol)
        if reasons[name] is None:
            judge = name
            break
    result |= {"judge": judge, "unrunnable": reasons["onnxruntime"]}
    try:
        graph = ir.from_proto(onnx.ModelProto.FromString(content))
        lossless.apply(graph)
        optimized = ir.to_proto(graph)
    except Exception as error:  # whatever it is, it is a finding
        return result | {"verdict": "crashed", "why": f"{type(error).__name__}: {error}"[:500]}
    result["after"] = count_nodes(graph)
    if (why := _invalid(model)) is None and (why := _invalid(optimized)) is not None:
        return result | {"verdict": "invalid", "why": why}
    if [x.SerializeToString() for x in model.graph.output] != [x.SerializeToString() for x in optimized.graph.output]:
        return result | {"verdict": "wrong", "why": "the outputs' names or types changed"}
    if judge and (why := _difference(JUDGES[judge], optimized, feeds, rtol, atol)) is not None:
        return result | {"verdict": "wrong", "why": why}
    return result | {"verdict": "right" if judge else "not judged"}


def _invalid(model: onnx.ModelProto) -> str | None:
    try:
        onnx.checker.check_model(model, full_check=True)
    except Exception as error:
        return f"{type(error).__name__}: {error}"[:500]
    return None


def _difference(run: Run, model: onnx.ModelProto, feeds: Feeds, rtol: float, atol: float) -> str | None:
    """Why the model does not give the expected outputs; None if it does."""
    from onnx.backend.test.runner import Runner

    try:
        for inputs, expected in feeds:
            Runner.assert_similar_outputs(expected, run(model, inputs), rtol, atol)
    except AssertionError as error:
        return f"other outputs: {' '.join(str(error).split())}"[:300]
    except Exception as error:
        return f"{type(error).__name__}: {error}"[:500]
    return None


# ------------------------------------------------------------------------------------------------------------ all of them


def work(kind: str, names: Sequence[str]) -> None:
    """Judge the cases called ``names``; one line of JSON each, as soon as it is known."""
    found = cases(kind)
    for name in names:
        with np.errstate(all="ignore"):
            result = judged(found[name])
        sys.stdout.write(json.dumps({"kind": kind, "name": name, **result}) + "\n")
        sys.stdout.flush()


def run_worker(kind: str, names: Sequence[str]) -> Iterator[dict[str, Any]]:
    """Results of the cases; one that ends its worker is a crash, and the next worker goes on behind it."""
    left = [*names]
    while left:
        command = [sys.executable, __file__, "--work", kind]
        limit = SECONDS_A_CASE + 10 * len(left)
        try:
            ended = subprocess.run(command, input="\n".join(left), capture_output=True, text=True, timeout=limit, check=False)
            lines, why = ended.stdout.splitlines(), f"the process ended with {ended.returncode}: {ended.stderr[-300:]}"
        except subprocess.TimeoutExpired as error:
            lines, why = (error.stdout or b"").decode().splitlines(), f"took more than {limit} s"
        results = [json.loads(line) for line in lines if line.startswith('{"kind"')]
        yield from results
        left = left[len(results) :]
        if left:
            yield {"kind": kind, "name": left[0], "verdict": "crashed", "why": why, "judge": None, "unrunnable": None}
            left = left[1:]


def reason(text: str) -> str:
    """The kind of an error: without names, numbers and quotes, so that equal reasons are counted together."""
    for pattern, replacement in (
        (r"(?s).*No Op registered for \w+ with domain_version of (\d+).*", r"operators of opset \1, which is newer"),
        (r"(?s).*Could not find an implementation for ([\w.]+).*", r"no kernel for this type or version of \1"),
        (r"(?s).*[Ff]ailed to find kernel for ([\w.]+).*", r"no kernel for this type or version of \1"),
        (r"(?s).*Fatal error: ([\w.:]+)\(.*\) is not a registered.*", r"unknown operator \1"),
        (r"(?s).*ONNX Runtime only \*guarantees\* support.*", "opset newer than this onnxruntime"),
        (r"(?s).*Numpy_type \d+ can't be converted.*", "element types that onnxruntime does not take from numpy"),
        (r"(?s).*Type parameter .* of Optype \((\w+)\) bound to different types.*", r"\1 with mixed types"),
        (r"(?s).*In Node, \(\"\w*\", (\w+),.*", r"does not accept the inputs of \1"),
        (r"(?s).*Exception during initialization: \S*/(\w+)\.(?:cc|h):.*", r"refused when it is loaded, by \1"),
        (r"(?s)other outputs:.*", "other outputs than the suite expects"),
        (r"(?s).*\[ONNXRuntimeError\] : \d+ : (\w+).*", r"onnxruntime: \1"),
    ):
        text, hits = re.subn(pattern, replacement, text, count=1)
        if hits:
            return text
    return text.split("\n")[0][:80]


def main() -> int:
    parser = arguments(__doc__)
    parser.add_argument("--jobs", type=int, default=2, help="processes at a time [default: 2]")
    parser.add_argument("--kind", action="append", choices=KINDS, help="only these cases")
    parser.add_argument("--only", default="", metavar="REGEX", help="only cases whose name matches")
    parser.add_argument("--work", choices=KINDS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.work:
        os.environ["ALLOW_RELEASED_ONNX_OPSET_ONLY"] = "0"  # let onnxruntime try opsets that are newer than its own
        work(options.work, sys.stdin.read().split("\n"))
        return 0
    os.environ["PYTHONPATH"] = os.pathsep.join([str(ROOT / "benchmarks"), os.environ.get("PYTHONPATH", "")])
    chunks = []
    for kind in options.kind or KINDS:
        names = [name for name in cases(kind) if re.search(options.only, name)]
        size = 1 if kind == "light" else max(1, math.ceil(len(names) / (4 * options.jobs)))
        chunks += [(kind, names[start : start + size]) for start in range(0, len(names), size)]
    results: list[dict[str, Any]] = []
    with ThreadPoolExecutor(options.jobs) as pool:
        for found in pool.map(lambda chunk: [*run_worker(*chunk)], chunks):
            results += found
            print(f"{len(results)} cases", file=sys.stderr, flush=True)
    bad = [result for result in results if result["verdict"] in {"wrong", "crashed", "invalid"}]
    publish("backend_suite", "ONNX's backend test suite through `lossless`", parts(results, bad), results, options)
    return 1 if bad else 0


def parts(results: Sequence[dict[str, Any]], bad: Sequence[dict[str, Any]]) -> list[str]:
    """The page: a row for each kind, what failed, and why onnxruntime could not judge."""

    def row(name: str, some: Sequence[dict[str, Any]]) -> list[object]:
        verdicts = collections.Counter(result["verdict"] for result in some)
        judges = collections.Counter(result["judge"] for result in some if result["verdict"] == "right")
        fewer = sum(result.get("after", result.get("before", 0)) < result.get("before", 0) for result in some)
        cells = [
            judges["onnxruntime"],
            judges["reference"],
            *(verdicts[v] for v in ("not judged", "wrong", "invalid", "crashed")),
        ]
        return [name, len(some), *cells, fewer]

    rows = [row(kind, found) for kind in KINDS if (found := [result for result in results if result["kind"] == kind])]
    rows.append(row("all", results))
    header = (
        "kind",
        "cases",
        "right (onnxruntime)",
        "right (reference)",
        "not judged",
        "wrong",
        "invalid",
        "crashed",
        "smaller",
    )
    text = (
        "*Right*: the rewritten model gives the outputs that the suite expects, within its tolerance, run by onnxruntime or, "
        "where onnxruntime cannot run the model as it comes, by ONNX's reference implementation. *Not judged*: neither gives "
        "what is expected even for the original. *Invalid*: the full checker accepts the original only. *Smaller*: fewer nodes."
    )
    page = [text, table(header, rows)]
    if bad:
        lines = [(f"{r['kind']}/{r['name']}", r["verdict"], r["why"].replace("\n", " ").replace("|", "\\|")[:200]) for r in bad]
        page += ["## Failures", table(("case", "verdict", "why"), lines)]
    groups: dict[str, list[str]] = collections.defaultdict(list)
    for result in results:
        if result["unrunnable"]:
            groups[reason(result["unrunnable"])].append(result["name"])
    listed = sorted(groups.items(), key=lambda item: -len(item[1]))
    reasons = "\n".join(f"- {why} ({len(names)}): {', '.join(sorted(names))}" for why, names in listed)
    return [*page, "## What onnxruntime cannot run, or answers otherwise, before anything is rewritten", reasons]


if __name__ == "__main__":
    raise SystemExit(main())
