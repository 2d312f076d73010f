"""Arrays in NumPy's files, which anybody may have made: read as what they must be, or refused."""

import contextlib
import errno
import io
import math
import os
import stat
import warnings
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np

from resfool import limits
from resfool.errors import InputError

_KINDS = {"b": "truth values", "f": "floats", "i": "whole numbers", "u": "whole numbers"}

ABSURD = 1e15  # that no figure of ours comes near to, in pixels or in seconds
_MAGIC = np.lib.format.MAGIC_PREFIX


class DamagedError(ValueError):
    """What is wrong with something stored; the message lacks its subject, as pydantic's do."""


@dataclass(frozen=True)
class Wanted:
    """What a stored array must be.

    Attributes:
        kinds: kinds of NumPy's types that will do, such as "iu".
        shape: its lengths; a letter stands for one that all arrays with this letter share.
        finite: whether it may hold neither infinities nor what is not a number.
        most: the largest size that its finite values may have.
    """

    kinds: str
    shape: tuple[int | str, ...]
    finite: bool = True
    most: float = math.inf


@contextlib.contextmanager
def using(what: str) -> Iterator[None]:
    """Turn whatever something stored raises where it is read or used into one sentence.

    Args:
        what: it is, for the message: the file or what a user called it.

    Raises:
        InputError: what was done inside failed; an InputError of its own is passed on.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # NumPy's on what old or odd headers might mean
            yield
    except InputError:
        raise
    except DamagedError as error:
        raise InputError(f"{what} can't be used: {error}") from error
    except FileNotFoundError as error:
        raise InputError(f"{what} isn't there") from error
    except MemoryError as error:
        raise InputError(f"{what} can't be used: the memory doesn't hold it") from error
    except Exception as error:
        # What NumPy advises then is for its own callers; places that an archive leads to, out of
        # the file, aren't allowed by the system.
        if isinstance(error, OSError) and error.errno not in (None, errno.EINVAL):
            raise InputError(f"{what} can't be read: {error.strerror}") from error
        raise InputError(f"{what} can't be used: it is damaged") from error


def open_plain(path: Path, flags: int, mode: str = "rb", *, follow: bool = False) -> IO[Any]:
    """Open a file by flags of the system, if it is a plain one: no pipe, no device.

    Args:
        path: of the file.
        flags: as `os.open` takes them.
        mode: of the file object.
        follow: symbolic links too, which may lead to what isn't ours.

    Raises:
        DamagedError: it is something else.
        OSError: it can't be opened.
    """
    flags |= getattr(os, "O_BINARY", 0) | getattr(os, "O_NONBLOCK", 0)
    flags |= 0 if follow else getattr(os, "O_NOFOLLOW", 0)
    try:
        descriptor = os.open(path, flags, 0o666)
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise DamagedError("it is a symbolic link, which isn't followed") from error
        raise
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise DamagedError("it is no plain file")
    return os.fdopen(descriptor, mode)


def read_npz(file: IO[bytes]) -> dict[str, np.ndarray]:
    """All arrays of an archive as `np.savez` writes it, not compressed; they can't be written to.

    Raises:
        DamagedError: it isn't one, or not of plain numbers.
        Exception: nearly anything, if it is damaged.
    """
    size = _size(file)
    with zipfile.ZipFile(file) as archive:
        members = archive.infolist()
        names = [member.filename.removesuffix(".npy") for member in members]
        if len(set(names)) < len(names):
            raise DamagedError("an array is in it twice")
        if any(member.compress_type != zipfile.ZIP_STORED for member in members):
            raise DamagedError("it is compressed, which resfool's files are not")
        if sum(member.file_size for member in members) > size:
            raise DamagedError("its arrays should be larger than it is")
        contents = map(archive.read, members)
        return {name: _array(content) for name, content in zip(names, contents, strict=True)}


def read_npy(file: IO[bytes]) -> np.ndarray:
    """The array of a `.npy` file; it can't be written to.

    Raises:
        DamagedError: it isn't one, or not of plain numbers.
        Exception: nearly anything, if it is damaged.
    """
    _size(file)
    return _array(file.read())


def _size(file: IO[bytes]) -> int:
    """A file's bytes, which the memory must hold: a file with holes takes no room on a disk."""
    size = os.fstat(file.fileno()).st_size
    if size > limits.memory():
        raise MemoryError
    return size


def _array(content: bytes) -> np.ndarray:
    if not content.startswith(_MAGIC):
        raise DamagedError("it is no array as NumPy saves one")
    file = io.BytesIO(content)
    version = np.lib.format.read_magic(file)
    read = {
        (1, 0): np.lib.format.read_array_header_1_0,
        (2, 0): np.lib.format.read_array_header_2_0,
    }[version]
    shape, fortran, dtype = read(file)
    if dtype.kind not in _KINDS:
        raise DamagedError(f"it holds values of type {dtype.name}, not numbers")
    if math.prod(shape) * dtype.itemsize != len(content) - file.tell():
        raise DamagedError("an array isn't as large as its shape says")
    order: Any = "F" if fortran else "C"
    array: np.ndarray = np.ndarray(shape, dtype, content, file.tell(), order=order)
    return array.astype(dtype.newbyteorder("="), copy=False)


def check(arrays: Mapping[str, np.ndarray], wanted: Mapping[str, Wanted]) -> None:
    """Refuse stored arrays that are not those that are wanted.

    Raises:
        DamagedError: one is missing, of another type or shape or not finite, or there are more.
    """
    lengths: dict[int | str, int] = {}
    for name, one in wanted.items():
        if name not in arrays:
            raise DamagedError(f"it has no {name}")
        array = arrays[name]
        if array.dtype.kind not in one.kinds:
            raise DamagedError(f"its {name} are {array.dtype.name}, not {_KINDS[one.kinds[0]]}")
        shape = tuple(lengths.get(length, length) for length in one.shape)
        pairs = zip(array.shape, shape, strict=False)
        if len(shape) != array.ndim or any(isinstance(b, int) and a != b for a, b in pairs):
            raise DamagedError(f"its {name} have the shape {array.shape}, not {_told(shape)}")
        lengths |= dict(zip(one.shape, array.shape, strict=True))
        if one.finite and not np.isfinite(array).all():
            raise DamagedError(f"its {name} have values that are not finite")
        if array.dtype.kind == "f" and (np.abs(array[np.isfinite(array)]) > one.most).any():
            raise DamagedError(f"its {name} have values beyond {one.most:g}")
    if more := len(arrays.keys() - wanted.keys()):
        raise DamagedError(f"it has {more} arrays besides {', '.join(wanted)}")


def _told(shape: tuple[int | str, ...]) -> str:
    return f"({', '.join(map(str, shape))})"
