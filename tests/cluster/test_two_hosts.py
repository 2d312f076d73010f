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

RAY = str(Path(sys.executable).with_name("ray"))
HEAD, WORKER = "10.77.0.1", "10.77.0.2"
ADDRESS = f"{HEAD}:6379"
SIZE = ["--num-cpus=1", "--object-store-memory=100000000", "--block"]


@pytest.fixture
def hosts() -> Iterator[tuple[Host, Host]]:
    """Head and worker with Ray on them, one CPU each."""
    with tempfile.TemporaryDirectory(prefix="ray") as name:
        folder = Path(name)
        with Host(folder, HEAD, True) as head, Host(folder, WORKER, False) as worker:
            head.join(worker)
            own = [f"--node-ip-address={HEAD}", "--port=6379", "--include-dashboard=false"]
            head.start([RAY, "start", "--head", *own, f"--temp-dir={folder}", *SIZE])
            wait_until(lambda: head.processes("raylet"))
            other = [f"--address={ADDRESS}", f"--node-ip-address={WORKER}"]
            worker.start([RAY, "start", *other, *SIZE])
            wait_until(lambda: worker.processes("raylet"))
            time.sleep(3)
            yield head, worker


def wait_until(true: Callable[[], Any], seconds: float = 60) -> None:
    until = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < until, "it never came"
        time.sleep(0.2)


def drive(head: Host, work: str, at: Callable[[list[str]], bool] = lambda lines: False) -> Any:
    """Run the driver; yields once its lines so far are as awaited, then what it found."""
    driver = head.start([sys.executable, "-m", "tests.cluster.driver", work, ADDRESS], ROOT)
    lines: list[str] = []
    assert driver.stdout is not None
    for line in driver.stdout:
        lines.append(line)
        if at(lines):
            yield lines
            break
    lines += driver.stdout.readlines()
    assert driver.wait() == 0, "".join(lines)
    yield json.loads(lines[-1])


def test_a_solve_runs_on_both_hosts(hosts: tuple[Host, Host]) -> None:
    (found,) = drive(hosts[0], "solve")
    print(found)
    assert found["digests"][0] == found["digests"][1]
    assert found["images"] == [IMAGES, IMAGES] and found["flipped"][0] > IMAGES / 2
    by_sight = {sees: count for _, sees, count in found["hosts"]}
    assert len(found["hosts"]) == 2 and min(by_sight[True], by_sight[False]) > IMAGES / 8


def test_a_host_that_is_lost_in_a_solve_changes_nothing(hosts: tuple[Host, Host]) -> None:
    head, worker = hosts
    run = drive(head, "solve", lambda lines: sum("solved" in line for line in lines) > 8)
    next(run)
    (raylet,) = worker.processes("raylet")
    raylet.kill()
    found = next(run)
    print(found)
    assert found["digests"][0] == found["digests"][1]
    assert found["images"] == [IMAGES, IMAGES]
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


def test_nothing_of_the_hosts_is_left() -> None:
    named = subprocess.run(["ip", "link", "show", "cable"], capture_output=True)
    assert named.returncode, "the cable is on the machine's own network"
