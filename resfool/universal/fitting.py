"""What fits a universal perturbation works on and leaves, and how its best is kept."""

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np

from resfool.datasets.sets import Split
from resfool.monitor import Monitor
from resfool.universal.options import UniversalParameters
from resfool.universal.vectors import applied

Report = Callable[[int, float], None]  # is told a pass and the fooling rate after it


@dataclass(frozen=True)
class Work:
    """What every part of the experiment needs.

    Attributes:
        model: from images to logits.
        fitting: the images to fit on, with their labels.
        held_out: float32 (M, H, W, C), the images to judge on.
        asked: the experiment's parameters.
        identity: of the model, for what is kept to be used again.
        monitor: is told how it goes.
        map: runs images in workers, if there are any.
    """

    model: keras.Model
    fitting: Split
    held_out: np.ndarray
    asked: UniversalParameters
    identity: dict[str, Any]
    monitor: Monitor
    map: Callable[..., list[Any]] | None


@dataclass(frozen=True)
class Fit:
    """A universal perturbation that needed no matrix.

    Attributes:
        vector: float32 (H, W, C), the best of all passes over the images, if it took any.
        rates: the best fooling rate on the fitting images that was met in each pass.
    """

    vector: np.ndarray
    rates: list[float]


class Best:
    """The best of the perturbations that it meets, by the fooling rate on the fitting images."""

    def __init__(self, model: keras.Model, images: np.ndarray, clip: bool) -> None:
        self._apply = functools.partial(applied, model, images, clip=clip)
        self._rate = 0.0
        self.vector = np.zeros(images.shape[1:], np.float32)

    def meet(self, vector: np.ndarray) -> float:
        rate = float(self._apply(vector[np.newaxis]).rates[0])
        if rate > self._rate:
            self._rate, self.vector = rate, vector
        return rate


def no_report(number: int, rate: float) -> None:
    """A `Report` that tells nobody."""
