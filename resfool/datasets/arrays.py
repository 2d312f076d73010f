"""The user's own arrays: an archive of them (npz), or a folder (npy)."""

import math
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from resfool import bounded, places
from resfool.datasets import labels
from resfool.datasets.lying import InFile, Watch
from resfool.datasets.stored import PART_NAMES, Array, Pool, Stored, own_images
from resfool.errors import InputError, reading
from resfool.parameters import OwnImages
from resfool.values import Part, show

# What people call their arrays: x_test, X_test, xtest, test_images, images, ...
_ROLES = {
    **dict.fromkeys(("x", "images", "image", "data"), "images"),
    **dict.fromkeys(("y", "labels", "label", "targets", "target"), "labels"),
}
_NAME = re.compile(
    rf"(?:(?P<before>{'|'.join(PART_NAMES)})[_-]?)?(?P<role>{'|'.join(_ROLES)})"
    rf"(?:[_-]?(?P<after>{'|'.join(PART_NAMES)}))?"
)
_USUAL = "x_test and y_test, x_train and y_train, x_val and y_val, or x and y alone"
_CHANNELS = (1, 3, 4)
_CHUNK = 1 << 24  # bytes that are looked at together


def read_npz(path: Path, how: OwnImages) -> Stored:
    """Read an archive of arrays; those that aren't compressed stay in the file.

    Large ones that are compressed are unpacked, once, into a temporary file, and stay in that.

    Raises:
        InputError: it can't be read, or isn't images with their labels.
    """
    watch = _watched(path)
    with reading(path):
        found = bounded.npz(path, _is_wanted, places.new_folder)
        watches = {}
        for name, array in found.items():
            if isinstance(array, np.memmap):
                file = Path(str(array.filename))
                watches[name] = watch if file.samefile(path) else _watched(file)
        return _stored(path, found, how, watches)


def read_npy(folder: Path, how: OwnImages) -> Stored:
    """Read a folder of arrays, which are named as in an archive and stay in their files.

    A folder, and not two files: a comma would part the values of a list, and the pairs for
    training and validation find their place by the same names.

    Raises:
        InputError: one can't be read, or they aren't images with their labels.
    """
    with reading(folder):
        names = sorted(path.stem for path in folder.glob("*.npy"))
        found, watches = {}, {}
        for name in filter(_is_wanted, names):
            path = folder / f"{name}.npy"
            watches[name] = _watched(path)
            with reading(path):
                found[name] = bounded.npy(path)
        return _stored(folder, found, how, watches)


def look_npz(path: Path) -> None:
    """Refuse an archive by its names and headers.

    Raises:
        InputError: it can't be read, or isn't images with their labels.
    """
    with reading(path):
        _paired(path, dict.fromkeys(bounded.npz_headers(path, _is_wanted), np.empty(0)))


def look_npy(folder: Path) -> None:
    """Refuse a folder of arrays by their names and headers.

    Raises:
        InputError: one can't be read, or they aren't images with their labels.
    """
    with reading(folder):
        names = list(filter(_is_wanted, sorted(path.stem for path in folder.glob("*.npy"))))
        for path in (folder / f"{name}.npy" for name in names):
            with reading(path), bounded.opened(path) as file:
                bounded.header(str(path), file)
        _paired(folder, dict.fromkeys(names, np.empty(0)))


# Which array is what.


def _is_wanted(name: str) -> bool:
    return name == "class_names" or _NAME.fullmatch(name.lower()) is not None


def _stored(
    path: Path, arrays: Mapping[str, Array], how: OwnImages, watches: Mapping[str, Watch]
) -> Stored:
    found = _paired(path, arrays)
    names = None
    if "class_names" in arrays:
        labels.check_count(f"{path}: class_names", arrays["class_names"].size)
        names = [str(name) for name in arrays["class_names"].reshape(-1)]
    notes: list[str] = []
    images: dict[Part, Array | InFile] = {}
    ranges, given = {}, {}
    for part, ((images_name, stored), (labels_name, own)) in found.items():
        what = f"{path}: {images_name}"
        whole = _channels_last(what, stored, notes)
        images[part] = whole
        if isinstance(whole, np.memmap):
            images[part] = InFile(whole, watches[images_name])
        ranges[part] = _range(what, images[part], how, notes)
        given[part] = labels_name, own, len(stored)
    told = labels.numbered(given, names, str(path))
    parts = {
        part: Pool(images[part], told.numbers[part], white, black)
        for part, (black, white) in ranges.items()
    }
    return own_images(parts, told.class_names, str(path), (*notes, *told.notes))


