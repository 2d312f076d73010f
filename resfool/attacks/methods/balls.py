"""Balls around images, of the l-infinity or the l2 norm, as they are compiled."""

from typing import Any

import tensorflow as tf

from resfool.values import BallNorm

Bounds = tuple[float, float]  # of pixels

_NEWTON = 16  # steps to a point of a plane, which mostly takes 2 to 6


def spread(values: Any) -> Any:
    """Numbers of B images, (B,), as they multiply these, (B, 1, 1, 1)."""
    return tf.reshape(values, (-1, 1, 1, 1))


def lengths(moves: Any, norm: BallNorm) -> Any:
    """The norm of each perturbation (B, H, W, C), (B,)."""
    if norm == "linf":
        return tf.reduce_max(tf.abs(moves), axis=(1, 2, 3))
    return tf.sqrt(tf.reduce_sum(tf.square(moves), axis=(1, 2, 3)))


def dual_lengths(slopes: Any, norm: BallNorm) -> Any:
    """By how much what has these gradients rises in a ball of radius 1: their dual norm, (B,)."""
    return (
        tf.reduce_sum(tf.abs(slopes), axis=(1, 2, 3)) if norm == "linf" else lengths(slopes, norm)
    )


def steepest(slopes: Any, norm: BallNorm) -> Any:
    """The perturbations of norm 1 along which what has these gradients rises most; 0 stays 0."""
    if norm == "linf":
        return tf.sign(slopes)
    return tf.math.divide_no_nan(slopes, spread(lengths(slopes, norm)))


def inside(images: Any, moved: Any, radii: Any, norm: BallNorm, bounds: Bounds) -> Any:
    """Moved images, brought back into the balls around the images and the range of pixels."""
    moves, radii = moved - images, spread(radii)
    if norm == "linf":
        moves = tf.clip_by_value(moves, -radii, radii)
    else:
        shrink = tf.math.divide_no_nan(radii, spread(lengths(moves, norm)))
        moves = tf.where(shrink < 1, shrink * moves, moves)
    return tf.clip_by_value(images + moves, *bounds)


def reaching(points: Any, slopes: Any, gaps: Any, norm: BallNorm, bounds: Bounds) -> Any:
    """The shortest steps within the range of pixels on which linear functions rise by their gaps.

    In the l-infinity norm each pixel goes as far as any, and in l2 as far as its slope is large,
    until it meets the end of its range. So the rise is a concave function of how far they go, of
    straight pieces, and Newton's method from below reaches the gap in a few steps.

    Args:
        points: (B, H, W, C), within the range.
        slopes: (B, H, W, C), the functions' gradients.
        gaps: (B,); where one is negative, the function is to fall.
        norm: in which the steps are short.
        bounds: of pixels.

    Returns:
        (B, H, W, C); where the range doesn't hold such a point, the corner nearest to it.
    """
    slopes *= spread(tf.where(gaps < 0, -1.0, 1.0))
    gaps = spread(tf.abs(gaps))
    size = tf.abs(slopes)
    pace = tf.ones_like(size) if norm == "linf" else size
    room = tf.where(slopes > 0, bounds[1] - points, points - bounds[0])
    far = tf.zeros_like(gaps)
    for _ in tf.range(_NEWTON):
        going = tf.where(far * pace < room, size * pace, 0.0)
        rise = tf.reduce_sum(size * tf.minimum(far * pace, room), axis=(1, 2, 3), keepdims=True)
        rate = tf.reduce_sum(going, axis=(1, 2, 3), keepdims=True)
        far += tf.math.divide_no_nan(tf.maximum(gaps - rise, 0.0), rate)
    return tf.sign(slopes) * tf.minimum(far * pace, room)
