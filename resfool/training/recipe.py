"""A training's parameters, and which of them a resumption may change."""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from resfool import checkpoints, paper
from resfool.datasets.sets import TrainingData
from resfool.errors import InputError
from resfool.networks.shape import Layers, Shape
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
        Epsilon, "the most that such an example changes a pixel by, where pixels go from 0 to 1."
    ] = 8 / 255
    adversarial_weight: Annotated[Share, "share of the loss on such examples, from 0 to 1."] = 0.5
    eval_every: Annotated[PositiveCount, "steps between two evaluations."] = 1000

    def check(self) -> None:
        """Refuse options of fast-gradient examples where there are none."""
        super().check()
        for name in ("adversarial_epsilon", "adversarial_weight"):
            if self.adversarial == "none" and name in self.given():
                raise InputError(f"{name}={show(getattr(self, name))} needs adversarial=fgsm")


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
    stored = checkpoints.load(checkpoint)[1]["settings"]
    asked = given.given()
    for name in asked.keys() - set(_MAY_CHANGE):
        _check_agrees(name, asked[name], stored)
    changed = {name: value for name, value in asked.items() if name in _MAY_CHANGE}
    known = {name: value for name, value in stored.items() if name in TrainParameters.declared()}
    return TrainParameters.of(known | changed)


def check_same_training(stored: Mapping[str, Any], asked: TrainParameters, digest: str) -> None:
    """Refuse the facts of a checkpoint if a parameter or the data is another one than here."""
    for name, value in asked.settings().items():
        if name not in _MAY_CHANGE:
            _check_agrees(name, value, stored["settings"])
    if stored["dataset_digest"] != digest:
        raise InputError(
            f"the data set {asked.dataset} has changed since the checkpoint: its digest was "
            f"{stored['dataset_digest']} and is {digest}"
        )


def _check_agrees(name: str, given: Any, stored: Mapping[str, Any]) -> None:
    # A checkpoint from before there was this parameter was trained as its default does.
    before = stored.get(name, TrainParameters.declared()[name].default)
    given, before = (tuple(v) if isinstance(v, list) else v for v in (given, before))
    if given != before:
        raise InputError(f"the run to resume has {name}={show(before)}, not {name}={show(given)}")
