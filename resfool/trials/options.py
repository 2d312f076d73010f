"""What a sweep and a tuning may be asked for."""

import itertools
import os
from typing import Annotated, Literal

from pydantic import BeforeValidator

from resfool import costs
from resfool.costs import Cost, Data
from resfool.declarations import Known, Needs
from resfool.errors import InputError
from resfool.networks.shape import ARCHITECTURES, Shape
from resfool.parameters import Parameters, Seeded, Seeds, Workers, check_gpus
from resfool.training.recipe import Recipe, TrainParameters
from resfool.values import (
    CoreCount,
    Counts,
    Fraction,
    Names,
    NonNegativeFloat,
    PositiveCount,
    listed,
    show,
    split_commas,
)

Archs = Annotated[tuple[str, ...], BeforeValidator(split_commas), Known(ARCHITECTURES)]
_LOOK = 1e-6  # seconds that a sampler spends on an earlier trial

Sampler = Literal["tpe", "random"]
Pruner = Literal["median", "halving", "none"]


class Room(Parameters):
    """What each training may take."""

    cpus_per_trial: Annotated[CoreCount, "cores of each training, which are its threads."] = 1
    gpus_per_trial: Annotated[
        NonNegativeFloat, Needs(backend=("ray",)), "GPUs of each training, on ray."
    ] = 0.0

    def check(self) -> None:
        """Refuse parts of GPUs that Ray doesn't deal out."""
        super().check()
        check_gpus("gpus_per_trial", self.gpus_per_trial)


class SweepParameters(Seeds, Workers, Room, Recipe):
    """Train every architecture at every depth with every seed, as parts of one run."""

    arch: Annotated[Archs, f"{listed(ARCHITECTURES)}; several, comma separated."]
    depth: Annotated[
        Counts | None,
        "3x3 convolutions of the five stages, a multiple of 5; none is 10 (mlp: hidden layers, "
        "none is 5); several, comma separated.",
    ] = None

    def check(self) -> None:
        """Refuse a grid that has a network twice."""
        super().check()
        places = itertools.product(self.arch, self.depth or (None,))
        networks = [self.training(*place, seed=0).network.name for place in places]
        if len(set(networks)) < len(networks):
            raise InputError(
                f"arch={show(self.arch)} and depth={show(self.depth)} name a network twice"
            )

    def training(self, arch: str, depth: int | None, seed: int) -> TrainParameters:
        """One training of the grid."""
        own = {"arch": arch, "depth": depth, "seed": seed}
        return TrainParameters(**self.shared(TrainParameters) | own)

    def cost(self, data: Data) -> Cost:
        """All trainings, on as many workers as there may be."""
        depths = dict.fromkeys(self.depth or (None,))
        each = [self.training(arch, n, 0).cost(data) for arch in self.arch for n in depths]
        tasks = self.seeds * len(each)
        seconds = self.seeds * sum(one.seconds for one in each) / self.at_once(tasks)
        memory = self.memory_of(tasks, max(one.memory for one in each))
        return Cost(seconds, memory + costs.ENTRY * tasks)


class TuneParameters(Shape, Seeded, Workers, Room, Recipe):
    """Search for the settings of an architecture that do best on validation images."""

    trials: Annotated[PositiveCount, "trainings that end, finished or pruned."] = 50
    search: Annotated[
        Names | None,
        "settings to search: learning_rate, weight_decay, dropout, gate_bias, width, depth, "
        "optimizer, batch_size, schedule, label_smoothing, ema, augment; none is all that the "
        "architecture has and that aren't given.",
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

    def cost(self, data: Data) -> Cost:
        """Trials that are pruned at once, before each of which a sampler looks at all others."""
        looks = _LOOK * self.trials**2 / 2
        seconds = costs.START * self.trials / self.at_once(self.trials) + looks
        memory = self.memory_of(self.trials, self.training.cost(data).memory)
        return Cost(seconds, memory + costs.ENTRY * self.trials)
