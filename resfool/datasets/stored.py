"""Data sets as they are stored, and the user's own arrays."""

import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from resfool.errors import InputError, reading

Array = npt.NDArray[Any]
PerClass = tuple[int, int, int]


@dataclass(frozen=True)
class Pool:
    """Images as stored, (N, H, W, C) of any type, where the value `white` stands for 1.0."""

    images: Array
    labels: Array
    white: int


@dataclass(frozen=True)
class Stored:
    """A data set as it is stored.

    It has one pool for all splits, or one to train and validate on and one to test on, or three.
    """

    pools: tuple[Pool, ...]
    class_names: tuple[str, ...]
    source: str
    default: PerClass | None = None


def read_npz(path: Path) -> Stored:
    with reading(path):
        if not zipfile.is_zipfile(path):
            raise ValueError("not an npz archive")
        with np.load(path, allow_pickle=False) as archive:
            splits = ("train", "val", "test") if "x_val" in archive else ("train", "test")
            wanted = [f"{array}_{split}" for split in splits for array in "xy"]
            absent = [key for key in wanted if key not in archive]
            if absent:
                raise InputError(f"{path} has no array {absent[0]!r}; it has {', '.join(archive)}")
            pools = tuple(_check_pool(path, split, archive) for split in splits)
    shapes = {pool.images.shape[1:] for pool in pools}
    if len(shapes) > 1:
        raise InputError(f"{path}: all images must have one shape, not {sorted(shapes)}")
    classes = 1 + max(int(pool.labels.max()) for pool in pools)
    if classes == 1:
        raise InputError(f"{path}: all labels are 0; a classifier needs two classes or more")
    return Stored(pools, tuple(map(str, range(classes))), str(path))


def _check_pool(path: Path, split: str, archive: Any) -> Pool:
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
    return Pool(images, labels.reshape(-1).astype(np.int64), white=1 if unit else 255)
