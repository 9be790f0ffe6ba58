"""Each metric is what its definition says, whatever the batches."""

from __future__ import annotations

import importlib
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from graphopt.contracts import TensorSpec
from graphopt.errors import DataError, UsageError
from graphopt.metrics import MetricFactory, choose

FLOAT, INT = np.dtype(np.float32), np.dtype(np.int64)
RNG = np.random.default_rng(0)
Y = TensorSpec("y", FLOAT, ("N", 4))


def measure(
    name: str | None,
    outputs: np.ndarray | dict[str, np.ndarray],
    labels: np.ndarray | None = None,
    *,
    reference: np.ndarray | dict[str, np.ndarray] | None = None,
    feed: dict[str, np.ndarray] | None = None,
    batches: int = 1,
) -> float:
    """The metric of outputs that arrive in some number of batches."""
    values = outputs if isinstance(outputs, dict) else {"y": outputs}
    originals = values if reference is None else reference if isinstance(reference, dict) else {"y": reference}
    specs = [TensorSpec(key, array.dtype, (None, *array.shape[1:])) for key, array in values.items()]
    meter = choose(name, specs, labels is not None, labels_dtype=None if labels is None else labels.dtype)()
    count = len(next(iter(values.values())))
    for part in np.array_split(np.arange(count), min(batches, count)):
        meter.update(
            {key: array[part] for key, array in values.items()},
            {key: array[part] for key, array in originals.items()},
            None if labels is None else labels[part],
            {key: array[part] for key, array in (feed or {}).items()},
        )
    return meter.value()


finite = st.floats(-50, 50, width=32)


@st.composite
def classified(draw: st.DrawFn, classes: st.SearchStrategy[int]) -> tuple[np.ndarray, np.ndarray]:
    count, samples = draw(classes), draw(st.integers(1, 30))
    scores = draw(hnp.arrays(np.float32, (samples, count), elements=st.sampled_from([-1.5, 0.0, 0.25, 0.5, 3.0]) | finite))
    return scores, draw(hnp.arrays(np.int64, samples, elements=st.integers(0, count - 1)))


@given(data=classified(st.integers(2, 9)), batches=st.integers(1, 4))
@settings(max_examples=60, deadline=None)
def test_top1_and_top5_are_the_part_of_labels_among_the_highest(data: tuple[np.ndarray, np.ndarray], batches: int) -> None:
    scores, labels = data
    order = np.argsort(-scores, axis=1, kind="stable")
    for k in (1, 5):
        expected = np.mean([label in row[:k] for row, label in zip(order, labels, strict=True)])
        assert measure(f"top{k}", scores, labels, batches=batches) == pytest.approx(expected)


@given(data=classified(st.integers(2, 5)), batches=st.integers(1, 4))
@settings(max_examples=60, deadline=None)
def test_f1_is_binary_for_two_classes_and_the_mean_over_classes_otherwise(
    data: tuple[np.ndarray, np.ndarray], batches: int
) -> None:
    scores, labels = data
    found = scores.argmax(axis=1)

    def one(each: int) -> float:
        hits = int(np.sum((found == each) & (labels == each)))
        return 2 * hits / (int(np.sum(found == each)) + int(np.sum(labels == each))) if hits else 0.0

    classes = sorted(set(found) | set(labels))
    expected = one(1) if set(classes) <= {0, 1} else float(np.mean([one(each) for each in classes]))
    assert measure("f1", scores, labels, batches=batches) == pytest.approx(expected)


@given(
    a=hnp.arrays(np.float32, (7, 3), elements=finite),
    b=hnp.arrays(np.float32, (7, 3), elements=finite),
    batches=st.integers(1, 7),
)
@settings(max_examples=60, deadline=None)
def test_cosine_and_mse_against_the_original_follow_their_definitions(a: np.ndarray, b: np.ndarray, batches: int) -> None:
    def cosine(one: np.ndarray, other: np.ndarray) -> float:
        if np.array_equal(one, other):
            return 1.0
        norms = float(np.linalg.norm(one) * np.linalg.norm(other))
        return float(one @ other) / norms if norms else 0.0

    wide_a, wide_b = a.astype(np.float64), b.astype(np.float64)
    expected = np.mean([cosine(one, other) for one, other in zip(wide_a, wide_b, strict=True)])
    assert measure("cosine", a, reference=b, batches=batches) == pytest.approx(expected, abs=1e-9)
    assert measure("mse", a, reference=b, batches=batches) == pytest.approx(float(np.mean((wide_a - wide_b) ** 2)))


