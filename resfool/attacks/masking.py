"""Measuring whether a model hides its gradient; `verdict` says what is checked and why."""

import math
from dataclasses import replace
from functools import partial
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from resfool.attacks import gradient
from resfool.attacks.methods.apgd import apgd, losses
from resfool.attacks.methods.moving import Start
from resfool.attacks.methods.pursuit import Pursuer, pursue
from resfool.attacks.methods.square import square
from resfool.attacks.verdict import (
    CHEAP,
    DEAR,
    FEW_STEPS,
    MORE_STEPS,
    QUERIES,
    Check,
    Verdict,
)
from resfool.values import BallNorm

_STEP = 0.25 / 255  # along the gradient, in pixel units
_SAME = 1e-3  # of the logits' size: more than that no other order of summation makes
_HALF = 0.5  # an l-infinity radius in which every image has uniform grey


def verdict(
    start: Start, by_search: float, norm: BallNorm, *, compared: bool, foreseen: int
) -> Verdict:
    """Check whether a model hides its gradient.

    Args:
        start: of images that the model classifies rightly, MOST_IMAGES at most.
        by_search: the share of all such images that the attack's own random search fooled after
            gradients had failed.
        norm: that bounds what is changed.
        compared: whether attacks are compared, which takes most of the time.
        foreseen: passes that the start's progress is told in all.
    """
    left = foreseen

    def told(more: int, text: str = "", /) -> None:
        nonlocal left
        more = min(more, left)
        left -= more
        start.progress(more, text)

    checks: list[Check] = []
    if len(start.images):
        part = replace(start, progress=told)
        checks += _looked_at(part)
        if compared:
            checks += _compared(part, norm, by_search)
    told(left)
    return Verdict(len(start.images), tuple(checks))


def _share(images: np.ndarray) -> float:
    return float(images.mean())


# Looks at the images as they are.


def _looked_at(start: Start) -> list[Check]:
    """The checks that take a few passes."""
    signs, constant, rises, logits = _looks(start)
    *_, again = _looks(start)
    sizes = np.abs(logits).max(axis=1)
    values = {
        "zero_gradient": _share(zero_or_constant(signs, start.first.labels)),
        "constant_logits": _share(constant),
        "random_logits": _share(np.abs(again - logits).max(axis=1) > _SAME * sizes),
        "loss_not_rising": _share(~(rises > 0)),
    }
    return [Check(name, value, CHEAP[name].limit or 0.0) for name, value in values.items()]


def zero_or_constant(signs: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Where a gradient is zero, or has the signs that it has at an image with another label.

    The loss of another label has another gradient even where the model is linear.

    Args:
        signs: int8 (N, H, W, C), of gradients.
        labels: int (N,).

    Returns:
        bool (N,).
    """
    rows = signs.reshape(len(signs), -1)
    _, kinds = np.unique(rows, axis=0, return_inverse=True)
    kinds = kinds.reshape(-1)
    shared = np.array([len(set(labels[kinds == kind])) > 1 for kind in kinds])
    return ~rows.any(axis=1) | shared


def _looks(start: Start) -> list[np.ndarray]:
    """What `_look` gives, for all images."""
    found = gradient.batchwise(
        start.model,
        _look,
        (start.images, start.first.labels.astype(np.int32)),
        start.clip,
        batch_size=start.batch_size,
        progress=start.passes(5),
    )
    return [np.concatenate(parts) for parts in zip(*(parts for _, parts in found), strict=True)]


def _look(model: keras.Model, images: Any, labels: Any, clip: bool) -> tuple[Any, ...]:
    """Signs of the gradient; whether the least logits are constant; the loss's rise; the logits."""
    with tf.GradientTape(persistent=True, watch_accessed_variables=False) as tape:
        tape.watch(images)
        logits = model(images, training=False)
        # As other tools take it: our own loss doesn't saturate.
        entropy = tf.nn.sparse_softmax_cross_entropy_with_logits(labels, logits)
        loss = losses(logits, labels, labels, "cross_entropy")
        # Of two classes one logit may stand for both. The label isn't among the last two of three.
        least = -tf.math.top_k(-logits, 2).values
        gap = least[:, 1] - least[:, 0]
    plain, slope, apart = (
        tape.gradient(each, images, unconnected_gradients="zero") for each in (entropy, loss, gap)
    )
    constant = tf.reduce_all(tf.reshape(apart, (tf.shape(images)[0], -1)) == 0, axis=1)
    if logits.shape[1] < 3:
        constant = tf.zeros_like(constant)
    there = gradient.step(images, tf.sign(slope), _STEP, clip)
    rise = losses(model(there, training=False), labels, labels, "cross_entropy") - loss
    return tf.cast(tf.sign(plain), tf.int8), constant, rise, logits


# Attacks that are compared.


def _compared(start: Start, norm: BallNorm, by_search: float) -> list[Check]:
    """The checks that compare attacks, within balls up to that of _HALF; see `verdict`."""
    half = _HALF if norm == "linf" else _HALF * math.sqrt(start.images[0].size)
    epsilons = [*(epsilon for epsilon in start.epsilons if epsilon < half), half]
    pursuers = [
        Pursuer("few steps", partial(apgd, steps=FEW_STEPS), 2 * FEW_STEPS),
        Pursuer("more steps", partial(apgd, steps=MORE_STEPS), 2 * MORE_STEPS),
        Pursuer("square", partial(square, queries=QUERIES), QUERIES),
    ]
    first = pursue(replace(start, epsilons=epsilons), pursuers, norm).first
    assert first is not None
    by_more, by_square = ((first == number).any(axis=0) for number in (1, 2))
    labels = start.first.labels
    values = {
        "right_within_half": _share(~np.isin(first[-1], (0, 1))),
        "more_steps": _share(by_more),
        "black_box": max(_share(by_square), by_search),
    }
    # Uniform grey has one class, which is right for this share of the images at most.
    limits = {"right_within_half": float(np.bincount(labels).max() / len(labels))}
    limits |= {name: kind.limit for name, kind in DEAR.items() if kind.limit is not None}
    return [Check(name, value, limits[name]) for name, value in values.items()]
