"""Parallel work: the same results in the same order, whichever way they are computed."""

import os
from typing import Any, get_args

import numpy as np
import pytest

from resfool import parallel
from resfool.parameters import Backend

BACKENDS = get_args(Backend)


def squares(seed: int) -> np.ndarray:
    """Something whose bits would show another order of summation."""
    drawn = np.random.default_rng(seed).standard_normal((60, 60))
    return np.asarray(drawn @ drawn)


def failing(item: int) -> int:
    if item == 3:
        raise LookupError("no such thing")
    return item


def threads(item: int) -> tuple[int, Any]:
    names = "OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "TF_NUM_INTRAOP_THREADS"
    return os.getpid(), [os.environ.get(name) for name in names]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("workers", [1, 2])
def test_results_come_in_order_with_the_same_bits(backend: Backend, workers: int) -> None:
    done: list[int] = []
    found = parallel.map(squares, range(25), backend=backend, workers=workers, progress=done.append)
    for one, expected in zip(found, builtin_map(squares, 25), strict=True):
        np.testing.assert_array_equal(one, expected)
    assert sum(done) == 25 and len(done) > 1


def builtin_map(function: Any, count: int) -> list[Any]:
    return [function(item) for item in range(count)]


@pytest.mark.parametrize("backend", BACKENDS)
def test_nothing_to_do_is_done(backend: Backend) -> None:
    assert parallel.map(squares, [], backend=backend, workers=2) == []


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("workers", [1, 2])
def test_an_error_names_its_item_and_type(backend: Backend, workers: int) -> None:
    with pytest.raises(parallel.TaskError) as caught:
        parallel.map(failing, range(6), backend=backend, workers=workers)
    assert str(caught.value) == "item 4 of 6: LookupError: no such thing"


def test_a_worker_has_one_thread() -> None:
    found = parallel.map(threads, range(2), workers=2)
    for process, limits in found:
        assert process != os.getpid()
        assert limits == ["1", "1", "1"]


def test_closures_reach_the_workers() -> None:
    offset = 10
    assert parallel.map(lambda item: item + offset, [1, 2], workers=2) == [11, 12]
