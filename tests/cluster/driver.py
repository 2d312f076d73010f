"""What runs on the first host: `python -m tests.cluster.driver WORK ADDRESS`.

Prints a line for everything that happens, and a JSON object with what was found at the end.
"""

import contextlib
import functools
import hashlib
import json
import os
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cloudpickle
import numpy as np

from resfool import monitor, parallel
from resfool.errors import InputError
from resfool.parallel import Report
from tests.conftest import ROOT

# The other host has no tests.
cloudpickle.register_pickle_by_value(sys.modules[__name__])

IMAGES = 40
STEPS = 12


def solve(address: str) -> dict[str, Any]:
    """COBYLA on a small network, on the cluster and in one process here."""
    import keras

    layers = [keras.layers.Flatten(), keras.layers.Dense(12, "relu"), keras.layers.Dense(4)]
    return _solved_twice(address, layers, "cobyla", block=1)


def closest(address: str) -> dict[str, Any]:
    """`universal` by the default solver, two images a block, as a user runs it: there and here."""
    words = ["universal", "--solver=closest", "--test_samples=50", "--draws=1", "--rank=1"]
    words += ["--ranks=2", "--patterns=checkerboard"]
    return _run_twice(address, words, "smallest_perturbations.csv", "ranks.csv", "perturbation.npy")


def _solved_twice(address: str, layers: list[Any], solver: str, block: int) -> dict[str, Any]:
    import keras

    from resfool.attacks import minimal
    from resfool.classifiers import spreading

    keras.utils.set_random_seed(0)
    model = keras.Sequential([keras.Input((6, 6, 1)), *layers])
    images = np.random.default_rng(0).random((IMAGES, 6, 6, 1), np.float32)
    hosts: Counter[tuple[str, bool]] = Counter()
    spread: dict[str, Any] = {"backend": "ray", "ray_address": address}
    on_the_cluster = functools.partial(_located_map, hosts, parallel.map, **spread)
    serial = functools.partial(parallel.map, backend="serial")
    blocks = spreading.Blocks((images,), block)
    options = {"solver": solver, "batch_size": block}
    found = [
        spreading.joined(
            spreading.in_blocks(
                model,
                minimal.solved_block,
                blocks,
                options,
                workers=spreading.Workers(map, spreading.Sent.of(model)),
                progress=_say_progress if map is on_the_cluster else monitor.quiet,
            )
        )
        for map in (on_the_cluster, serial)
    ]
    digests = [hashlib.sha256(f["perturbations"].tobytes()).hexdigest() for f in found]
    return {
        "digests": digests,
        "images": [len(f["norms"]) for f in found],
        "flipped": [int(f["flipped"].sum()) for f in found],
        "hosts": [[*where, count] for where, count in hosts.items()],
    }


def attack(address: str) -> dict[str, Any]:
    """`attack` by AutoAttack, two images a block, as a user runs it: there and here."""
    words = ["attack", "--method=standard", "--epsilons=0.02,0.1"]
    return _run_twice(address, words, "images.csv", "images.csv", "rates.csv", "spectrum.csv")


def _run_twice(address: str, words: list[str], images: str, *others: str) -> dict[str, Any]:
    """A command on the cluster and in one process here.

    Args:
        address: of the cluster.
        words: of the command beside the model, the images and where it runs.
        images: the name of a table with a row for each image.
        *others: names of what else it leaves that must be the same.
    """
    import mlflow

    from resfool.commands import main

    words = [*words, "--model=theirs.keras", "--dataset=digits", f"--samples={IMAGES}"]
    words += ["--block_images=2"]
    hosts: Counter[tuple[str, bool]] = Counter()
    digests, flipped, rows, plainly = [], [], [], parallel.map
    with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):
        os.environ["MLFLOW_TRACKING_URI"] = f"sqlite:///{folder}/mlflow.db"
        _trained().save("theirs.keras")
        for where in (["--backend=ray", f"--ray_address={address}"], ["--backend=serial"]):
            blocks: dict[int, str] = {}
            located = functools.partial(_located_map, hosts, plainly, say=True)
            # The commands look it up here.
            parallel.map = functools.partial(
                _digested_map, blocks, located if where[1:] else plainly
            )
            main([*words, *where])
            (run,) = mlflow.MlflowClient().search_runs(["0"], max_results=1)
            left = {}
            for name in (images, *others):
                path = mlflow.artifacts.download_artifacts(f"runs:/{run.info.run_id}/{name}")
                left[name] = Path(path).read_bytes()
            rows.append(left[images].count(b"\n") - 1)
            same = {name: hashlib.sha256(left[name]).hexdigest() for name in others}
            whole = json.dumps([sorted(blocks.items()), same])
            digests.append(hashlib.sha256(whole.encode()).hexdigest())
            rates = ("final_fooling_rate", "fooling_rate")
            flipped.append(next(run.data.metrics[r] for r in rates if r in run.data.metrics))
    found = [[*where, count] for where, count in hosts.items()]
    return {"digests": digests, "images": rows, "flipped": flipped, "hosts": found}


