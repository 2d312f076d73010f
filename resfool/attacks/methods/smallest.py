"""The smallest perturbation of each image, in l2 or linf: what it says holds for every epsilon."""

from dataclasses import replace
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
from pydantic import Field

from resfool.attacks.methods.moving import Moved, Start
from resfool.attacks.solvers import Solved
from resfool.values import Whole

if TYPE_CHECKING:
    from resfool.attacks.methods.task import Answer, Task

_PASSES = 40  # that a solver takes for an image, or more


class SmallestOptions(Solved):
    """How smallest perturbations are found."""

    quantise: Annotated[
        Annotated[Whole, Field(ge=1, le=16)] | None,
        "bits to which smallest rounds the pixels of what it finds, such as 8; none rounds "
        "nothing.",
    ] = None


def smallest(start: Start, asked: Any) -> Moved:
    """Find the smallest perturbation of each image that is classified rightly, and its norm.

    An image is fooled at every epsilon from that norm on. So one solve gives the whole curve of the
    robust accuracy, not only its points at the epsilons.
    """
    from resfool.attacks.methods.pursuit import Pursuer, pursue
    from resfool.attacks.methods.task import Answer
    from resfool.attacks.minimal import smallest_perturbations

    norms = np.full(len(start.images), np.inf, np.float32)
    rounded = np.zeros(len(start.images), bool)

    def attack(task: "Task") -> "Answer":
        found = smallest_perturbations(
            task.model,
            task.images,
            solver=asked.solver,
            norm=task.norm,
            clip=task.clip,
            quantise=asked.quantise,
            batch_size=task.batch_size,
            progress=lambda count, text="", /: task.progress(_PASSES * count, text),
        )
        rows = np.searchsorted(start.numbers, task.numbers)  # the images of a block rise
        norms[rows], rounded[rows] = found.norms, found.rounded
        return Answer(task.images + found.perturbations, found.flipped)

    pursuer = Pursuer(asked.solver, attack, _PASSES, shortens=True)
    return replace(pursue(start, [pursuer], asked.ball), smallest=norms, rounded=rounded)


def passes(epsilons: int, asked: Any) -> int:
    """Of an image: a solve, however many epsilons there are, and a look before and after it."""
    return _PASSES + 2
