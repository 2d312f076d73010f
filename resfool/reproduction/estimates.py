"""How long runs will take: a few measured steps of each architecture, multiplied out."""

import statistics
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from resfool.datasets import sets
from resfool.datasets.sets import Dataset
from resfool.networks import architectures
from resfool.networks.shape import multiplications
from resfool.training.recipe import check
from resfool.training.trainer import Trainer

if TYPE_CHECKING:
    from resfool.reproduction.plan import Job


_STEPS = 3  # that are timed, after one that compiles
_START = 5.0  # seconds that a training takes beside its steps, at least: building, recording
_ATTACK_PASSES = 60  # forward passes of an image: two for each epsilon, its gradient, bisection
_SOLVE_PASSES = 2000  # of a fitting image: the smallest perturbation, and judging every rank


def seconds_of(jobs: "Sequence[Job]", data_of: "Callable[[Job], Dataset]") -> list[float]:
    """Estimate how long some jobs take on this machine.

    The shallowest network of each architecture is timed, and the others' times follow from their
    numbers of multiplications.

    Args:
        jobs: to be made.
        data_of: gives a job's data set.

    Returns:
        Seconds, in the order of the jobs.
    """
    measured: dict[Any, tuple[float, float, float]] = {}

    def kind(job: "Job") -> Any:
        s = (job.of or job).settings
        return s["arch"], s["precision"], s["width"], s["dataset"]

    for job in sorted(jobs, key=lambda job: multiplications(check((job.of or job).settings))):
        if kind(job) not in measured:
            s, data = (job.of or job).settings, data_of(job)
            measured[kind(job)] = (*_step_seconds(s, data), multiplications(check(s)))
    found = []
    for job in jobs:
        s, data = (job.of or job).settings, data_of(job)
        compiling, step, of = measured[kind(job)]
        scale = multiplications(check(s)) / of
        image = scale * step / s["batch_size"] / 3  # a training step is three forward passes
        if job.experiment == "train":
            evaluations = s["steps"] // s["eval_every"] + 1
            seconds = scale * (compiling + step * s["steps"])
            seconds += evaluations * len(data.test) * image
        elif job.experiment == "attack":
            seconds = _ATTACK_PASSES * image * (job.settings["samples"] or sets.SAMPLES)
        else:
            seconds = _SOLVE_PASSES * image * (job.settings["samples"] or sets.SAMPLES)
        found.append(_START + seconds)
    return found


def _step_seconds(settings: dict[str, Any], data: Dataset) -> tuple[float, float]:
    """Seconds of the first training step, which compiles, and of a later one."""
    network = check(settings)
    model = architectures.build(
        network,
        fused=True,
        precision=settings["precision"],
        image_shape=data.image_shape,
        classes=data.classes,
        mean=data.train.images.mean(axis=(0, 1, 2), dtype="float64"),
        std=data.train.images.std(axis=(0, 1, 2), dtype="float64"),
        seed=0,
    )
    trainer = Trainer(
        model,
        data.train.images,
        data.train.labels,
        batch_size=settings["batch_size"],
        optimizer=settings["optimizer"],
        learning_rate=settings["learning_rate"],
        seed=0,
    )
    times = []
    for _ in range(1 + _STEPS):
        began = time.perf_counter()
        trainer.advance(1)
        times.append(time.perf_counter() - began)
    return times[0], statistics.median(times[1:])
