"""The smallest l2 perturbation of each sample: min ||r||_2 such that k(x + r) != k(x).

That is the inner problem of Algorithms 1 and 2 (section VI.A), for which the paper takes COBYLA.
`smallest_perturbations` is the one name; SOLVERS holds the ways to solve it. What a solver returns
is never believed: the flip is seen on the model itself, in the batches in which the images are
judged elsewhere, and the perturbation is shortened along its own ray until it only just flips.
"""

import functools
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import keras
import numpy as np
import tensorflow as tf
from scipy import optimize

from resfool import classifiers, inference
from resfool.attacks.gradient import Progress, loss_gradient
from resfool.errors import InputError, unknown
from resfool.inference import BATCH_SIZE
from resfool.parameters import Solver, Subspace

PRECISION = 1e-4  # of a norm along its ray, relative


class Map(Protocol):
    """What runs independent tasks, such as `parallel.map` with a backend."""

    def __call__(
        self, function: Callable[[Any], Any], items: Sequence[Any], *, progress: Progress
    ) -> list[Any]:
        """The function's results in the items' order; progress is told how many more are done."""


def _quiet(images: int) -> None:
    pass


def one_by_one(
    function: Callable[[Any], Any],
    items: Sequence[Any],
    *,
    progress: Progress,
    finished: Mapping[int, Any] | None = None,
    keep: Callable[[int, Any], None] = lambda place, result: None,
) -> list[Any]:
    """What `parallel.map` does, in this process: see there."""
    results = dict(finished or {})
    for place, item in enumerate(items):
        if place not in results:
            results[place] = function(item)
            keep(place, results[place])
            progress(1)
    return [results[place] for place in range(len(items))]


@dataclass(frozen=True)
class Minimal:
    """The smallest perturbations that a solver found for N images.

    Attributes:
        perturbations: float32 (N, H, W, C); zero where nothing flipped.
        norms: float32 (N,), their l2 norms; inf where nothing flipped.
        flipped: bool (N,), whether the predicted class was seen to change.
        evaluations: int64 (N,), passes through the model: a forward pass counts 1, the gradient
            of a logit with its forward pass 2.
        seconds: float64 (N,); images that were solved together share their time evenly.
    """

    perturbations: np.ndarray
    norms: np.ndarray
    flipped: np.ndarray
    evaluations: np.ndarray
    seconds: np.ndarray

    def followed_by(self, other: "Minimal") -> "Minimal":
        """These images and then the others."""
        mine, theirs = vars(self), vars(other)
        return Minimal(**{name: np.concatenate([mine[name], theirs[name]]) for name in mine})


@dataclass(frozen=True)
class Problem:
    """What is to be solved, the same for every solver.

    Attributes:
        model: from images to logits.
        images: float32 (N, H, W, C) in [0, 1].
        classes: int64 (N,), that the model predicts.
        clip: keep perturbed images in [0, 1].
        batch_size: images per pass.
        progress: is told how many more images are solved.
    """

    model: keras.Model
    images: np.ndarray
    classes: np.ndarray
    clip: bool
    batch_size: int
    progress: Progress

    def only(self, chosen: np.ndarray) -> "Problem":
        """The same for some of the images, without a word on progress."""
        return replace(
            self, images=self.images[chosen], classes=self.classes[chosen], progress=_quiet
        )


@dataclass(frozen=True)
class Attempt:
    """A solver's answer, not yet checked: perturbations, evaluations and seconds as in Minimal."""

    perturbations: np.ndarray
    evaluations: np.ndarray
    seconds: np.ndarray


