"""All that our own runs tell MLflow: curves, figures, data sets and models."""

import math
import os
import re
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext, suppress
from functools import cached_property
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import mlflow
import numpy as np
from mlflow import MlflowClient
from mlflow.data.numpy_dataset import from_numpy
from mlflow.entities import DatasetInput, InputTag, Metric, Param
from mlflow.exceptions import MlflowException
from mlflow.utils.validation import MAX_DATASET_NAME_SIZE

from resfool import interrupts, places, wording
from resfool.datasets.sets import Dataset
from resfool.errors import InputError, temporary_folder, writing
from resfool.monitor import LONGEST, Leaves, Monitor, Use
from resfool.tracking import leaves, stores
from resfool.values import Part, Row, show

if TYPE_CHECKING:
    import keras

_FLUSH_SECONDS = 5.0
_LONGEST_NAME = 250  # characters of a run's name
TAG = "resfool."
_RECORDED_VERSIONS = ("resfool", "tensorflow", "keras", "mlflow", "numpy")
# MLflow's own names for runs that were given none: "adjective-noun-123".
_GENERATED_NAME = re.compile(r"[a-z]+-[a-z]+-\d+")
Progress = Callable[[int, int, str], None]


class Run(Monitor):
    """One MLflow run, as the monitor of an experiment: it records what a `Monitor` is told.

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
        self, progress: Progress | None = None, *, nested: bool = False, beside: bool = False
    ) -> None:
        nested = nested or beside
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
        if not nested:
            stores.prepare()
            if stores.exists():  # if not, `prepare` has checked what it will be
                stores.check_artifacts(self._client)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: object
    ) -> None:
        status = _status(kind)
        try:
            if self._open:
                with interrupts.deferred():
                    self._close(status, error)
        finally:
            if status == "KILLED" and self._project_run is not None and not self._nested:
                start_keeping_killed(self._project_run)
        if isinstance(error, MlflowException):
            raise stores.unusable(error) from error

    def _close(self, status: str, error: BaseException | None) -> None:
        """End the run, whatever becomes of what still has to be recorded.

        Raises:
            InputError: the store can't be used any more, and nothing worse has happened.
        """
        lost: MlflowException | None = None
        try:
            if error is not None and status == "FAILED":
                self._client.set_tag(self.run_id, f"{TAG}error", wording.lines(str(error))[:5000])
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
            store, reason = stores.address(), stores.reason(lost)
            raise InputError(f"{store} doesn't take the last figures: {reason}") from lost

    @property
    def run_id(self) -> str:
        assert self._run_id is not None, "the experiment hasn't begun"
        return self._run_id

    @cached_property
    def _client(self) -> MlflowClient:
        # Made late: the first client of a new store makes its tables, which takes seconds.
        return stores.client()

    # What an experiment tells

    def reopen(self, run_id: str) -> None:
        self._run_id, self._resumes = run_id, True

    def begin(self, name: str, facts: Mapping[str, Any], uses: Sequence[Use]) -> Path | None:
        self._began = started = time.monotonic()
        facts = {**facts, **_origin()}
        _check_lengths(facts, uses)
        # A signal between the opening and our note of it would leave a run RUNNING for ever.
        with interrupts.deferred():
            try:
                _ = self._client  # makes a new store's tables, before anything else asks for them
                run = self._start(name)
            except MlflowException as error:
                raise stores.unusable(error) from error
        self._log_params(run, facts)
        for dataset, part, context in () if self._resumes else uses:
            self._client.set_tag(self.run_id, "dataset", wording.lines(dataset.name))
            self._client.log_inputs(self.run_id, [_as_use(dataset, part, context)])
        self.seconds += time.monotonic() - started
        return None

    def say(self, text: str) -> None:
        wording.say(wording.sentence(text))

    def warn(self, text: str) -> None:
        wording.warn(text)

    def fact(self, name: str, value: Any) -> None:
        self._log_params(self._client.get_run(self.run_id), {name: value})

    def point(self, row: Row) -> None:
        step, now = int(row["step"]), int(time.time() * 1000)
        self._last_step = step
        for key, value in row.items():
            if key != "step" and (key, step) not in self._recorded:
                self._recorded.add((key, step))
                self._buffer.append(Metric(key, value, now, step))
        if time.monotonic() - self._flushed > _FLUSH_SECONDS:
            # A store that is away for a while costs no training; the points wait for the next try.
            with suppress(MlflowException):
                self._flush()

    def progress(self, done: int, total: int, text: str) -> None:
        if self._progress is not None:
            self._progress(done, total, text)

    @contextmanager
    def part(self, name: str, facts: Mapping[str, Any]) -> Iterator["Run"]:
        """A run of its own under this one."""
        with Run(self._progress, nested=True) as child:
            child.begin(name, facts, [])
            yield child

    def beside(self) -> "Run":
        """A run of its own under this one, open at the same time as others."""
        return Run(beside=True)

    # What an entry point logs at the end

    def note(self, text: str) -> None:
        """Describe the run, in Markdown."""
        self._client.set_tag(self.run_id, "mlflow.note.content", wording.lines(text))

    def log(self, left: Leaves) -> None:
        """Log what a result leaves: figures, tables, arrays and bytes, by their names."""
        temporary = f"the temporary folder {temporary_folder()}"
        with writing(temporary), tempfile.TemporaryDirectory() as folder:
            leaves.log(self._client, self.run_id, Path(folder), left)

    def tag(self, name: str, value: Any) -> None:
        """Set a tag of ours, which a later sitting may set anew; parameters can't be."""
        self._client.set_tag(self.run_id, name, wording.lines(show(value)))

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

        started = time.monotonic()
        self._flush()
        single = np.dtype(np.float32)
        signature = ModelSignature(
            inputs=Schema([TensorSpec(single, (-1, *dataset.image_shape), "images")]),
            outputs=Schema([TensorSpec(single, (-1, dataset.classes))]),
        )
        requirements = [f"{name}=={metadata.version(name)}" for name in ("keras", "tensorflow")]
        # The function needs this run to be MLflow's active one.
        written = f"{temporary_folder()} or {self._client.get_run(self.run_id).info.artifact_uri}"
        active = (
            mlflow.start_run(run_id=self.run_id, nested=True) if self._beside else nullcontext()
        )
        with writing(f"the model's file in {written}"), active:
            info = mlflow.keras.log_model(
                model, name="model", signature=signature, pip_requirements=requirements
            )
        self.seconds += time.monotonic() - started
        self.log_model_metrics(info.model_id, metrics, dataset, part)
        return f"models:/{info.model_id}"

    def log_model_metrics(
        self, model_id: str, metrics: Mapping[str, float], dataset: Dataset, part: Part
    ) -> None:
        """Log a model's figures on a part of a data set, where MLflow's Models page shows them."""
        started = time.monotonic()
        mlflow.log_metrics(
            dict(metrics), run_id=self.run_id, model_id=model_id, dataset=_as_input(dataset, part)
        )
        self.seconds += time.monotonic() - started

    # Within

    def _start(self, name: str) -> Any:
        if self._resumes:
            return self._reopened()
        name = wording.label(name, _LONGEST_NAME)
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
        before = {name: value for name, value in run.data.metrics.items() if math.isfinite(value)}
        self._seconds_before = before.get("total_seconds", 0.0)
        self.seconds += before.get("tracking_seconds", 0.0)
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
        self._client.set_tag(self._project_run, f"{TAG}resumes", self.run_id)
        self._client.set_tag(self._project_run, "mlflow.runName", f"resumes {run.info.run_name}")
        self._client.set_tag(self._project_run, "mlflow.note.content", note)

    def _end_lost_parts(self, run: Any) -> None:
        """Mark what a killed process left RUNNING under this run."""
        running = f"tags.mlflow.parentRunId = '{self.run_id}' and attributes.status = 'RUNNING'"
        for part in self._client.search_runs([run.info.experiment_id], running):
            self._client.set_terminated(part.info.run_id, "KILLED")

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
        new = [Param(n, wording.lines(show(v))) for n, v in facts.items() if n not in known]
        self._client.log_batch(self.run_id, params=new)


