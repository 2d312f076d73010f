"""What the paper left untuned: a search on validation images, never on test images."""

import hashlib
import json
import shlex
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from resfool import identity
from resfool.datasets.sets import Dataset, load_data
from resfool.errors import InputError, TrialError
from resfool.monitor import Monitor
from resfool.parameters import (
    Arch,
    Backend,
    Fraction,
    Names,
    NonNegativeFloat,
    PositiveCount,
    Pruner,
    Row,
    Sampler,
    Seed,
    show,
)
from resfool.training.recipe import Settings, check, default
from resfool.trials.recorder import Recorder, Trained, Trainer
from resfool.trials.space import as_given, fitting, space_of
from resfool.trials.sweep import Keep, OpenPool

# Parameters of `train` that a tuning sets itself, or has no use for.
TUNED = "arch", "seed", "validation_share", "checkpoint_seconds"


class Study(Protocol):
    """What proposes settings and learns from them, such as `tuning.Study`."""

    @property
    def run_id(self) -> str | None:
        """The run that the search is recorded in, if it has begun before."""

    def record_in(self, run_id: str) -> None:
        """Remember the run that the search is recorded in."""

    def recover(self) -> int:
        """Queue again what a killed process was at."""

    def propose(self) -> Any:
        """The next trial: its number and settings."""

    def report(self, number: int, step: int, value: float) -> bool:
        """Take a running trial's accuracy; whether to stop it."""

    def tell(self, number: int, value: float | None) -> None:
        """End a trial: with its accuracy, or None if it was stopped."""

    def fail(self, number: int) -> None:
        """End a trial that went wrong."""

    def tried(self) -> list[Any]:
        """The trials that ended."""

    def importances(self) -> dict[str, float]:
        """How much each setting matters."""


@dataclass(frozen=True)
class Tuning:
    """What a search found.

    Attributes:
        tried: the trials in order, with number, settings, value, pruned and seconds.
        importances: by setting, the share of the accuracy's variance that it explains.
        best: settings of the best trial, as `train` takes them: those that were searched.
        value: its validation accuracy.
        command: the line that trains it on all training images, and tests it.
    """

    tried: list[Any]
    importances: dict[str, float]
    best: dict[str, Any]
    value: float
    command: str


