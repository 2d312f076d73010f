"""A stranger's Keras classifier, made ready for attacks: from images in [0, 1] to logits."""

import functools
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from resfool.classifiers.endings import Part, Seen, ending, logits_part
from resfool.classifiers.interface import Allowed, Interface
from resfool.classifiers.reaching import GraphOf, single
from resfool.classifiers.refusals import keras_at_work
from resfool.declarations import without_effect
from resfool.errors import InputError, unknown
from resfool.values import listed

Tensor = Any


def as_classifier(
    model: keras.Model,
    *,
    image_shape: Sequence[int],
    classes: int | None,
    interface: Interface | None = None,
    name: str,
    seen: Seen | None = None,
    allowed: Allowed | None = None,
) -> keras.Model:
    """Make a classifier what attacks want: from images in [0, 1] to logits, with a gradient.

    A softmax at the end is taken off, also inside a nested model, so that the logits are exact; if
    it can't be seen, they are log(max(p, tiny)). A sigmoid of several units is taken off too: it
    doesn't change which one is largest. A single unit becomes the logits (0, z), whose softmax is
    (1 - sigmoid(z), sigmoid(z)). Anything else counts as logits as it is.

    A model that takes whole numbers is given rounded pixels, and gradients pass the rounding as if
    it weren't there (Bengio et al. 2013, arXiv:1308.3432: the straight-through estimator).

    Args:
        model: a classifier; it is not changed, and the result shares its weights.
        image_shape: (H, W, C). The model may also take (H, W) if C is 1, H*W*C pixels in a row, or
            (C, H, W).
        classes: their number; None takes the model's.
        interface: how the model takes images and gives classes.
        name: of the result; characters that Keras has no use for become "_".
        seen: what `look` found out about the model; None looks.
        allowed: what is taken beside the usual.

    Returns:
        A Keras model from float32 (N, H, W, C) in [0, 1] to float32 (N, classes), which acts as in
        inference when called with training=False.

    Raises:
        InputError: the model's inputs or outputs don't fit, no gradient reaches its input, or its
            outputs differ from pass to pass.
    """
    title = re.sub(r"[^\w.-]+", "_", name, flags=re.ASCII).strip("_.-") or "classifier"
    asked = interface or Interface()
    adapting = _Adapting.of(model, image_shape, classes, asked, title, allowed or Allowed())
    with keras_at_work(_CANT):
        return adapting.logits(seen or adapting.look())


def look(
    model: keras.Model,
    *,
    image_shape: Sequence[int],
    classes: int | None,
    interface: Interface | None = None,
    allowed: Allowed | None = None,
) -> Seen:
    """Run a classifier on images, for what `as_classifier` must know: the dearest part of it.

    Raises:
        InputError: as there.
    """
    asked = interface or Interface()
    adapting = _Adapting.of(model, image_shape, classes, asked, "classifier", allowed or Allowed())
    with keras_at_work(_CANT):
        return adapting.look()


_CANT = "the model can't be made into a classifier"


