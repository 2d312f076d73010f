"""`mlflow.models.evaluate(..., evaluators="resfool")`: robustness among MLflow's own evaluations.

MLflow imports this file with its evaluators, so neither TensorFlow nor Keras is imported before
there is a model to attack.
"""

import functools
import json
import math
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from mlflow import MlflowClient
from mlflow.entities import Metric
from mlflow.exceptions import MlflowException
from mlflow.models.evaluation import EvaluationArtifact, EvaluationResult, ModelEvaluator
from mlflow.models.evaluation.artifacts import (
    CsvEvaluationArtifact,
    ImageEvaluationArtifact,
    JsonEvaluationArtifact,
)
from mlflow.tracking.artifact_utils import get_artifact_uri

from resfool import devices
from resfool.attacks import presentation
from resfool.attacks.options import MeasureParameters
from resfool.classifiers.interface import Allowed, Interface
from resfool.costs import Data
from resfool.datasets.sets import draw
from resfool.errors import InputError
from resfool.monitor import Leaves, Monitor
from resfool.tracking import leaves
from resfool.values import Row, epsilon_step, show
from resfool.wording import label

if TYPE_CHECKING:
    import keras

    from resfool.attacks.examples import Attacked


class RobustnessEvaluator(ModelEvaluator):
    """Attacks a Keras classifier and returns how easily it is fooled, for thresholds to judge.

    Its evaluator_config has the names of MeasureParameters. Without any of them it stands aside:
    where a user names no evaluator, MLflow asks all that are installed.
    """

    @classmethod
    def can_evaluate(
        cls, *, model_type: str, evaluator_config: Mapping[str, Any] | None, **kwargs: Any
    ) -> bool:
        """Whether this is a classifier's evaluation that has any parameter of ours."""
        own = MeasureParameters.declared()
        return model_type == "classifier" and any(name in own for name in evaluator_config or {})

    def evaluate(
        self,
        *,
        model_type: str,
        dataset: Any,
        run_id: str,
        evaluator_config: Mapping[str, Any] | None,
        model: Any = None,
        model_id: str | None = None,
        **kwargs: Any,
    ) -> EvaluationResult:
        """Attack the model; log and return rates as metrics, figures and tables as artifacts.

        The arguments are MLflow's; see `measure` for what the data must be.

        Raises:
            MlflowException: something can't be used as it is; nothing was logged.
        """
        try:
            asked = MeasureParameters.of(evaluator_config or {})
            attacked, rows = measure(model, dataset, asked)
        except InputError as error:
            raise MlflowException.invalid_parameter_value(str(error)) from error
        metrics = presentation.model_metrics(attacked)
        found = _leaves(attacked, rows, asked)
        # If the model has an id, MLflow itself logs what is returned, to the run and the model.
        single = {} if model_id else metrics
        _log_metrics(run_id, model_id, dataset, single, attacked.curve.rows)
        artifacts = _log_leaves(run_id, found)
        verdict = attacked.curve.verdict
        if verdict is not None and verdict.hidden:
            Monitor().warn(f"{attacked.name}: {verdict.warning}")
        return EvaluationResult(metrics, artifacts, run_id)


def measure(model: Any, dataset: Any, asked: MeasureParameters) -> tuple["Attacked", np.ndarray]:
    """Attack a model on a data set, both as MLflow hands them to an evaluator.

    Args:
        model: a PyFuncModel with a Keras classifier in it.
        dataset: features_data, a row of pixels for each image, and labels_data, class numbers.
        asked: of the attack.

    Returns:
        The result, and the numbers of the rows that were attacked, in its order.

    Raises:
        InputError: the model, its data or their combination can't be used.
    """
    original = _keras_model(model)
    shape = asked.image_shape or _image_shape(original)
    interface = Interface(**asked.shared(Interface))
    pixels = _pixels(dataset.features_data, shape, interface)
    rows = draw(len(pixels), asked.samples, asked.seed, "images")
    asked.check_affordable(Data(len(rows), math.prod(shape[:2])))
    asked.check_images(shape)

    from resfool.attacks import examples
    from resfool.attacks.epsilons import over_epsilons
    from resfool.attacks.memory import enough_for, images_per_pass
    from resfool.classifiers import adapting, inference

    classifier = adapting.as_classifier(
        original,
        image_shape=shape,
        classes=None,
        interface=interface,
        name=original.name,
        # MLflow has loaded it, whatever it does; what that means is among the metrics.
        allowed=Allowed(without_gradient=asked.pursues, random=True),
    )
    classes = int(classifier.output_shape[-1])
    labels = _class_numbers(dataset.labels_data, classes)[rows]
    names = asked.class_names
    if names is None:
        names = tuple(map(str, range(classes)))
    names = tuple(map(label, names))
    if len(names) != classes:
        raise InputError(
            f"class_names={show(names)} are {len(names)} names, and the model has {classes} classes"
        )
    images = np.empty((len(rows), *shape), np.float32)
    for part in inference.batches(len(rows), inference.BATCH_SIZE):
        images[part] = interface.pixels(pixels[rows[part]].reshape(-1, *shape))
    size = images_per_pass(
        asked.batch_size, classifier, len(images), Monitor(), solving=asked.pursues
    )
    with enough_for(inference.even(len(images), size)):
        curve = over_epsilons(classifier, images, labels, asked, seed=asked.seed, batch_size=size)
        name, where = label(original.name), label(dataset.name)
        return examples.attacked(name, where, names, curve, asked.seed), rows


# What MLflow hands over.


