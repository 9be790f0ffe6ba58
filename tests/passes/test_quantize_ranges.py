from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from graphopt.contracts import Array
from graphopt.observe import Counts, Histogram, MovingAverage, Range, Seen
from graphopt.passes.quantize import ranges

N = 200_000
METHODS = ("minmax", "percentile", "mse", "entropy")


def counted(values: Array, bins: int = 2048) -> Counts:
    collector = Histogram(bins).start()
    for part in np.array_split(values.astype(np.float32), min(32, len(values))):
        collector.update(Seen(part.reshape(-1, 1), len(part)))
    return collector.result()


def error(values: Array, ends: tuple[float, float], levels: int = 256, *, symmetric: bool = False) -> float:
    """Mean squared error of quantizing the values themselves."""
    low, high = ends
    if symmetric:
        high = max(-low, high)
        scale, zero, first, last = 2 * high / (levels - 2), 0, 1 - levels // 2, levels // 2 - 1
    else:
        scale, first, last = (high - low) / (levels - 1), 0, levels - 1
        zero = round(-low / scale)
    integers = np.clip(np.round(values / scale) + zero, first, last)
    return float(np.mean((values - (integers - zero) * scale) ** 2))


def laplace() -> Array:
    rng = np.random.default_rng(0)
    return rng.laplace(size=N)


def relu() -> Array:
    rng = np.random.default_rng(0)
    return np.maximum(rng.laplace(size=N), 0)


def outliers() -> Array:
    rng = np.random.default_rng(0)
    values = rng.standard_normal(N)
    values[:500] = rng.choice([-1, 1], 500) * rng.uniform(5, 30, 500)
    return values


def skewed() -> Array:
    rng = np.random.default_rng(0)
    return np.where(rng.random(N) < 0.3, -0.2, 1) * rng.exponential(size=N)


@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("make", [laplace, relu, outliers, skewed])
@pytest.mark.parametrize("levels", [16, 256])
def test_mse_is_the_least_measured_error_of_all_methods_and_near_the_best_there_is(make, levels: int, symmetric: bool) -> None:
    values = make()
    found = counted(values)
    measured = {
        method: error(values, ranges.choose(found, method, levels=levels, symmetric=symmetric), levels, symmetric=symmetric)
        for method in METHODS
    }
    assert measured["mse"] <= 1.005 * min(measured.values())
    low, high = values.min(), values.max()
    tried = [(low * s, high * t) for s in np.linspace(0.1, 1, 10) for t in np.linspace(0.1, 1, 10)]
    best = min(error(values, ends, levels, symmetric=symmetric) for ends in tried)
    assert measured["mse"] <= 1.1 * best


@pytest.mark.parametrize("make", [laplace, outliers])
def test_mse_beats_the_whole_range_and_the_percentile_at_eight_bits(make) -> None:
    values = make()
    found = counted(values)
    measured = {method: error(values, ranges.choose(found, method)) for method in METHODS}
    assert measured["mse"] < 0.96 * measured["minmax"]
    assert measured["mse"] < 0.99 * measured["percentile"]


@pytest.mark.parametrize("symmetric", [False, True])
def test_entropy_clips_a_long_tail_and_nothing_of_a_uniform_distribution(symmetric: bool) -> None:
    tail = counted(np.random.default_rng(0).standard_t(3, size=N))
    low, high = ranges.choose(tail, "entropy", symmetric=symmetric)
    assert 0.05 < high / tail.high < 0.6
    assert 0.05 < low / tail.low < 0.6
    even = counted(np.random.default_rng(0).uniform(-1, 1, size=N))
    low, high = ranges.choose(even, "entropy", symmetric=symmetric)
    assert low == pytest.approx(-1, abs=0.02)
    assert high == pytest.approx(1, abs=0.02)


def test_entropy_finds_the_end_with_the_least_divergence() -> None:
    """The same by Migacz's own loop over all ends, written out, on a one-sided histogram."""
    found = counted(np.abs(np.random.default_rng(0).standard_t(3, size=N)))
    counts, levels = found.counts, 128
    divergences = {}
    for end in range(levels, len(counts) + 1):
        if counts[end - 1] == 0:
            continue
        p = counts[:end].copy()
        q = np.zeros(end)
        for level in range(levels):
            group = [i for i in range(-(-level * end // levels), -(-(level + 1) * end // levels)) if counts[i]]
            q[group] = counts[group].sum() / max(1, len(group))
        p[-1] += counts[end:].sum()
        filled = p > 0
        p, q = p[filled] / p.sum(), q[filled] / q.sum()
        divergences[end] = np.sum(p * np.log(p / q))
    _, high = ranges.choose(found, "entropy", levels=levels)
    chosen = divergences[round(high / found.width)]
    assert chosen <= min(divergences.values()) + 0.02 * (max(divergences.values()) - min(divergences.values()))
    assert chosen < 0.5 * divergences[max(divergences)]


def test_entropy_is_not_blinded_by_the_zeros_behind_a_relu() -> None:
    tail = np.abs(np.random.default_rng(0).standard_t(3, size=N))
    alone = ranges.choose(counted(tail), "entropy")
    assert ranges.choose(counted(np.concatenate([tail, np.zeros(9 * N)])), "entropy") == pytest.approx(alone, rel=0.05)


def test_each_end_is_chosen_by_itself() -> None:
    """Outliers on one side take nothing from the other."""
    values = np.random.default_rng(0).uniform(-1, 1, size=N)
    values[:5] = 50
    found = counted(values)
    for method in ("percentile", "mse", "entropy"):
        low, high = ranges.choose(found, method, levels=16 if method == "mse" else 256)
        assert low == pytest.approx(-1, abs=0.15), method
        assert high < 15, method


def test_percentile_leaves_one_value_in_ten_thousand_outside() -> None:
    values = np.random.default_rng(0).standard_normal(N)
    low, high = ranges.choose(counted(values), "percentile")
    outside = np.mean((values < low) | (values > high))
    assert outside == pytest.approx(1e-4, rel=0.3)
    assert low == pytest.approx(-high, rel=0.05)


@settings(max_examples=40, deadline=None)
@given(st.lists(st.floats(-100, 100, width=32), min_size=1, max_size=50), st.sampled_from(METHODS), st.booleans())
def test_every_range_contains_zero_and_lies_within_what_was_seen(numbers: list[float], method, symmetric: bool) -> None:
    values = np.array(numbers)
    low, high = ranges.choose(counted(values), method, symmetric=symmetric)
    assert min(values.min(), 0) <= low <= 0 <= high <= max(values.max(), 0)
    if method == "minmax":
        assert (low, high) == (min(values.min(), 0), max(values.max(), 0))


def test_sixteen_bits_need_no_clipping() -> None:
    values = laplace()
    found = counted(values)
    assert ranges.choose(found, "entropy", levels=65536) == (found.low, found.high)
    assert ranges.choose(found, "mse", levels=65536) == pytest.approx((found.low, found.high), rel=0.1)


def test_a_range_without_a_histogram_is_taken_as_it_is() -> None:
    assert ranges.choose(Range(0.5, 2.0), "moving-average") == (0.0, 2.0)
    assert ranges.OBSERVERS["moving-average"] == MovingAverage()
