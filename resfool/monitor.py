"""What an experiment tells its surroundings while it runs, and what it asks of them."""

import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from resfool.errors import InputError, expanded
from resfool.parameters import Part, Row

if TYPE_CHECKING:
    from resfool.datasets.sets import Dataset

Use = tuple["Dataset", Part, str]  # a data set, the part of it, and what for: "training"


@dataclass(frozen=True)
class ModelSource:
    """A model that somebody named, not loaded yet.

    Attributes:
        uri: as it was given.
        name: short, for tables and legends.
        path: its `.keras` file, or the folder with its MLmodel.
        load_trusted: loads whatever is there without any check, and may run code of its own.
        model_id: MLflow's id of it, if it has one.
        training: the parameters of the run that trained it, if this project did.
    """

    uri: str
    name: str
    path: Path
    load_trusted: Callable[[], Any]
    model_id: str | None = None
    training: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class FinishedRun:
    """A run that has finished, read back.

    Attributes:
        run_id: of the run.
        link: to its page in the tracking server's user interface.
        facts: its parameters.
        metrics: the last value of each.
        curve: its points, each with "step", in order.
        find_file: the local path of a file that it left, or None.
    """

    run_id: str
    link: str = ""
    facts: Mapping[str, str] = field(default_factory=dict)
    metrics: Mapping[str, float] = field(default_factory=dict)
    curve: Sequence[Row] = ()
    find_file: Callable[[str], Path | None] = lambda name: None

    @property
    def model(self) -> str:
        """The URI of its model, if it left one."""
        return f"runs:/{self.run_id}/model"

    def points(self, name: str) -> dict[int, float]:
        """A curve's values by their steps."""
        return {int(row["step"]): row[name] for row in self.curve if name in row}


@dataclass(frozen=True)
class InterruptedRun:
    """A training that stopped and can be gone on with.

    Attributes:
        run_id: of its run.
        step: that its curve has reached; 0 if it has no curve yet.
    """

    run_id: str
    step: int


@dataclass(frozen=True)
class PerturbationSource:
    """A universal perturbation that somebody named, not loaded yet.

    Attributes:
        uri: as it was given.
        name: short, for tables and legends: what it was fitted on, if that is known.
        path: its `.npy` file.
    """

    uri: str
    name: str
    path: Path


class Monitor:
    """Listens to an experiment. This one does nothing; MLflow, a progress bar or a test do more."""

    @property
    def run_id(self) -> str:
        """Where the experiment is recorded, once it has begun; empty if nowhere."""
        return ""

    def has_run(self, run_id: str) -> bool:
        """Whether an earlier run is there to go on with."""
        return False

    def reopen(self, run_id: str) -> None:
        """What is about to begin goes on with an earlier run."""

    def begin(self, name: str, facts: Mapping[str, Any], uses: Sequence[Use]) -> Path | None:
        """The arguments are checked and the data is read; the expensive part begins.

        Args:
            name: of this experiment, for people.
            facts: what is known of it by now, as plain values.
            uses: its data.

        Returns:
            The file to keep a checkpoint in, or None. If it exists, it is resumed from.
        """
        return None

    def warn(self, text: str) -> None:
        """Something that stops nothing, but that the user should know."""
        warnings.warn(text, stacklevel=3)

    def fact(self, name: str, value: Any) -> None:
        """Something about the experiment became known, such as the parameter count."""

    def point(self, row: Row) -> None:
        """A point of a curve: "step" and the figures measured there."""

    def progress(self, done: int, total: int, text: str) -> None:
        """`done` of `total` steps are done; `text` says how it goes."""

    @contextmanager
    def part(self, name: str, facts: Mapping[str, Any]) -> Iterator[Self]:
        """A part of the experiment, such as one of several models, with curves of its own."""
        yield self

    def beside(self) -> "AbstractContextManager[Monitor]":
        """A part that is open at the same time as others, for work that is done elsewhere.

        Its `begin` is called within; leaving it ends the part.
        """
        return nullcontext(self)

    def find_finished(self, facts: Mapping[str, str], metric: str) -> FinishedRun | None:
        """A finished run by its parameters, the latest if there are several.

        Args:
            facts: parameters that it must have, such as `identity.facts` gives.
            metric: that it must have.

        Returns:
            The run, or None.
        """
        return None

    def find_model(self, uri: str) -> ModelSource:
        """Find a model that a user named; here only files can be found.

        Args:
            uri: of the model.

        Returns:
            Where it is and what is known of it.

        Raises:
            InputError: there is no such model.
        """
        path = expanded(uri)
        if not path.is_file():
            raise InputError(f"model={uri}: there is no such file")

        def load_trusted() -> Any:
            import keras

            return keras.saving.load_model(path, compile=False, safe_mode=False)

        return ModelSource(uri, path.stem, path, load_trusted)

    def find_artifact(self, uri: str, name: str) -> Path:
        """Find a file that an earlier run left; here only files can be found.

        Args:
            uri: of the run or of the file.
            name: of the file, where the uri is a run's.

        Returns:
            The file.

        Raises:
            InputError: there is no such file.
        """
        path = expanded(uri)
        path = path / name if path.is_dir() else path
        if not path.is_file():
            raise InputError(f"{uri}: there is no file {path}")
        return path

    def find_perturbation(self, uri: str) -> PerturbationSource:
        """Find a universal perturbation that an earlier run left, or a file.

        Args:
            uri: of the run or of the file.

        Returns:
            Where it is and what it is called.

        Raises:
            InputError: there is no such perturbation.
        """
        path = self.find_artifact(uri, "perturbation.npy")
        return PerturbationSource(uri, expanded(uri).absolute().stem, path)


def counter(total: int, progress: Callable[[int, int], None]) -> Callable[[int], None]:
    done = 0

    def advance(passes: int) -> None:
        nonlocal done
        done = min(total, done + passes)
        progress(done, total)

    return advance
