"""Universal perturbations against linear models, for which the truth is known, and plain loops."""

from typing import Any

import keras
import numpy as np
import pytest

from resfool import experiments
from resfool.attacks import lowrank, minimal
from resfool.attacks.lowrank import Decomposition
from resfool.attacks.minimal import Minimal
from resfool.universal import ascent, coefficients, iterated
from resfool.universal.matrices import (
    matrix_of,
    minimal_matrix,
    sign_steps,
    smallest_sign_steps,
)
from resfool.universal.options import Coefficients
from resfool.universal.vectors import applied, projected, random_vectors
from resfool.values import Norm

SHAPE = (4, 5, 1)
PIXELS = 20


def linear_model(kernel: np.ndarray, bias: np.ndarray) -> keras.Model:
    images = keras.Input(SHAPE)
    dense = keras.layers.Dense(kernel.shape[1], name="linear")
    model = keras.Model(images, dense(keras.layers.Flatten()(images)))
    dense.set_weights([kernel, bias])
    return model


@pytest.fixture(scope="module")
def images() -> np.ndarray:
    return np.random.default_rng(0).uniform(0.4, 0.6, (120, *SHAPE)).astype(np.float32)


@pytest.fixture(scope="module")
def one_sided(images: np.ndarray) -> keras.Model:
    """Two classes, all images in the first and at most 0.5 from the boundary, along the weights."""
    weights = np.random.default_rng(1).normal(size=PIXELS)
    weights /= np.linalg.norm(weights)
    scores = images.reshape(-1, PIXELS) @ weights
    threshold = scores.min() - 0.02
    assert scores.max() - threshold < 0.5
    return linear_model(np.stack([weights, -weights], axis=1), np.array([-threshold, threshold]))


@pytest.fixture(scope="module")
def five_classes() -> keras.Model:
    kernel = np.random.default_rng(2).normal(size=(PIXELS, 5))
    return linear_model(kernel, -kernel.sum(axis=0) / 2)


def _weights(model: keras.Model) -> np.ndarray:
    return np.asarray(model.get_layer("linear").get_weights()[0], np.float64)


def _rate(model: keras.Model, images: np.ndarray, vector: np.ndarray) -> float:
    return float(applied(model, images, vector[np.newaxis]).rates[0])


def test_of_few_images_each_weighs_as_much(five_classes: keras.Model, images: np.ndarray) -> None:
    few: Any = {"norm": Norm("l2", 0.3), "passes": 2}
    one, other = (
        ascent.gradient_trained(five_classes, images[:7], images_per_step=size, **few).vector
        for size in (7, 250)
    )
    np.testing.assert_array_equal(one, other)


def test_a_step_may_take_several_passes(five_classes: keras.Model, images: np.ndarray) -> None:
    options: Any = {"norm": Norm("l2", 0.3), "passes": 1, "images_per_step": 20}
    one, other = (
        ascent.gradient_trained(five_classes, images[:20], batch_size=size, **options).vector
        for size in (250, 8)
    )
    np.testing.assert_allclose(one, other, rtol=1e-3, atol=1e-5)


