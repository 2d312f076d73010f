"""Algorithm 1: a universal perturbation from pass to pass over the images."""

from collections.abc import Callable, Iterator

import keras
import numpy as np
import tensorflow as tf

from resfool.attacks import minimal
from resfool.attacks.solvers import Solver
from resfool.classifiers import inference
from resfool.classifiers.inference import BATCH_SIZE
from resfool.universal.vectors import Best, Fit, Report, classes_under, projected
from resfool.values import Norm

# From a model and images (N, H, W, C) to a small perturbation (N, H, W, C) of each that changes
# its predicted class, or zeros where none was found.
Solve = Callable[[keras.Model, np.ndarray], np.ndarray]
_LOOKS = 20  # at the fooling rate, in each pass of Algorithm 1


def algorithm1(
    model: keras.Model,
    images: np.ndarray,
    *,
    norm: Norm,
    solver: Solver | Solve = "closest",
    desired_rate: float = 0.8,
    passes: int = 6,
    group: int = 5,
    seed: int = 0,
    clip: bool = False,
    batch_size: int = BATCH_SIZE,
    report: Report = lambda number, rate: None,
) -> Fit:
    """Algorithm 1: add up smallest perturbations of images that the sum so far doesn't fool.

    The published algorithm solves for one image at a time. Here the next `group` unfooled images
    are solved together and their perturbations are added, which is faster by most of that factor;
    a group of 1 is the algorithm to the letter. After each addition the sum is projected on the
    ball (equation 7). The fooling rate goes up and down on the way, so it is measured 20 times in
    each pass, the best perturbation is kept, and the passes are capped.

    Args:
        model: from images to logits.
        images: float32 (N, H, W, C) in [0, 1], to fit on.
        norm: the ball, of kind l2 or linf.
        solver: of the inner problem: a name of `minimal`'s, or a function.
        desired_rate: 1 - delta: stop at this fooling rate on the fitting images.
        passes: over the images, at most.
        group: unfooled images per step.
        seed: of the order of the images, another one in each pass.
        clip: keep perturbed images in [0, 1].
        batch_size: images per pass through the model when rates are computed, at most.
        report: is told each pass and the best fooling rate in it.

    Source: Moosavi-Dezfooli et al., "Universal adversarial perturbations", arXiv:1610.08401.
    """
    solve = _named(solver, group) if isinstance(solver, str) else solver
    classify = inference.compiled(model, classes_under)
    random = np.random.default_rng(seed)
    clean = inference.predicted(inference.logits(model, images, batch_size))
    best = Best(model, images, clean, clip=clip, batch_size=batch_size)
    size = inference.even(len(images), batch_size)
    vector = np.zeros(images.shape[1:], np.float32)
    rates: list[float] = []

    def next_unfooled(waiting: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The next images that the sum doesn't fool, a group or less, and those behind them."""
        ahead = waiting[:size]
        batch = inference.filled(images[ahead], size)
        classes = classify(batch, tf.constant(vector), clip).numpy()[: len(ahead)]
        places = np.flatnonzero(classes == clean[ahead])
        if len(places) <= group:
            return ahead[places], waiting[len(ahead) :]
        return ahead[places[:group]], waiting[places[group - 1] + 1 :]

    def one_pass() -> Iterator[np.ndarray]:
        """The sum, now and then while the images go by, and at their end."""
        nonlocal vector
        waiting = random.permutation(len(images))
        while len(waiting):
            looked = len(waiting)
            while len(waiting) and len(waiting) > looked - len(images) / _LOOKS:
                unfooled, waiting = next_unfooled(waiting)
                if len(unfooled):
                    moved = images[unfooled] + vector
                    steps = solve(model, np.clip(moved, 0.0, 1.0) if clip else moved)
                    vector = projected(vector + steps.sum(axis=0), norm)
            yield vector

    for number in range(passes):
        rate = 0.0
        for met in one_pass():
            rate = max(rate, best.meet(met))
            if rate >= desired_rate:
                break
        rates.append(rate)
        report(number, rate)
        if rate >= desired_rate:
            break
    return Fit(best.vector, rates)


def _named(solver: Solver, group: int) -> Solve:
    def solve(model: keras.Model, images: np.ndarray) -> np.ndarray:
        rows = inference.padded(len(images), group)
        found = minimal.smallest_perturbations(
            model, images[rows], solver=solver, batch_size=group
        ).first(len(images))
        flipped = found.flipped.reshape(-1, 1, 1, 1)
        return np.where(flipped, found.perturbations, np.float32(0))

    return solve
