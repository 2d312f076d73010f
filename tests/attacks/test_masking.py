"""Whether a gradient is hidden: masked models are flagged, ordinary ones are not."""

from collections.abc import Callable
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import keras
import numpy as np
import pandas as pd
import pytest
import tensorflow as tf

from resfool.attacks import examples, masking, presentation
from resfool.attacks import robustness_presentation as robustness
from resfool.attacks.epsilons import Curve, over_epsilons
from resfool.attacks.examples import Attacked
from resfool.attacks.found import Found
from resfool.attacks.gradient import SignGradients, sign_gradients
from resfool.attacks.methods.moving import Start
from resfool.attacks.methods.pursuit import Pursuer, pursue
from resfool.attacks.methods.task import Answer, Task
from resfool.attacks.options import AttackParameters, HowToAttack
from resfool.attacks.verdict import CHEAP, CHECKS, MOST_IMAGES, Check, Verdict
from resfool.classifiers import adapting, inference
from resfool.classifiers.interface import Allowed, Interface
from resfool.datasets import sets
from resfool.monitor import quiet
from resfool.networks.shape import ARCHITECTURES
from resfool.training.recipe import TrainParameters
from resfool.training.train import train
from tests.attacks.test_gradient import SHAPE, linear_model, mid_grey_images
from tests.conftest import ROOT

layers = keras.layers
EPSILONS = (0.02, 0.05, 0.1)


def attacked(
    model: keras.Model, method: str = "standard", images: int = 100, **given: Any
) -> Curve:
    """A model of digits under attack, as a command attacks it with trust."""
    data = sets.load("digits").test
    classifier = adapting.as_classifier(
        model,
        image_shape=(8, 8, 1),
        classes=10,
        interface=Interface(),
        name="it",
        allowed=Allowed(without_gradient=True, random=True),
    )
    given = {"effort": "quick"} | given if method == "standard" else given
    asked = HowToAttack(method=method, epsilons=EPSILONS, **given)
    return over_epsilons(classifier, data.images[:images], data.labels[:images], asked)


def verdict(*given: Any, **options: Any) -> Verdict:
    found = attacked(*given, **options).verdict
    assert found is not None
    return found


# A zoo of masked models: a small network of digits behind or before what hides its gradient.


@pytest.fixture(scope="module")
def plain() -> keras.Model:
    """A trained network from images to logits."""
    keras.utils.set_random_seed(0)
    data = sets.load("digits").train
    model = keras.Sequential(
        [
            keras.Input((8, 8, 1)),
            layers.Conv2D(16, 3, activation="relu"),
            layers.Flatten(),
            layers.Dense(32, activation="relu"),
            layers.Dense(10),
        ]
    )
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.Adam(0.005), loss, jit_compile=False)
    model.fit(data.images, data.labels, batch_size=64, epochs=10, verbose=0)
    return model


class Compressed(keras.layers.Layer):
    """What JPEG does to grey images of 8x8: rounded coefficients of the cosine transform."""

    def call(self, images: Any) -> Any:
        rows, columns = np.mgrid[:8, :8]
        cosines = np.cos(np.pi * (2 * columns + 1) * rows / 16) * np.where(rows == 0, 0.5**0.5, 1)
        transform = tf.constant(cosines / 2, tf.float32)
        blocks = tf.squeeze(images, -1)
        coefficients = tf.einsum("uh,nhw,vw->nuv", transform, blocks, transform)
        rounded = tf.round(coefficients * 8) / 8
        return tf.einsum("uh,nuv,vw->nhw", transform, rounded, transform)[..., tf.newaxis]


def before(plain: keras.Model, change: Callable[[Any], Any]) -> keras.Model:
    images = keras.Input((8, 8, 1))
    return keras.Model(images, plain(change(images)))


def behind(plain: keras.Model, *ends: Callable[[Any], Any]) -> keras.Model:
    images = keras.Input((8, 8, 1))
    outputs = plain(images)
    for end in ends:
        outputs = end(outputs)
    return keras.Model(images, outputs)


class LeftOn(keras.layers.Layer):
    """Dropout in inference too, which Keras's own switches off."""

    def call(self, features: Any) -> Any:
        return tf.nn.dropout(features, 0.3)


def with_dropout(plain: keras.Model) -> keras.Model:
    x = images = keras.Input((8, 8, 1))
    for layer in plain.layers:
        x = layer(LeftOn()(x) if isinstance(layer, layers.Dense) else x)
    return keras.Model(images, x)


def rounded(images: Any) -> Any:
    return keras.ops.round(images * 8) / 8


