"""Kinds of the user's own data, by the prefix of their names: npz:PATH, folder:PATH, ..."""

import contextlib
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from resfool.datasets.arrays import look_npy, look_npz, read_npy, read_npz
from resfool.datasets.folders import SUFFIXES, read_folder
from resfool.datasets.parquet import read_parquet
from resfool.datasets.stored import Stored
from resfool.declarations import without_effect
from resfool.errors import InputError, expanded, reading
from resfool.parameters import OwnImages
from resfool.values import listed


@dataclass(frozen=True)
class Kind:
    """A kind of the user's own data.

    Attributes:
        read: from its path and how it is to be read to what is stored.
        images: for people: what is at the path.
        takes: the parameters of `Subset` that it reads and others don't.
        is_there: whether something that could be it is at a path.
        looks_like: whether a bare name looks like a path to it.
        look: refuses what names and headers show to be wrong.
    """

    read: Callable[[Path, OwnImages], Stored]
    images: str
    takes: Collection[str]
    is_there: Callable[[Path], bool]
    looks_like: Callable[[Path], bool]
    look: Callable[[Path], None] = lambda path: None


_ARRAYS, _PICTURES = ("value_range",), ("image_size", "crop")

KINDS = {
    "npz": Kind(
        read_npz,
        "an archive of arrays: `x_test` and `y_test`, `x_train` and `y_train`, or `x` and `y`",
        _ARRAYS,
        Path.is_file,
        lambda path: path.suffix == ".npz",
        look_npz,
    ),
    "npy": Kind(
        read_npy,
        "a folder with the same arrays as files, `x_test.npy` and `y_test.npy`",
        _ARRAYS,
        Path.is_dir,
        lambda path: path.suffix == ".npy" or (path.is_dir() and any(path.glob("*.npy"))),
        look_npy,
    ),
    "folder": Kind(
        read_folder,
        f"a folder for each class, with {listed(SUFFIXES)} files; all are test images, or those "
        "of `train/`, `val/` and `test/`",
        _PICTURES,
        Path.is_dir,
        lambda path: path.is_dir() and not any(path.glob("*.parquet")),
    ),
    "parquet": Kind(
        read_parquet,
        "a file as Hugging Face writes it, or a folder of `train-*`, `validation-*` and `test-*`",
        _PICTURES,
        Path.exists,
        lambda path: path.suffix == ".parquet" or (path.is_dir() and any(path.glob("*.parquet"))),
    ),
}
SPELLINGS = tuple(f"{prefix}:PATH" for prefix in KINDS)


def kind_of(name: str) -> tuple[Kind, Path] | None:
    """The kind of a data set's name and its path, if it has such a prefix."""
    prefix, colon, rest = name.partition(":")
    return (KINDS[prefix], expanded(rest)) if colon and prefix in KINDS else None


def look(name: str) -> None:
    """Refuse own data that names and headers show to be wrong."""
    found = kind_of(name)
    if found is not None:
        kind, path = found
        kind.look(path)


def check_there(name: str) -> None:
    """Refuse the name of own data that isn't there."""
    found = kind_of(name)
    if found is None:
        return
    kind, path = found
    prefix, _, given = name.partition(":")
    with reading(path):
        exists, fits = path.exists(), kind.is_there(path)
    if not given or not exists:
        raise InputError(f"data set {name!r}: there is nothing at {given!r}")
    if not fits:
        wanted = kind.images.replace("`", "")
        raise InputError(f"data set {name!r}: {prefix}:PATH is {wanted}; {given!r} is none")


class _Entry(Protocol):
    @property
    def takes(self) -> Collection[str]: ...


def check_use(name: str, asked: OwnImages, named: Mapping[str, _Entry]) -> None:
    """Refuse what was given about the images and means nothing to a data set that is known.

    Args:
        name: of the data set.
        asked: all that was given.
        named: the data sets that have names, and what they take.
    """
    entries = {**named, **dict(zip(SPELLINGS, KINDS.values(), strict=True))}
    own = kind_of(name)
    takes = own[0].takes if own else named[name].takes
    dividers = [n for n in ("per_class", "validation_share") if n in asked.declared()]
    divides = any(getattr(asked, other) for other in dividers)
    for parameter, value in asked.given().items():
        takers = [spelling for spelling, entry in entries.items() if parameter in entry.takes]
        if takers and parameter not in takes and not (parameter == "data_seed" and divides):
            others = dividers if parameter == "data_seed" else []
            needs = listed([*others, f"dataset={listed(takers)}"])
            raise without_effect(parameter, value, f"dataset={name}", needs)


def spelled(name: str) -> str:
    """A bare path as it would be right, such as npz:own.npz; empty if it is none."""
    if not name:
        return ""
    path = expanded(name)
    with contextlib.suppress(OSError, ValueError):  # a name that no file can have
        for prefix, kind in KINDS.items():
            if kind.looks_like(path):
                return f"{prefix}:{name}"
    return ""
