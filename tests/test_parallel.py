"""Parallel work: the same results in the same order, whichever way they are computed."""

import inspect
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import cloudpickle
import numpy as np
import psutil
import pytest

from resfool import parallel
from resfool.errors import InputError, WorkError
from resfool.parallel import Died, Failure, Report, own_ray
from resfool.training.recipe import TrainParameters
from resfool.trials import recorder
from resfool.values import Backend
from tests.conftest import ROOT
from tests.ray_cluster import TOKEN, wait_until

# Ray reads them once, as it is imported, and without a token it would make one for the user.
os.environ |= TOKEN

# Hosts of a cluster have no tests.
cloudpickle.register_pickle_by_value(sys.modules[__name__])

BACKENDS = get_args(Backend)
PARALLEL = [backend for backend in BACKENDS if backend != "serial"]


@pytest.fixture
def where(request: pytest.FixtureRequest, backend: Backend) -> dict[str, Any]:
    """The arguments that mean a backend, with its cluster started."""
    if backend == "ray":
        return {"backend": "ray", "ray_address": request.getfixturevalue("cluster")}
    return {"backend": backend}


def squares(seed: int) -> np.ndarray:
    """Something whose bits would show another order of summation."""
    drawn = np.random.default_rng(seed).standard_normal((60, 60))
    return np.asarray(drawn @ drawn)


def long_sum(seed: int) -> np.ndarray:
    """What several threads sum up to other bits than one."""
    drawn = np.random.default_rng(seed).standard_normal((1, 65536), np.float32)
    return np.asarray(drawn @ drawn.T.repeat(10, axis=1))


def failing(item: int) -> int:
    if item == 3:
        raise LookupError("no such thing")
    return item


def threads(item: int) -> tuple[int, Any]:
    names = (
        "OMP_NUM_THREADS",
        "OPENBLAS_NUM_THREADS",
        "TF_NUM_INTRAOP_THREADS",
        "MLFLOW_RUN_ID",
        "CUDA_VISIBLE_DEVICES",
    )
    return os.getpid(), [os.environ.get(name) for name in names]


def mortal(item: tuple[str, int, int]) -> int:
    """Notes that it runs, and kills its process if it hasn't run so often before."""
    folder, number, deaths = item
    noted = Path(folder) / str(number)
    with noted.open("a") as notes:
        notes.write("x")
    if len(noted.read_text()) <= deaths:
        os.kill(os.getpid(), signal.SIGKILL)
    return number * number


def lengthy(folder: str) -> None:
    (Path(folder) / str(os.getpid())).touch()
    time.sleep(100)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("workers", [1, 2])
def test_results_come_in_order_with_the_same_bits(where: dict[str, Any], workers: int) -> None:
    done: list[int] = []
    found = parallel.map(squares, range(25), workers=workers, progress=done.append, **where)
    for one, expected in zip(found, map(squares, range(25)), strict=True):
        np.testing.assert_array_equal(one, expected)
        one += 1  # nobody else's memory
    assert sum(done) == 25 and len(done) > 1


@pytest.mark.parametrize("backend", PARALLEL)
def test_sums_have_the_bits_of_one_thread(where: dict[str, Any]) -> None:
    found = parallel.map(long_sum, range(4), workers=2, **where)
    np.testing.assert_array_equal(found, parallel.map(long_sum, range(4), backend="serial"))


@pytest.mark.parametrize("backend", BACKENDS)
def test_nothing_to_do_is_done(backend: Backend) -> None:
    assert parallel.map(squares, [], backend=backend, workers=2) == []


