"""Whether a tracking store or a folder can be used, found out quickly and without making anything.

MLflow itself would spend minutes on retries, or make a database by the question.
"""

import http.client
import sqlite3
import tempfile
import urllib.error
import urllib.request
from pathlib import Path
from urllib.parse import urlparse
from urllib.request import url2pathname

from resfool.errors import InputError


def exists(uri: str) -> bool:
    """Whether asking a store would not make it: a new SQLite file would be made."""
    return not uri.startswith("sqlite:///") or Path(uri.removeprefix("sqlite:///")).exists()


def check(uri: str) -> None:
    """Refuse a tracking store that can't be used.

    Args:
        uri: as MLflow takes it: sqlite:///..., http(s)://..., a folder or file:...

    Raises:
        InputError: it can't be reached or written.
    """
    if uri.startswith(("http://", "https://")):
        _check_server(uri)
    elif uri.startswith("sqlite:///"):
        _check_sqlite(Path(uri.removeprefix("sqlite:///")))
    elif uri.startswith("file:") or "://" not in uri:
        path = url2pathname(urlparse(uri).path) if uri.startswith("file:") else uri
        check_folder("tracking store", Path(path))


def check_folder(what: str, path: Path) -> None:
    """Refuse a folder that can't be written, or made.

    Args:
        what: it is for.
        path: the folder, which needn't exist yet.

    Raises:
        InputError: it can't be written.
    """
    nearest = next(p for p in (path.absolute(), *path.absolute().parents) if p.exists())
    try:
        with tempfile.TemporaryFile(dir=nearest):
            pass
    except OSError as error:
        raise InputError(f"the {what} {path} can't be written: {error.strerror}") from None


def _check_server(uri: str) -> None:
    try:
        with urllib.request.urlopen(f"{uri.rstrip('/')}/health", timeout=2):
            pass
    except urllib.error.HTTPError:
        pass  # it answers; whether it lets us in, MLflow will say
    except (OSError, ValueError, http.client.HTTPException) as error:
        raise InputError(f"the tracking server {uri} can't be reached: {error}") from None


def _check_sqlite(path: Path) -> None:
    if not path.exists():
        if not path.parent.is_dir():
            raise InputError(f"the tracking store {path} can't be written: no folder {path.parent}")
        check_folder("tracking store's folder", path.parent)
        return
    try:
        connection = sqlite3.connect(path, timeout=2)
        try:
            connection.execute("BEGIN IMMEDIATE")
            connection.rollback()
        finally:
            connection.close()
    except sqlite3.OperationalError as error:
        if "locked" in str(error):
            return  # somebody is writing, so it can be written
        raise InputError(f"the tracking store {path} can't be written: {error}") from None
    except sqlite3.DatabaseError as error:
        raise InputError(f"the tracking store {path} can't be used: {error}") from None
