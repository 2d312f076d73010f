"""MLflow's evaluation of other people's models: known rates, gates, and refusals."""

import importlib
import subprocess
import sys
import tomllib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import keras
import mlflow
import mlflow.keras
import mlflow.tensorflow
import numpy as np
import pandas as pd
import pytest
from matplotlib.figure import Figure
from mlflow import MlflowClient
from mlflow.data import numpy_dataset, pandas_dataset
from mlflow.exceptions import MlflowException
from mlflow.models import MetricThreshold
from mlflow.models.evaluation import EvaluationResult, ModelEvaluator
from mlflow.models.evaluation.evaluator_registry import _model_evaluation_registry as registry
from mlflow.models.evaluation.validation import ModelValidationFailedException
from sklearn.linear_model import LogisticRegression

from resfool import evaluator
from resfool.attacks import examples, presentation
from resfool.attacks.epsilons import over_epsilons
from resfool.attacks.options import AttackParameters, HowToAttack, MeasureParameters
from resfool.classifiers import adapting
from resfool.evaluator import RobustnessEvaluator
from resfool.values import epsilon_step
from tests.conftest import ROOT

layers = keras.layers
EPSILONS = {"epsilons": "0,2/255,8/255"}
SIDE, PIXELS, IMAGES = 4, 16, 40


@pytest.fixture(autouse=True)
def registered(monkeypatch: pytest.MonkeyPatch) -> None:
    """The evaluator as MLflow has it where the package is installed."""
    monkeypatch.setitem(registry._registry, "resfool", RobustnessEvaluator)
    monkeypatch.setenv("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")


def levels(seed: int = 1) -> np.ndarray:
    """Images as rows of levels from 0 to 255."""
    return np.random.default_rng(seed).integers(0, 256, (IMAGES, PIXELS)).astype(np.float32)


FLAT = levels() / 255
LABELS = np.random.default_rng(2).integers(0, 2, IMAGES)


def linear(*before: keras.Layer, shape: tuple[int | None, ...] = (PIXELS,)) -> keras.Model:
    """A softmax on pixels, with the same weights each time."""
    rng = np.random.default_rng(3)
    flat = [layers.Flatten()] if len(shape) > 1 else []
    dense = layers.Dense(2, activation="softmax")
    model = keras.Sequential([keras.Input(shape), *before, *flat, dense], name="linear")
    weights = rng.normal(size=(PIXELS, 2))
    bias = -(weights.T @ np.full(PIXELS, 0.5))
    dense.set_weights([weights, bias])
    return model


def margins(model: keras.Model) -> tuple[np.ndarray, float]:
    """z1 - z0 of each image, and how much a change of 1 in all pixels can change it."""
    weights, bias = (np.asarray(w, np.float64) for w in model.layers[-1].get_weights())
    difference = weights[:, 1] - weights[:, 0]
    return FLAT @ difference + bias[1] - bias[0], float(np.abs(difference).sum())


Save = Callable[..., str]


@pytest.fixture
def save(store: MlflowClient, tmp_path: Path) -> Save:
    """Saves a model as MLflow does, without a look for what it needs, which takes seconds."""

    def save(model: keras.Model, flavor: Any = mlflow.keras, **options: Any) -> str:
        path = str(tmp_path / "saved")
        flavor.save_model(model, path, pip_requirements=["keras"], **options)
        return path

    return save


@dataclass
class Loaded:
    """What MLflow makes of a saved model, as far as an evaluator sees it."""

    model: Any

    def get_raw_model(self) -> Any:
        return self.model


@pytest.fixture
def no_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Figures take most of the time."""
    for name in ("draw_fooling_rates", "draw_examples"):
        monkeypatch.setattr(presentation, name, lambda *arguments: Figure())


undrawn = pytest.mark.usefixtures("no_figures")


def evaluate(
    model: Any, data: Any = FLAT, targets: Any = LABELS, **config: Any
) -> EvaluationResult:
    return mlflow.models.evaluate(
        model,
        data,
        targets=targets,
        model_type="classifier",
        evaluators="resfool",
        evaluator_config=EPSILONS | config,
    )


def directly(
    model: Any, data: Any = FLAT, targets: Any = LABELS, **config: Any
) -> dict[str, float]:
    """The metrics by the steps that MLflow's evaluation takes, without a run."""
    asked = MeasureParameters.of(EPSILONS | config)
    dataset = mlflow_dataset(data, targets).to_evaluation_dataset()
    attacked, _ = evaluator.measure(Loaded(model), dataset, asked)
    return rates(presentation.model_metrics(attacked))


