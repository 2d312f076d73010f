"""How many images a pass takes, by planted limits of memory and by what passes really need."""

import resource
from pathlib import Path
from typing import Any

import keras
import psutil
import pytest
import tensorflow as tf

from resfool import limits
from resfool.attacks import memory
from resfool.errors import InputError
from resfool.monitor import Monitor

layers = keras.layers
MIB = 2**20


class Listener(Monitor):
    """Keeps what it is told."""

    def __init__(self) -> None:
        self.said: list[str] = []
        self.warned: list[str] = []

    def say(self, text: str) -> None:
        self.said.append(text)

    def warn(self, text: str) -> None:
        self.warned.append(text)


@pytest.fixture(scope="module")
def model() -> keras.Model:
    """Three layers of 1 MiB for each image, whose gradients need what they gave."""
    return keras.Sequential(
        [
            keras.Input((64, 64, 1)),
            *(layers.Conv2D(64, 3, padding="same", activation="tanh") for _ in range(3)),
            layers.GlobalAveragePooling2D(),
            layers.Dense(3),
        ]
    )


def test_a_pass_needs_its_activations_and_little_more(model: keras.Model) -> None:
    one, many = (memory._of_gradient(model, size) for size in (1, 50))
    assert 3 * MIB < one < 9 * MIB
    assert 40 * one < many < 50.1 * one


