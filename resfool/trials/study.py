"""The search for better settings: the only file that talks to Optuna."""

import functools
import logging
import os
import platform
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Concatenate, ParamSpec, TypeVar

import optuna
import psutil
from optuna import distributions, pruners, samplers
from optuna.exceptions import StorageInternalError
from optuna.trial import FrozenTrial, TrialState

from resfool.errors import InputError, database_in, expanded_uri
from resfool.places import check_database
from resfool.trials.options import Pruner, Sampler
from resfool.trials.space import Choice, Span

_ENDED = TrialState.COMPLETE, TrialState.PRUNED
_RUN, _DRIVER = "run_id", "driver"
Words = ParamSpec("Words")
Result = TypeVar("Result")


@dataclass(frozen=True)
class TriedTrial:
    """A trial that ended: its value is its accuracy, that of the last report if it was pruned."""

    number: int
    settings: dict[str, Any]
    value: float
    pruned: bool
    seconds: float


def _written(
    method: "Callable[Concatenate[Study, Words], Result]",
) -> "Callable[Concatenate[Study, Words], Result]":
    """The same, with one sentence where the storage can't be written any more."""

    @functools.wraps(method)
    def called(study: "Study", /, *args: Words.args, **options: Words.kwargs) -> Result:
        try:
            return method(study, *args, **options)
        except StorageInternalError as error:
            reason = str(error.__cause__ or error).splitlines()[0]
            raise InputError(f"storage={study.storage} can't be written: {reason}") from error

    return called


class Study:
    """A search that outlives its process: what is asked, reported and told is kept at once.

    Args:
        name: of the study; one of the same name in the storage is gone on with.
        space: what may be varied, by the setting's name.
        storage: URL of a database, such as sqlite:///tuning.db.
        sampler: "tpe" learns from earlier trials, "random" doesn't.
        pruner: "median" stops what is below the median of the earlier trials at the same step,
            "halving" keeps the best third at each of a few rungs, "none" stops nothing.
        seed: of the sampler.

    Raises:
        InputError: the storage can't be used, now or later, or another process of this machine is
            at work on the study.
    """

    def __init__(
        self,
        name: str,
        space: Mapping[str, Span],
        *,
        storage: str,
        sampler: Sampler,
        pruner: Pruner,
        seed: int,
    ) -> None:
        optuna.logging.set_verbosity(logging.WARNING)
        self.storage = storage
        if database := database_in(expanded_uri(storage)):
            check_database("tuning storage", database)
        self.space_of = {n: _distribution(span) for n, span in space.items()}
        try:
            self._study = optuna.create_study(
                storage=expanded_uri(storage),
                study_name=name,
                direction="maximize",
                load_if_exists=True,
                pruner=_PRUNERS[pruner](),
            )
            known = len(self._study.trials)
        except Exception as error:  # SQLAlchemy's, a database driver's, or a missing one's
            reason = str(error).splitlines()[0]
            raise InputError(f"storage={storage} can't be used for tuning: {reason}") from error
        other = _at_work(self._study.user_attrs.get(_DRIVER))
        if other is not None:
            raise InputError(
                f"process {other} is at work on this very search; wait for it or end it,"
                f" or search elsewhere with another storage than {storage}"
            )
        # A search that goes on must not draw again what it drew at its beginning.
        self._study.sampler = _SAMPLERS[sampler](seed=seed + known)
        self._running: dict[int, optuna.Trial] = {}

    @property
    def run_id(self) -> str | None:
        """The run that the study is recorded in, once it has one."""
        found = self._study.user_attrs.get(_RUN)
        return None if found is None else str(found)

    @_written
    def record_in(self, run_id: str) -> None:
        """Remember the run that the study is recorded in, and that this process is at work."""
        self._study.set_user_attr(_RUN, run_id)
        self._study.set_user_attr(_DRIVER, _this_process())

    @_written
    def recover(self) -> int:
        """Put what a killed process was at back into the queue; how many trials that are."""
        lost = [t for t in self._study.trials if t.state == TrialState.RUNNING]
        for trial in lost:
            self._study.tell(trial.number, state=TrialState.FAIL)
            self._study.enqueue_trial(trial.params)
        return len(lost)

    @_written
    def propose(self) -> tuple[int, dict[str, Any]]:
        """The next trial's number, and the settings that it tries."""
        trial = self._study.ask(self.space_of)
        self._running[trial.number] = trial
        return trial.number, dict(trial.params)

    @_written
    def report(self, number: int, step: int, value: float) -> bool:
        """Take a running trial's accuracy at a step; whether it isn't worth going on."""
        trial = self._running[number]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # a trial that runs again reports its steps again
            trial.report(value, step)
        return bool(trial.should_prune())

    @_written
    def tell(self, number: int, value: float | None) -> None:
        """End a trial: with its final accuracy, or None if it was stopped early."""
        state = TrialState.PRUNED if value is None else TrialState.COMPLETE
        self._study.tell(self._running.pop(number), value, state=state)

    @_written
    def fail(self, number: int) -> None:
        """End a trial that went wrong and says nothing about its settings."""
        self._study.tell(self._running.pop(number), state=TrialState.FAIL)

    def tried(self) -> list[TriedTrial]:
        """All trials that ended, with success or pruned, in order."""
        return [_tried(trial) for trial in self._study.get_trials(states=_ENDED)]

    def importances(self) -> dict[str, float]:
        """The share of the variance of the accuracy that each setting explains, largest first.

        Empty where there are too few finished trials to tell.
        """
        finished = self._study.get_trials(states=(TrialState.COMPLETE,))
        if len(finished) < 4 or len({trial.value for trial in finished}) < 2:
            return {}
        evaluator = optuna.importance.FanovaImportanceEvaluator(seed=0)
        found = optuna.importance.get_param_importances(self._study, evaluator=evaluator)
        return {name: float(share) for name, share in found.items()}


def _this_process() -> dict[str, Any]:
    """Tells this process from any other, of another time or machine too."""
    process = psutil.Process()
    return {"host": platform.node(), "pid": process.pid, "created": process.create_time()}


def _at_work(driver: Mapping[str, Any] | None) -> int | None:
    """The process of this machine that has begun a study, if it is another one and there still."""
    if driver is None or driver["host"] != platform.node() or driver["pid"] == os.getpid():
        return None
    try:
        same = psutil.Process(driver["pid"]).create_time() == driver["created"]
    except psutil.NoSuchProcess:
        return None
    return int(driver["pid"]) if same else None


def _tried(trial: FrozenTrial) -> TriedTrial:
    reports = trial.intermediate_values
    last = reports[max(reports)] if reports else 0.0
    value = float(last if trial.value is None else trial.value)
    assert trial.duration is not None
    pruned, seconds = trial.state == TrialState.PRUNED, trial.duration.total_seconds()
    return TriedTrial(trial.number, dict(trial.params), value, pruned, seconds)


def _distribution(span: Span) -> distributions.BaseDistribution:
    if isinstance(span, Choice):
        return distributions.CategoricalDistribution(span.values)
    return distributions.FloatDistribution(span.low, span.high, log=span.log)


_SAMPLERS: dict[Sampler, Any] = {
    # A running trial counts as a bad one nearby, so that parallel trials spread out.
    "tpe": functools.partial(samplers.TPESampler, multivariate=True, constant_liar=True),
    "random": samplers.RandomSampler,
}
_PRUNERS: dict[Pruner, Any] = {
    "median": functools.partial(pruners.MedianPruner, n_startup_trials=5, n_warmup_steps=1),
    "halving": pruners.SuccessiveHalvingPruner,
    "none": pruners.NopPruner,
}
