"""Strangers' files, read within bounds: whatever they hold, what it takes is known before.

Everything that reads a file of the user's begins here, so that no pipe or device blocks it, no
few bytes become many, and no value of theirs gets into a message whole.
"""

import gzip
import io
import json
import re
import shutil
import stat
import zipfile
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from itertools import accumulate, islice
from pathlib import Path
from typing import IO, Any, Literal

import numpy as np
import numpy.typing as npt

from resfool import limits
from resfool.errors import InputError, temporary_folder

_MOST_MARKS = 2_000_000  # commas and brackets of a JSON document; a thousand layers have 200,000
_MOST_VALUES = 20_000  # of a YAML document, with those that its aliases stand for
_DEEPEST = 200  # containers within each other; a model in a model in a model has about 20
_LONGEST_NUMBER = 1000  # digits
_LONGEST_SHOWN, _MOST_SHOWN = 60, 10  # characters of a value within a message, and values


def check_regular(path: Path) -> None:
    """Refuse what is no regular file: reading a pipe or a device may never end.

    Raises:
        ValueError: it is none.
        OSError: nothing is there.
    """
    if not stat.S_ISREG(path.stat().st_mode):
        raise ValueError("it is no regular file")


def opened(path: Path) -> IO[bytes]:
    """A regular file, to be read.

    Raises:
        ValueError: it is none.
        OSError: it can't be read.
    """
    check_regular(path)
    return path.open("rb")


def content(file: IO[bytes] | gzip.GzipFile, most: int) -> bytes:
    """The rest of a file.

    Args:
        file: that is open.
        most: bytes that it may have.

    Raises:
        ValueError: it has more.
    """
    read = file.read(most + 1)
    if len(read) > most:
        raise ValueError(f"it has more than {most} bytes")
    return read


def quoted(value: Any) -> str:
    """A value out of a file as Python spells it, short; of a container its kind alone."""
    return _shortened(value, repr)


def plain(value: Any) -> str:
    """A value out of a file as it is, short; of a container its kind alone."""
    return _shortened(value, str)


def _shortened(value: Any, spelled: Callable[[Any], str]) -> str:
    if not isinstance(value, str | int | float | None):
        return f"a {type(value).__name__}"
    text = spelled(value[:_LONGEST_SHOWN] if isinstance(value, str) else value)
    cut = isinstance(value, str) and len(value) > _LONGEST_SHOWN
    return f"{text}..." if cut else text


def named(values: Iterable[Any]) -> str:
    """The first few values out of a file, for a message."""
    shown = [plain(value) for value in islice(values, _MOST_SHOWN + 1)]
    return ", ".join([*shown[:_MOST_SHOWN], "..."] if len(shown) > _MOST_SHOWN else shown)


# Documents.

_STRING = re.compile(rb'"[^"\\]*+(?:\\.[^"\\]*+)*+"?', re.DOTALL)
_STEP = {**dict.fromkeys(b"[{", 1), **dict.fromkeys(b"]}", -1)}


def from_json(text: bytes) -> Any:
    """The value of a JSON document in UTF-8.

    Raises:
        ValueError: it is none, has too many values or is nested too deeply.
    """
    marks = _STRING.sub(b"", text)
    if sum(map(marks.count, (b",", b"[", b"]", b"{", b"}"))) > _MOST_MARKS:
        raise ValueError(f"its JSON has more than {_MOST_MARKS} commas and brackets")
    steps = (_STEP[mark] for mark in re.sub(rb"[^\[\]{}]", b"", marks))
    if max(accumulate(steps), default=0) > _DEEPEST:
        raise ValueError(f"its JSON is nested deeper than {_DEEPEST} levels")
    return json.loads(text.decode())


def from_yaml(text: bytes) -> Any:
    """The value of a YAML document of plain values.

    Raises:
        ValueError: it has too many values, where each alias counts as what it stands for, or is
            nested too deeply.
        yaml.YAMLError: it is no such document.
    """
    import yaml

    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # in C, where it was built
    _check_events(yaml.parse(text, Loader=loader))
    return yaml.load(text, Loader=loader)


