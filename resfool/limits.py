"""The limits in force: what reading and working may take before it is refused or stopped."""

import contextlib
from collections.abc import Iterator
from contextvars import ContextVar
from dataclasses import dataclass

import psutil

_MOST = 0.9  # of the memory that is free, where no limit was given


@dataclass(frozen=True)
class Bounds:
    """What may be taken.

    Attributes:
        memory: bytes; None is most of what is free.
        seconds: that reading a model or a data set may take.
        days: that work may take, by a low estimate.
    """

    memory: int | None = None
    seconds: float = 60.0
    days: float = 365.0


_DEFAULT = Bounds()
_BOUNDS: ContextVar[Bounds] = ContextVar("bounds", default=_DEFAULT)


@contextlib.contextmanager
def in_force(bounds: Bounds) -> Iterator[None]:
    """Keep to bounds for as long as the context lasts."""
    token = _BOUNDS.set(bounds)
    try:
        yield
    finally:
        _BOUNDS.reset(token)


def memory() -> int:
    """Bytes that may be taken."""
    given = _BOUNDS.get().memory
    return int(_MOST * psutil.virtual_memory().available) if given is None else given


def seconds() -> float:
    """Seconds that reading a model or a data set may take."""
    return _BOUNDS.get().seconds


def days() -> float:
    """Days that work may take, by a low estimate."""
    return _BOUNDS.get().days
