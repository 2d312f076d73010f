"""Independent tasks in several processes: the only file that talks to joblib."""

import os
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import joblib

from resfool.parameters import Backend

_Numbered = tuple[int, Any]  # an item's or a result's place, and itself


class TaskError(RuntimeError):
    """A task failed; the message names its item, the error's type and what the error said."""


def _quiet(tasks: int) -> None:
    pass


def map(
    function: Callable[[Any], Any],
    items: Sequence[Any],
    *,
    backend: Backend = "joblib",
    workers: int | None = None,
    progress: Callable[[int], None] = _quiet,
) -> list[Any]:
    """A function's results for all items, in their order, whichever way they are computed.

    Args:
        function: of one item; nothing but the item may decide its result. It, the items and the
            results go to and fro between processes, so they must be picklable.
        items: in the order of the results.
        backend: "joblib" runs in processes of their own, of which each has one thread for BLAS
            and one for TensorFlow; "serial" runs here, and so does a single worker.
        workers: processes; None is one for each core.
        progress: is told how many more items are done.

    Returns:
        The results, in the items' order.

    Raises:
        TaskError: what went wrong first; what hasn't begun by then never does.
    """
    results: list[Any] = [None] * len(items)
    for place, result in _BACKENDS[backend](_Call(function, len(items)), items, workers):
        results[place] = result
        progress(1)
    return results


class _Call:
    """A function of numbered items, which says at which of them it failed."""

    def __init__(self, function: Callable[[Any], Any], count: int) -> None:
        self._function, self._count = function, count

    def __call__(self, place: int, item: Any) -> _Numbered:
        try:
            return place, self._function(item)
        except Exception as error:
            raise TaskError(
                f"item {place + 1} of {self._count}: {type(error).__name__}: {error}"
            ) from error


def _serial(call: _Call, items: Sequence[Any], workers: int | None) -> Iterable[_Numbered]:
    return (call(place, item) for place, item in enumerate(items))


def _joblib(call: _Call, items: Sequence[Any], workers: int | None) -> Iterable[_Numbered]:
    tasks = (joblib.delayed(call)(place, item) for place, item in enumerate(items))
    with joblib.parallel_config("loky", inner_max_num_threads=1, initializer=_limit_tensorflow):
        run = joblib.Parallel(n_jobs=workers or joblib.cpu_count(), return_as="generator_unordered")
        yield from run(tasks)


def _limit_tensorflow() -> None:
    """Before TensorFlow starts in a worker; BLAS is limited by joblib."""
    os.environ.update(
        TF_NUM_INTRAOP_THREADS="1", TF_NUM_INTEROP_THREADS="1", TF_CPP_MIN_LOG_LEVEL="3"
    )


_BACKENDS: dict[Backend, Callable[[_Call, Sequence[Any], int | None], Iterable[_Numbered]]] = {
    "serial": _serial,
    "joblib": _joblib,
}
