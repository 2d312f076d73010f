"""The coefficients of equation 8, and the perturbations that they make."""

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np

from resfool.attacks import lowrank
from resfool.attacks.lowrank import Decomposition
from resfool.classifiers.inference import BATCH_SIZE
from resfool.universal.ascent import Objective, ascend
from resfool.universal.options import Coefficients
from resfool.universal.updates import momentum, steepest
from resfool.universal.vectors import applied
from resfool.values import Norm

_IMAGES_PER_STEP = 100  # of the search for the best ones


@dataclass(frozen=True)
class _Effort:
    """How thoroughly the best coefficients are searched for.

    Attributes:
        candidates: Gaussian draws among the starting points.
        first_look: images that candidates are compared on.
        starts: ascents, each from one of the best candidates.
        kept: of them, that go on after a quarter of the steps.
        steps: of each ascent that goes on.
    """

    candidates: int
    first_look: int
    starts: int
    kept: int
    steps: int


_ALONE = _Effort(candidates=64, first_look=250, starts=6, kept=2, steps=80)
_FROM_LESS = _Effort(candidates=16, first_look=100, starts=2, kept=1, steps=40)


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
    start: np.ndarray | None = None,
    batch_size: int = BATCH_SIZE,
) -> np.ndarray:
    """The coefficients f_i of equation 8, by any of the rules.

    Args:
        rule: "gaussian" and "singular" draw at random, see `lowrank.random_coefficients`; "first"
            and "optimised" choose on the images.
        model: from images to logits, whose predictions shall change.
        images: float32 (N, H, W, C) in [0, 1], to fit on.
        decomposition: of the matrix of perturbations.
        rank: number of singular vectors.
        norm: the norm that the perturbation shall have; see `perturbations`.
        seed: of the draws, or of the search.
        draws: how many, of the random rules; the others give one.
        clip: keep perturbed images in [0, 1].
        start: what was "optimised" for a smaller rank, float64 (a,), from which the search goes
            on. It is never worse than that on the images, and takes a fifth of the passes.
        batch_size: images per pass, at most.

    Returns:
        float64 (draws, rank). For an l2 norm it is their length, for linf it is 1.
    """
    options: Any = {"clip": clip, "batch_size": batch_size}
    if rule == "first":
        chosen = np.zeros((1, rank))
        chosen[0, 0] = first_vector_sign(model, images, decomposition, norm=norm, **options)
        return _scaled(chosen, _definite(norm, 1))
    if rule == "optimised":
        search = _Search(model, images, decomposition, rank, _definite(norm, rank), **options)
        return search.best(start, np.random.default_rng(seed))
    random = lowrank.random_coefficients(rule, decomposition, rank, seed=seed, draws=draws)
    return _scaled(random, norm)


def perturbations(
    rows: np.ndarray, decomposition: Decomposition, shape: Sequence[int], norm: Norm
) -> np.ndarray:
    """Equation 8 at a norm: the sums of f_i v_i, as long as that.

    In linf it is not the sum that is stretched, whose largest entry would be the norm and most
    others far below, but the signs of its entries, each as large as the norm: what of all the ball
    goes furthest along the sum (see `lowrank.aligned`). It lies outside the span of the v_i.

    Args:
        rows: coefficients (K, a).
        decomposition: of the matrix of perturbations.
        shape: (H, W, C), of an image.
        norm: of all of them; of kind "none" they are the sums.

    Returns:
        float32 (K, H, W, C).
    """
    return lowrank.aligned(lowrank.combined(rows, decomposition), norm).reshape(-1, *shape)


def first_vector_sign(
    model: keras.Model,
    images: np.ndarray,
    decomposition: Decomposition,
    *,
    norm: Norm,
    clip: bool = False,
    batch_size: int = BATCH_SIZE,
) -> int:
    """The sign, 1 or -1, with which the first singular vector fools more of the fitting images."""
    signs = np.array([[1.0], [-1.0]])
    vectors = perturbations(signs, decomposition, images.shape[1:], _definite(norm, 1))
    rates = applied(model, images, vectors, clip=clip, batch_size=batch_size).rates
    return 1 if rates[0] >= rates[1] else -1


