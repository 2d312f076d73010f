"""Run every command and every Python block of README.md and docs/: `make test-docs`.

They run in a copy of the checkout, in the pages' order, with a tracking store of their own. What is
made small, and what isn't run and why, stands in `snippets`. Environments aren't made, neither by
conda nor by uv: all run in the environment of this command.
"""

import functools
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from tests.conftest import ROOT
from tests.documentation.snippets import Snippet, filled, snippets

TIMEOUT = 1200  # seconds of one command
# Beside those of `snippets.LEAVES`: runs of PREPARE, and files that it writes.
PLACEHOLDERS = (
    *("INTERRUPTED", "RUN_ID", "RESNET", "CONVNET", "MULTIRESNET", "UNIVERSAL_1", "UNIVERSAL_2"),
    *("RUN_1", "RUN_2"),
    *("/path/to/mine.keras", "/path/to/mine.npz", "/path/to/perturbation.npy"),
)
# What the pages take for granted: some runs on digits, and files of somebody else.
PREPARE = """
import keras, mlflow, numpy as np
from entry_points import train, universal
from resfool.datasets.sets import load

def new_runs():
    found = mlflow.search_runs(order_by=["start_time"])
    return [run for run in found.get("run_id", ()) if run not in before]

before = ()
before = new_runs()
for arch in ("resnet", "convnet", "multiresnet"):
    train.main([f"--arch={arch}", "--dataset=digits", "--width=8", "--steps=40"])
runs = new_runs()
small = ["--samples=40", "--test_samples=40", "--draws=2", "--ranks=1"]
for run in runs[:2]:
    universal.main([f"--model=runs:/{run}/model", *small])
for _ in range(3):
    mlflow.register_model(f"runs:/{runs[0]}/model", "my-classifier")
runs = new_runs()

data = load("digits")
parts = {"train": data.train, "test": data.test}
images = {f"x_{name}": (part.images * 255).astype(np.uint8) for name, part in parts.items()}
np.savez("mine.npz", **images, **{f"y_{name}": part.labels for name, part in parts.items()})
model = keras.Sequential([keras.Input((8, 8, 1)), keras.layers.Rescaling(1 / 255)])
model.add(keras.layers.Flatten())
model.add(keras.layers.Dense(10, activation="softmax"))
model.compile("adam", "sparse_categorical_crossentropy")
model.fit(images["x_train"], data.train.labels, epochs=5, verbose=0)
model.save("mine.keras")
np.save("mine.npy", np.full((8, 8, 1), 0.1, np.float32))
print("PREPARED", *runs)
"""


def main(pages: Sequence[str] = ()) -> None:
    """Run what stands on some pages, or on all, and say what failed."""
    with tempfile.TemporaryDirectory(prefix="resfool-docs-") as folder:
        reader = Reader(Path(folder) / "checkout")
        for snippet in snippets():
            if not pages or snippet.page in pages:
                reader.follow(snippet)
    print(f"\n{len(reader.done)} run, {len(reader.failed)} failed")
    for text in reader.failed:
        print(f"FAILED  {text}")
    raise SystemExit(bool(reader.failed))


class Reader:
    """Types what the pages say, in a copy of the checkout.

    Args:
        folder: where to make the copy.
    """

    def __init__(self, folder: Path) -> None:
        listed = subprocess.run(
            ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            text=True,
            check=True,
        )
        for name in filter(None, listed.stdout.split("\0")):
            if (ROOT / name).is_file():
                (folder / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(ROOT / name, folder / name)
        (folder / ".venv").symlink_to(sys.prefix)
        self.folder = folder
        own = {
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
            "PYTHONPATH": str(folder),
            "KERAS_HOME": str(folder / "keras"),  # no data set of the user's, and no download
            "TF_CPP_MIN_LOG_LEVEL": "3",
        }
        theirs = {n: v for n, v in os.environ.items() if not n.startswith(("MLFLOW_", "RAY_"))}
        self.environment = theirs | own
        self.done: set[frozenset[str]] = set()
        self.failed: list[str] = []
        self.left: dict[str, str] = {}  # ids of runs, by the placeholders that stand for them

    @functools.cached_property
    def prepared(self) -> dict[str, str]:
        """What the placeholders of all pages stand for, made when the first is met."""
        began = time.monotonic()
        output = self._run(["python", "-c", PREPARE])
        prepared = re.search(r"^PREPARED (.*)$", output, re.M)
        if prepared is None:
            raise SystemExit(f"the preparations failed:\n{output[-3000:]}")
        runs = prepared[1].split()
        interrupted = self._interrupt()
        print(f"prepared in {time.monotonic() - began:.0f} s", flush=True)
        files = [str(self.folder / f"mine.{ending}") for ending in ("keras", "npz", "npy")]
        meant = [interrupted, runs[0], *runs, runs[0], runs[1], *files]
        return dict(zip(PLACEHOLDERS, meant, strict=True))

    def _interrupt(self) -> str:
        """The id of a training that was killed."""
        kept = self.folder / "checkpoints"
        before = set(kept.glob("*/*"))
        words = ["--arch=multiresnet", "--dataset=digits", "--width=4", "--steps=1500"]
        process = subprocess.Popen(
            ["python", "-m", "entry_points.train", *words, "--checkpoint_seconds=1"],
            cwd=self.folder,
            env=self.environment,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        while process.poll() is None:
            # The first is written before the first step, so wait for some.
            new = [p for p in kept.glob("*/*") if p not in before and p.suffix != ".lock"]
            if new:
                time.sleep(4)
                break
            time.sleep(0.1)
        process.send_signal(signal.SIGKILL)
        if process.wait() != -signal.SIGKILL:
            raise SystemExit("the training that was to be interrupted ended by itself")
        return new[0].parent.name

    def follow(self, snippet: Snippet) -> None:
        """Run a snippet, unless the same has run before."""
        shown = snippet.text if snippet.language == "sh" else "a block of Python"
        if snippet.not_run is not None:
            print(f"   not run  {snippet.page}: {shown} ({snippet.not_run.reason})")
            return
        python = snippet.language == "python"
        words = ["python", "-c", snippet.text] if python else snippet.to_run()
        words = [filled(word, self.left) for word in words]
        if any(filled(word, dict.fromkeys(PLACEHOLDERS, "")) != word for word in words):
            words = [filled(word, self.prepared) for word in words]
        if not python:
            shown = shlex.join(words)
        if frozenset(words) in self.done:
            return
        self.done.add(frozenset(words))
        began = time.monotonic()
        output = self._run(words)
        good = output.endswith("\nexit code 0")
        seconds = time.monotonic() - began
        print(f"{seconds:6.0f} s {'' if good else 'FAILED '} {snippet.page}: {shown}", flush=True)
        if not good:
            self.failed.append(f"{snippet.page}: {shown}")
            print(output[-3000:], flush=True)
        runs = re.findall(r"^run {2,}(\w{32})$", output, re.M)
        if snippet.leaves is not None and runs:
            self.left[snippet.leaves] = runs[-1]

    def _run(self, words: Sequence[str]) -> str:
        """What a command prints, and in the last line its exit code."""
        process = subprocess.Popen(
            words,
            cwd=self.folder,
            env=self.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        try:
            output, _ = process.communicate(timeout=TIMEOUT)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            output, _ = process.communicate()
        return f"{output}\nexit code {process.returncode}"


if __name__ == "__main__":
    main(sys.argv[1:])
