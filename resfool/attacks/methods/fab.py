"""The fast adaptive boundary attack: the smallest perturbation, by steps between two planes."""

from typing import Any

import keras
import numpy as np
import tensorflow as tf

from resfool.attacks import balls
from resfool.attacks.balls import Bounds, spread
from resfool.attacks.leads import lead
from resfool.attacks.methods.task import Answer, Task, in_turns
from resfool.values import BallNorm

_TOWARDS_IMAGE = 0.1  # the most that the step from the image counts: alpha_max
_BEYOND = 1.05  # how far a step goes, where 1 ends on the plane: eta
_BACK = 0.9  # what is kept of a perturbation that fools, for the next step: beta
_STEPS_OF_TURN = 10
_HALVINGS = 14  # of the way back to the image, at the end


def fab(task: Task, *, targets: np.ndarray, steps: int = 100, restarts: int = 1) -> Answer:
    """Find short perturbations that fool, whatever the radius (Algorithm 1, targeted).

    At a point x the boundary between the label and a target is taken for a plane, as if the model
    were linear. The next point lies between the points of it that are nearest to x and to the
    image, a little beyond. Where that fools, the way on starts nearer to the image again.
    In the end what was found is shortened to where it just fools.

    Sources: Croce, Hein, "Minimally distorted adversarial examples with a fast adaptive boundary
    attack", arXiv:1907.02044; targeted as in arXiv:2003.01690.

    Args:
        task: which images. One is done when its perturbation is no longer than the radius; with a
            radius of 0 all are shortened as far as the steps go.
        targets: int (N, T), classes to move towards, one after the other.
        steps: for each target.
        restarts: the first starts at the image, others at random points in a ball of half of what
            was found, for each target.
    """
    answer, sizes = Answer.none(task), np.full(len(task.images), np.inf, np.float32)
    for restart in range(restarts):
        starts = task.images if restart == 0 else _around(task, sizes, restart)
        for column in range(targets.shape[1]):
            done = sizes <= task.radii
            state = [starts.copy(), answer.moved, sizes, done]
            turns = [
                (3 * (min(steps, at + _STEPS_OF_TURN) - at), [min(steps - at, _STEPS_OF_TURN)])
                for at in range(0, steps, _STEPS_OF_TURN)
            ]
            towards = targets[:, column].astype(np.int32)
            in_turns(task, _walk, [towards], state, turns, task.norm, task.bounds)
    answer.fooled[:] = np.isfinite(sizes)
    in_turns(task, _shorten, [], [answer.moved, ~answer.fooled], [(_HALVINGS, [])])
    return answer


def _around(task: Task, sizes: np.ndarray, number: int) -> np.ndarray:
    """Random points in balls of half of the sizes; the images where nothing was found."""
    found = np.isfinite(sizes)
    starts = task.images.copy()
    part = task.of(np.flatnonzero(found))
    part.radii[:] = sizes[found] / 2
    starts[found] = part.starts(number)
    return starts


def _walk(
    model: keras.Model,
    images: Any,
    labels: Any,
    radii: Any,
    leads: Any,
    targets: Any,
    at: Any,
    found: Any,
    sizes: Any,
    done: Any,
    steps: Any,
    norm: BallNorm,
    bounds: Bounds,
) -> tuple[Any, ...]:
    for _ in tf.range(steps):
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            tape.watch(at)
            logits = model(at, training=False)
            behind = tf.gather(logits, labels, batch_dims=1)
            behind -= tf.gather(logits, targets, batch_dims=1)
        slope = -tape.gradient(behind, at)
        # From the image the plane is as far as from x, less what the way to x has risen.
        far = behind + tf.reduce_sum(slope * (at - images), axis=(1, 2, 3))
        here = balls.reaching(at, slope, behind, norm, bounds)
        there = balls.reaching(images, slope, far, norm, bounds)
        one, other = balls.lengths(here, norm), balls.lengths(there, norm)
        share = spread(tf.minimum(tf.math.divide_no_nan(one, one + other), _TOWARDS_IMAGE))
        at = (1 - share) * (at + _BEYOND * here) + share * (images + _BEYOND * there)
        at = tf.clip_by_value(at, *bounds)

        fools = (lead(model(at, training=False), labels) > leads) & ~done
        size = balls.lengths(at - images, norm)
        shorter = fools & (size < sizes)
        found, sizes = tf.where(spread(shorter), at, found), tf.where(shorter, size, sizes)
        done |= sizes <= radii
        at = tf.where(spread(fools), images + _BACK * (at - images), at)
        if tf.reduce_all(done):
            break
    return at, found, sizes, done


def _shorten(
    model: keras.Model, images: Any, labels: Any, radii: Any, leads: Any, found: Any, done: Any
) -> tuple[Any, Any]:
    low, high = tf.zeros_like(radii), tf.ones_like(radii)
    for _ in tf.range(_HALVINGS):
        middle = (low + high) / 2
        nearer = images + spread(middle) * (found - images)
        fools = lead(model(nearer, training=False), labels) > leads
        low, high = tf.where(fools, low, middle), tf.where(fools, middle, high)
    shortened = images + spread(high) * (found - images)
    # At full length it is what was seen, to the last bit.
    return tf.where(spread(high < 1), shortened, found), tf.ones_like(done)
