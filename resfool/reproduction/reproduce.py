"""The whole paper: which runs each table and figure needs, made or found again."""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol

from resfool import devices, identity
from resfool.datasets import sets
from resfool.datasets.sets import load_data
from resfool.errors import InputError, NonFiniteLossError
from resfool.monitor import FinishedRun, InterruptedRun, Monitor
from resfool.parameters import Names, PositiveCount, Precision, ScaleName, duration
from resfool.reproduction.plan import (
    DEEP,
    READINGS,
    SCALES,
    TRIED_READINGS,
    Experiment,
    Job,
    Label,
    Scale,
    _targets,
    plan,
    training_label,
)
from resfool.training.recipe import Settings
from resfool.training.train import slowness

# A metric that only a whole run of the experiment has.
_LAST_METRIC: dict[Experiment, str] = {
    "train": "final_train_loss",
    "attack": "clean_accuracy",
    "universal": "final_fooling_rate",
}
_PAPERS_WAY = "papers_way_test_accuracy"
_TELLING = 300.0  # seconds of work from which on estimates are corrected by it


@dataclass(frozen=True)
class Reproduction:
    """What was found out.

    Attributes:
        targets: names of the results, in the paper's order.
        scale: of the settings.
        settings: arguments of `reproduce`.
        runs: those that are there, by their labels, one for each seed at most.
        failed: what went wrong, by the job's name.
        missing: names of the jobs that were not run.
    """

    targets: tuple[str, ...]
    scale: Scale
    settings: Settings
    runs: Mapping[Label, Sequence[FinishedRun]]
    failed: Mapping[str, str] = field(default_factory=dict)
    missing: Sequence[str] = ()


class Maker(Protocol):
    """What finds and makes runs, such as an entry point on MLflow."""

    def find(self, facts: Mapping[str, str], metric: str) -> FinishedRun | None:
        """A finished run by its parameters and a metric that it has."""

    def find_interrupted(self, facts: Mapping[str, str]) -> InterruptedRun | None:
        """A training that can be gone on with."""

    def make(
        self, experiment: Experiment, settings: Settings, data: sets.Dataset, resume: str | None
    ) -> FinishedRun:
        """Make a run, or go on with it."""

    def add_metrics(self, run: FinishedRun, metrics: Mapping[str, float]) -> None:
        """Log more figures of a run."""


def reproduce(
    monitor: Monitor,
    maker: Maker,
    say: Callable[[str], None] = print,
    /,
    *,
    target: Names,
    scale: ScaleName = "paper",
    seeds: PositiveCount = 1,
    precision: Precision = "float32",
    data_dir: str | None = None,
    dry_run: bool = False,
    report_only: bool = False,
) -> Reproduction | None:
    """Make what the paper's results need, or find it among the finished runs.

    Args:
        monitor: of the whole.
        maker: finds and makes runs.
        say: is told the plan, and how it goes.
        target: table1 to table3, figure3 to figure11, readings (what the paper leaves open), or
            all; several, comma separated.
        scale: paper, or quick, which shows the shape of the results on small networks.
        seeds: trainings and attacks of each network, with the seeds 0, 1, ...
        precision: float32, or bfloat16 for activations and gradients in training.
        data_dir: folder with the official files; none looks into Keras's cache, then downloads.
        dry_run: only say what would be made, what is there and how long it would take.
        report_only: make nothing, report on what is there.

    Returns:
        What was found out; None if it was a dry run.

    Raises:
        InputError: an argument can't be used; nothing was made.
        KeyboardInterrupt: Ctrl-C or SIGTERM; the same command goes on.
    """
    settings = {n: v for n, v in locals().items() if n not in ("monitor", "maker", "say")}
    targets = _targets(target)
    jobs = plan(targets, SCALES[scale], seeds, precision, data_dir)
    data = _Data(jobs)
    state = _State(maker, data)
    for job in jobs:
        state.look_for(job)
    to_make = [] if report_only else [job for job in jobs if job not in state.runs]
    expected = _say_plan(say, jobs, state, to_make)
    if dry_run:
        return None
    digests = sorted({one.digest for one in data.all})
    facts = settings | {"target": targets, "dataset_digest": ",".join(digests)}
    monitor.begin(f"reproduction of {', '.join(target)} ({scale})", facts, [])
    taken: list[float | None] = []
    for number, job in enumerate(to_make):
        left = duration(time_left(expected, taken))
        say(f"[{number + 1} of {len(to_make)}] {job.name}; about {left} left in all")
        began = time.monotonic()
        state.make(job, say)
        taken.append(time.monotonic() - began if job in state.runs else None)
    judged = [job for job in jobs if job in state.runs and _is_tabled(job, targets)]
    _judge_as_the_paper(monitor, judged, state, SCALES[scale], say)
    return Reproduction(
        targets=targets,
        scale=SCALES[scale],
        settings=settings,
        runs=_by_label(jobs, state.runs),
        failed={job.name: reason for job, reason in state.failed.items()},
        missing=[j.name for j in jobs if j not in state.runs and j not in state.failed],
    )


def time_left(expected: Sequence[float], taken: Sequence[float | None]) -> float:
    """How long jobs that still have to be made will take.

    Args:
        expected: seconds of each job, in the order in which they are made.
        taken: seconds that each of the first ones took; None for one that failed.

    Returns:
        Seconds. Once those made took long enough to tell, they say how far off the estimates are.
    """
    made = [n for n, seconds in enumerate(taken) if seconds is not None]
    real = sum(taken[n] or 0.0 for n in made)
    factor = real / sum(expected[n] for n in made) if real > _TELLING else 1.0
    return factor * sum(expected[len(taken) :])


