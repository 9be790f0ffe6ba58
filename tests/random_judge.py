"""Did a random model come through a rewrite? The claims, each of which must hold, and what counts as the same answer.

Answers are the same when they differ by no more than 1e-5 of the output's largest, or by no more than what changing all inputs
and weights by a millionth changes them by: some models blow up every rounding, and no rewrite can round as the original did.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
from onnx import TensorProto, numpy_helper
from onnx.reference import ReferenceEvaluator
from onnxruntime.capi.onnxruntime_pybind11_state import Fail

from graphopt.contracts import Change
from graphopt.model import count_nodes

import random_graphs

Feed = dict[str, np.ndarray]
Rewrite = Callable[[ir.Model], Sequence[Change]]
_TOLERANCE, _NUDGE, _NUDGES, _FACTOR = 1e-5, 1e-6, 3, 10.0


def complaint(proto: onnx.ModelProto, rewrite: Rewrite) -> tuple[str | None, onnx.ModelProto | None]:
    """Why the model did not come through (None if all is well), and what became of it."""
    try:
        onnx.checker.check_model(proto, full_check=True)
    except Exception as error:
        return f"drawn wrong: {error}", None
    model = _loaded(proto)
    before = count_nodes(model)
    try:
        rewrite(model)
    except Exception as error:
        return f"crashed: {type(error).__name__}: {error}", None
    result = ir.to_proto(model)
    claims: dict[str, Callable[[], None]] = {
        "invalid": lambda: onnx.checker.check_model(result, full_check=True),
        "other inputs": lambda: _equal([*result.graph.input], [*proto.graph.input]),
        "other outputs' types": lambda: _equal([*result.graph.output], [*proto.graph.output]),
        "more nodes": lambda: _equal(count_nodes(model) > before, False),
        "other outputs": lambda: assert_same_answers(proto, result, random_graphs.feeds(proto)),
        "not idempotent": lambda: _assert_idempotent(result, rewrite),
    }
    for claim, verify in claims.items():
        try:
            verify()
        except Exception as error:
            return f"{claim} ({type(error).__name__}): {' '.join(str(error).split())[:300]}", result
    return None, result


def _loaded(proto: onnx.ModelProto) -> ir.Model:
    return ir.from_proto(onnx.ModelProto.FromString(proto.SerializeToString()))


def _equal(actual: object, expected: object) -> None:
    assert actual == expected


def _assert_idempotent(proto: onnx.ModelProto, rewrite: Rewrite) -> None:
    model = _loaded(proto)
    changes = [change for change in rewrite(model) if change.done]
    assert not changes, "; ".join(f"{change.site}: {change.what}" for change in changes)
    assert ir.to_proto(model) == proto, "no change is listed but the file differs"


def assert_same_answers(proto: onnx.ModelProto, result: onnx.ModelProto, feeds: Sequence[Feed]) -> None:
    """Both models give the same outputs for all feeds: names, types, shapes, and values but for rounding."""
    first, second = _session(proto), _session(result)
    assert [o.name for o in first.get_outputs()] == [o.name for o in second.get_outputs()]
    for feed in feeds:
        expected, actual = _expected(proto, first, feed), second.run(None, feed)
        for output, a, b in zip(first.get_outputs(), expected, actual, strict=True):
            assert (a.dtype, a.shape) == (b.dtype, b.shape), output.name
        off = [_excess(a, b) for a, b in zip(expected, actual, strict=True)]
        if max(off, default=0) > 0:
            noise = _rounding(proto, feed, expected)
            for output, excess, allowed in zip(first.get_outputs(), off, noise, strict=True):
                assert excess <= _FACTOR * allowed, f"{output.name} is off by {excess:.3g}, rounding explains {allowed:.3g}"


def _expected(proto: onnx.ModelProto, session: ort.InferenceSession, feed: Feed) -> list[np.ndarray]:
    """What the model as it was drawn gives.

    Of some models onnxruntime frees a value before the branches of an If read it (1.31, one in ten thousand): these are
    computed by ONNX's reference implementation.
    """
    try:
        return session.run(None, feed)
    except Fail:
        overridable = {tensor.name: numpy_helper.to_array(tensor) for tensor in proto.graph.initializer}
        given = {value.name: overridable[value.name] for value in proto.graph.input if value.name in overridable}
        return ReferenceEvaluator(proto).run(None, given | feed)


def _session(proto: onnx.ModelProto) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads, options.log_severity_level = 1, 4
    return ort.InferenceSession(proto.SerializeToString(), options, providers=["CPUExecutionProvider"])


def _excess(a: np.ndarray, b: np.ndarray) -> float:
    """The largest difference beyond the tolerance; infinite where only one of them is no finite number."""
    if not np.array_equal(np.isfinite(a), np.isfinite(b)):
        return np.inf
    finite = np.isfinite(a)
    a, b = a[finite].astype(np.float64), b[finite].astype(np.float64)
    if not a.size:
        return 0.0
    return max(0.0, float(np.max(np.abs(a - b) - _TOLERANCE * (np.abs(a) + np.abs(a).max()))))


def _rounding(proto: onnx.ModelProto, feed: Feed, expected: Sequence[np.ndarray]) -> list[float]:
    """By how much each output changes when inputs and weights do by a millionth."""
    largest = [0.0] * len(expected)
    for seed in range(_NUDGES):
        rng = np.random.default_rng(seed)
        nudged = onnx.ModelProto.FromString(proto.SerializeToString())
        for tensor in _tensors(nudged.graph):
            if tensor.data_type == TensorProto.FLOAT:
                tensor.CopyFrom(numpy_helper.from_array(_nudge(numpy_helper.to_array(tensor), rng), tensor.name))
        feed = {name: _nudge(array, rng) if array.dtype == np.float32 else array for name, array in feed.items()}
        for index, (a, b) in enumerate(zip(expected, _expected(nudged, _session(nudged), feed), strict=True)):
            with np.errstate(all="ignore"):
                largest[index] = max(largest[index], float(np.nanmax(np.abs(a.astype(np.float64) - b), initial=0.0)))
    return largest


def _nudge(array: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    return np.asarray(array * (1 + _NUDGE * rng.standard_normal(array.shape)), np.float32)


def _tensors(graph: onnx.GraphProto) -> Iterable[onnx.TensorProto]:
    """All tensors but scales of Resize, which decide shapes, and exponents: a broken power of what is negative is no number."""
    exact = {name for node in graph.node if node.op_type in {"Resize", "Pow"} for name in node.input[1:]}
    yield from (tensor for tensor in graph.initializer if tensor.name not in exact)
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.HasField("t") and not exact.intersection(node.output):
                yield attribute.t
            if attribute.HasField("g"):
                yield from _tensors(attribute.g)
