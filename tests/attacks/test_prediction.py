"""Predicted spectra of smallest perturbations: affine classifiers, whose are known, and planted."""

import keras
import numpy as np
import pytest

from resfool.attacks import lowrank
from resfool.universal import prediction
from resfool.universal.matrices import minimal_matrix
from resfool.universal.prediction import Kind, deviation, holding, laws, linearised, predicted

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


def test_where_images_are_clipped_it_is_the_clipped_matrix(images: np.ndarray) -> None:
    model = network(of_pixels(2))
    free, clipped = (linearised(model, images, clip=c, batch_size=30) for c in (False, True))
    moved = images.reshape(len(images), -1) + clipped
    assert moved.min() >= -1e-6 and moved.max() <= 1 + 1e-6
    assert np.abs(clipped - free).max() > 0.01
    np.testing.assert_allclose(
        clipped, minimal_matrix(model, images, clip=True).rows[:, :], atol=1e-3
    )


@pytest.mark.parametrize("classes", [2, 6])
def test_of_a_linear_classifier_it_is_the_matrix_that_is_solved_for(
    images: np.ndarray, classes: int
) -> None:
    kernel = of_pixels(classes)
    model = network(kernel)
    steps = linearised(model, images, batch_size=30)
    np.testing.assert_allclose(steps, exact(kernel, images), rtol=1e-4, atol=1e-6)
    solved = minimal_matrix(model, images)
    noise = lowrank.singular_values(lowrank.GaussianRows(solved.rows, 0))
    found = predicted(model, solved.rows, images, noise, batch_size=30)
    # So many directions do the differences of the gradients have.
    assert len(solved.images) == len(images)
    assert (found.predicted.values > 1e-6 * found.predicted.values[0]).sum() == classes - 1
    figures = found.figures
    assert figures["predicted_spectrum_deviation"] < 1e-3
    assert figures["predicted_shape_deviation"] < 1e-3
    assert figures["predicted_scale_ratio"] == pytest.approx(1, abs=1e-3)
    assert figures["predicted_energy_of_10_directions"] == pytest.approx(1)
    assert figures["random_spectrum_deviation"] > 0.1
    assert found.better is None and "spectrum_exponent" not in figures, "nothing is left beyond"


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
    assert steps[0].all() and not steps[1].any()


def test_lengths_are_the_scale_and_directions_the_shape(images: np.ndarray) -> None:
    """Perturbations twice as long as predicted have the shape, and twice the singular values."""
    model = network(of_pixels(30), normal(30, 4, seed=2))
    steps = linearised(model, images, batch_size=80)
    found = predicted(model, 2 * steps, images, np.ones(PIXELS), batch_size=80)
    figures = found.figures
    assert figures["predicted_scale_ratio"] == pytest.approx(0.5)
    assert figures["predicted_spectrum_deviation"] == pytest.approx(0.5)
    assert figures["predicted_shape_deviation"] < 1e-5
    for name in ("exponent", "decay"):
        rates = [figures[f"{of}spectrum_{name}"] for of in ("", "predicted_")]
        assert rates[0] == pytest.approx(rates[1])
    assert found.better is not None
    ours, theirs = found.better
    errors = [law.error for law in found.measured.laws.values()]
    assert ours.error == min(errors) and theirs.kind == ours.kind and ours.first == 4


def planted(kind: Kind, numbers: np.ndarray) -> np.ndarray:
    return 4 * (numbers**-0.7 if kind == "power" else np.exp(-0.03 * numbers))


@pytest.mark.parametrize(("kind", "rate"), [("power", 0.7), ("exponential", 0.03)])
def test_a_planted_law_is_recovered(kind: Kind, rate: float) -> None:
    numbers = np.arange(1, 101)
    values = planted(kind, numbers)
    values[:9] *= 2  # which it isn't fitted to
    found = laws(values, 10, 60)
    law = found[kind]
    assert (law.kind, law.first, law.last) == (kind, 10, 60)
    assert law.rate == pytest.approx(rate) and law.height == pytest.approx(4)
    assert law.error < 1e-12 < 0.02 < max(one.error for one in found.values())
    np.testing.assert_allclose(law.at(numbers[9:]), values[9:])
    # Of noise in log10 its deviation is left.
    noise = 10 ** (0.1 * np.random.default_rng(0).standard_normal(100))
    noisy = laws(planted(kind, numbers) * noise, 1, 100)[kind]
    assert noisy.error == pytest.approx(0.1, rel=0.2)
    assert noisy.rate == pytest.approx(rate, rel=0.1)


def test_there_is_no_law_of_a_few_values_or_of_none() -> None:
    values = np.array([8.0, 4, 2, 1, 0.5, 0.25, 0, 0])
    assert laws(values, 2, 6).keys() == {"power", "exponential"}
    assert not laws(values, 3, 6), "four"
    assert not laws(values, 2, 7), "one is zero"
    assert not laws(values, 9, 8)
    assert not laws(np.zeros(8), 1, 8)


def test_deviations_count_up_and_down_where_the_energy_is() -> None:
    measured = np.array([3.0, 2, 1, 0.01])
    assert holding(measured, prediction.ENERGY) == 3
    assert holding(np.array([1.0, 0, 0]), prediction.ENERGY) == 1
    assert deviation(np.array([3.3, 1.8, 1, 7]), measured) == pytest.approx(0.2 / 3)
    assert deviation(np.zeros(4), measured) == 1
