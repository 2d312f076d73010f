"""Universal perturbations judged on held-out images, against plain NumPy on a linear model."""

from typing import Any

import keras
import numpy as np
import pytest

from resfool.attacks import lowrank
from resfool.attacks.lowrank import Decomposition
from resfool.monitor import Advance
from resfool.universal import coefficients, judging
from resfool.universal.coefficients import Search
from resfool.universal.judging import Comparison
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
    norms: Any = {"norm": Norm("none"), "equal_norm": Norm("linf", 0.3)}
    asked = Comparison([1, 4], 4, "gaussian", **norms, draws=6, seed=5)
    ranked = judging.over_ranks(model, fitting, held_out, decomposition, asked, progress=into(told))
    assert sum(told) == 2 * 2 * 6 == asked.vectors
    for row, rank in zip(ranked.rows, (1, 4), strict=True):
        drawn = lowrank.random_coefficients("gaussian", decomposition, rank, seed=5, draws=6)
        vectors = lowrank.combined(drawn, decomposition).reshape(-1, *SHAPE)
        for prefix, these in (("", vectors), ("equal_", np.float32(0.3) * np.sign(vectors))):
            l2 = np.linalg.norm(these.reshape(6, -1), axis=1)
            largest = np.abs(these).max(axis=(1, 2, 3))
            noise = random_vectors(SHAPE, l2, "l2", 5)
            signs = random_vectors(SHAPE, largest, "linf", 5)
            np.testing.assert_allclose(np.abs(signs), np.ones(SHAPE) * largest[:, None, None, None])
            assert row["rank"] == rank
            assert row[f"{prefix}l2_norm"] == pytest.approx(l2.mean(), rel=1e-5)
            for name, judged in (("", these), ("random_", noise), ("sign_noise_", signs)):
                plain = rates(kernel, held_out, judged)
                assert row[f"{prefix}{name}fooling_rate"] == pytest.approx(plain.mean())
                assert row[f"{prefix}{name}fooling_rate_std"] == pytest.approx(plain.std())
                clipped = rates(kernel, held_out, judged, clip=True).mean()
                assert row[f"{prefix}clipped_{name}fooling_rate"] == pytest.approx(clipped)
    # The draw that is kept is the best where it was fitted, whatever the held-out images say.
    best = rates(kernel, fitting, vectors).argmax()
    np.testing.assert_array_equal(ranked.vector, vectors[best])


