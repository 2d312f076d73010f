"""Nothing stays behind: temporary folders, copies of what a store has, and Ray's own."""

import contextlib
import importlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import psutil
import pytest
from mlflow import MlflowClient

import resfool
from entry_points import attack
from resfool import errors, parallel, places
from resfool.archive import as_given
from resfool.errors import InputError, UsageError
from resfool.parallel import tasks
from resfool.parameters import Parameters, plainly
from resfool.tracking.archive import MLflowArchive
from tests.conftest import as_a_user_has_it, refused

LOCK = places._LOCK
LONG = "n" * 300


@pytest.fixture
def outside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder for temporary files."""
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setenv("TMPDIR", str(folder))
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    return folder


def test_what_is_temporary_lies_in_one_private_folder_and_goes(outside: Path) -> None:
    (outside / "theirs").touch()
    variables = dict(os.environ)
    with pytest.raises(ValueError, match="it failed"), places.tidied():
        (folder,) = set(outside.iterdir()) - {outside / "theirs"}
        assert folder.stat().st_mode & 0o777 == 0o700
        made = [tempfile.mkdtemp(), tempfile.mkstemp()[1], str(places.new_folder())]
        assert all(Path(path).parent == folder for path in made)
        assert os.environ["TMPDIR"] == str(folder), "child processes have theirs there too"
        assert errors.temporary_folder() == str(outside)
        assert places.outliving()["TMPDIR"] == str(outside), "but for those that live on"
        with places.tidied():
            (inner,) = set(folder.iterdir()) - {Path(path) for path in made} - {folder / LOCK}
            assert Path(tempfile.gettempdir()) == inner
        assert not inner.exists() and Path(tempfile.gettempdir()) == folder
        raise ValueError("it failed")
    assert list(outside.iterdir()) == [outside / "theirs"]
    assert os.environ == variables and tempfile.gettempdir() == str(outside)


def test_matplotlib_finds_its_cache_until_the_process_ends(
    outside: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with places.tidied():
        monkeypatch.setenv("MPLCONFIGDIR", cache := tempfile.mkdtemp())  # as it does itself
    assert Path(cache).is_dir()


def test_a_call_from_python_removes_its_copies_alone(outside: Path) -> None:
    class Asked(Parameters):
        """Nothing much."""

        size: Annotated[int, "how large."] = 1

    def work(asked: Asked, fail: bool) -> Path:
        folder = places.new_folder()
        other = threading.Thread(target=lambda: others.append(places.new_folder()))
        other.start()
        other.join()
        assert folder.is_dir() and Path(tempfile.gettempdir()) == outside
        if fail:
            raise KeyboardInterrupt
        return folder

    others: list[Path] = []
    before = places.new_folder()
    assert not plainly(work, Asked)(False, size=2).exists()
    with pytest.raises(KeyboardInterrupt):
        plainly(work, Asked)(True)
    assert set(outside.iterdir()) == {before, *others}, "other threads keep theirs"


WORKING = """
import tempfile, time
from resfool import command_line, interrupts, places
with command_line.one_sentence_errors():
    interrupts.raise_once()
    with places.tidied():
        tempfile.mkdtemp()
        print("at work", flush=True)
        time.sleep(60)
