"""What the parts of the experiment work on."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import keras
import numpy as np

from resfool.datasets.lazy import ImageRows
from resfool.datasets.sets import Split
from resfool.monitor import Monitor
from resfool.universal.options import UniversalParameters
from resfool.universal.patterns import PATTERNS
from resfool.universal.screening import Screen


@dataclass(frozen=True)
class Work:
    """What every part of the experiment needs.

    Attributes:
        model: from images to logits.
        judge: whose predictions shall change: the model or, if there is a target, one of two
            classes, the others and it.
        fitting: the images to fit on, with their labels; none of the target's class.
        images: those to fit on, float32 (N, H, W, C), read where they are looked at.
        held_out: the same of those to judge on; none of the target's class.
        asked: the experiment's parameters.
        identity: of the model, for what is kept to be used again.
        monitor: is told how it goes.
        map: runs blocks of images in workers, if there are any.
        batch_size: images per pass, at most.
        target: class that images of others shall become; None if there is none.
    """

    model: keras.Model
    judge: keras.Model
    fitting: Split
    images: ImageRows
    held_out: ImageRows
    asked: UniversalParameters
    identity: dict[str, Any]
    monitor: Monitor
    map: Callable[..., list[Any]] | None
    batch_size: int
    target: int | None = None

    @property
    def labels(self) -> np.ndarray | None:
        """Those whose loss algorithms 3 and 4 raise; None are the model's own predictions."""
        return self.fitting.labels if self.asked.label_source == "true" else None

    @cached_property
    def screen(self) -> Screen:
        """What chooses the best pattern."""
        asked = self.asked
        return Screen(
            self.judge,
            self.images,
            asked.patterns or tuple(PATTERNS),
            asked.frequencies,
            asked.seed,
            clip=asked.clip,
            thorough=asked.algorithm == "patterns",
            batch_size=self.batch_size,
        )
