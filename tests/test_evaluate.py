"""Divergence is measured as defined, over any batches, and equal means equal."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from graphopt import metrics, registry, targets
from graphopt.contracts import Array, Session, Silent, TensorSpec
from graphopt.dataset import Dataset, open_dataset
from graphopt.errors import DataError
from graphopt.evaluate import Divergence, Reference, compare, problems

from helpers import small_cnn, write

RNG = np.random.default_rng(0)
FLOAT = np.dtype(np.float32)


class Canned(Session):
    """Returns rows of given outputs; the input is the row numbers."""

    def __init__(self, **outputs: Array) -> None:
        self.values = outputs
        self.inputs = (TensorSpec("row", np.dtype(np.int64), ("N",)),)
        self.outputs = tuple(TensorSpec(name, array.dtype, (None, *array.shape[1:])) for name, array in outputs.items())
        self.runs = 0

    def run(self, feed: Mapping[str, Array]) -> dict[str, Array]:
        self.runs += 1
        return {name: array[feed["row"]] for name, array in self.values.items()}


def rows(folder: Path, count: int, batch_size: int = 4) -> Dataset:
    np.savez(folder / "rows.npz", row=np.arange(count))
    return open_dataset(folder / "rows.npz", [TensorSpec("row", np.dtype(np.int64), ("N",))], batch_size=batch_size)


def divergence(folder: Path, a: Array, b: Array, batch_size: int = 4) -> Divergence:
    return compare(Canned(y=a), Canned(y=b), rows(folder, len(a), batch_size)).outputs["y"]


def open_model(model: onnx.ModelProto, path: Path) -> Session:
    return registry.runtime("onnxruntime").open(write(model, path), targets.load("cpu"))


finite = st.floats(-100, 100, width=32)


@given(
    a=hnp.arrays(np.float32, (9, 5), elements=finite),
    b=hnp.arrays(np.float32, (9, 5), elements=finite),
    batch_size=st.integers(1, 9),
)
@settings(max_examples=60, deadline=None)
def test_figures_follow_their_definitions(
    a: Array, b: Array, batch_size: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    found = divergence(tmp_path_factory.mktemp("rows"), a, b, batch_size)
    x, y = a.astype(np.float64), b.astype(np.float64)
    if np.array_equal(x, y):
        assert found == Divergence(0.0, 0.0, 1.0, math.inf)
        return
    peak, norm = np.abs(x).max(), np.linalg.norm(x) * np.linalg.norm(y)
    assert found.max_abs == pytest.approx(np.abs(x - y).max())
    assert found.max_rel == pytest.approx(np.abs(x - y).max() / peak if peak else math.inf)
    assert found.cosine == pytest.approx((x * y).sum() / norm if norm else 0.0, abs=1e-9)
    ratio = (x * x).sum() / ((x - y) ** 2).sum()
    assert found.sqnr_db == pytest.approx(10 * math.log10(ratio) if ratio else -math.inf)


def test_nan_and_infinities_must_be_the_same_at_the_same_places(tmp_path: Path) -> None:
    special = np.array([[1, np.nan], [np.inf, -np.inf], [2, 3]], np.float32)
    found = divergence(tmp_path, special, special.copy())
    assert found == Divergence(0.0, 0.0, 1.0, math.inf, equal_nonfinite=True)
    for row, column, value in ((0, 0, np.nan), (0, 1, 1.0), (1, 0, -np.inf), (2, 0, np.inf)):
        changed = special.copy()
        changed[row, column] = value
        evaluation = compare(Canned(y=special), Canned(y=changed), rows(tmp_path, 3))
        assert not evaluation.outputs["y"].equal_nonfinite
        assert "NaN or infinities" in problems(evaluation, Canned(y=special).outputs)[0]


@pytest.mark.parametrize(
    ("a", "b", "max_abs"),
    [
        (np.array([1, 2, 3]), np.array([1, 2, 7]), 4),
        (np.array([2**62, 0]), np.array([2**62 + 1, 0]), 1),
        (np.array([0, 255], np.uint8), np.array([255, 255], np.uint8), 255),
        (np.array([True, False]), np.array([True, True]), 1),
        (np.array(["a", "b"], object), np.array(["a", "c"], object), 1),
    ],
)
def test_integers_bools_and_text_must_be_equal(tmp_path: Path, a: Array, b: Array, max_abs: float) -> None:
    same, other = (compare(Canned(y=a), Canned(y=each), rows(tmp_path, len(a))) for each in (a.copy(), b))
    assert problems(same, Canned(y=a).outputs) == []
    assert other.outputs["y"].max_abs == max_abs
    assert "must be equal" in problems(other, Canned(y=a).outputs)[0]


@pytest.mark.parametrize(("dtype", "tolerance"), [("float64", 1e-7), ("float32", 1e-4), ("float16", 5e-3), ("bfloat16", 4e-2)])
def test_each_type_has_its_tolerance(tmp_path: Path, dtype: str, tolerance: float) -> None:
    specs = [TensorSpec("y", onnx.helper.tensor_dtype_to_np_dtype(getattr(onnx.TensorProto, _PROTO[dtype])), ("N", 2))]
    original = np.array([[1.0, 1000.0]] * 3)
    for factor, equal in ((0.9, True), (1.1, False)):
        changed = original.copy()
        changed[1, 0] += 1000 * tolerance * factor
        found = problems(compare(Canned(y=original), Canned(y=changed), rows(tmp_path, 3)), specs)
        assert (found == []) is equal
        assert equal or ("'y'" in found[0] and dtype in found[0])


_PROTO = {"float64": "DOUBLE", "float32": "FLOAT", "float16": "FLOAT16", "bfloat16": "BFLOAT16"}


def test_a_difference_from_an_output_that_is_all_zero_is_a_difference(tmp_path: Path) -> None:
    zero, small = np.zeros((3, 2), np.float32), np.full((3, 2), 1e-3, np.float32)
    evaluation = compare(Canned(y=zero), Canned(y=small), rows(tmp_path, 3))
    assert evaluation.outputs["y"].max_rel == math.inf
    assert problems(evaluation, Canned(y=zero).outputs)


def test_outputs_that_cannot_be_compared_are_named(tmp_path: Path) -> None:
    y = np.ones((4, 3), np.float32)
    original = Canned(y=y, z=y)
    shaped = compare(original, Canned(y=y, z=y[:, :2]), rows(tmp_path, 4), metrics.choose("cosine", original.outputs, False))
    assert problems(shaped, original.outputs) == ["output 'z' has the shape [4, 2] instead of [4, 3]"]
    assert shaped.metric is None
    assert shaped.outputs["y"].sqnr_db == math.inf
    missing = compare(original, Canned(y=y), rows(tmp_path, 4))
    assert problems(missing, original.outputs) == ["output 'z' is missing"]
    text = compare(original, Canned(y=y, z=np.full((4, 3), "a", object)), rows(tmp_path, 4))
    assert problems(text, original.outputs) == ["output 'z' is object instead of float32"]


def test_an_output_without_elements_is_equal(tmp_path: Path) -> None:
    empty = np.zeros((4, 0), np.float32)
    assert divergence(tmp_path, empty, empty) == Divergence(0.0, 0.0, 1.0, math.inf)


def test_real_models_are_compared_output_by_output_with_their_metric(tmp_path: Path) -> None:
    original, changed = small_cnn(), small_cnn()
    weight = next(tensor for tensor in changed.graph.initializer if tensor.name == "w3")
    weight.CopyFrom(onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(weight) * np.float32(1.01), "w3"))
    np.savez(tmp_path / "x.npz", x=RNG.standard_normal((20, 3, 8, 8), np.float32))
    with open_model(original, tmp_path / "a.onnx") as a, open_model(changed, tmp_path / "b.onnx") as b:
        data = open_dataset(tmp_path / "x.npz", a.inputs, batch_size=8)
        said = Silent()
        same = compare(a, a, data, metrics.choose(None, a.outputs, False), progress=said)
        other = compare(a, b, data, limit=10)
    assert (same.samples, said.said) == (20, ["comparing with the original"])
    assert same.outputs == {"y": Divergence(0.0, 0.0, 1.0, math.inf)}
    assert same.metric is not None
    assert (same.metric.name, same.metric.before, same.metric.after, same.metric.drop) == ("agreement", 1, 1, 0)
    assert problems(same, a.outputs) == []
    assert other.samples == 10
    assert 1e-4 < other.outputs["y"].max_rel < 0.02
    assert 35 < other.outputs["y"].sqnr_db < 80
    assert problems(other, a.outputs)


def test_a_metric_is_measured_on_both_models(tmp_path: Path) -> None:
    labels = np.arange(6)
    np.savez(tmp_path / "rows.npz", row=np.arange(6), labels=labels)
    data = open_dataset(tmp_path / "rows.npz", [TensorSpec("row", np.dtype(np.int64), ("N",))], batch_size=4)
    good = np.eye(6, dtype=np.float32)
    original, candidate = Canned(y=good), Canned(y=np.roll(good, 1, axis=1) * (labels[:, np.newaxis] < 3) + good * 0.5)
    result = compare(original, candidate, data, metrics.choose("top1", original.outputs, data.labelled)).metric
    assert result is not None
    assert (result.before, result.after, result.drop) == (1.0, 0.5, 0.5)


def test_a_metric_that_is_no_number_on_the_original_is_refused(tmp_path: Path) -> None:
    np.savez(tmp_path / "rows.npz", row=np.arange(2), labels=np.full(2, -100))
    data = open_dataset(tmp_path / "rows.npz", [TensorSpec("row", np.dtype(np.int64), ("N",))])
    session = Canned(y=np.eye(2, dtype=np.float32))
    with pytest.raises(DataError, match="'top1' of the original is not a number"):
        compare(session, session, data, metrics.choose("top1", session.outputs, True))


def test_the_originals_outputs_are_computed_once_while_they_fit(tmp_path: Path) -> None:
    y = RNG.standard_normal((8, 16)).astype(np.float32)
    data = rows(tmp_path, 8, batch_size=2)  # 4 batches of 128 bytes
    for limit_bytes, runs in ((0, 8), (300, 4 + 2), (1 << 20, 4)):
        original = Canned(y=y)
        reference = Reference(original, data, limit_bytes=limit_bytes)
        first = compare(reference, Canned(y=y + 1), data)
        assert compare(reference, Canned(y=y + 1), data) == first
        assert original.runs == runs


def test_a_reference_that_opens_its_session_closes_it_when_the_outputs_are_kept(tmp_path: Path) -> None:
    y = RNG.standard_normal((8, 16)).astype(np.float32)
    data, opened, closed = rows(tmp_path, 8, batch_size=2), [], []

    class Lasting(Canned):
        def close(self) -> None:
            closed.append(self)

    def open_original() -> Session:
        opened.append(Lasting(y=y))
        return opened[-1]

    (tmp_path / "spilt").mkdir()
    for limit_bytes, folder, files in ((1 << 20, None, 0), (300, tmp_path / "spilt", 2)):  # 4 batches of 128 bytes
        opened.clear(), closed.clear()
        reference = Reference(open_original, data, limit_bytes=limit_bytes, folder=folder)
        first = compare(reference, Canned(y=y + 1), data)
        assert compare(reference, Canned(y=y + 1), data) == first
        assert [session.runs for session in opened] == [4]
        assert closed == opened
        assert len(list((tmp_path / "spilt").iterdir())) == files


def test_a_reference_uses_a_session_that_is_open_anyway(tmp_path: Path) -> None:
    y = RNG.standard_normal((8, 16)).astype(np.float32)

    def open_original() -> Session:
        raise AssertionError("the original was opened again")

    reference = Reference(open_original, rows(tmp_path, 8, batch_size=3))
    reference.start(Canned(y=y), 100)
    assert compare(reference, Canned(y=y), reference.data).samples == 8


def test_a_reference_also_serves_the_first_part_of_its_data(tmp_path: Path) -> None:
    y = RNG.standard_normal((8, 16)).astype(np.float32)
    data = rows(tmp_path, 8, batch_size=3)
    reference = Reference(Canned(y=y), data)
    assert compare(reference, Canned(y=y), data).samples == 8
    evaluation = compare(reference, Canned(y=y), data.first(4))
    assert (evaluation.samples, evaluation.outputs["y"].max_abs) == (4, 0.0)


@pytest.mark.zoo
def test_cifar_resnet20_reads_its_known_accuracy(zoo: Path) -> None:
    with registry.runtime("onnxruntime").open(zoo / "models" / "cifar_resnet20.onnx", targets.load("cpu")) as session:
        data = open_dataset(zoo / "data" / "cifar10" / "eval.npz", session.inputs)
        found = compare(session, session, data, metrics.choose(None, session.outputs, data.labelled))
    assert found.metric is not None
    assert (found.samples, found.metric.name) == (1000, "top1")
    assert found.metric.before == found.metric.after == pytest.approx(0.915)


@pytest.mark.zoo
def test_a_language_model_has_a_perplexity_without_labels(zoo: Path, tmp_path: Path) -> None:
    np.savez(tmp_path / "ids.npz", ids=RNG.integers(0, 512, (4, 32)))
    with registry.runtime("onnxruntime").open(zoo / "models" / "stories260k.onnx", targets.load("cpu")) as session:
        data = open_dataset(tmp_path / "ids.npz", session.inputs)
        found = compare(session, session, data, metrics.choose("perplexity", session.outputs, data.labelled))
    assert found.metric is not None
    assert found.metric.drop == 0
    assert 100 < found.metric.before < 1e6
