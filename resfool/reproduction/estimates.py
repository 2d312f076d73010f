"""How long runs will take: a few measured steps of each architecture, multiplied out."""

import statistics
import time
from collections.abc import Mapping, Sequence
from typing import Any

from resfool.datasets import sets
from resfool.datasets.sets import Dataset
from resfool.networks import architectures
from resfool.networks.shape import size
from resfool.reproduction.plan import EXPERIMENTS, Job
from resfool.training.recipe import TrainParameters
from resfool.training.trainer import Trainer

_STEPS = 3  # that are timed, after one that compiles
_START = 5.0  # seconds that a training takes beside its steps, at least: building, recording


def seconds_of(jobs: Sequence[Job], data: Mapping[Job, Dataset]) -> list[float]:
    """Estimate the seconds that jobs, with the data of each, take on this machine.

    The shallowest network of each architecture is timed, and the others' times follow from their
    numbers of multiplications.
    """
    measured: dict[Any, tuple[float, float, float]] = {}
    for job in sorted(jobs, key=_work):
        if _kind(job) not in measured:
            measured[_kind(job)] = (*_step_seconds(job.training, data[job]), _work(job))
    found = []
    for job in jobs:
        training = job.training
        compiling, step, work = measured[_kind(job)]
        scale = _work(job) / work
        image = scale * step / training.batch_size / 3  # a training step is three forward passes
        if isinstance(job.asked, TrainParameters):
            evaluations = training.steps // training.eval_every + 1
            seconds = scale * (compiling + step * training.steps)
            seconds += evaluations * len(data[job].test) * image
        else:
            passes = EXPERIMENTS[job.experiment].passes
            seconds = passes * image * (job.asked.samples or sets.SAMPLES)
        found.append(_START + seconds)
    return found


def _work(job: Job) -> float:
    return size(job.training.network).multiplications


def _kind(job: Job) -> Any:
    """What trainings have in common whose steps differ by their work alone."""
    asked = job.training
    return asked.arch, asked.precision, asked.width, asked.dataset


def _step_seconds(asked: TrainParameters, data: Dataset) -> tuple[float, float]:
    """Seconds of the first training step, which compiles, and of a later one."""
    model = architectures.build(
        asked.network,
        fused=True,
        precision=asked.precision,
        image_shape=data.image_shape,
        classes=data.classes,
        mean=data.train.images.mean(axis=(0, 1, 2), dtype="float64"),
        std=data.train.images.std(axis=(0, 1, 2), dtype="float64"),
        seed=0,
    )
    trainer = Trainer(model, data.train.images, data.train.labels, asked)
    times = []
    for _ in range(1 + _STEPS):
        began = time.perf_counter()
        trainer.advance(1)
        times.append(time.perf_counter() - began)
    return times[0], statistics.median(times[1:])
