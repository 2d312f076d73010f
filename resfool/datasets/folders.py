"""A folder of pictures with a folder for each class."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

import numpy as np

from resfool import bounded
from resfool.datasets.lying import Watch
from resfool.datasets.pictures import pictures
from resfool.datasets.stored import PART_NAMES, Array, Pool, Stored, own_images
from resfool.errors import InputError, reading
from resfool.parameters import OwnImages
from resfool.values import Part

SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".webp")


@dataclass(frozen=True)
class Files:
    """Encoded pictures in files of their own."""

    paths: Sequence[Path]
    _watch: Watch = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_watch", Watch(self.paths))

    def __len__(self) -> int:
        return len(self.paths)

    def opened(self, rows: Array) -> Iterator[tuple[int, str, IO[bytes]]]:
        """Some of them, in order."""
        for place, row in enumerate(rows):
            path = self.paths[row]
            with reading(path):
                file = bounded.opened(path)
            with file:
                self._watch.check(row, file.fileno())
                yield place, str(path), file


def read_folder(path: Path, how: OwnImages) -> Stored:
    """Read a folder with a folder for each class, or with such folders for train, val and test.

    Labels are the places of the folders' names in alphabetical order, as Keras and torchvision
    have them. Folders within a class belong to it. Hidden files don't count.

    Raises:
        InputError: there are no such folders, or a picture can't be read.
    """
    with reading(path):
        parts = _parts(path)
        folders = [(part, one) for part, whole in parts.items() for one in _folders(whole)]
        files = [(part, one.name, file) for part, one in folders for file in _files(one)]
        beside = [file for whole in dict.fromkeys((path, *parts.values())) for file in _own(whole)]
    kept = [each for each in files if each[2].suffix.lower() in SUFFIXES]
    if not kept:
        raise InputError(
            f"{path} has no pictures in folders of their classes ({', '.join(SUFFIXES)}), as in "
            f"{path / 'cat' / '1.png'} or {path / 'test' / 'cat' / '1.png'}"
        )
    names = tuple(sorted({folder.name for _, folder in folders}))
    number = {name: number for number, name in enumerate(names)}
    labels = np.array([number[name] for _, name, _ in kept])
    part_of = np.array([part for part, _, _ in kept])
    whole = pictures(Files([file for _, _, file in kept]), how, str(path))
    pools = {
        part: Pool(whole.chosen(rows), labels[rows], white=255)
        for part in parts
        if len(rows := np.flatnonzero(part_of == part))
    }
    others = [*beside, *(file for _, _, file in files if file.suffix.lower() not in SUFFIXES)]
    return own_images(pools, names, str(path), tuple(_notes(path, names, labels, others)))


def _parts(path: Path) -> dict[Part, Path]:
    """The folders for training, validation and test; all is for test where there are none."""
    folders = _folders(path)
    # A class may have such a name too; but then its pictures lie in it.
    found = [one for one in folders if one.name.lower() in PART_NAMES and _folders(one)]
    if not found:
        return {"test": path}
    if others := [folder.name for folder in folders if folder not in found]:
        raise InputError(
            f"{path} has folders for parts ({found[0].name}) and others beside them ({others[0]}); "
            "give either folders of classes or folders for parts, with those of classes in them"
        )
    parts = {PART_NAMES[folder.name.lower()]: folder for folder in found}
    if len(parts) < len(found):
        raise InputError(f"{path} has two folders for one part: {', '.join(map(str, found))}")
    return parts


def _folders(path: Path) -> list[Path]:
    return sorted(one for one in path.iterdir() if one.is_dir() and not one.name.startswith("."))


def _own(folder: Path) -> list[Path]:
    return sorted(o for o in folder.iterdir() if not o.is_dir() and not o.name.startswith("."))


def _files(folder: Path) -> Iterator[Path]:
    """The files in a folder, then those of each folder in it; of a folder in itself, once."""
    waiting, seen = [folder], set()
    while waiting:
        folder = waiting.pop()
        where = folder.resolve()
        if where not in seen:
            seen.add(where)
            yield from _own(folder)
            waiting.extend(reversed(_folders(folder)))


def _notes(path: Path, names: Sequence[str], labels: Array, others: list[Path]) -> Iterator[str]:
    if others:
        yield (
            f"{path}: {len(others)} files are left out, such as {others[0]}; pictures are "
            f"{', '.join(SUFFIXES)} files in the folder of their class"
        )
    if len(names) == 1:
        yield f"{path} has the folder of one class alone, {names[0]}"
    empty = [name for number, name in enumerate(names) if number not in labels]
    if empty:
        yield f"{path}: the class {empty[0]} has no pictures; it counts as a class all the same"
    if any(name.isdecimal() and int(name) != number for number, name in enumerate(names)):
        yield (
            f"{path}: classes are numbered in alphabetical order, so {names[0]} is label 0 and "
            f"{names[-1]} is label {len(names) - 1}; add an empty folder for each that is missing"
        )