def _keras_model(model: Any) -> "keras.Model":
    """The Keras model inside what MLflow loaded; that it may run its code was settled then."""
    import keras

    try:
        found = model.get_raw_model()
    except (AttributeError, NotImplementedError):
        found = model
    if not isinstance(found, keras.Model):
        given = "there is no model" if model is None else f"this is a {type(found).__name__}"
        raise InputError(
            f"resfool attacks Keras models, as mlflow.keras.log_model logs them; {given}"
        )
    devices.start_keras()
    return found


def _image_shape(model: "keras.Model") -> tuple[int, ...]:
    """(H, W, C) of the images that a model takes; pixels in a row are an image of one row."""
    inputs = getattr(model, "inputs", None)
    taken = tuple(inputs[0].shape[1:]) if inputs else ()
    shape = {1: (1, *taken, 1), 2: (*taken, 1), 3: taken}.get(len(taken), ())
    if not shape or None in shape:
        raise InputError(
            "the model doesn't tell the size of its images"
            + (f", it takes {(None, *taken)}" if inputs else "")
            + "; say it by image_shape, height, width and channels, such as 28,28,1"
        )
    return shape


def _pixels(features: Any, shape: Sequence[int], interface: Interface) -> np.ndarray:
    """The data as numbers (N, H*W*C), all of which the model takes for pixels."""
    table = features.to_numpy() if hasattr(features, "to_numpy") else np.asarray(features)
    if not len(table):
        raise InputError("the data has no images")
    if table.dtype == object:  # a data frame's columns differ in type, or hold arrays
        try:
            table = np.array(table.tolist(), np.float64)
        except (TypeError, ValueError):
            raise InputError("the data must have numbers only, as many for each image") from None
    if table.dtype.kind not in "biuf":
        raise InputError(f"the data must be numbers, not of type {table.dtype}")
    table = table.reshape(len(table), -1)
    if table.shape[1] != math.prod(shape):
        raise InputError(
            f"the data has {table.shape[1]} numbers for each image, and images of the shape"
            f" {show(tuple(shape))} have {math.prod(shape)}"
        )
    least, most = float(table.min()), float(table.max())
    if not (math.isfinite(least) and math.isfinite(most)):
        raise InputError("the data has values that are infinite or no numbers")
    scale, offset = interface.scale_and_offset(shape[-1])
    of_channels = table.reshape(-1, shape[-1])
    ends = (np.stack([of_channels.min(axis=0), of_channels.max(axis=0)]) - offset) / scale
    slack = 1e-6  # of float32
    if ends.min() < -slack or ends.max() > 1 + slack:
        said = {name: show(interface.settings()[name]) for name in interface.given()}
        shown = " ".join(f"{name}={value}" for name, value in said.items())
        raise InputError(
            f"the data has values from {least:.9g} to {most:.9g}, and"
            f" {shown or f'input_range={show(interface.input_range)}'} doesn't hold them; give the"
            " values that the model takes for black and white, such as input_range=0,255"
        )
    return table


def _class_numbers(targets: Any, classes: int) -> np.ndarray:
    """The labels, int (N,)."""
    labels = np.asarray(targets)
    if labels.ndim == 2 and labels.shape[1] == 1:
        labels = labels[:, 0]
    wanted = f"the targets must be class numbers from 0 to {classes - 1}, one for each image"
    if labels.ndim != 1:
        raise InputError(f"{wanted}, and they are an array of the shape {labels.shape}")
    wrong = labels
    if labels.dtype.kind in "biuf":
        wrong = labels[(labels != np.floor(labels)) | (labels < 0) | (labels >= classes)]
    if len(wrong):
        raise InputError(f"{wanted}, and one is {wrong.tolist()[0]!r}")
    return labels.astype(np.int64)


# What it gets back.


def _log_metrics(
    run_id: str,
    model_id: str | None,
    dataset: Any,
    metrics: Mapping[str, float],
    curves: Iterable[Row],
) -> None:
    """Log single figures at step 0, and the curves as the attack entry point does."""
    point = functools.partial(
        Metric,
        timestamp=int(time.time() * 1000),
        model_id=model_id,
        dataset_name=dataset.name,
        dataset_digest=dataset.digest,
        run_id=run_id,
    )
    points = [point(key, value, step=0) for key, value in metrics.items()]
    for row in curves:
        step = epsilon_step(row["epsilon"])
        points += [point(key, value, step=step) for key, value in row.items()]
    MlflowClient().log_batch(run_id, metrics=points)


def _leaves(attacked: "Attacked", rows: np.ndarray, asked: MeasureParameters) -> Leaves:
    """Figures, tables and the settings; the table of images says which rows they were."""
    images = presentation.images_table(attacked)
    images.insert(0, "row", rows)
    settings = {name: show(value) for name, value in asked.settings().items()}
    own = {n: leaf for n, leaf in presentation.leaves_of(attacked).items() if n != "spectrum"}
    return {
        **own,
        **presentation.figures([attacked], asked),
        "images": images,
        "attack.json": json.dumps(settings, indent=2).encode(),
    }


_KINDS: dict[str, Callable[[str], EvaluationArtifact]] = {
    ".png": ImageEvaluationArtifact,
    ".csv": CsvEvaluationArtifact,
    ".json": JsonEvaluationArtifact,
}


def _log_leaves(run_id: str, found: Leaves) -> dict[str, EvaluationArtifact]:
    """Log what a result leaves; its files as MLflow's result has them, tables as NAME_table too."""
    artifacts = {}
    with tempfile.TemporaryDirectory() as folder:
        for file in leaves.log(MlflowClient(), run_id, Path(folder), found).values():
            artifact = _KINDS[file.suffix](get_artifact_uri(run_id, file.name))
            artifact._load(str(file))  # which MLflow needs to save it
            again = file.suffix == ".json" and file.stem in found  # a table, which is CSV already
            artifacts[f"{file.stem}_table" if again else file.stem] = artifact
    return artifacts
