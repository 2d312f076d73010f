"""By how much another class is ahead of an image's own, and when rounding can't undo it."""

from typing import Any

import keras
import numpy as np
import tensorflow as tf

from resfool.classifiers import inference

# The lead from which on another class counts is the largest of
LEAD = 4e-5  # of the lead that the own class had,
ROUNDING = 16 * float(np.finfo(np.float32).eps)  # of the largest logit, and
JITTERS = 4  # times what moves the logits where pixels are moved by
JITTER = 5e-7  # at most: float32 gave leads an error of up to 1.8 times that, on 7 networks


def lead(logits: Any, labels: Any) -> Any:
    """By how much the best other class is ahead of the label, (B,), as it is compiled."""
    is_label = tf.one_hot(labels, logits.shape[1], on_value=True, off_value=False)
    other = tf.reduce_max(tf.where(is_label, -np.inf, logits), axis=1)
    return other - tf.gather(logits, labels, batch_dims=1)


def leads(logits: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """The same of arrays.

    Args:
        logits: float32 (N, classes).
        labels: int (N,).

    Returns:
        float64 (N,), below 0 where the label is ahead.
    """
    others, rows = logits.astype(np.float64), np.arange(len(logits))
    own = others[rows, labels]
    others[rows, labels] = -np.inf
    return np.asarray(others.max(axis=1) - own)


def safe_leads(
    model: keras.Model,
    images: np.ndarray,
    labels: np.ndarray,
    logits: np.ndarray,
    *,
    batch_size: int = inference.BATCH_SIZE,
) -> np.ndarray:
    """The lead that another class must have to count, float64 (N,).

    Passes of other sizes, other kernels and more threads round otherwise. By how much is seen
    where the pixels are moved by a few of their own roundings, always the same way.

    Args:
        model: from images to logits.
        images: float32 (N, H, W, C) in [0, 1].
        labels: int (N,), the images' own classes.
        logits: float32 (N, classes), the model's for them.
        batch_size: images of the pass that this takes, at most.
    """
    shift = np.float32(JITTER) * (
        2 * np.random.default_rng(0).random(images.shape[1:], np.float32) - 1
    )
    moved = inference.LazyRows(len(images), lambda rows: np.clip(images[rows] + shift, 0.0, 1.0))
    there = inference.logits(model, moved, batch_size)
    bounds = [
        LEAD * -leads(logits, labels),
        ROUNDING * np.abs(logits).max(axis=1),
        JITTERS * np.abs(there - logits).max(axis=1),
    ]
    return np.asarray(np.max(bounds, axis=0), np.float64)
