"""All that our own runs tell MLflow: curves, figures, data sets and models."""

import math
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext, suppress
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Self, TypeVar

import mlflow
from mlflow import MlflowClient
from mlflow.entities import Metric
from mlflow.exceptions import MlflowException

from resfool import interrupts, places, wording
from resfool.datasets.sets import Dataset
from resfool.errors import InputError, UnsentError, expanded, short
from resfool.monitor import Leaves, Monitor, Use
from resfool.tracking import leftovers, patience, stores
from resfool.tracking.logged_models import Figures, Model, as_use, check_lengths
from resfool.tracking.origin import origin
from resfool.tracking.outbox import Facts, Files, Inputs, Outbox, Tags
from resfool.values import Part, Row, show

if TYPE_CHECKING:
    import keras

Result = TypeVar("Result")

TAG = "resfool."
_FLUSH_SECONDS = 5.0
_SHARE = 0.05  # of the time, at most, that goes into telling points while work is done
_UNSENT = "unsent"  # folder of what stores haven't got, one folder a run
# MLflow's own names for runs that were given none: "adjective-noun-123".
_LONGEST_NAME = 250  # characters of a run's name
_GENERATED_NAME = re.compile(r"[a-z]+-[a-z]+-\d+")
_PARENT_TAG = "mlflow.parentRunId"
Progress = Callable[[int, int, str], None]


