"""Compiled inference against the plain model, whatever batch normalisation is in it."""

import threading
from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf

from resfool import devices
from resfool.attacks import gradient, minimal
from resfool.classifiers import inference
from resfool.errors import InputError
from resfool.networks import architectures, shape
from resfool.networks.layers import fused_inference

layers = keras.layers
SHAPE = (8, 6, 3)
Layers = list[Any]


def predicted(model: keras.Model, some: np.ndarray) -> Any:
    assert inference.predicted(inference.logits(model, some)).tolist() == [1] * len(some)


def signs(model: keras.Model, some: np.ndarray) -> Any:
    gradient.sign_gradients(model, some, np.zeros(len(some), np.int64))


def solved(model: keras.Model, some: np.ndarray) -> Any:
    minimal.smallest_perturbations(model, some, solver="deepfool")


SEEN = (predicted, signs, solved)


def classifier(middle: Layers, dtype: str = "float32") -> keras.Model:
    """A convolution, some layers and a dense layer; with statistics that no default has."""
    first = layers.Conv2D(4, 3, dtype=dtype)
    last = [layers.Flatten(dtype=dtype), layers.Dense(5, dtype="float32")]
    model = keras.Sequential([keras.Input(SHAPE), first, *middle, *last])
    random = np.random.default_rng(0)
    for weight in model.weights:
        if weight.name in ("gamma", "beta", "moving_mean", "moving_variance"):
            weight.assign(random.uniform(0.5, 1.5, weight.shape))
    return model


def images() -> np.ndarray:
    return np.random.default_rng(1).random((7, *SHAPE), dtype=np.float32)


def norm(**options: Any) -> Any:
    return layers.BatchNormalization(**options)


CASES: dict[str, Callable[[], Layers]] = {
    "after a convolution": lambda: [norm()],
    "before a ReLU": lambda: [norm(), layers.ReLU()],
    "before a convolution": lambda: [norm(), layers.ReLU(), layers.Conv2D(3, 3)],
    "without scale": lambda: [norm(scale=False)],
    "without offset": lambda: [norm(center=False)],
    "with neither": lambda: [norm(scale=False, center=False)],
    "a small epsilon": lambda: [norm(epsilon=1e-5)],
    "last axis by number": lambda: [norm(axis=3)],
    "another axis": lambda: [norm(axis=1)],
    "frozen": lambda: [norm(trainable=False)],
    "renormalised": lambda: [norm(renorm=True)],
    "after a dense layer": lambda: [layers.Flatten(), layers.Dense(6), norm()],
    "of rows": lambda: [layers.Reshape((24, 4)), norm()],
    "nested": lambda: [keras.Sequential([norm(), keras.Sequential([norm(), layers.ReLU()])])],
    "distributed": lambda: [layers.TimeDistributed(keras.Sequential([norm()]))],
}


@pytest.mark.parametrize("case", CASES)
def test_logits_equal_the_plain_models(case: str) -> None:
    model = classifier(CASES[case]())
    expected = model(images(), training=False)
    np.testing.assert_allclose(inference.logits(model, images(), 4), expected, rtol=0, atol=2e-5)


@pytest.mark.parametrize(
    ("dtype", "atol"), [("mixed_bfloat16", 0.1), ("mixed_float16", 0.01), ("float64", 1e-6)]
)
def test_other_precisions_differ_by_their_own_rounding(dtype: str, atol: float) -> None:
    model = classifier([norm(dtype=dtype), layers.ReLU(dtype=dtype)], dtype)
    expected = model(images(), training=False)
    np.testing.assert_allclose(inference.logits(model, images()), expected, rtol=0, atol=atol)


@pytest.mark.parametrize("arch", ["convnet", "resnet", "highway", "multiresnet"])
def test_signs_and_logits_of_a_network_equal_the_plain_ones(arch: Any) -> None:
    from resfool.attacks import gradient

    model = architectures.build(
        shape.network(arch, depth=5, width=(4,)),
        image_shape=SHAPE,
        classes=5,
        mean=[0.5] * 3,
        std=[0.3] * 3,
    )
    x, labels = tf.constant(images()), np.arange(7) % 5
    with tf.GradientTape() as tape:
        tape.watch(x)
        z = model(x, training=False)
        loss = tf.nn.sparse_softmax_cross_entropy_with_logits(labels, z)
    slope = tape.gradient(loss, x).numpy()
    found = gradient.sign_gradients(model, images(), labels)
    np.testing.assert_allclose(found.logits, z, atol=2e-5)
    certain = np.abs(slope) > 1e-5 * np.abs(slope).max(axis=(1, 2, 3), keepdims=True)
    assert certain.mean() > 0.9
    np.testing.assert_array_equal(found.signs[certain], np.sign(slope)[certain])