@pytest.mark.parametrize("backend", BACKENDS)
def test_what_is_there_from_before_does_not_run_again(where: dict[str, Any]) -> None:
    kept: dict[int, int] = {}
    before = {place: -place for place in (0, 2, 3, 8)}
    found = parallel.map(
        failing, range(9), workers=2, finished=before, keep=kept.__setitem__, **where
    )
    assert found == [before.get(place, place) for place in range(9)]
    assert kept == {place: place for place in (1, 4, 5, 6, 7)}
    with pytest.raises(parallel.TaskError, match=r"item 4 of 9: LookupError") as caught:
        parallel.map(failing, range(9), workers=2, finished={0: 0, 1: 1}, **where)
    assert caught.value.finished.keys() >= {0, 1}
    assert parallel.map(failing, [3], finished={0: 7}, **where) == [7]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("workers", [1, 2])
def test_an_error_names_its_item_and_keeps_the_rest(where: dict[str, Any], workers: int) -> None:
    with pytest.raises(parallel.TaskError) as caught:
        parallel.map(failing, range(6), workers=workers, **where)
    assert str(caught.value) == "item 4 of 6: LookupError: no such thing"
    assert workers == 2 or caught.value.finished.keys() == {0, 1, 2}
    assert all(place == result for place, result in caught.value.finished.items())
    assert "in failing" in caught.value.__notes__[0]


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_worker_has_one_thread_no_run_and_no_gpu(
    where: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_RUN_ID", "of the driver")
    for process, variables in parallel.map(threads, range(2), workers=2, **where):
        assert process != os.getpid()
        assert variables == ["1", "1", "1", None, "-1"]


@pytest.mark.parametrize("backend", BACKENDS)
def test_closures_reach_the_workers(where: dict[str, Any]) -> None:
    offset = 10
    assert parallel.map(lambda item: item + offset, [1, 2], workers=2, **where) == [11, 12]


@pytest.mark.parametrize("backend", BACKENDS)
def test_items_of_a_killed_worker_run_again(where: dict[str, Any], tmp_path: Path) -> None:
    done: list[int] = []
    items = [(str(tmp_path), number, int(number in (5, 30))) for number in range(60)]
    found = parallel.map(mortal, items, workers=2, progress=done.append, **where)
    assert found == [number * number for number in range(60)]
    assert sum(done) == 60
    runs = {number: len((tmp_path / str(number)).read_text()) for number in range(60)}
    assert runs[5] == runs[30] == 2 and set(runs.values()) == {1, 2}


@pytest.mark.parametrize("backend", BACKENDS)
def test_an_item_that_always_kills_is_named(where: dict[str, Any], tmp_path: Path) -> None:
    items = [(str(tmp_path), number, 9 * (number == 2)) for number in range(4)]
    with pytest.raises(parallel.TaskError, match="item 3 of 4: its process died 3 times"):
        parallel.map(mortal, items, workers=2, **where)
    assert len((tmp_path / "2").read_text()) == 3


def noting_times(item: int) -> tuple[float, float]:
    began = time.time()
    time.sleep(0.1)
    return began, time.time()


@pytest.mark.parametrize("workers", [1, 2])
def test_what_goes_out_ahead_of_need_waits_for_a_worker(cluster: str, workers: int) -> None:
    spread: dict[str, Any] = {"backend": "ray", "ray_address": cluster, "workers": workers}
    with parallel.Pool(counting, ahead=True, **spread) as pool:
        assert pool.ahead == (2 if workers == 2 else 0), "the cluster has room for two"
    times = parallel.map(noting_times, range(8), **spread)
    at_once = [sum(began <= other < ended for began, ended in times) for other, _ in times]
    assert max(at_once) <= workers  # fewer, where a worker is slow to start


def counting(item: tuple[str, int], report: Report) -> list[int]:
    """Reports numbers until it is told to stop; the one with a folder dies half-way, once."""
    folder, last = item
    sent = []
    for number in range(last):
        sent.append(number)
        if report(number):
            break
        if folder and number == 2 and not (Path(folder) / "died").exists():
            (Path(folder) / "died").touch()
            os.kill(os.getpid(), signal.SIGKILL)
        time.sleep(0.02)
    if last == 1:
        raise LookupError("no such thing")
    return sent


@pytest.mark.parametrize("backend", BACKENDS)
def test_tasks_report_in_order_stop_fail_and_are_added(where: dict[str, Any]) -> None:
    heard: dict[str, list[int]] = {"long": [], "stopped": [], "failing": [], "added": []}

    def receive(place: str, message: int) -> bool:
        heard[place].append(message)
        return place == "stopped" and message >= 3

    outcomes = {}
    with parallel.Pool(counting, workers=2, receive=receive, **where) as pool:
        for place, last in (("long", 12), ("stopped", 1000), ("failing", 1)):
            pool.submit(place, ("", last))
        for place, outcome in pool.finished():
            outcomes[place] = outcome
            if place == "failing":
                pool.submit("added", ("", 4))
    failure = outcomes.pop("failing")
    assert isinstance(failure, Failure) and not isinstance(failure, Died)
    assert str(failure) == "LookupError: no such thing" and "in counting" in failure.trace
    assert outcomes["long"] == list(range(12)) and outcomes["added"] == list(range(4))
    assert 4 <= len(outcomes["stopped"]) < 50
    assert all(heard[place] == outcome for place, outcome in outcomes.items())


@pytest.mark.parametrize("backend", PARALLEL)
@pytest.mark.slow
def test_a_training_has_the_same_bits_everywhere(where: dict[str, Any]) -> None:
    """Convolutions and sums over a batch, as a sweep or a tuning has them."""
    asked = TrainParameters(
        arch="resnet", depth=5, width=(4,), steps=10, dataset="digits", per_class=(20, 10, 20)
    )
    seeds = range(2 if where["backend"] == "joblib" else 1)

    def trained(**pool: Any) -> list[Any]:
        with parallel.Pool(recorder.Trial(), receive=lambda place, message: False, **pool) as crew:
            for seed in seeds:
                crew.submit(seed, replace(asked, seed=seed))
            outcomes = dict(crew.finished())
        return [(outcomes[seed].metrics, weights(outcomes[seed])) for seed in seeds]

    def weights(outcome: Any) -> list[bytes]:
        return [value.tobytes() for value in outcome.load_model().get_weights()]

    assert trained(workers=len(seeds), **where) == trained(backend="serial")


@pytest.mark.parametrize("backend", BACKENDS)
def test_an_error_of_the_receiver_is_the_drivers(where: dict[str, Any]) -> None:
    def receive(place: str, message: int) -> bool:
        raise OSError("the disk is full")

    pool = parallel.Pool(counting, workers=2, receive=receive, **where)
    with pool, pytest.raises(OSError, match="the disk is full"):
        pool.submit("any", ("", 5))
        list(pool.finished())


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_task_whose_worker_is_killed_begins_anew(where: dict[str, Any], tmp_path: Path) -> None:
    heard: dict[int, list[int]] = {0: [], 1: []}
    before: list[list[int]] = []

    def receive(place: int, message: int) -> bool:
        heard[place].append(message)
        return False

    def restarted(place: int) -> None:
        before.append(heard[place])
        heard[place] = []

    with parallel.Pool(counting, workers=2, receive=receive, restarted=restarted, **where) as pool:
        pool.submit(0, (str(tmp_path), 6))
        pool.submit(1, ("", 6))
        outcomes = dict(pool.finished())
    assert before == [[0, 1, 2]]
    assert heard == outcomes == {0: list(range(6)), 1: list(range(6))}


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_task_that_always_kills_its_worker_ends(where: dict[str, Any], tmp_path: Path) -> None:
    with parallel.Pool(lambda item, report: mortal(item), workers=1, **where) as pool:
        pool.submit("bad", (str(tmp_path), 0, 9))
        pool.submit("good", (str(tmp_path), 1, 0))
        outcomes = dict(pool.finished())
    assert isinstance(outcomes["bad"], Died) and outcomes["good"] == 1
    assert len((tmp_path / "0").read_text()) == 3


@pytest.mark.slow
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupt_leaves_no_process(
    where: dict[str, Any], tmp_path: Path, number: signal.Signals
) -> None:
    script = (
        "import os, time\n"
        "from pathlib import Path\n"
        "from resfool import interrupts, parallel\n"
        f"{inspect.getsource(lengthy)}\n"
        "interrupts.raise_once()\n"
        f"parallel.map(lengthy, [{str(tmp_path)!r}] * 3, workers=2, **{where})\n"
    )
    driver = subprocess.Popen([sys.executable, "-c", script], cwd=ROOT, stderr=subprocess.PIPE)
    at_once = 1 if where["backend"] == "serial" else 2
    try:
        wait_until(lambda: driver.poll() is not None or files(tmp_path) == at_once, 60)
        family = psutil.Process(driver.pid).children(recursive=True)
        driver.send_signal(number)
        _, words = driver.communicate(timeout=60)  # a task sleeps longer
    finally:
        driver.kill()
    assert b"KeyboardInterrupt" in words
    family += [psutil.Process(int(p.name)) for p in tmp_path.iterdir() if alive(int(p.name))]
    assert not psutil.wait_procs(family, 30)[1]
    assert files(tmp_path) == at_once, "nothing else began"


def files(folder: Path) -> int:
    return len(list(folder.iterdir()))


def alive(pid: int) -> bool:
    return psutil.pid_exists(pid)


@pytest.mark.slow
def test_ray_on_this_machine_does_all_that_a_cluster_does(cluster: str, tmp_path: Path) -> None:
    """In one process with a cluster that has another token."""
    here: dict[str, Any] = {"backend": "ray"}
    with pytest.raises(InputError, match="99 GPU each don't fit the Ray cluster here, which has"):
        parallel.check("ray", gpus=99)
    with pytest.raises(parallel.TaskError, match="item 4 of 6: LookupError: no such thing"):
        parallel.map(failing, range(6), workers=1, **here)
    assert parallel.map(abs, [-1], backend="ray", ray_address=cluster) == [1]
    test_items_of_a_killed_worker_run_again(here, tmp_path)
    test_tasks_report_in_order_stop_fail_and_are_added(here)
    test_an_error_of_the_receiver_is_the_drivers(here)
    assert not own_ray._started, "what was interrupted has ended"
    assert parallel.map(abs, [-2], **here) == [2]
    started = own_ray._started
    assert started is not None
    os.kill(started.pid, signal.SIGKILL)
    with pytest.raises(WorkError, match="Ray on this machine has died"):
        parallel.map(abs, [-2], **here)
    assert not started.folder.path.exists()


@pytest.mark.slow
def test_ray_is_not_imported_where_one_machine_serves() -> None:
    script = """if True:
        import sys
        from resfool import parallel
        for backend in ("serial", "joblib"):
            parallel.check(backend)
            assert parallel.map(lambda item: "ray" in sys.modules, [1], backend=backend) == [False]
        assert "ray" not in sys.modules
        """
    subprocess.run([sys.executable, "-c", script], check=True, cwd=ROOT)


def test_only_ray_deals_out_gpus() -> None:
    with pytest.raises(InputError, match="gpus=1 for each task needs backend=ray"):
        parallel.Pool(counting, gpus=1)


def test_chunks_grow_to_a_share_of_a_second_and_shrink_at_the_end() -> None:
    sizes: Counter[int] = Counter()
    parallel.map(time.sleep, [0.001] * 600, workers=2, progress=lambda n: sizes.update([n]))
    assert sizes[1] >= 2 and max(sizes) > 20
    sizes.clear()
    parallel.map(time.sleep, [0.15] * 4, workers=2, progress=lambda n: sizes.update([n]))
    assert sizes == {1: 4}


@pytest.mark.slow
def test_a_cluster_is_reached_from_outside(cluster: str, client_port: int) -> None:
    address = f"ray://127.0.0.1:{client_port}"
    found = parallel.map(squares, range(9), backend="ray", ray_address=address)
    for one, expected in zip(found, map(squares, range(9)), strict=True):
        np.testing.assert_array_equal(one, expected)