def mlflow_dataset(data: Any, targets: Any) -> Any:
    if isinstance(data, pd.DataFrame):
        return pandas_dataset.from_pandas(data, targets=targets)
    return numpy_dataset.from_numpy(data, targets=targets)


def rates(metrics: dict[str, float]) -> dict[str, float]:
    return {key: value for key, value in metrics.items() if "_at_" in key}


# How MLflow finds it.


def test_mlflow_finds_it_when_installed_and_imports_no_tensorflow(tmp_path: Path) -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    (group,) = project["entry-points"]
    ((name, target),) = project["entry-points"][group].items()
    module, _, attribute = target.partition(":")
    found = getattr(importlib.import_module(module), attribute)
    assert issubclass(found, ModelEvaluator) and found is RobustnessEvaluator
    installed = tmp_path / "resfool-0.dist-info"
    installed.mkdir()
    (installed / "METADATA").write_text("Metadata-Version: 2.1\nName: resfool\nVersion: 0\n")
    (installed / "entry_points.txt").write_text(f"[{group}]\n{name} = {target}\n")
    script = (
        "import sys, mlflow.models\n"
        "assert 'resfool' in mlflow.models.list_evaluators()\n"
        "assert 'resfool.evaluator' in sys.modules\n"
        "assert not {'tensorflow', 'keras'} & sys.modules.keys()\n"
    )
    subprocess.run(
        [sys.executable, "-c", script],
        cwd=tmp_path,
        env={"PYTHONPATH": f"{ROOT}:{tmp_path}", "PATH": "/usr/bin:/bin"},
        check=True,
    )


def test_parameters_are_those_of_the_attack() -> None:
    own, attacks = MeasureParameters.declared(), AttackParameters.declared()
    assert own.keys() - attacks.keys() == {"image_shape", "class_names"}
    for name in own.keys() & attacks.keys():
        assert own[name] == attacks[name], name


@pytest.mark.parametrize(
    ("model_type", "config", "takes_part"),
    [
        ("classifier", {"epsilons": "8/255"}, True),
        ("classifier", {"method": "pgd", "epsilon": "a slip, to be told of"}, True),
        ("classifier", {}, False),
        ("classifier", None, False),
        ("classifier", {"log_model_explainability": False}, False),
        ("regressor", {"epsilons": "8/255"}, False),
    ],
)
def test_it_stands_aside_unless_it_is_meant(
    model_type: str, config: dict[str, Any] | None, takes_part: bool
) -> None:
    found = RobustnessEvaluator.can_evaluate(model_type=model_type, evaluator_config=config)
    assert found == takes_part


class Counting(ModelEvaluator):
    """Another evaluator, which counts images."""

    @classmethod
    def can_evaluate(cls, **kwargs: Any) -> bool:
        return True

    def evaluate(self, **kwargs: Any) -> EvaluationResult:
        assert not kwargs["evaluator_config"].keys() & EPSILONS.keys()
        return EvaluationResult({"count": len(kwargs["dataset"].features_data)}, {})


