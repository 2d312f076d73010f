"""What fits a universal perturbation in passes over the images leaves, and how its best is kept."""

import functools
from collections.abc import Callable
from dataclasses import dataclass

import keras
import numpy as np

from resfool.universal.vectors import judged

Report = Callable[[int, float], None]  # is told a pass and the fooling rate after it


@dataclass(frozen=True)
class Fit:
    """A universal perturbation that was fitted in passes over the images.

    Attributes:
        vector: float32 (H, W, C), the best of all passes.
        rates: the best fooling rate on the fitting images that was met in each pass.
    """

    vector: np.ndarray
    rates: list[float]


class Best:
    """The best of the perturbations that it meets, by the fooling rate on the fitting images."""

    def __init__(self, model: keras.Model, images: np.ndarray, clip: bool) -> None:
        self._judge = functools.partial(judged, model, images, clip=clip)
        self._rate = 0.0
        self.vector = np.zeros(images.shape[1:], np.float32)

    def meet(self, vector: np.ndarray) -> float:
        rate = float(self._judge(vector[np.newaxis]).rates[0])
        if rate > self._rate:
            self._rate, self.vector = rate, vector
        return rate


def quiet(number: int, rate: float) -> None:
    pass
