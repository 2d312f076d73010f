"""A classifier under attack at rising epsilons."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np

from resfool.attacks import gradient
from resfool.attacks.gradient import Outcome
from resfool.classifiers.inference import BATCH_SIZE
from resfool.classifiers.scores import rate
from resfool.monitor import counter
from resfool.parameters import LabelSource, Method, Row


@dataclass(frozen=True)
class Sweep:
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
        corrections: where true labels were attacked, some misclassified images moved away from
            their predictions instead: only that way can a small perturbation correct them.
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
    corrections: "Sweep | None" = None

    @property
    def zero_gradient_share(self) -> float:
        """Share of the images whose gradient is zero in every pixel, so that nothing moves them."""
        return float((~self.directions.reshape(len(self.labels), -1).any(axis=1)).mean())


def sweep(
    model: keras.Model,
    images: np.ndarray,
    labels: np.ndarray,
    epsilons: Sequence[float],
    *,
    method: Method = "fgsm",
    label_source: LabelSource = "true",
    clip: bool = True,
    tolerance: float = 1e-4,
    pgd_steps: int = 20,
    pgd_step_size: float | None = None,
    seed: int = 0,
    batch_size: int = BATCH_SIZE,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Sweep:
    """Attack a model at several epsilons, with random signs of equal size as a benchmark.

    Args:
        model: from images to logits.
        images: float32 (N, H, W, C) in [0, 1].
        labels: int (N,).
        epsilons: E l-infinity radii in pixel units, in any order.
        method: "fgsm" moves along the gradient's sign, taken once (equation 5);
            "smallest_epsilon" also finds each image's smallest epsilon along it;
            "pgd" iterates, from a random start.
        label_source: whose loss is raised: the "true" label's or the model's own "prediction"'s.
        clip: keep perturbed images in [0, 1].
        tolerance: of the smallest epsilon.
        pgd_steps: gradient steps of pgd.
        pgd_step_size: length of one; None is 2.5 * epsilon / steps.
        seed: of the random signs and pgd's starts.
        batch_size: images per pass.
        progress: is told the passes done, one image each, and their total.

    Returns:
        Rates, predictions and the signs of the gradients.
    """
    ordered = tuple(sorted(epsilons))
    positive = [e for e in ordered if e > 0]
    total = len(images) * _passes(len(positive), method, pgd_steps)
    advance = counter(total, progress)
    options: Any = {"clip": clip, "batch_size": batch_size}
    first = gradient.sign_gradients(
        model,
        images,
        None if label_source == "prediction" else labels,
        batch_size=batch_size,
        progress=lambda count: advance(2 * count),
    )
    clean = _clean(first.logits)

    def advance_all(count: int) -> None:
        advance(count * len(positive))

    def along_signs(chosen: np.ndarray, epsilon: float) -> np.ndarray:
        return gradient.perturbed(images[chosen], first.signs[chosen], epsilon, clip=clip)

    def descended(chosen: np.ndarray, epsilon: float) -> np.ndarray:
        return gradient.projected_gradient_descent(
            model,
            images[chosen],
            first.labels[chosen],
            epsilon,
            steps=pgd_steps,
            step_size=pgd_step_size,
            seed=seed,
            places=chosen,
            progress=lambda count: advance(2 * pgd_steps * count),
            **options,
        )

    if method == "pgd":
        everything = np.arange(len(images))
        moved = Outcome.joined(
            [
                gradient.judged(
                    model,
                    images,
                    descended(everything, epsilon),
                    batch_size=batch_size,
                    progress=advance,
                )
                for epsilon in positive
            ]
        )
    else:
        moved = gradient.along(
            model, images, first.signs, positive, progress=advance_all, **options
        )
    noise = gradient.along(
        model,
        images,
        gradient.random_signs(images.shape, seed),
        positive,
        progress=advance_all,
        **options,
    )
    smallest = None
    if method == "smallest_epsilon":
        smallest = gradient.smallest_epsilons(
            model,
            images,
            first.signs,
            clean.classes[0],
            moved.classes,
            positive,
            tolerance=tolerance,
            progress=lambda count: advance(_NARROWING * count),
            **options,
        )
    advance(total)
    # Without a perturbation nothing is moved, so nothing need be computed.
    zeros = len(ordered) - len(positive)
    attacked, benchmark = (Outcome.joined([clean] * zeros + [o]) for o in (moved, noise))
    rows = [
        {"epsilon": float(epsilon)} | of_attack | {f"random_{k}": v for k, v in of_noise.items()}
        for epsilon, of_attack, of_noise in zip(
            ordered,
            rates(attacked, clean.classes[0], labels),
            rates(benchmark, clean.classes[0], labels),
            strict=True,
        )
    ]
    if smallest is not None:
        for row in rows:
            reached = float((smallest <= row["epsilon"]).mean())
            row["cumulative_fooling_rate"] = reached
    corrections = None
    wrong = np.flatnonzero(clean.classes[0] != labels)[:batch_size]
    if label_source == "true" and len(wrong):
        corrections = sweep(
            model,
            images[wrong],
            labels[wrong],
            [ordered[e] for e in shown_epsilons(ordered)],
            label_source="prediction",
            clip=clip,
            batch_size=batch_size,
        )
    return Sweep(
        epsilons=ordered,
        rows=rows,
        images=images,
        labels=labels,
        clean=clean,
        attacked=attacked,
        directions=first.signs,
        move=descended if method == "pgd" else along_signs,
        smallest=smallest,
        corrections=corrections,
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


_NARROWING = 8  # passes that an image's bisection takes, roughly: a guess for the progress bar


def _passes(epsilons: int, method: Method, pgd_steps: int) -> int:
    """Forward passes of an image; a gradient counts as two."""
    noise = epsilons
    attack = epsilons * (2 * pgd_steps + 1 if method == "pgd" else 1)
    return 2 + attack + noise + (_NARROWING if method == "smallest_epsilon" else 0)


def _clean(logits: np.ndarray) -> Outcome:
    z = logits.astype(np.float64)
    z -= z.max(axis=1, keepdims=True)
    confidences = 1.0 / np.exp(z).sum(axis=1)
    classes = logits.argmax(axis=1)[np.newaxis]
    return Outcome(classes, confidences[np.newaxis].astype(np.float32), np.zeros(classes.shape))


_SHOWN = 4  # epsilons of an example


def shown_epsilons(epsilons: Sequence[float]) -> np.ndarray:
    """The numbers of the epsilons that examples show, from the smallest above 0 to the largest."""
    positive = np.flatnonzero(np.array(epsilons) > 0)
    return positive[np.unique(np.linspace(0, len(positive) - 1, _SHOWN).round().astype(int))]
