"""HDF5 as Keras writes it: groups and arrays. But it can also point out of the file."""

import math
from pathlib import Path
from typing import Any

from resfool import limits
from resfool.bounded import quoted
from resfool.errors import InputError

CONFIG, _VERSION, _COMPILATION = "model_config", "keras_version", "training_config"
_LARGEST_TEXT = 64 << 20  # bytes of a config
_MOST_MEMBERS = 30_000  # groups and arrays; a thousand layers with an optimizer have about 10,000


def check_arrays(path: Path, shown: Path) -> None:
    """Refuse a file that holds more than numbers, that points elsewhere, or is too large.

    Args:
        path: of a file with the weights of a model, and perhaps more.
        shown: the model's file, for people.

    Raises:
        InputError: its arrays take more memory than they may.
        ValueError: it is refused.
        OSError: it is damaged.
    """
    import h5py

    with h5py.File(path, "r") as file:
        size, members, seen, waiting = 0, 0, set(), [file]
        while waiting:
            group = waiting.pop()
            address = h5py.h5o.get_info(group.id).addr
            if address in seen:  # hard links may form a ring
                continue
            seen.add(address)
            for key in group:
                members += 1
                if members > _MOST_MEMBERS:
                    raise ValueError(f"{path.name} has more than {_MOST_MEMBERS} groups and arrays")
                if not isinstance(group.get(key, getlink=True), h5py.HardLink):
                    raise ValueError(
                        f"{path.name} has a link at {quoted(key)} that may leave the file"
                    )
                member = group[key]
                if isinstance(member, h5py.Group):
                    waiting.append(member)
                else:
                    size += _size(path, key, member)
        limits.check_memory(f"{shown}: its {path.name}", size)


def _size(path: Path, key: str, member: Any) -> int:
    """The bytes that an array declares, or reads at once."""
    import h5py

    if not isinstance(member, h5py.Dataset):
        raise ValueError(f"{path.name} has {quoted(key)}, which is not an array")
    if member.external or member.is_virtual:
        raise ValueError(f"{path.name} has an array {quoted(key)} whose content is in other files")
    # V: two raw bytes are how bfloat16 is stored.
    if member.dtype.kind not in "biufV" or member.dtype.itemsize > 8 or member.dtype.hasobject:
        raise ValueError(
            f"{path.name} has an array {quoted(key)} of {member.dtype}, not of numbers"
        )
    if member.shape is None:
        return 0
    return member.dtype.itemsize * max(math.prod(member.shape), math.prod(member.chunks or ()))


# Whole models, as Keras 1 to 3 and TensorFlow wrote them.


def read_config(path: Path, shown: Path) -> tuple[bytes, str]:
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
        place = file if _VERSION in file.attrs else file["model_weights"]
        version = _text(place, _VERSION) if _VERSION in place.attrs else b""
        return _text(file, CONFIG), version.decode()


def write_config(path: Path, config: str) -> None:
    """Exchange a whole model's config, and drop its loss, optimizer and their state."""
    import h5py

    with h5py.File(path, "r+") as file:
        file.attrs[CONFIG] = config
        file.attrs.pop(_COMPILATION, None)


def _text(place: Any, name: str) -> bytes:
    """A text among the attributes of a file or group."""
    attribute = place.attrs.get_id(name)
    # An array could name one long text again and again.
    if attribute.shape != () or attribute.get_storage_size() > _LARGEST_TEXT:
        raise ValueError(f"its {name} is no text of at most {_LARGEST_TEXT} bytes")
    value = place.attrs[name]
    text = value if isinstance(value, bytes) else str(value).encode()
    if len(text) > _LARGEST_TEXT:
        raise ValueError(f"its {name} has more than {_LARGEST_TEXT} bytes")
    return text
