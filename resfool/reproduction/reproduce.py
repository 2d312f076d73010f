"""The whole paper: which runs each table and figure needs, made or found again."""

import functools
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from resfool import devices, identity
from resfool.archive import Archive, FinishedRun, InterruptedRun, as_given
from resfool.datasets.sets import Dataset, TrainingData, load_data
from resfool.errors import InputError, NonFiniteLossError, UnsentError, short
from resfool.monitor import Monitor
from resfool.reproduction import in_workers, plan
from resfool.reproduction.leaving import LeftOut
from resfool.reproduction.plan import Asked, Job, Label, ReproduceParameters, Scale
from resfool.training.train import slowness
from resfool.trials.sweep import Keep, OpenPool
from resfool.values import duration

# Makes a run, or goes on with the training of an id, and gives the run's id.
Make = Callable[[Asked, Dataset, str | None], str]

_PAPERS_WAY = "papers_way_test_accuracy"
_TELLING = 300.0  # seconds of work from which on estimates are corrected by it


@dataclass(frozen=True)
class Reproduction:
    """What was found out.

    Attributes:
        asked: which results, and how large.
        runs: those that are there, by their labels, one for each seed at most.
        failed: what went wrong, by the job's name.
        missing: names of the jobs that were not run.
    """

    asked: ReproduceParameters
    runs: Mapping[Label, Sequence[FinishedRun]]
    failed: Mapping[str, str] = field(default_factory=dict)
    missing: Sequence[str] = ()


def reproduce(
    asked: ReproduceParameters,
    make: Make,
    monitor: Monitor | None = None,
    archive: Archive | None = None,
    crew: tuple[OpenPool, Keep] | None = None,
) -> Reproduction | None:
    """Make what the paper's results need, or find it among the finished runs.

    Args:
        asked: which results, and how large.
        make: makes a run from its parameters and its network's data, or goes on with the training
            whose id it is given, and gives the run's id.
        monitor: of the whole; is told the plan, and how it goes.
        archive: where runs are found, and read back.
        crew: what opens workers for trainings, and what records a finished one; without, every
            run is made by `make`.

    Returns:
        What was found out; None if it was a dry run.

    Raises:
        InputError: the data can't be loaded, or there are no such workers; nothing was made.
        KeyboardInterrupt: Ctrl-C or SIGTERM; the same command goes on.
    """
    monitor, archive = monitor or Monitor(), archive or Archive()
    jobs = plan.plan(asked)
    state = _State(make, monitor, archive, _load(jobs))
    for job in jobs:
        state.look_for(job)
    to_make = [] if asked.report_only else [job for job in jobs if job not in state.runs]
    expected = _say_plan(monitor, jobs, state, to_make)
    if asked.dry_run:
        return None
    digests = ",".join(sorted({data.digest for data in state.data.values()}))
    facts = asked.settings() | {"target": asked.targets, "dataset_digest": digests}
    monitor.begin(f"reproduction of {', '.join(asked.target)} ({asked.scale})", facts, [])
    if crew is not None:
        # What can go on from a checkpoint does so here.
        spread = [job for job in to_make if job.of is None and state.interrupted(job) is None]
        monitor.say(f"{len(spread)} trainings are shared out among workers")
        state.train_in_workers(spread, *crew)
        left_over = [n for n, job in enumerate(to_make) if job not in spread]
        to_make, expected = [to_make[n] for n in left_over], [expected[n] for n in left_over]
    taken: list[float | None] = []
    for number, job in enumerate(to_make):
        left = duration(time_left(expected, taken))
        monitor.say(f"[{number + 1} of {len(to_make)}] {job.name}; about {left} left in all")
        began = time.monotonic()
        state.make(job)
        taken.append(time.monotonic() - began if job in state.runs else None)
    for job in jobs:
        if job in state.runs and _is_tabled(job, asked.targets):
            state.judge_as_the_paper(job, plan.SCALES[asked.scale])
    return Reproduction(
        asked,
        runs=_by_label(jobs, state.runs),
        failed={job.name: reason for job, reason in state.failed.items()},
        missing=[j.name for j in jobs if j not in state.runs and j not in state.failed],
    )


def time_left(expected: Sequence[float], taken: Sequence[float | None]) -> float:
    """Seconds that jobs which still have to be made will take.

    Once those made took long enough to tell, they say how far off the estimates are.

    Args:
        expected: seconds of each job, in the order in which they are made.
        taken: seconds that each of the first ones took; None for one that failed.
    """
    made = [n for n, seconds in enumerate(taken) if seconds is not None]
    real = sum(taken[n] or 0.0 for n in made)
    factor = real / sum(expected[n] for n in made) if real > _TELLING else 1.0
    return factor * sum(expected[len(taken) :])


def _load(jobs: Sequence[Job]) -> dict[Job, Dataset]:
    """What each job's network is trained on; each data set is loaded once."""
    loaded: dict[TrainingData, Dataset] = {}
    found = {}
    for job in jobs:
        which = TrainingData(**job.training.shared(TrainingData))
        if which not in loaded:
            loaded[which] = load_data(which)
        found[job] = loaded[which]
    return found


