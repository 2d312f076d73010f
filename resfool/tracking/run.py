"""All that our own runs tell MLflow: curves, figures, data sets and models."""

import contextlib
import dataclasses
import functools
import importlib
import json
import logging
import os
import re
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cached_property
from importlib import metadata
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

import mlflow
from mlflow import MlflowClient
from mlflow.data.numpy_dataset import from_numpy
from mlflow.entities import DatasetInput, InputTag, Metric, Param
from mlflow.exceptions import MlflowException
from mlflow.utils.mlflow_tags import MLFLOW_LOGGED_ARTIFACTS

from resfool import checkpoints, interrupts
from resfool.datasets.sets import Dataset
from resfool.errors import InputError
from resfool.monitor import (
    FinishedRun,
    InterruptedRun,
    ModelSource,
    Monitor,
    PerturbationSource,
    Use,
)
from resfool.parameters import Part, Row, show
from resfool.tracking import stores
from resfool.tracking.killed import start_keeping_killed
from resfool.tracking.stores import link, unusable

if TYPE_CHECKING:
    import keras
    from matplotlib.figure import Figure
    from numpy import ndarray
    from pandas import DataFrame


_FLUSH_SECONDS = 5.0
TAG = "resfool."
CHECKPOINT_TAG = f"{TAG}checkpoint"
# By which a training of ours is known, and its data found again.
_TRAINING_FACTS = {"dataset", "dataset_digest", "data_dir", "data_seed", "per_class"}
_RECORDED_VERSIONS = ("resfool", "tensorflow", "keras", "mlflow", "numpy")
# MLflow's own names for runs that were given none: "adjective-noun-123".
_MODEL_ID = re.compile(r"m-[0-9a-f]{32}")
_GENERATED_NAME = re.compile(r"[a-z]+-[a-z]+-\d+")
Progress = Callable[[int, int, str], None]


def no_progress(done: int, total: int, text: str) -> None:
    pass