def tune(
    monitor: Monitor,
    open_pool: OpenPool,
    open_study: Callable[..., Study],
    keep: Keep,
    training: Settings,
    say: Callable[[str], None] = print,
    /,
    *,
    arch: Arch,
    trials: PositiveCount = 50,
    search: Names | None = None,
    sampler: Sampler = "tpe",
    pruner: Pruner = "median",
    validation_share: Fraction = 0.1,
    seed: Seed = 0,
    storage: str = "sqlite:///tuning.db",
    workers: PositiveCount | None = None,
    backend: Backend = "joblib",
    ray_address: str | None = None,
    cpus_per_trial: PositiveCount = 1,
    gpus_per_trial: NonNegativeFloat = 0.0,
    patience: NonNegativeFloat = 0.0,
) -> Tuning:
    """Search for the settings of an architecture that do best on validation images.

    The same command goes on with a search that was interrupted, in the same run.

    Args:
        monitor: of the whole.
        open_pool: opens workers, see `parallel.Pool`.
        open_study: opens a search, see `tuning.Study`.
        keep: is given each finished training's monitor, outcome, curve and data set.
        training: the other arguments of `train`; what isn't at its default isn't searched.
        say: is told the user what goes on from where, and what failed.
        arch: convnet, resnet, highway, multiresnet or mlp.
        trials: trainings that end, finished or pruned.
        search: settings to search: learning_rate, weight_decay, dropout, gate_bias, width, depth,
            optimizer, batch_size; none is all that the architecture has and that aren't given.
        sampler: tpe, which learns from earlier trials, or random.
        pruner: median or halving stop early what does badly; none doesn't.
        validation_share: share of the training images that is set aside to choose by.
        seed: seed of the search and of every training.
        storage: database of the search, an SQLAlchemy URL.
        workers: trainings at a time; none is as many as the cores or the cluster hold.
        backend: joblib (processes of this machine), ray (a cluster) or serial (one process).
        ray_address: of the cluster: auto, host:port or ray://host:port; none starts Ray on this
            machine.
        cpus_per_trial: cores of each training, which are its threads.
        gpus_per_trial: GPUs of each training, on ray.
        patience: seconds that a Ray cluster has to grow to what is asked for.

    Returns:
        The trials and the best settings.

    Raises:
        InputError: an argument can't be used; nothing was trained.
        TrialError: too many trials failed.
        KeyboardInterrupt: Ctrl-C or SIGTERM; what has ended is kept for the same command.
    """
    if not validation_share:
        raise InputError("validation_share=0.0 leaves no images to choose by; give it such as 0.1")
    own = {"arch": arch, "seed": seed, "validation_share": validation_share}
    base = {"arch": arch} | training | own
    if training["eval_every"] == default("eval_every"):
        base["eval_every"] = max(1, training["steps"] // 10)
    space = space_of(arch, search, training)
    check(base)
    space = {name: fitting(name, span, base) for name, span in space.items()}
    data = load_data(base)
    setup = {
        "space": {name: repr(span) for name, span in space.items()},
        "sampler": sampler,
        "pruner": pruner,
        "training": identity.key(base, data.digest),
    }
    digest = hashlib.sha256(json.dumps(setup, sort_keys=True).encode()).hexdigest()[:12]
    study = open_study(
        f"resfool {arch} {data.name} {digest}",
        space,
        storage=storage,
        sampler=sampler,
        pruner=pruner,
        seed=seed,
    )
    facts = base | {
        "trials": trials,
        "search": tuple(space),
        "sampler": sampler,
        "pruner": pruner,
        "dataset_digest": data.digest,
        "backend": backend,
    }
    search_of = _Search(monitor, study, data, keep, say, base, trials)
    trainer = Trainer(data if backend == "ray" else None)
    recorder = Recorder(monitor, data, search_of.keep, search_of.watch)
    with recorder, open_pool(trainer, receive=recorder.receive) as pool:
        if study.run_id and monitor.has_run(study.run_id):
            monitor.reopen(study.run_id)
        elif study.run_id:
            say(f"its run {study.run_id} is gone; what comes from now on is in a new one")
        title = f"tuning of {arch}, {data.name}"
        monitor.begin(title, facts, [(data, "train", "training"), (data, "validation", "tuning")])
        study.record_in(monitor.run_id)
        search_of.run(pool, recorder)
    tried = study.tried()
    best = max(tried, key=lambda trial: (not trial.pruned, trial.value))
    found = as_given(best.settings)
    return Tuning(tried, study.importances(), found, best.value, _command(base | found))


class _Search:
    """A search that is going on."""

    def __init__(
        self,
        monitor: Monitor,
        study: Study,
        data: Dataset,
        keep: Keep,
        say: Callable[[str], None],
        base: Settings,
        trials: int,
    ) -> None:
        self._monitor, self._study, self._data, self._keep_home = monitor, study, data, keep
        self._say, self._base, self._trials = say, base, trials
        self._best = 0.0
        self._ended = 0
        self._failures = 0
        self._steps: dict[int, int] = {}  # that the trials which run have done

    def run(self, pool: Any, recorder: Recorder) -> None:
        """Propose and learn until as many trials as are wanted have ended."""
        lost = self._study.recover()
        tried = self._study.tried()
        self._ended = len(tried)
        self._best = max((trial.value for trial in tried if not trial.pruned), default=0.0)
        if tried or lost:
            self._say(f"going on with a search of which {self._ended} trials have ended")
        for _ in range(min(pool.size, self._trials - self._ended)):
            self._submit(pool)
        for number, outcome in pool.finished():
            self._ended += self._end(number, outcome, recorder)
            self._progress()
            if self._ended + len(self._steps) < self._trials:
                self._submit(pool)

    def keep(self, number: int, trained: Trained, own: Monitor, curve: Sequence[Row]) -> None:
        self._keep_home(own, trained, curve, self._data)

    def watch(self, number: int, row: Row) -> bool:
        self._steps[number] = int(row["step"])
        self._progress()
        if "validation_accuracy" not in row:
            return False
        return self._study.report(number, int(row["step"]), row["validation_accuracy"])

    def _submit(self, pool: Any) -> None:
        proposal = self._study.propose()
        self._steps[proposal.number] = 0
        pool.submit(proposal.number, self._base | as_given(proposal.settings))

    def _end(self, number: int, outcome: Any, recorder: Recorder) -> bool:
        """Record a trial's end and tell the study; whether it counts."""
        del self._steps[number]
        done = recorder.end(number, outcome)
        if done is not None:
            accuracy = done.metrics["final_validation_accuracy"]
            self._best = max(self._best, accuracy)
            self._monitor.point({"step": number, "trial_validation_accuracy": accuracy})
            self._monitor.point({"step": number, "best_validation_accuracy": self._best})
            self._study.tell(number, accuracy)
        elif outcome is None:
            self._study.tell(number, None)
        elif outcome.kind == "NonFiniteLossError":
            self._say(f"trial {number} diverged, which counts as an accuracy of 0")
            self._study.tell(number, 0.0)
        else:
            self._study.fail(number)
            self._failures += 1
            self._say(f"trial {number} failed: {outcome}")
            if self._failures >= 5:
                raise TrialError(f"{self._failures} trials failed; the last: {outcome}")
            return False
        return True

    def _progress(self) -> None:
        steps = sum(self._steps.values())
        text = f"trials, best {self._best:.4f}; {len(self._steps)} at work have done {steps} steps"
        self._monitor.progress(self._ended, self._trials, text)


def _command(settings: Settings) -> str:
    """The line that trains with some settings on all training images."""
    left_out = ("validation_share", "eval_every", "checkpoint_seconds")
    words = [
        f"-P {shlex.quote(f'{name}={show(value)}')}"
        for name, value in settings.items()
        if name == "arch" or (name not in left_out and value != default(name))
    ]
    return " ".join(["mlflow run . -e train", *words])
