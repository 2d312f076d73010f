"""What the tests share: a tracking store of their own each, and quick settings."""

import contextlib
import gc
import os
import shutil
import signal
import sqlite3
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from resfool import devices
from resfool.classifiers import rehearsal
from resfool.values import show

if TYPE_CHECKING:  # it takes long to import, and not every process of the tests needs it
    from mlflow import MlflowClient

# Tests import TensorFlow themselves, some before any code of ours starts it.
os.environ.update(devices.VARIABLES | os.environ)
# The nets are so small that several threads would spend most of their time waiting for work; what
# must hold with as many as a user has is tested in a process of its own, with `as_a_user_has_it`.
_THREADS = {"TF_NUM_INTRAOP_THREADS", "OMP_NUM_THREADS"} - os.environ.keys()
os.environ.update(dict.fromkeys(_THREADS, "1"))

ROOT = Path(__file__).resolve().parent.parent
# The smallest training there is: it takes a second and still learns.
QUICK: dict[str, Any] = {"arch": "mlp", "dataset": "digits", "width": (8,), "depth": 2}


def as_a_user_has_it() -> dict[str, str]:
    """The environment of a process that is to find this project, with all the threads it wants."""
    kept = {name: value for name, value in os.environ.items() if name not in _THREADS}
    return kept | {"PYTHONPATH": str(ROOT)}


def pytest_collection_finish() -> None:
    """Keep the garbage collector from walking through all that was imported, again and again."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session")
def empty_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A fresh SQLite store; making its tables takes seconds, so it is made once and copied."""
    from mlflow import MlflowClient

    path = tmp_path_factory.mktemp("store") / "mlflow.db"
    # The folder for artifacts is made out of the working directory, which must not be the checkout.
    with contextlib.chdir(path.parent):
        MlflowClient(f"sqlite:///{path}").search_experiments()
    return path


def refused(
    main: Callable[[Sequence[str]], None], capsys: pytest.CaptureFixture[str], *words: str
) -> str:
    """The one sentence that an entry point's refusal prints."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as caught:
        main(words)
    assert caught.value.code in (1, 2)
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1, lines
    return lines[0]


@pytest.fixture(autouse=True)
def unrehearsed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Models are loaded at once: a process of its own for each would take most of the time.

    That they are loaded there first is tested in processes of their own.
    """
    monkeypatch.setattr(rehearsal, "rehearse", lambda what, work: {})


@pytest.fixture
def store(
    empty_store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator["MlflowClient"]:
    """The client of an empty tracking store in the working directory, which is a new folder."""
    import mlflow

    shutil.copy(empty_store, tmp_path / "mlflow.db")
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_RUN_ID", raising=False)
    uri = f"sqlite:///{tmp_path / 'mlflow.db'}"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    mlflow.set_tracking_uri(uri)
    handlers = {s: signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)}
    yield mlflow.MlflowClient(uri)
    for number, handler in handlers.items():
        signal.signal(number, handler)
    mlflow.end_run()


@pytest.fixture
def unpainted(monkeypatch: pytest.MonkeyPatch) -> None:
    """Figures are made, and left without their pixels, which take most of the time."""
    from matplotlib.figure import Figure

    def saved(figure: Figure, target: Any, **options: Any) -> None:
        with contextlib.ExitStack() as stack:
            file = target
            if not hasattr(target, "write"):
                file = stack.enter_context(Path(target).open("wb"))
            file.write(b"unpainted")

    monkeypatch.setattr(Figure, "savefig", saved)


TrainOnce = Callable[..., str]


@pytest.fixture(scope="session")
def kept_stores(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, ...], Path]:
    """Stores with a training in them, by its words."""
    return {}


@pytest.fixture
def train_once(
    store: "MlflowClient",
    kept_stores: dict[tuple[str, ...], Path],
    tmp_path_factory: pytest.TempPathFactory,
) -> TrainOnce:
    """Puts a training into the store, which must be empty, and returns its run's id.

    Tests that want the same one get a copy of the store; its artifacts they share.
    """

    def train_once(**options: Any) -> str:
        from entry_points import train

        words = tuple(f"--{name}={show(value)}" for name, value in (QUICK | options).items())
        if words in kept_stores:
            copy_database(kept_stores[words], Path("mlflow.db"))
        else:
            train.main(words)
            kept_stores[words] = tmp_path_factory.mktemp("trained") / "mlflow.db"
            copy_database(Path("mlflow.db"), kept_stores[words])
        return str(store.search_runs(["0"])[0].info.run_id)

    return train_once


def copy_database(source: Path, target: Path) -> None:
    """One that may be open."""
    with (
        contextlib.closing(sqlite3.connect(source)) as one,
        contextlib.closing(sqlite3.connect(target)) as other,
    ):
        one.backup(other)


@pytest.fixture(scope="module")
def client_port() -> int:
    """Of the cluster's client server."""
    from tests import ray_cluster

    return ray_cluster.free_port()


@pytest.fixture(scope="module")
def cluster(client_port: int) -> Iterator[str]:
    """The address of a Ray cluster of this machine with two CPUs and a token."""
    from tests import ray_cluster

    with ray_cluster.started(client_port) as address:
        yield address
