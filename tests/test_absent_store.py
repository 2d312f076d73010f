"""Stores that are away for a while, come back empty-handed or never, and what killed runs leave."""

import contextlib
import json
import sqlite3
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import pytest
import requests
from mlflow import MlflowClient
from mlflow.entities import LoggedModelStatus, Metric, Param, RunTag
from mlflow.exceptions import MlflowException

from resfool import checkpoints, owner
from resfool.errors import InputError, UnsentError
from resfool.parameters import Resumable
from resfool.tracking import logged_models, patience
from resfool.tracking.outbox import Outbox
from resfool.tracking.run import Run
from resfool.tracking.training_run import TrainingRun


def fail(*_: Any, **__: Any) -> NoReturn:
    """As MLflow does where no server answers."""
    try:
        raise requests.ConnectionError("http://me:secret@127.0.0.1:9") from OSError(111, "refused")
    except requests.ConnectionError as error:
        raise MlflowException(f"API request failed with exception {error}") from error


def failing_at(numbers: set[int], call: Callable[..., Any]) -> Callable[..., Any]:
    """A method that does its work and then fails, at calls of some numbers."""
    calls = iter(range(1_000))

    def method(*args: Any, **options: Any) -> Any:
        result = call(*args, **options)
        return fail() if next(calls) in numbers else result

    return method


class Absence:
    """Begins and ends the absence of the store."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self._monkeypatch, self._stack = monkeypatch, contextlib.ExitStack()

    def begin(self) -> None:
        patched = self._stack.enter_context(self._monkeypatch.context())
        for name in ("log_batch", "get_run", "set_terminated", "log_artifacts", "create_run"):
            patched.setattr(MlflowClient, name, fail)

    def end(self, *_: Any) -> None:
        self._stack.close()


@pytest.fixture
def absence(monkeypatch: pytest.MonkeyPatch) -> Absence:
    """Nobody waits in it, and points are sent at once."""
    monkeypatch.setenv(patience.VARIABLE, "0")
    monkeypatch.setattr("resfool.tracking.run._FLUSH_SECONDS", 0.0)
    monkeypatch.setattr("resfool.tracking.run._SHARE", float("inf"))
    return Absence(monkeypatch)


def curve(store: MlflowClient, run_id: str, name: str) -> list[tuple[int, float]]:
    return sorted((point.step, point.value) for point in store.get_metric_history(run_id, name))


def response(status: int) -> requests.Response:
    found = requests.Response()
    found.status_code = status
    return found


class Lines(MlflowClient):
    """A store that keeps whatever it is told, as one of files does, even twice."""

    def __init__(self) -> None:
        self.points: list[Metric] = []

    def log_batch(
        self,
        run_id: str,
        metrics: Sequence[Metric] = (),
        params: Sequence[Param] = (),
        tags: Sequence[RunTag] = (),
        synchronous: bool | None = None,
    ) -> None:
        self.points += metrics

    def get_metric_history(self, run_id: str, key: str) -> Any:
        return [point for point in self.points if point.key == key]


def test_what_arrived_although_it_failed_is_not_sent_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    store = Lines()
    monkeypatch.setattr(store, "log_batch", failing_at({0, 2}, store.log_batch))
    outbox = Outbox(store, "run")
    told = [Metric("loss", 1 / (1 + step), 7, step) for step in range(1500)]
    for part in told[:900], told[900:]:
        outbox.add_points(part)
        for _ in range(2):
            with contextlib.suppress(MlflowException):
                outbox.send()
    outbox.send()
    assert [point.step for point in store.points] == list(range(1500))


def test_points_wait_for_a_store_that_is_away(
    store: MlflowClient, absence: Absence, capsys: pytest.CaptureFixture[str]
) -> None:
    with Run() as run:
        run.begin("a run", {}, [])
        run.point({"step": 1, "loss": 0.5})
        absence.begin()
        run.fact("fact", "told")
        for step in (2, 3, 4):
            run.point({"step": step, "loss": 0.5})
        absence.end()
        run.point({"step": 5, "loss": 0.5})
    assert curve(store, run.run_id, "loss") == [(step, 0.5) for step in range(1, 6)]
    ended = store.get_run(run.run_id)
    assert ended.info.status == "FINISHED" and ended.data.params["fact"] == "told"
    lines = capsys.readouterr().err.splitlines()
    assert "is away (refused); the work goes on" in lines[0] and "is there again" in lines[1]
    assert len(lines) == 2 and "secret" not in "".join(lines)


def test_a_run_that_the_store_has_lost_is_recorded_anew(
    store: MlflowClient, capsys: pytest.CaptureFixture[str]
) -> None:
    with Run() as run:
        run.begin("the whole", {"colour": "red"}, [])
        with run.part("a part", {}) as part:
            part.point({"step": 1, "loss": 0.5})
            part.log({"vector.npy": np.zeros(2)})
            lost = {run.run_id, part.run_id}
            forget_runs()
            part.point({"step": 2, "loss": 0.25})
            part.log({"other.npy": np.zeros(2)})
    runs = store.search_runs(["0"])
    assert {r.info.run_id for r in runs} == {run.run_id, part.run_id} and not lost & {run.run_id}
    assert {r.info.status for r in runs} == {"FINISHED"}
    assert store.get_run(run.run_id).data.params["colour"] == "red"
    assert store.get_run(part.run_id).data.tags["mlflow.parentRunId"] == run.run_id
    assert curve(store, part.run_id, "loss") == [(1, 0.5), (2, 0.25)]
    left = {file.path for file in store.list_artifacts(part.run_id)}
    assert left == {"vector.npy", "other.npy"}
    assert capsys.readouterr().err.count("recorded anew, as run") == 2


def forget_runs() -> None:
    """Empty the store, as one is that comes back without its disk."""
    with contextlib.closing(sqlite3.connect("mlflow.db")) as database, database:
        for table in ("metrics", "latest_metrics", "params", "tags", "runs"):
            database.execute(f"delete from {table}")


class Training(TrainingRun):
    """A training's run that no bar shows."""

    def __init__(self, resume: str | None = None) -> None:
        super().__init__(lambda done, total, text: None, Resumable(resume=resume))

    def train(self) -> None:
        """Keep a checkpoint, and tell the points up to step 3."""
        path = self.begin("a training", {"network": "mlp-2"}, [])
        checkpoints.save(path, {}, {"step": 3})
        for step in (1, 2, 3):
            self.point({"step": step, "loss": 0.5})


