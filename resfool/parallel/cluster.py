"""Workers on a Ray cluster; imported only when they are asked for.

Of Ray only what it promises is used: its documented functions, commands and variables.
"""

import asyncio
import contextlib
import functools
import os
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

# Read while Ray is imported: no rebuilding of `uv run` on the workers.
os.environ.setdefault("RAY_ENABLE_UV_RUN_RUNTIME_ENV", "0")
os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")

import cloudpickle
import grpc
import joblib
import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

import resfool
from resfool import interrupts
from resfool.errors import InputError
from resfool.parallel import tasks
from resfool.parallel.tasks import Died, Failure, Function, Packed, Room, TellPacked

_REACH_SECONDS = 5.0
_STATUS_SECONDS = 20.0  # for `ray status`, which takes two on an idle machine
_CLIENT_PORT = 10001  # of ray://host
_HEALTH = "/grpc.health.v1.Health/Check"  # gRPC's own, which a head answers whoever asks
_DIED = "Starting Ray client server failed"
_joined: str | None = None  # the cluster that this process has joined through us


class Cluster:
    """Ray tasks, of which as many are under way as there is room for.

    Ray runs them in processes that it keeps, each of which unpacks the function once. Where a
    process or a host is lost, the pool starts the task anew, so Ray itself doesn't.

    Args:
        function: that they run.
        tell: takes messages; None if there are none.
        address: of the cluster; None is the one that this process is in, or starts one here.
        room: that is asked for.

    Attributes:
        size: tasks at a time.
        ahead: tasks that may be started beyond these, which Ray begins by itself.
    """

    def __init__(
        self, function: Packed, tell: TellPacked | None, address: str | None, room: Room
    ) -> None:
        self.size, self.ahead = joined_size(room, address)
        digest, data = function
        options = {
            "num_cpus": room.cpus,
            "num_gpus": room.gpus,
            "max_retries": 0,
            "runtime_env": {"env_vars": tasks.environment(room.cpus, room.gpus)},
        }
        self._task = ray.remote(_work).options(**options)
        self._function = digest, [ray.put(data)]
        self._mail = None if tell is None else _Mail(tell)
        self._running: dict[Any, int] = {}

    def start(self, ticket: int, item: bytes) -> None:
        """Let Ray begin a task as soon as there is room."""
        box = None if self._mail is None else self._mail.box
        self._running[self._task.remote(*self._function, item, ticket, box)] = ticket

    def wait(self) -> list[tuple[int, bytes | Failure]]:
        """Pass messages on until tasks have ended; all that have by then."""
        while True:
            letters = [] if self._mail is None else [self._mail.next]
            ready, _ = ray.wait([*letters, *self._running], num_returns=1, timeout=1.0)
            if ready and ready != letters:
                more = list(self._running)
                ready += ray.wait(more, num_returns=len(more), timeout=0)[0]
            ended = [ref for ref in dict.fromkeys(ready) if ref in self._running]
            if self._mail is not None and ready:
                self._mail.deliver(all_sent=bool(ended))
            if ended:
                outcomes = _outcomes(ended)
                return [(self._running.pop(ref), one) for ref, one in outcomes.items()]

    def leave(self, at_once: bool) -> None:
        """Let the workers go; those that are at work are killed."""
        for ref in reversed(self._running):  # or what has waited would begin
            with contextlib.suppress(Exception):  # the cluster may be gone
                ray.cancel(ref, force=True)
        self._running = {}
        if self._mail is not None:
            with contextlib.suppress(Exception):
                ray.kill(self._mail.box)


def _work(digest: str, packed: list[Any], item: bytes, ticket: int, box: Any) -> bytes:
    """A task, in a worker."""
    tasks.forget_tracking()

    def load() -> tuple[Function, Any]:
        if digest not in _unpacked:
            _unpacked.clear()
            _unpacked[digest] = cloudpickle.loads(ray.get(packed[0]))
        return _unpacked[digest], cloudpickle.loads(item)

    def report(message: Any) -> bool:
        return bool(ray.get(box.send.remote(ticket, cloudpickle.dumps(message))))

    return tasks.outcome(load, (lambda message: False) if box is None else report)


_unpacked: dict[str, Function] = {}


def _outcomes(refs: list[Any]) -> dict[Any, bytes | Failure]:
    """What tasks that have ended came to."""
    try:
        return dict(zip(refs, ray.get(refs), strict=True))  # at one go
    except ray.exceptions.RayError:
        return {ref: _outcome(ref) for ref in refs}


def _outcome(ref: Any) -> bytes | Failure:
    try:
        return bytes(ray.get(ref))
    except ray.exceptions.RayTaskError as error:  # of what surrounds the function
        return Failure.of(error.cause if error.cause is not None else error)
    except ray.exceptions.RuntimeEnvSetupError as error:
        return Failure.of(error)
    except ray.exceptions.RayError as error:
        return Died("WorkerDied", type(error).__name__)


