"""The coefficients of equation 8."""

import itertools
from collections.abc import Iterator, Sequence

import keras
import numpy as np

from resfool.attacks import lowrank
from resfool.attacks.lowrank import Decomposition
from resfool.classifiers.inference import BATCH_SIZE
from resfool.universal.ascent import Objective, ascend
from resfool.universal.options import Coefficients
from resfool.universal.updates import momentum
from resfool.universal.vectors import applied
from resfool.values import Norm

# Of the search for the best ones.
_CANDIDATES = 64  # Gaussian draws among the starting points
_STARTS = 6  # ascents, each from one of the best candidates
_STEPS = 80  # of each ascent
_FIRST_LOOK = 250  # images that candidates are compared on
_IMAGES_PER_STEP = 100


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
    batch_size: int = BATCH_SIZE,
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
        batch_size: images per pass, at most.

    Returns:
        float64 (draws, rank), scaled to the norm.
    """
    if rule == "first":
        chosen = np.zeros((1, rank))
        chosen[0, 0] = first_vector_sign(
            model, images, decomposition, norm=norm, clip=clip, batch_size=batch_size
        )
        return _scaled(chosen, decomposition, _definite(norm, 1))
    if rule == "optimised":
        return _optimised(model, images, decomposition, rank, norm, seed, clip, batch_size)
    random = lowrank.random_coefficients(rule, decomposition, rank, seed=seed, draws=draws)
    return _scaled(random, decomposition, norm)


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
    both = _scaled(np.array([[1.0], [-1.0]]), decomposition, _definite(norm, 1))
    vectors = _vectors(both, decomposition, images)
    rates = applied(model, images, vectors, clip=clip, batch_size=batch_size).rates
    return 1 if rates[0] >= rates[1] else -1


def _optimised(
    model: keras.Model,
    images: np.ndarray,
    decomposition: Decomposition,
    rank: int,
    norm: Norm,
    seed: int,
    clip: bool,
    batch_size: int,
) -> np.ndarray:
    """Coefficients (1, rank) that fool as many of the fitting images as can be at a given norm.

    Each singular vector with both signs and Gaussian draws are judged; from the best of them a
    stochastic gradient ascent on a smooth fooling rate goes on, over the sphere of the norm in
    the span of the vectors, and after a quarter of the steps from the best third of those only.
    The best on all fitting images is returned, starts included: so it is never worse there than
    the first vector.
    """
    norm = _definite(norm, rank)
    random = np.random.default_rng(seed)
    signed = _scaled(np.concatenate([np.eye(rank), -np.eye(rank)]), decomposition, norm)

    def ordered(rows: np.ndarray, on: np.ndarray) -> np.ndarray:
        vectors = _vectors(rows, decomposition, images)
        rates = applied(model, on, vectors, clip=clip, batch_size=batch_size).rates
        return np.argsort(-rates, kind="stable")

    if rank == 1:
        return signed[ordered(signed, images)[:1]]
    tried = random.standard_normal((_CANDIDATES, rank))
    tried = np.concatenate([signed, _scaled(tried, decomposition, norm)])
    first_look = images[random.permutation(len(images))[:_FIRST_LOOK]]
    begun = tried[ordered(tried, first_look)[:_STARTS]]
    basis = decomposition.vectors[:rank]

    def unit(slope: np.ndarray) -> np.ndarray:
        within = (basis @ slope.ravel()) @ basis
        return lowrank.rescaled(within.reshape(1, *slope.shape), Norm(norm.kind, 1.0))[0]

    objective = Objective(model, images, clip, batch_size)
    paths = [
        ascend(
            objective,
            start,
            update=momentum(unit),
            retract=lambda vector: lowrank.rescaled(vector[np.newaxis], norm)[0],
            size=norm.size,
            steps=_STEPS,
            random=random,
            images_per_step=_IMAGES_PER_STEP,
        )
        for start in _vectors(begun, decomposition, images)
    ]

    def after(paths: Sequence[Iterator[np.ndarray]], steps: int) -> np.ndarray:
        """The coefficients that ascents come to after some more steps, (K, a)."""
        vectors = [list(itertools.islice(path, steps))[-1].ravel() for path in paths]
        return _scaled(np.stack(vectors).astype(np.float64) @ basis.T, decomposition, norm)

    early = _STEPS // 4
    halfway = after(paths, early)
    ahead = ordered(halfway, first_look)[: _STARTS // 3]
    ends = after([paths[i] for i in ahead], _STEPS - early)
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
