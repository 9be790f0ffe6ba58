from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from graphopt import observe
from graphopt.contracts import Change, Context, Pass, Session
from graphopt.dataset import Batch
from graphopt.errors import DataError, ModelError
from graphopt.observe import ChannelMean, ChannelRange, ChannelZeros, Histogram, Keep, MinMax, MovingAverage, collectors, sweeps
from graphopt.pipeline import optimize
from graphopt.recipe import Recipe, Step

from helpers import from_text, run, small_cnn, write
from observing import context

RNG = np.random.default_rng(0)
X = RNG.standard_normal((21, 3, 8, 8)).astype(np.float32)


def value_of(proto: onnx.ModelProto, name: str, feed: dict[str, np.ndarray]) -> np.ndarray:
    """What onnxruntime gives for an inner value."""
    asked = onnx.ModelProto.FromString(proto.SerializeToString())
    asked.graph.output.append(onnx.helper.make_empty_tensor_value_info(name))
    return run(asked, feed)[name]


def test_every_observer_finds_what_a_direct_computation_finds() -> None:
    proto = small_cnn()
    observers = [MinMax(), MovingAverage(0.9), ChannelRange(1), ChannelMean(1), Keep(5), Histogram(256)]
    with context(proto, x=X) as c:
        found = c.observe(ir.from_proto(proto), {"c2": observers, "x": [MinMax()]})
    truth = value_of(proto, "c2", {"x": X})
    extremes, average, channels, means, kept, counts = found["c2"]
    assert (extremes.low, extremes.high) == pytest.approx((truth.min(), truth.max()), rel=1e-6)
    high = 0.0
    for index, sample in enumerate(truth):
        high = sample.max() if index == 0 else 0.9 * high + 0.1 * sample.max()
    assert average.high == pytest.approx(high, rel=1e-5)
    np.testing.assert_allclose(channels.low, truth.min(axis=(0, 2, 3)), rtol=1e-5)
    np.testing.assert_allclose(channels.high, truth.max(axis=(0, 2, 3)), rtol=1e-5)
    np.testing.assert_allclose(means.mean, truth.mean(axis=(0, 2, 3)), rtol=1e-4)
    np.testing.assert_allclose(means.square, (truth.astype(np.float64) ** 2).mean(axis=(0, 2, 3)), rtol=1e-4)
    assert means.count == 21 * 64
    np.testing.assert_allclose(kept.joined(), truth[:5], rtol=1e-5, atol=1e-6)
    direct, _ = np.histogram(truth, counts.edges)
    assert np.abs(counts.counts - direct).sum() <= 8  # values at an edge, in float32
    assert found["x"][0].low == X.min()


def test_zeros_of_each_channel_are_counted() -> None:
    proto = from_text("g (float[N, 3, 8, 8] x) => (float[N, 3, 8, 8] y) { r = Relu(x) y = Neg(r) }")
    with context(proto, x=X) as c:
        [zeros] = c.observe(ir.from_proto(proto), {"r": [ChannelZeros(1)]})["r"]
    np.testing.assert_allclose(zeros.share, (X <= 0).mean(axis=(0, 2, 3)))


@pytest.mark.parametrize(
    "observer", [MinMax(), MovingAverage(), Histogram(64), ChannelRange(1), ChannelZeros(1), Keep(9), Keep(21, 4 * 64 * 8 * 4)]
)
@pytest.mark.parametrize("counted", [50, 1000])
def test_the_size_of_a_batch_changes_nothing(observer: observe.Observer, counted: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(collectors, "COUNTED", counted)
    rows = (X * np.random.default_rng(1).choice([0, 0.01, 1, 300], (21, 1, 1, 1))).astype(np.float32)
    rows[0] = 0
    found = []
    for size in (1, 5, 21):
        collector = observer.start()
        for start in range(0, 21, size):
            batch = rows[start : start + size]
            collector.update(observe.Seen(batch, len(batch)))
        found.append(collector.result())
    for other in found[1:]:
        for field in dataclasses.fields(other):
            first, second = getattr(found[0], field.name), getattr(other, field.name)
            if field.name == "arrays":
                first, second = np.concatenate(first), np.concatenate(second)
            np.testing.assert_array_equal(first, second)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.floats(-(2.0**99), 2.0**99, width=32), min_size=1, max_size=60), st.integers(1, 8))
