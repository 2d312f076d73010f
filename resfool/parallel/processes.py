"""Workers on this machine: joblib's loky processes, each at the end of a pipe of its own.

A pipe for each tells exactly whose task was lost when a process is killed, and needs no thread in
the driver. joblib.Parallel loses the whole call then.
"""

import atexit
import contextlib
import functools
import signal
from collections.abc import Callable
from multiprocessing import connection
from typing import Any

import cloudpickle
import joblib
from joblib.externals.loky.backend.process import LokyProcess
from joblib.externals.loky.backend.utils import kill_process_tree

from resfool import devices
from resfool.parallel import tasks
from resfool.parallel.tasks import Died, Function, Tell
from resfool.places import Folder

_IDLE_SECONDS = 300.0  # after which a process without work ends
_idle: list["_Worker"] = []  # processes with their libraries loaded, for the next crew


class Processes:
    """A crew of processes, started as they are needed and kept for the next crew.

    Args:
        function: that they run.
        tell: takes messages.
        workers: how many; None is as many as the cores can hold.
        threads: of each, for BLAS and for TensorFlow.
        sees_gpus: whether it sees those of this machine, for a crew of one.
    """

    def __init__(
        self,
        function: Function,
        tell: Tell,
        workers: int | None,
        threads: int,
        sees_gpus: bool = False,
    ) -> None:
        self._digest, self._function = tasks.packed(function)
        self._tell, self._kind = tell, (threads, sees_gpus)
        self.size, self.ahead = workers or max(1, joblib.cpu_count() // threads), 0
        self._free: list[_Worker] = []
        self._busy: dict[Any, tuple[int, _Worker]] = {}

    def start(self, ticket: int, item: Any) -> None:
        data = cloudpickle.dumps(item)
        worker = self._worker()
        self._busy[worker.pipe] = ticket, worker
        with contextlib.suppress(OSError):  # it died, which `wait` will find
            if worker.digest != self._digest:
                worker.digest = self._digest
                worker.pipe.send(("function", self._function))
            worker.pipe.send(("task", ticket, data))

    def _worker(self) -> "_Worker":
        if self._free:
            return self._free.pop()
        for worker in [worker for worker in _idle if worker.kind == self._kind]:
            _idle.remove(worker)
            if worker.process.is_alive():
                return worker
            worker.kill()
        return _Worker(*self._kind)

    def wait(self) -> list[tuple[int, Any]]:
        ended: list[tuple[int, Any]] = []
        while not ended:
            for pipe in connection.wait(list(self._busy)):
                ticket, worker = self._busy[pipe]
                try:
                    done, data = worker.pipe.recv()
                except (EOFError, OSError):
                    del self._busy[pipe]
                    ended.append((ticket, Died("WorkerDied", worker.fate())))
                    continue
                if done:
                    del self._busy[pipe]
                    self._free.append(worker)
                    ended.append((ticket, cloudpickle.loads(data)))
                elif self._tell(ticket, cloudpickle.loads(data)):
                    with contextlib.suppress(OSError):
                        worker.pipe.send(("stop", ticket))
        return ended

    def leave(self, at_once: bool) -> None:
        for _, worker in self._busy.values():
            worker.kill()
        for worker in self._free:
            if at_once:
                worker.kill()
            else:
                _idle.append(worker)
        self._busy, self._free = {}, []


class _Worker:
    """A process and our end of its pipe."""

    def __init__(self, threads: int, sees_gpus: bool) -> None:
        self.kind, self.digest = (threads, sees_gpus), ""
        self.pipe, theirs = connection.Pipe()
        variables = tasks.environment(threads, gpus=sees_gpus) | {"TMPDIR": _temporary_folder()}
        self.process = LokyProcess(target=_work, args=(theirs,), daemon=True, env=variables)
        self.process.start()
        theirs.close()  # or its end would never be seen

    def kill(self) -> None:
        """End the process and all that it has started."""
        kill_process_tree(self.process)
        self.pipe.close()

    def fate(self) -> str:
        """How the process ended, whose pipe has."""
        self.process.join(1.0)
        code = self.process.exitcode
        self.kill()
        if code is not None and code < 0:
            return f"killed by {signal.Signals(-code).name}"
        return f"ended with exit code {code}"


@functools.cache
def _temporary_folder() -> str:
    """Of all workers, which are killed and can't tidy up."""
    folder = Folder()
    atexit.register(_end_idle)  # before the folder goes
    return str(folder.path)


def _end_idle() -> None:
    while _idle:
        _idle.pop().kill()


def _work(pipe: Any) -> None:
    """What a process does until the driver is gone or has had no work for long."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the driver's affair
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    tasks.forget_tracking()
    with contextlib.suppress(EOFError, OSError):
        _serve(pipe)


def _serve(pipe: Any) -> None:
    load: Callable[[], Function] | None = None
    while pipe.poll(_IDLE_SECONDS):
        kind, *rest = pipe.recv()
        if kind == "function":
            load = functools.cache(functools.partial(_loaded, *rest))
        elif kind == "task":
            ticket, item = rest
            pipe.send((True, _run(load, item, _Reporter(pipe, ticket))))
        # Else a word to stop what has ended by now.


def _loaded(function: bytes) -> Function:
    with devices.held_back_stderr():  # TensorFlow's words as it is imported
        return cloudpickle.loads(function)


def _run(load: Any, item: bytes, report: "_Reporter") -> bytes:
    return tasks.outcome(lambda: (load(), cloudpickle.loads(item)), report)


class _Reporter:
    """Sends messages of a task, and looks whether the driver has asked it to stop."""

    def __init__(self, pipe: Any, ticket: int) -> None:
        self._pipe, self._ticket, self._stop = pipe, ticket, False

    def __call__(self, message: Any) -> bool:
        self._pipe.send((False, cloudpickle.dumps(message)))
        while self._pipe.poll():
            self._stop |= self._pipe.recv() == ("stop", self._ticket)
        return self._stop