@dataclass(frozen=True)
class _Adapting:
    """A model that is being made a classifier.

    Attributes:
        model: as it was given.
        shape: (H, W, C) of an image.
        classes: that it must have; None takes its own.
        asked: how it takes images and gives classes.
        taken: what it takes for an image.
        name: of the result.
        allowed: what is taken beside the usual.
    """

    model: keras.Model
    shape: tuple[int, ...]
    classes: int | None
    asked: Interface
    taken: "_Taken"
    name: str
    allowed: Allowed

    @classmethod
    def of(
        cls,
        model: keras.Model,
        image_shape: Sequence[int],
        classes: int | None,
        asked: Interface,
        name: str,
        allowed: Allowed,
    ) -> "_Adapting":
        shape = tuple(int(size) for size in image_shape)
        if not model.built:
            raise InputError("the model has no weights yet; call it on an image before it is given")
        _check_names(model)
        if asked.channel_order == "bgr" and shape[-1] == 1:
            raise without_effect("channel_order", "bgr", "images of one channel", "three channels")
        asked.scale_and_offset(shape[-1])
        return cls(model, shape, classes, asked, _taken(model, shape, asked), name, allowed)

    def look(self) -> Seen:
        """Run the model on two images, and see that attacks have something to hold on to."""
        probes = _probe_images(self.shape)
        whole, complete, part = self._parts()
        outputs = _call(whole, probes)
        if not self.allowed.random:
            _check_steady(outputs, _call(whole, probes))
        # A layer may have an activation and more after it: that it's right is seen by trying.
        ends = part is not None and part.agrees(_call(self._up_to(part), probes), outputs, complete)
        sums_to_one = outputs.min() >= 0 and np.abs(outputs.sum(axis=1) - 1).max() < 1e-3
        seen = Seen(ends_in_activation=ends, probabilities=bool(sums_to_one))
        gradient = _has_gradient(self.logits(seen), probes, self.allowed)
        return replace(seen, gradient=gradient)

    def logits(self, seen: Seen) -> keras.Model:
        """The classifier that the model becomes."""
        whole, complete, part = self._parts()
        units = whole.output_shape[-1]
        part = logits_part(part, complete, units, seen, self.asked.single_output)
        logits = whole if part is None else self._up_to(part)
        return logits if seen.gradient else _connected(logits)

    def _parts(self) -> tuple[keras.Model, Part, Part | None]:
        """All of the model, adapted and as a part, and the part before its last activation."""
        complete = Part(_output(self.model, self.asked))
        whole = self._up_to(complete)
        units = _check_output(whole, self.classes)
        part = None if complete.tensor is None else ending(complete.tensor, single=units == 1)
        return whole, complete, part

    def _up_to(self, part: Part) -> keras.Model:
        """A part of the model, from images in [0, 1] to float32."""
        taken = self.taken
        scale, offset = self.asked.scale_and_offset(self.shape[-1])
        images = keras.Input(self.shape, dtype="float32", name="images")
        x = images
        if self.asked.plain.channel_order == "bgr":
            x = keras.ops.flip(x, axis=-1)
        if (scale, offset) != (1.0, 0.0):
            x = keras.layers.Rescaling(scale, offset, dtype="float32", name="to_range")(x)
        if taken.channels_first:
            x = keras.ops.transpose(x, (0, 3, 1, 2))
        elif taken.shape != self.shape:
            x = keras.layers.Reshape(taken.shape, dtype="float32", name="to_shape")(x)
        if "float" not in taken.dtype:
            x = _StraightThrough(name="to_whole_numbers")(x)
        elif taken.dtype != "float32":
            x = keras.ops.cast(x, taken.dtype)
        y = _run(self.model, part, x, taken)
        if keras.backend.standardize_dtype(y.dtype) != "float32":
            y = keras.ops.cast(y, "float32")
        return keras.Model(images, part.finish(y), name=self.name)


# What goes in.


@dataclass(frozen=True)
class _Taken:
    """What the model takes.

    Attributes:
        number: of the input for the image.
        shape: of an image as the model takes it.
        dtype: of it.
        channels_first: whether that is (C, H, W).
        others: the values of the other inputs, by their numbers.
    """

    number: int
    shape: tuple[int, ...]
    dtype: str
    channels_first: bool
    others: dict[int, np.ndarray]


def _taken(model: keras.Model, image_shape: tuple[int, ...], asked: Interface) -> _Taken:
    inputs = getattr(model, "inputs", None)
    if inputs is None:
        # A class of its own, which says no more before it is called.
        return _Taken(0, image_shape, "float32", False, {})
    number, others = _choose_input(inputs, asked)
    given = tuple(inputs[number].shape)
    dtype = keras.backend.standardize_dtype(inputs[number].dtype)
    first = (image_shape[-1], *image_shape[:-1])
    choices = [image_shape, (math.prod(image_shape),)]
    if image_shape[-1] == 1:
        choices.append(image_shape[:-1])
    for choice in (*choices, first):
        if _fits(given[1:], choice) and given[1:] != (None,):
            return _Taken(number, choice, dtype, choice is first, others)
    allowed = listed(str((None, *choice)) for choice in (*choices, first))
    raise InputError(
        f"the model takes inputs of shape {given}, but the images are {image_shape}, which need"
        f" {allowed}"
    )


