"""Images of a data set that are made where they are looked at, so that never all are in memory."""

import hashlib
import math
from collections.abc import Iterator
from dataclasses import replace
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from resfool.datasets.sets import Split
from resfool.datasets.stored import Encoded

_HELD = 1 << 28  # bytes of decoded pictures that are kept: more are decoded at every look
_CHUNK = 1 << 22  # values of a piece that a digest takes at a time


class ImageRows:
    """All images of a split, float32 (N, H, W, C) in [0, 1]; what is looked at is read and scaled.

    Encoded pictures are decoded once, as long as all of them take no more than 256 MiB as bytes.

    Args:
        split: of a data set, such as `Split.chosen` leaves it where it is stored.
    """

    def __init__(self, split: Split) -> None:
        self._given = split

    @cached_property
    def _split(self) -> Split:
        stored = self._given.stored
        if not isinstance(stored, Encoded) or math.prod(self.shape) > _HELD:
            return self._given
        return replace(self._given, stored=stored[np.arange(len(self))])

    @property
    def shape(self) -> tuple[int, ...]:
        """(N, H, W, C)."""
        return self._given.shape

    def __len__(self) -> int:
        return len(self._given)

    def __getitem__(self, rows: Any, /) -> npt.NDArray[np.float32]:
        """Some of them: by a slice, by an int array, or one by its number."""
        numbers = np.arange(len(self))[rows]
        images = self._split.take(np.atleast_1d(numbers)).images
        return images if np.ndim(numbers) else images[0]

    def check(self) -> None:
        """Decode encoded pictures once, so that nothing runs where one of them can't be read.

        Raises:
            InputError: one can't be.
        """
        if isinstance(self._given.stored, Encoded):
            for _ in self.pieces():
                pass

    def pieces(self) -> Iterator[npt.NDArray[np.float32]]:
        """All of them in order, a few at a time."""
        size = max(1, _CHUNK // max(1, math.prod(self.shape[1:])))
        for begin in range(0, len(self), size):
            yield self[begin : begin + size]

    @cached_property
    def digest(self) -> str:
        """The first 16 hex digits of the SHA-256 of their values."""
        sha = hashlib.sha256()
        for piece in self.pieces():
            sha.update(np.ascontiguousarray(piece).data)
        return sha.hexdigest()[:16]
