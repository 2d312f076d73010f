"""Projected gradient descent: the fast gradient sign in many small steps, from a random start."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np

from resfool.attacks.methods.moving import Moved, Start
from resfool.monitor import Advance, quiet
from resfool.parameters import Parameters
from resfool.values import Epsilon, PositiveCount

if TYPE_CHECKING:
    import keras


class PgdOptions(Parameters):
    """How far projected gradient descent goes."""

    pgd_steps: Annotated[PositiveCount, "gradient steps of pgd."] = 20
    pgd_step_size: Annotated[
        Epsilon | None,
        "length of one; none is 2.5 epsilon / pgd_steps.",
    ] = None


def pgd(start: Start, asked: PgdOptions) -> Moved:
    """Move every image in many small steps, anew for each epsilon.

    Args:
        start: where the images stand.
        asked: number and length of the steps.

    Returns:
        The images under attack.
    """
    from resfool.attacks import gradient

    def move(chosen: np.ndarray, epsilon: float, progress: Advance = quiet) -> np.ndarray:
        return projected_gradient_descent(
            start.model,
            start.images[chosen],
            start.first.labels[chosen],
            epsilon,
            steps=asked.pgd_steps,
            step_size=asked.pgd_step_size,
            seed=start.seed,
            places=chosen,
            progress=progress,
            **start.options,
        )

    everything = np.arange(len(start.images))
    outcomes = [
        gradient.judged(
            start.model,
            start.images,
            move(everything, epsilon, start.passes(2 * asked.pgd_steps)),
            batch_size=start.batch_size,
            progress=start.progress,
        )
        for epsilon in start.epsilons
    ]
    return Moved(gradient.Outcome.joined(outcomes), move)


def passes(epsilons: int, asked: PgdOptions) -> int:
    """Of an image: a gradient for each step, and a look at where it ends, for each epsilon."""
    return epsilons * (2 * asked.pgd_steps + 1)


def projected_gradient_descent(
    model: "keras.Model",
    images: np.ndarray,
    labels: np.ndarray,
    epsilon: float,
    *,
    steps: int = 20,
    step_size: float | None = None,
    seed: int = 0,
    clip: bool = True,
    places: np.ndarray | None = None,
    batch_size: int,
    progress: Advance = quiet,
) -> np.ndarray:
    """The iterated fast gradient sign with a random start, within an l-infinity ball.

    Source: Madry et al., "Towards deep learning models resistant to adversarial attacks",
    arXiv:1706.06083.

    Args:
        model: from images to logits.
        images: float32 (N, H, W, C) in [0, 1].
        labels: int (N,), whose loss is raised.
        epsilon: radius of the ball, in pixel units.
        steps: gradient steps.
        step_size: length of one; None is 2.5 * epsilon / steps, enough to cross the ball.
        seed: of the random starts; an image's start depends on the seed and its place only.
        clip: keep the images in [0, 1].
        places: int (N,), the images' numbers in a larger set; None counts from 0.
        batch_size: images per pass.
        progress: is told the images done.

    Returns:
        float32 (N, H, W, C), the images after the last step.
    """
    import tensorflow as tf

    from resfool.classifiers import inference

    descend = inference.compiled(model, _descend)
    length = 2.5 * epsilon / steps if step_size is None else step_size
    settings = [tf.constant(v, tf.float32) for v in (epsilon, length)]
    result = np.empty_like(images)
    numbers = np.arange(len(images)) if places is None else np.asarray(places)
    for rows in inference.batches(len(images), batch_size):
        starts = [_random_start(images.shape[1:], seed, i) for i in numbers[rows]]
        arrays = images[rows], np.stack(starts), np.asarray(labels)[rows].astype(np.int32)
        found = descend(
            *(inference.filled(a, batch_size) for a in arrays), *settings, tf.constant(steps), clip
        )
        result[rows] = found.numpy()[: rows.stop - rows.start]
        progress(rows.stop - rows.start)
    return result


def _random_start(shape: Sequence[int], seed: int, index: int) -> np.ndarray:
    """Uniform in [-1, 1] for every pixel."""
    unit = np.random.default_rng([seed, index]).random(shape, np.float32)
    return 2 * unit - 1


def _descend(
    model: "keras.Model",
    images: Any,
    starts: Any,
    labels: Any,
    epsilon: Any,
    step_size: Any,
    steps: Any,
    clip: bool,
) -> Any:
    import tensorflow as tf

    from resfool.attacks.gradient import loss_gradient, step

    moved = step(images, starts, epsilon, clip)
    for _ in tf.range(steps):
        gradient, _ = loss_gradient(model, moved, labels)
        moved += step_size * tf.sign(gradient)
        moved = images + tf.clip_by_value(moved - images, -epsilon, epsilon)
        if clip:
            moved = tf.clip_by_value(moved, 0.0, 1.0)
    return moved
