"""Workers on a Ray cluster; imported only when they are asked for."""

import asyncio
import atexit
import contextlib
import os
import secrets
import socket
import time
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

# Read while Ray is imported: no rebuilding of `uv run` on the workers.
os.environ.setdefault("RAY_ENABLE_UV_RUN_RUNTIME_ENV", "0")
os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")

import cloudpickle
import grpc
import joblib
import psutil
import ray
from ray._private import accelerators, ray_constants, services
from ray._private.authentication.authentication_token_setup import AuthenticationTokenLoader, Config
from ray._private.grpc_utils import init_grpc_channel
from ray.core.generated import gcs_pb2, gcs_service_pb2, gcs_service_pb2_grpc
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

import resfool
from resfool import interrupts
from resfool.errors import InputError, temporary_folder
from resfool.parallel import tasks
from resfool.parallel.tasks import Died, Failure, Function, Tell
from resfool.places import Folder, processes_in

_REACH_SECONDS = 5.0
_CLIENT_PORT = 10001  # of ray://host
_DIED = "Starting Ray client server failed"
_LONGEST_PLACE = 24  # bytes; Linux takes 107 for a socket, and Ray and we add 83
_joined: str | None = None  # the cluster that this process has joined through us
_after = contextlib.ExitStack()  # what to do when it has left the one that was started here


@dataclass(frozen=True)
class Room:
    """What is asked of a cluster.

    Attributes:
        workers: tasks at a time; None is as many as it can hold.
        cpus: of each task.
        gpus: of each task.
        patience: seconds that it has to grow.
    """

    workers: int | None
    cpus: int
    gpus: float
    patience: float


class Cluster:
    """A crew of Ray tasks, of which as many are under way as there is room for.

    Ray runs them in processes that it keeps, each of which unpacks the function once. Where a
    process or a host is lost, the pool starts the task anew, so Ray itself doesn't.

    Args:
        function: that they run.
        tell: takes messages; None if there are none.
        address: of the cluster; None starts one on this machine.
        room: that is asked for.
    """

    def __init__(
        self, function: Function, tell: Tell | None, address: str | None, room: Room
    ) -> None:
        _join(address)
        self.size = _checked_size(room, address)
        digest, data = tasks.packed(function)
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

    def start(self, ticket: int, item: Any) -> None:
        box = None if self._mail is None else self._mail.box
        ref = self._task.remote(*self._function, cloudpickle.dumps(item), ticket, box)
        self._running[ref] = ticket

    def wait(self) -> list[tuple[int, Any]]:
        while True:
            letters = [] if self._mail is None else [self._mail.next]
            ready, _ = ray.wait([*letters, *self._running], num_returns=1, timeout=1.0)
            ended = [ref for ref in ready if ref in self._running]
            if self._mail is not None and ready:
                self._mail.deliver(all_sent=bool(ended))
            if ended:
                return [(self._running.pop(ref), _outcome(ref)) for ref in ended]

    def leave(self, at_once: bool) -> None:
        for ref in self._running:
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


def _outcome(ref: Any) -> Any:
    try:
        return cloudpickle.loads(ray.get(ref))
    except ray.exceptions.RayTaskError as error:  # of what surrounds the function
        return Failure.of(error.cause if error.cause is not None else error)
    except ray.exceptions.RuntimeEnvSetupError as error:
        return Failure.of(error)
    except ray.exceptions.RayError as error:
        return Died("WorkerDied", type(error).__name__)


class _Mail:
    """Messages from the workers, in an actor on the driver's host that outlives any of them."""

    def __init__(self, tell: Tell) -> None:
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
                if self._tell(ticket, cloudpickle.loads(letter)):
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
    _leave()
    settings: dict[str, Any] = {"address": wanted, "log_to_driver": False}
    settings |= {"logging_level": "error", "configure_logging": True}
    # The package itself travels, so that a host needs what it depends on and nothing else.
    settings["runtime_env"] = {"py_modules": [str(Path(resfool.__file__).parent)]}
    try:
        with interrupts.kept(), _of_its_own(settings) if address is None else nullcontext():
            ray.init(**settings)
    except InputError:
        raise
    except Exception as error:
        _leave()
        raise _refused(address, error) from error
    _joined = wanted


def _leave() -> None:
    """Leave a cluster; one that was started here ends, and nothing of it stays."""
    ray.shutdown()
    _after.close()


