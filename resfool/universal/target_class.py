"""The class that a targeted universal perturbation moves images to."""

from collections.abc import Sequence

import keras
import numpy as np

from resfool.classifiers import inference
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


def of_other_classes(
    model: keras.Model, images: np.ndarray, target: int, batch_size: int
) -> np.ndarray:
    """The images that the model has in another class than the target.

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
    return images if others.all() else images[others]