Named = tuple[str, Array]


def _paired(path: Path, arrays: Mapping[str, Array]) -> dict[Part, tuple[Named, Named]]:
    """The images and labels of each part that is there."""
    found: dict[tuple[Part, str], Named] = {}
    for name, array in arrays.items():
        match = _NAME.fullmatch(name.lower())
        if match is None:
            continue
        key = PART_NAMES[match["before"] or match["after"] or "test"], _ROLES[match["role"]]
        if key in found:
            raise InputError(f"{path}: {found[key][0]} and {name} are both {key[0]} {key[1]}")
        found[key] = name, array
    if not found:
        raise InputError(f"{path} has no images by a usual name: {_USUAL}")
    pairs: dict[Part, tuple[Named, Named]] = {}
    for part in dict.fromkeys(part for part, _ in found):
        for role, letter in (("images", "x"), ("labels", "y")):
            if (part, role) not in found:
                other = found[part, "labels" if role == "images" else "images"][0]
                short = "val" if part == "validation" else part
                raise InputError(
                    f"{path} has {other}, but no {part} {role}; call them {letter}_{short}"
                )
        pairs[part] = found[part, "images"], found[part, "labels"]
    return pairs


def _channels_last(what: str, images: Array, notes: list[str]) -> Array:
    """Images as (N, H, W, C), not copied."""
    if images.ndim not in (3, 4) or 0 in images.shape:
        raise InputError(
            f"{what} must be (N, H, W), (N, H, W, C) or (N, C, H, W) and not empty, not "
            f"{images.shape}"
        )
    if images.ndim == 3:
        return images[..., np.newaxis]
    if images.shape[1] in _CHANNELS and images.shape[3] > max(_CHANNELS):
        notes.append(f"{what} is {images.shape}, taken for (N, C, H, W)")
        return images.transpose(0, 2, 3, 1)
    return images


def _watched(path: Path) -> Watch:
    watch = Watch([path])
    watch.check(0)
    return watch


# Which value is black, and which is white.


def _range(
    what: str, images: Array | InFile, how: OwnImages, notes: list[str]
) -> tuple[float, float]:
    """Black and white, which the values must lie between."""
    if images.dtype.kind not in "iuf":
        raise InputError(f"{what} must be uint8, other integers or floats, not {images.dtype}")
    least, most = _extent(images)
    spread = f"{images.dtype} from {least:g} to {most:g}"
    usual = (0.0, 255.0) if images.dtype == np.uint8 else (0.0, 1.0)
    whole = images.dtype.kind in "iu" and images.dtype != np.uint8
    if whole and how.value_range is None:
        raise InputError(
            f"{what} must be uint8 or float in [0, 1], or say which values are black and white: it "
            f"is {spread}, perhaps value_range={_guess(least, most)}"
        )
    low, high = how.value_range or usual
    if not (math.isfinite(least) and math.isfinite(most)):
        raise InputError(f"{what} has values that are infinite or no numbers")
    if least < low or most > high:
        allowed = f"value_range={low:g},{high:g}"
        if how.value_range is None:
            allowed = f"[0, 1]; perhaps value_range={_guess(least, most)}"
        raise InputError(f"{what} is {spread}, and must be in {allowed}")
    if least < most and (most - low < (high - low) / 100 or low < 0 <= least):
        notes.append(
            f"{what} is {spread}, and black and white are {low:g} and {high:g}; "
            "value_range= says otherwise"
        )
    return low, high


def _guess(least: float, most: float) -> str:
    """The range that values most likely come from."""
    usual = ((0, 1), (-1, 1), (0, 255), (0, 65535))
    fitting = [pair for pair in usual if pair[0] <= least and most <= pair[1]]
    return show(fitting[0]) if fitting else f"{least:g},{most:g}"


def _extent(images: Array | InFile) -> tuple[float, float]:
    """The least and the largest value; both are NaN if any is."""
    ends = np.array([(chunk.min(), chunk.max()) for chunk in _chunks(images)], np.float64)
    return float(ends[:, 0].min()), float(ends[:, 1].max())


def _chunks(images: Array | InFile) -> Iterator[Any]:
    rows = max(1, _CHUNK // images[0].nbytes)
    return (images[at : at + rows] for at in range(0, len(images), rows))
