"""What goes wrong through the user's input, said in one sentence."""

import contextlib
import difflib
from collections.abc import Iterable, Iterator
from pathlib import Path


class InputError(ValueError):
    """Input that can't be used; one line says what is wrong, what was given, what is allowed."""

    def __init__(self, message: str) -> None:
        # Quoted parts (a path, another library's error) may bring line breaks of their own.
        super().__init__(" ".join(message.split()))


class UsageError(InputError):
    """A parameter is wrong by itself, or isn't one: exit code 2."""


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


class NonFiniteLossError(ArithmeticError):
    """The training loss became infinite or not a number; training can't go on from there."""


class WorkError(RuntimeError):
    """Independent work failed where it ran; the message names what, the error's type and text."""


class TrialError(WorkError):
    """A trial failed."""


def expanded(path: str | Path) -> Path:
    """A path that a user gave, with the home folder for ~.

    Raises:
        InputError: there is no user of that name.
    """
    try:
        return Path(path).expanduser()
    except RuntimeError:
        raise InputError(f"{path}: there is no such user's home folder") from None


@contextlib.contextmanager
def reading(path: object) -> Iterator[None]:
    """Turn whatever a damaged or hostile file raises, nearly anything, into one InputError.

    Args:
        path: of the file, for the message.

    Raises:
        InputError: what was done inside failed; an InputError of its own is passed on.
    """
    try:
        yield
    except InputError:
        raise
    except Exception as error:
        raise InputError(
            f"cannot read {path}, which is missing, damaged or not what it should be"
            f" ({short(error)})"
        ) from error


def short(error: Exception) -> str:
    """An error's type and the beginning of its message."""
    return f"{type(error).__name__}: {str(error)[:200]}"
