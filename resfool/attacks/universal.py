"""One perturbation for all images: Algorithms 1 to 4 (section VI.B), and what to compare them with.

Algorithms 2, 3 and 4 make a matrix with a row for each fitting image; its low-rank approximation
(equation 8, see `lowrank`) is the universal perturbation. Algorithm 1 goes over the images in
turn. Whatever was fitted is to be judged on other images than those it was fitted on.

Images are perturbed as x + v (equation 6); with `clip` the sum is kept in [0, 1].
"""

import functools
import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from resfool import classifiers, inference
from resfool.attacks import gradient, lowrank, minimal
from resfool.attacks.lowrank import Decomposition
from resfool.inference import BATCH_SIZE
from resfool.parameters import Coefficients, Norm, NormKind
from resfool.parameters import Solver as SolverName

# From a model and images (N, H, W, C) to a small perturbation (N, H, W, C) of each that changes
# its predicted class, or zeros where none was found.
Solve = Callable[[keras.Model, np.ndarray], np.ndarray]

_FIRST_STEP = 0.04  # of gradient ascent, as a share of the norm; momentum multiplies it by up to 5
_MOMENTUM = 0.8
_LOOKS = 20  # at the fooling rate, in each pass of Algorithm 1

Report = Callable[[int, float], None]  # is told a pass and the fooling rate after it


def _quiet(number: int, rate: float) -> None:
    pass


# Judging


@dataclass(frozen=True)
class Judgement:
    """What a model makes of images under each of K universal perturbations.

    Attributes:
        classes: int64 (K, N), predicted.
        clean_classes: int64 (N,), predicted without a perturbation.
    """

    classes: np.ndarray
    clean_classes: np.ndarray

    @property
    def rates(self) -> np.ndarray:
        """The fooling rate of each perturbation, float64 (K,)."""
        return (self.classes != self.clean_classes).mean(axis=1)


def judged(
    model: keras.Model,
    images: np.ndarray,
    vectors: np.ndarray,
    *,
    clip: bool = False,
    batch_size: int = BATCH_SIZE,
    progress: Callable[[int], None] = lambda passes: None,
) -> Judgement:
    """Judge universal perturbations, many at a time.

    Args:
        model: from images to logits.
        images: float32 (N, H, W, C) in [0, 1], held out.
        vectors: float32 (K, H, W, C).
        clip: keep perturbed images in [0, 1].
        batch_size: images per pass.
        progress: is told the passes done, one image each: N(K + 1) in all.

    Returns:
        Predictions with and without each perturbation.
    """
    classify = inference.compiled(model, _classes)
    moves = [tf.zeros(images.shape[1:])] + [tf.constant(v, tf.float32) for v in vectors]
    classes = np.empty((len(moves), len(images)), np.int64)
    for rows in inference.batches(len(images), batch_size):
        batch = inference.filled(images[rows], batch_size)
        for of_move, move in zip(classes, moves, strict=True):
            of_move[rows] = classify(batch, move, clip).numpy()[: rows.stop - rows.start]
        progress(len(moves) * (rows.stop - rows.start))
    return Judgement(classes[1:], classes[0])


# Algorithm 1


@dataclass(frozen=True)
class Fit:
    """A universal perturbation that was fitted in passes over the images.

    Attributes:
        vector: float32 (H, W, C), the best of all passes.
        rates: the best fooling rate on the fitting images that was met in each pass.
    """

    vector: np.ndarray
    rates: list[float]


