"""What a method of attack is given, and what it answers."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from resfool.monitor import Advance

if TYPE_CHECKING:
    import keras

    from resfool.attacks.gradient import Outcome, SignGradients


@dataclass(frozen=True)
class Start:
    """Where every method starts: N images, and the gradient of each.

    Attributes:
        model: from images to logits.
        images: float32 (N, H, W, C) in [0, 1].
        first: the signs of the loss gradients at the images, their logits and the loss's labels.
        epsilons: E l-infinity radii above 0, rising, in pixel units.
        clip: keep moved images in [0, 1].
        seed: of whatever is drawn at random.
        batch_size: images per pass.
        progress: is told the passes done, one image each; a gradient counts as two.
        places: int64 (N,), the images' numbers in a larger set; None counts from 0. What is drawn
            for an image depends on the seed and its place only.
    """

    model: "keras.Model"
    images: np.ndarray
    first: "SignGradients"
    epsilons: Sequence[float]
    clip: bool
    seed: int
    batch_size: int
    progress: Advance
    places: np.ndarray | None = None

    @property
    def numbers(self) -> np.ndarray:
        """The images' places."""
        return np.arange(len(self.images)) if self.places is None else self.places

    @property
    def options(self) -> dict[str, Any]:
        """What the functions of `gradient` want to know too."""
        return {"clip": self.clip, "batch_size": self.batch_size}

    def passes(self, of_an_image: int) -> Advance:
        """A progress that is told images, each of which took so many passes."""
        return lambda images, text="", /: self.progress(of_an_image * images, text)


@dataclass(frozen=True)
class Moved:
    """Images under attack.

    Attributes:
        outcome: what the model makes of them at each of the E epsilons.
        fooling: float32 (N, H, W, C), each image moved no farther than fools it, or as it was where
            nothing fools it; None of methods that move images anew for each epsilon.
        smallest: float32 (N,), the smallest epsilon that changes the class, if it was looked for;
            inf where none was found.
        attacks: the names of several attacks that followed one another, if they did.
        first: int (E, N), the number of the one that fooled an image first; -1 where none did.
        rounded: bool (N,), whether the smallest perturbation fools in 8 bits too, if that was seen.
    """

    outcome: "Outcome"
    fooling: np.ndarray | None = None
    smallest: np.ndarray | None = None
    attacks: tuple[str, ...] = ()
    first: np.ndarray | None = None
    rounded: np.ndarray | None = None
