"""Decoupled direction and norm: gradient steps on a sphere that shrinks with each success."""

from typing import Any

import keras
import numpy as np
import tensorflow as tf

from resfool.attacks import balls
from resfool.attacks.gradient import loss_gradient
from resfool.attacks.solvers.batches import differ, in_batches, inside, moved
from resfool.attacks.solvers.problem import Attempt, Problem
from resfool.classifiers import inference


def ddn(
    problem: Problem, *, steps: int = 300, initial_norm: float = 1.0, gamma: float = 0.05
) -> Attempt:
    """Decoupled direction and norm: gradient steps on a sphere that shrinks with each success.

    Source: Rony et al., "Decoupling direction and norm for efficient gradient-based L2 adversarial
    attacks and defenses", arXiv:1811.09600, algorithm 1, without its quantisation. It knows l2
    alone, and is loose: on linear models it came to 1.06 times the shortest on average, and to 1.26
    times at worst.

    Args:
        problem: what is to be solved, in l2.
        steps: gradient steps, their lengths falling from 1 to 0.01 by a cosine.
        initial_norm: radius of the first sphere.
        gamma: by which share the radius changes.

    Returns:
        An answer for each image, zero if no step flipped it.
    """

    def solved(part: Problem) -> Attempt:
        (ways,) = inference.rowwise(
            part.model,
            _ddn,
            (part.images, part.classes.astype(np.int32)),
            steps,
            initial_norm,
            gamma,
            part.clip,
            batch_size=part.size,
        )
        return Attempt.of(part, ways, np.full(len(ways), 2 * steps))

    return in_batches(problem, solved)


def _ddn(
    model: keras.Model,
    images: Any,
    classes: Any,
    steps: int,
    initial_norm: float,
    gamma: float,
    clip: bool,
) -> tuple[Any]:
    moves = tf.zeros((tf.shape(images)[0], np.prod(images.shape[1:])))
    best, shortest = moves, tf.fill(tf.shape(classes), np.inf)
    radius = tf.fill(tf.shape(classes), initial_norm)
    for i in tf.range(steps):
        slope, logits = loss_gradient(model, moved(images, moves), classes)
        flips = differ(logits, classes)
        shorter = flips & (balls.lengths(moves, "l2") < shortest)
        best = tf.where(shorter[:, tf.newaxis], moves, best)
        shortest = tf.where(shorter, balls.lengths(moves, "l2"), shortest)
        done = tf.cast(i, tf.float32) / steps
        length = 0.01 + 0.99 * (1 + tf.cos(np.pi * done)) / 2
        moves += length * balls.steepest(tf.reshape(slope, tf.shape(moves)), "l2")
        radius *= tf.where(flips, 1 - gamma, 1 + gamma)
        moves = inside(images, radius[:, tf.newaxis] * balls.steepest(moves, "l2"), clip)
    return (best,)