class _State:
    """Which runs are there; `data` is what each job's network is trained on."""

    def __init__(
        self, make: Make, monitor: Monitor, archive: Archive, data: Mapping[Job, Dataset]
    ) -> None:
        self._make, self._monitor, self._archive = make, monitor, archive
        self.data = data
        self.runs: dict[Job, FinishedRun] = {}
        self.failed: dict[Job, str] = {}

    def _asked(self, job: Job) -> Asked | None:
        """A job's parameters, with the model; None while that isn't there."""
        if job.of is None:
            return job.asked
        return job.asked_about(self.runs[job.of].model) if job.of in self.runs else None

    def _facts(self, job: Job, asked: Asked) -> dict[str, str]:
        return identity.facts(job.experiment, asked.settled(), self.data[job].digest)

    def look_for(self, job: Job) -> None:
        """Find a job's run, if it has finished before."""
        asked = self._asked(job)
        if asked is not None:
            metric = plan.EXPERIMENTS[job.experiment].last_metric
            found = self._archive.find_finished(self._facts(job, asked), metric)
            if found is not None:
                self.runs[job] = found

    def interrupted(self, job: Job) -> InterruptedRun | None:
        """The run of a training that can be gone on with."""
        facts = self._facts(job, job.asked)
        return None if job.of else self._archive.find_interrupted(facts)

    def make(self, job: Job) -> None:
        """Make a job's run, unless what it needs isn't there."""
        asked = self._asked(job)
        if asked is None:
            assert job.of is not None
            self.failed[job] = f"it needs {job.of.name}"
            return
        cut = self.interrupted(job)
        try:
            run_id = self._make(asked, self.data[job], cut.run_id if cut else None)
        except UnsentError:
            raise  # those that follow couldn't be recorded either
        except Exception as error:  # also of an earlier run's model, which may be anybody's
            known = isinstance(error, NonFiniteLossError | InputError)
            self.failed[job] = reason = str(error) if known else short(error)
            self._monitor.say(f"{job.name} failed: {reason}")
        else:
            self.runs[job] = self._archive.read(run_id)

    def train_in_workers(self, jobs: Sequence[Job], open_pool: OpenPool, keep: Keep) -> None:
        """Make the runs of some trainings."""
        self.failed |= in_workers.train(jobs, self.data, open_pool, keep, self._monitor)
        for job in jobs:
            self.look_for(job)

    def judge_as_the_paper(self, job: Job, scale: Scale) -> None:
        """Add to a finished training how accurate the paper would have called it."""
        run = self.runs[job]
        if _PAPERS_WAY in run.metrics:
            return
        self._monitor.say(f"judging {job.name} in the paper's way")
        devices.import_keras()
        from resfool.classifiers import files, rehearsal, scores

        test, left_out = self.data[job].test, LeftOut()
        with left_out.unless_usable(f"the accuracy of {job.name} in the paper's way"):
            source = self._archive.find_model(run.model)
            load = functools.partial(files.load, source.path)
            with as_given(source.uri, source.path):
                rehearsal.rehearse(f"model={run.model}", load)
                model = load()
            found = scores.chunk_accuracies(
                model,
                test.images,
                test.labels,
                chunk=scale.chunk,
                chunks=scale.chunks,
                seed=job.seed,
            )
        if left_out.reasons:
            self._monitor.say(*left_out.reasons)
            return
        figures = {
            _PAPERS_WAY: float(found.max()),
            "batch_statistics_test_accuracy": float(found.mean()),
            "batch_statistics_test_accuracy_std": float(found.std()),
        }
        self.runs[job] = self._archive.add_metrics(run, figures)


def _say_plan(
    monitor: Monitor, jobs: Sequence[Job], state: _State, to_make: Sequence[Job]
) -> list[float]:
    """Say what is there, what will be made and how long that takes; the seconds of each."""
    for job in jobs:
        if job in state.runs:
            monitor.say(f"there   {job.name} (run {state.runs[job].run_id})")
    if not to_make:
        monitor.say(f"nothing to make; {len(state.runs)} of {len(jobs)} runs are there")
        return []
    devices.start_keras()
    from resfool.reproduction.estimates import seconds_of

    precisions = {job.training.precision for job in to_make if job.of is None}
    for warning in filter(None, map(slowness, precisions)):
        monitor.say(warning)
    seconds = seconds_of(to_make, state.data)
    for number, job in enumerate(to_make):
        note, cut = "", state.interrupted(job)
        if cut:
            seconds[number] *= max(0.0, 1 - cut.step / job.training.steps)
            note = f", goes on with run {cut.run_id} from step {cut.step:,}"
        monitor.say(f"to make {job.name}: about {duration(seconds[number])}{note}")
    total = duration(sum(seconds))
    monitor.say(f"{len(to_make)} runs to make, {len(state.runs)} are there; about {total} in all")
    return seconds


def _is_tabled(job: Job, targets: Sequence[str]) -> bool:
    """Whether a job is a training whose test accuracy stands beside the paper's."""
    readings = {plan.training_label(*one) for one in plan.TRIED_READINGS}
    if plan.READINGS in targets and job.label in readings:
        return True
    return job.of is None and job.training.depth in plan.DEEP


def _by_label(
    jobs: Sequence[Job], runs: Mapping[Job, FinishedRun]
) -> dict[Label, list[FinishedRun]]:
    found: dict[Label, list[FinishedRun]] = {}
    for job in jobs:
        if job in runs:
            found.setdefault(job.label, []).append(runs[job])
    return found
