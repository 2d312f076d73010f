"""The closest point of the linearised boundary, from the image itself, again and again."""

from dataclasses import dataclass
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from resfool.attacks import balls
from resfool.attacks.balls import Bounds
from resfool.attacks.leads import leads
from resfool.attacks.solvers.batches import (
    distances,
    gaps_and_slopes,
    in_batches,
    logit_gradients,
    moved,
)
from resfool.attacks.solvers.deepfool import deepfool
from resfool.attacks.solvers.problem import Attempt, Problem
from resfool.classifiers import inference
from resfool.values import BallNorm

_STEP = 0.7  # share of the way to the nearest point, in later rounds
_BEHIND = 1.15  # times the shortest of an image: a class whose boundary is farther off is dropped
_GAIN = 0.9995  # of the norm: what shortens it by less isn't pursued
_SHORTER = 0.9999  # of the norm: what shortens it by less doesn't count
_LEAST_SHARE = 1 / 16  # of a step along the boundary
_STRETCHES = 1.001, 1.05, 1.2, 1.5, 2.0, 3.0, 5.0  # of what was found, until it flips


def closest(
    problem: Problem, *, candidates: int, starts: int = 3, rounds: int = 6, walk: int = 10
) -> Attempt:
    """The closest point of the linearised boundary, from the image itself, again and again.

    Where logit j catches up with the predicted y, linearised at x + r, begins the half-space

        {s: g.s >= b},  b = g.r - (z_j - z_y)(x + r),  g = grad(z_j - z_y)(x + r),

    whose nearest point to the image is b g / ||g||^2 in l2, and b sign(g) / ||g||_1 in linf. There
    r moves next (in later rounds only most of the way). DeepFool instead takes that step from
    x + r, and what it has walked stays. This is done for each of the few classes that look nearest
    at x, as long as they seem to be, and the shortest is then walked along the boundary to the
    closest point of its tangent plane; a step that doesn't help is halved. Where on its ray a
    perturbation crosses the boundary is taken from the lead and its slope, which every gradient
    comes with. Images, and classes, that gain nothing more are left out. An image that none of it
    flips falls back to `deepfool`.

    Args:
        problem: what is to be solved, in either norm.
        candidates: classes to look at.
        starts: of them, those that look nearest and are moved towards.
        rounds: linearisations on the way to the boundary, at most.
        walk: linearisations on the boundary, at most.
    """
    starts = min(starts, candidates - 1)

    def solved(part: Problem) -> Attempt:
        search = _Search.begun(part, candidates)
        ways = search.walked(search.reached(starts, rounds), walk)
        lost = search.lost(ways)
        if len(lost):
            again = deepfool(part.picked(lost), candidates=candidates)
            ways[lost] = again.perturbations.reshape(len(lost), -1)
            search.passes[lost] += again.evaluations
        return Attempt.of(part, ways, search.passes)

    return in_batches(problem, solved)


def closer(
    problem: Problem,
    ways: np.ndarray,
    targets: np.ndarray | None = None,
    *,
    candidates: int,
    rounds: int = 6,
    walk: int = 10,
) -> Attempt:
    """What `closest` makes of perturbations, from which it goes on.

    Args:
        problem: whose images they are of.
        ways: float32 (N, H, W, C); without targets they flip their images, or nearly do.
        targets: int32 (N,), classes whose boundaries they are to lead to; None walks at once.
        candidates: classes to look at.
        rounds: linearisations on the way to the boundary, at most.
        walk: linearisations on the boundary, at most.
    """

    def solved(rows: slice) -> Attempt:
        part = problem.picked(rows)
        search = _Search.begun(part, candidates)
        moves = ways[rows].reshape(len(part.images), -1)
        if targets is not None:
            everyone = np.arange(len(moves))
            moves, _ = search.approached(everyone, targets[rows], moves, rounds)
        return Attempt.of(part, search.walked(moves, walk), search.passes)

    return Attempt.joined(
        [solved(rows) for rows in inference.batches(len(ways), problem.batch_size)]
    )


