"""Sums over the rows of a matrix that needn't be in memory, and what its spectrum needs of them.

A Gram matrix A^T A is the sum of those of pieces of rows, so what is held is D x D and a piece,
however many rows there are. Where D x D is too large, a randomised range finder goes over the rows
twice (Halko, Martinsson and Tropp, "Finding structure with randomness", arXiv:0909.4061).

The rows are cut into units by their numbers alone, and the sums of units are added in their order:
so the bits are the same however the rows are stored, whoever adds up a unit, and whoever is first.
"""

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

import numpy as np

LARGEST_GRAM = 8192  # D of the largest Gram matrix that is made, 0.5 GB
PIECE = 4096  # rows in float64 at a time: all of a large matrix would be twice its memory
_UNIT = 16 * PIECE  # rows of a unit, whose Gram matrix is a fraction of their size
_ENTRIES = 1 << 24  # of a piece where rows are long
_UNIT_ENTRIES = 1 << 29
_MORE = 10  # directions that are sought beside those that are wanted
_TESTS = 10  # random vectors by which the rest is estimated; it is larger in one of 10^10 cases
_EPS = float(np.finfo(np.float64).eps)


class Matrix(Protocol):
    """Rows (N, D) of numbers: an array, mapped or not, or what makes or reads them in parts."""

    @property
    def shape(self) -> tuple[int, ...]:
        """(N, D)."""

    def __getitem__(self, place: Any, /) -> np.ndarray:
        """Some of it, by slices of rows and of columns without steps."""


Each = Callable[[Callable[[slice], np.ndarray], Iterable[slice]], Iterable[np.ndarray]]


def slices(count: int, step: int, begin: int = 0) -> Iterator[slice]:
    """The slices that cut a range into pieces of at most `step`, or 1."""
    for start in range(begin, count, max(1, step)):
        yield slice(start, min(start + max(1, step), count))


def added_up(numbered: Iterable[tuple[int, np.ndarray]]) -> np.ndarray:
    """The sum of parts in the order of their numbers, whatever order they come in.

    Args:
        numbered: parts of one shape with the numbers 0, 1, ... without a gap. Those that come
            before their turn are held; the first one is added to in place.

    Raises:
        ValueError: one is missing.
    """
    total: np.ndarray | None = None
    waiting: dict[int, np.ndarray] = {}
    turn = 0
    for number, part in numbered:
        waiting[number] = part
        while turn in waiting:
            ready = waiting.pop(turn)
            total = ready if total is None else np.add(total, ready, out=total)
            turn += 1
    if waiting or total is None:
        raise ValueError(f"part {turn} is missing")
    return total


# Gram matrices.


def units(matrix: Matrix) -> list[slice]:
    """The rows of the units that `gram` adds up; a worker may take any of them to `gram_of`."""
    return list(slices(matrix.shape[0], _UNIT))


def gram_of(matrix: Matrix, rows: slice | None = None) -> np.ndarray:
    """A^T A of some rows, or all, float64 (D, D).

    Each piece of rows is made float64 and multiplied so. Products of float32 would take half the
    time, and have errors of 1.5e-7 of the largest square: singular values below 4e-4 of the largest
    would be lost to them, where float64 loses those below about 1e-7 (the rows being float32).
    """
    begin, end = (0, matrix.shape[0]) if rows is None else (rows.start, rows.stop)
    gram = np.zeros((matrix.shape[1], matrix.shape[1]))
    for part in slices(end, PIECE, begin):
        piece = matrix[part, :].astype(np.float64)
        gram += piece.T @ piece
    return gram


def gram(matrix: Matrix, each: Each = map) -> np.ndarray:
    """A^T A of all rows, float64 (D, D); it takes three times that memory, and a piece.

    Args:
        matrix: (N, D).
        each: a map that may share out the units, such as that of a pool of workers.
    """
    if not matrix.shape[0]:
        return np.zeros((matrix.shape[1], matrix.shape[1]))
    return added_up(enumerate(each(partial(gram_of, matrix), units(matrix))))


def projections(matrix: Matrix, vectors: np.ndarray) -> Iterator[np.ndarray]:
    """The coordinates of all rows along vectors (r, D), float64 (n, r) piece by piece."""
    across = vectors.T.astype(np.float64)
    for part in slices(matrix.shape[0], _piece(matrix)):
        yield matrix[part, :].astype(np.float64) @ across


def squares(matrix: Matrix) -> float:
    """The sum of squares of all of a matrix."""
    whole = slice(0, matrix.shape[0])
    return sum(float(np.square(piece).sum()) for _, piece in _pieces(matrix, whole))


# The range finder.