def smallest_perturbations(
    model: keras.Model,
    images: np.ndarray,
    *,
    solver: Solver = "closest",
    subspace: Subspace = "gradients",
    candidates: int = 10,
    evaluations: int | None = None,
    clip: bool = False,
    batch_size: int = BATCH_SIZE,
    map: Map = one_by_one,
    progress: Progress = _quiet,
) -> Minimal:
    """The smallest l2 perturbation of each image that changes the model's prediction.

    No solver draws at random: the same images give the same answer.

    Args:
        model: from images to logits of two classes or more.
        images: float32 (N, H, W, C) in [0, 1], at least one.
        solver: "closest", "deepfool" and "ddn" run in batches, "cobyla" image by image.
        subspace: of cobyla: the differences of the logits' "gradients" at the image, the "rows" of
            the first dense layer's matrix, or all "pixels".
        candidates: classes to look at, the predicted one and those next to it; of closest,
            deepfool and cobyla's gradients. A model of fewer classes has all of them looked at.
        evaluations: of the model that cobyla may spend on an image; None is EVALUATIONS of the
            subspace, or twice its dimensions if that is more.
        clip: keep perturbed images in [0, 1].
        batch_size: images per pass.
        map: runs cobyla's tasks.
        progress: is told how many more images are solved.

    Returns:
        Perturbations that were seen to flip, each no longer along its ray than need be, and which
        images nothing flipped.

    Raises:
        InputError: an unknown name, a number out of range, a subspace that the model lacks, or a
            model that gives no numbers for some of the images.
    """
    _check(model, images, solver, subspace, candidates, evaluations)
    classes = classifiers.predicted(inference.logits(model, images, batch_size))
    problem = Problem(model, images, classes, clip, batch_size, progress)
    settings: dict[str, Any] = {"candidates": min(candidates, model.output_shape[-1])}
    if solver == "ddn":
        settings = {}
    elif solver == "cobyla":
        settings |= {"subspace": subspace, "evaluations": evaluations, "map": map}
    return _verified(problem, SOLVERS[solver](problem, **settings))


def _check(
    model: keras.Model,
    images: np.ndarray,
    solver: str,
    subspace: str,
    candidates: int,
    evaluations: int | None,
) -> None:
    if solver not in SOLVERS:
        raise unknown("solver", solver, SOLVERS)
    if candidates < 2:
        raise InputError(f"candidates={candidates} must be 2 or more: the prediction and another")
    if model.output_shape[-1] < 2:
        raise InputError(f"a model of {model.output_shape[-1]} logit has no class to change to")
    if solver != "cobyla":
        return
    if subspace not in SUBSPACES:
        raise unknown("subspace", subspace, SUBSPACES)
    dimensions = images[0].size if subspace == "pixels" else 1
    if subspace == "rows":
        dimensions = len(_row_space(model))
    elif subspace == "gradients":
        dimensions = min(candidates, model.output_shape[-1]) - 1
    least = dimensions + 3 + len(_OUTWARD)
    if evaluations is not None and evaluations < least:
        raise InputError(
            f"evaluations={evaluations} is too few: COBYLA needs {least} or more "
            f"in the {dimensions} dimensions of subspace={subspace}"
        )


def _verified(problem: Problem, attempt: Attempt) -> Minimal:
    """See each flip on the model itself, and shorten the perturbation to where it happens.

    All images go through every pass, each in its own place, so that the model computes the very
    bits that it computes when these images are judged elsewhere.
    """
    passes = 0
    count = len(problem.images)
    began = time.perf_counter()

    def scaled(lengths: np.ndarray) -> np.ndarray:
        moved = attempt.perturbations * lengths.astype(np.float32).reshape(-1, 1, 1, 1)
        if problem.clip:
            moved = np.clip(problem.images + moved, 0.0, 1.0) - problem.images
        return moved

    def flips(lengths: np.ndarray) -> np.ndarray:
        nonlocal passes
        passes += 1
        found = inference.logits(
            problem.model, problem.images + scaled(lengths), problem.batch_size
        )
        return np.asarray(found.argmax(axis=1) != problem.classes)

    # A solver may have stopped a rounding error short of the boundary.
    high = np.ones(count)
    flipped = flips(high)
    for stretch in (1.001, 1.02):
        if not flipped.all():
            high[~flipped] = stretch
            flipped = flips(high)
    low = np.zeros(count)
    for guess in (1 - 8 * PRECISION, 0.97, 0.8):
        wide = flipped & (low == 0)
        if wide.any():
            nearer = flips(np.where(wide, guess * high, high))
            low = np.where(wide & ~nearer, guess * high, low)
            high = np.where(wide & nearer, guess * high, high)
    while (flipped & (high - low > PRECISION * high)).any():
        middle = np.where(flipped, (low + high) / 2, high)
        nearer = flips(middle)
        low, high = np.where(nearer, low, middle), np.where(nearer, middle, high)
    high[~flipped] = 0.0
    perturbations = scaled(high).astype(np.float32)
    norms = np.linalg.norm(perturbations.reshape(count, -1).astype(np.float64), axis=1)
    return Minimal(
        perturbations=perturbations,
        norms=np.where(flipped, norms, np.inf).astype(np.float32),
        flipped=flipped,
        evaluations=attempt.evaluations + passes + 1,
        seconds=attempt.seconds + (time.perf_counter() - began) / count,
    )


