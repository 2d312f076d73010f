"""Kills commands at random moments, gives them again, and looks whether anything shows of it.

    python -m tests.endurance --kills 200 --seed 0

Each command is killed by SIGKILL, with all that it has started, at a moment drawn over the time it
takes; then the same one runs to its end, a training with the `resume` that its checkpoint is for.
The solves by `closest` are killed alone, so that their workers are left to themselves, at a moment
drawn over their solving, of which each block is counted where it is solved; their bits are compared
with those of one worker. It prints what was found by command.
"""

import argparse
import contextlib
import hashlib
import itertools
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import chdir, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mlflow import MlflowClient
from mlflow.entities import Run

from resfool import blocks
from tests import counted
from tests.conftest import copy_database
from tests.processes import Process

_QUICK = ["--arch=mlp", "--dataset=digits", "--width=8"]
_TRAINING = [*_QUICK, "--depth=2", "--steps=300", "--eval_every=100"]
_FOOLED = ["--samples=20", "--model=runs:/{model}/model"]
_SPREAD = [
    *("--model=runs:/{model}/model", "--samples=240", "--test_samples=20", "--rank=3"),
    *("--draws=2", "--patterns=checkerboard", "--block_images=4", "--solver=closest"),
]
_BLOCKS = 60  # of these
_UNDER_WAY = 4  # of them at most: those of two workers and, on Ray, those that wait for these
COMMANDS = {
    "train": [*_TRAINING, "--checkpoint_seconds=0", "--seed=1"],
    "attack": [*_FOOLED, "--epsilons=0.05,0.1"],
    "universal": [*_FOOLED, "--test_samples=20", "--rank=3", "--draws=4"],
    "universal-workers": [
        *("--model=runs:/{model}/model", "--samples=40", "--test_samples=20", "--rank=3"),
        *("--draws=4", "--workers=2", "--block_images=2", "--solver=cobyla"),
    ],
    "universal-closest": [*_SPREAD, "--backend=joblib", "--workers=2"],
    "universal-closest-ray": [*_SPREAD, "--backend=ray", "--workers=2"],
    "mnist": ["--samples=60", "--draws=2", "--steps=10", "--rank=3"],
    "sweep": [*_QUICK, "--depth=1,2", "--steps=100", "--backend=serial"],
    "tune": [*_TRAINING, "--search=learning_rate", "--trials=3", "--backend=serial"],
    "reproduce": ["--target=figure7", "--scale=quick"],
}
_GOES_ON = {"sweep", "reproduce"}  # what is finished isn't done again
_COUNTED = {"universal-closest", "universal-closest-ray"}
# By which the checkpoint is used up.
_RESUMED = {"train", "reproduce", "universal", "universal-workers", *_COUNTED}
_DRAWN_ANEW = {"tune"}  # its figures hang on what was tried before
# The reproduction made as small as the others.
_SMALL = """
from dataclasses import replace
from resfool.reproduction import plan
plan.SCALES["quick"] = replace(
    plan.SCALES["quick"],
    digits={"dataset": "digits", "width": (16,), "depth": 2, "steps": 200, "eval_every": 50},
    universal={"samples": 60, "test_samples": 40, "draws": 2, "ranks": (1, 3), "rank": 3},
)
"""
Curves = Mapping[str, Sequence[tuple[int, float]]]


@dataclass
class Found:
    """What was seen of one command: how often it was killed, and what was wrong afterwards."""

    seconds: float = 0.0  # that it takes, or its solving if that is counted
    kills: int = 0
    resumed: int = 0
    kept: list[int] = field(default_factory=list)  # blocks, when it was killed
    twice: list[int] = field(default_factory=list)  # blocks that were begun by both commands
    wrong: Counter[str] = field(default_factory=Counter)


@dataclass(frozen=True)
class Expected:
    """What a command leaves that nobody kills.

    Attributes:
        curves: by its runs' names.
        bits: the digest of its matrix; empty if that isn't looked at.
    """

    curves: Mapping[str, Curves]
    bits: str = ""


