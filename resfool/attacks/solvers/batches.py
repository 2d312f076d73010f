"""What solvers that work in batches ask of a model, while it is traced."""

import time
from collections.abc import Callable, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from resfool.attacks import gradient
from resfool.attacks.solvers.problem import Attempt, Problem
from resfool.classifiers import inference


def in_batches(problem: Problem, function: Callable[..., Any], *settings: Any) -> Attempt:
    """Solve a problem batch by batch with one compiled function.

    Args:
        problem: what is to be solved.
        function: of the model, images, their classes, the settings and whether to clip; it gives
            perturbations, flat (B, D), and evaluations (B,), and Python's numbers are settled when
            it is traced.
        *settings: of the function.
    """
    images, count = problem.images, len(problem.images)
    perturbations = np.empty(images.shape, np.float32)
    evaluations, seconds = np.empty(count, np.int64), np.empty(count)
    began = time.perf_counter()
    for rows, (moves, passes) in gradient.batchwise(
        problem.model,
        function,
        (images, problem.classes.astype(np.int32)),
        *settings,
        problem.clip,
        batch_size=problem.batch_size,
        progress=problem.progress,
    ):
        perturbations[rows] = moves.reshape(images[rows].shape)
        evaluations[rows] = passes
        seconds[rows] = (time.perf_counter() - began) / len(passes)
        began = time.perf_counter()
    return Attempt(perturbations, evaluations, seconds)


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
    call = inference.compiled(model, function).get_concrete_function(*specs, *settings)
    found = [
        [part.numpy() for part in call(*(tf.constant(a[rows]) for a in arrays))]
        for rows in inference.batches(len(arrays[0]), size)
    ]
    return [np.concatenate(parts) for parts in zip(*found, strict=True)]


HALVINGS = 8  # on the way back to the boundary
WALK_HALVINGS = 4  # after a step along it
_MISS = 0.97  # how far inside the boundary a step along it may have ended
_GAIN = 0.9999  # what such a step must shorten the norm to


