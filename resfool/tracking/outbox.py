"""What a run tells its store, kept until it is there: a store may be away, or lose the run."""

import csv
import json
import tempfile
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mlflow import MlflowClient
from mlflow.entities import DatasetInput, Metric, Param, RunTag
from mlflow.exceptions import MlflowException

from resfool import wording
from resfool.errors import InputError, short, temporary_folder, writing
from resfool.monitor import Leaves
from resfool.tracking import leaves, patience

_BATCH = 1000  # points, the most that one call takes


class Letter(ABC):
    """Something that a run tells its store. Sent twice, it says no more than once."""

    @abstractmethod
    def send(self, client: MlflowClient, run_id: str) -> None:
        """Tell it to the store.

        Raises:
            MlflowException: the store doesn't take it.
            InputError: the place for its files doesn't.
        """

    @abstractmethod
    def keep(self, folder: Path) -> None:
        """Write it to a folder, unless it can be had again."""


@dataclass(frozen=True)
class Facts(Letter):
    """Parameters."""

    values: Mapping[str, str]

    def send(self, client: MlflowClient, run_id: str) -> None:
        client.log_batch(
            run_id, params=[Param(n, wording.lines(v)) for n, v in self.values.items()]
        )

    def keep(self, folder: Path) -> None:
        add_to(folder / "parameters.json", self.values)


@dataclass(frozen=True)
class Tags(Letter):
    """Tags, the note among them."""

    values: Mapping[str, str]

    def send(self, client: MlflowClient, run_id: str) -> None:
        client.log_batch(run_id, tags=[RunTag(n, wording.lines(v)) for n, v in self.values.items()])

    def keep(self, folder: Path) -> None:
        add_to(folder / "tags.json", self.values)


@dataclass(frozen=True)
class Inputs(Letter):
    """A data set and what it was used for."""

    used: DatasetInput

    def send(self, client: MlflowClient, run_id: str) -> None:
        client.log_inputs(run_id, [self.used])

    def keep(self, folder: Path) -> None:
        pass


@dataclass(frozen=True)
class Files(Letter):
    """What a result leaves."""

    left: Leaves

    def send(self, client: MlflowClient, run_id: str) -> None:
        temporary = f"the temporary folder {temporary_folder()}"
        with writing(temporary), tempfile.TemporaryDirectory() as folder:
            leaves.log(client, run_id, Path(folder), self.left)

    def keep(self, folder: Path) -> None:
        leaves.write(folder, self.left)


def add_to(path: Path, values: Mapping[str, Any]) -> None:
    """Add values by their names to those of a JSON file."""
    known = json.loads(path.read_text()) if path.exists() else {}
    path.write_text(json.dumps({**known, **values}, indent=1))


class Outbox:
    """What a run tells its store: letters, and the points of its curves.

    Args:
        client: of the store.
        run_id: of the run.
    """

    def __init__(self, client: MlflowClient, run_id: str) -> None:
        self._client, self._run_id = client, run_id
        # Those sent are kept too: a store may come back without the run.
        self._letters: list[Letter] = []
        self._points: list[Metric] = []
        self._waiting: list[Letter] = []
        self._facts: dict[str, str] = {}
        self._sent = 0  # of the points
        self._unsure = False  # whether points may have arrived although sending them failed

    def add(self, letter: Letter) -> None:
        self._letters.append(letter)
        self._waiting.append(letter)

    def add_facts(self, values: Mapping[str, str]) -> None:
        """Parameters, but for those that the run has: a second, other text would be an error."""
        new = {name: value for name, value in values.items() if name not in self._facts}
        self._facts |= new
        self.add(Facts(new))

    def add_sent(self, facts: Facts, points: Sequence[Metric]) -> None:
        """What the run has from earlier sittings, or from `mlflow run`."""
        self._facts |= facts.values
        self._letters.append(facts)
        self._points += points
        self._sent = len(self._points)

    def add_points(self, points: Sequence[Metric]) -> None:
        self._points += points

    def send(self) -> None:
        """Send all that waits, or as much as the store takes.

        Raises:
            MlflowException: it is away, or doesn't take something.
            InputError: the place for its files doesn't.
        """
        refused: MlflowException | InputError | None = None
        self._send_points()
        for letter in list(self._waiting):
            try:
                self._send_one(letter)
            except (MlflowException, InputError) as error:
                if patience.is_away(error):
                    raise
                refused = refused or error
            else:
                self._waiting.remove(letter)
        if refused is not None:
            raise refused

    def _send_one(self, letter: Letter) -> None:
        try:
            letter.send(self._client, self._run_id)
        except (MlflowException, InputError):
            raise
        except Exception as error:  # of whatever the place of the run's files would need
            raise MlflowException(short(error)) from error

    def _send_points(self) -> None:
        while batch := self._points[self._sent : self._sent + _BATCH]:
            there = self._there(batch) if self._unsure else set()
            self._unsure = True
            # Never again by MLflow itself: a store of files would have the points twice.
            with patience.unrepeated():
                missing = [point for point in batch if _place(point) not in there]
                self._client.log_batch(self._run_id, metrics=missing)
            self._unsure = False
            self._sent += len(batch)

    def _there(self, points: Sequence[Metric]) -> set[tuple[str, int, int]]:
        """The points that the store has of some curves."""
        return {
            _place(point)
            for name in {point.key for point in points}
            for point in self._client.get_metric_history(self._run_id, name)
        }

    def send_anew(self, run_id: str) -> None:
        """Have everything, from the first on, wait for another run."""
        self._run_id, self._sent, self._unsure = run_id, 0, False
        self._waiting = list(self._letters)

    @property
    def has_results(self) -> bool:
        """Whether something waits that says more than what a run was and how it ended."""
        said = Facts | Tags | Inputs
        return self._sent < len(self._points) or any(
            not isinstance(letter, said) for letter in self._waiting
        )

    def keep(self, folder: Path) -> None:
        """Write what waits to a folder.

        Raises:
            InputError: it can't be written.
        """
        with writing(f"the folder {folder}"):
            folder.mkdir(parents=True, exist_ok=True)
            for letter in self._waiting:
                letter.keep(folder)
            with (folder / "points.csv").open("w", newline="") as file:
                rows = csv.writer(file)
                rows.writerow(["name", "step", "value", "timestamp"])
                for point in self._points[self._sent :]:
                    rows.writerow([point.key, point.step, repr(point.value), point.timestamp])


def _place(point: Metric) -> tuple[str, int, int]:
    """By what a point is known again."""
    return point.key, point.step, point.timestamp
