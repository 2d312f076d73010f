"""A classifier under attack at rising epsilons."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import keras
import numpy as np

from resfool.attacks import gradient, masking
from resfool.attacks.gradient import Outcome
from resfool.attacks.methods.moving import Start
from resfool.attacks.options import METHODS, HowToAttack
from resfool.attacks.verdict import Verdict
from resfool.classifiers import inference
from resfool.classifiers.inference import BATCH_SIZE
from resfool.classifiers.scores import rate
from resfool.monitor import Advance, quiet
from resfool.values import BallNorm, Row


@dataclass(frozen=True)
class Curve:
    """A model under attack at E epsilons on N images.

    Attributes:
        epsilons: rising, in pixel units.
        rows: a dict of rates for each epsilon, see `rates`.
        images: float32 (N, H, W, C), as they were.
        labels: int (N,), the true ones.
        clean: the outcome without a perturbation, E = 1.
        attacked: the outcome at each epsilon.
        directions: int8 (N, H, W, C), the signs of the loss gradients.
        move: from the numbers of some images and an epsilon to those images under attack.
        smallest: float32 (N,), the smallest epsilon that changes the class, if it was looked for.
        corrections: where true labels were attacked, in linf, some misclassified images moved away
            from their predictions instead: only that way can a small perturbation correct them.
            Other images are among them, behind those.
        norm: of which the epsilons are sizes.
        attacks: the names of several attacks that followed one another, if the method is of such.
        first: int (E, N), the number of the one that fooled an image first; -1 where none did.
        rounded: bool (N,), whether the smallest perturbation fools in 8 bits too, if that was seen.
        verdict: whether the model hides its gradient, if that was checked.
    """

    epsilons: tuple[float, ...]
    rows: list[Row]
    images: np.ndarray
    labels: np.ndarray
    clean: Outcome
    attacked: Outcome
    directions: np.ndarray
    move: Callable[[np.ndarray, float], np.ndarray]
    smallest: np.ndarray | None = None
    corrections: "Curve | None" = None
    norm: BallNorm = "linf"
    attacks: tuple[str, ...] = ()
    first: np.ndarray | None = None
    rounded: np.ndarray | None = None
    verdict: Verdict | None = None

    @property
    def zero_gradient_share(self) -> float:
        """Share of the images whose gradient is zero in every pixel, so that nothing moves them."""
        return float((~self.directions.reshape(len(self.labels), -1).any(axis=1)).mean())


def over_epsilons(
    model: keras.Model,
    images: np.ndarray,
    labels: np.ndarray,
    asked: HowToAttack,
    *,
    seed: int = 0,
    batch_size: int = BATCH_SIZE,
    progress: Advance = quiet,
    checked: bool = True,
) -> Curve:
    """Attack a model at several epsilons, with random signs of equal size as a benchmark.

    Args:
        model: from images to logits.
        images: float32 (N, H, W, C) in [0, 1].
        labels: int (N,).
        asked: by which method, at which epsilons, and how.
        seed: of the random signs and pgd's starts.
        batch_size: images per pass.
        progress: is told the passes done, one image each: `asked.passes_of(N)` in all.
        checked: whether it is checked, too, that the model doesn't hide its gradient.
    """
    first = gradient.sign_gradients(
        model,
        images,
        None if asked.label_source == "prediction" else labels,
        batch_size=batch_size,
        progress=lambda count, text="", /: progress(2 * count, text),
    )
    epsilons = asked.positive_epsilons
    start = Start(model, images, first, epsilons, asked.clip, seed, batch_size, progress)
    moved = METHODS[asked.method].move(start, asked)
    verdict = None
    if checked:
        verdict = masking.verdict(start, moved, asked.ball, compared=asked.pursues)
    signs = gradient.random_signs(images.shape, seed)
    told = start.passes(len(epsilons))
    lengths = epsilons
    if asked.ball == "l2":  # of which all signs together have the square root of the pixels
        lengths = [epsilon / math.sqrt(images[0].size) for epsilon in epsilons]
    noise = gradient.along(model, images, signs, lengths, progress=told, **start.options)
    clean = Outcome.unmoved(first.logits)
    # Without a perturbation nothing is moved, so nothing need be computed.
    zeros = len(asked.epsilons) - len(epsilons)
    attacked, benchmark = (Outcome.joined([clean] * zeros + [o]) for o in (moved.outcome, noise))
    rows = [
        {"epsilon": float(epsilon)} | of_attack | {f"random_{k}": v for k, v in of_noise.items()}
        for epsilon, of_attack, of_noise in zip(
            asked.epsilons,
            rates(attacked, clean.classes[0], labels),
            rates(benchmark, clean.classes[0], labels),
            strict=True,
        )
    ]
    if moved.smallest is not None:
        for row in rows:
            row["cumulative_fooling_rate"] = float((moved.smallest <= row["epsilon"]).mean())
    by = None
    if moved.first is not None:
        by = np.concatenate([np.full((zeros, len(labels)), -1), moved.first])
        for row, classes, numbers in zip(rows, attacked.classes, by, strict=True):
            row |= rate("robust_accuracy", classes == labels) | counts(moved.attacks, numbers)
    corrections = None
    wrong = clean.classes[0] != labels
    if asked.label_source == "true" and asked.ball == "linf" and wrong.any():
        shown = tuple(asked.epsilons[e] for e in shown_epsilons(asked.epsilons))
        away = HowToAttack(epsilons=shown, label_source="prediction", clip=asked.clip)
        # Whole batches of the size for which the model is compiled already.
        size = inference.even(len(images), batch_size)
        few = np.argsort(~wrong, kind="stable")[: max(1, BATCH_SIZE // size) * size]
        corrections = over_epsilons(
            model, images[few], labels[few], away, batch_size=size, checked=False
        )
    return Curve(
        epsilons=asked.epsilons,
        rows=rows,
        images=images,
        labels=labels,
        clean=clean,
        attacked=attacked,
        directions=first.signs,
        move=moved.move,
        smallest=moved.smallest,
        corrections=corrections,
        norm=asked.ball,
        attacks=moved.attacks,
        first=by,
        rounded=moved.rounded,
        verdict=verdict,
    )


def rates(outcome: Outcome, clean_classes: np.ndarray, labels: np.ndarray) -> list[Row]:
    """What share of the images is fooled, and what share is wrong, at each epsilon.

    Args:
        outcome: predictions for perturbed images, E epsilons and N images.
        clean_classes: int (N,), predictions for the images as they are.
        labels: int (N,), the true ones.

    Returns:
        For each epsilon: fooling_rate (share whose predicted class changed), error_rate (share
        whose predicted class is not the label), both with the ends _low and _high of Wilson's 95%
        interval, accuracy, mean confidence in the predicted class, and mean l2_norm.
    """
    rows = []
    for classes, confidences, norms in zip(
        outcome.classes, outcome.confidences, outcome.norms, strict=True
    ):
        row = rate("fooling_rate", classes != clean_classes) | rate("error_rate", classes != labels)
        row["accuracy"] = 1.0 - row["error_rate"]
        row["confidence"] = float(confidences.mean(dtype=np.float64))
        row["l2_norm"] = float(norms.mean(dtype=np.float64))
        rows.append(row)
    return rows


def counts(attacks: Sequence[str], first: np.ndarray) -> Row:
    """How many images each of several attacks fooled first, by int (N,): its number, or -1."""
    return {f"fooled_first_by_{name}": float((first == n).sum()) for n, name in enumerate(attacks)}


def shown_epsilons(epsilons: Sequence[float]) -> np.ndarray:
    """The numbers of the 4 epsilons that examples show, from the smallest above 0 to the last."""
    positive = np.flatnonzero(np.array(epsilons) > 0)
    return positive[np.unique(np.linspace(0, len(positive) - 1, 4).round().astype(int))]