# ---- In batches: DeepFool, DDN and ours.


def closest(
    problem: Problem, *, candidates: int, starts: int = 3, rounds: int = 6, walk: int = 10
) -> Attempt:
    """The closest point of the linearised boundary, from the image itself, again and again.

    Where logit j catches up with the predicted y, linearised at x + r, begins the half-space

        {s: g.s >= g.r - (z_j - z_y)(x + r)},  g = grad(z_j - z_y)(x + r),

    whose nearest point to the image, b g / ||g||^2, is where r moves next (in later rounds only
    most of the way). DeepFool instead takes that step from x + r, and what it has walked stays.
    This is done for each of the few classes that look nearest at x. The shortest that flips is
    then walked along the boundary to the closest point of its tangent plane, which shortens it
    while the boundary bends little; a step that doesn't help is halved. An image that none of it
    flips falls back to `deepfool`.

    Args:
        problem: what is to be solved.
        candidates: classes to look at.
        starts: of them, those that look nearest and are moved towards.
        rounds: linearisations on the way to the boundary.
        walk: linearisations on the boundary.

    Returns:
        An answer for each image.
    """
    starts = min(starts, candidates - 1)
    found = _in_batches(problem, _closest, candidates, starts, rounds, walk)
    lost = np.flatnonzero(~found.perturbations.reshape(len(problem.images), -1).any(axis=1))
    if len(lost):
        again = deepfool(problem.only(lost), candidates=candidates)
        found.perturbations[lost] = again.perturbations
        found.evaluations[lost] += again.evaluations
        found.seconds[lost] += again.seconds
    return found


def deepfool(
    problem: Problem, *, candidates: int, overshoot: float = 0.02, steps: int = 50
) -> Attempt:
    """Steps to the nearest linearised boundary, each from where the last one ended.

    Source: Moosavi-Dezfooli, Fawzi, Frossard, "DeepFool: a simple and accurate method to fool deep
    neural networks", arXiv:1511.04599, algorithm 2.

    Args:
        problem: what is to be solved.
        candidates: classes to look at.
        overshoot: by how much the way is lengthened, so that it crosses the boundary.
        steps: at most.

    Returns:
        An answer for each image.
    """
    return _in_batches(problem, _deepfool, candidates, steps, tf.constant(overshoot))


def ddn(
    problem: Problem, *, steps: int = 300, initial_norm: float = 1.0, gamma: float = 0.05
) -> Attempt:
    """Decoupled direction and norm: gradient steps on a sphere that shrinks with each success.

    Source: Rony et al., "Decoupling direction and norm for efficient gradient-based L2 adversarial
    attacks and defenses", arXiv:1811.09600, algorithm 1, without its quantisation.

    Args:
        problem: what is to be solved.
        steps: gradient steps, their lengths falling from 1 to 0.01 by a cosine.
        initial_norm: radius of the first sphere.
        gamma: by which share the radius changes.

    Returns:
        An answer for each image, zero if no step flipped it.
    """
    settings = tf.constant(initial_norm), tf.constant(gamma)
    return _in_batches(problem, _ddn, steps, *settings)


