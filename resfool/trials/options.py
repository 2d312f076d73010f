"""What a sweep and a tuning may be asked for."""

import os
from typing import Annotated, Literal

from pydantic import BeforeValidator

from resfool.errors import InputError
from resfool.networks.shape import ARCHITECTURES, Shape
from resfool.parameters import Known, Parameters, Seeded, Seeds, Workers
from resfool.training.recipe import Recipe, TrainParameters
from resfool.values import (
    Counts,
    Fraction,
    Names,
    NonNegativeFloat,
    PositiveCount,
    listed,
    split_commas,
)

Archs = Annotated[tuple[str, ...], BeforeValidator(split_commas), Known(ARCHITECTURES)]
Sampler = Literal["tpe", "random"]
Pruner = Literal["median", "halving", "none"]


class Room(Parameters):
    """What each training may take."""

    cpus_per_trial: Annotated[PositiveCount, "cores of each training, which are its threads."] = 1
    gpus_per_trial: Annotated[NonNegativeFloat, "GPUs of each training, on ray."] = 0.0


class SweepParameters(Seeds, Workers, Room, Recipe):
    """Train every architecture at every depth with every seed, as parts of one run."""

    arch: Annotated[Archs, f"{listed(ARCHITECTURES)}; several, comma separated."]
    depth: Annotated[
        Counts | None,
        "3x3 convolutions of the five stages, a multiple of 5; none is 10 (mlp: hidden layers, "
        "none is 5); several, comma separated.",
    ] = None

    def training(self, arch: str, depth: int | None, seed: int) -> TrainParameters:
        """One training of the grid."""
        own = {"arch": arch, "depth": depth, "seed": seed}
        return TrainParameters(**self.shared(TrainParameters) | own)


class TuneParameters(Shape, Seeded, Workers, Room, Recipe):
    """Search for the settings of an architecture that do best on validation images."""

    trials: Annotated[PositiveCount, "trainings that end, finished or pruned."] = 50
    search: Annotated[
        Names | None,
        "settings to search: learning_rate, weight_decay, dropout, gate_bias, width, depth, "
        "optimizer, batch_size; none is all that the architecture has and that aren't given.",
    ] = None
    sampler: Annotated[Sampler, "tpe, which learns from earlier trials, or random."] = "tpe"
    pruner: Annotated[Pruner, "median or halving stop early what does badly; none doesn't."] = (
        "median"
    )
    validation_share: Annotated[
        Fraction, "share of the training images that is set aside to choose by."
    ] = 0.1
    storage: Annotated[
        str | None,
        "database of the search, an SQLAlchemy URL; none is that of the environment variable "
        "RESFOOL_STORAGE, where a password belongs, or sqlite:///tuning.db.",
    ] = None

    def check(self) -> None:
        """Refuse a search that has nothing to choose by."""
        super().check()
        if not self.validation_share:
            raise InputError(
                "validation_share=0.0 leaves no images to choose by; give it such as 0.1"
            )

    @property
    def database(self) -> str:
        """The URL of the search's database."""
        given = os.environ.get("RESFOOL_STORAGE") if self.storage is None else self.storage
        return "sqlite:///tuning.db" if given is None else given

    @property
    def training(self) -> TrainParameters:
        """What every trial has in common, where nothing is searched."""
        own = self.shared(TrainParameters)
        if "eval_every" not in self.given():
            own["eval_every"] = max(1, self.steps // 10)
        return TrainParameters(**own)
