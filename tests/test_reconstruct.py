"""Least squares from sums over rows."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from graphopt.reconstruct import Moments, choose, fit, solve


def moments(x: np.ndarray, t: np.ndarray, batch: int = 7) -> Moments:
    found = Moments.empty(x.shape[1], t.shape[1])
    for start in range(0, len(x), batch):
        found.add(x[start : start + batch], t[start : start + batch])
    return found


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 6), st.integers(1, 4), st.integers(0, 10**6))
def test_without_a_ridge_it_is_ordinary_least_squares_with_an_intercept(k: int, out: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    x, t = rng.standard_normal((60, k)) + 3, rng.standard_normal((60, out)) - 1
    weights, bias = fit(moments(x, t), np.zeros((k, out)), ridge=1e-12)
    best = np.linalg.lstsq(np.column_stack([x, np.ones(60)]), t, rcond=None)[0]
    np.testing.assert_allclose(np.vstack([weights, bias]), best, atol=1e-6)


def test_a_bias_that_is_given_stays_and_the_weights_make_the_best_of_it() -> None:
    rng = np.random.default_rng(0)
    x, t, fixed = rng.standard_normal((60, 3)), rng.standard_normal((60, 2)), np.array([1.0, -2.0])
    weights, bias = fit(moments(x, t), np.zeros((3, 2)), bias=fixed, ridge=1e-12)
    np.testing.assert_array_equal(bias, fixed)
    np.testing.assert_allclose(weights, np.linalg.lstsq(x, t - fixed, rcond=None)[0], atol=1e-8)


def test_weights_stay_where_the_data_say_nothing() -> None:
    x = np.random.default_rng(0).standard_normal((50, 3))
    x[:, 2] = 0
    start = np.array([[5.0], [6.0], [7.0]])
    weights, _ = fit(moments(x, x[:, :1]), start)
    np.testing.assert_allclose(weights, [[1.0], [0.0], [7.0]], atol=1e-2)


def test_the_result_does_not_depend_on_the_units() -> None:
    rng = np.random.default_rng(0)
    x, t = rng.standard_normal((50, 4)), rng.standard_normal((50, 2))
    first, _ = fit(moments(x, t), np.zeros((4, 2)), ridge=1e-2)
    second, _ = fit(moments(1e4 * x, t), np.zeros((4, 2)), ridge=1e-2)
    np.testing.assert_allclose(first, 1e4 * second)


def test_a_matrix_that_rounding_left_indefinite_is_solved_all_the_same() -> None:
    matrix = np.diag([1.0, 1e-18, -1e-12])
    assert np.isfinite(solve(matrix, np.ones((3, 1)), ridge=1e-20)).all()
    np.testing.assert_array_equal(solve(np.zeros((2, 2)), np.ones((2, 1))), 0)


def test_the_ridge_is_chosen_on_rows_that_were_not_fitted() -> None:
    rng = np.random.default_rng(0)
    truth = rng.standard_normal((20, 3))
    x = rng.standard_normal((40, 20))
    t = x @ truth + 3 * rng.standard_normal((40, 3))
    [(weights, _)] = choose([moments(x[:25], t[:25])], [moments(x[25:], t[25:])], truth[None], np.zeros((1, 3))) or [(truth, 0)]
    plain, _ = fit(moments(x, t), truth, ridge=1e-4)
    assert np.linalg.norm(weights - truth) < np.linalg.norm(plain - truth)


def test_what_is_best_already_is_left_alone() -> None:
    rng = np.random.default_rng(0)
    truth, x = rng.standard_normal((6, 2)), rng.standard_normal((200, 6))
    t = x @ truth + rng.standard_normal((200, 2))
    assert choose([moments(x[:8], t[:8])], [moments(x[8:], t[8:])], truth[None], np.zeros((1, 2))) is None


def test_the_error_is_that_of_the_rows() -> None:
    rng = np.random.default_rng(0)
    x, t, weights, bias = (rng.standard_normal(shape) for shape in ((9, 3), (9, 2), (3, 2), (2,)))
    expected = ((t - x @ weights - bias) ** 2).sum() - (t**2).sum()
    np.testing.assert_allclose(moments(x, t).error(weights, bias), expected)


def test_rows_of_small_floats_are_summed_in_wider_ones() -> None:
    x, t = np.full((4096, 2), 100.0, np.float16), np.full((4096, 1), 100.0, np.float16)
    assert moments(x, t, 4096).products[0, 0] == 4096 * 1e4


def test_values_that_are_not_finite_leave_the_layer_as_it_is() -> None:
    rng = np.random.default_rng(0)
    x, t = rng.standard_normal((60, 3)), rng.standard_normal((60, 2))
    x[7, 1] = np.inf
    with np.errstate(invalid="ignore"):
        assert choose([moments(x[:50], t[:50])], [moments(x[50:], t[50:])], np.ones((1, 3, 2)), np.zeros((1, 2))) is None
