"""What the tests share: a tracking store of their own each, and quick settings."""

import contextlib
import os
import shutil
import signal
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import mlflow
import pytest
from mlflow import MlflowClient

from resfool import devices

# Tests import TensorFlow themselves, some before any code of ours starts it.
os.environ.update(devices.VARIABLES | os.environ)

ROOT = Path(__file__).resolve().parent.parent
# The smallest training there is: it takes a second and still learns.
QUICK: dict[str, Any] = {"arch": "mlp", "dataset": "digits", "width": (8,), "depth": 2}


@pytest.fixture(scope="session")
def empty_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A fresh SQLite store; making its tables takes seconds, so it is made once and copied."""
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


@pytest.fixture
def store(
    empty_store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[MlflowClient]:
    """The client of an empty tracking store in the working directory, which is a new folder."""
    shutil.copy(empty_store, tmp_path / "mlflow.db")
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_RUN_ID", raising=False)
    uri = f"sqlite:///{tmp_path / 'mlflow.db'}"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    mlflow.set_tracking_uri(uri)
    handlers = {s: signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)}
    yield MlflowClient(uri)
    for number, handler in handlers.items():
        signal.signal(number, handler)
    mlflow.end_run()