def _in_batches(problem: Problem, function: Callable[..., Any], *settings: Any) -> Attempt:
    solve = inference.compiled(problem.model, function)
    count = len(problem.images)
    perturbations = np.empty(problem.images.shape, np.float32)
    evaluations, seconds = np.empty(count, np.int64), np.empty(count)
    for rows in inference.batches(count, problem.batch_size):
        began = time.perf_counter()
        arrays = problem.images[rows], problem.classes[rows].astype(np.int32)
        filled = (inference.filled(a, problem.batch_size) for a in arrays)
        moves, passes = (part.numpy() for part in solve(*filled, *settings, problem.clip))
        size = rows.stop - rows.start
        perturbations[rows] = moves[:size].reshape(problem.images[rows].shape)
        evaluations[rows] = np.broadcast_to(passes, problem.batch_size)[:size]
        seconds[rows] = (time.perf_counter() - began) / size
        problem.progress(size)
    return Attempt(perturbations, evaluations, seconds)


# What is compiled: a model and tensors in, tensors out; Python's numbers are settled when it is
# traced. Perturbations are flat here, (B, D). A result is (perturbations, evaluations).

_STRETCHES = 1.2, 1.5, 2.0, 3.0, 5.0  # of the last round's point, if no round's has flipped
_HALVINGS = 8  # on the way back to the boundary
_WALK_HALVINGS = 4  # after a step along it
_MISS = 0.97  # how far inside the boundary a step along it may have ended
_GAIN = 0.9999  # what such a step must shorten the norm to


def _closest(
    model: keras.Model,
    images: Any,
    classes: Any,
    candidates: int,
    starts: int,
    rounds: int,
    walk: int,
    clip: bool,
) -> tuple[Any, Any]:
    at = _Surroundings(model, images, classes, clip)
    top, logits, gradients = _top_gradients(model, images, candidates)
    gaps, differences = _differences(logits, gradients)
    distances = tf.abs(gaps) * tf.math.rsqrt(_square_norms(differences))
    targets = tf.gather(top[:, 1:], tf.math.top_k(-distances, starts).indices, batch_dims=1)

    best = at.none()
    for start in tf.range(starts):
        found = at.none()
        moved = tf.zeros_like(found[0])
        for i in tf.range(rounds):
            nearest = at.nearest_of_boundary(moved, targets[:, start])
            moved = at.inside(moved + tf.where(i == 0, 1.0, 0.7) * (nearest - moved))
            found = at.better(found, at.inside(1.05 * moved))
        for stretch in _STRETCHES:
            found = at.better(found, at.inside(stretch * moved))
        best = at.shorter(best, at.shortened(found))

    best = at.walked(best, walk)
    passes = (
        (2 + candidates)
        + starts * (3 * rounds + len(_STRETCHES) + _HALVINGS)
        + walk * (3 + _WALK_HALVINGS)
    )
    return best[0], tf.constant(passes)


def _deepfool(
    model: keras.Model,
    images: Any,
    classes: Any,
    candidates: int,
    steps: int,
    overshoot: Any,
    clip: bool,
) -> tuple[Any, Any]:
    at = _Surroundings(model, images, classes, clip)
    way = at.none()[0]
    going = tf.ones_like(classes, tf.bool)
    passes = tf.zeros_like(classes)
    top = _top_gradients(model, images, candidates)[0]
    for _ in tf.range(steps):
        if tf.reduce_any(going):
            logits, gradients = _gradients(model, at.moved(way), top)
            gaps, differences = _differences(logits, gradients)
            squares = _square_norms(differences)
            nearest = tf.argmin(tf.abs(gaps) * tf.math.rsqrt(squares), axis=1)
            gap, square, difference = (
                tf.gather(a, nearest, batch_dims=1) for a in (gaps, squares, differences)
            )
            # The 1e-4 is the authors': it gets the last step across.
            step = ((tf.abs(gap) + 1e-4) / square)[:, tf.newaxis] * difference
            longer = at.inside(way + (1 + overshoot) * step)
            way = tf.where(going[:, tf.newaxis], longer, way)
            passes += tf.where(going, 2 + candidates, 0)
            going &= ~at.flips(way)
    return way, passes + 2 + candidates


