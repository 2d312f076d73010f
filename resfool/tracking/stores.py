"""Whether a tracking store or a folder can be used, found out quickly and without making anything.

MLflow itself would spend minutes on retries, or make a database by the question.
"""

import contextlib
import logging
import os
import sqlite3
import sys
import tempfile
from pathlib import Path
from urllib.parse import urlparse, urlsplit
from urllib.request import url2pathname

import mlflow
from mlflow.exceptions import MlflowException

from resfool.errors import InputError


def present(path: Path) -> bool:
    """Whether something is at a path, as far as this user is let see."""
    try:
        return path.exists()
    except OSError:
        return False


def exists() -> bool:
    """Whether asking the store would not make it: a new SQLite file would be made."""
    uri = mlflow.get_tracking_uri()
    return not uri.startswith("sqlite:///") or present(Path(uri.removeprefix("sqlite:///")))


def check_has(what: str) -> None:
    """Refuse, as MLflow does what it can't find, what the question would make a store for."""
    if not exists():
        raise MlflowException(f"a new store has no {what}, and the question would make it")


def address() -> str:
    """The store's, without user and password."""
    uri = mlflow.get_tracking_uri()
    place = urlsplit(uri).netloc
    return uri.replace(place, place.rpartition("@")[2], 1) if "@" in place else uri


def prepare() -> None:
    """Make ready for what a command tells MLflow, or asks of it.

    MLflow's notes on tables and threads are kept out of our output, unless they are asked for.

    Raises:
        InputError: the tracking store can't be reached or written.
    """
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    if "MLFLOW_LOGGING_LEVEL" not in os.environ:
        logging.getLogger("mlflow").setLevel(logging.WARNING)
    uri = mlflow.get_tracking_uri()
    if uri.startswith(("http://", "https://")):
        _check_server(uri)
    elif uri.startswith("sqlite:///"):
        _check_sqlite(Path(uri.removeprefix("sqlite:///")))
    elif uri.startswith("file:") or "://" not in uri:
        path = url2pathname(urlparse(uri).path) if uri.startswith("file:") else uri
        check_folder("tracking store", Path(path))


def check_folder(what: str, path: Path) -> None:
    """Refuse a folder for something, which needn't exist yet, that can't be written or made."""
    whole = path.absolute()
    nearest = next(p for p in (whole, *whole.parents) if present(p))
    try:
        with tempfile.TemporaryFile(dir=nearest):
            pass
    except OSError as error:
        raise InputError(f"the {what} {path} can't be written: {error.strerror}") from None


def _check_server(uri: str) -> None:
    """Ask it for a sign of life as MLflow would; whether it lets us in, MLflow will say."""
    import requests

    trusting = os.environ.get("MLFLOW_TRACKING_INSECURE_TLS", "").lower() in ("1", "true")
    verify = not trusting and (os.environ.get("MLFLOW_TRACKING_SERVER_CERT_PATH") or True)
    try:
        requests.get(f"{uri.rstrip('/')}/health", timeout=2, verify=verify)
    except (OSError, ValueError) as error:  # those of requests among them
        first: BaseException = error
        while first.__context__ is not None:
            first = first.__context__
        raise InputError(f"the tracking server {address()} can't be reached: {first}") from None


def _check_sqlite(path: Path) -> None:
    if not present(path):
        if not present(path.parent):
            raise InputError(f"the tracking store {path} can't be written: no folder {path.parent}")
        check_folder("tracking store's folder", path.parent)
        return
    try:
        with contextlib.closing(sqlite3.connect(path, timeout=2)) as connection:
            connection.execute("BEGIN IMMEDIATE")
            connection.rollback()
    except sqlite3.OperationalError as error:
        if "locked" in str(error):
            return  # somebody is writing, so it can be written
        raise InputError(f"the tracking store {path} can't be written: {error}") from None
    except sqlite3.DatabaseError as error:
        raise InputError(f"the tracking store {path} can't be used: {error}") from None


def unusable(error: MlflowException) -> InputError:
    """The refusal of a store that failed."""
    return InputError(f"{address()} can't be used for tracking: {error.message}")


def link(experiment_id: str, run_id: str) -> str:
    """A run's page; that of a store in a file is there while `mlflow ui` runs on its own port."""
    return f"{_server() or 'http://127.0.0.1:5000'}/#/experiments/{experiment_id}/runs/{run_id}"


def viewer() -> str:
    """What shows the runs: the command that opens the MLflow UI, or the server that is it."""
    if server := _server():
        return f"a browser at {server}"
    # In full, since this environment's commands needn't be on the path of the user's shell.
    beside_python = Path(sys.executable).with_name("mlflow")
    command = beside_python if beside_python.exists() else "mlflow"
    return f"{command} ui --backend-store-uri {mlflow.get_tracking_uri()}"


def _server() -> str | None:
    """The address of the tracking server in use; None if there is none, only a store."""
    return address().rstrip("/") if address().startswith(("http://", "https://")) else None
