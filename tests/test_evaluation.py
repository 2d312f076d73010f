"""Scores against what can be counted by hand."""

from typing import Any

import keras
import numpy as np
import pytest

from resfool.attacks import examples
from resfool.attacks.epsilons import over_epsilons, rates
from resfool.attacks.gradient import Outcome
from resfool.attacks.methods.standard import COMPONENTS
from resfool.attacks.options import METHODS, HowToAttack
from resfool.classifiers import inference, scores

# Those of the standard go the same way when it calls them.
EACH = [
    pytest.param(name, marks=[pytest.mark.slow] if name in COMPONENTS else []) for name in METHODS
]


def pixels_are_logits() -> keras.Model:
    images = keras.Input((1, 3, 1))
    return keras.Model(images, keras.layers.Flatten()(images))


def test_accuracy_and_loss_of_known_logits() -> None:
    logits = np.log(np.array([[0.5, 0.3, 0.2], [0.1, 0.1, 0.8], [0.6, 0.3, 0.1]], np.float32))
    images = logits.reshape(3, 1, 3, 1)
    labels = np.array([0, 2, 1])
    score = scores.evaluate(pixels_are_logits(), images, labels)
    assert score.accuracy == pytest.approx(2 / 3)
    assert score.loss == pytest.approx(-np.log([0.5, 0.8, 0.3]).mean(), rel=1e-6)


@pytest.mark.parametrize("batch_size", [1, 4, 7, 50])
def test_batches_of_any_size_give_the_same_logits(batch_size: int) -> None:
    images = np.random.default_rng(0).random((9, 1, 3, 1), dtype=np.float32)
    result = inference.logits(pixels_are_logits(), images, batch_size)
    np.testing.assert_array_equal(result, images.reshape(9, 3))


def test_huge_logits_do_not_overflow() -> None:
    images = np.array([[1e4, 0, -1e4], [-1e4, 0, 1e4]], np.float32).reshape(2, 1, 3, 1)
    score = scores.evaluate(pixels_are_logits(), images, np.array([0, 0]))
    assert score.accuracy == 0.5
    assert score.loss == pytest.approx(1e4)


def test_weights_that_change_change_the_result() -> None:
    images = keras.Input((1, 3, 1))
    dense = keras.layers.Dense(3)
    model = keras.Model(images, dense(keras.layers.Flatten()(images)))
    batch = np.ones((2, 1, 3, 1), np.float32)
    for value in (1.0, 2.0):
        dense.set_weights([np.full((3, 3), value), np.zeros(3)])
        np.testing.assert_allclose(inference.logits(model, batch), 3 * value)


# So that no method takes long.
QUICKLY: dict[str, Any] = {"pgd_steps": 15, "effort": "quick", "queries": 500, "attack_steps": 20}


def pixels_in_a_row(values: list[list[float]]) -> np.ndarray:
    return np.array(values, np.float32).reshape(-1, 1, 3, 1)


def test_rates_of_known_predictions() -> None:
    labels = np.array([0, 0, 1, 1])
    clean = np.array([0, 1, 1, 0])
    outcome = Outcome(
        classes=np.array([[0, 1, 1, 0], [1, 0, 1, 1]]),
        confidences=np.array([[0.5, 0.7, 0.9, 0.9], [1, 1, 1, 1]], np.float32),
        norms=np.array([[0, 0, 0, 0], [1, 2, 3, 4]], np.float32),
    )
    unmoved, moved = rates(outcome, clean, labels)
    assert unmoved["fooling_rate"] == 0 and unmoved["error_rate"] == 0.5
    assert unmoved["confidence"] == pytest.approx(0.75) and unmoved["l2_norm"] == 0
    # Three of four changed their class; two of those became right by it.
    assert moved["fooling_rate"] == 0.75 and moved["error_rate"] == 0.25
    assert moved["accuracy"] == 0.75 and moved["l2_norm"] == 2.5
    # Wilson's interval of 0 of n ends at z^2 / (n + z^2).
    z2 = 1.959964**2
    assert unmoved["fooling_rate_low"] == 0
    assert unmoved["fooling_rate_high"] == pytest.approx(z2 / (4 + z2), rel=1e-5)
    assert moved["fooling_rate_low"] < 0.75 < moved["fooling_rate_high"]