def _ddn(
    model: keras.Model,
    images: Any,
    classes: Any,
    steps: int,
    initial_norm: Any,
    gamma: Any,
    clip: bool,
) -> tuple[Any, Any]:
    at = _Surroundings(model, images, classes, clip)
    best = at.none()
    moved = best[0]
    radius = tf.fill(tf.shape(classes), initial_norm)
    for i in tf.range(steps):
        slope, logits = loss_gradient(model, at.moved(moved), classes)
        flips = at.differ(logits)
        best = at.shorter(best, (moved, tf.where(flips, _norms(moved), np.inf)))
        done = tf.cast(i, tf.float32) / steps
        length = 0.01 + 0.99 * (1 + tf.cos(np.pi * done)) / 2
        moved += length * _units(tf.reshape(slope, tf.shape(moved)))
        radius *= tf.where(flips, 1 - gamma, 1 + gamma)
        moved = at.inside(radius[:, tf.newaxis] * _units(moved))
    return best[0], tf.constant(2 * steps)


class _Surroundings:
    """B images with what the solvers ask of the model near them, while it is traced.

    A pair (perturbations (B, D), norms (B,)) is the best that was found so far; norms are inf
    where nothing was.
    """

    def __init__(self, model: keras.Model, images: Any, classes: Any, clip: bool) -> None:
        self._model, self._images, self._classes, self._clip = model, images, classes, clip
        self._flat = tf.reshape(images, (images.shape[0], -1))

    def none(self) -> tuple[Any, Any]:
        return tf.zeros_like(self._flat), tf.fill(tf.shape(self._flat)[:1], np.inf)

    def moved(self, moves: Any) -> Any:
        return self._images + tf.reshape(moves, tf.shape(self._images))

    def inside(self, moves: Any) -> Any:
        """Perturbations as they are once pixels are kept in range, if they are."""
        if not self._clip:
            return moves
        return tf.clip_by_value(self._flat + moves, 0.0, 1.0) - self._flat

    def differ(self, logits: Any) -> Any:
        return tf.argmax(logits, axis=1, output_type=self._classes.dtype) != self._classes

    def flips(self, moves: Any) -> Any:
        return self.differ(self._model(self.moved(moves), training=False))

    def shorter(self, best: tuple[Any, Any], other: tuple[Any, Any]) -> tuple[Any, Any]:
        wins = other[1] < best[1]
        moves = tf.where(wins[:, tf.newaxis], other[0], best[0])
        return moves, tf.where(wins, other[1], best[1])

    def better(self, best: tuple[Any, Any], moves: Any) -> tuple[Any, Any]:
        return self.shorter(best, (moves, tf.where(self.flips(moves), _norms(moves), np.inf)))

    def shortened(self, best: tuple[Any, Any]) -> tuple[Any, Any]:
        """Found perturbations scaled down to where they just flip."""
        lengths = self._bisected(best[0], 0.0, tf.ones_like(best[1]), _HALVINGS)
        return best[0] * lengths[:, tf.newaxis], best[1] * lengths

    def walked(self, best: tuple[Any, Any], steps: int) -> tuple[Any, Any]:
        """Found perturbations after steps along the boundary to where it is closer."""
        share = tf.ones_like(best[1])
        anyone = tf.fill(tf.shape(self._classes), -1)
        for _ in tf.range(steps):
            moves, norms = best
            nearest = self.nearest_of_boundary(moves, anyone)
            there = self.inside(moves + share[:, tf.newaxis] * (nearest - moves))
            # Only what is shorter than the best is of interest: does that still flip?
            high = tf.math.divide_no_nan(_GAIN * norms, _norms(there))
            high = tf.where(tf.math.is_finite(high), high, 0.0)
            helps = self.flips(self.inside(high[:, tf.newaxis] * there))
            high = self._bisected(there, _MISS * tf.minimum(high, 1.0), high, _WALK_HALVINGS)
            there = self.inside(high[:, tf.newaxis] * there)
            best = self.shorter(best, (there, tf.where(helps, _norms(there), np.inf)))
            share = tf.where(helps, tf.minimum(1.0, 1.5 * share), share / 2)
        return best

    def nearest_of_boundary(self, moves: Any, targets: Any) -> Any:
        """The point closest to the image where a class, linearised here, catches up.

        Args:
            moves: (B, D), where it is linearised.
            targets: int32 (B,), the classes; -1 is the strongest but the predicted one.

        Returns:
            (B, D), perturbations.
        """
        images = self.moved(moves)
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            tape.watch(images)
            logits = self._model(images, training=False)
        own = tf.one_hot(self._classes, logits.shape[1])
        strongest = tf.argmax(logits - tf.where(own > 0, np.inf, 0.0), axis=1, output_type=tf.int32)
        ahead = tf.one_hot(tf.where(targets < 0, strongest, targets), logits.shape[1]) - own
        slope = tf.reshape(tape.gradient(logits, images, output_gradients=ahead), moves.shape)
        behind = tf.reduce_sum(slope * moves, axis=1) - tf.reduce_sum(ahead * logits, axis=1)
        whole = (behind / _square_norms(slope))[:, tf.newaxis] * slope
        return self._reaching(whole, slope, behind) if self._clip else whole

    def _reaching(self, whole: Any, slope: Any, behind: Any) -> Any:
        """Stretch perturbations until what the range of pixels leaves of them reaches as far."""
        low, high = tf.ones_like(behind), tf.fill(tf.shape(behind), 64.0)
        for _ in tf.range(16):
            middle = (low + high) / 2
            reach = tf.reduce_sum(slope * self.inside(middle[:, tf.newaxis] * whole), axis=1)
            enough = tf.abs(reach) >= tf.abs(behind)
            low, high = tf.where(enough, low, middle), tf.where(enough, middle, high)
        return self.inside(high[:, tf.newaxis] * whole)

    def _bisected(self, moves: Any, low: Any, high: Any, rounds: int) -> Any:
        """The length between low, that flips nothing, and high at which perturbations flip."""
        low = tf.broadcast_to(low, tf.shape(high))
        for _ in tf.range(rounds):
            middle = (low + high) / 2
            flips = self.flips(self.inside(middle[:, tf.newaxis] * moves))
            low, high = tf.where(flips, low, middle), tf.where(flips, middle, high)
        return high


