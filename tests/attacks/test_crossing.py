"""What is called flipped flips for everybody: in any batch, on any kernel, and in float64."""

import functools
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest

from resfool.attacks.leads import leads
from resfool.attacks.minimal import Minimal, smallest_perturbations
from resfool.attacks.solvers import SOLVERS
from resfool.attacks.solvers.crossing import WIDTH, Rays
from resfool.attacks.solvers.problem import Problem
from resfool.classifiers import inference
from resfool.errors import InputError
from resfool.monitor import quiet
from resfool.networks import architectures
from resfool.networks.shape import network
from resfool.values import BallNorm
from tests.conftest import as_a_user_has_it

SIDE, COUNT = 8, 12
NETWORKS: dict[str, dict[str, Any]] = {
    "mlp": {"depth": 3, "width": (24,)},
    "convnet": {"depth": 5, "width": (6,)},
    "resnet": {"depth": 10, "width": (3,)},
}


@functools.cache
def classifier(name: str) -> keras.Model:
    """A network whose logits are as far apart as trained ones, and as often each one's turn."""
    shape = SIDE, SIDE, 1
    model = architectures.build(
        network(name, **NETWORKS[name]),
        image_shape=shape,
        classes=5,
        mean=[0.5],
        std=[0.25],
        seed=4,
    )
    *before, kernel, bias = model.get_weights()
    logits = inference.logits(model, digits(100))
    scale = 5 / logits.std(axis=0).mean()
    model.set_weights([*before, scale * kernel, scale * (bias - logits.mean(axis=0))])
    return model


def in_float64(model: keras.Model) -> keras.Model:
    config = json.loads(json.dumps(model.get_config()).replace("float32", "float64"))
    copy = type(model).from_config(config)
    copy.set_weights(model.get_weights())
    return copy


def in_numpy(images: np.ndarray) -> np.ndarray:
    """The logits of the fully connected network, in float64."""
    values = images.reshape(len(images), -1).astype(np.float64)
    denses = [layer for layer in classifier("mlp").layers if layer.weights]
    for number, dense in enumerate(denses):
        kernel, bias = (np.asarray(w, np.float64) for w in dense.get_weights())
        values = (np.maximum(values, 0) if number else values) @ kernel + bias
    return values


def digits(count: int = COUNT) -> np.ndarray:
    """Images of 8 bits, float32."""
    drawn = np.random.default_rng(5).integers(0, 256, (count, SIDE, SIDE, 1))
    return drawn.astype(np.float32) / np.float32(255)


@functools.cache
def solved(
    name: str, solver: str = "closest", norm: BallNorm = "l2", quantise: int | None = None
) -> Minimal:
    model, images = classifier(name), digits()
    return smallest_perturbations(
        model, images, solver=solver, norm=norm, clip=True, quantise=quantise
    )


def marks(name: str, solver: str) -> list[pytest.MarkDecorator]:
    slow = name == "resnet" or (name == "convnet" and solver != "closest")
    return [pytest.mark.slow] if slow else []


# COBYLA goes image by image, and is slow on the others.
CASES = [
    pytest.param(name, solver, norm, marks=marks(name, solver))
    for name in NETWORKS
    for solver, way in SOLVERS.items()
    for norm in way.norms
    if name == "mlp" or not way.slow
]


@pytest.mark.parametrize(("name", "solver", "norm"), CASES)
def test_what_flips_flips_in_any_batch_and_in_float64(
    name: str, solver: str, norm: BallNorm
) -> None:
    model, images = classifier(name), digits()
    own = inference.logits(model, images).argmax(axis=1)
    found = solved(name, solver, norm)
    assert found.flipped.mean() > 0.8
    moved = images + found.perturbations
    assert moved.min() >= -1e-6 and moved.max() <= 1 + 1e-6
    changes = (moved - images).reshape(COUNT, -1)
    sizes = np.linalg.norm(changes, ord=np.inf if norm == "linf" else 2, axis=1)
    assert (sizes <= found.norms + 1e-6)[found.flipped].all()
    sizes = 1, 7, 250
    logits: dict[Any, np.ndarray] = {n: inference.logits(model, moved, n) for n in sizes}
    logits |= {"predict": model.predict(moved, verbose=0)}
    exact = images.astype(np.float64) + found.perturbations
    logits |= {"float64": np.asarray(in_float64(model)(exact, training=False))}
    if name == "mlp":
        logits |= {"numpy": in_numpy(exact)}
        np.testing.assert_allclose(logits["numpy"], logits["float64"], rtol=1e-9)
    for how, of_moved in logits.items():
        flips = of_moved.argmax(axis=1) != own
        np.testing.assert_array_equal(flips, found.flipped, err_msg=str(how))
    # Not only just: the lead is one of 1e-5 of what the own class had, or more.
    clean = in_float64(model)(images.astype(np.float64), training=False)
    shares = leads(np.asarray(logits["float64"]), own) / -leads(np.asarray(clean), own)
    assert shares[found.flipped].min() > 2e-5


