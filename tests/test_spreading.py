"""Work in blocks: the same bits whoever does them, models that travel, faults in the middle."""

import functools
import os
import signal
import time
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf

from resfool import parallel
from resfool.attacks import minimal
from resfool.classifiers import files, inference, spreading, trusted
from resfool.classifiers.adapting import as_classifier
from resfool.classifiers.interface import Interface
from resfool.classifiers.spreading import Blocks, Sent, Workers
from resfool.errors import InputError, WorkError
from resfool.monitor import Monitor
from resfool.networks import architectures
from resfool.networks.shape import network
from resfool.universal import solving, target_class
from resfool.universal.options import UniversalParameters
from tests.processes import Process

SHAPE = (6, 6, 3)
layers = keras.layers


def images(count: int) -> np.ndarray:
    return np.random.default_rng(0).random((count, *SHAPE), np.float32)


@functools.cache
def convolutional() -> keras.Model:
    """A resnet so small that it takes no time."""
    shape = network("resnet", depth=5, width=(4,))
    return architectures.build(
        shape, image_shape=SHAPE, classes=4, mean=[0.5] * 3, std=[0.25] * 3, seed=1
    )


def crew(model: keras.Model, **options: Any) -> Workers:
    return Workers(functools.partial(parallel.map, **options), Sent.of(model))


# What a worker is given must be of a module that it has, and it hasn't the tests.
_named = minimal.solved_block


def solved(
    model: keras.Model, count: int, block: int, workers: Workers | None = None, **more: Any
) -> dict[str, np.ndarray]:
    options = {"solver": "closest", "batch_size": 4}
    blocks = Blocks((images(count),), block)
    found = spreading.in_blocks(model, _named, blocks, options, workers=workers, **more)
    return {n: column for n, column in spreading.joined(found).items() if n != "seconds"}


def check_same(one: Mapping[str, np.ndarray], other: Mapping[str, np.ndarray]) -> None:
    assert one.keys() == other.keys()
    for name in one:
        np.testing.assert_array_equal(one[name], other[name])


# Blocks.


@pytest.mark.parametrize(("count", "most"), [(10, 4), (1, 4), (4, 4), (9, 1), (11, 100)])
def test_blocks_hold_every_row_once_in_order_and_are_all_as_large(count: int, most: int) -> None:
    numbers, beside = np.arange(count), np.arange(count) * 2
    blocks = Blocks((numbers, beside), most)
    parts = [blocks[number] for number in range(len(blocks))]
    assert blocks.size <= most and len({len(one) for (one, _), _ in parts}) == 1
    assert [n for _, n in parts] == [blocks.count(number) for number in range(len(blocks))]
    for array, place in ((numbers, 0), (beside, 1)):
        whole = np.concatenate([arrays[place][:n] for arrays, n in parts])
        np.testing.assert_array_equal(whole, array)
    assert (
        sum(
            len(arrays[0])
            for arrays, _ in map(Blocks((numbers,), most, False).__getitem__, range(len(blocks)))
        )
        == count
    )


def test_no_more_rows_are_read_than_a_block_has() -> None:
    read: list[slice] = []

    def make(rows: slice) -> np.ndarray:
        read.append(rows)
        return images(20)[rows]

    blocks = Blocks((inference.LazyRows(20, make),), 5)
    options = {"solver": "closest", "batch_size": 5}
    kept: dict[int, Any] = {}
    found = spreading.in_blocks(
        linear(), _named, blocks, options, keep=kept.__setitem__, hold=False
    )
    assert found == [None] * 4 and list(kept) == [0, 1, 2, 3]
    assert all(rows.stop - rows.start == 5 for rows in read) and len(read) == 4


def linear() -> keras.Model:
    keras.utils.set_random_seed(2)
    return keras.Sequential([keras.Input(SHAPE), layers.Flatten(), layers.Dense(3)])