def _trained() -> Any:
    """A small network that knows the digits, so that there is something to attack."""
    import keras

    from resfool.datasets import sets

    keras.utils.set_random_seed(0)
    layers = [keras.layers.Conv2D(8, 3, activation="relu"), keras.layers.Flatten()]
    model = keras.Sequential([keras.Input((8, 8, 1)), *layers, keras.layers.Dense(10)])
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile("adam", loss)
    data = sets.load("digits").train
    model.fit(data.images, data.labels, epochs=5, verbose=0)
    return model


def _digested_map(
    blocks: dict[int, str], map: Callable[..., list[Any]], *given: Any, **more: Any
) -> list[Any]:
    """A map that notes the digest of each block's arrays as it comes."""
    keep = more.pop("keep")

    def come(number: int, found: Any) -> None:
        sha = hashlib.sha256()
        for name in sorted(found.keys() - {"seconds"}):
            sha.update(name.encode() + np.ascontiguousarray(found[name]).tobytes())
        blocks[number] = sha.hexdigest()
        keep(number, found)

    return map(*given, keep=come, **more)


def _located_map(
    hosts: Counter[tuple[str, bool]],
    map: Callable[..., list[Any]],
    function: Callable[[Any], Any],
    items: Any,
    *,
    keep: Callable[[int, Any], None],
    say: bool = False,
    **more: Any,
) -> list[Any]:
    """A map that counts on which hosts rows were computed, and says it if nobody else does."""

    def come(number: int, result: tuple[tuple[str, bool], Any]) -> None:
        hosts[result[0]] += items.count(number)
        keep(number, result[1])
        if say:
            _say_progress(items.count(number))

    results = map(functools.partial(_located, function), items, keep=come, **more)
    return [result and result[1] for result in results]


def _located(function: Callable[[Any], Any], item: Any) -> tuple[tuple[str, bool], Any]:
    """A result, on which host it was computed, and whether that host sees the checkout."""
    import ray

    result = function(item)
    time.sleep(0.3)
    here = ray.get_runtime_context().get_node_id()
    return (here, (Path(ROOT) / "resfool").exists()), result


def _say_progress(more: int, text: str = "", /) -> None:
    print("solved", more, flush=True)


def trials(address: str) -> dict[str, Any]:
    """Two tasks that report their steps."""
    heard: dict[int, list[int]] = {0: [], 1: []}
    restarts: list[list[Any]] = []
    hosts: set[str] = set()

    def receive(place: int, message: tuple[str, int]) -> bool:
        hosts.add(message[0])
        heard[place].append(message[1])
        print("step", place, *message, flush=True)
        return False

    def restarted(place: int) -> None:
        restarts.append([place, heard[place]])
        heard[place] = []

    with parallel.Pool(
        _trial, backend="ray", ray_address=address, receive=receive, restarted=restarted
    ) as pool:
        for place in heard:
            pool.submit(place, STEPS)
        outcomes = dict(pool.finished())
    return {
        "heard": list(heard.values()),
        "outcomes": [str(outcomes[place]) for place in heard],
        "restarts": restarts,
        "hosts": len(hosts),
    }


def _trial(steps: int, report: Report) -> str:
    import ray

    for step in range(steps):
        report((ray.get_runtime_context().get_node_id(), step))
        time.sleep(0.5)
    return "done"


def growth(address: str) -> dict[str, Any]:
    """Two workers of a cluster that has one CPU: at once, and once it has grown."""
    asked: dict[str, Any] = {"backend": "ray", "ray_address": address, "workers": 2}
    parallel.map(abs, [0], backend="ray", ray_address=address)
    began, refusal = time.monotonic(), ""
    try:
        parallel.map(abs, [0], **asked)
    except InputError as error:
        refusal = str(error)
    refused = time.monotonic() - began
    print("refused", flush=True)
    hosts = parallel.map(_where, range(IMAGES), patience=60, **asked)
    return {"refusal": refusal, "seconds": refused, "hosts": list(Counter(hosts).values())}


def _where(item: int) -> str:
    import ray

    time.sleep(0.5)
    return str(ray.get_runtime_context().get_node_id())


def runs(store: str) -> list[dict[str, Any]]:
    """What a tracking server has: every run, and the artifacts of its models."""
    import mlflow

    client = mlflow.MlflowClient(store)
    (experiment,) = client.search_experiments()
    found = client.search_runs([experiment.experiment_id])
    models = client.search_logged_models([experiment.experiment_id])
    artifacts = {m.source_run_id: client.list_logged_model_artifacts(m.model_id) for m in models}
    return [
        {
            "status": run.info.status,
            "child": "mlflow.parentRunId" in run.data.tags,
            "model": [file.path for file in artifacts.get(run.info.run_id, [])],
        }
        for run in found
    ]


if __name__ == "__main__":
    work, where = sys.argv[1:]
    works: dict[str, Callable[[str], Any]]
    works = {"solve": solve, "closest": closest, "attack": attack, "trials": trials}
    works |= {"growth": growth, "runs": runs}
    print(json.dumps(works[work](where)), flush=True)
