"""Universal perturbations: applied, projected on a ball, drawn at random, and the best kept."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from resfool.attacks import lowrank
from resfool.classifiers import inference
from resfool.classifiers.inference import BATCH_SIZE, Images, Rows
from resfool.monitor import Advance, quiet
from resfool.values import Norm, NormKind

Report = Callable[
    [int, float], None
]  # is told a pass over the images and the fooling rate after it


@dataclass(frozen=True)
class Applied:
    """What a model makes of images under each of K universal perturbations.

    Attributes:
        classes: int64 (K, N), predicted.
        clean_classes: int64 (N,), predicted without a perturbation.
    """

    classes: np.ndarray
    clean_classes: np.ndarray

    @property
    def rates(self) -> np.ndarray:
        """The fooling rate of each perturbation, float64 (K,)."""
        return (self.classes != self.clean_classes).mean(axis=1)


def applied(
    model: keras.Model,
    images: Images,
    vectors: np.ndarray,
    *,
    clip: bool = False,
    batch_size: int = BATCH_SIZE,
    progress: Advance = quiet,
) -> Applied:
    """Apply universal perturbations to images, many at a time.

    Args:
        model: from images to logits.
        images: float32 (N, H, W, C) in [0, 1].
        vectors: float32 (K, H, W, C).
        clip: keep perturbed images in [0, 1].
        batch_size: images per pass.
        progress: is told of the passes, one image each: N(K + 1) in all.
    """
    classify = inference.compiled(model, classes_under)
    moves = [tf.zeros(vectors.shape[1:])] + [tf.constant(v, tf.float32) for v in vectors]
    classes = np.empty((len(moves), len(images)), np.int64)
    for rows, (batch,) in inference.tensors(images, batch_size=batch_size):
        for of_move, move in zip(classes, moves, strict=True):
            of_move[rows] = classify(batch, move, clip).numpy()[: rows.stop - rows.start]
        progress(len(moves) * (rows.stop - rows.start))
    return Applied(classes[1:], classes[0])


def classes_of(
    model: keras.Model,
    images: Rows,
    vector: np.ndarray,
    *,
    clip: bool = False,
    batch_size: int = BATCH_SIZE,
) -> np.ndarray:
    """The predictions, int64 (N,), for images (N, H, W, C) under one perturbation (H, W, C)."""
    classify = inference.compiled(model, classes_under)
    classes = np.empty(len(images), np.int64)
    for rows, (batch,) in inference.tensors(images, batch_size=batch_size):
        found = classify(batch, tf.constant(vector, tf.float32), clip)
        classes[rows] = found.numpy()[: rows.stop - rows.start]
    return classes


def projected(vector: np.ndarray, norm: Norm) -> np.ndarray:
    """Equation 7: the nearest vector whose norm is at most `norm`; "none" has no bounds."""
    if norm.kind == "linf":
        return np.clip(vector, -np.float32(norm.size), np.float32(norm.size))
    length = float(np.linalg.norm(vector))
    if norm.kind == "none" or length <= norm.size:
        return vector
    return vector * np.float32(norm.size / length)


def random_vectors(
    shape: tuple[int, ...], sizes: np.ndarray, kind: NormKind, seed: int
) -> np.ndarray:
    """The benchmark: random vectors of given norms.

    Args:
        shape: (H, W, C).
        sizes: (K,), the norm of each.
        kind: "l2" (or "none") gives Gaussian noise of these l2 norms, "linf" noise of one
            magnitude and random signs, which has the largest l2 norm of its l-infinity norm.
        seed: of the draws.

    Returns:
        float32 (K, H, W, C).
    """
    random = np.random.default_rng(seed)
    whole = len(sizes), *shape
    if kind == "linf":
        drawn = 2 * random.integers(0, 2, whole).astype(np.float32) - 1
    else:
        drawn = random.standard_normal(whole, np.float32)
        drawn /= lowrank.sizes(drawn, "l2").reshape(-1, 1, 1, 1)
    return (drawn * np.asarray(sizes).reshape(-1, 1, 1, 1)).astype(np.float32)


@dataclass(frozen=True)
class Fit:
    """A universal perturbation that needed no matrix.

    Attributes:
        vector: float32 (H, W, C), the best of all passes over the images, if it took any.
        rates: the best fooling rate that was met in each pass, on the fitting images or those of
            them that were set aside.
        tried: of what it was chosen, a row each, the best first; empty if of nothing.
    """

    vector: np.ndarray
    rates: list[float]
    tried: Sequence[dict[str, Any]] = ()


class Best:
    """The first of the best perturbations that it meets, by the fooling rate on some images.

    Attributes:
        vector: float32 (H, W, C), the best until now; zero, if none changed a class.
    """

    def __init__(
        self,
        model: keras.Model,
        images: Images,
        own: np.ndarray,
        *,
        clip: bool,
        batch_size: int,
        targeted: bool = False,
    ) -> None:
        """Begin with nothing.

        Args:
            model: from images to logits.
            images: float32 (N, H, W, C) in [0, 1].
            own: int (N,), the classes that images shall leave, or with a target come to.
            clip: keep perturbed images in [0, 1].
            batch_size: images per pass, at most.
            targeted: whether they shall come to it; the rate is then that of success.
        """
        self._model, self._images, self._own = model, images, own
        self._targeted = targeted
        self._options: Any = {"clip": clip, "batch_size": batch_size}
        self._rate = 0.0
        self.vector = np.zeros(images.shape[1:], np.float32)

    def meet(self, vector: np.ndarray) -> float:
        """The rate of a perturbation (H, W, C), which is kept if none was as good until now."""
        found = classes_of(self._model, self._images, vector, **self._options)
        rate = float(((found == self._own) == self._targeted).mean())
        if rate > self._rate:
            self._rate, self.vector = rate, vector
        return rate


# What is compiled: a model and tensors in, tensors out. `clip` is settled when it is traced.


def perturbed_by(images: Any, vector: Any, clip: bool) -> Any:
    moved = images + vector
    return tf.clip_by_value(moved, 0.0, 1.0) if clip else moved


def classes_under(model: keras.Model, images: Any, vector: Any, clip: bool) -> Any:
    return tf.argmax(model(perturbed_by(images, vector, clip), training=False), axis=1)
