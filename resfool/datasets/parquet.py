"""Parquet files with a column of pictures and one of labels, as Hugging Face writes them."""

import io
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import numpy as np

from resfool import bounded, limits
from resfool.datasets import labels
from resfool.datasets.lying import Watch
from resfool.datasets.pictures import pictures
from resfool.datasets.stored import PART_NAMES, Array, Pool, Stored, own_images
from resfool.errors import InputError, reading
from resfool.parameters import OwnImages
from resfool.values import Part

if TYPE_CHECKING:
    from pyarrow.parquet import ParquetFile

_ROWS = 16  # cells that are read together
_BYTES_A_ROW = 64  # that its label and its place take
_IMAGES = ("image", "img", "images", "picture", "png", "jpg", "jpeg", "webp", "x")
_LABELS = ("label", "labels", "fine_label", "class", "target", "cls", "y")


@dataclass(frozen=True)
class Cells:
    """Encoded pictures in a column of several files, of which a row group at a time is read."""

    paths: Sequence[Path]
    column: str
    ends: Array  # the rows of all files up to the end of each row group
    groups: Sequence[tuple[int, int]]  # of each the file, and its number in that
    _watch: Watch = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_watch", Watch(self.paths))

    def __len__(self) -> int:
        return int(self.ends[-1])

    def opened(self, rows: Array) -> Iterator[tuple[int, str, IO[bytes]]]:
        """Some of them, row group by row group."""
        of_row = np.searchsorted(self.ends, rows, side="right")
        for group in np.unique(of_row):
            number, own = self.groups[group]
            path = self.paths[number]
            places = np.flatnonzero(of_row == group)
            inside = rows[places] - (self.ends[group - 1] if group else 0)
            self._watch.check(number)
            with reading(path):
                cells = _cells_of(path, own, self.column, set(inside.tolist()))
            self._watch.check(number)
            for place, at in zip(places.tolist(), inside.tolist(), strict=True):
                name = f"{path}, picture {at} of row group {own}"
                yield place, name, _opened(path, name, cells[at])


def _cells_of(path: Path, group: int, column: str, rows: Collection[int]) -> dict[int, Any]:
    """Some cells of a row group; what a few bytes of the file become is seen as it comes."""
    found: dict[int, Any] = {}
    with _parquet_file(path) as file:
        limits.check_memory(
            f"{path}: its row group {group}", file.metadata.row_group(group).total_byte_size
        )
        begin = taken = 0
        batches = file.iter_batches(_ROWS, row_groups=[group], columns=[column])
        for cells in (batch.column(0) for batch in batches):
            for at in range(begin, begin + len(cells)):
                if at in rows:
                    found[at] = cells[at - begin].as_py()
            taken += cells.nbytes
            limits.check_memory(f"{path}: its row group {group}", taken)
            begin += len(cells)
            if len(found) == len(rows):
                break
    return found


def _opened(path: Path, name: str, cell: Any) -> IO[bytes]:
    """A cell is bytes, a path, or both as Hugging Face has it."""
    content, place = (cell.get("bytes"), cell.get("path")) if isinstance(cell, dict) else (cell, "")
    if isinstance(content, bytes):
        return io.BytesIO(content)
    place = place or content
    if not isinstance(place, str):
        raise InputError(f"{name} is neither bytes nor a path")
    with reading(f"{name}, {place},"), bounded.opened(path.parent / place) as file:
        return io.BytesIO(bounded.content(file, limits.memory()))


