"""The simulation of 16-bit sums agrees with doing them, and narrows exactly the layers that would saturate."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from graphopt import targets
from graphopt.passes.quantize import saturate

from fusing import model, normal
from quantizing import quantize


def vpmaddubsw(weight: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """[rows, out], as the instruction does it: pair by pair into int16."""
    out = np.zeros((len(rows), len(weight)), np.int64)
    size = weight.shape[1]
    for row in range(len(rows)):
        for channel in range(len(weight)):
            for k in range(0, size, 2):
                total = sum(int(rows[row, i]) * int(weight[channel, i]) for i in range(k, min(k + 2, size)))
                out[row, channel] += max(-32768, min(32767, total))
    return out


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 1000), size=st.integers(1, 9), bright=st.sampled_from([40, 160, 255]))
def test_the_simulation_agrees_with_sums_in_16_bits(seed: int, size: int, bright: int) -> None:
    rng = np.random.default_rng(seed)
    weight = rng.integers(-127, 128, (5, size)).astype(np.int8)
    rows = rng.integers(0, bright + 1, (12, size)).astype(np.uint8)
    found = saturate.simulate(weight, rows)
    exact = rows.astype(np.int64) @ weight.astype(np.int64).T
    error = np.abs(exact - vpmaddubsw(weight, rows))
    assert found.worst == error.max()
    assert (found.saturated > 0) == bool(error.any())
    assert found.pairs == 5 * ((size + 1) // 2)
    if found.proven:
        assert not error.any()


def test_weights_of_seven_bits_are_proven_safe() -> None:
    weight = np.random.default_rng(0).integers(-64, 65, (16, 64)).astype(np.int8)
    rows = np.full((4, 64), 255, np.uint8)
    found = saturate.simulate(weight, rows)
    assert found.proven
    assert found.saturated == 0
    assert found.text == "no sum can saturate"


def test_only_pairs_that_can_overflow_are_risky() -> None:
    np.testing.assert_array_equal(
        saturate.risky(np.array([[127, 1, 127, 2, -127, -2, 127, -127, 127]], np.int8))[0], [0, 1, 1, 0, 0]
    )


def loud_and_quiet() -> tuple[object, dict[str, np.ndarray]]:
    """The first Conv has equal large weights on bright inputs and saturates; the second one's weights alternate."""
    loud = np.ones((4, 4, 1, 1), np.float32)
    quiet = np.tile(np.array([1, 0.001], np.float32), 2).reshape(1, 4, 1, 1).repeat(3, axis=0)
    proto = model("a = Conv(x, w) y = Conv(a, v)", w=loud, v=quiet)
    return proto, {"x": np.abs(normal(16, 4, 8, 8)) + 2}


def test_exactly_the_layers_that_saturate_get_seven_bits_on_any_cpu() -> None:
    proto, feed = loud_and_quiet()
    fixed = {"rounding": "nearest", "bias_correction": "off"}
    result = quantize(proto, feed, target=targets.load("cpu-any"), **fixed)
    said = {change.site: change for change in result.changes if "weights" in change.what}
    assert ["7 bits" in said[name].what for name in said] == [True, False]
    assert "would saturate on x64 without VNNI" in next(iter(said.values())).why
    statement = [change for change in result.changes if change.site == "model"]
    assert len(statement) == 1
    assert "without VNNI" in statement[0].why
    here = quantize(proto, feed, **fixed)
    assert not any("7 bits" in change.what for change in here.changes)


@pytest.mark.parametrize(
    ("found", "words"), [({}, "exact on x64"), ({"a": saturate.Saturation(0, 8, 0, 0, 0.0)}, "1 of 1 layers cannot")]
)
def test_the_statement_names_the_instruction_sets(found: dict[str, saturate.Saturation], words: str) -> None:
    assert words in saturate.statement(found)