def test_a_training_is_recorded_by_its_resumption_where_the_store_never_came_back(
    store: MlflowClient, absence: Absence
) -> None:
    with pytest.raises(UnsentError, match=r"is away \(refused\)") as caught, Training() as first:
        first.train()
        absence.begin()
        first.point({"step": 4, "loss": 0.5})
    absence.end()
    words = f"in {first.checkpoint}, and resume={first.run_id} records it"
    assert str(caught.value).endswith(words) and not Path("unsent").exists()
    with Training(first.run_id) as second:
        second.train()
        second.point({"step": 4, "loss": 0.5})
    assert second.run_id == first.run_id
    assert curve(store, first.run_id, "loss") == [(step, 0.5) for step in range(1, 5)]
    assert store.get_run(first.run_id).info.status == "FINISHED"
    assert not list(Path("checkpoints").iterdir())


def test_a_training_goes_on_although_the_store_has_lost_its_run(store: MlflowClient) -> None:
    with pytest.raises(KeyboardInterrupt), Training() as first:
        first.train()
        raise KeyboardInterrupt
    forget_runs()
    with Training(first.run_id) as second:
        assert second.checkpoint == first.checkpoint
        second.train()
        assert second.checkpoint is not None and second.checkpoint.parent.name == second.run_id
        assert checkpoints.load(second.checkpoint)[1] == {"step": 3}
    (run,) = store.search_runs(["0"])
    assert run.info.run_id == second.run_id != first.run_id and run.info.status == "FINISHED"
    assert curve(store, second.run_id, "loss") == [(step, 0.5) for step in (1, 2, 3)]
    assert not list(Path("checkpoints").iterdir())


