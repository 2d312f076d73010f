"""The spectrum of a matrix of perturbations (section VI.B, Figures 7 and 11)."""

import numpy as np
from scipy import linalg


def singular_values(matrix: np.ndarray) -> np.ndarray:
    """The singular values of a matrix of one perturbation a row, largest first.

    They are the roots of the eigenvalues of the smaller Gram matrix, in float64, which takes a
    fraction of the time and memory of a decomposition. Values below about 1e-8 of the largest
    are lost in rounding.

    Args:
        matrix: (N, D).

    Returns:
        float64 (min(N, D),).
    """
    rows, columns = matrix.shape
    gram = np.zeros((min(rows, columns),) * 2)
    # In pieces: all of a large matrix in float64 would be eight times its signs.
    thin = matrix if rows >= columns else matrix.T
    for start in range(0, len(thin), 4096):
        piece = thin[start : start + 4096].astype(np.float64)
        gram += piece.T @ piece
    eigenvalues = linalg.eigvalsh(gram)[::-1]
    return np.sqrt(np.clip(eigenvalues, 0.0, None))


def unit_rows(perturbations: np.ndarray) -> np.ndarray:
    """Perturbations as the rows of a matrix, each of l2 norm 1 (or 0 if it is zero).

    Args:
        perturbations: (N, ...).

    Returns:
        float32 (N, D).
    """
    rows = perturbations.reshape(len(perturbations), -1).astype(np.float32)
    norms = np.linalg.norm(rows, axis=1, keepdims=True)
    return rows / np.where(norms > 0, norms, 1.0)


def random_matrix(rows: np.ndarray, seed: int) -> np.ndarray:
    """Gaussian rows of the same norms as those of a matrix: the benchmark of its spectrum.

    Args:
        rows: (N, D).
        seed: decides them.

    Returns:
        float32 (N, D).
    """
    drawn = np.random.default_rng(seed).standard_normal(rows.shape, np.float32)
    return unit_rows(drawn) * np.linalg.norm(rows, axis=1, keepdims=True)
