"""The fast gradient sign against linear models, whose answers are known in closed form."""

from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf

from resfool.attacks import gradient
from resfool.attacks.methods.pgd import projected_gradient_descent
from resfool.attacks.methods.smallest_epsilon import smallest_epsilons
from resfool.networks import architectures, shape

SHAPE = (4, 5, 3)
PIXELS = 60


def linear_model(classes: int, scale: float = 1.0, seed: int = 0) -> keras.Model:
    """Logits W x + b with known weights."""
    random = np.random.default_rng(seed)
    images = keras.Input(SHAPE)
    dense = keras.layers.Dense(classes, name="linear")
    model = keras.Model(images, dense(keras.layers.Flatten()(images)))
    kernel = scale * random.normal(size=(PIXELS, classes))
    # Centred at mid-grey, so that the images lie on both sides of the boundary.
    dense.set_weights([kernel, -kernel.sum(axis=0) / 2])
    return model


def mid_grey_images(count: int, seed: int = 1) -> np.ndarray:
    """Images far enough from black and white for small perturbations not to be clipped."""
    random = np.random.default_rng(seed)
    return random.uniform(0.4, 0.6, (count, *SHAPE)).astype(np.float32)


def weights(model: keras.Model) -> np.ndarray:
    return np.asarray(model.get_layer("linear").get_weights()[0], np.float64)


