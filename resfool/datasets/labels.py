"""Labels as people have them, made class numbers from 0."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from resfool.datasets.stored import Array
from resfool.errors import InputError
from resfool.values import Part

_MOST = 100_000  # classes; a stray label, such as an identifier, would become that many
_HUGE = 1 << 62  # within int64
_LONGEST = 4000  # bytes of a word


@dataclass(frozen=True)
class Labels:
    """Class numbers of each part, int64 from 0, the classes' names, and what to say of them."""

    numbers: dict[Part, Array]
    class_names: tuple[str, ...]
    notes: tuple[str, ...] = ()


def check_count(what: str, classes: int) -> None:
    """Refuse more classes than anybody has.

    Raises:
        InputError: there are.
    """
    if classes > _MOST:
        raise InputError(f"{what} are {classes:,} classes; {_MOST:,} are allowed")


def numbered(
    given: Mapping[Part, tuple[str, Array, int]], names: Sequence[str] | None, where: str
) -> Labels:
    """Make class numbers of labels.

    Args:
        given: of each part what its labels are called, the labels, and how many images there are.
            They are integers (N,) or (N, 1), one-hot rows (N, K), or words.
        names: of all classes, in order; None if nobody says.
        where: they come from.

    Raises:
        InputError: they are none of that.
    """
    flat = {part: _flat(where, *labels) for part, labels in given.items()}
    words = [labels for labels in flat.values() if labels.dtype.kind == "U"]
    if words and len(words) < len(flat):
        raise InputError(f"{where}: some labels are numbers and some are words; give one kind")
    if words:
        return _of_words(flat, names, where)
    width = max(_width(labels) for _, labels, _ in given.values())
    for (name, _, _), labels in zip(given.values(), flat.values(), strict=True):
        if labels.min() < 0 or labels.max() >= _MOST:
            raise InputError(
                f"{where}: {name} must be in 0..classes-1, not in {labels.min()}..{labels.max()}"
            )
    present = np.unique(np.concatenate(list(flat.values())))
    notes: tuple[str, ...] = ()
    if not width and _from_one(present, names):
        flat = {part: labels - 1 for part, labels in flat.items()}
        present = present - 1
        notes = (
            f"{where}: the labels go from 1 to {present.max() + 1} and are taken for 0 to "
            f"{present.max()}; if 0 is a class without images, add an array class_names",
        )
    classes = max(width, int(present.max()) + 1)
    if names is not None and classes > len(names):
        raise InputError(f"{where}: label {present.max()} has no name; there are {len(names)}")
    return Labels(flat, tuple(names or map(str, range(classes))), notes)


def _from_one(present: Array, names: Sequence[str] | None) -> bool:
    """Whether labels count from 1: all from 1 on are there, and names leave no room for a 0."""
    gapless = present[0] == 1 and present[-1] == len(present)
    return bool(gapless and (names is None or len(names) == len(present)))


def _width(labels: Array) -> int:
    return labels.shape[1] if labels.ndim == 2 and labels.shape[1] > 1 else 0


def _flat(where: str, name: str, labels: Array, count: int) -> Array:
    """Labels (N,), int64 or words."""
    if len(labels.shape) not in (1, 2) or len(labels) != count:
        raise InputError(
            f"{where}: {name} must be labels of shape ({count},), not {labels.dtype} of shape "
            f"{labels.shape}"
        )
    if _width(labels):
        return _hot(where, name, labels)
    labels = labels.reshape(-1)
    if labels.dtype.kind in "SU" and labels.dtype.itemsize > _LONGEST:
        raise InputError(
            f"{where}: {name} has words of {labels.dtype.itemsize} bytes; {_LONGEST} are allowed"
        )
    if labels.dtype.kind == "S":
        labels = np.char.decode(labels, "utf-8")
    if labels.dtype.kind == "U":
        whole = all(word.strip().isdecimal() for word in np.unique(labels))
        return labels.astype(np.int64) if whole else np.char.strip(labels)
    whole = labels.dtype.kind in "iu" or (
        labels.dtype.kind == "f" and bool((labels == np.floor(labels)).all())
    )
    if not whole:
        raise InputError(
            f"{where}: {name} must be integers, words or one-hot rows, not {labels.dtype}"
        )
    return np.clip(labels, -_HUGE, _HUGE).astype(np.int64)


def _hot(where: str, name: str, rows: Array) -> Array:
    """The numbers that one-hot rows stand for."""
    check_count(f"{where}: the columns of {name}", rows.shape[1])
    binary = rows.dtype.kind in "biuf" and bool(((rows == 0) | (rows == 1)).all())
    if not binary or not (rows.sum(axis=1) == 1).all():
        raise InputError(
            f"{where}: {name} has the shape {rows.shape}, but not one 1 among 0 in each row; "
            "give class numbers or one-hot rows"
        )
    return rows.argmax(axis=1)


def _of_words(flat: Mapping[Part, Array], names: Sequence[str] | None, where: str) -> Labels:
    present = sorted({str(word) for labels in flat.values() for word in np.unique(labels)})
    known = list(names or present)
    if strange := [word for word in present if word not in known]:
        raise InputError(f"{where}: label {strange[0]!r} is not among the names of the classes")
    number = {word: known.index(word) for word in present}
    numbers: dict[Part, Array] = {
        part: np.array([number[str(word)] for word in labels], np.int64)
        for part, labels in flat.items()
    }
    note = (
        f"{where}: the labels are words, numbered in alphabetical order: "
        f"{_shortened(present)} are 0 to {len(present) - 1}"
    )
    return Labels(numbers, tuple(known), () if names else (note,))


def _shortened(words: Sequence[Any]) -> str:
    return ", ".join(map(str, words if len(words) < 7 else [*words[:3], "...", words[-1]]))


def gaps(labels: Array, class_names: Sequence[str]) -> str:
    """The classes that have no image, shortened; empty if all have one."""
    absent = np.setdiff1d(np.arange(len(class_names)), labels)
    return _shortened([class_names[n] for n in absent])


def drawn_of_each(labels: Array, wanted: Sequence[int], rng: np.random.Generator) -> list[Array]:
    """Disjoint random parts of a pool as indices, part i with wanted[i] of each class, shuffled."""
    # The permutations don't depend on `wanted`, so that a larger subset holds the smaller one.
    members = [rng.permutation(np.flatnonzero(labels == label)) for label in np.unique(labels)]
    ends = np.cumsum(wanted)
    parts = [
        np.concatenate([np.arange(0), *(of_class[end - count : end] for of_class in members)])
        for end, count in zip(ends, wanted, strict=True)
    ]
    return [rng.permutation(part) for part in parts]