def algorithm1(
    model: keras.Model,
    images: np.ndarray,
    *,
    norm: Norm,
    solver: SolverName | Solve = "closest",
    desired_rate: float = 0.8,
    passes: int = 6,
    group: int = 5,
    seed: int = 0,
    clip: bool = False,
    batch_size: int = BATCH_SIZE,
    report: Report = _quiet,
) -> Fit:
    """Algorithm 1: add up smallest perturbations of images that the sum so far doesn't fool.

    The published algorithm solves for one image at a time. Here the next `group` unfooled images
    are solved together and their perturbations are added, which is faster by most of that factor;
    a group of 1 is the algorithm to the letter. After each addition the sum is projected on the
    ball (equation 7). The fooling rate goes up and down on the way, so it is measured 20 times in
    each pass, the best perturbation is kept, and the passes are capped.

    Args:
        model: from images to logits.
        images: float32 (N, H, W, C) in [0, 1], to fit on.
        norm: the ball, of kind l2 or linf.
        solver: of the inner problem: a name of `minimal`'s, or a function.
        desired_rate: 1 - delta: stop at this fooling rate on the fitting images.
        passes: over the images, at most.
        group: unfooled images per step.
        seed: of the order of the images, another one in each pass.
        clip: keep perturbed images in [0, 1].
        batch_size: images per pass through the model when rates are computed.
        report: is told each pass and the best fooling rate in it.

    Returns:
        The best perturbation and the best rate in each pass.

    Source: Moosavi-Dezfooli et al., "Universal adversarial perturbations", arXiv:1610.08401.
    """
    solve = _named(solver, group) if isinstance(solver, str) else solver
    random = np.random.default_rng(seed)
    clean = _clean_classes(model, images, batch_size)
    best = _Best(model, images, clip)
    vector = np.zeros(images.shape[1:], np.float32)
    rates: list[float] = []

    def one_pass() -> Iterator[np.ndarray]:
        """The sum, now and then while the images go by, and at their end."""
        nonlocal vector
        waiting = random.permutation(len(images))
        while len(waiting):
            looked = len(waiting)
            while len(waiting) and len(waiting) > looked - len(images) / _LOOKS:
                unfooled, waiting = _next_unfooled(
                    model, images, clean, vector, waiting, group, clip, batch_size
                )
                if len(unfooled):
                    steps = solve(model, _moved(images[unfooled], vector, clip))
                    vector = projected(vector + steps.sum(axis=0), norm)
            yield vector

    for number in range(passes):
        rate = 0.0
        for met in one_pass():
            rate = max(rate, best.meet(met))
            if rate >= desired_rate:
                break
        rates.append(rate)
        report(number, rate)
        if rate >= desired_rate:
            break
    return Fit(best.vector, rates)


def projected(vector: np.ndarray, norm: Norm) -> np.ndarray:
    """Equation 7: the nearest vector whose norm is at most `norm`.

    Args:
        vector: float32, any shape.
        norm: the ball; of kind "none" it has no bounds.

    Returns:
        float32, the same shape.
    """
    if norm.kind == "linf":
        return np.clip(vector, -np.float32(norm.size), np.float32(norm.size))
    length = float(np.linalg.norm(vector))
    if norm.kind == "none" or length <= norm.size:
        return vector
    return vector * np.float32(norm.size / length)


# Matrices of Algorithms 2, 3 and 4


@dataclass(frozen=True)
class Matrix:
    """A perturbation of each fitting image.

    Attributes:
        rows: float32 (M, D).
        images: int64 (M,), which of the N images each row is of.
        dropped: N - M, the images that nothing was found for.
    """

    rows: np.ndarray
    images: np.ndarray
    dropped: int


def matrix_of(perturbations: np.ndarray, found: np.ndarray) -> Matrix:
    """The matrix of some images' perturbations.

    Args:
        perturbations: float32 (N, H, W, C).
        found: bool (N,), for which images there is one.

    Returns:
        A row for each of these images.
    """
    rows = perturbations.reshape(len(perturbations), -1)[found]
    return Matrix(rows, np.flatnonzero(found), int((~found).sum()))


def minimal_matrix(
    model: keras.Model, images: np.ndarray, *, solver: SolverName = "closest", **options: Any
) -> Matrix:
    """Algorithm 2: the smallest perturbation of each image.

    Args:
        model: from images to logits.
        images: float32 (N, H, W, C) in [0, 1].
        solver: a name of `minimal`'s.
        options: of `minimal.smallest_perturbations`.

    Returns:
        A row for each image whose class the solver could change.
    """
    found = minimal.smallest_perturbations(model, images, solver=solver, **options)
    return matrix_of(found.perturbations, found.flipped)


