"""What an experiment tells its surroundings while it runs."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from resfool.datasets import Dataset


class Monitor:
    """Listens to an experiment. This one does nothing; MLflow, a progress bar or a test do more."""

    def begin(self, facts: Mapping[str, Any], dataset: Dataset) -> Path | None:
        """The arguments are checked and the data is read; the expensive part begins.

        Args:
            facts: what is known of the experiment by now, as plain values.
            dataset: its data.

        Returns:
            The file to keep a checkpoint in, or None. If it exists, it is resumed from.
        """
        return None

    def fact(self, name: str, value: Any) -> None:
        """Something about the experiment became known, such as the parameter count."""

    def point(self, row: Mapping[str, float]) -> None:
        """A point of a curve: "step" and the figures measured there."""

    def progress(self, done: int, total: int, text: str) -> None:
        """`done` of `total` steps are done; `text` says how it goes."""
