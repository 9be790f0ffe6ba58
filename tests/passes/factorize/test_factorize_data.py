"""Factors are the best ones for what the layers read."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from graphopt.passes.factorize.decompose import decompose
from graphopt.passes.factorize.factors import factorize as factors
from graphopt.passes.factorize.forms import Option, Sizes, zeros

from factorizing import factorize, labelled, with_weights
from helpers import run

RNG = np.random.default_rng(1)


def _error(x: np.ndarray, m: np.ndarray, product: np.ndarray) -> float:
    return float(np.square(x @ (m - product)).sum())


@given(st.integers(2, 12), st.integers(2, 12), st.integers(1, 30), st.integers(0, 1000))
@settings(max_examples=60, deadline=None)
def test_no_product_of_the_same_rank_has_a_smaller_error_on_the_data(k: int, n: int, rows: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    x, m = rng.standard_normal((rows, k)) * rng.uniform(0.1, 3, k), rng.standard_normal((k, n))
    found = decompose(m, x.T @ x)
    singular = np.linalg.svd(x @ m, compute_uv=False)  # the best there is (Eckart and Young)
    for rank in range(1, min(k, n) + 1):
        best = float(np.square(singular[rank:]).sum())
        error = _error(x, m, found.a[:, :rank] @ found.b[:rank])
        assert error <= best + 0.01 * float(np.square(singular).sum())  # the ridge costs a little


@given(st.integers(2, 12), st.integers(2, 12), st.integers(0, 1000))
@settings(max_examples=40, deadline=None)
def test_without_data_it_is_the_singular_value_decomposition(k: int, n: int, seed: int) -> None:
    m = np.random.default_rng(seed).standard_normal((k, n))
    found = decompose(m)
    left, values, right = np.linalg.svd(m, full_matrices=False)
    for rank in range(1, min(k, n) + 1):
        expected = left[:, :rank] * values[:rank] @ right[:rank]
        np.testing.assert_allclose(found.a[:, :rank] @ found.b[:rank], expected, atol=1e-5)
        assert found.loss(rank) == pytest.approx(np.square(values[rank:]).sum() / np.square(values).sum(), abs=1e-9)


def test_directions_that_the_data_never_show_keep_the_weight() -> None:
    x = RNG.standard_normal((50, 3)) @ RNG.standard_normal((3, 12))  # three of twelve dimensions
    m = RNG.standard_normal((12, 40))
    found = decompose(m, x.T @ x)
    np.testing.assert_allclose(found.a @ found.b, m, atol=1e-4)


def test_few_ranks_of_a_large_matrix_are_as_good_as_the_best() -> None:
    rng = np.random.default_rng(0)
    m = (rng.standard_normal((1600, 40)) * 0.8 ** np.arange(40)) @ rng.standard_normal((40, 1600)) / 40
    found = decompose(m.astype(np.float32), rank=8)
    assert found.a.shape == (1600, 8)
    values = np.linalg.eigvalsh((m @ m.T)[:1600:1])[::-1]
    best = values[8:].sum() / values.sum()
    assert found.loss(8) == pytest.approx(best, rel=0.02)


def test_the_bias_makes_up_for_the_mean_of_what_is_left_out() -> None:
    x = (RNG.standard_normal((400, 24)) + 3).astype(np.float32)
    w, b = RNG.standard_normal((24, 32)).astype(np.float32), RNG.standard_normal(32).astype(np.float32)
    proto = with_weights("g (float[N, 24] x) => (float[N, 32] y) { a = MatMul(x, w)\n y = Add(a, b) }", w=w, b=b)
    done = factorize(proto, labelled("rank 4"), x=x)
    before, after = run(proto, {"x": x})["y"], run(done.proto, {"x": x})["y"]
    np.testing.assert_allclose(after.mean(axis=0), before.mean(axis=0), atol=1e-3)
    assert done.operators == ["MatMul", "MatMul", "Add"]


@pytest.mark.parametrize("label", ["rank 4", "spatial rank 6", "tucker rank 4, 8"])
def test_data_beat_no_data_in_every_form(label: str) -> None:
    mixed = np.einsum("nchw,dc->ndhw", RNG.standard_normal((24, 8, 10, 10)), RNG.standard_normal((8, 8)) * 0.5 ** np.arange(8))
    x = mixed.astype(np.float32)
    proto = with_weights(
        "g (float[N, 8, 10, 10] x) => (float[N, 16, 10, 10] y) { y = Conv <pads = [1, 1, 1, 1]> (x, w) }",
        w=RNG.standard_normal((16, 8, 3, 3)).astype(np.float32),
    )
    expected = run(proto, {"x": x})["y"]
    errors = {}
    for method in ("svd", "data"):
        done = factorize(proto, labelled(label), pass_options={"method": method}, x=x)
        assert len(done.operators) > 1
        errors[method] = float(np.square(run(done.proto, {"x": x})["y"] - expected).sum())
    assert errors["data"] < 0.9 * errors["svd"]


def test_rows_of_an_embedding_that_are_looked_up_more_often_lose_less() -> None:
    table = RNG.standard_normal((60, 16)).astype(np.float32)
    proto = with_weights("g (int64[N, 8] ids) => (float[N, 8, 16] y) { y = Gather(table, ids) }", table=table)
    often = RNG.permutation(60)
    ids = often[np.minimum(RNG.geometric(0.1, (64, 8)) - 1, 59)]
    lost = {}
    for method in ("svd", "data"):
        done = factorize(proto, labelled("rank 8"), pass_options={"method": method}, ids=ids)
        lost[method] = float(np.square(run(done.proto, {"ids": ids})["y"] - table[ids]).sum())
        unseen = run(done.proto, {"ids": np.arange(56).reshape(7, 8)})["y"]
        assert np.isfinite(unseen).all()
    assert lost["data"] < 0.8 * lost["svd"]


def test_rows_that_are_computed_or_negative_are_counted_as_well() -> None:
    table = RNG.standard_normal((60, 16)).astype(np.float32)
    ids = np.where(RNG.random((64, 8)) < 0.9, RNG.integers(0, 6, (64, 8)), RNG.integers(0, 60, (64, 8)))
    found = []
    for text, given_ids in (
        ("y = Gather(table, ids)", ids),
        ("m = Neg(ids)\n y = Gather(table, m)", -ids),
        ("y = Gather(table, ids)", ids - 60),
    ):
        proto = with_weights(f"g (int64[N, 8] ids) => (float[N, 8, 16] y) {{ {text} }}", table=table)
        done = factorize(proto, labelled("rank 8"), pass_options={"refit": False}, ids=given_ids)
        found.append(run(done.proto, {"ids": given_ids})["y"])
    for other in found[1:]:
        np.testing.assert_allclose(other, found[0], atol=1e-4)


def test_a_tied_weight_serves_both_of_its_uses() -> None:
    table = RNG.standard_normal((60, 16)).astype(np.float32)
    proto = with_weights(
        "g (int64[N, 8] ids, float[N, 16] x) => (float[N, 8, 16] rows, float[N, 60] y) "
        "{ rows = Gather(table, ids)\n y = Gemm <transB = 1> (x, table) }",
        table=table,
    )
    ids = RNG.integers(0, 60, (64, 8)) // RNG.integers(1, 9, (64, 8))
    x = (RNG.standard_normal((64, 16)) * 0.7 ** np.arange(16)).astype(np.float32)

    def lost(**pass_options: object) -> tuple[float, float]:
        done = factorize(proto, labelled("rank 8"), pass_options={"refit": False, **pass_options}, ids=ids, x=x)
        got, whole = run(done.proto, {"ids": ids, "x": x}), run(proto, {"ids": ids, "x": x})
        rows, y = (float(np.square(got[name] - whole[name]).sum() / np.square(whole[name]).sum()) for name in ("rows", "y"))
        return rows, y

    assert sum(lost()) < 0.9 * sum(lost(method="svd"))


@pytest.mark.parametrize(
    ("sizes", "option"),
    [
        (Sizes(1, 6, 10), Option("matrix", (2,))),
        (Sizes(2, 6, 10, (3, 3), (1, 1)), Option("channel", (2,))),
        (Sizes(1, 6, 10, (3, 5), (1, 1)), Option("spatial", (2,))),
        (Sizes(1, 6, 10, (3, 5), (1, 1)), Option("tucker", (2, 3))),
        (Sizes(1, 6, 10, (3, 5), (1, 1)), Option("cp", (2,))),
    ],
)
def test_what_is_timed_has_the_shapes_of_the_factors(sizes: Sizes, option: Option) -> None:
    made = factors(RNG.standard_normal((sizes.group, sizes.width, sizes.outputs)), None, sizes, [option])
    assert [part.shape for part in zeros(sizes, option)] == [part.shape for part in made.parts(option)]
