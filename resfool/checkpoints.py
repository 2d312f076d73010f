"""Checkpoints that SIGKILL can't spoil: written to a temporary file, synced, then renamed.

Where one is, nobody but the user says: its file, its lock and its parts are all that is touched,
and no symbolic link in their place is followed.
"""

import contextlib
import json
import os
import re
import secrets
import stat
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np

from resfool.arrayfiles import DamagedError, open_plain, read_npz, using
from resfool.errors import InputError, writing
from resfool.wording import told

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

_FACTS = "facts"
# As MLflow has them: no dots and no slashes, so that one is a name and no path.
_RUN_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,249}")
_PART = re.compile(r"\.\d+(\.[0-9a-f]{16})?\.part")  # what is added to the name of a file


@dataclass(frozen=True)
class Arrays:
    """Named arrays with facts, which `save` keeps in one file and `load` reads."""

    arrays: Mapping[str, np.ndarray]
    facts: Mapping[str, Any]


def place(folder: Path, run_id: str) -> Path:
    """Where the checkpoint of a training's run is, whatever its store says of that.

    Args:
        folder: that the user keeps checkpoints in.
        run_id: of the run.

    Raises:
        InputError: this is no run's id, or a symbolic link stands in place of the run's folder.
    """
    if not _RUN_ID.fullmatch(run_id):
        raise InputError(f"{told(run_id)!r} is no id of a run")
    path = folder.resolve() / run_id / "checkpoint.npz"
    if path.parent.is_symlink():
        raise InputError(f"{path.parent} is a symbolic link, which isn't followed")
    return path


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
    with replacing(path) as file:
        np.savez(file, allow_pickle=False, **{_FACTS: text}, **arrays)


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[IO[bytes]]:
    """Write a file that stands at `path` once it is whole and on the disk, and not before.

    Args:
        path: of the file; its folder is created.

    Raises:
        InputError: the folder can't be written, or its disk is full.
    """
    temporary = path.with_name(f"{path.name}.{os.getpid()}.{secrets.token_hex(8)}.part")
    with writing(f"the folder {path.parent}"):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with temporary.open("xb") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)
        _sync_folder(path.parent)


def load(path: Path, what: str = "") -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Read what `save` wrote, or somebody else.

    Args:
        path: the file.
        what: a user called it, who may have named a symbolic link; without that it is our own.

    Returns:
        The arrays, which can't be written to, and the facts.

    Raises:
        InputError: there is no such file, or it isn't what `save` writes.
    """
    with reading(path, what), open_plain(path, os.O_RDONLY, follow=bool(what)) as file:
        arrays = read_npz(file)
        if _FACTS not in arrays:
            raise DamagedError(f"it has no {_FACTS}")
        facts = json.loads(arrays.pop(_FACTS).tobytes())
        if not isinstance(facts, dict):
            raise DamagedError(f"its {_FACTS} have no names")
    return arrays, facts


def reading(path: Path, what: str = "") -> contextlib.AbstractContextManager[None]:
    """Turn whatever is wrong with what a checkpoint holds into one sentence; see `load`."""
    return using(what or f"the checkpoint {path}")


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
        lock = _open_lock(path.with_suffix(".lock"))
    if fcntl is not None:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            lock.close()
            raise InputError(f"another process is training on {path} right now") from None
        except OSError:
            pass  # a file system without locks
    return lock


def _open_lock(path: Path) -> IO[str]:
    """Open a lock file, which needn't exist yet; what is in it stays, since it may not be ours."""
    try:
        return open_plain(path, os.O_RDWR | os.O_CREAT, "r+")
    except DamagedError as error:
        raise InputError(f"the lock {path} can't be used: {error}") from error


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
    _delete(path)
    discard_parts(path)


def discard_parts(path: Path) -> None:
    """Delete what processes that were killed while they wrote a file have left."""
    for file in path.parent.glob(f"{path.name}.*.part"):
        if _PART.fullmatch(file.name.removeprefix(path.name)):
            _delete(file)


def remove(path: Path) -> None:
    """Delete a checkpoint, its lock file and, if nothing else is in it, its folder."""
    if path.parent.is_symlink():
        return
    discard(path)
    _delete(path.with_suffix(".lock"))
    with contextlib.suppress(OSError):
        path.parent.rmdir()


def remove_unused(path: Path) -> None:
    """Delete what is left of a checkpoint that was never saved, unless somebody works on it."""
    if not path.parent.is_symlink() and path.parent.is_dir() and not path.exists():
        with contextlib.suppress(InputError), hold(path):
            remove(path)


def _delete(path: Path) -> None:
    """Delete a plain file, if there is one and it can be; a symbolic link is none of ours."""
    with contextlib.suppress(OSError):
        if stat.S_ISREG(path.lstat().st_mode):
            path.unlink()
