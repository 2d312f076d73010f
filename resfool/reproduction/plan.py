"""Which runs each of the paper's tables and figures needs."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Annotated, Any

from resfool import costs, paper
from resfool.attacks.options import AttackParameters
from resfool.costs import Cost, Data
from resfool.declarations import Known, Needs, without_effect
from resfool.networks.shape import ARCHITECTURES
from resfool.parameters import Crew, DataPlace, Limits, Precise, Seeds
from resfool.training.recipe import TrainParameters
from resfool.universal.options import UniversalParameters
from resfool.values import Names, show

Asked = TrainParameters | AttackParameters | UniversalParameters
Settings = Mapping[str, Any]  # some parameters of an experiment by their names
Label = tuple[str | int, ...]
ARCHS = ("convnet", "resnet", "highway", "multiresnet")
DEEP = (25, 50)
FOOLED = ("resnet", "multiresnet", "convnet")  # of Figure 11, with 10 layers
READINGS = "readings"  # a target of ours: what the paper leaves open
TARGETS = (*paper.RESULTS, READINGS)


@dataclass(frozen=True)
class Experiment:
    """A kind of runs that results are made of."""

    parameters: type[Asked]
    last_metric: str  # that only a whole run has
    words: str = ""  # what it does to a trained network, for people
    passes: int = 0  # forward passes of each image through that network, roughly


EXPERIMENTS = {
    "train": Experiment(TrainParameters, "final_train_loss"),
    # Two passes for each epsilon, the gradient, bisection.
    "attack": Experiment(AttackParameters, "clean_accuracy", "attack on", 60),
    # The smallest perturbation, and judging every rank.
    "universal": Experiment(
        UniversalParameters, "final_fooling_rate", "universal perturbation of", 300
    ),
}

# How the paper's networks are read here, where not as `-e train` builds them: of stride and pool,
# this is nearer to its figures (docs/results.md). A MultiResNet pools in any case.
_READ_AS: dict[str, Settings] = {
    arch: {"downsample": "pool"} for arch in ARCHS if "downsample" in ARCHITECTURES[arch].takes
}

# Other ways to read the paper: architecture and depth that each is tried on, and what is other than
# in ours. The paper's 50-layer ConvNet hardly learns, as one without normalisation might.
TRIED_READINGS: tuple[tuple[str, int, dict[str, Any]], ...] = (
    ("resnet", 10, {}),
    ("resnet", 10, {"downsample": "stride"}),
    ("resnet", 10, {"augment": "crop_flip"}),
    ("resnet", 10, {"convs_per_unit": 2}),
    ("resnet", 10, {"optimizer": "momentum"}),
    ("resnet", 10, {"optimizer": "sgd"}),
    *((arch, 25, change) for arch in _READ_AS for change in ({}, {"downsample": "stride"})),
    ("highway", 10, {}),
    ("highway", 10, {"downsample": "stride"}),
    ("convnet", 10, {}),
    ("convnet", 10, {"downsample": "stride"}),
    ("convnet", 10, {"batch_norm": False}),
    ("convnet", 50, {}),
    ("convnet", 50, {"batch_norm": False}),
)


def training_label(arch: str, depth: int, change: Mapping[str, Any]) -> Label:
    """What a training of 10,000 steps is known by; `change` is what differs from our reading."""
    words = tuple(f"{name}={show(value)}" for name, value in change.items())
    return ("reading" if change else "short", arch, depth, *words)


@dataclass(frozen=True)
class Scale:
    """How large a reproduction is."""

    networks: Settings  # data and width of the convolutional networks
    steps: int  # of the trainings of Table I
    long_steps: int  # of those of Table II
    long_drop: int  # steps after which those divide the rate by 10
    eval_every: int  # steps between two evaluations of those networks
    digits: Settings  # data and steps of the 5-layer network
    attack: Settings  # how the 10-layer networks are attacked
    universal: Settings  # how the 5-layer network is
    chunk: int  # test images of an evaluation in the paper's way
    chunks: int  # such evaluations, of which the best counts


SCALES: dict[str, Scale] = {
    "paper": Scale(
        networks={"dataset": "cifar10"},
        steps=paper.STEPS,
        long_steps=paper.LONG_STEPS,
        long_drop=paper.LONG_LR_DROP,
        eval_every=1000,
        digits={
            "dataset": "mnist",
            "per_class": paper.MNIST_PER_CLASS,
            "steps": 200,
            "eval_every": 20,
        },
        attack={},
        universal={"draws": 50},
        chunk=500,
        chunks=100,
    ),
    # The smallest that shows the shape of the results, on digits that come with a package.
    "quick": Scale(
        networks={"dataset": "mnist5k", "width": (8,), "batch_size": 32},
        steps=200,
        long_steps=600,
        long_drop=384,
        eval_every=50,
        digits={"dataset": "mnist5k", "steps": 200, "eval_every": 50},
        attack={"samples": 200},
        universal={"samples": 500, "draws": 20},
        chunk=100,
        chunks=10,
    ),
}


_OF_DIGITS = {"figure7", "figure8", "figure9", "figure10"}  # of the 5-layer network alone


class ReproduceParameters(Seeds, Precise, Crew, DataPlace, Limits):
    """Make what the paper's results need, or find it among the finished runs."""

    target: Annotated[
        Names,
        Known((*TARGETS, "all")),
        "table1 to table3, figure3 to figure11, readings (what the paper leaves open), or all; "
        "several, comma separated.",
    ]
    scale: Annotated[
        str,
        Known(SCALES),
        "paper, or quick, which shows the shape of the results on small networks.",
    ] = "paper"
    dry_run: Annotated[
        bool,
        Needs(report_only=(False,)),
        "only say what would be made, what is there and how long it would take.",
    ] = False
    report_only: Annotated[bool, "make nothing, report on what is there."] = False

    def check_effects(self) -> None:
        """Refuse what no run that is needed would read, too."""
        super().check_effects()
        for name, value in self.given().items():
            if self.report_only and name in Crew.declared():
                raise without_effect(name, value, "report_only=true", "report_only=false")
        if self.scale == "quick" and self.data_dir is not None:
            raise without_effect("data_dir", self.data_dir, "scale=quick", "scale=paper")
        if self.precision != "float32" and _OF_DIGITS.issuperset(self.targets):
            target = f"target={show(self.target)}"
            raise without_effect("precision", self.precision, target, "other targets")

    def cost(self, data: Data) -> Cost:
        """All runs, one after the other, but for trainings that are shared out."""
        jobs = plan(replace(self, seeds=1))
        each = [job.asked.cost(data) for job in jobs]
        making = not (self.dry_run or self.report_only)
        trainings = self.seeds * sum(job.of is None for job in jobs)
        at_once = self.at_once(trainings) if self.wanted else 1
        seconds = making * self.seeds * sum(one.seconds for one in each) / at_once
        most = max(one.memory for one in each)
        return Cost(seconds, costs.ENTRY * self.seeds * len(each) + making * most)

    @property
    def targets(self) -> tuple[str, ...]:
        """The results, each once, in the paper's order."""
        return TARGETS if "all" in self.target else tuple(n for n in TARGETS if n in self.target)


