"""The smallest perturbation of each sample, in l2 or linf: min ||r|| such that k(x + r) != k(x).

That is the inner problem of Algorithms 1 and 2 (section VI.A), for which the paper takes COBYLA.
`smallest_perturbations` is the one name; `solvers` holds the ways to solve it. What a solver
returns is never believed: the flip is seen on the model itself, and the perturbation is shortened
along its own ray until it only just flips, by a lead that rounding can't undo: in passes of any
number of images, on other kernels, and in float64.
"""

import time
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np

from resfool.attacks.solvers import SOLVERS, Solver, Subspace, check_norm
from resfool.attacks.solvers.crossing import Rays
from resfool.attacks.solvers.problem import Attempt, Problem
from resfool.classifiers import inference
from resfool.classifiers.inference import BATCH_SIZE
from resfool.errors import InputError, unknown
from resfool.monitor import Advance, quiet
from resfool.values import BallNorm


@dataclass(frozen=True)
class Outcome:
    """How a solver ended for N images, without what it found.

    Attributes:
        norms: float32 (N,), the perturbations' norms, l2 or linf; inf where nothing flipped.
        flipped: bool (N,), whether the predicted class was seen to change, by a lead that rounding
            can't undo.
        rounded: bool (N,), whether it still changes once pixels are rounded to 8 bits.
        evaluations: int64 (N,), passes through the model: a forward pass counts 1, the gradient
            of a logit with its forward pass 2.
        seconds: float64 (N,); images that were solved together share their time evenly.
    """

    norms: np.ndarray
    flipped: np.ndarray
    rounded: np.ndarray
    evaluations: np.ndarray
    seconds: np.ndarray


@dataclass(frozen=True)
class Minimal(Outcome):
    """The smallest perturbations that a solver found for N images.

    Attributes:
        perturbations: float32 (N, H, W, C); zero where nothing flipped.
    """

    perturbations: np.ndarray

    def first(self, count: int) -> "Minimal":
        """The first `count` images of these."""
        return Minimal(**{name: part[:count] for name, part in vars(self).items()})


def smallest_perturbations(
    model: keras.Model,
    images: np.ndarray,
    *,
    solver: Solver = "closest",
    norm: BallNorm = "l2",
    subspace: Subspace = "gradients",
    candidates: int = 10,
    evaluations: int | None = None,
    clip: bool = False,
    quantise: int | None = None,
    batch_size: int = BATCH_SIZE,
    progress: Advance = quiet,
) -> Minimal:
    """The smallest perturbation, in l2 or linf, of each image that changes the model's prediction.

    No solver draws at random: the same images give the same answer. Each perturbation is no longer
    along its ray than need be.

    Args:
        model: from images to logits of two classes or more.
        images: float32 (N, H, W, C) in [0, 1], at least one.
        solver: a name in SOLVERS; what it doesn't take of the options below means nothing.
        norm: which is smallest; not every solver has both.
        subspace: of cobyla: the differences of the logits' "gradients" at the image, the "rows" of
            the first dense layer's matrix, or all "pixels".
        candidates: classes to look at, the predicted one and those next to it, or all if there are
            fewer.
        evaluations: of the model that cobyla may spend on an image; None is EVALUATIONS of the
            subspace, or twice its dimensions if that is more.
        clip: keep perturbed images in [0, 1].
        quantise: the bits to which pixels are rounded; what is found flips after that. It needs
            clip. None rounds nothing.
        batch_size: images per pass.
        progress: is told how many more images are solved.

    Raises:
        InputError: an unknown name, a number out of range, a subspace that the model lacks, or a
            model that gives no numbers for some of the images.
    """
    classes = model.output_shape[-1]
    if solver not in SOLVERS:
        raise unknown("solver", solver, SOLVERS)
    check_norm(solver, norm)
    if candidates < 2:
        raise InputError(f"candidates={candidates} must be 2 or more: the prediction and another")
    if quantise is not None and not (clip and 1 <= quantise <= 16):
        raise InputError(f"quantise={quantise} must be 1 to 16 bits, and needs clip=yes")
    if classes < 2:
        raise InputError(f"a model of {classes} logit has no class to change to")
    offered = {
        "candidates": min(candidates, classes),
        "subspace": subspace,
        "evaluations": evaluations,
    }
    logits = inference.logits(model, images, batch_size)
    own = inference.predicted(logits)
    levels = None if quantise is None else 2**quantise - 1
    problem = Problem(model, images, logits, own, norm, clip, batch_size, progress, levels)
    way = SOLVERS[solver]
    attempt = way.solve(problem, **{name: offered[name] for name in way.options})
    return _verified(problem, attempt)


def solved_block(model: keras.Model, images: np.ndarray, **options: Any) -> dict[str, np.ndarray]:
    """The columns of a Minimal by their names, for `spreading.in_blocks`.

    Args:
        model: from images to logits.
        images: float32 (n, H, W, C) in [0, 1].
        options: of `smallest_perturbations`.
    """
    return vars(smallest_perturbations(model, images, **options))


def _verified(problem: Problem, attempt: Attempt) -> Minimal:
    """See each flip on the model itself, and shorten the perturbation to where it happens."""
    began = time.perf_counter()
    count = len(problem.images)
    perturbations, norms, looks = Rays(problem, attempt.perturbations).shortened()
    flipped = np.isfinite(norms)
    rounded = flipped.copy()
    if flipped.any() and not problem.levels:
        where = np.flatnonzero(flipped)
        rounded[where] = Rays(problem, perturbations).leads(where, np.ones(len(where)), 255) > 0
    return Minimal(
        perturbations=perturbations,
        norms=norms.astype(np.float32),
        flipped=flipped,
        rounded=rounded,
        evaluations=attempt.evaluations + looks + 3,
        seconds=attempt.seconds + (time.perf_counter() - began) / count,
    )
