"""The Square attack: random search by squares, which asks the model for nothing but logits."""

import math
from collections.abc import Iterator
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from resfool.attacks import balls
from resfool.attacks.balls import Bounds, spread
from resfool.attacks.leads import lead
from resfool.attacks.methods.task import Answer, Task, in_turns
from resfool.values import BallNorm

_AREA = 0.8  # share of the image that the first square covers
# Of 10,000 queries, those after which the area is halved; see section 3 there.
_HALVED_AFTER = (10, 50, 200, 500, 1000, 2000, 4000, 6000, 8000)
_LEAST = {"linf": 1, "l2": 3}  # side of a window
_QUERIES_OF_TURN = 50


def square(task: Task, *, queries: int = 5000, restarts: int = 1) -> Answer:
    """Change square windows at random, and keep what brings another class nearer (Algorithm 1).

    In the l-infinity ball (Algorithm 2) a window's pixels move to the end of the ball, up or down
    for each channel. In the l2 ball (Algorithm 3) what one window has of the perturbation moves to
    another one, where it heaps up. The windows shrink in time. They are drawn once for all images,
    so an image's result doesn't depend on the others.

    Source: Andriushchenko, Croce, Flammarion, Hein, "Square attack: a query-efficient black-box
    adversarial attack via random search", arXiv:1912.00049; with the larger first window of
    arXiv:2003.01690.

    Args:
        task: which images, within which balls.
        queries: looks at an image that isn't fooled.
        restarts: searches with other windows.
    """
    answer = Answer.none(task)
    for restart in range(restarts):
        left = answer.left
        if not len(left):
            break
        random = np.random.default_rng([task.seed, restart])
        answer.take(left, _search(task.of(left), random, queries))
    return answer


def _search(task: Task, random: np.random.Generator, queries: int) -> Answer:
    answer, shape = Answer.none(task), task.images.shape[1:]
    moved = task.images + task.radii.reshape(-1, 1, 1, 1) * _first(random, shape, task.norm)
    np.clip(moved, *task.bounds, out=moved)
    ahead = np.full(len(moved), -np.inf, np.float32)
    # The first look is at what the search starts from: its window changes nothing.
    still = np.zeros((1, *shape), np.float32), np.zeros((1, *shape[:2], 1), np.float32)
    turns = [(1, still), *_turns(random, shape, queries - 1, task.norm)]
    in_turns(task, _try, [], [moved, ahead, answer.fooled], turns, task.norm, task.bounds)
    answer.moved[answer.fooled] = moved[answer.fooled]
    return answer


def side(query: int, queries: int, height: int, width: int, least: int = 1) -> int:
    """How long a side of the window is at a query, counted from 0, of so many."""
    halvings = sum(10_000 * query / queries > after for after in _HALVED_AFTER)
    length = round(math.sqrt(_AREA * 0.5**halvings * height * width))
    return min(max(length, least), height, width)


def _turns(
    random: np.random.Generator, shape: tuple[int, ...], queries: int, norm: BallNorm
) -> Iterator[tuple[int, tuple[np.ndarray, np.ndarray]]]:
    """Passes of each turn; its windows: what is written (Q, H, W, C), what it's taken from."""
    height, width, channels = shape
    for at in range(0, queries, _QUERIES_OF_TURN):
        count = min(_QUERIES_OF_TURN, queries - at)
        written = np.zeros((count, *shape), np.float32)
        taken = np.zeros((count, height, width, 1), np.float32)
        for row in range(count):
            size = side(at + row, queries, height, width, least=_LEAST[norm])
            signs = _signs(random, channels)
            heap = np.ones((size, size)) if norm == "linf" else heaps(size, random)
            rows, columns = _window(random, size, height, width)
            written[row, rows, columns] = heap[..., np.newaxis] * signs
            taken[(row, *_window(random, size, height, width))] = 1
        yield count, (written, taken)


