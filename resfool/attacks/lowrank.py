"""Low-rank approximation of a matrix of perturbations (equation 8), and its spectrum.

A matrix holds one perturbation a row. Its right singular vectors are the directions that many
images share, and equation 8 adds up the first few: v_uap = sum over i = 1..a of f_i v_i. Source:
paper section VI.B, Figures 7 and 11.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from resfool.attacks import streaming
from resfool.attacks.streaming import PIECE, Each, Matrix, slices
from resfool.values import Norm, NormKind

RandomCoefficients = Literal["gaussian", "singular"]  # of equation 8, see `random_coefficients`

DEVIATION = 5.0  # the standard deviation of the paper's coefficients: "variance set to 25"
_EXACT_ENTRIES = 4_000_000  # up to here a full decomposition in float64 takes seconds
_ENTRIES = 4_000_000  # that are drawn, or normed, at a time
_SLAB = 64_000_000  # entries of a wide matrix that are made at a time
_FEW = 4  # one in so many singular vectors, and fewer, are sought one by one
_LEADING = 100  # singular vectors of a matrix of which not all can be had, where nobody says


@dataclass(frozen=True)
class Decomposition:
    """The leading part of a singular value decomposition.

    Attributes:
        singular_values: float64 (min(N, D),), all of them, largest first; or, of a matrix that is
            large both ways, the leading ones that were found.
        vectors: float32 (r, D), unit right singular vectors of the r largest values.
        numerical_rank: how many values stand above the rounding errors of a float32 matrix.
        squares: the sum of squares of the matrix, where not all singular values are there.
        error: no direction across those that were found is stretched by more than this; 0 where
            all were. A singular value s is too small by at most sqrt(s^2 + error^2) - s.
    """

    singular_values: np.ndarray
    vectors: np.ndarray
    numerical_rank: int
    squares: float | None = None
    error: float = 0.0

    def energy(self, rank: int) -> float:
        """See `energy`."""
        return energy(self.singular_values, rank, self.squares)

    @property
    def missed(self) -> str:
        """What may have been left out, for people; empty if nothing was."""
        if not self.error:
            return ""
        found, share = self.singular_values, self.error / self.singular_values[0]
        return (
            f"the leading {len(found)} of {self.vectors.shape[1]:,} directions: none left out "
            f"stretches by more than {self.error:.3g} ({share:.1%} of the largest)"
        )


def energy(singular_values: np.ndarray, rank: int, total: float | None = None) -> float:
    """The share of a matrix's sum of squares that its first `rank` singular directions hold.

    Args:
        singular_values: of the matrix, largest first.
        rank: how many count.
        total: the sum of squares, where some of the values aren't known.
    """
    squares = np.square(singular_values, dtype=np.float64)
    total = float(squares.sum()) if total is None else total
    return float(squares[:rank].sum()) / total if total else 0.0


def decompose(
    matrix: Matrix,
    rank: int | None = None,
    *,
    kept: int | None = None,
    exact: bool | None = None,
    seed: int = 0,
    each: Each = map,
) -> Decomposition:
    """Singular values and right singular vectors of a matrix of one perturbation a row.

    A matrix of up to 4 million entries is decomposed as it is. A larger one, which needn't be in
    memory, goes by the smaller of its two Gram matrices, summed up in float64 in pieces: the
    leading values agree to rounding, those below about 1e-7 of the largest are lost. Beside the
    matrix that takes three times the memory of min(N, D) squared: 0.25 GB for 50,000 x 3,072.
    Where N and D are both beyond 8,192, leading values alone are found, by going over the rows
    twice, with a bound of what they miss: see `streaming.leading`.

    A singular vector's sign is arbitrary; here its entry of largest magnitude is positive.
    Vectors past the numerical rank are arbitrary altogether and are left out: a fully connected
    network sees its input through its first layer only, so its matrix has that layer's rank.

    Args:
        matrix: (N, D), finite.
        rank: how many vectors to find; None is all up to the numerical rank, or 100 of those of a
            matrix that is large both ways.
        kept: of these the first so many are kept, with the bits that they have among all; None is
            all. Vectors of a wide matrix take as much memory as itself.
        exact: which of the first two ways; None decides by the size.
        seed: of what is random in the third way.
        each: a map that may share out the rows, such as that of a pool of workers.
    """
    rows, columns = matrix.shape
    if exact is None:
        exact = rows * columns <= _EXACT_ENTRIES
    squares, error = None, 0.0
    if exact:
        from scipy import linalg  # takes a fifth of a second

        whole = matrix[:, :].astype(np.float64)
        _, values, vectors = linalg.svd(whole, full_matrices=False)
    elif min(rows, columns) <= streaming.LARGEST_GRAM:
        values, vectors = _by_gram(matrix, rank, kept, each)
    else:
        wanted = rank or max(_LEADING, kept or 0)
        found = streaming.leading(matrix, wanted, seed=seed, each=each)
        values, vectors, squares, error = found.values, found.vectors, found.squares, found.error
        vectors = vectors[:wanted]
    numerical_rank = _numerical_rank(values, matrix.shape, squares)
    most = numerical_rank if rank is None else min(rank, numerical_rank)
    signed = _signed(vectors[:most][:kept]).astype(np.float32)
    return Decomposition(values, signed, numerical_rank, squares, error)


def clamped(rank: int, decomposition: Decomposition) -> tuple[int, str | None]:
    """A rank that the matrix has, and what to tell the user if that is less than was asked for."""
    most = decomposition.numerical_rank
    if rank <= most:
        return rank, None
    return most, (
        f"rank={rank} is more than the matrix of perturbations has: its rank is {most}, "
        f"singular vectors past that are rounding errors, so rank={most} is used"
    )


def random_coefficients(
    rule: RandomCoefficients, decomposition: Decomposition, rank: int, *, seed: int, draws: int = 1
) -> np.ndarray:
    """Coefficients of equation 8 that are drawn at random.

    Args:
        rule: "gaussian" is the paper's f_i ~ N(0, 25); "singular" is f_i ~ N(0, s_i^2).
        decomposition: whose singular values "singular" takes.
        rank: number of coefficients.
        seed: decides them; a draw of a smaller rank is the beginning of one of a larger rank.
        draws: how many vectors of coefficients.

    Returns:
        float64 (draws, rank).
    """
    drawn = np.random.default_rng(seed).standard_normal((rank, draws)).T
    return drawn * (
        DEVIATION if rule == "gaussian" else decomposition.singular_values[np.newaxis, :rank]
    )


def combined(coefficients: np.ndarray, decomposition: Decomposition) -> np.ndarray:
    """Equation 8: the sums of f_i v_i, float32 (K, D), of coefficients (K, a)."""
    vectors = decomposition.vectors[: coefficients.shape[1]]
    return coefficients.astype(np.float32) @ vectors


def sizes(vectors: np.ndarray, kind: NormKind) -> np.ndarray:
    """The norm of each vector (K, ...), float64 (K,); of kind "none" it is l2."""
    rows = vectors.reshape(len(vectors), -1).astype(np.float64)
    return np.abs(rows).max(axis=1) if kind == "linf" else np.linalg.norm(rows, axis=1)


def rescaled(vectors: np.ndarray, norm: Norm) -> np.ndarray:
    """Vectors, float32 (K, ...), stretched or shrunk to a norm, unless that is of kind "none".

    Zero vectors stay zero.
    """
    if norm.kind == "none":
        return vectors
    now = sizes(vectors, norm.kind)
    factors = norm.size / np.where(now > 0, now, 1.0)
    return vectors * factors.astype(np.float32).reshape(-1, *[1] * (vectors.ndim - 1))


def aligned(vectors: np.ndarray, norm: Norm) -> np.ndarray:
    """Of all vectors of a norm those along which some vectors, float32 (K, ...), go furthest.

    In l2 they are the same ones, stretched or shrunk, and in linf their signs, as large as the norm
    allows in every entry: a vector whose largest entry is stretched to it would leave most of the
    ball unused. Zeros stay zero, and a norm of kind "none" leaves all as it is.
    """
    return rescaled(np.sign(vectors) if norm.kind == "linf" else vectors, norm)


def singular_values(matrix: Matrix, each: Each = map) -> np.ndarray:
    """The singular values of a matrix of one perturbation a row, largest first.

    They are the roots of the eigenvalues of the smaller Gram matrix, in float64, which takes a
    fraction of the time and memory of a decomposition. Values below about 1e-8 of the largest
    are lost in rounding. Of a matrix that is large both ways they are the leading 110, nearly; see
    `streaming.leading`.

    Args:
        matrix: (N, D), which needn't be in memory.
        each: a map that may share out the rows, such as that of a pool of workers.

    Returns:
        float64 (min(N, D),), or the leading ones.
    """
    from scipy import linalg

    if min(matrix.shape) > streaming.LARGEST_GRAM:
        return streaming.leading(matrix, _LEADING, each=each).values
    return _roots(linalg.eigvalsh(_gram(matrix, each), overwrite_a=True))


class UnitRows:
    """Perturbations (N, ...) as rows, float32 (N, D), each of l2 norm 1 (or 0 if it is zero).

    It is a matrix that is made where it is looked at: signs take a quarter of its memory.
    """

    def __init__(self, perturbations: Matrix) -> None:
        self._rows: Matrix = perturbations
        if isinstance(perturbations, np.ndarray):
            self._rows = perturbations.reshape(len(perturbations), -1)
        self.shape = self._rows.shape
        pieces = slices(self.shape[0], _ENTRIES // self.shape[1])
        self._norms = np.concatenate([_norms(self._rows[piece, :]) for piece in pieces])

    def __getitem__(self, place: tuple[slice, slice]) -> np.ndarray:
        """Some rows and columns."""
        found = self._rows[place].astype(np.float32)
        found /= _divisors(self._norms[place[0]])
        return found


class GaussianRows:
    """Gaussian rows of the same norms as some rows: the benchmark of their spectrum.

    It is a matrix, float32 (N, D), that is drawn where it is looked at, every time anew.

    Args:
        rows: (N, D), whose norms they shall have.
        seed: decides them.
    """

    def __init__(self, rows: Matrix, seed: int) -> None:
        self.shape: tuple[int, ...] = rows.shape
        self._random = np.random.default_rng(seed)
        self._states: list[Any] = []  # of the generator before each piece is drawn
        norms = [(_norms(drawn), _norms(rows[piece, :])) for piece, drawn in self._drawn()]
        self._norms, self._wanted = map(np.concatenate, zip(*norms, strict=True))

    def __getitem__(self, place: tuple[slice, slice]) -> np.ndarray:
        """Some rows and columns."""
        rows, columns = (slice(*p.indices(n)) for p, n in zip(place, self.shape, strict=True))
        found = np.empty((rows.stop - rows.start, columns.stop - columns.start), np.float32)
        for piece, drawn in self._drawn(rows):
            first, end = max(rows.start, piece.start), min(rows.stop, piece.stop)
            part = drawn[first - piece.start : end - piece.start, columns]
            found[first - rows.start : end - rows.start] = part
        found /= _divisors(self._norms[rows])
        found *= self._wanted[rows]
        return found

    def _drawn(self, rows: slice | None = None) -> Iterator[tuple[slice, np.ndarray]]:
        """The pieces of all rows as they are drawn, or those that hold some rows."""
        count, columns = self.shape
        for number, piece in enumerate(slices(count, _ENTRIES // columns)):
            if rows is None:
                self._states.append(self._random.bit_generator.state)
            elif piece.stop <= rows.start or piece.start >= rows.stop:
                continue
            self._random.bit_generator.state = self._states[number]
            shape = piece.stop - piece.start, columns
            yield piece, self._random.standard_normal(shape, np.float32)


def _norms(rows: np.ndarray) -> np.ndarray:
    """The l2 norms of rows (n, D), float32 (n, 1)."""
    return np.linalg.norm(rows.astype(np.float32, copy=False), axis=1, keepdims=True)


def _divisors(norms: np.ndarray) -> np.ndarray:
    """What makes unit rows of rows with these norms; it leaves zero as it is."""
    return np.where(norms > 0, norms, np.float32(1.0))


def _by_gram(
    matrix: Matrix, rank: int | None, kept: int | None, each: Each
) -> tuple[np.ndarray, np.ndarray]:
    """Singular values, and the right singular vectors of the largest."""
    rows, columns = matrix.shape
    values, leading = _eigen(_gram(matrix, each), rank, matrix.shape)
    if rows >= columns:
        return values, leading
    # These are left singular vectors; the matrix takes them to the right ones.
    right = np.empty((len(leading[:kept]), columns))
    for part in slices(columns, PIECE):
        # The product of all of them: that of a few may be rounded otherwise.
        right[:, part] = (leading @ matrix[:, part])[:kept]
    return values, right / values[: len(right), np.newaxis]


def _eigen(
    gram: np.ndarray, rank: int | None, shape: tuple[int, ...]
) -> tuple[np.ndarray, np.ndarray]:
    """Singular values of a matrix by its Gram matrix, which is used up, and the first vectors."""
    from scipy import linalg

    if rank is None or rank > len(gram) // _FEW:
        eigenvalues, eigenvectors = linalg.eigh(gram, overwrite_a=True, driver="evd")
        values = _roots(eigenvalues)
        wanted = min(len(values) if rank is None else rank, _numerical_rank(values, shape))
        return values, eigenvectors[:, ::-1][:, :wanted].T
    # Half the work lies in vectors: few of them are found where the matrix is tridiagonal, and
    # turned back by the same reflections, which LAPACK keeps as those of a QR decomposition.
    size = len(gram)
    room, _ = linalg.lapack.dsytrd_lwork(size, lower=1)
    turns, diagonal, beside, scales, _ = linalg.lapack.dsytrd(
        gram.T, lower=1, lwork=int(room), overwrite_a=1
    )
    eigenvalues = linalg.eigh_tridiagonal(
        diagonal, beside, eigvals_only=True, lapack_driver="sterf"
    )
    values = _roots(eigenvalues)
    wanted = min(rank, _numerical_rank(values, shape))
    if not wanted:
        return values, np.empty((0, size))
    _, vectors = linalg.eigh_tridiagonal(
        diagonal, beside, select="i", select_range=(size - wanted, size - 1)
    )
    vectors[1:], _, _ = linalg.lapack.dormqr(
        "L", "N", turns[1:, :-1], scales, vectors[1:], lwork=64 * wanted
    )
    return values, vectors[:, ::-1].T


def _gram(matrix: Matrix, each: Each) -> np.ndarray:
    """The smaller of A^T A and A A^T, in float64."""
    rows, columns = matrix.shape
    if rows >= columns:
        return streaming.gram(matrix, each)
    gram = np.zeros((rows, rows))
    for slab in slices(columns, PIECE * max(1, _SLAB // (PIECE * max(1, rows)))):
        gram += streaming.gram_of(matrix[:, slab].T)
    return gram


def _roots(eigenvalues: np.ndarray) -> np.ndarray:
    """Singular values from a Gram matrix's rising eigenvalues."""
    return np.sqrt(np.clip(eigenvalues[::-1], 0.0, None))


def _numerical_rank(
    values: np.ndarray, shape: tuple[int, ...], squares: float | None = None
) -> int:
    """How many values exceed what rounding of the entries to float32 makes of a zero."""
    if not len(values):
        return 0
    # Rounding errors are a random matrix of entries of about eps times the root mean square, so
    # their largest singular value is near (sqrt(N) + sqrt(D)) eps of that; we allow for ten times.
    eps = float(np.finfo(np.float32).eps)
    squares = float((values**2).sum()) if squares is None else squares
    entry = (squares / (shape[0] * shape[1])) ** 0.5
    noise = 10 * eps * entry * (shape[0] ** 0.5 + shape[1] ** 0.5)
    # The Gram matrix's own rounding hides what is smaller than this.
    lost = 1e-7 * float(values[0])
    return int((values > max(noise, lost)).sum())


def _signed(vectors: np.ndarray) -> np.ndarray:
    largest = np.take_along_axis(vectors, np.abs(vectors).argmax(axis=1)[:, np.newaxis], axis=1)
    return np.where(largest < 0, -vectors, vectors)
