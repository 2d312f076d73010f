"""Data sets: planted arrays come back, subsets are exact, hostile or damaged files are refused."""

import builtins
import functools
import gzip
import hashlib
import http.server
import io
import os
import pickle
import struct
import subprocess
import sys
import tarfile
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from resfool.datasets import official as official_files
from resfool.datasets import sets
from resfool.datasets.sets import DATASETS, Dataset, Split, check_name, load
from resfool.errors import InputError, unknown

Array = npt.NDArray[Any]
# Those that need no file of the user's: their images' shape and the number of classes.
EMBEDDED = {"mnist5k": ((28, 28, 1), 10), "digits": ((8, 8, 1), 10)}
OFFICIAL = {"cifar10", "cifar100", "mnist", "fashion_mnist"}
BATCHES = [*(f"data_batch_{number}" for number in range(1, 6)), "test_batch"]


@pytest.fixture(autouse=True)
def keras_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Keep every test away from the machine's own cache and from the network."""
    monkeypatch.setenv("KERAS_HOME", str(tmp_path / "keras"))
    monkeypatch.setenv("no_proxy", "*")
    for name in ("_CIFAR10", "_CIFAR100", "_MNIST"):
        monkeypatch.setattr(official_files, name, nowhere(getattr(official_files, name)))
    monkeypatch.setattr(official_files, "_FASHION", [*map(nowhere, official_files._FASHION)])
    return tmp_path / "keras"


def nowhere(official: official_files.Official) -> official_files.Official:
    """The same at an address where nobody answers."""
    return replace(official, url=f"http://127.0.0.1:9/{official.url.rsplit('/', 1)[-1]}")


def refusal(*args: Any, **kwargs: Any) -> str:
    """The message with which `load` refuses, which must be one line."""
    with pytest.raises(InputError) as caught:
        load(*args, **kwargs)
    message = str(caught.value)
    assert "\n" not in message
    return message


# Small files in the official layouts.


def python2_pickle(record: dict[bytes, Any]) -> bytes:
    """A batch in the bytes that Python 2 wrote: protocol 2, byte strings as BINSTRING."""

    def emit(value: Any) -> bytes:
        if isinstance(value, bytes):
            return b"T" + struct.pack("<i", len(value)) + value
        if isinstance(value, int):
            return b"J" + struct.pack("<i", value)
        if isinstance(value, list):
            return b"](" + b"".join(map(emit, value)) + b"e"
        dtype = b"cnumpy\ndtype\n" + emit(b"u1") + emit(0) + emit(1) + b"\x87R"
        dtype += b"(" + emit(3) + emit(b"|") + b"NNN" + emit(-1) + emit(-1) + emit(0) + b"tb"
        maker = b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\n"
        maker += emit(0) + b"\x85" + emit(b"b") + b"\x87R"
        shape = emit(value.shape[0]) + emit(value.shape[1]) + b"\x86"
        return maker + b"(" + emit(1) + shape + dtype + b"\x89" + emit(value.tobytes()) + b"tb"

    items = b"".join(emit(key) + emit(value) for key, value in record.items())
    return b"\x80\x02}(" + items + b"u."


def python3_pickle(record: dict[bytes, Any]) -> bytes:
    return pickle.dumps(record, protocol=2)


def fortran_pickle(record: dict[bytes, Any]) -> bytes:
    return pickle.dumps({**record, b"data": np.asfortranarray(record[b"data"])}, protocol=2)


Writer = Callable[[dict[bytes, Any]], bytes]


def write_batches(folder: Path, writer: Writer = python2_pickle, each: int = 20) -> list[Array]:
    """Write six batches of random images below `folder`; the images as NHWC, batch by batch."""
    target = folder / "cifar-10-batches-py"
    target.mkdir(parents=True)
    planted = []
    for number, name in enumerate(BATCHES):
        images = np.random.default_rng(number).integers(0, 256, (each, 32, 32, 3), np.uint8)
        rows = np.ascontiguousarray(images.transpose(0, 3, 1, 2)).reshape(each, 3072)
        labels = [index % 10 for index in range(each)]
        record = {b"batch_label": name.encode(), b"labels": labels, b"data": rows}
        (target / name).write_bytes(writer(record))
        planted.append(images)
    return planted


