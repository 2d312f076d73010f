"""How networks are trained and judged: the same numbers as slow plain references."""

import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf

from resfool import checkpoints
from resfool.errors import InputError
from resfool.monitor import Monitor
from resfool.networks.layers import BatchNormReLU
from resfool.training.augmentation import augmented
from resfool.training.judged import PreciseStatistics
from resfool.training.muon import Muon
from resfool.training.recipe import TrainParameters, resumed
from resfool.training.steps import RECIPES, Steps
from resfool.training.train import train
from resfool.values import Row
from tests.test_training import IMAGES, assert_same_bits, eagerly, model, trainer

__all__ = ["eagerly"]  # a fixture


@dataclass
class Reference:
    """Gradient descent on a network without hidden layers, in NumPy."""

    kernel: np.ndarray
    bias: np.ndarray
    momentum: float = 0.0
    nesterov: bool = False
    decay: float = 0.0
    smoothing: float = 0.0
    ema: float = 0.0

    def __post_init__(self) -> None:
        self.velocity = [0 * self.kernel, 0 * self.bias]
        self.averages = [self.kernel, self.bias]
        self.done = 0

    def step(self, images: np.ndarray, labels: np.ndarray, rate: float) -> float:
        """One step; the loss before it, by the labels as they are."""
        x = (images.reshape(len(images), -1).astype(np.float64) - 0.5) / 0.3
        z = x @ self.kernel + self.bias
        p = np.exp(z - z.max(axis=1, keepdims=True))
        p /= p.sum(axis=1, keepdims=True)
        wanted = np.eye(p.shape[1])[labels]
        loss = -np.log(p[wanted > 0]).mean()
        wanted = (1 - self.smoothing) * wanted + self.smoothing / p.shape[1]
        gradients = [x.T @ (p - wanted) / len(labels), (p - wanted).mean(axis=0)]
        moves = []
        for i, gradient in enumerate(gradients):
            self.velocity[i] = self.momentum * self.velocity[i] - rate * gradient
            ahead = self.momentum * self.velocity[i] - rate * gradient
            moves.append(ahead if self.nesterov else self.velocity[i])
        self.kernel = (1 - rate * self.decay) * self.kernel + moves[0]
        self.bias = self.bias + moves[1]
        kept = min(self.ema, (1 + self.done) / (10 + self.done))
        now = [self.kernel, self.bias]
        self.averages = [kept * a + (1 - kept) * w for a, w in zip(self.averages, now, strict=True)]
        self.done += 1
        return float(loss)


def linear() -> keras.Model:
    images = keras.Input((8, 8, 1))
    normalised = keras.layers.Normalization(mean=[0.5], variance=[0.09])(images)
    flat = keras.layers.Flatten()(normalised)
    return keras.Model(images, keras.layers.Dense(10, name="logits")(flat))


def triangle(done: float) -> float:
    return done / 0.25 if done < 0.25 else (1 - done) / 0.75


def half_cosine(done: float) -> float:
    return done / 0.5 if done < 0.5 else (1 + math.cos(math.pi * (done - 0.5) / 0.5)) / 2


@pytest.mark.parametrize(
    ("options", "own", "rates"),
    [
        ({"lr_drop": (3, 5)}, {}, [0.1] * 3 + [0.01] * 2 + [0.001] * 3),
        (
            {"optimizer": "nesterov", "schedule": "onecycle", "weight_decay": 0.5, "ema": 0.6},
            {"momentum": 0.9, "nesterov": True, "decay": 0.5, "ema": 0.6},
            [0.1 * triangle((i + 0.5) / 8) for i in range(8)],
        ),
        (
            {"optimizer": "momentum", "schedule": "cosine", "warmup": 0.5, "label_smoothing": 0.3},
            {"momentum": 0.9, "smoothing": 0.3},
            [0.1 * half_cosine((i + 0.5) / 8) for i in range(8)],
        ),
    ],
)
def test_gradient_descent_agrees_with_numpy(
    options: dict[str, Any], own: dict[str, Any], rates: list[float], eagerly: None
) -> None:
    network, judged = linear(), linear()
    usual: dict[str, Any] = {"optimizer": "sgd", "learning_rate": 0.1, "steps": 8}
    made = trainer(network, **usual | options)
    drawn = [made._batch(tf.constant(i)) for i in range(8)]
    kernel, bias = (w.astype(np.float64) for w in network.get_layer("logits").get_weights())
    reference = Reference(kernel, bias, **own)
    expected = [
        reference.step(np.asarray(images), np.asarray(labels), rate)
        for (images, labels), rate in zip(drawn, rates, strict=True)
    ]
    made.advance(8)
    np.testing.assert_allclose([loss for loss, _ in made._window], expected, rtol=1e-4)
    made.give_weights(judged)
    for ours, theirs in zip(
        judged.get_layer("logits").get_weights(), reference.averages, strict=True
    ):
        np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-6)


def newton_schulz(matrix: np.ndarray) -> np.ndarray:
    """As it is published, on the matrix itself."""
    x = matrix / np.linalg.norm(matrix)
    for _ in range(5):
        square = x @ x.T
        x = 3.4445 * x + (-4.7750 * square + 2.0315 * square @ square) @ x
    return np.asarray(x)


