"""Singular vectors of layers against decompositions, brute force and finite differences."""

import itertools
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf

from resfool.classifiers import adapting, inference, reaching
from resfool.errors import InputError
from resfool.universal import singular
from resfool.universal.singular import singular_trained, singular_vectors
from resfool.universal.vectors import applied
from resfool.values import Norm

SHAPE = (2, 4, 1)
PIXELS = 8
L = keras.layers


@pytest.fixture(scope="module")
def images() -> np.ndarray:
    return np.random.default_rng(0).uniform(0.4, 0.6, (20, *SHAPE)).astype(np.float32)


def linear(kernel: np.ndarray, shape: tuple[int, ...] = SHAPE) -> keras.Model:
    dense = L.Dense(kernel.shape[1], name="linear")
    model = keras.Sequential([keras.Input(shape), L.Flatten(), dense])
    dense.set_weights([kernel, np.zeros(kernel.shape[1])])
    return model


def last(model: keras.Model, images: np.ndarray, count: int = 200, **options: Any) -> Any:
    *_, found = itertools.islice(singular_vectors(model, images, **options), count)
    return found


def norm_of(kernel: np.ndarray, vector: np.ndarray, power: float, times: int) -> np.ndarray:
    """The q-norm of the same Jacobian, so many times."""
    moved = np.abs(np.asarray(vector, np.float64).reshape(-1, PIXELS) @ kernel)
    return np.asarray(times * (moved**power).sum(axis=-1)) ** (1 / power)


def test_with_p_and_q_2_it_is_the_first_right_singular_vector(images: np.ndarray) -> None:
    kernel = np.random.default_rng(1).normal(size=(PIXELS, 6))
    _, values, rows = np.linalg.svd(kernel.T)
    vector, value = last(linear(kernel), images, kind="l2", power=2.0, batch_size=7)
    assert abs(vector.ravel() @ rows[0]) == pytest.approx(1, abs=1e-5)
    assert value == pytest.approx(values[0] * 20**0.5, rel=1e-5)


@pytest.mark.parametrize("power", [1.0, 2.0, 10.0])
def test_in_linf_the_best_of_some_starts_is_the_best_of_all_signs(
    images: np.ndarray, power: float
) -> None:
    kernel = np.random.default_rng(2).normal(size=(PIXELS, 3))
    signs = np.array(list(itertools.product([-1, 1], repeat=PIXELS)))
    most = norm_of(kernel, signs, power, len(images)).max()
    model = linear(kernel)
    starts = (last(model, images, kind="linf", power=power, seed=seed) for seed in range(8))
    vector, value = max(starts, key=lambda found: found[1])
    assert set(np.unique(vector)) == {-1, 1}
    assert value == pytest.approx(most, rel=1e-5)
    assert norm_of(kernel, vector, power, len(images))[0] == pytest.approx(most, rel=1e-5)


@pytest.mark.parametrize("kind", ["l2", "linf"])
@pytest.mark.parametrize("scale", [1e-8, 1e8])
def test_no_power_is_beyond_float32_and_no_step_goes_down(
    images: np.ndarray, kind: Any, scale: float
) -> None:
    kernel = np.random.default_rng(3).normal(size=(PIXELS, 5))
    options: Any = {"kind": kind, "power": 10.0}
    found = list(itertools.islice(singular_vectors(linear(kernel * scale), images, **options), 30))
    values = np.array([value for _, value in found])
    assert (np.diff(values) > -1e-5 * values[0]).all()
    vector, value = last(linear(kernel), images, 30, **options)
    assert values[-1] == pytest.approx(value * scale, rel=1e-4)
    np.testing.assert_allclose(found[-1][0], vector, atol=1e-4)


def network() -> keras.Model:
    """A residual network with a model inside it, and a layer that is used twice."""
    inside = keras.Sequential(
        [keras.Input((6, 6, 2)), L.Conv2D(3, 3, padding="same", name="conv"), L.ReLU(name="relu")],
        name="inside",
    )
    entrance = keras.Input((6, 6, 2))
    twice = L.Dense(3, activation="tanh", name="twice")
    sum_of_both = L.Add(name="sum")([inside(entrance), L.Conv2D(3, 1, name="skip")(entrance)])
    x = L.BatchNormalization(name="norm")(twice(twice(sum_of_both)))
    exit_ = L.Dense(4, activation="softmax", name="classes")(L.Flatten(name="flat")(x))
    return keras.Model(entrance, exit_)


@pytest.fixture(scope="module")
def nested() -> keras.Model:
    keras.utils.set_random_seed(0)
    options: Any = {"image_shape": (6, 6, 2), "classes": 4, "name": "nested"}
    return adapting.as_classifier(network(), **options)


def test_layers_are_found_by_name_inside_nested_models(nested: keras.Model) -> None:
    found = reaching.layers(nested)
    names = ["conv", "relu", "skip", "sum", "twice (1)", "twice (2)", "norm", "flat", "classes"]
    assert sorted(one.name for one in found) == sorted(names)
    assert [one.name for one in found if one.narrow] == names[3:]
    with pytest.raises(InputError, match="unknown layer 'skipp'; did you mean 'skip'\\? known: "):
        reaching.named(nested, "skipp")