def write_cifar100(folder: Path, each: int = 200) -> list[Array]:
    """Write both batches of random images; the images as NHWC."""
    target = folder / "cifar-100-python"
    target.mkdir()
    planted = []
    for number, name in enumerate(("train", "test")):
        images = np.random.default_rng(number).integers(0, 256, (each, 32, 32, 3), np.uint8)
        labels = [index % 100 for index in range(each)]
        record = {
            b"fine_labels": labels,
            b"coarse_labels": [0] * each,
            b"data": np.ascontiguousarray(images.transpose(0, 3, 1, 2)).reshape(each, 3072),
        }
        (target / name).write_bytes(python2_pickle(record))
        planted.append(images)
    return planted


def write_idx(path: Path, array: Array) -> None:
    """Write bytes in MNIST's own format."""
    path.parent.mkdir(exist_ok=True)
    head = struct.pack(f">{1 + array.ndim}i", 0x800 + array.ndim, *array.shape)
    path.write_bytes(gzip.compress(head + array.tobytes(), 1))


def write_fashion(folder: Path) -> dict[str, Array]:
    """Write 40 training and 20 test images."""
    planted = {}
    for part, count in (("train", 40), ("t10k", 20)):
        images = np.random.default_rng(count).integers(0, 256, (count, 28, 28), np.uint8)
        write_idx(folder / "fashion-mnist" / f"{part}-images-idx3-ubyte.gz", images)
        labels = np.arange(count, dtype=np.uint8) % 10
        write_idx(folder / "fashion-mnist" / f"{part}-labels-idx1-ubyte.gz", labels)
        planted[part] = images
    return planted


def write_archive(folder: Path, path: Path) -> None:
    with tarfile.open(path, "w:gz") as archive:
        archive.add(folder / "cifar-10-batches-py", "cifar-10-batches-py")


def write_mnist(path: Path, **changes: Array) -> dict[str, Array]:
    rng = np.random.default_rng(0)
    arrays = {
        "x_train": rng.integers(0, 256, (40, 28, 28), np.uint8),
        "y_train": np.arange(40, dtype=np.uint8) % 10,
        "x_test": rng.integers(0, 256, (20, 28, 28), np.uint8),
        "y_test": np.arange(20, dtype=np.uint8) % 10,
    }
    arrays |= changes
    path.parent.mkdir(parents=True, exist_ok=True)
    np.savez_compressed(path, allow_pickle=True, **arrays)
    return arrays


def rows(split: Split) -> list[bytes]:
    """The images of a split as values that can be put into a set."""
    return [image.tobytes() for image in split.images]


def counts(split: Split, classes: int = 10) -> list[int]:
    return [int((split.labels == label).sum()) for label in range(classes)]


# Every data set.


@pytest.fixture(scope="module")
def official_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    write_batches(folder)
    write_cifar100(folder)
    write_fashion(folder)
    write_mnist(folder / "mnist.npz")
    return folder


@pytest.fixture(scope="module", params=sorted(DATASETS))
def dataset(request: pytest.FixtureRequest, official_folder: Path) -> Dataset:
    return load(request.param, data_dir=official_folder)


def test_every_data_set_keeps_the_contract(dataset: Dataset) -> None:
    assert len(dataset.class_names) == dataset.classes
    assert len(dataset.digest) == 16 and dataset.source
    for split in (dataset.train, dataset.validation, dataset.test):
        assert split.images.dtype == np.float32 and split.labels.dtype == np.int64
        assert split.images.shape == (len(split), *dataset.image_shape)
        assert split.images.flags.c_contiguous
        assert not split.images.flags.writeable and not split.labels.flags.writeable
    assert dataset.train.images.min() == 0 and dataset.train.images.max() == 1
    assert set(dataset.train.labels) == set(dataset.test.labels) == set(range(dataset.classes))


def test_every_data_set_is_tested_as_embedded_or_official() -> None:
    assert set(DATASETS) == EMBEDDED.keys() | OFFICIAL


def test_a_split_leaves_the_callers_arrays_alone() -> None:
    images, labels = np.zeros((1, 2, 2, 1), np.float32), np.zeros(1, np.int64)
    split = Split(images, labels)
    images[0, 0, 0, 0] = 1
    with pytest.raises(ValueError, match="read-only"):
        split.images[0, 0, 0, 0] = 1


