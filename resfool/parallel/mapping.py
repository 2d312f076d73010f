"""The same results in the same order, on however many workers."""

import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from resfool.errors import WorkError
from resfool.parallel import on_ray
from resfool.parallel.pool import ATTEMPTS, Pool
from resfool.parallel.tasks import Died, Failure, Report, Room
from resfool.values import Backend

_CHUNK_SECONDS = 0.2  # of work that travels together
_OUT_OF_MEMORY = "MemoryError", "ResourceExhaustedError"  # Python's and TensorFlow's


class TaskError(WorkError):
    """A task failed; the message names its item, the error's type and what the error said.

    Attributes:
        finished: the results by then, by their items' places.
    """

    def __init__(self, message: str, finished: dict[int, Any]) -> None:
        super().__init__(message)
        self.finished = finished


def _quiet(tasks: int) -> None:
    pass


def _forget(place: int, result: Any) -> None:
    pass


def check(
    backend: Backend,
    *,
    workers: int | None = None,
    ray_address: str | None = None,
    patience: float = 0.0,
    cpus: int = 1,
    gpus: float = 0,
) -> None:
    """Ask for a cluster before any work that it is to share; `map` and `Pool` join it later.

    Args:
        backend: that they will have, and so on; see `map`.
        workers: of it.
        ray_address: of the cluster.
        patience: seconds that it has to grow.
        cpus: of each worker.
        gpus: of each worker.

    Raises:
        InputError: the cluster can't be reached, or is seen to be too small.
    """
    if backend == "ray":
        on_ray.check(ray_address, Room(workers, cpus, gpus, patience))


def map(
    function: Callable[[Any], Any],
    items: Sequence[Any],
    *,
    backend: Backend = "joblib",
    workers: int | None = None,
    ray_address: str | None = None,
    patience: float = 0.0,
    cpus: int = 1,
    gpus: float = 0,
    progress: Callable[[int], None] = _quiet,
    finished: Mapping[int, Any] | None = None,
    keep: Callable[[int, Any], None] = _forget,
    hold: bool = True,
    what: str = "item",
) -> list[Any]:
    """A function's results for all items, in their order, whichever way they are computed.

    Every backend runs in processes that have one thread for BLAS and one for TensorFlow, unless
    they are given more: sums over several threads have other bits. Items travel in chunks of about
    0.2 s of work. Those of a worker that was killed or had too little memory run again, each by
    itself.

    Args:
        function: of one item; nothing but the item may decide its result. It, the items and the
            results go to and fro between processes, so they must be picklable; the function, with
            all that it holds, goes to each process once.
        items: in the order of the results.
        backend: "serial" runs in one process, "joblib" in several of this machine, "ray" on a
            cluster.
        workers: processes; None is one for each core.
        ray_address: of the cluster: auto, host:port or ray://host:port; None starts one here.
        patience: seconds that a cluster has to grow to the number of workers.
        cpus: of each worker, which are its threads.
        gpus: of each worker, on ray.
        progress: is told how many more items are done.
        finished: results that are there from before, by their items' places; these items don't run.
        keep: is given the place and the result of each other item as soon as it has come.
        hold: whether results are returned too; without, they take no memory here.
        what: an item is called in an error.

    Returns:
        The results, in the items' order; None for those that came and aren't held.

    Raises:
        TaskError: what went wrong first; what hasn't begun by then never does.
        InputError: the cluster can't be reached, or is too small.
    """
    results = dict(finished or {})
    if len(results) == len(items):
        return [results[place] for place in range(len(items))]
    pool = Pool(
        _Chunked(function),
        backend="joblib" if backend == "serial" else backend,
        workers=1 if backend == "serial" else workers,
        ray_address=ray_address,
        patience=patience,
        cpus=cpus,
        gpus=gpus,
        attempts=1,
        ahead=True,
    )
    with pool:
        return _Spread(pool, items, results, progress, keep, hold, what).results()


class _Spread:
    """Items on their way to a pool's workers and back."""

    def __init__(
        self,
        pool: Pool,
        items: Sequence[Any],
        results: dict[int, Any],
        progress: Callable[[int], None],
        keep: Callable[[int, Any], None],
        hold: bool,
        what: str,
    ) -> None:
        self._pool, self._items, self._progress, self._keep_home = pool, items, progress, keep
        self._hold, self._what = hold, what
        self._waiting = deque(place for place in range(len(items)) if place not in results)
        self._size = 1
        self._results = results
        self._deaths: dict[int, int] = {}

    def results(self) -> list[Any]:
        for _ in range(self._pool.size + self._pool.ahead):
            self._send_more()
        for places, outcome in self._pool.finished():
            if isinstance(outcome, Died):
                self._send_again(places, outcome)
            elif isinstance(outcome, Failure):  # of the travel, not of an item
                raise self._failed(places[0], outcome)
            else:
                self._keep(places, *outcome)
                self._send_more()
        return [self._results[place] for place in range(len(self._items))]

    def _send_more(self) -> None:
        # The last chunks are small, so that all workers end at about the same time.
        size = min(self._size, -(-len(self._waiting) // (2 * self._pool.size)))
        if size:
            self._send([self._waiting.popleft() for _ in range(size)])

    def _send(self, places: list[int]) -> None:
        self._pool.submit(places, [self._items[place] for place in places])

    def _keep(
        self, places: list[int], results: list[Any], failure: Failure | None, each: float
    ) -> None:
        for place, result in zip(places, results, strict=False):
            self._results[place] = result if self._hold else None
            self._keep_home(place, result)
        self._progress(len(results))
        if failure is None:
            self._size = max(1, int(_CHUNK_SECONDS / each))
        elif failure.kind in _OUT_OF_MEMORY:  # others may have had it, and may be done by then
            self._send_again(places[len(results) :], failure)
        else:
            raise self._failed(places[len(results)], failure)

    def _send_again(self, places: list[int], why: Failure) -> None:
        died = isinstance(why, Died)
        for place in places if died else places[:1]:
            self._deaths[place] = self._deaths.get(place, 0) + 1
            if self._deaths[place] == ATTEMPTS:
                what = "its process died" if died else "its memory ended"
                raise self._failed(place, f"{what} {ATTEMPTS} times; {why.message}")
        for place in places:
            self._send([place])

    def _failed(self, place: int, why: Failure | str) -> TaskError:
        error = TaskError(f"{self._what} {place + 1} of {len(self._items)}: {why}", self._results)
        if isinstance(why, Failure):
            error.add_note(why.trace)
        return error


class _Chunked:
    """A function of several items, which stops at the first that fails."""

    def __init__(self, function: Callable[[Any], Any]) -> None:
        self._function = function

    def __call__(self, items: list[Any], report: Report) -> tuple[list[Any], Failure | None, float]:
        """Results, what went wrong at the next item, and seconds per item."""
        began, results = time.perf_counter(), []
        for item in items:
            try:
                results.append(self._function(item))
            except Exception as error:
                return results, Failure.of(error), 0.0
        return results, None, max(time.perf_counter() - began, 1e-9) / len(items)