def test_a_histogram_covers_everything_and_loses_nothing(numbers: list[float], bins: int) -> None:
    values = np.array(numbers, np.float32)
    collector = Histogram(bins).start()
    for value in values:
        collector.update(observe.Seen(value.reshape(1, 1), 1))
    found = collector.result()
    assert found.counts.sum() == len(values)
    assert len(found.counts) <= 2 * bins
    assert 0.0 in found.edges
    slack = 1e-3 * found.width
    assert found.edges[0] <= min(values.min(), 0) + slack
    assert found.edges[-1] >= max(values.max(), 0) - slack
    assert (found.low, found.high) == (values.min(), values.max())
    assert found.zeros == np.sum(values == 0)


def test_a_large_tensor_is_counted_in_part_without_bias() -> None:
    """A pattern that repeats each 56 elements, of which every part is met as often as it occurs."""
    columns = np.arange(1, 57, dtype=np.float32)
    values = np.broadcast_to(columns, (8, 64, 56, 56)).copy()
    collector = Histogram(2048).start()
    collector.update(observe.Seen(values, 8))
    found = collector.result()
    shares = found.counts[found.counts > 0] / found.counts.sum()
    assert len(shares) == 56
    np.testing.assert_allclose(shares, 1 / 56, rtol=0.02)
    assert found.counts.sum() == pytest.approx(values.size, rel=0.01)


def test_the_tails_of_a_large_tensor_are_counted_one_by_one() -> None:
    values = np.random.default_rng(5).standard_normal((4, 200_003)).astype(np.float32)
    values[1, 77], values[2, 100_000:100_005] = 40, -25
    collector = Histogram(2048).start()
    for row in values:
        collector.update(observe.Seen(row[np.newaxis], 1))
    found = collector.result()
    direct, _ = np.histogram(values, found.edges)
    tails = (found.centres < -3) | (found.centres > 3)
    assert np.abs(found.counts[tails] - direct[tails]).sum() <= 4  # values at an edge, in float32
    bulk = np.add.reduceat(found.counts, np.arange(0, len(direct), 64)), np.add.reduceat(direct, np.arange(0, len(direct), 64))
    np.testing.assert_allclose(bulk[0], bulk[1], atol=0.01 * values.size)
    assert found.counts.sum() == pytest.approx(values.size, rel=0.01)


def test_the_masks_of_attention_do_not_overflow() -> None:
    values = np.where(X > 0, X, np.finfo(np.float32).min)
    for observer in (MinMax(), MovingAverage(), Histogram(), ChannelRange(1), ChannelMean(1)):
        collector = observer.start()
        collector.update(observe.Seen(values, len(values)))
        found = collector.result()
        assert all(np.isfinite(getattr(found, field.name)).all() for field in dataclasses.fields(found))


