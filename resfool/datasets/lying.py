"""What lies in files while it is read part by part: they must stay as they were."""

import math
import mmap
import os
from collections.abc import Sequence
from pathlib import Path
from typing import IO, Any

import numpy as np

from resfool import bounded
from resfool.datasets.stored import Array
from resfool.errors import InputError, reading


class Watch:
    """Files that must stay as they were when they were first looked at.

    Args:
        paths: of them; they are known by their numbers.
    """

    def __init__(self, paths: Sequence[Path]) -> None:
        self.paths = paths
        self._states = np.full((len(paths), 2), -1, np.int64)  # bytes, and when they were written

    def opened(self, number: int) -> IO[bytes]:
        """One of them, to be read; it is as it was."""
        path = self.paths[number]
        with reading(path):
            file = bounded.opened(path)
        try:
            self.check(number, file.fileno())
        except InputError:
            file.close()
            raise
        return file

    def check(self, number: int, file: int | None = None) -> None:
        """Refuse a file that has changed since the first call.

        Args:
            number: of the file.
            file: its descriptor, if it is open.

        Raises:
            InputError: it has, or it is gone.
        """
        path = self.paths[number]
        with reading(path):
            status = path.stat() if file is None else os.fstat(file)
        state = status.st_size, status.st_mtime_ns
        if self._states[number, 0] < 0:
            self._states[number] = state
        elif (self._states[number] != state).any():
            raise self.changed(number)

    def changed(self, number: int) -> InputError:
        """The error for a file that has."""
        return InputError(
            f"{self.paths[number]} has changed while it was in use; let it rest until the command "
            "has ended"
        )


class InFile:
    """An array that stays in its file: what is looked at is read, and let go of again.

    Args:
        mapped: the array, mapped.
        watch: of its file alone, from before it was mapped.
    """

    def __init__(self, mapped: np.memmap, watch: Watch) -> None:
        self.mapped, self._watch = mapped, watch

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the array."""
        return self.mapped.shape

    @property
    def dtype(self) -> np.dtype[Any]:
        """Of its values."""
        return self.mapped.dtype

    def __len__(self) -> int:
        return len(self.mapped)

    def __getitem__(self, rows: Any, /) -> Array:
        """Some rows, in memory.

        Raises:
            InputError: the file has changed.
        """
        wanted = np.arange(len(self))[rows]
        with self._watch.opened(0) as file:
            found = self._read(file, np.atleast_1d(wanted))
            self._watch.check(0)  # it may have while it was read
        return found if np.ndim(wanted) else found[0]

    def _read(self, file: IO[bytes], rows: Array) -> Array:
        size = self.dtype.itemsize * math.prod(self.shape[1:])
        if self.mapped.strides[0] != size:
            return self._copied(rows)
        # Not by the mapping: a file that is cut off meanwhile would end the process.
        found = np.empty((len(rows), *self.shape[1:]), self.dtype)
        runs = np.split(rows, np.flatnonzero(np.diff(rows) != 1) + 1) if len(rows) else []
        begin = 0
        for run in runs:
            file.seek(self.mapped.offset + int(run[0]) * size)
            content = file.read(len(run) * size)
            if len(content) < len(run) * size:
                raise self._watch.changed(0)
            shape = len(run), *self.shape[1:]
            part: Array = np.ndarray(shape, self.dtype, content, strides=self.mapped.strides)
            found[begin : begin + len(run)] = part
            begin += len(run)
        return found

    def _copied(self, rows: Array) -> Array:
        """Rows that are scattered over the file, as in Fortran's order."""
        found = np.asarray(self.mapped[rows])
        pages: mmap.mmap = self.mapped._mmap  # type: ignore[attr-defined]
        if hasattr(pages, "madvise"):
            pages.madvise(mmap.MADV_DONTNEED)  # the system may keep them; this process doesn't
        return found
