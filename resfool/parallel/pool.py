"""Long tasks that report on the way, as many at a time as there are workers."""

from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from types import TracebackType
from typing import Any, Self

from resfool.errors import InputError
from resfool.parallel import processes
from resfool.parallel.on_ray import OnRay
from resfool.parallel.tasks import Crew, Died, Function, Room, Tell
from resfool.values import Backend

ATTEMPTS = 3  # to run a task whose worker is killed


@dataclass(frozen=True)
class _Job:
    place: Any
    item: Any
    attempt: int = 1


class Pool:
    """Runs tasks in any order as they come, and hands their messages on.

        with Pool(function, receive=receive) as pool:
            pool.submit("first", item)
            for place, outcome in pool.finished():
                ...  # may submit more

    Leaving the block early, by an error or Ctrl-C, kills what is still at work.

    Args:
        function: of an item and a report; `report(message)` sends something picklable to the
            driver and returns whether the task should stop. Function, items, messages and results
            go to and fro between processes, so they must be picklable.
        backend: "joblib" runs in processes of this machine, "ray" on a cluster, and "serial" in one
            process, one task after another.
        workers: tasks at a time; None is as many as there is room for.
        ray_address: of the cluster: auto, host:port or ray://host:port; None starts one here.
        patience: seconds that a cluster has to grow to what was asked for.
        cpus: of each task, which are its threads too.
        gpus: of each task, on ray; without, only "serial" sees any, and all of them.
        receive: takes a task's place and message, here and in the order in which the task sent
            them; returns whether the task should stop. The task may learn so a message later.
        restarted: is told the place of a task that is run again because its worker died; its
            messages begin anew.
        attempts: runs of a task before its worker's death is its outcome.
        ahead: whether a cluster gets more tasks than it has workers, so that none of these waits
            for the driver. For short ones, as to a cluster that grows by itself they are demand.

    Attributes:
        ahead: how many more.

    Raises:
        InputError: the cluster can't be reached, or what was asked for has no room there.
    """

    def __init__(
        self,
        function: Function,
        *,
        backend: Backend = "joblib",
        workers: int | None = None,
        ray_address: str | None = None,
        patience: float = 0.0,
        cpus: int = 1,
        gpus: float = 0,
        receive: Callable[[Any, Any], bool] | None = None,
        restarted: Callable[[Any], None] | None = None,
        attempts: int = ATTEMPTS,
        ahead: bool = False,
    ) -> None:
        self._receive, self._restarted, self._attempts = receive, restarted, attempts
        self._waiting: deque[_Job] = deque()
        self._running: dict[int, _Job] = {}
        self._tickets = 0
        self._crew: Crew
        if backend == "ray":
            room = Room(workers, cpus, gpus, patience)
            told = self._tell if receive is not None else None
            self._crew = OnRay(function, told, ray_address, room)
        else:
            self._crew = _local(backend, function, self._tell, workers, cpus, gpus)
        self.ahead = self._crew.ahead if ahead else 0

    @property
    def size(self) -> int:
        """The number of workers."""
        return self._crew.size

    def submit(self, place: Any, item: Any) -> None:
        """Add a task, which begins once a worker is free.

        Args:
            place: what the caller knows the task by.
            item: for the function.
        """
        self._waiting.append(_Job(place, item))

    def finished(self) -> Iterator[tuple[Any, Any]]:
        """Each task's place and outcome as it ends, until none is left.

        Yields:
            The place, and the result, a Failure (the function raised) or Died (its last attempt's
            worker was killed).
        """
        while self._waiting or self._running:
            while self._waiting and len(self._running) < self._crew.size + self.ahead:
                self._start(self._waiting.popleft())
            for ticket, outcome in self._crew.wait():
                job = self._running.pop(ticket)
                if isinstance(outcome, Died) and job.attempt < self._attempts:
                    self._again(job)
                else:
                    yield job.place, outcome

    def _start(self, job: _Job) -> None:
        self._tickets += 1
        self._running[self._tickets] = job
        self._crew.start(self._tickets, job.item)

    def _again(self, job: _Job) -> None:
        if self._restarted is not None:
            self._restarted(job.place)
        self._waiting.appendleft(replace(job, attempt=job.attempt + 1))

    def _tell(self, ticket: int, message: Any) -> bool:
        if self._receive is None or ticket not in self._running:
            return False
        return bool(self._receive(self._running[ticket].place, message))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._crew.leave(at_once=error is not None)


def _local(
    backend: Backend, function: Function, tell: Tell, workers: int | None, cpus: int, gpus: float
) -> Crew:
    if gpus:
        raise InputError(f"gpus={gpus:g} for each task needs backend=ray, which deals them out")
    if backend == "serial":
        return processes.Processes(function, tell, 1, cpus, sees_gpus=True)
    return processes.Processes(function, tell, workers, cpus)