@dataclass(frozen=True)
class _Near:
    """What is linearised at n perturbations.

    Attributes:
        stretch: how much longer they must be to end at the boundary, by the lead and its slope
            (n,); inf where that is too much longer or shorter for them to tell.
        norms: of the perturbations that are stretched, (n,).
        nearest: the nearest points of the half-spaces, float32 (n, D).
    """

    stretch: np.ndarray
    norms: np.ndarray
    nearest: np.ndarray


@dataclass(frozen=True)
class _Search:
    """A batch of B images on the way to their boundaries.

    Attributes:
        problem: the images.
        passes: int (B,), through the model, of each image.
        top: int32 (B, K), the classes to look at, the predicted one first.
    """

    problem: Problem
    passes: np.ndarray
    top: np.ndarray

    @classmethod
    def begun(cls, problem: Problem, candidates: int) -> "_Search":
        top = np.argsort(-problem.logits, axis=1, kind="stable")[:, :candidates]
        return cls(problem, np.zeros(len(top), np.int64), top.astype(np.int32))

    def reached(self, starts: int, rounds: int) -> np.ndarray:
        """The shortest perturbations found on the ways to several classes, (B, D)."""
        problem, count = self.problem, len(self.top)
        targets, moves = inference.rowwise(
            problem.model,
            _nearest_of_several,
            (problem.images, self.top),
            starts,
            problem.norm,
            problem.bounds,
            batch_size=problem.size,
        )
        self.passes[:] += 1 + self.top.shape[1]
        image = np.repeat(np.arange(count), starts)
        moves = moves.reshape(count * starts, -1)
        best, shortest = self.approached(image, targets.reshape(-1), moves, rounds - 1)
        first = shortest.reshape(count, starts).argmin(axis=1)
        return best.reshape(count, starts, -1)[np.arange(count), first]

    def approached(
        self, image: np.ndarray, targets: np.ndarray, moves: np.ndarray, rounds: int
    ) -> tuple[np.ndarray, np.ndarray]:
        """Perturbations (n, D) on to the boundaries of targets (n,), and their norms (n,).

        They are of images (n,), as many of each; what stays behind the best of its image is
        dropped.
        """
        count = len(self.top)
        starts = len(image) // count
        moves = moves.copy()
        best, shortest = moves.copy(), np.full(len(moves), np.inf)
        going = np.arange(len(moves))
        for _ in range(rounds):
            if not len(going):
                break
            near = self.linearised(image[going], moves[going], targets[going])
            gains = near.norms < _GAIN * shortest[going]
            shorter = near.norms < shortest[going]
            some = going[shorter]
            best[some] = near.stretch[shorter, np.newaxis] * moves[some]
            shortest[some] = near.norms[shorter]
            moves[going] += np.float32(_STEP) * (near.nearest - moves[going])
            leader = shortest.reshape(count, starts).min(axis=1)[image]
            hopeful = np.isinf(shortest) | (shortest <= _BEHIND * leader)
            going = going[(gains | np.isinf(shortest[going])) & hopeful[going]]
        return best, shortest

    def walked(self, moves: np.ndarray, steps: int) -> np.ndarray:
        """Perturbations (B, D) after steps along the boundary to where it is closer."""
        anyone = np.full(len(moves), -1, np.int32)
        everywhere = np.arange(len(moves))
        near = self.linearised(everywhere, moves, anyone)
        best = np.where(np.isfinite(near.stretch), near.stretch, 1.0)[:, np.newaxis] * moves
        nearest, shortest = near.nearest, near.norms.copy()
        share = np.ones(len(moves))
        going = everywhere
        idle = np.zeros(len(moves), np.int64)  # steps that gained nothing worth the while
        for _ in range(steps):
            if not len(going):
                break
            part = share[going, np.newaxis].astype(np.float32)
            there = best[going] + part * (nearest[going] - best[going])
            near = self.linearised(going, there, anyone[going])
            gains = near.norms < _GAIN * shortest[going]
            helps = near.norms < _SHORTER * shortest[going]
            some = going[helps]
            best[some] = near.stretch[helps, np.newaxis] * there[helps]
            nearest[some], shortest[some] = near.nearest[helps], near.norms[helps]
            share[going] = np.where(helps, np.minimum(1, 1.5 * share[going]), share[going] / 2)
            idle[going] = np.where(gains, 0, idle[going] + 1)
            going = going[(share[going] >= _LEAST_SHARE) & (idle[going] < 3)]
        return best.astype(np.float32)

    def lost(self, ways: np.ndarray) -> np.ndarray:
        """The numbers of the images that nothing has flipped; others' ways are stretched to."""
        problem, waiting = self.problem, np.arange(len(ways))
        for stretch in _STRETCHES:
            if len(waiting):
                (logits,) = inference.rowwise(
                    problem.model,
                    _logits,
                    (problem.images[waiting], np.float32(stretch) * ways[waiting]),
                    batch_size=problem.size,
                )
                self.passes[waiting] += 1
                flipped = leads(logits, problem.classes[waiting]) > 0
                ways[waiting[flipped]] *= np.float32(stretch)
                waiting = waiting[~flipped]
        return waiting

    def linearised(self, image: np.ndarray, moves: np.ndarray, targets: np.ndarray) -> _Near:
        """At perturbations (n, D) of images (n,), where classes (n,) catch up with their own.

        The class -1 is the strongest of the others.
        """
        problem = self.problem
        lead, rise, norm, nearest = inference.rowwise(
            problem.model,
            _linearised,
            (problem.images[image], self.top[image, 0], targets, moves),
            problem.norm,
            problem.bounds,
            batch_size=problem.size,
        )
        np.add.at(self.passes, image, 2)
        with np.errstate(divide="ignore", invalid="ignore"):
            stretch = 1 - lead / rise
            stretched = norm * stretch
        usable = (rise > 0) & (stretch > 0.5) & (stretch < 2)
        stretch, stretched = np.where(usable, [stretch, stretched], np.float32(np.inf))
        return _Near(stretch, stretched, nearest)


