"""Whether a tracking store or a folder can be used, found out quickly and without making anything.

MLflow itself would spend minutes on retries, or make a database by the question.
"""

import contextlib
import logging
import os
import re
import shlex
import sqlite3
import sys
import tempfile
from pathlib import Path
from urllib.parse import urlparse, urlsplit
from urllib.request import url2pathname

import mlflow
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException

from resfool import checkpoints
from resfool.errors import InputError, database_in, expanded, expanded_uri, present, writing

# MLflow would repeat a request for minutes, in which a training would wait; see `patience`.
_SETTINGS = {
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",
    "MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR": "1",
}


def exists() -> bool:
    """Whether asking the store would not make it: a new SQLite file would be made."""
    database = _database()
    return database is None or present(database)


def _database() -> Path | None:
    """The file of a SQLite store."""
    return database_in(mlflow.get_tracking_uri())


def client() -> MlflowClient:
    """The store's client; of those that make a new SQLite store's tables, one at a time."""
    database = _database()
    if database is None:
        return MlflowClient()
    with checkpoints.alone_in(database.parent):
        return MlflowClient()


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
    for name, value in _SETTINGS.items():
        os.environ.setdefault(name, value)
    if "MLFLOW_LOGGING_LEVEL" not in os.environ:
        logging.getLogger("mlflow").setLevel(logging.WARNING)
        # It logs what it raises too, with all the SQL.
        logging.getLogger("mlflow.store.db.utils").setLevel(logging.CRITICAL)
        # It ends where the store is away.
        logging.getLogger("mlflow.system_metrics").setLevel(logging.CRITICAL)
    _check_temporary_folder()
    _find_relative()
    uri = mlflow.get_tracking_uri()
    if uri.startswith(("http://", "https://")):
        _check_server(uri)
    elif database := _database():
        _check_sqlite(database)
    elif folder := _folder(uri):
        check_folder("tracking store", folder)


def _find_relative() -> None:
    """Take a store whose place is relative as `mlflow run` does: from where it was called."""
    uri = mlflow.get_tracking_uri()
    folder = _folder(uri)
    relative = folder is not None and not folder.is_absolute()
    whole = str(expanded(uri)) if relative else expanded_uri(uri)
    if whole != uri:
        mlflow.set_tracking_uri(whole)


def _folder(uri: str) -> Path | None:
    """The folder that a URI names, if it names one of this machine."""
    if uri.startswith("file:"):
        return Path(url2pathname(urlparse(uri).path))
    remote = ":/" in uri or uri.startswith("databricks")
    return None if remote else Path(uri)


def _check_temporary_folder() -> None:
    try:
        folder = tempfile.gettempdir()
    except FileNotFoundError as error:
        raise InputError(f"temporary files can't be written: {error.strerror}") from None
    check_folder("temporary folder", Path(folder))


def check_artifacts(client: MlflowClient) -> None:
    """Refuse an experiment whose artifacts' place is of this machine and can't be written.

    Raises:
        InputError: this, or the store can't be used.
    """
    run_id, name = os.environ.get("MLFLOW_RUN_ID"), os.environ.get("MLFLOW_EXPERIMENT_NAME")
    try:
        if run_id:
            place = client.get_run(run_id).info.artifact_uri
        else:
            number = os.environ.get("MLFLOW_EXPERIMENT_ID") or "0"
            found = client.get_experiment_by_name(name) if name else client.get_experiment(number)
            place = found.artifact_location if found is not None else _new_artifacts()
    except MlflowException as error:
        raise unusable(error) from error
    check_place_of_artifacts(place)


def _new_artifacts() -> str | None:
    """Where the artifacts of a new experiment go, if this machine decides."""
    return None if _database() is None else "mlruns"


def check_place_of_artifacts(uri: str | None) -> None:
    """Refuse a place for artifacts that is of this machine and can't be written."""
    folder = None if uri is None else _folder(uri)
    if folder is not None:
        check_folder("artifact store", folder)


def check_folder(what: str, path: Path) -> None:
    """Refuse a folder for something, which needn't exist yet, that can't be written or made."""
    whole = path.absolute()
    nearest = next(p for p in (whole, *whole.parents) if present(p))
    with writing(f"the {what} {whole}"), tempfile.TemporaryFile(dir=nearest, buffering=0) as file:
        file.write(bytes(4096))  # a full disk still has room for names


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
        check_place_of_artifacts(_new_artifacts())
        return
    check_folder("tracking store's folder", path.parent)  # SQLite's journal goes there
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


def run_id_in(address: str) -> str:
    """The run's id in runs:/RUN_ID, in runs:/RUN_ID/ANYTHING, or in RUN_ID itself."""
    return canonical(address).removeprefix("runs:/").partition("/")[0]


_NEARLY_RIGHT = re.compile(r"(run|model)s?:/*")
_BARE_ID = re.compile(r"(m-)?[0-9a-f]{32}")


def canonical(address: str) -> str:
    """The address of a run, a model or a file as MLflow has it, of one that is nearly right.

    An id alone gets its scheme, runs:/ and models:/ lose slashes that are too many.
    """
    bare = address.strip().rstrip("/")
    if found := _BARE_ID.fullmatch(bare):
        return f"{'models' if found[1] else 'runs'}:/{bare}"
    if found := _NEARLY_RIGHT.match(bare):
        return f"{found[1]}s:/{bare[found.end() :]}"
    return address


def unusable(error: MlflowException) -> InputError:
    """The refusal of a store that failed."""
    return InputError(f"{address()} can't be used for tracking: {reason(error)}")


def reason(error: MlflowException) -> str:
    """What a store says is wrong, without SQLAlchemy's remarks and the SQL that it happened in."""
    return str(error.message).partition("\n[SQL")[0].rpartition("prematurely) ")[2]


def link(experiment_id: str, run_id: str) -> str:
    """A run's page; that of a store in a file is there while `mlflow ui` runs on its own port."""
    return f"{_server() or 'http://127.0.0.1:5000'}/#/experiments/{experiment_id}/runs/{run_id}"


def viewer() -> str:
    """What shows the runs: the command that opens the MLflow UI, or the server that is it."""
    if server := _server():
        return f"a browser at {server}"
    # In full, since this environment's commands needn't be on the path of the user's shell.
    beside_python = Path(sys.executable).with_name("mlflow")
    command = str(beside_python) if beside_python.exists() else "mlflow"
    return shlex.join([command, "ui", "--backend-store-uri", mlflow.get_tracking_uri()])


def _server() -> str | None:
    """The address of the tracking server in use; None if there is none, only a store."""
    return address().rstrip("/") if address().startswith(("http://", "https://")) else None
