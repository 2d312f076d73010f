"""A grid of trainings, in parallel: which network trains how well, and how much is chance?"""

import itertools
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from typing import Any

from resfool import identity
from resfool.datasets.sets import Dataset, load_data
from resfool.errors import InputError, TrialError
from resfool.monitor import Monitor
from resfool.parameters import (
    Archs,
    Backend,
    Counts,
    NonNegativeFloat,
    Part,
    PositiveCount,
    Row,
    show,
)
from resfool.training.recipe import Settings, check
from resfool.trials.recorder import Pool, Recorder, Trained, Trainer

# Opens a pool of workers for a function of trials.
OpenPool = Callable[..., AbstractContextManager[Pool]]
Keep = Callable[[Any, Trained, Sequence[Row], Dataset], None]

# Parameters of `train` that a sweep sets itself, or has no use for.
SWEPT = "arch", "depth", "seed", "checkpoint_seconds"


@dataclass(frozen=True)
class SweptTraining:
    """One training of a sweep.

    Attributes:
        settings: arguments of `train`.
        network: its name, such as resnet-25.
        curve: its points, each with "step", in order.
        metrics: final figures; empty if it failed.
        reused: whether it was there from an earlier run.
        error: what went wrong, or "".
    """

    settings: Settings
    network: str
    curve: Sequence[Row] = ()
    metrics: Mapping[str, float] = field(default_factory=dict)
    reused: bool = False
    error: str = ""


def sweep(
    monitor: Monitor,
    open_pool: OpenPool,
    keep: Keep,
    training: Settings,
    say: Callable[[str], None] = print,
    /,
    *,
    arch: Archs,
    depth: Counts | None = None,
    seeds: PositiveCount = 1,
    workers: PositiveCount | None = None,
    backend: Backend = "joblib",
    ray_address: str | None = None,
    cpus_per_trial: PositiveCount = 1,
    gpus_per_trial: NonNegativeFloat = 0.0,
    patience: NonNegativeFloat = 0.0,
) -> list[SweptTraining]:
    """Train every architecture at every depth with every seed, as parts of one run.

    A training that an earlier run finished with the same settings and data isn't done again.

    Args:
        monitor: of the whole.
        open_pool: opens workers, see `parallel.Pool`.
        keep: is given each finished training's monitor, outcome, curve and data set.
        training: the other arguments of `train`.
        say: is told the user what was reused and what failed.
        arch: convnet, resnet, highway, multiresnet or mlp; several, comma separated.
        depth: 3x3 convolutions of the five stages, a multiple of 5; none is 10 (mlp: hidden layers,
            none is 5); several, comma separated.
        seeds: trainings of each network, with the seeds 0, 1, ...
        workers: trainings at a time; none is as many as the cores or the cluster hold.
        backend: joblib (processes of this machine), ray (a cluster) or serial (one process).
        ray_address: of the cluster: auto, host:port or ray://host:port; none starts Ray on this
            machine.
        cpus_per_trial: cores of each training, which are its threads.
        gpus_per_trial: GPUs of each training, on ray.
        patience: seconds that a Ray cluster has to grow to what is asked for.

    Returns:
        The trainings, in the grid's order.

    Raises:
        InputError: an argument can't be used; nothing was trained.
        TrialError: all trainings failed.
        KeyboardInterrupt: Ctrl-C or SIGTERM; what has finished is recorded.
    """
    depths: Sequence[int | None] = depth or (None,)
    grid = [
        SweptTraining(settings, check(settings).name)
        for name, layers, seed in itertools.product(arch, depths, range(seeds))
        for settings in [training | {"arch": name, "depth": layers, "seed": seed}]
    ]
    if len({(t.network, t.settings["seed"]) for t in grid}) < len(grid):
        raise InputError(f"arch={show(arch)} and depth={show(depth)} name a network twice")
    data = load_data(grid[0].settings)
    facts = training | {
        "arch": arch,
        "depth": depth,
        "seeds": seeds,
        "trainings": len(grid),
        "dataset_digest": data.digest,
        "backend": backend,
    }
    part: Part = "validation" if training["validation_share"] else "test"
    networks = ", ".join(dict.fromkeys(training.network for training in grid))
    title = f"sweep of {networks}, {data.name}, {seeds} seeds"
    curves: dict[int, int] = {}

    def watch(place: int, row: Row) -> bool:
        curves[place] = int(row["step"])
        total = training["steps"] * len(waiting)
        ended = sum(bool(t.metrics or t.error) for t in grid)
        text = f"steps; {ended} of {len(grid)} trainings done"
        monitor.progress(sum(curves.values()), total, text)
        return False

    def finish(place: int, outcome: Any, own: Monitor, curve: Sequence[Row]) -> None:
        grid[place] = replace(grid[place], curve=curve, metrics=outcome.metrics)
        keep(own, outcome, curve, data)

    recorder = Recorder(monitor, data, finish, watch)
    trainer = Trainer(data if backend == "ray" else None)
    with recorder, open_pool(trainer, receive=recorder.receive) as pool:
        monitor.begin(title, facts, [(data, "train", "training"), (data, part, "testing")])
        grid[:] = [_reused(monitor, each, data) for each in grid]
        waiting = [place for place, each in enumerate(grid) if not each.reused]
        if len(waiting) < len(grid):
            say(f"{len(grid) - len(waiting)} of {len(grid)} trainings were finished before")
        for place in waiting:
            pool.submit(place, grid[place].settings)
        for place, outcome in pool.finished():
            if recorder.end(place, outcome) is None:
                grid[place] = replace(grid[place], error=str(outcome))
                say(f"{grid[place].network} seed {grid[place].settings['seed']} failed: {outcome}")
    if not any(each.metrics for each in grid):
        raise TrialError(f"all {len(grid)} trainings failed; the first: {grid[0].error}")
    return grid


def _reused(monitor: Monitor, training: SweptTraining, data: Dataset) -> SweptTraining:
    """A training with the figures of an earlier run that did it, if there is one."""
    found = monitor.find_finished(
        identity.facts("train", training.settings, data.digest), "final_train_loss"
    )
    if found is None:
        return training
    final = {name: value for name, value in found.metrics.items() if name.startswith("final_")}
    return replace(training, curve=found.curve, metrics=final, reused=True)
