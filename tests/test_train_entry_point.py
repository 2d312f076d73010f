"""`train` as a user runs it: in a process of its own, killed, interrupted, resumed, refused."""

import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Sequence
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import keras
import mlflow
import numpy as np
import pandas as pd
import pytest
from mlflow import MlflowClient
from mlflow.entities import Run, ViewType
from mlflow.exceptions import MlflowException

from entry_points import train
from resfool import checkpoints, errors, identity
from resfool.datasets import sets
from resfool.errors import InputError
from resfool.parameters import Resumable
from resfool.tracking import stores
from resfool.tracking.archive import MLflowArchive
from resfool.tracking.run import Run as OurRun
from resfool.tracking.training_run import TrainingRun
from resfool.training.recipe import TrainParameters
from resfool.values import show
from tests import conftest
from tests.conftest import QUICK, ROOT
from tests.processes import Process

CURVES = ("train_loss", "train_accuracy", "test_loss", "test_accuracy")


def words(**options: Any) -> list[str]:
    merged: dict[str, Any] = QUICK | {"steps": 300, "eval_every": 100} | options
    return [f"--{name}={show(value)}" for name, value in merged.items()]


def start(*trainings: Sequence[str]) -> Process:
    """Trainings, one after the other, in the working directory, as a process of their own."""
    calls = [f"train.main({list(words)!r})" for words in trainings]
    return Process("\n".join(["from entry_points import train", *calls]))


def only_run(store: MlflowClient) -> Run:
    runs = store.search_runs(["0"], run_view_type=ViewType.ACTIVE_ONLY)
    assert len(runs) == 1
    return runs[0]


def curve(store: MlflowClient, run: Run) -> dict[str, list[tuple[int, float]]]:
    """All recorded points, sorted: a doubled one would show."""
    histories = {key: store.get_metric_history(run.info.run_id, key) for key in CURVES}
    return {key: sorted((m.step, m.value) for m in h) for key, h in histories.items()}


def logged_model(run: Run) -> keras.Model:
    """The run's `.keras` file, loaded as anybody would."""
    uri = f"runs:/{run.info.run_id}/model"
    folder = Path(mlflow.artifacts.download_artifacts(uri))
    return keras.saving.load_model(folder / "data" / "model.keras", compile=False, safe_mode=True)


def test_a_run_holds_what_the_ui_needs(
    store: MlflowClient, capsys: pytest.CaptureFixture[str]
) -> None:
    train.main(words(steps=250))
    printed = capsys.readouterr().out
    run = only_run(store)
    assert run.info.status == "FINISHED"
    assert run.info.run_name == "mlp-2 digits seed 0"
    params = run.data.params
    assert params["arch"] == "mlp"
    assert params["layers"] == "2" and params["widths"] == "8,8"
    assert params["parameter_count"] == str(64 * 8 + 8 + 8 * 8 + 8 + 8 * 10 + 10)
    assert params["flops_per_image"] == str(2 * (64 * 8 + 8 * 8 + 8 * 10))
    assert re.fullmatch(r"[0-9a-f]{16}", params["dataset_digest"])
    assert params["tensorflow_version"].startswith("2.")
    assert "git_commit" in params
    steps = {key: [step for step, _ in points] for key, points in curve(store, run).items()}
    assert steps["train_loss"] == steps["train_accuracy"] == [100, 200, 250]
    assert steps["test_loss"] == steps["test_accuracy"] == [100, 200, 250]
    assert run.inputs is not None and run.outputs is not None
    inputs = {i.tags[0].value: i.dataset for i in run.inputs.dataset_inputs}
    assert inputs.keys() == {"training", "testing"}
    assert inputs["training"].digest == params["dataset_digest"]
    artifacts = [a.path for a in store.list_artifacts(run.info.run_id)]
    assert "accuracy_curves.png" in artifacts
    for text in (run.info.run_id, "mlflow ui", f"{run.data.metrics['final_test_accuracy']:.4f}"):
        assert text in printed
    assert not list(Path("checkpoints").iterdir()), "a finished run needs no checkpoint"

    logged = store.get_logged_model(run.outputs.model_outputs[0].model_id)
    figures = {m.key: m for m in logged.metrics or []}
    assert figures["final_test_accuracy"].dataset_digest == params["dataset_digest"]
    signature = mlflow.models.get_model_info(f"models:/{logged.model_id}").signature
    assert signature is not None and signature.inputs.inputs[0].shape == (-1, 8, 8, 1)
    assert logged_model(run)(np.zeros((2, 8, 8, 1), np.float32)).shape == (2, 10)


