"""How a network is trained, step by step: the parameters, and the recipes that fill them in."""

import dataclasses
import warnings
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator

from resfool import paper
from resfool.declarations import GIVEN, Known, Needs
from resfool.errors import InputError, UselessWarning
from resfool.parameters import Parameters
from resfool.values import (
    Counts,
    Epsilon,
    Fraction,
    NonNegativeFloat,
    PositiveCount,
    PositiveFloat,
    Share,
    show,
    split_commas,
)

Optimizer = Literal["adam", "momentum", "muon", "nesterov", "sgd"]
Schedule = Literal["constant", "drop", "cosine", "onecycle"]
Adversarial = Literal["none", "fgsm"]
Statistics = Literal["moving", "precise"]

AUGMENTATIONS = ("off", "shift", "mirror", "cutout", "crop_flip")
Augment = Annotated[tuple[str, ...], BeforeValidator(split_commas), Known(AUGMENTATIONS)]

_WARMUP = {"onecycle": 0.25}  # share of the steps, where nothing else is asked for


@dataclass(frozen=True)
class Rules:
    """All that a recipe settles.

    Attributes:
        optimizer: that takes the gradients.
        learning_rate: its step size, the largest that the schedule comes to.
        schedule: how the rate goes with the steps.
        weight_decay: decoupled, of the kernels, at the largest rate.
        label_smoothing: share of the label's weight that is spread over all classes.
        ema: decay of the averaged weights; 0 keeps none.
        augment: what is done to the images of a batch.
        batch_norm_statistics: by which batch normalisation acts where the network is judged.
    """

    optimizer: Optimizer = "adam"
    learning_rate: float = paper.LEARNING_RATE
    schedule: Schedule = "constant"
    weight_decay: float = 0.0
    label_smoothing: float = 0.0
    ema: float = 0.0
    augment: tuple[str, ...] = ("off",)
    batch_norm_statistics: Statistics = "precise"


# One rise and fall of the rate after Smith & Topin (arXiv:1708.07120), averaged weights after
# Polyak & Juditsky (1992), smoothed labels after Szegedy et al. (arXiv:1512.00567).
RECIPES: dict[str, Rules] = {
    "paper": Rules(),
    "modern": Rules(
        optimizer="muon",
        learning_rate=0.005,
        schedule="onecycle",
        weight_decay=0.1,
        label_smoothing=0.1,
        ema=0.99,
        augment=("shift", "mirror"),
    ),
}


def _of_recipes(name: str) -> str:
    """What a parameter is where it isn't given, for its text."""
    values = (f"{show(getattr(rules, name))} ({recipe})" for recipe, rules in RECIPES.items())
    return f"none is the recipe's, {', '.join(values)}."


class Steps(Parameters):
    """How a network is trained, step by step."""

    recipe: Annotated[
        str,
        Known(RECIPES),
        "paper, or modern, which is today's way; it settles what is none below.",
    ] = "paper"
    steps: Annotated[PositiveCount, "training steps."] = paper.STEPS
    batch_size: Annotated[
        PositiveCount, "images per step, drawn at random from the training set."
    ] = paper.BATCH_SIZE
    optimizer: Annotated[
        Optimizer | None,
        f"adam, momentum (0.9), nesterov (0.9), muon or sgd; {_of_recipes('optimizer')}",
    ] = None
    learning_rate: Annotated[
        PositiveFloat | None,
        f"step size of the optimizer, the largest of a schedule; {_of_recipes('learning_rate')}",
    ] = None
    schedule: Annotated[
        Schedule | None,
        "how the rate goes: constant, drop (by lr_drop), cosine (down to 0) or onecycle (up from "
        f"0 and down to it); {_of_recipes('schedule')}",
    ] = None
    lr_drop: Annotated[
        Counts | None,
        Needs(schedule=("drop",)),
        "steps after which the rate is divided by 10, such as 32000; several, comma separated; "
        "schedule is drop then.",
    ] = None
    warmup: Annotated[
        Fraction | None,
        Needs(schedule=("cosine", "onecycle")),
        "share of the steps in which the rate rises, from 0 to below 1; none is 0.25 of onecycle "
        "and 0 of cosine.",
    ] = None
    weight_decay: Annotated[
        NonNegativeFloat | None, f"decoupled decay of the kernels; {_of_recipes('weight_decay')}"
    ] = None
    label_smoothing: Annotated[
        Fraction | None,
        "share of a label's weight that is spread over all classes, from 0 to below 1; "
        f"{_of_recipes('label_smoothing')}",
    ] = None
    ema: Annotated[
        Fraction | None,
        "decay of a moving average of the weights, which is what is judged and saved, such as "
        f"0.99; 0 is without; {_of_recipes('ema')}",
    ] = None
    augment: Annotated[
        Augment | None,
        "what happens to training images at random: shift by up to 4 pixels, mirror, cutout of a "
        "square, crop_flip for shift,mirror, or off; several, comma separated; "
        f"{_of_recipes('augment')}",
    ] = None
    batch_norm_statistics: Annotated[
        Statistics | None,
        Needs(batch_norm=(True,)),
        "by which batch normalisation acts where the network is judged, and in the saved model: "
        "moving averages over the steps, or precise ones of 2,500 training images with the "
        "weights as they are; none is precise, but moving with adversarial.",
    ] = None
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

    def check(self) -> None:
        """Refuse a schedule without its numbers, too."""
        super().check()
        schedule = self.rules.schedule
        if schedule == "drop" and not self.lr_drop:
            raise InputError(
                "schedule=drop needs lr_drop, the steps after which the rate is divided by 10, "
                "such as lr_drop=32000"
            )
        if schedule == "onecycle" and not self.rising:
            raise InputError(
                "schedule=onecycle needs a rise: warmup=0.0 has none, and such as 0.25 is allowed; "
                "schedule=cosine goes without"
            )
        if len(self.rules.augment) > 1 and "off" in self.rules.augment:
            raise InputError(f"augment={show(self.augment)} says off and more; leave one out")

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

    @property
    def rules(self) -> Rules:
        """The recipe's, but for what was given."""
        of_recipe = RECIPES[self.recipe]
        names = [field.name for field in dataclasses.fields(Rules)]
        given = {n: value for n in names if (value := getattr(self, n)) is not None}
        if self.lr_drop and self.schedule is None:
            given["schedule"] = "drop"
        if self.adversarial != "none":  # moving averages meet the images of both kinds
            given.setdefault("batch_norm_statistics", "moving")
        return dataclasses.replace(of_recipe, **given)

    @property
    def rising(self) -> float:
        """Share of the steps in which the rate rises."""
        usual = _WARMUP.get(self.rules.schedule, 0.0)
        return usual if self.warmup is None else self.warmup

    def settled(self) -> dict[str, Any]:
        """All values by their names, what the recipe settles filled in."""
        return {**super().settled(), **vars(self.rules), "warmup": self.rising}
