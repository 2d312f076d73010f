"""HDF5 as Keras writes it: groups and arrays. But it can also point out of the file."""

import math
from pathlib import Path
from typing import Any

from resfool.errors import InputError

CONFIG, _VERSION, _COMPILATION = "model_config", "keras_version", "training_config"
_LARGEST_CONFIG = 64 << 20  # bytes


def check_arrays(path: Path, max_parameters: int) -> None:
    """Refuse a file that holds more than numbers, that points elsewhere, or is too large.

    Args:
        path: of a file with the weights of a model, and perhaps more.
        max_parameters: the most that the model may have.

    Raises:
        ValueError: it is refused.
        OSError: it is damaged.
    """
    import h5py

    with h5py.File(path, "r") as file:
        elements, seen, waiting = 0, set(), [file]
        while waiting:
            group = waiting.pop()
            address = h5py.h5o.get_info(group.id).addr
            if address in seen:  # hard links may form a ring
                continue
            seen.add(address)
            for key in group:
                if not isinstance(group.get(key, getlink=True), h5py.HardLink):
                    raise ValueError(f"{path.name} has a link at {key!r} that may leave the file")
                member = group[key]
                if isinstance(member, h5py.Group):
                    waiting.append(member)
                else:
                    elements += _elements(path, key, member)
                if elements > 4 * max_parameters:  # Adam saves two more for each
                    raise ValueError(
                        f"{path.name} declares {elements} numbers or more;"
                        f" {max_parameters} parameters are allowed"
                    )


def _elements(path: Path, key: str, member: Any) -> int:
    """How many numbers an array declares, or reads at once."""
    import h5py

    if not isinstance(member, h5py.Dataset):
        raise ValueError(f"{path.name} has {key!r}, which is not an array")
    if member.external or member.is_virtual:
        raise ValueError(f"{path.name} has an array {key!r} whose content is in other files")
    # V: two raw bytes are how bfloat16 is stored.
    if member.dtype.kind not in "biufV" or member.dtype.itemsize > 8 or member.dtype.hasobject:
        raise ValueError(f"{path.name} has an array {key!r} of {member.dtype}, not of numbers")
    if member.shape is None:
        return 0
    return max(math.prod(member.shape), math.prod(member.chunks or ()))


# Whole models, as Keras 1 to 3 and TensorFlow wrote them.


def read_config(path: Path, shown: Path) -> tuple[str, str]:
    """The config of a whole model, as JSON, and the version of the Keras that wrote it.

    Args:
        path: of the file.
        shown: the same for people.

    Raises:
        InputError: it holds weights alone.
        ValueError: the config is too large.
    """
    import h5py

    with h5py.File(path, "r") as file:
        if CONFIG not in file.attrs:
            raise InputError(
                f"{shown} holds weights alone, or no model of Keras; load them into the network"
                " they belong to in Keras, and save the whole with model.save('model.keras')"
            )
        if file.attrs.get_id(CONFIG).get_storage_size() > _LARGEST_CONFIG:
            raise ValueError(f"its config has more than {_LARGEST_CONFIG} bytes")
        config = _text(file.attrs[CONFIG])
        version = _text(file.attrs.get(_VERSION, file["model_weights"].attrs.get(_VERSION, "")))
        return config, version


def write_config(path: Path, config: str) -> None:
    """Exchange a whole model's config, and drop its loss, optimizer and their state."""
    import h5py

    with h5py.File(path, "r+") as file:
        file.attrs[CONFIG] = config
        file.attrs.pop(_COMPILATION, None)


def _text(value: Any) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)
