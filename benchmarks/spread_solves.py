"""Smallest perturbations of the same images by one process with all threads, and by workers.

    python -m benchmarks.spread_solves --model runs:/RUN_ID/model --images 200
    python -m benchmarks.spread_solves --model runs:/RUN_ID/model --method standard --block 250
    python -m benchmarks.spread_solves --untrained resnet --images 100 --block 25

The first round begins from nothing, as a command does: workers start, load the model and compile,
the one process compiles. Later rounds on the same processes are what is left of that for long
solves; the ways take turns, and their median counts. A network that isn't trained takes as long as
its images happen to be far from its boundaries.
"""

import argparse
import functools
import statistics
import time
from typing import Any, cast

import joblib
import keras
import numpy as np

from benchmarks import common
from resfool import parallel
from resfool.attacks import minimal
from resfool.attacks.found import attack_block
from resfool.attacks.options import HowToAttack
from resfool.classifiers import inference, spreading
from resfool.classifiers.spreading import Blocks, Sent, Workers


def main() -> None:
    """Time all ways and print a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", help="a .keras file or an address in MLflow")
    parser.add_argument("--untrained", help="an architecture of 10 layers, in place of a model")
    parser.add_argument("--dataset", help="default: what the model was trained on")
    parser.add_argument("--data_dir", help="folder with the data set's official files")
    parser.add_argument("--images", type=int, default=200)
    parser.add_argument("--block", type=int, default=50, help="images of a block")
    parser.add_argument("--solver", default="closest")
    parser.add_argument("--method", help="of attack, at 1/255 and 8/255, in place of a solver")
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--workers", type=int, nargs="*", default=[1, joblib.cpu_count()])
    options = parser.parse_args()
    model, images = _model_and_images(options)
    work = spreading.multiplications(model) * len(images)
    what = options.method or options.solver
    print(f"{common.machine()}; {len(images)} images, blocks of {options.block}, {what}")
    print(f"{work / len(images):.2g} multiplications an image and pass\n")
    ways: dict[str, Workers | None] = {f"one process, {joblib.cpu_count()} threads": None}
    for count in options.workers:
        run = functools.partial(parallel.map, workers=count)
        ways[f"{count} worker{'s' * (count > 1)} of one thread"] = Workers(run, Sent.of(model))
    times: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(options.rounds):
        for name, workers in ways.items():
            times[name].append(_seconds(model, images, options, workers))
    print("| way | seconds from nothing | later (least to most) | one process takes |")
    print("| --- | --- | --- | --- |")
    one = statistics.median(next(iter(times.values()))[1:])
    for name, (first, *later) in times.items():
        middle = statistics.median(later)
        spread = f"{middle:.1f} ({min(later):.1f} to {max(later):.1f})"
        print(f"| {name} | {first:.1f} | {spread} | {one / middle:.2f} times that |")


def _model_and_images(options: argparse.Namespace) -> tuple[keras.Model, np.ndarray]:
    if options.untrained is None:
        model, images, _ = common.model_and_images(options)
        return model, images
    model = common.trainer(options.untrained, 10, "float32").model
    return model, common.random_data()[0][: options.images]


def _seconds(
    model: keras.Model, images: np.ndarray, options: argparse.Namespace, workers: Workers | None
) -> float:
    arrays, function = [images], cast(Any, minimal.solved_block)
    own: Any = {"solver": options.solver}
    if options.method is not None:
        asked = HowToAttack(method=options.method, epsilons=(1 / 255, 8 / 255))
        labels = inference.logits(model, images).argmax(axis=1)
        arrays, function = [images, labels, np.arange(len(images))], attack_block
        own = {"asked": asked, "seed": 0}
    blocks = Blocks(arrays, options.block)
    own |= {"batch_size": blocks.size}
    began = time.perf_counter()
    spreading.in_blocks(model, function, blocks, own, workers=workers)
    return time.perf_counter() - began


if __name__ == "__main__":
    main()