def test_many_draws_share_the_images_evenly(
    model: keras.Model,
    kernel: np.ndarray,
    decomposition: Decomposition,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    held_out = uniform(60, 1)
    monkeypatch.setattr(judging, "_PASSES", 120)
    asked = Comparison([3], 3, "gaussian", Norm("none"), Norm("none"), draws=20, seed=5)
    (row,) = judging.over_ranks(model, uniform(9, 0), held_out, decomposition, asked).rows
    drawn = lowrank.random_coefficients("gaussian", decomposition, 3, seed=5, draws=20)
    vectors = lowrank.combined(drawn, decomposition).reshape(-1, *SHAPE)
    six = [
        rates(kernel, held_out[number % 10 * 6 :][:6], vector[np.newaxis])[0]
        for number, vector in enumerate(vectors)
    ]
    assert row["fooling_rate"] == pytest.approx(np.mean(six))
    everyone = rates(kernel, held_out, vectors)
    assert row["fooling_rate"] == pytest.approx(everyone.mean(), abs=0.1)
    # Six images can't tell rates apart as 60 do, and what they add isn't called a deviation.
    assert row["fooling_rate_std"] < np.std(six)


def test_a_share_of_the_images_adds_nothing_to_the_deviation() -> None:
    """Of perturbations that fool the same share of the images, and of some that don't."""
    random = np.random.default_rng(0)
    for rates_of_all in (np.full(4000, 0.3), random.choice([0.1, 0.6], 4000)):
        good = (100 * rates_of_all).round().astype(int)
        fooled = random.hypergeometric(good, 100 - good, 40) / 40
        found = judging._deviation(fooled, 40, 100)
        assert found == pytest.approx(rates_of_all.std(), abs=0.02)
        assert found < fooled.std()


def test_one_norm_is_judged_once(model: keras.Model, decomposition: Decomposition) -> None:
    told: list[int] = []
    asked = Comparison([2], 2, "singular", Norm("l2", 1.5), Norm("l2", 1.5), draws=3, seed=0)
    ranked = judging.over_ranks(
        model, uniform(10, 0), uniform(10, 1), decomposition, asked, progress=into(told)
    )
    (row,) = ranked.rows
    assert sum(told) == 3 == asked.vectors
    names = [name for name in row if name != "rank" and not name.startswith("equal_")]
    assert len(names) == 10
    for name in names:
        assert row[f"equal_{name}"] == row[name]


def test_a_search_that_goes_on_is_never_worse_where_it_is_fitted(
    model: keras.Model, kernel: np.ndarray, decomposition: Decomposition
) -> None:
    images, norm = uniform(80, 0), Norm("l2", 0.6)
    search = Search(model, images, decomposition, seed=0)

    def rate(f: np.ndarray) -> float:
        vectors = coefficients.perturbations(f, decomposition, SHAPE, norm)
        return float(rates(kernel, images, vectors)[0])

    weak = np.eye(12)[:1]
    at_once = search.best(6, norm)
    for rank in (4, 12, 20):  # a part of it, all of it, and all of it in a larger span
        begun = np.zeros((1, rank))
        begun[0, :12] = weak[0, :rank]
        assert rate(search.best(rank, norm, weak[0])) >= rate(begun)
        more = np.zeros((1, max(rank, 6)))
        more[0, :6] = at_once
        assert rate(search.best(max(rank, 6), norm, at_once[0])) >= rate(at_once)


def test_ranks_are_searched_from_each_other_and_all_are_judged(
    model: keras.Model, kernel: np.ndarray, decomposition: Decomposition
) -> None:
    images = uniform(80, 0)
    norms = Norm("l2", 0.6), Norm("linf", 0.2)
    asked = Comparison([1, 2, 6, 20], 6, "optimised", *norms, draws=1, seed=0)
    ranked = judging.over_ranks(model, images, images, decomposition, asked)
    found = [row["fooling_rate"] for row in ranked.rows]
    assert [row["rank"] for row in ranked.rows] == [1, 2, 6, 20]
    assert found[2] == rates(kernel, images, ranked.vector[np.newaxis])[0]
    assert found[3] > found[0] and ranked.rows[3]["equal_fooling_rate"] > found[0]


def test_the_verdict_on_a_perturbation(model: keras.Model, kernel: np.ndarray) -> None:
    held_out = uniform(80, 4)
    vector = np.random.default_rng(6).normal(size=SHAPE).astype(np.float32) / 2
    verdict = judging.verdict(model, held_out, vector, seed=7, draws=20)
    found = verdict.rates
    l2, linf = np.linalg.norm(vector), np.abs(vector).max()
    assert found["final_l2_norm"] == pytest.approx(l2, rel=1e-6)
    assert found["final_linf_norm"] == pytest.approx(linf, rel=1e-6)
    noise = verdict.gaussian.vector
    assert np.linalg.norm(noise) == pytest.approx(l2, rel=1e-6)
    for name, judged in (("", vector), ("random_", noise)):
        plain, clipped = (rates(kernel, held_out, judged[None], clip=c)[0] for c in (False, True))
        assert found[f"final_{name}fooling_rate"] == plain
        assert found[f"final_clipped_{name}fooling_rate"] == clipped
    assert found["final_fooling_rate_low"] < found["final_fooling_rate"]
    signs = random_vectors(SHAPE, np.full(20, linf), "linf", 7)
    expected = rates(kernel, held_out, signs).mean()
    assert found["final_sign_noise_fooling_rate"] == pytest.approx(expected)
    np.testing.assert_array_equal(verdict.signs.vector, signs[0])

    counts = verdict.confusion(5)
    clean = (held_out.reshape(-1, PIXELS) @ kernel).argmax(axis=1)
    np.testing.assert_array_equal(counts.sum(axis=1), np.bincount(clean, minlength=5))
    assert 1 - np.trace(counts) / 80 == pytest.approx(found["final_fooling_rate"])


def test_nothing_is_fooled_by_nothing(model: keras.Model) -> None:
    verdict = judging.verdict(model, uniform(12, 0), np.zeros(SHAPE, np.float32), seed=0)
    assert verdict.rates["final_fooling_rate"] == 0