@pytest.mark.slow
def test_a_solve_has_the_same_bits_whoever_does_it() -> None:
    model = convolutional()
    here = solved(model, 22, 8)
    assert here["flipped"].all()
    told: list[int] = []
    for workers in (1, 2):
        told.clear()
        there = solved(model, 22, 8, crew(model, workers=workers), progress=told.append)
        check_same(here, there)
        assert sum(told) == 22


@pytest.mark.slow
def test_workers_have_the_threads_that_they_were_given() -> None:
    model = linear()
    items = Blocks((images(2),), 1)
    work = spreading._OfBlock(Sent.of(model), _threads, {})
    for cpus in (1, 2):
        found = parallel.map(work, items, workers=1, cpus=cpus)
        assert [int(one["threads"][0]) for one in found] == [cpus, cpus]


def _threads(model: Any, rows: np.ndarray, progress: Any) -> dict[str, np.ndarray]:
    count = tf.config.threading.get_intra_op_parallelism_threads()
    return {"threads": np.full(len(rows), count or int(os.environ["TF_NUM_INTRAOP_THREADS"]))}


def test_whether_workers_pay_is_the_networks_and_the_images_affair() -> None:
    model = convolutional()
    dense = layers.Dense(7, use_bias=False)
    matrix = keras.Sequential([keras.Input(SHAPE), layers.Flatten(), dense])
    assert spreading.multiplications(matrix) == 6 * 6 * 3 * 7
    convolution = layers.Conv2D(5, 3, padding="same", strides=2)
    assert (
        spreading.multiplications(
            keras.Sequential([keras.Input(SHAPE), convolution, layers.Flatten()])
        )
        == 3 * 3 * 3 * 3 * 3 * 5
    )
    few = int(spreading._LEAST_WORK / spreading.multiplications(model))
    assert not spreading.pays(model, few) and spreading.pays(model, few + 1)


# Models that travel.


def taken(model: keras.Model, **interface: Any) -> keras.Model:
    asked = Interface.of(interface)
    return as_classifier(model, image_shape=SHAPE, classes=None, interface=asked, name="it")


def whole_numbers() -> keras.Model:
    inputs = keras.Input(SHAPE, dtype="uint8")
    x = layers.Rescaling(1 / 255)(inputs)
    x = layers.Flatten()(x)
    return keras.Model(inputs, layers.Dense(3, activation="softmax")(x))


def two_inputs(folder: Path) -> keras.Model:
    image, other = keras.Input(SHAPE, name="image"), keras.Input((2,), name="other")
    x = layers.Concatenate()([layers.Flatten()(image), other])
    np.savez(folder / "other.npz", other=np.array([3.0, -1.0], np.float32))
    model = keras.Model([image, other], layers.Dense(3)(x))
    return taken(model, inputs=f"npz:{folder / 'other.npz'}")


def channels_first() -> keras.Model:
    return keras.Sequential([keras.Input((3, 6, 6)), layers.Flatten(), layers.Dense(3)])


def one_unit() -> keras.Model:
    parts = layers.Flatten(), layers.Dense(1, activation="sigmoid")
    return keras.Sequential([keras.Input(SHAPE), *parts])


def pooled() -> keras.Model:
    parts = layers.Conv2D(4, 3), layers.BatchNormalization(), layers.ReLU(), layers.Flatten()
    return keras.Sequential([keras.Input(SHAPE), *parts, layers.Dense(5, activation="softmax")])


KINDS: dict[str, Any] = {
    "ours": lambda folder: convolutional(),
    "range and order": lambda folder: taken(pooled(), preprocessing="caffe"),
    "whole numbers": lambda folder: taken(whole_numbers(), input_range="0,255"),
    "other inputs": two_inputs,
    "channels first": lambda folder: taken(channels_first()),
    "one unit": lambda folder: taken(one_unit()),
    "a target": lambda folder: target_class.reached(taken(pooled()), 2),
    "a target of ours": lambda folder: target_class.reached(convolutional(), 1),
}


