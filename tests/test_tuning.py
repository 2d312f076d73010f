"""The search for settings: planted optima, twins of one seed, and a driver that is killed."""

import contextlib
import shutil
import signal
import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import mlflow
import optuna
import pytest
from mlflow import MlflowClient
from optuna.distributions import CategoricalDistribution, FloatDistribution
from optuna.exceptions import StorageInternalError
from optuna.trial import TrialState

from entry_points import tune
from resfool import command_line, databases, owner
from resfool.errors import InputError
from resfool.networks.shape import ARCHITECTURES
from resfool.parallel.tasks import Failure
from resfool.tracking.archive import MLflowArchive
from resfool.tracking.run import Run
from resfool.training.recipe import TrainParameters
from resfool.trials import recorder
from resfool.trials.options import TuneParameters
from resfool.trials.presentation import tuning_summary
from resfool.trials.space import Between, Choice
from resfool.trials.study import Study, _at_work, _is_of, check_storage
from resfool.trials.tune import Tuning
from resfool.trials.tune import tune as tune_settings
from resfool.values import show
from tests.conftest import refused
from tests.processes import Process

STEPS = 5


def accuracy(asked: TrainParameters) -> float:
    """Planted: the learning rate decides nearly all, dropout a little, the rest nothing."""
    import math

    rate = abs(math.log10(asked.rules.learning_rate) + 2.5)  # best at 10^-2.5
    return max(0.0, 0.95 - 0.3 * rate - 0.05 * asked.dropout)


class FakePool:
    """Trains by the formula: no network, no processes."""

    size = 1

    def __init__(self, function: Any, *, receive: Callable[[Any, Any], bool]) -> None:
        self._receive = receive
        self._waiting: deque[tuple[int, TrainParameters]] = deque()

    def __enter__(self) -> "FakePool":
        return self

    def __exit__(self, *error: object) -> None:
        pass

    def submit(self, place: int, item: TrainParameters) -> None:
        self._waiting.append((place, item))

    def finished(self) -> Iterator[tuple[int, Any]]:
        while self._waiting:
            place, asked = self._waiting.popleft()
            yield place, self.trained(place, asked)

    def trained(self, place: int, asked: TrainParameters) -> Any:
        final = accuracy(asked)
        self._receive(place, ("begin", (f"trial {place}", {"trial": place}, [])))
        for step in range(1, STEPS + 1):
            row = {"step": step, "validation_accuracy": final * step / STEPS}
            if self._receive(place, ("point", (row,))):
                return None
        return recorder.Trained("net", "validation", {"final_validation_accuracy": final}, b"")


class Quiet(Run):
    """A run that says nothing."""

    def say(self, text: str) -> None:
        pass


def options(*words: str) -> TuneParameters:
    (asked,) = command_line.parse(TuneParameters, argv=["--arch=mlp", "--dataset=digits", *words])
    assert isinstance(asked, TuneParameters)
    return asked


def tuned(*words: str, pool: Any = FakePool, keep: Any = None) -> Tuning:
    with Quiet() as run:
        kept = keep or (lambda *arguments: None)
        return tune_settings(options(*words), pool, Study, kept, run, MLflowArchive())


@pytest.mark.slow
def test_the_planted_optimum_is_found_and_what_matters_is_known(store: MlflowClient) -> None:
    names = "learning_rate,weight_decay,dropout,width,depth,optimizer,batch_size,augment"
    found = tuned("--trials=40", "--pruner=none", f"--search={names}")
    assert len(found.tried) == 40
    assert 10**-3 < found.best["learning_rate"] < 10**-2
    assert next(iter(found.importances)) == "learning_rate"
    assert found.importances["learning_rate"] > 0.5  # more than all others together
    # The line trains what was found: read back, it gives these very settings.
    words = [
        f"--{word}"
        for word in found.command.removeprefix("mlflow run . -e train -P ").split(" -P ")
    ]
    (again,) = command_line.parse(TrainParameters, argv=words)
    kept = again.settings()
    assert all(show(kept[name]) == show(value) for name, value in found.best.items())
    assert again.settings()["validation_share"] == 0.0