def _check_events(events: Iterable[Any]) -> None:
    """Count the values of a YAML document before any is made."""
    import yaml

    sizes: dict[str, int] = {}  # of what has an anchor, by that
    waiting: list[tuple[str | None, int]] = []  # the containers that are open, and the count before
    count = 0
    for event in events:
        if isinstance(event, yaml.CollectionStartEvent):
            waiting.append((event.anchor, count))
            count += 1
        elif isinstance(event, yaml.CollectionEndEvent):
            anchor, before = waiting.pop()
            if anchor is not None:
                sizes[anchor] = count - before
        elif isinstance(event, yaml.AliasEvent):
            if event.anchor not in sizes:
                raise ValueError("its YAML has an alias of what it is in, or of nothing")
            count += sizes[event.anchor]
        elif isinstance(event, yaml.ScalarEvent):
            count += 1
            if event.anchor is not None:
                sizes[event.anchor] = 1
            if event.style in (None, "") and _LONG_NUMBER.fullmatch(event.value):
                raise ValueError(f"its YAML has a number of more than {_LONGEST_NUMBER} digits")
        if count > _MOST_VALUES:
            raise ValueError(f"its YAML has more than {_MOST_VALUES} values")
        if len(waiting) > _DEEPEST:
            raise ValueError(f"its YAML is nested deeper than {_DEEPEST} levels")


_LONG_NUMBER = re.compile(rf"[-+0-9a-fA-Fx_:.]{{{_LONGEST_NUMBER},}}")


# Arrays, as NumPy writes them.

Array = npt.NDArray[Any]
_CHUNK = 1 << 24  # bytes that are read together
_LONGEST_HEADER = 1 << 14  # bytes; NumPy itself takes 10,000
_LARGE = 1 << 24  # bytes of an array that isn't held in memory unpacked
_MOST_UNPACKED = 100  # times the bytes that it has compressed
_MOST_OF_DISK = 0.9


@dataclass(frozen=True)
class Header:
    """What a stored array says of itself.

    Attributes:
        shape: of the array.
        fortran: whether it is in Fortran's order.
        dtype: of its values.
        begin: where they begin, in bytes from the file's start.
    """

    shape: tuple[int, ...]
    fortran: bool
    dtype: np.dtype[Any]
    begin: int

    @property
    def size(self) -> int:
        """Bytes of its values."""
        return int(np.prod(self.shape, dtype=object)) * self.dtype.itemsize


def header(what: str, file: IO[bytes]) -> Header:
    """Read the header of a stored array, whose start the file is at.

    Args:
        what: the array is called.
        file: is at the values after it.

    Raises:
        InputError: it holds Python objects.
        ValueError: it is none.
    """
    start = io.BytesIO(file.read(_LONGEST_HEADER))
    first = np.lib.format.read_magic(start) == (1, 0)
    read = np.lib.format.read_array_header_1_0 if first else np.lib.format.read_array_header_2_0
    shape, fortran, dtype = read(start)
    if dtype.hasobject:
        raise InputError(
            f"{what} holds Python objects, which could run code when they are read; save it with a "
            "type of numbers or words, as in np.array(labels, dtype=str)"
        )
    if min(shape, default=0) < 0 or not dtype.itemsize:
        raise ValueError(f"it has the shape {shape} and values of {dtype.itemsize} bytes")
    return Header(shape, fortran, dtype, start.tell())


def npz(
    path: Path,
    wanted: Callable[[str], bool] = lambda name: True,
    unpacked_in: Callable[[], Path] | None = None,
) -> dict[str, Array]:
    """Arrays of an archive by their names; those that aren't compressed stay in the file.

    Args:
        path: of the archive.
        wanted: whether an array is, by its name.
        unpacked_in: makes a folder for large ones that are compressed, whose values are written
            there and stay there; None has all of them in memory. What few bytes become very many
            has to fit into the memory in any case.

    Raises:
        InputError: one holds Python objects, or they take too much memory, or more than the
            folder's disk has left.
        Exception: nearly anything, of a damaged file; a checksum that fails is an error.
    """
    with _archive(path) as archive:
        chosen = _members(archive, wanted)
        headers = _headers(path, archive, chosen)
        unpacked = {name for name in chosen if unpacked_in and _is_large(chosen[name])}
        packed = {n: h.size for n, h in headers.items() if not _is_mapped(chosen[n], h)}
        limits.check_memory(str(path), sum(packed[name] for name in packed.keys() - unpacked))
        found: dict[str, Array] = {}
        if unpacked and unpacked_in is not None:
            folder = unpacked_in()
            _check_disk(path, folder, sum(packed[name] for name in unpacked))
            for name in sorted(unpacked):
                found[name] = _unpacked(archive, chosen[name], folder / f"{len(found)}.npy")
        for name in chosen.keys() - unpacked:
            found[name] = _member(path, archive, chosen[name], headers[name])
        return {name: found[name] for name in chosen}