class Surroundings:
    """B images with what the solvers ask of the model near them, while it is traced.

    A pair (perturbations (B, D), norms (B,)) is the best that was found so far; norms are inf
    where nothing was.
    """

    def __init__(self, model: keras.Model, images: Any, classes: Any, clip: bool) -> None:
        self._model, self._images, self._classes, self._clip = model, images, classes, clip
        self._flat = tf.reshape(images, (images.shape[0], -1))

    def none(self) -> tuple[Any, Any]:
        return tf.zeros_like(self._flat), tf.fill(tf.shape(self._flat)[:1], np.inf)

    def moved(self, moves: Any) -> Any:
        return self._images + tf.reshape(moves, tf.shape(self._images))

    def inside(self, moves: Any) -> Any:
        """Perturbations as they are once pixels are kept in range, if they are."""
        if not self._clip:
            return moves
        return tf.clip_by_value(self._flat + moves, 0.0, 1.0) - self._flat

    def differ(self, logits: Any) -> Any:
        return tf.argmax(logits, axis=1, output_type=self._classes.dtype) != self._classes

    def flips(self, moves: Any) -> Any:
        return self.differ(self._model(self.moved(moves), training=False))

    def shorter(self, best: tuple[Any, Any], other: tuple[Any, Any]) -> tuple[Any, Any]:
        wins = other[1] < best[1]
        moves = tf.where(wins[:, tf.newaxis], other[0], best[0])
        return moves, tf.where(wins, other[1], best[1])

    def better(self, best: tuple[Any, Any], moves: Any) -> tuple[Any, Any]:
        return self.shorter(best, (moves, tf.where(self.flips(moves), l2_norms(moves), np.inf)))

    def shortened(self, best: tuple[Any, Any]) -> tuple[Any, Any]:
        """Found perturbations scaled down to where they just flip."""
        lengths = self._bisected(best[0], 0.0, tf.ones_like(best[1]), HALVINGS)
        return best[0] * lengths[:, tf.newaxis], best[1] * lengths

    def walked(self, best: tuple[Any, Any], steps: int) -> tuple[Any, Any]:
        """Found perturbations after steps along the boundary to where it is closer."""
        share = tf.ones_like(best[1])
        anyone = tf.fill(tf.shape(self._classes), -1)
        for _ in tf.range(steps):
            moves, norms = best
            nearest = self.nearest_of_boundary(moves, anyone)
            there = self.inside(moves + share[:, tf.newaxis] * (nearest - moves))
            # Only what is shorter than the best is of interest: does that still flip?
            high = tf.math.divide_no_nan(_GAIN * norms, l2_norms(there))
            high = tf.where(tf.math.is_finite(high), high, 0.0)
            helps = self.flips(self.inside(high[:, tf.newaxis] * there))
            high = self._bisected(there, _MISS * tf.minimum(high, 1.0), high, WALK_HALVINGS)
            there = self.inside(high[:, tf.newaxis] * there)
            best = self.shorter(best, (there, tf.where(helps, l2_norms(there), np.inf)))
            share = tf.where(helps, tf.minimum(1.0, 1.5 * share), share / 2)
        return best

    def nearest_of_boundary(self, moves: Any, targets: Any) -> Any:
        """The points closest to the images where classes, linearised at moves (B, D), catch up.

        The targets are such classes, int32 (B,); -1 is the strongest but the predicted one.
        """
        images = self.moved(moves)
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            tape.watch(images)
            logits = self._model(images, training=False)
        own = tf.one_hot(self._classes, logits.shape[1])
        strongest = tf.argmax(logits - tf.where(own > 0, np.inf, 0.0), axis=1, output_type=tf.int32)
        ahead = tf.one_hot(tf.where(targets < 0, strongest, targets), logits.shape[1]) - own
        slope = tf.reshape(tape.gradient(logits, images, output_gradients=ahead), moves.shape)
        behind = tf.reduce_sum(slope * moves, axis=1) - tf.reduce_sum(ahead * logits, axis=1)
        whole = (behind / square_norms(slope))[:, tf.newaxis] * slope
        return self._reaching(whole, slope, behind) if self._clip else whole

    def _reaching(self, whole: Any, slope: Any, behind: Any) -> Any:
        """Stretch perturbations until what the range of pixels leaves of them reaches as far."""
        low, high = tf.ones_like(behind), tf.fill(tf.shape(behind), 64.0)
        for _ in tf.range(16):
            middle = (low + high) / 2
            reach = tf.reduce_sum(slope * self.inside(middle[:, tf.newaxis] * whole), axis=1)
            enough = tf.abs(reach) >= tf.abs(behind)
            low, high = tf.where(enough, low, middle), tf.where(enough, middle, high)
        return self.inside(high[:, tf.newaxis] * whole)

    def _bisected(self, moves: Any, low: Any, high: Any, rounds: int) -> Any:
        """The length between low, that flips nothing, and high at which perturbations flip."""
        low = tf.broadcast_to(low, tf.shape(high))
        for _ in tf.range(rounds):
            middle = (low + high) / 2
            flips = self.flips(self.inside(middle[:, tf.newaxis] * moves))
            low, high = tf.where(flips, low, middle), tf.where(flips, middle, high)
        return high


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
        return tf.reshape(slope, (images.shape[0], -1))

    gradients = tf.map_fn(
        of_one, tf.transpose(top), fn_output_signature=tf.float32, parallel_iterations=1
    )
    return tf.gather(logits, top, batch_dims=1), tf.transpose(gradients, (1, 0, 2))


def gaps_and_slopes(logits: Any, gradients: Any) -> tuple[Any, Any]:
    """By how much the first class is ahead of the others (B, K - 1), and how they catch up."""
    return logits[:, :1] - logits[:, 1:], gradients[:, 1:] - gradients[:, :1]


def distances(gaps: Any, slopes: Any) -> Any:
    """How far off the linearised boundaries with the other classes are, (B, K - 1)."""
    return tf.abs(gaps) * tf.math.rsqrt(square_norms(slopes))


def nearest_boundary(gaps: Any, slopes: Any) -> tuple[Any, Any, Any]:
    """Of the class whose boundary is nearest: gap (B,), slope (B, D) and its square norm (B,)."""
    nearest = tf.argmin(distances(gaps, slopes), axis=1)
    gap, slope, square = (
        tf.gather(a, nearest, batch_dims=1) for a in (gaps, slopes, square_norms(slopes))
    )
    return gap, slope, square


def square_norms(slopes: Any) -> Any:
    """Never 0, so that what doesn't depend on the image is far away, and nothing is NaN."""
    return tf.maximum(tf.reduce_sum(slopes * slopes, axis=-1), 1e-20)


def l2_norms(moves: Any) -> Any:
    return tf.norm(moves, axis=1)


def units(moves: Any) -> Any:
    return tf.math.divide_no_nan(moves, tf.norm(moves, axis=1, keepdims=True))