@pytest.mark.parametrize("method", METHODS)
def test_a_model_whose_logits_are_pixels_is_fooled_where_its_lead_is_gone(method: str) -> None:
    # Mid-grey with one pixel ahead by 0.1, 0.2 and 0.3: the gradient raises the others and
    # lowers it, so that the lead is gone at 0.05, 0.10 and 0.15.
    images = pixels_in_a_row([[0.6, 0.5, 0.4], [0.5, 0.7, 0.4], [0.4, 0.5, 0.8]])
    labels = np.array([0, 1, 0])  # the last one is wrong to begin with
    epsilons = (0.12, 0.0, 0.04, 0.07, 0.2)
    asked = HowToAttack(method=method, epsilons=epsilons, label_source="prediction", **QUICKLY)
    curve = over_epsilons(pixels_are_logits(), images, labels, asked)
    assert curve.epsilons == tuple(sorted(epsilons))
    rates = [row["fooling_rate"] for row in curve.rows]
    np.testing.assert_allclose(rates, [0, 0, 1 / 3, 2 / 3, 1])
    assert curve.rows[0]["random_fooling_rate"] == 0
    assert curve.rows[0]["error_rate"] == pytest.approx(1 / 3)
    assert curve.rows[0]["l2_norm"] == 0
    assert curve.zero_gradient_share == 0
    if curve.smallest is not None:
        np.testing.assert_allclose(curve.smallest, [0.05, 0.10, 0.15], atol=2e-4)
        assert [row["cumulative_fooling_rate"] for row in curve.rows] == pytest.approx(rates)


@pytest.mark.parametrize("method", EACH)
def test_a_method_shows_what_it_counted(method: str) -> None:
    images = np.random.default_rng(0).random((9, 1, 3, 1), np.float32)
    before = images.copy()
    asked = HowToAttack(method=method, epsilons=(0.05, 0.2), **QUICKLY)
    curve = over_epsilons(pixels_are_logits(), images, np.arange(9) % 3, asked, batch_size=4)
    places = np.array([7, 0, 3])
    for epsilon, classes in zip(curve.epsilons, curve.attacked.classes, strict=True):
        moved = curve.move(places, epsilon)
        assert np.abs(moved - images[places]).max() <= epsilon + 1e-6
        assert moved.min() >= 0 and moved.max() <= 1
        np.testing.assert_array_equal(moved.reshape(3, 3).argmax(axis=1), classes[places])
    np.testing.assert_array_equal(images, before)


def test_corrections_are_looked_for_in_whole_batches_of_the_wrong_ones_first() -> None:
    images = np.random.default_rng(0).random((10, 1, 3, 1), np.float32)
    labels = images.reshape(10, 3).argmax(axis=1)
    labels[[2, 7]] = (labels[[2, 7]] + 1) % 3
    for size in (1, 4, 250):
        curve = over_epsilons(
            pixels_are_logits(), images, labels, HowToAttack(epsilons=(0.1,)), batch_size=size
        )
        assert curve.corrections is not None
        np.testing.assert_array_equal(curve.corrections.images[:2], images[[2, 7]])
        assert len(curve.corrections.labels) == 10


def test_with_true_labels_a_wrong_prediction_is_pushed_further() -> None:
    images = pixels_in_a_row([[0.4, 0.5, 0.8]])
    asked = HowToAttack(epsilons=(0.1,))
    curve = over_epsilons(pixels_are_logits(), images, np.array([0]), asked)
    assert curve.rows[0]["fooling_rate"] == 0  # pixel 2 gains on pixel 0
    assert curve.rows[0]["confidence"] > curve.clean.confidences[0, 0]


@pytest.mark.parametrize("method", EACH)
def test_progress_ends_at_its_total(method: str) -> None:
    images = np.full((5, 1, 3, 1), 0.5, np.float32)
    images[:2, 0, 0] = 0.9  # which nothing here moves
    asked = HowToAttack(method=method, epsilons=(0.0, 0.1, 0.2), **QUICKLY)
    told: list[int] = []
    curve = over_epsilons(
        pixels_are_logits(),
        images,
        np.zeros(5, int),
        asked,
        batch_size=2,
        progress=lambda more, text="", /: told.append(more),
    )
    curve.move(np.array([3, 1]), 0.1)  # for a picture, which is not counted
    assert sum(told) == asked.passes_of(5)


