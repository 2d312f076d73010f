"""The end of a classifier: the last activation, and the logits before it."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import keras
import numpy as np

from resfool.classifiers.interface import SingleOutput
from resfool.errors import InputError

Tensor = Any


@dataclass(frozen=True)
class Part:
    """A beginning of a model: up to `tensor` of its graph, then `head`."""

    tensor: Tensor  # in the model's own graph; None for a model without one, called as it is
    head: tuple[Callable[[Tensor], Tensor], ...] = ()  # nothing of which belongs to the model
    activation: str | None = None  # that was left out
    finish: Callable[[Tensor], Tensor] = lambda outputs: outputs  # float32 outputs to logits

    def agrees(self, logits: np.ndarray, outputs: np.ndarray, complete: "Part") -> bool:
        """Whether the activation that was left out makes the model's outputs of these logits."""
        function = getattr(keras.ops, str(self.activation))
        again = keras.ops.convert_to_numpy(function(logits))
        half = keras.backend.standardize_dtype(complete.tensor.dtype) in ("float16", "bfloat16")
        return bool(np.allclose(again, outputs, rtol=0, atol=2e-2 if half else 1e-4))


@dataclass(frozen=True)
class Seen:
    """What a model does, as was seen by running it.

    Attributes:
        ends_in_activation: whether the activation that its graph ends in makes its outputs.
        probabilities: whether its outputs are those of classes.
        gradient: whether its outputs have a gradient by the image.
    """

    ends_in_activation: bool
    probabilities: bool
    gradient: bool = True


def logits_part(
    part: Part | None, complete: Part, units: int, seen: Seen, single_output: SingleOutput
) -> Part | None:
    """The part of a model that gives logits; None if its outputs are logits already.

    Args:
        part: the model without its last activation, if its graph has one that can be taken off.
        complete: all of it.
        units: of its output.
        seen: what it does.
        single_output: what a single unit gives.

    Raises:
        InputError: nobody says what the single output unit gives, or it can't be that.
    """
    tiny = float(np.finfo(np.float32).tiny)
    if not seen.ends_in_activation:
        part = None
    if units == 1:
        return _of_single_unit(part, complete, single_output, tiny)
    if single_output != "seen":
        raise InputError(
            f"single_output={single_output} is for a model with one output unit; this one has"
            f" {units}"
        )
    if part is None and seen.probabilities:
        return replace(complete, finish=lambda p: keras.ops.log(keras.ops.maximum(p, tiny)))
    return part


def _of_single_unit(part: Part | None, complete: Part, asked: SingleOutput, tiny: float) -> Part:
    if part is None and asked == "seen":
        raise InputError(
            "the model has one output unit, and no sigmoid or tanh is seen after it; say by"
            " single_output=logit or single_output=probability what it gives for the second of"
            " two classes, or save a classifier with a unit for each class"
        )
    if part is None and asked == "probability":
        return replace(complete, finish=lambda p: _pair(_log(1 - p, tiny), _log(p, tiny)))
    if part is None:
        return replace(complete, finish=lambda z: _pair(keras.ops.zeros_like(z), z))
    if asked == "logit" or (asked == "probability" and part.activation != "sigmoid"):
        raise InputError(
            f"single_output={asked} can't be: the model ends in a {part.activation}; leave it out"
        )
    # tanh(z) = 2 sigmoid(2 z) - 1
    slope = 2.0 if part.activation == "tanh" else 1.0
    return replace(part, finish=lambda z: _pair(keras.ops.zeros_like(z), slope * z))


def _pair(first: Tensor, second: Tensor) -> Tensor:
    return keras.ops.concatenate([first, second], axis=-1)


def _log(p: Tensor, tiny: float) -> Tensor:
    return keras.ops.log(keras.ops.maximum(p, tiny))


def ending(tensor: Tensor, *, single: bool = False) -> Part | None:
    """What gives `tensor` without its last softmax or sigmoid; None if it has none.

    Args:
        tensor: of a model's graph.
        single: whether it has a single unit: a tanh counts then, and a softmax gives nothing.
    """
    operation, node_index, _ = tensor._keras_history
    before = operation._inbound_nodes[node_index].input_tensors
    if len(before) != 1:
        return None
    if _changes_nothing(operation):
        return ending(before[0], single=single)
    if isinstance(operation, (keras.layers.Flatten, keras.layers.Reshape)):
        kept = before[0].shape[-1] == tensor.shape[-1]
        part = ending(before[0], single=single) if kept else None
        return part and Part(part.tensor, (*part.head, _twin(operation)), part.activation)
    if isinstance(operation, keras.Model):
        if len(getattr(operation, "outputs", None) or ()) != 1 or len(operation.inputs) != 1:
            return None
        part = ending(operation.outputs[0], single=single)
        return part and Part(before[0], (_cut(operation, part),), part.activation)
    activation = _activation(operation)
    if activation not in (("sigmoid", "tanh") if single else ("softmax", "sigmoid")):
        return None
    if isinstance(operation, keras.Layer) and not isinstance(
        operation, (keras.layers.Activation, keras.layers.Softmax)
    ):
        linear = _twin(operation, activation=keras.activations.linear)
        return Part(before[0], (linear,), activation)
    return Part(before[0], (), activation)


def _changes_nothing(operation: Any) -> bool:
    """Whether an operation passes on its input, in inference."""
    layers = keras.layers
    idle = (layers.Dropout, layers.GaussianNoise, layers.Identity, layers.ActivityRegularization)
    if isinstance(operation, layers.Activation):
        return operation.activation is keras.activations.linear
    return isinstance(operation, idle)


def _activation(operation: Any) -> str:
    """The name of the activation with which an operation ends, as far as can be told."""
    last = getattr(operation, "activation", operation)
    if isinstance(last, keras.layers.Activation):
        last = last.activation
    if isinstance(last, keras.layers.Softmax):
        return "softmax"
    # keras.ops are operations of a class, activations are functions; TensorFlow's has a number.
    return str(getattr(last, "__name__", type(last).__name__)).lower().removesuffix("_v2")


def _cut(model: keras.Model, part: Part) -> keras.Model:
    """A nested model without its last activation."""
    given = model.inputs[0]
    inputs = keras.Input(batch_shape=given.shape, dtype=given.dtype)
    x = inputs
    if part.tensor is not given:
        x = keras.Model(given, part.tensor, name=f"{model.name}_features")(x)
    for step in part.head:
        x = step(x)
    return keras.Model(inputs, x, name=f"{model.name}_logits")


def _twin(layer: keras.Layer, **changes: Any) -> keras.Layer:
    """The same layer with the same weights, other attributes, and no place in a graph.

    Keras copies a layer by saving and loading it, which would give it weights of its own; and its
    attributes are set past Keras, which would note them in lists that both layers have.
    """
    twin = object.__new__(type(layer))
    twin.__dict__.update(layer.__dict__, _inbound_nodes=[], _outbound_nodes=[], **changes)
    return twin
