"""The fast gradient sign here and in foolbox, ART and cleverhans: is it the same image?

    make benchmark-attacks                                 # both attack benchmarks
    python -m benchmarks.attack_agreement                  # a minute

A small ResNet is trained on MNIST's digits. Wherever a pixel's gradient has the same sign on
both sides, the attacked pixels must be equal to 1e-5. Where the signs differ, the gradient must be
zero but for rounding. Two kinds of images are counted apart: those whose label the model is sure of
to half of float32's digits have a loss gradient of rounding errors, from which the libraries take
the sign; `resfool.attacks.gradient` computes it in a way that keeps it right.

Exits with 1 if a library disagrees.
"""

import sys
import warnings
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from resfool.devices import start_tensorflow

if TYPE_CHECKING:
    import keras

    from benchmarks.attack_libraries import Library

EPSILONS = (0.01, 0.05, 0.3)
SURER = 5  # times larger logits make a network that is sure of most labels
PIXEL = 1e-5  # by how much attacked pixels may differ
ROUNDING = 1e-4  # of an image's largest gradient: up to here its sign is a matter of rounding
PGD_STEPS, PGD_EPSILON = 10, 0.05
SAME_PIXELS = 0.99  # of PGD's, at least


@dataclass(frozen=True)
class Agreement:
    """How an attack here and one of a library compare.

    Attributes:
        pixel: largest difference of attacked pixels where the signs agree.
        other_signs: number of pixels whose signs differ, saturated images left out.
        pixels: out of how many.
        gradient: the library's largest at those pixels, relative to its image's largest.
        saturated: number of saturated images.
        saturated_other_signs: share of their pixels whose signs differ.
    """

    pixel: float
    other_signs: int
    pixels: int
    gradient: float
    saturated: int
    saturated_other_signs: float

    @property
    def good(self) -> bool:
        """Whether the two differ by rounding only."""
        return self.pixel <= PIXEL and self.gradient <= ROUNDING


def main() -> None:
    """Compare all libraries at all epsilons and print a table."""
    start_tensorflow()
    warnings.filterwarnings("ignore")  # the libraries', of frameworks that they don't find
    from benchmarks.attack_libraries import LIBRARIES

    model, images, labels = trained()
    networks = {"as trained": model, f"logits times {SURER}": surer(model)}
    print(
        "| network | library | epsilon | pixel | other signs | gradient there | saturated |", end=""
    )
    print(" other signs |\n| --- | --- | --- | --- | --- | --- | --- | --- |")
    good = True
    for network, attacked in networks.items():
        for name, adapt in LIBRARIES.items():
            library = adapt(attacked)
            for epsilon in EPSILONS:
                found = agreement(library, attacked, images, labels, epsilon)
                good &= found.good
                print(row(network, name, epsilon, found), flush=True)
    equal = descents_agree(model, images, labels)
    print(f"\nPGD of {PGD_STEPS} steps from the same start as foolbox's: {equal:.3%} of the pixels")
    print(f"agree to {PIXEL:g}, saturated images left out")
    if not good or equal < SAME_PIXELS:
        sys.exit("the attacks disagree")


def trained(steps: int = 600) -> tuple["keras.Model", np.ndarray, np.ndarray]:
    """A small ResNet that has learnt MNIST's digits, with test images and labels."""
    from resfool import experiments

    result = experiments.train(arch="resnet", depth=5, width=(8,), dataset="mnist5k", steps=steps)
    test = result.dataset.test
    return result.model, np.array(test.images), np.array(test.labels)


def surer(model: "keras.Model") -> "keras.Model":
    """The same network with larger logits: the same classes, and most images are saturated."""
    import keras

    return keras.Model(model.input, keras.layers.Rescaling(SURER)(model.output))


def agreement(
    library: "Library",
    model: "keras.Model",
    images: np.ndarray,
    labels: np.ndarray,
    epsilon: float,
) -> Agreement:
    """Attack the same images here and there.

    Args:
        library: made for the model.
        model: from images to logits.
        images: float32 (N, H, W, C) in [0, 1].
        labels: int64 (N,), whose loss is raised.
        epsilon: in pixel units.

    Returns:
        What differs.
    """
    from resfool.attacks.gradient import perturbed, sign_gradients

    ours = sign_gradients(model, images, labels)
    moved = perturbed(images, ours.signs, epsilon)
    theirs = library.gradient(images, labels)
    differs = np.sign(theirs) != ours.signs
    apart = np.abs(library.attack(images, labels, epsilon) - moved)
    largest = np.abs(theirs).max(axis=(1, 2, 3), keepdims=True)
    relative = np.abs(theirs) / np.where(largest > 0, largest, 1)
    sure = saturated(ours.logits, labels)
    return Agreement(
        pixel=float(apart[~differs].max(initial=0)),
        other_signs=int(differs[~sure].sum()),
        pixels=differs[~sure].size,
        gradient=float(relative[~sure][differs[~sure]].max(initial=0)),
        saturated=int(sure.sum()),
        saturated_other_signs=float(differs[sure].mean()) if sure.any() else 0.0,
    )


def saturated(logits: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Whether the model is so sure of a label that float32 leaves little of its loss gradient."""
    z = logits.astype(np.float64)
    chances = np.exp(z - z.max(axis=1, keepdims=True))
    chances /= chances.sum(axis=1, keepdims=True)
    chances[np.arange(len(labels)), labels] = 0
    return np.asarray(chances.sum(axis=1) < float(np.finfo(np.float32).eps) ** 0.5)


def row(network: str, name: str, epsilon: float, found: Agreement) -> str:
    """One line of the table."""
    cells = [
        network,
        name,
        f"{epsilon:g}",
        f"{found.pixel:.1e}",
        f"{found.other_signs} of {found.pixels:,}",
        f"{found.gradient:.1e}" if found.other_signs else "",
        str(found.saturated),
        f"{found.saturated_other_signs:.3%}",
    ]
    return f"| {' | '.join(cells)} |"


def descents_agree(model: "keras.Model", images: np.ndarray, labels: np.ndarray) -> float:
    """The share of pixels at which PGD here and foolbox's end alike, saturated images left out.

    Ours always starts at random, so foolbox's is made to start where ours does. A pixel whose
    gradient is zero but for rounding may take the other way, and all later gradients feel it.
    """
    import foolbox
    import tensorflow as tf

    from benchmarks.attack_libraries import foolbox_model
    from resfool.attacks.methods.pgd import projected_gradient_descent
    from resfool.classifiers import inference

    step = PGD_EPSILON / 4

    def ours(steps: int) -> np.ndarray:
        return projected_gradient_descent(
            model,
            images,
            labels,
            PGD_EPSILON,
            steps=steps,
            step_size=step,
            batch_size=inference.BATCH_SIZE,
        )

    class FromOurStart(foolbox.attacks.LinfPGD):
        def get_random_start(self, x0: Any, epsilon: float) -> Any:
            return type(x0)(tf.constant(ours(0)))

    descent = FromOurStart(abs_stepsize=step, steps=PGD_STEPS, random_start=True)
    _, theirs, _ = descent(
        foolbox_model(model), tf.constant(images), tf.constant(labels), epsilons=PGD_EPSILON
    )
    sure = saturated(inference.logits(model, images), labels)
    return float((np.abs(ours(PGD_STEPS) - theirs.numpy())[~sure] <= PIXEL).mean())


if __name__ == "__main__":
    main()
