"""One training, judged twice: by moving averages, and by precise statistics of batch normalisation.

    python -m benchmarks.batch_norm_statistics --data-dir CIFAR_FOLDER --figure statistics.png

What a network is judged by has no part in its training, so both curves are of the same weights. It
prints how far evaluations of the second half swing (the mean change from one to the next), the
last figures, and what taking the statistics costs of the training's time at `eval_every=1000`.
"""

import argparse
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from benchmarks import common
from resfool import devices, paper
from resfool.datasets import sets
from resfool.datasets.sets import Dataset
from resfool.networks.shape import network
from resfool.report import drawing
from resfool.values import Precision

if TYPE_CHECKING:
    import keras

_USUAL_STEPS = 1000  # between two evaluations, where nothing else is asked for


@dataclass(frozen=True)
class Curves:
    """What became of a network.

    Attributes:
        name: of the network.
        steps: at which it was judged.
        moving: test accuracies by moving averages.
        precise: test accuracies by precise statistics.
        share: of the training's time that these take at the usual distance.
    """

    name: str
    steps: list[int]
    moving: list[float]
    precise: list[float]
    share: float


def main() -> None:
    """Train each network, print a table and draw the figure."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--archs", nargs="+", default=["resnet", "convnet", "multiresnet"])
    parser.add_argument("--downsample", choices=["stride", "pool"], default="stride")
    parser.add_argument("--dataset", default="cifar10")
    parser.add_argument("--data-dir")
    parser.add_argument("--steps", type=int, default=3000)
    parser.add_argument("--every", type=int, default=150, help="steps between two evaluations")
    parser.add_argument("--precision", choices=["float32", "bfloat16"], default="float32")
    parser.add_argument("--figure", type=Path, help="picture to draw the curves into")
    options = parser.parse_args()
    devices.start_keras()
    data = sets.load(options.dataset, data_dir=options.data_dir)
    print(f"{common.processor()}; {data.name}, {options.steps} steps, one seed\n")
    print("| network | | swing | last | best | time at eval_every=1000 |")
    print("| --- | --- | --- | --- | --- | --- |")
    found = []
    for arch in options.archs:
        shape = {} if arch == "multiresnet" else {"downsample": options.downsample}
        curves = judged_twice(arch, shape, data, options.steps, options.every, options.precision)
        found.append(curves)
        for kind, values, cost in (
            ("moving", curves.moving, ""),
            ("precise", curves.precise, f"{curves.share:.1%}"),
        ):
            swing = np.abs(np.diff(values[len(values) // 2 :])).mean()
            cells = curves.name, kind, f"{swing:.3f}", f"{values[-1]:.3f}", f"{max(values):.3f}"
            print(f"| {' | '.join((*cells, cost))} |", flush=True)
    if options.figure:
        draw(found, options.figure)


def judged_twice(
    arch: str,
    shape: dict[str, str],
    data: Dataset,
    steps: int,
    every: int,
    precision: Precision,
) -> Curves:
    """Train a network, and judge it by both kinds of statistics."""
    from resfool.classifiers.scores import evaluate
    from resfool.networks import architectures
    from resfool.training.judged import JudgedModel
    from resfool.training.steps import Rules, Steps
    from resfool.training.trainer import Trainer

    layers = network(arch, depth=paper.DEPTHS[0], **shape)

    def build() -> "keras.Model":
        return architectures.build(
            layers,
            image_shape=data.image_shape,
            classes=data.classes,
            mean=data.train.images.mean(axis=(0, 1, 2), dtype="float64"),
            std=data.train.images.std(axis=(0, 1, 2), dtype="float64"),
            precision=precision,
            fused=True,
        )

    trainer = Trainer(build(), data.train.images, data.train.labels, Steps(steps=steps))
    moving, precise = (
        JudgedModel(trainer, Rules(batch_norm_statistics=kind), build, data.train.images, seed=0)
        for kind in ("moving", "precise")
    )
    curves: tuple[list[float], list[float]] = ([], [])
    taking: list[float] = []
    training: list[float] = []
    for _ in range(steps // every):
        began = time.perf_counter()
        for _ in range(every // 10):
            trainer.advance(10)
        training.append((time.perf_counter() - began) / every)
        for judged, curve in zip((moving, precise), curves, strict=True):
            began = time.perf_counter()
            model = judged.model()
            taking.append(time.perf_counter() - began)
            curve.append(evaluate(model, data.test.images, data.test.labels).accuracy)
    share = float(np.median(taking[1::2]) / np.median(training) / _USUAL_STEPS)
    places = [every * (i + 1) for i in range(steps // every)]
    return Curves(layers.name, places, *curves, share)


def draw(found: list[Curves], path: Path) -> None:
    """Both curves of each network, side by side."""
    figure = drawing.Figure(figsize=(4 * len(found), 3.6), layout="constrained")
    panels = figure.subplots(1, len(found), sharey=True, squeeze=False)[0]
    for axes, curves in zip(panels, found, strict=True):
        axes.plot(curves.steps, curves.moving, label="moving averages", color="tab:orange")
        axes.plot(curves.steps, curves.precise, label="precise", color="tab:blue")
        axes.set(title=curves.name, xlabel="step")
        axes.grid(alpha=0.3)
    panels[0].set_ylabel("accuracy on all test images")
    panels[0].legend(loc="lower right")
    figure.savefig(path, dpi=120)


if __name__ == "__main__":
    main()
