"""Places that are written: whether a folder can be, and folders that go when work ends."""

import atexit
import contextlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextvars import ContextVar
from pathlib import Path
from typing import TYPE_CHECKING

from resfool import interrupts
from resfool.errors import OUTSIDE, InputError, temporary_folder, writing

if TYPE_CHECKING:
    from psutil import Process

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

_ROOM = 256  # bytes of a path that are left for what lies in a folder


def check_folder(what: str, path: Path, *names: str) -> None:
    """Refuse a folder for something, which needn't exist yet, that can't be written or made.

    Nothing is made.

    Args:
        what: it is, for the message.
        path: of the folder.
        names: of files that it is to hold, where a user has chosen them.

    Raises:
        InputError: it can't be.
    """
    whole = path.absolute()
    try:
        os.fsencode(whole).decode()
    except UnicodeDecodeError:
        raise InputError(f"the {what} {whole} can't be used: its path isn't UTF-8") from None
    with writing(f"the {what} {whole}"):
        nearest = next(p for p in (whole, *whole.parents) if os.path.lexists(p))
        _check_link(nearest)
        _check_lengths(nearest, whole, names)
        with tempfile.TemporaryFile(dir=nearest, buffering=0) as file:
            file.write(bytes(4096))  # a full disk still has room for names


def _check_link(path: Path) -> None:
    try:
        path.stat()
    except FileNotFoundError:
        reason = f"{path} is a link to {path.readlink()}, which isn't there"
        raise OSError(reason) from None


def _check_lengths(there: Path, path: Path, names: tuple[str, ...]) -> None:
    """Refuse what the file system at `there` has no room for in a name or in a path."""
    if not hasattr(os, "pathconf"):  # Windows
        return
    most = os.pathconf(there, "PC_NAME_MAX")
    for name in (*path.relative_to(there).parts, *names):
        if (size := len(os.fsencode(name))) > most:
            raise OSError(f"the name {name[:20]}... has {size} bytes, and {most} are allowed")
    most = os.pathconf(there, "PC_PATH_MAX") - _ROOM
    if (size := len(os.fsencode(path))) > most:
        raise OSError(f"the path has {size} bytes, and {most} are allowed")


def check_database(what: str, path: Path) -> None:
    """Refuse a SQLite database, which needn't exist yet, whose place can't be written."""
    check_folder(f"{what}'s folder", path.parent, f"{path.name}-journal")
    with writing(f"the {what} {path}"), contextlib.suppress(FileNotFoundError):
        path.stat()


# Folders that go. Each has a file that is locked as long as its process lives: what a process has
# left that was killed is known by the lock that is free.

_BEGINNING = "resfool-"
_LOCK = "in use by resfool"


class Folder:
    """A new private folder of this process, which goes with the process if not before.

    Args:
        place: where it is made; None is where a user has temporary files.

    Attributes:
        path: of the folder.

    Raises:
        InputError: it can't be made.
    """

    def __init__(self, place: Path | None = None) -> None:
        place = place or Path(temporary_folder())
        with interrupts.deferred(), writing(f"the temporary folder {place}"):
            _clear_dead(place)
            self.path = Path(tempfile.mkdtemp(prefix=_BEGINNING, dir=place))
            atexit.register(self.remove)
            self._owner = os.getpid()
            self._lock = _lock_new(self.path)

    def remove(self) -> None:
        """Remove the folder and all that is in it, unless a fork of its process asks for it."""
        if os.getpid() != self._owner:
            return
        with interrupts.deferred():
            atexit.unregister(self.remove)
            _remove(self.path)
            if self._lock is not None:
                os.close(self._lock)
                self._lock = None


def _clear_dead(place: Path) -> None:
    """Remove what processes of this user that were killed have left at a place."""
    if fcntl is None:
        return
    with contextlib.suppress(OSError), os.scandir(place) as entries:
        for entry in entries:
            if entry.name.startswith(_BEGINNING) and entry.is_dir(follow_symlinks=False):
                own = entry.stat(follow_symlinks=False).st_uid == os.getuid()
                lock = _locked(Path(entry.path) / _LOCK, os.O_RDWR) if own else None
                if lock is not None:
                    if not processes_in(Path(entry.path)):
                        _remove(Path(entry.path))
                    os.close(lock)


