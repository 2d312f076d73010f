"""Which runs each of the paper's tables and figures needs."""

import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from resfool import paper
from resfool.attacks.attack import attack
from resfool.errors import unknown
from resfool.parameters import Precision, ScaleName, show
from resfool.training.recipe import Settings
from resfool.training.train import train
from resfool.universal.experiment import universal

Experiment = Literal["train", "attack", "universal"]
Label = tuple[str | int, ...]
ARCHS = ("convnet", "resnet", "highway", "multiresnet")
DEEP = (25, 50)
FOOLED = ("resnet", "multiresnet", "convnet")  # of Figure 11, with 10 layers
READINGS = "readings"  # a target of ours: what the paper leaves open


# Ways to read the paper: architecture and depth that each is tried on, and what is other than in
# ours. The paper's 50-layer ConvNet hardly learns, as one without normalisation might.
TRIED_READINGS: tuple[tuple[str, int, dict[str, Any]], ...] = (
    ("resnet", 10, {}),
    ("resnet", 10, {"augment": "crop_flip"}),
    ("resnet", 10, {"convs_per_unit": 2}),
    ("resnet", 10, {"optimizer": "momentum"}),
    ("resnet", 10, {"optimizer": "sgd"}),
    ("convnet", 10, {}),
    ("convnet", 10, {"batch_norm": False}),
    ("convnet", 50, {}),
    ("convnet", 50, {"batch_norm": False}),
)


def training_label(arch: str, depth: int, change: Mapping[str, Any]) -> Label:
    """What a training of 10,000 steps is known by.

    Args:
        arch: its architecture.
        depth: its layers.
        change: what is other than in our reading of the paper.
    """
    words = tuple(f"{name}={show(value)}" for name, value in change.items())
    return ("reading" if change else "short", arch, depth, *words)


_FUNCTIONS: dict[Experiment, Callable[..., Any]] = {
    "train": train,
    "attack": attack,
    "universal": universal,
}


@dataclass(frozen=True)
class Scale:
    """How large a reproduction is.

    Attributes:
        networks: data and width of the convolutional networks.
        steps: of the trainings of Table I.
        long_steps: of those of Table II.
        long_drop: steps after which those divide the rate by 10.
        eval_every: steps between two evaluations of those networks.
        digits: data and steps of the 5-layer network.
        attack: how the 10-layer networks are attacked.
        universal: how the 5-layer network is.
        chunk: test images of an evaluation in the paper's way.
        chunks: such evaluations, of which the best counts.
    """

    networks: Settings
    steps: int
    long_steps: int
    long_drop: int
    eval_every: int
    digits: Settings
    attack: Settings
    universal: Settings
    chunk: int
    chunks: int


SCALES: dict[ScaleName, Scale] = {
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


@dataclass(frozen=True, eq=False)
class Job:
    """A run that a result needs.

    Attributes:
        label: what it is to the paper, such as ("short", "resnet", 25).
        experiment: that it is a run of.
        settings: arguments of the experiment, all of them but the model.
        of: the training whose model it is about.
    """

    label: Label
    experiment: Experiment
    settings: Settings
    of: "Job | None" = None

    @property
    def seed(self) -> int:
        """That everything is drawn by."""
        return int(self.settings["seed"])

    @property
    def name(self) -> str:
        """For people."""
        if self.of is not None:
            what = "attack on" if self.experiment == "attack" else "universal perturbation of"
            return f"{what} {self.of.name}"
        s = self.settings
        changed = map(str, self.label[3:])
        network = s["arch"] if s["depth"] is None else f"{s['arch']}-{s['depth']}"
        words = [f"{network}, {s['steps']:,} steps", *changed, f"seed {s['seed']}"]
        return ", ".join(words)


def _targets(names: Sequence[str]) -> tuple[str, ...]:
    known = (*paper.RESULTS, READINGS)
    for name in names:
        if name not in (*known, "all"):
            raise unknown("target", name, (*known, "all"))
    return known if "all" in names else tuple(name for name in known if name in names)


def plan(
    targets: Iterable[str],
    scale: Scale,
    seeds: int,
    precision: Precision,
    data_dir: str | None,
) -> list[Job]:
    """The runs that some results need, each once, in the order in which to make them.

    Args:
        targets: names of results.
        scale: of the settings.
        seeds: runs of each.
        precision: of the trainings.
        data_dir: folder with the official files.

    Returns:
        Jobs; a training stands before what is done with its model.
    """
    jobs: dict[tuple[Label, int], Job] = {}
    for seed in range(seeds):
        builder = _Builder(scale, seed, precision, data_dir)
        for name in sorted(targets, key=_ORDER.index):
            for job in builder.needed(name):
                for one in (job.of, job):
                    if one is not None:
                        jobs.setdefault((one.label, seed), one)
    # A job built twice is the same run: what is done with a model must mean the one that is kept.
    return [
        job if job.of is None else replace(job, of=jobs[job.of.label, job.seed])
        for job in jobs.values()
    ]


# What takes seconds comes first, what takes days last.
_ORDER = (
    *("figure7", "figure8", "figure9", "figure10"),
    *("table1", "figure3", "figure4", "figure5", "figure11", "table3"),
    *(READINGS, "table2", "figure6"),
)
_OVERLAID = {
    "figure3": ("resnet", "convnet"),
    "figure4": ("highway", "resnet"),
    "figure5": ("multiresnet", "resnet"),
}


@dataclass(frozen=True)
class _Builder:
    """Jobs of one seed."""

    scale: Scale
    seed: int
    precision: Precision
    data_dir: str | None

    def needed(self, target: str) -> list[Job]:
        """What a result is made of."""
        if target in ("figure7", "figure8", "figure9", "figure10"):
            return [self._about(self._digits(), "universal", self.scale.universal)]
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
        own = {"arch": arch, "depth": depth, "steps": self.scale.steps} | (change or {})
        return self._training(training_label(arch, depth, change or {}), self.scale.networks | own)

    def _long(self, arch: str) -> Job:
        own = {"arch": arch, "depth": 25, "steps": self.scale.long_steps}
        own["lr_drop"] = (self.scale.long_drop,)
        return self._training(("long", arch, 25), self.scale.networks | own)

    def _digits(self) -> Job:
        return self._training(("digits",), self.scale.digits | {"arch": "mlp"})

    def _training(self, label: Label, own: Settings) -> Job:
        settings = _complete(train, own, seed=self.seed, data_dir=self.data_dir)
        if own["arch"] != "mlp":
            settings |= {"eval_every": self.scale.eval_every, "precision": self.precision}
        return Job(label, "train", settings)

    def _attacked(self, arch: str) -> Job:
        own = self.scale.attack | {"method": "smallest_epsilon"}
        return self._about(self._short(arch, 10), "attack", own)

    def _about(self, job: Job, experiment: Experiment, own: Settings) -> Job:
        settings = _complete(_FUNCTIONS[experiment], own, seed=self.seed, data_dir=self.data_dir)
        return Job((experiment, *job.label), experiment, settings, job)


def _complete(function: Callable[..., Any], given: Settings, **more: Any) -> Settings:
    """All keyword arguments of an experiment, those that aren't given at their defaults."""
    parameters = inspect.signature(function).parameters.values()
    own = {p.name: p.default for p in parameters if p.kind is p.KEYWORD_ONLY}
    own.pop("model", None)
    return own | given | more
