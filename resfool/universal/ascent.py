"""Universal perturbations by stochastic gradient ascent, to compare with."""

import itertools
from collections.abc import Callable, Iterator
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from resfool.attacks import lowrank
from resfool.classifiers import inference
from resfool.classifiers.inference import BATCH_SIZE
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
    images_per_step: int = 100,
    batch_size: int = BATCH_SIZE,
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
        images_per_step: that each gradient is of.
        batch_size: images per pass, at most.
        report: is told each pass and the fooling rate after it.

    Source: Shafahi et al., "Universal adversarial training", arXiv:1811.11304.
    """

    def unit(slope: np.ndarray) -> np.ndarray:
        steepest = np.sign(slope) if norm.kind == "linf" else slope
        return lowrank.rescaled(steepest[np.newaxis], Norm(norm.kind, 1.0))[0]

    steps = -(-len(images) // images_per_step)
    path = ascend(
        SmoothRate(model, images, clip, batch_size),
        np.zeros(images.shape[1:], np.float32),
        direction=unit,
        retract=lambda vector: projected(vector, norm),
        size=norm.size,
        steps=passes * steps,
        random=np.random.default_rng(seed),
        images_per_step=images_per_step,
    )
    best = Best(model, images, clip, batch_size)
    rates = []
    for number in range(passes):
        *_, vector = itertools.islice(path, steps)
        rates.append(best.meet(vector))
        report(number, rates[-1])
    return Fit(best.vector, rates)


class SmoothRate:
    """What an ascent raises: a smooth fooling rate of images, float32 (N, H, W, C) in [0, 1].

    A pass takes at most `batch_size` of them.
    An image counts as sigmoid(-margin / scale). The margin is how far the logit of its clean class
    is ahead of the best other, the scale half the mean margin without a perturbation.
    """

    def __init__(self, model: keras.Model, images: np.ndarray, clip: bool, batch_size: int) -> None:
        self.model, self.images, self.clip = model, images, clip
        self.batch_size = batch_size
        logits = inference.logits(model, images, batch_size)
        self.clean = inference.predicted(logits)
        first, second = np.partition(logits, (-2, -1), axis=1)[:, [-1, -2]].T
        self.scale = max(float((first - second).mean()) / 2, 1e-6)

    def slope(self, rows: np.ndarray, vector: np.ndarray) -> np.ndarray:
        """The rate's gradient with respect to the vector (H, W, C), of the images of some rows."""
        slope_of = inference.compiled(self.model, _slope)
        settings = tf.constant(self.scale), tf.constant(vector), self.clip
        slope = np.zeros_like(vector)
        for part in inference.batches(len(rows), self.batch_size):
            # As they are: what fills up a batch would weigh as an image.
            images, clean = (tf.constant(of[rows[part]]) for of in (self.images, self.clean))
            share = np.float32((part.stop - part.start) / len(rows))
            slope += share * slope_of(images, clean, *settings).numpy()
        return slope


def ascend(
    target: SmoothRate,
    start: np.ndarray,
    *,
    direction: Callable[[np.ndarray], np.ndarray],
    retract: Callable[[np.ndarray], np.ndarray],
    size: float,
    steps: int,
    random: np.random.Generator,
    images_per_step: int,
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
        images_per_step: how many of them, at most.

    Yields:
        The vector after each step, float32 (H, W, C).
    """
    vector, velocity = start, np.zeros_like(start)
    for step in range(steps):
        rows = random.permutation(len(target.images))[:images_per_step]
        velocity = _MOMENTUM * velocity + direction(target.slope(rows, vector))
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
