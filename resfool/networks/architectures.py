"""The paper's four convolutional architectures and its fully connected network (III, IV.B).

One skeleton, stem -> five stages -> head, and one rule per architecture for a unit or a stage.
Every model takes raw pixels in [0, 1] and gives logits; normalisation is a layer inside it.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import keras
import numpy as np

from resfool.networks import layers
from resfool.networks.shape import Network
from resfool.values import Precision

Tensor = Any  # a Keras tensor, symbolic


@dataclass
class _Kit:
    """The layers that the blocks are made of, with one precision and seeds that never repeat."""

    network: Network
    policy: str
    seed: int
    fused: bool
    _seeds_drawn: int = field(default=0, init=False)

    def _next_seed(self) -> int:
        self._seeds_drawn += 1
        words = np.random.SeedSequence([self.seed, self._seeds_drawn]).generate_state(1)
        return int(words[0] >> 1)

    def _he_normal(self) -> keras.initializers.Initializer:
        return keras.initializers.HeNormal(seed=self._next_seed())

    def conv(self, x: Tensor, width: int, name: str, *, stride: int = 1, **options: Any) -> Tensor:
        return keras.layers.Conv2D(
            width,
            3,
            strides=stride,
            padding="same",
            use_bias=options.pop("use_bias", False),
            kernel_initializer=self._he_normal(),
            dtype=self.policy,
            name=name,
            **options,
        )(x)

    def norm_relu(self, x: Tensor, name: str) -> Tensor:
        if self.fused:
            return layers.BatchNormReLU(dtype=self.policy, name=f"{name}_bn")(x)
        x = keras.layers.BatchNormalization(dtype=self.policy, name=f"{name}_bn")(x)
        return keras.layers.ReLU(dtype=self.policy, name=f"{name}_relu")(x)

    def relu(self, x: Tensor, name: str) -> Tensor:
        return keras.layers.ReLU(dtype=self.policy, name=f"{name}_relu")(x)

    def dropout(self, x: Tensor, name: str) -> Tensor:
        if not self.network.dropout:
            return x
        layer = keras.layers.Dropout(
            self.network.dropout,
            seed=self._next_seed(),
            dtype=self.policy,
            name=f"{name}_dropout",
        )
        return layer(x)

    def dense(self, x: Tensor, width: int, name: str, *, policy: str | None = None) -> Tensor:
        if not self.network.architecture.stages:
            kernel = keras.initializers.GlorotUniform(seed=self._next_seed())
        else:
            kernel = self._he_normal()
        return keras.layers.Dense(
            width, kernel_initializer=kernel, dtype=policy or self.policy, name=name
        )(x)

    def half(self, x: Tensor, name: str) -> Tensor:
        """2x2 average pooling: between stages, or in the shortcut of a unit that shrinks maps."""
        pool = keras.layers.AveragePooling2D(2, padding="same", dtype=self.policy, name=name)
        return pool(x)

    def add(self, x: Tensor, y: Tensor, name: str) -> Tensor:
        return keras.layers.Add(dtype=self.policy, name=name)([x, y])

    def concatenate(self, maps: list[Tensor], name: str) -> Tensor:
        return keras.layers.Concatenate(dtype=self.policy, name=name)(maps)

    def shortcut(self, x: Tensor, width: int, stride: int, name: str) -> Tensor:
        """The identity; averaged where the maps shrink, zero padded where their number grows."""
        if stride == 2:
            x = self.half(x, f"{name}_pool")
        missing = width - x.shape[-1]
        if missing:
            x = keras.ops.pad(x, [[0, 0], [0, 0], [0, 0], [0, missing]])
        return x

    def transform(self, x: Tensor, width: int, stride: int, name: str) -> Tensor:
        """H of equations 2 to 4: batch normalisation, ReLU, convolution, once or twice."""
        for i in range(self.network.convs_per_unit):
            part = name if self.network.convs_per_unit == 1 else f"{name}_{'ab'[i]}"
            x = self.dropout(self.norm_relu(x, part), part)
            x = self.conv(x, width, f"{part}_conv", stride=stride if i == 0 else 1)
        return x


Unit = Callable[[_Kit, Tensor, int, int, str], Tensor]  # kit, maps, width, stride, name
Stage = Callable[[_Kit, Tensor, int, int, str], Tensor]  # kit, maps, width, index, name


def _convnet_unit(kit: _Kit, x: Tensor, width: int, stride: int, name: str) -> Tensor:
    """Equation 1: convolution, batch normalisation, ReLU."""
    normalise = kit.network.batch_norm
    x = kit.dropout(x, name)
    x = kit.conv(x, width, f"{name}_conv", stride=stride, use_bias=not normalise)
    return kit.norm_relu(x, name) if normalise else kit.relu(x, name)


def _resnet_unit(kit: _Kit, x: Tensor, width: int, stride: int, name: str) -> Tensor:
    """Equation 2: H(x) + x."""
    transformed = kit.transform(x, width, stride, name)
    return kit.add(transformed, kit.shortcut(x, width, stride, name), f"{name}_add")


def _highway_unit(kit: _Kit, x: Tensor, width: int, stride: int, name: str) -> Tensor:
    """Equation 3 with C = 1 - T: H(x) T(x) + x (1 - T(x)), computed as x + T(x) (H(x) - x)."""
    gate = kit.conv(
        x,
        width,
        f"{name}_gate",
        stride=stride,
        use_bias=True,
        bias_initializer=keras.initializers.Constant(kit.network.gate_bias),
        activation="sigmoid",
    )
    transformed = kit.transform(x, width, stride, name)
    carried = kit.shortcut(x, width, stride, name)
    change = keras.layers.Subtract(dtype=kit.policy, name=f"{name}_change")([transformed, carried])
    change = keras.layers.Multiply(dtype=kit.policy, name=f"{name}_gated")([gate, change])
    return kit.add(carried, change, f"{name}_add")


def chained(unit: Unit) -> Stage:
    """A stage of units in a row; in stages 2 to 5 the first halves the maps, or a pooling does."""

    def stage(kit: _Kit, x: Tensor, width: int, index: int, name: str) -> Tensor:
        units = kit.network.depth // kit.network.architecture.stages // kit.network.convs_per_unit
        pools = kit.network.downsample == "pool"
        if index > 0 and pools:
            x = kit.half(x, f"{name}_pool")
        for i in range(units):
            stride = 2 if index > 0 and i == 0 and not pools else 1
            x = unit(kit, x, width, stride, f"{name}_unit{i + 1}")
        return x

    return stage


def _multiresnet_stage(kit: _Kit, x: Tensor, width: int, index: int, name: str) -> Tensor:
    """Equation 4: each layer sees the stage's input and all outputs before it, side by side."""
    if index > 0:
        x = kit.half(x, f"{name}_pool")
    maps = [x]
    for i in range(kit.network.depth // kit.network.architecture.stages):
        unit = f"{name}_unit{i + 1}"
        seen = maps[0] if len(maps) == 1 else kit.concatenate(maps, f"{unit}_concat")
        maps.append(kit.transform(seen, width, 1, unit))
    return maps[-1]


# A fully connected network has no stages: see _mlp.
STAGE_RULES: dict[str, Stage] = {
    "convnet": chained(_convnet_unit),
    "resnet": chained(_resnet_unit),
    "highway": chained(_highway_unit),
    "multiresnet": _multiresnet_stage,
}


def build(
    network: Network,
    *,
    image_shape: Sequence[int],
    classes: int,
    mean: Sequence[float],
    std: Sequence[float],
    seed: int = 0,
    precision: Precision = "float32",
    fused: bool = False,
) -> keras.Model:
    """A classifier from raw pixels to logits.

    Images below 32x32 are enlarged inside the convolutional models by a whole factor and padded
    with zeros to 32x32, so perturbations live in the pixels of the data set.

    Args:
        network: the checked shape, from `shape.network`.
        image_shape: (H, W, C).
        classes: number of logits.
        mean: per channel, of the training images in [0, 1]; the mlp takes pixels as they are.
        std: per channel, of the training images in [0, 1]; the same.
        seed: of the initial weights and of dropout.
        precision: of the activations and gradients; weights and logits stay float32.
        fused: use this package's fused layers, for training. Without, the model is plain Keras
            and can be saved for anyone; `copy_weights` moves the weights from one to the other.

    Returns:
        A Keras model from (N, H, W, C) float32 to (N, classes) float32.
    """
    policy = "mixed_bfloat16" if precision == "bfloat16" else "float32"
    kit = _Kit(network, policy, seed, fused)
    images = keras.Input(tuple(image_shape), name="images")
    if network.architecture.stages:
        x = _stages(kit, _normalized(_to_32_pixels(images), mean, std))
    else:
        x = _mlp(kit, images)
    logits = kit.dense(x, classes, "logits", policy="float32")
    return keras.Model(images, logits, name=network.arch)


def _stages(kit: _Kit, x: Tensor) -> Tensor:
    stage_rule = STAGE_RULES[kit.network.arch]
    x = kit.conv(x, kit.network.widths[0], "stem_conv")
    for index, width in enumerate(kit.network.widths):
        x = stage_rule(kit, x, width, index, f"stage{index + 1}")
    # 2x2 at 32 pixels: the paper's "global average 2x2 pooling".
    return keras.layers.GlobalAveragePooling2D(dtype=kit.policy, name="global_pool")(x)


def _mlp(kit: _Kit, x: Tensor) -> Tensor:
    """Section VI.C: fully connected hidden layers with ReLU.

    The paper says no more, so it is the plainest: raw pixels and Glorot's uniform weights, which
    are Keras's default. Normalised pixels or larger weights leave more of the initial noise in the
    first layer, and singular values that fall more slowly.
    """
    x = keras.layers.Flatten(name="flatten")(x)
    for i, width in enumerate(kit.network.widths):
        name = f"hidden{i + 1}"
        x = kit.dropout(kit.relu(kit.dense(x, width, name), name), name)
    return x


def _normalized(x: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    # The pixels stay float32 here: bfloat16 would round them to 8 bits before the mean is taken.
    layer = keras.layers.Normalization(
        mean=[float(m) for m in mean],
        variance=[max(float(s), 1e-6) ** 2 for s in std],
        dtype="float32",
        name="normalization",
    )
    return layer(x)


def _to_32_pixels(x: Tensor) -> Tensor:
    height, width = x.shape[1:3]
    factor = max(1, 32 // max(height, width))
    if factor > 1:
        x = keras.layers.UpSampling2D(factor, interpolation="nearest", name="enlarge")(x)
    rows, columns = max(0, 32 - height * factor), max(0, 32 - width * factor)
    if rows or columns:
        padding = ((rows // 2, rows - rows // 2), (columns // 2, columns - columns // 2))
        x = keras.layers.ZeroPadding2D(padding, name="pad")(x)
    return x


def copy_weights(source: keras.Model, target: keras.Model) -> None:
    """Give `target` the weights of `source`, layer by layer of the same name.

    Args:
        source: a model of `build`.
        target: the same network, built with other `fused` or `precision`.
    """
    for layer in source.layers:
        if layer.weights:
            target.get_layer(layer.name).set_weights(layer.get_weights())


def count_flops(model: keras.Model) -> int:
    """Floating point operations of one image's forward pass: 2 for each multiply-add.

    Only convolutions and dense layers are counted, as is customary; the rest is a few percent.

    Args:
        model: a Keras model of convolutional and dense layers.

    Returns:
        The number of operations.
    """
    flops = 0
    for layer in model.layers:
        if isinstance(layer, keras.layers.Conv2D):
            _, height, width, _ = layer.output.shape
            flops += 2 * height * width * int(np.prod(layer.kernel.shape))
        elif isinstance(layer, keras.layers.Dense):
            flops += 2 * int(np.prod(layer.kernel.shape))
    return flops
