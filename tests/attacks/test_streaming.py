"""Spectra of matrices in blocks on the disk: the truth, whatever the cuts and the order."""

import random
import tracemalloc
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
import pytest

from resfool import blocks
from resfool.attacks import lowrank, streaming
from resfool.blocks import ROWS, BlockArray, Column, Plan, Writer

ROWS_OF_MATRIX = 1000


def in_blocks(folder: Path, matrix: np.ndarray, size: int) -> BlockArray:
    plan = Plan(len(matrix), size, {ROWS: Column("float32", matrix.shape[1:])})
    writer = Writer(folder / f"of{size}", plan)
    for number in range(plan.count):
        writer.write(number, {ROWS: matrix[plan.span(number)]})
    return writer.finish()[ROWS]


def of_spectrum(rows: int, columns: int, values: np.ndarray, seed: int = 0) -> np.ndarray:
    """A matrix, float32, of singular values that are planted."""
    rng = np.random.default_rng(seed)
    left, right = (np.linalg.qr(rng.normal(size=(n, len(values))))[0] for n in (rows, columns))
    return ((left * values) @ right.T).astype(np.float32)


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pieces and units of which a small matrix has several, none as long as a block."""
    monkeypatch.setattr(streaming, "PIECE", 96)
    monkeypatch.setattr(streaming, "_UNIT", 3 * 96)
    monkeypatch.setattr(streaming, "_ENTRIES", 96 * 60)
    monkeypatch.setattr(streaming, "_UNIT_ENTRIES", 3 * 96 * 60)


def backwards(work: Callable[[slice], np.ndarray], parts: Iterable[slice]) -> list[np.ndarray]:
    """A map that does the last first."""
    return [work(part) for part in list(parts)[::-1]][::-1]


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("large", [False, True])
def test_bits_are_the_same_however_rows_are_cut_and_whoever_comes_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, large: bool
) -> None:
    matrix = of_spectrum(ROWS_OF_MATRIX, 60, np.geomspace(9, 0.01, 60))
    if large:
        monkeypatch.setattr(streaming, "LARGEST_GRAM", 50)
    whole = lowrank.decompose(matrix, 5, exact=False)
    for size in (37, 96, 500, 5000):
        found = lowrank.decompose(in_blocks(tmp_path, matrix, size), 5, exact=False, each=backwards)
        np.testing.assert_array_equal(found.singular_values, whole.singular_values)
        np.testing.assert_array_equal(found.vectors, whole.vectors)
        assert found.error == whole.error


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("shape", [(ROWS_OF_MATRIX, 60), (60, ROWS_OF_MATRIX)])
def test_the_decomposition_is_numpys(tmp_path: Path, shape: tuple[int, int]) -> None:
    matrix = of_spectrum(*shape, np.geomspace(9, 0.01, 60))
    rows = in_blocks(tmp_path, matrix, 77)
    _, values, vectors = np.linalg.svd(matrix.astype(np.float64), full_matrices=False)
    for exact in (True, False):
        found = lowrank.decompose(rows, exact=exact)
        np.testing.assert_allclose(found.singular_values, values, rtol=1e-8)
        signs = np.sign((found.vectors * vectors).sum(axis=1))[:, np.newaxis]
        np.testing.assert_allclose(found.vectors * signs, vectors, atol=1e-6)
    np.testing.assert_allclose(lowrank.singular_values(rows), values, rtol=1e-8)
    along = np.concatenate(list(streaming.projections(rows, vectors[:3])))
    np.testing.assert_allclose(along, matrix @ vectors[:3].T, atol=1e-6)


def test_parts_are_added_in_the_order_of_their_numbers() -> None:
    parts = [np.random.default_rng(n).normal(size=(9, 9)) * 10.0**n for n in range(8)]
    plain = parts[0].copy()
    for part in parts[1:]:
        plain += part
    numbered = list(enumerate(parts))
    for seed in range(5):
        random.Random(seed).shuffle(numbered)
        copies = ((number, part.copy()) for number, part in numbered)
        np.testing.assert_array_equal(streaming.added_up(copies), plain)
    for lost in (numbered[1:], []):
        with pytest.raises(ValueError, match="is missing"):
            streaming.added_up((number, part.copy()) for number, part in lost)


@pytest.mark.usefixtures("small")
def test_planted_low_rank_is_found_in_two_passes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(streaming, "LARGEST_GRAM", 100)
    planted = np.array([50.0, 20, 20, 5, 0.5])
    matrix = of_spectrum(600, 450, planted)
    seen: list[int] = []

    class Counted:
        shape = matrix.shape

        def __getitem__(self, place: tuple[slice, slice], /) -> np.ndarray:
            seen.extend(range(*place[0].indices(600)))
            return matrix[place]

    found = lowrank.decompose(Counted(), exact=False)
    assert sorted(seen) == sorted([*range(600)] * 2)
    assert found.numerical_rank == 5 and found.vectors.shape == (5, 450)
    np.testing.assert_allclose(found.singular_values[:5], planted, rtol=1e-5)
    stretched = np.linalg.norm(matrix @ found.vectors.T, axis=0)
    np.testing.assert_allclose(stretched, planted, rtol=1e-5)
    assert found.energy(5) == pytest.approx(1)
    assert found.energy(1) == pytest.approx(2500 / (planted**2).sum(), abs=1e-5)
    assert found.error < 1e-5 * 50


SPECTRA = {
    "falls fast": np.geomspace(10, 1e-3, 200),
    "falls slowly": 10 / np.sqrt(np.arange(1, 201)),
    "flat": np.ones(200),
    "a step": np.r_[np.full(15, 9.0), np.full(185, 0.3)],
}


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("values", SPECTRA.values(), ids=SPECTRA)
@pytest.mark.parametrize("passes", [2, 4])
def test_the_bounds_of_what_is_missed_hold(values: np.ndarray, passes: int) -> None:
    for seed in range(4):
        matrix = of_spectrum(300, 200, values, seed)
        true = np.linalg.svd(matrix.astype(np.float64), compute_uv=False)
        found = streaming.leading(matrix, 10, passes=passes, seed=seed)
        rest = matrix - matrix @ found.vectors.T @ found.vectors
        norm = np.linalg.norm(rest, 2)
        assert norm <= found.error <= found.missed
        assert found.missed == pytest.approx(np.linalg.norm(rest), rel=1e-3)
        assert found.squares == pytest.approx((true**2).sum(), rel=1e-6)
        assert found.error < 100 * norm, "a bound that says something"
        kept = len(found.values)
        assert kept == 20 and (found.values <= true[:kept] * (1 + 1e-6)).all()
        assert (true[:kept] <= np.hypot(found.values, found.error)).all()
        np.testing.assert_allclose(found.vectors @ found.vectors.T, np.eye(kept), atol=1e-9)


def test_power_iterations_help_and_the_seed_decides() -> None:
    matrix = of_spectrum(300, 200, SPECTRA["falls slowly"])
    two, again, four = (streaming.leading(matrix, 10, passes=n, seed=1) for n in (2, 2, 4))
    np.testing.assert_array_equal(two.vectors, again.vectors)
    assert four.missed < two.missed and (four.values[:5] > two.values[:5]).all()
    assert (streaming.leading(matrix, 10, seed=2).values != two.values).all()


def test_no_more_than_some_pieces_are_in_memory(tmp_path: Path) -> None:
    size, rows = 1024, 32_768
    plan = Plan(rows, size, {ROWS: Column("float32", (128,))})
    writer = Writer(tmp_path, plan)
    rng = np.random.default_rng(0)
    for number in range(plan.count):
        writer.write(number, {ROWS: rng.standard_normal((size, 128), np.float32)})
    matrix = writer.finish()[ROWS]
    lowrank.decompose(matrix[:9000], 3, exact=False)  # what is imported stays
    peaks = []
    for _ in range(3):  # threads that other tests have left may allocate, too
        tracemalloc.start()
        try:
            found = lowrank.decompose(matrix, 3)
            peaks.append(tracemalloc.get_traced_memory()[1])
        finally:
            tracemalloc.stop()
        assert len(found.singular_values) == 128
    piece = streaming.PIECE * 128 * (4 + 8)  # as it is stored, and in float64
    assert min(peaks) < 2 * piece < rows * 128 * 4


def test_gaussian_rows_are_the_same_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lowrank, "_ENTRIES", 7 * 13)
    rows = lowrank.GaussianRows(np.ones((50, 13)), 3)
    whole = rows[:, :]
    for part in (np.s_[20:35, 2:9], np.s_[0:1, :], np.s_[6:8, 12:], np.s_[:, 5:6]):
        np.testing.assert_array_equal(rows[part], whole[part])
    drawn = np.random.default_rng(3).standard_normal((50, 13), np.float32)
    lengths = np.linalg.norm(drawn, axis=1, keepdims=True)
    np.testing.assert_allclose(whole, drawn / lengths * 13**0.5, rtol=1e-5)


def test_blocks_are_read_by_name(tmp_path: Path) -> None:
    matrix = of_spectrum(20, 4, np.ones(4))
    in_blocks(tmp_path, matrix, 6)
    gram = streaming.gram_of(blocks.read(tmp_path / "of6")[ROWS], slice(3, 11))
    np.testing.assert_allclose(gram, matrix[3:11].T @ matrix[3:11], atol=1e-6)
