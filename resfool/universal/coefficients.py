"""The coefficients of equation 8, and the perturbations that they make."""

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np

from resfool.attacks import lowrank
from resfool.attacks.lowrank import Decomposition
from resfool.classifiers import inference
from resfool.classifiers.inference import BATCH_SIZE, Images
from resfool.universal.ascent import FIRST_STEP, Objective, ascend
from resfool.universal.options import Coefficients
from resfool.universal.updates import momentum, steepest
from resfool.universal.vectors import applied, classes_of
from resfool.values import Norm

# Of the search for the best ones.
_SIGNED = 32  # singular vectors that are tried with both signs
_CANDIDATES = 64  # Gaussian draws that are tried
_FIRST_LOOK = 100  # images that these are tried on
_STARTS = 4  # ascents, each from one of the best tried
_STEPS = 60  # of the ascent that goes on, when it is a quarter through
_STEPS_ON = 30  # of one that starts where another search ended
_FEW = 10  # singular vectors, which are searched anew in any case
_IMAGES_PER_STEP = 50


def coefficients(
    rule: Coefficients,
    model: keras.Model,
    images: Images,
    decomposition: Decomposition,
    rank: int,
    *,
    norm: Norm,
    seed: int,
    draws: int = 1,
    clip: bool = False,
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
        norm: the norm that the perturbation shall have, see `perturbations`; what is chosen on the
            images needs one.
        seed: of the draws, or of the search.
        draws: how many, of the random rules; the others give one.
        clip: keep perturbed images in [0, 1].
        batch_size: images per pass, at most.

    Returns:
        float64 (draws, rank). For an l2 norm it is their length, for linf it is 1.
    """
    options: Any = {"clip": clip, "batch_size": batch_size}
    if rule == "first":
        chosen = np.zeros((1, rank))
        chosen[0, 0] = first_vector_sign(model, images, decomposition, norm=norm, **options)
        return _scaled(chosen, norm)
    if rule == "optimised":
        return Search(model, images, decomposition, seed=seed, **options).best(rank, norm)
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
    images: Images,
    decomposition: Decomposition,
    *,
    norm: Norm,
    clip: bool = False,
    batch_size: int = BATCH_SIZE,
) -> int:
    """The sign, 1 or -1, with which the first singular vector fools more of the fitting images."""
    signs = np.array([[1.0], [-1.0]])
    vectors = perturbations(signs, decomposition, images.shape[1:], norm)
    rates = applied(model, images, vectors, clip=clip, batch_size=batch_size).rates
    return 1 if rates[0] >= rates[1] else -1


class Search:
    """The search for coefficients that fool as many of the fitting images as can be at a norm.

    The first singular vectors with both signs and Gaussian draws are tried; from the best of them a
    stochastic gradient ascent on a smooth fooling rate goes on, over directions in the span of the
    vectors, and after a quarter of the steps only from what is best by then. The best on all
    fitting images is kept, starts included. What was found for one rank is where the search for
    another may start, with an eighth of the passes: of what goes on from there it is never worse
    than that. In linf the slope at the perturbation counts as that at the sum whose signs it has.

    Args:
        model: from images to logits, whose predictions shall change.
        images: float32 (N, H, W, C) in [0, 1], to fit on.
        decomposition: of the matrix of perturbations.
        seed: of the search.
        clip: keep perturbed images in [0, 1].
        batch_size: images per pass, at most.
    """

    def __init__(
        self,
        model: keras.Model,
        images: Images,
        decomposition: Decomposition,
        *,
        seed: int,
        clip: bool = False,
        batch_size: int = BATCH_SIZE,
    ) -> None:
        self.model, self.images, self.decomposition = model, images, decomposition
        self.seed, self.clip, self.batch_size = seed, clip, batch_size
        self.objective = Objective(model, images, clip, batch_size)

    def best(self, rank: int, norm: Norm, start: np.ndarray | None = None) -> np.ndarray:
        """The best coefficients for a rank and a norm.

        Args:
            rank: number of singular vectors.
            norm: that the perturbation shall have.
            start: what was found for another rank or norm, float64 (a,), to go on from.

        Returns:
            float64 (1, rank).
        """
        random = np.random.default_rng(self.seed)
        signed = np.concatenate([np.eye(rank)[:_SIGNED], -np.eye(rank)[:_SIGNED]])
        if rank == 1:
            return self._best_of(signed, norm)
        safe, steps = signed[[0, len(signed) // 2]], _STEPS
        if start is not None:
            safe, steps = np.zeros((1, rank)), _STEPS_ON
            safe[0, : len(start)] = start[:rank]
        begun = safe
        first_look = random.permutation(len(self.images))[:_FIRST_LOOK]
        if start is None or rank <= _FEW:
            drawn = random.standard_normal((_CANDIDATES, rank))
            tried = np.concatenate([safe, signed, drawn])
            begun, steps = tried[self._ordered(tried, norm, first_look)[:_STARTS]], _STEPS
        paths = [self._path(f, norm, random, steps) for f in begun]
        early = self._after(paths, steps // 4, rank)
        ahead = self._ordered(early, norm, first_look)[0] if len(paths) > 1 else 0
        end = self._after([paths[ahead]], steps - steps // 4, rank)
        return self._best_of(np.concatenate([safe, begun[:1], end]), norm)

    def _best_of(self, rows: np.ndarray, norm: Norm) -> np.ndarray:
        """The best of coefficients on all images, (1, a)."""
        return _scaled(rows[self._ordered(rows, norm, slice(None))[:1]], norm)

    def _path(
        self, start: np.ndarray, norm: Norm, random: np.random.Generator, steps: int
    ) -> Iterator[np.ndarray]:
        """Directions in the span, float32 (D,), from the sum of coefficients (a,) on."""
        basis = self.decomposition.vectors[: len(start)]
        return ascend(
            _Along(self.objective, norm),
            steepest("l2")(start.astype(np.float32) @ basis),
            update=momentum(lambda slope: steepest("l2")((basis @ slope) @ basis)),
            retract=steepest("l2"),
            first_step=FIRST_STEP["l2"],
            steps=steps,
            random=random,
            images_per_step=_IMAGES_PER_STEP,
        )

    def _after(self, paths: Sequence[Iterator[np.ndarray]], steps: int, rank: int) -> np.ndarray:
        """The coefficients that ascents come to after some more steps, float64 (K, a)."""
        ends = [list(itertools.islice(path, steps))[-1] for path in paths]
        return np.stack(ends).astype(np.float64) @ self.decomposition.vectors[:rank].T

    def _ordered(self, rows: np.ndarray, norm: Norm, on: np.ndarray | slice) -> np.ndarray:
        """The numbers of coefficients (K, a), what fools most of some images first."""
        numbers = np.arange(len(self.images))[on]
        images, own = inference.picked(self.images, numbers), self.objective.own[on]
        options: Any = {"clip": self.clip, "batch_size": self.batch_size}
        vectors = perturbations(rows, self.decomposition, self.images.shape[1:], norm)
        rates = [(classes_of(self.model, images, v, **options) != own).mean() for v in vectors]
        return np.argsort(-np.array(rates), kind="stable")


@dataclass(frozen=True)
class _Along:
    """An objective of the perturbations that go along directions (D,)."""

    of: Objective
    norm: Norm

    @property
    def images(self) -> Images:
        return self.of.images

    def slope(self, rows: np.ndarray, vector: np.ndarray) -> np.ndarray:
        """Its slope at the perturbation of a direction, (D,)."""
        perturbation = lowrank.aligned(vector.reshape(1, *self.images.shape[1:]), self.norm)
        return self.of.slope(rows, perturbation[0]).ravel()


def _scaled(rows: np.ndarray, norm: Norm) -> np.ndarray:
    """Coefficients (K, a) of an l2 norm, which is their length, or of length 1 for linf."""
    return lowrank.rescaled(rows, Norm("l2", 1.0) if norm.kind == "linf" else norm)