class Run(Monitor):
    """One MLflow run, as the monitor of an experiment.

    Nothing is opened before the experiment begins, so input that is refused leaves no run. As a
    context manager it ends the run: FINISHED, FAILED on an error, KILLED on Ctrl-C or SIGTERM;
    whatever was recorded by then is kept.

    Args:
        progress: is told the steps done, their total and a short text.
        nested: whether it is a part of the run that is open.
        beside: it is such a part, and open at the same time as others, for work elsewhere.

    Attributes:
        seconds: time spent on recording so far, in all sittings.
    """

    def __init__(
        self, progress: Progress = no_progress, *, nested: bool = False, beside: bool = False
    ) -> None:
        nested = nested or beside
        if not nested:
            _quieten_mlflow()
            stores.check(mlflow.get_tracking_uri())
        self.seconds = 0.0
        self._progress = progress
        self._nested = nested
        self._beside = beside
        self._run_id: str | None = None
        self._resumes = False
        self._began = 0.0
        self._seconds_before = 0.0  # of the sittings before this one, if it goes on with a run
        self._open = False
        self._buffer: list[Metric] = []
        self._flushed = time.monotonic()
        self._last_step = 0
        self._recorded: set[tuple[str, int]] = set()  # points that the store has already
        self._project_run = os.environ.get("MLFLOW_RUN_ID")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        status = _status(kind)
        try:
            if self._open:
                with interrupts.deferred():
                    self._close(status, error)
        finally:
            if status == "KILLED" and self._project_run is not None and not self._nested:
                start_keeping_killed(self._project_run)

    def _close(self, status: str, error: BaseException | None) -> None:
        """End the run, whatever becomes of what still has to be recorded.

        Raises:
            InputError: the store can't be used any more, and nothing worse has happened.
        """
        lost: MlflowException | None = None
        try:
            if error is not None and status == "FAILED":
                self._client.set_tag(self.run_id, f"{TAG}error", str(error)[:5000])
            self._flush()
        except MlflowException as failure:
            status, lost = "FAILED" if error is None else status, failure
        try:
            if self._beside:
                self._client.set_terminated(self.run_id, status)
            else:
                mlflow.end_run(status)
        except MlflowException as failure:
            lost = failure
        if lost is not None and error is None:
            uri = stores.shown(mlflow.get_tracking_uri())
            raise InputError(f"{uri} doesn't take the last figures: {lost.message}") from lost

    @property
    def run_id(self) -> str:
        """The run's id, once the experiment has begun."""
        assert self._run_id is not None, "the experiment hasn't begun"
        return self._run_id

    @cached_property
    def _client(self) -> MlflowClient:
        # Made late: the first client of a new store makes its tables, which takes seconds.
        return MlflowClient()

    # What an experiment tells

    def has_run(self, run_id: str) -> bool:
        """Whether an earlier run is in this store, and not deleted."""
        uri = mlflow.get_tracking_uri()
        if not stores.exists(uri):
            return False
        try:
            return bool(self._client.get_run(run_id).info.lifecycle_stage == "active")
        except MlflowException as error:
            if error.error_code == "RESOURCE_DOES_NOT_EXIST":
                return False
            raise unusable(uri, error) from error

    def reopen(self, run_id: str) -> None:
        """What is about to begin goes on in an earlier run."""
        self._run_id, self._resumes = run_id, True

    def begin(self, name: str, facts: Mapping[str, Any], uses: Sequence[Use]) -> Path | None:
        """Open the run and log what is known."""
        self._began = started = time.monotonic()
        # A signal between the opening and our note of it would leave a run RUNNING for ever.
        with interrupts.deferred():
            try:
                run = self._start(name)
            except MlflowException as error:
                uri = mlflow.get_tracking_uri()
                raise unusable(uri, error) from error
        self._log_params(run, {**facts, **_origin()})
        for dataset, part, context in () if self._resumes else uses:
            self._client.set_tag(self.run_id, "dataset", dataset.name)
            self._client.log_inputs(self.run_id, [_as_use(dataset, part, context)])
        self.seconds += time.monotonic() - started
        return None

    def warn(self, text: str) -> None:
        """Say it in the terminal."""
        print(f"resfool: {text}", file=sys.stderr, flush=True)

    def fact(self, name: str, value: Any) -> None:
        """Log a parameter that became known late."""
        self._log_params(self._client.get_run(self.run_id), {name: value})

    def point(self, row: Row) -> None:
        """Log a point of a curve, unless the run has it already."""
        step, now = int(row["step"]), int(time.time() * 1000)
        self._last_step = step
        for key, value in row.items():
            if key != "step" and (key, step) not in self._recorded:
                self._recorded.add((key, step))
                self._buffer.append(Metric(key, value, now, step))
        if time.monotonic() - self._flushed > _FLUSH_SECONDS:
            # A store that is away for a while costs no training; the points wait for the next try.
            with contextlib.suppress(MlflowException):
                self._flush()

    def progress(self, done: int, total: int, text: str) -> None:
        """Pass progress on."""
        self._progress(done, total, text)

    @contextlib.contextmanager
    def part(self, name: str, facts: Mapping[str, Any]) -> Iterator["Run"]:
        """A run of its own under this one."""
        with Run(self._progress, nested=True) as child:
            child.begin(name, facts, [])
            yield child

    def beside(self) -> "Run":
        """A run of its own under this one, open at the same time as others."""
        return Run(beside=True)

    def find_finished(self, facts: Mapping[str, str], metric: str) -> FinishedRun | None:
        """A finished run by its parameters, the latest if there are several."""
        found = self._search(facts, "attributes.status = 'FINISHED'")
        return next((self._read(run) for run in found if metric in run.data.metrics), None)

    def find_interrupted(self, facts: Mapping[str, str]) -> InterruptedRun | None:
        """A training that didn't finish and whose checkpoint is here."""
        for run in self._search(facts, "attributes.status != 'FINISHED'"):
            path = run.data.tags.get(CHECKPOINT_TAG)
            if path is not None and stores.present(Path(path)):
                curve = self._client.get_metric_history(run.info.run_id, "train_loss")
                step = max((metric.step for metric in curve), default=0)
                return InterruptedRun(str(run.info.run_id), step)
        return None

    def _search(self, facts: Mapping[str, str], status: str) -> list[Any]:
        """Runs with some parameters in any experiment of the store, the latest first."""
        if not stores.exists(mlflow.get_tracking_uri()):
            return []
        conditions = [f"params.{name} = '{value}'" for name, value in facts.items()]
        return list(
            self._client.search_runs(
                [experiment.experiment_id for experiment in self._client.search_experiments()],
                " and ".join([*conditions, status]),
                order_by=["attributes.start_time DESC"],
            )
        )

    def read(self, run_id: str) -> FinishedRun:
        """A run with its figures and files, read back."""
        return self._read(self._client.get_run(run_id))

    def _read(self, run: Any) -> FinishedRun:
        run_id = run.info.run_id
        points: dict[int, dict[str, float]] = {}
        for name in run.data.metrics:
            if not name.startswith("system/"):
                for metric in self._client.get_metric_history(run_id, name):
                    points.setdefault(metric.step, {"step": metric.step})[name] = metric.value
        names = {item.path for item in self._client.list_artifacts(run_id)}

        def find_file(name: str) -> Path | None:
            if name not in names:
                return None
            return Path(mlflow.artifacts.download_artifacts(run_id=run_id, artifact_path=name))

        return FinishedRun(
            run_id,
            link(run.info.experiment_id, run_id),
            run.data.params,
            run.data.metrics,
            [points[step] for step in sorted(points)],
            find_file,
        )

    def find_model(self, uri: str) -> ModelSource:
        """Find a model in MLflow or among the files, without loading it."""
        if not uri.startswith(("runs:/", "models:/")):
            return super().find_model(uri)
        store = mlflow.get_tracking_uri()
        try:
            if not stores.exists(store):
                raise MlflowException("a new store has no models, and the question would make it")
            return _find_logged_model(self._client, uri)
        except MlflowException as error:
            reason, shown = error.message.splitlines()[0], stores.shown(store)
            raise InputError(f"model={uri}: there is no such model in {shown} ({reason})") from None

    def find_artifact(self, uri: str, name: str) -> Path:
        """Find a file that an earlier run left."""
        if not uri.startswith("runs:/"):
            return super().find_artifact(uri, name)
        run_id, _, inside = uri.removeprefix("runs:/").partition("/")
        store = mlflow.get_tracking_uri()
        try:
            if not stores.exists(store):
                raise MlflowException("a new store has no runs, and the question would make it")
            whole = f"runs:/{run_id}/{inside or name}"
            return Path(mlflow.artifacts.download_artifacts(whole))
        except (MlflowException, OSError) as error:
            reason, shown = str(error).splitlines()[0], stores.shown(store)
            raise InputError(f"{uri}: {shown} has no run with {name} by it ({reason})") from None

    def find_perturbation(self, uri: str) -> PerturbationSource:
        """Find a universal perturbation that an earlier run left, or a file."""
        found = super().find_perturbation(uri)
        if not uri.startswith("runs:/"):
            return found
        run = self._client.get_run(uri.removeprefix("runs:/").partition("/")[0])
        return dataclasses.replace(found, name=_fitted_label(run))

    # What an entry point logs at the end

    def note(self, text: str) -> None:
        """Describe the run, in Markdown."""
        self._client.set_tag(self.run_id, "mlflow.note.content", text)

    def add_metrics(self, run_id: str, metrics: Mapping[str, float]) -> None:
        """Log more figures of a run that has finished."""
        now = int(time.time() * 1000)
        found = [Metric(name, value, now, 0) for name, value in metrics.items()]
        self._client.log_batch(run_id, metrics=found)

    def log_array(self, name: str, array: "ndarray") -> None:
        """Log an array as an `.npy` artifact."""
        import numpy as np

        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / name
            np.save(path, array, allow_pickle=False)
            self._client.log_artifact(self.run_id, str(path))

    def log_arrays(
        self, name: str, arrays: Mapping[str, "ndarray"], facts: Mapping[str, Any]
    ) -> None:
        """Log arrays as an `.npz` artifact, which `checkpoints.load` reads."""
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / name
            checkpoints.save(path, arrays, facts)
            self._client.log_artifact(self.run_id, str(path))

    def log_files(self, files: Mapping[str, bytes]) -> None:
        """Log bytes as artifacts by their names, which may have folders in them."""
        with tempfile.TemporaryDirectory() as folder:
            for name, content in files.items():
                path = Path(folder) / name
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(content)
            self._client.log_artifacts(self.run_id, folder)

    def log_figure(self, figure: "Figure", name: str) -> None:
        """Log a figure as a PNG artifact."""
        self._client.log_figure(self.run_id, figure, name, save_kwargs={"dpi": 120})

    def log_table(self, table: "DataFrame", name: str) -> None:
        """Log a table as JSON, which the UI shows, and as CSV, in place of an earlier one."""
        log_table(self._client, self.run_id, table, name)
        self._client.log_text(self.run_id, table.to_csv(index=False), f"{name}.csv")

    def tag(self, name: str, value: Any) -> None:
        """Set a tag of ours, which a later sitting may set anew; parameters can't be."""
        self._client.set_tag(self.run_id, name, show(value))

    def log_model(
        self,
        model: "keras.Model",
        dataset: Dataset,
        metrics: Mapping[str, float],
        part: Part = "test",
    ) -> str:
        """Log a classifier with its signature and requirements, and its figures on a data set.

        Args:
            model: plain Keras, from images in [0, 1] to logits.
            dataset: what the figures were measured on.
            metrics: its final figures.
            part: of the data set, on which they were measured.

        Returns:
            The model's URI.
        """
        import mlflow.keras
        from mlflow.models import ModelSignature
        from mlflow.types import Schema, TensorSpec
        from numpy import dtype, float32

        started = time.monotonic()
        self._flush()
        single = dtype(float32)
        signature = ModelSignature(
            inputs=Schema([TensorSpec(single, (-1, *dataset.image_shape), "images")]),
            outputs=Schema([TensorSpec(single, (-1, dataset.classes))]),
        )
        requirements = [f"{name}=={metadata.version(name)}" for name in ("keras", "tensorflow")]
        with self._active():
            info = mlflow.keras.log_model(
                model, name="model", signature=signature, pip_requirements=requirements
            )
        self.seconds += time.monotonic() - started
        self.log_model_metrics(info.model_id, metrics, dataset, part)
        return f"models:/{info.model_id}"

    def log_model_metrics(
        self, model_id: str, metrics: Mapping[str, float], dataset: Dataset, part: Part
    ) -> None:
        """Log a model's figures where MLflow's Models page shows them.

        Args:
            model_id: of a logged model in this store.
            metrics: its figures.
            dataset: what they were measured on.
            part: which part of it.
        """
        started = time.monotonic()
        mlflow.log_metrics(
            dict(metrics), run_id=self.run_id, model_id=model_id, dataset=_as_input(dataset, part)
        )
        self.seconds += time.monotonic() - started

    # Within

    def _start(self, name: str) -> Any:
        if self._resumes:
            return self._reopened()
        if self._beside:
            run = self._started_beside(name)
        else:
            run = mlflow.start_run(run_name=name, nested=self._nested, log_system_metrics=True)
        self._open = True
        self._run_id = run.info.run_id
        if _GENERATED_NAME.fullmatch(run.info.run_name):
            self._client.set_tag(self.run_id, "mlflow.runName", name)
        return run

    def _started_beside(self, name: str) -> Any:
        # MLflow's open runs are a stack, of which only the top can be ended.
        parent = mlflow.active_run()
        assert parent is not None, "a part needs a whole"
        origin = ("mlflow.user", "mlflow.source.")
        tags = {k: v for k, v in parent.data.tags.items() if k.startswith(origin)}
        tags["mlflow.parentRunId"] = parent.info.run_id
        return self._client.create_run(parent.info.experiment_id, tags=tags, run_name=name)

    def _reopened(self) -> Any:
        # Otherwise start_run would attach to the run that `mlflow run` opened for this command.
        os.environ.pop("MLFLOW_RUN_ID", None)
        run = mlflow.start_run(run_id=self.run_id, nested=self._nested, log_system_metrics=True)
        self._open = True
        self._recorded = self._points(list(run.data.metrics))
        self._seconds_before = run.data.metrics.get("total_seconds", 0.0)
        self.seconds += run.data.metrics.get("tracking_seconds", 0.0)
        if not self._nested:
            self._point_to(run)
        self._end_lost_parts(run)
        return run

    def _points(self, keys: list[str]) -> set[tuple[str, int]]:
        return {
            (key, metric.step)
            for key in keys
            if not key.startswith("system/")
            for metric in self._client.get_metric_history(self.run_id, key)
        }

    def _point_to(self, run: Any) -> None:
        """Make the run that `mlflow run` opened a pointer to the one that goes on."""
        if self._project_run in (None, self.run_id):
            return
        note = f"Went on with run {self.run_id}, where everything is recorded."
        for key, text in {
            f"{TAG}resumes": self.run_id,
            "mlflow.runName": f"resumes {run.info.run_name}",
            "mlflow.note.content": note,
        }.items():
            self._client.set_tag(self._project_run, key, text)

    def _end_lost_parts(self, run: Any) -> None:
        """Mark what a killed process left RUNNING under this run."""
        lost = self._client.search_runs(
            [run.info.experiment_id],
            f"tags.mlflow.parentRunId = '{self.run_id}' and attributes.status = 'RUNNING'",
        )
        for part in lost:
            self._client.set_terminated(part.info.run_id, "KILLED")

    @contextlib.contextmanager
    def _active(self) -> Iterator[None]:
        """While this run is MLflow's active one, as some of its functions need."""
        if self._beside:
            with mlflow.start_run(run_id=self.run_id, nested=True):
                yield
        else:
            yield

    def _flush(self) -> None:
        """Log what waits, and the time taken so far: if the process is killed it is not lost."""
        started = time.monotonic()
        while self._buffer:
            batch = self._buffer[:1000]  # the most that one call takes
            self._client.log_batch(self.run_id, metrics=batch)
            del self._buffer[: len(batch)]
        total = self._seconds_before + time.monotonic() - self._began
        times = {"tracking_seconds": self.seconds, "total_seconds": total}
        now = int(time.time() * 1000)
        metrics = [Metric(name, value, now, self._last_step) for name, value in times.items()]
        self._client.log_batch(self.run_id, metrics=metrics)
        self._flushed = time.monotonic()
        self.seconds += self._flushed - started

    def _log_params(self, run: Any, facts: Mapping[str, Any]) -> None:
        # `mlflow run` has logged the raw parameters, and a second, other text would be an error.
        known = run.data.params
        new = [Param(name, show(value)) for name, value in facts.items() if name not in known]
        self._client.log_batch(self.run_id, params=new)


