"""Ray clusters that aren't there, are others', have no room, or grow while they are waited for."""

import contextlib
import http.server
import json
import os
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from resfool import parallel
from resfool.errors import InputError
from resfool.parallel import Report, own_ray
from tests.ray_cluster import TOKEN

# Ray reads them once, as it is imported, and without a token it would make one for the user.
os.environ |= TOKEN


def idle(item: Any, report: Report) -> None:
    """Does nothing."""


@pytest.mark.parametrize(
    ("address", "message"),
    [
        ("127.0.0.1:1", "no Ray cluster answers at 127.0.0.1:1"),
        ("ray://127.0.0.1:1", "is its client server on"),
        ("ray://nowhere.invalid", "no Ray cluster answers at ray://nowhere.invalid:10001"),
        ("nowhere.invalid:6379", "no Ray cluster answers at nowhere.invalid:6379"),
        ("somewhere", "must be auto, host:port or ray://host:port"),
        ("ray://", "must be auto, host:port or ray://host:port"),
    ],
)
def test_an_address_without_a_cluster_is_refused(address: str, message: str) -> None:
    began = time.monotonic()
    with pytest.raises(InputError) as caught:
        parallel.map(abs, [1], backend="ray", ray_address=address)
    assert message in str(caught.value)
    assert time.monotonic() - began < 25, "Ray's own wait of 30 s was waited for"


def test_a_cluster_that_has_died_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:1")
    with pytest.raises(InputError, match=r"no Ray cluster answers at 127\.0\.0\.1:1"):
        parallel.map(abs, [1], backend="ray", ray_address="auto")


@pytest.mark.parametrize("token", [{"RAY_AUTH_TOKEN": "another"}, {"RAY_AUTH_MODE": "disabled"}])
def test_a_wrong_token_is_refused(cluster: str, token: dict[str, str]) -> None:
    # In a process of its own, since Ray reads the token once.
    script = """if True:
        import sys, time
        from resfool import errors, parallel
        import resfool.parallel.cluster
        began = time.monotonic()
        try:
            parallel.map(abs, [1], backend="ray", ray_address=sys.argv[1])
        except errors.InputError as error:
            print(time.monotonic() - began, error)
        """
    command = [sys.executable, "-c", script, cluster]
    ran = subprocess.run(command, env=os.environ | token, capture_output=True, text=True)
    seconds, _, sentence = ran.stdout.partition(" ")
    refusal = f"the Ray cluster at {cluster} doesn't take this machine's token; "
    assert sentence.startswith(refusal), ran
    assert float(seconds) < 25


def test_another_service_is_no_cluster() -> None:
    with http.server.HTTPServer(("127.0.0.1", 0), http.server.BaseHTTPRequestHandler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        address = f"127.0.0.1:{server.server_port}"
        with pytest.raises(InputError, match=f"what answers at {address} is no Ray cluster"):
            parallel.map(abs, [1], backend="ray", ray_address=address)
        server.shutdown()


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"workers": 9}, "9 workers of 1 CPU each don't fit the Ray cluster at"),
        ({"workers": 1, "cpus": 4}, "1 workers of 4 CPU each don't fit"),
        ({"gpus": 1}, "1 workers of 1 CPU and 1 GPU each don't fit"),
        ({"workers": 3, "patience": 1.0}, "which has 2 CPUs and 0 GPUs on 1 hosts"),
    ],
)
def test_what_has_no_room_is_refused(
    cluster: str, monkeypatch: pytest.MonkeyPatch, asked: dict[str, Any], message: str
) -> None:
    from resfool.parallel import cluster as joining

    clock = Clock()
    monkeypatch.setattr(joining, "time", clock)
    with pytest.raises(InputError) as caught:
        parallel.Pool(idle, backend="ray", ray_address=cluster, **asked)
    assert message in str(caught.value)
    assert clock.now == asked.get("patience", 0), "it waits as long as it was told to"
    if not clock.now:  # the same is said before anybody has joined
        with pytest.raises(InputError) as early:
            parallel.check("ray", ray_address=cluster, **asked)
        assert str(early.value) == str(caught.value)