def sign_matrix(
    model: keras.Model,
    images: np.ndarray,
    labels: np.ndarray | None,
    epsilon: float,
    *,
    batch_size: int = BATCH_SIZE,
) -> Matrix:
    """Algorithm 3: epsilon * sign(gradient of the loss) of each image.

    Args:
        model: from images to logits.
        images: float32 (N, H, W, C) in [0, 1].
        labels: int (N,), or None for the model's own predictions.
        epsilon: length of the step in every pixel, in pixel units.
        batch_size: images per pass.

    Returns:
        A row for each image whose gradient isn't zero everywhere.
    """
    signs = gradient.sign_gradients(model, images, labels, batch_size=batch_size).signs
    moved = np.asarray(signs.reshape(len(signs), -1).any(axis=1))
    return matrix_of(np.float32(epsilon) * signs, moved)


def smallest_sign_matrix(
    model: keras.Model,
    images: np.ndarray,
    labels: np.ndarray | None,
    *,
    largest: float = 1.0,
    tolerance: float = 1e-4,
    clip: bool = False,
    batch_size: int = BATCH_SIZE,
) -> Matrix:
    """Algorithm 4: the smallest step along each image's gradient sign that changes its class.

    The unknown is one number per sample, found on a geometric grid and then by bisection.

    Args:
        model: from images to logits.
        images: float32 (N, H, W, C) in [0, 1].
        labels: int (N,), or None for the model's own predictions.
        largest: epsilon that is tried, in pixel units.
        tolerance: of the smallest epsilon, in pixel units.
        clip: keep perturbed images in [0, 1] in the search.
        batch_size: images per pass.

    Returns:
        A row for each image whose class changes on the way.
    """
    options: Any = {"clip": clip, "batch_size": batch_size}
    first = gradient.sign_gradients(model, images, labels, batch_size=batch_size)
    grid = np.geomspace(largest / 256, largest, 17).tolist()
    clean = first.logits.argmax(axis=1)
    on_grid = gradient.along(model, images, first.signs, grid, **options).classes
    epsilons = gradient.smallest_epsilons(
        model, images, first.signs, clean, on_grid, grid, tolerance=tolerance, **options
    )
    found = np.isfinite(epsilons)
    lengths = np.where(found, epsilons, 0.0).astype(np.float32).reshape(-1, 1, 1, 1)
    return matrix_of(lengths * first.signs, found)


# Coefficients of equation 8


def coefficients(
    rule: Coefficients,
    model: keras.Model,
    images: np.ndarray,
    decomposition: Decomposition,
    rank: int,
    *,
    norm: Norm,
    seed: int,
    draws: int = 1,
    clip: bool = False,
) -> np.ndarray:
    """The coefficients f_i of equation 8, by any of the rules.

    Args:
        rule: "gaussian" and "singular" draw at random, see `lowrank.random_coefficients`; "first"
            and "optimised" choose on the images.
        model: from images to logits.
        images: float32 (N, H, W, C) in [0, 1], to fit on.
        decomposition: of the matrix of perturbations.
        rank: number of singular vectors.
        norm: the norm that the perturbation shall have.
        seed: of the draws, or of the search.
        draws: how many, of the random rules; the others give one.
        clip: keep perturbed images in [0, 1].

    Returns:
        float64 (draws, rank), scaled to the norm.
    """
    if rule == "first":
        sign = first_vector_sign(model, images, decomposition, norm=norm, clip=clip)
        chosen = np.zeros((1, rank))
        chosen[0, 0] = sign
        return _scaled(chosen, decomposition, _definite(norm, 1))
    if rule == "optimised":
        return optimised(model, images, decomposition, rank, norm=norm, seed=seed, clip=clip)
    drawn = lowrank.random_coefficients(rule, decomposition, rank, seed=seed, draws=draws)
    return _scaled(drawn, decomposition, norm)


def first_vector_sign(
    model: keras.Model,
    images: np.ndarray,
    decomposition: Decomposition,
    *,
    norm: Norm,
    clip: bool = False,
) -> int:
    """The sign with which the first singular vector fools more of the fitting images.

    Args:
        model: from images to logits.
        images: float32 (N, H, W, C) in [0, 1].
        decomposition: of the matrix of perturbations.
        norm: at which the two are compared.
        clip: keep perturbed images in [0, 1].

    Returns:
        1 or -1.
    """
    both = _scaled(np.array([[1.0], [-1.0]]), decomposition, _definite(norm, 1))
    rates = judged(model, images, _vectors(both, decomposition, images), clip=clip).rates
    return 1 if rates[0] >= rates[1] else -1


