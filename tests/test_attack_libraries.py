"""The fast gradient sign against foolbox, ART and cleverhans, of which none is needed otherwise."""

import dataclasses
import warnings
from typing import Any

import keras
import numpy as np
import pytest

from benchmarks.attack_agreement import Agreement, agreement, descents_agree
from resfool.networks import architectures, shape

EPSILONS = [0.01, 0.3]


@pytest.fixture(scope="module")
def model() -> keras.Model:
    return architectures.build(
        shape.network("resnet", depth=5, width=(4,)),
        image_shape=(16, 16, 3),
        classes=10,
        mean=[0.5] * 3,
        std=[0.3] * 3,
    )


@pytest.fixture(scope="module")
def data() -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(0)
    return random.random((20, 16, 16, 3), dtype=np.float32), random.integers(0, 10, 20)


def adapted(name: str, model: keras.Model) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # theirs, of frameworks that they don't find
        pytest.importorskip(name)
        from benchmarks.attack_libraries import LIBRARIES

        return LIBRARIES[name](model)


@pytest.mark.parametrize("epsilon", EPSILONS)
@pytest.mark.parametrize("name", ["foolbox", "art", "cleverhans"])
def test_attacked_pixels_agree(
    name: str, epsilon: float, model: keras.Model, data: tuple[np.ndarray, np.ndarray]
) -> None:
    found = agreement(adapted(name, model), model, *data, epsilon)
    assert found.good, found
    assert found.other_signs < 1e-3 * found.pixels


def test_an_attack_that_differs_is_noticed(
    model: keras.Model, data: tuple[np.ndarray, np.ndarray]
) -> None:
    library = adapted("foolbox", model)

    def farther(images: np.ndarray, labels: np.ndarray, epsilon: float) -> np.ndarray:
        return np.asarray(library.attack(images, labels, epsilon + 2e-5))

    def other_way(images: np.ndarray, labels: np.ndarray) -> np.ndarray:
        return -np.asarray(library.gradient(images, labels))

    def compared(**changes: Any) -> Agreement:
        return agreement(dataclasses.replace(library, **changes), model, *data, 0.01)

    assert compared().good
    assert not compared(attack=farther).good
    assert not compared(gradient=other_way).good


def test_descents_from_a_common_start_agree(
    model: keras.Model, data: tuple[np.ndarray, np.ndarray]
) -> None:
    pytest.importorskip("foolbox")
    assert descents_agree(model, *data) > 0.99
