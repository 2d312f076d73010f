"""Auto-PGD: projected gradient ascent with momentum whose steps adapt themselves."""

import math
from collections.abc import Iterator
from typing import Any, Literal

import keras
import numpy as np
import tensorflow as tf

from resfool.attacks import balls
from resfool.attacks.balls import Bounds, spread
from resfool.attacks.leads import lead
from resfool.attacks.methods.task import Answer, Task, in_turns
from resfool.values import BallNorm

Loss = Literal["cross_entropy", "margin", "targeted"]

_KEPT = 0.75  # of a step, where the rest is momentum: alpha
_RISING = 0.75  # share of the steps that must raise the loss, or the next are shorter: rho
_LOOKS = 8  # of a turn, at most


def apgd(
    task: Task,
    *,
    loss: Loss = "cross_entropy",
    targets: np.ndarray | None = None,
    steps: int = 100,
    restarts: int = 1,
    begin: np.ndarray | None = None,
) -> Answer:
    """Raise a loss within each image's ball until another class is clearly ahead (Algorithm 1).

    The step begins at twice the radius and is halved at checkpoints, at which the ascent goes on
    from the best point, if too few steps since the last one raised the loss, or none its maximum.
    An image that is fooled is done. Ascents begin at random points; the first one on the margin
    begins at the image.

    Source: Croce, Hein, "Reliable evaluation of adversarial robustness with an ensemble of diverse
    parameter-free attacks", arXiv:2003.01690.

    Args:
        task: which images, within which balls.
        loss: "cross_entropy"; "margin", by which the best other class is ahead; or "targeted", the
            difference-of-logits ratio towards a target, and with less than 4 classes, for which it
            isn't defined, the target's margin. The cross-entropy is taken as its log-odds, which
            order points alike and have gradients of the same direction, but never saturate.
        targets: int (N, T), of "targeted": classes to move towards, one after the other.
        steps: gradient steps of an ascent.
        restarts: ascents from different points, for each target.
        begin: float32 (N, H, W, C), where the first ascent begins, if not where it does of itself.
    """
    answer = Answer.none(task)
    wanted = np.full((len(task.images), 1), -1) if targets is None else targets
    for number in range(restarts * wanted.shape[1]):
        left = answer.left
        if not len(left):
            break
        towards = wanted[left, number % wanted.shape[1]].astype(np.int32)
        part = task.of(left)
        # From a random point the margin may lead to the nearest top, of another class's.
        first = begin if begin is not None or loss != "margin" else task.images
        begins = part.starts(number) if number or first is None else first[left]
        answer.take(left, _ascent(part, begins, towards, loss, steps))
    return answer


def checkpoints(steps: int) -> list[int]:
    """The steps after which the step size is reconsidered, rising; see section 3.1 there."""
    before, share, found = 0.0, 0.22, list[int]()
    while (place := math.ceil(round(share * steps, 6))) <= steps and share < 1:
        found.append(place)
        before, share = share, share + max(share - before - 0.03, 0.06)
    return found


def _turns(steps: int) -> Iterator[tuple[int, list[Any]]]:
    """Points looked at in a turn, whether they are the first, and the window that ends there."""
    last, look = 0, 0
    for place in [*checkpoints(steps), steps]:
        while look <= place:
            looks = min(_LOOKS, place + 1 - look)
            ends = look + looks > place and place > last
            window = place - last if ends else 0
            yield 2 * looks, [looks, np.float32(window), look == 0]
            look += looks
        last = place


def _ascent(task: Task, starts: np.ndarray, towards: np.ndarray, loss: Loss, steps: int) -> Answer:
    state = _beginning(task, starts)
    in_turns(task, _climb, [towards], state, _turns(steps), task.norm, task.bounds, loss)
    *_, found, fooled = state
    return Answer(found, fooled)


def _beginning(task: Task, starts: np.ndarray) -> list[np.ndarray]:
    """What `_climb` goes on with, from starts (N, H, W, C)."""

    def numbers(value: float) -> np.ndarray:
        return np.full(len(starts), value, np.float32)

    return [
        *(starts.copy(), starts.copy(), numbers(-np.inf)),  # the point, that before, the loss
        *(starts.copy(), np.zeros_like(starts), numbers(-np.inf)),  # the best, its slope and loss
        *(2 * task.radii, numbers(0)),  # the step size, and how often the loss has risen with it
        *(numbers(-np.inf), np.zeros(len(starts), bool)),  # best loss at the checkpoint; if halved
        *(task.images.copy(), np.zeros(len(starts), bool)),  # what fooled, and if so
    ]


def _climb(
    model: keras.Model,
    images: Any,
    labels: Any,
    radii: Any,
    leads: Any,
    targets: Any,
    at: Any,
    before: Any,
    value: Any,
    best_at: Any,
    best_slope: Any,
    best: Any,
    size: Any,
    rises: Any,
    best_then: Any,
    halved: Any,
    found: Any,
    fooled: Any,
    looks: Any,
    window: Any,
    first: Any,
    norm: BallNorm,
    bounds: Bounds,
    loss: Loss,
) -> tuple[Any, ...]:
    for look in tf.range(looks):
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            tape.watch(at)
            logits = model(at, training=False)
            now = losses(logits, labels, targets, loss)
        slope = tape.gradient(now, at)
        wins = (lead(logits, labels) > leads) & ~fooled
        found, fooled = tf.where(spread(wins), at, found), fooled | wins
        rises += tf.where(now > value, 1.0, 0.0)
        if first and look == 0:
            rises = tf.zeros_like(rises)
        higher = now > best
        best_at = tf.where(spread(higher), at, best_at)
        best_slope = tf.where(spread(higher), slope, best_slope)
        best, value = tf.maximum(now, best), now

        if window > 0 and look == looks - 1:
            stuck = ~halved & (best <= best_then)
            halved = (rises < _RISING * window) | stuck
            size = tf.where(halved, size / 2, size)
            at = tf.where(spread(halved), best_at, at)
            slope = tf.where(spread(halved), best_slope, slope)
            value = tf.where(halved, best, value)
            rises, best_then = tf.zeros_like(rises), best

        step = at + spread(size) * balls.steepest(slope, norm)
        step = balls.inside(images, step, radii, norm, bounds)
        if not first or look > 0:
            step = at + _KEPT * (step - at) + (1 - _KEPT) * (at - before)
            step = balls.inside(images, step, radii, norm, bounds)
        at, before = step, at
        if tf.reduce_all(fooled):
            break
    state = at, before, value, best_at, best_slope, best, size, rises, best_then, halved
    return *state, found, fooled


def losses(logits: Any, labels: Any, targets: Any, loss: Loss) -> Any:
    """What is raised, (B,); see `apgd`."""
    own = tf.gather(logits, labels, batch_dims=1)
    is_label = tf.one_hot(labels, logits.shape[1], on_value=True, off_value=False)
    others = tf.where(is_label, -np.inf, logits)
    if loss == "cross_entropy":
        return tf.reduce_logsumexp(others, axis=1) - own
    if loss == "margin":
        return tf.reduce_max(others, axis=1) - own
    ahead = tf.gather(logits, targets, batch_dims=1) - own
    if logits.shape[1] < 4:
        return ahead
    top = tf.math.top_k(logits, 4).values
    return ahead / (top[:, 0] - (top[:, 2] + top[:, 3]) / 2 + 1e-12)