@contextlib.contextmanager
def _of_its_own(settings: dict[str, Any]) -> Iterator[None]:
    """Let Ray start for this process alone: a private folder, a new token, no port to the network.

    Ray itself listens on all interfaces, and writes a token into the user's home for others to
    read if their rights let them.
    """
    folder = _short_folder()
    _after.callback(folder.remove)
    _after.callback(_end_processes_in, folder.path)
    atexit.register(_leave)  # before the folder goes
    before = {name: os.environ.get(name) for name in ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN")}
    _after.callback(_authenticate, before)
    _authenticate({"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)})
    settings |= {"num_cpus": joblib.cpu_count(), "include_dashboard": False}
    settings["_temp_dir"] = str(folder.path / "r")  # to which Ray lets everybody in
    networked = ray_constants.ENABLE_RAY_CLUSTER
    ray_constants.ENABLE_RAY_CLUSTER = False  # its own address is 127.0.0.1 then
    try:
        yield
    finally:
        ray_constants.ENABLE_RAY_CLUSTER = networked


def _authenticate(variables: dict[str, str | None]) -> None:
    """Set the variables of Ray's tokens, and let it read them anew."""
    for name, value in variables.items():
        if value is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = value
    Config.initialize("")
    AuthenticationTokenLoader.instance().reset_cache()


def _end_processes_in(folder: Path) -> None:
    """End what Ray leaves behind as it ends: workers that have only begun."""
    late = processes_in(folder)
    for process in late:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()
    psutil.wait_procs(late, timeout=5)


def _short_folder() -> Folder:
    """A folder that leaves room for the paths of Ray's sockets, where these are files."""
    if os.name != "posix":
        return Folder()
    for place in (temporary_folder(), "/tmp", "/var/tmp", "/dev/shm"):
        if len(os.fsencode(place)) <= _LONGEST_PLACE:
            with contextlib.suppress(InputError):
                return Folder(Path(place))
    raise InputError(
        f"Ray doesn't start here: it needs a folder for temporary files whose path has at most "
        f"{_LONGEST_PLACE} bytes, and TMPDIR names {temporary_folder()}"
    )


def _complete(address: str | None) -> str:
    """An address as Ray wants it."""
    if address is None:
        return "local"
    if address == "auto":
        address = os.environ.get("RAY_ADDRESS") or _found()
    host = address.removeprefix("ray://")
    return f"{address}:{_CLIENT_PORT}" if host != address and host and ":" not in host else address


def _found() -> str:
    """The address of the cluster that this machine is part of, which may have died since."""
    try:
        return str(services.canonicalize_bootstrap_address("auto"))
    except ConnectionError as error:
        raise _refused("auto", error) from error


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


def check(address: str | None, room: Room) -> None:
    """Whether a cluster answers and has room, as far as that can be told without joining it.

    Args:
        address: see `reach`.
        room: that is asked for; with patience it may come yet.

    Raises:
        InputError: it doesn't.
    """
    reach(address)
    wanted = _complete(address)
    if room.patience or wanted.startswith("ray://"):
        return
    if wanted != "local":
        hosts = _hosts_at(wanted)
    elif ray.is_initialized():
        hosts = _hosts()
    else:
        manager = accelerators.get_accelerator_manager_for_resource("GPU")
        gpus = manager.get_current_node_num_accelerators()
        hosts = [{"CPU": float(joblib.cpu_count()), "GPU": float(gpus)}]
    if _places(room, hosts) < (room.workers or 1):
        raise _no_room(room, address, hosts)


def _hosts_at(address: str) -> list[dict[str, float]]:
    """What the hosts of a cluster have, by its head."""
    with init_grpc_channel(address, ray_constants.GLOBAL_GRPC_OPTIONS) as channel:
        head = gcs_service_pb2_grpc.NodeInfoGcsServiceStub(channel)
        found = head.GetAllNodeInfo(gcs_service_pb2.GetAllNodeInfoRequest(), timeout=_REACH_SECONDS)
    alive = [node for node in found.node_info_list if node.state == gcs_pb2.GcsNodeInfo.ALIVE]
    return [dict(node.resources_total) for node in alive]


def _greet(address: str) -> None:
    """Whether a head answers, and takes this machine's token; Ray itself asks for 20 s or more."""
    with init_grpc_channel(address, ray_constants.GLOBAL_GRPC_OPTIONS) as channel:
        head = gcs_service_pb2_grpc.NodeInfoGcsServiceStub(channel)
        try:
            head.CheckAlive(gcs_service_pb2.CheckAliveRequest(), timeout=_REACH_SECONDS)
        except grpc.RpcError as error:
            if error.code() == grpc.StatusCode.UNAUTHENTICATED:
                raise InputError(
                    f"the Ray cluster at {address} doesn't take this machine's token; give it the"
                    " cluster's (RAY_AUTH_MODE=token, RAY_AUTH_TOKEN=...)"
                ) from error
            if error.code() == grpc.StatusCode.UNAVAILABLE:
                raise InputError(f"what answers at {address} is no Ray cluster") from error
            # A head that is slow is left to Ray's patience.


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
    raise _no_room(room, address, hosts)


def _no_room(room: Room, address: str | None, hosts: list[dict[str, float]]) -> InputError:
    cpus, gpus = (sum(host.get(kind, 0.0) for host in hosts) for kind in ("CPU", "GPU"))
    where = "here" if address is None else f"at {address}"
    each = f"{room.cpus} CPU" + f" and {room.gpus:g} GPU" * bool(room.gpus)
    return InputError(
        f"{room.workers or 1} workers of {each} each don't fit the Ray cluster {where}, which has"
        f" {cpus:g} CPUs and {gpus:g} GPUs on {len(hosts)} hosts; ask for"
        " less, or give a cluster that grows by itself some seconds of patience"
    )


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