def test_examples_show_what_was_corrected_what_was_fooled_and_what_held_out() -> None:
    # With the labels of the model's own predictions a wrong one can be corrected.
    leads = [0.02, 0.06, 0.1, 0.14, 0.18, 0.3, 0.5]
    images = pixels_in_a_row([[0.4 + lead, 0.4, 0.2] for lead in leads])
    labels = np.zeros(len(leads), int)
    labels[1] = 1  # classified as 0, and as 1 when perturbed by more than 0.03
    asked = HowToAttack(epsilons=(0.02, 0.05, 0.1, 0.3), label_source="prediction")
    curve = over_epsilons(pixels_are_logits(), images, labels, asked)
    found = examples.examples(curve, most=4)
    leads_shown = [float(e.shown[0].image[0, 0, 0] - 0.4) for e in found]
    np.testing.assert_allclose(leads_shown, [0.06, 0.02, 0.1, 0.5], atol=1e-6)
    corrected = found[0]
    assert [s.predicted for s in corrected.shown] == [0, 0, 1, 1, 1]
    assert [s.epsilon for s in corrected.shown] == [0, 0.02, 0.05, 0.1, 0.3]
    for example in found:
        for shown in example.shown:
            row = shown.image.reshape(-1)
            moved = example.shown[0].image.reshape(-1) + shown.epsilon * example.direction.reshape(
                -1
            )
            np.testing.assert_allclose(row, np.clip(moved, 0, 1), atol=1e-6)
            assert shown.predicted == row.argmax()


def test_with_true_labels_the_corrected_ones_are_moved_away_from_their_prediction() -> None:
    images = pixels_in_a_row([[0.5, 0.45, 0.2], [0.6, 0.3, 0.2], [0.5, 0.2, 0.47]])
    asked = HowToAttack(epsilons=(0.01, 0.02, 0.05, 0.3))
    curve = over_epsilons(pixels_are_logits(), images, np.array([1, 0, 2]), asked)
    corrected, also, fooled = examples.examples(curve)
    assert corrected.from_prediction and also.from_prediction and not fooled.from_prediction
    # Leads of 0.03 and 0.05: gone at 0.015 and 0.025.
    assert [s.predicted for s in corrected.shown] == [0, 0, 2, 2, 2]
    assert [s.predicted for s in also.shown] == [0, 0, 0, 1, 1]
    assert fooled.label == 0 and fooled.shown[-1].predicted == 1


def test_an_image_fooled_at_a_point_of_the_grid_counts_there() -> None:
    # With so large a tolerance nothing is bisected: the answers are the grid's own points, some
    # of which are larger in float32 than in float64.
    levels = range(1, 40)
    epsilons = tuple(level / 255 for level in levels)
    images = pixels_in_a_row([[0.3 + 2 * (e - 0.5 / 255), 0.3, 0.1] for e in epsilons])
    asked = HowToAttack(epsilons=epsilons, method="smallest_epsilon", tolerance=1.0)
    curve = over_epsilons(pixels_are_logits(), images, np.zeros(len(images), int), asked)
    assert curve.smallest is not None
    np.testing.assert_array_equal(curve.smallest, np.array(epsilons, np.float32))
    for row in curve.rows:
        assert row["cumulative_fooling_rate"] == row["fooling_rate"]


def test_chunks_are_judged_by_their_own_statistics() -> None:
    random = np.random.default_rng(0)
    images = random.random((60, 2, 2, 1), np.float32) * random.random((60, 1, 1, 1), np.float32)
    labels = random.integers(0, 3, 60)
    keras.utils.set_random_seed(0)
    layers = [keras.layers.Flatten(), keras.layers.BatchNormalization(), keras.layers.Dense(3)]
    model = keras.Sequential([keras.Input((2, 2, 1)), *layers])
    before = [w.copy() for w in model.get_weights()]
    options: Any = {"chunk": 20, "chunks": 7, "seed": 3}
    found = scores.chunk_accuracies(model, images, labels, **options)
    for now, then in zip(model.get_weights(), before, strict=True):
        np.testing.assert_array_equal(now, then)
    # A slow plain reference: each chunk is brought to mean 0 and variance 1 by itself.
    kernel, bias = model.layers[-1].get_weights()
    drawn = np.random.default_rng(3)
    for accuracy in found:
        chosen = drawn.choice(60, 20, replace=False)
        x = images[chosen].reshape(20, 4).astype(np.float64)
        x = (x - x.mean(axis=0)) / np.sqrt(x.var(axis=0) + 1e-3)
        assert accuracy == ((x @ kernel + bias).argmax(axis=1) == labels[chosen]).mean()
    assert len(set(found)) > 1


def test_a_chunk_is_at_most_the_whole_set() -> None:
    keras.utils.set_random_seed(0)
    layers = [keras.layers.Flatten(), keras.layers.Dense(3)]
    model = keras.Sequential([keras.Input((2, 2, 1)), *layers])
    images = np.random.default_rng(0).random((30, 2, 2, 1), np.float32)
    labels = np.arange(30) % 3
    found = scores.chunk_accuracies(model, images, labels, chunk=500, chunks=3, seed=0)
    assert found.tolist() == [scores.evaluate(model, images, labels).accuracy] * 3