def _choose_input(inputs: Sequence[Tensor], asked: Interface) -> tuple[int, dict[int, np.ndarray]]:
    """The number of the input that takes the image, and the values of the others."""
    names = [tensor.name for tensor in inputs]
    if asked.input is not None and asked.input not in names:
        raise unknown("input", asked.input, names)
    for name in asked.fixed:
        if name not in names:
            raise unknown("input", name, names)
    if asked.input is not None:
        image = asked.input
    else:
        open_ones = [name for name in names if name not in asked.fixed]
        if len(open_ones) != 1:
            raise InputError(
                f"the model takes {len(names)} inputs, {listed(names)}; say by input=NAME which of"
                " them is the image, and give the others by inputs=npz:PATH"
            )
        (image,) = open_ones
    others = {}
    for number, (name, tensor) in enumerate(zip(names, inputs, strict=True)):
        if name == image:
            continue
        if name not in asked.fixed:
            raise InputError(
                f"the model takes {name} beside the image {image}; give it by inputs=npz:PATH, as"
                f" an array {name} of the shape {tuple(tensor.shape[1:])}"
            )
        value = asked.fixed[name]
        if value.dtype.kind not in "biuf":
            raise InputError(f"{asked.inputs}: {name} holds {value.dtype.name} instead of numbers")
        if not _fits(tuple(tensor.shape[1:]), value.shape):
            raise InputError(
                f"{asked.inputs}: {name} has the shape {value.shape}, and the model takes"
                f" {tuple(tensor.shape[1:])}, one for all images"
            )
        others[number] = value.astype(keras.backend.standardize_dtype(tensor.dtype))
    return names.index(image), others


def _fits(given: tuple[int | None, ...], shape: tuple[int, ...]) -> bool:
    return len(given) == len(shape) and all(
        size in (None, wanted) for size, wanted in zip(given, shape, strict=True)
    )


def _run(model: keras.Model, part: Part, x: Tensor, taken: _Taken) -> Tensor:
    """Add a part of a model to another graph, leaving no trace in its own."""
    if part.tensor is None:
        x = model(x)
    elif part.tensor is not model.inputs[taken.number]:
        given = [
            _Always(taken.others[n])(x) if n in taken.others else x
            for n in range(len(model.inputs))
        ]
        features = keras.Model(single(model.inputs), part.tensor, name=f"{model.name}_features")
        if "float" not in taken.dtype:
            features = GraphOf(features, name=features.name)
        x = features(single(given))
    for step in part.head:
        x = step(x)
    return x


class _Always(keras.Layer):
    """The same value for each image of a batch."""

    def __init__(self, value: Any, dtype: Any = None, **options: Any) -> None:
        value = np.asarray(value, dtype)
        super().__init__(dtype=str(value.dtype), trainable=False, **options)
        self._value = value

    def call(self, images: Tensor) -> Tensor:
        return tf.repeat(tf.constant(self._value)[tf.newaxis], tf.shape(images)[0], axis=0)

    def get_config(self) -> dict[str, Any]:
        own = {"value": self._value.tolist(), "dtype": str(self._value.dtype)}
        return {"name": self.name} | own


class _StraightThrough(keras.Layer):
    """Rounds, and lets the gradient pass as if it didn't."""

    def call(self, pixels: Tensor) -> Tensor:
        return pixels + tf.stop_gradient(tf.round(pixels) - pixels)


# What comes out.


def _output(model: keras.Model, asked: Interface) -> Tensor:
    """The output with the classes, in the model's graph; None for a model that has none."""
    outputs = getattr(model, "outputs", None)
    if not outputs:
        return None
    names = list(getattr(model, "output_names", ()) or ())
    if asked.output is not None:
        if asked.output not in names:
            raise unknown("output", asked.output, names)
        return outputs[names.index(asked.output)]
    if len(outputs) != 1:
        raise InputError(
            f"the model has {len(outputs)} outputs, {listed(names)}; say by output=NAME which of"
            " them has the classes"
        )
    return outputs[0]


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


# Whether attacks have something to hold on to.


