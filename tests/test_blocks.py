"""Arrays in blocks: whole or not there, the same however they came, checked as they are read."""

import errno
import json
import os
import pickle
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from resfool import blocks, limits
from resfool.blocks import ROWS, Column, Plan, Writer
from resfool.errors import InputError
from tests.conftest import ROOT

RANDOM = np.random.default_rng(0)
MATRIX = RANDOM.normal(size=(23, 6)).astype(np.float32)
FLIPPED = RANDOM.random(23) < 0.5
COLUMNS = {ROWS: Column("float32", (6,)), "flipped": Column("bool")}


def written(folder: Path, size: int = 5, order: Callable[[Any], Any] = list) -> Path:
    writer = Writer(folder, Plan(23, size, COLUMNS, {"of": "a test"}))
    for number in order(range(writer.plan.count)):
        span = writer.plan.span(number)
        writer.write(number, {ROWS: MATRIX[span], "flipped": FLIPPED[span]})
    writer.finish()
    return folder


def refusal(work: Callable[[], Any]) -> str:
    with pytest.raises(InputError) as caught:
        work()
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("size", [1, 5, 23, 100])
def test_what_is_written_comes_back_however_it_is_cut_and_looked_at(
    tmp_path: Path, size: int
) -> None:
    found = blocks.read(written(tmp_path / "matrix", size, reversed))
    rows = found[ROWS]
    assert found.plan.facts == {"of": "a test"} and set(found) == {ROWS, "flipped"}
    assert rows.shape == (23, 6) and rows.ndim == 2 and len(rows) == 23 and rows.size == 138
    assert rows.dtype == np.float32 and found["flipped"].dtype == bool
    np.testing.assert_array_equal(np.asarray(rows), MATRIX)
    np.testing.assert_array_equal(np.concatenate(list(rows.blocks())), MATRIX)
    np.testing.assert_array_equal(found["flipped"][3:17], FLIPPED[3:17])
    places: list[Any] = [
        np.s_[:],
        np.s_[4:6],
        np.s_[-3:, 2:4],
        np.s_[5:10, ::2],
        np.s_[:, 1:],
        np.s_[9:9],
        np.s_[9:3, 1:],
        np.s_[2:3, :0],
    ]
    for place in places:
        np.testing.assert_array_equal(rows[place], MATRIX[place])
        assert rows[place].dtype == np.float32
    with pytest.raises(ValueError, match="read-only"):
        rows.block(0)[0] = 1
    for odd in (3, np.arange(3), np.s_[::2]):
        with pytest.raises(TypeError, match="plain slice"):
            rows[odd]
    with pytest.raises(IndexError):
        rows.block(found.plan.count)
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(found))[ROWS][:], MATRIX)


