"""A classifier under attack at rising epsilons."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import keras
import numpy as np

from resfool.attacks import masking
from resfool.attacks.found import Found
from resfool.attacks.gradient import Outcome
from resfool.attacks.options import HowToAttack
from resfool.attacks.verdict import MOST_IMAGES, Verdict, passes
from resfool.classifiers import inference
from resfool.classifiers.inference import BATCH_SIZE, Rows
from resfool.classifiers.keeping import Kept, Stored
from resfool.classifiers.scores import rate
from resfool.classifiers.spreading import Workers
from resfool.monitor import Advance, quiet
from resfool.values import BallNorm, Row


@dataclass(frozen=True)
class Curve:
    """A model under attack at E epsilons on N images.

    Attributes:
        epsilons: rising, in pixel units.
        rows: a dict of rates for each epsilon, see `rates`.
        images: float32 (N, H, W, C), as they were; of many, what reads them.
        labels: int (N,), the true ones.
        clean: the outcome without a perturbation, E = 1.
        attacked: the outcome at each epsilon.
        directions: int8 (N, H * W * C), the signs of the loss gradients; of many, what reads them.
        zero_gradient: bool (N,), whether an image's gradient is zero in every pixel, so that
            nothing moves it.
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
    images: Rows
    labels: np.ndarray
    clean: Outcome
    attacked: Outcome
    directions: Stored
    zero_gradient: np.ndarray
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
        """Share of the images whose gradient is zero in every pixel."""
        return float(self.zero_gradient.mean())


def over_epsilons(
    model: keras.Model,
    images: Rows,
    labels: np.ndarray,
    asked: HowToAttack,
    *,
    seed: int = 0,
    batch_size: int = BATCH_SIZE,
    block: int | None = None,
    workers: Workers | None = None,
    kept: Kept | None = None,
    progress: Advance = quiet,
    checked: bool = True,
) -> Curve:
    """Attack a model at several epsilons, with random signs of equal size as a benchmark.

    Images are attacked in blocks, of which each is forgotten once it is done, and kept in a folder
    if there is one.

    Args:
        model: from images to logits.
        images: float32 (N, H, W, C) in [0, 1], read block by block.
        labels: int (N,).
        asked: by which method, at which epsilons, and how.
        seed: of the random signs and pgd's starts.
        batch_size: images per pass.
        block: images that are attacked together, at most; None is `asked.images_at_once`.
        workers: that attack them; None is this process.
        kept: where blocks are kept; None is in memory. It must stay as long as the result is used.
        progress: is told the passes done, one image each: `asked.passes_of(N)` in all.
        checked: whether it is checked, too, that the model doesn't hide its gradient.
    """
    how = HowToAttack(**asked.shared(HowToAttack))
    found = Found.of(
        model,
        images,
        labels,
        how,
        seed=seed,
        batch_size=batch_size,
        block=block,
        workers=workers,
        kept=kept,
        progress=progress,
    )
    clean = found.clean
    verdict = None
    if checked:
        right = np.flatnonzero(clean.classes[0] == found.labels_of_loss)
        verdict = masking.verdict(
            replace(found.start(right[:MOST_IMAGES]), progress=progress),
            found.by_search(right),
            how.ball,
            foreseen=passes(len(labels), compared=how.pursues),
            compared=how.pursues,
        )
    # Without a perturbation nothing is moved, so nothing need be computed.
    zeros = len(how.epsilons) - len(how.positive_epsilons)
    attacked, benchmark = (
        Outcome.joined([clean] * zeros + [outcome]) for outcome in (found.moved, found.random)
    )
    rows = [
        {"epsilon": float(epsilon)} | of_attack | {f"random_{k}": v for k, v in of_noise.items()}
        for epsilon, of_attack, of_noise in zip(
            how.epsilons,
            rates(attacked, clean.classes[0], labels),
            rates(benchmark, clean.classes[0], labels),
            strict=True,
        )
    ]
    if found.smallest is not None:
        for row in rows:
            row["cumulative_fooling_rate"] = float((found.smallest <= row["epsilon"]).mean())
    by = None
    if found.first is not None:
        by = np.concatenate([np.full((zeros, len(labels)), -1), found.first])
        for row, classes, numbers in zip(rows, attacked.classes, by, strict=True):
            row |= rate("robust_accuracy", classes == labels) | counts(how.attacks, numbers)
    corrections = None
    wrong = clean.classes[0] != labels
    if how.label_source == "true" and how.ball == "linf" and wrong.any():
        shown = tuple(how.epsilons[e] for e in shown_epsilons(how.epsilons))
        away = HowToAttack(epsilons=shown, label_source="prediction", clip=how.clip)
        # Whole batches of the size for which the model is compiled already.
        size = found.batch_size
        few = np.argsort(~wrong, kind="stable")[: max(1, BATCH_SIZE // size) * size]
        corrections = over_epsilons(
            model, inference.at(images, few), labels[few], away, batch_size=size, checked=False
        )
    return Curve(
        epsilons=how.epsilons,
        rows=rows,
        images=images,
        labels=labels,
        clean=clean,
        attacked=attacked,
        directions=found.directions,
        zero_gradient=found.zero_gradient,
        move=found.at,
        smallest=found.smallest,
        corrections=corrections,
        norm=how.ball,
        attacks=how.attacks,
        first=by,
        rounded=found.rounded,
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