def optimised(
    model: keras.Model,
    images: np.ndarray,
    decomposition: Decomposition,
    rank: int,
    *,
    norm: Norm,
    seed: int = 0,
    candidates: int = 64,
    starts: int = 6,
    steps: int = 80,
    clip: bool = False,
    batch_size: int = 100,
) -> np.ndarray:
    """Coefficients that fool as many of the fitting images as can be at a given norm.

    Each singular vector with both signs and Gaussian draws are judged; from the best of them a
    stochastic gradient ascent on a smooth fooling rate goes on, over the sphere of the norm in
    the span of the vectors, and after a quarter of the steps from the best third of those only.
    The best on all fitting images is returned, starts included: so it is never worse there than
    the first vector.

    Args:
        model: from images to logits.
        images: float32 (N, H, W, C) in [0, 1], to fit on.
        decomposition: of the matrix of perturbations.
        rank: number of singular vectors.
        norm: of the perturbation; of kind "none" it is taken as the paper's, 5 sqrt(rank) in l2.
        seed: of the draws and of the order of the images.
        candidates: Gaussian draws among the starting points.
        starts: ascents, each from one of the best candidates.
        steps: of each ascent, two or more.
        clip: keep perturbed images in [0, 1].
        batch_size: images per step.

    Returns:
        float64 (1, rank).
    """
    norm = _definite(norm, rank)
    random = np.random.default_rng(seed)
    signed = _scaled(np.concatenate([np.eye(rank), -np.eye(rank)]), decomposition, norm)

    def ordered(rows: np.ndarray, on: np.ndarray) -> np.ndarray:
        rates = judged(model, on, _vectors(rows, decomposition, images), clip=clip).rates
        return np.argsort(-rates, kind="stable")

    if rank == 1:
        return signed[ordered(signed, images)[:1]]
    tried = random.standard_normal((candidates, rank))
    tried = np.concatenate([signed, _scaled(tried, decomposition, norm)])
    first_look = images[random.permutation(len(images))[:BATCH_SIZE]]
    begun = tried[ordered(tried, first_look)[:starts]]
    basis = decomposition.vectors[:rank]

    def unit(slope: np.ndarray) -> np.ndarray:
        within = (basis @ slope.ravel()) @ basis
        return lowrank.rescaled(within.reshape(1, *slope.shape), Norm(norm.kind, 1.0))[0]

    target = _Target.of(model, images, clip)
    paths = [
        _ascent(
            target,
            start,
            direction=unit,
            retract=lambda vector: lowrank.rescaled(vector[np.newaxis], norm)[0],
            size=norm.size,
            steps=steps,
            random=random,
            batch_size=batch_size,
        )
        for start in _vectors(begun, decomposition, images)
    ]

    def after(paths: Sequence[Iterator[np.ndarray]], steps: int) -> np.ndarray:
        """The coefficients that ascents come to after some more steps, (K, a)."""
        vectors = [list(itertools.islice(path, steps))[-1].ravel() for path in paths]
        return _scaled(np.stack(vectors).astype(np.float64) @ basis.T, decomposition, norm)

    early = max(1, steps // 4)
    halfway = after(paths, early)
    ahead = ordered(halfway, first_look)[: max(1, starts // 3)]
    ends = after([paths[i] for i in ahead], steps - early)
    final = np.concatenate([signed[[0, rank]], begun, halfway, ends])
    return final[ordered(final, images)[:1]]


# For comparison


def gradient_trained(
    model: keras.Model,
    images: np.ndarray,
    *,
    norm: Norm,
    passes: int = 30,
    seed: int = 0,
    clip: bool = False,
    batch_size: int = 100,
    report: Report = _quiet,
) -> Fit:
    """A universal perturbation in all pixels, trained by stochastic gradients and projected.

    Args:
        model: from images to logits.
        images: float32 (N, H, W, C) in [0, 1], to fit on.
        norm: the ball, of kind l2 or linf.
        passes: over the images.
        seed: of the start and of the order of the images.
        clip: keep perturbed images in [0, 1].
        batch_size: images per step.
        report: is told each pass and the fooling rate after it.

    Returns:
        The best perturbation and the rate after each pass.

    Source: Shafahi et al., "Universal adversarial training", arXiv:1811.11304.
    """

    def unit(slope: np.ndarray) -> np.ndarray:
        steepest = np.sign(slope) if norm.kind == "linf" else slope
        return lowrank.rescaled(steepest[np.newaxis], Norm(norm.kind, 1.0))[0]

    steps = -(-len(images) // batch_size)
    path = _ascent(
        _Target.of(model, images, clip),
        np.zeros(images.shape[1:], np.float32),
        direction=unit,
        retract=lambda vector: projected(vector, norm),
        size=norm.size,
        steps=passes * steps,
        random=np.random.default_rng(seed),
        batch_size=batch_size,
    )
    best = _Best(model, images, clip)
    rates = []
    for number in range(passes):
        *_, vector = itertools.islice(path, steps)
        rates.append(best.meet(vector))
        report(number, rates[-1])
    return Fit(best.vector, rates)


def random_vectors(
    shape: tuple[int, ...], sizes: np.ndarray, kind: NormKind, seed: int
) -> np.ndarray:
    """The benchmark: random vectors of given norms.

    Args:
        shape: (H, W, C).
        sizes: (K,), the norm of each.
        kind: "l2" (or "none") gives Gaussian noise of these l2 norms, "linf" noise of one
            magnitude and random signs, which has the largest l2 norm of its l-infinity norm.
        seed: decides them.

    Returns:
        float32 (K, H, W, C).
    """
    random = np.random.default_rng(seed)
    whole = len(sizes), *shape
    if kind == "linf":
        drawn = 2 * random.integers(0, 2, whole).astype(np.float32) - 1
    else:
        drawn = random.standard_normal(whole, np.float32)
        drawn /= lowrank.sizes(drawn, "l2").reshape(-1, 1, 1, 1)
    return (drawn * np.asarray(sizes).reshape(-1, 1, 1, 1)).astype(np.float32)


# Parts


def _named(solver: SolverName, group: int) -> Solve:
    def solve(model: keras.Model, images: np.ndarray) -> np.ndarray:
        found = minimal.smallest_perturbations(model, images, solver=solver, batch_size=group)
        flipped = found.flipped.reshape(-1, 1, 1, 1)
        return np.where(flipped, found.perturbations, np.float32(0))

    return solve


def _next_unfooled(
    model: keras.Model,
    images: np.ndarray,
    clean: np.ndarray,
    vector: np.ndarray,
    waiting: np.ndarray,
    group: int,
    clip: bool,
    batch_size: int,
) -> tuple[np.ndarray, np.ndarray]:
    """The next images that a vector doesn't fool, at most `group`, and those that wait behind."""
    classify = inference.compiled(model, _classes)
    ahead = waiting[:batch_size]
    batch = inference.filled(images[ahead], batch_size)
    classes = classify(batch, tf.constant(vector), clip).numpy()[: len(ahead)]
    places = np.flatnonzero(classes == clean[ahead])
    if len(places) <= group:
        return ahead[places], waiting[len(ahead) :]
    return ahead[places[:group]], waiting[places[group - 1] + 1 :]


def _clean_classes(model: keras.Model, images: np.ndarray, batch_size: int) -> np.ndarray:
    return classifiers.predicted(inference.logits(model, images, batch_size))


def _moved(images: np.ndarray, vector: np.ndarray, clip: bool) -> np.ndarray:
    return np.clip(images + vector, 0.0, 1.0) if clip else images + vector


def _definite(norm: Norm, rank: int) -> Norm:
    """A norm that has a size: for "none", the paper's coefficients' root mean square l2 norm."""
    return Norm("l2", lowrank.DEVIATION * rank**0.5) if norm.kind == "none" else norm


def _scaled(rows: np.ndarray, decomposition: Decomposition, norm: Norm) -> np.ndarray:
    """Coefficients (K, a), stretched or shrunk so that the perturbations have a norm."""
    if norm.kind == "none":
        return rows
    now = lowrank.sizes(lowrank.combined(rows, decomposition), norm.kind)
    return rows * (norm.size / np.where(now > 0, now, 1.0))[:, np.newaxis]


def _vectors(rows: np.ndarray, decomposition: Decomposition, images: np.ndarray) -> np.ndarray:
    """The perturbations (K, H, W, C) of coefficients (K, a)."""
    return lowrank.combined(rows, decomposition).reshape(-1, *images.shape[1:])


class _Best:
    """The best of the perturbations that it meets, by the fooling rate on the fitting images."""

    def __init__(self, model: keras.Model, images: np.ndarray, clip: bool) -> None:
        self._judge = functools.partial(judged, model, images, clip=clip)
        self._rate = 0.0
        self.vector = np.zeros(images.shape[1:], np.float32)

    def meet(self, vector: np.ndarray) -> float:
        rate = float(self._judge(vector[np.newaxis]).rates[0])
        if rate > self._rate:
            self._rate, self.vector = rate, vector
        return rate


@dataclass(frozen=True)
class _Target:
    """What an ascent raises: a smooth fooling rate of the fitting images.

    An image counts as sigmoid(-margin / scale), the margin being how far the logit of its clean
    class is ahead of the best other.

    Attributes:
        model: from images to logits.
        images: float32 (N, H, W, C) in [0, 1].
        clean: int64 (N,), their classes without a perturbation.
        scale: half their mean margin without a perturbation.
        clip: keep perturbed images in [0, 1].
    """

    model: keras.Model
    images: np.ndarray
    clean: np.ndarray
    scale: float
    clip: bool

    @classmethod
    def of(cls, model: keras.Model, images: np.ndarray, clip: bool) -> "_Target":
        logits = inference.logits(model, images)
        first, second = np.partition(logits, (-2, -1), axis=1)[:, [-1, -2]].T
        scale = float((first - second).mean()) / 2
        return cls(model, images, classifiers.predicted(logits), max(scale, 1e-6), clip)


def _ascent(
    target: _Target,
    start: np.ndarray,
    *,
    direction: Callable[[np.ndarray], np.ndarray],
    retract: Callable[[np.ndarray], np.ndarray],
    size: float,
    steps: int,
    random: np.random.Generator,
    batch_size: int,
) -> Iterator[np.ndarray]:
    """Stochastic gradient ascent with momentum and shrinking steps.

    Args:
        target: what to raise.
        start: float32 (H, W, C).
        direction: from a gradient to a step of norm 1.
        retract: from where a step ended to the nearest vector that is allowed.
        size: the norm of the vectors; a step is a share of it.
        steps: how many.
        random: picks the images of each step.
        batch_size: images per step, at most.

    Yields:
        The vector after each step, float32 (H, W, C).
    """
    slope_of = inference.compiled(target.model, _slope)
    batch_size = min(batch_size, len(target.images))  # else the filling would weigh as an image
    scale = tf.constant(target.scale)
    vector, velocity = start, np.zeros_like(start)
    for step in range(steps):
        rows = random.permutation(len(target.images))[:batch_size]
        batch, clean = (
            inference.filled(part[rows], batch_size) for part in (target.images, target.clean)
        )
        slope = slope_of(batch, clean, scale, tf.constant(vector), target.clip).numpy()
        velocity = _MOMENTUM * velocity + direction(slope)
        length = _FIRST_STEP * size * (1 - step / steps)
        vector = retract((vector + length * velocity).astype(np.float32))
        yield vector


# What is compiled: a model and tensors in, tensors out. `clip` is settled when it is traced.


def _perturbed(images: Any, vector: Any, clip: bool) -> Any:
    moved = images + vector
    return tf.clip_by_value(moved, 0.0, 1.0) if clip else moved


def _classes(model: keras.Model, images: Any, vector: Any, clip: bool) -> Any:
    return tf.argmax(model(_perturbed(images, vector, clip), training=False), axis=1)


def _slope(model: keras.Model, images: Any, clean: Any, scale: Any, vector: Any, clip: bool) -> Any:
    """The gradient of the smooth fooling rate with respect to the vector."""
    with tf.GradientTape(watch_accessed_variables=False) as tape:
        tape.watch(vector)
        logits = model(_perturbed(images, vector, clip), training=False)
        own = tf.one_hot(clean, logits.shape[1], on_value=True, off_value=False)
        others = tf.reduce_max(tf.where(own, -np.inf, logits), axis=1)
        margins = tf.reduce_max(tf.where(own, logits, -np.inf), axis=1) - others
        rate = tf.reduce_mean(tf.sigmoid(-margins / scale))
    return tape.gradient(rate, vector)
