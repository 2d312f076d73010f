"""Training: the same bits however it is cut, and the same numbers as a slow plain reference."""

import warnings
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import keras
import numpy as np
import pytest
import tensorflow as tf

from resfool import checkpoints, devices, experiments
from resfool.arrayfiles import DamagedError
from resfool.classifiers.scores import Score, evaluate
from resfool.datasets import sets
from resfool.errors import InputError, NonFiniteLossError, UsageError
from resfool.monitor import Monitor
from resfool.networks import architectures
from resfool.networks.shape import ARCHITECTURES, network
from resfool.training.recipe import TrainParameters, resumed
from resfool.training.steps import Adversarial, Optimizer, Steps
from resfool.training.train import train
from resfool.training.trainer import Trainer, train_to
from resfool.values import Precision
from tests.conftest import QUICK

IMAGES = np.random.default_rng(0).random((50, 8, 8, 1), dtype=np.float32)
LABELS = np.random.default_rng(1).integers(0, 10, 50)


def model(arch: str = "mlp", *, precision: Precision = "float32", **shaping: Any) -> keras.Model:
    options: dict[str, Any] = {"depth": 5 if ARCHITECTURES[arch].stages else 2, "width": (4,)}
    return architectures.build(
        network(arch, **options | shaping),
        image_shape=(8, 8, 1),
        classes=10,
        mean=[0.5],
        std=[0.3],
        fused=True,
        precision=precision,
    )


def trainer(network: keras.Model, *, seed: int = 0, **options: Any) -> Trainer:
    return Trainer(network, IMAGES, LABELS, Steps(**{"batch_size": 8} | options), seed=seed)


def weights(network: keras.Model) -> list[np.ndarray]:
    return [np.asarray(v) for v in network.variables]


