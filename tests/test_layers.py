"""The fused layer against Keras's own two, which it stands for."""

from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf

from resfool import devices
from resfool.networks.layers import BatchNormReLU

SHAPE = (6, 5, 4, 3)


def inputs() -> tuple[Any, Any]:
    """Activations, and the gradient that comes back to them."""
    random = np.random.default_rng(0)
    x = random.normal(0.3, 2.0, SHAPE).astype(np.float32)
    return tf.constant(x), tf.constant(random.normal(size=SHAPE).astype(np.float32))


def pair(beta: float) -> tuple[BatchNormReLU, keras.layers.BatchNormalization]:
    """The fused layer and Keras's, with equal weights that no default has."""
    fused, plain = BatchNormReLU(), keras.layers.BatchNormalization()
    weights = [np.array([0.5, 1.0, 2.0]), np.full(3, beta), np.ones(3), np.full(3, 4.0)]
    for layer in (fused, plain):
        layer.build((None, *SHAPE[1:]))
        layer.set_weights(weights)
    return fused, plain


@pytest.mark.parametrize("gpu", [False, True])
@pytest.mark.parametrize("training", [True, False])
def test_outputs_and_moving_averages_agree_with_keras(
    training: bool, gpu: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(devices, "on_gpus", lambda: gpu)
    fused, plain = pair(beta=0.1)
    x, _ = inputs()
    expected = tf.nn.relu(plain(x, training=training))
    np.testing.assert_allclose(fused(x, training=training), expected, atol=1e-5)
    assert float(tf.reduce_min(expected)) == 0 < float(tf.reduce_max(expected))
    for ours, theirs in zip(fused.get_weights(), plain.get_weights(), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-5)


def test_training_normalises_each_channel() -> None:
    fused, _ = pair(beta=10.0)  # far from zero, so that ReLU cuts nothing
    y = np.asarray(fused(inputs()[0], training=True))
    np.testing.assert_allclose(y.mean(axis=(0, 1, 2)), [10, 10, 10], rtol=1e-5)
    np.testing.assert_allclose(y.std(axis=(0, 1, 2)), [0.5, 1, 2], rtol=1e-3)


@pytest.mark.parametrize("beta", [0.1, 10.0])
def test_gradients_agree_with_keras(beta: float) -> None:
    fused, plain = pair(beta)
    x, upstream = inputs()
    gradients = []
    for layer in (fused, plain):
        with tf.GradientTape() as tape:
            tape.watch(x)
            y = layer(x, training=True)
            y = y if layer is fused else tf.nn.relu(y)
        sources = [x, layer.gamma.value, layer.beta.value]
        gradients.append(tape.gradient(y, sources, output_gradients=upstream))
    for ours, theirs in zip(*gradients, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-3, atol=1e-4)


def test_bfloat16_activations_have_float32_weights_and_statistics() -> None:
    layer = BatchNormReLU(dtype="mixed_bfloat16")
    x, _ = inputs()
    y = layer(tf.cast(x, tf.bfloat16), training=True)
    assert y.dtype == tf.bfloat16
    assert {w.dtype for w in layer.weights} == {"float32"}
    exact = BatchNormReLU()
    np.testing.assert_allclose(tf.cast(y, tf.float32), exact(x, training=True), atol=0.03)
    np.testing.assert_allclose(layer.moving_mean, exact.moving_mean, atol=1e-4)


def test_it_can_be_made_again_from_its_config() -> None:
    layer = BatchNormReLU(momentum=0.5, epsilon=0.1, name="bn")
    again = BatchNormReLU.from_config(layer.get_config())
    assert (again.momentum, again.epsilon, again.name) == (0.5, 0.1, "bn")
