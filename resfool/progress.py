"""Progress of long work: a bar on a terminal, a line every 30 seconds in a log."""

import sys
import time
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from resfool.values import duration
from resfool.wording import sentence

_LINE_SECONDS = 30.0


class ProgressReport:
    """Shows how far a piece of work has come and how long it will still take.

    Args:
        title: what is being done.
        line_seconds: seconds between two lines where the output is no terminal.
    """

    def __init__(self, title: str, line_seconds: float = _LINE_SECONDS) -> None:
        self._title = title
        self._line_seconds = line_seconds
        self._console = Console(stderr=True)
        self._bar: Progress | None = None
        self._task: TaskID | None = None
        self._began: tuple[float, int] | None = None
        self._total, self._done = 0, 0
        self._line_at = (0.0, -1)  # when the last line was printed, and at how many steps

    def __call__(self, done: int, total: int, text: str = "") -> None:
        """Show that `done` of `total` steps are done, with a few words on how it goes."""
        now = time.monotonic()
        if self._began is None or total != self._total or done < self._done:
            # The first piece of work, or another one: the time left is reckoned from here.
            self._began = self._line_at = now, done
        self._total, self._done = total, done
        if self._console.is_terminal:
            self._draw(done, total, text)
        elif self._line_due(now, done, total):
            self._line_at = now, done
            line = sentence(self._line(done, total, text, now))
            print(line, file=sys.stderr, flush=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._bar is not None:
            self._bar.stop()

    def _draw(self, done: int, total: int, text: str) -> None:
        if self._bar is None:
            self._bar = Progress(
                TextColumn("{task.description}", markup=False),
                BarColumn(),
                MofNCompleteColumn(),
                TextColumn("{task.fields[text]}", markup=False),
                TimeElapsedColumn(),
                TextColumn("left:"),
                TimeRemainingColumn(),
                console=self._console,
            )
            self._task = self._bar.add_task(
                sentence(self._title), total=total, completed=done, text=""
            )
            self._bar.start()
        assert self._task is not None
        self._bar.update(self._task, completed=done, total=total, text=sentence(text))

    def _line_due(self, now: float, done: int, total: int) -> bool:
        printed_at, printed_done = self._line_at
        return now - printed_at >= self._line_seconds or (done == total and done != printed_done)

    def _line(self, done: int, total: int, text: str, now: float) -> str:
        assert self._began is not None
        began, done_before = self._began
        words = [f"{self._title}: {done} of {total}"]
        if text:
            words.append(text)
        if done_before < done < total:
            left = (now - began) / (done - done_before) * (total - done)
            words.append(f"about {duration(left)} left")
        return ", ".join(words)