MASKED: dict[str, tuple[Callable[[keras.Model], keras.Model], str]] = {
    "a ReLU behind the logits": (lambda m: behind(m, layers.ReLU()), "constant_logits"),
    "quantised inputs": (lambda m: before(m, rounded), "zero_gradient"),
    "huge logits": (lambda m: behind(m, layers.Rescaling(1e4)), "zero_gradient"),
    "huge logits and a softmax": (
        lambda m: behind(m, layers.Rescaling(1e4), layers.Softmax()),
        "zero_gradient",
    ),
    "a saturated softmax": (
        # The last layer changes nothing, so that the softmax isn't seen at the end.
        lambda m: behind(m, layers.Rescaling(1e3), layers.Softmax(), layers.Rescaling(1.0)),
        "constant_logits",
    ),
    "dropout": (with_dropout, "random_logits"),
    "compressed inputs": (lambda m: before(m, Compressed()), "zero_gradient"),
}


@pytest.mark.parametrize("name", MASKED)
def test_masked_models_are_flagged_by_looks_alone(plain: keras.Model, name: str) -> None:
    make, check = MASKED[name]
    assert check in {each.name for each in verdict(make(plain), "fgsm").raised}


@pytest.mark.slow
@pytest.mark.parametrize("method", ["standard", "smallest"])
@pytest.mark.parametrize("name", MASKED)
def test_masked_models_are_flagged(plain: keras.Model, name: str, method: str) -> None:
    make, check = MASKED[name]
    found = verdict(make(plain), method)
    assert {each.name for each in found.checks} == CHECKS.keys()
    assert check in {each.name for each in found.raised}


def test_where_there_is_no_gradient_random_search_finds_more(plain: keras.Model) -> None:
    found = attacked(before(plain, rounded), "apgd", attack_steps=5)
    assert found.verdict is not None
    raised = {check.name for check in found.verdict.raised}
    assert {"zero_gradient", "loss_not_rising", "right_within_half", "black_box"} <= raised
    assert found.rows[-1]["robust_accuracy"] > 0.8  # which is not to be believed


# Ordinary models.


def test_an_ordinary_model_is_not_flagged(plain: keras.Model) -> None:
    found = verdict(plain)
    assert not found.hidden and found.images == MOST_IMAGES
    assert {check.name for check in found.checks} == CHECKS.keys()


@pytest.mark.parametrize("classes", [2, 3, 5])
@pytest.mark.parametrize("scale", [1.0, 0.01])
def test_linear_models_are_not_flagged(classes: int, scale: float) -> None:
    """Their gradient is the same everywhere, but for the class."""
    model, images = linear_model(classes, scale), mid_grey_images(60)
    labels = inference.logits(model, images).argmax(axis=1)
    found = over_epsilons(model, images, labels, HowToAttack(epsilons=(0.01,))).verdict
    assert found is not None
    assert [check.value for check in found.checks] == [0.0] * len(CHEAP)


def test_one_unit_that_stands_for_two_classes_is_not_flagged() -> None:
    inputs = keras.Input(SHAPE)
    theirs = keras.Model(inputs, layers.Dense(1, activation="sigmoid")(layers.Flatten()(inputs)))
    model = adapting.as_classifier(
        theirs, image_shape=SHAPE, classes=None, interface=Interface(), name="one unit"
    )
    images = mid_grey_images(30)
    labels = inference.logits(model, images).argmax(axis=1)
    found = over_epsilons(model, images, labels, HowToAttack(epsilons=(0.01,))).verdict
    assert found is not None and not found.hidden


def strangers() -> keras.Model:
    """Depthwise convolutions, a ReLU that ends at 6 and a softmax, as in keras.applications."""
    keras.utils.set_random_seed(1)
    data = sets.load("digits").train
    x = images = keras.Input((8, 8, 1))
    x = layers.Conv2D(16, 3, padding="same", use_bias=False)(layers.Rescaling(2.0, -1.0)(x))
    for width in (32, 64):
        x = layers.ReLU(6.0)(layers.BatchNormalization(momentum=0.9)(x))
        x = layers.DepthwiseConv2D(3, padding="same", use_bias=False)(x)
        x = layers.ReLU(6.0)(layers.BatchNormalization(momentum=0.9)(x))
        x = layers.Conv2D(width, 1, use_bias=False)(x)
    x = layers.GlobalAveragePooling2D()(x)
    model = keras.Model(images, layers.Dense(10, activation="softmax")(layers.Dropout(0.1)(x)))
    model.compile(keras.optimizers.Adam(0.005), "sparse_categorical_crossentropy")
    model.fit(data.images, data.labels, batch_size=64, epochs=15, verbose=0)
    return model


@pytest.mark.slow
def test_a_strangers_model_is_not_flagged() -> None:
    assert not verdict(strangers()).hidden


