"""How well universal perturbations fool a model on held-out images (Figures 7 to 10)."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, get_args

import keras
import numpy as np

from resfool.attacks import lowrank
from resfool.attacks.lowrank import Decomposition, RandomCoefficients
from resfool.classifiers import inference, scores
from resfool.classifiers.inference import BATCH_SIZE, Images
from resfool.monitor import Advance, quiet
from resfool.universal import coefficients
from resfool.universal.options import Coefficients
from resfool.universal.vectors import applied, classes_of, random_vectors
from resfool.values import BallNorm, Norm, Row

RANKS = 1, 2, 3, 5, 10, 20, 30, 50, 100  # numbers of singular vectors that Figure 7 is drawn for

_PASSES = 2000  # at least, that the rate of several draws is taken from, one image each
_NOISE_PASSES = 1000  # the same of noise
_FIRST_LOOK = 250  # fitting images that the best of several draws is chosen on
_KINDS: tuple[BallNorm, BallNorm] = ("l2", "linf")


@dataclass(frozen=True)
class Judged:
    """One perturbation on held-out images.

    Attributes:
        name: such as Gaussian, or checkerboard_4_shifted.
        vector: float32 (H, W, C).
        clean: int (M,), predictions without it; `fooled` and `clipped` are those under it, and
            under it with images clipped to [0, 1].
    """

    name: str
    vector: np.ndarray
    clean: np.ndarray
    fooled: np.ndarray
    clipped: np.ndarray

    def rates(self, name: str) -> Row:
        """Fooling rates by their names in MLflow, with the ends of their 95% intervals."""
        found = scores.rate(f"final_{name}fooling_rate", self.fooled != self.clean)
        return found | scores.rate(f"final_clipped_{name}fooling_rate", self.clipped != self.clean)

    def success_rates(self, name: str, target: int) -> Row:
        """The shares of the images of other classes that become the target."""
        others = self.clean != target
        found = scores.rate(f"final_{name}success_rate", self.fooled[others] == target)
        clipped = self.clipped[others] == target
        return found | scores.rate(f"final_clipped_{name}success_rate", clipped)


def judged(
    model: keras.Model,
    held_out: Images,
    vectors: Mapping[str, np.ndarray],
    *,
    batch_size: int = BATCH_SIZE,
) -> list[Judged]:
    """Judge perturbations, float32 (H, W, C), by their names, on held-out images (M, H, W, C)."""
    stacked = np.stack(list(vectors.values()))
    plain, clipped = (
        applied(model, held_out, stacked, clip=clip, batch_size=batch_size)
        for clip in (False, True)
    )
    each = zip(vectors.items(), plain.classes, clipped.classes, strict=True)
    return [Judged(*item, plain.clean_classes, *classes) for item, *classes in each]


@dataclass(frozen=True)
class Ranked:
    """Fooling rates over the number of singular vectors, and one perturbation.

    Attributes:
        rows: a dict for each rank: rank, l2_norm (mean), fooling_rate with its deviation over
            draws (_std), clipped_fooling_rate for the same with clipping, random_fooling_rate for
            Gaussian vectors of the same l2 norms (_std, and clipped_random_fooling_rate),
            sign_noise_fooling_rate for random signs of the same l-infinity norms (and _std); the
            same as equal_..., at equal norm.
        vector: float32 (H, W, C), of the rank that was asked for; of several draws the one that
            fools most of 250 fitting images.
        patterns: names of the best patterns of the same norm, as they come and at equal norm,
            once rows have their pattern_fooling_rate, clipped_... and equal_...; see `screening`.
    """

    rows: list[Row]
    vector: np.ndarray
    patterns: tuple[str, str] = ("", "")


@dataclass(frozen=True)
class Comparison:
    """Which low-rank perturbations (equation 8) are compared.

    Attributes:
        ranks: numbers of singular vectors, rising.
        rank: the one of them whose perturbation is returned.
        rule: for the coefficients.
        norm: that the perturbations are scaled to; of kind "none" they stay as drawn.
        equal_norm: that all of them are scaled to for the fair comparison.
        draws: perturbations of each rank, and random vectors to compare with.
        seed: of the draws.
        clip: fit on clipped images.
    """

    ranks: Sequence[int]
    rank: int
    rule: Coefficients
    norm: Norm
    equal_norm: Norm
    draws: int
    seed: int
    clip: bool = False

    @property
    def sides(self) -> dict[str, Norm]:
        """The norms by what the names of their rates begin with; equal ones are judged once."""
        both = {"": self.norm, "equal_": self.equal_norm}
        return both if self.norm != self.equal_norm else {"": self.norm}

    @property
    def vectors(self) -> int:
        """How many perturbations are judged; of several draws each counts."""
        drawn = self.draws if self.rule in get_args(RandomCoefficients) else 1
        return len(self.ranks) * len(self.sides) * drawn


def over_ranks(
    model: keras.Model,
    fitting: Images,
    held_out: Images,
    decomposition: Decomposition,
    asked: Comparison,
    *,
    batch_size: int = BATCH_SIZE,
    progress: Advance = quiet,
) -> Ranked:
    """Judge low-rank perturbations (equation 8) of several ranks, as drawn and at equal norm.

    The search for the best coefficients goes on from rank to rank. For a rate over several draws
    not every draw is tried on every image, but on its share of them, all images about equally
    often: 2,000 passes or more for a rate, and 1,000 for one of noise.

    Args:
        model: from images to logits, whose predictions shall change.
        fitting: float32 (N, H, W, C), what coefficients may be chosen on.
        held_out: float32 (M, H, W, C), what fooling rates are measured on.
        decomposition: of the matrix of perturbations.
        asked: what is compared.
        batch_size: images per pass, at most.
        progress: is told of the perturbations, see `Comparison.vectors`.
    """
    rows: dict[int, Row] = {number: {"rank": number} for number in asked.ranks}
    vector = np.zeros(held_out.shape[1:], np.float32)
    jury = _Jury(model, held_out, asked.seed, batch_size)
    options: Any = {"clip": asked.clip, "batch_size": batch_size}
    found = _coefficients(model, fitting, decomposition, asked, **options)
    for prefix, norm in asked.sides.items():
        for number, row in rows.items():
            f = found(number, norm)
            vectors = coefficients.perturbations(f, decomposition, fitting.shape[1:], norm)
            row |= {f"{prefix}{name}": rate for name, rate in jury.rates(vectors).items()}
            if prefix == "" and number == asked.rank:  # held-out images have no say
                best = 0
                if len(vectors) > 1:
                    rates = applied(model, fitting[:_FIRST_LOOK], vectors, **options).rates
                    best = int(rates.argmax())
                vector = vectors[best]
            progress(len(vectors))
    ordered = list(rows.values())
    if len(asked.sides) == 1:
        same = ({f"equal_{n}": r for n, r in row.items() if n != "rank"} for row in ordered)
        ordered = [row | more for row, more in zip(ordered, same, strict=True)]
    return Ranked(ordered, vector)


def _coefficients(
    model: keras.Model,
    fitting: Images,
    decomposition: Decomposition,
    asked: Comparison,
    **options: Any,
) -> Callable[[int, Norm], np.ndarray]:
    """What gives the coefficients of ranks at norms."""
    if asked.rule != "optimised":
        own: Any = options | {"seed": asked.seed, "draws": asked.draws}
        return lambda rank, norm: coefficients.coefficients(
            asked.rule, model, fitting, decomposition, rank, norm=norm, **own
        )
    search = coefficients.Search(model, fitting, decomposition, seed=asked.seed, **options)
    known: dict[Norm, np.ndarray] = {}

    def found(rank: int, norm: Norm) -> np.ndarray:
        best = search.best(rank, norm, known.get(norm))
        (known[norm],) = best
        return best

    return found


class _Jury:
    """Held-out images (M, H, W, C), on which perturbations and noise are tried."""

    def __init__(self, model: keras.Model, held_out: Images, seed: int, batch_size: int) -> None:
        self._model, self._images, self._batch_size = model, held_out, batch_size
        self._seed = seed
        self._clean = inference.predicted(inference.logits(model, held_out, batch_size))
        self._noise: dict[tuple[float | str, ...], Row] = {}

    def rates(self, vectors: np.ndarray) -> Row:
        """What a row of `Ranked` tells of perturbations (K, H, W, C)."""
        row: Row = {"l2_norm": float(lowrank.sizes(vectors, "l2").mean())}
        row |= self._shared_out(vectors, _PASSES, "")
        for kind, name in zip(_KINDS, ("random_", "sign_noise_"), strict=True):
            sizes = lowrank.sizes(vectors, kind).round(5)
            known = kind, *sizes.tolist()
            if known not in self._noise:  # at equal norm it is the same for all ranks
                noise = random_vectors(vectors.shape[1:], sizes, kind, self._seed)
                self._noise[known] = self._shared_out(noise, _NOISE_PASSES, name)
            row |= self._noise[known]
        return row

    def _shared_out(self, vectors: np.ndarray, passes: int, name: str) -> Row:
        """Rates and their deviation over perturbations, each tried on its share of the images."""
        count = len(self._images)
        share = min(count, -(-passes // len(vectors)))
        rates = np.empty((2, len(vectors)))
        for number, vector in enumerate(vectors):
            rows = np.sort((number * share + np.arange(share)) % count)
            for clip in (False, True):
                some = inference.picked(self._images, rows)
                under = classes_of(
                    self._model, some, vector, clip=clip, batch_size=self._batch_size
                )
                rates[int(clip), number] = (under != self._clean[rows]).mean()
        plain, clipped = rates
        return {
            f"{name}fooling_rate": float(plain.mean()),
            f"{name}fooling_rate_std": _deviation(plain, share, count),
            f"clipped_{name}fooling_rate": float(clipped.mean()),
        }


def _deviation(rates: np.ndarray, share: int, count: int) -> float:
    """The deviation over perturbations, without what comes of trying each on a share of images.

    A rate p on n of N images, drawn without replacement, has the variance
    p(1 - p) / (n - 1) (1 - n / N), as far as the images can tell.
    """
    sampling = rates * (1 - rates) / max(share - 1, 1) * (1 - share / count)
    return float(max(rates.var() - sampling.mean(), 0.0) ** 0.5)


@dataclass(frozen=True)
class Verdict:
    """One universal perturbation on held-out images, beside noise of the same size.

    Attributes:
        universal: it.
        gaussian: Gaussian noise of the same l2 norm.
        signs: random signs of the same l-infinity norm.
        sign_noise_rate: fooling rate of several draws of these.
    """

    universal: Judged
    gaussian: Judged
    signs: Judged
    sign_noise_rate: float

    @property
    def rates(self) -> Row:
        """Fooling rates and norms of the perturbation and of the noise."""
        perturbation = self.universal.vector[np.newaxis]
        return {
            **self.universal.rates(""),
            **self.gaussian.rates("random_"),
            "final_sign_noise_fooling_rate": self.sign_noise_rate,
            "final_l2_norm": float(lowrank.sizes(perturbation, "l2")[0]),
            "final_linf_norm": float(lowrank.sizes(perturbation, "linf")[0]),
        }

    def success_rates(self, target: int) -> Row:
        """The shares of the images of other classes that become the target, under it and noise."""
        found = self.universal.success_rates("", target)
        return found | self.gaussian.success_rates("random_", target)

    def confusion(self, classes: int) -> np.ndarray:
        """How many images of each predicted class (rows) fall into which class (columns)."""
        counts = np.zeros((classes, classes), np.int64)
        np.add.at(counts, (self.universal.clean, self.universal.fooled), 1)
        return counts


def verdict(
    model: keras.Model,
    held_out: Images,
    vector: np.ndarray,
    *,
    seed: int,
    draws: int = 5,
    batch_size: int = BATCH_SIZE,
) -> Verdict:
    """Judge one universal perturbation, beside noise of the same size.

    Args:
        model: from images to logits.
        held_out: float32 (M, H, W, C).
        vector: float32 (H, W, C).
        seed: of the noise.
        draws: of random signs.
        batch_size: images per pass, at most.
    """
    (l2,), (linf,) = (lowrank.sizes(vector[np.newaxis], kind) for kind in _KINDS)
    gaussian = random_vectors(vector.shape, np.array([l2]), "l2", seed)[0]
    signs = random_vectors(vector.shape, np.full(draws, linf), "linf", seed)
    named = {"universal": vector, "Gaussian": gaussian, "random signs": signs[0]}
    rates = applied(model, held_out, signs, batch_size=batch_size).rates
    universal, gaussian, sign = judged(model, held_out, named, batch_size=batch_size)
    return Verdict(universal, gaussian, sign, float(rates.mean()))


def transferred(
    model: keras.Model,
    images: Images,
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
