"""A stranger's Keras classifier, made ready for attacks: from images in [0, 1] to logits."""

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from resfool.classifiers.files import keras_at_work
from resfool.errors import InputError

Tensor = Any


def as_classifier(
    model: keras.Model,
    *,
    image_shape: Sequence[int],
    classes: int | None,
    input_range: tuple[float, float] = (0.0, 1.0),
    name: str,
) -> keras.Model:
    """Make a classifier what attacks want: from images in [0, 1] to logits, with a gradient.

    A softmax at the end is taken off, also inside a nested model, so that the logits are exact; if
    it can't be seen, they are log(max(p, tiny)). A sigmoid of several units is taken off too: it
    doesn't change which one is largest. A sigmoid of a single unit becomes the logits (0, z).
    Anything else counts as logits as it is.

    Args:
        model: a classifier; it is not changed, and the result shares its weights.
        image_shape: (H, W, C). The model may also take (H, W) if C is 1, or H*W*C pixels in a row.
        classes: their number; None takes the model's.
        input_range: the values that the model wants for black and for white.
        name: of the result; characters that Keras has no use for become "_".

    Returns:
        A Keras model from float32 (N, H, W, C) in [0, 1] to float32 (N, classes), which acts as in
        inference when called with training=False.

    Raises:
        InputError: the model's inputs or outputs don't fit, or no gradient reaches its input.
    """
    shape = tuple(int(size) for size in image_shape)
    low, high = map(float, input_range)
    if not -math.inf < low < high < math.inf:
        raise InputError(
            f"input_range must be two finite numbers, the lower one first, not {low}, {high}"
        )
    if not model.built:
        raise InputError("the model has no weights yet; call it on an image before it is given")
    taken, dtype = _check_input(model, shape)
    title = re.sub(r"[^\w.-]+", "_", name, flags=re.ASCII).strip("_.-") or "classifier"

    def adapted(part: _Part) -> keras.Model:
        images = keras.Input(shape, dtype="float32", name="images")
        x = images
        if (low, high) != (0.0, 1.0):
            x = keras.layers.Rescaling(high - low, low, dtype="float32", name="to_range")(x)
        if taken != shape:
            x = keras.layers.Reshape(taken, dtype="float32", name="to_shape")(x)
        if dtype != "float32":
            x = keras.ops.cast(x, dtype)
        y = _run(model, part, x)
        if keras.backend.standardize_dtype(y.dtype) != "float32":
            y = keras.ops.cast(y, "float32")
        return keras.Model(images, part.finish(y), name=title)

    with keras_at_work("the model can't be made into a classifier"):
        whole = adapted(_whole(model))
        units = _check_output(whole, classes)
        probes = _probe_images(shape)
        part = _logits_part(model, whole, adapted, units, probes)
        logits = whole if part is None else adapted(part)
        _check_attackable(logits, probes)
        return logits


def _check_input(model: keras.Model, image_shape: tuple[int, ...]) -> tuple[tuple[int, ...], str]:
    """The shape and type in which the model takes an image."""
    inputs = getattr(model, "inputs", None)
    if inputs is None:
        return image_shape, "float32"  # a class of its own, which says no more before it is called
    if len(inputs) != 1:
        raise InputError(f"the model takes {len(inputs)} inputs; one, the image, is allowed")
    dtype = keras.backend.standardize_dtype(inputs[0].dtype)
    if "float" not in dtype:
        raise InputError(
            f"the model takes {dtype} images, and no gradient reaches whole numbers;"
            " save it with a floating-point input"
        )
    given = tuple(inputs[0].shape)
    choices = [image_shape, (math.prod(image_shape),)]
    if image_shape[-1] == 1:
        choices.append(image_shape[:-1])
    for choice in choices:
        if _fits(given[1:], choice) and given[1:] != (None,):
            return choice, dtype
    hint = ""
    if _fits(given[1:], (image_shape[-1], *image_shape[:-1])):
        hint = "; it seems to want the channels first, and they must come last"
    allowed = " or ".join(str((None, *choice)) for choice in choices)
    raise InputError(
        f"the model takes inputs of shape {given}, but the images are {image_shape}, which need"
        f" {allowed}{hint}"
    )