def _window(random: np.random.Generator, size: int, height: int, width: int) -> tuple[slice, slice]:
    top, left = random.integers(height - size + 1), random.integers(width - size + 1)
    return slice(top, top + size), slice(left, left + size)


def _signs(random: np.random.Generator, *shape: int) -> np.ndarray:
    return random.choice(np.array([-1, 1], np.float32), shape)


def _first(random: np.random.Generator, shape: tuple[int, ...], norm: BallNorm) -> np.ndarray:
    """A perturbation of norm 1 to start with: vertical stripes, or in l2 tiles of heaps."""
    height, width, channels = shape
    if norm == "linf":
        return _signs(random, 1, width, channels)
    result, size = np.zeros(shape, np.float32), max(min(height, width) // 5, 1)
    for top in range(0, height - size + 1, size):
        for left in range(0, width - size + 1, size):
            heap = heaps(size, random)[..., np.newaxis]
            signs = _signs(random, channels)
            result[top : top + size, left : left + size] = heap * signs
    return result / np.linalg.norm(result)


def heaps(size: int, random: np.random.Generator) -> np.ndarray:
    """A heap and a pit side by side, float64 (size, size) of norm 1; section 3.4 there."""
    half = size // 2
    result = np.concatenate([_heap(size, half), -_heap(size, size - half)], axis=1)
    if random.random() < 0.5:
        result = result.T
    return result / np.linalg.norm(result)


def _heap(height: int, width: int) -> np.ndarray:
    """Rings that rise towards the middle, the k-th from outside by 1 / (rings + 1 - k)^2."""
    rings = height // 2
    rows, columns = (np.abs(np.arange(n) - n // 2) for n in (height, width))
    depth = rings - np.maximum(rows[:, np.newaxis], columns)
    steps = 1.0 / (rings + 1.0 - np.arange(rings + 1)) ** 2
    return np.cumsum(steps)[np.maximum(depth, 0)]


def _try(
    model: keras.Model,
    images: Any,
    labels: Any,
    radii: Any,
    leads: Any,
    moved: Any,
    ahead: Any,
    fooled: Any,
    written: Any,
    taken: Any,
    norm: BallNorm,
    bounds: Bounds,
) -> tuple[Any, ...]:
    if norm == "linf":
        low, high = (
            balls.inside(images, images + sign * spread(radii), radii, norm, bounds)
            for sign in (-1.0, 1.0)
        )
    for query in tf.range(tf.shape(written)[0]):
        if norm == "linf":
            ends = tf.where(written[query] > 0, high, low)
            other = tf.where(written[query] != 0, ends, moved)
        else:
            other = images + _heaped(moved - images, radii, written[query], taken[query])
            other = balls.inside(images, other, radii, norm, bounds)
        now = lead(model(other, training=False), labels)
        better = (now > ahead) & ~fooled
        moved = tf.where(spread(better), other, moved)
        ahead, fooled = tf.where(better, now, ahead), fooled | (better & (now > leads))
        if tf.reduce_all(fooled):
            break
    return moved, ahead, fooled


def _heaped(moves: Any, radii: Any, heap: Any, taken: Any) -> Any:
    """Perturbations (B, H, W, C) whose part in one window went to where the heap is (H, W, C)."""
    here = tf.cast(heap != 0, tf.float32)
    either = tf.maximum(here, taken)

    def lengths(part: Any) -> Any:
        return tf.sqrt(tf.reduce_sum(tf.square(part), axis=(1, 2), keepdims=True))

    spare = tf.square(spread(radii)) - spread(tf.square(balls.lengths(moves, "l2")))
    channels = tf.cast(tf.shape(heap)[-1], tf.float32)
    size = tf.sqrt(tf.square(lengths(moves * either)) + tf.maximum(spare, 0.0) / channels)
    # Not quite all of what was there, or the two might cancel out.
    shape = heap + 0.99 * tf.math.divide_no_nan(moves * here, lengths(moves * here))
    return moves * (1 - either) + size * tf.math.divide_no_nan(shape, lengths(shape))
