"""What solvers that work in batches ask of a model, while it is traced."""

import time
from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from resfool.attacks import balls
from resfool.attacks.solvers.problem import Attempt, Problem
from resfool.classifiers import inference
from resfool.values import BallNorm


def in_batches(problem: Problem, function: Callable[[Problem], Attempt]) -> Attempt:
    """Solve a problem batch by batch, and say how long each image took."""
    parts = []
    for rows in inference.batches(len(problem.images), problem.batch_size):
        began = time.perf_counter()
        found = function(problem.picked(rows))
        found.seconds[:] = (time.perf_counter() - began) / len(found.seconds)
        parts.append(found)
        problem.progress(len(found.seconds))
    return Attempt.joined(parts)


def moved(images: Any, moves: Any) -> Any:
    """Images (B, H, W, C) with perturbations, flat (B, D)."""
    return images + tf.reshape(moves, tf.shape(images))


def inside(images: Any, moves: Any, clip: bool) -> Any:
    """Perturbations (B, D) as they are once pixels are kept in range, if they are."""
    if not clip:
        return moves
    flat = tf.reshape(images, tf.shape(moves))
    return tf.clip_by_value(flat + moves, 0.0, 1.0) - flat


def differ(logits: Any, classes: Any) -> Any:
    """Whether the predicted classes are other ones than these."""
    return tf.argmax(logits, axis=1, output_type=classes.dtype) != classes


def top_gradients(model: keras.Model, images: Any, candidates: int) -> tuple[Any, Any, Any]:
    """The classes of the largest logits (B, K), the predicted one first; and their gradients."""
    top = tf.math.top_k(model(images, training=False), candidates).indices
    return top, *logit_gradients(model, images, top)


def logit_gradients(model: keras.Model, images: Any, top: Any) -> tuple[Any, Any]:
    """Logits of the classes `top` (B, K), and their gradients, (B, K, D)."""
    with tf.GradientTape(persistent=True, watch_accessed_variables=False) as tape:
        tape.watch(images)
        logits = model(images, training=False)

    def of_one(classes: Any) -> Any:
        picked = tf.one_hot(classes, logits.shape[1])
        slope = tape.gradient(logits, images, output_gradients=picked)
        return tf.reshape(slope, (tf.shape(images)[0], np.prod(images.shape[1:])))

    gradients = tf.map_fn(
        of_one, tf.transpose(top), fn_output_signature=tf.float32, parallel_iterations=1
    )
    return tf.gather(logits, top, batch_dims=1), tf.transpose(gradients, (1, 0, 2))


def gaps_and_slopes(logits: Any, gradients: Any) -> tuple[Any, Any]:
    """By how much the first class is ahead of the others (B, K - 1), and how they catch up."""
    return logits[:, :1] - logits[:, 1:], gradients[:, 1:] - gradients[:, :1]


def distances(gaps: Any, slopes: Any, norm: BallNorm) -> Any:
    """How far off linearised boundaries are, (B, K), by gaps (B, K) and slopes (B, K, D)."""
    flat = tf.reshape(slopes, (-1, slopes.shape[-1]))
    rates = tf.reshape(balls.dual_lengths(flat, norm), tf.shape(gaps))
    return tf.abs(gaps) / tf.maximum(rates, balls.LEAST)


def nearest_boundary(gaps: Any, slopes: Any, norm: BallNorm) -> tuple[Any, Any]:
    """Of the class whose linearised boundary is nearest: gap (B,) and slope (B, D)."""
    nearest = tf.argmin(distances(gaps, slopes, norm), axis=1)
    return tf.gather(gaps, nearest, batch_dims=1), tf.gather(slopes, nearest, batch_dims=1)
