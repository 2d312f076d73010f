"""COBYLA, the paper's own: one image at a time, without derivatives, in a subspace."""

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np
from scipy import optimize

from resfool.attacks import balls, gradient
from resfool.attacks.solvers import Subspace
from resfool.attacks.solvers.batches import (
    gaps_and_slopes,
    nearest_boundary,
    top_gradients,
)
from resfool.attacks.solvers.problem import Attempt, Problem
from resfool.classifiers import inference
from resfool.errors import InputError, unknown

EVALUATIONS: dict[str, int] = {"gradients": 100, "rows": 300}
_MARGIN = 1e-3  # by which another logit must lead, so that rounding doesn't decide
_OUTWARD = 1.02, 1.05, 1.1, 1.2, 1.4  # stretches of the last point, if none has flipped
_RADIUS = 0.5  # of the first trust region, in distances of the start from the image


def cobyla(
    problem: Problem, *, candidates: int, subspace: Subspace, evaluations: int | None
) -> Attempt:
    """The paper's own: minimise ||r||_2 without derivatives, constrained to change the class.

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
        evaluations: of the model on an image, at most; see `smallest_perturbations`.

    Returns:
        The shortest perturbation that was met and flips, or zero.

    Raises:
        InputError: the subspace isn't known, the model lacks it, or it takes more evaluations.
    """
    options: Any = {"candidates": candidates, "subspace": subspace}
    check(problem.model, evaluations=evaluations, **options)
    rows = row_space(problem.model) if subspace == "rows" else None
    search = _Search(problem.model, subspace, evaluations, problem.clip, rows)
    results = []
    for batch, (slopes, starts) in gradient.batchwise(
        problem.model, _near, (problem.images,), candidates, batch_size=problem.batch_size
    ):
        of_batch = problem.images[batch], problem.classes[batch].tolist(), slopes, starts
        for parts in zip(*of_batch, strict=True):
            results.append(search.solved(_Task(*parts)))
            problem.progress(1)
    perturbations, passes, seconds = zip(*results, strict=True)
    return Attempt(np.stack(perturbations), np.array(passes) + 2 + candidates, np.array(seconds))


def check(
    model: keras.Model, *, candidates: int, subspace: Subspace, evaluations: int | None = None
) -> None:
    """Refuse options that COBYLA can't work with; see `cobyla`.

    Raises:
        InputError: the subspace isn't known, the model lacks it, or it takes more evaluations.
    """
    if subspace not in SUBSPACES:
        raise unknown("subspace", subspace, SUBSPACES)
    dimensions = candidates - 1  # of gradients
    if subspace == "rows":
        dimensions = len(row_space(model))
    elif subspace == "pixels":
        dimensions = math.prod(model.input_shape[1:])
    least = dimensions + 3 + len(_OUTWARD)
    if evaluations is not None and evaluations < least:
        raise InputError(
            f"evaluations={evaluations} is too few: COBYLA needs {least} or more "
            f"in the {dimensions} dimensions of subspace={subspace}"
        )


def _near(model: keras.Model, images: Any, candidates: int) -> tuple[Any, Any]:
    """Slopes (B, K - 1, D), and the nearest points of linearised boundaries (B, D)."""
    _, logits, gradients = top_gradients(model, images, candidates)
    gaps, slopes = gaps_and_slopes(logits, gradients)
    gap, slope = nearest_boundary(gaps, slopes, "l2")
    return slopes, balls.shortest(slope, gap, "l2")


@dataclass(frozen=True)
class _Task:
    """An image for COBYLA.

    Attributes:
        image: (H, W, C).
        predicted: its class.
        slopes: (K - 1, D), differences of the logits' gradients.
        start: (D,).
    """

    image: np.ndarray
    predicted: int
    slopes: np.ndarray
    start: np.ndarray


@dataclass(frozen=True)
class _Search:
    """What the images have in common.

    Attributes:
        model: from images to logits.
        subspace: that is searched.
        evaluations: of the model on an image, at most.
        clip: keep perturbed images in [0, 1].
        rows: the basis of that subspace, (K, D), where that is the same for all images.
    """

    model: keras.Model
    subspace: Subspace
    evaluations: int | None
    clip: bool
    rows: np.ndarray | None

    def solved(self, task: _Task) -> tuple[np.ndarray, int, float]:
        """The perturbation, forward passes and seconds."""
        began = time.perf_counter()
        basis = SUBSPACES[self.subspace](self, task)
        dimensions = task.image.size if basis is None else len(basis)
        limit = self.evaluations or max(EVALUATIONS.get(self.subspace, 0), 2 * dimensions)
        best, shortest, passes = np.zeros_like(task.image), np.inf, 0
        if not dimensions:
            return best, passes, time.perf_counter() - began
        start = task.start.astype(np.float64)
        start = start if basis is None else basis @ start
        unit = float(np.linalg.norm(start)) or 1.0

        def perturbation(point: np.ndarray) -> np.ndarray:
            moves = unit * (point if basis is None else point @ basis)
            moves = moves.astype(np.float32).reshape(task.image.shape)
            return np.clip(task.image + moves, 0, 1) - task.image if self.clip else moves

        def lead(point: np.ndarray) -> float:
            nonlocal best, shortest, passes
            passes += 1
            moves = perturbation(point)
            logits = inference.logits(self.model, (task.image + moves)[np.newaxis], 1)[0]
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


def row_space(model: keras.Model) -> np.ndarray:
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
    layers = _flat(model)
    first = next(layers, None)
    while isinstance(first, before):
        if not isinstance(first, keras.layers.InputLayer):
            ends = first(ends, training=False)
        first = next(layers, None)
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


# Each gives a basis, (K, D); None is that of the pixels themselves.
SUBSPACES: dict[Subspace, Callable[[_Search, _Task], np.ndarray | None]] = {
    "gradients": lambda search, task: _spanned(task.slopes),
    "rows": lambda search, task: search.rows,
    "pixels": lambda search, task: None,
}