def test_a_stranger_reads_it_by_the_line_in_the_pages(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    folder = written(Path("matrix"), 2)
    (folder / "rows-000003.npy.7.0123456789abcdef.part").write_text("half")
    page = (ROOT / "docs" / "blocks.md").read_text()
    line = next(line for line in page.splitlines() if "np.concatenate" in line)
    names: dict[str, Any] = {}
    exec(f"from pathlib import Path\nimport numpy as np\n{line}", names)
    np.testing.assert_array_equal(names["matrix"], MATRIX)


def test_what_is_there_stays_and_another_plan_is_refused(tmp_path: Path) -> None:
    plan = Plan(23, 5, COLUMNS, {"of": "a test"})
    writer = Writer(tmp_path, plan)
    writer.write(3, {ROWS: MATRIX[15:20], "flipped": FLIPPED[15:20]})
    again = Writer(tmp_path, Plan(23, 5, dict(COLUMNS), {"of": "a test"}))
    assert again.done() == {3}
    np.testing.assert_array_equal(again.arrays.block(3)[ROWS], MATRIX[15:20])
    assert f"block 0 of {tmp_path}" in refusal(lambda: again.arrays[ROWS].block(0))
    assert f"block 0 of {tmp_path} isn't there; 1 of 5" in refusal(lambda: blocks.read(tmp_path))
    assert f"block 0 of {tmp_path} isn't there" in refusal(writer.finish)
    for other in (
        Plan(23, 6, COLUMNS, {"of": "a test"}),
        Plan(23, 5, COLUMNS, {"of": "another"}),
        Plan(23, 5, {ROWS: COLUMNS[ROWS]}, {"of": "a test"}),
        Plan(24, 5, COLUMNS, {"of": "a test"}),
    ):
        with pytest.raises(InputError, match="holds blocks of something else"):
            Writer(tmp_path, other)


def test_arrays_that_do_not_fit_are_refused_before_anything_is_written(tmp_path: Path) -> None:
    writer = Writer(tmp_path, Plan(23, 5, COLUMNS))
    wrong: list[tuple[dict[str, Any], str]] = [
        ({ROWS: MATRIX[:5]}, "must have rows, flipped"),
        ({ROWS: MATRIX[:4], "flipped": FLIPPED[:5]}, "rows must be (5, 6)"),
        ({ROWS: MATRIX[:5], "flipped": MATRIX[:5, 0]}, "flipped must be (5,) of bool"),
        ({ROWS: MATRIX[:5].astype(complex), "flipped": FLIPPED[:5]}, "not (5, 6) of complex128"),
    ]
    for arrays, said in wrong:
        assert said in refusal(partial(writer.write, 0, arrays))
    assert [one.name for one in tmp_path.iterdir()] == ["index.json"]
    for rows, size, columns in [
        (0, 1, COLUMNS),
        (1, 0, COLUMNS),
        (1, 1, {}),
        (10**7, 1, COLUMNS),
        (1, 1, {"../rows": Column("float32")}),
        (1, 1, {"block": Column("float32")}),
        (1, 1, {ROWS: Column("object")}),
        (1, 1, {ROWS: Column("float32", (0,))}),
    ]:
        refusal(partial(Plan, rows, size, columns))


def test_a_full_disk_is_one_sentence_and_leaves_the_other_blocks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written(tmp_path)

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    writer = Writer(tmp_path, blocks.read_plan(tmp_path))
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        said = refusal(lambda: writer.write(1, {ROWS: MATRIX[5:10], "flipped": FLIPPED[5:10]}))
    assert said == f"the folder {tmp_path} can't be written: No space left on device"
    assert writer.done() == {0, 2, 3, 4} and not list(tmp_path.glob("*.part"))
    np.testing.assert_array_equal(writer.arrays[ROWS].block(2), MATRIX[10:15])


def changed(document: str, **changes: Any) -> Callable[[Path], None]:
    """A change of some entries of a JSON file."""

    def change(folder: Path) -> None:
        path = folder / document
        path.write_text(json.dumps(json.loads(path.read_text()) | changes))

    return change


def shard(content: Callable[[bytes], bytes]) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        path = folder / "rows-000002.npy"
        path.write_bytes(content(path.read_bytes()))

    return change


def copied(one: str, other: str) -> Callable[[Path], Any]:
    return lambda folder: (folder / other).write_bytes((folder / one).read_bytes())


def linked(folder: Path) -> None:
    (folder / "rows-000002.npy").rename(folder.parent / "elsewhere.npy")
    (folder / "rows-000002.npy").symlink_to(folder.parent / "elsewhere.npy")


def removed(name: str) -> Callable[[Path], None]:
    return lambda folder: (folder / name).unlink()


INDEX = {"dtype": "<f4", "shape": [23, 6]}
BLOCK = "block 2 of {}"
DAMAGE: dict[str, tuple[Callable[[Path], Any], str]] = {
    "a bit": (shard(lambda c: c[:-1] + bytes([c[-1] ^ 1])), "{}, rows-000002.npy, can't be used"),
    "cut": (shard(lambda c: c[:-1]), "{}, rows-000002.npy, can't be used: it isn't as large"),
    "empty": (shard(lambda c: b""), "{}, rows-000002.npy, can't be used"),
    "another type": (shard(lambda c: c.replace(b"<f4", b"<i4")), "{}, rows-000002.npy, can't be"),
    "objects": (shard(lambda c: c.replace(b"'<f4'", b"'|O' ")), "Python objects"),
    "another order": (shard(lambda c: c.replace(b"False", b"True ")), "{}, rows-000002.npy, can't"),
    "a link": (linked, "{}, rows-000002.npy, can't be used: it is a symbolic link"),
    "no shard": (removed("rows-000002.npy"), "{}, rows-000002.npy, isn't there"),
    "another block": (copied("rows-000001.npy", "rows-000002.npy"), "{}, rows-000002.npy, can't"),
    "no record": (removed("block-000002.json"), "{} isn't there"),
    "another record": (copied("block-000001.json", "block-000002.json"), "{} can't be used"),
    "a foreign record": (changed("block-000002.json", index="0" * 16), "it belongs to other ones"),
    "no sums": (changed("block-000002.json", sha256=[]), "{} can't be used: it is damaged"),
}
OUTER = "the array in blocks {}"
OF_INDEX: dict[str, tuple[Callable[[Path], Any], str]] = {
    "none": (removed("index.json"), "isn't there"),
    "a list": (lambda folder: (folder / "index.json").write_text("[]"), "has no names"),
    "deep": (lambda folder: (folder / "index.json").write_text("[" * 999), "damaged"),
    "version": (changed("index.json", version=2), "version 2"),
    "more": (changed("index.json", more=1), "doesn't belong there"),
    "no rows": (changed("index.json", rows=True), "tell its rows"),
    "words": (changed("index.json", columns={ROWS: INDEX | {"dtype": "<U9"}}), "what its arrays"),
    "shape": (changed("index.json", columns={ROWS: INDEX | {"shape": [22, 6]}}), "what its arrays"),
    "odd": (changed("index.json", columns={ROWS: INDEX | {"shape": [23, 0.5]}}), "its arrays are"),
    "facts": (changed("index.json", facts=3), "damaged"),
    "many": (changed("index.json", columns={ROWS: {"dtype": "<f4", "shape": [10**30]}}), "what"),
    "a path": (changed("index.json", columns={"../rows": INDEX}), "name of an array"),
}


@pytest.mark.parametrize(("change", "said"), DAMAGE.values(), ids=DAMAGE)
def test_a_block_that_is_missing_or_damaged_is_named(
    tmp_path: Path, change: Callable[[Path], Any], said: str
) -> None:
    folder = written(tmp_path / "matrix")
    seen = blocks.read(folder)[ROWS]
    assert seen[:].shape == (23, 6)
    time.sleep(0.02)  # so that files have other times
    change(folder)
    assert said.format(f"block 2 of {folder}") in refusal(lambda: blocks.read(folder)[ROWS][:])
    if "rows-" in said:
        assert said.format(f"block 2 of {folder}") in refusal(lambda: seen[:])
    np.testing.assert_array_equal(seen[:10], MATRIX[:10])


@pytest.mark.parametrize(("change", "said"), OF_INDEX.values(), ids=OF_INDEX)
def test_an_index_that_does_not_fit_is_refused(
    tmp_path: Path, change: Callable[[Path], Any], said: str
) -> None:
    folder = written(tmp_path / "matrix")
    change(folder)
    message = refusal(lambda: blocks.read(folder))
    assert said in message
    assert str(folder) in message or "../rows" in message


def test_more_than_the_memory_holds_is_refused_and_a_block_is_not(tmp_path: Path) -> None:
    found = blocks.read(written(tmp_path))[ROWS]
    with limits.in_force(limits.Bounds(memory=200)):
        assert "of memory" in refusal(lambda: found[:])
        assert found.block(1).shape == (5, 6)


@pytest.mark.slow
def test_sigkill_while_writing_leaves_whole_blocks(tmp_path: Path) -> None:
    script = (
        "import itertools, sys, numpy as np, pathlib\n"
        "from resfool.blocks import Column, Plan, Writer\n"
        "plan = Plan(400_000, 200_000, {'rows': Column('int64'), 'twice': Column('int64')})\n"
        f"writer = Writer(pathlib.Path({str(tmp_path)!r}), plan)\n"
        "for i in itertools.count():\n"
        "    rows = np.full(200_000, i)\n"
        "    writer.write(i % 2, {'rows': rows, 'twice': 2 * rows})\n"
    )
    for attempt in range(6):
        process = subprocess.Popen([sys.executable, "-c", script], cwd=ROOT)
        deadline = time.monotonic() + 60
        while not list(tmp_path.glob("block-*")) and time.monotonic() < deadline:
            time.sleep(0.01)
        time.sleep(0.3 + 0.0137 * attempt)
        process.send_signal(signal.SIGKILL)
        process.wait()
        found = blocks.Blocks(tmp_path, blocks.read_plan(tmp_path))
        assert found.done()
        for number in found.done():
            block = found.block(number)
            assert len(set(block["rows"].tolist())) == 1
            np.testing.assert_array_equal(block["twice"], 2 * block["rows"])
    writer = Writer(tmp_path, found.plan)
    for number in range(2):
        writer.write(number, {name: np.zeros(200_000, int) for name in found})
    writer.finish()
    left = {re.sub(r"\d", "", one.name) for one in tmp_path.iterdir()}
    assert left == {"index.json", "block-.json", "rows-.npy", "twice-.npy"}


def test_what_is_discarded_leaves_what_is_none_of_ours(tmp_path: Path) -> None:
    folder, link = written(tmp_path / "matrix"), tmp_path / "link"
    link.symlink_to(folder)
    blocks.discard(link)
    assert len(list(folder.iterdir())) > 10, "no link is followed"
    (folder / "rows-000001.npy.7.0123456789abcdef.part").touch()
    (folder / "theirs.txt").touch()
    (folder / "rows-000000.npy").unlink()
    (folder / "rows-000000.npy").symlink_to(tmp_path)
    blocks.discard(folder)
    assert {path.name for path in folder.iterdir()} == {"theirs.txt", "rows-000000.npy"}
    blocks.discard(written(tmp_path / "other"))
    blocks.discard(tmp_path / "other")
    assert not (tmp_path / "other").exists()
