"""What a file or folder is that somebody calls a model: by its content, not by its name."""

import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from resfool import bounded
from resfool.errors import InputError, reading

Format = Literal["keras", "hdf5", "mlflow", "saved model"]

_BEGINNING = 4096  # bytes that tell
_HDF5 = b"\x89HDF\r\n\x1a\n"
_AGAIN = "in Python, load it and save it with model.save('model.keras')"


@dataclass(frozen=True)
class _Other:
    """A kind of file that isn't taken.

    Attributes:
        words: what it is.
        advice: what gets the model in all the same.
        fits: whether the first bytes of a file of some name are of this kind.
    """

    words: str
    advice: str
    fits: Callable[[bytes, str], bool]


_OTHERS = (
    _Other("empty", "copy or download it again", lambda start, _: not start),
    _Other(
        "a note of Git LFS that stands for the model",
        "fetch the model itself with `git lfs pull`",
        lambda start, _: start.startswith(b"version https://git-lfs"),
    ),
    _Other(
        "a web page",
        "download the model itself",
        lambda start, _: start.lstrip()[:15].lower().startswith((b"<!doctype", b"<html", b"<?xml")),
    ),
    _Other(
        "a TensorFlow Lite model, which has no gradient",
        "give the Keras model that it was converted from",
        lambda start, _: start[4:8] == b"TFL3",
    ),
    _Other(
        "an ONNX model, which isn't Keras's",
        "give the Keras model that it was exported from, or convert it, with onnx2keras for"
        " example, and save it with model.save('model.keras')",
        lambda start, name: name.endswith(".onnx") or (start[:1] == b"\x08" and b"onnx" in start),
    ),
    _Other(
        "a pickle, which runs code when it is read",
        f"if you trust it, {_AGAIN}",
        lambda start, name: start[:1] == b"\x80" or name.endswith((".pkl", ".pickle", ".joblib")),
    ),
    _Other(
        "a TensorFlow.js model",
        "convert it back with tensorflowjs_converter --input_format=tfjs_layers_model"
        " --output_format=keras",
        lambda start, _: start.lstrip()[:1] == b"{" and b"modelTopology" in start,
    ),
    _Other(
        "a network without weights",
        "in Python, make it with keras.models.model_from_json, load its weights and save it with"
        " model.save('model.keras')",
        lambda start, _: start.lstrip()[:1] == b"{" and b"class_name" in start,
    ),
    _Other(
        "a frozen TensorFlow graph",
        "give the Keras model that it was made from",
        lambda start, name: name.endswith((".pb", ".pbtxt")),
    ),
    _Other(
        "weights alone, of TensorFlow's checkpoints",
        "load them into their network in Keras and save it with model.save('model.keras')",
        lambda start, name: name.endswith((".index", ".ckpt")) or ".data-0000" in name,
    ),
)


def format_of(path: Path) -> Format:
    """What a model's file or folder is.

    Raises:
        InputError: nothing is there, or nothing that can be taken; the message says what it is,
            and what gets the model in.
    """
    if path.is_dir():
        return _format_of_folder(path)
    if not path.is_file():
        state = "is no file or folder" if path.exists() else "does not exist"
        raise InputError(
            f"a model is a .keras or .h5 file or an MLflow model folder; {path} {state}"
        )
    with reading(path), bounded.opened(path) as file:
        start = file.read(_BEGINNING)
        if start[:4] == b"PK\x03\x04":
            return _format_of_zip(path)
        # A user's own block may come before HDF5's first.
        for offset in (0, 512, 1024, 2048):
            if start[offset : offset + len(_HDF5)] == _HDF5:
                return "hdf5"
    for other in _OTHERS:
        if other.fits(start, path.name.lower()):
            raise InputError(f"{path} is {other.words}; {other.advice}")
    raise InputError(
        f"{path} is neither a .keras file nor HDF5, by what it begins with"
        f" ({start[:8].hex(' ')}); a model is a .keras or .h5 file or an MLflow model folder"
    )


def _format_of_folder(path: Path) -> Format:
    if (path / "MLmodel").is_file():
        return "mlflow"
    if (path / "saved_model.pb").is_file():
        return "saved model"
    if (path / "config.json").is_file() and (path / "model.weights.h5").is_file():
        raise InputError(
            f"{path} is an unpacked .keras file; pack its files into one zip archive named .keras"
        )
    raise InputError(
        f"{path} is not an MLflow model folder: it has no file MLmodel; nor has it a"
        " saved_model.pb. Give the .keras or .h5 file itself"
    )


def _format_of_zip(path: Path) -> Format:
    with zipfile.ZipFile(path) as archive:
        names = archive.namelist()
    if any(name.endswith("data.pkl") for name in names):
        raise InputError(
            f"{path} is a PyTorch model, which isn't Keras's; build the network in Keras, copy the"
            " weights and save it with model.save('model.keras')"
        )
    inside = [n for n in names if n.endswith((".keras", ".h5", ".hdf5", "saved_model.pb"))]
    if not {"config.json", "model.weights.h5"} & set(names) and inside:
        raise InputError(f"{path} is an archive; unpack it and give {bounded.plain(inside[0])}")
    return "keras"
