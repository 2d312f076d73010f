"""The search for better settings: the only file that talks to Optuna."""

import functools
import logging
import os
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Concatenate, ParamSpec, TypeVar

import optuna
from optuna import distributions, pruners, samplers
from optuna.exceptions import StorageInternalError
from optuna.trial import FrozenTrial, TrialState
from sqlalchemy.exc import SAWarning

from resfool import databases, owner
from resfool.errors import InputError, database_in, expanded_uri, present, short
from resfool.places import check_database
from resfool.trials.options import Pruner, Sampler
from resfool.trials.space import Choice, Span
from resfool.wording import without_password

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


def _sound(
    method: "Callable[Concatenate[Study, Words], Result]",
) -> "Callable[Concatenate[Study, Words], Result]":
    """The same, with one sentence where the storage can't be written, or holds what can't be used.

    Anybody may have written it, so that nearly any error comes of it.
    """

    @functools.wraps(method)
    def called(study: "Study", /, *args: Words.args, **options: Words.kwargs) -> Result:
        try:
            return method(study, *args, **options)
        except InputError:
            raise
        except StorageInternalError as error:
            reason = str(error.__cause__ or error).partition("\n")[0]
            raise InputError(f"storage={study.storage} can't be written: {reason}") from error
        except Exception as error:
            sentence = f"storage={study.storage} holds what can't be used ({short(error)})"
            raise InputError(sentence) from error

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
        check_storage(storage)
        self.storage = without_password(storage)
        self._space = space
        self.space_of = {n: _distribution(span) for n, span in space.items()}
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", SAWarning)  # of options that a database ignores
                self._study = optuna.create_study(
                    storage=expanded_uri(storage),
                    study_name=name,
                    direction="maximize",
                    load_if_exists=True,
                    pruner=_PRUNERS[pruner](),
                )
            known = len(self._study.trials)
            other = _at_work(self._study.user_attrs.get(_DRIVER))
        except Exception as error:  # SQLAlchemy's, a database driver's, or a missing one's
            reason = str(error.__cause__ or error).partition("\n")[0]
            raise InputError(_refusal(storage, reason)) from error
        if other is not None:
            raise InputError(
                f"process {other} is at work on this very search; wait for it or end it,"
                f" or search elsewhere with another storage than {self.storage}"
            )
        # A search that goes on must not draw again what it drew at its beginning.
        self._study.sampler = _SAMPLERS[sampler](seed=seed + known)
        self._running: dict[int, optuna.Trial] = {}

    @property
    def run_id(self) -> str | None:
        """The run that the study is recorded in, once it has one."""
        found = self._study.user_attrs.get(_RUN)
        return found if isinstance(found, str) and found.isalnum() else None

    @_sound
    def record_in(self, run_id: str) -> None:
        """Remember the run that the study is recorded in, and that this process is at work."""
        self._study.set_user_attr(_RUN, run_id)
        self._study.set_user_attr(_DRIVER, owner.this_process())

    @_sound
    def recover(self) -> int:
        """Put what a killed process was at back into the queue; how many trials that are."""
        lost = [t for t in self._study.trials if t.state == TrialState.RUNNING]
        for trial in lost:
            self._study.tell(trial.number, state=TrialState.FAIL)
            self._study.enqueue_trial(trial.params)
        return len(lost)

    @_sound
    def propose(self) -> tuple[int, dict[str, Any]]:
        """The next trial's number, and the settings that it tries."""
        trial = self._study.ask(self.space_of)
        self._running[trial.number] = trial
        return trial.number, dict(trial.params)

    @_sound
    def report(self, number: int, step: int, value: float) -> bool:
        """Take a running trial's accuracy at a step; whether it isn't worth going on."""
        trial = self._running[number]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # a trial that runs again reports its steps again
            trial.report(value, step)
        return bool(trial.should_prune())

    @_sound
    def tell(self, number: int, value: float | None) -> None:
        """End a trial: with its final accuracy, or None if it was stopped early."""
        state = TrialState.PRUNED if value is None else TrialState.COMPLETE
        self._study.tell(self._running.pop(number), value, state=state)

    @_sound
    def fail(self, number: int) -> None:
        """End a trial that went wrong and says nothing about its settings."""
        self._study.tell(self._running.pop(number), state=TrialState.FAIL)

    @_sound
    def tried(self) -> list[TriedTrial]:
        """All trials that ended, with success or pruned, in order.

        Raises:
            InputError: one is none of this search.
        """
        trials = self._study.get_trials(states=_ENDED)
        for trial in trials:
            if not _is_of(trial, self._space):
                raise InputError(
                    f"storage={self.storage} can't be used: trial {trial.number} of "
                    f"{self._study.study_name} is none that this search has made"
                )
        return [_tried(trial) for trial in trials]

    @_sound
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


def check_storage(storage: str) -> None:
    """Refuse a storage that is no database's URL, or whose database can't be reached.

    Raises:
        InputError: this.
    """
    file = database_in(expanded_uri(storage))
    why = databases.flaw(storage) or databases.failure(storage)
    if why is None and file is not None and not present(file.parent):
        why = f"there is no folder {file.parent}"
    if why is not None:
        raise InputError(_refusal(storage, why))
    if file is not None:
        check_database("tuning storage", file)


def _refusal(storage: str, why: str) -> str:
    return databases.refusal("storage", storage, "tuning", why)


def _at_work(driver: Any) -> int | None:
    """The process of this machine that has begun a study, if it is another one and there still."""
    try:
        pid, here = driver["pid"], driver["host"] == owner.host()
        there = here and pid != os.getpid() and owner.at_work(driver)
    except (KeyError, TypeError, ValueError, OverflowError):
        return None  # somebody made it up
    return pid if there else None


def _is_of(trial: FrozenTrial, space: Mapping[str, Span]) -> bool:
    """Whether an ended trial has a value for each setting that may be varied, and an accuracy."""
    accuracies = [*trial.intermediate_values.values(), trial.value or 0.0]
    return (
        trial.params.keys() == space.keys()
        and all(_allows(space[name], value) for name, value in trial.params.items())
        and all(0 <= accuracy <= 1 for accuracy in accuracies)
        and trial.duration is not None
    )


def _allows(span: Span, value: Any) -> bool:
    if isinstance(span, Choice):
        return value in span.values
    return isinstance(value, float) and span.low <= value <= span.high


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