@pytest.mark.parametrize("name", ["relu", "twice (1)", "norm", "classes"])
def test_what_a_step_takes_for_j_is_that_of_finite_differences(
    nested: keras.Model, name: str
) -> None:
    random = np.random.default_rng(4)
    images = random.random((3, 6, 6, 2), np.float32)
    vector = random.standard_normal((6, 6, 2), np.float32)
    part = reaching.up_to(nested, reaching.named(nested, name))
    ahead, behind = (np.asarray(part(images + s * vector), np.float64) for s in (1e-3, -1e-3))
    moved = (ahead - behind) / 2e-3
    _, value = singular._raised(part, images, vector, 3.0, batch_size=2)
    assert value == pytest.approx((np.abs(moved) ** 3).sum() ** (1 / 3), rel=1e-3)
    # The slope, which is given up to a factor, raises it.
    slope, _ = singular._raised(part, images, vector, 3.0, batch_size=2)
    weights = tf.constant(np.sign(moved) * moved**2, tf.float32)
    with tf.GradientTape() as tape:
        pixels = tf.Variable(images)
        weighted = tf.reduce_sum(part(pixels) * weights)
    expected = np.asarray(tape.gradient(weighted, pixels)).sum(axis=0)
    expected /= np.abs(moved).max() ** 2
    np.testing.assert_allclose(slope, expected, rtol=1e-2, atol=1e-2 * np.abs(expected).max())


def test_layers_without_second_derivatives_are_looked_at_by_differences() -> None:
    pixels = keras.Sequential([keras.Input((4, 4, 1)), L.Resizing(3, 3), L.Activation("tanh")])
    random = np.random.default_rng(5)
    images = random.random((2, 4, 4, 1), np.float32)
    vector = random.standard_normal((4, 4, 1), np.float32)
    ahead, behind = (np.asarray(pixels(images + s * vector), np.float64) for s in (1e-2, -1e-2))
    expected = np.linalg.norm(ahead - behind) / 2e-2
    _, value = singular._raised(pixels, images, vector, 2.0, batch_size=2)
    assert value == pytest.approx(expected, rel=1e-3)


class Opaque(keras.Model):
    """A model that shows no graph."""

    def __init__(self) -> None:
        super().__init__()
        self.flat, self.dense = L.Flatten(), L.Dense(3, name="within")

    def call(self, images: Any) -> Any:
        return self.dense(self.flat(images))


def test_of_a_model_without_a_graph_there_are_the_logits(images: np.ndarray) -> None:
    opaque = Opaque()
    opaque(images)
    model = adapting.as_classifier(opaque, image_shape=SHAPE, classes=3, name="opaque")
    (found,) = singular.candidates(model)
    moved = inference.logits(reaching.up_to(model, found), images)
    np.testing.assert_array_equal(moved, inference.logits(model, images))
    with pytest.raises(InputError, match="unknown layer 'within'"):
        singular_trained(model, images, norm=Norm("l2", 1), layer="within")


def test_layers_that_are_tried_are_spread_over_the_depth() -> None:
    steps = [L.Conv2D(2, 3, padding="same", name=f"conv{n}") for n in range(11)]
    model = keras.Sequential([keras.Input((4, 4, 1)), L.Rescaling(2.0), *steps, L.Flatten()])
    names = [one.name for one in singular.candidates(model)]
    assert names == ["conv1", "conv3", "conv5", "conv7", "conv9", model.layers[-1].name]


@pytest.fixture(scope="module")
def one_sided() -> keras.Model:
    """All images are of class 0, and at most 0.5 from class 1, along the first pixel."""
    kernel = np.zeros((PIXELS, 2))
    kernel[0] = [-1, 1]
    model = linear(kernel)
    model.layers[-1].bias.assign([0.8, -0.8])
    return model


@pytest.mark.parametrize("count", [1, 20])
def test_the_sign_is_the_one_that_fools(
    images: np.ndarray, one_sided: keras.Model, count: int
) -> None:
    for seed in range(3):
        options: Any = {"norm": Norm("l2", 0.5), "seed": seed}
        fit = singular_trained(one_sided, images[:count], **options)
        expected = np.zeros(PIXELS)
        expected[0] = 0.5
        np.testing.assert_allclose(fit.vector.ravel(), expected, atol=1e-5)
        assert fit.tried[0]["fitting_fooling_rate"] == 1


def test_the_layer_and_the_power_that_fool_most_are_taken(nested: keras.Model) -> None:
    images = np.random.default_rng(6).random((30, 6, 6, 2), np.float32)
    met: list[str] = []
    options: Any = {"norm": Norm("linf", 0.3), "passes": 8}
    fit = singular_trained(
        nested, images, report=lambda search: met.append(search.layer), **options
    )
    rates = [row["fitting_fooling_rate"] for row in fit.tried]
    assert rates == sorted(rates, reverse=True)
    assert len(fit.tried) == 2 * len(singular.candidates(nested))
    assert applied(nested, images, fit.vector[np.newaxis]).rates[0] == rates[0]
    assert np.abs(fit.vector).max() == pytest.approx(0.3)
    assert len(met) == sum(row["iterations"] for row in fit.tried)
    assert len(met) <= singular.iterations(None, None, 8)
    best = fit.tried[0]
    alone = singular_trained(nested, images, layer=best["layer"], power=best["power"], **options)
    assert len(alone.tried) == 1


def test_clipped_images_decide_where_they_are_asked_for(one_sided: keras.Model) -> None:
    # The first pixel is white and can't go up: nothing is fooled, whatever the sign.
    images = np.full((3, *SHAPE), 0.5, np.float32)
    images[:, 0, 0] = 1.0
    model = keras.models.clone_model(one_sided)
    model.set_weights(one_sided.get_weights())
    model.layers[-1].bias.assign([1.1, -1.1])
    options: Any = {"norm": Norm("l2", 0.5), "layer": "linear"}
    for clip, rate in ((False, 1), (True, 0)):
        fit = singular_trained(model, images, clip=clip, **options)
        assert fit.tried[0]["fitting_fooling_rate"] == rate
