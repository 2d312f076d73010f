"""What an experiment tells its surroundings while it runs."""

import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, Self

from resfool import wording
from resfool.values import Part, Row

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from numpy import ndarray
    from pandas import DataFrame

    from resfool.blocks import Unwritten
    from resfool.checkpoints import Arrays
    from resfool.datasets.sets import Dataset

LONGEST = 6000  # characters of a fact, which a store keeps in full
Use = tuple["Dataset", Part, str]  # a data set, the part of it, and what for: "training"

# What a result leaves beside its figures, by the names of its files: a Figure as NAME.png, an array
# as NAME.npy, Arrays as NAME.npz, bytes as they are, what is Unwritten as a folder NAME of blocks,
# and a table as NAME alone, which becomes NAME.csv and, for the user interface, NAME.json.
Leaves = Mapping[str, "Figure | DataFrame | ndarray | Arrays | Unwritten | bytes"]


class Advance(Protocol):
    """How work tells of its progress: how many more are done, and perhaps how it goes."""

    def __call__(self, more: int, text: str = "", /) -> None:
        """`more` of what was announced are done."""


def quiet(more: int, text: str = "", /) -> None:
    """An `Advance` that tells nobody."""


class Monitor:
    """Listens to an experiment. This one does little; MLflow, a progress bar or a test do more."""

    @property
    def run_id(self) -> str:
        """Where the experiment is recorded, once it has begun; empty if nowhere."""
        return ""

    def reopen(self, run_id: str) -> None:
        """What is about to begin goes on with an earlier run."""

    def begin(self, name: str, facts: Mapping[str, Any], uses: Sequence[Use]) -> Path | None:
        """The arguments are checked and the data is read; the expensive part begins.

        Args:
            name: of this experiment, for people.
            facts: what is known of it by now, as plain values, each at most LONGEST as a text.
            uses: its data.

        Returns:
            The file to keep a checkpoint in, or None. If it exists, it is resumed from.
        """
        return None

    def say(self, text: str) -> None:
        """What the user should know as it goes: what was reused, what failed, how long it takes."""
        wording.say(text)

    def warn(self, text: str) -> None:
        """Something that stops nothing, but that the user should mind."""
        warnings.warn(wording.sentence(text), stacklevel=3)

    def fact(self, name: str, value: Any) -> None:
        """Something about the experiment became known, such as the parameter count."""

    def point(self, row: Row) -> None:
        """A point of a curve: "step" and the figures measured there."""

    def progress(self, done: int, total: int, text: str) -> None:
        """`done` of `total` steps are done; `text` says how it goes."""

    def counter(self, total: int, text: str = "", done: int = 0) -> Advance:
        """What work that is counted tells of its progress.

        Args:
            total: that is to be done.
            text: that stands beside it, where the work says nothing of its own.
            done: of it, from before.
        """

        def advance(more: int, own: str = "", /) -> None:
            nonlocal done
            done = min(total, done + more)
            self.progress(done, total, own or text)

        return advance

    @contextmanager
    def part(self, name: str, facts: Mapping[str, Any]) -> Iterator[Self]:
        """A part of the experiment, such as one of several models, with curves of its own."""
        yield self

    def part_of(
        self, names: Sequence[str], number: int, facts: Mapping[str, Any]
    ) -> "AbstractContextManager[Monitor]":
        """The part for one of several by its number: the whole where there is only one."""
        return nullcontext(self) if len(names) == 1 else self.part(names[number], facts)

    def beside(self) -> "AbstractContextManager[Monitor]":
        """A part that is open at the same time as others, for work that is done elsewhere.

        Its `begin` is called within; leaving it ends the part.
        """
        return nullcontext(self)