def _probe_images(image_shape: tuple[int, ...]) -> np.ndarray:
    """Two images of noise, one of all grey levels and one around the middle."""
    noise = np.random.default_rng(0).random((2, *image_shape), dtype=np.float32)
    noise[1] = 0.4 + 0.2 * noise[1]
    return noise


def _call(model: keras.Model, images: np.ndarray) -> np.ndarray:
    return np.asarray(keras.ops.convert_to_numpy(model(images, training=False)))


_NAME = re.compile(r"[A-Za-z0-9_.\\/>-]*")  # of a layer, by which TensorFlow calls what it compiles


def _check_names(model: keras.Model) -> None:
    """Refuse names of layers that can't be compiled; an input layer's isn't."""
    for layer in model._flatten_layers():
        if not (isinstance(layer, keras.layers.InputLayer) or _NAME.fullmatch(layer.name)):
            raise InputError(
                f"its layer {layer.name!r} has a name that TensorFlow can't compile; name it with "
                "letters, digits, _ . - and / alone"
            )


_SAME = 1e-3  # of the outputs' size: more than that no other order of summation makes


def _check_steady(outputs: np.ndarray, again: np.ndarray) -> None:
    """Refuse a model whose outputs differ from pass to pass: what fools it once may not do again.

    Outputs that are no numbers are told elsewhere.
    """
    if not np.isfinite([outputs, again]).all():
        return
    if np.abs(again - outputs).max() > _SAME * np.abs(outputs).max():
        raise InputError(
            "the model can't be attacked: its outputs for the same image differ from pass to pass, "
            "as with dropout that is left on; trust=yes takes it, and the report says so"
        )


def _has_gradient(model: keras.Model, probes: np.ndarray, allowed: Allowed) -> bool:
    """Whether a model's logits have a gradient by the image, without which little moves them.

    Raises:
        InputError: they have none, and such models aren't taken; or nothing can move them.
    """
    rng = np.random.default_rng(0)
    # Not eagerly, where gradients by kernels are computed too, and TensorFlow's of a 1x1 kernel
    # with strides ends the process on some CPUs.
    differentiate = tf.function(functools.partial(_gradient, model))
    # One image is nearly always enough, and its gradient is the dearest part of all checks.
    for image in probes:
        # A random mix of differences between logits: what all have in common drops out.
        mix = rng.standard_normal((1, *model.output_shape[1:])).astype(np.float32)
        logits, gradient = differentiate(tf.constant(image[np.newaxis]), tf.constant(mix))
        if not np.isfinite(logits.numpy()).all():
            raise InputError("the model can't be attacked: its outputs are infinite or not numbers")
        if not np.isfinite(gradient.numpy()).all():
            raise InputError("the model can't be attacked: its gradient is infinite or no number")
        if gradient.numpy().any():
            return True
    one, other = _call(model, probes)
    if (one == other).all():
        raise InputError(
            "the model can't be attacked: no gradient reaches its input, and its outputs are the "
            "same for all images"
        )
    if not allowed.without_gradient:
        raise InputError(
            "the model can't be attacked: no gradient reaches its input; only an attack's "
            "method=square needs none, and method=standard says how far it gets"
        )
    return False


def _connected(model: keras.Model) -> keras.Model:
    """The same model with a gradient of zero by the image, where it has none at all."""
    (images,), (logits,) = model.inputs, model.outputs
    return keras.Model(
        images, _ZeroGradient(name="zero_gradient")([logits, images]), name=model.name
    )


class _ZeroGradient(keras.Layer):
    """Passes the first of two tensors on, as if it depended on the second."""

    def call(self, both: Sequence[Tensor]) -> Tensor:
        outputs, images = both
        return outputs + 0.0 * tf.reduce_sum(images)


def _gradient(model: keras.Model, images: Tensor, mix: Tensor) -> tuple[Tensor, Tensor]:
    """Logits, and the gradient of a mix of them; compiled, none by the weights is computed."""
    with tf.GradientTape(watch_accessed_variables=False) as tape:
        tape.watch(images)
        logits = model(images, training=False)
        mixed = tf.reduce_sum(logits * (mix - tf.reduce_mean(mix)))
    gradient = tape.gradient(mixed, images, unconnected_gradients="zero")
    return logits, gradient