@pytest.mark.slow
@pytest.mark.parametrize("adversarial", ["none", "fgsm"])
@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_our_architectures_are_not_flagged(arch: str, adversarial: str) -> None:
    asked: dict[str, Any] = {"arch": arch, "dataset": "digits", "steps": 300, "batch_size": 32}
    asked |= {"width": (8,), "depth": 2 if arch == "mlp" else 5, "adversarial": adversarial}
    assert not verdict(train(TrainParameters.of(asked)).model).hidden


# What the checks count.


def test_gradients_are_constant_that_do_not_depend_on_the_class() -> None:
    signs = np.array([[1, 1], [1, 1], [1, -1], [1, -1], [0, 0], [-1, 0]], np.int8)
    labels = np.array([0, 1, 2, 2, 3, 4])
    found = masking.zero_or_constant(signs.reshape(6, 1, 2, 1), labels)
    np.testing.assert_array_equal(found, [True, True, False, False, True, False])


def start_of(count: int, classes: int, epsilons: list[float]) -> Start:
    """Images that a linear model has right, all of class 0 but two of class 1."""
    labels = np.zeros(count, int)
    labels[:2] = 1
    logits = np.eye(classes, dtype=np.float32)[labels]
    images = np.full((count, 2, 2, 1), 0.5, np.float32)
    first = SignGradients(np.zeros(images.shape, np.int8), logits, labels)
    model: Any = None
    return Start(model, images, first, epsilons, True, 0, 250, quiet)


@pytest.mark.parametrize(("norm", "half"), [("linf", 0.5), ("l2", 1.0)])
def test_attacks_are_compared_by_who_fooled_first(
    monkeypatch: pytest.MonkeyPatch, norm: Any, half: float
) -> None:
    asked: list[Any] = []
    # Numbers of the attacks: a few steps, more steps, random search. At two epsilons and at 0.5.
    first = np.array(
        [
            [0, 1, 2, -1, -1, -1, -1, -1, -1, -1],
            [0, 1, 2, 1, 2, 2, -1, -1, -1, -1],
            [0, 0, 2, 1, 2, 1, 0, 0, 0, -1],
        ]
    )

    def planted(start: Start, pursuers: Any, norm: Any) -> Any:
        asked.extend(start.epsilons)
        return SimpleNamespace(first=first)

    monkeypatch.setattr(masking, "pursue", planted)
    found = masking._compared(start_of(10, 3, [0.1, 0.3, 1.5]), norm, 0.0)
    assert asked == [0.1, 0.3, half]
    values = {check.name: check.value for check in found}
    # Of the last row three were not fooled by gradients; of the columns three have a 1 and three
    # a 2 anywhere.
    assert values == {"right_within_half": 0.3, "more_steps": 0.3, "black_box": 0.3}
    limits = {check.name: check.limit for check in found}
    assert limits["right_within_half"] == 0.8  # grey is of class 0, at best
    again = masking._compared(start_of(10, 3, [0.1]), norm, 0.4)
    assert {check.name: check.value for check in again}["black_box"] == 0.4


def test_what_the_attacks_own_search_found_counts() -> None:
    first = np.array([[-1, 1, 0, -1], [0, 1, 0, 1]])

    def share(right: list[int], **given: Any) -> float:
        model, images = linear_model(3), mid_grey_images(4)
        labels, asked = np.zeros(4, int), HowToAttack(epsilons=(0.1, 0.2), **given)
        found = Found(model, images, labels, asked, 0, 4, {"first": first.T})
        return found.by_search(np.array(right, int))

    both: dict[str, Any] = {"method": "standard", "components": ("apgd", "square")}
    assert share([0, 1, 2, 3], **both) == 0.5
    assert share([0, 2], **both) == 0.0
    assert share([], **both) == 0.0
    assert share([0, 1, 2, 3], method="square") == 0.0


def test_what_is_drawn_for_an_image_depends_on_its_place_only() -> None:
    model, images = linear_model(3), mid_grey_images(8)
    labels = np.zeros(8, int)
    first = sign_gradients(model, images, labels)
    drawn: list[tuple[np.ndarray, np.ndarray]] = []

    def draw(task: Task) -> Answer:
        drawn.append((task.numbers, task.starts(0)))
        return Answer.none(task)

    def starts(chosen: np.ndarray) -> dict[int, np.ndarray]:
        own = SignGradients(first.signs[chosen], first.logits[chosen], labels[chosen])
        own = replace(own, logits=np.eye(3, dtype=np.float32)[labels[chosen]])
        start = Start(model, images[chosen], own, [0.01], True, 0, 250, quiet, chosen)
        pursue(start, [Pursuer("it", draw, 1)], "linf")
        return dict(zip(*drawn.pop(), strict=True))

    whole, part = starts(np.arange(8)), starts(np.array([5, 2]))
    assert len(whole) == 8
    assert sorted(part) == [2, 5]
    for place, start in part.items():
        np.testing.assert_array_equal(start, whole[place])