def test_more_values_than_fit_are_observed_in_several_sweeps_that_run_only_what_they_need(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    proto = small_cnn()
    loaded = ir.from_proto(proto)
    names = ["c1", "r1", "a", "f", "y"]
    with context(proto, x=X) as c:
        whole = c.observe(loaded, {name: [MinMax()] for name in names})
        monkeypatch.setattr(sweeps, "SWEEP_BYTES", 4096)
        opened: list[list[str]] = []

        def open_session(part: ir.Model) -> Session:
            opened.append([node.op_type for node in part.graph])
            return c.open_session(part)

        parted = dataclasses.replace(c, open_session=open_session).observe(loaded, {name: [MinMax()] for name in names})
    for name in names:
        assert (parted[name][0].low, parted[name][0].high) == pytest.approx((whole[name][0].low, whole[name][0].high), rel=1e-5)
    assert [len(nodes) for nodes in opened] == [2, 8]


def test_values_inside_branches_and_integers_cannot_be_observed() -> None:
    proto = from_text("""
        agraph (float[N, 4] x, bool c) => (float[N, 4] y) {
            i = Cast<to = 7>(x)
            z = If(c) <
                then_branch = b () => (float[N, 4] t) { t = Relu(x) },
                else_branch = d () => (float[N, 4] e) { h = Neg(x) e = Relu(h) }
            >
            f = Cast<to = 1>(i)
            y = Add(z, f)
        }
    """)
    assert observe.observable(ir.from_proto(proto)) == {"x", "z", "f", "y"}


def test_nan_is_told_by_the_first_node_that_makes_it() -> None:
    proto = from_text("agraph (float[N, 4] x) => (float[N, 4] y) { r = Relu(x) s = Neg(r) t = Sqrt(s) u = Neg(t) y = Relu(u) }")
    rows = np.full((40, 4), -1, np.float32)
    rows[37, 2] = 5
    with context(proto, x=rows) as c, pytest.raises(ModelError) as raised:
        c.observe(ir.from_proto(proto), {"y": [MinMax()]})
    assert "the value 't' becomes NaN on sample 37 of data.npz" in raised.value.what
    assert raised.value.where == "Sqrt node 't'"


def test_nan_in_a_sample_is_told_as_such() -> None:
    proto = small_cnn()
    rows = X.copy()
    with context(proto, x=X) as c:
        assert c.data is not None
        rows[18, 1] = np.inf

        def stream(spans: Sequence[tuple[int, int]]) -> Iterator[Batch]:
            return (Batch({"x": rows[start:stop]}, None, stop - start) for start, stop in spans)

        bad = dataclasses.replace(c, data=dataclasses.replace(c.data, stream=stream))
        with pytest.raises(DataError, match="input 'x', sample 18: a value is infinite"):
            bad.observe(ir.from_proto(proto), {"c1": [MinMax()]})


def test_a_value_that_is_always_empty_is_an_error() -> None:
    proto = from_text("agraph (float[N, 4] x, int64[1] k) => (float[N, M] y) { s = Slice(x, k, k) y = Relu(s) }")
    proto.graph.input.pop()
    proto.graph.initializer.append(onnx.numpy_helper.from_array(np.zeros(1, np.int64), "k"))
    with (
        context(proto, x=np.ones((3, 4), np.float32)) as c,
        pytest.raises(DataError, match="'s' has no elements on any sample"),
    ):
        c.observe(ir.from_proto(proto), {"s": [MinMax()]})


def test_only_the_first_samples_are_observed_when_asked() -> None:
    proto = small_cnn()
    with context(proto, x=X) as c:
        found = c.observe(ir.from_proto(proto), {"x": [MinMax()]}, samples=4)
    assert found["x"][0].high == X[:4].max()


def test_only_the_part_of_the_graph_that_is_needed_runs_and_other_inputs_may_stand_by() -> None:
    """The second input is not read by what is observed, and the node that reads it would fail."""
    proto = from_text("""
        agraph (float[N, 4] x, int64[N] k) => (float[N, 4] y) {
            r = Relu(x)
            g = Gather(r, k)
            y = Neg(g)
        }
    """)
    with context(proto, x=np.full((9, 4), 2, np.float32), k=np.full(9, 77)) as c:
        found = c.observe(ir.from_proto(proto), {"r": [MinMax()]})
        assert found["r"][0].high == 2
        with pytest.raises(ModelError, match="indices element out of data bounds"):
            c.observe(ir.from_proto(proto), {"g": [MinMax()]})


def test_a_model_with_a_batch_of_its_own_and_half_precision_is_observed() -> None:
    proto = from_text("agraph (float16[3, 4] x) => (float16[3, 4] y) { r = Relu(x) y = Neg(r) }")
    rows = np.linspace(-1, 5, 36, dtype=np.float16).reshape(9, 4)
    with context(proto, x=rows) as c:
        found = c.observe(ir.from_proto(proto), {"r": [MinMax(), Keep(4)], "x": [MinMax()]})
    assert (found["r"][0].low, found["r"][0].high) == (0, 5)
    assert found["x"][0].low == -1
    np.testing.assert_array_equal(found["r"][1].joined(), np.maximum(rows[:4], 0))


def test_a_pass_observes_through_its_context_and_what_it_found_serves_the_next(tmp_path: Path) -> None:
    seen: list[observe.Range] = []

    class Look(Pass):
        name = "look"
        summary = "observe"

        def apply(self, model: ir.Model, context: Context) -> list[Change]:
            seen.append(context.observe(model, {"r1": [MinMax()]})["r1"][0])
            return []

    source = write(small_cnn(), tmp_path / "m.onnx")
    np.savez(tmp_path / "data.npz", x=X)
    steps = (Step("look", {}, Look()), Step("look again", {}, Look()))
    report = optimize(source, tmp_path / "o.onnx", recipe=Recipe("mine", "", steps), data=tmp_path / "data.npz", timing=False)
    assert all(row.kept for row in report.passes)
    assert seen[0].low == 0
    assert seen[0].high == pytest.approx(value_of(small_cnn(), "r1", {"x": X}).max(), rel=1e-6)
    assert seen[1] is seen[0]


def test_samples_are_told_as_they_go() -> None:
    told: list[object] = []

    class Tell:
        @contextmanager
        def stage(self, what: str, total: float | None = None) -> Iterator[Callable[[float], None]]:
            told.append(total)
            yield told.append

    with context(small_cnn(), x=X) as c:
        dataclasses.replace(c, progress=Tell()).observe(ir.from_proto(small_cnn()), {"r1": [MinMax()]})
    assert told[0] == sum(told[1:]) == 21