@pytest.mark.parametrize(
    ("count", "batch_size", "sizes"),
    [
        (4, 250, [4]),
        (250, 250, [250]),
        (251, 250, [126, 125]),
        (1000, 250, [250] * 4),
        (10, 4, [4, 4, 2]),
        (9, 7, [5, 4]),
        (3, 1, [1, 1, 1]),
        (0, 5, []),
    ],
)
def test_batches_are_even_and_as_few_as_can_be(
    count: int, batch_size: int, sizes: list[int]
) -> None:
    cut = list(inference.batches(count, batch_size))
    assert [rows.stop - rows.start for rows in cut] == sizes
    numbers = np.arange(count)
    assert [n for rows in cut for n in numbers[rows]] == numbers.tolist()


def test_no_batch_has_more_rows_than_there_are_and_one_size_is_compiled(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    traced: list[int] = []

    def seen(model: keras.Model, images: Any) -> Any:
        traced.append(images.shape[0])
        return tf.reduce_sum(images, axis=(2, 3))

    monkeypatch.setattr(inference, "_logits", seen)
    model, asked = classifier([]), []
    for count, size in ((4, 4), (251, 126), (4, 4), (252, 126)):
        some = np.random.default_rng(count).random((count, *SHAPE), np.float32)

        def made(rows: slice, some: np.ndarray = some) -> np.ndarray:
            asked.append(rows.stop - rows.start)
            return some[rows]

        found = inference.logits(model, inference.LazyRows(count, made))
        np.testing.assert_allclose(found, some.sum(axis=(2, 3)), rtol=1e-5)
        assert max(asked) == size and traced[-1] in (4, 126)
        asked.clear()
    assert traced == [4, 126]


def test_new_weights_are_seen_without_compiling_anew() -> None:
    model = classifier([norm()])
    before = inference.logits(model, images())
    batch_norm = model.layers[1]
    batch_norm.moving_mean.assign(batch_norm.moving_mean + 1)
    after = inference.logits(model, images())
    assert np.abs(after - before).max() > 0.1
    np.testing.assert_allclose(after, model(images(), training=False), atol=2e-5)


def kernels(function: Any, *tensors: Any) -> set[str]:
    graph = tf.function(function).get_concrete_function(*tensors).graph
    return {operation.type for operation in graph.get_operations()}


def test_the_fused_kernel_is_used_inside_and_keras_is_left_as_it_was() -> None:
    model, plain = classifier([norm()]), layers.BatchNormalization.call
    x = tf.constant(images())

    def fused(x: Any) -> Any:
        with fused_inference():
            return model(x, training=False)

    assert "FusedBatchNormV3" in kernels(fused, x)
    assert "FusedBatchNormV3" not in kernels(lambda x: model(x, training=False), x)
    with pytest.raises(ZeroDivisionError), fused_inference():
        raise ZeroDivisionError
    assert layers.BatchNormalization.call is plain


def test_on_gpus_nothing_is_fused_whose_gradient_has_other_bits_each_time(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(devices, "on_gpus", lambda: True)
    model = classifier([norm()])

    def fused(x: Any) -> Any:
        with fused_inference():
            return model(x, training=False)

    assert "FusedBatchNormV3" not in kernels(fused, tf.constant(images()))


def test_training_inside_is_keras_own() -> None:
    model = classifier([norm()])
    start = model.get_weights()
    expected = model(images(), training=True)
    moved = model.get_weights()
    model.set_weights(start)
    with fused_inference():
        found = model(images(), training=True)
    np.testing.assert_array_equal(found, expected)
    for ours, theirs in zip(model.get_weights(), moved, strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_threads_do_not_put_back_each_others_method() -> None:
    plain = layers.BatchNormalization.call
    entered, leave = threading.Event(), threading.Event()

    def long() -> None:
        with fused_inference():
            entered.set()
            leave.wait(10)

    def short() -> None:
        with fused_inference():
            pass

    first, second = threading.Thread(target=long), threading.Thread(target=short)
    first.start()
    entered.wait(10)
    second.start()
    leave.set()
    first.join()
    second.join()
    assert layers.BatchNormalization.call is plain


@pytest.mark.parametrize("seen", SEEN, ids=lambda one: one.__name__)
def test_images_for_which_a_model_gives_no_numbers_are_refused(seen: Callable[..., Any]) -> None:
    some = np.zeros((5, *SHAPE), np.float32)
    model = keras.Sequential([keras.Input(SHAPE), layers.Flatten(), layers.Dense(3)])
    kernel, bias = model.get_weights()
    model.set_weights([kernel, bias + np.array([0, 1, 0], np.float32)])
    seen(model, some)
    model.set_weights([np.full_like(kernel, 3e38), bias])
    some[1] = some[4] = 1.0
    with pytest.raises(InputError, match="not numbers for 2 of 5 images"):
        seen(model, some)
