"""A training's parameters, and which of them a resumption may change."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, Literal

from resfool import checkpoints, costs
from resfool.arrayfiles import DamagedError
from resfool.costs import Cost, Data
from resfool.datasets.sets import TrainingData
from resfool.errors import InputError
from resfool.networks.shape import ARCHITECTURES, Layers, Shape, size
from resfool.parameters import Limits, Parameters, Precise, Seeded
from resfool.training.steps import Steps
from resfool.values import (
    NonNegativeFloat,
    show,
)
from resfool.wording import told

Judged = Literal["test", "validation"]  # the part of a data set that a training evaluates on

# Between a training and its resumption.
_MAY_CHANGE = ("data_dir", "checkpoint_seconds", *Limits.declared())


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

    def settled(self) -> dict[str, Any]:
        """All values by their names, those that say nothing of this architecture at defaults."""
        settled, kind = super().settled(), ARCHITECTURES[self.arch]
        if not (kind.stages and self.batch_norm):
            settled["batch_norm_statistics"] = "moving"
        unread = {"downsample", "gate_bias"}.difference(kind.takes)
        return settled | {name: getattr(Layers, name) for name in unread}

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
        _check_agrees(name, asked[name], stored.settled())
    changed = {name: value for name, value in asked.items() if name in _MAY_CHANGE}
    return replace(stored, **changed)


def check_same_training(facts: Mapping[str, Any], asked: TrainParameters, digest: str) -> None:
    """Refuse the facts of a checkpoint if a parameter or the data is another one than here."""
    stored, before = _stored_settings(facts), facts["dataset_digest"]
    for name, value in asked.settled().items():
        if name not in _MAY_CHANGE:
            _check_agrees(name, value, stored.settled())
    if before != digest:
        raise InputError(
            f"the data set {asked.dataset} has changed since the checkpoint: its digest was "
            f"{told(before, 16)} and is {digest}"
        )


def _stored_settings(facts: Mapping[str, Any]) -> TrainParameters:
    """The parameters in a checkpoint; one from before there was a parameter is as without it.

    Raises:
        DamagedError: they are none.
    """
    stored = {n: v for n, v in facts["settings"].items() if n in TrainParameters.declared()}
    stored.setdefault("batch_norm_statistics", "moving")
    try:
        return TrainParameters.recalled(stored)
    except InputError as error:
        raise DamagedError(f"it says that {error}") from error


def _check_agrees(name: str, given: Any, stored: Mapping[str, Any]) -> None:
    if given != stored[name]:
        before = show(stored[name])
        raise InputError(f"the run to resume has {name}={before}, not {name}={show(given)}")