@pytest.mark.parametrize("kind", KINDS)
def test_models_travel_with_what_makes_them_classifiers(kind: str, tmp_path: Path) -> None:
    keras.utils.set_random_seed(5)
    model = KINDS[kind](tmp_path)
    there = Sent.of(model).model
    assert there is not model
    x = images(4)
    np.testing.assert_array_equal(inference.logits(model, x), inference.logits(there, x))
    gradients = []
    for one in (model, there):
        with tf.GradientTape() as tape:
            tape.watch(moved := tf.constant(x))
            out = one(moved, training=False)
        gradients.append(tape.gradient(out, moved, output_gradients=out).numpy())
    np.testing.assert_array_equal(*gradients)


OWN = """
import keras

def half(x):
    return x / 2

def halved(x):
    return half(x)

@keras.saving.register_keras_serializable("mine")
class Twice(keras.layers.Layer):
    def call(self, x):
        return 4 * half(x)
"""


@pytest.mark.slow
def test_the_code_of_a_models_own_classes_travels_with_it(tmp_path: Path) -> None:
    code = tmp_path / "of_their_own.py"
    code.write_text(OWN)
    path = tmp_path / "theirs.keras"
    with trusted.at_hand([str(code)]) as own:
        parts = own["Twice"](), layers.Flatten(), layers.Dense(3, activation=own["halved"])
        keras.Sequential([keras.Input(SHAPE), *parts]).save(path)
    model = taken(files.load_trusted(path, modules=[str(code)]))
    check_same(solved(model, 6, 3), solved(model, 6, 3, crew(model, workers=1)))


def test_what_cannot_travel_is_refused_in_one_sentence(tmp_path: Path) -> None:
    model = linear()
    model.export(tmp_path / "exported", verbose=False)
    there = taken(files.load_trusted(tmp_path / "exported"))
    with pytest.raises(InputError, match=r"can't be sent to workers .*SavedModel"):
        Sent.of(there)


def test_who_solves_is_chosen_where_nobody_says(monkeypatch: pytest.MonkeyPatch) -> None:
    model, parts = linear(), Blocks((images(4),), 2)

    def chosen(chosen: bool = True, **asked: Any) -> Workers | None:
        work: Any = SimpleNamespace(map=parallel.map, batch_size=2, monitor=Monitor())
        work.asked = UniversalParameters(model="m", **asked)
        return solving._workers(work, model, parts, chosen)

    assert chosen() is not None and chosen(False) is None
    for asked in ({"workers": 2}, {"backend": "serial"}, {"cpus_per_worker": 2}):
        assert chosen(False, **asked) is not None
    monkeypatch.setattr(tf.config, "list_logical_devices", lambda kind: ["a GPU"])
    assert chosen() is None and chosen(workers=2) is not None
    monkeypatch.undo()

    def refuse(model: keras.Model) -> Sent:
        raise InputError("it can't travel")

    monkeypatch.setattr(Sent, "of", refuse)
    assert chosen() is None
    with pytest.raises(InputError, match="it can't travel"):
        chosen(workers=2)


# Faults.


def dying(folder: str, at: int) -> Any:
    """Solves blocks, and kills its own process once, in the middle of the work."""

    def function(model: Any, rows: np.ndarray, **options: Any) -> Mapping[str, np.ndarray]:
        found = minimal.solved_block(model, rows, **options)
        own = Path(folder) / f"{os.getpid()}-{time.monotonic_ns()}"
        own.touch()
        died = Path(folder) / "died"
        if len(list(Path(folder).iterdir())) > at and not died.exists():
            died.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return found

    return function