@pytest.mark.usefixtures("unpainted")
def test_system_metrics_are_recorded(store: MlflowClient, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_SYSTEM_METRICS_SAMPLING_INTERVAL", "0.2")
    train.main(words())
    assert "system/cpu_utilization_percentage" in only_run(store).data.metrics


def wait_for_checkpoint(process: Process | subprocess.Popen[str], past_step: int) -> Path:
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and process.poll() is None:
        for path in Path("checkpoints").glob("*/checkpoint.npz"):
            with np.load(path) as stored:
                facts = stored["facts"].tobytes().decode()
            found = re.search(r'"step": (\d+)', facts)
            if found and int(found[1]) > past_step:
                return path
        time.sleep(0.05)
    printed = process.printed() if isinstance(process, Process) else process.communicate()
    raise AssertionError(f"no checkpoint past step {past_step}: {printed}")


def wait_for_status(store: MlflowClient, run_id: str, status: str) -> None:
    deadline = time.monotonic() + 60
    while store.get_run(run_id).info.status != status:
        assert time.monotonic() < deadline, store.get_run(run_id).info.status
        time.sleep(0.1)


@pytest.mark.slow
def test_ctrl_c_on_mlflow_run_leaves_the_run_killed(store: MlflowClient) -> None:
    """Its relative places are those of the folder that it is called from, which isn't ours."""
    options = QUICK | {"steps": 100_000, "checkpoint_seconds": 0}
    Path("checkpoints").mkdir()
    parameters = [f"-P{name}={show(value)}" for name, value in options.items()]
    command = [sys.executable, "-m", "mlflow", "run", str(ROOT), "-e", "train", *parameters]
    process = subprocess.Popen(
        [*command, "--env-manager=local"],
        # The command in MLproject is `python`, which must be this one.
        env=os.environ
        | {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
        | {"MLFLOW_TRACKING_URI": "sqlite:///mlflow.db"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,  # a process group of its own, as a terminal gives it
    )
    wait_for_checkpoint(process, 100)
    os.killpg(process.pid, signal.SIGINT)
    process.communicate(timeout=120)
    run = only_run(store)
    wait_for_status(store, run.info.run_id, "KILLED")
    time.sleep(1)
    assert store.get_run(run.info.run_id).info.status == "KILLED"
    assert Path(run.data.tags["resfool.checkpoint"]).exists()


class OurTraining(TrainingRun):
    """A training's run, new or resumed, that no bar shows."""

    def __init__(self, resume: str | None = None) -> None:
        super().__init__(lambda done, total, text: None, Resumable(resume=resume))


def interrupted(store: MlflowClient, step: int, resume: str | None = None) -> Run:
    """A training's run that Ctrl-C ends, with a checkpoint and without the training."""
    with pytest.raises(KeyboardInterrupt), OurTraining(resume) as run:
        checkpoints.save(run.begin("mlp-2", {"network": "mlp-2"}, []), {}, {})
        run.point({"step": step, "train_loss": 1.0})
        raise KeyboardInterrupt
    return store.get_run(run.run_id)


def test_a_resumed_trainings_time_is_that_of_all_sittings(store: MlflowClient) -> None:
    began = time.monotonic()
    times = ("total_seconds", "tracking_seconds")
    first = interrupted(store, 100)
    assert all(0 < first.data.metrics[name] < time.monotonic() - began for name in times)
    for name in times:
        store.log_metric(first.info.run_id, name, 1000.0, step=100)
    second = interrupted(store, 200, resume=first.info.run_id).data.metrics
    assert all(1000 < second[name] < 1000 + time.monotonic() - began for name in times)


@pytest.mark.slow
def test_killed_twice_and_resumed_it_ends_as_if_never_killed(
    store: MlflowClient, capsys: pytest.CaptureFixture[str]
) -> None:
    # Convolutions, on all the threads that there are.
    options: Any = {"arch": "resnet", "depth": 5, "width": (2,), "batch_size": 8, "steps": 250}
    options |= {"per_class": (20, 5), "eval_every": 70, "checkpoint_seconds": 0}
    whole_words = words(**options)
    process = start(whole_words)
    wait_for_checkpoint(process, 60)
    process.send_signal(signal.SIGKILL)
    process.wait()
    killed = only_run(store)
    assert killed.info.status == "RUNNING"

    resume = f"--resume={killed.info.run_id}"
    process = start(["--arch=resnet", "--checkpoint_seconds=0", resume])
    wait_for_checkpoint(process, 120)
    assert "another process" in refused(capsys, "--arch=resnet", resume)
    process.send_signal(signal.SIGTERM)
    assert process.wait() == 130, process.printed()
    assert store.get_run(killed.info.run_id).info.status == "KILLED"

    assert "has arch=resnet, not arch=mlp" in refused(capsys, "--arch=mlp", resume)

    process = start(["--arch=resnet", resume], whole_words)
    assert process.wait() == 0, process.printed()
    runs = store.search_runs(["0"])
    assert [run.info.status for run in runs] == ["FINISHED", "FINISHED"]
    resumed, whole = sorted(runs, key=lambda run: run.info.run_id != killed.info.run_id)
    assert resumed.info.run_id == killed.info.run_id
    assert curve(store, resumed) == curve(store, whole)
    for a, b in zip(
        logged_model(resumed).get_weights(), logged_model(whole).get_weights(), strict=True
    ):
        np.testing.assert_array_equal(a, b)


def test_mlflow_run_of_a_resumption_becomes_a_pointer(
    store: MlflowClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = interrupted(store, 100)
    assert first.info.status == "KILLED"

    # What `mlflow run` does: a run of its own, in an experiment of its own, named in MLFLOW_RUN_ID.
    experiment = store.create_experiment("elsewhere")
    pointer = store.create_run(experiment).info.run_id
    store.log_param(pointer, "steps", "10000")
    monkeypatch.setenv("MLFLOW_RUN_ID", pointer)
    monkeypatch.setenv("MLFLOW_EXPERIMENT_ID", experiment)
    second = interrupted(store, 200, resume=first.info.run_id)
    assert (second.info.run_id, second.info.status) == (first.info.run_id, "KILLED")

    wait_for_status(store, pointer, "KILLED")
    run = store.get_run(pointer)
    assert run.data.tags["resfool.resumes"] == first.info.run_id
    assert run.info.run_name == "resumes mlp-2"
    assert not run.data.metrics


def test_a_loss_that_is_not_finite_fails_the_run(
    store: MlflowClient, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as caught:
        train.main(words(optimizer="sgd", learning_rate=1e30))
    assert caught.value.code == 1
    error = capsys.readouterr().err.splitlines()[-1]
    assert "the training loss became" in error and "learning_rate" in error
    run = only_run(store)
    assert run.info.status == "FAILED"
    assert "the training loss became" in run.data.tags["resfool.error"]


@pytest.mark.usefixtures("unpainted")
def test_parameters_that_mlflow_run_has_logged_are_left_alone(store: MlflowClient) -> None:
    run_id = store.create_run("0", run_name="bold-fox-123").info.run_id
    store.log_param(run_id, "depth", "2 as it was typed")
    os.environ["MLFLOW_RUN_ID"] = run_id
    try:
        train.main(words())
    finally:
        os.environ.pop("MLFLOW_RUN_ID", None)
    run = only_run(store)
    assert run.data.params["depth"] == "2 as it was typed"
    assert run.data.params["layers"] == "2"
    assert run.info.run_name == "mlp-2 digits seed 0"


def save_npz(path: Path, **changes: Any) -> None:
    random = np.random.default_rng(0)
    arrays: dict[str, Any] = {
        "x_train": random.random((30, 8, 8)),
        "y_train": np.arange(30) % 3,
        "x_test": random.random((9, 8, 8)),
        "y_test": np.arange(9) % 3,
    }
    np.savez(path, **(arrays | changes))


def refused(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    return conftest.refused(train.main, capsys, *arguments)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"x_train": np.zeros((30, 8))}, "x_train"),
        ({"y_train": np.arange(29) % 3}, "y_train"),
        ({"y_train": np.full(30, -1)}, "y_train"),
        ({"x_test": np.full((9, 8, 8), 2.0)}, "x_test"),
    ],
)
def test_bad_arrays_are_refused_and_leave_no_run(
    store: MlflowClient, capsys: pytest.CaptureFixture[str], changes: Any, sentence: str
) -> None:
    save_npz(Path("mine.npz"), **changes)
    assert sentence in refused(capsys, "--arch=mlp", "--dataset=npz:mine.npz")
    assert not store.search_runs(["0"])


@pytest.mark.usefixtures("unpainted")
def test_a_users_own_arrays_are_trained_on(store: MlflowClient) -> None:
    save_npz(Path("mine.npz"))
    train.main(words(dataset="npz:mine.npz", steps=20))
    assert logged_model(only_run(store)).output.shape == (None, 3)


def test_a_data_file_that_is_cut_short_is_refused(
    store: MlflowClient, capsys: pytest.CaptureFixture[str]
) -> None:
    save_npz(Path("mine.npz"))
    content = Path("mine.npz").read_bytes()
    Path("mine.npz").write_bytes(content[: len(content) // 2])
    assert "mine.npz" in refused(capsys, "--arch=mlp", "--dataset=npz:mine.npz")
    assert not store.search_runs(["0"])


def test_unknown_runs_are_not_resumed(
    store: MlflowClient, capsys: pytest.CaptureFixture[str]
) -> None:
    missing = "0123456789abcdef0123456789abcdef"
    assert "no such run" in refused(capsys, "--arch=mlp", f"--resume={missing}")
    stranger = store.create_run("0").info.run_id
    assert "no training of resfool" in refused(capsys, "--arch=mlp", f"--resume={stranger}")


def forged(store: MlflowClient, path: Path, **facts: str) -> str:
    """A run in the store that says of itself that a training of ours failed."""
    run_id = str(store.create_run("0", tags={"resfool.checkpoint": str(path)}).info.run_id)
    for name, value in facts.items():
        store.log_param(run_id, name, value)
    store.set_terminated(run_id, "FAILED")
    return run_id


def test_a_run_that_says_where_its_checkpoint_is_touches_nothing(
    store: MlflowClient, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    theirs = {"Cargo.toml": "[package]", "Cargo.lock": "version = 3"}
    for name, text in theirs.items():
        (tmp_path / name).write_text(text)
    asked = TrainParameters.of(QUICK | {"steps": 300, "eval_every": 100})
    facts = identity.facts("train", asked.settled(), sets.load("digits").digest)
    run_id = forged(store, tmp_path / "Cargo.toml", **facts)
    line = refused(capsys, "--arch=mlp", f"--resume={run_id}")
    assert "has no checkpoint of this run" in line and "checkpoint_dir" in line
    assert MLflowArchive("checkpoints").find_interrupted(facts) is None
    assert {name: (tmp_path / name).read_text() for name in theirs} == theirs
    assert not Path("checkpoints").exists()
    # That of a run that was begun here is found, whatever its tag says, and only where it is.
    path = Path("checkpoints", run_id, "checkpoint.npz")
    checkpoints.save(path, {}, {"settings": asked.settled(), "dataset_digest": "another"})
    found = MLflowArchive("checkpoints").find_interrupted(facts)
    assert found is not None and found.run_id == run_id
    assert MLflowArchive("elsewhere").find_interrupted(facts) is None
    assert MLflowArchive().find_interrupted(facts) is None
    assert "has changed since" in refused(capsys, "--arch=mlp", f"--resume={run_id}")
    assert {name: (tmp_path / name).read_text() for name in theirs} == theirs


def test_a_run_that_is_no_id_is_refused(
    store: MlflowClient, capsys: pytest.CaptureFixture[str]
) -> None:
    assert "is no id of a run" in refused(capsys, "--arch=mlp", "--resume=../elsewhere")


class NotMLflow(BaseHTTPRequestHandler):
    """A web server that knows none of MLflow's addresses."""

    def do_GET(self) -> None:
        self.send_error(404)

    do_POST = do_GET

    def log_message(self, *words: Any) -> None:
        pass


@pytest.mark.parametrize(
    ("uri", "sentence"),
    [
        ("sqlite:////nowhere/at/all/mlflow.db", "can't be written"),
        ("sqlite:///README.md", "can't be used"),
        ("http://127.0.0.1:9", "127.0.0.1:9 can't be reached"),
        ("http://me:secret@127.0.0.1:9", "http://127.0.0.1:9 can't be reached"),
        ("http://me:secret@127.0.0.1:{port}", "can't be used for tracking"),
        ("http://127.0.0.1:{port}", "can't be used for tracking"),
    ],
)
def test_a_store_that_cannot_be_used_is_said_so_at_once(
    store: MlflowClient, capsys: pytest.CaptureFixture[str], uri: str, sentence: str
) -> None:
    Path("README.md").write_text("This is no database. " * 100)
    stranger = HTTPServer(("127.0.0.1", 0), NotMLflow)
    threading.Thread(target=stranger.serve_forever, daemon=True).start()
    uri = uri.format(port=stranger.server_port)
    mlflow.set_tracking_uri(uri)
    started = time.monotonic()
    line = refused(capsys, *words())
    assert sentence in line and uri.split("/")[-1].rpartition("@")[2] in line
    assert "secret" not in line
    assert time.monotonic() - started < 60, "MLflow's own retries were waited for"
    stranger.shutdown()
    stranger.server_close()
    assert not Path("checkpoints").exists()


@pytest.mark.parametrize(
    ("uri", "viewer", "page"),
    [
        (
            "https://me:secret@runs.example.org:8443/mlflow/",
            "a browser at https://runs.example.org:8443/mlflow",
            "https://runs.example.org:8443/mlflow/#/experiments/0/runs/ab",
        ),
        (
            "sqlite:////home/me/mlflow.db",
            "mlflow ui --backend-store-uri sqlite:////home/me/mlflow.db",
            "http://127.0.0.1:5000/#/experiments/0/runs/ab",
        ),
    ],
)
def test_it_is_said_where_runs_can_be_seen_and_no_password(
    store: MlflowClient, uri: str, viewer: str, page: str
) -> None:
    mlflow.set_tracking_uri(uri)
    assert stores.viewer().endswith(viewer)
    assert stores.link("0", "ab") == page


@pytest.mark.parametrize("error", [None, KeyboardInterrupt(), InputError("it was wrong")])
def test_a_store_that_fails_at_the_end_leaves_no_run_finished_or_running(
    store: MlflowClient, monkeypatch: pytest.MonkeyPatch, error: BaseException | None
) -> None:
    def away(*_: Any, **__: Any) -> None:
        raise MlflowException("the store is away")

    expected: Any = InputError if error is None else type(error)
    with pytest.raises(expected) as caught, OurRun() as run:
        run.begin("a run", {}, [])
        monkeypatch.setattr(MlflowClient, "log_batch", away)
        if error is not None:
            raise error
    assert error is not None or "doesn't take the last figures" in str(caught.value)
    assert only_run(store).info.status == _ENDS[type(error)]
    assert mlflow.active_run() is None


_ENDS = {type(None): "FAILED", InputError: "FAILED", KeyboardInterrupt: "KILLED"}


def test_a_training_that_has_finished_meanwhile_is_not_begun_again(store: MlflowClient) -> None:
    run = interrupted(store, 5)
    with (
        pytest.raises(InputError, match="has finished"),
        OurTraining(run.info.run_id) as again,
    ):
        store.set_terminated(run.info.run_id, "FINISHED")  # by who held it until now
        again.begin("again", {"network": "mlp-2"}, [])
    assert store.get_run(run.info.run_id).info.status == "FINISHED"


def test_a_table_is_logged_in_place_of_an_earlier_one(store: MlflowClient) -> None:
    with OurRun() as run:
        run.begin("a run", {}, [])
        for rows in (2, 3):
            run.log({"table": pd.DataFrame({"a": range(rows), "b": [0.5] * rows})})
    assert store.load_table("0", "table.json", [run.run_id])["a"].tolist() == [0, 1, 2]
    logged = json.loads(store.get_run(run.run_id).data.tags["mlflow.loggedArtifacts"])
    assert logged == [{"path": "table.json", "type": "table"}]


def test_a_folder_of_nobody_is_refused(
    store: MlflowClient, capsys: pytest.CaptureFixture[str]
) -> None:
    for options in ({"checkpoint_dir": "~nobody-here/c"}, {"dataset": "npz:~nobody-here/x.npz"}):
        assert "no such user" in refused(capsys, *words(**options))
    assert not errors.present(Path("x" * 1000)), "a name that no file can have"


@pytest.mark.usefixtures("unpainted")
def test_points_of_a_curve_are_recorded_once(store: MlflowClient) -> None:
    train.main(words(steps=500))
    for points in curve(store, only_run(store)).values():
        assert max(Counter(step for step, _ in points).values()) == 1