def test_ctrl_c_ends_the_waiting_and_what_was_found_is_kept(
    store: MlflowClient,
    absence: Absence,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def pressed(seconds: float) -> NoReturn:
        raise KeyboardInterrupt

    monkeypatch.setenv(patience.VARIABLE, "600")
    with pytest.raises(KeyboardInterrupt), Run() as run:
        run.begin("a run", {}, [])
        absence.begin()
        monkeypatch.setattr(time, "sleep", pressed)
        run.log({"vector.npy": np.arange(3)})
    absence.end()
    first, second = capsys.readouterr().err.splitlines()
    assert first.endswith("is away (refused); it is waited for, 10 min at most")
    folder = Path("unsent", run.run_id).absolute()
    assert second.endswith(f"what it hasn't got is in {folder}")
    assert np.load(folder / "vector.npy").tolist() == [0, 1, 2]


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (requests.Timeout(), True),
        (requests.HTTPError(response=response(502)), True),
        (requests.HTTPError(response=response(429)), True),
        (requests.HTTPError(response=response(403)), False),
        (sqlite3.OperationalError("database is locked"), True),
        (sqlite3.OperationalError("database or disk is full"), False),
        (ValueError("a bad value"), False),
    ],
)
def test_only_a_store_that_may_come_back_is_waited_for(error: Exception, expected: bool) -> None:
    outer = MlflowException("it failed")
    outer.__cause__ = error
    assert patience.is_away(outer) is expected


def test_patience_is_for_one_absence(monkeypatch: pytest.MonkeyPatch) -> None:
    slept: list[float] = []
    monkeypatch.setenv(patience.VARIABLE, "4")
    monkeypatch.setattr(patience, "_waited", 0.0)
    monkeypatch.setattr(time, "sleep", slept.append)
    monkeypatch.setattr(time, "monotonic", lambda: sum(slept))
    for _ in range(2):  # the second time nothing is left of it
        with pytest.raises(MlflowException):
            patience.patiently(fail, lambda: "the store")
        assert slept == [1, 2, 1]
    assert patience.patiently(lambda: "there", lambda: "the store") == "there"
    with pytest.raises(MlflowException):
        patience.patiently(fail, lambda: "the store")
    assert slept == [1, 2, 1] * 2
    for given in ("long", "-1", "nan", "inf"):
        monkeypatch.setenv(patience.VARIABLE, given)
        with pytest.raises(InputError, match=f"{patience.VARIABLE}={given} in the environment"):
            patience.limit()


def test_the_next_run_ends_those_of_killed_processes_of_this_machine(store: MlflowClient) -> None:
    mine = owner.this_process()
    dead, reused = mine | {"pid": 2**22 + 1}, mine | {"created": mine["created"] - 1000}
    told = {
        json.dumps(dead): "KILLED",
        json.dumps(reused): "KILLED",
        json.dumps(mine): "RUNNING",
        json.dumps(dead | {"host": "another"}): "RUNNING",
        json.dumps(["made", "up"]): "RUNNING",
        "{": "RUNNING",
    }
    runs = {store.create_run("0", tags={"resfool.process": tag}).info.run_id: tag for tag in told}
    (first, *_), stranger = runs, store.create_run("0").info.run_id
    half = store.create_logged_model("0", "model", first).model_id
    with Run() as run:
        run.begin("the next", {}, [])
        assert owner.at_work(json.loads(store.get_run(run.run_id).data.tags["resfool.process"]))
    for run_id, tag in runs.items():
        assert store.get_run(run_id).info.status == told[tag], tag
    assert store.get_run(stranger).info.status == "RUNNING"
    assert store.get_logged_model(half).status == LoggedModelStatus.FAILED


def test_of_killed_trainings_only_checkpoints_stay(store: MlflowClient, tmp_path: Path) -> None:
    dead = {"resfool.process": json.dumps(owner.this_process() | {"pid": 2**22 + 1})}
    paths = [
        checkpoints.place(tmp_path, store.create_run("0", tags=dead).info.run_id) for _ in range(3)
    ]
    empty, saved, in_use = paths
    for path in paths:
        checkpoints.hold(path).close()
    checkpoints.save(saved, {}, {})
    kept = Resumable(checkpoint_dir=str(tmp_path))
    with checkpoints.hold(in_use), TrainingRun(lambda *told: None, kept) as run:
        run.begin("the next", {"network": "mlp-5"}, [])
        assert not empty.parent.exists() and saved.exists() and in_use.parent.exists()


def test_a_model_that_was_logged_whole_is_taken_and_half_of_one_is_not(store: MlflowClient) -> None:
    run_id = store.create_run("0").info.run_id
    half = store.create_logged_model("0", "model", run_id).model_id
    assert logged_models._whole_model(store, run_id) is None
    with pytest.raises(MlflowException, match="not found"):
        store.get_logged_model(half)
    whole = store.create_logged_model("0", "model", run_id).model_id
    store.finalize_logged_model(whole, LoggedModelStatus.READY)
    assert logged_models._whole_model(store, run_id) == whole
