"""How well a classifier does on a set of images."""

import weakref
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np
import tensorflow as tf

# One compiled forward pass per model; a model that is gone takes its own with it.
_forward_passes: weakref.WeakKeyDictionary[keras.Model, Callable[[Any], Any]] = (
    weakref.WeakKeyDictionary()
)


@dataclass(frozen=True)
class Score:
    """Accuracy (0 to 1) and mean cross-entropy (nats) over a set of images."""

    accuracy: float
    loss: float


def logits(model: keras.Model, images: np.ndarray, batch_size: int = 250) -> np.ndarray:
    """A model's logits for any number of images, in batches of one fixed size.

    Args:
        model: from images to logits.
        images: float32 (N, H, W, C) in [0, 1].
        batch_size: images per forward pass.

    Returns:
        float32 (N, classes).
    """
    forward = _forward_passes.get(model)
    if forward is None:
        forward = tf.function(_forward_of(weakref.ref(model)))
        _forward_passes[model] = forward
    parts = []
    for start in range(0, len(images), batch_size):
        batch = images[start : start + batch_size]
        missing = batch_size - len(batch)
        # A short last batch would be compiled anew, so it is filled up and cut again.
        padded = np.pad(batch, [(0, missing)] + [(0, 0)] * (batch.ndim - 1)) if missing else batch
        parts.append(forward(tf.constant(padded)).numpy()[: len(batch)])
    return np.concatenate(parts)


def _forward_of(model: Callable[[], Any]) -> Callable[[Any], Any]:
    return lambda images: model()(images, training=False)


def evaluate(
    model: keras.Model, images: np.ndarray, labels: np.ndarray, batch_size: int = 250
) -> Score:
    """Judge a model on labelled images.

    Args:
        model: from images to logits.
        images: float32 (N, H, W, C) in [0, 1], at least one.
        labels: int (N,).
        batch_size: images per forward pass.

    Returns:
        Accuracy and mean cross-entropy over all N images.
    """
    z = logits(model, images, batch_size).astype(np.float64)
    z -= z.max(axis=1, keepdims=True)
    log_likelihood = z[np.arange(len(labels)), labels] - np.log(np.exp(z).sum(axis=1))
    return Score(
        accuracy=float((z.argmax(axis=1) == labels).mean()), loss=float(-log_likelihood.mean())
    )