@undrawn
def test_with_another_evaluator(save: Save, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(registry._registry, "counting", Counting)
    result = mlflow.models.evaluate(
        save(linear()),
        FLAT,
        targets=LABELS,
        model_type="classifier",
        evaluators=["counting", "resfool"],
        evaluator_config={"resfool": EPSILONS},
    )
    assert result.metrics["count"] == IMAGES
    assert "fooling_rate_at_8_255" in result.metrics


# What it measures.


@undrawn
def test_a_linear_models_fooling_rate_is_known(save: Save) -> None:
    model = linear()
    margin, reach = margins(model)
    epsilons = [0.01, 0.05, 0.1, 0.2]
    result = evaluate(save(model), epsilons=epsilons, label_source="prediction", clip=False)
    for epsilon in epsilons:
        flipped = np.abs(margin) < epsilon * reach
        rate = result.metrics[f"fooling_rate_at_{epsilon}"]
        assert rate == pytest.approx(flipped.mean())
        wrong = (margin > 0) ^ flipped != LABELS
        assert result.metrics[f"error_rate_at_{epsilon}"] == pytest.approx(wrong.mean())
    assert 0 < result.metrics["fooling_rate_at_0.05"] < result.metrics["fooling_rate_at_0.2"]
    assert result.metrics["clean_accuracy"] == pytest.approx(((margin > 0) == LABELS).mean())


@undrawn
def test_a_hidden_gradient_is_among_the_metrics_and_can_be_refused(save: Save) -> None:
    model = linear()
    weights, bias = model.layers[-1].get_weights()
    model.layers[-1].set_weights([1e5 * weights, 1e5 * bias])
    with pytest.warns(UserWarning, match="linear: the gradient seems to be hidden"):
        result = evaluate(save(model))
    assert result.metrics["gradient_masking_checks_raised"] == 1
    assert result.metrics["gradient_masking_zero_gradient"] == 1
    table = result.artifacts["gradient_checks"].content
    assert table.set_index("check")["raised"]["zero_gradient"]
    limit = MetricThreshold(threshold=0, greater_is_better=False)
    with pytest.raises(ModelValidationFailedException):
        mlflow.validate_evaluation_results({"gradient_masking_checks_raised": limit}, result)


@pytest.mark.parametrize("has_id", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_what_is_logged_is_what_the_attack_gives(
    store: MlflowClient, save: Save, tmp_path: Path, has_id: bool
) -> None:
    model = linear(shape=(SIDE, SIDE, 1))
    with mlflow.start_run() as run:
        if has_id:
            uri = mlflow.keras.log_model(model, name="model", pip_requirements=["keras"]).model_uri
        else:
            uri = save(model)
        result = evaluate(uri, class_names="cat,dog", samples=30, method="smallest_epsilon")
    classifier = adapting.as_classifier(
        model, image_shape=(SIDE, SIDE, 1), classes=2, name="linear"
    )
    drawn = np.random.default_rng(0).permutation(IMAGES)[:30]
    images = FLAT.reshape(-1, SIDE, SIDE, 1)[drawn]
    asked = HowToAttack(epsilons=(0, 2 / 255, 8 / 255), method="smallest_epsilon")
    curve = over_epsilons(classifier, images, LABELS[drawn], asked)
    expected = examples.attacked("linear", "dataset", ("cat", "dog"), curve, 0)
    metrics = presentation.model_metrics(expected)
    assert result.metrics == pytest.approx(metrics)
    assert result.run_id == run.info.run_id

    logged = {
        key: store.get_metric_history(run.info.run_id, key)
        for key in store.get_run(run.info.run_id).data.metrics
    }
    assert logged.keys() == metrics.keys() | curve.rows[0].keys()
    curves = {key: {m.step: m.value for m in points} for key, points in logged.items()}
    for key, value in metrics.items():
        assert len(logged[key]) == 1 and curves[key] == pytest.approx({0: value})
    for key in curve.rows[0]:
        expected_curve = {epsilon_step(row["epsilon"]): row[key] for row in curve.rows}
        assert curves[key] == pytest.approx(expected_curve)
    for found in store.search_logged_models(["0"]):
        assert found.metrics and {m.dataset_name for m in found.metrics} == {"dataset"}
        of_model = {m.key: m.value for m in found.metrics}
        assert {key: of_model[key] for key in metrics} == pytest.approx(metrics)

    files = {file.path for file in store.list_artifacts(run.info.run_id)}
    kinds = "rates", "images", "gradient_checks"
    tables = {f"{name}.{kind}" for name in kinds for kind in ("csv", "json")}
    assert files == tables | {"fooling_rates.png", "examples.png", "attack.json"}
    names = {name for kind in kinds for name in (kind, f"{kind}_table")}
    assert result.artifacts.keys() == names | {"fooling_rates", "examples", "attack"}
    table = presentation.images_table(expected)
    table.insert(0, "row", drawn)
    pd.testing.assert_frame_equal(
        result.artifacts["images"].content, table, check_dtype=False, rtol=1e-4
    )
    assert result.tables["rates_table"]["fooling_rate"].tolist() == pytest.approx(
        [row["fooling_rate"] for row in curve.rows]
    )
    assert result.artifacts["examples"].content.size[0] > 500
    result.save(str(tmp_path / "result"))
    again = EvaluationResult.load(str(tmp_path / "result"))
    assert again.metrics == result.metrics and again.artifacts.keys() == result.artifacts.keys()


@undrawn
def test_its_settings_are_kept_and_give_the_same_again(save: Save) -> None:
    uri = save(linear())
    result = evaluate(uri, method="pgd", pgd_steps=3, samples=20, seed=5)
    settings = result.artifacts["attack"].content
    assert settings["pgd_steps"] == "3" and settings["epsilons"] == "0.0,2/255,8/255"
    assert evaluate(uri, **settings).metrics == result.metrics


@undrawn
def test_more_points_than_mlflow_takes_at_once(store: MlflowClient, save: Save) -> None:
    with mlflow.start_run() as run:
        evaluate(save(linear()), epsilons=[level / 255 for level in range(60)])
    assert len(store.get_metric_history(run.info.run_id, "l2_norm")) == 60


# What it takes.


@pytest.fixture(scope="module")
def expected() -> dict[str, float]:
    """The rates of the linear model, for all the ways to hand over the same thing."""
    classifier = adapting.as_classifier(
        linear(), image_shape=(1, PIXELS, 1), classes=2, name="linear"
    )
    drawn = np.random.default_rng(0).permutation(IMAGES)
    images = FLAT.reshape(-1, 1, PIXELS, 1)[drawn]
    asked = HowToAttack(epsilons=(0, 2 / 255, 8 / 255))
    curve = over_epsilons(classifier, images, LABELS[drawn], asked)
    found = examples.attacked("linear", "", ("0", "1"), curve, 0)
    return rates(presentation.model_metrics(found))


def frame(values: np.ndarray = FLAT) -> pd.DataFrame:
    return pd.DataFrame({f"p{i}": column for i, column in enumerate(values.T)} | {"y": LABELS})


@undrawn
@pytest.mark.parametrize(
    ("data", "targets"),
    [
        (FLAT, LABELS),
        (FLAT.astype(np.float64), LABELS[:, np.newaxis].astype(np.float32)),
        (FLAT.tolist(), LABELS.tolist()),
        (FLAT, LABELS.astype(bool)),
        (frame(), "y"),
        (pd.DataFrame({"image": list(FLAT.reshape(-1, SIDE, SIDE, 1)), "y": LABELS}), "y"),
        (numpy_dataset.from_numpy(FLAT, targets=LABELS), None),
        (pandas_dataset.from_pandas(frame(), targets="y", name="mine"), None),
    ],
    ids=["arrays", "column", "lists", "bools", "frame", "cells", "numpy data", "pandas data"],
)
def test_data_of_any_kind(save: Save, expected: dict[str, float], data: Any, targets: Any) -> None:
    assert rates(evaluate(save(linear()), data, targets).metrics) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("shape", "options"),
    [
        ((SIDE, SIDE, 1), {}),
        ((SIDE, SIDE), {}),
        ((2, 2, 4), {}),
        ((PIXELS,), {"image_shape": f"{SIDE},{SIDE},1"}),
        ((PIXELS,), {"image_shape": [2, 2, 4]}),
        ((SIDE, SIDE, 1), {"image_shape": (SIDE, SIDE, 1)}),
    ],
)
def test_images_of_any_shape(
    expected: dict[str, float], shape: tuple[int, ...], options: dict[str, Any]
) -> None:
    assert directly(linear(shape=shape), **options) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("low", "high", "given"), [(0, 255, "0,255"), (-1, 1, [-1, 1]), (0.5, 0.75, (0.5, 0.75))]
)
def test_another_range_of_pixels_gives_the_same_rates(
    expected: dict[str, float], low: float, high: float, given: Any
) -> None:
    to_unit = layers.Rescaling(1 / (high - low), -low / (high - low))
    data = (FLAT * (high - low) + low).astype(np.float32)
    assert directly(linear(to_unit), data, input_range=given) == pytest.approx(expected)


