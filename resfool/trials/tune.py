"""What the paper left untuned: a search on validation images, never on test images."""

import hashlib
import json
import shlex
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from resfool import identity
from resfool.archive import Archive
from resfool.datasets.sets import load_data
from resfool.errors import InputError, TrialError, project
from resfool.monitor import Monitor
from resfool.training.recipe import TrainParameters
from resfool.trials.options import TuneParameters
from resfool.trials.recorder import Recorder, Trained, Trial
from resfool.trials.space import as_given, space_of
from resfool.trials.sweep import Keep, OpenPool
from resfool.values import Row, show
from resfool.wording import label

if TYPE_CHECKING:
    from resfool.trials.study import Study, TriedTrial

# Opens a search, see `study.Study`.
OpenStudy = Callable[..., "Study"]
_LONGEST_NAME = 400  # of a data set, in that of a study, which databases keep 512 signs of


@dataclass(frozen=True)
class Tuning:
    """What a search found.

    Attributes:
        tried: the trials in order.
        importances: by setting, the share of the accuracy's variance that it explains.
        best: settings of the best trial, as `train` takes them: those that were searched.
        value: its validation accuracy.
        command: the line that trains it on all training images, and tests it.
    """

    tried: list["TriedTrial"]
    importances: dict[str, float]
    best: dict[str, Any]
    value: float
    command: str


def tune(
    asked: TuneParameters,
    open_pool: OpenPool,
    open_study: OpenStudy,
    keep: Keep,
    monitor: Monitor | None = None,
    archive: Archive | None = None,
) -> Tuning:
    """Search for the settings of an architecture that do best on validation images.

    The same command goes on with a search that was interrupted, in the same run.

    Args:
        asked: the search, and what its trainings have in common.
        open_pool: opens workers.
        open_study: opens the search.
        keep: records a finished training.
        monitor: of the whole.
        archive: where the run of a search that goes on is looked for.

    Raises:
        InputError: a parameter can't be used; nothing was trained.
        TrialError: too many trials failed.
        KeyboardInterrupt: Ctrl-C or SIGTERM; what has ended is kept for the same command.
    """
    monitor, archive = monitor or Monitor(), archive or Archive()
    base, space = asked.training, space_of(asked)
    data = load_data(base)
    asked.check_affordable(data.train.known)
    ways: dict[str, Any] = {"sampler": asked.sampler, "pruner": asked.pruner}
    setup = ways | {
        "space": {name: repr(span) for name, span in space.items()},
        "training": identity.key("train", base.settled(), data.digest),
    }
    digest = hashlib.sha256(json.dumps(setup, sort_keys=True).encode()).hexdigest()[:12]
    name = f"resfool {asked.arch} {label(data.name, _LONGEST_NAME)} {digest}"
    study = open_study(name, space, storage=asked.database, seed=asked.seed, **ways)
    facts = base.shared(TuneParameters) | {
        "trials": asked.trials,
        "search": tuple(space),
        **ways,
        "dataset_digest": data.digest,
        "backend": asked.crew["backend"],
    }

    def keep_home(number: int, trained: Trained, own: Monitor, curve: Sequence[Row]) -> None:
        keep(own, trained, curve, data)

    search = _Search(monitor, study, base, asked.trials)
    trial = Trial(data if asked.backend == "ray" else None)
    recorder = Recorder(monitor, data, keep_home, search.watch)
    with recorder, open_pool(trial, receive=recorder.receive) as pool:
        if study.run_id and archive.has_run(study.run_id):
            monitor.reopen(study.run_id)
        elif study.run_id:
            monitor.say(f"its run {study.run_id} is gone; what comes from now on is in a new one")
        title = f"tuning of {asked.arch}, {data.name}"
        monitor.begin(title, facts, [(data, "train", "training"), (data, "validation", "tuning")])
        study.record_in(monitor.run_id)
        search.run(pool, recorder)
    tried = study.tried()
    best = max(tried, key=lambda trial: (not trial.pruned, trial.value))
    found = as_given(best.settings)
    return Tuning(tried, study.importances(), found, best.value, _command(replace(base, **found)))


@dataclass
class _Search:
    """A search that is going on."""

    monitor: Monitor
    study: "Study"
    base: TrainParameters
    trials: int
    best: float = 0.0
    ended: int = 0
    failures: int = 0
    steps: dict[int, int] = field(default_factory=dict)  # that the trials which run have done

    def run(self, pool: Any, recorder: Recorder) -> None:
        """Propose and learn until as many trials as are wanted have ended."""
        lost = self.study.recover()
        tried = self.study.tried()
        self.ended = len(tried)
        self.best = max((trial.value for trial in tried if not trial.pruned), default=0.0)
        if tried or lost:
            self.monitor.say(f"going on with a search of which {self.ended} trials have ended")
        for _ in range(min(pool.size, self.trials - self.ended)):
            self._submit(pool)
        for number, outcome in pool.finished():
            self.ended += self._end(number, outcome, recorder)
            self._progress()
            if self.ended + len(self.steps) < self.trials:
                self._submit(pool)

    def watch(self, number: int, row: Row) -> bool:
        """Take note of a trial's point; whether the trial isn't worth going on."""
        self.steps[number] = step = int(row["step"])
        self._progress()
        accuracy = row.get("validation_accuracy")
        return accuracy is not None and self.study.report(number, step, accuracy)

    def _submit(self, pool: Any) -> None:
        number, settings = self.study.propose()
        self.steps[number] = 0
        pool.submit(number, replace(self.base, **as_given(settings)))

    def _end(self, number: int, outcome: Any, recorder: Recorder) -> bool:
        """Record a trial's end and tell the study; whether it counts."""
        del self.steps[number]
        done = recorder.end(number, outcome)
        if done is not None:
            accuracy = done.metrics["final_validation_accuracy"]
            self.best = max(self.best, accuracy)
            self.monitor.point({"step": number, "trial_validation_accuracy": accuracy})
            self.monitor.point({"step": number, "best_validation_accuracy": self.best})
            self.study.tell(number, accuracy)
        elif outcome is None:
            self.study.tell(number, None)
        elif outcome.kind == "NonFiniteLossError":
            self.monitor.say(f"trial {number} diverged, which counts as an accuracy of 0")
            self.study.tell(number, 0.0)
        else:
            self.study.fail(number)
            self.failures += 1
            self.monitor.say(f"trial {number} failed: {outcome}")
            if self.failures >= 5:
                raise TrialError(f"{self.failures} trials failed; the last: {outcome}")
            return False
        return True

    def _progress(self) -> None:
        steps = sum(self.steps.values())
        text = f"trials, best {self.best:.4f}; {len(self.steps)} at work have done {steps} steps"
        self.monitor.progress(self.ended, self.trials, text)


def _command(training: TrainParameters) -> str:
    """The line that trains so on all training images."""
    left_out = {"validation_share", "eval_every", "checkpoint_seconds"}
    try:
        replace(training, validation_share=0.0).check_effects()
    except InputError:  # images were set aside by it, and nothing else
        left_out.add("data_seed")
    words = [
        f"-P {shlex.quote(f'{name}={show(value)}')}"
        for name, value in training.given().items()
        if name not in left_out
    ]
    return " ".join([f"mlflow run {shlex.quote(project())} -e train", *words])
