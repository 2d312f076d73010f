"""What was found of blocks of images, kept on the disk as soon as it is done."""

import hashlib
import math
import weakref
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import keras
import numpy as np

from resfool import blocks, places
from resfool.arrayfiles import DamagedError, using
from resfool.blocks import BlockArray, Column, Plan
from resfool.classifiers import spreading
from resfool.classifiers.interface import Interface
from resfool.classifiers.spreading import Columns
from resfool.errors import InputError
from resfool.values import show

Stored = np.ndarray | BlockArray  # (N, ...), in memory or in blocks on the disk
Check = Callable[[Mapping[str, np.ndarray], int], None]  # of a block's columns and their length

_BESIDE = "beside"  # of all small columns, which are one array of a block, for each is a file


@dataclass(frozen=True)
class _Small:
    """A column that is held in memory, too.

    Attributes:
        name: of it.
        dtype: of the numbers, which float64 holds.
        shape: of an image's numbers.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]

    @property
    def width(self) -> int:
        """How many numbers an image has."""
        return math.prod(self.shape)

    def unpacked(self, numbers: np.ndarray) -> np.ndarray:
        """The column (n, ...), from float64 (n, width).

        Raises:
            DamagedError: they are none of the column's type.
        """
        found = numbers.astype(self.dtype)
        if not np.array_equal(found, numbers, equal_nan=found.dtype.kind == "f"):
            raise DamagedError(f"its {self.name} are no {self.dtype}")
        return found.reshape(-1, *self.shape)


class Kept:
    """The blocks of some work that are done, in a folder of their own.

    The first block that comes says which columns there are.

    Args:
        folder: that nothing else is in; its name tells the work.
        parts: blocks of the images.
        large: names of columns that stay on the disk; the others are held in memory, too.
        check: refuses, by a DamagedError, columns that the work can't have left.
    """

    def __init__(
        self, folder: Path, parts: spreading.Blocks, large: Collection[str], check: Check
    ) -> None:
        self.folder, self._parts, self._large, self._check = folder, parts, large, check
        self._small: Sequence[_Small] = ()
        self._beside: dict[int, np.ndarray] = {}  # of blocks that were checked, or written here

    def done(self) -> list[int]:
        """The numbers of the blocks that are there, which are checked.

        Raises:
            InputError: they can't be what this left.
        """
        if self.folder.is_symlink():
            raise InputError(f"{self.folder} is a symbolic link, which isn't followed")
        if not blocks.is_there(self.folder):
            return []
        if not self._small:
            plan = blocks.read_plan(self.folder)
            with using(f"the folder {self.folder}"):
                self._small = [_Small(n, d, tuple(s)) for n, d, s in plan.facts[_BESIDE]]
                self._begin(plan.columns)
        numbers = sorted(self._writer.done())
        for number in sorted({*numbers} - self._beside.keys()):
            stored = self._writer.arrays.block(number)
            with using(f"block {number} of {self.folder}"):
                columns = {n: column for n, column in stored.items() if n != _BESIDE}
                columns |= self._unpacked(stored[_BESIDE])
                self._check(columns, self._parts.count(number))
            self._beside[number] = np.array(stored[_BESIDE])
        return numbers

    def keep(self, number: int, found: Columns) -> None:
        """Keep a block, which is done.

        Raises:
            InputError: the folder can't be written, or its disk is full.
        """
        if not self._small:
            columns = {n: Column(c.dtype.name, c.shape[1:]) for n, c in found.items()}
            small = [(n, columns.pop(n)) for n in found if n not in self._large]
            self._small = [_Small(n, c.dtype, c.shape) for n, c in small]
            width = sum(one.width for one in self._small)
            self._begin(columns | {_BESIDE: Column("float64", (width,))})
        flat = [found[s.name].reshape(-1, s.width).astype(np.float64) for s in self._small]
        beside = np.concatenate(flat, axis=1)
        names = self._writer.plan.columns.keys() - {_BESIDE}
        self._writer.write(number, {n: found[n] for n in names} | {_BESIDE: beside})
        self._beside[number] = beside

    def _begin(self, columns: Mapping[str, Column]) -> None:
        rows, small = len(self._parts.arrays[0]), [[s.name, s.dtype, s.shape] for s in self._small]
        facts = {"work": self.folder.name, _BESIDE: small}
        self._writer = blocks.Writer(self.folder, Plan(rows, self._parts.size, columns, facts))

    def _unpacked(self, beside: np.ndarray) -> dict[str, np.ndarray]:
        ends = np.cumsum([small.width for small in self._small])
        parts = np.split(beside, ends[:-1], axis=1)
        return {s.name: s.unpacked(part) for s, part in zip(self._small, parts, strict=True)}

    @property
    def stored(self) -> blocks.Blocks:
        """The large columns by their names, on the disk."""
        return self._writer.arrays

    @property
    def columns(self) -> Mapping[str, Stored]:
        """All columns by their names, (N, ...) each, once all blocks are there."""
        beside = np.concatenate([self._beside[number] for number in range(len(self._parts))])
        return dict(self.stored) | self._unpacked(beside)


def settle(stored: blocks.Blocks, owner: object) -> None:
    """Move blocks that are done to where nobody goes on with them.

    Args:
        stored: the folder, which goes when the owner does.
        owner: what looks at them.
    """
    own = places.Folder(stored.folder.parent)
    stored.move(own.path / "blocks")
    weakref.finalize(owner, own.remove)


def digest(*parts: Any) -> str:
    """Sixteen hex digits that tell texts and arrays apart."""
    sha = hashlib.sha256()
    for part in parts:
        sha.update(part.encode() if isinstance(part, str) else np.ascontiguousarray(part).tobytes())
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
