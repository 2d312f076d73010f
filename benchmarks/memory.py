"""The memory that commands take at any number of images: peaks of the driver and of its workers.

    python -m benchmarks.memory --folder FOLDER                      # 20 minutes, 6 GB of disk
    python -m benchmarks.memory --folder FOLDER --case pictures      # one of them
    python -m benchmarks.memory --folder FOLDER --case small --images 1000

Images and networks are made in the folder, files as `dataset=npy:` takes them, of bytes. They are
noise upon a pattern of their class, and the networks aren't trained: memory doesn't depend on what
they show. Each command runs in a process of its own, with a store of its own in the folder. The
peak is the most memory that a process had in use at a time, as the kernel counts it (VmHWM), pages
of mapped files included; that of the driver, and the largest of its workers and of those in which
a model is tried before.
"""

import argparse
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from benchmarks import common

_HELD_OUT = 1000  # images
_PIECE = 1000  # images that are made at a time
_LOOK = 0.1  # seconds between two looks at the processes

# What all universal perturbations here are asked for: few passes, of all that there is.
_TWO = ["--epsilons=1/255,8/255", "--attack_steps=10"]
_FEW = ["--draws=1", "--rank=10", "--ranks=1", "--patterns=checkerboard"]


@dataclass(frozen=True)
class Case:
    """A command and its images.

    Attributes:
        command: an entry point.
        words: its parameters beside the model, the images and how many.
        size: height and width of the images.
        classes: of the network.
        counts: of the images, one run each.
        part: of the data set that they are.
    """

    command: str
    words: Sequence[str]
    size: int
    classes: int
    counts: Sequence[int]
    part: str = "train"


CASES = {
    "small": Case("universal", ["--algorithm=2", "--workers=2", *_FEW], 32, 10, [20_000, 100_000]),
    "pictures": Case("universal", ["--algorithm=3", *_FEW], 224, 1000, [500, 2000]),
    "attack": Case("attack", ["--method=fgsm", _TWO[0]], 32, 10, [20_000, 100_000], "test"),
    "attack-pictures": Case("attack", ["--method=apgd", *_TWO], 224, 1000, [500, 2000], "test"),
}


def main() -> None:
    """Run what was asked for, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", type=Path, required=True, help="for images, models and runs")
    parser.add_argument("--case", nargs="*", choices=CASES, default=["small", "pictures"])
    parser.add_argument("--images", type=int, nargs="*", help="instead of the case's own numbers")
    options = parser.parse_args()
    print(common.machine())
    print("\n| command | images | driver | largest of the others | seconds |")
    print("| --- | --- | --- | --- | --- |")
    for name in options.case:
        case = CASES[name]
        for count in options.images or case.counts:
            place = options.folder / f"{name}-{count}"
            make(place, case, count)
            began = time.perf_counter()
            driver, others = peaks(words_of(case, count), place)
            took = time.perf_counter() - began
            what = f"`{case.command}` {' '.join(case.words[:1])}, {case.size}x{case.size}x3"
            print(
                f"| {what}, {case.classes} classes | {count:,} | {driver / 1e9:.2f} GB | "
                f"{others / 1e9:.2f} GB | {took:.0f} |",
                flush=True,
            )


def words_of(case: Case, count: int) -> list[str]:
    """The command's words, for its folder."""
    words = ["--model=model.keras", "--dataset=npy:images", f"--samples={count}", *case.words]
    return [sys.executable, "-m", f"entry_points.{case.command}", *words]


def make(folder: Path, case: Case, count: int) -> None:
    """Make a case's images, and its network in a process that loads TensorFlow."""
    (folder / "images").mkdir(parents=True, exist_ok=True)
    other = "test" if case.part == "train" else "train"
    for part, number in ((case.part, count), (other, _HELD_OUT)):
        random = np.random.default_rng([len(part), number])
        shape = (number, case.size, case.size, 3)
        labels = random.integers(0, case.classes, number)
        np.save(folder / "images" / f"y_{part}.npy", labels)
        images = np.lib.format.open_memmap(
            folder / "images" / f"x_{part}.npy", mode="w+", dtype=np.uint8, shape=shape
        )
        for begin in range(0, number, _PIECE):
            some = labels[begin : begin + _PIECE, np.newaxis, np.newaxis, np.newaxis]
            waves = np.sin(np.arange(case.size) * (1 + some % 97) / 30)
            noise = random.integers(-40, 41, (len(some), *shape[1:]), np.int16)
            pattern = (128 + 80 * waves.transpose(0, 3, 2, 1)).astype(np.int16)
            images[begin : begin + _PIECE] = pattern + noise
        del images
    path = folder / "model.keras"
    given = [str(path), str(case.size), str(case.classes), str(folder / "images/x_test.npy")]
    script = "import sys; from benchmarks import memory; memory.save_network(*sys.argv[1:])"
    subprocess.run([sys.executable, "-c", script, *given], check=True, stderr=subprocess.DEVNULL)


def save_network(path: str, size: str, classes: str, images: str) -> None:
    """Save a small convolutional network whose classes are about equally frequent."""
    import keras
    from keras import layers

    keras.utils.set_random_seed(0)
    side, stride = int(size), 2 if int(size) < 100 else 4
    model = keras.Sequential(
        [
            keras.Input((side, side, 3)),
            layers.Conv2D(8, 5, strides=stride, padding="same", activation="relu"),
            layers.Conv2D(16, 3, strides=stride, padding="same", activation="relu"),
            layers.AveragePooling2D(4),
            layers.Flatten(),
            layers.Dense(int(classes)),
        ]
    )
    some = np.load(images, mmap_mode="r")[:200].astype(np.float32) / 255
    logits = model.predict(some, verbose=0)
    kernel, bias = model.layers[-1].get_weights()
    model.layers[-1].set_weights([kernel, bias - logits.mean(axis=0)])
    model.save(path)


def peaks(words: Sequence[str], folder: Path) -> tuple[int, int]:
    """The bytes that a command took at most at a time, and those of the largest of its children.

    Args:
        words: of the command.
        folder: that it runs in, and has its store in.
    """
    store = f"sqlite:///{(folder / 'mlflow.db').absolute()}"
    root = Path(__file__).resolve().parents[1]
    own = {"MLFLOW_TRACKING_URI": store, "PYTHONPATH": str(root)}
    with (folder / "printed.txt").open("w") as printed:
        process = subprocess.Popen(
            words, cwd=folder, env=os.environ | own, stdout=printed, stderr=subprocess.STDOUT
        )
        found: dict[int, int] = {process.pid: 0}
        while process.poll() is None:
            for number in _tree(process.pid):
                found[number] = max(found.get(number, 0), _peak(number))
            time.sleep(_LOOK)
    if process.returncode:
        raise SystemExit(f"{' '.join(words)} failed; {folder / 'printed.txt'} says why")
    driver = found.pop(process.pid)
    return driver, max(found.values(), default=0)


def _tree(root: int) -> list[int]:
    """A process and all that come of it."""
    import psutil

    try:
        of = psutil.Process(root)
        return [root, *(child.pid for child in of.children(recursive=True))]
    except psutil.NoSuchProcess:
        return []


def _peak(number: int) -> int:
    """The most bytes that a process had in use so far; 0 once it has ended."""
    try:
        lines = Path(f"/proc/{number}/status").read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM")), 0)


if __name__ == "__main__":
    main()
