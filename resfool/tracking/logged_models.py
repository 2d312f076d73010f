"""A model and its figures as what a run tells its store, and the data sets they are of."""

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

import mlflow
import numpy as np
from mlflow import MlflowClient
from mlflow.data.numpy_dataset import from_numpy
from mlflow.entities import DatasetInput, InputTag, LoggedModel, LoggedModelStatus, Run
from mlflow.utils.validation import MAX_DATASET_NAME_SIZE

from resfool import wording
from resfool.datasets.sets import Dataset
from resfool.errors import InputError, temporary_folder, writing
from resfool.monitor import LONGEST, Use
from resfool.tracking.outbox import Letter, add_to
from resfool.values import Part, show

if TYPE_CHECKING:
    import keras

_NAME = "model"


@dataclass
class Model(Letter):
    """A classifier with its signature and requirements.

    Attributes:
        model: plain Keras, from images in [0, 1] to logits.
        dataset: whose images it takes.
        model_id: MLflow's, once it is sent.
    """

    model: "keras.Model"
    dataset: Dataset
    model_id: str = ""

    def send(self, client: MlflowClient, run_id: str) -> None:
        self.model_id = _whole_model(client, run_id) or self._logged(client, run_id)

    def _logged(self, client: MlflowClient, run_id: str) -> str:
        import mlflow.keras
        from mlflow.models import ModelSignature
        from mlflow.types import Schema, TensorSpec

        single = np.dtype(np.float32)
        signature = ModelSignature(
            inputs=Schema([TensorSpec(single, (-1, *self.dataset.image_shape), "images")]),
            outputs=Schema([TensorSpec(single, (-1, self.dataset.classes))]),
        )
        requirements = [f"{name}=={metadata.version(name)}" for name in ("keras", "tensorflow")]
        places = f"{temporary_folder()} or {client.get_run(run_id).info.artifact_uri}"
        with writing(f"the model's file in {places}"), _Active(run_id):
            info = mlflow.keras.log_model(
                self.model, name=_NAME, signature=signature, pip_requirements=requirements
            )
        return str(info.model_id)

    def keep(self, folder: Path) -> None:
        self.model.save(folder / "model.keras")


def models_of(client: MlflowClient, run: Run) -> list[LoggedModel]:
    """The models that a run has logged, or has begun to: its outputs don't name those yet."""
    source = f"source_run_id = '{run.info.run_id}'"
    return list(client.search_logged_models([run.info.experiment_id], source))


def _whole_model(client: MlflowClient, run_id: str) -> str | None:
    """A run's model, if an earlier attempt has logged it whole; what is half there is deleted."""
    for model in models_of(client, client.get_run(run_id)):
        if model.status == LoggedModelStatus.READY:
            return str(model.model_id)
        client.delete_logged_model(model.model_id)
    return None


class _Active:
    """Makes a run MLflow's active one, as `log_model` needs it, and leaves its status alone."""

    def __init__(self, run_id: str) -> None:
        self._run_id = run_id

    def __enter__(self) -> None:
        active = mlflow.active_run()
        self._pushed = active is None or active.info.run_id != self._run_id
        if self._pushed:
            mlflow.start_run(run_id=self._run_id, nested=True)

    def __exit__(self, *_: Any) -> None:
        if self._pushed:
            mlflow.end_run("RUNNING")


@dataclass(frozen=True)
class Figures(Letter):
    """A model's figures on a part of a data set, where MLflow's Models page shows them."""

    model: Model | str  # the one that was sent before, or one's id
    values: Mapping[str, float]
    dataset: Dataset
    part: Part
    timestamp: int  # in ms; two figures of one time are the same

    def send(self, client: MlflowClient, run_id: str) -> None:
        model_id = self.model.model_id if isinstance(self.model, Model) else self.model
        mlflow.log_metrics(
            dict(self.values),
            run_id=run_id,
            timestamp=self.timestamp,
            model_id=model_id or None,
            dataset=as_input(self.dataset, self.part),
        )

    def keep(self, folder: Path) -> None:
        add_to(folder / "figures.json", self.values)


def as_input(dataset: Dataset, part: Part) -> Any:
    """A split as MLflow's data set; two of one name and digest would be taken for the same."""
    split = dataset.split(part)
    with warnings.catch_warnings():
        # MLflow finds two source types, of the same name, for a path, and warns of it each time.
        warnings.simplefilter("ignore", UserWarning)
        return from_numpy(
            split.images,
            targets=split.labels,
            source=dataset.source,
            name=_input_name(dataset, part),
            digest=dataset.digest,
        )


def _input_name(dataset: Dataset, part: Part) -> str:
    # Without spaces: in a store of files they would end the name, and spoil the run.
    return "-".join([*wording.label(dataset.name, MAX_DATASET_NAME_SIZE).split(), part])


def check_lengths(facts: Mapping[str, Any], uses: Sequence[Use]) -> None:
    """Refuse what MLflow would cut off, or take no run with.

    Raises:
        InputError: a parameter's value or a data set's name is too long.
    """
    for name, value in facts.items():
        if (size := len(show(value))) > LONGEST:
            raise InputError(
                f"{name}={show(value)[:40]}... has {size} characters, and a run keeps {LONGEST} of "
                "a parameter"
            )
    for dataset, part, _ in uses:
        if (size := len(f"{dataset.name}-{part}")) > MAX_DATASET_NAME_SIZE:
            raise InputError(
                f"dataset={dataset.name[:40]}... makes a name of {size} characters, and MLflow "
                f"takes {MAX_DATASET_NAME_SIZE}; a link gives it a shorter path"
            )


def as_use(dataset: Dataset, part: Part, context: str) -> DatasetInput:
    """A split and what it is used for."""
    entity = mlflow.entities.Dataset(**as_input(dataset, part).to_dict())
    return DatasetInput(entity, [InputTag("mlflow.data.context", context)])