@dataclass(frozen=True)
class Leading:
    """The leading singular values and right singular vectors of a matrix A, nearly.

    With Q Q^T as the projection onto the vectors, each value of A lies between the value s here and
    the root of s^2 + error^2, and the rest A - A Q Q^T has a norm of at most `error`.

    Attributes:
        values: float64 (k,), largest first; none is larger than that of A.
        vectors: float64 (k, D), orthonormal.
        squares: the sum of squares of all of A.
        missed: the Frobenius norm of the rest: what `squares` has beyond those of the values.
        error: a bound of the spectral norm of the rest, the smaller of `missed`, which is certain,
            and of one that fails with a probability of at most 1e-10.
    """

    values: np.ndarray
    vectors: np.ndarray
    squares: float
    missed: float
    error: float


def leading(
    matrix: Matrix, rank: int, *, passes: int = 2, seed: int = 0, each: Each = map
) -> Leading:
    """Find leading singular values and vectors by a randomised range finder.

    The first pass multiplies the rows by Gaussian vectors (Halko, Martinsson and Tropp, algorithm
    4.1), the last one projects them (algorithm 5.1), and those between are its power iterations
    (algorithm 4.4), each worth one where the spectrum falls slowly. Ten more Gaussian vectors of
    the first pass, which the directions don't depend on, bound the rest: its norm is at most
    10 sqrt(2 / pi) times the longest of what the rest makes of them (equation 4.3).

    Args:
        matrix: (N, D), finite.
        rank: directions that are wanted; ten more are found, as far as there are.
        passes: over the rows, 2 or more.
        seed: decides the Gaussian vectors.
        each: as in `gram`.
    """
    rows, columns = matrix.shape
    count = min(rank + _MORE, rows, columns)
    parts = list(slices(rows, _piece(matrix) * max(1, _UNIT_ENTRIES // _ENTRIES)))

    def over(work: Callable[..., np.ndarray], *given: Any) -> np.ndarray:
        return added_up(enumerate(each(partial(work, matrix, *given), parts)))

    sketch = over(sketch_of, count + _TESTS, seed)
    basis, tests = np.linalg.qr(sketch[:count].T)[0], sketch[count:].T
    for _ in range(passes - 2):
        basis = np.linalg.qr(over(again_of, basis))[0]
    *flat, squares = over(captured_of, basis)
    eigenvalues, inner = np.linalg.eigh(np.reshape(flat, (count, count)))
    values = np.sqrt(np.clip(eigenvalues[::-1], 0, None))
    # What is below the rounding of these sums is not told from nothing.
    missed = math.sqrt(max(squares - float(eigenvalues.sum()), 0) + 64 * _EPS * squares)
    rest = tests - basis @ (basis.T @ tests)
    likely = 10 * math.sqrt(2 / math.pi) * float(np.linalg.norm(rest, axis=0).max())
    error = min(missed, likely + 64 * _EPS * math.sqrt(squares))
    return Leading(values, (basis @ inner[:, ::-1]).T, float(squares), missed, error)


def sketch_of(matrix: Matrix, count: int, seed: int, rows: slice) -> np.ndarray:
    """Gaussian sums of some rows, float64 (count, D)."""
    total = np.zeros((count, matrix.shape[1]))
    for part, piece in _pieces(matrix, rows):
        random = np.random.default_rng([seed, part.start])
        total += random.standard_normal((count, len(piece))) @ piece
    return total


def again_of(matrix: Matrix, basis: np.ndarray, rows: slice) -> np.ndarray:
    """A^T A Q of some rows, float64 (D, k)."""
    total = np.zeros(basis.shape)
    for _, piece in _pieces(matrix, rows):
        total += piece.T @ (piece @ basis)
    return total


def captured_of(matrix: Matrix, basis: np.ndarray, rows: slice) -> np.ndarray:
    """Of some rows the entries of (A Q)^T A Q, and after them the sum of squares of A."""
    total = np.zeros(basis.shape[1] ** 2 + 1)
    for _, piece in _pieces(matrix, rows):
        inside = piece @ basis
        total[:-1] += (inside.T @ inside).reshape(-1)
        total[-1] += np.square(piece).sum()
    return total


def _piece(matrix: Matrix) -> int:
    """Rows that are looked at together; by the columns alone, so that bits depend on nothing."""
    return max(1, min(PIECE, _ENTRIES // max(1, matrix.shape[1])))


def _pieces(matrix: Matrix, rows: slice) -> Iterator[tuple[slice, np.ndarray]]:
    for part in slices(rows.stop, _piece(matrix), rows.start):
        yield part, matrix[part, :].astype(np.float64)
