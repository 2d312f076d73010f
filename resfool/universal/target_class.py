"""The class that a targeted universal perturbation moves images to."""

from collections.abc import Sequence

import keras
import numpy as np

from resfool.classifiers import inference
from resfool.classifiers.inference import Rows
from resfool.errors import InputError, unknown


def number_of(target: str, class_names: Sequence[str]) -> int:
    """The class of a name or, if none is called so, of a number.

    Raises:
        InputError: there is no such class.
    """
    if target in class_names:
        return class_names.index(target)
    if target.isascii() and target.isdecimal() and int(target) < len(class_names):
        return int(target)
    raise unknown("target class", target, class_names)


def of_other_classes(model: keras.Model, images: Rows, target: int, batch_size: int) -> np.ndarray:
    """The numbers of the images that the model has in another class than the target, int (M,).

    Args:
        model: from images to logits.
        images: float32 (N, H, W, C).
        target: class.
        batch_size: images per pass, at most.

    Raises:
        InputError: there are none.
    """
    others = inference.predicted(inference.logits(model, images, batch_size)) != target
    if not others.any():
        raise InputError(
            f"target={target} leaves nothing to do: it is the class of all {len(images)} images "
            "already"
        )
    return np.flatnonzero(others)


def reached(model: keras.Model, target: int) -> keras.Model:
    """A model of two classes: any other than the target, by the largest of their logits, and it.

    Whatever makes an image of another class change its prediction moves it to the target: so what
    is written for any change of class serves here too.

    Args:
        model: from images to logits.
        target: class.
    """
    (images,), (logits,) = model.inputs, model.outputs
    others = [number for number in range(logits.shape[1]) if number != target]
    best = keras.ops.max(keras.ops.take(logits, others, axis=1), axis=1, keepdims=True)
    both = keras.ops.concatenate([best, keras.ops.take(logits, [target], axis=1)], axis=1)
    return keras.Model(images, both, name=f"{model.name}_reached")