def _top_gradients(model: keras.Model, images: Any, candidates: int) -> tuple[Any, Any, Any]:
    """The classes of the largest logits (B, K), the predicted one first; and their gradients."""
    top = tf.math.top_k(model(images, training=False), candidates).indices
    return top, *_gradients(model, images, top)


def _gradients(model: keras.Model, images: Any, top: Any) -> tuple[Any, Any]:
    """Logits of the classes `top` (B, K), and their gradients, (B, K, D)."""
    with tf.GradientTape(persistent=True, watch_accessed_variables=False) as tape:
        tape.watch(images)
        logits = model(images, training=False)

    def of_one(classes: Any) -> Any:
        picked = tf.one_hot(classes, logits.shape[1])
        gradient = tape.gradient(logits, images, output_gradients=picked)
        return tf.reshape(gradient, (images.shape[0], -1))

    gradients = tf.map_fn(
        of_one, tf.transpose(top), fn_output_signature=tf.float32, parallel_iterations=1
    )
    return tf.gather(logits, top, batch_dims=1), tf.transpose(gradients, (1, 0, 2))


def _differences(logits: Any, gradients: Any) -> tuple[Any, Any]:
    """By how much the first class is ahead of the others (B, K - 1), and how they catch up."""
    return logits[:, :1] - logits[:, 1:], gradients[:, 1:] - gradients[:, :1]


def _square_norms(slopes: Any) -> Any:
    """Never 0, so that what doesn't depend on the image is far away, and nothing is NaN."""
    return tf.maximum(tf.reduce_sum(slopes * slopes, axis=-1), 1e-20)


def _norms(moves: Any) -> Any:
    return tf.norm(moves, axis=1)


def _units(moves: Any) -> Any:
    return tf.math.divide_no_nan(moves, tf.norm(moves, axis=1, keepdims=True))


# ---- One image at a time: COBYLA.

EVALUATIONS: dict[str, int] = {"gradients": 100, "rows": 300}
_MARGIN = 1e-3  # by which another logit must lead, so that rounding doesn't decide
_OUTWARD = 1.02, 1.05, 1.1, 1.2, 1.4  # stretches of the last point, if none has flipped
_RADIUS = 0.5  # of the first trust region, in distances of the start from the image