@given(logits=hnp.arrays(np.float32, (3, 4, 6), elements=finite), batches=st.integers(1, 3))
@settings(max_examples=40, deadline=None)
def test_perplexity_is_exp_of_the_mean_negative_log_likelihood(logits: np.ndarray, batches: int) -> None:
    labels = RNG.integers(0, 6, (3, 4))
    labels[0, 2] = -100
    wide = logits.astype(np.float64)
    log_p = wide - np.log(np.exp(wide).sum(axis=-1, keepdims=True))
    chosen = [log_p[i, j, labels[i, j]] for i in range(3) for j in range(4) if labels[i, j] != -100]
    assert measure("perplexity", logits, labels, batches=batches) == pytest.approx(math.exp(-np.mean(chosen)))
    ids = RNG.integers(0, 6, (3, 4))
    following = [log_p[i, j, ids[i, j + 1]] for i in range(3) for j in range(3)]
    assert measure("perplexity", logits, feed={"ids": ids}, batches=batches) == pytest.approx(math.exp(-np.mean(following)))


def test_perplexity_of_uniform_logits_is_the_vocabulary_and_never_overflows() -> None:
    labels = RNG.integers(0, 6, (2, 4))
    assert measure("perplexity", np.zeros((2, 4, 6), np.float32), labels) == pytest.approx(6)
    extreme = np.full((1, 1, 2), 1e30, np.float32)
    extreme[0, 0, 0] = -1e30
    assert measure("perplexity", extreme, np.array([[0]])) == math.inf


def test_perplexity_without_labels_needs_one_input_of_tokens() -> None:
    logits = np.zeros((2, 4, 6), np.float32)
    with pytest.raises(DataError, match="needs labels"):
        measure("perplexity", logits, feed={"x": np.zeros((2, 4), np.float32)})
    with pytest.raises(DataError, match=r"logits \[N, T, V\]"):
        measure("perplexity", np.zeros((2, 6), np.float32), np.zeros(2, np.int64))


def test_top1_finds_the_class_axis() -> None:
    scores = RNG.standard_normal((5, 4)).astype(np.float32)
    labels = scores.argmax(axis=1)
    labels[0] = (labels[0] + 1) % 4
    assert measure("top1", scores.reshape(5, 4, 1, 1), labels) == 0.8
    assert measure("top1", scores, labels[:, np.newaxis]) == 0.8
    tokens = RNG.standard_normal((2, 3, 4)).astype(np.float32)
    assert measure("top1", tokens, tokens.argmax(axis=-1)) == 1
    pixels = RNG.standard_normal((2, 4, 3, 5)).astype(np.float32)
    assert measure("top1", pixels, pixels.argmax(axis=1)) == 1


def test_models_that_give_classes_are_compared_with_the_labels_directly() -> None:
    assert measure("top1", np.array([1, 2, 3, 0]), np.array([1, 2, 0, 0])) == 0.75
    assert measure("f1", np.array([1, 1, 0, 0]), np.array([1, 0, 1, 0])) == 0.5
    quantized = np.array([[0, 200], [90, 30]], np.uint8)
    assert measure("top1", quantized, np.array([1, 0])) == 1


def test_labels_of_minus_100_are_left_out_and_others_out_of_range_refused() -> None:
    scores = np.eye(4, dtype=np.float32)
    assert measure("top1", scores, np.array([0, 1, -100, 0])) == pytest.approx(2 / 3)
    for wrong in (4, -1):
        with pytest.raises(DataError, match=rf"label {wrong} is none of the 4 classes(.|\n)*label-offset"):
            measure("top1", scores, np.array([0, 1, 2, wrong]))
    with pytest.raises(DataError, match="do not belong together"):
        measure("top1", scores, np.zeros((4, 7), np.int64))
    with pytest.raises(DataError, match="not classes"):
        measure("top1", scores, np.full(4, 0.5))


def test_broken_scores_never_count_as_right() -> None:
    nan = np.full((3, 4), np.nan, np.float32)
    assert measure("top1", nan, np.zeros(3, np.int64)) == 0
    assert measure("f1", nan, np.zeros(3, np.int64)) == 0
    assert measure("agreement", nan, reference=np.eye(3, 4, dtype=np.float32)) == 0
    assert measure("cosine", nan, reference=np.eye(3, 4, dtype=np.float32)) == 0


def test_a_single_score_is_a_probability_or_a_logit() -> None:
    labels = np.array([1, 1, 0, 0])
    probabilities = np.array([[0.9], [0.3], [0.6], [0.1]], np.float32)
    assert measure("f1", probabilities, labels, batches=2) == 0.5
    logits = np.array([2.0, 0.3, -0.6, -3.0], np.float32)
    assert measure("f1", logits, labels, batches=2) == 1


def test_agreement_of_scores_is_the_same_winner() -> None:
    reference = np.eye(4, dtype=np.float32)
    changed = reference.copy()
    changed[3] = [9, 0, 0, 0]
    assert measure("agreement", changed * 7, reference=reference) == 0.75
    assert measure("agreement", np.array([1, 2, 3]), reference=np.array([1, 2, 4])) == pytest.approx(2 / 3)
    assert measure("agreement", np.array(["a", "b"], object), reference=np.array(["a", "c"], object)) == 0.5


