"""The measure of the benchmark that compares smallest perturbations with other libraries'."""

import numpy as np
import pytest

from benchmarks.optimality import optimality

BEST = np.array([0.5, 1.0, 2.0])


def test_what_is_never_beaten_is_optimal() -> None:
    assert optimality(BEST, BEST) == 1


def test_what_finds_nothing_has_no_optimality() -> None:
    assert optimality(np.full(3, np.inf), BEST) == 0


def test_it_is_the_share_of_the_area_above_the_curve() -> None:
    # Above the best curve, up to 2: 1.5 + 1 + 0 in thirds. What is longer than 2 counts as nothing.
    assert optimality(np.array([1.0, 1.5, 9.0]), BEST) == pytest.approx(1.5 / 2.5)


def test_it_is_what_integrating_the_curves_gives() -> None:
    random = np.random.default_rng(0)
    best = random.random(50)
    norms = best * (1 + random.random(50))
    grid = np.linspace(0, best.max(), 20_001)
    of_attack, of_best = (1 - (each > grid[:, np.newaxis]).mean(axis=1) for each in (norms, best))
    assert optimality(norms, best) == pytest.approx(of_attack.sum() / of_best.sum(), rel=1e-3)


def test_images_that_nothing_flips_count_for_nobody() -> None:
    best = np.array([0.5, 1.0, np.inf])
    assert optimality(best, best) == 1
