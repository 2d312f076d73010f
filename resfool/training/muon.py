"""Muon: momentum whose updates of kernels are made orthogonal."""

from collections.abc import Sequence
from typing import Any

import keras
import tensorflow as tf

# Of the polynomial p(s) = a s + b s^3 + c s^5, five times over: it takes singular values from 0.003
# to 1 to about 1 (Jordan et al. 2024).
_COEFFICIENTS = (3.4445, -4.7750, 2.0315)
_TIMES = 5
_RMS = 0.2  # of an update of rate 1, as Adam's have it (Liu et al. 2025)


class Muon(keras.optimizers.Optimizer):
    """Nesterov momentum, made orthogonal for kernels inside the network; Adam for all else.

    A kernel counts as the matrix W (inputs x outputs) that its patches are multiplied by, of n rows
    and m columns. With the gradient G and the momentum M,

        M <- b M + G,   W <- W - rate * 0.2 sqrt(max(n, m)) * orthogonal(G + b M)

    where orthogonal(U S V^T) = U V^T, nearly, by Newton-Schulz iterations. The last kernel, biases,
    scales and offsets have Adam's steps of the same rate.

    Source: Jordan et al. 2024, "Muon: an optimizer for hidden layers in neural networks"; the scale
    of updates is that of Liu et al. 2025, arXiv:2502.16982.

    Args:
        learning_rate: of both kinds of steps: a number, or a schedule.
        last: the path of the last kernel.
        momentum: b.
        options: those of every Keras optimizer.
    """

    def __init__(
        self, learning_rate: Any, *, last: str, momentum: float = 0.95, **options: Any
    ) -> None:
        super().__init__(learning_rate=learning_rate, name="muon", **options)
        self.momentum = momentum
        self._last = last

    def build(self, variables: Sequence[Any]) -> None:
        """Make the momenta, and Adam's second moments where they are needed."""
        if self.built:
            return
        super().build(variables)
        self._momenta = [self._like(v, "momentum") for v in variables]
        self._squares = [None if self._is_inner(v) else self._like(v, "square") for v in variables]

    def _like(self, variable: Any, name: str) -> Any:
        return self.add_variable_from_reference(variable, name)

    def _is_inner(self, variable: Any) -> bool:
        return variable.path.endswith("/kernel") and variable.path != self._last

    def update_step(self, gradient: Any, variable: Any, learning_rate: Any) -> None:
        """Take one variable's step."""
        index = self._get_variable_index(variable)
        momentum, square = self._momenta[index], self._squares[index]
        if square is None:
            momentum.assign(self.momentum * momentum + gradient)
            step = _orthogonal(gradient + self.momentum * momentum)
        else:
            step = self._adam(gradient, momentum, square)
        variable.assign_sub(learning_rate * step)

    def _adam(self, gradient: Any, momentum: Any, square: Any) -> Any:
        """Adam's step of rate 1. Source: Kingma and Ba 2015, arXiv:1412.6980, algorithm 1."""
        first, second = 0.9, 0.999
        done = tf.cast(self.iterations + 1, tf.float32)
        momentum.assign(first * momentum + (1 - first) * gradient)
        square.assign(second * square + (1 - second) * gradient**2)
        size = tf.sqrt(square / (1 - second**done)) + 1e-7
        return momentum / (1 - first**done) / size


def _orthogonal(kernel: Any) -> Any:
    """U V^T of a kernel's matrix U S V^T, scaled to Adam's size.

    All powers are taken in the smaller of the two spaces: with A = X^T X, a polynomial of X is X
    times one of A, and what it makes of A is known without X.
    """
    *_, outputs = kernel.shape
    matrix = tf.reshape(kernel, (-1, outputs))
    wide = matrix.shape[0] < outputs
    x = tf.transpose(matrix) if wide else matrix
    gram = tf.matmul(x, x, transpose_a=True)
    gram /= tf.linalg.trace(gram) + 1e-14
    scale = tf.norm(x) + 1e-7
    identity = tf.eye(x.shape[1])
    whole = identity / scale
    a, b, c = _COEFFICIENTS
    for _ in range(_TIMES):
        factor = a * identity + b * gram + c * gram @ gram
        gram = factor @ gram @ factor
        whole @= factor
    x = x @ whole
    orthogonal = tf.transpose(x) if wide else x
    return tf.reshape(_RMS * max(matrix.shape) ** 0.5 * orthogonal, kernel.shape)