@dataclass(frozen=True, eq=False)
class Job:
    """A run that a result needs."""

    label: Label  # what it is to the paper, such as ("short", "resnet", 25)
    experiment: str  # one of `EXPERIMENTS`
    asked: Asked  # its parameters; that of the model means nothing yet
    of: "Job | None" = None  # the training whose model it is about

    @property
    def seed(self) -> int:
        """That everything is drawn by."""
        return self.asked.seed

    @property
    def training(self) -> TrainParameters:
        """Those of the network that it trains, or is about."""
        asked = (self.of or self).asked
        assert isinstance(asked, TrainParameters)
        return asked

    @property
    def name(self) -> str:
        """For people."""
        if self.of is not None:
            return f"{EXPERIMENTS[self.experiment].words} {self.of.name}"
        asked = self.training
        network = asked.arch if asked.depth is None else f"{asked.arch}-{asked.depth}"
        changed = map(str, self.label[3:])
        return ", ".join([f"{network}, {asked.steps:,} steps", *changed, f"seed {asked.seed}"])

    def asked_about(self, model: str) -> Asked:
        """Its parameters, once the model that it is about is there."""
        if self.of is None:
            return self.asked
        return type(self.asked)(**self.asked.settings() | {"model": model})


def plan(asked: ReproduceParameters) -> list[Job]:
    """The runs that some results need, each once, in the order in which to make them.

    A training stands before what is done with its model.
    """
    jobs: dict[tuple[Label, int], Job] = {}
    for seed in range(asked.seeds):
        builder = _Builder(asked, seed)
        for name in sorted(asked.targets, key=_ORDER.index):
            for job in builder.needed(name):
                for one in filter(None, (job.of, job)):
                    jobs.setdefault((one.label, seed), one)
    # A job built twice is the same run: what is done with a model must mean the one that is kept.
    return [
        replace(job, of=jobs[job.of.label, job.seed]) if job.of else job for job in jobs.values()
    ]


