"""Images that are never in memory whole: the same ones, from files that stay as they were."""

import os
import shutil
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow
import pyarrow.parquet
import pytest
from PIL import Image

from resfool import bounded, places
from resfool.datasets import sets
from resfool.datasets.lying import InFile, Watch
from resfool.errors import InputError
from tests.conftest import ROOT

Array = npt.NDArray[Any]
IMAGES = np.random.default_rng(0).integers(0, 256, (23, 5, 7, 3), np.uint8)
LABELS = np.arange(23) % 3


def refusal(work: Callable[[], Any]) -> str:
    with pytest.raises(InputError) as caught:
        work()
    assert "\n" not in str(caught.value)
    return str(caught.value)


def npy(folder: Path, images: Array = IMAGES) -> str:
    folder.mkdir()
    np.save(folder / "x.npy", images)
    np.save(folder / "y.npy", LABELS)
    return f"npy:{folder}"


def in_fortrans_order(folder: Path) -> str:
    return npy(folder, np.asfortranarray(IMAGES))


def npz(folder: Path) -> str:
    folder.mkdir()
    np.savez(folder / "own.npz", x=IMAGES, y=LABELS)
    return f"npz:{folder / 'own.npz'}"


def channels_first(folder: Path) -> str:
    wide = np.repeat(IMAGES, 2, axis=2)  # so that the channels are known
    return npy(folder, wide.transpose(0, 3, 1, 2))


def compressed(folder: Path) -> str:
    folder.mkdir()
    np.savez_compressed(folder / "own.npz", allow_pickle=True, x=IMAGES, y=LABELS)
    return f"npz:{folder / 'own.npz'}"


def pictures(folder: Path) -> str:
    for number, (pixels, label) in enumerate(zip(IMAGES, LABELS, strict=True)):
        path = folder / f"{label}" / f"{number:02d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(path)
    return f"folder:{folder}"


def parquet(folder: Path) -> str:
    pictures(folder)
    cells = [file.read_bytes() for file in sorted(folder.rglob("*.png"), key=lambda p: p.name)]
    shutil.rmtree(folder)
    folder.mkdir()
    for part, rows in enumerate((slice(0, 12), slice(12, 23))):
        table = pyarrow.table({"image": cells[rows], "label": LABELS[rows]})
        path = folder / f"test-{part}.parquet"
        pyarrow.parquet.write_table(table, path, row_group_size=5)
    return f"parquet:{folder}"


KINDS: dict[str, Callable[[Path], str]] = {
    "npy": npy,
    "in Fortran's order": in_fortrans_order,
    "npz": npz,
    "compressed": compressed,
    "folder": pictures,
    "parquet": parquet,
}


