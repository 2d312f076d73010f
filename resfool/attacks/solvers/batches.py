"""What solvers that work in batches ask of a model, while it is traced."""

import time
from collections.abc import Callable, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from resfool.attacks.solvers import Ball
from resfool.attacks.solvers.problem import Attempt, Problem
from resfool.classifiers import inference


def in_batches(problem: Problem, function: Callable[[Problem], Attempt]) -> Attempt:
    """Solve a problem batch by batch, and say how long each image took."""
    parts = []
    for rows in inference.batches(len(problem.images), problem.batch_size):
        began = time.perf_counter()
        found = function(problem.picked(rows))
        found.seconds[:] = (time.perf_counter() - began) / len(found.seconds)
        parts.append(found)
        problem.progress(len(found.seconds))
    columns = zip(*(vars(part).values() for part in parts), strict=True)
    return Attempt(*map(np.concatenate, columns))


def rowwise(
    model: keras.Model,
    function: Callable[..., Any],
    arrays: Sequence[np.ndarray],
    *settings: Any,
    size: int,
) -> list[np.ndarray]:
    """What a function makes of rows, however few are left: it is compiled once for any number.

    Args:
        model: its first argument.
        function: of the model, some rows of each array and the settings, which are settled when it
            is traced; it gives several tensors, a row for each.
        arrays: (N, ...) each, N at least 1.
        *settings: of the function.
        size: rows of a pass, at most.
    """
    specs = [tf.TensorSpec((None, *a.shape[1:]), a.dtype) for a in arrays]
    compiled: Any = inference.compiled(model, function)
    call = compiled.get_concrete_function(*specs, *settings)
    found = [
        [part.numpy() for part in call(*(tf.constant(a[rows]) for a in arrays), *settings)]
        for rows in inference.batches(len(arrays[0]), size)
    ]
    return [np.concatenate(parts) for parts in zip(*found, strict=True)]


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


# A linear function rises along g by at most ||g||* for a step of norm 1, where ||.||* is the dual
# norm: l2 for l2, with a step along g, and l1 for linf, with one along g's sign.


def norms(moves: Any, norm: Ball) -> Any:
    """Of perturbations (..., D): (...)."""
    return tf.norm(moves, ord=np.inf if norm == "linf" else 2, axis=-1)


def dual_norms(slopes: Any, norm: Ball) -> Any:
    """Never 0, so that what doesn't depend on the image is far away, and nothing is NaN."""
    return tf.maximum(tf.norm(slopes, ord=1 if norm == "linf" else 2, axis=-1), 1e-10)


def shortest(rises: Any, slopes: Any, norm: Ball) -> Any:
    """The shortest steps (..., D) by which functions of slopes (..., D) rise by so much, (...)."""
    ways = tf.sign(slopes) if norm == "linf" else slopes / dual_norms(slopes, norm)[..., tf.newaxis]
    return (rises / dual_norms(slopes, norm))[..., tf.newaxis] * ways


def nearest_boundary(gaps: Any, slopes: Any, norm: Ball) -> tuple[Any, Any]:
    """Of the class whose linearised boundary is nearest: gap (B,) and slope (B, D)."""
    nearest = tf.argmin(tf.abs(gaps) / dual_norms(slopes, norm), axis=1)
    return tf.gather(gaps, nearest, batch_dims=1), tf.gather(slopes, nearest, batch_dims=1)


def shortest_inside(images: Any, rises: Any, slopes: Any, norm: Ball, clip: bool) -> Any:
    """Steps from images, as `shortest`, longer where the range of pixels takes of them, (B, D).

    How far those reach is concave in how much longer they are, with corners; Newton's method goes
    from 0 to where they reach far enough, or 64 times as far, and never beyond.
    """
    whole = shortest(rises, slopes, norm)
    if not clip:
        return whole
    flat, steep, steps = tf.reshape(images, tf.shape(whole)), tf.abs(slopes), tf.abs(whole)
    room = tf.where(whole > 0, 1.0 - flat, flat)
    wanted = tf.abs(rises)
    times, reach = tf.zeros_like(wanted), tf.zeros_like(wanted)
    for _ in tf.range(8):
        short = reach < 0.999 * wanted
        if tf.reduce_any(short & (times < 64)):
            free = tf.cast(times[:, tf.newaxis] * steps < room, tf.float32)
            rate = tf.reduce_sum(free * steep * steps, axis=1)
            further = tf.where(rate > 0, (wanted - reach) / rate, 64.0)
            times = tf.where(short, tf.minimum(times + further, 64.0), times)
            within = tf.minimum(times[:, tf.newaxis] * steps, room)
            reach = tf.reduce_sum(steep * within, axis=1)
    return inside(images, times[:, tf.newaxis] * whole, clip)
