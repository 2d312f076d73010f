"""What goes wrong through the user's input, said in one sentence."""

import contextlib
import difflib
import errno
import os
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from urllib.parse import unquote, urlsplit
from urllib.request import url2pathname

from resfool.wording import sentence, without_secrets


class InputError(ValueError):
    """Input that can't be used; one line says what is wrong, what was given, what is allowed."""

    def __init__(self, message: str) -> None:
        # Quoted parts (a path, another library's error) may bring anything.
        super().__init__(sentence(message))


class UsageError(InputError):
    """A parameter is wrong by itself, or isn't one: exit code 2."""


class UnsentError(InputError):
    """The tracking store hasn't got all that was to be recorded; the message says where it is."""


def unknown(kind: str, name: str, known: Iterable[str]) -> InputError:
    """The error for a name that is not in a registry, with the nearest known name.

    Args:
        kind: what the name should have been, as in "data set".
        name: the name that was given.
        known: all names that are allowed, in the order in which to list them.

    Returns:
        The error, for the caller to raise.
    """
    names = list(known)
    by_folded = {candidate.casefold(): candidate for candidate in names}
    near = difflib.get_close_matches(name.casefold(), by_folded, n=1)
    hint = f"; did you mean {by_folded[near[0]]!r}?" if near else ";"
    return InputError(f"unknown {kind} {name!r}{hint} known: {', '.join(names)}")


class DataWarning(UserWarning):
    """How the user's data was understood, where it could be meant otherwise."""

    def __init__(self, message: str) -> None:
        super().__init__(sentence(message))


class UselessWarning(UserWarning):
    """What was given and has no effect this time."""


class NonFiniteLossError(ArithmeticError):
    """The training loss became infinite or not a number; training can't go on from there."""


class WorkError(RuntimeError):
    """Independent work failed where it ran; the message names what, the error's type and text."""


class TrialError(WorkError):
    """A trial failed."""


# Paths that a user gave.

# The environment variable with the folder from which a command was called, where it works in
# another one, as those of `mlflow run` do; processes that the command starts inherit it.
CALLED_FROM = "RESFOOL_CALLED_FROM"


def expanded(path: str | Path) -> Path:
    """A path that a user gave: a file: URI without its scheme, with the home folder for ~.

    A relative one counts from where the command was called. If nothing is there, but in the folder
    that the command works in, it is that.

    Raises:
        InputError: there is no user of that name, or no path has such characters.
    """
    local = url2pathname(urlsplit(str(path)).path) if _is_file_uri(path) else path
    if "\0" in str(local):
        raise InputError(f"{path} holds a null character, which no path may")
    try:
        given = Path(local).expanduser()
    except RuntimeError:
        raise InputError(f"{path}: there is no such user's home folder") from None
    called_from = os.environ.get(CALLED_FROM)
    if called_from is None or given.is_absolute():
        return given
    there = Path(called_from, given)
    return given if present(given) and not present(there) else there


# The environment variable with the folder for temporary files as the user has it, while a command
# keeps its own in one folder of that.
OUTSIDE = "RESFOOL_TEMPORARY_OUTSIDE"


def temporary_folder() -> str:
    """The folder for temporary files as the user has it, for sentences and for what stays."""
    return os.environ.get(OUTSIDE) or tempfile.gettempdir()


def project() -> str:
    """The project's folder for `mlflow run`, as a user names it who calls it where this was."""
    return str(Path.cwd()) if CALLED_FROM in os.environ else "."


def present(path: Path, of_kind: Callable[[Path], bool] = Path.exists) -> bool:
    """Whether something is at a path, as far as this user is let see.

    Args:
        path: that somebody gave, which may be none that a file system takes.
        of_kind: Path.is_file or Path.is_dir, where it must be one.
    """
    try:
        return of_kind(path)
    except OSError:
        return False


def looked_in(path: str | Path) -> str:
    """The folders in which `expanded` looks for a relative path, for a sentence."""
    if Path(path).expanduser().is_absolute() or _is_file_uri(path):
        return ""
    folders = dict.fromkeys([os.environ.get(CALLED_FROM) or str(Path.cwd()), str(Path.cwd())])
    return f" in {' or '.join(folders)}"


_SQLITE = "sqlite:///"


def database_in(uri: str) -> Path | None:
    """The file of a SQLite database, if a URI names one."""
    if not uri.startswith(_SQLITE):
        return None
    return Path(unquote(uri.removeprefix(_SQLITE).partition("?")[0]))


def expanded_uri(uri: str) -> str:
    """A database's URI, with a relative path to one of SQLite's as `expanded` takes it."""
    database = database_in(uri)
    if database is None or expanded(database) == database:
        return uri
    # Not quoted in full: MLflow would make a folder of the quoted name beside that of the path.
    quoted = str(expanded(database)).replace("%", "%25").replace("?", "%3F")
    _, mark, options = uri.partition("?")
    return f"{_SQLITE}{quoted}{mark}{options}"


def _is_file_uri(path: str | Path) -> bool:
    return isinstance(path, str) and path.startswith("file:/")


# What others raise.


def reading(path: object) -> contextlib.AbstractContextManager[None]:
    """Turn whatever a damaged or hostile file raises, nearly anything, into one InputError.

    Args:
        path: of the file, for the message.

    Raises:
        InputError: what was done inside failed; an InputError of its own is passed on.
    """
    return refusing(
        f"cannot read {path}",
        lambda error: f", which is missing, damaged or not what it should be ({short(error)})",
    )


@contextlib.contextmanager
def refusing(what: str, why: Callable[[Exception], str]) -> Iterator[None]:
    """Turn whatever is raised into one InputError.

    Args:
        what: can't be done if anything is.
        why: the rest of the sentence, from the error; a full disk is told otherwise.

    Raises:
        InputError: what was done inside failed; an InputError of its own is passed on.
    """
    try:
        yield
    except InputError:
        raise
    except Exception as error:
        if out_of_space(error):
            raise InputError(
                f"{what}: no space is left in {temporary_folder()}, the folder for temporary "
                "files; TMPDIR names another"
            ) from error
        raise InputError(what + why(error)) from error


@contextlib.contextmanager
def writing(place: str) -> Iterator[None]:
    """Turn the error of a place that can't be written, or is full, into one InputError.

    Args:
        place: what it is and where, for the message.

    Raises:
        InputError: what was done inside failed.
    """
    try:
        yield
    except OSError as error:
        reason = error.strerror or error
        if isinstance(error, shutil.Error) and isinstance(error.args[0], list):
            *_, reason = error.args[0][0]  # of a copy's failures: source, target and what was wrong
        raise InputError(f"{place} can't be written: {reason}") from error


def out_of_space(error: BaseException) -> bool:
    """Whether an error says that a disk, or this user's share of it, is full."""
    full = isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)
    return full or (isinstance(error, OSError) and "No space left on device" in str(error))


def short(error: Exception) -> str:
    """An error's type and the beginning of its message."""
    # Cut before it is hidden, a password might not be known as one.
    return f"{type(error).__name__}: {without_secrets(str(error))[:200]}"