def test_auto_halves_until_a_pass_fits(model: keras.Model, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = memory._of_gradient(model, 250)
    monkeypatch.setattr(memory, "_ENOUGH", 2 * whole)
    for share, count, expected in (
        (1.0, 1000, 250),
        (0.99, 1000, 125),
        (0.25, 1000, 62),
        (0.1, 20, 250),  # all of which fit
        (0.04, 20, 7),
        (0.005, 20, 1),
    ):
        monkeypatch.setattr(memory, "_free", lambda share=share: 2 * share * whole)
        listener = Listener()
        assert memory.images_per_pass("auto", model, count, listener) == expected
        assert len(listener.said) == (expected < 250) and not listener.warned
    monkeypatch.setattr(memory, "_free", lambda: 2 * 0.003 * whole)
    assert memory.images_per_pass("auto", model, 1000, listener) == 1
    assert "even one image" in listener.warned[0]
    assert "half of what is free" in listener.said[-1]


def test_auto_takes_no_more_than_helps_and_more_for_solvers(
    model: keras.Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, listener = memory._of_gradient(model, 250), Listener()
    monkeypatch.setattr(memory, "_free", lambda: 100 * whole)
    monkeypatch.setattr(memory, "_ENOUGH", 0.3 * whole)
    assert memory.images_per_pass("auto", model, 1000, listener) == 62
    assert "no faster" in listener.said[-1]
    assert memory.images_per_pass("auto", model, 1000, listener, solving=True) == 62
    monkeypatch.setattr(memory, "_ENOUGH", 0.001 * whole)
    assert memory.images_per_pass("auto", model, 1000, listener) == 1
    assert not listener.warned  # there is enough of it
    monkeypatch.setattr(memory, "_ENOUGH", whole)
    monkeypatch.setattr(memory, "_free", lambda: 2 * whole)
    assert memory.images_per_pass("auto", model, 1000, listener) == 250
    images = 32 * 4 * 250 * 64 * 64  # float32, for ten gradients
    monkeypatch.setattr(memory, "_free", lambda: 2 * (2 * whole + images))
    assert memory.images_per_pass("auto", model, 1000, listener, solving=True) == 250
    monkeypatch.setattr(memory, "_free", lambda: 1.98 * (2 * whole + images))
    assert memory.images_per_pass("auto", model, 1000, listener, solving=True) == 125


def test_there_are_no_more_workers_than_half_of_the_memory_holds(
    model: keras.Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    each = memory._PROCESS + 2 * memory._of_gradient(model, 10) + 32 * 4 * 10 * 64 * 64
    for times, cores, expected in ((3.5, 8, 3), (3.5, 2, 2), (0.1, 8, 1)):
        monkeypatch.setattr(limits, "free", lambda times=times: 2 * times * each)
        assert memory.workers_at_once(model, 10, cores) == expected


def test_a_number_is_taken_as_it_is_with_a_warning_where_it_will_hardly_do(
    model: keras.Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, listener = memory._of_gradient(model, 10), Listener()
    monkeypatch.setattr(memory, "_free", lambda: whole)
    assert memory.images_per_pass(10**6, model, 10, listener) == 10**6
    assert not listener.warned
    assert memory.images_per_pass(20, model, 100, listener) == 20
    assert "a pass of 20 images" in listener.warned[0] and not listener.said


def write_group(folder: Path, limit: str, used: int, spare: int, version: int) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    names = ("memory.max", "memory.current", "inactive_file")
    if version == 1:
        names = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
    (folder / names[0]).write_text(f"{limit}\n")
    (folder / names[1]).write_text(f"{used}\n")
    (folder / "memory.stat").write_text(f"anon 5\n{names[2]} {spare}\n")


@pytest.mark.parametrize(
    ("version", "line", "root"),
    [(2, "0::/outer/inner", ""), (1, "4:memory:/outer/inner", "memory")],
)
def test_control_groups_leave_what_their_tightest_limit_leaves(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, version: int, line: str, root: str
) -> None:
    own, groups = tmp_path / "cgroup", tmp_path / "groups"
    own.write_text(f"9:pids:/outer\n{line}\n")
    monkeypatch.setattr(limits, "_OWN_GROUPS", own)
    monkeypatch.setattr(limits, "_GROUPS", groups)
    assert not list(limits._left_by_groups())  # an outer group's, which can't be seen here
    inner, outer = groups / root / "outer" / "inner", groups / root / "outer"
    write_group(inner, "max" if version == 2 else str(2**63 - 4096), 100, 40, version)
    write_group(outer, "1000", 300, 50, version)
    assert min(limits._left_by_groups()) == 750
    write_group(groups / root, "600", 300, 0, version)  # as a container sees its own
    assert min(limits._left_by_groups()) == 300


def test_the_tightest_limit_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    own: Any = psutil.Process().memory_info().vms
    monkeypatch.setattr(resource, "getrlimit", lambda kind: (own + 200 * MIB, own + 900 * MIB))
    assert 180 * MIB < limits.free() < 220 * MIB
    monkeypatch.setattr(resource, "getrlimit", lambda kind: (1, 1))
    assert limits.free() == 0
    monkeypatch.setattr(resource, "getrlimit", lambda kind: (resource.RLIM_INFINITY,) * 2)
    assert 100 * MIB < limits.free() <= psutil.virtual_memory().total


@pytest.mark.parametrize(
    ("size", "advice"), [(9, "; give a smaller batch_size, such as 4"), (1, "")]
)
def test_memory_that_ends_is_told_in_one_sentence(size: int, advice: str) -> None:
    with pytest.raises(InputError) as caught, memory.enough_for(size):
        raise tf.errors.ResourceExhaustedError(None, None, "OOM when allocating tensor")
    what = "one image" if size == 1 else "9 images"
    assert str(caught.value) == f"a pass of {what} takes more memory than there is{advice}"


def test_an_operation_without_bits_of_its_own_is_told_in_one_sentence() -> None:
    said = "A deterministic GPU implementation of it is not currently available."
    with pytest.raises(InputError) as caught, memory.enough_for(1):
        raise tf.errors.UnimplementedError(None, None, f"Graph execution error:\n\nat node\n{said}")
    assert f"({said})" in str(caught.value) and "TF_DETERMINISTIC_OPS=0" in str(caught.value)
    with pytest.raises(tf.errors.UnimplementedError), memory.enough_for(1):
        raise tf.errors.UnimplementedError(None, None, "another operation")
