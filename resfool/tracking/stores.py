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
from importlib import metadata
from pathlib import Path
from urllib.parse import urlparse, urlsplit
from urllib.request import url2pathname

import mlflow
from mlflow import MlflowClient
from mlflow.environment_variables import MLFLOW_ALLOW_FILE_STORE
from mlflow.exceptions import MlflowException
from mlflow.utils.validation import MAX_EXPERIMENT_NAME_LENGTH

from resfool import checkpoints, databases
from resfool.archive import canonical
from resfool.errors import InputError, database_in, expanded, expanded_uri, present, short, unknown
from resfool.places import check_database, check_folder, check_temporary_folder
from resfool.wording import HIDDEN, has_password, without_password

# Of MLflow, unless the user has set them.
_SETTINGS = {
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    # We print a run's address ourselves, which MLflow would print with the password of a server.
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    # It would repeat a request for minutes, in which a training would wait; see `patience`.
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
    """The store's client; of those that make a new SQLite store's tables, one at a time.

    Raises:
        InputError: the store can't be opened.
    """
    database = _database()
    alone = contextlib.nullcontext() if database is None else checkpoints.alone_in(database.parent)
    try:
        with alone:
            return MlflowClient()
    except MlflowException as error:
        raise unusable(error) from error
    except Exception as error:  # of a database of others, a driver's or SQLAlchemy's
        raise unusable(MlflowException(short(error))) from error


def check_has(what: str) -> None:
    """Refuse, as MLflow does what it can't find, what the question would make a store for."""
    if not exists():
        raise MlflowException(f"a new store has no {what}, and the question would make it")


def address() -> str:
    """The store's, without user and password."""
    return _shown(mlflow.get_tracking_uri())


def _shown(uri: str) -> str:
    return without_password(uri).replace(f"{HIDDEN}@", "", 1)


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
        # They log what they raise too, with all the SQL; the last one ends where a store is away.
        for module in ("store.db.utils", "utils.databricks_utils", "system_metrics"):
            logging.getLogger(f"mlflow.{module}").setLevel(logging.CRITICAL)
    check_temporary_folder()
    _check_experiment_name()
    uri = mlflow.get_tracking_uri()
    _check_is_any("MLFLOW_TRACKING_URI", uri, "tracking", "mlflow.tracking_store")
    registry = mlflow.get_registry_uri()
    if registry != uri:
        _check_is_any("MLFLOW_REGISTRY_URI", registry, "models", "mlflow.model_registry_store")
    _find_relative()
    _check_there("tracking", mlflow.get_tracking_uri())


_SERVERS = "http", "https"
_DATABASES = "sqlite", "postgresql", "mysql", "mssql"
_OTHERS = "file", "databricks", "databricks-uc", "uc"


def _check_is_any(variable: str, uri: str, use: str, plugins: str) -> None:
    """Refuse what is no address of a store, or one of a kind that nothing here can speak to."""
    if why := _flaw(uri, plugins):
        raise InputError(databases.refusal(variable, uri, use, why))


def _flaw(uri: str, plugins: str) -> str | None:
    if not uri.strip():
        return "it is empty"
    found = re.match(r"([a-z][a-z0-9+.-]*):", uri, re.IGNORECASE)
    kind = found[1].lower() if found else uri if uri in _OTHERS else "file"
    if kind == "file" and not MLFLOW_ALLOW_FILE_STORE.get():
        return (
            "MLflow takes folders with MLFLOW_ALLOW_FILE_STORE=true only; give sqlite:///mlflow.db"
        )
    if kind in _SERVERS:
        return _flaw_of_server(uri)
    if uri in ("sqlite://", "sqlite:///", "sqlite:///:memory:"):
        return "it keeps nothing; give such as sqlite:///mlflow.db"
    if kind.partition("+")[0] in _DATABASES:
        return databases.flaw(uri)
    known = *_SERVERS, *_DATABASES, *_OTHERS, *metadata.entry_points(group=plugins).names
    return None if kind in known else str(unknown("kind of store", kind, known))


def _flaw_of_server(uri: str) -> str | None:
    try:
        parts = urlsplit(uri)
        host, place = parts.hostname, parts.netloc
        _ = parts.port
    except ValueError:
        host, place = None, ""
    if _is_server(uri) and "@" in uri.replace(place, "", 1):
        return databases.QUOTING  # else another host would be asked, and told of it
    if not host or re.search(r"\s", uri):
        return "it is no server's address; give such as http://127.0.0.1:5000"
    return None


def _is_server(uri: str) -> bool:
    return uri.lower().startswith(tuple(f"{kind}://" for kind in _SERVERS))


def _check_there(what: str, uri: str) -> None:
    """Refuse a store that can't be reached or written."""
    if _is_server(uri):
        _check_server(what, uri)
    elif database := database_in(uri):
        _check_sqlite(what, database)
    elif folder := _folder(uri):
        check_folder(f"{what} store", folder)
    elif uri.partition(":")[0].partition("+")[0] in _DATABASES and (why := databases.failure(uri)):
        raise InputError(f"the {what} store {_shown(uri)} can't be reached: {why}")


def check_registry() -> None:
    """Refuse a registry of models that can't be reached, which MLflow would try for minutes."""
    registry = mlflow.get_registry_uri()
    if registry != mlflow.get_tracking_uri():
        _check_there("model", registry)


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


def _check_experiment_name() -> None:
    size = len(os.environ.get("MLFLOW_EXPERIMENT_NAME", ""))
    if size > MAX_EXPERIMENT_NAME_LENGTH:
        raise InputError(
            f"the experiment's name (MLFLOW_EXPERIMENT_NAME) has {size} characters, and MLflow "
            f"takes {MAX_EXPERIMENT_NAME_LENGTH}"
        )


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


def _check_server(what: str, uri: str) -> None:
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
        raise InputError(f"the {what} server {_shown(uri)} can't be reached: {first}") from None


def _check_sqlite(what: str, path: Path) -> None:
    if not present(path):
        if not present(path.parent):
            raise InputError(f"the {what} store {path} can't be written: no folder {path.parent}")
        check_database(f"{what} store", path)
        check_place_of_artifacts(_new_artifacts())
        return
    check_database(f"{what} store", path)
    try:
        with contextlib.closing(sqlite3.connect(path, timeout=2)) as connection:
            connection.execute("BEGIN IMMEDIATE")
            connection.rollback()
    except sqlite3.OperationalError as error:
        if "locked" in str(error):
            return  # somebody is writing, so it can be written
        raise InputError(f"the {what} store {path} can't be written: {error}") from None
    except sqlite3.DatabaseError as error:
        raise InputError(f"the {what} store {path} can't be used: {error}") from None


def run_id_in(address: str) -> str:
    """The run's id in runs:/RUN_ID, in runs:/RUN_ID/ANYTHING, or in RUN_ID itself."""
    return canonical(address).removeprefix("runs:/").partition("/")[0]


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
    uri = mlflow.get_tracking_uri()
    # What has a password is named by the variable that a shell has it in.
    given = '"$MLFLOW_TRACKING_URI"' if has_password(uri) else shlex.quote(uri)
    return f"{shlex.quote(command)} ui --backend-store-uri {given}"


def _server() -> str | None:
    """The address of the tracking server in use; None if there is none, only a store."""
    return address().rstrip("/") if _is_server(mlflow.get_tracking_uri()) else None
