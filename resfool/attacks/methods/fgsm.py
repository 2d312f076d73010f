"""The fast gradient sign (equation 5): one step along the sign of the gradient."""

from typing import Any

import numpy as np

from resfool.attacks.methods.moving import Moved, Start


def fgsm(start: Start, asked: Any) -> Moved:
    """Move every image along the sign of its gradient, which is taken once for all epsilons.

    Source: paper section VI; Goodfellow, Shlens, Szegedy, "Explaining and harnessing adversarial
    examples", arXiv:1412.6572.
    """
    from resfool.attacks import gradient

    outcome = gradient.along(
        start.model,
        start.images,
        start.first.signs,
        start.epsilons,
        progress=start.passes(len(start.epsilons)),
        **start.options,
    )
    return Moved(outcome)


def moved_at(start: Start, asked: Any, epsilon: float) -> np.ndarray:
    """The images at an epsilon, float32 (N, H, W, C)."""
    from resfool.attacks import gradient

    return gradient.perturbed(start.images, start.first.signs, epsilon, clip=start.clip)


def passes(epsilons: int, asked: Any) -> int:
    """Of an image: one for each epsilon."""
    return epsilons
