"""DeepFool: steps to the nearest linearised boundary, each from where the last one ended."""

from typing import Any

import keras
import tensorflow as tf

from resfool.attacks.solvers.batches import (
    Surroundings,
    gaps_and_slopes,
    in_batches,
    logit_gradients,
    nearest_boundary,
    top_gradients,
)
from resfool.attacks.solvers.problem import Attempt, Problem


def deepfool(
    problem: Problem, *, candidates: int, overshoot: float = 0.02, steps: int = 50
) -> Attempt:
    """Steps to the nearest linearised boundary, each from where the last one ended.

    Source: Moosavi-Dezfooli, Fawzi, Frossard, "DeepFool: a simple and accurate method to fool deep
    neural networks", arXiv:1511.04599, algorithm 2.

    Args:
        problem: what is to be solved.
        candidates: classes to look at.
        overshoot: by how much the way is lengthened, so that it crosses the boundary.
        steps: at most.
    """
    return in_batches(problem, _deepfool, candidates, steps, tf.constant(overshoot))


def _deepfool(
    model: keras.Model,
    images: Any,
    classes: Any,
    candidates: int,
    steps: int,
    overshoot: Any,
    clip: bool,
) -> tuple[Any, Any]:
    at = Surroundings(model, images, classes, clip)
    way = at.none()[0]
    going = tf.ones_like(classes, tf.bool)
    passes = tf.zeros_like(classes)
    top = top_gradients(model, images, candidates)[0]
    for _ in tf.range(steps):
        if tf.reduce_any(going):
            gaps, slopes = gaps_and_slopes(*logit_gradients(model, at.moved(way), top))
            gap, slope, square = nearest_boundary(gaps, slopes)
            # The 1e-4 is the authors': it gets the last step across.
            step = ((tf.abs(gap) + 1e-4) / square)[:, tf.newaxis] * slope
            longer = at.inside(way + (1 + overshoot) * step)
            way = tf.where(going[:, tf.newaxis], longer, way)
            passes += tf.where(going, 2 + candidates, 0)
            going &= ~at.flips(way)
    return way, passes + 2 + candidates