def assert_same_bits(one: keras.Model, other: keras.Model) -> None:
    for a, b in zip(weights(one), weights(other), strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.fixture
def eagerly() -> Iterator[None]:
    """Runs each operation as it comes: for a few steps, compiling takes longer than they do."""
    tf.config.run_functions_eagerly(True)
    yield
    tf.config.run_functions_eagerly(False)


# Decay


def test_weight_decay_shrinks_kernels_and_nothing_else(eagerly: None) -> None:
    free, decayed = model("resnet"), model("resnet")
    for made, decay in ((free, 0.0), (decayed, 0.5)):
        trainer(made, optimizer="sgd", learning_rate=0.1, weight_decay=decay).advance(1)
    initial = model("resnet").trainable_variables
    pairs = zip(initial, free.trainable_variables, decayed.trainable_variables, strict=True)
    kernels = 0
    for start, a, b in pairs:
        is_kernel = len(start.shape) > 1
        kernels += is_kernel
        shrunk = 0.1 * 0.5 * np.asarray(start) if is_kernel else 0
        np.testing.assert_allclose(np.asarray(a) - np.asarray(b), shrunk, atol=1e-6)
    assert kernels == 7  # the stem, five convolutions and the logits


# The same bits


@pytest.mark.parametrize(
    ("arch", "choice"),
    [
        ("mlp", {}),
        pytest.param("resnet", {}, marks=pytest.mark.slow),
        ("resnet", {"augment": "crop_flip", "adversarial": "fgsm"}),
        pytest.param(
            "multiresnet",
            {"recipe": "modern", "optimizer": "muon", "steps": 12},
            marks=pytest.mark.slow,
        ),
    ],
)
def test_cut_into_pieces_and_restored_the_weights_are_the_same(
    arch: str, choice: dict[str, Any], tmp_path: Path
) -> None:
    options: dict[str, Any] = {"seed": 3} | choice
    whole = model(arch, dropout=0.2)
    first = trainer(whole, **options)
    checkpoints.save(tmp_path / "0.npz", *first.state())
    first.advance(1)
    first.advance(4)
    checkpoints.save(tmp_path / "c.npz", *first.state())
    # Back to the beginning, and on without a stop: a trainer made anew would compile anew.
    first.restore(*checkpoints.load(tmp_path / "0.npz"))
    first.advance(12)
    assert first.step == 12
    rest = model(arch, dropout=0.2)
    second = trainer(rest, **options)
    second.restore(*checkpoints.load(tmp_path / "c.npz"))
    second.advance(7)

    assert second.step == 12
    assert_same_bits(whole, rest)
    judged = model(arch), model(arch)
    for made, one in zip((first, second), judged, strict=True):
        made.give_weights(one)
    assert_same_bits(*judged)


@pytest.mark.parametrize(
    ("arch", "adversarial"),
    [("mlp", "none"), pytest.param("resnet", "fgsm", marks=pytest.mark.slow)],
)
def test_xla_draws_the_same_batches_and_takes_the_same_step(
    arch: str, adversarial: Adversarial
) -> None:
    """What a GPU runs, compiled for this CPU."""
    options: dict[str, Any] = {"augment": "crop_flip", "seed": 5, "adversarial": adversarial}
    made = [trainer(model(arch), **options) for _ in range(2)]
    made[1]._learn = tf.function(made[1]._update, jit_compile=True)
    for one in made:
        one.advance(2)
    plain, compiled = (np.array(one._window) for one in made)
    np.testing.assert_allclose(compiled, plain, rtol=1e-3)


def test_another_seed_gives_other_batches_and_the_same_seed_the_same() -> None:
    makers = [trainer(model(), seed=seed) for seed in (1, 1, 2)]
    one, same, other = (
        np.concatenate([np.asarray(t._batch(tf.constant(i))[0]) for i in range(5)]) for t in makers
    )
    np.testing.assert_array_equal(one, same)
    assert not np.array_equal(one, other)
    assert not np.array_equal(one[:8], one[8:16])


def test_a_batch_holds_training_images_with_their_own_labels() -> None:
    images, labels = trainer(model(), batch_size=500)._batch(tf.constant(0))
    same = (np.asarray(images)[:, None] == IMAGES).all(axis=(2, 3, 4))
    rows = same.argmax(axis=1)
    assert same.any(axis=1).all()
    np.testing.assert_array_equal(LABELS[rows], labels)
    assert len(set(rows.tolist())) == 50, "some images were never drawn"


# The curve


def run(made: Trainer, steps: int, **options: Any) -> list[dict[str, float]]:
    score = Score(accuracy=0.5, loss=1.0)
    arguments: dict[str, Any] = {"eval_every": 100, "evaluate": lambda: score}
    return train_to(made, steps, **arguments | options)


def test_points_are_the_averages_of_100_steps() -> None:
    made = trainer(model())
    history = run(made, 250, eval_every=120)
    losses, accuracies = trainer(model())._run(tf.constant(0), tf.constant(250)).numpy().T
    train_rows = [row for row in history if "train_loss" in row]
    assert [row["step"] for row in train_rows] == [100, 200, 250]
    for row, span in zip(train_rows, [slice(100), slice(100, 200), slice(200, 250)], strict=True):
        assert row["train_loss"] == pytest.approx(np.mean(losses[span]), rel=1e-6)
        assert row["train_accuracy"] == pytest.approx(np.mean(accuracies[span]), rel=1e-6)
    assert [row["step"] for row in history if "test_loss" in row] == [120, 240, 250]


def test_each_point_is_reported_once_and_in_order() -> None:
    rows: list[Any] = []
    history = run(trainer(model()), 205, report=rows.append)
    assert rows == history
    assert [row["step"] for row in rows] == sorted(row["step"] for row in rows)


def test_ctrl_c_saves_and_the_rest_is_as_if_nothing_had_happened() -> None:
    whole = model()
    expected = run(trainer(whole), 300)

    interrupted = trainer(model())
    saved: list[Any] = []

    def save() -> None:
        saved.append(interrupted.state())

    def interrupt_in_evaluation() -> Score:
        if interrupted.step == 200:
            raise KeyboardInterrupt
        return Score(accuracy=0.5, loss=1.0)

    with pytest.raises(KeyboardInterrupt):
        run(interrupted, 300, evaluate=interrupt_in_evaluation, save=save)
    rest = model()
    resumed = trainer(rest)
    resumed.restore(*saved[-1])
    assert resumed.step == 200
    assert run(resumed, 300) == expected
    assert_same_bits(whole, rest)


def test_a_loss_that_is_not_finite_stops_training_and_keeps_the_curve() -> None:
    made = trainer(model(), optimizer="sgd", learning_rate=1e-3)
    rows: list[Any] = []
    poisoned = IMAGES.copy()

    def poison_after_100(row: Any) -> None:
        rows.append(row)
        made.model.get_layer("logits").bias.assign(np.full(10, np.nan))

    with pytest.raises(NonFiniteLossError, match="step 101"):
        run(made, 300, report=poison_after_100, eval_every=1000)
    assert [row["step"] for row in rows] == [100]
    assert np.array_equal(poisoned, IMAGES), "the caller's images were changed"


# Adversarial training


def binary_logistic_regression() -> keras.Model:
    images = keras.Input((8, 8, 1))
    flat = keras.layers.Flatten()(images)
    return keras.Model(images, keras.layers.Dense(2, name="logits")(flat))


def test_adversarial_steps_agree_with_the_closed_form_for_logistic_regression(
    eagerly: None,
) -> None:
    """Goodfellow et al. 2015, section 5: softplus(e |w|_1 - y (w.x + b)) for labels of 1 and -1."""
    epsilon, share, rate = 0.1, 0.3, 0.05
    linear = binary_logistic_regression()
    made = Trainer(
        linear,
        0.3 + 0.4 * IMAGES,  # so that no pixel leaves [0, 1]
        LABELS % 2,
        Steps(
            batch_size=8,
            optimizer="sgd",
            learning_rate=rate,
            adversarial="fgsm",
            adversarial_epsilon=epsilon,
            adversarial_weight=share,
        ),
    )
    kernel, bias = (v.astype(np.float64) for v in linear.get_layer("logits").get_weights())
    w, b = kernel[:, 1] - kernel[:, 0], bias[1] - bias[0]
    expected = []
    for step in range(20):
        images, labels = (np.asarray(t) for t in made._batch(tf.constant(step)))
        x, y = images.reshape(8, -1).astype(np.float64), 2.0 * labels - 1
        losses, slopes = [], []
        for e in (0, epsilon):
            deficit = e * np.abs(w).sum() - y * (x @ w + b)
            sigmoid = 1 / (1 + np.exp(-deficit))
            losses.append(np.log1p(np.exp(deficit)).mean())
            down = e * np.sign(w) - y[:, None] * x
            slopes.append((sigmoid @ down / 8, -(sigmoid @ y) / 8))
        expected.append(losses)
        (clean_w, clean_b), (moved_w, moved_b) = slopes
        # Both columns of the kernel go down, in opposite directions.
        w -= 2 * rate * ((1 - share) * clean_w + share * moved_w)
        b -= 2 * rate * ((1 - share) * clean_b + share * moved_b)
    made.advance(20)
    kernel, bias = linear.get_layer("logits").get_weights()
    np.testing.assert_allclose(kernel[:, 1] - kernel[:, 0], w, atol=1e-5)
    np.testing.assert_allclose(bias[1] - bias[0], b, atol=1e-5)
    np.testing.assert_allclose([(f[0], f[2]) for f in made._window], expected, rtol=1e-4)


def test_adversarial_images_stay_between_0_and_1(eagerly: None) -> None:
    """At epsilon 1 every pixel that has a gradient goes to 0 or 1, and nowhere beyond."""
    linear = binary_logistic_regression()
    against = Steps(adversarial="fgsm", adversarial_epsilon=1.0)
    made = Trainer(linear, IMAGES, LABELS % 2, against)
    kernel, bias = linear.get_layer("logits").get_weights()
    labels = np.asarray(made._batch(tf.constant(0))[1])
    made.advance(1)
    y, w, b = 2 * labels - 1, kernel[:, 1] - kernel[:, 0], bias[1] - bias[0]
    worst = np.where(y[:, None] * w > 0, 0, 1)
    expected = np.log1p(np.exp(-y * (worst @ w + b))).mean()
    assert made._window[0][2] == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize(
    ("arch", "options"),
    [
        ("mlp", {"adversarial_weight": 0.0}),
        ("resnet", {"adversarial_weight": 0.0}),
        ("mlp", {"adversarial_epsilon": 0.0}),
    ],
)
def test_without_weight_or_epsilon_it_is_plain_training(
    arch: str, options: dict[str, Any], eagerly: None
) -> None:
    plain, adversarial = model(arch), model(arch)
    trainer(plain).advance(5)
    trainer(adversarial, adversarial="fgsm", **options).advance(5)
    # The moving averages of a batch normalisation meet the adversarial batches all the same.
    for a, b in zip(plain.trainable_variables, adversarial.trainable_variables, strict=True):
        np.testing.assert_allclose(np.asarray(a), np.asarray(b), rtol=1e-5, atol=1e-6)


def test_the_moving_averages_meet_both_batches_of_a_step(eagerly: None) -> None:
    """Two batches that are the same move them twice as one batch would."""
    networks = [model("resnet") for _ in range(2)]
    trainer(networks[0]).advance(1)
    trainer(networks[1], adversarial="fgsm", adversarial_epsilon=0.0).advance(1)
    for layer in networks[0].layers:
        if hasattr(layer, "moving_mean"):
            once = np.asarray(layer.moving_mean)
            twice = np.asarray(networks[1].get_layer(layer.name).moving_mean)
            np.testing.assert_allclose(twice, (1 + layer.momentum) * once, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_every_network_trains_adversarially(arch: str, precision: Precision, eagerly: None) -> None:
    network = model(arch, precision=precision)
    made = trainer(network, adversarial="fgsm", adversarial_epsilon=0.1)
    made.advance(2)
    for loss, _, adversarial_loss, _ in made._window:
        assert adversarial_loss > loss


def test_an_adversarial_loss_that_is_not_finite_stops_training() -> None:
    made = trainer(model(), adversarial="fgsm")
    made._run = lambda first, count: tf.constant([[1.0, 0.5, np.inf, 0.5]])
    with pytest.raises(NonFiniteLossError, match="became inf at step 1"):
        made.advance(1)


def test_trained_against_it_a_network_withstands_fgsm_better() -> None:
    epsilon = 0.15
    test = sets.load("digits").test
    survivals, accuracies = [], []
    choices: list[Any] = [{}, {"adversarial": "fgsm", "adversarial_epsilon": epsilon}]
    for choice in choices:
        result = experiments.train(
            arch="mlp", width=(64,), depth=2, dataset="digits", steps=600, **choice
        )
        x = tf.constant(test.images)
        with tf.GradientTape() as tape:
            tape.watch(x)
            losses = keras.losses.sparse_categorical_crossentropy(
                test.labels, result.model(x), from_logits=True
            )
        moved = np.clip(test.images + epsilon * np.sign(tape.gradient(losses, x)), 0, 1)
        survivals.append(evaluate(result.model, moved, test.labels).accuracy)
        accuracies.append(result.test.accuracy)
    assert survivals[1] > survivals[0] + 0.3
    assert accuracies[1] > accuracies[0] - 0.05


# Whole experiments


@pytest.mark.parametrize("optimizer", ["adam", "momentum", "sgd"])
def test_training_learns_digits(optimizer: Optimizer) -> None:
    rate = {"adam": 0.003, "momentum": 0.05, "sgd": 0.3}[optimizer]
    result = experiments.train(
        arch="mlp", dataset="digits", steps=800, optimizer=optimizer, learning_rate=rate
    )
    assert result.test.accuracy > 0.85
    assert result.history[-1]["test_accuracy"] == pytest.approx(result.test.accuracy, abs=0.01)


# In bfloat16, which takes ten times as long on many CPUs, one learns; the gradients of all follow.
@pytest.mark.parametrize(
    ("arch", "width", "steps", "precision"),
    [
        pytest.param("convnet", 16, 250, "float32", marks=pytest.mark.slow),
        pytest.param("resnet", 16, 250, "float32", marks=pytest.mark.slow),
        pytest.param("highway", 8, 250, "float32", marks=pytest.mark.slow),
        ("multiresnet", 16, 250, "float32"),
        pytest.param("resnet", 8, 100, "bfloat16", marks=pytest.mark.slow),
    ],
)
def test_each_architecture_learns(arch: str, width: int, steps: int, precision: Precision) -> None:
    result = experiments.train(
        arch=arch,
        depth=5,
        width=(width,),
        dataset="digits",
        per_class=(60, 20),
        batch_size=16 if steps == 250 else 32,
        steps=steps,
        precision=precision,
        learning_rate=0.003 if steps == 250 else 0.005,
    )
    # Chance is 0.1; the shorter training is on its way.
    train, test = (0.5, 0.7) if steps == 250 else (0.4, 0.4)
    assert result.train.accuracy > train
    assert result.test.accuracy > test
    # The plain float32 model says what the one in training said.
    assert result.history[-1]["test_accuracy"] == pytest.approx(result.test.accuracy, abs=0.03)


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_gradients_in_bfloat16_point_where_those_in_float32_do(arch: str, eagerly: None) -> None:
    gradients = []
    for precision in get_args(Precision):
        made = trainer(model(arch, width=(8,), precision=precision))
        _, parts, _ = made._gradients(tf.constant(IMAGES), tf.constant(LABELS, tf.int32))
        gradients.append(np.concatenate([np.ravel(part) for part in parts]))
    one, other = gradients
    lengths = np.linalg.norm(one), np.linalg.norm(other)
    assert one @ other > 0.95 * lengths[0] * lengths[1]
    assert lengths[1] == pytest.approx(lengths[0], rel=0.1)


@pytest.mark.parametrize(
    ("precision", "slowdown", "warned"),
    [("bfloat16", 10.0, True), ("bfloat16", 0.5, False), ("float32", 10.0, False)],
)
def test_a_slow_precision_is_warned_of(
    monkeypatch: pytest.MonkeyPatch,
    precision: Precision,
    slowdown: float,
    warned: bool,
) -> None:
    monkeypatch.setattr(devices, "bfloat16_slowdown", lambda: slowdown)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        experiments.train(**QUICK, steps=1, precision=precision)
    told = [str(one.message) for one in caught if "precision=float32" in str(one.message)]
    assert len(told) == warned


def test_a_plain_convnet_without_normalisation_trains() -> None:
    result = experiments.train(
        arch="convnet", depth=5, width=(8,), batch_norm=False, dataset="digits", steps=100
    )
    assert result.train.accuracy > 0.2
    assert not any("bn" in layer.name for layer in result.model.layers)


def test_what_is_resumed_comes_from_the_checkpoint_and_may_not_be_contradicted(
    tmp_path: Path,
) -> None:
    stored = TrainParameters(arch="mlp", steps=50, width=(8,), data_dir="old")
    path = tmp_path / "checkpoint.npz"
    checkpoints.save(path, {}, {"settings": stored.settings()})
    assert resumed(TrainParameters(arch="mlp"), path) == stored
    assert resumed(stored, path) == stored
    elsewhere = TrainParameters(arch="mlp", data_dir="new")
    assert resumed(elsewhere, path) == replace(stored, data_dir="new")
    for contradiction in ({"arch": "resnet"}, {"steps": 60}, {"width": (9,)}):
        with pytest.raises(InputError, match=next(iter(contradiction))):
            resumed(TrainParameters.of({"arch": "mlp"} | contradiction), path)


@pytest.mark.parametrize(
    ("facts", "sentence"),
    [
        ({}, "is damaged"),
        ({"settings": []}, "is damaged"),
        ({"settings": {"steps": 5}}, "says that arch is missing"),
        ({"settings": {"arch": "mlp", "data_seed": "x"}}, "says that data_seed=x isn't allowed"),
        ({"settings": {"arch": ["mlp"]}}, "says that unknown arch"),
        ({"settings": {"arch": "mlp", "dataset": "nowhere"}}, "says that unknown data set"),
    ],
)
def test_a_checkpoint_of_no_training_is_refused(
    tmp_path: Path, facts: dict[str, Any], sentence: str
) -> None:
    path = tmp_path / "checkpoint.npz"
    checkpoints.save(path, {}, facts)
    with pytest.raises(InputError, match=f"checkpoint.npz can't be used: .*{sentence}") as caught:
        resumed(TrainParameters(arch="mlp"), path)
    assert not isinstance(caught.value, UsageError), "no parameter of the command is wrong"


def test_a_state_that_no_training_can_have_left_is_refused() -> None:
    made = trainer(model(), steps=50)
    arrays, facts = made.state()
    last = f"variable{len(arrays) - 1}"
    made.restore(arrays, facts | {"step": 7, "window": [[0.5, 0.5]]})
    point = {"step": 5, "train_loss": 1.0}
    wrong: list[tuple[dict[str, np.ndarray], dict[str, Any]]] = [
        ({last: arrays[last].astype(str)}, {}),
        ({last: np.zeros((3, 3), np.float32)}, {}),
        ({last: np.full_like(arrays[last], np.nan)}, {}),
        ({"more": arrays[last]}, {}),
        *(({}, {"step": step}) for step in (51, -1, 1.0, True, "7", [7])),
        *(
            ({}, {"step": 7, "history": [point | other]})
            for other in (
                {"step": 8},
                {"step": -1},
                {"step": "5"},
                {"train_loss": "1"},
                {"train_loss": 10**400},
                {"../loss": 1.0},
            )
        ),
        ({}, {"history": [{"step": 0}]}),
        ({}, {"window": [[0.5]]}),
        ({}, {"window": [[0.5, "0.5"]]}),
    ]
    for other_arrays, other_facts in wrong:
        with pytest.raises(DamagedError):
            made.restore(arrays | other_arrays, facts | other_facts)
    del arrays[last]
    with pytest.raises(DamagedError, match=f"it has no {last}"):
        made.restore(arrays, facts)
    assert made.step == 7, "nothing has changed"


def test_a_training_killed_before_its_first_step_can_be_resumed(tmp_path: Path) -> None:
    path = tmp_path / "checkpoint.npz"

    class Killed(Monitor):
        """Stops the training when the network is known, before any step."""

        def begin(self, name: str, facts: Any, uses: Any) -> Path:
            return path

        def fact(self, name: str, value: Any) -> None:
            raise SystemExit

    class Resumed(Monitor):
        def begin(self, name: str, facts: Any, uses: Any) -> Path:
            return path

    arguments: Any = QUICK | {"steps": 20}
    with pytest.raises(SystemExit):
        experiments.train(Killed(), **arguments)
    again = train(resumed(TrainParameters(arch="mlp"), path), Resumed())
    assert_same_bits(again.model, experiments.train(**arguments).model)


def test_a_checkpoint_from_before_a_parameter_was_made_with_its_default(tmp_path: Path) -> None:
    path = tmp_path / "checkpoint.npz"

    class Keeper(Monitor):
        def begin(self, name: str, facts: Any, uses: Any) -> Path:
            return path

        def progress(self, done: int, total: int, text: str) -> None:
            if done == 30 and not resuming:
                raise KeyboardInterrupt

    arguments: Any = QUICK | {"steps": 60, "eval_every": 30}
    resuming = False
    with pytest.raises(KeyboardInterrupt):
        experiments.train(Keeper(), **arguments)
    arrays, facts = checkpoints.load(path)
    assert facts["step"] == 30 and len(facts["window"][0]) == 2
    for name in ("adversarial", "adversarial_epsilon", "adversarial_weight"):
        del facts["settings"][name]
    checkpoints.save(path, arrays, facts)

    with pytest.raises(InputError, match="has adversarial=none, not adversarial=fgsm"):
        resumed(TrainParameters(arch="mlp", adversarial="fgsm"), path)
    with pytest.raises(InputError, match="has adversarial=none, not adversarial=fgsm"):
        experiments.train(Keeper(), **arguments, adversarial="fgsm")
    resuming = True
    again = train(resumed(TrainParameters(arch="mlp"), path), Keeper())
    assert_same_bits(again.model, experiments.train(**arguments).model)


def test_changed_data_is_not_trained_on(tmp_path: Path) -> None:
    path = tmp_path / "checkpoint.npz"

    class Keeper(Monitor):
        def begin(self, name: str, facts: Any, uses: Any) -> Path:
            return path

    arguments: Any = QUICK | {"steps": 5}
    experiments.train(Keeper(), **arguments)
    arrays, facts = checkpoints.load(path)
    checkpoints.save(path, arrays, facts | {"dataset_digest": "another"})
    with pytest.raises(InputError, match="has changed since the checkpoint"):
        experiments.train(Keeper(), **arguments)