class Run(Monitor):
    """One MLflow run, as the monitor of an experiment: it records what a `Monitor` is told.

    Nothing is opened before the experiment begins, so input that is refused leaves no run. As a
    context manager it ends the run: FINISHED, FAILED on an error, KILLED on Ctrl-C or SIGTERM;
    whatever was recorded by then is kept.

    Once it has begun, a store that is away stops no work: points wait until it is back. A result
    waits for it too, for as long as `patience` has it, and is written to a folder then. A run that
    the store has lost is recorded anew.

    Args:
        progress: is told the steps done, their total and a short text.
        nested: whether it is a part of the run that is open.
        beside: it is such a part, and open at the same time as others, for work elsewhere.

    Attributes:
        seconds: time spent on recording so far, in all sittings.
    """

    _wholes: ClassVar[list["Run"]] = []  # those that are open, the outermost first

    def __init__(
        self, progress: Progress | None = None, *, nested: bool = False, beside: bool = False
    ) -> None:
        nested = nested or beside
        self.seconds = 0.0
        self._progress = progress
        self._nested = nested
        self._beside = beside
        self._parent = Run._wholes[-1] if nested and Run._wholes else None
        self._run_id: str | None = None
        self._resumes = False
        self._began = 0.0
        self._seconds_before = 0.0  # of the sittings before this one, if it goes on with a run
        self._open = False
        self._due = 0.0  # when points are sent next
        self._away = False  # whether the user was told that the store is
        self._step: int | None = None  # of the last point
        self._recorded: dict[tuple[str, int], int] = {}  # when points were told, in any sitting
        self._earlier: set[tuple[str, int]] = set()  # those of earlier sittings
        self._project_run = os.environ.get("MLFLOW_RUN_ID")
        if not nested:
            patience.limit()
            stores.prepare()
            if stores.exists():  # if not, `prepare` has checked what it will be
                stores.check_artifacts(self._client)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: object
    ) -> None:
        try:
            if self._open and error is None:
                self._deliver()  # in which Ctrl-C ends the waiting
        except KeyboardInterrupt as interrupt:
            kind, error = KeyboardInterrupt, interrupt
            raise
        finally:
            self._end(_status(kind), error)
        if isinstance(error, MlflowException):
            raise stores.unusable(error) from error

    def _end(self, status: str, error: BaseException | None) -> None:
        try:
            if self._open:
                with interrupts.deferred():
                    self._close(status, error)
        finally:
            if self in Run._wholes:
                Run._wholes.remove(self)
            if status == "KILLED" and self._project_run is not None and not self._nested:
                start_keeping_killed(self._project_run)

    def _close(self, status: str, error: BaseException | None) -> None:
        """End the run, whatever becomes of what still has to be recorded.

        Raises:
            UnsentError: the store hasn't got everything, and nothing worse has happened.
        """
        if error is not None and status == "FAILED":
            self._outbox.add(Tags({f"{TAG}error": str(error)[:5000]}))
        with nullcontext() if error is None else patience.promptly():
            unsent = _failure(lambda: self._flush(self._step or 0))
            if unsent is not None and error is None:
                status = "FAILED"
            ended = _failure(lambda: self._terminate(status))
        unsent = unsent or ended
        if unsent is None or (error is not None and not self._outbox.has_results):
            return
        sentence = f"{_what_failed(unsent)}; {self._keep_unsent()}"
        if error is None:
            raise UnsentError(sentence) from unsent
        self.warn(sentence)

    def _terminate(self, status: str) -> None:
        active = mlflow.active_run()
        if active is None or active.info.run_id not in self._ids:
            self._client.set_terminated(self.run_id, status)
            return
        with suppress(MlflowException):  # it isn't the active one any more, whatever is raised
            mlflow.end_run(status)
        if self._client.get_run(self.run_id).info.status != status:
            self._client.set_terminated(self.run_id, status)

    def _keep_unsent(self) -> str:
        """Keep what the store hasn't got; where, for a sentence."""
        if not self._outbox.has_results:
            return "it has everything but the run's end"
        folder = expanded(_UNSENT).absolute() / self.run_id
        try:
            self._outbox.keep(folder)
        except InputError:
            folder = Path.home() / "resfool-unsent" / self.run_id
            self._outbox.keep(folder)
        return f"what it hasn't got is in {folder}"

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
        facts = {**facts, **origin()}
        check_lengths(facts, uses)
        try:
            self._at_first(lambda: self._open_as(name))
            self._tell_facts(facts)
            for dataset, part, context in uses:
                self._outbox.add(Tags({"dataset": dataset.name}))
                self._outbox.add(Inputs(as_use(dataset, part, context)))
            self._at_first(self._outbox.send)
        except MlflowException as error:
            raise stores.unusable(error) from error
        self.seconds += time.monotonic() - started
        return None

    def _at_first(self, call: Callable[[], None]) -> None:
        """Do what shows whether the store is there; patiently in a part, whose whole has begun."""
        if self._nested:
            patience.patiently(call, stores.address)
        else:
            call()

    def say(self, text: str) -> None:
        wording.say(wording.sentence(text))

    def warn(self, text: str) -> None:
        wording.warn(text)

    def fact(self, name: str, value: Any) -> None:
        self._tell_facts({name: value})

    def point(self, row: Row) -> None:
        earlier, self._step = self._step, int(row["step"])
        self._tell_points({key: value for key, value in row.items() if key != "step"}, self._step)
        if time.monotonic() > self._due:
            began = time.monotonic()
            with patience.promptly():
                self._say_whether_away(_failure(lambda: self._flush(earlier)))
            took = time.monotonic() - began
            self._due = time.monotonic() + max(_FLUSH_SECONDS, took / _SHARE)

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
        self._outbox.add(Tags({"mlflow.note.content": text}))

    def log(self, left: Leaves) -> None:
        """Log what a result leaves: figures, tables, arrays and bytes, by their names."""
        self._outbox.add(Files(left))
        self._deliver()

    def tag(self, name: str, value: Any) -> None:
        """Set a tag of ours, which a later sitting may set anew; parameters can't be."""
        self._outbox.add(Tags({name: show(value)}))

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
        logged = Model(model, dataset)
        self._outbox.add(logged)
        self.log_model_metrics(logged, metrics, dataset, part)
        return f"models:/{logged.model_id}" if logged.model_id else f"runs:/{self.run_id}/model"

    def log_model_metrics(
        self, model: Model | str, metrics: Mapping[str, float], dataset: Dataset, part: Part
    ) -> None:
        """Log figures of a model, given by its id too, where MLflow's Models page shows them."""
        new = {name: value for name, value in metrics.items() if (name, 0) not in self._earlier}
        if new:
            # What the run has as a point too is one figure, not two, if its time is the same.
            told = [self._recorded[name, 0] for name in new if (name, 0) in self._recorded]
            self._outbox.add(Figures(model, new, dataset, part, max(told, default=_now())))
        started = time.monotonic()
        self._deliver()
        self.seconds += time.monotonic() - started

    # Within

    def _open_as(self, name: str) -> None:
        # A signal between the opening and our note of it would leave a run RUNNING for ever.
        with interrupts.deferred():
            _ = self._client  # makes a new store's tables, before anything else asks for them
            # When the store went away in between, the run is open.
            run = self._client.get_run(self.run_id) if self._open else self._start(name)
            self._open, self._run_id = True, run.info.run_id
            self._outbox = Outbox(self._client, self.run_id)
            if not (self._beside or self in Run._wholes):
                Run._wholes.append(self)
        self._name, self._tags, self._ids = run.info.run_name, run.data.tags, {self.run_id}
        self._outbox.add_sent(Facts(run.data.params), self._points_of(run))
        experiment = run.info.experiment_id
        self._experiment = self._client.get_experiment(experiment).name
        if not self._nested:
            for run_id in leftovers.end_dead_runs(self._client, experiment):
                self._tidy_after(run_id)

    def _tidy_after(self, run_id: str) -> None:
        """Remove what else is left of a run whose process was killed."""

    def _start(self, name: str) -> Any:
        if self._resumes:
            return self._reopened()
        name = wording.label(name, _LONGEST_NAME)
        if self._beside:
            return self._started_beside(name)
        run = mlflow.start_run(
            run_name=name, nested=self._nested, tags=leftovers.tags(), log_system_metrics=True
        )
        if _GENERATED_NAME.fullmatch(run.info.run_name):
            self._client.set_tag(run.info.run_id, "mlflow.runName", name)
        if self._parent is not None and run.data.tags.get(_PARENT_TAG) != self._parent.run_id:
            self._client.set_tag(run.info.run_id, _PARENT_TAG, self._parent.run_id)
        return run

    def _started_beside(self, name: str) -> Any:
        # MLflow's open runs are a stack, of which only the top can be ended.
        assert self._parent is not None, "a part needs a whole"
        parent = self._client.get_run(self._parent.run_id)
        origin = ("mlflow.user", "mlflow.source.")
        tags = {k: v for k, v in parent.data.tags.items() if k.startswith(origin)}
        tags |= leftovers.tags() | {_PARENT_TAG: self._parent.run_id}
        return self._client.create_run(parent.info.experiment_id, tags=tags, run_name=name)

    def _reopened(self) -> Any:
        # Otherwise start_run would attach to the run that `mlflow run` opened for this command.
        os.environ.pop("MLFLOW_RUN_ID", None)
        run = mlflow.start_run(
            run_id=self.run_id, nested=self._nested, tags=leftovers.tags(), log_system_metrics=True
        )
        before = {name: value for name, value in run.data.metrics.items() if math.isfinite(value)}
        self._seconds_before = before.get("total_seconds", 0.0)
        self.seconds += before.get("tracking_seconds", 0.0)
        if not self._nested:
            self._point_to(run)
        self._end_lost_parts(run)
        return run

    def _points_of(self, run: Any) -> list[Metric]:
        """The points that a run has from earlier sittings, of which note is taken."""
        names = [name for name in run.data.metrics if not name.startswith("system/")]
        points = [p for name in names for p in self._client.get_metric_history(self.run_id, name)]
        self._earlier = {(point.key, point.step) for point in points}
        self._recorded |= {(point.key, point.step): point.timestamp for point in points}
        return points

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
            leftovers.end(self._client, part)

    def _tell_facts(self, facts: Mapping[str, Any]) -> None:
        self._outbox.add_facts({name: show(value) for name, value in facts.items()})

    def _tell_points(self, values: Mapping[str, Any], step: int) -> None:
        now = _now()
        new = {name: v for name, v in values.items() if (name, step) not in self._recorded}
        self._recorded |= {(name, step): now for name in new}
        self._outbox.add_points([Metric(name, value, now, step) for name, value in new.items()])

    def _flush(self, step: int | None) -> None:
        """Send what waits, and the time taken by a step: if the process is killed it isn't lost."""
        started = time.monotonic()
        self._outbox.send()
        self.seconds += time.monotonic() - started
        if step is not None:
            total = self._seconds_before + time.monotonic() - self._began
            self._tell_points({"tracking_seconds": self.seconds, "total_seconds": total}, step)
            self._outbox.send()

    def _say_whether_away(self, failure: Exception | None) -> None:
        if failure is None:
            if self._away:
                self.warn(f"{stores.address()} is there again and has all points")
        elif not self._away:
            self.warn(f"{_what_failed(failure)}; the work goes on, and points wait for it")
        self._away = failure is not None

    def _deliver(self) -> None:
        """Send all that waits, when the store is there; what it refuses is seen to at the end."""
        with suppress(MlflowException, InputError):
            patience.patiently(self._send_or_begin_anew, stores.address)

    def _send_or_begin_anew(self) -> None:
        try:
            self._outbox.send()
        except MlflowException as error:
            if not patience.is_lost(error) or self._is_there():
                raise
            self._begin_anew()
            self._outbox.send()

    def _is_there(self) -> bool:
        try:
            self._client.get_run(self.run_id)
        except MlflowException as error:
            if patience.is_lost(error):
                return False
            raise
        return True

    def _begin_anew(self) -> None:
        """Open another run, for all that was told, in place of one that the store has lost."""
        if self._parent is not None:
            if not self._parent._is_there():
                self._parent._begin_anew()
            self._tags[_PARENT_TAG] = self._parent.run_id
        known, lost = self._client.get_experiment_by_name(self._experiment), self.run_id
        experiment = known.experiment_id if known else None
        experiment = experiment or self._client.create_experiment(self._experiment)
        run = self._client.create_run(experiment, tags=self._tags, run_name=self._name)
        self._run_id = run.info.run_id
        self._ids.add(self.run_id)
        self._outbox.send_anew(self.run_id)
        store = stores.address()
        self.warn(f"{store} has lost run {lost}; all of it is recorded anew, as run {self.run_id}")


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


def _failure(call: Callable[[], None]) -> Exception | None:
    """What goes wrong in a call."""
    try:
        call()
    except Exception as error:
        return error
    return None


def _what_failed(error: Exception) -> str:
    """What is wrong with the store, for a sentence."""
    if patience.is_away(error):
        return f"{stores.address()} is away ({patience.why(error)})"
    if isinstance(error, MlflowException):
        return f"{stores.address()} doesn't take the last figures: {stores.reason(error)}"
    return str(error) if isinstance(error, InputError) else short(error)


def _now() -> int:
    """The time as MLflow has it, in ms."""
    return int(time.time() * 1000)
