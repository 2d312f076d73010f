"""What the gradients of a universal perturbation are taken of."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import tensorflow as tf

CLAMP = 9.0  # of a cross-entropy; the clean class has a probability of 1e-4 there
CONFIDENCE = 10.0  # how far another logit is raised above the clean class's


@dataclass(frozen=True)
class Outcome:
    """What a model makes of N images under a perturbation.

    Attributes:
        logits: float32 (N, classes).
        clean_logits: the same without the perturbation.
        own: int (N,), the classes predicted without it; with a target, that class.
        targeted: whether `own` is where the images shall come to, not where they shall leave.
        scale: that margins are divided by.
    """

    logits: Any
    clean_logits: Any
    own: Any
    targeted: bool
    scale: Any

    @property
    def margins(self) -> Any:
        """How far the logits are from what is wanted, (N,); below 0 it is reached."""
        own = tf.one_hot(self.own, self.logits.shape[1], on_value=True, off_value=False)
        others = tf.reduce_max(tf.where(own, -np.inf, self.logits), axis=1)
        margins = tf.reduce_max(tf.where(own, self.logits, -np.inf), axis=1) - others
        return -margins if self.targeted else margins


def smooth_rate(outcome: Outcome) -> Any:
    """The rate at which images are fooled, each counting as sigmoid(-margin / scale)."""
    return tf.sigmoid(-outcome.margins / outcome.scale)


def clamped_cross_entropy(outcome: Outcome) -> Any:
    """The cross-entropy of the clean class, of each image up to CLAMP; or less the target's.

    Without the clamp a few images with a large loss would decide the direction. A target's has its
    bound by itself, at 0, and an image that is far from the target keeps its gradient.

    Source: Shafahi et al., arXiv:1811.11304, equation 5.
    """
    losses = tf.nn.sparse_softmax_cross_entropy_with_logits(outcome.own, outcome.logits)
    return -losses if outcome.targeted else tf.minimum(losses, CLAMP)


def bounded_logit(outcome: Outcome) -> Any:
    """By how much the best other logit is ahead, of each image up to CONFIDENCE.

    Source: Zhang et al., arXiv:2007.06189.
    """
    return -tf.maximum(outcome.margins, -CONFIDENCE)


def turned(outcome: Outcome) -> Any:
    """Less the cosine of the angle between the logits with and without the perturbation.

    Source: Zhang et al., arXiv:2103.04469.
    """
    units = (tf.math.l2_normalize(z, axis=1) for z in (outcome.logits, outcome.clean_logits))
    with_it, without = units
    return -tf.reduce_sum(with_it * without, axis=1)


# From an outcome to what is raised of each image, (N,); by the names of `options.Loss`.
RAISED: dict[str, Callable[[Outcome], Any]] = {
    "margin": smooth_rate,
    "cross_entropy": clamped_cross_entropy,
    "logit": bounded_logit,
    "cosine": turned,
}