PREDICTED = """
import sys
import keras, numpy as np
from resfool.classifiers import inference
for name in sys.argv[1:]:
    model, images = keras.saving.load_model(f"{name}.keras"), np.load(f"{name}.npy")
    print([inference.logits(model, images, size).argmax(axis=1).tolist() for size in (1, 250)])
"""


@pytest.mark.slow
def test_what_flips_flips_with_all_threads(tmp_path: Path) -> None:
    for name in NETWORKS:
        classifier(name).save(tmp_path / f"{name}.keras")
        np.save(tmp_path / f"{name}.npy", digits() + solved(name).perturbations)
    said = subprocess.run(
        [sys.executable, "-c", PREDICTED, *NETWORKS],
        cwd=tmp_path,
        env=as_a_user_has_it(),
        stdout=subprocess.PIPE,
        check=True,
    ).stdout
    for name, line in zip(NETWORKS, said.splitlines(), strict=True):
        own = inference.logits(classifier(name), digits()).argmax(axis=1)
        for predicted in json.loads(line):
            np.testing.assert_array_equal(predicted != own, solved(name).flipped)


@pytest.mark.parametrize("name", ["mlp", "convnet", pytest.param("resnet", marks=pytest.mark.slow)])
def test_what_is_asked_for_survives_8_bits(name: str) -> None:
    model, images = classifier(name), digits()
    own = inference.logits(model, images).argmax(axis=1)
    plain, asked = solved(name), solved(name, quantise=8)
    levels = np.rint((images + plain.perturbations).clip(0, 1) * 255) / np.float32(255)
    rounded = inference.logits(model, levels).argmax(axis=1) != own
    np.testing.assert_array_equal(rounded & plain.flipped, plain.rounded)
    assert plain.rounded.sum() < COUNT
    levels = (images + asked.perturbations) * 255
    np.testing.assert_allclose(levels, np.rint(levels), atol=1e-4)
    of_bytes = np.rint(levels).astype(np.uint8).astype(np.float32) / np.float32(255)
    flips = inference.logits(model, of_bytes).argmax(axis=1) != own
    assert flips.all() and asked.flipped.all() and asked.rounded.all()
    assert (asked.norms > 0.98 * plain.norms).all()
    assert np.median(asked.norms / plain.norms) < 1.3


@pytest.mark.parametrize(
    "options", [{"quantise": 8}, {"quantise": 0, "clip": True}, {"quantise": 17, "clip": True}]
)
def test_bits_are_some_and_need_the_range_of_pixels(options: dict[str, Any]) -> None:
    with pytest.raises(InputError, match="must be 1 to 16 bits, and needs clip=yes"):
        smallest_perturbations(classifier("mlp"), digits(), **options)


def test_crossings_are_found_in_few_looks_where_the_lead_is_no_line() -> None:
    # The lead of the second class is t^3 - a along a ray: it crosses 0 at the cube root of a.
    inputs = keras.Input((1, 1, 1))
    cube = keras.layers.Flatten()(keras.ops.power(inputs, 3))
    model = keras.Model(inputs, keras.layers.Concatenate()([0 * cube, cube - 0.05]))
    images = np.zeros((5, 1, 1, 1), np.float32)
    ways = np.array([0.4, 0.5, 0.9, 0.0, 0.3], np.float32).reshape(images.shape)
    logits = inference.logits(model, images)
    problem = Problem(model, images, logits, logits.argmax(axis=1), "l2", True, 250, quiet)
    lengths, looks = Rays(problem, ways).crossings()
    assert np.isinf(lengths[3]) and looks[3] == 0
    some = [0, 1, 2, 4]
    reached = lengths[some] * ways.ravel()[some]
    np.testing.assert_allclose(reached, np.cbrt(0.05), rtol=2 * WIDTH)
    assert looks.max() <= 16
