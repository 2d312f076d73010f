"""What the parts of an attack are given and answer, and how they go turn by turn."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from resfool.attacks import balls
from resfool.attacks.balls import Bounds
from resfool.classifiers import inference
from resfool.monitor import Advance, quiet
from resfool.values import BallNorm


@dataclass(frozen=True)
class Task:
    """Images that are to be fooled, each within a ball of its own.

    Attributes:
        model: from images to logits.
        images: float32 (N, H, W, C) in [0, 1].
        labels: int32 (N,), the classes that shall no longer be predicted.
        radii: float32 (N,), of the balls, in pixel units.
        leads: float32 (N,), of the logits: by how much another class must be ahead; see
            `safe_leads`.
        norm: of the balls.
        clip: keep moved images in [0, 1].
        seed: of whatever is drawn at random.
        places: int64 (N,), the images' numbers in a larger set: what is drawn for an image depends
            on the seed and its place only.
        batch_size: images per pass, at most.
        progress: is told the passes done, one image each; a gradient counts as two.
    """

    model: keras.Model
    images: np.ndarray
    labels: np.ndarray
    radii: np.ndarray
    leads: np.ndarray
    norm: BallNorm = "linf"
    clip: bool = True
    seed: int = 0
    places: np.ndarray | None = None
    batch_size: int = inference.BATCH_SIZE
    progress: Advance = quiet

    @property
    def bounds(self) -> Bounds:
        """The least and the largest value that a pixel may have."""
        return balls.range_of_pixels(self.clip)

    @property
    def numbers(self) -> np.ndarray:
        """The images' places; they count from 0 where none are given."""
        return np.arange(len(self.images)) if self.places is None else self.places

    def of(self, chosen: np.ndarray) -> "Task":
        """The same with some of the images, by their numbers here."""
        own = {name: getattr(self, name)[chosen] for name in _BY_IMAGE}
        return replace(self, places=self.numbers[chosen], **own)

    def starts(self, number: int) -> np.ndarray:
        """A random point in each image's ball, float32 (N, H, W, C), another for each number.

        In the l-infinity ball it is drawn uniformly, in the l2 ball on its surface.
        """
        shape = self.images.shape[1:]
        result = np.empty_like(self.images)
        for row, (place, radius) in enumerate(zip(self.numbers, self.radii, strict=True)):
            random = np.random.default_rng([self.seed, place, number])
            if self.norm == "linf":
                move = 2 * random.random(shape, np.float32) - 1
            else:
                move = random.standard_normal(shape, np.float32)
                move /= np.linalg.norm(move)
            result[row] = self.images[row] + radius * move
        return np.clip(result, *self.bounds, out=result)


_BY_IMAGE = "images", "labels", "radii", "leads"


@dataclass(frozen=True)
class Answer:
    """What became of N images.

    Attributes:
        moved: float32 (N, H, W, C); those that were not fooled are as they were.
        fooled: bool (N,), whether another class is clearly ahead.
    """

    moved: np.ndarray
    fooled: np.ndarray

    @classmethod
    def none(cls, task: Task) -> "Answer":
        """Of a task that nothing was done for yet."""
        return cls(task.images.copy(), np.zeros(len(task.images), bool))

    @property
    def left(self) -> np.ndarray:
        """The numbers of the images that were not fooled."""
        return np.flatnonzero(~self.fooled)

    def take(self, chosen: np.ndarray, other: "Answer") -> None:
        """Take over what was found for some of the images, by their numbers."""
        won = chosen[other.fooled]
        self.moved[won], self.fooled[won] = other.moved[other.fooled], True


def in_turns(
    task: Task,
    function: Callable[..., Any],
    given: Sequence[np.ndarray],
    state: Sequence[np.ndarray],
    turns: Iterable[tuple[int, Sequence[Any]]],
    *fixed: Any,
) -> None:
    """Run a compiled function turn by turn on the images that are still to be fooled.

    Those that are left after a turn are packed anew, so that no pass computes what is done. The
    function is traced once for any number of images.

    Args:
        task: what is to be done.
        function: of the model, the task's images, labels, radii and leads, `given`, `state`, a
            turn's settings and `fixed`; it answers the state anew.
        given: more of the images that stays as it is, (N, ...) each.
        state: what changes, (N, ...) each, in place; the last is whether an image is done, bool.
        turns: passes that an image takes in a turn, and its settings as arrays.
        *fixed: what is settled when the function is traced.
    """
    whole = (*(getattr(task, name) for name in _BY_IMAGE), *given, *state)
    left = np.flatnonzero(~state[-1])
    for passes, settings in turns:
        if not len(left):
            return
        tensors = [tf.convert_to_tensor(setting) for setting in settings]
        call = inference.traced(task.model, function, [*whole, *tensors], fixed)
        for rows in inference.batches(len(left), task.batch_size):
            chosen = left[rows]
            found = call(*(tf.constant(part[chosen]) for part in whole), *tensors, *fixed)
            for part, now in zip(state, found, strict=True):
                part[chosen] = now.numpy()
            task.progress(passes * len(chosen))
        left = left[~state[-1][left]]
