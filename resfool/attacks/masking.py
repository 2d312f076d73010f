"""Measuring whether a model hides its gradient; `verdict` says what is checked and why."""

import math
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from resfool.attacks import gradient
from resfool.attacks.gradient import SignGradients
from resfool.attacks.methods.apgd import apgd, losses
from resfool.attacks.methods.moving import Moved, Start
from resfool.attacks.methods.pursuit import Pursuer, pursue
from resfool.attacks.methods.square import square
from resfool.attacks.methods.task import Answer, Task
from resfool.attacks.verdict import (
    CHEAP,
    DEAR,
    FEW_STEPS,
    MORE_STEPS,
    MOST_IMAGES,
    QUERIES,
    Check,
    Verdict,
    passes,
)
from resfool.monitor import Advance
from resfool.values import BallNorm

_STEP = 0.25 / 255  # along the gradient, in pixel units
_SAME = 1e-3  # of the logits' size: more than that no other order of summation makes
_HALF = 0.5  # an l-infinity radius in which every image has uniform grey


def verdict(start: Start, moved: Moved, norm: BallNorm, *, compared: bool) -> Verdict:
    """Check whether a model hides its gradient.

    The checks are made on the first MOST_IMAGES images that the model classifies rightly.

    Args:
        start: what the attack was given; its progress is told `passes` of them.
        moved: what it found.
        norm: that bounds what is changed.
        compared: whether attacks are compared, which takes most of the time.
    """
    right = np.flatnonzero(start.first.logits.argmax(axis=1) == start.first.labels)
    chosen = right[:MOST_IMAGES]
    left = passes(len(start.images), compared=compared)

    def told(more: int, text: str = "", /) -> None:
        nonlocal left
        more = min(more, left)
        left -= more
        start.progress(more, text)

    checks: list[Check] = []
    if len(chosen):
        part = _part(start, chosen, told)
        checks += _looked_at(part)
        if compared:
            checks += _compared(part, chosen, norm, _fooled_by_search(moved, right))
    told(left)
    return Verdict(len(chosen), tuple(checks))


def _part(start: Start, chosen: np.ndarray, told: Advance) -> Start:
    """The same with some of the images."""
    first = SignGradients(*(rows[chosen] for rows in vars(start.first).values()))
    return replace(start, images=start.images[chosen], first=first, progress=told)


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


def _compared(start: Start, places: np.ndarray, norm: BallNorm, by_search: float) -> list[Check]:
    """The checks that compare attacks, within balls up to that of _HALF.

    Args:
        start: the images.
        places: int (N,), their numbers in the larger set, which decide what is drawn for them.
        norm: of the balls.
        by_search: the share of all images that the attack's own random search fooled first.
    """
    half = _HALF if norm == "linf" else _HALF * math.sqrt(start.images[0].size)
    epsilons = [*(epsilon for epsilon in start.epsilons if epsilon < half), half]
    pursuers = [
        Pursuer("few steps", _placed(partial(apgd, steps=FEW_STEPS), places), 2 * FEW_STEPS),
        Pursuer("more steps", _placed(partial(apgd, steps=MORE_STEPS), places), 2 * MORE_STEPS),
        Pursuer("square", _placed(partial(square, queries=QUERIES), places), QUERIES),
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


def _placed(attack: Callable[[Task], Answer], places: np.ndarray) -> Callable[[Task], Answer]:
    """An attack that draws for each image what it would draw for it in the larger set."""
    return lambda task: attack(replace(task, places=places[task.numbers]))


def _fooled_by_search(moved: Moved, right: np.ndarray) -> float:
    """The share of the images that the attack's own Square fooled after gradients had failed."""
    if moved.first is None or "square" not in moved.attacks[1:]:
        return 0.0
    return _share((moved.first[:, right] == moved.attacks.index("square")).any(axis=0))