def read_parquet(path: Path, how: OwnImages) -> Stored:
    """Read a file, or a folder of them that begin with train, validation or test.

    Raises:
        InputError: it has no pictures and labels, or one can't be read.
    """
    with reading(path):
        files = _files(path)
        layout = [_layout(file) for part in files.values() for file in part]
        if len({(image, label, names) for image, label, names in layout}) > 1:
            raise InputError(f"{path}: its files differ in their columns")
        image, label, names = layout[0]
        paths = [file for part in files.values() for file in part]
        cells = _cells(paths, image)
        told = [_read_labels(file, label) for file in paths]
    whole = pictures(cells, how, str(path))
    given, chosen, begin = {}, {}, 0
    for part, own in files.items():
        values = np.concatenate([told[paths.index(file)] for file in own])
        given[part] = label, values, len(values)
        chosen[part] = whole.chosen(np.arange(begin, begin + len(values)))
        begin += len(values)
    numbered = labels.numbered(given, names, str(path))
    pools = {part: Pool(chosen[part], numbered.numbers[part], white=255) for part in files}
    return own_images(pools, numbered.class_names, str(path), numbered.notes)


def _files(path: Path) -> dict[Part, list[Path]]:
    """The files of each part; all is for test where no name says more."""
    paths = sorted(path.rglob("*.parquet")) if path.is_dir() else [path]
    if not paths:
        raise InputError(f"{path} has no .parquet file")
    found: dict[Part, list[Path]] = {}
    for one in paths:
        word = one.stem.replace("_", "-").split("-")[0].lower()
        if word not in PART_NAMES and len(paths) > 1:
            word = one.parent.name.lower()
        found.setdefault(PART_NAMES.get(word, "test"), []).append(one)
    return found


def _layout(path: Path) -> tuple[str, str, tuple[str, ...] | None]:
    """The columns of pictures and of labels, and the classes' names if they are there."""
    with reading(path), _parquet_file(path) as file:
        schema = file.schema_arrow
        features = _features(schema.metadata or {})
    kinds = {name: one.get("_type") for name, one in features.items() if isinstance(one, dict)}
    image = _one(path, "pictures", schema.names, _IMAGES, kinds, "Image")
    label = _one(path, "labels", schema.names, _LABELS, kinds, "ClassLabel")
    names = features.get(label, {}).get("names")
    labels.check_count(f"{path}: the names of {label}", len(names or ()))
    return image, label, None if names is None else tuple(map(str, names))


def _features(metadata: dict[bytes, bytes]) -> dict[str, Any]:
    """What Hugging Face notes of each column."""
    noted = bounded.from_json(metadata.get(b"huggingface", b"{}"))
    return noted.get("info", {}).get("features", {})


def _one(
    path: Path,
    what: str,
    columns: list[str],
    usual: Sequence[str],
    kinds: dict[str, Any],
    kind: str,
) -> str:
    candidates = [name for name in columns if kinds.get(name) == kind]
    if len(candidates) != 1:
        candidates = [name for name in usual if name in (candidates or columns)]
    if not candidates:
        raise InputError(
            f"{path} has no column of {what} by a usual name ({', '.join(usual)}); it has "
            f"{bounded.named(columns)}"
        )
    return candidates[0]


def _cells(paths: Sequence[Path], column: str) -> Cells:
    counts, groups = [], []
    for number, path in enumerate(paths):
        with reading(path), _parquet_file(path) as file:
            for group in range(file.num_row_groups):
                counts.append(file.metadata.row_group(group).num_rows)
                groups.append((number, group))
    if not sum(counts):
        raise InputError(f"{paths[0]} has no rows")
    limits.check_memory(f"{paths[0]}: {sum(counts)} rows", _BYTES_A_ROW * sum(counts))
    return Cells(paths, column, np.cumsum(counts), groups)


def _parquet_file(path: Path) -> "ParquetFile":
    import pyarrow.parquet

    bounded.check_regular(path)
    return pyarrow.parquet.ParquetFile(path, pre_buffer=False)


def _read_labels(path: Path, column: str) -> Array:
    values: list[Any] = []
    with reading(path), _parquet_file(path) as file:
        limits.check_memory(f"{path}: its {column}", _BYTES_A_ROW * file.metadata.num_rows)
        taken = 0
        for cells in (batch.column(0) for batch in file.iter_batches(columns=[column])):
            if cells.null_count:
                raise InputError(f"{path}: rows have no {column}")
            taken += cells.nbytes
            limits.check_memory(f"{path}: its {column}", taken)
            values += cells.to_pylist()
        return np.asarray(values)
