"""What earlier runs left in MLflow: figures, files, models and universal perturbations."""

import functools
import importlib
import re
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any, cast

import mlflow
from mlflow import MlflowClient
from mlflow.entities import Metric
from mlflow.exceptions import MlflowException
from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository
from mlflow.store.artifact.local_artifact_repo import LocalArtifactRepository

from resfool import checkpoints
from resfool.archive import (
    Archive,
    FinishedRun,
    InterruptedRun,
    ModelSource,
    PerturbationSource,
    canonical,
)
from resfool.errors import (
    InputError,
    expanded,
    out_of_space,
    present,
    refusing,
    short,
    temporary_folder,
)
from resfool.places import new_folder
from resfool.tracking import patience, stores
from resfool.tracking.training_run import CHECKPOINT_TAG
from resfool.wording import lines

# By which a training of ours is known, and its data found again.
_TRAINING_FACTS = {"dataset", "dataset_digest", "data_dir", "data_seed", "per_class"}
_MODEL_ID = re.compile(r"m-[0-9a-f]{32}")


class MLflowArchive(Archive):
    """The runs and models of MLflow's tracking store, and files; what `Archive` says holds here.

    Asking makes nothing in a new store. Runs that were deleted are not there.

    Args:
        checkpoint_dir: where interrupted trainings are looked for; nothing else says where one is.

    Raises:
        InputError: the store can't be used.
    """

    def __init__(self, checkpoint_dir: str | None = None) -> None:
        stores.prepare()
        self._checkpoint_dir = None if checkpoint_dir is None else expanded(checkpoint_dir)

    @cached_property
    def _client(self) -> MlflowClient:
        # Made late: the first client of a new store makes its tables, which takes seconds.
        return cast(MlflowClient, patience.Patient(stores.client(), stores.address))

    def has_run(self, run_id: str) -> bool:
        if not stores.exists():
            return False
        try:
            return bool(self._client.get_run(run_id).info.lifecycle_stage == "active")
        except MlflowException as error:
            if error.error_code == "RESOURCE_DOES_NOT_EXIST":
                return False
            raise stores.unusable(error) from error

    def find_finished(self, facts: Mapping[str, str], metric: str) -> FinishedRun | None:
        found = self._search(facts, "attributes.status = 'FINISHED'")
        return next((self._read(run) for run in found if metric in run.data.metrics), None)

    def find_interrupted(self, facts: Mapping[str, str]) -> InterruptedRun | None:
        for run in self._search(facts, "attributes.status != 'FINISHED'"):
            if CHECKPOINT_TAG in run.data.tags and self._has_checkpoint(run.info.run_id):
                curve = self._client.get_metric_history(run.info.run_id, "train_loss")
                step = max((metric.step for metric in curve), default=0)
                return InterruptedRun(str(run.info.run_id), step)
        return None

    def _has_checkpoint(self, run_id: str) -> bool:
        if self._checkpoint_dir is None:
            return False
        try:
            return present(checkpoints.place(self._checkpoint_dir, run_id))
        except InputError:  # a run of somebody who means no good
            return False

    def _search(self, facts: Mapping[str, str], status: str) -> list[Any]:
        """Runs with some parameters in any experiment of the store, the latest first."""
        if not stores.exists():
            return []
        experiments = [found.experiment_id for found in self._client.search_experiments()]
        wanted = " and ".join([*(f"params.{n} = '{lines(v)}'" for n, v in facts.items()), status])
        order = ["attributes.start_time DESC"]
        return list(self._client.search_runs(experiments, wanted, order_by=order))

    def read(self, run_id: str) -> FinishedRun:
        try:
            stores.check_has("runs")
            run = self._client.get_run(run_id)
        except MlflowException as error:
            reason, store = error.message.splitlines()[0], stores.address()
            raise InputError(f"there is no run {run_id} in {store} ({reason})") from None
        return self._read(run)

    def _read(self, run: Any) -> FinishedRun:
        run_id = run.info.run_id
        points: dict[int, dict[str, float]] = {}
        for name in run.data.metrics:
            if not name.startswith("system/"):
                for metric in self._client.get_metric_history(run_id, name):
                    points.setdefault(metric.step, {"step": metric.step})[name] = metric.value
        return FinishedRun(
            run_id,
            stores.link(run.info.experiment_id, run_id),
            run.data.params,
            run.data.metrics,
            [points[step] for step in sorted(points)],
            functools.partial(self._find_file, run_id),
        )

    def _find_file(self, run_id: str, name: str) -> Path | None:
        # Where a run's files are, its store says, which may have been told anything.
        with refusing(f"{name} of run {run_id} can't be read", lambda error: f" ({short(error)})"):
            names = {item.path for item in self._client.list_artifacts(run_id)}
            return _downloaded(f"runs:/{run_id}/{name}") if name in names else None

    def find_model(self, uri: str) -> ModelSource:
        address = _address(uri)
        if not address.startswith(("runs:/", "models:/")):
            return _with_mlflows_loader(super().find_model(uri))
        try:
            stores.check_has("models")
            return replace(_find_logged_model(self._client, address), uri=uri)
        except MlflowException as error:
            reason, store = error.message.splitlines()[0], stores.address()
            raise InputError(f"model={uri}: there is no such model in {store} ({reason})") from None

    def find_artifact(self, uri: str, *names: str) -> Path:
        address = _address(uri)
        if not address.startswith("runs:/"):
            return super().find_artifact(uri, *names)
        run_id, _, inside = address.removeprefix("runs:/").partition("/")
        try:
            stores.check_has("runs")
            return _downloaded(f"runs:/{run_id}/{inside or self._first_of(run_id, names)}")
        except MlflowException as error:
            reason, store = str(error).splitlines()[0], stores.address()
            what, name = Path(names[0]).stem, names[-1]
            sentence = f"{what}={uri}: {store} has no run with {name} by it ({reason})"
            raise InputError(sentence + self._part_with(run_id, names)) from None

    def _first_of(self, run_id: str, names: Sequence[str]) -> str:
        """The first of some names that a run has left a file of; the last one if there is none."""
        if len(names) == 1:
            return names[0]
        left = {item.path for item in self._client.list_artifacts(run_id)}
        return next((name for name in names if name in left), names[-1])

    def _part_with(self, run_id: str, names: Sequence[str]) -> str:
        """What to give instead of a run whose part has left a file, for a sentence."""
        of_run = f"tags.mlflow.parentRunId = '{run_id}'"
        parts = self._search({}, of_run) if run_id.isalnum() else []
        files = {run.info.run_id: self._client.list_artifacts(run.info.run_id) for run in parts}
        found = [part for part, left in files.items() if {file.path for file in left} & set(names)]
        return f"; its part runs:/{found[0]} has one" if found else ""

    def find_perturbation(self, uri: str) -> PerturbationSource:
        found, address = super().find_perturbation(uri), _address(uri)
        if not address.startswith("runs:/"):
            return found
        run = self._client.get_run(stores.run_id_in(address))
        facts = run.data.params
        if "model_name" not in facts or "algorithm" not in facts:
            return replace(found, name=str(run.info.run_name))
        name = f"{facts['model_name']} algorithm {facts['algorithm']}"
        return replace(found, name=name, in_pixels=True)

    def add_metrics(self, run: FinishedRun, metrics: Mapping[str, float]) -> FinishedRun:
        now = int(time.time() * 1000)
        added = [Metric(name, value, now, 0) for name, value in metrics.items()]
        self._client.log_batch(run.run_id, metrics=added)
        return super().add_metrics(run, metrics)


