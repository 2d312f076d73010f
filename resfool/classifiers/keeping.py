"""What was found of blocks of images, kept on the disk as soon as it is done."""

import functools
import hashlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import keras
import numpy as np

from resfool import blocks
from resfool.arrayfiles import using
from resfool.blocks import BlockArray, Column, Plan
from resfool.classifiers import spreading
from resfool.classifiers.inference import Rows
from resfool.classifiers.interface import Interface
from resfool.classifiers.spreading import Columns
from resfool.errors import InputError
from resfool.values import show

_ROWS = 1000  # of images that are read together, for their digest

Check = Callable[[Mapping[str, np.ndarray], int], None]  # of a block's columns and their length


class Kept:
    """The blocks of some work that are done, in a folder of their own.

    The first one that comes says which arrays there are.

    Args:
        folder: that nothing else is in; its name tells the work.
        parts: blocks of the images.
        check: refuses, by a DamagedError, columns that the work can't have left.
    """

    def __init__(self, folder: Path, parts: spreading.Blocks, check: Check) -> None:
        self.folder, self._parts, self._check = folder, parts, check

    def done(self) -> set[int]:
        """The numbers of the blocks that are there.

        Raises:
            InputError: they can't be what this left.
        """
        if self.folder.is_symlink():
            raise InputError(f"{self.folder} is a symbolic link, which isn't followed")
        if not blocks.is_there(self.folder):
            return set()
        numbers = self._writer.done()
        for number in sorted(numbers):
            with using(f"block {number} of {self.folder}"):
                self._check(self._writer.arrays.block(number), self._parts.count(number))
        return numbers

    def keep(self, number: int, found: Columns) -> None:
        """Keep a block, which is done.

        Raises:
            InputError: the folder can't be written, or its disk is full.
        """
        if not blocks.is_there(self.folder):
            columns = {n: Column(c.dtype.name, c.shape[1:]) for n, c in found.items()}
            self._writer = blocks.Writer(self.folder, self._plan(columns))
        self._writer.write(number, found)

    @property
    def arrays(self) -> Mapping[str, BlockArray]:
        """All of the columns by their names, (N, ...) each, once all blocks are there."""
        return self._writer.arrays

    def discard(self) -> None:
        """Delete all that is there."""
        blocks.discard(self.folder)

    @functools.cached_property
    def _writer(self) -> blocks.Writer:
        return blocks.Writer(self.folder, self._plan(blocks.read_plan(self.folder).columns))

    def _plan(self, columns: Mapping[str, Column]) -> Plan:
        rows = len(self._parts.arrays[0])
        return Plan(rows, self._parts.size, columns, {"work": self.folder.name})


def digest(*parts: Any) -> str:
    """Sixteen hex digits that tell texts and arrays apart."""
    sha = hashlib.sha256()
    for part in parts:
        sha.update(part.encode() if isinstance(part, str) else np.ascontiguousarray(part).tobytes())
    return sha.hexdigest()[:16]


def digest_of(rows: Rows) -> str:
    """The `digest` of an array that is read a few rows at a time."""
    sha = hashlib.sha256()
    for begin in range(0, len(rows), _ROWS):
        sha.update(np.ascontiguousarray(rows[begin : begin + _ROWS]).data)
    return sha.hexdigest()[:16]


def identity_of(
    model: keras.Model, image_shape: Sequence[int], interface: Interface
) -> dict[str, Any]:
    """What a model must have in common with one whose work is gone on with, or used again.

    Args:
        model: from images to logits.
        image_shape: (H, W, C).
        interface: through which it takes images.
    """
    return {
        "model": digest(*model.get_weights()),
        "image_shape": list(image_shape),
        "input_range": list(interface.plain.input_range),
        "interface": {
            name: digest(*interface.fixed.values()) if name == "inputs" else show(value)
            for name, value in interface.given().items()
            if name != "input_range"
        },
    }
