"""What an experiment asks of what earlier ones left: runs, models and files."""

import contextlib
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from resfool import blocks
from resfool.arrayfiles import ABSURD
from resfool.errors import InputError, expanded, looked_in, present
from resfool.values import Row
from resfool.wording import label, told


@contextlib.contextmanager
def as_given(uri: str, path: Path) -> Iterator[None]:
    """Let refusals name what a user gave, where they name the copy of it on this machine.

    Args:
        uri: as it was given.
        path: where it was found.

    Raises:
        InputError: what was done inside has raised it.
    """
    try:
        yield
    except InputError as error:
        if path.is_relative_to(expanded(uri)):
            raise  # the user's own path, in full
        said = str(error)
        for place in (str(path), str(path.resolve())):
            said = said.replace(place, uri)
        raise type(error)(said) from error


@dataclass(frozen=True)
class ModelSource:
    """A model that somebody named, not loaded yet.

    Attributes:
        uri: as it was given.
        name: short, for tables and legends.
        path: its file, or the folder with its MLmodel.
        load_trusted: MLflow's own loader, which checks nothing and may run code of the model's.
        model_id: MLflow's id of it, if it has one.
        training: the parameters of the run that trained it, if this project did.
    """

    uri: str
    name: str
    path: Path
    load_trusted: Callable[[], Any] | None = None
    model_id: str | None = None
    training: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        object.__setattr__(self, "name", label(self.name))


class UnusableError(LookupError):
    """A run has not, or not as it should be, what is asked of it; the message names the run."""


@dataclass(frozen=True)
class FinishedRun:
    """A run that has finished, read back.

    Attributes:
        run_id: of the run.
        link: to its page in the tracking server's user interface.
        facts: its parameters.
        metrics: the last value of each.
        curve: its points, each with "step", in order.
        find_file: the local path of a file that it left, by name, or None.
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

    def metric(self, name: str) -> float:
        """A metric's last value.

        Raises:
            UnusableError: it has none, or that isn't finite or is absurd.
        """
        return self._usable(name, self.metrics.get(name))

    def whole(self, name: str) -> int:
        """A parameter that counts something.

        Raises:
            UnusableError: it has none, or that is no whole number.
        """
        said = self.facts.get(name)
        if said is None:
            raise UnusableError(f"run {self.run_id} has no parameter {name}")
        if not re.fullmatch("[0-9]{1,15}", said):
            raise UnusableError(
                f"run {self.run_id} has {name}={told(said, 40)}, which is no whole number"
            )
        return int(said)

    def points(self, name: str) -> dict[int, float]:
        """A curve's values by their steps; none if it has no such curve.

        Raises:
            UnusableError: one isn't finite.
        """
        where = "{} at step {}".format
        return {
            int(row["step"]): self._usable(where(name, row["step"]), row[name])
            for row in self.curve
            if name in row
        }

    def at(self, name: str, step: int) -> float:
        """A curve's value at a step.

        Raises:
            UnusableError: it has none there, or that isn't finite.
        """
        return self._usable(f"{name} at step {step}", self.points(name).get(step))

    def _usable(self, what: str, value: float | None) -> float:
        if value is None:
            raise UnusableError(f"run {self.run_id} has no {what}")
        if not abs(value) < ABSURD:  # nor is what is not a number
            raise UnusableError(f"run {self.run_id} has {value} for {what}")
        return value


@dataclass(frozen=True)
class InterruptedRun:
    """A training that stopped and can be gone on with."""

    run_id: str
    step: int  # that its curve has reached; 0 if it has no curve yet


@dataclass(frozen=True)
class PerturbationSource:
    """A universal perturbation that somebody named, not loaded yet."""

    uri: str  # as it was given
    name: str  # short, for tables and legends: what it was fitted on, if that is known
    path: Path  # its `.npy` file
    in_pixels: bool = False  # whether a run of this project made it, of pixels from 0 to 1

    def __post_init__(self) -> None:
        object.__setattr__(self, "name", label(self.name))


class Archive:
    """Where earlier results are found. This one knows files only; MLflow's knows runs as well."""

    def has_run(self, run_id: str) -> bool:
        """Whether an earlier run is there to go on with."""
        return False

    def read(self, run_id: str) -> FinishedRun:
        """A run with its figures and files, read back.

        Raises:
            InputError: there is no such run.
        """
        raise InputError(f"there is no run {run_id}: nothing is recorded here")

    def find_interrupted(self, facts: Mapping[str, str]) -> InterruptedRun | None:
        """A training that can be gone on with, by parameters that `identity.facts` gives."""
        return None

    def add_metrics(self, run: FinishedRun, metrics: Mapping[str, float]) -> FinishedRun:
        """Add more figures to a run that has finished; the run as it is then."""
        return replace(run, metrics={**run.metrics, **metrics})

    def find_finished(self, facts: Mapping[str, str], metric: str) -> FinishedRun | None:
        """The latest finished run with some metric, by parameters that `identity.facts` gives."""
        return None

    def find_model(self, uri: str) -> ModelSource:
        """Find a model that a user named, without loading it.

        Raises:
            InputError: there is no such model.
        """
        path = expanded(uri)
        if not present(path):
            raise InputError(f"model={uri}: there is no such file{looked_in(uri)}")
        return ModelSource(uri, path.stem, path)

    def find_artifact(self, uri: str, *names: str) -> Path:
        """Find a file, or a folder, that an earlier run left.

        Args:
            uri: of the run or of the file.
            names: of the file, where the uri is a run's; the first that is there is taken.

        Raises:
            InputError: there is no such file.
        """
        path = expanded(uri)
        if present(path, Path.is_dir):
            path /= next((name for name in names if present(path / name)), names[0])
        if not present(path):
            what = Path(names[0]).stem
            raise InputError(f"{what}={uri}: there is no file {path}{looked_in(uri)}")
        return path

    def find_matrix(self, uri: str) -> Path:
        """Find the matrix of perturbations that an earlier run left.

        Args:
            uri: of the run, of its folder of blocks, or of the `.npz` file that earlier ones left.

        Raises:
            InputError: there is no such matrix.
        """
        path = expanded(uri)
        return path if blocks.is_there(path) else self.find_artifact(uri, "matrix", "matrix.npz")

    def find_perturbation(self, uri: str) -> PerturbationSource:
        """Find a universal perturbation that an earlier run left, by its URI or a file's.

        Raises:
            InputError: there is no such perturbation.
        """
        path = self.find_artifact(uri, "perturbation.npy")
        return PerturbationSource(uri, expanded(uri).absolute().stem, path)


_NEARLY_RIGHT = re.compile(r"(run|model)s?:/*")
_BARE_ID = re.compile(r"(m-)?[0-9a-f]{32}")


def canonical(address: str) -> str:
    """The address of a run, a model or a file as MLflow has it, of one that is nearly right.

    An id alone gets its scheme, runs:/ and models:/ lose slashes that are too many.
    """
    bare = address.strip().rstrip("/")
    if found := _BARE_ID.fullmatch(bare):
        return f"{'models' if found[1] else 'runs'}:/{bare}"
    if found := _NEARLY_RIGHT.match(bare):
        return f"{found[1]}s:/{bare[found.end() :]}"
    return address


def is_address(given: str) -> bool:
    """Whether it names something in a store, and no file that is there."""
    return not present(expanded(given)) and canonical(given).startswith(("runs:/", "models:/"))