"""


@contextlib.contextmanager
def at_work() -> Iterator["subprocess.Popen[str]"]:
    """A process that has something temporary."""
    command = [sys.executable, "-c", WORKING]
    with subprocess.Popen(
        command, env=as_a_user_has_it(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None and process.stdout.readline() == "at work\n"
        yield process
        process.kill()


def test_signals_leave_nothing_and_the_next_clears_what_was_killed(outside: Path) -> None:
    with at_work() as terminated, at_work() as killed:
        assert len(list(outside.iterdir())) == 2
        terminated.send_signal(signal.SIGTERM)
        assert terminated.wait(20) == 130
        (left,) = outside.iterdir()
        with places.tidied():
            assert left.exists(), "its process lives"
        killed.kill()
        killed.wait(20)
        assert left.exists()
        shutil.copytree(left, outside / "resfool", dirs_exist_ok=True)  # not by our name
        theirs = outside / f"{places._BEGINNING}notes"
        theirs.mkdir()
        (theirs / "note").touch()
        (outside / f"{places._BEGINNING}link").symlink_to(outside / "resfool")
        kept = set(outside.iterdir()) - {left}
        with places.tidied():
            assert not left.exists()
        assert set(outside.iterdir()) == kept
        assert (outside / "resfool" / LOCK).exists() and (theirs / "note").exists()


def test_what_others_may_make_anew_is_left_for_later(
    outside: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dead = places.Folder()
    assert dead._lock is not None
    os.close(dead._lock)
    dead._lock = None
    script = ["-c", "input()", f"--temp-dir={dead.path}/r"]  # as Ray's workers begin
    with subprocess.Popen([sys.executable, *script], stdin=subprocess.PIPE) as late:
        assert [process.pid for process in places.processes_in(dead.path)] == [late.pid]
        with places.tidied():
            assert dead.path.exists()
        late.communicate()
    with places.tidied():
        assert not dead.path.exists()


# What a store has


def test_copies_of_runs_artifacts_go_and_are_named_as_given(
    store: MlflowClient, outside: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run_id = store.create_run("0").info.run_id
    store.log_text(run_id, f"flavors: {{keras: {{data: {LONG}}}}}", "model/MLmodel")
    uri = f"runs:/{run_id}/model"
    with places.cleared():
        source = MLflowArchive().find_model(uri)
        assert source.path.is_relative_to(outside) and source.path.is_dir()
    assert not list(outside.iterdir())
    line = refused(attack.main, capsys, f"--model={uri}", "--dataset=digits")
    assert line.startswith(f"resfool: {uri}: its keras flavour names {LONG[:50]}")
    assert str(outside) not in line and not list(outside.iterdir())


def test_sentences_name_what_was_given(tmp_path: Path) -> None:
    copy, own = tmp_path / "copy", tmp_path / "mine.keras"
    sentence = r"^runs:/1/model/data is no model of runs:/1/model$"
    with pytest.raises(UsageError, match=sentence), as_given("runs:/1/model", copy):
        raise UsageError(f"{copy}/data is no model of {copy}")
    with pytest.raises(InputError, match=str(own)), as_given(str(own), own):
        raise InputError(f"{own} is no model")


def test_nobody_is_told_that_it_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, quiet in (("MLFLOW_DISABLE_TELEMETRY", "true"), ("RAY_USAGE_STATS_ENABLED", "0")):
        monkeypatch.delenv(name, raising=False)
        importlib.reload(resfool)
        assert os.environ[name] == quiet
        monkeypatch.setenv(name, "as the user wants it")
        importlib.reload(resfool)
        assert os.environ[name] == "as the user wants it"
    with monkeypatch.context() as patched:
        patched.setattr(os, "environ", {"MLFLOW_DISABLE_TELEMETRY": "true", "MLFLOW_RUN_ID": "1"})
        tasks.forget_tracking()
        assert os.environ == {"MLFLOW_DISABLE_TELEMETRY": "true"}


# Ray on this machine


@pytest.mark.slow
def test_ray_of_this_machine_is_for_this_user_alone(
    outside: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(outside))
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    monkeypatch.delenv("RAY_AUTH_TOKEN", raising=False)
    assert parallel.map(abs, [-1, -2], backend="ray", workers=2) == [1, 2]
    from resfool.parallel import own_ray

    family = [psutil.Process(), *psutil.Process().children(recursive=True)]
    living = [process for process in family if process.status() != psutil.STATUS_ZOMBIE]
    ours = [process for process in living if "ray" in " ".join(process.cmdline())]
    ports = [
        connection.laddr
        for process in ours
        for connection in process.net_connections("inet")
        if connection.status == psutil.CONN_LISTEN
    ]
    assert len(ports) > 5
    assert {ip.removeprefix("::ffff:") for ip, _ in ports} == {"127.0.0.1"}
    started = own_ray._started
    assert started is not None and "RAY_AUTH_TOKEN" not in os.environ
    private = started.folder.path
    token = psutil.Process(started.pid).environ()["RAY_AUTH_TOKEN"].encode()
    assert len(token) == 64 and private.stat().st_mode & 0o777 == 0o700
    files = [p for folder in (private, outside) for p in folder.rglob("*") if p.is_file()]
    assert files and not [p for p in files if token in p.read_bytes()]
    own_ray.end()
    assert not private.exists() and not list(outside.iterdir())
    gone = [process for process in ours if process != psutil.Process()]
    assert not [p for p in gone if p.is_running() and p.status() != psutil.STATUS_ZOMBIE]
    assert os.environ["RAY_AUTH_MODE"] == "disabled" and "RAY_AUTH_TOKEN" not in os.environ
