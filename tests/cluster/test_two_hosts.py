"""Faults of a Ray cluster of two hosts, of which one can't see the checkout: make test-cluster."""

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.cluster.driver import IMAGES, STEPS
from tests.cluster.hosts import Host, why_not
from tests.conftest import ROOT

if reason := why_not():
    pytest.skip(reason, allow_module_level=True)

RAY, MLFLOW = (str(Path(sys.executable).with_name(name)) for name in ("ray", "mlflow"))
HEAD, WORKER = "10.77.0.1", "10.77.0.2"
ADDRESS = f"{HEAD}:6379"
JOBS = f"http://{HEAD}:8265"
SUBMISSION = "the-only-one"
SWEEP = (
    "python -m entry_points.sweep --arch=mlp --dataset=digits --seeds=2"
    " --backend=ray --ray_address=auto"
)
SIZE = ["--num-cpus=1", "--object-store-memory=100000000", "--block"]


@pytest.fixture
def folder() -> Iterator[Path]:
    """Of the hosts, with a short path, which Ray's sockets need."""
    with tempfile.TemporaryDirectory(prefix="ray") as name:
        yield Path(name)


@pytest.fixture
def hosts(folder: Path) -> Iterator[tuple[Host, Host]]:
    """Head and worker with Ray on them, one CPU each."""
    with Host(folder, HEAD, True) as head, Host(folder, WORKER, False) as worker:
        head.join(worker)
        start_head(head, folder)
        start_worker(worker)
        yield head, worker


def start_head(head: Host, folder: Path, *more: str) -> None:
    own = [f"--node-ip-address={HEAD}", "--port=6379", f"--temp-dir={folder}"]
    own += more or ["--include-dashboard=false"]
    head.start([RAY, "start", "--head", *own, *SIZE])
    wait_until(lambda: head.processes("raylet"))


def start_worker(worker: Host) -> None:
    other = [f"--address={ADDRESS}", f"--node-ip-address={WORKER}"]
    worker.start([RAY, "start", *other, *SIZE])
    wait_until(lambda: nodes(worker) == 2)


def nodes(host: Host) -> int:
    """How many are in the cluster."""
    asked = host.start([RAY, "status", f"--address={ADDRESS}"])
    return asked.communicate()[0].count(" node_")


def wait_until(true: Callable[[], Any], seconds: float = 60) -> None:
    until = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < until, "it never came"
        time.sleep(0.2)


def drive(
    host: Host,
    work: str,
    at: Callable[[list[str]], bool] = lambda lines: False,
    address: str = ADDRESS,
) -> Any:
    """Run the driver; yields once its lines so far are as awaited, then what it found."""
    driver = host.start([sys.executable, "-m", "tests.cluster.driver", work, address], ROOT)
    lines: list[str] = []
    assert driver.stdout is not None
    for line in driver.stdout:
        lines.append(line)
        if at(lines):
            yield lines
            break
    lines += driver.stdout.readlines()
    assert driver.wait() == 0, "".join(lines)
    # Ray may have something to say at the end, of a host that was lost.
    yield json.loads(next(line for line in reversed(lines) if line.startswith(("{", "["))))


def test_a_solve_runs_on_both_hosts(hosts: tuple[Host, Host]) -> None:
    (found,) = drive(hosts[0], "solve")
    print(found)
    assert found["digests"][0] == found["digests"][1]
    assert found["images"] == [IMAGES, IMAGES] and found["flipped"][0] > IMAGES / 2
    by_sight = {sees: count for _, sees, count in found["hosts"]}
    assert len(found["hosts"]) == 2 and min(by_sight[True], by_sight[False]) > IMAGES / 8


@pytest.mark.parametrize(("work", "blocks"), [("solve", 8), ("closest", 4), ("attack", 4)])
def test_a_host_that_is_lost_in_a_solve_changes_nothing(
    hosts: tuple[Host, Host], work: str, blocks: int
) -> None:
    head, worker = hosts
    run = drive(head, work, lambda lines: sum("solved" in line for line in lines) > blocks)
    next(run)
    (raylet,) = worker.processes("raylet")
    raylet.kill()
    found = next(run)
    print(found)
    assert found["digests"][0] == found["digests"][1]
    assert set(found["images"]) == {IMAGES} and min(found["flipped"]) > 0
    # What had come back from the lost host is kept, the rest ran on the other.
    by_sight = {sees: count for _, sees, count in found["hosts"]}
    assert 0 < by_sight[False] < IMAGES / 2 < by_sight[True]