def _downloaded(uri: str) -> Path:
    """Where an artifact lies on this machine: in the store, if this is here, or a copy.

    Raises:
        MlflowException: there is no such artifact.
        InputError: there is no room for a copy.
    """
    try:
        copy = None if _lies_here(uri) else str(new_folder())
        download = functools.partial(mlflow.artifacts.download_artifacts, uri, dst_path=copy)
        return Path(patience.patiently(download, stores.address))
    except MlflowException:
        raise
    except Exception as error:  # of whatever the place that the store names would need
        if out_of_space(error):
            folder = temporary_folder()
            raise InputError(f"no space is left in the temporary folder {folder}") from error
        raise MlflowException(str(error)) from error


def _lies_here(uri: str) -> bool:
    """Whether MLflow reads an artifact where the store has it; those of runs it always copies."""
    repository = getattr(get_artifact_repository(uri), "repo", None)
    return not uri.startswith("runs:/") and isinstance(repository, LocalArtifactRepository)


def _address(uri: str) -> str:
    """What a user means by an address: a file, if there is one of that name."""
    return uri if present(expanded(uri)) else canonical(uri)


def _with_mlflows_loader(source: ModelSource) -> ModelSource:
    """A model of a file, or of a folder that MLflow saved and can load."""
    if not (source.path / "MLmodel").is_file():
        return source
    return replace(source, load_trusted=partial(_load_with_mlflow, source.path))


