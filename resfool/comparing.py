"""What a monitor is told of several models, one after the other."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from resfool.monitor import Monitor


@contextmanager
def part(
    monitor: Monitor, names: Sequence[str], number: int, facts: Mapping[str, Any]
) -> Iterator[Monitor]:
    """The part of the monitor for one of the models: all of it where there is one model only.

    Args:
        monitor: of the whole experiment.
        names: of all models.
        number: of this one.
        facts: what is known of it.

    Yields:
        Its monitor.
    """
    if len(names) == 1:
        yield monitor
    else:
        with monitor.part(names[number], facts) as own:
            yield own


def progress(monitor: Monitor, names: Sequence[str], number: int) -> Callable[[int, int], None]:
    """The progress of one of the models as that of the whole experiment.

    Args:
        monitor: of the whole experiment.
        names: of all models, each of which takes equally many steps.
        number: of this one.

    Returns:
        A function that is told the steps done for this model and their total.
    """

    def report(done: int, total: int) -> None:
        monitor.progress(number * total + done, len(names) * total, names[number])

    return report
