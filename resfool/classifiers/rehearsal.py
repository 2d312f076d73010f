"""A stranger's model is loaded and run in a process of its own first, which may take only so much.

A few bytes can declare a layer or an image that takes all memory, or for ever; nobody can tell
without doing it. The process says whether it came to an end, or to that of its memory, and what was
seen, so that it needn't be looked at twice; what it refuses is refused again where it is done in
earnest, in the same words.
"""

import contextlib
import ctypes
import json
import os
import pickle
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NoReturn, Protocol, cast

import psutil

from resfool import devices, limits
from resfool.errors import InputError

_EVERY = 0.01  # seconds between two looks
_SIGNALS = (signal.SIGINT, signal.SIGTERM)
_END_WITH_PARENT = 1  # PR_SET_PDEATHSIG
_OUT_OF_MEMORY = 99  # the exit status where an error says so
_BEGAN = b"."  # what the process writes when all is imported and its work begins

_MOST_TOLD = 4_096  # bytes that it may tell

Told = dict[str, bool]
Work = Callable[[], Any]


def rehearse(what: str, work: Work) -> Told:
    """Do something in another process, and refuse it if that takes more than it may.

    Args:
        what: is done, for messages.
        work: that loads a model and runs it; where TensorFlow is at work here, it is pickled.

    Returns:
        What the work returned, if that is what it saw; nothing where it was refused.

    Raises:
        InputError: it takes more memory or time than it may, or ends the process.
    """
    devices.import_keras()
    # The model's copies lie there, and stay if the process is ended.
    with tempfile.TemporaryDirectory(prefix="resfool-rehearsal-") as folder:
        start = _spawned if devices.tensorflow_started() else _forked
        with start(work, folder) as (process, pipe):
            status = _watched(what, process)
            told = _told(pipe) if status == 0 else {}
    if status == _OUT_OF_MEMORY:
        raise limits.too_large(what, limits.memory())
    if status < 0:
        name = signal.Signals(-status).name
        raise InputError(f"{what} can't be loaded: it ends the process that does it by {name}")
    if status:
        raise InputError(f"{what} can't be loaded: it ends the process that does it")
    return told


def _told(pipe: int) -> Told:
    """What a process that has ended wrote into a pipe, which others may hold open."""
    os.set_blocking(pipe, False)
    with contextlib.suppress(BlockingIOError, ValueError):
        if text := os.read(pipe, _MOST_TOLD):
            return cast(Told, json.loads(text))
    return {}


class _Process(Protocol):
    pid: int

    def poll(self) -> int | None:
        """The exit status, minus the signal that ended it; None while it is at work."""


def _watched(what: str, process: _Process) -> int:
    """The exit status of a process that takes no more than it may."""
    memory, seconds, began = limits.memory(), limits.seconds(), time.monotonic()
    before = _taken(process.pid)
    while (status := process.poll()) is None:
        if _taken(process.pid) - before > memory:
            raise limits.too_large(what, memory)
        if time.monotonic() - began > seconds:
            raise limits.too_long(what)
        time.sleep(_EVERY)
    return status


def _taken(pid: int) -> int:
    """Bytes of memory that a process has for itself; 0 of one that has ended."""
    with contextlib.suppress(psutil.Error):
        used = psutil.Process(pid).memory_info()
        return int(used.rss - getattr(used, "shared", 0))
    return 0


@contextlib.contextmanager
def _ended(process: Any) -> Iterator[Any]:
    """A process and all that it has started, which are ended with the context."""
    try:
        yield process
    finally:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


# Where TensorFlow isn't at work yet, a fork has all that was imported, at once.


class _Fork:
    """A process that has been forked off."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self._status: int | None = None

    def poll(self) -> int | None:
        return self.wait(os.WNOHANG)

    def wait(self, options: int = 0) -> int | None:
        if self._status is None:
            pid, status = os.waitpid(self.pid, options)
            self._status = os.waitstatus_to_exitcode(status) if pid else None
        return self._status


@contextlib.contextmanager
def _forked(work: Work, folder: str) -> Iterator[tuple[_Process, int]]:
    ready, began = os.pipe()
    parent = os.getpid()
    # A signal must not raise in the fork before its handlers are gone: it would tidy up here.
    earlier = signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
    try:
        pid = os.fork()
        if not pid:
            os.setsid()  # Ctrl-C is for the parent, which ends this
            _do(work, folder, began, parent)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, earlier)
    os.close(began)
    with os.fdopen(ready, "rb"), _ended(_Fork(pid)) as process:
        os.read(ready, 1)
        yield process, ready


# Where it is, its threads would be lacking in a fork.


@contextlib.contextmanager
def _spawned(work: Work, folder: str) -> Iterator[tuple[_Process, int]]:
    places = os.pathsep.join(place or str(Path.cwd()) for place in sys.path)
    process = subprocess.Popen(
        [sys.executable, "-P", "-c", f"from {__name__} import main; main()"],
        env=os.environ | {"PYTHONPATH": places},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    assert process.stdin is not None and process.stdout is not None
    with process.stdout as pipe, _ended(process):
        with contextlib.suppress(BrokenPipeError), process.stdin as asked:
            asked.write(pickle.dumps((work, folder, limits.bounds(), os.getpid())))
        os.read(pipe.fileno(), 1)
        yield process, pipe.fileno()


def main() -> NoReturn:
    """Do the work that standard input says."""
    devices.import_keras()
    work, folder, bounds, parent = pickle.load(sys.stdin.buffer)
    with limits.in_force(bounds):
        _do(work, folder, os.dup(1), parent)


def _do(work: Work, folder: str, began: int, parent: int) -> NoReturn:
    """Be the process: do the work, and end."""
    try:
        if sys.platform == "linux":
            ctypes.CDLL(None).prctl(_END_WITH_PARENT, signal.SIGKILL)
        for number in _SIGNALS:
            signal.signal(number, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _SIGNALS)
        tempfile.tempdir = folder
        with Path(os.devnull).open("r+b") as nothing:
            for stream in (0, 1, 2):
                os.dup2(nothing.fileno(), stream)
        os.environ["CUDA_VISIBLE_DEVICES"] = "-1"
        import tensorflow as tf

        tf.config.set_visible_devices([], "GPU")
        os.write(began, _BEGAN)
        if os.getppid() == parent:
            seen = work()
            if isinstance(seen, dict):
                os.write(began, json.dumps(seen).encode())
    except BaseException as error:  # others are raised again where this is done in earnest
        os._exit(_OUT_OF_MEMORY if _is_out_of_memory(error) else 0)
    os._exit(0)


def _is_out_of_memory(error: BaseException | None) -> bool:
    """Whether an error, or one that it comes of, says that there is no memory left."""
    import tensorflow as tf

    while error is not None:
        if isinstance(error, MemoryError | tf.errors.ResourceExhaustedError):
            return True
        error = error.__cause__ or error.__context__
    return False
