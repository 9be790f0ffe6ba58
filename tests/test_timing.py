import gc
import time
from pathlib import Path

import numpy as np
import pytest

from graphopt import targets, timing
from graphopt.contracts import Session, Silent
from graphopt.errors import DataError
from graphopt.registry import runtime

import helpers
from spinning import Spinner


def compare(before: float, after: float, **options: object) -> timing.Comparison:
    options = {"limit_seconds": 5.0, "rng": np.random.default_rng(0), "progress": Silent(), **options}
    return timing.compare(lambda: Spinner(before), lambda: Spinner(after), {}, **options)


def test_a_known_speedup_is_found_by_cpu_time() -> None:
    found = compare(0.5, 0.4)
    assert found.speedup == pytest.approx(1.25, rel=0.02)
    assert found.before_ms == pytest.approx(0.5, rel=0.02)
    assert found.speedup == pytest.approx(found.before_ms / found.after_ms)
    assert found.speedup_low <= found.speedup <= found.speedup_high
    assert (found.clock, found.provider, found.converged) == ("cpu", "Spinner", True)
    assert timing.verdict(found) == "faster"


def test_equal_models_are_the_same_and_slower_ones_are_slower() -> None:
    assert timing.verdict(compare(0.3, 0.3)) == "same"
    assert timing.verdict(compare(0.3, 0.36)) == "slower"


def test_sessions_are_opened_anew_in_every_block_and_all_are_closed() -> None:
    opened, closed = Spinner.opened, Spinner.closed
    found = compare(0.3, 0.3)
    assert found.blocks >= 6
    assert Spinner.opened - opened == Spinner.closed - closed == 2 * found.blocks


def test_timing_goes_on_until_the_limit_when_the_interval_stays_too_wide() -> None:
    start = time.perf_counter()
    found = compare(0.3, 0.3, width=0.0, limit_seconds=0.5)
    assert not found.converged
    assert 0.2 < found.seconds <= time.perf_counter() - start < 3


def test_a_bound_that_is_far_away_is_decided_early() -> None:
    found = compare(0.3, 0.3, width=0.0, bound=0.5)
    assert (found.blocks, found.converged) == (6, True)
    assert found.speedup_low > 0.5


def test_models_that_are_expensive_to_load_get_one_block_which_is_not_called_converged() -> None:
    sessions = [lambda: Spinner(1, load_seconds=0.15), lambda: Spinner(1)]
    found = timing.compare(*sessions, {}, limit_seconds=0.3, rng=np.random.default_rng(0), progress=Silent())
    assert (found.blocks, found.converged) == (1, False)
    assert found.rounds >= 3


def test_slow_models_get_three_rounds_whatever_the_limit() -> None:
    found = compare(20, 10, limit_seconds=0.1)
    assert (found.blocks, found.rounds) == (1, 3)
    assert found.speedup == pytest.approx(2, rel=0.1)


def test_the_wall_clock_is_used_unless_both_sessions_allow_cpu_time() -> None:
    mixed = [lambda: Spinner(0.3), lambda: Spinner(0.3, clock="wall")]
    found = timing.compare(*mixed, {}, limit_seconds=0.5, rng=np.random.default_rng(0), progress=Silent())
    assert found.clock == "wall"


def test_the_garbage_collector_rests_while_timing_and_only_then() -> None:
    session = Spinner(0.1)
    timing.measure(lambda: session, {}, limit_seconds=0.05, progress=Silent())
    assert not session.collector_was_on
    assert gc.isenabled()


def test_latency_percentiles_are_those_of_single_runs() -> None:
    found = timing.measure(lambda: Spinner(0.5), {}, limit_seconds=0.3, progress=Silent())
    assert found.p50_ms == pytest.approx(0.5, rel=0.05)
    assert found.p50_ms <= found.p90_ms <= found.p99_ms
    assert found.throughput == pytest.approx(1000 / found.mean_ms)
    assert 3 <= found.rounds <= 1000


def test_latency_takes_three_runs_when_there_is_no_time_at_all() -> None:
    assert timing.measure(lambda: Spinner(1), {}, limit_seconds=0, progress=Silent()).rounds == 3


def cnn(path: Path, channels: int) -> Path:
    return helpers.write(helpers.small_cnn(channels=channels), path)


def on_cpu(path: Path) -> Session:
    target = targets.load("cpu")
    return runtime(target.runtime).open(path, target)


def test_a_real_model_with_four_times_the_channels_is_slower(tmp_path: Path) -> None:
    small, large = cnn(tmp_path / "small.onnx", 16), cnn(tmp_path / "large.onnx", 64)
    feed = {"x": np.ones((2, 3, 8, 8), np.float32)}
    rng = np.random.default_rng(0)
    found = timing.compare(lambda: on_cpu(small), lambda: on_cpu(large), feed, limit_seconds=2, rng=rng, progress=Silent())
    assert timing.verdict(found) == "slower"
    assert (found.clock, found.threads, found.provider) == ("cpu", 1, "CPUExecutionProvider")
    assert found.wall_after_ms >= 0.9 * found.after_ms


def test_a_feed_that_does_not_fit_is_the_users_error_and_leaves_the_collector_on(tmp_path: Path) -> None:
    path = cnn(tmp_path / "m.onnx", 8)
    with pytest.raises(DataError, match="input 'x'"):
        timing.measure(lambda: on_cpu(path), {"x": np.ones((1, 3, 8))}, limit_seconds=1, progress=Silent())
    assert gc.isenabled()