class _Mail:
    """Messages from the workers, in an actor on the driver's host that outlives any of them."""

    def __init__(self, tell: TellPacked) -> None:
        here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
        self._tell, self._taken = tell, 0
        self.box = ray.remote(_Box).options(num_cpus=0, scheduling_strategy=here).remote()
        self.next = self.box.take.remote()

    def deliver(self, all_sent: bool) -> None:
        """Pass on what has come, or all that the workers have sent by now."""
        sent = ray.get(self.box.count.remote()) if all_sent else self._taken + 1
        while self._taken < sent:
            for ticket, letter in ray.get(self.next):
                self._taken += 1
                if self._tell(ticket, letter):
                    self.box.stop.remote(ticket)
            self.next = self.box.take.remote()


class _Box:
    """The actor that holds messages until the driver takes them."""

    def __init__(self) -> None:
        self._letters: list[tuple[int, bytes]] = []
        self._arrived = asyncio.Event()
        self._stopped: set[int] = set()
        self._count = 0

    async def send(self, ticket: int, letter: bytes) -> bool:
        self._letters.append((ticket, letter))
        self._count += 1
        self._arrived.set()
        return ticket in self._stopped

    async def take(self) -> list[tuple[int, bytes]]:
        """All that has come since the last time, as soon as there is something."""
        await self._arrived.wait()
        self._arrived.clear()
        letters, self._letters = self._letters, []
        return letters

    async def count(self) -> int:
        """Of all letters so far."""
        return self._count

    async def stop(self, ticket: int) -> None:
        self._stopped.add(ticket)


def _join(address: str | None) -> None:
    """Connect to a cluster, unless this process is in it or its caller has chosen one."""
    global _joined
    wanted = _complete(address)
    if ray.is_initialized() and _joined in (None, wanted):
        return
    reach(address)
    ray.shutdown()
    settings: dict[str, Any] = {"address": wanted, "log_to_driver": False}
    settings |= {"logging_level": "error", "configure_logging": True}
    # The package itself travels, so that a host needs what it depends on and nothing else.
    settings["runtime_env"] = {"py_modules": [str(Path(resfool.__file__).parent)]}
    if address is None:
        settings |= {"num_cpus": joblib.cpu_count(), "include_dashboard": False}
    try:
        with interrupts.kept():
            ray.init(**settings)
    except InputError:
        raise
    except Exception as error:
        ray.shutdown()
        raise _refused(address, error) from error
    _joined = wanted
    if address is None and (mine := ray.util.get_node_ip_address()) != "127.0.0.1":
        ray.shutdown()
        raise InputError(f"Ray doesn't start here: it would be open to the network, at {mine}")


def is_callers() -> bool:
    """Whether this process is in a cluster that its caller has chosen."""
    return ray.is_initialized() and _joined is None


def _complete(address: str | None) -> str:
    """An address as Ray wants it."""
    if address is None:
        return "local"
    if address == "auto":
        address = os.environ.get("RAY_ADDRESS", "auto")
    host = address.removeprefix("ray://")
    return f"{address}:{_CLIENT_PORT}" if host != address and host and ":" not in host else address


def reach(address: str | None) -> None:
    """Whether a cluster answers at an address, soon; Ray itself waits for minutes.

    Args:
        address: auto, host:port or ray://host:port; None is this machine.

    Raises:
        InputError: it doesn't.
    """
    address = _complete(address)
    if address == "local":
        return
    if address == "auto":
        return _ask_status(address)
    client = address.startswith("ray://")
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if not host or not port.isdecimal():
        raise InputError(f"ray_address={address} must be auto, host:port or ray://host:port")
    try:
        socket.create_connection((host.strip("[]"), int(port)), _REACH_SECONDS).close()
    except (OSError, OverflowError, UnicodeError) as error:
        hint = (
            "is its client server on (ray start --head --ray-client-server-port) and the port open?"
            if client
            else "has it been started there (ray start --head), and is the port open?"
        )
        raise InputError(f"no Ray cluster answers at {address} ({error}); {hint}") from error
    if not client:
        _greet(address)


def joined_size(room: Room, address: str | None) -> tuple[int, int]:
    """Join a cluster; the number of tasks at a time, and of those that may wait on it.

    Args:
        room: that is asked for.
        address: see `reach`.

    Raises:
        InputError: it can't be joined, or has no room.
    """
    _join(address)
    size = _checked_size(room, address)
    # With fewer than there is room for, those that wait would run beside them.
    return size, size if size == _places(room, _hosts()) else 0


def check(address: str | None, room: Room) -> None:
    """Whether a cluster answers and has room; a client's is joined later.

    Args:
        address: see `reach`.
        room: that is asked for; with patience it may come yet.

    Raises:
        InputError: it doesn't.
    """
    if room.patience or _complete(address).startswith("ray://"):
        reach(address)
    else:
        joined_size(room, address)


