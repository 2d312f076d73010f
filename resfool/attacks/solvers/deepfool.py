"""DeepFool: steps to the nearest linearised boundary, each from where the last one ended."""

from typing import Any

import keras
import numpy as np
import tensorflow as tf

from resfool.attacks import balls
from resfool.attacks.solvers.batches import (
    differ,
    gaps_and_slopes,
    in_batches,
    inside,
    logit_gradients,
    moved,
    nearest_boundary,
)
from resfool.attacks.solvers.problem import Attempt, Problem
from resfool.classifiers import inference
from resfool.values import BallNorm


def deepfool(
    problem: Problem, *, candidates: int, overshoot: float = 0.02, steps: int = 50
) -> Attempt:
    """Steps to the nearest linearised boundary, each from where the last one ended.

    Source: Moosavi-Dezfooli, Fawzi, Frossard, "DeepFool: a simple and accurate method to fool deep
    neural networks", arXiv:1511.04599, algorithm 2, and section 3.3 for the other norm. An image
    that has flipped is left out of the steps that follow.

    Args:
        problem: what is to be solved, in either norm.
        candidates: classes to look at.
        overshoot: by how much the way is lengthened, so that it crosses the boundary.
        steps: at most.
    """

    def solved(part: Problem) -> Attempt:
        images, logits = part.images, part.logits
        top = np.argsort(-logits, axis=1, kind="stable")[:, :candidates].astype(np.int32)
        ways = np.zeros((len(images), images[0].size), np.float32)
        passes = np.zeros(len(images), np.int64)
        going = np.arange(len(images))
        for _ in range(steps):
            if len(going):
                ways[going], flipped = inference.rowwise(
                    part.model,
                    _stepped,
                    (images[going], ways[going], top[going]),
                    overshoot,
                    part.norm,
                    part.clip,
                    batch_size=part.size,
                )
                passes[going] += 2 + candidates
                going = going[~flipped]
        return Attempt.of(part, ways, passes)

    return in_batches(problem, solved)


def _stepped(
    model: keras.Model,
    images: Any,
    ways: Any,
    top: Any,
    overshoot: float,
    norm: BallNorm,
    clip: bool,
) -> tuple[Any, Any]:
    gaps, slopes = gaps_and_slopes(*logit_gradients(model, moved(images, ways), top))
    gap, slope = nearest_boundary(gaps, slopes, norm)
    # The 1e-4 is the authors': it gets the last step across.
    step = balls.shortest(slope, tf.abs(gap) + 1e-4, norm)
    longer = inside(images, ways + (1 + overshoot) * step, clip)
    return longer, differ(model(moved(images, longer), training=False), top[:, 0])
