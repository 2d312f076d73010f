"""Balls around images, of the l-infinity or the l2 norm, as they are compiled.

What is said of B images holds for flat ones (B, D) as for (B, H, W, C).
"""

from typing import Any

import numpy as np
import tensorflow as tf

from resfool.values import BallNorm

Bounds = tuple[float, float]  # of pixels

_NEWTON = 16  # steps to a point of a plane, which mostly takes 2 to 6
_FARTHEST = 64.0  # times as far as without a range of pixels
_NEAR = 0.9999  # share of a gap that is as good as all of it
LEAST = 1e-10  # dual norm, so that what doesn't depend on the image is far away


def range_of_pixels(clip: bool) -> Bounds:
    """The least and the largest value that a pixel may have."""
    return (0.0, 1.0) if clip else (-np.inf, np.inf)


def spread(values: Any, rank: int = 4) -> Any:
    """Numbers of B images, (B,), as they multiply these, (B, 1, 1, 1)."""
    return tf.reshape(values, (-1, *[1] * (rank - 1)))


def _each(parts: Any) -> list[int]:
    return list(range(1, len(parts.shape)))


def lengths(moves: Any, norm: BallNorm) -> Any:
    """The norm of each perturbation, (B,)."""
    if norm == "linf":
        return tf.reduce_max(tf.abs(moves), axis=_each(moves))
    return tf.sqrt(tf.reduce_sum(tf.square(moves), axis=_each(moves)))


def dual_lengths(slopes: Any, norm: BallNorm) -> Any:
    """By how much what has these gradients rises in a ball of radius 1: their dual norm, (B,)."""
    if norm == "l2":
        return lengths(slopes, norm)
    return tf.reduce_sum(tf.abs(slopes), axis=_each(slopes))


def steepest(slopes: Any, norm: BallNorm) -> Any:
    """The perturbations of norm 1 along which what has these gradients rises most; 0 stays 0."""
    if norm == "linf":
        return tf.sign(slopes)
    return tf.math.divide_no_nan(slopes, spread(lengths(slopes, norm), len(slopes.shape)))


def shortest(slopes: Any, gaps: Any, norm: BallNorm) -> Any:
    """The shortest steps on which functions of these gradients rise by gaps (B,)."""
    paces = gaps / tf.maximum(dual_lengths(slopes, norm), LEAST)
    return spread(paces, len(slopes.shape)) * steepest(slopes, norm)


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
        points: of B images, within the range.
        slopes: the functions' gradients there.
        gaps: (B,); where one is negative, the function is to fall.
        norm: in which the steps are short.
        bounds: of pixels.

    Returns:
        The steps; those that the range holds up end where without it they would be 64 times as
        long.
    """
    whole = shortest(slopes, gaps, norm)
    if np.isinf(bounds).all():
        return whole
    steps, steep = tf.abs(whole), tf.abs(slopes)
    room = tf.where(whole > 0, bounds[1] - points, points - bounds[0])
    wanted, times, rise = tf.abs(gaps), tf.zeros_like(gaps), tf.zeros_like(gaps)
    rank = len(points.shape)
    for _ in tf.range(_NEWTON):
        short = (rise < _NEAR * wanted) & (times < _FARTHEST)
        if not tf.reduce_any(short):
            break
        free = tf.where(spread(times, rank) * steps < room, steep * steps, 0.0)
        rate = tf.reduce_sum(free, axis=_each(free))
        further = tf.where(rate > 0, (wanted - rise) / rate, _FARTHEST)
        times = tf.where(short, tf.minimum(times + further, _FARTHEST), times)
        there = tf.minimum(spread(times, rank) * steps, room)
        rise = tf.reduce_sum(steep * there, axis=_each(there))
    return tf.sign(whole) * tf.minimum(spread(times, rank) * steps, room)
