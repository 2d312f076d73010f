"""What each row of `ALGORITHMS` does with an experiment's work."""

from typing import Any

import numpy as np

from resfool.universal import ascent, iterated, matrices, solving
from resfool.universal.fitting import Fit, Report, Work
from resfool.universal.matrices import Matrix
from resfool.universal.vectors import random_vectors


def fit_algorithm1(work: Work) -> Fit:
    """Smallest perturbations, added up from image to image."""
    asked = work.asked
    return iterated.algorithm1(
        work.model,
        work.fitting.images,
        solver=asked.solver,
        desired_rate=asked.desired_rate,
        **_in_passes(work),
    )


def fit_gradient(work: Work) -> Fit:
    """Stochastic gradient ascent."""
    return ascent.gradient_trained(work.model, work.fitting.images, **_in_passes(work))


def _in_passes(work: Work) -> dict[str, Any]:
    asked = work.asked
    return {
        "norm": asked.norm,
        "passes": asked.most_passes,
        "seed": asked.seed,
        "batch_size": asked.batch_size,
        "report": _report(work),
    }


def _report(work: Work) -> Report:
    advance = work.monitor.counter(work.asked.most_passes)

    def report(number: int, rate: float) -> None:
        work.monitor.point({"step": number + 1, "fitting_fooling_rate": rate})
        advance(1, f"fooled {rate:.3f} of the fitting images")

    return report


def fit_random(work: Work) -> Fit:
    """Noise, whatever the model and the images are."""
    norm = work.asked.norm
    shape = work.fitting.images.shape[1:]
    (vector,) = random_vectors(shape, np.array([norm.size]), norm.kind, work.asked.seed)
    return Fit(vector, [])


def fit_algorithm2(work: Work) -> Matrix:
    """The smallest perturbation of each image."""
    return matrices.matrix_of_solved(solving.solved_perturbations(work))


def fit_algorithm3(work: Work) -> Matrix:
    """A step along the sign of each image's gradient."""
    asked = work.asked
    return matrices.sign_matrix(
        work.model,
        work.fitting.images,
        _labels(work),
        asked.epsilon,
        batch_size=asked.batch_size,
    )


def fit_algorithm4(work: Work) -> Matrix:
    """The shortest such step of each image that changes its class."""
    return matrices.smallest_sign_matrix(
        work.model, work.fitting.images, _labels(work), batch_size=work.asked.batch_size
    )


def _labels(work: Work) -> np.ndarray | None:
    """Those whose loss is raised; None are the model's own predictions."""
    return work.fitting.labels if work.asked.label_source == "true" else None