def log_table(client: MlflowClient, run_id: str, table: "DataFrame", name: str) -> None:
    """Log a table as JSON where the UI shows it. MLflow's own way adds rows to an earlier table.

    Args:
        client: of the store.
        run_id: of the run.
        table: plain values.
        name: of the artifact, without its ending.
    """
    file = f"{name}.json"
    client.log_text(run_id, table.to_json(orient="split", index=False, date_format="iso"), file)
    known = json.loads(client.get_run(run_id).data.tags.get(MLFLOW_LOGGED_ARTIFACTS, "[]"))
    entry = {"path": file, "type": "table"}
    if entry not in known:
        client.set_tag(run_id, MLFLOW_LOGGED_ARTIFACTS, json.dumps([*known, entry]))


def _quieten_mlflow() -> None:
    """Keep MLflow's notes on tables and threads out of our output, unless they are asked for."""
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    if "MLFLOW_LOGGING_LEVEL" not in os.environ:
        logging.getLogger("mlflow").setLevel(logging.WARNING)


def _status(kind: type[BaseException] | None) -> str:
    if kind is None:
        return "FINISHED"
    return "KILLED" if issubclass(kind, KeyboardInterrupt) else "FAILED"


def _find_logged_model(client: MlflowClient, uri: str) -> ModelSource:
    """What the store knows of a model; nothing that the model itself says is believed."""
    scheme, _, rest = uri.partition(":/")
    name, version = "", ""
    run_id: str | None
    if scheme == "runs":
        run_id, _, folder = rest.partition("/")
        outputs = client.get_run(run_id).outputs
        logged = (
            [client.get_logged_model(o.model_id) for o in outputs.model_outputs] if outputs else []
        )
        model_id = next((model.model_id for model in logged if model.name == folder), None)
    elif _MODEL_ID.fullmatch(rest):
        model_id, run_id = rest, client.get_logged_model(rest).source_run_id
    else:
        name, version, found = _registered(client, rest)
        model_id, run_id = found.model_id, found.run_id
    # The version that an alias means now.
    exact = f"models:/{name}/{version}" if name else uri
    path = Path(mlflow.artifacts.download_artifacts(exact))
    source = functools.partial(
        ModelSource,
        uri=uri,
        path=path,
        load_trusted=lambda: _load_with_mlflow(path),
        model_id=model_id,
    )
    if run_id is None:
        return source(name=f"{name} {version}" if name else rest)
    run = client.get_run(run_id)
    training = run.data.params
    # Runs from before it was a parameter have it as a tag.
    network = run.data.tags.get("network") or training.get("network")
    if network is not None and training.keys() >= _TRAINING_FACTS:
        return source(name=_network_label(training, network), training=training)
    return source(name=f"{name} {version}" if name else run.info.run_name)


