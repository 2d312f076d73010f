"""A closer look at an attack: the spectrum of its directions, and images worth a look."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from resfool.attacks import lowrank
from resfool.attacks.epsilons import Curve, shown_epsilons
from resfool.classifiers import inference


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


def examples(curve: Curve, most: int = 6) -> list[Example]:
    """At most so many images worth a look, as in Table III.

    They are images that a small perturbation corrects (up to two), that the smallest perturbations
    fool, the surest mistakes first, and one that holds out longest.
    """
    source = curve.corrections or curve
    corrected = _corrected(source)[:2]
    found = _examples(source, corrected, from_prediction=source is curve.corrections)
    return found + _examples(curve, _fooled(curve, most - len(corrected)))


def _examples(curve: Curve, picked: np.ndarray, *, from_prediction: bool = False) -> list[Example]:
    clean, outcome = curve.clean, curve.attacked
    images = inference.at(curve.images, picked)
    directions = inference.at(curve.directions, picked).reshape(images.shape)
    found = [
        [Shown(0.0, image, int(clean.classes[0, i]), float(clean.confidences[0, i]))]
        for i, image in zip(picked, images, strict=True)
    ]
    for e in shown_epsilons(curve.epsilons) if len(picked) else ():
        moved = curve.move(picked, curve.epsilons[e])
        for row, i, image in zip(found, picked, moved, strict=True):
            predicted, confidence = outcome.classes[e, i], outcome.confidences[e, i]
            row.append(Shown(curve.epsilons[e], image, int(predicted), float(confidence)))
    return [
        Example(int(curve.labels[i]), direction, row, from_prediction)
        for i, direction, row in zip(picked, directions, found, strict=True)
    ]


def _corrected(curve: Curve) -> np.ndarray:
    """Misclassified images that less than the largest epsilon corrects."""
    shown = shown_epsilons(curve.epsilons)
    correct = curve.attacked.classes[shown] == curve.labels
    was_wrong = curve.clean.classes[0] != curve.labels
    return _ordered(was_wrong, correct[:-1], curve.attacked.confidences[shown])


def _fooled(curve: Curve, most: int) -> np.ndarray:
    """The images that are fooled first, and the one that is fooled last."""
    shown = shown_epsilons(curve.epsilons)
    wrong = curve.attacked.classes[shown] != curve.labels
    was_correct = curve.clean.classes[0] == curve.labels
    fooled = _ordered(was_correct, wrong, curve.attacked.confidences[shown])
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
        curve: rates and predictions at each epsilon.
        singular_values: of the gradient signs as rows of norm 1, largest first (Figure 11).
        random_singular_values: of Gaussian rows of norm 1.
        examples: images worth a look (Table III).
    """

    name: str
    where: str
    class_names: Sequence[str]
    curve: Curve
    singular_values: np.ndarray
    random_singular_values: np.ndarray
    examples: list[Example]

    @property
    def clean_accuracy(self) -> float:
        """Share of the images that are classified rightly as they are."""
        return float((self.curve.clean.classes[0] == self.curve.labels).mean())


def attacked(
    name: str, where: str, class_names: Sequence[str], curve: Curve, seed: int
) -> Attacked:
    """Look closer at an attack: its spectrum, beside a random matrix by `seed`, and examples."""
    matrix = lowrank.UnitRows(curve.directions)
    noise = lowrank.GaussianRows(matrix, seed)
    spectra = lowrank.singular_values(matrix), lowrank.singular_values(noise)
    return Attacked(name, where, class_names, curve, *spectra, examples(curve))
