"""Trainings of a reproduction in workers, each in a run of its own that the driver records."""

from collections.abc import Mapping, Sequence

from resfool.datasets.sets import Dataset
from resfool.monitor import Monitor
from resfool.reproduction.plan import Job
from resfool.trials.recorder import Recorder, Trained, Trial
from resfool.trials.sweep import Keep, OpenPool
from resfool.values import Row


def train(
    jobs: Sequence[Job],
    data: Mapping[Job, Dataset],
    open_pool: OpenPool,
    keep: Keep,
    monitor: Monitor,
) -> dict[Job, str]:
    """Train networks in workers; each that is finished has a run by then.

    Args:
        jobs: the trainings.
        data: of each.
        open_pool: opens the workers.
        keep: records a finished training.
        monitor: of the whole.

    Returns:
        What went wrong, by job.

    Raises:
        InputError: the workers can't be had.
    """
    failed: dict[Job, str] = {}
    for one in dict.fromkeys(data[job].digest for job in jobs):
        group = [job for job in jobs if data[job].digest == one]
        failed |= _train_on(data[group[0]], group, open_pool, keep, monitor)
    return failed


def _train_on(
    data: Dataset, jobs: Sequence[Job], open_pool: OpenPool, keep: Keep, monitor: Monitor
) -> dict[Job, str]:
    failed: dict[Job, str] = {}
    steps: dict[Job, int] = {}
    ended: set[Job] = set()

    def watch(job: Job, row: Row) -> bool:
        steps[job] = int(row["step"])
        text = f"steps; {len(ended)} of {len(jobs)} trainings done"
        monitor.progress(sum(steps.values()), sum(each.training.steps for each in jobs), text)
        return False

    def finish(job: Job, outcome: Trained, own: Monitor, curve: Sequence[Row]) -> None:
        keep(own, outcome, curve, data)

    recorder = Recorder(monitor, data, finish, watch)
    with recorder, open_pool(Trial(data), receive=recorder.receive) as pool:
        for job in jobs:
            pool.submit(job, job.training)
        for job, outcome in pool.finished():
            ended.add(job)
            if recorder.end(job, outcome) is None:
                known = outcome.kind in ("NonFiniteLossError", "InputError")
                failed[job] = outcome.message if known else str(outcome)
                monitor.say(f"{job.name} failed: {failed[job]}")
    return failed