def cobyla(
    problem: Problem,
    *,
    candidates: int,
    subspace: Subspace = "gradients",
    evaluations: int | None = None,
    map: Map = one_by_one,
) -> Attempt:
    """The paper's own: minimise ||r||_2 without derivatives, constrained to change the class.

    The images are tasks of their own. The model goes to their processes as the bytes of a file.
    It starts at the nearest point of the linearised boundary, and lengths are measured in the
    distance of that from the image, so that one first trust region suits any model. Source:
    Powell, "A direct search optimization method that models the objective and constraint
    functions by linear interpolation" (1994), as in SciPy, whose time is mostly its own linear
    algebra.

    Args:
        problem: what is to be solved.
        candidates: classes whose gradients span the subspace.
        subspace: "gradients" and "rows" are small; a fully connected network sees nothing outside
            of its rows, so that they lose nothing.
        evaluations: of the model on an image, at most.
        map: runs the tasks.

    Returns:
        The shortest perturbation that was met and flips, or zero.
    """
    images = problem.images
    shared = _Shared(classifiers.saved(problem.model), subspace, evaluations, problem.clip)
    tasks = []
    for rows in inference.batches(len(images), problem.batch_size):
        near = _surroundings(problem, rows, candidates)
        for i, differences, nearest in zip(range(rows.start, rows.stop), *near, strict=True):
            tasks.append(
                _Task(
                    image=images[i],
                    predicted=int(problem.classes[i]),
                    differences=differences if subspace == "gradients" else None,
                    start=nearest,
                )
            )
    results = map(functools.partial(_solved, shared), tasks, progress=problem.progress)
    perturbations, passes, seconds = zip(*results, strict=True)
    return Attempt(np.stack(perturbations), np.array(passes) + 2 + candidates, np.array(seconds))


def _surroundings(problem: Problem, rows: slice, candidates: int) -> tuple[np.ndarray, np.ndarray]:
    """Differences of logit gradients (n, K - 1, D) of a batch, and to where `closest` goes first.

    That is the nearest point of the linearised boundary, (n, D).
    """
    measure = inference.compiled(problem.model, _measured)
    batch = inference.filled(problem.images[rows], problem.batch_size)
    differences, nearest = (part.numpy() for part in measure(batch, candidates))
    size = rows.stop - rows.start
    return differences[:size], nearest[:size]


def _measured(model: keras.Model, images: Any, candidates: int) -> tuple[Any, Any]:
    _, logits, gradients = _top_gradients(model, images, candidates)
    gaps, differences = _differences(logits, gradients)
    squares = _square_norms(differences)
    nearest = tf.argmin(tf.abs(gaps) * tf.math.rsqrt(squares), axis=1)
    gap, square, difference = (
        tf.gather(a, nearest, batch_dims=1) for a in (gaps, squares, differences)
    )
    return differences, (gap / square)[:, tf.newaxis] * difference


@dataclass(frozen=True)
class _Shared:
    """What COBYLA's tasks have in common, as it goes to another process."""

    file: bytes  # of the model
    subspace: Subspace
    evaluations: int | None
    clip: bool

    @functools.cached_property
    def model(self) -> keras.Model:
        """Loaded once in each process."""
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "model.keras"
            path.write_bytes(self.file)
            # It was checked, or is trusted, where it was loaded first.
            return keras.saving.load_model(path, compile=False, safe_mode=False)

    @functools.cached_property
    def rows(self) -> np.ndarray:
        """See `_row_space`."""
        return _row_space(self.model)


@dataclass(frozen=True)
class _Task:
    """An image for COBYLA, as it goes to another process."""

    image: np.ndarray
    predicted: int
    differences: np.ndarray | None  # (K - 1, D), of the logits' gradients, if they are needed
    start: np.ndarray  # (D,)