@pytest.mark.slow
def test_blocks_of_a_worker_that_is_killed_run_again(tmp_path: Path) -> None:
    model = convolutional()
    blocks = Blocks((images(24),), 4)
    options = {"solver": "closest", "batch_size": 4}
    kept: list[int] = []
    found = spreading.in_blocks(
        model,
        dying(str(tmp_path), 2),
        blocks,
        options,
        workers=crew(model, workers=2),
        keep=lambda number, columns: kept.append(number),
    )
    assert (tmp_path / "died").exists()
    assert sorted(kept) == list(range(len(blocks))), "each once"
    there = {n: c for n, c in spreading.joined(found).items() if n != "seconds"}
    check_same(solved(model, 24, 4), there)


def short_of_memory(folder: str, times: int) -> Any:
    """Has too little memory for the block of the brightest image, so many times."""

    def function(model: Any, rows: np.ndarray, progress: Any) -> Mapping[str, np.ndarray]:
        if rows.max() == 3:
            (Path(folder) / str(time.monotonic_ns())).touch()
            if len(list(Path(folder).iterdir())) <= times:
                raise tf.errors.ResourceExhaustedError(None, None, "OOM when allocating")
        return {"sums": rows.sum(axis=(1, 2, 3))}

    return function


@pytest.mark.slow
@pytest.mark.parametrize("times", [2, 3])
def test_a_block_that_memory_ended_for_is_tried_again_and_then_named(
    times: int, tmp_path: Path
) -> None:
    rows = np.ones((6, *SHAPE), np.float32)
    rows[3] = 3
    blocks, model = Blocks((rows,), 2), linear()

    def run() -> list[Any]:
        function = short_of_memory(str(tmp_path), times)
        return spreading.in_blocks(model, function, blocks, {}, workers=crew(model, workers=2))

    if times == 2:
        sums = spreading.joined(run())["sums"]
        np.testing.assert_array_equal(sums, rows.sum(axis=(1, 2, 3)))
    else:
        with pytest.raises(WorkError, match=r"block 2 of 3: its memory ended 3 times; .*OOM"):
            run()
    assert len(list(tmp_path.iterdir())) == 3


SPREAD = """
import functools, hashlib
from resfool import experiments, parallel

found = experiments.universal(
    None, None, functools.partial(parallel.map, workers=2), model="theirs.keras",
    dataset="digits", solver="SOLVER", workers=2, block_images=2, samples=24, test_samples=20,
    rank=1, ranks="1", draws=1, patterns="checkerboard",
)
print("digest", hashlib.sha256(found.matrix.rows[:, :].tobytes()).hexdigest())
"""


@pytest.mark.slow
def test_a_spread_solve_whose_driver_is_killed_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    keras.utils.set_random_seed(4)
    parts = layers.Flatten(), layers.Dense(16, activation="relu"), layers.Dense(10)
    keras.Sequential([keras.Input((8, 8, 1)), *parts]).save("theirs.keras")
    script = SPREAD.replace("SOLVER", "cobyla")

    def kept() -> int:
        return len(list(Path("checkpoints").glob("solve-*/block-*.json")))

    random, before, kills = np.random.default_rng(0), 0, 0
    while True:
        process = Process(f"import os; os.setsid()\n{script}")
        wanted, there = before + random.integers(2, 5), before
        while process.poll() is None and there < wanted:
            time.sleep(0.01)
            there = max(there, kept())
        if process.poll() is not None or wanted >= 12:
            break
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        assert kept() >= before, "what was kept stays"
        before, kills = kept(), kills + 1
    assert process.wait() == 0, process.printed()
    lines = process.printed()
    assert kills >= 2
    assert f"going on with an interrupted solve, of which {2 * before} images are done" in lines
    assert not list(Path("checkpoints").iterdir())
    whole = Process(script.replace("workers=2, block", "backend='serial', block"))
    assert whole.wait() == 0, whole.printed()
    digest = [line for line in lines.splitlines() if line.startswith("digest")]
    assert len(digest) == 1 and digest[0] in whole.printed()
