"""Files that earlier runs have left, read back; anybody may have written them."""

import csv
import io
import math
import os
from collections.abc import Sequence

from resfool.archive import FinishedRun, UnusableError
from resfool.arrayfiles import DamagedError, open_plain, using

_LARGEST = 100 << 20  # bytes of a file
_PNG = b"\x89PNG\r\n\x1a\n"


def columns(
    run: FinishedRun, file: str, names: Sequence[str], *, finite: bool = True
) -> dict[str, list[float]]:
    """Some columns of a table, all of them numbers.

    Args:
        run: that left it.
        file: its name, such as rates.csv.
        names: of the columns.
        finite: whether infinities are wrong.

    Raises:
        UnusableError: the run has no such file.
        InputError: it isn't such a table.
    """
    text = _content(run, file)
    with using(f"{file} of run {run.run_id}"):
        found: dict[str, list[float]] = {name: [] for name in names}
        for row in csv.DictReader(io.StringIO(text.decode())):
            for name in names:
                if name not in row:
                    raise DamagedError(f"it has no {name}")
                value = float(row[name])
                if math.isnan(value) or (finite and math.isinf(value)):
                    raise DamagedError(f"its {name} are not all numbers")
                found[name].append(value)
        if not all(found.values()):
            raise DamagedError("it has no rows")
    return found


def picture(run: FinishedRun, file: str) -> bytes:
    """A PNG file.

    Raises:
        UnusableError: the run has no such file, or it is none.
        InputError: it can't be read.
    """
    content = _content(run, file)
    if not content.startswith(_PNG):
        raise UnusableError(f"{file} of run {run.run_id} is no PNG file")
    return content


def _content(run: FinishedRun, file: str) -> bytes:
    path = run.find_file(file)
    if path is None:
        raise UnusableError(f"run {run.run_id} has no {file}")
    with using(f"{file} of run {run.run_id}"), open_plain(path, os.O_RDONLY, follow=True) as opened:
        content: bytes = opened.read(_LARGEST + 1)
        if len(content) > _LARGEST:
            raise DamagedError(f"it is larger than {_LARGEST >> 20} MiB")
        return content
