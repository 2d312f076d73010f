"""The coefficients of equation 8."""

import itertools
from collections.abc import Iterator, Sequence
from typing import get_args

import keras
import numpy as np

from resfool.attacks import lowrank
from resfool.attacks.lowrank import Decomposition, RandomCoefficients
from resfool.classifiers.inference import BATCH_SIZE
from resfool.universal.ascent import SmoothRate, ascend
from resfool.universal.options import Coefficients
from resfool.universal.vectors import applied
from resfool.values import Norm


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
    random = lowrank.random_coefficients(rule, decomposition, rank, seed=seed, draws=draws)
    return _scaled(random, decomposition, norm)


def drawn(rule: Coefficients, draws: int) -> int:
    """How many perturbations a rule gives: the random ones one for each draw, the others one."""
    return draws if rule in get_args(RandomCoefficients) else 1


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
    rates = applied(model, images, _vectors(both, decomposition, images), clip=clip).rates
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
        rates = applied(model, on, _vectors(rows, decomposition, images), clip=clip).rates
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

    target = SmoothRate.of(model, images, clip)
    paths = [
        ascend(
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
