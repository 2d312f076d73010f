"""Projected gradient descent: the fast gradient sign in many small steps, from a random start."""

from typing import TYPE_CHECKING, Annotated, Any

import numpy as np

from resfool.attacks.methods.moving import Moved, Start
from resfool.parameters import Parameters
from resfool.values import Epsilon, UpToMillion

if TYPE_CHECKING:
    import keras

    from resfool.attacks.gradient import Batches
    from resfool.classifiers.inference import Rows


class PgdOptions(Parameters):
    """How far projected gradient descent goes."""

    pgd_steps: Annotated[UpToMillion, "gradient steps of pgd."] = 20
    pgd_step_size: Annotated[
        Epsilon | None,
        "length of one; none is 2.5 epsilon / pgd_steps.",
    ] = None


def pgd(start: Start, asked: PgdOptions) -> Moved:
    """Move every image in many small steps, anew for each epsilon."""
    from resfool.attacks import gradient

    outcomes = [
        gradient.collected(_descents(start, asked, epsilon), 1, len(start.images))
        for epsilon in start.epsilons
    ]
    return Moved(gradient.Outcome.joined(outcomes))


def moved_at(start: Start, asked: PgdOptions, epsilon: float) -> np.ndarray:
    """The images at the end of their descents, float32 (N, H, W, C)."""
    return projected_gradient_descent(
        start.model,
        start.images,
        start.first.labels,
        epsilon,
        steps=asked.pgd_steps,
        step_size=asked.pgd_step_size,
        seed=start.seed,
        places=start.numbers,
        **start.options,
    )


def _descents(start: Start, asked: PgdOptions, epsilon: float) -> "Batches":
    """What the model makes of all images at the end of their descents."""
    from resfool.attacks import gradient

    return gradient.batchwise(
        start.model,
        _descend_and_judge,
        (
            start.images,
            _starts(start.images, start.seed, start.numbers),
            start.first.labels.astype(np.int32),
        ),
        *_lengths(epsilon, asked.pgd_steps, asked.pgd_step_size),
        start.clip,
        batch_size=start.batch_size,
        progress=start.passes(2 * asked.pgd_steps + 1),
    )


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
        batch_size: images per pass, at most.

    Returns:
        float32 (N, H, W, C), the images after the last step.
    """
    from resfool.attacks import gradient

    result = np.empty_like(images)
    for rows, (moved,) in gradient.batchwise(
        model,
        _descend,
        (images, _starts(images, seed, places), labels.astype(np.int32)),
        *_lengths(epsilon, steps, step_size),
        clip,
        batch_size=batch_size,
    ):
        result[rows] = moved
    return result


def _starts(images: np.ndarray, seed: int, places: np.ndarray | None = None) -> "Rows":
    """Where each image (N, H, W, C) starts, in epsilons from it: (N, H, W, C), from -1 to 1."""
    from resfool.classifiers.inference import LazyRows

    numbers = np.arange(len(images)) if places is None else places

    def drawn(rows: slice) -> np.ndarray:
        draws = (
            np.random.default_rng([seed, place]).random(images.shape[1:], np.float32)
            for place in numbers[rows]
        )
        return np.stack([2 * draw - 1 for draw in draws])

    return LazyRows(len(images), drawn)


def _lengths(epsilon: float, steps: int, step_size: float | None) -> list[Any]:
    """The radius, the length of a step and their number, as they are compiled."""
    import tensorflow as tf

    length = 2.5 * epsilon / steps if step_size is None else step_size
    return [tf.constant(v, tf.float32) for v in (epsilon, length)] + [tf.constant(steps)]


def _descend_and_judge(model: "keras.Model", images: Any, *settings: Any) -> tuple[Any, Any, Any]:
    from resfool.attacks.gradient import look

    (moved,) = _descend(model, images, *settings)
    return look(model, images, moved)


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
