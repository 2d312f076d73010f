"""Where things are found and written: paths, addresses, folders, stores and disks."""

import errno
import os
import shutil
import subprocess
import sys
import tempfile
import threading
from pathlib import Path
from typing import Any, NoReturn

import keras
import mlflow
import numpy as np
import pytest
from mlflow import MlflowClient
from mlflow.entities import LoggedModelOutput
from mlflow.exceptions import MlflowException
from mlflow.store.tracking.rest_store import RestStore

from entry_points import attack, mnist, train
from resfool import checkpoints, command_line, errors, places
from resfool.archive import Archive, canonical
from resfool.classifiers import files
from resfool.datasets.sets import Dataset, Split
from resfool.errors import InputError, UnsentError, expanded, expanded_uri
from resfool.tracking import stores
from resfool.tracking.archive import MLflowArchive
from resfool.tracking.run import Run
from resfool.values import show, split_addresses
from tests.conftest import QUICK, ROOT, TrainOnce, as_a_user_has_it, refused

# Paths


@pytest.fixture
def called_from(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that a command was called from, and works in another one."""
    folder, project = tmp_path / "called from", tmp_path / "project"
    for path in (folder, project):
        path.mkdir()
    monkeypatch.chdir(project)
    monkeypatch.setenv(errors.CALLED_FROM, str(folder))
    return folder


def test_a_relative_path_counts_from_where_the_command_was_called(called_from: Path) -> None:
    assert expanded("new") == called_from / "new"
    Path("old").touch()
    assert expanded("old") == Path("old"), "it is only in the working directory"
    (called_from / "old").touch()
    assert expanded("old") == called_from / "old"
    assert expanded("/absolute") == Path("/absolute")
    assert expanded("~") == Path.home()
    assert expanded("file:///a%20b") == Path("/a b")
    assert expanded_uri("sqlite:///new.db?a=b") == f"sqlite:///{called_from}/new.db?a=b"
    assert expanded_uri("sqlite:///old") == f"sqlite:///{called_from}/old"
    assert expanded_uri("mysql://host/new.db") == "mysql://host/new.db"
    with pytest.raises(InputError, match=r"in .*called from or .*project"):
        Archive().find_model("nowhere.keras")


def test_a_line_to_copy_names_the_project_from_where_the_command_was_called(
    called_from: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert errors.project() == str(called_from.parent / "project")
    monkeypatch.delenv(errors.CALLED_FROM)
    assert errors.project() == "."


def test_without_another_folder_a_path_is_what_was_given(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(errors.CALLED_FROM, raising=False)
    assert expanded("a/b") == Path("a/b")
    with pytest.raises(InputError, match=f"no such file in {Path.cwd()}$"):
        Archive().find_model("nowhere.keras")
    with pytest.raises(InputError, match=r"no such file$"):
        Archive().find_model("/nowhere.keras")


@pytest.mark.parametrize("run", [{"MLFLOW_RUN_ID": "r1"}, {}])
def test_it_is_known_where_mlflow_run_was_called(tmp_path: Path, run: dict[str, str]) -> None:
    """As MLflow starts a command: by a shell that works in the project's folder."""
    script = (
        "import os; from resfool import commands, errors; "
        "commands._note_caller(); print(os.environ.get(errors.CALLED_FROM))"
    )
    command = ["bash", "-c", f'exec "{sys.executable}" -c "{script}"']
    done = subprocess.run(
        [sys.executable, "-c", f"import subprocess; subprocess.run({command}, cwd={str(ROOT)!r})"],
        cwd=tmp_path,
        env=as_a_user_has_it() | {"PWD": "/stale"} | run,
        capture_output=True,
        text=True,
    )
    assert done.stdout.strip() == (str(tmp_path) if run else "None"), done.stderr


def test_a_relative_store_is_that_of_where_mlflow_run_was_called(
    store: MlflowClient, called_from: Path
) -> None:
    shutil.copy(called_from.parent / "mlflow.db", called_from / "my, ü.db")
    mlflow.set_tracking_uri("sqlite:///my, ü.db?timeout=9")
    stores.prepare()
    assert stores.exists()
    assert stores.client().search_experiments()[0].name == "Default"
    assert not list(called_from.parent.rglob("*%*")) and mlflow.get_tracking_uri().endswith("=9")


def test_commas_divide_addresses_but_not_the_path_of_what_is_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("a,b.keras", "c.keras", "ü, d"):
        Path(name).touch()
    assert split_addresses("a,b.keras") == ["a,b.keras"]
    assert split_addresses("c.keras,a,b.keras,ü, d") == ["c.keras", "a,b.keras", "ü, d"]
    assert split_addresses("~nobody-here/a,b") == ["~nobody-here/a", "b"]
    assert split_addresses("runs:/1/model, models:/n@a,e") == ["runs:/1/model", "models:/n@a", "e"]


# Addresses

ID = "0123456789abcdef0123456789abcdef"


@pytest.mark.parametrize(
    ("given", "meant"),
    [
        (ID, f"runs:/{ID}"),
        (f"{ID}/", f"runs:/{ID}"),
        (f"runs:/{ID}/model/", f"runs:/{ID}/model"),
        (f"run:/{ID}/model", f"runs:/{ID}/model"),
        (f"runs://{ID}", f"runs:/{ID}"),
        (f"m-{ID}", f"models:/m-{ID}"),
        (" models:/name/3/ ", "models:/name/3"),
        ("model:/name@alias", "models:/name@alias"),
        ("models/mine.keras", "models/mine.keras"),
        ("mine.keras", "mine.keras"),
    ],
)
def test_addresses_that_are_nearly_right_are_understood(given: str, meant: str) -> None:
    assert canonical(given) == meant


def test_a_model_is_found_by_what_is_nearly_its_address(
    store: MlflowClient, train_once: TrainOnce, capsys: pytest.CaptureFixture[str]
) -> None:
    run_id, archive = train_once(steps=150), MLflowArchive()
    # What a training that was killed while it logged its model, and resumed, leaves in its run.
    half = store.create_logged_model("0", "model", run_id).model_id
    store.log_outputs(run_id, [LoggedModelOutput(half, 0)])
    store.delete_logged_model(half)
    exact = archive.find_model(f"runs:/{run_id}/model")
    for address in (run_id, f"runs:/{run_id}", f"{run_id}/", exact.model_id or ""):
        found = archive.find_model(address)
        assert (found.uri, found.name) == (address, exact.name)
        assert (
            found.path.joinpath("MLmodel").read_text() == exact.path.joinpath("MLmodel").read_text()
        )
    temporary = Path(tempfile.gettempdir()).resolve()
    assert exact.path.is_relative_to(temporary), "MLflow copies what a run has"
    by_id = archive.find_model(exact.model_id or "").path
    assert by_id.is_relative_to(Path(store.get_experiment("0").artifact_location).resolve())
    with pytest.raises(InputError, match=f"the run has runs:/{run_id}/model"):
        archive.find_model(f"runs:/{run_id}/modell")
    store.create_registered_model("net")
    store.create_model_version("net", str(exact.path), run_id)
    with pytest.raises(InputError, match="it must have a version, such as models:/net/1"):
        archive.find_model("models:/net")
    assert "this run has finished" in refused(train.main, capsys, *words(resume=f"runs:/{run_id}/"))
    folder = archive.find_model(f"{exact.path}/")  # that MLflow saved
    assert files.find_file(folder.path).name == "model.keras"
    assert folder.load_trusted is not None and isinstance(folder.load_trusted(), keras.Model)
    Path(run_id).write_text("a file of this name is meant, not the run")
    assert archive.find_model(run_id).path == Path(run_id)


def test_the_part_of_a_run_that_has_left_a_perturbation_is_named(store: MlflowClient) -> None:
    with Run() as run:
        run.begin("the whole", {}, [])
        with run.part("a part", {}) as part:
            part.log({"perturbation.npy": np.zeros(2)})
    archive = MLflowArchive()
    with pytest.raises(InputError, match=f"; its part runs:/{part.run_id} has one$"):
        archive.find_perturbation(f"runs:/{run.run_id}")
    for address in (part.run_id, f"runs:/{part.run_id}/", f"runs:/{part.run_id}/perturbation.npy"):
        found = archive.find_perturbation(address)
        assert (found.uri, found.name, found.path.name) == (address, "a part", "perturbation.npy")


def words(**options: Any) -> list[str]:
    return [f"--{name}={show(value)}" for name, value in (QUICK | options).items()]


def test_what_opens_the_runs_can_be_copied_to_a_shell(store: MlflowClient) -> None:
    mlflow.set_tracking_uri("sqlite:////my runs/it's.db")
    assert stores.viewer().endswith("""ui --backend-store-uri 'sqlite:////my runs/it'"'"'s.db'""")


# Places that are written


def test_artifacts_that_cannot_be_written_are_refused_before_anything(
    store: MlflowClient, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("taken").touch()
    store.create_experiment("theirs", artifact_location=f"file://{Path.cwd()}/taken/artifacts")
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "theirs")
    line = refused(train.main, capsys, *words(dataset="digits"))
    assert "the artifact store" in line and "taken/artifacts can't be written" in line
    assert not store.search_runs(["0", "1"])
    for elsewhere in ("s3://bucket/a", "mlflow-artifacts:/0", "hdfs://host/a", "dbfs:/a"):
        stores.check_place_of_artifacts(elsewhere)


def test_a_folder_whose_path_is_no_text_is_refused(
    store: MlflowClient, capsys: pytest.CaptureFixture[str]
) -> None:
    line = refused(train.main, capsys, *words(checkpoint_dir="a\udcff", dataset="digits"))
    assert line.startswith("resfool: the checkpoint folder") and line.endswith("isn't UTF-8")
    assert r"/a\xff" in line


def test_artifacts_of_a_new_store_go_into_the_working_directory(store: MlflowClient) -> None:
    mlflow.set_tracking_uri(f"sqlite:///{Path.cwd()}/new.db")
    Path("mlruns").touch()  # no folder can be made in its place
    with pytest.raises(
        InputError, match=f"the artifact store {Path.cwd()}/mlruns can't be written"
    ):
        Run()
    assert not Path("new.db").exists()


@pytest.mark.parametrize(
    ("path", "reason"),
    [
        ("a/" + "n" * 256 + "/b", r"the name n{20}\.\.\. has 256 bytes, and 255 are allowed"),
        ("ü" * 128, "has 256 bytes"),
        ("/".join("n" * 200 for _ in range(20)), "the path has .* bytes, and 3840 are allowed"),
        ("file/a", "Not a directory"),
        ("file", "Not a directory"),
        ("dangling/a", "is a link to .*nowhere, which isn't there"),
        ("loop", "Too many levels"),
        ("/proc/a", "No such file"),
    ],
)
def test_a_folder_that_cannot_be_made_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, path: str, reason: str
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("file").touch()
    Path("dangling").symlink_to(tmp_path / "nowhere")
    Path("loop").symlink_to("loop")
    Path("to a folder").symlink_to(tmp_path)
    there = sorted(tmp_path.iterdir())
    with pytest.raises(InputError, match=f"^the folder .* can't be written: .*{reason}"):
        places.check_folder("folder", Path(path))
    places.check_folder("folder", Path("to a folder/new/" + "n" * 255))
    assert sorted(tmp_path.iterdir()) == there


@pytest.mark.slow
def test_names_that_have_no_room_are_refused_before_a_run(
    store: MlflowClient, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    long = "n" * 256
    for missing in (Archive().find_artifact, MLflowArchive().find_artifact):
        with pytest.raises(InputError, match=r"matrix=n+ \.\.\. n+: there is no file"):
            missing(long, "matrix.npz")
    line = refused(train.main, capsys, *words(dataset="mnist", data_dir=long))
    assert "data_dir=nnn" in line and "there is no such folder" in line
    assert "has 256 bytes" in refused(train.main, capsys, *words(checkpoint_dir=long))
    assert "has 256 bytes" in refused(mnist.main, capsys, f"--checkpoint_dir={long}")
    assert "null character" in refused(train.main, capsys, *words(checkpoint_dir="file:///a%00"))
    line = refused(attack.main, capsys, f"--model={','.join(['m.keras'] * 800)}")
    assert line.startswith("resfool: model=m.keras,m") and "has 6399 characters" in line
    with pytest.raises(InputError, match=r"modules=.* has 6001 characters, and a run keeps 6000"):
        Run().begin("a run", {"modules": "m" * 6001}, [])
    ones = Split(np.ones((1, 2, 2, 1), np.float32), np.zeros(1, int))
    far = Dataset(f"npz:{'n' * 491}", ones, ones, ones, ("a",), "")
    with pytest.raises(InputError, match=r"dataset=npz:n+\.\.\. makes a name of 501 characters"):
        Run().begin("a run", {}, [(far, "train", "training")])
    with monkeypatch.context() as patched:
        patched.setenv("MLFLOW_EXPERIMENT_NAME", "n" * 501)
        assert "has 501 characters" in refused(train.main, capsys, *words())
    assert not store.search_runs(["0"])
    with Run() as run:
        run.begin("n" * 999, {"modules": "m" * 6000}, [])
    assert len(store.get_run(run.run_id).info.run_name) == 250


def test_a_database_needs_room_for_its_journal(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"the tuning storage's folder .* has 256 bytes"):
        places.check_database("tuning storage", tmp_path / ("n" * 248))
    places.check_database("tuning storage", tmp_path / ("n" * 247))
    (tmp_path / "loop").symlink_to("loop")
    with pytest.raises(InputError, match=r"the tuning storage .*loop can't be written: Too many"):
        places.check_database("tuning storage", tmp_path / "loop")


FULL = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def full(*_: Any, **__: Any) -> NoReturn:
    raise FULL


def test_a_full_disk_is_named(
    store: MlflowClient, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "kept" / "checkpoint.npz"
    checkpoints.save(path, {"a": np.ones(2)}, {"step": 1})
    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", full)
        with pytest.raises(InputError, match=f"{path.parent} can't be written: No space left"):
            checkpoints.save(path, {"a": np.zeros(2)}, {"step": 2})
    assert checkpoints.load(path)[1] == {"step": 1}, "the earlier one is whole"
    sentence = r"cannot read mine\.keras: no space is left in"
    with pytest.raises(InputError, match=sentence), errors.reading("mine.keras"):
        full()


@pytest.mark.parametrize(
    ("failing", "error", "sentence"),
    [
        ("log_artifacts", FULL, "the artifact store .*mlruns.* can't be written: No space left"),
        ("log_batch", MlflowException("disk is full\n[SQL: ...]"), "last figures: disk is full;"),
    ],
)
def test_what_a_full_disk_refuses_is_kept_in_a_folder(
    store: MlflowClient, monkeypatch: pytest.MonkeyPatch, failing: str, error: Any, sentence: str
) -> None:
    def fails(*_: Any, **__: Any) -> NoReturn:
        raise error

    with pytest.raises(UnsentError, match=sentence) as caught, Run() as run:
        run.begin("a run", {}, [])
        run.point({"step": 5, "rate": 0.5})
        monkeypatch.setattr(MlflowClient, failing, fails)
        run.log({"vector.npy": np.arange(3)})
        run.point({"step": 6, "rate": 0.75})
        run.note("a note")
    folder = Path("unsent", run.run_id).absolute()
    assert str(caught.value).endswith(f"; what it hasn't got is in {folder}")
    ended = store.get_run(run.run_id)
    assert ended.info.status == "FAILED" and ended.data.metrics["rate"] in (0.5, 0.75)
    assert (folder / "vector.npy").exists() == (failing == "log_artifacts")
    kept = (folder / "points.csv").read_text()
    assert ("rate,6,0.75" in kept) == (failing == "log_batch") and "rate,5" not in kept


def test_what_a_disk_that_was_full_has_room_for_is_recorded_after_all(
    store: MlflowClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Run() as run:
        run.begin("a run", {}, [])
        with monkeypatch.context() as patched:
            patched.setattr(MlflowClient, "log_artifacts", full)
            run.log({"vector.npy": np.arange(3)})
    assert store.get_run(run.run_id).info.status == "FINISHED"
    assert [file.path for file in store.list_artifacts(run.run_id)] == ["vector.npy"]
    assert not Path("unsent").exists()


def test_a_full_disk_that_nobody_named_is_one_sentence_too(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with pytest.raises(SystemExit), command_line.one_sentence_errors():
        full()
    assert capsys.readouterr().err == "resfool: a disk can't be written: No space left on device\n"


def test_who_makes_a_store_is_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def enter() -> None:
        with checkpoints.alone_in(tmp_path):
            entered.append(True)

    entered: list[bool] = []
    second = threading.Thread(target=enter)
    with checkpoints.alone_in(tmp_path):
        second.start()
        second.join(0.1)
        assert not entered
        with checkpoints.alone_in(tmp_path / "nowhere"):
            pass  # nobody waits where there is nothing to lock
    second.join(60)
    assert entered and not list(tmp_path.iterdir())
    monkeypatch.setattr(checkpoints, "fcntl", None)
    with checkpoints.alone_in(tmp_path):
        enter()


# Addresses of stores that are none, and secrets in those that are


@pytest.mark.parametrize(
    ("uri", "sentence"),
    [
        ("sqlite://", "it keeps nothing; give such as sqlite:///mlflow.db"),
        ("foo://", "unknown kind of store 'foo'; known: http, https, sqlite"),
        ("postgres://me:SECRET@h", "did you mean 'postgresql'?"),
        ("http:/x", "it is no server's address; give such as http://127.0.0.1:5000"),
        ("http://[", "it is no server's address"),
        ("http://127.0.0.1:99999999", "it is no server's address"),
        (
            "http://me:S/SECRET@127.0.0.1:9",
            "http://***@127.0.0.1:9 can't be used for tracking: / ?",
        ),
        ("http://me:12?SECRET@127.0.0.1:9", "must be quoted, as %40 for @"),
        ("sqlite:/x", "it is no database's URL; give such as sqlite:///FILE"),
        ("mysql+pymysql://me:SECRET@h/x", "it needs the Python module pymysql, which isn't"),
        ("mlruns", "MLflow takes folders with MLFLOW_ALLOW_FILE_STORE=true only"),
        ("file://me:SECRET@h/x", "MLflow takes folders with"),
        (" ", "it is empty"),
        (
            "http://me:SECRET@127.0.0.1:9/?token=SECRET",
            "server http://127.0.0.1:9/?token=*** can't",
        ),
    ],
)
def test_what_is_no_address_of_a_store_is_refused_at_once(
    store: MlflowClient,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    uri: str,
    sentence: str,
) -> None:
    variables = ["MLFLOW_TRACKING_URI", "MLFLOW_REGISTRY_URI"]
    if "can't" in sentence and "server" in sentence:
        del variables[1]  # a registry is asked only where a model is in it
    for variable in variables:
        with monkeypatch.context() as patched:
            if variable == "MLFLOW_TRACKING_URI":
                # As where nobody has called mlflow.set_tracking_uri.
                patched.setattr("mlflow.tracking._tracking_service.utils._tracking_uri", None)
            patched.setenv(variable, uri)
            line = refused(train.main, capsys, *words(dataset="digits"))
        assert "SECRET" not in line and "S@" not in line
        if variable == "MLFLOW_TRACKING_URI":
            assert sentence in line
        else:
            assert f"MLFLOW_REGISTRY_URI={uri[:3].strip()}" in line
    assert not store.search_runs(["0"])


def test_a_registry_that_is_away_is_not_waited_for(
    store: MlflowClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_REGISTRY_URI", "http://me:SECRET@127.0.0.1:9")
    with pytest.raises(InputError, match=r"the model server http://127.0.0.1:9 can't be reached"):
        MLflowArchive().find_model("models:/net/1")


def test_no_secret_of_a_store_is_printed_or_recorded(
    store: MlflowClient, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(ArithmeticError), Run() as run:
        run.begin("x" * 400 + " http://me:SECRET@host", {"a": "s3://me:SECRET@b \udcff"}, [])
        run.note("with `http://me:SECRET@host`")
        run.tag("best", "token=SECRET")
        run.say("http://me:SECRET@host")
        run.warn("http://me:SECRET@host")
        raise ArithmeticError("http://me:SECRET@host \x1b")
    kept = store.get_run(run.run_id)
    assert kept.data.params["a"] == r"s3://***@b \xff" and len(kept.info.run_name) == 250
    assert kept.data.tags["resfool.error"] == r"http://***@host \x1b"
    for text in (*kept.data.tags.values(), *capsys.readouterr()):
        assert "SECRET" not in text
    mlflow.set_tracking_uri("http://me:SECRET@127.0.0.1:9")
    assert stores.viewer() == "a browser at http://127.0.0.1:9"
    mlflow.set_tracking_uri("postgresql://me:SECRET@127.0.0.1/x")
    assert stores.viewer().endswith('ui --backend-store-uri "$MLFLOW_TRACKING_URI"')


def test_mlflow_prints_no_address_with_a_password(
    store: MlflowClient, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", raising=False)
    stores.prepare()
    monkeypatch.setattr(RestStore, "get_run", lambda self, run_id: store.create_run("0"))
    client = MlflowClient("http://me:SECRET@127.0.0.1:9")
    client._tracking_client._log_url("r1")
    assert not capsys.readouterr().out