def margins(model: keras.Model, images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Predicted classes and how far the first of two logits is ahead, in float64."""
    kernel, bias = (w.astype(np.float64) for w in model.get_layer("linear").get_weights())
    z = images.reshape(len(images), -1).astype(np.float64) @ kernel + bias
    return z.argmax(axis=1), np.abs(z[:, 0] - z[:, 1])


@pytest.mark.parametrize("scale", [1.0, 1e4])
def test_with_two_classes_the_direction_is_that_of_the_other_weights(scale: float) -> None:
    # At a scale of 1e4 every probability is exactly 0 or 1 in float32: the plain gradient is 0.
    model = linear_model(2, scale)
    labels, _ = margins(model, mid_grey_images(30))
    found = gradient.sign_gradients(model, mid_grey_images(30), labels)
    kernel = weights(model)
    away = np.sign(kernel[:, 1 - labels] - kernel[:, labels]).T.reshape(-1, *SHAPE)
    np.testing.assert_array_equal(found.signs, away)


def test_the_sign_is_that_of_the_exact_gradient_with_many_classes() -> None:
    model, images = linear_model(7, 3.0), mid_grey_images(40)
    labels = np.random.default_rng(2).integers(0, 7, 40)
    found = gradient.sign_gradients(model, images, labels)
    kernel, bias = (w.astype(np.float64) for w in model.get_layer("linear").get_weights())
    z = images.reshape(40, -1).astype(np.float64) @ kernel + bias
    p = np.exp(z - z.max(axis=1, keepdims=True))
    p /= p.sum(axis=1, keepdims=True)
    exact = (p - np.eye(7)[labels]) @ kernel.T
    clear = np.abs(exact) > 1e-4 * np.abs(exact).max(axis=1, keepdims=True)
    assert clear.mean() > 0.999
    np.testing.assert_array_equal(found.signs.reshape(40, -1)[clear], np.sign(exact)[clear])
    np.testing.assert_allclose(found.logits, z, rtol=1e-4, atol=1e-4)


def test_without_labels_the_prediction_is_attacked() -> None:
    model, images = linear_model(5), mid_grey_images(20)
    own = gradient.sign_gradients(model, images, None)
    np.testing.assert_array_equal(own.labels, own.logits.argmax(axis=1))
    same = gradient.sign_gradients(model, images, own.labels)
    np.testing.assert_array_equal(own.signs, same.signs)


def test_a_pixel_that_does_not_matter_is_not_moved() -> None:
    model = linear_model(3)
    kernel, bias = model.get_layer("linear").get_weights()
    kernel[7] = 0.0
    model.get_layer("linear").set_weights([kernel, bias])
    found = gradient.sign_gradients(model, mid_grey_images(5), np.zeros(5, int))
    assert not found.signs.reshape(5, -1)[:, 7].any()
    assert found.signs.reshape(5, -1)[:, 8].all()


def test_along_counts_what_the_closed_form_says() -> None:
    model, images = linear_model(2), mid_grey_images(200)
    classes, margin = margins(model, images)
    smallest = margin / np.abs(weights(model)[:, 0] - weights(model)[:, 1]).sum()
    directions = gradient.sign_gradients(model, images, classes).signs
    epsilons = np.quantile(smallest, [0.05, 0.3, 0.6, 0.95]).astype(np.float32) + 1e-6
    outcome = gradient.along(model, images, directions, epsilons.tolist())
    expected = (smallest[np.newaxis] < epsilons[:, np.newaxis]).mean(axis=1)
    np.testing.assert_allclose((outcome.classes != classes).mean(axis=1), expected, atol=0.006)
    np.testing.assert_allclose(
        outcome.norms, epsilons[:, np.newaxis] * PIXELS**0.5 * np.ones(200), rtol=1e-4
    )
    z = np.abs(margin[np.newaxis] - epsilons[:, np.newaxis] * (margin / smallest)[np.newaxis])
    np.testing.assert_allclose(outcome.confidences, 1 / (1 + np.exp(-z)), rtol=1e-3)


@pytest.mark.parametrize("batch_size", [1, 7, 50])
def test_the_batch_size_changes_nothing(batch_size: int) -> None:
    model, images = linear_model(4), mid_grey_images(20)
    labels = np.arange(20) % 4
    whole = gradient.sign_gradients(model, images, labels, batch_size=20)
    parts = gradient.sign_gradients(model, images, labels, batch_size=batch_size)
    np.testing.assert_array_equal(whole.signs, parts.signs)
    a = gradient.along(model, images, whole.signs, [0.01, 0.2], batch_size=20)
    b = gradient.along(model, images, whole.signs, [0.01, 0.2], batch_size=batch_size)
    np.testing.assert_array_equal(a.classes, b.classes)
    np.testing.assert_allclose(a.norms, b.norms, rtol=1e-6)
    one, other = (
        projected_gradient_descent(model, images, labels, 0.1, steps=3, batch_size=n)
        for n in (20, batch_size)
    )
    np.testing.assert_allclose(one, other, atol=1e-6)


def test_clipping_keeps_pixels_in_range_and_shortens_the_perturbation() -> None:
    model = linear_model(2)
    images = np.random.default_rng(3).uniform(0, 1, (10, *SHAPE)).astype(np.float32)
    directions = gradient.random_signs(images.shape, 0)[:]
    kept = gradient.perturbed(images, directions, 0.3)
    assert kept.min() >= 0 and kept.max() <= 1
    free = gradient.perturbed(images, directions, 0.3, clip=False)
    np.testing.assert_allclose(np.abs(free - images), 0.3, rtol=1e-5)
    for clip, moved in ((True, kept), (False, free)):
        norms = gradient.along(model, images, directions, [0.3], clip=clip).norms[0]
        expected = np.linalg.norm((moved - images).reshape(10, -1), axis=1)
        np.testing.assert_allclose(norms, expected, rtol=1e-5)


def test_the_smallest_epsilon_is_the_margin_over_the_l1_norm() -> None:
    model, images = linear_model(2), mid_grey_images(100)
    classes, margin = margins(model, images)
    exact = margin / np.abs(weights(model)[:, 0] - weights(model)[:, 1]).sum()
    directions = gradient.sign_gradients(model, images, classes).signs
    grid = [0.01, 0.05, 0.2]
    on_grid = gradient.along(model, images, directions, grid).classes
    found = smallest_epsilons(
        model, images, directions, classes, on_grid, grid, tolerance=1e-5, batch_size=30
    )
    movable = exact < grid[-1]
    assert movable.mean() > 0.5
    np.testing.assert_array_equal(np.isfinite(found), movable)
    assert (found[movable] >= exact[movable] - 1e-6).all()
    assert (found[movable] <= exact[movable] + 1.1e-5).all()


def test_at_the_smallest_epsilon_the_class_differs_on_a_deep_model_too() -> None:
    network = shape.network("resnet", depth=5, width=(4,))
    model = architectures.build(
        network, image_shape=(8, 8, 1), classes=10, mean=[0.5], std=[0.25], seed=3
    )
    images = np.random.default_rng(4).random((60, 8, 8, 1), np.float32)
    first = gradient.sign_gradients(model, images, None)
    grid = [0.02, 0.1, 0.5]
    on_grid = gradient.along(model, images, first.signs, grid).classes
    found = smallest_epsilons(
        model, images, first.signs, first.labels, on_grid, grid, tolerance=1e-3, batch_size=60
    )
    movable = np.isfinite(found)
    assert movable.sum() > 10
    for i in np.flatnonzero(movable):
        moved = gradient.perturbed(images[[i]], first.signs[[i]], found[i])
        assert gradient.judged(model, images[[i]], moved).classes[0, 0] != first.labels[i]


def test_images_that_nothing_moves_have_no_smallest_epsilon() -> None:
    model, images = linear_model(2), mid_grey_images(4)
    classes, _ = margins(model, images)
    still = np.zeros(images.shape, np.int8)
    on_grid = gradient.along(model, images, still, [0.1]).classes
    found = smallest_epsilons(
        model, images, still, classes, on_grid, [0.1], tolerance=1e-4, batch_size=4
    )
    assert np.isinf(found).all()


def test_pgd_ends_in_the_corner_that_is_worst_for_a_linear_model() -> None:
    model, images = linear_model(2), mid_grey_images(12)
    labels, _ = margins(model, images)
    directions = gradient.sign_gradients(model, images, labels).signs
    found = projected_gradient_descent(model, images, labels, 0.05, steps=10, batch_size=12)
    np.testing.assert_allclose(found, gradient.perturbed(images, directions, 0.05), atol=1e-6)


def test_pgd_starts_at_random_and_stays_in_the_ball() -> None:
    model, images = linear_model(3), mid_grey_images(6)
    labels = np.zeros(6, int)
    short: Any = {"steps": 1, "step_size": 1e-4, "batch_size": 6}
    one = projected_gradient_descent(model, images, labels, 0.05, seed=1, **short)
    again = projected_gradient_descent(model, images, labels, 0.05, seed=1, **short)
    other = projected_gradient_descent(model, images, labels, 0.05, seed=2, **short)
    np.testing.assert_array_equal(one, again)
    assert np.abs(one - other).max() > 0.01
    assert np.abs(one - images).max() <= 0.05 + 1e-6
    assert np.abs(one - images).mean() == pytest.approx(0.025, rel=0.1)  # uniform in the ball
    picked = projected_gradient_descent(
        model, images[4:], labels[4:], 0.05, seed=1, places=np.array([4, 5]), **short
    )
    np.testing.assert_allclose(picked, one[4:], atol=1e-6)


def test_pgd_is_what_a_plain_loop_does() -> None:
    network = shape.network("convnet", depth=5, width=(4,), batch_norm=False)
    model = architectures.build(
        network, image_shape=(8, 8, 1), classes=4, mean=[0.5], std=[0.25], seed=1
    )
    images = np.random.default_rng(5).random((5, 8, 8, 1), np.float32)
    labels = np.array([0, 1, 2, 3, 0])
    found = projected_gradient_descent(
        model, images, labels, 0.1, steps=4, step_size=0.04, batch_size=5
    )
    starts = [2 * np.random.default_rng([0, i]).random((8, 8, 1), np.float32) - 1 for i in range(5)]
    x = np.clip(images + np.float32(0.1) * np.stack(starts), 0, 1)
    for _ in range(4):
        with tf.GradientTape() as tape:
            point = tf.constant(x)
            tape.watch(point)
            loss = tf.reduce_sum(
                tf.nn.sparse_softmax_cross_entropy_with_logits(labels, model(point))
            )
        x = x + np.float32(0.04) * np.sign(tape.gradient(loss, point).numpy())
        x = np.clip(images + np.clip(x - images, -0.1, 0.1), 0, 1)
    differing = np.abs(found - x) > 1e-5
    assert differing.mean() < 0.01  # a gradient of nearly 0 may round to either sign


def test_random_signs_are_even_and_grow_with_the_number_of_images() -> None:
    shape = 5, 3, 1
    many = gradient.random_signs((500, *shape), 3)[:]
    assert set(np.unique(many)) == {-1, 1}
    assert abs(many.mean()) < 4 / many.size**0.5
    few = gradient.random_signs((10, *shape), 3)
    np.testing.assert_array_equal(few[:], many[:10])
    for rows in (slice(0, 1), slice(1, 4), slice(3, 10)):  # wherever they are begun with
        np.testing.assert_array_equal(few[rows], many[rows])


def test_inputs_are_not_changed() -> None:
    model, images = linear_model(2), mid_grey_images(3)
    before, labels = images.copy(), np.array([0, 1, 0])
    found = gradient.sign_gradients(model, images, labels)
    gradient.along(model, images, found.signs, [0.1])
    projected_gradient_descent(model, images, labels, 0.1, steps=2, batch_size=3)
    np.testing.assert_array_equal(images, before)
