"""Universal perturbations judged on held-out images, against plain NumPy on a linear model."""

from typing import Any

import keras
import numpy as np
import pytest

from resfool.attacks import lowrank
from resfool.attacks.lowrank import Decomposition
from resfool.monitor import Advance
from resfool.universal import judging
from resfool.universal.vectors import random_vectors
from resfool.values import Norm
from tests.attacks.test_universal import PIXELS, SHAPE, linear_model


def uniform(count: int, seed: int) -> np.ndarray:
    drawn = np.random.default_rng(seed).uniform(0.0, 1.0, (count, *SHAPE))
    return drawn.astype(np.float32)


@pytest.fixture(scope="module")
def kernel() -> np.ndarray:
    return np.random.default_rng(2).normal(size=(PIXELS, 5)).astype(np.float32)


@pytest.fixture(scope="module")
def model(kernel: np.ndarray) -> keras.Model:
    return linear_model(kernel, np.zeros(5))


@pytest.fixture(scope="module")
def decomposition() -> Decomposition:
    return lowrank.decompose(np.random.default_rng(3).normal(size=(30, PIXELS)))


def rates(
    kernel: np.ndarray, images: np.ndarray, vectors: np.ndarray, *, clip: bool = False
) -> np.ndarray:
    """Fooling rates of the linear model, vector by vector."""

    def classes(moved: np.ndarray) -> np.ndarray:
        return np.asarray((moved.reshape(-1, PIXELS) @ kernel).argmax(axis=1))

    moved = (np.clip(images + v, 0, 1) if clip else images + v for v in vectors)
    return np.array([(classes(each) != classes(images)).mean() for each in moved])


def into(told: list[int]) -> Advance:
    def advance(more: int, text: str = "", /) -> None:
        told.append(more)

    return advance


def test_every_ranks_rates_are_those_of_plain_loops(
    model: keras.Model, kernel: np.ndarray, decomposition: Decomposition
) -> None:
    fitting, held_out = uniform(40, 0), uniform(60, 1)
    told: list[int] = []
    ranked = judging.over_ranks(
        model,
        fitting,
        held_out,
        decomposition,
        [1, 4],
        4,
        rule="gaussian",
        norm=Norm("none"),
        equal_norm=Norm("linf", 0.3),
        draws=6,
        seed=5,
        progress=into(told),
    )
    options: Any = {"rule": "gaussian", "norm": Norm("none"), "equal_norm": Norm("linf", 0.3)}
    assert sum(told) == 2 * 2 * 4 * 6 == judging.vectors_over([1, 4], draws=6, **options)
    for row, rank in zip(ranked.rows, (1, 4), strict=True):
        drawn = lowrank.random_coefficients("gaussian", decomposition, rank, seed=5, draws=6)
        vectors = lowrank.combined(drawn, decomposition).reshape(-1, *SHAPE)
        equal = lowrank.rescaled(vectors, Norm("linf", 0.3))
        for prefix, these in (("", vectors), ("equal_", equal)):
            l2 = np.linalg.norm(these.reshape(6, -1), axis=1)
            noise = random_vectors(SHAPE, l2, "l2", 5)
            plain, clipped, random = (
                rates(kernel, held_out, these),
                rates(kernel, held_out, these, clip=True),
                rates(kernel, held_out, noise),
            )
            assert row["rank"] == rank
            assert row[f"{prefix}l2_norm"] == pytest.approx(l2.mean(), rel=1e-5)
            assert row[f"{prefix}fooling_rate"] == pytest.approx(plain.mean())
            assert row[f"{prefix}fooling_rate_std"] == pytest.approx(plain.std())
            assert row[f"{prefix}clipped_fooling_rate"] == pytest.approx(clipped.mean())
            assert row[f"{prefix}random_fooling_rate"] == pytest.approx(random.mean())
            assert row[f"{prefix}random_fooling_rate_std"] == pytest.approx(random.std())
            largest = np.abs(these).max(axis=(1, 2, 3))
            signs = random_vectors(SHAPE, largest, "linf", 5)
            np.testing.assert_allclose(np.abs(signs), np.ones(SHAPE) * largest[:, None, None, None])
            of_signs = rates(kernel, held_out, signs)
            assert row[f"{prefix}sign_noise_fooling_rate"] == pytest.approx(of_signs.mean())
            assert row[f"{prefix}sign_noise_fooling_rate_std"] == pytest.approx(of_signs.std())
    # The draw that is kept is the best where it was fitted, whatever the held-out images say.
    best = rates(kernel, fitting, vectors).argmax()
    np.testing.assert_array_equal(ranked.vector, vectors[best])


def test_one_norm_is_judged_once(model: keras.Model, decomposition: Decomposition) -> None:
    told: list[int] = []
    ranked = judging.over_ranks(
        model,
        uniform(10, 0),
        uniform(10, 1),
        decomposition,
        [2],
        2,
        rule="singular",
        norm=Norm("l2", 1.5),
        equal_norm=Norm("l2", 1.5),
        draws=3,
        seed=0,
        progress=into(told),
    )
    (row,) = ranked.rows
    assert sum(told) == 4 * 3
    names = [name for name in row if name != "rank" and not name.startswith("equal_")]
    assert len(names) == 8
    for name in names:
        assert row[f"equal_{name}"] == row[name]


def test_the_verdict_on_a_perturbation(model: keras.Model, kernel: np.ndarray) -> None:
    held_out = uniform(80, 4)
    vector = np.random.default_rng(6).normal(size=SHAPE).astype(np.float32) / 2
    verdict = judging.verdict(model, held_out, vector, seed=7, pictures=3)
    found = verdict.rates
    l2, linf = np.linalg.norm(vector), np.abs(vector).max()
    assert found["final_l2_norm"] == pytest.approx(l2, rel=1e-6)
    assert found["final_linf_norm"] == pytest.approx(linf, rel=1e-6)
    assert np.linalg.norm(verdict.noise) == pytest.approx(l2, rel=1e-6)
    assert found["final_fooling_rate"] == rates(kernel, held_out, vector[np.newaxis])[0]
    assert found["final_random_fooling_rate"] == rates(kernel, held_out, verdict.noise[None])[0]
    clipped = rates(kernel, held_out, vector[np.newaxis], clip=True)[0]
    assert found["final_clipped_fooling_rate"] == clipped
    signs = random_vectors(SHAPE, np.full(20, linf), "linf", 7)
    expected = rates(kernel, held_out, signs).mean()
    assert found["final_sign_noise_fooling_rate"] == pytest.approx(expected)

    counts = verdict.confusion(5)
    clean = (held_out.reshape(-1, PIXELS) @ kernel).argmax(axis=1)
    np.testing.assert_array_equal(counts.sum(axis=1), np.bincount(clean, minlength=5))
    assert 1 - np.trace(counts) / 80 == pytest.approx(found["final_fooling_rate"])

    assert len(verdict.shown) == 3 and (verdict.fooled != verdict.clean)[verdict.shown].all()
    images = held_out[verdict.shown]
    shown = np.stack([images, images + vector, images + verdict.noise], axis=1)
    np.testing.assert_array_equal(verdict.pictures, shown)


def test_nothing_fooled_leaves_no_pictures(model: keras.Model) -> None:
    verdict = judging.verdict(model, uniform(12, 0), np.zeros(SHAPE, np.float32), seed=0)
    assert not len(verdict.shown) and len(verdict.pictures) == 0
    assert verdict.rates["final_fooling_rate"] == 0
