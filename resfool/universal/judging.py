"""How well universal perturbations fool a model on held-out images (Figures 7 to 10)."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, get_args

import keras
import numpy as np

from resfool.attacks import lowrank
from resfool.attacks.lowrank import Decomposition, RandomCoefficients
from resfool.classifiers import scores
from resfool.classifiers.inference import BATCH_SIZE
from resfool.monitor import Advance, quiet
from resfool.universal import coefficients
from resfool.universal.options import Coefficients
from resfool.universal.vectors import applied, random_vectors
from resfool.values import Norm, NormKind, Row

RANKS = 1, 2, 3, 5, 10, 20, 30, 50, 100  # numbers of singular vectors that Figure 7 is drawn for

_VECTORS = 4  # that are judged for each draw: it, the same clipped, and noise of two kinds
_KINDS: tuple[NormKind, NormKind] = ("l2", "linf")


@dataclass(frozen=True)
class Ranked:
    """Fooling rates over the number of singular vectors, and one perturbation.

    Attributes:
        rows: a dict for each rank: rank, l2_norm (mean), fooling_rate with its deviation over
            draws (_std), clipped_fooling_rate for the same with clipping, random_fooling_rate for
            Gaussian vectors of the same l2 norm (and _std), sign_noise_fooling_rate for random
            signs of the same l-infinity norm (and _std); the same as equal_..., at equal norm.
        vector: float32 (H, W, C), of the rank that was asked for; of several draws the one that
            fools most of the fitting images.
        patterns: names of the best patterns of the same norm, as they come and at equal norm,
            once rows have their pattern_fooling_rate and equal_...; see `screening`.
    """

    rows: list[Row]
    vector: np.ndarray
    patterns: tuple[str, str] = ("", "")


def over_ranks(
    model: keras.Model,
    fitting: np.ndarray,
    held_out: np.ndarray,
    decomposition: Decomposition,
    ranks: Sequence[int],
    rank: int,
    *,
    rule: Coefficients,
    norm: Norm,
    equal_norm: Norm,
    draws: int,
    seed: int,
    batch_size: int = BATCH_SIZE,
    progress: Advance = quiet,
) -> Ranked:
    """Judge low-rank perturbations (equation 8) of several ranks, as drawn and at equal norm.

    Args:
        model: from images to logits.
        fitting: float32 (N, H, W, C), what coefficients may be chosen on.
        held_out: float32 (M, H, W, C), what fooling rates are measured on.
        decomposition: of the matrix of perturbations.
        ranks: numbers of singular vectors, rising.
        rank: the one of them whose perturbation is returned.
        rule: for the coefficients.
        norm: that the perturbations are scaled to; of kind "none" they stay as drawn.
        equal_norm: that all of them are scaled to for the fair comparison.
        draws: perturbations of each rank, and random vectors to compare with.
        seed: of the draws.
        batch_size: images per pass, at most.
        progress: is told of the perturbations, each on all held-out images; see `vectors_over`.
    """
    rows: list[Row] = []
    vector = np.zeros(held_out.shape[1:], np.float32)
    options: Any = {"seed": seed, "batch_size": batch_size}
    for number in ranks:
        row: Row = {"rank": number}
        for prefix, size in (("", norm), ("equal_", equal_norm)):
            if prefix and equal_norm == norm:
                row |= {f"equal_{name}": row[name] for name in row if name != "rank"}
                continue
            f = coefficients.coefficients(
                rule, model, fitting, decomposition, number, norm=size, draws=draws, **options
            )
            vectors = lowrank.combined(f, decomposition).reshape(-1, *held_out.shape[1:])
            row |= _rates(model, held_out, vectors, prefix, **options)
            progress(_VECTORS * len(vectors))
            if prefix == "" and number == rank:  # the best; held-out images have no say
                found = applied(model, fitting, vectors, batch_size=batch_size)
                vector = vectors[found.rates.argmax()]
        rows.append(row)
    return Ranked(rows, vector)


def vectors_over(
    ranks: Sequence[int], *, rule: Coefficients, norm: Norm, equal_norm: Norm, draws: int
) -> int:
    """How many perturbations `over_ranks` judges, its arguments being these."""
    sides = 1 if norm == equal_norm else 2
    drawn = draws if rule in get_args(RandomCoefficients) else 1
    return len(ranks) * sides * _VECTORS * drawn


def _rates(
    model: keras.Model,
    held_out: np.ndarray,
    vectors: np.ndarray,
    prefix: str,
    *,
    seed: int,
    batch_size: int,
) -> Row:
    lengths, largest = (lowrank.sizes(vectors, kind) for kind in _KINDS)
    noise = random_vectors(vectors.shape[1:], lengths, "l2", seed)
    signs = random_vectors(vectors.shape[1:], largest, "linf", seed)
    row: Row = {f"{prefix}l2_norm": float(lengths.mean())}
    for name, these, clip in (
        ("fooling_rate", vectors, False),
        ("clipped_fooling_rate", vectors, True),
        ("random_fooling_rate", noise, False),
        ("sign_noise_fooling_rate", signs, False),
    ):
        rates = applied(model, held_out, these, clip=clip, batch_size=batch_size).rates
        row[f"{prefix}{name}"] = float(rates.mean())
        if not clip:
            row[f"{prefix}{name}_std"] = float(rates.std())
    return row


@dataclass(frozen=True)
class Verdict:
    """One universal perturbation on held-out images.

    Attributes:
        vector: float32 (H, W, C).
        noise: float32 (H, W, C), Gaussian, of the same l2 norm.
        clean: int (M,), predictions without it; `fooled`, `clipped` and `random` are those under
            it, under it with clipping, and under the noise.
        sign_noise_rate: fooling rate of random signs of the same l-infinity norm.
        shown: numbers of a few images worth a look.
        pictures: float32 (S, 3, H, W, C), those images as they are, under it, under the noise.
    """

    vector: np.ndarray
    noise: np.ndarray
    clean: np.ndarray
    fooled: np.ndarray
    clipped: np.ndarray
    random: np.ndarray
    sign_noise_rate: float
    shown: np.ndarray
    pictures: np.ndarray

    @property
    def rates(self) -> Row:
        """Fooling rates and norms of the perturbation and of the noise."""
        perturbation = self.vector[np.newaxis]
        return {
            "final_fooling_rate": float((self.fooled != self.clean).mean()),
            "final_clipped_fooling_rate": float((self.clipped != self.clean).mean()),
            "final_random_fooling_rate": float((self.random != self.clean).mean()),
            "final_sign_noise_fooling_rate": self.sign_noise_rate,
            "final_l2_norm": float(lowrank.sizes(perturbation, "l2")[0]),
            "final_linf_norm": float(lowrank.sizes(perturbation, "linf")[0]),
        }

    def success_rates(self, target: int) -> Row:
        """The shares of the images of other classes that become the target."""
        others = self.clean != target
        sides = ("", self.fooled), ("clipped_", self.clipped), ("random_", self.random)
        return {
            f"final_{name}success_rate": float((classes[others] == target).mean())
            for name, classes in sides
        }

    def confusion(self, classes: int) -> np.ndarray:
        """How many images of each predicted class (rows) fall into which class (columns)."""
        counts = np.zeros((classes, classes), np.int64)
        np.add.at(counts, (self.clean, self.fooled), 1)
        return counts


def verdict(
    model: keras.Model,
    held_out: np.ndarray,
    vector: np.ndarray,
    *,
    seed: int,
    pictures: int = 6,
    batch_size: int = BATCH_SIZE,
) -> Verdict:
    """Judge one universal perturbation, beside noise of the same size.

    Args:
        model: from images to logits.
        held_out: float32 (M, H, W, C).
        vector: float32 (H, W, C).
        seed: of the noise.
        pictures: how many images to show.
        batch_size: images per pass, at most.
    """
    options: Any = {"batch_size": batch_size}
    (l2,), (linf,) = (lowrank.sizes(vector[np.newaxis], kind) for kind in _KINDS)
    noise = random_vectors(vector.shape, np.array([l2]), "l2", seed)[0]
    signs = random_vectors(vector.shape, np.full(20, linf), "linf", seed)
    both = applied(model, held_out, np.stack([vector, noise]), **options)
    clipped = applied(model, held_out, vector[np.newaxis], clip=True, **options).classes[0]
    fooled = np.flatnonzero(both.classes[0] != both.clean_classes)[:pictures]
    images = held_out[fooled]
    return Verdict(
        vector=vector,
        noise=noise,
        clean=both.clean_classes,
        fooled=both.classes[0],
        clipped=clipped,
        random=both.classes[1],
        sign_noise_rate=float(applied(model, held_out, signs, **options).rates.mean()),
        shown=fooled,
        pictures=np.stack([images, images + vector, images + noise], axis=1),
    )


def transferred(
    model: keras.Model,
    images: np.ndarray,
    labels: np.ndarray,
    vectors: np.ndarray,
    *,
    seed: int,
    batch_size: int = BATCH_SIZE,
    progress: Advance = quiet,
) -> list[Row]:
    """Judge universal perturbations on a model that they needn't have been fitted on.

    Args:
        model: from images to logits.
        images: float32 (N, H, W, C) in [0, 1].
        labels: int (N,), the true ones.
        vectors: float32 (P, H, W, C).
        seed: of the noise, of which one draw is scaled to the l2 norm of each perturbation.
        batch_size: images per pass.
        progress: is told of the passes, one image each; see `passes_of_transferred`.

    Returns:
        For each perturbation: fooling_rate and error_rate, the same with clipping (clipped_...)
        and under the noise (random_...), all with the ends _low and _high of Wilson's 95%
        interval, and clean_accuracy, without any of them.
    """
    options: Any = {"batch_size": batch_size, "progress": progress}
    shape, lengths = vectors.shape[1:], lowrank.sizes(vectors, "l2")
    noise = [random_vectors(shape, np.array([l2]), "l2", seed)[0] for l2 in lengths]
    unclipped = applied(model, images, np.stack([*vectors, *noise]), **options)
    clipped = applied(model, images, vectors, clip=True, **options)
    fooled, random = np.split(unclipped.classes, 2)
    clean = unclipped.clean_classes
    rows = []
    for predictions in zip(fooled, clipped.classes, random, strict=True):
        row: Row = {"clean_accuracy": float((clean == labels).mean())}
        for prefix, classes in zip(("", "clipped_", "random_"), predictions, strict=True):
            row |= scores.rate(f"{prefix}fooling_rate", classes != clean)
            row |= scores.rate(f"{prefix}error_rate", classes != labels)
        rows.append(row)
    return rows


def passes_of_transferred(images: int, vectors: int) -> int:
    """How many passes `transferred` takes, one image each, for so many images and vectors."""
    return images * (3 * vectors + 2)
