"""What a task is, on whichever side of the border between the driver and its workers."""

import hashlib
import os
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol, Self

import cloudpickle

from resfool import devices
from resfool.errors import InputError

Report = Callable[[Any], bool]  # sends a message to the driver; whether the task should stop
Function = Callable[[Any, Report], Any]  # of an item
Tell = Callable[[int, Any], bool]  # a task's ticket and message; whether that task should stop
Packed = tuple[str, bytes]  # a function's digest, and the function as it travels
TellPacked = Callable[[int, bytes], bool]

# Read when a library is loaded, so they are set before a worker's process starts.
_THREADS = (
    "BLIS_NUM_THREADS",
    "MKL_NUM_THREADS",
    "NUMBA_NUM_THREADS",
    "NUMEXPR_NUM_THREADS",
    "OMP_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "TF_NUM_INTEROP_THREADS",
    "TF_NUM_INTRAOP_THREADS",
    "VECLIB_MAXIMUM_THREADS",
)


@dataclass(frozen=True)
class Failure:
    """What a task has in place of a result if it raised.

    Attributes:
        kind: the error's type, such as LookupError.
        message: what the error said.
        trace: the worker's traceback.
    """

    kind: str
    message: str
    trace: str = ""

    @classmethod
    def of(cls, error: BaseException) -> Self:
        """The failure that an error is."""
        return cls(
            type(error).__name__, str(error), "".join(traceback.format_exception(error)).rstrip()
        )

    def __str__(self) -> str:
        return f"{self.kind}: {self.message}"


class Died(Failure):
    """The process that ran a task was gone before the task was done."""


@dataclass(frozen=True)
class Room:
    """What is asked of a cluster.

    Attributes:
        workers: tasks at a time; None is as many as it can hold.
        cpus: of each task.
        gpus: of each task.
        patience: seconds that it has to grow.
    """

    workers: int | None
    cpus: int
    gpus: float
    patience: float


def no_room(room: Room, address: str | None, hosts: list[dict[str, float]]) -> InputError:
    """The error for a cluster that is too small.

    Args:
        room: that was asked for.
        address: of the cluster; None is this machine.
        hosts: what each has.
    """
    cpus, gpus = (sum(host.get(kind, 0.0) for host in hosts) for kind in ("CPU", "GPU"))
    where = "here" if address is None else f"at {address}"
    each = f"{room.cpus} CPU" + f" and {room.gpus:g} GPU" * bool(room.gpus)
    return InputError(
        f"{room.workers or 1} workers of {each} each don't fit the Ray cluster {where}, which has"
        f" {cpus:g} CPUs and {gpus:g} GPUs on {len(hosts)} hosts; ask for"
        " less, or give a cluster that grows by itself some seconds of patience"
    )


class Crew(Protocol):
    """Workers that run one task each at a time.

    Attributes:
        size: how many.
        ahead: tasks that may be started beyond these, and begin as soon as a worker is free.
    """

    size: int
    ahead: int

    def start(self, ticket: int, item: Any) -> None:
        """Let a worker begin a task, now or as soon as one is free."""

    def wait(self) -> list[tuple[int, Any]]:
        """Pass messages on until a task ends: tickets with results, Failure or Died."""

    def leave(self, at_once: bool) -> None:
        """Let the workers go; those that are at work, or all, are killed."""


def environment(threads: int, gpus: float = 0) -> dict[str, str]:
    """The variables of a worker that has some threads for BLAS and as many for TensorFlow.

    Without GPUs of its own it sees none: there its results would have other bits, and it would
    take all their memory.
    """
    variables = dict.fromkeys(_THREADS, str(threads))
    # As in the driver, or a worker's kernels could be others.
    variables |= devices.variables()
    return variables if gpus else variables | {"CUDA_VISIBLE_DEVICES": "-1"}


def forget_tracking() -> None:
    """Only the driver talks to MLflow; a worker must not attach itself to the driver's run."""
    for name in [name for name in os.environ if name.startswith("MLFLOW_")]:
        if name != "MLFLOW_DISABLE_TELEMETRY":
            del os.environ[name]


def packed(function: Any) -> Packed:
    """A function, with all it holds, as it travels, and the digest by which it is known."""
    data = cloudpickle.dumps(function)
    return hashlib.sha256(data).hexdigest(), data


def outcome(load: Callable[[], tuple[Function, Any]], report: Report) -> bytes:
    """Run a task in a worker: its result or failure, as it travels.

    Args:
        load: the function and the item.
        report: that the function gets.
    """
    try:
        function, item = load()
        return cloudpickle.dumps(function(item, report))
    except Exception as error:
        return cloudpickle.dumps(Failure.of(error))
