"""Trainings as trials: workers run them, the driver records each in a run of its own."""

import tempfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from resfool.classifiers import files
from resfool.datasets.sets import Dataset
from resfool.errors import TrialError
from resfool.monitor import Monitor, Use
from resfool.training.recipe import Judged, TrainParameters
from resfool.training.train import train
from resfool.values import Part, Row

if TYPE_CHECKING:
    import keras

Message = tuple[str, tuple[Any, ...]]  # the name of a Monitor's method, and its arguments


class _Stopped(Exception):
    """The driver has seen enough of this trial."""


@dataclass(frozen=True)
class Trained:
    """What a trial sends home.

    Attributes:
        network: its name, such as resnet-25.
        part: of the data set that it was judged on.
        metrics: final figures: train and judged accuracy and loss.
        model: the `.keras` file's bytes.
    """

    network: str
    part: Judged
    metrics: dict[str, float]
    model: bytes

    def load_model(self) -> "keras.Model":
        """The network, plain Keras, from raw pixels to logits."""
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "model.keras"
            path.write_bytes(self.model)
            return files.load(path)


@dataclass(frozen=True)
class Trial:
    """Trains in a worker, and tells the driver what a monitor would be told.

    Attributes:
        data: that all trials are trained on; None has each load it by its name.
    """

    data: Dataset | None = None

    def __call__(self, asked: TrainParameters, report: Callable[[Message], bool]) -> Trained | None:
        """Train once; None if it was stopped.

        Args:
            asked: how to train.
            report: sends a message; returns whether to stop.
        """
        try:
            result = train(asked, _Telling(report), self.data)
        except _Stopped:
            return None
        model = files.saved(result.model)
        return Trained(result.network.name, result.part, result.final_metrics, model)


class _Telling(Monitor):
    """In a worker: passes on what it is told. Data sets stay here; the driver has its own."""

    def __init__(self, report: Callable[[Message], bool]) -> None:
        self._report = report

    def begin(self, name: str, facts: Mapping[str, Any], uses: Sequence[Use]) -> None:
        kept = [(part, context) for _, part, context in uses]
        self._report(("begin", (name, dict(facts), kept)))

    def warn(self, text: str) -> None:
        self._report(("warn", (text,)))

    def fact(self, name: str, value: Any) -> None:
        self._report(("fact", (name, value)))

    def point(self, row: Row) -> None:
        if self._report(("point", (dict(row),))):
            raise _Stopped


class Recorder:
    """The driver's side: what trials report, in runs that are open at the same time.

    As a context manager it ends the runs that are still open: KILLED on Ctrl-C, else FAILED.

    Args:
        monitor: of the whole, which opens a run for each trial.
        data: that the trials are trained on, as `train` would find it.
        keep: is given a trial's place, outcome, monitor and curve before its run ends.
        watch: is given a trial's place and each new point; returns whether to stop it.
    """

    def __init__(
        self,
        monitor: Monitor,
        data: Dataset,
        keep: Callable[[Any, Trained, Monitor, Sequence[Row]], None],
        watch: Callable[[Any, Row], bool] = lambda place, row: False,
    ) -> None:
        self._monitor, self._data, self._keep, self._watch = monitor, data, keep, watch
        self._open: dict[Any, _Open] = {}
        self._warned: set[tuple[str]] = set()

    def __enter__(self) -> "Recorder":
        return self

    def __exit__(self, kind: Any, error: Any, trace: Any) -> None:
        for place in list(self._open):
            self._open.pop(place).stack.__exit__(kind, error, trace)

    def receive(self, place: Any, message: Message) -> bool:
        """Take a trial's message; whether it should stop."""
        method, arguments = message
        if method == "begin":
            if place not in self._open:  # else it begins anew, in the same run
                self._begin(place, *arguments)
        elif method == "warn":
            if arguments not in self._warned:  # every trial says the same
                self._warned.add(arguments)
                self._monitor.warn(*arguments)
        elif method == "fact":
            self._open[place].monitor.fact(*arguments)
        elif method == "point":
            return self._point(place, *arguments)
        return False

    def end(self, place: Any, outcome: Any) -> Trained | None:
        """End a trial's run.

        Returns:
            The outcome that the pool gave, if it was a finished training; None if it was stopped
            or failed.
        """
        entry = self._open.get(place)
        if entry is None:  # it failed before it began
            return None
        done = outcome if isinstance(outcome, Trained) else None
        if done is None and outcome is not None:
            entry.stack.__exit__(TrialError, TrialError(str(outcome)), None)
        else:
            with entry.stack:
                if done is None:
                    entry.monitor.fact("pruned", True)
                else:
                    self._keep(place, done, entry.monitor, entry.curve)
        del self._open[place]  # not before: an interrupt must find what is open
        return done

    def _begin(
        self, place: Any, name: str, facts: Mapping[str, Any], uses: Sequence[tuple[Part, str]]
    ) -> None:
        stack = ExitStack()
        monitor = stack.enter_context(self._monitor.beside())
        self._open[place] = _Open(monitor, stack)  # before it begins, which may be interrupted
        monitor.begin(name, facts, [(self._data, part, context) for part, context in uses])

    def _point(self, place: Any, row: Row) -> bool:
        entry = self._open[place]
        if entry.curve and row["step"] < entry.curve[-1]["step"]:
            return False  # a worker's second attempt, on its way to where the first one died
        known = {(k, r["step"]) for r in entry.curve[-2:] for k in r if k != "step"}
        if any((key, row["step"]) in known for key in row):
            return False
        entry.curve.append(row)
        entry.monitor.point(row)
        return self._watch(place, row)


@dataclass
class _Open:
    monitor: Monitor
    stack: ExitStack
    curve: list[Row] = field(default_factory=list)
