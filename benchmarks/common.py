"""What the benchmarks share."""

import platform
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from resfool import paper
from resfool.networks.shape import network
from resfool.values import Precision

if TYPE_CHECKING:
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
