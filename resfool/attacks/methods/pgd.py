"""Projected gradient descent: the fast gradient sign in many small steps, from a random start."""

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
    """Move every image in many small steps, anew for each epsilon."""
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

    from resfool.attacks import gradient

    draws = (
        np.random.default_rng([seed, place]).random(images.shape[1:], np.float32)
        for place in (range(len(images)) if places is None else places)
    )
    arrays = images, np.stack([2 * draw - 1 for draw in draws]), labels.astype(np.int32)
    length = 2.5 * epsilon / steps if step_size is None else step_size
    settings = [tf.constant(v, tf.float32) for v in (epsilon, length)]
    result = np.empty_like(images)
    for rows, (moved,) in gradient.batchwise(
        model,
        _descend,
        arrays,
        *settings,
        tf.constant(steps),
        clip,
        batch_size=batch_size,
        progress=progress,
    ):
        result[rows] = moved
    return result


def _descend(
    model: "keras.Model",
    images: Any,
    starts: Any,
    labels: Any,
    epsilon: Any,
    step_size: Any,
    steps: Any,
    clip: bool,
) -> tuple[Any]:
    import tensorflow as tf

    from resfool.attacks.gradient import loss_gradient, step

    moved = step(images, starts, epsilon, clip)
    for _ in tf.range(steps):
        gradient, _ = loss_gradient(model, moved, labels)
        moved += step_size * tf.sign(gradient)
        moved = images + tf.clip_by_value(moved - images, -epsilon, epsilon)
        if clip:
            moved = tf.clip_by_value(moved, 0.0, 1.0)
    return (moved,)
