"""Spectra against planted singular values."""

import numpy as np
import pytest
from scipy.stats import ortho_group

from resfool.attacks import lowrank, streaming
from resfool.values import Norm


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
    rows = lowrank.UnitRows(perturbations)[:, :]
    np.testing.assert_allclose(np.linalg.norm(rows, axis=1), [1, 0, 1])


def test_the_random_matrix_has_the_same_norms_and_a_flat_spectrum() -> None:
    rows = np.random.default_rng(1).normal(size=(50, 3000)) * np.arange(50)[:, np.newaxis]
    drawn = lowrank.GaussianRows(rows, 0)[:, :]
    np.testing.assert_allclose(
        np.linalg.norm(drawn, axis=1), np.linalg.norm(rows, axis=1), rtol=1e-5
    )
    # Marchenko and Pastur: all singular values of rows of norm 1 lie within 1 +- sqrt(N / D).
    values = lowrank.singular_values(lowrank.GaussianRows(np.ones((50, 3000)) / 3000**0.5, 0))
    assert 1 - 1.2 * (50 / 3000) ** 0.5 < values.min() < values.max() < 1 + 1.2 * (50 / 3000) ** 0.5


def _planted(rows: int, columns: int, values: np.ndarray, seed: int) -> np.ndarray:
    """A matrix of given singular values, the others 0."""
    random = np.random.default_rng(seed)
    left, right = (np.linalg.qr(random.normal(size=(n, len(values))))[0] for n in (rows, columns))
    return ((left * values) @ right.T).astype(np.float32)


@pytest.mark.parametrize("exact", [True, False])
@pytest.mark.parametrize("shape", [(60, 200), (200, 60)])
def test_planted_values_vectors_and_rank(shape: tuple[int, int], exact: bool) -> None:
    values = np.geomspace(20, 0.02, 12)
    matrix = _planted(*shape, values, 3)
    found = lowrank.decompose(matrix, exact=exact)
    assert found.numerical_rank == 12
    np.testing.assert_allclose(found.singular_values[:12], values, rtol=1e-4)
    assert len(found.singular_values) == 60
    assert found.vectors.shape == (12, shape[1]) and found.vectors.dtype == np.float32
    np.testing.assert_allclose(found.vectors @ found.vectors.T, np.eye(12), atol=1e-5)
    # A right singular vector is what the matrix stretches by its value, without mixing.
    stretched = np.linalg.norm(matrix @ found.vectors.T, axis=0)
    np.testing.assert_allclose(stretched, values, rtol=1e-4)
    assert found.energy(12) == pytest.approx(1)
    assert found.energy(1) == pytest.approx(values[0] ** 2 / (values**2).sum(), rel=1e-4)


@pytest.mark.parametrize("shape", [(60, 200), (200, 60)])
def test_the_two_ways_agree_in_vectors_signs_and_values(shape: tuple[int, int]) -> None:
    matrix = _planted(*shape, np.linspace(5, 1, 20), 4)
    svd, gram = (lowrank.decompose(matrix, 7, exact=exact) for exact in (True, False))
    np.testing.assert_allclose(gram.singular_values[:20], svd.singular_values[:20], rtol=1e-4)
    assert svd.vectors.shape == gram.vectors.shape == (7, shape[1])
    np.testing.assert_allclose(gram.vectors, svd.vectors, atol=1e-4)
    largest = np.abs(svd.vectors).argmax(axis=1)
    assert (svd.vectors[np.arange(7), largest] > 0).all()


def test_a_large_matrix_goes_by_pieces_and_agrees(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lowrank, "_EXACT_ENTRIES", 100_000)
    monkeypatch.setattr(streaming, "PIECE", 400)
    matrix = _planted(2000, 90, np.geomspace(100, 1, 30), 5)
    large, small = lowrank.decompose(matrix, 10), lowrank.decompose(matrix, 10, exact=True)
    np.testing.assert_allclose(large.singular_values[:30], small.singular_values[:30], rtol=1e-4)
    np.testing.assert_allclose(large.vectors, small.vectors, atol=1e-4)
    assert large.numerical_rank == small.numerical_rank == 30


def test_a_matrix_of_zeros_or_without_rows_has_rank_zero() -> None:
    for matrix in (np.zeros((5, 8), np.float32), np.zeros((0, 8), np.float32)):
        found = lowrank.decompose(matrix)
        assert found.numerical_rank == 0 and found.vectors.shape == (0, 8)
        assert found.energy(3) == 0


def test_a_rank_that_the_matrix_lacks_is_clamped_with_a_message() -> None:
    found = lowrank.decompose(_planted(30, 40, np.ones(6), 6))
    assert lowrank.clamped(6, found) == (6, None)
    rank, message = lowrank.clamped(7, found)
    assert rank == 6 and message is not None and "rank=7" in message and "rank=6" in message


def test_the_coefficients_variances() -> None:
    found = lowrank.decompose(_planted(50, 40, np.array([9.0, 3.0, 1.0]), 7))
    gaussian = lowrank.random_coefficients("gaussian", found, 3, seed=1, draws=20000)
    np.testing.assert_allclose(gaussian.var(axis=0), 25, rtol=0.05)
    singular = lowrank.random_coefficients("singular", found, 3, seed=1, draws=20000)
    np.testing.assert_allclose(singular.std(axis=0), [9, 3, 1], rtol=0.03)
    assert np.abs(gaussian.mean(axis=0)).max() < 0.15
    # A lower rank is the beginning of the same draws.
    lower = lowrank.random_coefficients("gaussian", found, 2, seed=1, draws=20000)
    np.testing.assert_array_equal(lower, gaussian[:, :2])


def test_equation_8_is_a_plain_sum_and_keeps_the_norm() -> None:
    found = lowrank.decompose(_planted(50, 40, np.array([9.0, 3.0, 1.0]), 7))
    f = np.array([[2.0, -1.0], [0.5, 3.0]])
    sums = lowrank.combined(f, found)
    for row, total in zip(f, sums, strict=True):
        plain = sum(c * v for c, v in zip(row, found.vectors, strict=False))
        np.testing.assert_allclose(total, plain, atol=1e-6)
    np.testing.assert_allclose(lowrank.sizes(sums, "l2"), np.linalg.norm(f, axis=1), rtol=1e-5)


def test_vectors_are_rescaled_to_a_norm() -> None:
    vectors = np.random.default_rng(8).normal(size=(3, 4, 5, 1)).astype(np.float32)
    vectors[2] = 0
    for norm in (Norm("l2", 3), Norm("linf", 10 / 255)):
        found = lowrank.rescaled(vectors, norm)
        np.testing.assert_allclose(
            lowrank.sizes(found, norm.kind), [norm.size, norm.size, 0], rtol=1e-6
        )
    np.testing.assert_array_equal(lowrank.rescaled(vectors, Norm("none")), vectors)
