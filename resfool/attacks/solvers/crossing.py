"""Where rays leave an image's class, with a lead of another class that rounding can't undo."""

from dataclasses import dataclass
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from resfool.attacks import lowrank
from resfool.attacks.leads import leads, safe_leads
from resfool.attacks.solvers.problem import Problem
from resfool.classifiers import inference

WIDTH = 4e-5  # of a length's bracket in the end, relative to the length
# A solver may have stopped a rounding error short of the boundary. It takes more where pixels are
# rounded, and where the clean lead itself is hardly more than rounding errors.
_STRETCHES = 1.0, 1.001, 1.02, 1.1, 1.25, 1.5, 2.0, 3.0, 5.0, 10.0, 30.0
_LONGER = 100.0, 300.0, 1000.0  # where less than half a level rounds to none
_ROUNDED_WIDTH = 5e-3  # there the lead leaps


@dataclass(frozen=True)
class Rays:
    """The rays from a problem's N images along their perturbations.

    Attributes:
        problem: whose images they are, and how those may be moved.
        ways: float32 (N, H, W, C), where lengths are 1.
    """

    problem: Problem
    ways: np.ndarray

    def crossings(self) -> tuple[np.ndarray, np.ndarray]:
        """How long the perturbations must be for their images to flip.

        That is where the lead crosses the one that is safe. Two lengths close in on it by regula
        falsi, in which an end that stays counts half: Dowell and Jarratt, "A modified regula falsi
        method for computing the root of an equation" (1971). Every third look is in the middle, so
        that the bracket is sure to shrink. Images that are done are left out.

        Returns:
            The lengths, float64 (N,), inf where none was found; the looks at each image, int (N,).
        """
        problem = self.problem
        count, levels = len(self.ways), problem.levels
        clean = leads(problem.logits, problem.classes)
        safe = safe_leads(
            problem.model,
            problem.images,
            problem.classes,
            problem.logits,
            batch_size=problem.batch_size,
        )
        low, high = np.zeros(count), np.full(count, np.inf)
        below, above = clean - safe, np.zeros(count)
        last = np.zeros(count)  # the end that moved last: 1 is high
        looks = np.zeros(count, np.int64)

        def look(rows: np.ndarray, lengths: np.ndarray) -> None:
            looks[rows] += 1
            there = self.leads(rows, lengths, levels) - safe[rows]
            hit = there >= 0
            hits, misses = rows[hit], rows[~hit]
            below[hits[last[hits] > 0]] /= 2
            above[misses[last[misses] < 0]] /= 2
            high[hits], above[hits], last[hits] = lengths[hit], there[hit], 1
            low[misses], below[misses], last[misses] = lengths[~hit], there[~hit], -1

        movable = self.ways.reshape(count, -1).any(axis=1)
        for stretch in _STRETCHES + (_LONGER if levels else ()):
            if len(rows := np.flatnonzero(movable & np.isinf(high))):
                look(rows, np.full(len(rows), stretch))
        width = _ROUNDED_WIDTH if levels else WIDTH
        number = 0
        while len(rows := np.flatnonzero(high - low > width * high)):
            number += 1
            apart = high[rows] - low[rows]
            share = below[rows] / (below[rows] - above[rows]) if number % 3 else 0.5
            # A little past where it seems to be, as seen from the nearer end: so the other moves.
            margin = np.minimum(0.9 * width * high[rows], apart / 2)
            look(rows, low[rows] + np.clip(share * apart, margin, apart - margin))
        return high, looks

    def leads(self, rows: np.ndarray, lengths: np.ndarray, levels: int | None) -> np.ndarray:
        """The leads of other classes at lengths (n,) of the rays with these numbers, (n,)."""
        problem = self.problem
        (logits,) = inference.rowwise(
            problem.model,
            _along,
            (problem.images[rows], self.ways[rows], lengths.astype(np.float32)),
            problem.clip or levels is not None,
            levels,
            batch_size=problem.size,
        )
        return leads(logits, problem.classes[rows])

    def shortened(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Perturbations that end where they cross, (N, H, W, C), their norms (N,), and the looks.

        Where none flips they are 0, and the norms inf.
        """
        lengths, looks = self.crossings()
        flipped = np.isfinite(lengths)
        ends = np.where(flipped, lengths, 0.0)
        ways, norms = np.empty_like(self.ways), np.full(len(ends), np.inf)
        for rows in inference.batches(len(ends), self.problem.batch_size):
            ways[rows] = self.moves(rows, ends[rows])
            norms[rows] = lowrank.sizes(ways[rows], self.problem.norm)
        ways[~flipped], norms[~flipped] = 0.0, np.inf
        return ways, norms, looks

    def moves(self, rows: slice, lengths: np.ndarray) -> np.ndarray:
        """The perturbations at lengths of some rays, float32 (n, H, W, C)."""
        images, levels = self.problem.images[rows], self.problem.levels
        moves = self.ways[rows] * lengths.astype(np.float32).reshape(-1, 1, 1, 1)
        if self.problem.clip:
            moves = np.clip(images + moves, 0.0, 1.0) - images
        if levels:
            moves = np.rint((images + moves) * np.float32(levels)) / np.float32(levels) - images
        return np.asarray(moves, np.float32)


def _along(
    model: keras.Model, images: Any, ways: Any, lengths: Any, clip: bool, levels: int | None
) -> tuple[Any]:
    moved = images + tf.reshape(lengths, (-1, 1, 1, 1)) * ways
    if clip:
        moved = tf.clip_by_value(moved, 0.0, 1.0)
    if levels:
        moved = tf.round(moved * levels) / levels
    return (model(moved, training=False),)
