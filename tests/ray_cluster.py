"""A Ray cluster of this machine, as tests have it."""

import contextlib
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil

TOKEN = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "a-token-of-the-tests-only"}


@contextlib.contextmanager
def started(client_port: int) -> Iterator[str]:
    """A cluster with two CPUs and a token; its address.

    Args:
        client_port: of its client server.
    """
    address = f"127.0.0.1:{free_port()}"
    # The paths of Ray's sockets must be short.
    with tempfile.TemporaryDirectory(prefix="ray") as folder:
        command = [str(Path(sys.executable).with_name("ray")), "start", "--head", "--block"]
        command += ["--node-ip-address=127.0.0.1", f"--port={address.rpartition(':')[2]}"]
        command += ["--num-cpus=2", "--object-store-memory=100000000", f"--temp-dir={folder}"]
        command += ["--include-dashboard=false", f"--ray-client-server-port={client_port}"]
        # With gRPC's handlers of forks, a client's server sometimes dies as it starts.
        environment = {"RAY_USAGE_STATS_ENABLED": "0", "GRPC_ENABLE_FORK_SUPPORT": "0"}
        with (Path(folder) / "log").open("w") as log:
            head = subprocess.Popen(command, stdout=log, stderr=log, env=os.environ | environment)
        try:
            client = f"127.0.0.1:{client_port}"
            wait_until(
                lambda: head.poll() is not None or (answers(address) and answers(client)), 60
            )
            assert head.poll() is None, (Path(folder) / "log").read_text()
            yield address
        finally:
            if "ray" in sys.modules:
                sys.modules["ray"].shutdown()
            kill_tree(head.pid)


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as free:
        return int(free.getsockname()[1])


def answers(address: str) -> bool:
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host, int(port)), 1).close()
    except OSError:
        return False
    return True


def kill_tree(pid: int) -> None:
    if psutil.pid_exists(pid):
        family = [psutil.Process(pid), *psutil.Process(pid).children(recursive=True)]
        for process in family:
            process.kill()
        psutil.wait_procs(family, 10)


def wait_until(true: Any, seconds: float) -> None:
    until = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < until, "it never came"
        time.sleep(0.05)
