"""The closest point of the linearised boundary, from the image itself, again and again."""

from dataclasses import replace
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from resfool.attacks.solvers.batches import (
    HALVINGS,
    WALK_HALVINGS,
    Surroundings,
    distances,
    gaps_and_slopes,
    in_batches,
    top_gradients,
)
from resfool.attacks.solvers.deepfool import deepfool
from resfool.attacks.solvers.problem import Attempt, Problem
from resfool.classifiers import inference
from resfool.monitor import quiet


def closest(
    problem: Problem, *, candidates: int, starts: int = 3, rounds: int = 6, walk: int = 10
) -> Attempt:
    """The closest point of the linearised boundary, from the image itself, again and again.

    Where logit j catches up with the predicted y, linearised at x + r, begins the half-space

        {s: g.s >= g.r - (z_j - z_y)(x + r)},  g = grad(z_j - z_y)(x + r),

    whose nearest point to the image, b g / ||g||^2, is where r moves next (in later rounds only
    most of the way). DeepFool instead takes that step from x + r, and what it has walked stays.
    This is done for each of the few classes that look nearest at x. The shortest that flips is
    then walked along the boundary to the closest point of its tangent plane, which shortens it
    while the boundary bends little; a step that doesn't help is halved. An image that none of it
    flips falls back to `deepfool`.

    Args:
        problem: what is to be solved.
        candidates: classes to look at.
        starts: of them, those that look nearest and are moved towards.
        rounds: linearisations on the way to the boundary.
        walk: linearisations on the boundary.
    """
    starts = min(starts, candidates - 1)
    found = in_batches(problem, _closest, candidates, starts, rounds, walk)
    lost = np.flatnonzero(~found.perturbations.reshape(len(problem.images), -1).any(axis=1))
    if len(lost):
        size = inference.even(len(problem.images), problem.batch_size)
        rows = lost[inference.padded(len(lost), size)]
        images, classes = problem.images[rows], problem.classes[rows]
        rest = replace(problem, images=images, classes=classes, progress=quiet)
        again = deepfool(rest, candidates=candidates)
        found.perturbations[lost] = again.perturbations[: len(lost)]
        found.evaluations[lost] += again.evaluations[: len(lost)]
        found.seconds[lost] += again.seconds[: len(lost)]
    return found


_STRETCHES = 1.2, 1.5, 2.0, 3.0, 5.0  # of the last round's point, if no round's has flipped


def _closest(
    model: keras.Model,
    images: Any,
    classes: Any,
    candidates: int,
    starts: int,
    rounds: int,
    walk: int,
    clip: bool,
) -> tuple[Any, Any]:
    at = Surroundings(model, images, classes, clip)
    top, *at_image = top_gradients(model, images, candidates)
    near = tf.math.top_k(-distances(*gaps_and_slopes(*at_image)), starts).indices
    targets = tf.gather(top[:, 1:], near, batch_dims=1)

    best = at.none()
    for start in tf.range(starts):
        found = at.none()
        moved = tf.zeros_like(found[0])
        for i in tf.range(rounds):
            nearest = at.nearest_of_boundary(moved, targets[:, start])
            moved = at.inside(moved + tf.where(i == 0, 1.0, 0.7) * (nearest - moved))
            found = at.better(found, at.inside(1.05 * moved))
        for stretch in _STRETCHES:
            found = at.better(found, at.inside(stretch * moved))
        best = at.shorter(best, at.shortened(found))

    best = at.walked(best, walk)
    passes = 2 + candidates + walk * (3 + WALK_HALVINGS)
    passes += starts * (3 * rounds + len(_STRETCHES) + HALVINGS)
    return best[0], tf.fill(tf.shape(classes), passes)