@pytest.mark.parametrize("shape", [(3, 3, 5, 4), (3, 3, 2, 40), (20, 7), (6, 30)])
def test_muon_makes_updates_orthogonal(shape: tuple[int, ...], eagerly: None) -> None:
    rng = np.random.default_rng(0)
    start, gradients = rng.normal(size=shape), rng.normal(size=(2, *shape))
    with keras.name_scope("hidden"):
        variable = keras.Variable(start, name="kernel", dtype="float32")
    made = Muon(0.1, last="another")
    made.build([variable])
    expected, momentum = start.reshape(-1, shape[-1]), np.zeros(shape).reshape(-1, shape[-1])
    for gradient in gradients:
        made.apply([tf.constant(gradient, tf.float32)])
        flat = gradient.reshape(expected.shape)
        momentum = 0.95 * momentum + flat
        size = 0.2 * max(expected.shape) ** 0.5
        expected = expected - 0.1 * size * newton_schulz(flat + 0.95 * momentum)
    np.testing.assert_allclose(np.asarray(variable).reshape(expected.shape), expected, atol=2e-4)
    step = newton_schulz(flat)
    u, _, v = np.linalg.svd(flat, full_matrices=False)
    values = np.diag(u.T @ step @ v.T)
    np.testing.assert_allclose(step, u @ np.diag(values) @ v, atol=1e-9)
    assert 0.6 < values.min() <= values.max() < 1.3


def test_muon_takes_the_last_kernel_and_the_biases_as_adam_does(eagerly: None) -> None:
    networks = linear(), linear()
    networks[1].set_weights(networks[0].get_weights())
    for network, optimizer in zip(networks, ("adam", "muon"), strict=True):
        trainer(network, optimizer=optimizer).advance(5)
    for one, other in zip(*(network.trainable_variables for network in networks), strict=True):
        np.testing.assert_allclose(one, other, atol=5e-4)  # tiny gradients: epsilon


def test_a_recipe_fills_in_what_is_not_given() -> None:
    modern = Steps(recipe="modern")
    assert modern.rules == RECIPES["modern"] != RECIPES["paper"] == Steps().rules
    own = Steps(recipe="modern", augment=("off",), ema=0, optimizer="adam", learning_rate=0.01)
    assert own.rules == replace(
        RECIPES["modern"], augment=("off",), ema=0.0, optimizer="adam", learning_rate=0.01
    )
    assert Steps.of({"recipe": "modern", "augment": "off"}).rules.augment == ("off",)
    assert own.settled() == Steps(**own.settled()).settled()
    assert Steps(recipe="modern", lr_drop=(5,)).rules.schedule == "drop"
    assert Steps(adversarial="fgsm").rules.batch_norm_statistics == "moving"


@pytest.mark.parametrize(
    ("kinds", "shifts", "mirrors"),
    [(["shift"], True, False), (["mirror"], False, True), (["shift", "mirror"], True, True)],
)
def test_images_are_shifted_by_up_to_four_pixels_and_half_of_them_mirrored(
    kinds: list[str], shifts: bool, mirrors: bool
) -> None:
    count, size = 200, 12
    images = np.random.default_rng(0).random((count, size, size, 2), dtype=np.float32)
    result = np.asarray(augmented(images, kinds, (1, 2)))
    seen = set()
    for before, after in zip(images, result, strict=True):
        padded = np.pad(before, [(4, 4), (4, 4), (0, 0)], mode="reflect")
        candidates = {
            (down, right, mirrored): padded[down : down + size, right : right + size][
                :, :: -1 if mirrored else 1
            ]
            for down in range(9)
            for right in range(9)
            for mirrored in (False, True)
        }
        matches = [key for key, crop in candidates.items() if np.array_equal(crop, after)]
        assert matches
        seen.add(matches[0])
    moves = set(range(9)) if shifts else {4}
    assert {down for down, _, _ in seen} == {right for _, right, _ in seen} == moves
    if not mirrors:
        assert not any(m for _, _, m in seen)
    elif shifts:
        assert 0.3 < sum(m for _, _, m in seen) / len(seen) < 0.7
    if kinds == ["shift", "mirror"]:
        both = augmented(images, ["crop_flip"], (1, 2))  # as earlier runs call it
        np.testing.assert_array_equal(both, result)


def test_an_image_of_a_few_pixels_is_shifted_within_itself() -> None:
    images = np.random.default_rng(0).random((50, 2, 3, 1), dtype=np.float32)
    shifted = np.asarray(augmented(images, ["shift"], (1, 2)))
    assert all(np.isin(after, before).all() for before, after in zip(images, shifted, strict=True))
    assert not np.array_equal(shifted, images)