def npz_headers(path: Path, wanted: Callable[[str], bool]) -> dict[str, Header]:
    """What the arrays of an archive say of themselves; as `npz`, which reads them."""
    with _archive(path) as archive:
        return _headers(path, archive, _members(archive, wanted))


def _archive(path: Path) -> zipfile.ZipFile:
    check_regular(path)
    if not zipfile.is_zipfile(path):
        raise ValueError("not an npz archive")
    return zipfile.ZipFile(path)


def _members(archive: zipfile.ZipFile, wanted: Callable[[str], bool]) -> dict[str, zipfile.ZipInfo]:
    arrays = [info for info in archive.infolist() if info.filename.endswith(".npy")]
    members = {info.filename.removesuffix(".npy"): info for info in arrays}
    return {name: members[name] for name in members if wanted(name)}


def _headers(
    path: Path, archive: zipfile.ZipFile, members: dict[str, zipfile.ZipInfo]
) -> dict[str, Header]:
    headers = {}
    for name, info in members.items():
        with archive.open(info) as file:
            headers[name] = _header_of_member(f"{path}: {name}", info, file)
    return headers


def _header_of_member(what: str, info: zipfile.ZipInfo, file: IO[bytes]) -> Header:
    found = header(what, file)
    if found.begin + found.size != info.file_size:
        raise ValueError(
            f"{info.filename} has {info.file_size} bytes, and its header is of"
            f" {found.begin + found.size}"
        )
    return found


def _is_mapped(info: zipfile.ZipInfo, header: Header) -> bool:
    return info.compress_type == zipfile.ZIP_STORED and header.size > 0


def _is_large(info: zipfile.ZipInfo) -> bool:
    """Whether an array is to be unpacked into a file: no picture shrinks to a hundredth."""
    compressed = info.compress_type != zipfile.ZIP_STORED
    return compressed and _LARGE < info.file_size < _MOST_UNPACKED * info.compress_size


def _check_disk(path: Path, folder: Path, size: int) -> None:
    free = shutil.disk_usage(folder).free
    if size > _MOST_OF_DISK * free:
        raise InputError(
            f"{path} takes {limits.shown(size)} unpacked, and {temporary_folder()} has "
            f"{limits.shown(free)} left; TMPDIR names another folder for temporary files"
        )


def _unpacked(archive: zipfile.ZipFile, info: zipfile.ZipInfo, target: Path) -> Array:
    """An array that is compressed, mapped from a file of its own; its checksum is looked at."""
    with archive.open(info) as packed, target.open("xb") as file:
        shutil.copyfileobj(packed, file, _CHUNK)
    return npy(target)


def _member(path: Path, archive: zipfile.ZipFile, info: zipfile.ZipInfo, header: Header) -> Array:
    """An array of an archive, mapped if it isn't compressed."""
    with archive.open(info) as file:
        if not _is_mapped(info, header):
            array = np.lib.format.read_array(file, allow_pickle=False)
        while file.read(_CHUNK):  # to the end, where the checksum is looked at
            pass
    if not _is_mapped(info, header):
        return array
    with path.open("rb") as raw:
        raw.seek(info.header_offset)
        local = raw.read(30)  # of the member, which ends with the sizes of two fields after it
        fields = sum(int.from_bytes(local[at : at + 2], "little") for at in (26, 28))
    offset = info.header_offset + len(local) + fields + header.begin
    order: Literal["F", "C"] = "F" if header.fortran else "C"
    return np.memmap(path, header.dtype, "r", offset, header.shape, order)


def npy(path: Path) -> Array:
    """An array of a file, which stays in it.

    Raises:
        InputError: it holds Python objects.
        Exception: nearly anything, of a damaged file.
    """
    with opened(path) as file:
        header(str(path), file)
    return np.load(path, mmap_mode="r", allow_pickle=False)
