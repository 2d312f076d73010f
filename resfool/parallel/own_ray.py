"""Ray on this machine, for one process alone: private folder, new token, no port to the network.

Ray reads tokens and addresses once, as it is imported. So it is imported in a process of its own,
which has these from its beginning, and with which all that is Ray's goes.
"""

import atexit
import contextlib
import os
import secrets
import signal
import threading
from multiprocessing import connection
from pathlib import Path
from typing import Any

import psutil
from joblib.externals.loky.backend.process import LokyProcess
from joblib.externals.loky.backend.utils import kill_process_tree

from resfool import interrupts
from resfool.errors import InputError, WorkError, temporary_folder
from resfool.parallel.tasks import Failure, Packed, Room, TellPacked
from resfool.places import Folder, processes_in

_LONGEST_PLACE = 24  # bytes; Linux takes 107 for a socket, and Ray and we add 83
_started: "_Process | None" = None


class OwnRay:
    """Tasks on the Ray of this process, which stays for the next crew; see `Cluster`.

    Args:
        function: that they run.
        tell: takes messages; None if there are none.
        room: that is asked for.
    """

    def __init__(self, function: Packed, tell: TellPacked | None, room: Room) -> None:
        self._ray, self._tell = _process(), tell
        self.size, self.ahead = self._ray.ask("open", function, tell is not None, room)

    def start(self, ticket: int, item: bytes) -> None:
        """See `Cluster`."""
        self._ray.ask("start", ticket, item)

    def wait(self) -> list[tuple[int, bytes | Failure]]:
        """See `Cluster`."""
        found: list[tuple[int, bytes | Failure]] = self._ray.ask("wait", tell=self._tell)
        return found

    def leave(self, at_once: bool) -> None:
        """See `Cluster`."""
        if self._ray.asked:  # and hasn't answered: this was interrupted
            end()
        else:
            self._ray.ask("leave", at_once)


def check(room: Room) -> None:
    """Whether this machine has room.

    Raises:
        InputError: it hasn't.
    """
    _process().ask("check", room)


def _process() -> "_Process":
    global _started
    if _started is None:
        _started = _Process()
        atexit.register(end)  # before its folder goes
    return _started


def end() -> None:
    """End the Ray of this process, if there is one; nothing of it stays."""
    global _started
    with interrupts.deferred():
        if _started is not None:
            _started.end()
            _started = None
            atexit.unregister(end)


class _Process:
    """The process in which Ray is imported, and our end of its pipe.

    Attributes:
        asked: whether an answer is due.
        pid: of the process.
        folder: of all that Ray writes.
    """

    def __init__(self) -> None:
        self.asked = False
        with interrupts.deferred():
            self.folder = _short_folder()
            self._pipe, theirs = connection.Pipe()
            self._life, its_life = connection.Pipe()
            variables = _variables(self.folder.path)
            self._process = LokyProcess(target=_serve, args=(theirs, its_life), env=variables)
            self._process.start()
            self.pid = self._process.pid
            theirs.close()  # or its end would never be seen
            its_life.close()

    def ask(self, what: str, *arguments: Any, tell: TellPacked | None = None) -> Any:
        """Let something be done there; what comes of it.

        Args:
            what: is asked for.
            arguments: of it.
            tell: takes messages that come meanwhile.
        """
        self.asked = True
        kind, *answer = self._answer((what, arguments))
        while kind == "told":
            assert tell is not None
            kind, *answer = self._answer(tell(*answer))
        self.asked = False
        if kind == "refused":
            raise InputError(*answer)
        return answer[0]

    def _answer(self, words: Any) -> Any:
        try:
            self._pipe.send(words)
            return self._pipe.recv()
        except (EOFError, OSError) as error:
            end()
            raise WorkError("Ray on this machine has died") from error

    def end(self) -> None:
        """Kill all processes, and remove the folder."""
        kill_process_tree(self._process)
        self._pipe.close()
        self._life.close()
        late = processes_in(self.folder.path)  # what Ray has only begun
        for process in late:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        psutil.wait_procs(late, timeout=5)
        self.folder.remove()


def _variables(folder: Path) -> dict[str, str]:
    """What Ray reads as it is imported.

    The last is for other systems, where Ray has all its ports on 127.0.0.1 unless it is set: it
    says here that no other host joins. The test of open ports would tell if it ceased to.
    """
    return {
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": secrets.token_hex(32),  # Ray would write one to ~/.ray
        "RAY_TMPDIR": str(folder / "r"),  # to which Ray lets everybody in
        "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
    }


def _short_folder() -> Folder:
    """A folder that leaves room for the paths of Ray's sockets, where these are files."""
    if os.name != "posix":
        return Folder()
    for place in (temporary_folder(), "/tmp", "/var/tmp", "/dev/shm"):
        if len(os.fsencode(place)) <= _LONGEST_PLACE:
            with contextlib.suppress(InputError):
                return Folder(Path(place))
    raise InputError(
        f"Ray doesn't start here: it needs a folder for temporary files whose path has at most "
        f"{_LONGEST_PLACE} bytes, and TMPDIR names {temporary_folder()}"
    )


# In that process.


def _serve(pipe: Any, life: Any) -> None:
    """Do what is asked for, until the process that asks is gone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the driver's affair
    threading.Thread(target=_end_with, args=(life,), daemon=True).start()
    from resfool.parallel import cluster

    crew: cluster.Cluster | None = None

    def tell(ticket: int, letter: bytes) -> bool:
        pipe.send(("told", ticket, letter))
        return bool(pipe.recv())

    while True:
        what, arguments = pipe.recv()
        answer: Any = None
        try:
            if what == "check":
                cluster.joined_size(arguments[0], None)
            elif what == "open":
                function, tells, room = arguments
                crew = cluster.Cluster(function, tell if tells else None, None, room)
                answer = crew.size, crew.ahead
            else:
                answer = getattr(crew, what)(*arguments)
        except InputError as error:
            pipe.send(("refused", str(error)))
        else:
            pipe.send(("done", answer))


def _end_with(life: Any) -> None:
    """End all of Ray with the process that has started it, which may be killed."""
    with contextlib.suppress(EOFError, OSError):
        life.recv()
    for process in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()
    os._exit(0)