def _solved(shared: _Shared, task: _Task) -> tuple[np.ndarray, int, float]:
    """Perturbation, forward passes and seconds."""
    model = shared.model
    began = time.perf_counter()
    basis = SUBSPACES[shared.subspace](shared, task)
    dimensions = task.image.size if basis is None else len(basis)
    limit = shared.evaluations or max(EVALUATIONS.get(shared.subspace, 0), 2 * dimensions)
    if not dimensions:
        return np.zeros_like(task.image), 0, time.perf_counter() - began
    start = task.start.astype(np.float64)
    start = start if basis is None else basis @ start
    unit = float(np.linalg.norm(start)) or 1.0
    best, shortest, passes = np.zeros_like(task.image), np.inf, 0

    def perturbation(point: np.ndarray) -> np.ndarray:
        moves = unit * (point if basis is None else point @ basis)
        moves = moves.astype(np.float32).reshape(task.image.shape)
        return np.clip(task.image + moves, 0, 1) - task.image if shared.clip else moves

    def lead(point: np.ndarray) -> float:
        nonlocal best, shortest, passes
        passes += 1
        moves = perturbation(point)
        logits = inference.logits(model, (task.image + moves)[np.newaxis], 1)[0]
        others = np.delete(logits, task.predicted)
        ahead = float(others.max()) - float(logits[task.predicted])
        norm = float(np.linalg.norm(moves))
        if ahead > 0 and norm < shortest:
            best, shortest = moves, norm
        return ahead - _MARGIN

    found = optimize.minimize(
        lambda point: float(np.linalg.norm(point)),
        start / unit,
        method="COBYLA",
        constraints={"type": "ineq", "fun": lead},
        options={"rhobeg": _RADIUS, "tol": 1e-3 * _RADIUS, "maxiter": limit - len(_OUTWARD)},
    )
    for stretch in _OUTWARD:
        if np.isinf(shortest):  # it may have ended just short of the boundary
            lead(stretch * found.x)
    return best, passes, time.perf_counter() - began


def _spanned(rows: np.ndarray) -> np.ndarray:
    """An orthonormal basis of the space of some rows, float64 (rank, D)."""
    _, values, vectors = np.linalg.svd(rows.astype(np.float64), full_matrices=False)
    return vectors[values > 1e-6 * max(values[0], 1e-30)]


def _row_space(model: keras.Model) -> np.ndarray:
    """An orthonormal basis of the perturbations that a first dense layer can see, (rank, D).

    Raises:
        InputError: the model begins otherwise.
    """
    before = (
        keras.layers.InputLayer,
        keras.layers.Flatten,
        keras.layers.Reshape,
        keras.layers.Normalization,
        keras.layers.Rescaling,
        keras.layers.Dropout,
    )
    # What stands before it rescales each pixel by itself.
    ends: Any = np.zeros((2, *model.input_shape[1:]), np.float32)
    ends[1] = 1
    first = None
    for layer in _flat(model):
        if not isinstance(layer, before):
            first = layer
            break
        if not isinstance(layer, keras.layers.InputLayer):
            ends = layer(ends, training=False)
    if not isinstance(first, keras.layers.Dense) or len(ends.shape) != 2:
        kind = "no layer" if first is None else f"{type(first).__name__} {first.name!r}"
        raise InputError(
            "subspace=rows needs a model that begins with a dense layer, such as mlp; "
            f"this one begins with {kind}; use subspace=gradients"
        )
    black, white = np.asarray(ends, np.float64)
    return _spanned(np.asarray(first.kernel, np.float64).T * (white - black))


def _flat(model: keras.Model) -> Iterator[keras.Layer]:
    """The layers of a model, and of models in it, in the order in which they stand."""
    for layer in model.layers:
        if isinstance(layer, keras.Model):
            yield from _flat(layer)
        else:
            yield layer


def _spanned_differences(shared: _Shared, task: _Task) -> np.ndarray:
    assert task.differences is not None
    return _spanned(task.differences)


# Each gives a basis, (K, D); None is that of the pixels themselves.
SUBSPACES: dict[Subspace, Callable[[_Shared, _Task], np.ndarray | None]] = {
    "gradients": _spanned_differences,
    "rows": lambda shared, task: shared.rows,
    "pixels": lambda shared, task: None,
}

SOLVERS: dict[Solver, Callable[..., Attempt]] = {
    "closest": closest,
    "deepfool": deepfool,
    "ddn": ddn,
    "cobyla": cobyla,
}
