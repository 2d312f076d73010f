"""A checkpoint is whole or it isn't there."""

import errno
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from resfool import checkpoints
from resfool.errors import InputError
from tests.conftest import ROOT


def test_what_is_saved_comes_back(tmp_path: Path) -> None:
    path = tmp_path / "new" / "checkpoint.npz"
    arrays: dict[str, np.ndarray] = {"a": np.ones((2, 3), np.float32), "b": np.array(7, np.int64)}
    facts = {"step": 3, "history": [{"step": 1, "loss": 0.1}]}
    checkpoints.save(path, arrays, facts)
    loaded, loaded_facts = checkpoints.load(path)
    assert loaded_facts == facts
    assert loaded.keys() == arrays.keys()
    for name, array in arrays.items():
        assert loaded[name].dtype == array.dtype
        np.testing.assert_array_equal(loaded[name], array)
    assert [p.name for p in path.parent.iterdir()] == ["checkpoint.npz"]


@pytest.mark.slow
def test_sigkill_while_saving_leaves_a_whole_checkpoint(tmp_path: Path) -> None:
    path = tmp_path / "checkpoint.npz"
    script = (
        "import itertools, sys, numpy as np, pathlib\n"
        "from resfool import checkpoints\n"
        "for i in itertools.count():\n"
        "    arrays = {str(k): np.full(200_000, i) for k in range(4)}\n"
        f"    checkpoints.save(pathlib.Path({str(path)!r}), arrays, {{'step': i}})\n"
    )
    for attempt in range(8):
        process = subprocess.Popen([sys.executable, "-c", script], cwd=ROOT)
        deadline = time.monotonic() + 60
        while not path.exists() and time.monotonic() < deadline:
            time.sleep(0.01)
        time.sleep(0.3 + 0.0137 * attempt)
        process.send_signal(signal.SIGKILL)
        process.wait()
        arrays, facts = checkpoints.load(path)
        for array in arrays.values():
            np.testing.assert_array_equal(array, np.full(200_000, facts["step"]))
        checkpoints.discard(path)
        assert not list(tmp_path.iterdir()), "what was half written is left"


@pytest.mark.parametrize("kept", [0.0, 0.5, 0.99])
def test_a_truncated_file_is_refused(tmp_path: Path, kept: float) -> None:
    path = tmp_path / "checkpoint.npz"
    checkpoints.save(path, {"a": np.zeros(1000)}, {"step": 1})
    content = path.read_bytes()
    path.write_bytes(content[: int(kept * len(content))])
    with pytest.raises(InputError, match="can't be used: it is damaged"):
        checkpoints.load(path)


def test_a_missing_file_is_said_to_be_missing(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"checkpoint\.npz isn't there"):
        checkpoints.load(tmp_path / "checkpoint.npz")


def test_a_checkpoint_is_held_by_one_at_a_time(tmp_path: Path) -> None:
    path = tmp_path / "checkpoint.npz"
    lock = checkpoints.hold(path)
    with pytest.raises(InputError, match="another process"):
        checkpoints.hold(path)
    lock.close()
    checkpoints.hold(path).close()


def test_a_file_system_without_locks_will_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_locks(*_: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr("fcntl.flock", no_locks)
    checkpoints.hold(tmp_path / "checkpoint.npz").close()


@pytest.mark.parametrize("run_id", ["", "..", "a/b", "/etc", "a\nb", "a" * 251, ".hidden"])
def test_what_is_no_runs_id_names_no_place(tmp_path: Path, run_id: str) -> None:
    with pytest.raises(InputError, match="is no id of a run"):
        checkpoints.place(tmp_path, run_id)


def test_no_link_in_place_of_a_checkpoint_is_followed(tmp_path: Path) -> None:
    theirs, kept = tmp_path / "theirs", tmp_path / "checkpoints"
    theirs.mkdir()
    kept.mkdir()
    precious = theirs / "checkpoint.lock"
    precious.write_text("precious")
    (kept / "run1").symlink_to(theirs)
    with pytest.raises(InputError, match="run1 is a symbolic link"):
        checkpoints.place(kept, "run1")
    checkpoints.remove(kept / "run1" / "checkpoint.npz")

    path = checkpoints.place(kept, "run2")
    path.parent.mkdir()
    for name in ("checkpoint.lock", "checkpoint.npz", "checkpoint.npz.7.part"):
        (path.parent / name).symlink_to(precious)
    with pytest.raises(InputError, match="lock can't be used: it is a symbolic link"):
        checkpoints.hold(path)
    checkpoints.save(path, {}, {})
    assert not path.is_symlink() and checkpoints.load(path) == ({}, {})
    checkpoints.remove(path)
    left = {one.name for one in path.parent.iterdir()}
    assert left == {"checkpoint.lock", "checkpoint.npz.7.part"}, "which are not ours"
    assert precious.read_text() == "precious"


def test_what_is_called_like_a_lock_is_not_emptied(tmp_path: Path) -> None:
    (tmp_path / "checkpoint.lock").write_text("precious")
    checkpoints.hold(tmp_path / "checkpoint.npz").close()
    assert (tmp_path / "checkpoint.lock").read_text() == "precious"


def test_only_what_is_left_of_a_checkpoint_is_deleted(tmp_path: Path) -> None:
    path = tmp_path / "run1" / "checkpoint.npz"
    checkpoints.save(path, {}, {})
    for name in (".7.part", ".7.0123456789abcdef.part", ".mine.part", ".7.part.txt"):
        path.with_name(path.name + name).write_text("half")
    checkpoints.remove(path)
    left = {file.name for file in path.parent.iterdir()}
    assert left == {"checkpoint.npz.mine.part", "checkpoint.npz.7.part.txt"}
