"""Decoupled direction and norm: gradient steps on a sphere that shrinks with each success."""

from typing import Any

import keras
import numpy as np
import tensorflow as tf

from resfool.attacks.gradient import loss_gradient
from resfool.attacks.solvers.batches import Surroundings, in_batches, l2_norms, units
from resfool.attacks.solvers.problem import Attempt, Problem


def ddn(
    problem: Problem, *, steps: int = 300, initial_norm: float = 1.0, gamma: float = 0.05
) -> Attempt:
    """Decoupled direction and norm: gradient steps on a sphere that shrinks with each success.

    Source: Rony et al., "Decoupling direction and norm for efficient gradient-based L2 adversarial
    attacks and defenses", arXiv:1811.09600, algorithm 1, without its quantisation.

    Args:
        problem: what is to be solved.
        steps: gradient steps, their lengths falling from 1 to 0.01 by a cosine.
        initial_norm: radius of the first sphere.
        gamma: by which share the radius changes.

    Returns:
        An answer for each image, zero if no step flipped it.
    """
    return in_batches(problem, _ddn, steps, tf.constant(initial_norm), tf.constant(gamma))


def _ddn(
    model: keras.Model,
    images: Any,
    classes: Any,
    steps: int,
    initial_norm: Any,
    gamma: Any,
    clip: bool,
) -> tuple[Any, Any]:
    at = Surroundings(model, images, classes, clip)
    best = at.none()
    moved = best[0]
    radius = tf.fill(tf.shape(classes), initial_norm)
    for i in tf.range(steps):
        slope, logits = loss_gradient(model, at.moved(moved), classes)
        flips = at.differ(logits)
        best = at.shorter(best, (moved, tf.where(flips, l2_norms(moved), np.inf)))
        done = tf.cast(i, tf.float32) / steps
        length = 0.01 + 0.99 * (1 + tf.cos(np.pi * done)) / 2
        moved += length * units(tf.reshape(slope, tf.shape(moved)))
        radius *= tf.where(flips, 1 - gamma, 1 + gamma)
        moved = at.inside(radius[:, tf.newaxis] * units(moved))
    return best[0], tf.fill(tf.shape(classes), 2 * steps)
