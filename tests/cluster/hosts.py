"""Hosts of a cluster on one machine: namespaces for network, mounts and processes.

They are joined by a cable of their own and never see the machine's network. A host lives as long
as its first process; nothing of it has a name, so nothing can be left behind.
"""

import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

import psutil

from tests.conftest import ROOT
from tests.ray_cluster import TOKEN

QUIET = {"RAY_USAGE_STATS_ENABLED": "0", "TF_CPP_MIN_LOG_LEVEL": "3"}
TOOLS = "ip", "mount", "nsenter", "unshare"


def why_not() -> str | None:
    """What is missing for making hosts; None if nothing is."""
    if not sys.platform.startswith("linux"):
        return "network namespaces are Linux's"
    if os.geteuid():
        return "making network namespaces takes root"
    for tool in TOOLS:
        if shutil.which(tool) is None:
            return f"the command {tool} is missing"
    tried = subprocess.run([*_UNSHARE, "true"], capture_output=True, text=True)
    return f"no namespaces here: {tried.stderr.strip()}" if tried.returncode else None


_NEW = ["--net", "--mount", "--pid", "--mount-proc"]
_UNSHARE = ["unshare", *_NEW, "--fork", "--kill-child=SIGKILL"]


class Host:
    """A host, and what runs on it.

    Args:
        folder: that both have, each with its own content.
        address: of its end of the cable.
        sees_checkout: or only the environment in it.
    """

    def __init__(self, folder: Path, address: str, sees_checkout: bool) -> None:
        self.address = address
        self._first = subprocess.Popen([*_UNSHARE, "sleep", "infinity"])
        self._started: list[subprocess.Popen[str]] = []
        try:
            self._pid = self._init()
            self.run(["mount", "-t", "tmpfs", "tmpfs", str(folder)])
            self.run(["mount", "-t", "tmpfs", "tmpfs", "/dev/shm"])
            self.run(["ip", "link", "set", "lo", "up"])
            if not sees_checkout:
                self._hide_checkout(folder)
        except BaseException:
            self.stop()
            raise

    def _init(self) -> int:
        while not (children := psutil.Process(self._first.pid).children()):
            assert self._first.poll() is None
        return children[0].pid

    def _hide_checkout(self, folder: Path) -> None:
        environment, aside = ROOT / ".venv", folder / "environment"
        script = f"mount -t tmpfs tmpfs '{ROOT}'"
        if environment.is_dir():
            script = (
                f"mkdir '{aside}' && mount --bind '{environment}' '{aside}' && {script} &&"
                f" mkdir '{environment}' && mount --bind '{aside}' '{environment}'"
            )
        self.run(["sh", "-c", script])

    def join(self, other: "Host") -> None:
        """Lay a cable to another host."""
        ends = ["cable", "netns", str(self._pid)], ["cable", "netns", str(other._pid)]
        command = ["ip", "link", "add", *ends[0], "type", "veth", "peer", "name", *ends[1]]
        subprocess.run(command, check=True)
        for host in (self, other):
            host.run(["ip", "address", "add", f"{host.address}/24", "dev", "cable"])
            host.run(["ip", "link", "set", "cable", "up"])

    def run(self, command: Sequence[str]) -> None:
        """Run a command to its end."""
        subprocess.run(self._inside(command, Path("/")), check=True)

    def start(self, command: Sequence[str], cwd: Path = Path("/")) -> "subprocess.Popen[str]":
        """Start a command; its output is a pipe."""
        process = subprocess.Popen(
            self._inside(command, cwd),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env=_environment(),
        )
        self._started.append(process)
        return process

    def _inside(self, command: Sequence[str], cwd: Path) -> list[str]:
        return ["nsenter", "-t", str(self._pid), "-n", "-m", "-p", f"--wdns={cwd}", "--", *command]

    def processes(self, name: str) -> list[psutil.Process]:
        """Those on this host whose command line has a word."""
        mine = (Path(f"/proc/{self._pid}/ns/pid")).readlink()
        return [p for p in psutil.process_iter(["cmdline"]) if _runs(p, name, mine)]

    def stop(self) -> None:
        """End the first process, and with it all others."""
        self._first.kill()
        self._first.wait()
        for process in self._started:
            process.kill()
            process.wait()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()


def _runs(process: psutil.Process, name: str, namespace: Path) -> bool:
    words = process.info["cmdline"] or [""]
    try:
        return name in words[0] and Path(f"/proc/{process.pid}/ns/pid").readlink() == namespace
    except OSError:
        return False


def _environment() -> dict[str, str]:
    """Without proxies, which would not be reached, and without the driver's MLflow."""
    foreign = ("_PROXY", "MLFLOW_", "RAY_")
    kept = {n: v for n, v in os.environ.items() if not any(f in n.upper() for f in foreign)}
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    return kept | TOKEN | QUIET | {"PATH": path}
