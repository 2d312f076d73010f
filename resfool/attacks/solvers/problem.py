"""What is to be solved, and what a solver answers."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import keras
import numpy as np

from resfool.attacks import balls
from resfool.attacks.balls import Bounds
from resfool.classifiers import inference
from resfool.monitor import Advance, quiet
from resfool.values import BallNorm


@dataclass(frozen=True)
class Problem:
    """What is to be solved, the same for every solver.

    Attributes:
        model: from images to logits.
        images: float32 (N, H, W, C) in [0, 1].
        logits: float32 (N, classes), of the model for them.
        classes: int64 (N,), that the model predicts.
        norm: in which perturbations shall be small.
        clip: keep perturbed images in [0, 1].
        batch_size: images per pass.
        progress: is told how many more images are solved.
        levels: that a pixel has above 0, if moved images shall be rounded: 255 for 8 bits.
    """

    model: keras.Model
    images: np.ndarray
    logits: np.ndarray
    classes: np.ndarray
    norm: BallNorm
    clip: bool
    batch_size: int
    progress: Advance
    levels: int | None = None

    @property
    def bounds(self) -> Bounds:
        """The least and the largest value that a pixel may have."""
        return balls.range_of_pixels(self.clip)

    @property
    def size(self) -> int:
        """Of a pass: the images in batches that are as even as can be."""
        return inference.even(len(self.images), self.batch_size)

    def picked(self, rows: np.ndarray | slice) -> "Problem":
        """The same for some of the images, by themselves; nobody is told of its progress."""
        own = {name: getattr(self, name)[rows] for name in ("images", "logits", "classes")}
        return replace(self, **own, progress=quiet)


@dataclass(frozen=True)
class Attempt:
    """A solver's answer, not yet checked: perturbations, evaluations and seconds as in Minimal."""

    perturbations: np.ndarray
    evaluations: np.ndarray
    seconds: np.ndarray

    @classmethod
    def joined(cls, parts: Sequence["Attempt"]) -> "Attempt":
        """Those of parts of the images, one after the other."""
        columns = zip(*(vars(part).values() for part in parts), strict=True)
        return cls(*map(np.concatenate, columns))

    @classmethod
    def of(cls, problem: Problem, ways: np.ndarray, passes: np.ndarray) -> "Attempt":
        """From perturbations (N, D) and evaluations; what they took isn't known yet."""
        return cls(ways.reshape(problem.images.shape), passes, np.zeros(len(passes)))