@pytest.fixture(autouse=True)
def unpacked(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have small arrays unpacked into files, too."""
    monkeypatch.setattr(bounded, "_LARGE", 1000)


@pytest.mark.parametrize("kind", KINDS)
def test_blocks_are_the_images_in_order(tmp_path: Path, kind: str) -> None:
    data = sets.load(KINDS[kind](tmp_path / "data"))
    by_class = np.argsort(LABELS, kind="stable") if kind == "folder" else np.arange(23)
    expected = IMAGES[by_class].astype(np.float32) / 255
    for size in (1, 4, 23, 50):
        parts = list(data.test.blocks(size))
        assert [len(part) for part in parts][:-1] == [size] * ((23 - 1) // size)
        for part in parts:
            assert part.images.dtype == np.float32 and isinstance(part.stored, np.ndarray)
        np.testing.assert_array_equal(np.concatenate([p.images for p in parts]), expected)
        labels = np.concatenate([part.labels for part in parts])
        np.testing.assert_array_equal(labels, LABELS[by_class])
    assert list(data.train.blocks(5)) == []
    rows = np.array([20, 3, 3])
    few = data.test.chosen(np.arange(22, 0, -1)).chosen(rows)
    np.testing.assert_array_equal(
        np.concatenate([part.images for part in few.blocks(2)]), expected[22 - rows]
    )


def test_rows_are_named_as_those_of_an_array(tmp_path: Path) -> None:
    for make in (npy, in_fortrans_order, npz, compressed, channels_first):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # channels first are said
            stored = sets.load(make(tmp_path / make.__name__)).test.stored
        assert isinstance(stored, InFile)
        whole = np.repeat(IMAGES, 2, axis=2) if make is channels_first else IMAGES
        assert stored.shape == whole.shape and stored.dtype == whole.dtype
        places: list[Any] = [
            np.s_[3:9],
            np.s_[::-2],
            np.s_[5:5],
            4,
            -1,
            np.array([7, 8, 9, 2, 2, 22]),
            np.arange(0),
            LABELS == 1,
        ]
        for place in places:
            np.testing.assert_array_equal(stored[place], whole[place])
        with pytest.raises(IndexError):
            stored[np.array([23])]


def test_a_file_that_is_cut_while_it_is_read_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = sets.load(npy(tmp_path / "data"))
    monkeypatch.setattr(Watch, "check", lambda *_: None)  # it came too late
    os.truncate(tmp_path / "data" / "x.npy", 1000)
    assert len(data.test.take(np.arange(5))) == 5
    assert "x.npy has changed while" in refusal(lambda: data.test.take(np.arange(20)))


def test_the_digest_is_the_same_wherever_arrays_lie(tmp_path: Path) -> None:
    makers = (npy, in_fortrans_order, npz, compressed)
    digests = {sets.load(make(tmp_path / make.__name__)).digest for make in makers}
    assert len(digests) == 1


def files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


def written_again(path: Path) -> None:
    """The same bytes at another time."""
    status = path.stat()
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns + 1))


def cut(path: Path) -> None:
    status = path.stat()
    path.write_bytes(path.read_bytes()[:-1])
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


@pytest.mark.parametrize("kind", sorted(KINDS.keys() - {"compressed"}))
@pytest.mark.parametrize("change", [written_again, cut, Path.unlink])
def test_a_file_that_changes_under_way_is_named(
    tmp_path: Path, kind: str, change: Callable[[Path], None]
) -> None:
    data = sets.load(KINDS[kind](tmp_path / "data"))
    parts = data.test.blocks(4)
    next(parts)
    path = [file for file in files(tmp_path / "data") if file.name != "y.npy"][-1]
    change(path)
    said = refusal(lambda: list(parts))
    assert str(path) in said
    assert ("has changed while it was in use" in said) == (change is not Path.unlink)
    assert str(path) in refusal(lambda: data.digest)
    if kind in ("folder", "parquet"):  # others are left alone
        data.test.take(np.arange(5))


def test_what_is_unpacked_needs_its_archive_no_more_and_goes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    with places.cleared():
        data = sets.load(compressed(tmp_path / "data"))
        assert isinstance(data.test.stored, InFile)
        (tmp_path / "data" / "own.npz").unlink()
        np.testing.assert_array_equal(data.test.images, IMAGES / np.float32(255))
        (unpacked,) = tmp_path.glob("resfool-*/*.npy")
        assert unpacked.parent.stat().st_mode & 0o777 == 0o700
        with pytest.raises(InputError, match="has changed while"):
            written_again(unpacked)
            data.test.take(np.arange(1))
    assert not unpacked.parent.exists()


def test_an_archive_larger_than_the_disk_or_damaged_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = compressed(tmp_path / "data")
    with monkeypatch.context() as patch:
        usage = shutil.disk_usage(tmp_path)._replace(free=2000)
        patch.setattr(shutil, "disk_usage", lambda _: usage)
        assert "unpacked, and" in refusal(lambda: sets.load(name))
    path = tmp_path / "data" / "own.npz"
    content = bytearray(path.read_bytes())
    content[500:510] = bytes(10)
    path.write_bytes(content)
    assert str(path) in refusal(lambda: sets.load(name))


PEAK = """
import resource, sys
import numpy as np
from resfool.datasets import sets

def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024

def through(name):
    data = sets.load(name)
    shapes = [len(part.images) for part in data.test.blocks(256)]
    return sum(shapes), data.digest

through(sys.argv[1])  # what is imported stays
before = peak()
count, _ = through(sys.argv[2])
print(count, peak() - before)
"""


def test_many_images_take_the_memory_of_a_few_blocks(tmp_path: Path) -> None:
    few, many = tmp_path / "few", tmp_path / "many"
    for folder, count in ((few, 600), (many, 20_000)):
        folder.mkdir()
        random = np.random.default_rng(0)
        images = random.integers(0, 256, (count, 32, 32, 3), np.uint8)
        np.save(folder / "x.npy", images)
        np.save(folder / "y.npy", np.arange(count) % 10)
    words = [sys.executable, "-c", PEAK, f"npy:{few}", f"npy:{many}"]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=True)
    count, grown = map(int, done.stdout.split())
    assert count == 20_000
    # As bytes they are 61 MB, as float32 246 MB; a chunk of the digest's is 17 MB, of bytes too.
    assert grown < 45e6
