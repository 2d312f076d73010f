"""Stored arrays that are not what they should be are refused in one sentence."""

import io
import os
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from resfool import checkpoints
from resfool.arrayfiles import DamagedError, Wanted, check
from resfool.errors import InputError


def stored(array: np.ndarray) -> bytes:
    file = io.BytesIO()
    np.save(file, array, allow_pickle=True)
    return file.getvalue()


def declared(header: str, content: bytes = bytes(4)) -> bytes:
    """An array's file with a header of any words."""
    return b"\x93NUMPY\1\0" + len(header).to_bytes(2, "little") + header.encode() + content


def of_shape(shape: str, dtype: str = "<f4") -> bytes:
    return declared(f"{{'descr': '{dtype}', 'fortran_order': False, 'shape': {shape}}}")


FACTS = stored(np.frombuffer(b'{"step": 1}', np.uint8))


def write(path: Path, members: dict[str, bytes], **options: Any) -> None:
    with zipfile.ZipFile(path, "w", **options) as archive:
        for name, content in members.items():
            archive.writestr(name, content)


@pytest.mark.parametrize(
    ("array", "sentence"),
    [
        (stored(np.array([{}], object)), "holds values of type object, not numbers"),
        (stored(np.array(["a"])), "holds values of type str32"),
        (stored(np.array([1j])), "holds values of type complex128"),
        (stored(np.zeros(2, [("a", "f4")])), "holds values of type void32"),
        (stored(np.zeros(3))[:-1], "isn't as large as its shape says"),
        (of_shape("(100000000000,)"), "isn't as large as its shape says"),
        (of_shape("(" + "9" * 4000 + ",)"), "isn't as large as its shape says"),
        (of_shape("(-1, -1)"), "is damaged"),
        (of_shape("(" + "1, " * 80 + ")"), "is damaged"),
        (of_shape("(1,)", "<f0"), "is damaged"),
        (declared("(" * 5000), "is damaged"),
        (b"\x93NUMPY\7\0", "is damaged"),
        (b"", "is no array as NumPy saves one"),
    ],
)
def test_an_array_that_is_not_of_plain_numbers_is_refused(
    tmp_path: Path, array: bytes, sentence: str
) -> None:
    path = tmp_path / "checkpoint.npz"
    write(path, {"facts.npy": FACTS, "a.npy": array})
    with pytest.raises(InputError) as caught:
        checkpoints.load(path)
    assert str(path) in str(caught.value) and sentence in str(caught.value)
    assert "pickle" not in str(caught.value), "NumPy's advice is for others"


@pytest.mark.parametrize(
    ("facts", "sentence"),
    [
        (b"[]", "facts have no names"),
        (b"[" * 100_000, "is damaged"),
        (b'{"a": ' + b"9" * 6000 + b"}", "is damaged"),
        (b"\xff\xfe", "is damaged"),
    ],
)
def test_facts_that_are_none_are_refused(tmp_path: Path, facts: bytes, sentence: str) -> None:
    path = tmp_path / "checkpoint.npz"
    write(path, {"facts.npy": stored(np.frombuffer(facts, np.uint8))})
    with pytest.raises(InputError, match=sentence):
        checkpoints.load(path)


def test_an_archive_that_is_none_of_ours_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "checkpoint.npz"

    def refusal() -> str:
        with pytest.raises(InputError) as caught:
            checkpoints.load(path)
        return str(caught.value)

    write(path, {"facts.npy": FACTS, "a.npy": bytes(10**7)}, compression=zipfile.ZIP_DEFLATED)
    assert "it is compressed" in refusal(), "of a thousandth of its size"
    write(path, {"facts.npy": FACTS, "a.npy": FACTS, "a": FACTS})
    assert "an array is in it twice" in refusal()
    write(path, {"a.npy": FACTS})
    assert "it has no facts" in refusal()
    os.truncate(path, 10**13)  # of which a disk holds nothing
    assert "the memory doesn't hold it" in refusal()
    path.unlink()
    os.mkfifo(path)  # nobody will ever write to it
    assert "is no plain file" in refusal()


def test_a_link_is_followed_where_a_user_gave_it_alone(tmp_path: Path) -> None:
    path = tmp_path / "checkpoint.npz"
    write(tmp_path / "elsewhere.npz", {"facts.npy": FACTS})
    path.symlink_to(tmp_path / "elsewhere.npz")
    with pytest.raises(InputError, match="is a symbolic link, which isn't followed"):
        checkpoints.load(path)
    assert checkpoints.load(path, f"matrix={path}")[1] == {"step": 1}


def test_arrays_come_back_in_this_machines_numbers(tmp_path: Path) -> None:
    path = tmp_path / "checkpoint.npz"
    array = np.arange(6, dtype=">f4").reshape(2, 3, order="F")
    write(path, {"facts.npy": FACTS, "a.npy": stored(array)})
    found = checkpoints.load(path)[0]["a"]
    np.testing.assert_array_equal(found, array)
    assert found.dtype == np.float32 and found.dtype.isnative


WANTED = {"rows": Wanted("f", ("M", 2)), "images": Wanted("iu", ("M",))}
RIGHT: dict[str, np.ndarray] = {"rows": np.zeros((3, 2)), "images": np.arange(3)}


@pytest.mark.parametrize(
    ("arrays", "sentence"),
    [
        ({"rows": RIGHT["rows"]}, "it has no images"),
        (RIGHT | {"more": np.zeros(1)}, "it has 1 arrays besides rows, images"),
        (RIGHT | {"rows": np.zeros((3, 2), int)}, "its rows are int64, not floats"),
        (RIGHT | {"images": np.zeros(3)}, "its images are float64, not whole numbers"),
        (RIGHT | {"rows": np.zeros((3, 4))}, r"have the shape \(3, 4\), not \(M, 2\)"),
        (RIGHT | {"rows": np.zeros(6)}, r"have the shape \(6,\), not \(M, 2\)"),
        (RIGHT | {"images": np.arange(4)}, r"have the shape \(4,\), not \(3\)"),
        (RIGHT | {"rows": np.full((3, 2), np.nan)}, "rows have values that are not finite"),
    ],
)
def test_other_arrays_than_those_that_are_wanted_are_refused(
    arrays: dict[str, np.ndarray], sentence: str
) -> None:
    check(RIGHT, WANTED)
    with pytest.raises(DamagedError, match=sentence):
        check(arrays, WANTED)