def _find_logged_model(client: MlflowClient, uri: str) -> ModelSource:
    """What the store knows of a model; nothing that the model itself says is believed."""
    scheme, _, rest = uri.partition(":/")
    name, version = "", ""
    run_id: str | None
    if scheme == "runs":
        run_id, _, folder = rest.partition("/")
        outputs = client.get_run(run_id).outputs
        ids = [output.model_id for output in outputs.model_outputs] if outputs else []
        by_name = dict(_names_of_models(client, ids))
        if not folder and len(by_name) == 1:
            (folder,) = by_name
            uri = f"runs:/{run_id}/{folder}"
        model_id = by_name.get(folder)
        if model_id is None and not (folder and client.list_artifacts(run_id, folder)):
            known = " and ".join(f"runs:/{run_id}/{name}" for name in by_name)
            raise MlflowException(f"the run has {known or 'no model'}")
    elif _MODEL_ID.fullmatch(rest):
        model_id, run_id = rest, client.get_logged_model(rest).source_run_id
    else:
        name, version, found = _registered(client, rest)
        model_id, run_id = found.model_id, found.run_id
    # The version that an alias means now.
    exact = f"models:/{name}/{version}" if name else uri
    path = _downloaded(exact)
    label = f"{name} {version}" if name else rest
    source = ModelSource(uri, label, path, partial(_load_with_mlflow, path), model_id)
    if run_id is None:
        return source
    run = client.get_run(run_id)
    training = run.data.params
    # Runs from before it was a parameter have it as a tag.
    network = run.data.tags.get("network") or training.get("network")
    if network is not None and training.keys() >= _TRAINING_FACTS:
        return replace(source, name=_network_label(training, network), training=training)
    return source if name else replace(source, name=str(run.info.run_name))


def _names_of_models(client: MlflowClient, ids: Iterable[str]) -> Iterator[tuple[str, str]]:
    """Names and ids of those models that are there: a run still names one that was deleted."""
    for model_id in ids:
        try:
            yield client.get_logged_model(model_id).name, model_id
        except MlflowException as error:
            if not patience.is_lost(error):
                raise


def _registered(client: MlflowClient, rest: str) -> tuple[str, str, Any]:
    """Name, version and entry of NAME/VERSION, NAME/latest, NAME/ALIAS or NAME@ALIAS."""
    stores.check_registry()
    name, separator, which = rest.rpartition("@" if "@" in rest else "/")
    versions = [] if separator else client.search_model_versions(f"name='{rest}'")
    if versions:
        latest = max(int(version.version) for version in versions)
        raise MlflowException(f"it must have a version, such as models:/{rest}/{latest}")
    if not separator or not name or not which:
        raise MlflowException("it must be models:/NAME/VERSION, models:/NAME@ALIAS or models:/m-ID")
    if which == "latest" and "@" not in rest:
        versions = client.search_model_versions(f"name='{name}'")
        if not versions:
            raise MlflowException(f"no model {name} is registered")
        found = max(versions, key=lambda version: int(version.version))
    elif which.isdecimal() and "@" not in rest:
        found = client.get_model_version(name, which)
    else:
        found = client.get_model_version_by_alias(name, which)
    return name, str(found.version), found


def _network_label(training: Mapping[str, str], network: str) -> str:
    if training.get("adversarial", "none") == "none":
        return network
    return f"{network} {training['adversarial']} {training.get('adversarial_epsilon', '')}".strip()


def _load_with_mlflow(path: Path) -> Any:
    """A model by MLflow's own loader of its flavour, which may run what the model brings."""
    flavors = mlflow.models.get_model_info(str(path)).flavors
    # Without its loss and optimizer, which may be code that isn't here and aren't needed.
    options = {"compile": False, "safe_mode": False}
    for flavor, keyword in ("keras", "load_model_kwargs"), ("tensorflow", "keras_model_kwargs"):
        if flavor in flavors:
            module = importlib.import_module(f"mlflow.{flavor}")
            return module.load_model(str(path), **{keyword: options})
    raise InputError(f"{path} has the flavours {', '.join(flavors)}, neither keras nor tensorflow")