@pytest.mark.slow
def test_two_searches_of_one_seed_are_twins(store: MlflowClient) -> None:
    one, other, third = (
        tuned(f"--trials={trials}", f"--storage=sqlite:///{name}.db", f"--seed={seed}")
        for name, seed, trials in (("one", 3, 15), ("other", 3, 15), ("third", 4, 3))
    )
    assert [(t.settings, t.value, t.pruned) for t in one.tried] == [
        (t.settings, t.value, t.pruned) for t in other.tried
    ]
    assert any(trial.pruned for trial in one.tried)
    assert [t.settings for t in one.tried][:3] != [t.settings for t in third.tried]


def parts(store: MlflowClient) -> tuple[Any, list[Any]]:
    """The one run on top, and those under it."""
    runs = store.search_runs(["0"])
    (parent,) = [run for run in runs if "mlflow.parentRunId" not in run.data.tags]
    children = [run for run in runs if run is not parent]
    assert {run.data.tags["mlflow.parentRunId"] for run in children} <= {parent.info.run_id}
    return parent, children


@pytest.mark.slow
def test_a_killed_search_goes_on_in_its_run_with_exactly_as_many_trials(
    store: MlflowClient, tmp_path: Path
) -> None:
    script = """
import os, signal
from tests import test_tuning

class Dying(test_tuning.FakePool):
    def trained(self, place, asked):
        if place == 4:
            self._receive(place, ("begin", (f"trial {place}", {}, [])))
            os.kill(os.getpid(), signal.SIGKILL)
        return super().trained(place, asked)

test_tuning.tuned("--trials=9", pool=Dying)
"""
    killed = Process(script)
    assert killed.wait() == -signal.SIGKILL, killed.printed()
    _, children = parts(store)
    assert sum(run.info.status == "RUNNING" for run in children) == 1
    found = tuned("--trials=9")
    parent, children = parts(store)
    assert parent.info.status == "FINISHED"
    states = [run.info.status for run in children]
    assert sorted(states) == ["FINISHED"] * 9 + ["KILLED"]
    assert len(found.tried) == 9
    (study,) = optuna.get_all_study_summaries("sqlite:///tuning.db")
    loaded = optuna.load_study(study_name=study.study_name, storage="sqlite:///tuning.db")
    # What it was at when it was killed was tried again, not lost.
    lost = [t for t in loaded.trials if t.state == TrialState.FAIL]
    assert len(lost) == 1
    assert sum(t.params == lost[0].params for t in loaded.trials) == 2
    # The same command once more has nothing left to do.
    assert [t.number for t in tuned("--trials=9").tried] == [t.number for t in found.tried]
    assert len(parts(store)[1]) == 10


@pytest.mark.parametrize("gone", ["deleted", "elsewhere"])
def test_a_search_whose_run_is_gone_goes_on_in_a_new_one(
    store: MlflowClient, empty_store: Path, tmp_path: Path, gone: str
) -> None:
    tuned("--trials=1")
    old, _ = parts(store)
    if gone == "deleted":
        store.delete_run(old.info.run_id)
    else:
        shutil.copy(empty_store, tmp_path / "other.db")
        mlflow.set_tracking_uri(f"sqlite:///{tmp_path}/other.db")
    assert len(tuned("--trials=2").tried) == 2
    assert len(tuned("--trials=3").tried) == 3
    runs = MlflowClient().search_runs(["0"])
    (new,) = [run for run in runs if "mlflow.parentRunId" not in run.data.tags]
    assert new.info.run_id != old.info.run_id and new.info.status == "FINISHED"
    parents = [run.data.tags.get("mlflow.parentRunId") for run in runs]
    assert parents.count(new.info.run_id) == 2


