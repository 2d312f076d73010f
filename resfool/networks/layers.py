"""What Keras lacks: batch normalisation on TensorFlow's fused kernel."""

import contextlib
import threading
from collections.abc import Iterator
from typing import Any

import keras
import tensorflow as tf

from resfool import devices


class BatchNormReLU(keras.layers.Layer):
    """relu(batch_norm(x)) in one kernel: (N, H, W, C) to the same shape and type.

    It stands for keras.layers.BatchNormalization followed by keras.layers.ReLU: the same formula
    and the same weights in the same order (gamma, beta, moving mean, moving variance), (C,) each.

    On TensorFlow's CPU, Keras spells batch normalisation out as a dozen elementwise operations in
    float32, each a pass over memory. FusedBatchNormV3 is one pass in the layer's own type with
    float32 statistics, and TensorFlow's graph optimizer folds the ReLU behind it into it. GPUs
    have the same operation, but out of training no gradient of it that gives the same bits every
    time: there it is spelled out.

    Args:
        momentum: of the moving averages.
        epsilon: added to the variance.
        options: those of every Keras layer.

    Source: Ioffe and Szegedy 2015, arXiv:1502.03167, algorithms 1 and 2.
    """

    def __init__(self, momentum: float = 0.99, epsilon: float = 1e-3, **options: Any) -> None:
        super().__init__(**options)
        self.momentum = momentum
        self.epsilon = epsilon

    def build(self, input_shape: tuple[int | None, ...]) -> None:
        """Make the four weights of each channel."""
        channels = input_shape[-1]
        self.gamma = self._weight("gamma", channels, "ones", trainable=True)
        self.beta = self._weight("beta", channels, "zeros", trainable=True)
        self.moving_mean = self._weight("moving_mean", channels, "zeros", trainable=False)
        self.moving_variance = self._weight("moving_variance", channels, "ones", trainable=False)

    def _weight(self, name: str, channels: int | None, initial: str, *, trainable: bool) -> Any:
        # Scale, offset and statistics stay float32 under bfloat16, as the kernel wants them.
        return self.add_weight(
            name=name,
            shape=(channels,),
            initializer=initial,
            trainable=trainable,
            dtype="float32",
            autocast=False,
        )

    def call(self, x: Any, training: bool = False) -> Any:
        """Normalise by the batch's statistics in training, else by the moving averages."""
        if not training and devices.on_gpus():
            return tf.nn.relu(self._spelled_out(x))
        if not training:
            y, *_ = self._normalise(x, self.moving_mean.value, self.moving_variance.value, False)
            return tf.nn.relu(y)
        # The kernel takes the batch's own statistics when it is given none.
        y, mean, variance, *_ = self._normalise(x, [], [], True)
        # It returns the unbiased variance, while Keras averages the biased one.
        count = tf.cast(tf.size(x) // tf.shape(x)[-1], tf.float32)
        self._move(self.moving_mean, mean)
        self._move(self.moving_variance, variance * ((count - 1) / count))
        return tf.nn.relu(y)

    def _normalise(self, x: Any, mean: Any, variance: Any, is_training: bool) -> Any:
        gamma, beta = self.gamma.value, self.beta.value
        return _fused(x, gamma, beta, mean, variance, self.epsilon, is_training)

    def _spelled_out(self, x: Any) -> Any:
        scale = self.gamma.value * tf.math.rsqrt(self.moving_variance.value + self.epsilon)
        offset = self.beta.value - self.moving_mean.value * scale
        return x * tf.cast(scale, x.dtype) + tf.cast(offset, x.dtype)

    def _move(self, average: Any, batch_value: Any) -> None:
        average.assign(average * self.momentum + batch_value * (1 - self.momentum))

    def compute_output_shape(self, input_shape: tuple[int | None, ...]) -> tuple[int | None, ...]:
        """The input's shape."""
        return input_shape

    def get_config(self) -> dict[str, Any]:
        """The arguments that make the layer again."""
        return super().get_config() | {"momentum": self.momentum, "epsilon": self.epsilon}


_KERNEL_TYPES = (tf.float32, tf.bfloat16, tf.float16)
_switching = threading.RLock()


@contextlib.contextmanager
def fused_inference() -> Iterator[None]:
    """Run keras.layers.BatchNormalization on the fused kernel while a graph is traced inside.

    That is for anybody's model: nothing of it is changed, and what the graph computes differs by
    rounding only. Where the kernel doesn't fit (in training, channels first, float64, other than
    4 dimensions) Keras's own operations are traced, and all of them where there is a GPU.
    """
    if devices.on_gpus():
        yield
        return
    layer = keras.layers.BatchNormalization
    # The class is everyone's: without the lock, two threads could put back each other's method.
    with _switching:
        plain = layer.call

        def call(self: Any, inputs: Any, training: bool | None = None, mask: Any = None) -> Any:
            fits = len(inputs.shape) == 4 and self.axis in (-1, 3)
            if training or not fits or inputs.dtype not in _KERNEL_TYPES:
                return plain(self, inputs, training=training, mask=mask)
            mean, variance = self.moving_mean, self.moving_variance
            gamma = self.gamma if self.scale else tf.ones_like(mean)
            beta = self.beta if self.center else tf.zeros_like(mean)
            # The kernel wants these in float32, whatever the layer's policy.
            gamma, beta, mean, variance = (
                tf.cast(part, tf.float32) for part in (gamma, beta, mean, variance)
            )
            y, *_ = _fused(inputs, gamma, beta, mean, variance, self.epsilon, False)
            return tf.cast(y, self.compute_dtype)

        layer.call = call
        try:
            yield
        finally:
            layer.call = plain


def _fused(
    x: Any, gamma: Any, beta: Any, mean: Any, variance: Any, epsilon: float, is_training: bool
) -> Any:
    return tf.raw_ops.FusedBatchNormV3(
        x=x,
        scale=gamma,
        offset=beta,
        mean=mean,
        variance=variance,
        epsilon=epsilon,
        is_training=is_training,
    )