def keep_killed(run_id: str, seconds: float = 15.0) -> None:
    """Mark a run KILLED, and once more when `mlflow run` has written FAILED over it.

    `mlflow run` means to leave a status alone that was set before its command ended, but compares
    a text with numbers (mlflow.projects._maybe_set_run_terminated, MLflow 3.17), so it never does.
    This waits some seconds for it to do so.
    """
    with places.tidied():  # where MLflow leaves a lock as it opens a store
        client = MlflowClient()
        client.set_terminated(run_id, "KILLED")
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if client.get_run(run_id).info.status != "KILLED":
            client.set_terminated(run_id, "KILLED")
            return
        time.sleep(0.2)


def start_keeping_killed(run_id: str) -> None:
    """`keep_killed` in a process that outlives this one: `mlflow run` writes when we have ended."""
    script = f"from resfool.tracking import run; run.keep_killed({run_id!r})"
    subprocess.Popen(
        [sys.executable, "-c", script],
        cwd=Path(__file__).resolve().parents[2],
        env=places.outliving() | {"MLFLOW_TRACKING_URI": mlflow.get_tracking_uri()},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )


def _status(kind: type[BaseException] | None) -> str:
    if kind is None:
        return "FINISHED"
    return "KILLED" if issubclass(kind, KeyboardInterrupt) else "FAILED"


def _check_lengths(facts: Mapping[str, Any], uses: Sequence[Use]) -> None:
    """Refuse what MLflow would cut off, or take no run with."""
    for name, value in facts.items():
        if (size := len(show(value))) > LONGEST:
            raise InputError(
                f"{name}={show(value)[:40]}... has {size} characters, and a run keeps {LONGEST} of "
                "a parameter"
            )
    for dataset, part, _ in uses:
        if (size := len(_input_name(dataset, part))) > MAX_DATASET_NAME_SIZE:
            raise InputError(
                f"dataset={dataset.name[:40]}... makes a name of {size} characters, and MLflow "
                f"takes {MAX_DATASET_NAME_SIZE}; a link gives it a shorter path"
            )


def _input_name(dataset: Dataset, part: Part) -> str:
    return f"{dataset.name} {part}"


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
            name=wording.label(_input_name(dataset, part), MAX_DATASET_NAME_SIZE),
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
