"""Running a classifier on any number of images: compiled once, in batches of one fixed size."""

import weakref
from collections.abc import Callable, Iterator
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from resfool.errors import InputError
from resfool.networks.layers import fused_inference

BATCH_SIZE = 250  # images of one forward pass

Function = Callable[..., Any]  # a model and tensors in, tensors out

# A model that is gone takes its compiled functions with it.
_compiled: weakref.WeakKeyDictionary[keras.Model, dict[Function, Function]] = (
    weakref.WeakKeyDictionary()
)


def compiled(model: keras.Model, function: Function) -> Function:
    """A function of a model and tensors as one of tensors alone, compiled and kept.

    It must be a function of a module, so that the same one is recognised again. New shapes are
    compiled anew.
    """
    functions = _compiled.setdefault(model, {})
    if function not in functions:
        functions[function] = tf.function(_bound(function, weakref.ref(model)))
    return functions[function]


def _bound(function: Function, model: Callable[[], Any]) -> Function:
    # The graph must not keep its model alive, or the dictionary would never lose it.
    def call(*tensors: Any) -> Any:
        with fused_inference():
            return function(model(), *tensors)

    return call


def batches(count: int, batch_size: int) -> Iterator[slice]:
    """The slices that cut `count` rows into batches; the last one may be shorter."""
    for start in range(0, count, batch_size):
        yield slice(start, min(start + batch_size, count))


def filled(rows: np.ndarray, batch_size: int) -> Any:
    """Rows (N, ...), one to `batch_size`, as a tensor of exactly (batch_size, ...).

    What is missing repeats the last row: a short batch would be compiled anew.
    """
    missing = batch_size - len(rows)
    if missing:
        rows = np.concatenate([rows, np.repeat(rows[-1:], missing, axis=0)])
    return tf.constant(rows)


def logits(model: keras.Model, images: np.ndarray, batch_size: int = BATCH_SIZE) -> np.ndarray:
    """A model's logits for any number of images.

    Args:
        model: from images to logits.
        images: float32 (N, H, W, C) in [0, 1].
        batch_size: images per forward pass.

    Returns:
        float32 (N, classes).
    """
    forward = compiled(model, _logits)
    return np.concatenate(
        [
            forward(filled(images[rows], batch_size)).numpy()[: rows.stop - rows.start]
            for rows in batches(len(images), batch_size)
        ]
    )


def _logits(model: keras.Model, images: Any) -> Any:
    return model(images, training=False)


def predicted(logits: np.ndarray) -> np.ndarray:
    """The predicted classes, int (N,), of some images by their logits, float (N, classes).

    Raises:
        InputError: an image has logits that are no numbers, of which none is the largest.
    """
    bad = int((~np.isfinite(logits)).any(axis=1).sum())
    if bad:
        raise InputError(
            f"the model's outputs are infinite or not numbers for {bad} of {len(logits)} images"
        )
    return logits.argmax(axis=1)
