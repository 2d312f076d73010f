"""How gradients become steps of an ascent."""

from collections.abc import Callable

import numpy as np

from resfool.attacks import lowrank
from resfool.values import Norm, NormKind

_MOMENTUM = 0.8
LONGEST = 1 / (1 - _MOMENTUM)  # the norm of endless equal steps of norm 1, added up
_MEAN, _SQUARE = 0.9, 0.999  # Adam's decays of the mean of gradients, and of their squares
_TINY = 1e-12  # that Adam divides by at least; gradients of one image in many are small

Direction = Callable[[np.ndarray], np.ndarray]
Update = Callable[[np.ndarray], np.ndarray]  # from a gradient (H, W, C) to a step, with a memory


def steepest(kind: NormKind) -> Direction:
    """The step of norm 1 along which a function with this gradient rises most."""

    def unit(slope: np.ndarray) -> np.ndarray:
        return lowrank.aligned(slope[np.newaxis], Norm(kind, 1.0))[0]

    return unit


def momentum(direction: Direction) -> Update:
    """Steps along each gradient, added up; older ones count less."""
    velocity: np.ndarray | None = None

    def step(slope: np.ndarray) -> np.ndarray:
        nonlocal velocity
        before = np.zeros_like(slope) if velocity is None else velocity
        velocity = _MOMENTUM * before + direction(slope)
        return velocity

    return step


def sign(kind: NormKind) -> Update:
    """The sign of each gradient, as long as the longest step with momentum."""

    def step(slope: np.ndarray) -> np.ndarray:
        return np.sign(slope) * _length(slope, kind)

    return step


def adam(kind: NormKind) -> Update:
    """Adam's step, about as long as a step along the sign.

    Source: Kingma & Ba, arXiv:1412.6980, Algorithm 1.
    """
    mean: np.ndarray | float = 0.0
    square: np.ndarray | float = 0.0
    steps = 0

    def step(slope: np.ndarray) -> np.ndarray:
        nonlocal mean, square, steps
        steps += 1
        mean = _MEAN * mean + (1 - _MEAN) * slope
        square = _SQUARE * square + (1 - _SQUARE) * slope**2
        root = np.sqrt(square / (1 - _SQUARE**steps))
        return mean / (1 - _MEAN**steps) / np.maximum(root, _TINY) * _length(slope, kind)

    return step


def _length(slope: np.ndarray, kind: NormKind) -> np.float32:
    """The entries of a step of equal ones whose norm is LONGEST."""
    ones = 1.0 if kind == "linf" else slope.size**0.5
    return np.float32(LONGEST / ones)


def update(name: str, kind: NormKind) -> Update:
    """A fresh one of `options.UpdateRule`, for a ball of a kind of norm."""
    return {
        "sign": lambda: sign(kind),
        "momentum": lambda: momentum(steepest(kind)),
        "adam": lambda: adam(kind),
    }[name]()
