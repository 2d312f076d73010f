"""How well a classifier does on a set of images, as they are and under attack."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from scipy.stats import binomtest

from resfool import inference
from resfool.attacks import gradient, lowrank
from resfool.attacks.gradient import Outcome
from resfool.inference import BATCH_SIZE
from resfool.parameters import LabelSource, Method

Row = dict[str, float]

CONFIDENCE_LEVEL = 0.95  # of the intervals around the rates


@dataclass(frozen=True)
class Score:
    """Accuracy (0 to 1) and mean cross-entropy (nats) over a set of images."""

    accuracy: float
    loss: float


def evaluate(
    model: keras.Model, images: np.ndarray, labels: np.ndarray, batch_size: int = BATCH_SIZE
) -> Score:
    """Judge a model on labelled images.

    Args:
        model: from images to logits.
        images: float32 (N, H, W, C) in [0, 1], at least one.
        labels: int (N,).
        batch_size: images per forward pass.

    Returns:
        Accuracy and mean cross-entropy over all N images.
    """
    z = inference.logits(model, images, batch_size).astype(np.float64)
    z -= z.max(axis=1, keepdims=True)
    log_likelihood = z[np.arange(len(labels)), labels] - np.log(np.exp(z).sum(axis=1))
    return Score(
        accuracy=float((z.argmax(axis=1) == labels).mean()), loss=float(-log_likelihood.mean())
    )


def chunk_accuracies(
    model: keras.Model,
    images: np.ndarray,
    labels: np.ndarray,
    *,
    chunk: int,
    chunks: int,
    seed: int,
) -> np.ndarray:
    """Accuracies on random parts of a set, normalised by the statistics of each part.

    That is how code of the paper's time used to watch its trainings: an evaluation takes a few
    hundred images, batch normalisation stays in its training mode, and the best evaluation is
    what is printed. The best of many noisy figures lies above the accuracy on the whole set.

    Args:
        model: from images to logits, without dropout; it is left as it was.
        images: float32 (N, H, W, C) in [0, 1].
        labels: int (N,).
        chunk: images of a part, drawn without replacement; all N if there are fewer.
        chunks: parts.
        seed: of the draws.

    Returns:
        float64 (chunks,).
    """
    random = np.random.default_rng(seed)
    weights = model.get_weights()  # the moving averages would go on moving
    judge = tf.function(lambda batch: tf.argmax(model(batch, training=True), axis=1))
    found = np.empty(chunks)
    try:
        for number in range(chunks):
            drawn = random.choice(len(labels), min(chunk, len(labels)), replace=False)
            found[number] = (judge(tf.constant(images[drawn])).numpy() == labels[drawn]).mean()
    finally:
        model.set_weights(weights)
    return found


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
    advance = _counter(total, progress)
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
            [ordered[e] for e in _shown(ordered)],
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


def rate(name: str, hits: np.ndarray) -> Row:
    """A share of the images with its interval.

    Args:
        name: of the rate.
        hits: bool (N,), the images that count.

    Returns:
        The share under its name, and the ends _low and _high of Wilson's 95% interval.
    """
    share = binomtest(int(hits.sum()), hits.size)
    interval = share.proportion_ci(CONFIDENCE_LEVEL, method="wilson")
    return {
        name: float(hits.mean()),
        f"{name}_low": float(interval.low),
        f"{name}_high": float(interval.high),
    }


_NARROWING = 8  # passes that an image's bisection takes, roughly: a guess for the progress bar


def _passes(epsilons: int, method: Method, pgd_steps: int) -> int:
    """Forward passes of an image; a gradient counts as two."""
    noise = epsilons
    attack = epsilons * (2 * pgd_steps + 1 if method == "pgd" else 1)
    return 2 + attack + noise + (_NARROWING if method == "smallest_epsilon" else 0)


def _counter(total: int, progress: Callable[[int, int], None]) -> Callable[[int], None]:
    done = 0

    def advance(passes: int) -> None:
        nonlocal done
        done = min(total, done + passes)
        progress(done, total)

    return advance


def _clean(logits: np.ndarray) -> Outcome:
    z = logits.astype(np.float64)
    z -= z.max(axis=1, keepdims=True)
    confidences = 1.0 / np.exp(z).sum(axis=1)
    classes = logits.argmax(axis=1)[np.newaxis]
    return Outcome(classes, confidences[np.newaxis].astype(np.float32), np.zeros(classes.shape))


@dataclass(frozen=True)
class Shown:
    """A perturbed image as a model sees it."""

    epsilon: float
    image: np.ndarray
    predicted: int
    confidence: float


@dataclass(frozen=True)
class Example:
    """An image, the direction it is moved in, and what a model makes of it on the way.

    Attributes:
        label: the true one.
        direction: int8 (H, W, C), the signs of the loss gradient.
        shown: the image as it is (epsilon 0), then at rising epsilons.
        from_prediction: whether it is moved away from its prediction, not from its label.
    """

    label: int
    direction: np.ndarray
    shown: list[Shown]
    from_prediction: bool = False


_SHOWN = 4  # epsilons of an example


def examples(swept: Sweep, most: int = 6) -> list[Example]:
    """A few images worth a look, as in Table III: corrected ones, fooled ones and a stubborn one.

    Args:
        swept: an attack.
        most: how many images to pick.

    Returns:
        Images that a small perturbation corrects (up to two), that the smallest perturbations
        fool, the surest mistakes first, and one that holds out longest.
    """
    source = swept.corrections or swept
    corrected = _corrected(source)[:2]
    found = _examples(source, corrected, from_prediction=source is swept.corrections)
    return found + _examples(swept, _fooled(swept, most - len(corrected)))


def _shown(epsilons: Sequence[float]) -> np.ndarray:
    """The numbers of the epsilons that examples show, from the smallest above 0 to the largest."""
    positive = np.flatnonzero(np.array(epsilons) > 0)
    return positive[np.unique(np.linspace(0, len(positive) - 1, _SHOWN).round().astype(int))]


def _examples(swept: Sweep, picked: np.ndarray, *, from_prediction: bool = False) -> list[Example]:
    clean, outcome = swept.clean, swept.attacked
    found = [
        [Shown(0.0, swept.images[i], int(clean.classes[0, i]), float(clean.confidences[0, i]))]
        for i in picked
    ]
    for e in _shown(swept.epsilons) if len(picked) else ():
        moved = swept.move(picked, swept.epsilons[e])
        for row, i, image in zip(found, picked, moved, strict=True):
            predicted, confidence = outcome.classes[e, i], outcome.confidences[e, i]
            row.append(Shown(swept.epsilons[e], image, int(predicted), float(confidence)))
    return [
        Example(int(swept.labels[i]), swept.directions[i], row, from_prediction)
        for i, row in zip(picked, found, strict=True)
    ]


def _corrected(swept: Sweep) -> np.ndarray:
    """Misclassified images that less than the largest epsilon corrects."""
    shown = _shown(swept.epsilons)
    correct = swept.attacked.classes[shown] == swept.labels
    was_wrong = swept.clean.classes[0] != swept.labels
    return _ordered(was_wrong, correct[:-1], swept.attacked.confidences[shown])


def _fooled(swept: Sweep, most: int) -> np.ndarray:
    """The images that are fooled first, and the one that is fooled last."""
    shown = _shown(swept.epsilons)
    wrong = swept.attacked.classes[shown] != swept.labels
    was_correct = swept.clean.classes[0] == swept.labels
    fooled = _ordered(was_correct, wrong, swept.attacked.confidences[shown])
    return fooled if len(fooled) <= most else np.append(fooled[: most - 1], fooled[-1])


def _ordered(wanted: np.ndarray, hits: np.ndarray, confidences: np.ndarray) -> np.ndarray:
    """The wanted images with a hit, by the epsilon of their first and then by confidence there."""
    candidates = np.flatnonzero(wanted & hits.any(axis=0))
    if not len(candidates):
        return candidates
    first = hits[:, candidates].argmax(axis=0)
    return candidates[np.lexsort((-confidences[first, candidates], first))]


@dataclass(frozen=True)
class Attacked:
    """A model and all that an attack showed of it.

    Attributes:
        name: of the model, for tables and legends.
        where: which images, such as "cifar10 test".
        class_names: by class.
        sweep: rates and predictions at each epsilon.
        singular_values: of the gradient signs as rows of norm 1, largest first (Figure 11).
        random_singular_values: of Gaussian rows of norm 1.
        examples: images worth a look (Table III).
    """

    name: str
    where: str
    class_names: Sequence[str]
    sweep: Sweep
    singular_values: np.ndarray
    random_singular_values: np.ndarray
    examples: list[Example]

    @property
    def clean_accuracy(self) -> float:
        """Share of the images that are classified rightly as they are."""
        return float((self.sweep.clean.classes[0] == self.sweep.labels).mean())


def attacked(
    name: str, where: str, class_names: Sequence[str], swept: Sweep, seed: int
) -> Attacked:
    """Look closer at an attack: the spectrum of its directions, and examples.

    Args:
        name: of the model.
        where: which images.
        class_names: by class.
        swept: the attack.
        seed: of the random matrix that the spectrum is compared with.

    Returns:
        All of it together.
    """
    matrix = lowrank.unit_rows(swept.directions)
    return Attacked(
        name=name,
        where=where,
        class_names=class_names,
        sweep=swept,
        singular_values=lowrank.singular_values(matrix),
        random_singular_values=lowrank.singular_values(lowrank.random_matrix(matrix, seed)),
        examples=examples(swept),
    )
