"""Few bytes that would become many, and files that are none: refused before they are."""

import functools
import gzip
import io
import json
import os
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest
from PIL import Image

from resfool import bounded, limits
from resfool.classifiers import files
from resfool.classifiers.interface import Interface
from resfool.datasets import sets
from resfool.errors import InputError

MB = 10**6


@pytest.fixture(autouse=True)
def few() -> Iterator[None]:
    with limits.in_force(limits.Bounds(memory=50 * MB)):
        yield


def refusal(work: Callable[[], Any]) -> str:
    with pytest.raises(InputError) as caught:
        work()
    assert len(str(caught.value)) < 700
    return str(caught.value)


# Documents


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        (b"[" * 10**6, "nested deeper than 200 levels"),
        (b'{"a":' * 201 + b"1" + b"}" * 201, "nested deeper than 200 levels"),
        (b"[" + b"{}," * 10**6 + b"{}]", "more than 2000000 commas and brackets"),
        ('["a"]'.encode("utf-16"), "codec can't decode"),
    ],
)
def test_json_is_bounded_before_it_is_read(text: bytes, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        bounded.from_json(text)


def test_json_within_bounds_is_what_it_says() -> None:
    # What is in strings doesn't count, wherever quotes and backslashes are.
    value = {"a\\": "[" * 10**6, '"': ["\\\\", '\\"[{', {"b": [1, None]}], "é": 0.5}
    assert bounded.from_json(json.dumps(value).encode()) == value
    deep: Any = 1
    for _ in range(200):
        deep = [deep]
    assert bounded.from_json(json.dumps(deep).encode()) == deep


NINE = "".join(f"  a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]\n" for n in range(1, 9))


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        (f"a:\n  a0: &a0 x\n{NINE}", "more than 20000 values"),
        ("a: &a\n  b: 1\nc:\n" + "  - <<: [*a, *a, *a]\n" * 5000, "more than 20000 values"),
        ("- " * 300 + "1", "nested deeper than 200 levels"),
        ("a: &a [*a]", "an alias of what it is in"),
        ("a: " + "1:" * 10**5 + "1", "a number of more than 1000 digits"),
        ("- 1\n" * 30_000, "more than 20000 values"),
    ],
)
def test_yaml_is_bounded_before_it_is_read(text: str, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        bounded.from_yaml(text.encode())


def test_yaml_within_bounds_is_what_it_says() -> None:
    text = b"a: &a [1, two]\nb: *a\nc: {<<: {d: null}, e: '" + b"1" * 5000 + b"'}\n"
    expected = {"a": [1, "two"], "b": [1, "two"], "c": {"d": None, "e": "1" * 5000}}
    assert bounded.from_yaml(text) == expected


def test_what_a_file_says_is_shown_short() -> None:
    bomb: Any = "x"
    for _ in range(50):
        bomb = [bomb] * 9
    assert bounded.quoted(bomb) == bounded.plain(bomb) == "a list"
    assert bounded.quoted("a\n") == r"'a\n'" and bounded.plain("b") == "b"
    assert bounded.quoted("x" * 10**6) == f"'{'x' * 60}'..."
    assert bounded.named(map(str, range(10**6))) == "0, 1, 2, 3, 4, 5, 6, 7, 8, 9, ..."


def test_an_mlmodel_of_aliases_is_refused(tmp_path: Path) -> None:
    (tmp_path / "MLmodel").write_text(f"flavors:\n  a0: &a0 x\n{NINE}")
    assert "more than 20000 values" in refusal(lambda: files.find_file(tmp_path))


# Arrays


def npy(shape: tuple[int, ...], descr: str, values: bytes = b"") -> bytes:
    buffer = io.BytesIO()
    header = {"descr": descr, "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_2_0(buffer, header)
    return buffer.getvalue() + values


def npz(path: Path, **members: bytes) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(f"{name}.npy", content)
    return path


FEW = {"x": npy((1, 2, 2), "|u1", b"abcd"), "y": npy((1,), "|u1", b"\0")}
HUGE = npy((6, 100, 10**5), "|u1", bytes(60 * MB))


@pytest.mark.parametrize(
    ("members", "sentence"),
    [
        ({"x": HUGE}, "takes 60 MB of memory, and memory_limit allows 50 MB"),
        ({"x": npy((10**12,), "<f8")}, "its header is of 8000000000"),
        ({"x": npy((-1, 4, 4), "|u1")}, r"the shape \(-1, 4, 4\)"),
        ({"y": npy((10**9,), "<U0")}, "values of 0 bytes"),
        ({"x": b"\x93NUMPY\x02\x00\xff\xff\xff\xff" + b" " * MB}, "EOF: reading array header"),
        ({"y": npy((1, 2 * MB), "|b1", b"\1" + bytes(2 * MB - 1))}, "are 2,000,000 classes"),
        ({"y": npy((1,), "<U2000", bytes(8000))}, "words of 8000 bytes; 4000 are allowed"),
        ({"class_names": npy((MB,), "|S1", bytes(MB))}, "class_names are 1,000,000 classes"),
    ],
)
def test_arrays_are_bounded_by_what_their_headers_say(
    tmp_path: Path, members: dict[str, bytes], sentence: str
) -> None:
    path = npz(tmp_path / "a.npz", **FEW | members)
    with pytest.raises(InputError, match=sentence):
        sets.load(f"npz:{path}")


def test_other_inputs_are_bounded_too(tmp_path: Path) -> None:
    path = npz(tmp_path / "a.npz", other=HUGE)
    assert "takes 60 MB" in refusal(lambda: Interface(inputs=f"npz:{path}").fixed)


def test_images_are_made_floats_within_bounds(tmp_path: Path) -> None:
    black = np.zeros((20, 1000, 1000), np.uint8)
    np.savez(tmp_path / "a.npz", x=black, y=np.arange(20) % 2)  # stay in the file
    data = sets.load(f"npz:{tmp_path / 'a.npz'}")
    assert data.test.take(np.arange(10)).images.nbytes == 40 * MB
    assert "20 images" in refusal(lambda: data.test.images)


# Pictures


def png(width: int, height: int) -> bytes:
    """A picture's header, with nothing behind it."""
    chunk = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    end = struct.pack(">I", zlib.crc32(chunk))
    return (
        b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + chunk + end + bytes(4) + b"IDAT" + bytes(4)
    )


def jpeg(scans: int) -> bytes:
    buffer = io.BytesIO()
    Image.new("L", (8, 8)).save(buffer, "JPEG", progressive=True)
    start, _, end = buffer.getvalue().partition(b"\xff\xda")
    return start + (b"\xff\xda" + end.removesuffix(b"\xff\xd9")) * scans + b"\xff\xd9"


PICTURES = {
    "large.png": (png(4000, 4000), "4000 x 4000 pixels, takes 192 MB of memory"),
    "larger.png": (png(40_000, 40_000), "DecompressionBombError"),
    "slow.jpg": (jpeg(201), "has 1206 scans"),
}


@pytest.mark.parametrize("name", PICTURES)
def test_pictures_are_bounded_by_what_their_headers_say(tmp_path: Path, name: str) -> None:
    content, sentence = PICTURES[name]
    (tmp_path / "cat").mkdir()
    (tmp_path / "cat" / name).write_bytes(content)
    assert sentence in refusal(lambda: sets.load(f"folder:{tmp_path}"))
    table = pa.table({"image": [content], "label": [0]})
    pyarrow.parquet.write_table(table, tmp_path / "p.parquet")
    assert sentence in refusal(lambda: sets.load(f"parquet:{tmp_path / 'p.parquet'}"))


@pytest.mark.parametrize(
    ("table", "sentence"),
    [
        ({"image": [bytes(MB)] * 60, "label": [0] * 60}, "its row group 0 takes"),
        ({"image": [b""] * 60, "label": ["x" * MB] * 60}, "its label takes"),
        ({"image": [b""] * MB, "label": [0] * MB}, "takes 64 MB of memory"),
    ],
)
def test_one_cell_in_many_rows_is_counted_in_each(
    tmp_path: Path, table: dict[str, Any], sentence: str
) -> None:
    path = tmp_path / "p.parquet"
    pyarrow.parquet.write_table(pa.table(table), path)  # that has it once, in a dictionary
    assert path.stat().st_size < 3 * MB
    assert sentence in refusal(lambda: sets.load(f"parquet:{path}"))


# Official files

PICKLES = {
    "a note of many": b"p1000000000\n0.",
    "text that is made bytes again and again": (
        b"c_codecs\nencode\n(V"
        + b"a" * 1000
        + b"\nVlatin1\ntp1\n0(l"
        + b"c_codecs\nencode\ng1\nRa" * 99
    )
    + b".",
    "a key of 2^60 parts": b"\x80\x02}N" + b"2\x86" * 60 + b"Ns.",
    "a set of sets": b"\x80\x04\x8f(N" + b"2\x86" * 60 + b"\x90.",
    "lists in lists": b"]" * 1_100_000 + b".",
}


@pytest.mark.parametrize("case", PICKLES)
def test_a_batch_takes_no_more_than_it_has(tmp_path: Path, case: str) -> None:
    for name in (*(f"data_batch_{n}" for n in range(1, 6)), "test_batch"):
        (tmp_path / name).write_bytes(PICKLES[case])
    sentence = refusal(lambda: sets.load("cifar10", data_dir=tmp_path))
    assert "cannot read" in sentence
    assert case.startswith("a note") or "so it was tampered with" in sentence


def test_headers_of_an_archive_take_no_more_than_it_has(tmp_path: Path) -> None:
    long = tarfile.TarInfo("cifar-10-batches-py/data_batch_1")
    long.pax_headers = {"comment": "x" * 10**6}
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        archive.addfile(long)
    path = tmp_path / "cifar-10-python.tar.gz"
    negative = bytearray(buffer.getvalue())
    negative[124:136] = b"-0000001000\0"
    for content, sentence in (
        (buffer.getvalue(), "has no data_batch_2"),
        (bytes(negative), "a member's size is negative"),
    ):
        path.write_bytes(gzip.compress(content, 1))
        assert sentence in refusal(lambda: sets.load("cifar10", data_dir=tmp_path))


# What is no file


def test_pipes_are_refused_and_block_nothing(tmp_path: Path) -> None:
    (tmp_path / "cat").mkdir()
    Image.new("L", (4, 4)).save(tmp_path / "cat" / "a.png")
    places = ("cat/b.png", "a.npz", "x_test.npy", "p.parquet", "m.keras", "MLmodel")
    for place in places:
        os.mkfifo(tmp_path / place)
    for name in ("folder:.", "npz:a.npz", "npy:.", "parquet:p.parquet", "parquet:."):
        kind, _, path = name.partition(":")
        assert refusal(functools.partial(sets.load, f"{kind}:{tmp_path / path}"))
    assert "is no file or folder" in refusal(lambda: files.find_file(tmp_path / "m.keras"))
    assert "it has no file MLmodel" in refusal(lambda: files.find_file(tmp_path))
    assert refusal(lambda: Interface(inputs=f"npz:{tmp_path / 'a.npz'}").fixed)


def test_folders_that_are_in_themselves_are_read_once(tmp_path: Path) -> None:
    (tmp_path / "cat").mkdir()
    Image.new("L", (4, 4)).save(tmp_path / "cat" / "a.png")
    for number in range(9):
        (tmp_path / "cat" / f"again{number}").symlink_to(tmp_path / "cat")
    assert len(sets.load(f"folder:{tmp_path}").test) == 1
