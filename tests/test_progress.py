"""Progress in a log: a line now and then, with an honest estimate."""

import re

import pytest

from resfool import progress
from resfool.progress import ProgressReport
from resfool.values import duration


class Clock:
    """Stands for the `time` module; moves only when it is told to."""

    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        return self.now


def test_a_line_every_thirty_seconds_and_one_at_the_end(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    clock = Clock()
    monkeypatch.setattr(progress, "time", clock)
    with ProgressReport("training") as report:
        for second in range(100):
            clock.now = 1000.0 + second
            report(second, 99, "train 0.5")
            report(second, 99, "train 0.5")
    lines = capsys.readouterr().err.splitlines()
    assert lines == [
        "training: 30 of 99, train 0.5, about 69 s left",
        "training: 60 of 99, train 0.5, about 39 s left",
        "training: 90 of 99, train 0.5, about 9 s left",
        "training: 99 of 99, train 0.5",
    ]


def test_the_estimate_counts_from_where_work_was_resumed(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    clock = Clock()
    monkeypatch.setattr(progress, "time", clock)
    report = ProgressReport("training")
    report(900, 1000)
    clock.now += 40
    report(920, 1000)
    assert capsys.readouterr().err == "training: 920 of 1000, about 3 min left\n"


def test_a_terminal_has_a_bar(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")  # by which a terminal is assumed
    monkeypatch.setenv("COLUMNS", "120")
    with ProgressReport("training") as report:
        for step in (0, 40, 99):
            report(step, 99, f"train 0.{step}")
    last = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", capsys.readouterr().err).splitlines()[-1]
    assert last.startswith("training") and "99/99 train 0.99" in last and "left: 0:00:00" in last


@pytest.mark.parametrize(
    ("seconds", "text"), [(5, "5 s"), (99, "99 s"), (120, "2 min"), (7200, "2.0 h")]
)
def test_durations_are_said_as_a_person_would(seconds: float, text: str) -> None:
    assert duration(seconds) == text