def test_a_trial_whose_process_is_killed_begins_anew(hosts: tuple[Host, Host]) -> None:
    head, worker = hosts

    def both_at_work(lines: list[str]) -> bool:
        steps = [line.split() for line in lines if line.startswith("step")]
        return {place for _, place, _, step in steps if int(step) >= 3} == {"0", "1"}

    run = drive(head, "trials", both_at_work)
    next(run)
    (process,) = worker.processes("ray::_work")
    process.kill()
    found = next(run)
    print(found)
    assert found["hosts"] == 2 and found["outcomes"] == ["done", "done"]
    ((_, before),) = found["restarts"]
    assert before == list(range(len(before))) and len(before) >= 3
    assert found["heard"] == [list(range(STEPS))] * 2


def test_a_cluster_that_grows_is_waited_for(folder: Path) -> None:
    with Host(folder, HEAD, True) as head, Host(folder, WORKER, False) as worker:
        head.join(worker)
        start_head(head, folder)
        run = drive(head, "growth", lambda lines: lines[-1] == "refused\n")
        next(run)
        start_worker(worker)
        found = next(run)
    print(found)
    assert found["refusal"].startswith("2 workers of 1 CPU each don't fit the Ray cluster")
    assert found["seconds"] < 5
    assert len(found["hosts"]) == 2 and sum(found["hosts"]) == IMAGES


@pytest.fixture
def jobs(folder: Path) -> Iterator[tuple[Host, Host, str]]:
    """Head, without a checkout, and a worker with one; and a tracking server on the worker."""
    with Host(folder, HEAD, False) as head, Host(folder, WORKER, True) as worker:
        head.join(worker)
        store = serve(worker, folder)
        start_head(head, folder, "--include-dashboard=true", f"--dashboard-host={HEAD}")
        start_worker(worker)
        wait_until(lambda: answers(worker, f"{store}/health") and answers(worker, JOBS))
        yield head, worker, store


def test_a_job_runs_on_both_hosts(jobs: tuple[Host, Host, str]) -> None:
    head, worker, store = jobs
    job = submit(worker, store, "--steps=60", "--eval_every=30")
    wait_until(lambda: all(host.processes("ray::_work") for host in (head, worker)), 120)
    printed = job.communicate()[0]
    print(printed)
    (found,) = drive(worker, "runs", address=store)
    print(found)
    assert job.returncode == 0 and "test_accuracy" in printed
    assert [run["status"] for run in found] == ["FINISHED"] * 3
    children = [run for run in found if run["child"]]
    assert len(children) == 2 and all("MLmodel" in run["model"] for run in children)


def test_a_job_that_is_stopped_leaves_killed_runs(jobs: tuple[Host, Host, str]) -> None:
    head, worker, store = jobs
    job = submit(worker, store, "--steps=1000000", "--eval_every=1000")
    wait_until(lambda: len(next(drive(worker, "runs", address=store))) == 3, 120)
    worker.start([RAY, "job", "stop", f"--address={JOBS}", SUBMISSION]).wait()
    printed = job.communicate()[0]
    (found,) = drive(worker, "runs", address=store)
    print(printed, found)
    assert "resfool: interrupted" in printed
    assert [run["status"] for run in found] == ["KILLED"] * 3
    wait_until(lambda: not any(host.processes("ray::_work") for host in (head, worker)))


def serve(host: Host, folder: Path) -> str:
    """Start a tracking server; its address."""
    command = [MLFLOW, "server", f"--host={host.address}", "--port=5000", "--workers=1"]
    command += [f"--backend-store-uri=sqlite:///{folder}/mlflow.db"]
    host.start([*command, f"--artifacts-destination={folder}/artifacts"], folder)
    return f"http://{host.address}:5000"


def answers(host: Host, url: str) -> bool:
    ask = f"import urllib.request; urllib.request.urlopen({url!r}, timeout=5)"
    return host.start([sys.executable, "-c", ask]).wait() == 0


def submit(host: Host, store: str, *parameters: str) -> "subprocess.Popen[str]":
    """Submit a sweep, with all that it needs, from the checkout."""
    variables = {"MLFLOW_TRACKING_URI": store, "RAY_JOB_STOP_WAIT_TIME_S": "10"}
    command = [RAY, "job", "submit", f"--address={JOBS}", f"--submission-id={SUBMISSION}"]
    command += ["--working-dir=.", f"--runtime-env-json={json.dumps({'env_vars': variables})}"]
    return host.start([*command, "--", *SWEEP.split(), *parameters], ROOT)


def test_nothing_of_the_hosts_is_left() -> None:
    named = subprocess.run(["ip", "link", "show", "cable"], capture_output=True)
    assert named.returncode, "the cable is on the machine's own network"