def _nearest_of_several(
    model: keras.Model, images: Any, top: Any, starts: int, norm: BallNorm, bounds: Bounds
) -> tuple[Any, Any]:
    """The classes whose linearised boundaries are nearest, (B, S), and ways there, (B, S, D)."""
    gaps, slopes = gaps_and_slopes(*logit_gradients(model, images, top))
    near = tf.math.top_k(-distances(gaps, slopes, norm), starts).indices
    flat, ways = tf.reshape(images, tf.shape(slopes[:, 0])), []
    for start in range(starts):
        gap, slope = (tf.gather(a, near[:, start], batch_dims=1) for a in (gaps, slopes))
        ways.append(balls.reaching(flat, slope, gap, norm, bounds))
    return tf.gather(top[:, 1:], near, batch_dims=1), tf.stack(ways, axis=1)


def _linearised(
    model: keras.Model,
    images: Any,
    own: Any,
    targets: Any,
    moves: Any,
    norm: BallNorm,
    bounds: Bounds,
) -> tuple[Any, Any, Any, Any]:
    """The targets' lead (B,), its slope along the perturbation, whose norm, and `nearest`."""
    there = moved(images, moves)
    with tf.GradientTape(watch_accessed_variables=False) as tape:
        tape.watch(there)
        logits = model(there, training=False)
    mine = tf.one_hot(own, logits.shape[1])
    strongest = tf.argmax(logits - tf.where(mine > 0, np.inf, 0.0), axis=1, output_type=tf.int32)
    ahead = tf.one_hot(tf.where(targets < 0, strongest, targets), logits.shape[1]) - mine
    slope = tf.reshape(tape.gradient(logits, there, output_gradients=ahead), tf.shape(moves))
    lead, rise = tf.reduce_sum(ahead * logits, axis=1), tf.reduce_sum(slope * moves, axis=1)
    flat = tf.reshape(images, tf.shape(moves))
    nearest = balls.reaching(flat, slope, rise - lead, norm, bounds)
    return lead, rise, balls.lengths(moves, norm), nearest


def _logits(model: keras.Model, images: Any, moves: Any) -> tuple[Any]:
    return (model(moved(images, moves), training=False),)