def test_preprocessed_data_gives_the_same_rates(expected: dict[str, float]) -> None:
    undone = layers.Rescaling(0.25 / 255, 0.4)
    data = ((FLAT - 0.4) * 255 / 0.25).astype(np.float32)  # (255 x - 102) / 0.25
    options = {"input_range": "0,255", "mean": "102", "std": "0.25"}
    assert directly(linear(undone), data, **options) == pytest.approx(expected)
    check_refusal("mean=102.0 std=0.25 doesn't hold them", Loaded(linear()), FLAT - 500, **options)


def test_whole_numbers_as_pixels(expected: dict[str, float]) -> None:
    model = linear(layers.Rescaling(1 / 255))
    found = directly(model, levels().astype(np.uint8), input_range="0,255")
    assert found == pytest.approx(expected)


def test_a_size_that_the_model_leaves_open() -> None:
    grey = layers.Conv2D(2, 1, activation="relu")
    model = keras.Sequential(
        [keras.Input((None, None, 1)), grey, layers.GlobalAveragePooling2D(), layers.Dense(2)]
    )
    grey.set_weights([np.array([1.0, -1.0]).reshape(1, 1, 1, 2), np.array([0.0, 1.0])])
    assert "fooling_rate_at_8_255" in directly(model, image_shape=f"{SIDE},{SIDE},1")