def test_room_on_this_machine_is_seen_before_ray_starts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(own_ray, "_process", lambda: pytest.fail("it has started"))
    parallel.check("ray")
    with pytest.raises(InputError, match="9999 workers of 1 CPU each don't fit the Ray cluster h"):
        parallel.check("ray", workers=9999)


class Clock:
    """Stands for `time`: only what sleeps makes it go on, so a slow machine doesn't."""

    now = 0.0

    def monotonic(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds


def growing(
    monkeypatch: pytest.MonkeyPatch, noted: Path, asked: dict[str, Any], look: Any
) -> tuple[parallel.Pool | None, list[Any]]:
    """A pool, if there was room, and the demand that stood at each look at the cluster's hosts.

    Args:
        monkeypatch: to look on.
        noted: file in which the demand is noted, as it reaches Ray.
        asked: of the pool.
        look: is given the hosts, and how often there was a demand; what it returns is believed.
    """
    import ray

    from resfool.parallel import cluster as joining

    demands: list[Any] = []
    hosts = ray.nodes

    def ask_autoscaler(bundles: list[dict[str, float]], after: None = None) -> None:
        from ray.autoscaler.sdk import request_resources

        request_resources(bundles=bundles)
        noted.write_text(json.dumps(bundles))

    def demand() -> Any:
        return json.loads(noted.read_text()) if noted.exists() else []

    def nodes() -> Any:
        demands.append(demand())
        return look(hosts(), sum(map(bool, demands)))

    with monkeypatch.context() as context:
        context.setattr(ray, "nodes", nodes)
        context.setattr(joining, "_ask_autoscaler", ask_autoscaler)
        pool = None
        with contextlib.suppress(InputError, KeyboardInterrupt):
            pool = parallel.Pool(idle, backend="ray", **asked)
    return pool, [*demands, demand()]


def ever_the_same(hosts: list[Any], demands: int) -> list[Any]:
    return hosts


def twice_as_many(hosts: list[Any], demands: int) -> list[Any]:
    return hosts * (1 + (demands > 1))


def interrupted(hosts: list[Any], demands: int) -> list[Any]:
    if demands == 2:
        raise KeyboardInterrupt
    return hosts


@pytest.mark.parametrize("look", [ever_the_same, twice_as_many, interrupted])
def test_growth_is_asked_for_only_while_it_is_waited_for(
    cluster: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, look: Any
) -> None:
    asked = {"ray_address": cluster, "workers": 3, "patience": 0.2}
    pool, demands = growing(monkeypatch, tmp_path / "demand", asked, look)
    assert (pool is not None) == (look is twice_as_many)
    assert demands[0] == demands[-1] == []
    assert [{"CPU": 1}] * 3 in demands


@pytest.mark.slow
def test_a_known_fault_of_rays_client_server_comes_with_its_remedy(
    cluster: str, client_port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    import ray

    def died(**arguments: Any) -> None:
        raise ConnectionAbortedError("RuntimeError: Starting Ray client server failed. See ...")

    address = f"ray://127.0.0.1:{client_port}"
    with monkeypatch.context() as context:
        context.setattr(ray, "init", died)
        with pytest.raises(InputError, match="GRPC_ENABLE_FORK_SUPPORT=0 ray start --head"):
            parallel.Pool(idle, backend="ray", ray_address=address)


@pytest.mark.slow
def test_a_cluster_grows_for_a_client_too(
    cluster: str, client_port: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    address = f"ray://127.0.0.1:{client_port}"
    asked = {"ray_address": address, "workers": 3, "patience": 0.2}
    _, demands = growing(monkeypatch, tmp_path / "demand", asked, ever_the_same)
    assert [{"CPU": 1}] * 3 in demands and demands[-1] == []