def _registered(client: MlflowClient, rest: str) -> tuple[str, str, Any]:
    """Name, version and entry of NAME/VERSION, NAME/latest, NAME/ALIAS or NAME@ALIAS."""
    name, separator, which = rest.rpartition("@" if "@" in rest else "/")
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
    return f"{network} {training['adversarial']} {training['adversarial_epsilon']}"


def _fitted_label(run: Any) -> str:
    """What a universal perturbation was fitted on, and by which algorithm."""
    facts = run.data.params
    if "model_name" in facts and "algorithm" in facts:
        return f"{facts['model_name']} algorithm {facts['algorithm']}"
    return str(run.info.run_name)


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


def _as_input(dataset: Dataset, part: Part) -> Any:
    """A split as MLflow's data set; two of one name and digest would be taken for the same."""
    split = dataset.split(part)
    with warnings.catch_warnings():
        # MLflow finds two source types, of the same name, for a path, and warns of it each time.
        warnings.simplefilter("ignore", UserWarning)
        return from_numpy(
            split.images,
            targets=split.labels,
            source=dataset.source,
            name=f"{dataset.name} {part}",
            digest=dataset.digest,
        )


def _as_use(dataset: Dataset, part: Part, context: str) -> DatasetInput:
    entity = mlflow.entities.Dataset(**_as_input(dataset, part).to_dict())
    return DatasetInput(entity, [InputTag("mlflow.data.context", context)])


def _origin() -> dict[str, str]:
    """What the result came from: package versions and the commit of this checkout."""
    found = {}
    for package in _RECORDED_VERSIONS:
        try:
            found[f"{package}_version"] = metadata.version(package)
        except metadata.PackageNotFoundError:
            from resfool import __version__

            found[f"{package}_version"] = __version__  # run from a checkout, not installed
    return found | {"git_commit": _git_commit()}


def _git_commit() -> str:
    here = Path(__file__).resolve().parent
    try:
        commit, changes = (
            subprocess.run(
                ["git", *words], cwd=here, capture_output=True, text=True, check=True, timeout=10
            ).stdout.strip()
            for words in (["rev-parse", "HEAD"], ["status", "--porcelain", "-uno"])
        )
    except (OSError, subprocess.SubprocessError):
        return "unknown"
    return commit + ("-dirty" if changes else "")