# What takes seconds comes first, what takes days last.
_ORDER = (
    *("figure7", "figure8", "figure9", "figure10"),
    *("table1", "figure3", "figure4", "figure5", "figure11", "table3"),
    *(READINGS, "table2", "figure6"),
)
_NOT_YET = "a model that is not trained yet"
_OVERLAID = {
    "figure3": ("resnet", "convnet"),
    "figure4": ("highway", "resnet"),
    "figure5": ("multiresnet", "resnet"),
}


@dataclass(frozen=True)
class _Builder:
    """Jobs of one seed."""

    asked: ReproduceParameters
    seed: int

    @property
    def scale(self) -> Scale:
        return SCALES[self.asked.scale]

    def needed(self, target: str) -> list[Job]:
        """What a result is made of."""
        if target in _OF_DIGITS:
            unclipped = {**self.scale.universal, "clip": False}  # as the paper's are
            return [self._about(self._digits(), "universal", unclipped)]
        if target == "table3":
            return [self._attacked("resnet")]
        if target == "figure11":
            return [self._attacked(arch) for arch in FOOLED]
        if target in ("table2", "figure6"):
            return [self._long(arch) for arch in ARCHS]
        if target == READINGS:
            return [self._short(arch, depth, change) for arch, depth, change in TRIED_READINGS]
        return [self._short(arch, n) for n in DEEP for arch in _OVERLAID.get(target, ARCHS)]

    def _short(self, arch: str, depth: int, change: Settings | None = None) -> Job:
        change = change or {}
        own = {"depth": depth, "steps": self.scale.steps, **change}
        return self._network(training_label(arch, depth, change), arch, own)

    def _long(self, arch: str) -> Job:
        lr_drop = (self.scale.long_drop,)
        own = {"depth": 25, "steps": self.scale.long_steps, "lr_drop": lr_drop}
        return self._network(("long", arch, 25), arch, own)

    def _network(self, label: Label, arch: str, own: Settings) -> Job:
        of_all = {"eval_every": self.scale.eval_every, "precision": self.asked.precision}
        read = _READ_AS.get(arch, {})
        return self._training(label, arch, {**self.scale.networks, **read, **own, **of_all})

    def _digits(self) -> Job:
        return self._training(("digits",), "mlp", self.scale.digits)

    def _training(self, label: Label, arch: str, own: Settings) -> Job:
        return Job(label, "train", TrainParameters(arch=arch, **own, **self._of_every_job))

    def _attacked(self, arch: str) -> Job:
        own = {**self.scale.attack, "method": "smallest_epsilon"}
        return self._about(self._short(arch, 10), "attack", own)

    def _about(self, job: Job, experiment: str, own: Settings) -> Job:
        kind = EXPERIMENTS[experiment].parameters
        asked = kind(**{"model": _NOT_YET, **own, **self._of_every_job})
        return Job((experiment, *job.label), experiment, asked, job)

    @property
    def _of_every_job(self) -> Settings:
        return {"seed": self.seed, "data_dir": self.asked.data_dir}
