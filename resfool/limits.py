"""The limits in force: what reading and working may take before it is refused or stopped."""

import contextlib
import resource
from collections.abc import Iterator
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path

import psutil

from resfool.errors import InputError

_MOST = 0.9  # of the memory that is free, where no limit was given


@dataclass(frozen=True)
class Bounds:
    """What may be taken.

    Attributes:
        memory: bytes; None is most of what is free.
        seconds: that loading a model may take.
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


def bounds() -> Bounds:
    """Those in force."""
    return _BOUNDS.get()


def memory() -> int:
    """Bytes that may be taken."""
    given = bounds().memory
    return int(_MOST * free()) if given is None else given


def seconds() -> float:
    """Seconds that loading a model may take."""
    return bounds().seconds


def days() -> float:
    """Days that work may take, by a low estimate."""
    return bounds().days


# What is refused.


def check_memory(what: str, size: float) -> None:
    """Refuse what would take more memory than may be taken.

    Raises:
        InputError: it would.
    """
    most = memory()
    if size > most:
        raise InputError(f"{what} takes {shown(size)} of memory, and {_allowed(most)}")


def too_large(what: str, most: int) -> InputError:
    """The error for what takes more memory than it may.

    Args:
        what: does.
        most: bytes that it may take.
    """
    return InputError(f"{what} takes more memory than it may: {_allowed(most)}")


def _allowed(most: int) -> str:
    if bounds().memory is None:
        return (
            f"{shown(most)} are allowed, nine tenths of what is free; memory_limit= says otherwise"
        )
    return f"memory_limit allows {shown(most)}; memory_limit={_spelled(2 * most)} would allow more"


def too_long(what: str) -> InputError:
    """The error for what takes more time to be read than it may."""
    most = seconds()
    return InputError(
        f"{what} takes more than {most:g} s, which time_limit allows; time_limit={5 * most:g}"
        " would allow more"
    )


def shown(size: float) -> str:
    """Bytes for people."""
    return f"{size / 1e9:.1f} GB" if size >= 1e9 else f"{size / 1e6:.0f} MB"


def _spelled(size: float) -> str:
    """Bytes as `memory_limit` takes them."""
    return f"{-(-size // 1e9):.0f}GB" if size >= 1e9 else f"{-(-size // 1e6):.0f}MB"


# What is free.


def free() -> int:
    """Bytes of memory that this process may still take."""
    left = psutil.virtual_memory().available, *_left_by_groups(), *_left_of_addresses()
    return max(0, min(left))


_OWN_GROUPS = Path("/proc/self/cgroup")
_GROUPS = Path("/sys/fs/cgroup")
# By the controllers that a line of the former names: the folder of groups in the latter, and their
# files for the limit, for what is used, and the entry of memory.stat for what of it is given back
# when need be.
_FILES = {
    "": ("", "memory.max", "memory.current", "inactive_file"),  # version 2
    "memory": ("memory", "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
}


def _left_by_groups() -> Iterator[int]:
    """What the control groups that this process is in leave, such as a container's."""
    lines = _OWN_GROUPS.read_text().splitlines() if _OWN_GROUPS.exists() else []
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers in _FILES:
            root, limit, used, spare = _FILES[controllers]
            top = _GROUPS / root
            own = top / path.lstrip("/")
            # In a container the outer groups can't be seen, and its own may be at the top.
            for group in (own, *own.parents):
                if group.is_relative_to(top):
                    # A group may lack a limit: then there is no file, or "max" in it.
                    with contextlib.suppress(OSError, ValueError):
                        stat = dict(
                            row.split() for row in (group / "memory.stat").read_text().splitlines()
                        )
                        in_use = int((group / used).read_text()) - int(stat.get(spare, 0))
                        yield int((group / limit).read_text()) - in_use


def _left_of_addresses() -> Iterator[int]:
    """What `ulimit -v` leaves."""
    limit, _ = resource.getrlimit(resource.RLIMIT_AS)
    if limit != resource.RLIM_INFINITY:
        yield limit - psutil.Process().memory_info().vms
