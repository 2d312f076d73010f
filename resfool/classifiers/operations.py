"""Operations of TensorFlow in the graphs of Keras 2, which Keras 3 reads no more."""

import operator
from collections.abc import Callable
from typing import Any

import keras
import tensorflow as tf


class TFOpLambda(keras.Layer):
    """One such operation, by the name that Keras 2 wrote for it.

    Args:
        function: that name, such as math.multiply or __operators__.add.
        **options: of any layer.
    """

    def __init__(self, function: str, **options: Any) -> None:
        super().__init__(**options)
        self.function = function
        self._operation = _operation(function)

    def call(self, tensors: Any, **arguments: Any) -> Any:
        arguments.pop("name", None)
        given = tensors if isinstance(tensors, list | tuple) else [tensors]
        return self._operation(*given, **arguments)

    def get_config(self) -> dict[str, Any]:
        return super().get_config() | {"function": self.function}


def _operation(function: str) -> Callable[..., Any]:
    part, _, name = function.rpartition(".")
    if part == "__operators__":
        return _operator(name)
    place = tf
    for each in part.split(".") if part else ():
        place = getattr(place, each)
    found: Callable[..., Any] = getattr(place, name)
    return found


def _operator(name: str) -> Callable[..., Any]:
    """Python's operator, with its sides exchanged if the name says so, as in rsub."""
    if hasattr(operator, name):
        plain = getattr(operator, name)
        return lambda x, y: plain(x, y)
    turned = getattr(operator, name.removeprefix("r"))
    return lambda x, y: turned(y, x)