@pytest.mark.slow
def test_two_drivers_never_share_a_search(store: MlflowClient, tmp_path: Path) -> None:
    script = """
import time
from pathlib import Path
from tests import test_tuning

class Waiting(test_tuning.FakePool):
    def trained(self, place, asked):
        Path("at work").touch()
        until = time.monotonic() + 120
        while not Path("seen").exists() and time.monotonic() < until:
            time.sleep(0.02)
        return super().trained(place, asked)

test_tuning.tuned("--trials=1", pool=Waiting)
"""
    other = Process(script)
    deadline = time.monotonic() + 120
    while not Path("at work").exists() and time.monotonic() < deadline:
        assert other.poll() is None, other.printed()
        time.sleep(0.02)
    with pytest.raises(InputError, match=f"process {other.pid} is at work on this very search"):
        tuned("--trials=1")
    Path("seen").touch()
    assert other.wait() == 0, other.printed()
    assert len(tuned("--trials=2").tried) == 2


class Interrupting:
    """A fact that is checked, and interrupts as it is recorded."""

    def __init__(self) -> None:
        self._shown = 0

    def __str__(self) -> str:
        self._shown += 1
        if self._shown > 1:
            raise KeyboardInterrupt
        return "a fact"


@pytest.mark.parametrize("facts", [{}, {"logged": Interrupting()}], ids=["later", "as it begins"])
def test_an_interrupted_search_leaves_nothing_running(
    store: MlflowClient, facts: dict[str, Any]
) -> None:
    class Interrupted(FakePool):
        def trained(self, place: int, asked: TrainParameters) -> Any:
            if place == 2:
                self._receive(place, ("begin", ("trial", facts, [])))
                raise KeyboardInterrupt
            return super().trained(place, asked)

    with contextlib.suppress(KeyboardInterrupt):
        tuned("--trials=5", pool=Interrupted)
    parent, children = parts(store)
    assert parent.info.status == "KILLED"
    assert sorted(run.info.status for run in children) == ["FINISHED", "FINISHED", "KILLED"]
    tuned("--trials=5")
    assert parts(store)[0].info.status == "FINISHED"


def test_divergence_is_a_bad_trial_and_other_failures_are_none(store: MlflowClient) -> None:
    class Failing(FakePool):
        def trained(self, place: int, asked: TrainParameters) -> Any:
            if place in (1, 3):
                kind = "NonFiniteLossError" if place == 1 else "OSError"
                self._receive(place, ("begin", ("trial", {}, [])))
                return Failure(kind, "so it goes")
            return super().trained(place, asked)

    found = tuned("--trials=6", "--pruner=none", pool=Failing)
    assert [t.number for t in found.tried] == [0, 1, 2, 4, 5, 6]
    assert found.tried[1].value == 0
    statuses = [run.info.status for run in parts(store)[1]]
    assert statuses.count("FAILED") == 2


def test_what_is_given_is_not_searched(store: MlflowClient) -> None:
    found = tuned("--trials=2", "--depth=3", "--learning_rate=0.004")
    assert {"depth", "learning_rate", "gate_bias"}.isdisjoint(found.best)
    assert "-P depth=3" in found.command and "-P learning_rate=0.004" in found.command
    only = tuned("--trials=2", "--search=learning_rate,dropout")
    assert set(only.best) == {"learning_rate", "dropout"}


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--arch=resnet"], (10, 15, 20, 25)),
        (["--arch=resnet", "--convs_per_unit=2"], (10, 20)),
        (["--width=100,80,60,40,20"], (5,)),
    ],
)
def test_only_what_train_takes_is_searched(
    store: MlflowClient, words: list[str], expected: tuple[int, ...]
) -> None:
    class Checking(FakePool):
        def trained(self, place: int, asked: TrainParameters) -> Any:
            assert asked.network  # it would be refused here
            return super().trained(place, asked)

    tuned(*words, "--trials=1", pool=Checking)
    assert len(tuned(*words, "--trials=3", pool=Checking).tried) == 3
    (study,) = optuna.get_all_study_summaries("sqlite:///tuning.db")
    loaded = optuna.load_study(study_name=study.study_name, storage="sqlite:///tuning.db")
    depths = [trial.distributions["depth"] for trial in loaded.trials]
    assert depths == [CategoricalDistribution(expected)] * 3


