"""The fast gradient sign, and the smallest epsilon along it that changes an image's class."""

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np

from resfool.attacks.methods import fgsm
from resfool.attacks.methods.moving import Moved, Start
from resfool.monitor import Advance, quiet
from resfool.parameters import Parameters
from resfool.values import PositiveFloat

if TYPE_CHECKING:
    import keras

_NARROWING = 8  # passes that an image's bisection takes, roughly: a guess for the progress bar


class SmallestEpsilonOptions(Parameters):
    """How close the smallest epsilon is looked for."""

    tolerance: Annotated[
        PositiveFloat,
        "how far above the smallest epsilon what is found may lie, where pixels go from 0 to 1.",
    ] = 1e-4


def smallest_epsilon(start: Start, asked: SmallestEpsilonOptions) -> Moved:
    """Move images along the signs of their gradients, and find the smallest steps that suffice."""
    moved = fgsm.fgsm(start, asked)
    smallest = smallest_epsilons(
        start.model,
        start.images,
        start.first.signs,
        start.first.logits.argmax(axis=1),
        moved.outcome.classes,
        start.epsilons,
        tolerance=asked.tolerance,
        progress=start.passes(_NARROWING),
        **start.options,
    )
    return replace(moved, smallest=smallest)


def passes(epsilons: int, asked: SmallestEpsilonOptions) -> int:
    """Of an image: those of the fast gradient sign, and the bisection's."""
    return fgsm.passes(epsilons, asked) + _NARROWING


def smallest_epsilons(
    model: "keras.Model",
    images: np.ndarray,
    directions: np.ndarray,
    clean_classes: np.ndarray,
    on_grid: np.ndarray,
    grid: Sequence[float],
    *,
    tolerance: float = 1e-4,
    clip: bool = True,
    batch_size: int,
    progress: Advance = quiet,
) -> np.ndarray:
    """The smallest epsilon along each image's own direction that changes its predicted class.

    That is the inner problem of Algorithm 4. The first point of the grid where the class differs
    bounds it from above, the point before from below, and bisection narrows the two down. A class
    that changes and changes back between two neighbouring points of the grid goes unseen.

    Args:
        model: from images to logits.
        images: float32 (N, H, W, C) in [0, 1].
        directions: int8 (N, H, W, C), signs of the loss gradients.
        clean_classes: int (N,), predictions for the images as they are.
        on_grid: int (E, N), predictions on the grid, `along(...).classes`.
        grid: E rising epsilons, the first above 0.
        tolerance: how far above the smallest one the answer may lie, in pixel units.
        clip: keep the moved images in [0, 1].
        batch_size: images per pass.
        progress: is told the images done.

    Returns:
        float32 (N,): an epsilon at which the class was seen to differ; inf where the grid shows
        no other class.
    """
    import tensorflow as tf

    from resfool.attacks import gradient
    from resfool.classifiers import inference

    changed = on_grid != clean_classes
    smallest = np.full(len(images), np.inf, np.float32)
    movable = np.flatnonzero(changed.any(axis=0))
    progress(len(images) - len(movable))
    first = changed[:, movable].argmax(axis=0)
    edges = np.concatenate([[0.0], grid]).astype(np.float32)
    low, high = edges[first], edges[first + 1]
    rounds = math.ceil(math.log2(max(1.0, float((high - low).max(initial=0.0)) / tolerance)))
    classes = clean_classes[movable].astype(np.int64)
    for rows, (found,) in gradient.batchwise(
        model,
        _narrow,
        (*(inference.picked(of, movable) for of in (images, directions)), classes, low, high),
        tf.constant(rounds),
        tf.constant(tolerance, tf.float32),
        clip,
        batch_size=batch_size,
        progress=progress,
    ):
        smallest[movable[rows]] = found
    return smallest


def _narrow(
    model: "keras.Model",
    images: Any,
    directions: Any,
    clean_classes: Any,
    low: Any,
    high: Any,
    rounds: Any,
    tolerance: Any,
    clip: bool,
) -> tuple[Any]:
    import tensorflow as tf

    from resfool.attacks.gradient import step

    for _ in tf.range(rounds):
        middle = (low + high) / 2
        moved = step(images, directions, tf.reshape(middle, (-1, 1, 1, 1)), clip)
        changed = tf.argmax(model(moved, training=False), axis=1) != clean_classes
        # What is found of an image doesn't depend on how long others take.
        wide = high - low > tolerance
        low = tf.where(wide & ~changed, middle, low)
        high = tf.where(wide & changed, middle, high)
    return (high,)