class _Data:
    """The data sets of some trainings, each loaded once."""

    def __init__(self, jobs: Sequence[Job]) -> None:
        self._loaded: dict[str, sets.Dataset] = {}
        for job in jobs:
            self.of(job)

    @property
    def all(self) -> list[sets.Dataset]:
        return list(self._loaded.values())

    def of(self, job: Job) -> sets.Dataset:
        """That a job's network is trained on."""
        s = (job.of or job).settings
        where = repr([s[n] for n in ("dataset", "per_class", "data_seed", "validation_share")])
        if where not in self._loaded:
            self._loaded[where] = load_data(s)
        return self._loaded[where]


class _State:
    """Which runs are there."""

    def __init__(self, maker: Maker, data: _Data) -> None:
        self._maker, self.data = maker, data
        self.runs: dict[Job, FinishedRun] = {}
        self.failed: dict[Job, str] = {}

    def settings(self, job: Job) -> Settings | None:
        """All of a job's, with the model; None while that isn't there."""
        if job.of is None:
            return job.settings
        if job.of not in self.runs:
            return None
        model = self.runs[job.of].model
        return job.settings | {"model": (model,) if job.experiment == "attack" else model}

    def _facts(self, job: Job) -> dict[str, str] | None:
        settings = self.settings(job)
        if settings is None:
            return None
        return identity.facts(job.experiment, settings, self.data.of(job).digest)

    def look_for(self, job: Job) -> None:
        """Find a job's run, if it has finished before."""
        facts = self._facts(job)
        if facts is not None:
            found = self._maker.find(facts, _LAST_METRIC[job.experiment])
            if found is not None:
                self.runs[job] = found

    def interrupted(self, job: Job) -> InterruptedRun | None:
        """The run of a training that can be gone on with."""
        facts = self._facts(job) if job.experiment == "train" else None
        return None if facts is None else self._maker.find_interrupted(facts)

    def make(self, job: Job, say: Callable[[str], None]) -> None:
        """Make a job's run, unless what it needs isn't there."""
        settings = self.settings(job)
        if settings is None:
            assert job.of is not None
            self.failed[job] = f"it needs {job.of.name}"
            return
        cut = self.interrupted(job)
        try:
            self.runs[job] = self._maker.make(
                job.experiment, settings, self.data.of(job), cut.run_id if cut else None
            )
        except (NonFiniteLossError, InputError) as error:
            self.failed[job] = str(error)
            say(f"{job.name} failed: {error}")

    def add_metrics(self, job: Job, metrics: dict[str, float]) -> None:
        """Log more figures of a job's run."""
        run = self.runs[job]
        self._maker.add_metrics(run, metrics)
        self.runs[job] = replace(run, metrics={**run.metrics, **metrics})


def _say_plan(
    say: Callable[[str], None], jobs: Sequence[Job], state: _State, to_make: Sequence[Job]
) -> list[float]:
    """Say what is there, what will be made and how long that takes; the seconds of each."""
    for job in jobs:
        if job in state.runs:
            say(f"there   {job.name} (run {state.runs[job].run_id})")
    if not to_make:
        say(f"nothing to make; {len(state.runs)} of {len(jobs)} runs are there")
        return []
    devices.start_tensorflow()
    from resfool.reproduction.estimates import seconds_of

    precisions = {job.settings["precision"] for job in to_make if job.experiment == "train"}
    for warning in filter(None, map(slowness, precisions)):
        say(warning)
    seconds = seconds_of(to_make, state.data.of)
    for number, job in enumerate(to_make):
        note, cut = "", state.interrupted(job)
        if cut:
            seconds[number] *= 1 - cut.step / job.settings["steps"]
            note = f", goes on with run {cut.run_id} from step {cut.step:,}"
        say(f"to make {job.name}: about {duration(seconds[number])}{note}")
    total = duration(sum(seconds))
    say(f"{len(to_make)} runs to make, {len(state.runs)} are there; about {total} in all")
    return seconds


def _is_tabled(job: Job, targets: Sequence[str]) -> bool:
    """Whether a job is a training whose test accuracy stands beside the paper's."""
    if READINGS in targets and job.label in {training_label(*one) for one in TRIED_READINGS}:
        return True
    return job.experiment == "train" and job.settings["depth"] in DEEP


def _judge_as_the_paper(
    monitor: Monitor,
    jobs: Sequence[Job],
    state: _State,
    scale: Scale,
    say: Callable[[str], None],
) -> None:
    """Add to finished trainings how accurate the paper would have called them."""
    for job in jobs:
        run = state.runs[job]
        if _PAPERS_WAY in run.metrics:
            continue
        say(f"judging {job.name} in the paper's way")
        devices.start_tensorflow()
        from resfool.classifiers import files, scores

        test = state.data.of(job).test
        try:
            model = files.load(monitor.find_model(run.model).path)
        except InputError as error:
            say(f"{job.name} can't be judged so: {error}")
            continue
        found = scores.chunk_accuracies(
            model,
            test.images,
            test.labels,
            chunk=scale.chunk,
            chunks=scale.chunks,
            seed=job.seed,
        )
        state.add_metrics(
            job,
            {
                _PAPERS_WAY: float(found.max()),
                "batch_statistics_test_accuracy": float(found.mean()),
                "batch_statistics_test_accuracy_std": float(found.std()),
            },
        )


def _by_label(
    jobs: Sequence[Job], runs: Mapping[Job, FinishedRun]
) -> dict[Label, list[FinishedRun]]:
    found: dict[Label, list[FinishedRun]] = {}
    for job in jobs:
        if job in runs:
            found.setdefault(job.label, []).append(runs[job])
    return found
