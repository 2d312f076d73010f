"""Scores against what can be counted by hand."""

import keras
import numpy as np
import pytest

from resfool import evaluation


def pixels_are_logits() -> keras.Model:
    images = keras.Input((1, 3, 1))
    return keras.Model(images, keras.layers.Flatten()(images))


def test_accuracy_and_loss_of_known_logits() -> None:
    logits = np.log(np.array([[0.5, 0.3, 0.2], [0.1, 0.1, 0.8], [0.6, 0.3, 0.1]], np.float32))
    images = logits.reshape(3, 1, 3, 1)
    labels = np.array([0, 2, 1])
    score = evaluation.evaluate(pixels_are_logits(), images, labels)
    assert score.accuracy == pytest.approx(2 / 3)
    assert score.loss == pytest.approx(-np.log([0.5, 0.8, 0.3]).mean(), rel=1e-6)


@pytest.mark.parametrize("batch_size", [1, 4, 7, 50])
def test_batches_of_any_size_give_the_same_logits(batch_size: int) -> None:
    images = np.random.default_rng(0).random((9, 1, 3, 1), dtype=np.float32)
    result = evaluation.logits(pixels_are_logits(), images, batch_size)
    np.testing.assert_array_equal(result, images.reshape(9, 3))


def test_huge_logits_do_not_overflow() -> None:
    images = np.array([[1e4, 0, -1e4], [-1e4, 0, 1e4]], np.float32).reshape(2, 1, 3, 1)
    score = evaluation.evaluate(pixels_are_logits(), images, np.array([0, 0]))
    assert score.accuracy == 0.5
    assert score.loss == pytest.approx(1e4)


def test_weights_that_change_change_the_result() -> None:
    images = keras.Input((1, 3, 1))
    dense = keras.layers.Dense(3)
    model = keras.Model(images, dense(keras.layers.Flatten()(images)))
    batch = np.ones((2, 1, 3, 1), np.float32)
    for value in (1.0, 2.0):
        dense.set_weights([np.full((3, 3), value), np.zeros(3)])
        np.testing.assert_allclose(evaluation.logits(model, batch), 3 * value)
