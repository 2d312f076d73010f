"""A crew on Ray: where it is, and all that goes to it and back as bytes."""

import functools
import sys
from typing import Any

import cloudpickle
import joblib

from resfool.parallel import tasks
from resfool.parallel.tasks import Crew, Failure, Function, Room, Tell, TellPacked


class OnRay:
    """A crew of Ray tasks.

    Args:
        function: that they run.
        tell: takes messages; None if there are none.
        address: of the cluster; None is the one that the caller has joined, or starts one here.
        room: that is asked for.

    Raises:
        InputError: the cluster can't be reached, or has no room.
    """

    def __init__(
        self, function: Function, tell: Tell | None, address: str | None, room: Room
    ) -> None:
        told: TellPacked | None = None
        if tell is not None:
            told = functools.partial(_told, tell)
        self._crew: Crew  # whose items and results are bytes
        if _is_its_own(address):
            from resfool.parallel.own_ray import OwnRay

            self._crew = OwnRay(tasks.packed(function), told, room)
        else:
            from resfool.parallel.cluster import Cluster

            self._crew = Cluster(tasks.packed(function), told, address, room)
        self.size, self.ahead = self._crew.size, self._crew.ahead

    def start(self, ticket: int, item: Any) -> None:
        self._crew.start(ticket, cloudpickle.dumps(item))

    def wait(self) -> list[tuple[int, Any]]:
        return [
            (ticket, outcome if isinstance(outcome, Failure) else cloudpickle.loads(outcome))
            for ticket, outcome in self._crew.wait()
        ]

    def leave(self, at_once: bool) -> None:
        self._crew.leave(at_once)


def _told(tell: Tell, ticket: int, letter: bytes) -> bool:
    return tell(ticket, cloudpickle.loads(letter))


def _is_its_own(address: str | None) -> bool:
    """Whether Ray is to be started here, for this process alone."""
    if address is not None:
        return False
    ray = sys.modules.get("ray")
    if ray is None or not ray.is_initialized():
        return True
    from resfool.parallel import cluster

    return not cluster.is_callers()


def check(address: str | None, room: Room) -> None:
    """Whether a cluster answers and has room, before a crew is opened on it.

    Args:
        address: auto, host:port or ray://host:port; None is this machine.
        room: that is asked for; with patience it may come yet.

    Raises:
        InputError: it doesn't, as far as that can be told by now.
    """
    if not _is_its_own(address):
        from resfool.parallel import cluster

        cluster.check(address, room)
    elif room.gpus:  # only Ray knows of these
        from resfool.parallel import own_ray

        own_ray.check(room)
    elif (room.workers or 1) * room.cpus > joblib.cpu_count():
        raise tasks.no_room(room, None, [{"CPU": float(joblib.cpu_count())}])
