"""Signs of loss gradients, steps along them (equation 5), and what a model makes of the images.

The methods of attack are made of these. Source: paper section VI.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from resfool.classifiers import inference
from resfool.classifiers.inference import BATCH_SIZE, LazyRows, Rows
from resfool.monitor import Advance, quiet

# Where 1 - p has lost half of float32's digits, the loss gradient is mostly rounding error.
_SATURATED = float(np.finfo(np.float32).eps) ** 0.5


@dataclass(frozen=True)
class SignGradients:
    """The sign of the loss gradient of each image, with what the model makes of the image.

    Attributes:
        signs: int8 (N, H, W, C): -1, 0 or 1.
        logits: float32 (N, classes), of the clean images.
        labels: int64 (N,), the labels of the loss.
    """

    signs: np.ndarray
    logits: np.ndarray
    labels: np.ndarray


@dataclass(frozen=True)
class Outcome:
    """What a model makes of perturbed images, for E epsilons and N images.

    Attributes:
        classes: int64 (E, N), predicted.
        confidences: float32 (E, N), probability of the predicted class.
        norms: float32 (E, N), l2 norm of the perturbation as applied, after clipping.
    """

    classes: np.ndarray
    confidences: np.ndarray
    norms: np.ndarray

    @classmethod
    def joined(cls, outcomes: Sequence["Outcome"]) -> "Outcome":
        """Outcomes of the same images at different epsilons, as one."""
        columns = zip(*(vars(outcome).values() for outcome in outcomes), strict=True)
        return cls(*map(np.concatenate, columns))

    @classmethod
    def unmoved(cls, logits: np.ndarray) -> "Outcome":
        """That of images as they are, E = 1, by their logits (N, classes)."""
        z = logits.astype(np.float64)
        z -= z.max(axis=1, keepdims=True)
        confidences = 1.0 / np.exp(z).sum(axis=1)
        classes = logits.argmax(axis=1)[np.newaxis]
        return cls(classes, confidences[np.newaxis].astype(np.float32), np.zeros(classes.shape))


Batches = Iterator[tuple[slice, list[np.ndarray]]]  # some of N rows, and arrays for them


def batchwise(
    model: keras.Model,
    function: Callable[..., Any],
    arrays: Sequence[Rows],
    *settings: Any,
    batch_size: int,
    progress: Advance = quiet,
) -> Batches:
    """Run a compiled function on N rows, batch by batch.

    Args:
        model: its first argument.
        function: of the model, a batch of each array and the settings; it gives several tensors,
            a row for each of the batch.
        arrays: (N, ...) each.
        *settings: of the function.
        batch_size: rows per pass, at most.
        progress: is told the rows done.
    """
    call = inference.compiled(model, function)
    for rows, tensors in inference.tensors(*arrays, batch_size=batch_size):
        found = call(*tensors, *settings)
        size = rows.stop - rows.start
        yield rows, [part.numpy()[:size] for part in found]
        progress(size)


def sign_gradients(
    model: keras.Model,
    images: np.ndarray,
    labels: np.ndarray | None,
    *,
    batch_size: int = BATCH_SIZE,
    progress: Advance = quiet,
) -> SignGradients:
    """The sign of the gradient of the cross-entropy loss with respect to each image.

    Args:
        model: from images to logits.
        images: float32 (N, H, W, C) in [0, 1].
        labels: int (N,), or None for the model's own predictions.
        batch_size: images per pass.
        progress: is told the images done.

    Returns:
        Signs, clean logits and the labels that were used.

    Raises:
        InputError: the model gives no numbers for some of the images.
    """
    # -1 asks the compiled function for the model's own prediction.
    wanted = np.full(len(images), -1) if labels is None else np.asarray(labels)
    arrays = images, wanted.astype(np.int32)
    signs = np.empty(images.shape, np.int8)
    logits = np.empty((len(images), model.output_shape[-1]), np.float32)
    batches = batchwise(model, sign_gradient, arrays, batch_size=batch_size, progress=progress)
    for rows, found in batches:
        signs[rows], logits[rows] = found
    own = inference.predicted(logits)
    return SignGradients(signs, logits, own if labels is None else wanted.astype(np.int64))


def perturbed(
    images: np.ndarray, directions: np.ndarray, epsilon: float, *, clip: bool = True
) -> np.ndarray:
    """Equation 5: x + epsilon * sign(gradient).

    Args:
        images: float32 (N, H, W, C) in [0, 1].
        directions: (N, H, W, C), such as the signs of gradients.
        epsilon: length of the step in every pixel, in pixel units.
        clip: keep the result in [0, 1].

    Returns:
        float32 (N, H, W, C).
    """
    moved = images + np.float32(epsilon) * directions.astype(np.float32)
    return np.clip(moved, 0.0, 1.0) if clip else moved


def along(
    model: keras.Model,
    images: np.ndarray,
    directions: Rows,
    epsilons: Sequence[float],
    *,
    clip: bool = True,
    batch_size: int = BATCH_SIZE,
    progress: Advance = quiet,
) -> Outcome:
    """Move every image along its direction by each of several epsilons, and classify it there.

    Args:
        model: from images to logits.
        images: float32 (N, H, W, C) in [0, 1].
        directions: int8 (N, H, W, C).
        epsilons: E lengths, in pixel units.
        clip: keep the moved images in [0, 1].
        batch_size: images per pass; a batch meets all epsilons before the next is looked at.
        progress: is told the images done.

    Returns:
        Predictions, confidences and norms, (E, N) each.
    """
    found = batchwise(
        model,
        _along,
        (images, directions),
        tf.constant(np.asarray(epsilons, np.float32)),
        clip,
        batch_size=batch_size,
        progress=progress,
    )
    return collected(found, len(epsilons), len(images))


def judged(
    model: keras.Model,
    images: np.ndarray,
    moved: np.ndarray,
    *,
    batch_size: int = BATCH_SIZE,
) -> Outcome:
    """Classify images (N, H, W, C) that were moved before; predictions and so on, (1, N) each."""
    found = batchwise(model, look, (images, moved), batch_size=batch_size)
    return collected(found, 1, len(images))


def collected(batches: Batches, epsilons: int, images: int) -> Outcome:
    """Outcomes of batches, as one: of E epsilons and N images."""
    kinds = np.int64, np.float32, np.float32
    classes, confidences, norms = (np.empty((epsilons, images), kind) for kind in kinds)
    for rows, parts in batches:
        classes[:, rows], confidences[:, rows], norms[:, rows] = (part.T for part in parts)
    return Outcome(classes, confidences, norms)


def random_signs(shape: Sequence[int], seed: int, first: int = 0) -> LazyRows:
    """Directions of -1 and 1 at random: the benchmark beside the signs of gradients.

    Args:
        shape: (N, ...).
        seed: decides them all; the first rows are the same for any N.
        first: rows of the seed's that are left out before these.

    Returns:
        int8 of that shape, drawn when they are asked for.
    """
    size = math.prod(shape[1:])

    def drawn(rows: slice) -> np.ndarray:
        # Numpy makes eight of them out of a number of the generator, which can leap ahead.
        leap, skipped = divmod((first + rows.start) * size, 8)
        random = np.random.Generator(np.random.PCG64(seed).advance(leap))
        count = skipped + (rows.stop - rows.start) * size
        signs = 2 * random.integers(0, 2, count, np.int8)[skipped:] - 1
        return signs.reshape(-1, *shape[1:])

    return LazyRows(shape[0], drawn)


# What is compiled: a model and tensors in, tensors out. `clip` is settled when it is traced.


def sign_gradient(model: keras.Model, images: Any, labels: Any) -> tuple[Any, Any]:
    """The signs of the loss gradient with respect to the images, int8; the logits."""
    gradient, logits = loss_gradient(model, images, labels)
    return tf.cast(tf.sign(gradient), tf.int8), logits


def loss_gradient(model: keras.Model, images: Any, labels: Any) -> tuple[Any, Any]:
    """The loss gradient with respect to the images, up to a positive factor each; the logits."""
    with tf.GradientTape(watch_accessed_variables=False) as tape:
        tape.watch(images)
        logits = model(images, training=False)
    own = tf.argmax(logits, axis=1, output_type=labels.dtype)
    slope = _loss_slope(logits, tf.where(labels < 0, own, labels))
    return tape.gradient(logits, images, output_gradients=slope), logits


def _loss_slope(logits: Any, labels: Any) -> Any:
    """The cross-entropy's gradient with respect to the logits, p - onehot(label)."""
    with tf.GradientTape() as tape:
        tape.watch(logits)
        loss = tf.nn.sparse_softmax_cross_entropy_with_logits(labels, logits)
    plain = tape.gradient(loss, logits)
    # Where the model is so sure of the label that this vanishes by rounding, though not in truth,
    # it is computed from the other classes' probabilities and scaled up: the sign stays right.
    # Relative to one another these are exact, however small they are.
    is_label = tf.one_hot(labels, tf.shape(logits)[1], on_value=True, off_value=False)
    shares = tf.nn.softmax(tf.where(is_label, -np.inf, logits))
    saturated = tf.reduce_sum(tf.where(is_label, 0.0, plain), axis=1, keepdims=True) < _SATURATED
    return tf.where(saturated, tf.where(is_label, -1.0, shares), plain)


def step(images: Any, directions: Any, epsilon: Any, clip: bool) -> Any:
    """Equation 5 as it is compiled: see `perturbed`."""
    moved = images + epsilon * tf.cast(directions, images.dtype)
    return tf.clip_by_value(moved, 0.0, 1.0) if clip else moved


def _along(model: keras.Model, images: Any, directions: Any, epsilons: Any, clip: bool) -> Any:
    # Two at a time: while one waits for memory, the other computes. More would take more memory.
    found = tf.map_fn(
        lambda epsilon: look(model, images, step(images, directions, epsilon, clip)),
        epsilons,
        fn_output_signature=(tf.int64, tf.float32, tf.float32),
        parallel_iterations=2,
    )
    return [tf.transpose(part) for part in found]


def look(model: keras.Model, images: Any, moved: Any) -> tuple[Any, Any, Any]:
    """What a model makes of images that were moved: see `Outcome`."""
    logits = model(moved, training=False)
    confidences = tf.reduce_max(tf.nn.softmax(logits), axis=1)
    norms = tf.norm(tf.reshape(moved - images, (tf.shape(images)[0], -1)), axis=1)
    return tf.argmax(logits, axis=1), confidences, norms
