"""Arrays of many rows, kept in blocks: a folder that grows block by block and is read lazily.

The folder holds plain NumPy files, one for each array and block, such as `rows-000000.npy`; a
small JSON file for each block, such as `block-000000.json`, with the SHA-256 of its arrays; and
`index.json`, which says what all of them are. A block is there once its JSON file is, which is
written last, so thousands of blocks cost no more each than a few. Blocks come in any order, and
from several processes.
"""

import contextlib
import hashlib
import json
import math
import os
import re
import stat
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import numpy as np
import numpy.typing as npt

from resfool import bounded, limits
from resfool.arrayfiles import DamagedError, open_plain, using
from resfool.checkpoints import discard_parts, replacing
from resfool.errors import InputError, present, writing
from resfool.wording import told

Array = npt.NDArray[Any]

VERSION = 1
ROWS = "rows"  # the name of an array that is alone
_INDEX = "index.json"
_MOST_BLOCKS = 1_000_000  # whose numbers have six digits, so that their names' order is theirs
_LONGEST = 1 << 24  # bytes of an index, which holds the facts
_LONGEST_RECORD = 1 << 16
_CHUNK = 1 << 20  # bytes that are read together
_NAME = re.compile(r"[a-z][a-z0-9_]{0,59}")
_DTYPE = re.compile(r"<[iuf](2|4|8)|\|[iub]1")


@dataclass(frozen=True)
class Column:
    """What one of the arrays is.

    Attributes:
        dtype: of numbers or truth values, such as "float32".
        shape: of one row; () for a number a row.
    """

    dtype: str
    shape: tuple[int, ...] = ()

    @property
    def type(self) -> np.dtype[Any]:
        """As it is stored, with its low bytes first."""
        return np.dtype(self.dtype).newbyteorder("<")