def _greet(address: str) -> None:
    """Whether a head answers, and takes this machine's token; Ray itself asks for 20 s or more."""
    # Neither a proxy nor, without certificates, a head behind TLS.
    options = [("grpc.enable_http_proxy", 0)]
    with grpc.insecure_channel(address, options) as channel:
        try:
            channel.unary_unary(_HEALTH)(b"", timeout=_REACH_SECONDS)
        except grpc.RpcError as error:
            unavailable = error.code() == grpc.StatusCode.UNAVAILABLE
            if unavailable and os.environ.get("RAY_USE_TLS", "0") in ("0", "false"):
                raise InputError(f"what answers at {address} is no Ray cluster") from error
            # A head that is slow is left to Ray's patience.
    _ask_status(address)


@functools.cache
def _ask_status(address: str) -> None:
    """Refuse what `ray status` can't look at, with this machine's token; once for each cluster."""
    command = shutil.which("ray", path=Path(sys.executable).parent) or shutil.which("ray")
    if command is None:
        return
    named = [] if address == "auto" else [f"--address={address}"]
    try:
        asked = subprocess.run(
            [command, "status", *named], capture_output=True, text=True, timeout=_STATUS_SECONDS
        )
    except subprocess.TimeoutExpired as error:
        if address == "auto":
            silence = TimeoutError(f"it hasn't answered for {_STATUS_SECONDS:g} s")
            raise _refused(address, silence) from error
        return  # Ray's patience is longer
    if "AuthenticationError" in asked.stderr:
        where = "which this machine is part of" if address == "auto" else f"at {address}"
        raise InputError(
            f"the Ray cluster {where} doesn't take this machine's token; give it the"
            " cluster's (RAY_AUTH_MODE=token, RAY_AUTH_TOKEN=...)"
        )
    if address == "auto" and asked.returncode:
        said = [line for line in asked.stderr.splitlines() if line.strip()] or ["no answer"]
        raise _refused(address, ConnectionError(said[-1]))


def _refused(address: str | None, error: Exception) -> InputError:
    said = " ".join(str(error).split())[:300]
    if address is None:
        return InputError(f"Ray doesn't start here: {said}")
    if address == "auto":
        said += "; start one with `ray start --head`, or leave ray_address out"
    elif _DIED in str(error):
        # https://github.com/ray-project/ray/issues/63202
        return InputError(
            f"can't join the Ray cluster at {address}: its client server died as it started, as it "
            "sometimes does when gRPC handles forks; try again, or start the head with"
            " GRPC_ENABLE_FORK_SUPPORT=0 ray start --head"
        )
    else:
        said += (
            "; if it has a token, give it to this machine too (RAY_AUTH_MODE=token,"
            " RAY_AUTH_TOKEN=...), and to ray://host:port if this machine isn't part of it"
        )
    return InputError(f"can't join the Ray cluster at {address}: {said}")


def _checked_size(room: Room, address: str | None) -> int:
    """The number of tasks at a time, once the cluster has room for them."""
    if room.gpus > 1 and not float(room.gpus).is_integer():
        raise InputError(f"gpus={room.gpus:g} of each worker must be whole, or a share of one GPU")
    needed = room.workers or 1
    if _places(room, _hosts()) < needed and room.patience:
        _wait_for_growth(room, needed)
    hosts = _hosts()
    places = _places(room, hosts)
    if places >= needed:
        return room.workers or places
    raise tasks.no_room(room, address, hosts)


def _hosts() -> list[dict[str, float]]:
    """What each host of the cluster that was joined has."""
    return [node["Resources"] for node in ray.nodes() if node["Alive"]]


def _places(room: Room, hosts: list[dict[str, float]]) -> int:
    """How many tasks the hosts can hold."""
    return sum(_held(host, room) for host in hosts)


def _held(has: dict[str, float], room: Room) -> int:
    counts = [has.get("CPU", 0.0) / room.cpus]
    if room.gpus:
        counts.append(has.get("GPU", 0.0) / room.gpus)
    return int(min(counts))


def _wait_for_growth(room: Room, needed: int) -> None:
    """Ask the cluster to grow, and wait until it has or patience ends."""
    # From within the cluster, since a Ray client can't.
    ask = ray.remote(_ask_autoscaler).options(num_cpus=0)
    # A GPU of 0 would still have it start hosts with GPUs.
    each = {"CPU": room.cpus} | ({"GPU": room.gpus} if room.gpus else {})
    asked = ask.remote([each] * needed)
    try:
        ray.get(asked)
        until = time.monotonic() + room.patience
        while _places(room, _hosts()) < needed and time.monotonic() < until:
            time.sleep(min(1.0, room.patience))
    finally:
        # A demand outlives who made it, and so would the hosts; our tasks keep them from here on.
        with contextlib.suppress(Exception):  # the cluster may be gone
            ray.get(ask.remote([], asked), timeout=_REACH_SECONDS)


def _ask_autoscaler(bundles: list[dict[str, float]], after: None = None) -> None:
    """A task, in a worker: what must fit, whether or not it is in use, `after` an earlier ask."""
    from ray.autoscaler.sdk import request_resources

    request_resources(bundles=bundles)
