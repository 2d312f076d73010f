"""Faults of a spread solve in a whole command: it is killed, its disk is full, its data changes."""

import hashlib
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
from mlflow import MlflowClient

from resfool import blocks
from resfool.classifiers import finding
from resfool.universal import experiment
from tests import counted
from tests.conftest import refused
from tests.processes import Process

BLOCKS = 20  # of two images
WORDS = [
    *("--model=theirs.keras", "--samples=40", "--test_samples=20", "--rank=1", "--ranks=1"),
    *("--draws=1", "--patterns=checkerboard", "--block_images=2"),
]
CLOSEST = [*WORDS, "--solver=closest"]

pytestmark = pytest.mark.slow


@pytest.fixture
def folder(store: MlflowClient, tmp_path: Path) -> Path:
    """The working directory, in which there is a model."""
    keras.utils.set_random_seed(4)
    dense = keras.layers.Dense
    parts = keras.layers.Flatten(), dense(16, activation="relu"), dense(10)
    keras.Sequential([keras.Input((8, 8, 1)), *parts]).save("theirs.keras")
    return tmp_path


def start(*words: str) -> Process:
    """The command, each block of which takes long enough to be alone and to be killed."""
    call = f"from resfool.commands import main; main({['universal', *words]!r})"
    return Process(f"import os; os.setsid()\n{counted.counting(0.25)}\n{call}")


def wait_for(process: Process, blocks: int, folder: Path) -> None:
    """Wait until so many blocks are kept; the command must be at work then."""
    until = time.monotonic() + 120
    while counted.kept(folder) < blocks:
        assert process.poll() is None and time.monotonic() < until, process.printed()
        time.sleep(0.01)


def ended(process: Process, code: int = 0) -> str:
    """What a command has printed by its end."""
    assert process.wait() == code, process.printed()
    return process.printed()


def matrices(store: MlflowClient) -> list[str]:
    """The digest of each finished run's perturbations."""
    found = []
    for run in store.search_runs(["0"], "attributes.status = 'FINISHED'"):
        rows = blocks.read(Path(store.download_artifacts(run.info.run_id, "matrix")))["rows"]
        found.append(hashlib.sha256(rows[:].tobytes()).hexdigest())
    return found


def test_a_solve_whose_driver_is_killed_solves_nothing_twice_but_what_was_under_way(
    store: MlflowClient, folder: Path
) -> None:
    words = [*CLOSEST, "--dataset=digits"]
    random, before = np.random.default_rng(0), [0]
    while len(before) <= 3:
        process = start(*words, "--workers=2")
        wait_for(process, before[-1] + int(random.integers(1, 5)), folder)
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        before.append(counted.kept(folder))
    last = start(*words, "--workers=2")
    said = ended(last)
    assert f"going on with an interrupted solve, of which {2 * before[-1]} images are done" in said
    commands = counted.noted(folder)
    assert len(commands) == 4
    for number, command in enumerate(commands):
        assert len(command.began) == len({*command.began}), "once in each command"
        kept = [*before, BLOCKS][number + 1] - before[number]
        assert 0 <= len(command.began) - kept <= 2, "what two workers had"
    assert len({name for command in commands for name in command.ended}) == BLOCKS
    assert not list(Path("checkpoints").iterdir())
    shutil.move("blocks", "of the killed")
    ended(start(*words, "--workers=1"))
    assert len(set(matrices(store))) == 1 and len(matrices(store)) == 2
    statuses = sorted(run.info.status for run in store.search_runs(["0"]))
    assert statuses == ["FINISHED"] * 2 + ["KILLED"] * 3
    with pytest.raises(ProcessLookupError):  # of the workers whose driver was killed
        os.killpg(process.pid, 0)


@pytest.fixture
def disk(folder: Path) -> Iterator[Callable[[str], None]]:
    """A disk of its own in the folder `checkpoints`; what makes it of a size."""
    place = folder / "checkpoints"
    place.mkdir()

    def mount(*options: str) -> "subprocess.CompletedProcess[str]":
        command = ["mount", "-t", "tmpfs", "-o", *options, "tmpfs", str(place)]
        return subprocess.run(command, capture_output=True, text=True)

    tried = mount("size=200k")
    if tried.returncode:
        # Only the system's administrator makes disks; everybody has the same by a simulated one in
        # tests/test_blocks.py.
        pytest.skip(f"nothing can be mounted: {tried.stderr.strip()}")
    try:
        yield lambda size: mount(f"remount,size={size}").check_returncode()
    finally:
        subprocess.run(["umount", "-l", str(place)], check=True)