def processes_in(folder: Path) -> "list[Process]":
    """Processes whose options name a folder: they may make it anew when it is gone."""
    import psutil

    def is_named(words: list[str]) -> bool:
        return any(word.startswith("--") and f"{folder}{os.sep}" in word for word in words)

    listed = psutil.process_iter(["cmdline"])
    return [process for process in listed if is_named(process.info["cmdline"] or [])]


def _lock_new(folder: Path) -> int | None:
    """Mark a folder as in use. Nobody sees the mark before it is locked."""
    new = folder / "new"
    lock = _locked(new, os.O_RDWR | os.O_CREAT | os.O_EXCL)
    if lock is not None:
        new.rename(folder / _LOCK)
    return lock


def _locked(path: Path, flags: int) -> int | None:
    """The descriptor of a file that only this process holds; None if others do, or none can."""
    if fcntl is None:
        return None
    with contextlib.suppress(OSError):
        descriptor = os.open(path, flags | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return descriptor
        except OSError:
            os.close(descriptor)
    return None


def _remove(folder: Path) -> None:
    """Remove a folder; its mark at last, by which it is known if something stays."""
    with contextlib.suppress(OSError), os.scandir(folder) as entries:
        for entry in entries:
            if entry.is_dir(follow_symlinks=False):
                shutil.rmtree(entry.path, ignore_errors=True)
            elif entry.name != _LOCK:
                Path(entry.path).unlink()
    with contextlib.suppress(OSError):
        if {entry.name for entry in folder.iterdir()} <= {_LOCK}:
            (folder / _LOCK).unlink(missing_ok=True)
            folder.rmdir()


_within: ContextVar[contextlib.ExitStack | None] = ContextVar("_within", default=None)


@contextlib.contextmanager
def cleared() -> Iterator[None]:
    """Remove at the end the folders that `new_folder` makes within."""
    with contextlib.ExitStack() as stack:
        token = _within.set(stack)
        try:
            yield
        finally:
            _within.reset(token)


def new_folder() -> Path:
    """An empty folder, until the end of `cleared` or of the process."""
    folder = Folder(Path(tempfile.gettempdir()))
    if (stack := _within.get()) is not None:
        stack.callback(folder.remove)
    return folder.path


@contextlib.contextmanager
def tidied() -> Iterator[None]:
    """Keep in one folder all that is temporary, of child processes too, and remove it at the end.

    For commands: it changes where the whole process puts its temporary files.

    Raises:
        InputError: there can't be such a folder.
    """
    check_temporary_folder()
    names = ("TMPDIR", OUTSIDE)
    before, variables = tempfile.gettempdir(), {name: os.environ.get(name) for name in names}
    folder = Folder(Path(before))
    try:
        tempfile.tempdir = str(folder.path)
        os.environ |= {"TMPDIR": tempfile.tempdir, OUTSIDE: before}
        with cleared():
            yield
    finally:
        tempfile.tempdir = before
        for name, value in variables.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
        # Matplotlib removes a cache of its own, and fails where that is gone, as the process ends.
        if not Path(os.environ.get("MPLCONFIGDIR", os.sep)).is_relative_to(folder.path):
            folder.remove()


def check_temporary_folder() -> None:
    """Refuse to begin where temporary files can't be written.

    Raises:
        InputError: they can't.
    """
    try:
        folder = temporary_folder()
    except FileNotFoundError as error:
        raise InputError(f"temporary files can't be written: {error.strerror}") from None
    check_folder("temporary folder", Path(folder))


def outliving() -> dict[str, str]:
    """The variables of a process that outlives this one: its temporary folder stays."""
    return os.environ | {"TMPDIR": temporary_folder()}