@undrawn
def test_the_flavour_tensorflow(save: Save, expected: dict[str, float]) -> None:
    uri = save(linear(), mlflow.tensorflow)
    assert rates(evaluate(uri).metrics) == pytest.approx(expected)
    loaded = mlflow.pyfunc.load_model(uri)
    assert rates(evaluate(loaded).metrics) == pytest.approx(expected)


# What it is for.


@undrawn
def test_a_gate(save: Save) -> None:
    model = linear()
    margin, reach = margins(model)
    truth = float((np.abs(margin) < 8 / 255 * reach).mean())
    result = evaluate(save(model), label_source="prediction", clip=False)

    def gate(threshold: float) -> None:
        allowed = MetricThreshold(threshold=threshold, greater_is_better=False)
        mlflow.validate_evaluation_results({"fooling_rate_at_8_255": allowed}, result)

    gate(truth + 0.01)
    with pytest.raises(ModelValidationFailedException, match="fooling_rate_at_8_255"):
        gate(truth - 0.01)


# What it refuses.


def nan() -> np.ndarray:
    values = FLAT.copy()
    values[3, 3] = np.nan
    return values


@pytest.mark.parametrize(
    ("config", "sentence"),
    [
        ({"epsilon": 0.1}, "unknown parameter 'epsilon'; did you mean 'epsilons'?"),
        (
            {"dataset": "mnist"},
            "unknown parameter 'dataset'; known: image_shape, class_names, method,",
        ),
        ({"method": "fgms"}, "unknown method 'fgms'; did you mean 'fgsm'?"),
        ({"method": 1}, "unknown method '1'"),
        ({"epsilons": "8"}, "epsilons must be from 0 to 1"),
        ({"epsilons": None}, "epsilons can't be of type NoneType"),
        ({"samples": 0}, "samples=0 isn't allowed"),
        ({"samples": IMAGES + 1}, f"samples={IMAGES + 1} is more than the {IMAGES} images"),
        ({"seed": "x"}, "seed=x isn't allowed"),
        ({"clip": "maybe"}, "clip=maybe isn't allowed"),
        ({"input_range": "255,0"}, "must be two rising numbers"),
        ({"input_range": "0,0.5"}, "to 1, and input_range=0.0,0.5 doesn't hold them"),
        ({"image_shape": "4,4"}, "must be height, width and channels, such as 28,28,1"),
        ({"image_shape": "4,4,x"}, "image_shape=4,4,x isn't allowed"),
        ({"image_shape": "8,8,1"}, "16 numbers for each image, and images of the shape 8,8,1"),
        ({"class_names": "a,b,c"}, "class_names=a,b,c are 3 names, and the model has 2 classes"),
    ],
)
def test_settings_that_are_refused(config: dict[str, Any], sentence: str) -> None:
    check_refusal(sentence, Loaded(linear()), **config)


