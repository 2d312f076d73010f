"""Predicted spectra of smallest perturbations: affine classifiers, whose are known, and planted."""

import keras
import numpy as np
import pytest

from resfool.attacks import lowrank
from resfool.universal import prediction
from resfool.universal.matrices import minimal_matrix
from resfool.universal.prediction import deviation, holding, linearised, power_law, predicted

SHAPE = (4, 5, 1)
PIXELS = 20


def network(*kernels: np.ndarray) -> keras.Model:
    """Fully connected layers without biases, with ReLU between them; one is a linear classifier."""
    images = keras.Input(SHAPE)
    features = keras.layers.Flatten()(images)
    layers = [keras.layers.Dense(kernel.shape[1], use_bias=False) for kernel in kernels]
    for number, layer in enumerate(layers):
        features = layer(keras.layers.ReLU()(features) if number else features)
    model = keras.Model(images, features)
    for layer, kernel in zip(layers, kernels, strict=True):
        layer.set_weights([kernel])
    return model


def normal(rows: int, columns: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(rows, columns))


def of_pixels(columns: int) -> np.ndarray:
    """A first layer whose units are positive for some images and negative for others."""
    kernel = normal(PIXELS, columns)
    return kernel - kernel.mean(axis=0)


@pytest.fixture(scope="module")
def images() -> np.ndarray:
    return np.random.default_rng(1).random((80, *SHAPE), np.float32)


def exact(kernel: np.ndarray, images: np.ndarray) -> np.ndarray:
    """The way of each image to the nearest of a linear classifier's boundaries, in plain loops."""
    ways = []
    for x in images.reshape(-1, PIXELS).astype(np.float64):
        logits = x @ kernel
        y = int(logits.argmax())
        to = [
            (logits[y] - logits[j]) / ((w := kernel[:, j] - kernel[:, y]) @ w) * w
            for j in range(len(logits))
            if j != y
        ]
        ways.append(min(to, key=np.linalg.norm))
    return np.array(ways)


@pytest.mark.parametrize("classes", [2, 6])
def test_of_a_linear_classifier_it_is_the_matrix_that_is_solved_for(
    images: np.ndarray, classes: int
) -> None:
    kernel = of_pixels(classes)
    model = network(kernel)
    steps = linearised(model, images, batch_size=30)
    np.testing.assert_allclose(steps, exact(kernel, images), rtol=1e-4, atol=1e-6)
    solved = minimal_matrix(model, images)
    found = predicted(model, solved.rows, images, batch_size=30)
    # So many directions do the differences of the gradients have.
    assert len(solved.rows) == len(images)
    assert (found.predicted.values > 1e-6 * found.predicted.values[0]).sum() == classes - 1
    figures = found.figures
    assert figures["predicted_spectrum_deviation"] < 1e-3
    assert figures["predicted_shape_deviation"] < 1e-3
    assert figures["predicted_scale_ratio"] == pytest.approx(1, abs=1e-3)
    assert figures["predicted_energy_of_10_directions"] == pytest.approx(1)
    assert "spectrum_exponent" not in figures, "nothing is left beyond those"


def test_the_scale_of_the_logits_says_nothing(images: np.ndarray) -> None:
    first, last = of_pixels(30), normal(30, 4, seed=2)
    one, other = (linearised(network(first, k), images, batch_size=80) for k in (last, 7 * last))
    np.testing.assert_allclose(one, other, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("directions", [3, 9])
def test_gradients_in_few_directions_predict_as_many_singular_values(
    images: np.ndarray, directions: int
) -> None:
    model = network(of_pixels(directions), normal(directions, 40, 2), normal(40, 4, 3))
    values = lowrank.singular_values(linearised(model, images, batch_size=80))
    assert (values > 1e-6 * values[0]).sum() == directions


def test_every_image_counts_as_one_whatever_the_batch(images: np.ndarray) -> None:
    model, done = network(of_pixels(5)), []
    linearised(model, images, batch_size=33, progress=lambda more, text="": done.append(more))
    assert sum(done) == len(images) and len(done) == 3


def test_where_there_is_no_gradient_there_is_no_step() -> None:
    taken = keras.Input(SHAPE)
    dense = keras.layers.Dense(3, use_bias=False)
    model = keras.Model(taken, dense(keras.layers.Flatten()(keras.ops.sqrt(taken))))
    some = np.full((2, *SHAPE), 0.5, np.float32)
    some[1, 0, 0, 0] = 0  # where the root is infinitely steep
    steps = linearised(model, some, batch_size=2)
    assert np.isfinite(steps).all() and steps[0].any()


def test_lengths_are_the_scale_and_directions_the_shape(images: np.ndarray) -> None:
    """Perturbations twice as long as predicted have the shape, and twice the singular values."""
    model = network(of_pixels(30), normal(30, 4, seed=2))
    steps = linearised(model, images, batch_size=80)
    figures = predicted(model, 2 * steps, images, batch_size=80).figures
    assert figures["predicted_scale_ratio"] == pytest.approx(0.5)
    assert figures["predicted_spectrum_deviation"] == pytest.approx(0.5)
    assert figures["predicted_shape_deviation"] < 1e-5
    assert figures["predicted_spectrum_exponent"] == pytest.approx(figures["spectrum_exponent"])


def test_a_planted_exponent_is_recovered() -> None:
    numbers = np.arange(1, 101)
    values = 4 * numbers**-0.7
    values[:9] *= 2  # which it isn't fitted to
    law = power_law(values, 10, 60)
    assert law is not None and (law.first, law.last) == (10, 60)
    assert law.exponent == pytest.approx(0.7) and law.scale == pytest.approx(4)
    assert law.error < 1e-12
    np.testing.assert_allclose(law.at(numbers[9:]), values[9:])
    noise = 10 ** (0.1 * np.random.default_rng(0).standard_normal(100))
    noisy = power_law(values * noise, 10, 100)
    assert noisy is not None and noisy.error == pytest.approx(0.1, rel=0.2)
    assert noisy.exponent == pytest.approx(0.7, abs=0.1)


def test_there_is_no_power_law_of_a_few_values_or_of_none() -> None:
    values = np.array([8.0, 4, 2, 1, 0.5, 0.25, 0, 0])
    assert power_law(values, 2, 6) is not None
    assert power_law(values, 3, 6) is None, "four"
    assert power_law(values, 2, 7) is None, "one is zero"
    assert power_law(values, 9, 8) is None
    assert power_law(np.zeros(8), 1, 8) is None


def test_deviations_count_up_and_down_where_the_energy_is() -> None:
    measured = np.array([3.0, 2, 1, 0.01])
    assert holding(measured, prediction.ENERGY) == 3
    assert holding(np.array([1.0, 0, 0]), prediction.ENERGY) == 1
    assert deviation(np.array([3.3, 1.8, 1, 7]), measured) == pytest.approx(0.2 / 3)
    assert deviation(np.zeros(4), measured) == 1