def _fits(given: tuple[int | None, ...], shape: tuple[int, ...]) -> bool:
    return len(given) == len(shape) and all(
        size in (None, wanted) for size, wanted in zip(given, shape, strict=True)
    )


def _check_output(whole: keras.Model, classes: int | None) -> int:
    """The number of output units."""
    shape = tuple(whole.outputs[0].shape)
    if len(shape) != 2 or shape[1] is None:
        raise InputError(f"the model's output has the shape {shape}; (None, classes) is allowed")
    units = int(shape[1])
    has = 2 if units == 1 else units  # whether a single unit will do is seen later
    if classes is not None and has != classes:
        raise InputError(f"the model has {has} classes, and the data set has {classes}")
    return units


# What comes before the last activation.


@dataclass(frozen=True)
class _Part:
    """A beginning of a model: up to `tensor` of its graph, then `head`."""

    tensor: Tensor  # in the model's own graph; None for a model without one, called as it is
    head: tuple[Callable[[Tensor], Tensor], ...] = ()  # nothing of which belongs to the model
    activation: str | None = None  # that was left out
    finish: Callable[[Tensor], Tensor] = lambda outputs: outputs  # float32 outputs to logits


def _whole(model: keras.Model) -> _Part:
    outputs = getattr(model, "outputs", None)
    if outputs is not None and len(outputs) != 1:
        raise InputError(f"the model has {len(outputs)} outputs; one, the classes, is allowed")
    return _Part(outputs[0] if outputs else None)


def _run(model: keras.Model, part: _Part, x: Tensor) -> Tensor:
    """Add a part of a model to another graph, leaving no trace in its own."""
    if part.tensor is None:
        x = model(x)
    elif part.tensor is not model.inputs[0]:
        x = keras.Model(model.inputs[0], part.tensor, name=f"{model.name}_features")(x)
    for step in part.head:
        x = step(x)
    return x


def _logits_part(
    model: keras.Model,
    whole: keras.Model,
    adapted: Callable[[_Part], keras.Model],
    units: int,
    probes: np.ndarray,
) -> _Part | None:
    """The part of the model that gives logits; None if its outputs are logits already."""
    outputs = _call(whole, probes)
    complete = _whole(model)
    part = None if complete.tensor is None else _before_activation(complete.tensor)
    # A layer may have an activation and more after it: that the part is right is seen by trying.
    if part is not None and not _agrees(part, _call(adapted(part), probes), outputs, complete):
        part = None
    if units == 1:
        if part is None or part.activation != "sigmoid":
            raise InputError(
                "the model has one output unit, which is allowed after a sigmoid only; a classifier"
                " has a unit for each class"
            )
        # Logits (0, z), whose softmax is (1 - sigmoid(z), sigmoid(z)).
        return replace(
            part, finish=lambda z: keras.ops.concatenate([keras.ops.zeros_like(z), z], axis=-1)
        )
    if part is None and outputs.min() >= 0 and np.abs(outputs.sum(axis=1) - 1).max() < 1e-3:
        tiny = float(np.finfo(np.float32).tiny)
        return replace(complete, finish=lambda p: keras.ops.log(keras.ops.maximum(p, tiny)))
    return part


def _before_activation(tensor: Tensor) -> _Part | None:
    """What gives `tensor` without its last softmax or sigmoid; None if it has none."""
    operation, node_index, _ = tensor._keras_history
    before = operation._inbound_nodes[node_index].input_tensors
    if len(before) != 1:
        return None
    if _changes_nothing(operation):
        return _before_activation(before[0])
    if isinstance(operation, (keras.layers.Flatten, keras.layers.Reshape)):
        part = _before_activation(before[0]) if before[0].shape[-1] == tensor.shape[-1] else None
        return part and _Part(part.tensor, (*part.head, _twin(operation)), part.activation)
    if isinstance(operation, keras.Model):
        if len(getattr(operation, "outputs", None) or ()) != 1 or len(operation.inputs) != 1:
            return None
        part = _before_activation(operation.outputs[0])
        return part and _Part(before[0], (_cut(operation, part),), part.activation)
    activation = _activation(operation)
    if activation is None:
        return None
    if isinstance(operation, keras.Layer) and not isinstance(
        operation, (keras.layers.Activation, keras.layers.Softmax)
    ):
        linear = _twin(operation, activation=keras.activations.linear)
        return _Part(before[0], (linear,), activation)
    return _Part(before[0], (), activation)