def test_a_group_that_is_not_full_goes_through_what_is_compiled_for_a_full_one(
    five_classes: keras.Model, images: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    def solved(model: keras.Model, some: np.ndarray, *, batch_size: int, **options: Any) -> Minimal:
        assert len(some) == batch_size
        ones = np.ones(len(some))
        return Minimal(ones, ones > 0, ones > 0, ones, ones, perturbations=2 * some)

    monkeypatch.setattr(minimal, "smallest_perturbations", solved)
    for count in (1, 3, 5):
        found = iterated._named("closest", 5)(five_classes, images[:count])
        np.testing.assert_array_equal(found, 2 * images[:count])


def test_what_is_applied_is_a_plain_loop(five_classes: keras.Model, images: np.ndarray) -> None:
    vectors = np.random.default_rng(3).normal(size=(4, *SHAPE)).astype(np.float32)
    kernel, bias = five_classes.get_layer("linear").get_weights()
    for clip in (False, True):
        found = applied(five_classes, images, vectors, clip=clip, batch_size=50)
        for classes, rate, vector in zip(found.classes, found.rates, vectors, strict=True):
            moved = np.clip(images + vector, 0, 1) if clip else images + vector
            expected = (moved.reshape(-1, PIXELS) @ kernel + bias).argmax(axis=1)
            clean = (images.reshape(-1, PIXELS) @ kernel + bias).argmax(axis=1)
            np.testing.assert_array_equal(classes, expected)
            np.testing.assert_array_equal(found.clean_classes, clean)
            assert rate == (expected != clean).mean()


def test_no_perturbation_fools_nobody(five_classes: keras.Model, images: np.ndarray) -> None:
    assert _rate(five_classes, images, np.zeros(SHAPE, np.float32)) == 0


def test_projections_have_a_closed_form() -> None:
    vector = np.array([3.0, -4.0, 0.0], np.float32)
    np.testing.assert_allclose(projected(vector, Norm("l2", 1)), [0.6, -0.8, 0], rtol=1e-6)
    np.testing.assert_array_equal(projected(vector, Norm("linf", 3.5)), [3, -3.5, 0])
    for norm in (Norm("l2", 6), Norm("linf", 4), Norm("none")):
        np.testing.assert_array_equal(projected(vector, norm), vector)


@pytest.mark.parametrize("group", [1, 25])
def test_algorithm1_finds_the_direction_that_fools_everyone(
    one_sided: keras.Model, images: np.ndarray, group: int
) -> None:
    fit = iterated.algorithm1(
        one_sided, images, norm=Norm("l2", 0.6), solver="deepfool", desired_rate=1.0, group=group
    )
    assert max(fit.rates) == _rate(one_sided, images, fit.vector) == 1
    against = -_weights(one_sided)[:, 0]
    cosine = fit.vector.ravel() @ against / np.linalg.norm(fit.vector)
    assert cosine > 0.999


@pytest.mark.parametrize("norm", [Norm("l2", 0.3), Norm("linf", 0.05)])
@pytest.mark.parametrize("fitter", [iterated.algorithm1, ascent.gradient_trained])
def test_what_is_fitted_stays_in_the_ball_and_the_best_is_kept(
    five_classes: keras.Model, images: np.ndarray, norm: Norm, fitter: Any
) -> None:
    reported = []
    options: Any = {"solver": "deepfool", "desired_rate": 1.0} if "1" in fitter.__name__ else {}

    def report(number: int, rate: float) -> None:
        reported.append((number, rate))

    fit = fitter(five_classes, images, norm=norm, passes=4, report=report, **options)
    assert lowrank.sizes(fit.vector[np.newaxis], norm.kind)[0] <= norm.size * (1 + 1e-6)
    assert reported == list(enumerate(fit.rates))
    judged = images
    if fitter is ascent.gradient_trained:  # of so few images it sets half aside
        judged = images[ascent._divided(len(images), np.random.default_rng(0))[1]]
        assert len(judged) == len(images) / 2
    assert _rate(five_classes, judged, fit.vector) == max(fit.rates) > 0
    again = fitter(five_classes, images, norm=norm, passes=4, **options)
    np.testing.assert_array_equal(again.vector, fit.vector)


def test_algorithm1_stops_at_the_desired_rate(one_sided: keras.Model, images: np.ndarray) -> None:
    # The exact answer to the inner problem, and by hand: a solver of one's own.
    def exact(model: keras.Model, moved: np.ndarray) -> np.ndarray:
        kernel, bias = (w.astype(np.float64) for w in model.get_layer("linear").get_weights())
        ahead = moved.reshape(len(moved), -1) @ kernel[:, 0] + bias[0] + 1e-4
        return (-ahead[:, np.newaxis] * kernel[:, 0]).reshape(moved.shape).astype(np.float32)

    fit = iterated.algorithm1(
        one_sided, images, norm=Norm("l2", 0.6), solver=exact, desired_rate=0.3, group=1
    )
    assert len(fit.rates) == 1 and fit.rates[0] >= 0.3


def test_with_two_classes_every_row_is_along_the_weights(
    one_sided: keras.Model, images: np.ndarray
) -> None:
    weights = _weights(one_sided)[:, 0]
    matrices = {
        "2": minimal_matrix(one_sided, images, solver="deepfool"),
        "3": matrix_of(**sign_steps(one_sided, images, epsilon=0.1)),
        "4": matrix_of(**smallest_sign_steps(one_sided, images, tolerance=1e-6)),
    }
    for name, matrix in matrices.items():
        expected = -weights if name == "2" else -np.sign(weights)
        assert matrix.dropped == 0 and len(matrix.images) == len(images)
        found = lowrank.decompose(matrix.rows, 1)
        assert abs(found.vectors[0] @ expected) / np.linalg.norm(expected) > 0.9999
        assert found.energy(1) > 0.9999
    np.testing.assert_allclose(np.abs(matrices["3"].rows[:, :]), 0.1, rtol=1e-6)
    ahead = images.reshape(-1, PIXELS) @ weights
    ahead += one_sided.get_layer("linear").get_weights()[1][0]
    exact = ahead / np.abs(weights).sum()
    np.testing.assert_allclose(np.abs(matrices["4"].rows[:, :]).max(axis=1), exact, atol=3e-6)


def test_images_that_nothing_flips_have_no_row(images: np.ndarray) -> None:
    # The second class is out of reach: no gradient, no flip.
    model = linear_model(np.zeros((PIXELS, 2)), np.array([1.0, 0.0]))
    for matrix in (
        minimal_matrix(model, images[:7], solver="deepfool"),
        matrix_of(**sign_steps(model, images[:7], epsilon=0.1)),
        matrix_of(**smallest_sign_steps(model, images[:7])),
    ):
        assert matrix.rows.shape == (0, PIXELS)
        assert matrix.dropped == 7 and not len(matrix.images)


def test_the_first_vectors_sign_is_the_one_that_fools(
    one_sided: keras.Model, images: np.ndarray
) -> None:
    weights = _weights(one_sided)[:, 0].astype(np.float32)
    for sign in (1, -1):
        planted = Decomposition(np.ones(1), sign * weights[np.newaxis], 1)
        found = coefficients.first_vector_sign(one_sided, images, planted, norm=Norm("l2", 0.6))
        assert found == -sign


RULES: list[Coefficients] = ["gaussian", "singular", "first", "optimised"]


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("norm", [Norm("l2", 0.4), Norm("linf", 0.08), Norm("none")])
def test_every_rule_gives_the_norm_and_repeats_itself(
    five_classes: keras.Model, images: np.ndarray, rule: Coefficients, norm: Norm
) -> None:
    matrix = minimal_matrix(five_classes, images, solver="deepfool")
    decomposition = lowrank.decompose(matrix.rows)
    assert decomposition.numerical_rank == 4  # the differences of five weight vectors
    options: Any = {"norm": norm, "seed": 4, "draws": 3}
    found, again = (
        coefficients.coefficients(rule, five_classes, images, decomposition, 4, **options)
        for _ in range(2)
    )
    np.testing.assert_array_equal(found, again)
    assert found.shape == (3 if rule in ("gaussian", "singular") else 1, 4)
    vectors = coefficients.perturbations(found, decomposition, SHAPE, norm)
    if norm.kind != "none":
        np.testing.assert_allclose(lowrank.sizes(vectors, norm.kind), norm.size, rtol=1e-5)
    sums = lowrank.combined(found, decomposition).reshape(-1, *SHAPE)
    if norm.kind == "linf":  # of the whole ball, what goes furthest along the sum
        np.testing.assert_array_equal(vectors, np.float32(norm.size) * np.sign(sums))
    else:
        np.testing.assert_allclose(vectors, sums, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("norm", [Norm("l2", 0.3), Norm("linf", 0.06)])
def test_optimised_is_no_worse_than_first_and_than_gaussian_where_it_was_fitted(
    five_classes: keras.Model, images: np.ndarray, norm: Norm
) -> None:
    matrix = minimal_matrix(five_classes, images, solver="deepfool")
    decomposition = lowrank.decompose(matrix.rows)

    def rates(rule: Coefficients) -> np.ndarray:
        chosen = coefficients.coefficients(
            rule, five_classes, images, decomposition, 4, norm=norm, seed=0, draws=20
        )
        vectors = coefficients.perturbations(chosen, decomposition, SHAPE, norm)
        return applied(five_classes, images, vectors).rates

    best = rates("optimised")[0]
    assert best >= rates("first")[0]
    assert best >= rates("gaussian").max()


def test_random_vectors_have_the_norms_that_were_asked_for() -> None:
    sizes = np.array([0.0, 0.5, 3.0])
    gaussian = random_vectors(SHAPE, sizes, "l2", 0)
    np.testing.assert_allclose(lowrank.sizes(gaussian, "l2"), sizes, rtol=1e-6)
    signs = random_vectors(SHAPE, sizes, "linf", 0)
    np.testing.assert_allclose(np.abs(signs), sizes.reshape(-1, 1, 1, 1) * np.ones(SHAPE))
    np.testing.assert_array_equal(gaussian, random_vectors(SHAPE, sizes, "l2", 0))


def test_inputs_are_not_changed(five_classes: keras.Model, images: np.ndarray) -> None:
    before = images.copy()
    iterated.algorithm1(
        five_classes, images, norm=Norm("l2", 0.3), solver="deepfool", passes=1, clip=True
    )
    ascent.gradient_trained(five_classes, images, norm=Norm("l2", 0.3), passes=1, clip=True)
    np.testing.assert_array_equal(images, before)


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 5])
def test_the_mnist_networks_figures(seed: int) -> None:
    training = experiments.train(arch="mlp", dataset="mnist5k", seed=seed, steps=2000)
    model, fitting = training.model, training.dataset.train.images[:1000]
    held_out = training.dataset.test.images
    matrix = minimal_matrix(model, fitting)
    decomposition = lowrank.decompose(matrix.rows)
    random = lowrank.GaussianRows(matrix.rows, 0)[:, :]
    assert decomposition.energy(10) >= 0.8
    assert lowrank.decompose(random).energy(10) <= 0.15

    def rates(vectors: np.ndarray) -> np.ndarray:
        return applied(model, held_out, vectors).rates

    def perturbations(rule: Coefficients, rank: int, norm: Norm) -> np.ndarray:
        chosen = coefficients.coefficients(
            rule, model, fitting, decomposition, rank, norm=norm, seed=0, draws=50
        )
        return coefficients.perturbations(chosen, decomposition, fitting.shape[1:], norm)

    for rank in (5, 10):
        drawn = perturbations("gaussian", rank, Norm("none"))
        noise = random_vectors(drawn.shape[1:], lowrank.sizes(drawn, "l2"), "l2", 0)
        assert rates(drawn).mean() >= 0.75
        assert rates(drawn).mean() >= rates(noise).mean() + 0.3
    at_three = Norm("l2", 3)
    noise = random_vectors(fitting.shape[1:], np.full(50, 3.0), "l2", 0)
    assert rates(noise).mean() <= 0.08
    assert rates(perturbations("gaussian", 10, at_three)).mean() >= 0.35
    best = rates(perturbations("optimised", 10, at_three))[0]
    fit = iterated.algorithm1(model, fitting, norm=at_three)
    assert rates(fit.vector[np.newaxis])[0] >= 0.75
    assert best >= 0.75
    assert best >= rates(fit.vector[np.newaxis])[0] - 0.01
    assert best >= rates(perturbations("first", 10, at_three))[0] - 0.01
    assert rates(perturbations("optimised", 10, Norm("l2", 4)))[0] >= 0.8
