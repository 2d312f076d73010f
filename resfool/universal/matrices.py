"""The matrices of Algorithms 2, 3 and 4 (section VI.B): a row for each fitting image."""

from dataclasses import dataclass
from typing import Any

import keras
import numpy as np

from resfool.attacks import gradient, minimal
from resfool.classifiers.inference import BATCH_SIZE
from resfool.parameters import Solver as SolverName

# Judging


# Algorithm 1


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


# For comparison


# Parts


# What is compiled: a model and tensors in, tensors out. `clip` is settled when it is traced.
