"""A network in training as it is judged: by averaged weights, and statistics that fit them."""

from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from resfool.networks.layers import BatchNormReLU
from resfool.training.steps import Rules
from resfool.training.trainer import Trainer

_IMAGES = 2_500  # that precise statistics are taken over: a hundredth of 1,000 steps' work
_BATCH = 250

Build = Callable[[], keras.Model]


class JudgedModel:
    """The network that a training has come to, as it is judged and saved.

    Args:
        trainer: of the network.
        rules: of its training.
        build: makes the same network without dropout.
        images: float32 (N, H, W, C) in [0, 1], the training set.
        seed: by which those for precise statistics are drawn.
    """

    def __init__(
        self, trainer: Trainer, rules: Rules, build: Build, images: np.ndarray, seed: int
    ) -> None:
        normalises = any(isinstance(one, BatchNormReLU) for one in trainer.model.layers)
        precise = rules.batch_norm_statistics == "precise" and normalises
        self._trainer = trainer
        self._own = build() if rules.ema or precise else None
        self._precise = None
        if precise:
            drawn = np.random.default_rng([seed, _IMAGES]).permutation(len(images))[:_IMAGES]
            self._precise = PreciseStatistics(self._own, images[np.sort(drawn)])

    def model(self) -> keras.Model:
        """The network as it stands, until the trainer goes on."""
        if self._own is None:
            return self._trainer.model
        self._trainer.give_weights(self._own)
        if self._precise is not None:
            self._precise.take()
        return self._own


class PreciseStatistics:
    """Means and variances of batch normalisation over images, with the weights as they are.

    Each batch goes through the network normalised by its own statistics, and each layer's are
    those of all batches together: with means m and variances v of equally large batches,

        mean(m)   and   mean(v + m^2) - mean(m)^2

    Source: Wu and Johnson 2021, arXiv:2105.07576, section 3.

    Args:
        model: whose layers `BatchNormReLU` are set; it has no dropout, and isn't to be trained.
        images: float32 (N, H, W, C) in [0, 1].
    """

    def __init__(self, model: keras.Model, images: np.ndarray) -> None:
        self._model = model
        self._layers = [one for one in model.layers if isinstance(one, BatchNormReLU)]
        for layer in self._layers:
            layer.momentum = 0.0  # so that its averages are those of the last batch
        size = min(_BATCH, len(images))
        self._batches = [
            tf.constant(images[first : first + size])
            for first in range(0, len(images) - size + 1, size)
        ]
        self._of_batch = tf.function(self._run)

    def take(self) -> None:
        """Set them."""
        found = [
            [np.asarray(each, np.float64) for each in self._of_batch(b)] for b in self._batches
        ]
        for layer, own in zip(self._layers, zip(*found, strict=True), strict=True):
            mean, variance = np.moveaxis(np.stack(own), 1, 0)
            center = mean.mean(axis=0)
            layer.moving_mean.assign(center)
            layer.moving_variance.assign((variance + (mean - center) ** 2).mean(axis=0))

    def _run(self, images: Any) -> list[Any]:
        """Each layer's mean and variance of a batch, (2, C)."""
        self._model(images, training=True)
        return [
            tf.stack([one.moving_mean.value, one.moving_variance.value]) for one in self._layers
        ]