def test_importing_and_checking_names_is_cheap() -> None:
    heavy = "{'keras', 'tensorflow', 'mlflow', 'sklearn', 'pandas', 'mlxtend', 'PIL', 'pyarrow'}"
    code = (
        "import sys; from resfool.datasets.sets import check_name; check_name('digits');"
        f" print({heavy} & {{*sys.modules}})"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


# Sets inside a package.


@pytest.mark.parametrize("name", EMBEDDED)
def test_embedded_sets_are_divided_without_overlap(name: str) -> None:
    whole = load(name)
    splits = (whole.train, whole.validation, whole.test)
    for split, (low, high) in zip(splits, [(100, 400), (30, 50), (40, 50)], strict=True):
        (each,) = {*counts(split, whole.classes)}
        assert low <= each <= high
    assert (whole.image_shape, whole.classes) == EMBEDDED[name]
    # `digits` has no image twice; nor has this part of MNIST.
    everything = [row for split in splits for row in rows(split)]
    assert len(everything) == len(set(everything))


@pytest.mark.parametrize("name", EMBEDDED)
def test_subsets_are_exact_and_follow_the_seed(name: str) -> None:
    one, same = (load(name, per_class=(7, 3, 5), seed=1) for _ in range(2))
    other = load(name, per_class=(7, 3, 5), seed=2)
    for split, each in ((one.train, 7), (one.validation, 3), (one.test, 5)):
        assert counts(split, one.classes) == [each] * one.classes
    assert one.digest == same.digest != other.digest
    assert set(rows(one.train)) != set(rows(other.train))
    assert one.train.labels.tolist() != sorted(one.train.labels)
    assert set(rows(one.train)) < set(rows(load(name, per_class=(9, 2), seed=1).train))
    assert len(load(name, per_class=(9, 2)).validation) == 0


def test_mnist5k_has_500_of_each_digit_and_they_look_like_digits() -> None:
    pool = sets.DATASETS["mnist5k"].read(None).pools[0]
    assert np.bincount(pool.labels).tolist() == [500] * 10
    data = load("mnist5k")
    means = np.stack([data.train.images[data.train.labels == n].mean(0) for n in range(10)])
    distances = ((data.test.images[:, None] - means) ** 2).sum((2, 3, 4))
    assert (distances.argmin(1) == data.test.labels).mean() > 0.75
    # A one is an upright stroke, a nought is a ring around an empty middle.
    ink = means[..., 0].sum(1)
    width = [(columns > 0.1 * columns.max()).sum() for columns in ink]
    assert width[1] < width[0] and means[0, 14, 14, 0] < 0.2 < means[1, 14, 14, 0]


def test_digits_are_scaled_by_16() -> None:
    values = np.unique(load("digits").train.images * 16)
    assert values.tolist() == list(range(17))


# CIFAR-10.


@pytest.mark.parametrize("writer", [python2_pickle, python3_pickle, fortran_pickle])
@pytest.mark.parametrize("packed", [False, True])
def test_cifar10_comes_back_as_planted(tmp_path: Path, writer: Writer, packed: bool) -> None:
    planted = write_batches(tmp_path / "files", writer)
    folder = tmp_path / "files"
    if packed:
        folder = tmp_path / "packed"
        folder.mkdir()
        write_archive(tmp_path / "files", folder / "cifar-10-python.tar.gz")
    data = load("cifar10", data_dir=folder)
    np.testing.assert_array_equal(
        data.train.images, np.concatenate(planted[:5]).astype(np.float32) / 255
    )
    np.testing.assert_array_equal(data.test.images, planted[5].astype(np.float32) / 255)
    assert data.train.labels.tolist() == [*range(10)] * 10
    assert len(data.validation) == 0 and data.class_names[6] == "frog"
    assert Path(data.source).parent == folder


def test_cifar10_rows_are_red_then_green_then_blue(tmp_path: Path) -> None:
    """One byte is set in each row, whose place in the picture is known from the format."""
    write_batches(tmp_path)
    places = {0: (0, 0, 0), 1: (0, 1, 0), 32: (1, 0, 0), 1024: (0, 0, 1), 2048 + 33: (1, 1, 2)}
    data = np.zeros((len(places), 3072), np.uint8)
    data[range(len(places)), list(places)] = 255
    record = {b"labels": [0] * len(places), b"data": data}
    (tmp_path / "cifar-10-batches-py" / "test_batch").write_bytes(python2_pickle(record))
    images = load("cifar10", data_dir=tmp_path).test.images
    for image, place in zip(images, places.values(), strict=True):
        assert image.sum() == image[place] == 1


@pytest.mark.parametrize(
    "place",
    [
        "cifar-10-batches-py",
        "cifar-10-batches-py-target/cifar-10-batches-py",
        "cifar-10-batches-py-target_archive",
        "cifar-10-batches-py.tar.gz",
    ],
)
def test_cifar10_is_found_where_keras_left_it(tmp_path: Path, keras_home: Path, place: str) -> None:
    planted = write_batches(tmp_path)
    target = keras_home / "datasets" / place
    target.parent.mkdir(parents=True)
    if place.endswith("batches-py"):
        (tmp_path / "cifar-10-batches-py").rename(target)
    else:
        write_archive(tmp_path, target)
    data = load("cifar10")
    assert data.source == str(target) and len(data.train) == 5 * len(planted[0])


def test_the_folder_of_the_batches_itself_will_do(tmp_path: Path) -> None:
    write_batches(tmp_path)
    folder = tmp_path / "cifar-10-batches-py"
    assert load("cifar10", data_dir=str(folder)).source == str(folder)


def test_official_subsets_keep_to_their_own_side(tmp_path: Path) -> None:
    planted = write_batches(tmp_path)
    data = load("cifar10", data_dir=tmp_path, per_class=(6, 4, 2), seed=3)
    whole = load("cifar10", data_dir=tmp_path)
    train, validation, test = map(rows, (data.train, data.validation, data.test))
    assert [counts(s) for s in (data.train, data.validation, data.test)] == [
        [6] * 10,
        [4] * 10,
        [2] * 10,
    ]
    assert set(train) | set(validation) == set(rows(whole.train))
    assert not set(train) & set(validation)
    assert set(test) == set(rows(whole.test)) and len(test) == len(planted[5])
    label = dict(zip(rows(whole.train), whole.train.labels, strict=True))
    assert [label[row] for row in train] == data.train.labels.tolist()


class Reduced:
    """Pickles as a call of `function` on `arguments`."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.call = (function, arguments)

    def __reduce__(self) -> tuple[Any, tuple[Any, ...]]:
        return self.call


def hostile(flag: Path) -> dict[str, bytes]:
    touch = f"open({str(flag)!r}, 'w').close()"
    record = {b"labels": [0], b"data": np.zeros((1, 3072), np.uint8)}
    forged: dict[str, Any] = {
        "system": Reduced(os.system, f"touch {flag}"),
        "eval": Reduced(builtins.eval, touch),
        "exec": Reduced(builtins.exec, touch),
        "partial": Reduced(functools.partial, os.system, f"touch {flag}"),
        "numpy load": Reduced(np.load, str(flag)),
        "numpy memmap": Reduced(np.memmap, str(flag), "u1", "w+", 0, (3072,)),
        "numpy runstring": Reduced(np.testing.measure, touch),
        "object array": np.array([[Reduced(builtins.eval, touch)] * 3072], dtype=object),
    }
    pickles = {
        name: pickle.dumps({**record, b"data": data}, protocol=2) for name, data in forged.items()
    }
    # A call by way of an attribute, which protocol 4 resolves, and by a name of Python 2.
    pickles["attribute"] = b"\x80\x04\x8c\x05numpy\x8c\x0btesting.sys\x93."
    pickles["python 2 eval"] = b"\x80\x02c__builtin__\neval\nT" + struct.pack("<i", len(touch))
    pickles["python 2 eval"] += touch.encode() + b"\x85R."
    return pickles


@pytest.mark.parametrize("name", hostile(Path("flag")))
def test_a_hostile_batch_is_refused_and_runs_nothing(tmp_path: Path, name: str) -> None:
    write_batches(tmp_path)
    path, flag = tmp_path / "cifar-10-batches-py" / "data_batch_3", tmp_path / "flag"
    path.write_bytes(hostile(flag)[name])
    assert f"{path}, which" in refusal("cifar10", data_dir=tmp_path)
    assert not flag.exists()


def test_the_hostile_batches_would_have_run(tmp_path: Path) -> None:
    """The forgeries above are real: a plain unpickler does what they ask."""
    flag = tmp_path / "flag"
    for name in ("system", "eval", "exec", "numpy memmap", "numpy runstring", "python 2 eval"):
        pickle.loads(hostile(flag)[name])
        assert flag.exists(), name
        flag.unlink()


def one(data: Any, labels: Any) -> bytes:
    return pickle.dumps({b"data": data, b"labels": labels}, protocol=2)


ZEROS = np.zeros((2, 3072), np.uint8)
RECONSTRUCT = ZEROS.__reduce__()[0]
BUILD = b"(K\x01M\x00\x10\x85N\x89Ntb"
DAMAGED = {
    "empty": b"",
    "no pickle": b"not a pickle",
    "truncated": one(ZEROS, [0, 1])[:-100],
    "no dictionary": pickle.dumps([1, 2], protocol=2),
    "no labels": pickle.dumps({b"data": ZEROS}, protocol=2),
    "label 10": one(ZEROS, [0, 10]),
    "label -1": one(ZEROS, [0, -1]),
    "label true": one(ZEROS, [0, True]),
    "label text": one(ZEROS, ["0", "1"]),
    "labels no list": one(ZEROS, (0, 1)),
    "labels too few": one(ZEROS, [0]),
    "no images": one(ZEROS[:0], []),
    "floats": one(ZEROS.astype(np.float32), [0, 1]),
    "wide": one(np.zeros((2, 3073), np.uint8), [0, 1]),
    "flat": one(np.zeros(6144, np.uint8), [0]),
    "a list": one([[0] * 3072] * 2, [0, 1]),
    "no state": one(Reduced(np.dtype, "u1"), [0]),
    # Asks for 10^18 bytes, and for a state forged onto NumPy's own type.
    "huge": one(Reduced(RECONSTRUCT, np.ndarray, (10**18,), b"b"), [0]),
    "state of a type": b"\x80\x02cnumpy\nndarray\n" + BUILD + b".",
    "state of a function": b"\x80\x02c_codecs\nencode\n" + BUILD + b".",
}


@pytest.mark.parametrize("content", DAMAGED.values(), ids=DAMAGED)
def test_a_damaged_batch_is_named(tmp_path: Path, content: bytes) -> None:
    write_batches(tmp_path)
    path = tmp_path / "cifar-10-batches-py" / "test_batch"
    path.write_bytes(content)
    assert str(path) in refusal("cifar10", data_dir=tmp_path)
    # What was read before left no trace behind: a sound batch still loads.
    (tmp_path / "again").mkdir()
    write_batches(tmp_path / "again", python3_pickle, each=1)
    assert len(load("cifar10", data_dir=tmp_path / "again").train) == 5


def test_a_missing_batch_is_named(tmp_path: Path) -> None:
    write_batches(tmp_path)
    path = tmp_path / "cifar-10-batches-py" / "data_batch_4"
    path.unlink()
    assert str(path) in refusal("cifar10", data_dir=tmp_path)


def test_an_oversized_batch_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for bound in ("_LARGEST_BATCH", "_LARGEST_ARCHIVE"):
        monkeypatch.setattr(official_files, bound, 1000)
    write_batches(tmp_path)
    assert "more than 1000 bytes" in refusal("cifar10", data_dir=tmp_path)
    write_archive(tmp_path, tmp_path / "cifar-10-python.tar.gz")
    (tmp_path / "cifar-10-batches-py" / "data_batch_1").unlink()
    assert "more than 1000 bytes" in refusal("cifar10", data_dir=tmp_path)


def test_a_damaged_archive_is_named(tmp_path: Path) -> None:
    write_batches(tmp_path / "files")
    path = tmp_path / "cifar-10-python.tar.gz"
    write_archive(tmp_path / "files", path)
    whole = path.read_bytes()
    for content in (whole[: len(whole) // 2], whole[:-1000], b"", b"junk", gzip.compress(b"junk")):
        path.write_bytes(content)
        assert str(path) in refusal("cifar10", data_dir=tmp_path)


def test_an_archive_gives_only_regular_files_of_the_right_names(tmp_path: Path) -> None:
    """A link in a batch's place isn't followed, and a path that leads elsewhere isn't written."""
    write_batches(tmp_path / "files")
    path = tmp_path / "cifar-10-python.tar.gz"
    with tarfile.open(path, "w:gz") as archive:
        for name in BATCHES:
            member = tarfile.TarInfo(f"cifar-10-batches-py/{name}")
            source = tmp_path / "files" / member.name
            if name == "data_batch_2":
                member.type, member.linkname = tarfile.SYMTYPE, str(source)
                archive.addfile(member)
            else:
                archive.add(source, member.name)
        escaping = tarfile.TarInfo("../escaped")
        escaping.size = 1
        archive.addfile(escaping, io.BytesIO(b"x"))
    before = sorted(tmp_path.iterdir())
    assert "data_batch_2" in refusal("cifar10", data_dir=tmp_path)
    assert sorted(tmp_path.iterdir()) == before and not (tmp_path.parent / "escaped").exists()


# MNIST and the user's own arrays.


def test_mnist_comes_back_as_planted(tmp_path: Path) -> None:
    planted = write_mnist(tmp_path / "mnist.npz")
    data = load("mnist", data_dir=tmp_path)
    np.testing.assert_array_equal(data.train.images[..., 0], planted["x_train"] / np.float32(255))
    assert data.test.labels.tolist() == planted["y_test"].tolist()
    assert data.class_names == tuple("0123456789") and len(data.validation) == 0


def test_mnist_of_another_shape_is_refused(tmp_path: Path) -> None:
    write_mnist(
        tmp_path / "mnist.npz",
        x_train=np.zeros((40, 8, 8), np.uint8),
        x_test=np.zeros((20, 8, 8), np.uint8),
    )
    assert "(8, 8, 1)" in refusal("mnist", data_dir=tmp_path)


def test_cifar100_and_fashion_mnist_come_back_as_planted(tmp_path: Path) -> None:
    train, test = write_cifar100(tmp_path)
    data = load("cifar100", data_dir=tmp_path)
    np.testing.assert_array_equal(data.train.images, train.astype(np.float32) / 255)
    np.testing.assert_array_equal(data.test.images, test.astype(np.float32) / 255)
    assert data.class_names[99] == "worm" and data.class_names[1] == "aquarium_fish"
    assert data.test.labels.tolist() == [*range(100)] * 2
    batch = tmp_path / "cifar-100-python" / "test"
    batch.write_bytes(python2_pickle({b"fine_labels": [100], b"data": ZEROS[:1]}))
    assert "from 0 to 99" in refusal("cifar100", data_dir=tmp_path)
    images = write_fashion(tmp_path)
    data = load("fashion_mnist", data_dir=tmp_path)
    np.testing.assert_array_equal(data.test.images[..., 0], images["t10k"] / np.float32(255))
    assert data.class_names[data.train.labels[9]] == "Ankle boot" and len(data.train) == 40
    labels = tmp_path / "fashion-mnist" / "t10k-labels-idx1-ubyte.gz"
    write_idx(labels, np.zeros(19, np.uint8))
    assert "t10k-images" in refusal("fashion_mnist", data_dir=tmp_path)
    for content in (b"", gzip.compress(b"junk"), labels.read_bytes()[:-9]):
        labels.write_bytes(content)
        assert str(labels) in refusal("fashion_mnist", data_dir=tmp_path)


@pytest.mark.parametrize("channels", [(), (1,), (3,), (4,)])
@pytest.mark.parametrize("dtype", [np.uint8, np.float16, np.float32, np.float64])
def test_own_arrays_come_back(tmp_path: Path, channels: tuple[int, ...], dtype: Any) -> None:
    values = np.random.default_rng(0).integers(0, 256, (4, 5, 6, *channels))
    images = (values if dtype == np.uint8 else values / 255).astype(dtype)
    labels = np.array([[2], [0], [1], [1]])
    path = tmp_path / "own.npz"
    np.savez(path, x_train=images, y_train=labels, x_test=images[:1], y_test=labels[:1, 0])
    data = load(f"npz:{path}")
    assert data.image_shape == (5, 6, *(channels or (1,))) and data.classes == 3
    expected = (images / 255 if dtype == np.uint8 else images).astype(np.float32)
    np.testing.assert_allclose(data.train.images.reshape(images.shape), expected, rtol=1e-6)
    assert data.train.labels.tolist() == [2, 0, 1, 1] and data.class_names == ("0", "1", "2")


def test_own_validation_arrays_are_the_validation_split(tmp_path: Path) -> None:
    path = tmp_path / "own.npz"
    validation = np.full((20, 28, 28), 7, np.uint8)
    write_mnist(path, x_val=validation, y_val=np.arange(20) % 10)
    assert len(load(f"npz:{path}").validation) == 20
    subset = load(f"npz:{path}", per_class=(4, 2, 1))
    assert counts(subset.validation) == [2] * 10 and counts(subset.train) == [4] * 10
    np.testing.assert_array_equal(subset.validation.images, np.float32(7) / np.float32(255))


BAD_ARRAYS: dict[str, tuple[dict[str, Any], str]] = {
    "int64 images": ({"x_train": np.zeros((40, 28, 28), np.int64)}, "x_train must be uint8"),
    "floats over 1": ({"x_test": np.full((20, 28, 28), 255.0)}, "[0, 1]"),
    "nan": ({"x_test": np.full((20, 28, 28), np.nan)}, "infinite or no numbers"),
    "infinite": ({"x_test": np.full((20, 28, 28), np.inf)}, "infinite or no numbers"),
    "text": ({"x_test": np.full((20, 28, 28), "a")}, "x_test must be uint8"),
    "objects for labels": ({"y_train": np.array([{}] * 40)}, "Python objects"),
    "flat": ({"x_train": np.zeros((40, 784), np.uint8)}, "(40, 784)"),
    "none": ({"x_test": np.zeros((0, 28, 28), np.uint8)}, "not empty"),
    "shapes": ({"x_test": np.zeros((20, 8, 8), np.uint8)}, "one shape"),
    "not one-hot": ({"y_train": np.ones((40, 10), int)}, "(40, 10)"),
    "too few": ({"y_test": np.zeros(19, int)}, "(20,)"),
    "fractions": ({"y_test": np.full(20, 0.5)}, "float64"),
    "negative": ({"y_test": np.full(20, -1)}, "-1"),
    "identifiers": ({"y_train": np.full(40, 10**9)}, "classes-1"),
    "objects": ({"x_train": np.array([{}], dtype=object)}, "Python objects"),
    "half a split": ({"x_val": np.zeros((20, 28, 28), np.uint8)}, "y_val"),
}


@pytest.mark.parametrize(("changes", "said"), BAD_ARRAYS.values(), ids=BAD_ARRAYS)
def test_own_arrays_that_do_not_fit_are_named(
    tmp_path: Path, changes: dict[str, Any], said: str
) -> None:
    path = tmp_path / "own.npz"
    write_mnist(path, **changes)
    message = refusal(f"npz:{path}")
    assert str(path) in message and said in message


def test_a_damaged_npz_is_named(tmp_path: Path) -> None:
    path = tmp_path / "mnist.npz"
    write_mnist(path)
    whole = path.read_bytes()
    flipped = bytearray(whole)
    flipped[1000:1100] = bytes(100)
    array = io.BytesIO()
    np.save(array, np.zeros(3))
    damaged = (
        whole[: len(whole) // 2],
        whole[:-10],
        b"",
        b"junk",
        bytes(flipped),
        array.getvalue(),
    )
    for content in damaged:
        path.write_bytes(content)
        assert str(path) in refusal("mnist", data_dir=tmp_path)
        assert str(path) in refusal(f"npz:{path}")


# Where files are looked for, and the download.


@pytest.fixture
def server(tmp_path: Path) -> Iterator[str]:
    """The address of a server that gives out tmp_path/served."""

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, format: str, *args: Any) -> None:
            pass

    (tmp_path / "served").mkdir()
    handler = functools.partial(Quiet, directory=str(tmp_path / "served"))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as serving:
        threading.Thread(target=serving.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{serving.server_port}"
        serving.shutdown()


def publish(monkeypatch: pytest.MonkeyPatch, name: str, url: str, content: bytes) -> None:
    """Make a data set's official file one that the test serves."""
    digest = hashlib.sha256(content).hexdigest()
    monkeypatch.setattr(
        official_files, name, replace(getattr(official_files, name), url=url, sha256=digest)
    )


def test_mnist_is_downloaded_once(
    tmp_path: Path,
    keras_home: Path,
    server: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    served = tmp_path / "served" / "mnist.npz"
    planted = write_mnist(served)
    publish(monkeypatch, "_MNIST", f"{server}/mnist.npz", served.read_bytes())
    first = load("mnist")
    assert f"{server}/mnist.npz" in capsys.readouterr().err
    assert len(first.train) == len(planted["x_train"])
    assert [path.name for path in (keras_home / "datasets").iterdir()] == ["mnist.npz"]
    served.unlink()
    assert load("mnist").digest == first.digest


def test_cifar10_is_downloaded_as_its_archive(
    tmp_path: Path, keras_home: Path, server: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    served = tmp_path / "served" / "cifar-10-python.tar.gz"
    write_batches(tmp_path)
    write_archive(tmp_path, served)
    publish(monkeypatch, "_CIFAR10", f"{server}/{served.name}", served.read_bytes())
    assert load("cifar10").source == str(keras_home / "datasets" / served.name)


def test_a_download_with_another_checksum_is_not_kept(
    tmp_path: Path, keras_home: Path, server: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    served = tmp_path / "served" / "mnist.npz"
    write_mnist(served)
    publish(monkeypatch, "_MNIST", f"{server}/mnist.npz", b"something else")
    message = refusal("mnist")
    assert "SHA-256" in message and f"{server}/mnist.npz" in message
    assert list((keras_home / "datasets").iterdir()) == []


@pytest.mark.parametrize("name", sorted(OFFICIAL))
def test_without_files_or_network_the_way_out_is_named(keras_home: Path, name: str) -> None:
    message = refusal(name)
    assert str(keras_home / "datasets") in message and "http://127.0.0.1:9/" in message
    assert "dataset=mnist5k" in message and "data_dir=FOLDER" in message
    assert not [path for path in (keras_home / "datasets").rglob("*") if path.is_file()]


@pytest.mark.parametrize("name", sorted(OFFICIAL))
def test_with_a_data_dir_nothing_else_is_looked_at(
    tmp_path: Path, keras_home: Path, name: str
) -> None:
    write_mnist(keras_home / "datasets" / "mnist.npz")
    write_batches(keras_home / "datasets")
    message = refusal(name, data_dir=tmp_path)
    assert str(tmp_path) in message and "http" not in message and "dataset=mnist5k" in message


def test_a_cache_that_cannot_be_written_is_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("KERAS_HOME", str(tmp_path / "file"))
    assert str(tmp_path / "file") in refusal("mnist")


# Names, counts and seeds.


def test_known_names_pass(tmp_path: Path) -> None:
    for name in DATASETS:
        check_name(name)
    (tmp_path / "own.npz").touch()
    check_name(f"npz:{tmp_path / 'own.npz'}")  # its content is not read


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("cifar1", "did you mean 'cifar10'?"),
        ("CIFAR10", "did you mean 'cifar10'?"),
        ("own.npz", "did you mean 'npz:own.npz'?"),
        ("imagenet", f"known: {', '.join(DATASETS)}, npz:PATH"),
        ("", "unknown data set ''"),
        ("npz:", "nothing at ''"),
        (f"npz:{'x' * 1000}", "cannot read"),
        ("x" * 1000, "unknown data set"),
        ("npz:/no/such\nfile", "nothing at"),
    ],
)
def test_unknown_names_are_refused_with_the_nearest(name: str, said: str) -> None:
    assert said in refusal(name)
    with pytest.raises(InputError):
        check_name(name)


@pytest.mark.parametrize(
    "per_class", [(), (1,), (1, 2, 3, 4), (0, 1), (1, 0), (1, -1, 1), (-1, 1), (0, 0, 0)]
)
def test_counts_that_mean_nothing_are_refused(per_class: tuple[int, ...]) -> None:
    assert str(per_class) in refusal("digits", per_class=per_class)


def test_more_than_there_is_says_how_many_there_are(tmp_path: Path) -> None:
    message = refusal("digits", per_class=(100, 50, 40))
    assert "190" in message and "174 of class '8'" in message
    write_batches(tmp_path)
    assert "10 of class 'airplane'" in refusal("cifar10", data_dir=tmp_path, per_class=(9, 2, 1))
    assert "2 of class 'airplane'" in refusal("cifar10", data_dir=tmp_path, per_class=(9, 1, 3))


def test_a_negative_seed_is_refused() -> None:
    assert "-1" in refusal("digits", seed=-1)


def test_an_error_is_one_line_and_survives_a_worker() -> None:
    error = pickle.loads(pickle.dumps(InputError("one\n  two")))
    assert str(error) == "one two" and isinstance(error, ValueError)
    assert str(unknown("solver", "cobila", ["cobyla", "deepfool"])) == (
        "unknown solver 'cobila'; did you mean 'cobyla'? known: cobyla, deepfool"
    )
    assert str(unknown("solver", "xyz", ["cobyla"])) == "unknown solver 'xyz'; known: cobyla"


@pytest.mark.parametrize("name", ["mnist5k", "digits"])
def test_a_data_set_travels_whole_and_as_bytes_where_it_was(name: str) -> None:
    data = sets.load(name)
    packed = pickle.dumps(data)
    there = pickle.loads(packed)
    assert there.digest == data.digest
    assert not there.train.images.flags.writeable
    pixels = sum(split.images.size for split in (data.train, data.validation, data.test))
    # Grey levels of digits go from 0 to 16, so those stay float32.
    assert len(packed) / pixels < 1.2 if name == "mnist5k" else len(packed) / pixels > 4
