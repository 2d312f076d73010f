"""Checkpoints that SIGKILL can't spoil: written to a temporary file, synced, then renamed."""

import contextlib
import json
import os
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np

from resfool.errors import InputError, writing

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

_FACTS = "facts"


@dataclass(frozen=True)
class Arrays:
    """Named arrays with facts, which `save` keeps in one file and `load` reads."""

    arrays: Mapping[str, np.ndarray]
    facts: Mapping[str, Any]


def save(path: Path, arrays: Mapping[str, np.ndarray], facts: Mapping[str, Any]) -> None:
    """Replace the checkpoint at `path`, or leave the old one: never anything between.

    Args:
        path: the file, `.npz`; its folder is created.
        arrays: named arrays of any shape and plain number type.
        facts: anything that JSON holds.

    Raises:
        InputError: the folder can't be written, or its disk is full.
    """
    text = np.frombuffer(json.dumps(facts).encode(), dtype=np.uint8)
    temporary = path.with_name(f"{path.name}.{os.getpid()}.part")
    with writing(f"the folder {path.parent}"):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with temporary.open("wb") as file:
                np.savez(file, allow_pickle=False, **{_FACTS: text}, **arrays)
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)
        _sync_folder(path.parent)


def load(path: Path) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Read what `save` wrote.

    Args:
        path: the file.

    Returns:
        The arrays and the facts.

    Raises:
        InputError: there is no such file, or it isn't a whole checkpoint.
    """
    try:
        with np.load(path, allow_pickle=False) as stored:
            arrays = {name: stored[name] for name in stored.files}
        facts = json.loads(arrays.pop(_FACTS).tobytes())
    except FileNotFoundError:
        raise InputError(f"there is no checkpoint at {path}") from None
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        raise InputError(f"{path} is not a whole checkpoint: {error}") from None
    return arrays, facts


def _sync_folder(folder: Path) -> None:
    """Make the rename itself survive a power cut, where the system can sync a folder."""
    if os.name != "posix":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        with contextlib.suppress(OSError):  # some network file systems can't
            os.fsync(descriptor)
    finally:
        os.close(descriptor)


def hold(path: Path) -> IO[str]:
    """Keep other processes from training on the same checkpoint.

    Args:
        path: the checkpoint's file; it needn't exist yet.

    Returns:
        An open lock file. The lock lasts until it is closed or the process ends, however it ends.

    Raises:
        InputError: another process holds it, or its folder can't be written.
    """
    with writing(f"the checkpoint folder {path.parent}"):
        path.parent.mkdir(parents=True, exist_ok=True)
        lock = path.with_suffix(".lock").open("w")
    if fcntl is not None:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            lock.close()
            raise InputError(f"another process is training on {path} right now") from None
        except OSError:
            pass  # a file system without locks
    return lock


@contextlib.contextmanager
def alone_in(folder: Path) -> Iterator[None]:
    """Wait until no other process is within this for the same folder.

    The lock is of the folder itself, so it leaves no file, and ends with its process, however that
    ends. Where a system has no such locks, nobody waits.
    """
    with contextlib.ExitStack() as stack:
        with contextlib.suppress(OSError):
            if fcntl is not None:
                descriptor = os.open(folder, os.O_RDONLY)
                stack.callback(os.close, descriptor)
                fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield


def discard(path: Path) -> None:
    """Delete a checkpoint, and what processes that were killed while saving it have left."""
    for file in (path, *path.parent.glob(f"{path.name}.*.part")):
        file.unlink(missing_ok=True)


def remove(path: Path) -> None:
    """Delete a checkpoint, its lock file and, if nothing else is in it, its folder."""
    discard(path)
    path.with_suffix(".lock").unlink(missing_ok=True)
    with contextlib.suppress(OSError):
        path.parent.rmdir()