def _changes_nothing(operation: Any) -> bool:
    """Whether an operation passes on its input, in inference."""
    layers = keras.layers
    idle = (layers.Dropout, layers.GaussianNoise, layers.Identity, layers.ActivityRegularization)
    if isinstance(operation, layers.Activation):
        return operation.activation is keras.activations.linear
    return isinstance(operation, idle)


def _activation(operation: Any) -> str | None:
    """The softmax or sigmoid with which an operation ends, as far as can be told from outside."""
    last = getattr(operation, "activation", operation)
    if isinstance(last, keras.layers.Activation):
        last = last.activation
    if isinstance(last, keras.layers.Softmax):
        return "softmax"
    # keras.ops are operations of a class, activations are functions; TensorFlow's has a number.
    found = getattr(last, "__name__", type(last).__name__).lower().removesuffix("_v2")
    return found if found in ("softmax", "sigmoid") else None


def _cut(model: keras.Model, part: _Part) -> keras.Model:
    """A nested model without its last activation."""
    given = model.inputs[0]
    inputs = keras.Input(batch_shape=given.shape, dtype=given.dtype)
    return keras.Model(inputs, _run(model, part, inputs), name=f"{model.name}_logits")


def _twin(layer: keras.Layer, **changes: Any) -> keras.Layer:
    """The same layer with the same weights, other attributes, and no place in a graph.

    Keras copies a layer by saving and loading it, which would give it weights of its own; and its
    attributes are set past Keras, which would note them in lists that both layers have.
    """
    twin = object.__new__(type(layer))
    twin.__dict__.update(layer.__dict__, _inbound_nodes=[], _outbound_nodes=[], **changes)
    return twin


def _agrees(part: _Part, logits: np.ndarray, outputs: np.ndarray, complete: _Part) -> bool:
    """Whether the activation that was left out makes the model's outputs of these logits."""
    function = getattr(keras.ops, str(part.activation))
    again = keras.ops.convert_to_numpy(function(logits))
    half = keras.backend.standardize_dtype(complete.tensor.dtype) in ("float16", "bfloat16")
    return bool(np.allclose(again, outputs, rtol=0, atol=2e-2 if half else 1e-4))


# Whether attacks have something to hold on to.


def _probe_images(image_shape: tuple[int, ...]) -> np.ndarray:
    """Two images of noise, one of all grey levels and one around the middle."""
    noise = np.random.default_rng(0).random((2, *image_shape), dtype=np.float32)
    noise[1] = 0.4 + 0.2 * noise[1]
    return noise


def _call(model: keras.Model, images: np.ndarray) -> np.ndarray:
    return np.asarray(keras.ops.convert_to_numpy(model(images, training=False)))


def _check_attackable(model: keras.Model, probes: np.ndarray) -> None:
    """Refuse a model whose logits have no gradient by the image: nothing would move them."""
    rng = np.random.default_rng(0)
    # One image is nearly always enough, and its gradient is the dearest part of all checks.
    for image in probes:
        images = tf.constant(image[np.newaxis])
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            tape.watch(images)
            logits = model(images, training=False)
            # A random mix of differences between logits: what all have in common drops out.
            mix = rng.standard_normal(logits.shape).astype(np.float32)
            mixed = tf.reduce_sum(logits * (mix - mix.mean()))
        if not np.isfinite(logits.numpy()).all():
            raise InputError("the model can't be attacked: its outputs are infinite or not numbers")
        gradient = tape.gradient(mixed, images)
        if gradient is None:
            break
        gradient = tf.convert_to_tensor(gradient).numpy()
        if not np.isfinite(gradient).all():
            raise InputError("the model can't be attacked: its gradient is infinite or no number")
        if gradient.any():
            return
    raise InputError("the model can't be attacked: no gradient reaches its input")