@pytest.mark.parametrize(
    ("data", "targets", "sentence"),
    [
        (levels(), LABELS, "values from 1 to 255, and input_range=0.0,1.0 doesn't hold them;"),
        (-FLAT, LABELS, "input_range=0.0,1.0 doesn't hold them"),
        (nan(), LABELS, "infinite or no numbers"),
        (FLAT[:, :9], LABELS, "9 numbers for each image, and images of the shape 1,16,1 have 16"),
        (FLAT[:0], LABELS[:0], "no images"),
        (FLAT.astype(str), LABELS, "must be numbers, not of type <U"),
        (frame().assign(p3="black"), "y", "numbers only, as many for each image"),
        (pd.DataFrame({"x": [FLAT[0], FLAT[1, :3]], "y": [0, 1]}), "y", "as many for each image"),
        (FLAT, LABELS + 1, "class numbers from 0 to 1, one for each image, and one is 2"),
        (FLAT, LABELS - 1, "and one is -1"),
        (FLAT, LABELS + 0.5, ".5"),
        (FLAT, np.where(LABELS, "cat", "dog"), "and one is '"),
        (FLAT, np.eye(2)[LABELS], f"an array of the shape ({IMAGES}, 2)"),
        (frame().assign(y=np.nan), "y", "and one is nan"),
    ],
)
def test_data_that_is_refused(data: Any, targets: Any, sentence: str) -> None:
    check_refusal(sentence, Loaded(linear()), data, targets)


def open_size() -> keras.Model:
    flat = [layers.GlobalAveragePooling2D(), layers.Dense(2)]
    return keras.Sequential([keras.Input((None, None, 1)), *flat])


def volumes() -> keras.Model:
    return linear(shape=(2, 2, 2, 2))


def two_inputs() -> keras.Model:
    images = [keras.Input((PIXELS,)), keras.Input((PIXELS,))]
    return keras.Model(images, layers.Dense(2)(layers.Add()(images)))


def no_gradient() -> keras.Model:
    model = linear()
    model.layers[-1].set_weights([np.zeros((PIXELS, 2)), np.zeros(2)])
    return model


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (LogisticRegression, "resfool attacks Keras models, as mlflow.keras.log_model logs them;"),
        (LogisticRegression, "this is a LogisticRegression"),
        (open_size, "doesn't tell the size of its images, it takes (None, None, None, 1); say it"),
        (volumes, "say it by image_shape, height, width and channels, such as 28,28,1"),
        (two_inputs, "takes 2 inputs"),
        (no_gradient, "no gradient reaches its input"),
    ],
)
def test_models_that_are_refused(make: Callable[[], Any], sentence: str) -> None:
    check_refusal(sentence, Loaded(make()))


def test_keras_elsewhere_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(keras.config, "backend", lambda: "jax")
    check_refusal("needs Keras on TensorFlow, and here it runs on jax", Loaded(linear()))


def check_refusal(
    sentence: str, model: Any, data: Any = FLAT, targets: Any = LABELS, **config: Any
) -> None:
    with pytest.raises(MlflowException) as caught:
        RobustnessEvaluator().evaluate(
            model_type="classifier",
            dataset=mlflow_dataset(data, targets).to_evaluation_dataset(),
            run_id="there is none, so that nothing can be logged",
            evaluator_config=EPSILONS | config,
            model=model,
        )
    assert caught.value.error_code == "INVALID_PARAMETER_VALUE"
    assert sentence in caught.value.message and "\n" not in caught.value.message


def exported(save: Save) -> str:
    signature = mlflow.models.infer_signature(FLAT, np.zeros((IMAGES, 2), np.float32))
    return save(linear(), save_exported_model=True, signature=signature)


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (exported, "resfool attacks Keras models"),
        (lambda save: lambda data: np.zeros(len(data)), "resfool attacks Keras models"),
        (lambda save: save(no_gradient()), "no gradient reaches its input"),
    ],
    ids=["exported", "function", "no gradient"],
)
def test_a_refusal_leaves_nothing_in_the_run(
    store: MlflowClient, save: Save, make: Callable[[Save], Any], sentence: str
) -> None:
    model = make(save)
    with mlflow.start_run() as run, pytest.raises(MlflowException, match=sentence):
        evaluate(model)
    assert not store.get_run(run.info.run_id).data.metrics
    assert not store.list_artifacts(run.info.run_id)


def test_predictions_alone_are_refused(store: MlflowClient) -> None:
    with pytest.raises(MlflowException, match="there is no model"):
        mlflow.models.evaluate(
            data=frame().assign(guess=0),
            targets="y",
            predictions="guess",
            model_type="classifier",
            evaluators="resfool",
            evaluator_config=EPSILONS,
        )