@dataclass(frozen=True)
class Plan:
    """What a folder of blocks is to hold.

    Attributes:
        rows: of all blocks together, 1 or more.
        size: rows of each block; the last one may have fewer.
        columns: the arrays by their names, which are lower-case words.
        facts: anything that JSON holds, to know the folder by.
    """

    rows: int
    size: int
    columns: Mapping[str, Column]
    facts: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.rows < 1 or self.size < 1 or not self.columns:
            raise InputError(
                f"an array in blocks needs a row, a row in each and a column, not {self.rows} "
                f"rows in blocks of {self.size} and {len(self.columns)} columns"
            )
        if self.count > _MOST_BLOCKS:
            raise InputError(
                f"{self.rows} rows in blocks of {self.size} are {self.count} blocks, and "
                f"{_MOST_BLOCKS} are allowed"
            )
        for name, column in self.columns.items():
            if not _NAME.fullmatch(name) or name in ("block", "index"):
                raise InputError(f"{told(name)!r} can't be the name of an array in blocks")
            if not _DTYPE.fullmatch(column.type.str) or min(column.shape, default=1) < 1:
                raise InputError(
                    f"the array {name} can't be {column.dtype} of {column.shape} a row: blocks "
                    "hold numbers and truth values"
                )

    @property
    def count(self) -> int:
        """How many blocks there are."""
        return -(-self.rows // self.size)

    def span(self, number: int) -> slice:
        """The rows of a block."""
        if not 0 <= number < self.count:
            raise IndexError(f"there is no block {number} of {self.count}")
        return slice(number * self.size, min((number + 1) * self.size, self.rows))

    def shape(self, name: str, number: int) -> tuple[int, ...]:
        """The shape of an array's part in a block."""
        span = self.span(number)
        return span.stop - span.start, *self.columns[name].shape

    @property
    def document(self) -> bytes:
        """The index as it is stored."""
        columns = {
            name: {"dtype": one.type.str, "shape": [self.rows, *one.shape]}
            for name, one in self.columns.items()
        }
        whole: dict[str, Any] = {"version": VERSION, "rows": self.rows, "block_rows": self.size}
        whole |= {"columns": columns, "facts": dict(self.facts)}
        return json.dumps(whole, indent=1, sort_keys=True).encode()

    @property
    def digest(self) -> str:
        """By which each block knows that it belongs here."""
        return hashlib.sha256(self.document).hexdigest()[:16]


class Writer:
    """Writes the blocks of a folder, those that aren't there yet.

    A folder that holds another plan, or the same of other facts, is refused. Processes that write
    into one folder each have their own writer.

    Args:
        folder: it is created if it isn't there.
        plan: of what it holds.

    Attributes:
        arrays: those that are there, and those that come.

    Raises:
        InputError: the folder can't be written or read, or holds something else.
    """

    def __init__(self, folder: Path, plan: Plan) -> None:
        self.folder, self.plan = folder, plan
        self.arrays = Blocks(folder, plan)
        if not present(folder / _INDEX):
            with replacing(folder / _INDEX) as file:
                file.write(plan.document)
        if read_plan(folder).digest != plan.digest:
            raise InputError(
                f"{folder} holds blocks of something else; give a folder that is new or empty"
            )

    def done(self) -> set[int]:
        """The numbers of the blocks that are there."""
        return self.arrays.done()

    def write(self, number: int, arrays: Mapping[str, Array]) -> None:
        """Write a block, or leave none in its place: an earlier one of its number is replaced.

        Args:
            number: of the block, from 0.
            arrays: by their names, each with the rows of this block, (n, ...).

        Raises:
            InputError: the arrays aren't those of the plan, the folder can't be written, or its
                disk is full; other blocks stay as they are.
        """
        self._check(number, arrays)
        record = self.folder / _record_name(number)
        with writing(f"the folder {self.folder}"):
            record.unlink(missing_ok=True)
        sums = {}
        for name, column in self.plan.columns.items():
            with replacing(self.folder / _shard_name(name, number)) as file:
                summed = _Summed(file)
                stored = np.ascontiguousarray(arrays[name], column.type)
                np.lib.format.write_array(summed, stored, allow_pickle=False)
            sums[name] = summed.sha.hexdigest()
        noted = {"block": number, "index": self.plan.digest, "sha256": sums}
        with replacing(record) as file:
            file.write(json.dumps(noted).encode())

    def _check(self, number: int, arrays: Mapping[str, Array]) -> None:
        if arrays.keys() != self.plan.columns.keys():
            raise InputError(
                f"block {number} of {self.folder} must have {', '.join(self.plan.columns)}, not "
                f"{', '.join(arrays)}"
            )
        for name, array in arrays.items():
            wanted = self.plan.shape(name, number)
            fits = np.can_cast(array.dtype, self.plan.columns[name].type, "same_kind")
            if array.shape != wanted or not fits:
                raise InputError(
                    f"block {number} of {self.folder}: {name} must be {wanted} of "
                    f"{self.plan.columns[name].dtype}, not {array.shape} of {array.dtype}"
                )

    def finish(self) -> "Blocks":
        """Remove what killed processes left half written, and read it all; nobody may write now.

        Raises:
            InputError: a block isn't there.
        """
        found = read(self.folder)
        for file in {part.name.split(".", 1)[0] for part in self.folder.glob("*.part")}:
            for ending in (".npy", ".json"):
                discard_parts(self.folder / f"{file}{ending}")
        return found


@dataclass(frozen=True)
class Unwritten:
    """Arrays that are to be written in blocks, of which each is made when its turn comes.

    Attributes:
        plan: of what the folder is to hold.
        make: the arrays of some rows, by their names.
    """

    plan: Plan
    make: Callable[[slice], Mapping[str, Array]]

    def write(self, folder: Path) -> "Blocks":
        """Write all of it into a folder, which is created.

        Raises:
            InputError: the folder can't be written, or holds something else.
        """
        writer = Writer(folder, self.plan)
        for number in range(self.plan.count):
            writer.write(number, self.make(self.plan.span(number)))
        return writer.finish()


class _Summed:
    """A file that is written, and the SHA-256 of what is."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file, self.sha = file, hashlib.sha256()

    def write(self, content: bytes) -> int:
        self.sha.update(content)
        return self._file.write(content)


def _shard_name(name: str, number: int) -> str:
    return f"{name}-{number:06d}.npy"


def _record_name(number: int) -> str:
    return f"block-{number:06d}.json"


# Reading: anybody may have made what lies there.


def read_plan(folder: Path) -> Plan:
    """What a folder of blocks holds, or is to hold.

    Raises:
        InputError: it isn't such a folder.
    """
    with using(f"the array in blocks {folder}"):
        stored = _document(folder / _INDEX, _LONGEST)
        if stored.get("version") != VERSION:
            raise DamagedError(f"its index has the version {bounded.plain(stored.get('version'))}")
        rows, size, columns = (stored[key] for key in ("rows", "block_rows", "columns"))
        if not all(type(count) is int for count in (rows, size)):
            raise DamagedError("its index doesn't tell its rows")
        facts = stored["facts"]
        plan = Plan(rows, size, {n: _column(rows, one) for n, one in columns.items()}, facts)
        if json.loads(plan.document) != stored:
            raise DamagedError("its index holds what doesn't belong there")
    return plan


def _column(rows: int, stored: Mapping[str, Any]) -> Column:
    dtype, shape = stored["dtype"], stored["shape"]
    lengths = all(type(length) is int for length in shape)
    if not _DTYPE.fullmatch(dtype) or not lengths or not shape or shape[0] != rows:
        raise DamagedError("its index doesn't tell what its arrays are")
    return Column(np.dtype(dtype).name, tuple(shape[1:]))


def _document(path: Path, most: int) -> dict[str, Any]:
    with open_plain(path, os.O_RDONLY) as file:
        found = bounded.from_json(bounded.content(file, most))
    if not isinstance(found, dict):
        raise DamagedError(f"{path.name} has no names")
    return found


def is_there(folder: Path) -> bool:
    """Whether a folder is one of blocks, by its index."""
    return present(folder / _INDEX)


def read(folder: Path) -> "Blocks":
    """Read a folder all of whose blocks are there; their arrays stay on the disk.

    Raises:
        InputError: it isn't such a folder, or a block is missing.
    """
    found = Blocks(folder, read_plan(folder))
    done = found.done()
    for number in range(found.plan.count):
        if number not in done:
            raise InputError(
                f"block {number} of {folder} isn't there; {len(done)} of {found.plan.count} are"
            )
    return found


class Blocks(Mapping[str, "BlockArray"]):
    """The arrays of a folder of blocks, by their names.

    Attributes:
        folder: it is.
        plan: of what it holds.
    """

    def __init__(self, folder: Path, plan: Plan) -> None:
        self.folder, self.plan = folder, plan
        self._columns = {name: BlockArray(folder, plan, name) for name in plan.columns}

    def done(self) -> set[int]:
        """The numbers of the blocks that are there; what they hold is checked as it is read."""
        with using(f"the array in blocks {self.folder}"):
            names = {entry.name for entry in self.folder.iterdir()}
        return {number for number in range(self.plan.count) if _record_name(number) in names}

    def move(self, folder: Path) -> None:
        """Rename the folder, on the disk where it is; the arrays go with it.

        Raises:
            InputError: it can't be.
        """
        with writing(f"the folder {folder.parent}"):
            self.folder.rename(folder)
        self.folder = folder
        for column in self._columns.values():
            column.folder = folder

    def block(self, number: int) -> dict[str, Array]:
        """The rows of one block, by the arrays' names; see `BlockArray.block`."""
        return {name: column.block(number) for name, column in self._columns.items()}

    def __getitem__(self, name: str) -> "BlockArray":
        return self._columns[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._columns)

    def __len__(self) -> int:
        return len(self._columns)


class BlockArray:
    """An array (N, ...) in blocks, of which a part is read where it is looked at.

    A block's bytes are compared with its SHA-256 when it is first looked at, and again when its
    file has changed since.

    Attributes:
        folder: with the blocks.
        plan: of the folder.
        name: of the array in it.
    """

    def __init__(self, folder: Path, plan: Plan, name: str) -> None:
        self.folder, self.plan, self.name = folder, plan, name
        self._seen: dict[int, tuple[int, ...]] = {}

    @property
    def shape(self) -> tuple[int, ...]:
        """(N, ...)."""
        return self.plan.rows, *self.plan.columns[self.name].shape

    @property
    def ndim(self) -> int:
        """How many dimensions there are."""
        return len(self.shape)

    @property
    def size(self) -> int:
        """How many values there are."""
        return math.prod(self.shape)

    @property
    def dtype(self) -> np.dtype[Any]:
        """Of the values."""
        return np.dtype(self.plan.columns[self.name].dtype)

    def __len__(self) -> int:
        return self.plan.rows

    def block(self, number: int) -> Array:
        """The rows of one block, (n, ...), which stay on the disk and can't be written to.

        Raises:
            InputError: the block is missing, or isn't what was written.
        """
        wanted = self.plan.shape(self.name, number), self.plan.columns[self.name].type
        file_name = _shard_name(self.name, number)
        with (
            using(f"block {number} of {self.folder}, {file_name},"),
            open_plain(self.folder / file_name, os.O_RDONLY) as file,
        ):
            head = bounded.header(file_name, file)
            status = os.fstat(file.fileno())
            if (head.shape, head.dtype) != wanted or head.fortran:
                raise DamagedError(
                    f"it is {head.dtype} of {bounded.plain(str(head.shape))}, and its index says "
                    f"{wanted[1]} of {wanted[0]}"
                )
            if head.begin + head.size != status.st_size:
                raise DamagedError("it isn't as large as its header says")
            state = status.st_ino, status.st_size, status.st_mtime_ns
            if self._seen.get(number) != state:
                self._check_sum(number, file)
                self._seen[number] = state
            return np.memmap(file, head.dtype, "r", head.begin, head.shape)

    def _check_sum(self, number: int, file: IO[bytes]) -> None:
        with using(f"block {number} of {self.folder}"):
            record = _document(self.folder / _record_name(number), _LONGEST_RECORD)
            if record.get("block") != number or record.get("index") != self.plan.digest:
                raise DamagedError("it belongs to other ones")
            written = record["sha256"][self.name]
        sha = hashlib.sha256()
        file.seek(0)
        for chunk in iter(lambda: file.read(_CHUNK), b""):
            sha.update(chunk)
        if sha.hexdigest() != written:
            raise DamagedError("it has changed since it was written")

    def blocks(self) -> Iterator[Array]:
        """All blocks, in order."""
        return map(self.block, range(self.plan.count))

    def __getitem__(self, place: Any) -> Array:
        """Some rows as an array: by a slice without steps, and slices of the rest after it."""
        rows, *rest = place if isinstance(place, tuple) else (place,)
        if not isinstance(rows, slice) or rows.step not in (None, 1):
            raise TypeError(f"rows of an array in blocks are named by a plain slice, not {rows!r}")
        begin, end, _ = rows.indices(self.plan.rows)
        shape = (max(0, end - begin), *self.shape[1:])
        if end <= begin:
            return np.empty(shape, self.dtype)[slice(None), *rest]
        first, last = begin // self.plan.size, (end - 1) // self.plan.size
        if first == last:
            start = first * self.plan.size
            return self.block(first)[begin - start : end - start, *rest]
        limits.check_memory(
            f"{end - begin} rows of {self.folder}", math.prod(shape) * self.dtype.itemsize
        )
        found = None
        for number in range(first, last + 1):
            start = number * self.plan.size
            part = self.block(number)[max(0, begin - start) : end - start, *rest]
            if found is None:
                found, filled = np.empty((end - begin, *part.shape[1:]), self.dtype), 0
            found[filled : filled + len(part)] = part
            filled += len(part)
        assert found is not None
        return found

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> Array:
        """All of it, in memory."""
        return np.array(self[:], dtype)


_OURS = re.compile(r"(index\.json|[a-z][a-z0-9_]*-\d{6}\.(npy|json))(\..+\.part)?")


def discard(folder: Path) -> None:
    """Delete a folder of blocks, if it is there, and nothing in it that is none of its files."""
    if folder.is_symlink() or not folder.is_dir():
        return
    with contextlib.suppress(OSError):
        for path in folder.iterdir():
            if _OURS.fullmatch(path.name) and stat.S_ISREG(path.lstat().st_mode):
                path.unlink(missing_ok=True)
        folder.rmdir()
