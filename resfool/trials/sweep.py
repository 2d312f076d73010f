"""A grid of trainings, in parallel: which network trains how well, and how much is chance?"""

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from resfool import identity
from resfool.archive import Archive
from resfool.datasets.sets import Dataset, load_data
from resfool.errors import TrialError
from resfool.monitor import Monitor
from resfool.training.recipe import TrainParameters
from resfool.trials.options import SweepParameters
from resfool.trials.recorder import Recorder, Trained, Trial
from resfool.values import Part, Row

if TYPE_CHECKING:
    from resfool.parallel import Pool

# Opens a pool of workers for a function of trials, such as `parallel.Pool` with a backend.
OpenPool = Callable[..., "Pool"]
# Is given each finished training's monitor, outcome, curve and data set.
Keep = Callable[[Any, Trained, Sequence[Row], Dataset], None]


@dataclass(frozen=True)
class SweptTraining:
    """One training of a sweep.

    Attributes:
        asked: its parameters.
        curve: its points, each with "step", in order.
        metrics: final figures; empty if it failed.
        reused: whether it was there from an earlier run.
        error: what went wrong, or "".
    """

    asked: TrainParameters
    curve: Sequence[Row] = ()
    metrics: Mapping[str, float] = field(default_factory=dict)
    reused: bool = False
    error: str = ""

    @property
    def network(self) -> str:
        """Its network's name, such as resnet-25."""
        return self.asked.network.name


def sweep(
    asked: SweepParameters,
    open_pool: OpenPool,
    keep: Keep,
    monitor: Monitor | None = None,
    archive: Archive | None = None,
) -> list[SweptTraining]:
    """Train every architecture at every depth with every seed, as parts of one run.

    A training that an earlier run finished with the same settings and data isn't done again.

    Args:
        asked: the grid, and what its trainings have in common.
        open_pool: opens workers.
        keep: records a finished training.
        monitor: of the whole.
        archive: where finished trainings are looked for.

    Returns:
        The trainings, in the grid's order.

    Raises:
        InputError: a parameter can't be used; nothing was trained.
        TrialError: all trainings failed.
        KeyboardInterrupt: Ctrl-C or SIGTERM; what has finished is recorded.
    """
    monitor, archive = monitor or Monitor(), archive or Archive()
    places = itertools.product(asked.arch, asked.depth or (None,), range(asked.seeds))
    grid = [SweptTraining(asked.training(*place)) for place in places]
    data = load_data(grid[0].asked)
    asked.check_affordable(data.train.known)
    facts = asked.shared(TrainParameters) | {"seeds": asked.seeds, "backend": asked.crew["backend"]}
    facts |= {"trainings": len(grid), "dataset_digest": data.digest}
    part: Part = "validation" if asked.validation_share else "test"
    networks = ", ".join(dict.fromkeys(each.network for each in grid))
    title = f"sweep of {networks}, {data.name}, {asked.seeds} seeds"
    curves: dict[int, int] = {}

    def watch(place: int, row: Row) -> bool:
        curves[place] = int(row["step"])
        ended = sum(bool(each.metrics or each.error) for each in grid)
        text = f"steps; {ended} of {len(grid)} trainings done"
        monitor.progress(sum(curves.values()), asked.steps * len(waiting), text)
        return False

    def finish(place: int, outcome: Trained, own: Monitor, curve: Sequence[Row]) -> None:
        grid[place] = replace(grid[place], curve=curve, metrics=outcome.metrics)
        keep(own, outcome, curve, data)

    recorder = Recorder(monitor, data, finish, watch)
    trial = Trial(data if asked.backend == "ray" else None)
    with recorder, open_pool(trial, receive=recorder.receive) as pool:
        monitor.begin(title, facts, [(data, "train", "training"), (data, part, "testing")])
        grid[:] = [_reused(archive, each, data) for each in grid]
        waiting = [place for place, each in enumerate(grid) if not each.reused]
        if len(waiting) < len(grid):
            monitor.say(f"{len(grid) - len(waiting)} of {len(grid)} trainings were finished before")
        for place in waiting:
            pool.submit(place, grid[place].asked)
        for place, outcome in pool.finished():
            if recorder.end(place, outcome) is None:
                grid[place] = failed = replace(grid[place], error=str(outcome))
                monitor.say(f"{failed.network} seed {failed.asked.seed} failed: {outcome}")
    if not any(each.metrics for each in grid):
        raise TrialError(f"all {len(grid)} trainings failed; the first: {grid[0].error}")
    return grid


def _reused(archive: Archive, training: SweptTraining, data: Dataset) -> SweptTraining:
    """A training with the figures of an earlier run that did it, if there is one."""
    found = archive.find_finished(
        identity.facts("train", training.asked.settled(), data.digest), "final_train_loss"
    )
    if found is None:
        return training
    final = {name: value for name, value in found.metrics.items() if name.startswith("final_")}
    return replace(training, curve=found.curve, metrics=final, reused=True)