def test_agreement_without_classes_asks_every_output_to_be_similar() -> None:
    reference = {"a": RNG.standard_normal((4, 3, 5)), "b": RNG.standard_normal((4, 1))}
    changed = {name: array.copy() for name, array in reference.items()}
    changed["a"] *= 1.5
    assert measure("agreement", changed, reference=reference) == 1
    changed["b"][2] *= -1
    changed["a"][0] = -changed["a"][0]
    assert measure("agreement", changed, reference=reference) == 0.5
    assert measure("agreement@b", changed, reference=reference) == 0.75


def test_agreement_takes_a_batch_with_state_outputs_as_one_sample() -> None:
    spec = [TensorSpec("y", FLOAT, (1, 5)), TensorSpec("state", FLOAT, (2, 1, 8))]
    y, state = RNG.standard_normal((1, 1)), RNG.standard_normal((2, 1, 8))
    meter = choose("agreement", spec, False)()
    meter.update({"y": y, "state": state}, {"y": y, "state": state}, None, {})
    meter.update({"y": y, "state": -state}, {"y": y, "state": state}, None, {})
    assert meter.value() == 0.5


def test_mse_compares_with_float_labels() -> None:
    assert measure("mse", np.array([[1.0], [2.0]]), np.array([1.5, 2.0])) == 0.125
    with pytest.raises(DataError, match="number by number"):
        measure("mse", np.ones((2, 3)), np.array([1.5, 2.0]))


def test_bfloat16_outputs_can_be_measured() -> None:
    import ml_dtypes

    scores = np.eye(4).astype(ml_dtypes.bfloat16)
    assert measure("top1", scores, np.arange(4)) == 1
    assert measure("cosine", scores, reference=scores) == 1


@pytest.mark.parametrize(
    ("spec", "labels_dtype", "chosen"),
    [
        (Y, None, "agreement"),
        (Y, INT, "top1"),
        (TensorSpec("y", FLOAT, ("N", 1)), INT, "f1"),
        (TensorSpec("y", FLOAT, ("N", 1000, 1, 1)), INT, "top1"),
        (TensorSpec("y", INT, ("N",)), INT, "top1"),
        (TensorSpec("y", FLOAT, ("N", 1)), np.dtype(np.float64), "mse"),
        (TensorSpec("y", FLOAT, None), INT, "top1"),
    ],
)
def test_the_metric_that_suits_the_data_is_chosen(spec: TensorSpec, labels_dtype: np.dtype | None, chosen: str) -> None:
    assert choose(None, [spec], labels_dtype is not None, labels_dtype=labels_dtype).name == chosen


def test_another_output_is_measured_by_its_name() -> None:
    labels = np.array([0, 1])
    outputs = {"y": np.eye(2)[::-1], "aux": np.eye(2)}
    assert measure("top1", outputs, labels) == 0
    assert measure("top1@aux", outputs, labels) == 1
    assert measure("@aux", outputs, labels) == 1
    with pytest.raises(UsageError, match="Did you mean 'aux'"):
        measure("top1@auy", outputs, labels)


def test_unknown_metrics_and_missing_labels_are_refused() -> None:
    with pytest.raises(UsageError, match="Did you mean 'agreement'"):
        choose("agrement", [Y], True)
    for name in ("top1", "top5", "f1"):
        with pytest.raises(DataError, match=f"'{name}' needs labels"):
            choose(name, [Y], False)


def test_a_drop_is_positive_when_it_is_worse() -> None:
    def drop(name: str) -> Callable[[float, float], float]:
        factory: MetricFactory = choose(name, [Y], True)
        return factory.drop

    for name in ("top1", "top5", "f1", "agreement", "cosine"):
        assert drop(name)(0.9, 0.8) == pytest.approx(0.1)
    for name in ("mse", "perplexity"):
        assert drop(name)(0.9, 0.8) == pytest.approx(-0.1)


FUNCTIONS = """
import numpy as np

def positive(outputs, labels):
    assert outputs["y"].shape == (6, 4), outputs["y"].shape
    return np.mean(outputs["y"] > 0) if labels is None else float(labels.sum())

def loss(outputs, labels):
    return 1
loss.higher_is_better = False

def fails(outputs, labels):
    return outputs["z"]

def words(outputs, labels):
    return "good"
"""


def test_a_function_of_the_user_sees_all_samples_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "metrics_of_a_test.py").write_text(FUNCTIONS)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    importlib.invalidate_caches()
    scores = RNG.standard_normal((6, 4)).astype(np.float32)
    module = "metrics_of_a_test"
    assert measure(f"{module}:positive", scores, batches=3) == pytest.approx(float(np.mean(scores > 0)))
    assert measure(f"{module}:positive", scores, np.arange(6), batches=3) == 15
    assert choose(f"{module}:positive", [Y], True).higher_is_better
    assert not choose(f"{module}:loss", [Y], True).higher_is_better
    with pytest.raises(UsageError, match="raised KeyError: 'z'"):
        measure(f"{module}:fails", scores)
    with pytest.raises(UsageError, match="returned 'good', not a number"):
        measure(f"{module}:words", scores)
    with pytest.raises(UsageError, match="does not exist"):
        choose(f"{module}:absent", [Y], True)
