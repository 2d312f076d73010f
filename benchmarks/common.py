"""What the benchmarks share."""

import argparse
import os
import platform
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from resfool import paper
from resfool.networks.shape import network
from resfool.values import BallNorm, Part, Precision

if TYPE_CHECKING:
    import keras

    from resfool.training.trainer import Trainer

IMAGES = 2000


def random_data() -> tuple[np.ndarray, np.ndarray]:
    """Images of CIFAR-10's shape and labels, both noise: time doesn't depend on what they show."""
    random = np.random.default_rng(0)
    images = random.random((IMAGES, 32, 32, 3), dtype=np.float32)
    return images, random.integers(0, 10, IMAGES)


def processor() -> str:
    """This machine's CPU, as it calls itself."""
    try:
        with Path("/proc/cpuinfo").open() as lines:
            return next(line.split(":")[1].strip() for line in lines if "model name" in line)
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def trainer(arch: str, depth: int, precision: Precision, width: int = paper.WIDTH) -> "Trainer":
    """The project's own trainer at the paper's settings (batch 64, width 64, Adam)."""
    from resfool.networks import architectures
    from resfool.training.steps import Steps
    from resfool.training.trainer import Trainer

    model = architectures.build(
        network(arch, depth=depth, width=(width,)),
        image_shape=(32, 32, 3),
        classes=10,
        mean=[0.5] * 3,
        std=[0.3] * 3,
        precision=precision,
        fused=True,
    )
    return Trainer(model, *random_data(), Steps())


def add_model(parser: argparse.ArgumentParser, images: int) -> None:
    """The options of `model_and_images`."""
    parser.add_argument("--model", required=True, help="a .keras file or an address in MLflow")
    parser.add_argument("--dataset", help="default: what the model was trained on")
    parser.add_argument("--data_dir", help="folder with the data set's official files")
    parser.add_argument(
        "--images", type=int, default=images, help=f"drawn from the test set (default: {images})"
    )


def model_and_images(
    options: argparse.Namespace, part: Part = "test", seed: int = 0
) -> tuple["keras.Model", np.ndarray, np.ndarray]:
    """A model from images to logits, and images with labels, as `attack` takes them."""
    from resfool.attacks.options import AttackParameters
    from resfool.classifiers.finding import find_models, load_classifiers, load_data
    from resfool.datasets import sets
    from resfool.tracking.archive import MLflowArchive

    names = {"dataset": options.dataset, "data_dir": options.data_dir}
    asked = AttackParameters(model=(options.model,), samples=options.images, **names)
    sources = find_models(MLflowArchive(), asked.model, asked.trust)
    data = load_data(sources, asked)
    chosen = sets.choose(data, part, options.images, seed=seed)
    (model,) = load_classifiers(sources, ["model"], data, asked)
    return model, np.array(chosen.images, np.float32), np.array(chosen.labels)


@dataclass(frozen=True)
class Case:
    """What all attacks that are compared are given.

    Attributes:
        model: from images (N, H, W, C) to logits.
        images: float32 (N, H, W, C) in [0, 1], which the model has right.
        labels: int64 (N,).
        norm: of the perturbations.
        batch: images per pass.
    """

    model: "keras.Model"
    images: np.ndarray
    labels: np.ndarray
    norm: BallNorm
    batch: int


def right_ones(options: argparse.Namespace) -> tuple[Case, float]:
    """The images that the model has right, with the `norm` and `batch` of the options, and a share.

    The images are some of those of `model_and_images`; the share that they are is from 0 to 1.
    """
    from resfool.classifiers import inference

    model, images, labels = model_and_images(options)
    right = inference.logits(model, images, options.batch).argmax(axis=1) == labels
    return Case(model, images[right], labels[right], options.norm, options.batch), right.mean()


def machine() -> str:
    """The CPU, how many of its cores are ours, and how busy they were in the last minute."""
    cores, (load, *_) = len(os.sched_getaffinity(0)), os.getloadavg()
    return f"{processor()}, {cores} cores, load {load:.1f}"
