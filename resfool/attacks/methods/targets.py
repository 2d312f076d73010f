"""Which classes an attack moves towards, and in which order."""

from typing import Any

import keras
import numpy as np
import tensorflow as tf

from resfool.attacks import gradient
from resfool.attacks.balls import dual_lengths
from resfool.attacks.methods.task import Task
from resfool.values import BallNorm

_CANDIDATES = 30  # classes of the largest logits whose gradients are looked at, at most


def nearest_targets(task: Task, count: int) -> np.ndarray:
    """The classes that catch up with the label first, if the model is as linear as at the image.

    They are ordered by the difference of the logits over the dual norm of that of their gradients,
    which is how far off the boundary between them is then.

    Source: Melamed, Yehudai, Shamir, "MALT powers up adversarial attacks", arXiv:2407.02240.

    Args:
        task: the images.
        count: of classes, or all others if they are fewer.

    Returns:
        int32 (N, count), the nearest first.
    """
    classes = task.model.output_shape[-1]
    count = min(count, classes - 1)
    targets = np.empty((len(task.images), count), np.int32)
    for rows, (found,) in gradient.batchwise(
        task.model,
        _nearest,
        (task.images, task.labels),
        count,
        min(max(count, _CANDIDATES), classes - 1),
        task.norm,
        batch_size=task.batch_size,
        progress=lambda images, text="", /: task.progress(passes(classes, count) * images),
    ):
        targets[rows] = found
    return targets


def passes(classes: int, count: int) -> int:
    """Of an image: a gradient for each candidate."""
    return 2 * min(max(count, _CANDIDATES), classes - 1)


def _nearest(
    model: keras.Model, images: Any, labels: Any, count: int, candidates: int, norm: BallNorm
) -> tuple[Any]:
    with tf.GradientTape(persistent=True, watch_accessed_variables=False) as tape:
        tape.watch(images)
        logits = model(images, training=False)
    is_label = tf.one_hot(labels, logits.shape[1], on_value=True, off_value=False)
    others = tf.math.top_k(tf.where(is_label, -np.inf, logits), candidates)
    own = tf.one_hot(labels, logits.shape[1])

    def rate(towards: Any) -> Any:
        ahead = tf.one_hot(towards, logits.shape[1]) - own
        return dual_lengths(tape.gradient(logits, images, output_gradients=ahead), norm)

    rates = tf.map_fn(
        rate, tf.transpose(others.indices), fn_output_signature=tf.float32, parallel_iterations=1
    )
    gaps = tf.gather(logits, labels, batch_dims=1)[:, tf.newaxis] - others.values
    distances = gaps / tf.maximum(tf.transpose(rates), 1e-20)
    order = tf.argsort(distances, axis=1, stable=True)[:, :count]
    return (tf.gather(others.indices, order, batch_dims=1),)
