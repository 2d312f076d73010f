"""Spectra against planted singular values."""

import numpy as np
import pytest
from scipy.stats import ortho_group

from resfool.attacks import lowrank


@pytest.mark.parametrize("shape", [(30, 80), (80, 30), (40, 40)])
def test_planted_singular_values_are_found(shape: tuple[int, int]) -> None:
    left, right = (ortho_group.rvs(n, random_state=n) for n in shape)
    planted = np.geomspace(10, 0.01, min(shape))
    middle = np.zeros(shape)
    np.fill_diagonal(middle, planted)
    found = lowrank.singular_values((left @ middle @ right).astype(np.float32))
    np.testing.assert_allclose(found, planted, rtol=1e-3)


def test_many_rows_are_added_up_in_pieces() -> None:
    matrix = np.random.default_rng(0).normal(size=(9000, 7)).astype(np.float32)
    expected = np.linalg.svd(matrix.astype(np.float64), compute_uv=False)
    np.testing.assert_allclose(lowrank.singular_values(matrix), expected, rtol=1e-9)


def test_rows_of_norm_one_and_zero_rows() -> None:
    perturbations = np.zeros((3, 2, 2, 1), np.int8)
    perturbations[0] = 1
    perturbations[2, 0, 0] = -1
    rows = lowrank.unit_rows(perturbations)
    np.testing.assert_allclose(np.linalg.norm(rows, axis=1), [1, 0, 1])


def test_the_random_matrix_has_the_same_norms_and_a_flat_spectrum() -> None:
    rows = np.random.default_rng(1).normal(size=(50, 3000)) * np.arange(50)[:, np.newaxis]
    drawn = lowrank.random_matrix(rows, 0)
    np.testing.assert_allclose(
        np.linalg.norm(drawn, axis=1), np.linalg.norm(rows, axis=1), rtol=1e-5
    )
    # Marchenko and Pastur: all singular values of rows of norm 1 lie within 1 +- sqrt(N / D).
    values = lowrank.singular_values(lowrank.random_matrix(np.ones((50, 3000)) / 3000**0.5, 0))
    assert 1 - 1.2 * (50 / 3000) ** 0.5 < values.min() < values.max() < 1 + 1.2 * (50 / 3000) ** 0.5