def test_a_setting_of_which_train_takes_nothing_is_refused(
    store: MlflowClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    few = replace(ARCHITECTURES["mlp"], tried_depths=(2, 3))
    monkeypatch.setitem(ARCHITECTURES, "mlp", few)
    with pytest.raises(InputError) as caught:
        tuned("--trials=1", "--width=100,80,60,40,20")
    assert str(caught.value) == (
        "depth can't be searched: none of 2,3 goes with what was given"
        " (3: width=100,80,60,40,20 has 5 numbers; give one or 3)"
    )
    assert not store.search_runs(["0"])


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--search=learning_rat"], "did you mean 'learning_rate'?"),
        (["--search=gate_bias"], "unknown setting to search of mlp 'gate_bias'"),
        (["--search=depth", "--depth=3"], "depth=3 was given, so it can't be searched"),
        (["--validation_share=0"], "leaves no images to choose by"),
        (["--storage=sqlite:////no/such/folder/t.db"], "can't be used for tuning"),
        (["--storage=nonsense"], "it is no database's URL; give such as sqlite:///FILE"),
        (["--storage="], "storage= can't be used for tuning"),
        (["--storage=foo://me:SECRET@h/x"], "foo://***@h/x can't be used for tuning: unknown kind"),
        (["--storage=postgresql://me:SECRET@h/x"], "needs the Python module psycopg"),
        (["--storage=postgresql://me:S@SECRET@h/x"], "must be quoted, as %40 for @"),
        (["--storage=postgresql://h:99999/x"], "its port 99999 isn't one of 1 to 65535"),
        (["--sampler=tpi"], "did you mean 'tpe'?"),
        (["--trials=0"], "trials=0"),
        (["--gpus_per_trial=1"], "gpus_per_trial=1.0 has no effect with backend=none"),
    ],
)
def test_bad_input_is_refused_in_one_sentence_and_leaves_no_run(
    store: MlflowClient, capsys: pytest.CaptureFixture[str], words: list[str], sentence: str
) -> None:
    line = refused(tune.main, capsys, "--arch=mlp", "--dataset=digits", *words)
    assert sentence in line and "SECRET" not in line
    assert not store.search_runs(["0"])


def test_halving_and_random_search_work(store: MlflowClient) -> None:
    found = tuned("--trials=12", "--sampler=random", "--pruner=halving")
    assert len(found.tried) == 12


def test_a_study_refuses_what_is_no_database() -> None:
    with pytest.raises(InputError, match=r"storage=mysql://\*\*\*@127.0.0.1:9/x can't be used"):
        Study("s", {}, storage="mysql://nobody@127.0.0.1:9/x", sampler="tpe", pruner="none", seed=0)


def test_a_database_that_nobody_answers_for_is_refused_at_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(databases, "flaw", lambda url: None)  # as if there were a driver
    with pytest.raises(InputError, match=r"mysql://\*\*\*@127.0.0.1:9/x .* Connection refused"):
        check_storage("mysql://me:SECRET@127.0.0.1:9/x")


