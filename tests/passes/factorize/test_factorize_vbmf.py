"""Ranks without data: what stands out of noise."""

from __future__ import annotations

import numpy as np
import pytest

from graphopt.passes.factorize import vbmf


@pytest.mark.parametrize(("rows", "columns", "rank"), [(64, 96, 8), (96, 64, 8), (128, 128, 20), (200, 60, 3), (48, 432, 12)])
def test_the_rank_of_a_matrix_under_noise_is_found(rows: int, columns: int, rank: int) -> None:
    random = np.random.default_rng(0)
    signal = random.standard_normal((rows, rank)) @ random.standard_normal((rank, columns))
    assert vbmf.rank(signal + 0.3 * random.standard_normal((rows, columns))) == rank


def test_noise_alone_has_no_components() -> None:
    assert vbmf.rank(np.random.default_rng(0).standard_normal((80, 120))) == 0


def test_zeros_have_no_components() -> None:
    assert vbmf.rank(np.zeros((4, 6))) == 0


def test_scale_does_not_matter() -> None:
    random = np.random.default_rng(1)
    matrix = random.standard_normal((40, 5)) @ random.standard_normal((5, 70)) + 0.2 * random.standard_normal((40, 70))
    assert vbmf.rank(matrix) == vbmf.rank(1e-4 * matrix) == 5
