"""Waiting for a store that is away for a while, or not, where there is other work meanwhile."""

import contextlib
import os
import sqlite3
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any, TypeVar

import requests

from resfool.errors import InputError
from resfool.values import duration

Result = TypeVar("Result")

# The environment variable with the seconds for which a store that is away is waited for.
VARIABLE = "RESFOOL_STORE_PATIENCE"
_DEFAULT = 1200.0
_PAUSES = 1.0, 15.0  # seconds between two attempts, at first and at most
_NO_REPEATS = {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0"}
_PROMPT = _NO_REPEATS | {"MLFLOW_HTTP_REQUEST_TIMEOUT": "10"}

_waited = 0.0  # seconds, since the store was last there


def is_away(error: BaseException) -> bool:
    """Whether an error says that a store can't be reached just now, or is too busy to answer."""
    for cause in _causes(error):
        if isinstance(cause, requests.HTTPError) and cause.response is not None:
            return cause.response.status_code >= 500 or cause.response.status_code in (408, 429)
        if isinstance(cause, requests.RequestException | ConnectionError | TimeoutError):
            return True
        if isinstance(cause, sqlite3.Error):
            return "locked" in str(cause)
    return getattr(error, "error_code", None) == "TEMPORARILY_UNAVAILABLE"


def is_lost(error: BaseException) -> bool:
    """Whether an error says that a store doesn't know what it was asked about."""
    return getattr(error, "error_code", None) == "RESOURCE_DOES_NOT_EXIST"


def why(error: BaseException) -> str:
    """What is behind an error, without the addresses and passwords that those above it repeat."""
    *_, first = _causes(error)
    reason = getattr(first, "strerror", None) or first
    return str(reason).partition("\n")[0]


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def patiently(call: Callable[[], Result], store: Callable[[], str]) -> Result:
    """Do what needs the store, and again while it is away, until patience runs out.

    Patience is for one absence: what was waited in it by earlier calls counts.

    Args:
        call: may be made several times.
        store: gives its name, for the line that says that it is waited for.

    Returns:
        What the call gave.
    """
    global _waited
    shortest, longest = _PAUSES
    pause = shortest
    while True:
        began = time.monotonic()
        try:
            result = call()
        except Exception as error:
            left = limit() - _waited
            if left <= 0 or not is_away(error):
                raise
            if pause == shortest:
                text = f"{store()} is away ({why(error)}); it is waited for"
                print(f"resfool: {text}, {duration(left)} at most", file=sys.stderr, flush=True)
            time.sleep(min(pause, left))
            pause = min(2 * pause, longest)
            _waited += time.monotonic() - began
        else:
            _waited = 0.0
            return result


def limit() -> float:
    """Seconds for which a store that is away is waited for.

    Raises:
        InputError: the environment variable for it has no such number.
    """
    given = os.environ.get(VARIABLE, str(_DEFAULT))
    try:
        seconds = float(given)
    except ValueError:
        seconds = -1.0
    if not 0 <= seconds < float("inf"):
        raise InputError(f"{VARIABLE}={given} in the environment is no number of seconds")
    return seconds


def promptly() -> contextlib.AbstractContextManager[None]:
    """Have a server that doesn't answer given up at once: no repeats, and 10 s for an answer."""
    return _set(_PROMPT)


def unrepeated() -> contextlib.AbstractContextManager[None]:
    """Have MLflow make each request once, whatever becomes of it."""
    return _set(_NO_REPEATS)


@contextlib.contextmanager
def _set(variables: Mapping[str, str]) -> Iterator[None]:
    earlier = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name, value in earlier.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


class Patient:
    """Does patiently whatever another object does, such as a client of a store."""

    def __init__(self, other: Any, store: Callable[[], str]) -> None:
        self._other, self._store = other, store

    def __getattr__(self, name: str) -> Any:
        method = getattr(self._other, name)

        def called(*args: Any, **options: Any) -> Any:
            return patiently(lambda: method(*args, **options), self._store)

        return called
