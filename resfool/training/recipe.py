"""A training's parameters, and which of them a resumption may change."""

import warnings
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, Literal

from resfool import checkpoints, costs, paper
from resfool.arrayfiles import DamagedError
from resfool.costs import Cost, Data
from resfool.datasets.sets import TrainingData
from resfool.declarations import GIVEN, Needs
from resfool.errors import InputError, UselessWarning
from resfool.networks.shape import Layers, Shape, size
from resfool.parameters import Limits, Parameters, Precise, Seeded
from resfool.values import (
    Counts,
    Epsilon,
    NonNegativeFloat,
    PositiveCount,
    PositiveFloat,
    Share,
    show,
)
from resfool.wording import told

Optimizer = Literal["adam", "momentum", "sgd"]
Augment = Literal["none", "crop_flip"]
Adversarial = Literal["none", "fgsm"]
Judged = Literal["test", "validation"]  # the part of a data set that a training evaluates on

# Between a training and its resumption.
_MAY_CHANGE = ("data_dir", "checkpoint_seconds", *Limits.declared())


class Steps(Parameters):
    """How a network is trained, step by step."""

    weight_decay: Annotated[NonNegativeFloat, "decoupled decay of the kernels."] = 0.0
    steps: Annotated[PositiveCount, "training steps."] = paper.STEPS
    batch_size: Annotated[
        PositiveCount, "images per step, drawn at random from the training set."
    ] = paper.BATCH_SIZE
    learning_rate: Annotated[PositiveFloat, "step size of the optimizer."] = paper.LEARNING_RATE
    optimizer: Annotated[Optimizer, "adam, momentum (0.9) or sgd."] = "adam"
    lr_drop: Annotated[
        Counts | None,
        "steps after which the rate is divided by 10, such as 32000; several, comma separated.",
    ] = None
    augment: Annotated[
        Augment, "none, or crop_flip for random shifts by up to 4 pixels and mirror images."
    ] = "none"
    adversarial: Annotated[
        Adversarial,
        "none, or fgsm to mix the loss on fast-gradient examples of each batch into the training "
        "loss.",
    ] = "none"
    adversarial_epsilon: Annotated[
        Epsilon,
        Needs(adversarial=("fgsm",), adversarial_weight=GIVEN),
        "the most that such an example changes a pixel by, where pixels go from 0 to 1.",
    ] = 8 / 255
    adversarial_weight: Annotated[
        Share, Needs(adversarial=("fgsm",)), "share of the loss on such examples, from 0 to 1."
    ] = 0.5
    eval_every: Annotated[PositiveCount, "steps between two evaluations."] = 1000

    def check_effects(self) -> None:
        """Say too which drops of the rate come too late, as where a command is tried briefly."""
        super().check_effects()
        late = tuple(step for step in self.lr_drop or () if step >= self.steps)
        if late:
            warnings.warn(
                f"lr_drop={show(late)} has no effect with steps={self.steps}",
                UselessWarning,
                stacklevel=2,
            )


class Recipe(Layers, Steps, TrainingData, Precise):
    """What trainings that are made together have in common."""


class Saving(Parameters):
    """How often a training is saved."""

    checkpoint_seconds: Annotated[NonNegativeFloat, "seconds between two checkpoints."] = 30.0


class TrainParameters(Shape, Recipe, Seeded, Saving):
    """Train one of the paper's architectures (sections III to V)."""

    def check(self) -> None:
        """Refuse a shape that no network can have, too."""
        super().check()
        _ = self.network

    def cost(self, data: Data) -> Cost:
        """Two models and a gradient, what the layers leave for it, and the steps."""
        data = self.sized(data)
        network = size(self.network, data.pixels)
        of_value = 2 if self.precision == "bfloat16" else 4
        memory = 3 * 4 * network.weights + of_value * self.batch_size * network.outputs
        passes = 3 * self.batch_size * network.multiplications / costs.RATE
        return Cost(costs.START + self.steps * max(costs.STEP, passes), memory)


def resumed(given: TrainParameters, checkpoint: Path) -> TrainParameters:
    """The parameters of a training that is to be resumed.

    One at its default is taken from the checkpoint; any other must agree with it. `arch` has no
    default, so it must always agree. Where the data lies and how often to save may change.

    Args:
        given: with the order to resume.
        checkpoint: the file that the training left.

    Returns:
        The stored parameters.

    Raises:
        InputError: one contradicts the checkpoint, or the checkpoint can't be read.
    """
    facts = checkpoints.load(checkpoint)[1]
    with checkpoints.reading(checkpoint):
        stored = _stored_settings(facts)
    asked = given.given()
    for name in asked.keys() - set(_MAY_CHANGE):
        _check_agrees(name, asked[name], stored)
    changed = {name: value for name, value in asked.items() if name in _MAY_CHANGE}
    return replace(stored, **changed)


def check_same_training(facts: Mapping[str, Any], asked: TrainParameters, digest: str) -> None:
    """Refuse the facts of a checkpoint if a parameter or the data is another one than here."""
    stored, before = _stored_settings(facts), facts["dataset_digest"]
    for name, value in asked.settings().items():
        if name not in _MAY_CHANGE:
            _check_agrees(name, value, stored)
    if before != digest:
        raise InputError(
            f"the data set {asked.dataset} has changed since the checkpoint: its digest was "
            f"{told(before, 16)} and is {digest}"
        )


def _stored_settings(facts: Mapping[str, Any]) -> TrainParameters:
    """The parameters in a checkpoint; one from before there was a parameter is at its default.

    Raises:
        DamagedError: they are none.
    """
    stored = {n: v for n, v in facts["settings"].items() if n in TrainParameters.declared()}
    try:
        return TrainParameters.recalled(stored)
    except InputError as error:
        raise DamagedError(f"it says that {error}") from error


def _check_agrees(name: str, given: Any, stored: TrainParameters) -> None:
    before = getattr(stored, name)
    if given != before:
        raise InputError(f"the run to resume has {name}={show(before)}, not {name}={show(given)}")