def test_cutout_hides_one_square_of_each_image() -> None:
    images = np.random.default_rng(0).random((300, 32, 32, 3), dtype=np.float32)
    result = np.asarray(augmented(images, ["cutout"], (1, 2)))
    hidden = (result != images).any(axis=-1)
    assert (result[hidden] == 0.5).all()
    heights, widths = hidden.any(axis=2).sum(axis=1), hidden.any(axis=1).sum(axis=1)
    np.testing.assert_array_equal(hidden.sum(axis=(1, 2)), heights * widths)
    assert heights.max() == widths.max() == 8
    assert 4 <= heights.min() < 8  # the middle is in the image, and part may be outside
    middles = hidden.mean(axis=0)
    assert middles.min() > 0, "some pixels are never hidden"


# The network that is judged


def test_precise_statistics_are_those_of_the_images() -> None:
    """The first layer's input depends on no statistics: all images' mean and variance, exactly."""
    images = np.random.default_rng(0).random((700, 8, 8, 1), dtype=np.float32)
    made = model("convnet")
    first = next(one for one in made.layers if isinstance(one, BatchNormReLU))
    before = keras.Model(made.inputs, first.input)
    PreciseStatistics(made, images).take()
    values = np.asarray(before([images[:500]])).astype(np.float64)  # whole batches alone count
    mean, variance = values.mean(axis=(0, 1, 2)), values.var(axis=(0, 1, 2))
    np.testing.assert_allclose(first.moving_mean, mean, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(first.moving_variance, variance, rtol=1e-4)


def test_by_precise_statistics_of_one_batch_a_network_acts_as_in_training_on_it() -> None:
    made = model("resnet")
    trainer(made).advance(3)
    images = IMAGES[:60]
    PreciseStatistics(made, images).take()
    judged = np.asarray(made(images, training=False))
    np.testing.assert_allclose(judged, made(images, training=True), rtol=1e-3, atol=1e-4)


def test_a_network_is_saved_as_it_was_judged(eagerly: None) -> None:
    asked = TrainParameters(
        arch="resnet",
        depth=5,
        width=(2,),
        dropout=0.3,
        steps=3,
        batch_size=16,
        recipe="modern",
        dataset="digits",
    )
    result = train(asked)
    last = result.history[-1]
    assert last["test_accuracy"] == pytest.approx(result.test.accuracy)
    assert last["test_loss"] == pytest.approx(result.test.loss, rel=1e-4)


def test_an_interrupted_training_is_judged_as_if_it_had_not_been(
    tmp_path: Path, eagerly: None
) -> None:
    path = tmp_path / "checkpoint.npz"

    class Keeper(Monitor):
        def begin(self, name: str, facts: Any, uses: Any) -> Path:
            return path

        def point(self, row: Row) -> None:
            if "test_accuracy" in row and not resuming:
                raise KeyboardInterrupt

    small: dict[str, Any] = {"depth": 5, "width": (2,), "batch_size": 16, "dataset": "digits"}
    small |= {"recipe": "modern", "steps": 4, "eval_every": 2}
    asked = TrainParameters(arch="resnet", **small)
    resuming = False
    with pytest.raises(KeyboardInterrupt):
        train(asked, Keeper())
    arrays, facts = checkpoints.load(path)
    assert facts["step"] == 2
    resuming = True
    again, whole = train(resumed(TrainParameters(arch="resnet"), path), Keeper()), train(asked)
    assert again.history == whole.history
    assert_same_bits(again.model, whole.model)
    # Before there was a choice, statistics were moving averages.
    del facts["settings"]["batch_norm_statistics"]
    checkpoints.save(path, arrays, facts)
    before = resumed(TrainParameters(arch="resnet"), path)
    assert before.rules.batch_norm_statistics == "moving"


# What is refused


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"schedule": "drop"}, "schedule=drop needs lr_drop"),
        ({"schedule": "onecycle", "warmup": 0.0}, "schedule=onecycle needs a rise"),
        ({"augment": "off,shift"}, "augment=off,shift says off and more"),
        ({"augment": "blur"}, "unknown augment 'blur'; known: off, shift"),
        ({"label_smoothing": 1.0}, "label_smoothing=1.0 isn't allowed"),
        ({"label_smoothing": -0.1}, "label_smoothing=-0.1 isn't allowed"),
        ({"ema": 1}, "ema=1 isn't allowed"),
        ({"recipe": "todays"}, "unknown recipe 'todays'; known: paper, modern"),
        ({"schedule": "cosine", "lr_drop": 5}, "lr_drop=5 has no effect with schedule=cosine"),
        ({"warmup": 0.1}, "warmup=0.1 has no effect with schedule=constant"),
        ({"arch": "multiresnet", "downsample": "pool"}, "has no effect with arch=multiresnet"),
        ({"arch": "mlp", "downsample": "pool"}, "downsample=pool has no effect with arch=mlp"),
        ({"arch": "mlp", "batch_norm_statistics": "precise"}, "has no effect with arch=mlp"),
        (
            {"arch": "convnet", "batch_norm": "no", "batch_norm_statistics": "precise"},
            "batch_norm_statistics=precise has no effect with batch_norm=false",
        ),
    ],
)
def test_what_does_not_fit_is_refused_in_one_sentence(given: dict[str, Any], told: str) -> None:
    with pytest.raises(InputError) as caught:
        TrainParameters.of({"arch": "resnet"} | given)
    assert told in str(caught.value)
    assert "\n" not in str(caught.value)
