"""Data sets as they are stored, before anything is drawn or scaled."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt

from resfool.errors import InputError
from resfool.values import Part

Array = npt.NDArray[Any]
PerClass = tuple[int, int, int]

# What people call the parts of a data set.
PART_NAMES: dict[str, Part] = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("validation", "valid", "val", "dev"), "validation"),
    **dict.fromkeys(("test", "testing"), "test"),
}


class Images(Protocol):
    """Images as stored, (N, H, W, C): an array, or what reads rows of them where they lie."""

    @property
    def shape(self) -> tuple[int, ...]:
        """(N, H, W, C)."""

    def __getitem__(self, rows: Any, /) -> Array:
        """Some of them, by an int array of rows."""


@runtime_checkable
class Encoded(Images, Protocol):
    """Images that must be decoded: they are known by what is stored instead of by their pixels."""

    def chosen(self, rows: Array) -> "Encoded":
        """Those rows alone, still not decoded."""

    def contents(self) -> Iterator[bytes]:
        """What they are known by."""


@dataclass(frozen=True)
class Rows:
    """Some rows of images, which stay where they are."""

    images: Images
    rows: Array

    @property
    def shape(self) -> tuple[int, ...]:
        """(N, H, W, C)."""
        return len(self.rows), *self.images.shape[1:]

    def __getitem__(self, rows: Any, /) -> Array:
        return self.images[self.rows[rows]]


def chosen(images: Images, rows: Array) -> Images:
    """Some rows of images, not read yet."""
    return images.chosen(rows) if isinstance(images, Encoded) else Rows(images, rows)


@dataclass(frozen=True)
class Pool:
    """Images as stored, (N, H, W, C) of any type, and the values that stand for 1.0 and for 0.0."""

    images: Images
    labels: Array
    white: float
    black: float = 0.0


@dataclass(frozen=True)
class Stored:
    """A data set as it is stored.

    It has one pool for all splits, or one to train and validate on and one to test on, or three.

    Attributes:
        pools: those.
        class_names: a name for each label 0, 1, ...
        source: the path or package that it was read from.
        default: images per class, for a set without an official division.
        exact: whether these are all classes; of the user's own images only some may be there.
        notes: what the user should know of how it was read, a sentence each.
    """

    pools: tuple[Pool, ...]
    class_names: tuple[str, ...]
    source: str
    default: PerClass | None = None
    exact: bool = True
    notes: tuple[str, ...] = ()


def own_images(
    parts: Mapping[Part, Pool], class_names: tuple[str, ...], source: str, notes: tuple[str, ...]
) -> Stored:
    """The user's own data of one part or several; those that aren't there are empty."""
    some = next(iter(parts.values()))
    shapes = {pool.images.shape[1:] for pool in parts.values()}
    if len(shapes) > 1:
        raise InputError(f"{source}: all images must have one shape, not {sorted(shapes)}")
    nothing = np.arange(0)
    empty = Pool(chosen(some.images, nothing), nothing, some.white, some.black)
    names: tuple[Part, ...] = ("train", "test")
    if "validation" in parts:
        names = ("train", "validation", "test")
    pools = tuple(parts.get(name, empty) for name in names)
    return Stored(pools, class_names, source, exact=False, notes=notes)
