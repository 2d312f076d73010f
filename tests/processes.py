"""Processes of their own, for tests that stop or kill one.

Each is forked off one process that has imported TensorFlow, Keras and MLflow and computed nothing:
importing them takes longer than all that most of these tests wait for.
"""

import atexit
import importlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from functools import cache
from pathlib import Path
from typing import Any, NoReturn

from resfool import devices
from tests.conftest import as_a_user_has_it


class Process:
    """A script of Python's at work in the working directory, with all the threads it wants."""

    def __init__(self, script: str) -> None:
        number, name = tempfile.mkstemp(prefix="printed-", dir=Path.cwd())
        os.close(number)
        self._printed = Path(name)
        self.pid: int = _ask("start", script, str(Path.cwd()), as_a_user_has_it(), name)
        self.returncode: int | None = None

    def poll(self) -> int | None:
        """The exit status, minus the signal that killed it; None while it is at work."""
        if self.returncode is None:
            self.returncode = _ask("poll", self.pid)
        return self.returncode

    def wait(self, seconds: float = 120) -> int:
        until = time.monotonic() + seconds
        while (status := self.poll()) is None:
            assert time.monotonic() < until, f"still at work: {self.printed()}"
            time.sleep(0.02)
        return status

    def send_signal(self, number: signal.Signals) -> None:
        os.kill(self.pid, number)

    def printed(self) -> str:
        """What it has written until now, errors too."""
        return self._printed.read_text()


def _ask(*words: Any) -> Any:
    asked = _forks()
    assert asked.stdin is not None and asked.stdout is not None
    print(json.dumps(words), file=asked.stdin, flush=True)
    return json.loads(asked.stdout.readline())


@cache
def _forks() -> "subprocess.Popen[str]":
    """The process that the others are forked off."""
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.processes"],
        cwd=Path(__file__).parent.parent,
        env=as_a_user_has_it(),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    atexit.register(process.communicate)  # closes its input, which ends it
    return process


def _answer(asked: str, *words: Any) -> int | None:
    if asked == "start":
        return os.fork() or _run(*words)
    pid, status = os.waitpid(words[0], os.WNOHANG)
    return os.waitstatus_to_exitcode(status) if pid else None


def _run(script: str, folder: str, environment: dict[str, str], printed: str) -> NoReturn:
    """Be the process that was asked for, to its end."""
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(folder)
    with Path(os.devnull).open() as nothing, Path(printed).open("w") as output:
        for number, file in enumerate((nothing, output, output)):
            os.dup2(file.fileno(), number)
    exec(script, {"__name__": "__main__"})
    sys.exit()


if __name__ == "__main__":
    # What a training, an attack and a search import.
    with devices.held_back_stderr():
        importlib.import_module("keras")
    for module in (
        "mlflow.data.numpy_dataset",
        "mlflow.store.tracking.sqlalchemy_store",
        "resfool.attacks.presentation",
        "resfool.trials.tune",
        "sklearn.datasets",
    ):
        importlib.import_module(module)
    for line in sys.stdin:
        print(json.dumps(_answer(*json.loads(line))), flush=True)
