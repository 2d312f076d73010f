"""What lies in files while it is read part by part: they must stay as they were."""

import mmap
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from resfool.datasets.stored import Array
from resfool.errors import InputError, reading


class Watch:
    """Files that must stay as they were when they were first looked at.

    Args:
        paths: of them; they are known by their numbers.
    """

    def __init__(self, paths: Sequence[Path]) -> None:
        self._paths = paths
        self._states = np.full((len(paths), 2), -1, np.int64)  # bytes, and when they were written

    def check(self, number: int, file: int | None = None) -> None:
        """Refuse a file that has changed since the first call.

        Args:
            number: of the file.
            file: its descriptor, if it is open.

        Raises:
            InputError: it has, or it is gone.
        """
        path = self._paths[number]
        with reading(path):
            status = path.stat() if file is None else os.fstat(file)
        state = status.st_size, status.st_mtime_ns
        if self._states[number, 0] < 0:
            self._states[number] = state
        elif (self._states[number] != state).any():
            raise InputError(
                f"{path} has changed while it was in use; let it rest until the command has ended"
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
        self._watch.check(0)
        found = np.array(self.mapped[rows], copy=isinstance(rows, int | slice) or None)
        self._watch.check(0)  # it may have while it was read
        pages: mmap.mmap = self.mapped._mmap  # type: ignore[attr-defined]
        if hasattr(pages, "madvise"):
            pages.madvise(mmap.MADV_DONTNEED)  # the system may keep them; this process doesn't
        return found