class Place:
    """A folder with a store of some kind, in which a network is trained already.

    Args:
        kind: sqlite, server or files.
        trained: the folder that it is made from; None to train the network here.
    """

    def __init__(self, kind: str, folder: Path, trained: "Place | None" = None) -> None:
        self.folder, self.kind = folder, kind
        self.temporary = folder / "temporary"
        self.uri = f"sqlite:///{folder}/mlflow.db" if kind != "files" else f"file://{folder}/store"
        self.temporary.mkdir(parents=True)
        if trained is None:
            process = self.run("train", _TRAINING)
            assert process.wait() == 0, process.printed()
            self.model = self.runs()[0].info.run_id
        elif kind == "files":
            shutil.copytree(trained.folder / "store", folder / "store")
            self.model = trained.model
        else:
            copy_database(trained.folder / "mlflow.db", folder / "mlflow.db")
            self.model = trained.model

    def run(self, command: str, words: Sequence[str]) -> Process:
        """Start a command, in a process group of its own."""
        before = {"reproduce": _SMALL} | dict.fromkeys(_COUNTED, counted.counting(0.1))
        name = command.partition("-")[0]
        call = f"from resfool.commands import main; main({[name, *words]!r})"
        with chdir(self.folder), _environment(self):
            return Process(f"import os; os.setsid()\n{before.get(command, '')}\n{call}")

    @property
    def client(self) -> MlflowClient:
        return MlflowClient(self.uri)

    def runs(self) -> list[Run]:
        """All runs but that of the network that was there before."""
        known = getattr(self, "model", "")
        return [run for run in self.client.search_runs(["0"]) if run.info.run_id != known]

    def curves(self, run: Run) -> Curves:
        names = [n for n in run.data.metrics if "seconds" not in n and not n.startswith("system/")]
        history = {n: self.client.get_metric_history(run.info.run_id, n) for n in names}
        return {n: sorted((p.step, p.value) for p in points) for n, points in history.items()}

    def matrix(self, run: Run) -> str:
        """The digest of a run's matrix of perturbations."""
        path = self.client.download_artifacts(run.info.run_id, "matrix", str(self.folder))
        return hashlib.sha256(blocks.read(Path(path))["rows"][:].tobytes()).hexdigest()

    def to_resume(self) -> list[str]:
        """The word by which a training that was killed goes on."""
        left = [path.parent.name for path in self.folder.glob("checkpoints/*/checkpoint.npz")]
        return [f"--resume={run_id}" for run_id in left]


@contextmanager
def _environment(place: Place) -> Iterator[None]:
    new = {
        "MLFLOW_TRACKING_URI": place.uri,
        "MLFLOW_ALLOW_FILE_STORE": "true",
        "TMPDIR": str(place.temporary),
        "TF_NUM_INTRAOP_THREADS": "1",
        "OMP_NUM_THREADS": "1",
        "RAY_USAGE_STATS_ENABLED": "0",
    }
    earlier = dict(os.environ)
    os.environ.update(new)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(earlier)


def check(place: Place, command: str, expected: Expected) -> Iterator[str]:
    """What is wrong after the second time, in a few words each."""
    runs = place.runs()
    statuses = Counter(run.info.status for run in runs)
    if statuses["RUNNING"]:
        yield "a run is RUNNING"
    for run in runs:
        if any(len({s for s, _ in points}) < len(points) for points in place.curves(run).values()):
            yield "a curve has a step twice"
    finished = [run for run in runs if run.info.status == "FINISHED"]
    if any(place.matrix(run) != expected.bits for run in finished if expected.bits):
        yield "other bits than one worker has"
    names = Counter(str(run.info.run_name) for run in finished)
    if command not in _DRAWN_ANEW:
        if names.keys() != expected.curves.keys():
            yield "other runs than without a kill"
        if any(
            place.curves(run) != expected.curves.get(str(run.info.run_name)) for run in finished
        ):
            yield "other figures than without a kill"
    parts = Counter(r.info.run_name for r in finished if "mlflow.parentRunId" in r.data.tags)
    if command in _GOES_ON and max(parts.values(), default=0) > 1:
        yield "a finished run was made again"
    for model in place.client.search_logged_models(["0"]):
        if str(model.status) not in ("READY", "FAILED"):
            yield f"a model is {model.status}"
    for pattern in ("**/*.part", "unsent/*", *(["checkpoints/*"] if command in _RESUMED else [])):
        if list(place.folder.glob(pattern)):
            yield f"{pattern} is left"
    if list(place.temporary.iterdir()):
        yield "temporary files are left"


def kill_and_repeat(place: Place, command: str, delay: float, found: Found) -> Iterator[str]:
    """Kill a command after some seconds, and run it again; what is wrong then."""
    words = [word.format(model=place.model) for word in COMMANDS[command]]
    process = place.run(command, words)
    if command in _COUNTED:
        while process.poll() is None and not counted.noted(place.folder):
            time.sleep(0.02)
    until = time.monotonic() + delay
    while process.poll() is None and time.monotonic() < until:
        time.sleep(0.02)
    if process.poll() is None:
        kill = os.kill if command in _COUNTED else os.killpg
        kill(process.pid, signal.SIGKILL)
        process.wait()
        found.kills += 1
        if command in _COUNTED:
            found.kept.append(counted.kept(place.folder))
    elif command not in _COUNTED:  # other work has left it more of the machine than it had before
        found.seconds = time.monotonic() - until + delay
    if command == "train" and (resume := place.to_resume()):
        words += resume
        found.resumed += 1
    again = place.run(command, words)
    if again.wait(300) != 0:
        yield f"exit code {again.returncode}: {again.printed().strip().splitlines()[-1][:200]}"
    if command in _COUNTED:
        yield from _recount(place, process, found)


