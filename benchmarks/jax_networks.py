"""The convolutional networks in JAX, layer for layer and name for name as in `resfool.networks`."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

STAGES = 5
CLASSES = 10
EPSILON = 1e-3  # of batch normalisation
KINDS = ("moving_mean", "moving_variance")  # of statistics, as Keras calls them

Array = Any
Weights = dict[str, Array]  # by the layer's name and the weight's, such as stem_conv/kernel
Statistics = dict[str, tuple[Array, Array]]  # mean and variance, by the layer's name


@dataclass(frozen=True)
class Shape:
    """A network's shape; the names are those of `resfool.networks.shape`."""

    arch: str
    depth: int = 10
    width: int = 64
    convs_per_unit: int = 1
    downsample: str = "stride"
    batch_norm: bool = True
    gate_bias: float = -1.0


@dataclass
class Pass:
    """One way through a network.

    Attributes:
        shape: of the network.
        weights: float32; where one is missing it is drawn, which makes a new network's.
        given: the statistics to normalise by; none are the batch's own.
        random: what missing weights are drawn by.
        seen: the batch's own statistics, by layer.
    """

    shape: Shape
    weights: Weights
    given: Statistics | None = None
    random: np.random.Generator | None = None
    seen: Statistics = field(default_factory=dict)

    def weight(self, name: str, shape: tuple[int, ...], value: float | None = None) -> Array:
        """A weight; a new one is `value` throughout, or He normal where that is none."""
        if name not in self.weights:
            assert self.random is not None
            deviation = (2 / np.prod(shape[:-1])) ** 0.5
            # Keras cuts normal numbers off at two deviations, and widens them accordingly.
            drawn = self.random.standard_normal((8, *shape))
            first = np.take_along_axis(drawn, (np.abs(drawn) < 2).argmax(0)[None], 0)[0]
            made = (
                deviation / 0.87962566103423978 * first if value is None else np.full(shape, value)
            )
            self.weights[name] = made.astype(np.float32)
        return self.weights[name]

    def conv(self, x: Array, name: str, *, stride: int = 1, bias: float | None = None) -> Array:
        """3x3, in the activations' own precision."""
        width = self.shape.width
        kernel = self.weight(f"{name}/kernel", (3, 3, x.shape[-1], width))
        y = jax.lax.conv_general_dilated(
            x,
            jnp.asarray(kernel, x.dtype),
            (stride, stride),
            "SAME",
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
        )
        if bias is not None:
            y += jnp.asarray(self.weight(f"{name}/bias", (width,), bias), x.dtype)
        return y

    def norm_relu(self, x: Array, name: str) -> Array:
        """Batch normalisation by float32 statistics, ReLU."""
        name = f"{name}_bn"
        channels = x.shape[-1:]
        gamma = self.weight(f"{name}/gamma", channels, 1.0)
        beta = self.weight(f"{name}/beta", channels, 0.0)
        whole = x.astype(jnp.float32)
        mean = whole.mean((0, 1, 2))
        variance = (whole**2).mean((0, 1, 2)) - mean**2
        self.seen[name] = mean, variance
        if self.given is not None:
            mean, variance = self.given[name]
        scale = gamma * jax.lax.rsqrt(variance + EPSILON)
        return jax.nn.relu(whole * scale + (beta - mean * scale)).astype(x.dtype)

    def transform(self, x: Array, name: str, stride: int = 1) -> Array:
        """H of equations 2 to 4."""
        for i in range(self.shape.convs_per_unit):
            part = name if self.shape.convs_per_unit == 1 else f"{name}_{'ab'[i]}"
            x = self.conv(self.norm_relu(x, part), f"{part}_conv", stride=1 if i else stride)
        return x


def half(x: Array) -> Array:
    """2x2 average pooling."""
    count, height, width, channels = x.shape
    return x.reshape(count, height // 2, 2, width // 2, 2, channels).mean((2, 4))


def _convnet_unit(on: Pass, x: Array, name: str, stride: int) -> Array:
    """Equation 1."""
    if on.shape.batch_norm:
        return on.norm_relu(on.conv(x, f"{name}_conv", stride=stride), name)
    return jax.nn.relu(on.conv(x, f"{name}_conv", stride=stride, bias=0.0))


def _resnet_unit(on: Pass, x: Array, name: str, stride: int) -> Array:
    """Equation 2."""
    return on.transform(x, name, stride) + (half(x) if stride == 2 else x)


def _highway_unit(on: Pass, x: Array, name: str, stride: int) -> Array:
    """Equation 3."""
    gate = jax.nn.sigmoid(on.conv(x, f"{name}_gate", stride=stride, bias=on.shape.gate_bias))
    carried = half(x) if stride == 2 else x
    return carried + gate * (on.transform(x, name, stride) - carried)


UNITS: dict[str, Callable[[Pass, Array, str, int], Array]] = {
    "convnet": _convnet_unit,
    "resnet": _resnet_unit,
    "highway": _highway_unit,
}


def _chained(on: Pass, x: Array, index: int, name: str) -> Array:
    pools = on.shape.downsample == "pool"
    x = half(x) if index and pools else x
    for i in range(on.shape.depth // STAGES // on.shape.convs_per_unit):
        stride = 2 if index and not i and not pools else 1
        x = UNITS[on.shape.arch](on, x, f"{name}_unit{i + 1}", stride)
    return x


def _dense(on: Pass, x: Array, index: int, name: str) -> Array:
    """Equation 4."""
    maps = [half(x) if index else x]
    for i in range(on.shape.depth // STAGES):
        seen = jnp.concatenate(maps, -1)
        maps.append(on.transform(seen, f"{name}_unit{i + 1}"))
    return maps[-1]


def logits(on: Pass, images: Array) -> Array:
    """Normalised images (N, 32, 32, 3) to logits (N, 10), float32."""
    stage = _dense if on.shape.arch == "multiresnet" else _chained
    x = on.conv(images, "stem_conv")
    for index in range(STAGES):
        x = stage(on, x, index, f"stage{index + 1}")
    x = x.mean((1, 2)).astype(jnp.float32)
    kernel = on.weight("logits/kernel", (x.shape[-1], CLASSES))
    return x @ kernel + on.weight("logits/bias", (CLASSES,), 0.0)


def new(shape: Shape, seed: int) -> tuple[Weights, Statistics]:
    """A network's first weights, and moving averages to start from."""
    on = Pass(shape, {}, random=np.random.default_rng(seed))
    jax.eval_shape(lambda x: logits(on, x), jax.ShapeDtypeStruct((1, 32, 32, 3), jnp.float32))
    sizes = {name: len(on.weights[f"{name}/gamma"]) for name in on.seen}
    statistics = {
        name: (np.zeros(size, np.float32), np.ones(size, np.float32))
        for name, size in sizes.items()
    }
    return on.weights, statistics


def save(path: Path, weights: Weights, statistics: Statistics) -> None:
    """Write a network into an npz file."""
    both = {
        f"{name}/{kind}": v
        for name, two in statistics.items()
        for kind, v in zip(KINDS, two, strict=True)
    }
    np.savez(path, **weights, **both)


def load_into(model: Any, path: Path) -> None:
    """Give the network that `resfool.networks.architectures.build` makes what `save` wrote."""
    with np.load(path) as arrays:
        for layer in model.layers:
            for weight in layer.weights:
                name = f"{layer.name}/{weight.name}"
                if name in arrays:
                    weight.assign(arrays[name])
