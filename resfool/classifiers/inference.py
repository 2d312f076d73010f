"""Running a classifier on any number of images: compiled once, in batches of one size."""

import weakref
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import keras
import numpy as np
import tensorflow as tf

from resfool.errors import InputError
from resfool.networks.layers import fused_inference

BATCH_SIZE = 250  # images of one pass, at most

Function = Callable[..., Any]  # a model and tensors in, tensors out

# A model that is gone takes its compiled functions with it.
_compiled: weakref.WeakKeyDictionary[keras.Model, dict[Function, Function]] = (
    weakref.WeakKeyDictionary()
)
_traced: weakref.WeakKeyDictionary[keras.Model, dict[Any, Function]] = weakref.WeakKeyDictionary()


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


def traced(
    model: keras.Model, function: Function, arrays: Sequence[Any], settings: Sequence[Any] = ()
) -> Function:
    """A compiled function that takes any number of rows, however few are left of them.

    TensorFlow would find what it has traced again too, but takes longer for that than small models
    do for a pass.

    Args:
        model: its first argument.
        function: of the model, tensors and settings; see `compiled`.
        arrays: such as those that the tensors will be made of, (N, ...) or ().
        settings: what is settled when it is traced, hashable.
    """
    specs = [tf.TensorSpec((None, *a.shape[1:]) if len(a.shape) else (), a.dtype) for a in arrays]
    functions, key = _traced.setdefault(model, {}), (function, *specs, *settings)
    if key not in functions:
        whole: Any = compiled(model, function)
        functions[key] = whole.get_concrete_function(*specs, *settings)
    return functions[key]


def rowwise(
    model: keras.Model,
    function: Function,
    arrays: Sequence[np.ndarray],
    *settings: Any,
    batch_size: int,
) -> list[np.ndarray]:
    """What a function makes of rows.

    Args:
        model: its first argument.
        function: of the model, some rows of each array and the settings, as for `traced`; it gives
            several tensors, a row for each.
        arrays: (N, ...) each, N at least 1.
        *settings: of the function.
        batch_size: rows of a pass, at most.
    """
    call = traced(model, function, arrays, settings)
    found = [
        [part.numpy() for part in call(*(tf.constant(a[rows]) for a in arrays), *settings)]
        for rows in batches(len(arrays[0]), batch_size)
    ]
    return [np.concatenate(parts) for parts in zip(*found, strict=True)]


class Rows(Protocol):
    """N rows, such as images: an array or LazyRows."""

    def __len__(self) -> int:
        """N."""

    def __getitem__(self, rows: slice, /) -> np.ndarray:
        """Some of them, (n, ...)."""


class Images(Rows, Protocol):
    """N images: an array, or what reads them where they are looked at."""

    @property
    def shape(self) -> tuple[int, ...]:
        """(N, H, W, C)."""

    def __getitem__(self, rows: Any, /) -> np.ndarray:
        """Some of them, by a slice or an int array, or one by its number."""


@dataclass(frozen=True)
class LazyRows:
    """N rows that are made when they are asked for, so that never all of them take memory.

    Attributes:
        count: N.
        make: from a slice, whose ends are numbers from 0 to N, to those rows, (n, ...).
    """

    count: int
    make: Callable[[slice], np.ndarray]

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, rows: slice, /) -> np.ndarray:
        return self.make(slice(*rows.indices(self.count)))


def picked(array: Images, places: np.ndarray) -> LazyRows:
    """Some rows of an array by their numbers, int (n,)."""
    return LazyRows(len(places), lambda rows: array[places[rows]])


def at(rows: Rows, places: np.ndarray) -> np.ndarray:
    """A few of some rows by their numbers, int (n,): (n, ...) in memory."""
    if isinstance(rows, np.ndarray):
        return rows[places]
    parts = [rows[place : place + 1] for place in places.tolist()]
    return np.concatenate(parts) if parts else rows[0:0]


def even(count: int, batch_size: int) -> int:
    """The size of the batches that cut `count` rows most evenly, and no finer than need be.

    It is `batch_size` at most: 251 rows in batches of 250 are 126 and 125, four are one batch.
    """
    passes = max(1, -(-count // batch_size))
    return max(1, -(-count // passes))


def batches(count: int, batch_size: int) -> Iterator[slice]:
    """The slices that cut `count` rows into even batches; the last one may be shorter."""
    size = even(count, batch_size)
    for start in range(0, count, size):
        yield slice(start, min(start + size, count))


def padded(count: int, size: int) -> np.ndarray:
    """The numbers of `count` rows, the last one repeated up to a multiple of `size`.

    Functions are compiled for a number of rows: so a few go through one that is there already.
    """
    return np.minimum(np.arange(-(-count // size) * size), count - 1)


def tensors(*arrays: Rows, batch_size: int) -> Iterator[tuple[slice, list[Any]]]:
    """Cut arrays of N rows into tensors that all have the same number of rows.

    Args:
        arrays: (N, ...) each.
        batch_size: rows of a batch, at most.

    Yields:
        Which rows come next, and a tensor for each array, (n, ...). The last batch repeats the
        last row in place of what it lacks: it would be compiled anew.
    """
    count = len(arrays[0])
    size = even(count, batch_size)
    for rows in batches(count, batch_size):
        yield rows, [filled(array[rows], size) for array in arrays]


def filled(rows: np.ndarray, size: int) -> Any:
    """Rows (n, ...), one to `size`, as a tensor of (size, ...) that repeats the last one."""
    return tf.constant(rows if len(rows) == size else rows[padded(len(rows), size)])


def logits(model: keras.Model, images: Rows, batch_size: int = BATCH_SIZE) -> np.ndarray:
    """A model's logits for any number of images.

    Args:
        model: from images to logits.
        images: float32 (N, H, W, C) in [0, 1].
        batch_size: images per forward pass, at most.

    Returns:
        float32 (N, classes).
    """
    forward = compiled(model, _logits)
    return np.concatenate(
        [
            forward(batch).numpy()[: rows.stop - rows.start]
            for rows, (batch,) in tensors(images, batch_size=batch_size)
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
