"""Which process does something, told apart from any other of another time or machine."""

import platform
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import psutil

_SAME = 60.0  # seconds: by as much a clock that is set may move the time of a process's start


def this_process() -> dict[str, Any]:
    """This process, as plain values for `at_work`, of another process too."""
    process = psutil.Process()
    return {"host": host(), "pid": process.pid, "created": process.create_time()}


def host() -> str:
    """The processes that this one can see: those of its machine, or of its container."""
    try:
        room = Path("/proc/self/ns/pid").readlink()
    except OSError:  # not Linux
        return platform.node()
    return f"{platform.node()} {room}"


def at_work(owner: Mapping[str, Any]) -> bool:
    """Whether a process is there still; True of one that this process couldn't see."""
    if owner["host"] != host():
        return True
    try:
        created = psutil.Process(owner["pid"]).create_time()
    except psutil.NoSuchProcess:
        return False
    return abs(created - float(owner["created"])) < _SAME
