"""The optimizers, and how their rate goes with the steps."""

import math
from typing import Any

import keras
import tensorflow as tf

from resfool.training.muon import Muon
from resfool.training.steps import Steps

_MOMENTUM = 0.9


def optimizer(asked: Steps, last: str) -> keras.optimizers.Optimizer:
    """What takes the gradients of a training.

    Args:
        asked: how to train.
        last: the path of the network's last kernel.
    """
    rules, rate = asked.rules, rate_of(asked)
    decay = rules.weight_decay or None
    if rules.optimizer == "muon":
        return Muon(rate, last=last, weight_decay=decay)
    if rules.optimizer == "adam":
        return keras.optimizers.Adam(rate, weight_decay=decay)
    return keras.optimizers.SGD(
        rate,
        momentum=0.0 if rules.optimizer == "sgd" else _MOMENTUM,
        nesterov=rules.optimizer == "nesterov",
        weight_decay=decay,
    )


def rate_of(asked: Steps) -> Any:
    """The learning rate: a number, or what Keras calls with the step."""
    rules = asked.rules
    if rules.schedule == "constant":
        return rules.learning_rate
    if rules.schedule == "drop":
        # Keras changes the rate after its boundary, and counts steps from 0.
        boundaries = [step - 1 for step in sorted(asked.lr_drop or ())]
        rates = [rules.learning_rate / 10**i for i in range(len(boundaries) + 1)]
        return keras.optimizers.schedules.PiecewiseConstantDecay(boundaries, rates)
    return _Wave(rules.learning_rate, asked.steps, asked.rising, rules.schedule == "cosine")


class _Wave(keras.optimizers.schedules.LearningRateSchedule):
    """A rate that rises from 0 in a straight line and falls back to it, at the steps' middles.

    Args:
        peak: the largest rate.
        steps: of the training.
        rising: share of them in which it rises.
        cosine: whether it falls as half a cosine (Loshchilov & Hutter 2017, arXiv:1608.03983),
            else in a straight line.
    """

    def __init__(self, peak: float, steps: int, rising: float, cosine: bool) -> None:
        super().__init__()
        self._peak, self._steps, self._rising, self._cosine = peak, steps, rising, cosine

    def __call__(self, step: Any) -> Any:
        done = (tf.cast(step, tf.float32) + 0.5) / self._steps
        left = (1 - done) / (1 - self._rising)
        if self._cosine:
            left = 0.5 - 0.5 * tf.cos(math.pi * left)
        share = tf.where(done < self._rising, done / max(self._rising, 1e-9), left)
        return self._peak * share

    def get_config(self) -> dict[str, Any]:
        """The arguments that make it again."""
        return {
            "peak": self._peak,
            "steps": self._steps,
            "rising": self._rising,
            "cosine": self._cosine,
        }
