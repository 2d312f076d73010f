"""Universal perturbations by stochastic gradient ascent, to compare with."""

import itertools
from collections.abc import Callable, Iterator
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from resfool.attacks import lowrank
from resfool.classifiers import inference
from resfool.universal.vectors import Best, Fit, Report, perturbed_by, projected
from resfool.values import Norm

_FIRST_STEP = 0.04  # of gradient ascent, as a share of the norm; momentum multiplies it by up to 5
_MOMENTUM = 0.8


def gradient_trained(
    model: keras.Model,
    images: np.ndarray,
    *,
    norm: Norm,
    passes: int = 30,
    seed: int = 0,
    clip: bool = False,
    batch_size: int = 100,
    report: Report = lambda number, rate: None,
) -> Fit:
    """A universal perturbation in all pixels, trained by stochastic gradients and projected.

    Args:
        model: from images to logits.
        images: float32 (N, H, W, C) in [0, 1], to fit on.
        norm: the ball, of kind l2 or linf.
        passes: over the images.
        seed: of the order of the images.
        clip: keep perturbed images in [0, 1].
        batch_size: images per step.
        report: is told each pass and the fooling rate after it.

    Source: Shafahi et al., "Universal adversarial training", arXiv:1811.11304.
    """

    def unit(slope: np.ndarray) -> np.ndarray:
        steepest = np.sign(slope) if norm.kind == "linf" else slope
        return lowrank.rescaled(steepest[np.newaxis], Norm(norm.kind, 1.0))[0]

    steps = -(-len(images) // batch_size)
    path = ascend(
        SmoothRate(model, images, clip),
        np.zeros(images.shape[1:], np.float32),
        direction=unit,
        retract=lambda vector: projected(vector, norm),
        size=norm.size,
        steps=passes * steps,
        random=np.random.default_rng(seed),
        batch_size=batch_size,
    )
    best = Best(model, images, clip)
    rates = []
    for number in range(passes):
        *_, vector = itertools.islice(path, steps)
        rates.append(best.meet(vector))
        report(number, rates[-1])
    return Fit(best.vector, rates)


class SmoothRate:
    """What an ascent raises: a smooth fooling rate of images, float32 (N, H, W, C) in [0, 1].

    An image counts as sigmoid(-margin / scale). The margin is how far the logit of its clean class
    is ahead of the best other, the scale half the mean margin without a perturbation.
    """

    def __init__(self, model: keras.Model, images: np.ndarray, clip: bool) -> None:
        self.model, self.images, self.clip = model, images, clip
        logits = inference.logits(model, images)
        self.clean = inference.predicted(logits)
        first, second = np.partition(logits, (-2, -1), axis=1)[:, [-1, -2]].T
        self.scale = max(float((first - second).mean()) / 2, 1e-6)


def ascend(
    target: SmoothRate,
    start: np.ndarray,
    *,
    direction: Callable[[np.ndarray], np.ndarray],
    retract: Callable[[np.ndarray], np.ndarray],
    size: float,
    steps: int,
    random: np.random.Generator,
    batch_size: int,
) -> Iterator[np.ndarray]:
    """Stochastic gradient ascent with momentum and shrinking steps.

    Args:
        target: what to raise.
        start: float32 (H, W, C).
        direction: from a gradient to a step of norm 1.
        retract: from where a step ended to the nearest vector that is allowed.
        size: the norm of the vectors; a step is a share of it.
        steps: how many.
        random: picks the images of each step.
        batch_size: how many of them, at most.

    Yields:
        The vector after each step, float32 (H, W, C).
    """
    slope_of = inference.compiled(target.model, _slope)
    batch_size = min(batch_size, len(target.images))  # else the filling would weigh as an image
    scale = tf.constant(target.scale)
    vector, velocity = start, np.zeros_like(start)
    for step in range(steps):
        rows = random.permutation(len(target.images))[:batch_size]
        batch, clean = (
            inference.filled(part[rows], batch_size) for part in (target.images, target.clean)
        )
        slope = slope_of(batch, clean, scale, tf.constant(vector), target.clip).numpy()
        velocity = _MOMENTUM * velocity + direction(slope)
        length = _FIRST_STEP * size * (1 - step / steps)
        vector = retract((vector + length * velocity).astype(np.float32))
        yield vector


def _slope(model: keras.Model, images: Any, clean: Any, scale: Any, vector: Any, clip: bool) -> Any:
    """The smooth fooling rate's gradient with respect to the vector."""
    with tf.GradientTape(watch_accessed_variables=False) as tape:
        tape.watch(vector)
        logits = model(perturbed_by(images, vector, clip), training=False)
        own = tf.one_hot(clean, logits.shape[1], on_value=True, off_value=False)
        others = tf.reduce_max(tf.where(own, -np.inf, logits), axis=1)
        margins = tf.reduce_max(tf.where(own, logits, -np.inf), axis=1) - others
        rate = tf.reduce_mean(tf.sigmoid(-margins / scale))
    return tape.gradient(rate, vector)