def test_without_an_image_that_is_right_nothing_is_checked() -> None:
    model, images = linear_model(3), mid_grey_images(5)
    wrong = (inference.logits(model, images).argmax(axis=1) + 1) % 3
    told: list[int] = []
    asked = HowToAttack(epsilons=(0.1,))
    curve = over_epsilons(
        model, images, wrong, asked, progress=lambda more, text="", /: told.append(more)
    )
    assert curve.verdict == Verdict(0, ()) and not curve.verdict.hidden
    assert curve.verdict.metrics == {}
    assert sum(told) == asked.passes_of(5)


# What is said.


def shown(curve: Curve) -> Attacked:
    return examples.attacked("a model", "here", list("abcde"), curve, 0)


def flagged(curve: Curve) -> Curve:
    """The same with a check raised."""
    checks = (Check("zero_gradient", 0.7, 0.1), Check("random_logits", 0.0, 0.0))
    return replace(curve, verdict=Verdict(10, checks))


@pytest.fixture(scope="module")
def robust() -> Curve:
    """A linear model under an attack that leaves a robust accuracy."""
    model, images = linear_model(5), mid_grey_images(20)
    labels = inference.logits(model, images).argmax(axis=1)
    asked = HowToAttack(method="apgd", attack_steps=3, epsilons=(0.001, 0.01))
    return over_epsilons(model, images, labels, asked)


def report_of(results: list[Attacked], asked: AttackParameters) -> str:
    page = presentation.leaves(results, asked)["report.md"]
    assert isinstance(page, bytes)
    return page.decode()


def robust_lines(text: str) -> list[str]:
    return [line for line in text.splitlines() if "robust accuracy" in line]


def test_no_robust_accuracy_is_printed_without_the_warning(robust: Curve) -> None:
    asked = AttackParameters.of(
        {"model": "m.keras", "method": "apgd", "attack_steps": 3, "epsilons": "0.001,0.01"}
    )
    honest, hidden = shown(replace(robust, verdict=None)), shown(flagged(robust))
    plain, warned = presentation.summary([honest]), presentation.summary([hidden])
    assert "hidden" not in plain and len(robust_lines(plain)) == 1
    assert "WARNING: the gradient seems to be hidden (zero_gradient: 1 of 2" in warned
    assert all("hidden" in line for line in robust_lines(warned))
    page = report_of([hidden], asked)
    in_short, checks, rest = page.split("\n## ")[1:4]
    assert in_short.index("Warning: the gradient seems to be hidden") < in_short.index("stay right")
    assert checks.startswith("Is the gradient hidden?")
    assert "| zero\\_gradient |" in checks and "| 0.700 | 0.100 | raised |" in checks
    assert "attack again" in checks and "Gradients of zero lead nowhere" in checks
    assert "robust accuracy (doubtful: gradient hidden)" in rest
    legend = robustness.figure([hidden], "apgd").axes[0].get_legend()
    assert legend is not None
    labels = [text.get_text() for text in legend.get_texts()]
    assert labels == ["a model (doubtful: gradient hidden)"]
    rates = presentation.leaves_of(hidden)["rates"]
    assert isinstance(rates, pd.DataFrame)
    assert rates["gradient_masking_checks_raised"].tolist() == [1, 1]


def test_metrics_are_finite_and_tables_say_what_to_do(robust: Curve) -> None:
    hidden = shown(flagged(robust))
    metrics = presentation.model_metrics(hidden)
    assert metrics["gradient_masking_checks_raised"] == 1
    assert metrics["gradient_masking_zero_gradient"] == 0.7
    assert np.isfinite(list(metrics.values())).all()
    table = presentation.leaves_of(hidden)["gradient_checks"]
    assert isinstance(table, pd.DataFrame)
    assert table["raised"].tolist() == [True, False]
    assert table["to_do"].str.len().gt(0).tolist() == [True, False]


@pytest.mark.slow
def test_each_model_has_its_own_verdict(robust: Curve) -> None:
    asked = AttackParameters.of({"model": "m.keras,n.keras", "method": "apgd"})
    page = report_of([shown(robust), shown(flagged(robust))], asked)
    titles = [line for line in page.splitlines() if line.startswith("## ")]
    assert sum("hidden?" in title for title in titles) == 2


def test_the_page_on_checks_names_them_all() -> None:
    page = (ROOT / "docs" / "how-sure.md").read_text()
    for name, kind in CHECKS.items():
        assert f"`{name}`" in page
        if kind.limit is not None:
            (row,) = (line for line in page.splitlines() if line.startswith(f"| `{name}`"))
            assert f"| {kind.limit:g} |" in row