def test_the_storage_may_be_given_by_a_variable_and_stays_out_of_the_record(
    store: MlflowClient, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("RESFOOL_STORAGE", "sqlite:///mine.db?timeout=9")
    tuned("--trials=1")
    assert Path("mine.db").exists() and not Path("tuning.db").exists()
    assert options("--storage=sqlite:///other.db").database == "sqlite:///other.db"
    parent, _ = parts(store)
    assert not [value for value in parent.data.params.values() if "mine.db" in value]
    # What `mlflow run` has written is there for good, which its user must know.

    def refuse(*_: Any) -> None:
        raise InputError("no")

    monkeypatch.setenv("MLFLOW_RUN_ID", parent.info.run_id)
    monkeypatch.setattr("resfool.trials.tune.tune", refuse)
    with pytest.raises(SystemExit):
        tune.main(["--arch=mlp", "--storage=sqlite:///a?token=SECRET"])
    warned, _ = capsys.readouterr().err.splitlines()
    assert f"has recorded the password of storage= in run {parent.info.run_id}" in warned


@pytest.mark.slow
def test_tune_as_a_user_runs_it(store: MlflowClient, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--arch=mlp", "--dataset=digits", "--steps=60", "--trials=3", "--backend=serial"]
    tune.main([*words, "--search=learning_rate,width"])
    parent, children = parts(store)
    assert len(children) == 3
    assert {run.info.status for run in [parent, *children]} == {"FINISHED"}
    printed = capsys.readouterr().out
    assert "mlflow run . -e train -P arch=mlp" in printed
    names = {item.path for item in store.list_artifacts(parent.info.run_id)}
    assert {"tuning.png", "trials.csv", "trials.json"} <= names
    for run in children:
        history = store.get_metric_history(run.info.run_id, "validation_accuracy")
        assert [metric.step for metric in history][-1:] == [60] or "pruned" in run.data.params
        assert "test_accuracy" not in run.data.metrics


def test_a_storage_that_fills_up_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> None:
        raise StorageInternalError("the commit") from OSError("disk is full\n[SQL: ...]")

    study = Study("s", {}, storage="sqlite://", sampler="random", pruner="none", seed=0)
    monkeypatch.setattr(study._study, "ask", full)
    with pytest.raises(InputError, match=r"^storage=sqlite:// can't be written: disk is full$"):
        study.propose()


def test_a_storage_that_somebody_else_has_written_is_refused() -> None:
    space: dict[str, Any] = {"learning_rate": Between(0.1, 1.0), "depth": Choice((1, 2))}
    rate, depth = FloatDistribution(0.1, 9.0), CategoricalDistribution((1, 2, 10**6))
    whole: dict[str, Any] = {"params": {"learning_rate": 0.5, "depth": 2}, "value": 0.5}
    whole["distributions"] = {"learning_rate": rate, "depth": depth}

    assert _is_of(optuna.trial.create_trial(**whole), space)
    for change in (
        {"params": {"learning_rate": 5.0, "depth": 2}},
        {"params": {"learning_rate": 0.5, "depth": 10**6}},
        {"params": {"depth": 2}, "distributions": {"depth": depth}},
        {"value": 7.0},
        {"value": float("inf")},
        {"intermediate_values": {1: float("nan")}},
    ):
        assert not _is_of(optuna.trial.create_trial(**whole | change), space), change
    study = Study("s", space, storage="sqlite://", sampler="tpe", pruner="none", seed=0)
    study._study.add_trial(optuna.trial.create_trial(**whole | {"value": 7.0}))
    with pytest.raises(InputError, match=r"^storage=sqlite:// .*trial 0 of s is none"):
        study.tried()
    for run_id in (None, 7, ["a"], "../elsewhere"):
        study._study.set_user_attr("run_id", run_id)
        assert study.run_id is None
    here = {"host": owner.host(), "created": 0.0}
    for driver in (7, ["a"], {}, here | {"pid": "x"}, here | {"pid": 10**30}, {"pid": -1}):
        assert _at_work(driver) is None


def test_names_and_values_stand_apart_at_the_terminal() -> None:
    best = {"learning_rate": 0.01, "label_smoothing": 0.02, "batch_norm_statistics": "precise"}
    lines = tuning_summary(Tuning([], {}, best, 0.5, "mlflow run")).splitlines()
    told = dict(line.split() for line in lines if line.startswith("  "))
    assert told == {
        "learning_rate": "0.01",
        "label_smoothing": "0.02",
        "batch_norm_statistics": "precise",
    }