class _Search:
    """Coefficients that fool as many of the fitting images as can be at a norm.

    Each singular vector with both signs and Gaussian draws are judged; from the best of them a
    stochastic gradient ascent on a smooth fooling rate goes on, over directions in the span of the
    vectors, and after a quarter of the steps only from what is best by then. The best on all
    fitting images is returned, starts included: so it is never worse there than the first vector.
    In linf the slope at the perturbation counts as that at the sum whose signs it has.
    """

    def __init__(
        self,
        model: keras.Model,
        images: np.ndarray,
        decomposition: Decomposition,
        rank: int,
        norm: Norm,
        *,
        clip: bool,
        batch_size: int,
    ) -> None:
        self.model, self.images, self.decomposition = model, images, decomposition
        self.rank, self.norm, self.clip, self.batch_size = rank, norm, clip, batch_size
        self.basis = decomposition.vectors[:rank]

    def best(self, start: np.ndarray | None, random: np.random.Generator) -> np.ndarray:
        """The best coefficients (1, rank), searched for from the start (a,) if there is one."""
        rank = self.rank
        signed = np.concatenate([np.eye(rank), -np.eye(rank)])
        if rank == 1:
            return _scaled(signed[self._ordered(signed, self.images)[:1]], self.norm)
        effort = _ALONE if start is None else _FROM_LESS
        tried = [signed, random.standard_normal((effort.candidates, rank))]
        safe = signed[[0, rank]]
        if start is not None:
            safe = np.pad(start, (0, rank - len(start)))[np.newaxis]
            tried[0] = np.concatenate(
                [safe, signed[len(start) : rank], signed[rank + len(start) :]]
            )
        final = np.concatenate([safe, *self._climbed(np.concatenate(tried), effort, random)])
        return _scaled(final[self._ordered(final, self.images)[:1]], self.norm)

    def _climbed(
        self, tried: np.ndarray, effort: _Effort, random: np.random.Generator
    ) -> Iterator[np.ndarray]:
        """Coefficients (K, rank) where ascents from the best of those tried start, are and end."""
        first_look = self.images[random.permutation(len(self.images))[: effort.first_look]]
        begun = tried[self._ordered(tried, first_look)[: effort.starts]]
        yield begun
        objective = _Objective(self)
        paths = [
            ascend(
                objective,
                start,
                update=momentum(self._within),
                retract=steepest("l2"),
                size=1.0,
                steps=effort.steps,
                random=random,
                images_per_step=_IMAGES_PER_STEP,
            )
            for start in lowrank.combined(_scaled(begun, Norm("l2", 1.0)), self.decomposition)
        ]

        def after(paths: Sequence[Iterator[np.ndarray]], steps: int) -> np.ndarray:
            """The coefficients that ascents come to after some more steps."""
            ends = [list(itertools.islice(path, steps))[-1] for path in paths]
            return np.stack(ends).astype(np.float64) @ self.basis.T

        early = effort.steps // 4
        halfway = after(paths, early)
        yield halfway
        ahead = self._ordered(halfway, first_look)[: effort.kept]
        yield after([paths[i] for i in ahead], effort.steps - early)

    def _within(self, slope: np.ndarray) -> np.ndarray:
        """The step of length 1 in the span that goes furthest along a slope, (D,)."""
        return steepest("l2")((self.basis @ slope) @ self.basis)

    def _ordered(self, rows: np.ndarray, on: np.ndarray) -> np.ndarray:
        """The numbers of coefficients (K, a), what fools most of some images first."""
        vectors = perturbations(rows, self.decomposition, on.shape[1:], self.norm)
        options: Any = {"clip": self.clip, "batch_size": self.batch_size}
        return np.argsort(-applied(self.model, on, vectors, **options).rates, kind="stable")


class _Objective(Objective):
    """The smooth fooling rate of the perturbations that go along directions (D,)."""

    def __init__(self, search: _Search) -> None:
        super().__init__(search.model, search.images, search.clip, search.batch_size)
        self.norm = search.norm

    def slope(self, rows: np.ndarray, vector: np.ndarray) -> np.ndarray:
        """Its slope at the perturbation of a direction, (D,)."""
        perturbation = lowrank.aligned(vector.reshape(1, *self.images.shape[1:]), self.norm)
        return super().slope(rows, perturbation[0]).ravel()


def _definite(norm: Norm, rank: int) -> Norm:
    """A norm that has a size: for "none", the paper's coefficients' root mean square l2 norm."""
    return Norm("l2", lowrank.DEVIATION * rank**0.5) if norm.kind == "none" else norm


def _scaled(rows: np.ndarray, norm: Norm) -> np.ndarray:
    """Coefficients (K, a) of an l2 norm, which is their length, or of length 1 for linf."""
    return lowrank.rescaled(rows, Norm("l2", 1.0) if norm.kind == "linf" else norm)