def _recount(place: Place, killed: Process, found: Found) -> Iterator[str]:
    """What is wrong with who has solved which blocks, and with the workers of the killed one."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(killed.pid, signal.SIGKILL)
        yield "a worker is left"
    if killed.returncode == 0:
        return
    one, again = [*counted.noted(place.folder), counted.Blocks([], [])][:2]
    found.twice.append(len(set(one.began) & set(again.began)))
    if len({*one.ended, *again.ended}) != _BLOCKS:
        yield "a block is missing"
    if len(again.began) != _BLOCKS - found.kept[-1] or len({*again.began}) != len(again.began):
        yield "a block that was kept was solved again"
    if found.twice[-1] > _UNDER_WAY:
        yield "more was solved twice than can have been under way"


def undisturbed(place: Place, command: str) -> tuple[float, Expected]:
    """How long a command takes, or its solving if that is counted, and what it leaves."""
    words = [word.format(model=place.model) for word in COMMANDS[command]]
    if command in _COUNTED:
        words[words.index("--workers=2")] = "--workers=1"
    began = time.monotonic()
    process = place.run(command, words)
    seconds = _solving(place, process) if command in _COUNTED else 0.0
    assert process.wait() == 0, process.printed()
    seconds = seconds or time.monotonic() - began
    curves = {str(run.info.run_name): place.curves(run) for run in place.runs()}
    bits = place.matrix(place.runs()[0]) if command in _COUNTED else ""
    return seconds, Expected(curves, bits)


def _solving(place: Place, process: Process) -> float:
    """Wait until all blocks are solved by one worker; the seconds in which two would do it."""
    began = time.monotonic()
    while process.poll() is None:
        noted = counted.noted(place.folder)
        if not noted:
            began = time.monotonic()
        elif len(noted[0].ended) == _BLOCKS:
            break
        time.sleep(0.02)
    return (time.monotonic() - began) / 2


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--commands", nargs="+", choices=COMMANDS, default=list(COMMANDS))
    parser.add_argument("--stores", nargs="+", choices=["sqlite", "files"], default=["sqlite"])
    asked = parser.parse_args()
    os.environ["MLFLOW_ALLOW_FILE_STORE"] = "true"
    os.environ["MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR"] = "false"
    random_ = random.Random(asked.seed)
    table = {command: Found() for command in asked.commands}
    with tempfile.TemporaryDirectory(prefix="endurance-") as name:
        folder = Path(name)
        trained = {kind: Place(kind, folder / f"trained-{kind}") for kind in asked.stores}
        expected = {}
        for command in asked.commands:
            place = Place(asked.stores[0], folder / command, trained[asked.stores[0]])
            table[command].seconds, expected[command] = undisturbed(place, command)
            print(f"{command} takes {table[command].seconds:.1f} s", flush=True)
        for number in itertools.count():
            if sum(found.kills for found in table.values()) >= asked.kills:
                break
            command = asked.commands[number % len(asked.commands)]
            kind = asked.stores[number // len(asked.commands) % len(asked.stores)]
            place, found = Place(kind, folder / str(number), trained[kind]), table[command]
            delay = random_.uniform(0, found.seconds)
            wrong = [*kill_and_repeat(place, command, delay, found)]
            wrong += check(place, command, expected[command])
            found.wrong.update(wrong)
            print(f"{number} {command} {kind} {delay:.2f} s: {wrong or 'well'}", flush=True)
            shutil.rmtree(place.folder)
    print_table(table)
    sys.exit(any(found.wrong for found in table.values()))


def print_table(table: Mapping[str, Found]) -> None:
    print("\n| command | takes | killed | resumed | kept | twice | wrong |")
    print("|---|---:|---:|---:|---:|---:|---|")
    for command, found in table.items():
        wrong = ", ".join(f"{text} ({count})" for text, count in found.wrong.items()) or "nothing"
        row: list[Any] = [command, f"{found.seconds:.1f} s", found.kills, found.resumed]
        row += [f"{min(n)}-{max(n)}" if n else "" for n in (found.kept, found.twice)] + [wrong]
        print("|", " | ".join(map(str, row)), "|")


if __name__ == "__main__":
    main()