def test_a_disk_that_is_full_in_the_middle_ends_the_run_in_one_sentence(
    store: MlflowClient, folder: Path, disk: Callable[[str], None]
) -> None:
    words = [*CLOSEST, "--dataset=digits", "--backend=ray", "--workers=2"]
    said = ended(start(*words), 1)
    (sentence,) = [line for line in said.splitlines() if "No space left on device" in line]
    assert "checkpoints/solve-" in sentence and "can't be written" in sentence
    assert "Traceback" not in said
    (run,) = store.search_runs(["0"])
    assert run.info.status == "FAILED" and "No space left" in run.data.tags["resfool.error"]
    kept = counted.kept(folder)
    assert 0 < kept < BLOCKS
    disk("10m")
    said = ended(start(*words))
    assert f"going on with an interrupted solve, of which {2 * kept} images are done" in said
    assert len(counted.noted(folder)[1].began) == BLOCKS - kept
    ended(start(*CLOSEST, "--dataset=digits", "--backend=serial"))
    assert len(set(matrices(store))) == 1 and len(matrices(store)) == 2


def arrays_of(folder: Path) -> list[Path]:
    """A data set of arrays in a new folder."""
    folder.mkdir()
    random = np.random.default_rng(0)
    for part in ("train", "test"):
        np.save(folder / f"x_{part}.npy", random.integers(0, 255, (120, 8, 8, 1), np.uint8))
        np.save(folder / f"y_{part}.npy", np.arange(120) % 10)
    return list(folder.glob("x_*.npy"))


def test_data_that_changes_in_a_solve_ends_it_and_what_was_solved_is_kept(
    store: MlflowClient, folder: Path
) -> None:
    files = arrays_of(folder / "data")
    words = [*CLOSEST, "--dataset=npy:data"]
    spread = [*words, "--workers=2"]
    ended(start(*words, "--backend=serial"))
    process = start(*spread)
    wait_for(process, 2, folder)
    whole = [np.load(path) for path in files]
    for path, array in zip(files, whole, strict=True):
        np.save(path, 255 - array)
    said = ended(process, 1)
    assert ".npy has changed while it was in use" in said and "Traceback" not in said
    (run,) = store.search_runs(["0"], "attributes.status != 'FINISHED'")
    assert run.info.status == "FAILED"
    kept = counted.kept(folder)
    for path, array in zip(files, whole, strict=True):
        np.save(path, array)
    assert f"of which {2 * kept} images are done" in ended(start(*spread))
    assert len(set(matrices(store))) == 1 and len(matrices(store)) == 2


@pytest.mark.parametrize("backend", ["joblib", "ray"])
def test_data_that_changes_before_a_solve_is_refused(
    backend: str,
    store: MlflowClient,
    folder: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Between the reading of images and the beginning of the run, which looks at all of them."""
    files = arrays_of(folder / "data")

    def load_classifier(*given: Any) -> Any:
        for path in files:
            np.save(path, 255 - np.load(path))
        return finding.load_classifier(*given)

    monkeypatch.setattr(experiment, "load_classifier", load_classifier)
    from entry_points import universal

    words = [*CLOSEST, "--dataset=npy:data", f"--backend={backend}", "--workers=2"]
    line = refused(universal.main, capsys, *words)
    assert ".npy has changed while it was in use" in line
    assert not store.search_runs(["0"]) and not Path("checkpoints").exists()


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ("--backend=joblib --gpus_per_worker=1", "gpus_per_worker=1.0 has no effect with backend"),
        ("--backend=ray --gpus_per_worker=99", "99 GPU each don't fit the Ray cluster here"),
        ("--backend=joblib --block_images=0", "block_images=0"),
        ("--backend=ray --block_images=0", "block_images=0"),
    ],
)
def test_what_cannot_be_is_refused_on_every_backend(
    words: str, sentence: str, store: MlflowClient, folder: Path
) -> None:
    asked = [
        word for word in CLOSEST if not word.startswith("--block_images=") or "=0" not in words
    ]
    process = start(*asked, "--dataset=digits", *words.split())
    assert process.wait() in (1, 2)
    (line,) = process.printed().strip().splitlines()
    assert sentence in line
    assert not store.search_runs(["0"])
