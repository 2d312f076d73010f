"""A folder of pictures with a folder for each class."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import numpy as np

from resfool.datasets.pictures import pictures
from resfool.datasets.stored import Array, Pool, Stored, own_images
from resfool.errors import InputError, reading
from resfool.parameters import OwnImages
from resfool.values import Part

SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".webp")
_PARTS: dict[str, Part] = {
    "train": "train",
    "training": "train",
    "val": "validation",
    "valid": "validation",
    "validation": "validation",
    "test": "test",
    "testing": "test",
}


@dataclass(frozen=True)
class Files:
    """Encoded pictures in files of their own."""

    paths: Sequence[Path]

    def __len__(self) -> int:
        return len(self.paths)

    def opened(self, rows: Array) -> Iterator[tuple[int, str, IO[bytes]]]:
        """Some of them, in order."""
        for place, row in enumerate(rows):
            path = self.paths[row]
            with reading(path):
                file = path.open("rb")
            with file:
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
        names = tuple(sorted({folder.name for _, folder in folders}))
        paths: list[Path] = []
        others: list[Path] = []
        rows: dict[Part, list[int]] = {part: [] for part in parts}
        labels: list[int] = []
        for part, folder in folders:
            for file in _files(folder):
                if file.suffix.lower() not in SUFFIXES:
                    others.append(file)
                    continue
                rows[part].append(len(paths))
                paths.append(file)
                labels.append(names.index(folder.name))
    if not paths:
        raise InputError(
            f"{path} has no pictures in folders of their classes ({', '.join(SUFFIXES)}), as in "
            f"{path / 'cat' / '1.png'} or {path / 'test' / 'cat' / '1.png'}"
        )
    whole = pictures(Files(paths), how, str(path))
    numbers = np.array(labels)
    pools = {
        part: Pool(whole.chosen(np.array(own)), numbers[own], white=255)
        for part, own in rows.items()
        if own
    }
    return own_images(pools, names, str(path), tuple(_notes(path, names, numbers, others)))


def _parts(path: Path) -> dict[Part, Path]:
    """The folders for training, validation and test; all is for test where there are none."""
    folders = _folders(path)
    found = [folder for folder in folders if folder.name.lower() in _PARTS]
    if not found:
        return {"test": path}
    if others := [folder.name for folder in folders if folder not in found]:
        raise InputError(
            f"{path} has folders for parts ({found[0].name}) and others beside them ({others[0]}); "
            "give either folders of classes or folders for parts, with those of classes in them"
        )
    parts = {_PARTS[folder.name.lower()]: folder for folder in found}
    if len(parts) < len(found):
        raise InputError(f"{path} has two folders for one part: {', '.join(map(str, found))}")
    return parts


def _folders(path: Path) -> list[Path]:
    return sorted(one for one in path.iterdir() if one.is_dir() and not one.name.startswith("."))


def _files(folder: Path) -> Iterator[Path]:
    for one in sorted(folder.iterdir()):
        if one.name.startswith("."):
            continue
        if one.is_dir():
            yield from _files(one)
        else:
            yield one


def _notes(path: Path, names: Sequence[str], labels: Array, others: list[Path]) -> Iterator[str]:
    if others:
        yield (
            f"{path}: {len(others)} files are no pictures by their names ({', '.join(SUFFIXES)}) "
            f"and are left out, such as {others[0]}"
        )
    empty = [name for number, name in enumerate(names) if number not in labels]
    if empty:
        yield f"{path}: the class {empty[0]} has no pictures; it counts as a class all the same"
