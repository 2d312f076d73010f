"""Algorithms 1 to 4 towards a class, and fitted on clipped images, on linear models."""

from typing import Any

import keras
import numpy as np
import pytest

from resfool.attacks import lowrank
from resfool.universal import coefficients, iterated, target_class
from resfool.universal.matrices import (
    Matrix,
    matrix_of,
    minimal_matrix,
    sign_steps,
    smallest_sign_steps,
)
from resfool.universal.vectors import classes_of
from resfool.values import Norm
from tests.attacks.test_universal import PIXELS, SHAPE, linear_model

TARGET = 2
KERNEL = np.random.default_rng(8).normal(size=(PIXELS, 4)).astype(np.float32)
BIAS = -KERNEL.sum(axis=0) / 2  # so that images fall into all classes


@pytest.fixture(scope="module")
def model() -> keras.Model:
    return linear_model(KERNEL, BIAS)


@pytest.fixture(scope="module")
def others(model: keras.Model) -> np.ndarray:
    """Images of any class but the target's."""
    drawn = np.random.default_rng(9).uniform(0, 1, (60, *SHAPE)).astype(np.float32)
    rows = target_class.of_other_classes(model, drawn, TARGET, 60)
    assert 30 < len(rows) < 60
    return drawn[rows]


def logits(images: np.ndarray) -> np.ndarray:
    return images.reshape(len(images), -1) @ KERNEL + BIAS


def test_the_other_model_tells_the_target_from_the_best_of_the_rest(
    model: keras.Model, others: np.ndarray
) -> None:
    moved = others + np.random.default_rng(1).normal(size=others.shape).astype(np.float32)
    both = target_class.reached(model, TARGET).predict(moved, verbose=0)
    expected = logits(moved)
    np.testing.assert_allclose(both[:, 1], expected[:, TARGET], rtol=1e-4, atol=1e-4)
    rest = np.delete(expected, TARGET, axis=1).max(axis=1)
    np.testing.assert_allclose(both[:, 0], rest, rtol=1e-4, atol=1e-4)


def matrix_by(algorithm: str, model: keras.Model, images: np.ndarray, clip: bool) -> Matrix:
    options: Any = {"clip": clip, "batch_size": 60}
    if algorithm == "2":
        return minimal_matrix(target_class.reached(model, TARGET), images, **options)
    if algorithm == "3":
        return matrix_of(**sign_steps(model, images, epsilon=0.5, target=TARGET, **options))
    return matrix_of(**smallest_sign_steps(model, images, target=TARGET, **options))


@pytest.mark.parametrize("clip", [False, True])
@pytest.mark.parametrize("algorithm", ["2", "3", "4"])
def test_rows_lead_to_the_target_and_stay_in_the_range_if_clipped(
    model: keras.Model, others: np.ndarray, algorithm: str, clip: bool
) -> None:
    matrix = matrix_by(algorithm, model, others, clip)
    assert len(matrix.images) > len(others) / 2
    moved = others[matrix.images] + matrix.rows[:, :].reshape(-1, *SHAPE)
    inside = bool((moved >= -1e-6).all() and (moved <= 1 + 1e-6).all())
    assert inside == clip
    gains = logits(moved)[:, TARGET] - logits(others[matrix.images])[:, TARGET]
    assert (gains > 0).all()
    if algorithm != "3":  # its step is as long as it was told
        reached = logits(moved).argmax(axis=1) == TARGET
        assert reached.mean() >= (1.0 if algorithm == "2" else 0.95)  # up to the tolerance


def test_the_smallest_step_to_the_target_is_that_to_the_last_half_space(
    model: keras.Model, others: np.ndarray
) -> None:
    """No shorter one can be: each other class alone asks for as much."""
    matrix = matrix_by("2", model, others, clip=False)
    scores = logits(others[matrix.images])
    gaps = scores - scores[:, [TARGET]]
    lengths = np.linalg.norm(KERNEL - KERNEL[:, [TARGET]], axis=0)
    lengths[TARGET] = 1.0
    least = (gaps / lengths).max(axis=1)
    norms = np.linalg.norm(matrix.rows[:, :], axis=1)
    assert (norms >= least * (1 - 1e-5)).all()
    assert np.median(norms / least) < 1.2


def test_signs_towards_the_target_lower_its_loss(model: keras.Model, others: np.ndarray) -> None:
    z = logits(others).astype(np.float64)
    shares = np.exp(z - z.max(axis=1, keepdims=True))
    shares /= shares.sum(axis=1, keepdims=True)
    slope = (shares - np.eye(4)[TARGET]) @ KERNEL.T.astype(np.float64)
    matrix = matrix_by("3", model, others, clip=False)
    clear = np.abs(slope) > 1e-6 * np.abs(slope).max()
    np.testing.assert_array_equal(matrix.rows[:, :][clear], (-0.5 * np.sign(slope))[clear])


@pytest.mark.parametrize("norm", [Norm("l2", 1.5), Norm("linf", 0.25)])
def test_the_coefficients_and_algorithm_1_take_images_to_the_target(
    model: keras.Model, others: np.ndarray, norm: Norm
) -> None:
    judge = target_class.reached(model, TARGET)
    found = lowrank.decompose(minimal_matrix(judge, others, batch_size=60).rows)
    f = coefficients.coefficients("optimised", judge, others, found, 3, norm=norm, seed=0)
    (low_rank,) = coefficients.perturbations(f, found, SHAPE, norm)
    fit = iterated.algorithm1(judge, others, norm=norm, passes=2, solver="deepfool")
    for vector in (low_rank, fit.vector):
        assert (classes_of(model, others, vector) == TARGET).mean() > 0.8


def test_a_clipped_row_leaves_alone_what_is_at_its_limit() -> None:
    kernel = np.zeros((PIXELS, 2), np.float32)
    kernel[0, 1], kernel[1, 1] = 3.0, 1.0
    model = linear_model(kernel, np.array([3.5, 0.0]))
    images = np.zeros((4, *SHAPE), np.float32)
    images.reshape(4, -1)[:, 0] = 1.0  # all that the first pixel can give, 0.5 below the boundary
    free, clipped = (minimal_matrix(model, images, clip=clip).rows for clip in (False, True))
    np.testing.assert_allclose(free[:, :2], np.tile([0.15, 0.05], (4, 1)), rtol=1e-3)
    np.testing.assert_allclose(clipped[:, :2], np.tile([0.0, 0.5], (4, 1)), rtol=1e-3, atol=1e-6)
