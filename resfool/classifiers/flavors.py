"""MLflow's model folder: where the Keras model in it is, without believing what it says."""

from pathlib import Path
from typing import Any

from resfool import bounded
from resfool.bounded import quoted
from resfool.errors import InputError, present, reading

_LARGEST_MLMODEL = 1 << 20  # bytes; they have some thousand
_SUFFIXES = (".keras", ".h5", ".hdf5")
# MLflow's own loaders of the flavours that hold Keras models.
_LOADERS = {"keras": "mlflow.keras", "tensorflow": "mlflow.tensorflow"}


def file_in(path: Path, trust: str) -> Path:
    """The file of the Keras model in an MLflow model folder.

    Args:
        path: of the folder.
        trust: how to load it all the same, for messages.

    Raises:
        InputError: there is none, or only MLflow's own loader could load the model.
    """
    flavors = _read_flavors(path / "MLmodel")
    _check_python_function(path, flavors.get("python_function"), trust)
    flavor = next((name for name in _LOADERS if name in flavors), None)
    if flavor is None:
        raise InputError(
            f"{path} has the flavours {bounded.named(flavors) or 'none'}, not keras; log it"
            " with mlflow.keras.log_model or give the .keras file itself"
        )
    return _file_of_flavor(path, flavor, flavors[flavor], trust)


def _read_flavors(path: Path) -> dict[Any, Any]:
    with reading(path), bounded.opened(path) as file:
        described = bounded.from_yaml(bounded.content(file, _LARGEST_MLMODEL))
        if not isinstance(described, dict) or not isinstance(described.get("flavors"), dict):
            raise ValueError("it has no mapping of flavours")
    return dict(described["flavors"])


def _check_python_function(path: Path, flavor: Any, trust: str) -> None:
    """Refuse what MLflow would import from the folder or from elsewhere."""
    if flavor is None:
        return
    if not isinstance(flavor, dict):
        raise InputError(f"{path}: its python_function flavour is not a mapping{trust}")
    if flavor.get("code") is not None:
        raise InputError(f"{path} brings code of its own in {quoted(flavor['code'])}{trust}")
    loader = flavor.get("loader_module")
    if loader is not None and loader not in _LOADERS.values():
        raise InputError(f"{path} names the loader {quoted(loader)}, not 'mlflow.keras'{trust}")


def _file_of_flavor(path: Path, name: str, flavor: Any, trust: str) -> Path:
    """The file that a flavour names, found as MLflow finds it."""
    if not isinstance(flavor, dict) or not isinstance(flavor.get("data", "model"), str):
        raise InputError(f"{path}: its {name} flavour is not a mapping that names its data{trust}")
    if flavor.get("save_exported_model") not in (None, False):
        raise InputError(
            f"{path} holds an exported graph (save_exported_model), which is no Keras model; log it"
            " without save_exported_model"
        )
    named = flavor.get("data", "model")
    data = _inside(path, named, named, trust)
    place = named
    if present(data, Path.is_dir):
        _check_module_name(path, _inside(path, f"{named}/keras_module.txt", named, trust), trust)
        place = f"{named}/model"
    for suffix in _SUFFIXES:
        file = _inside(path, place + suffix, named, trust)
        if present(file, Path.is_file):
            return file
    if present(path / place, Path.is_dir):
        raise InputError(
            f"{path} holds a SavedModel of TensorFlow, which is a program{trust}; or log the model"
            " with mlflow.keras.log_model"
        )
    raise InputError(
        f"{path}: its {name} flavour names {bounded.plain(place)}.keras, and there is no such file"
    )


def _inside(folder: Path, name: str, shown: str, trust: str) -> Path:
    """A path below the folder, wherever symbolic links lead."""
    with reading(folder / "MLmodel"):
        target = (folder / name).resolve()
        if Path(name).is_absolute() or not target.is_relative_to(folder.resolve()):
            raise InputError(
                f"{folder}: its data {quoted(shown)} lies outside of its folder{trust}"
            )
    return target


def _check_module_name(path: Path, file: Path, trust: str) -> None:
    if not file.is_file():
        return
    with bounded.opened(file) as opened:
        module = opened.read(100).decode(errors="replace").strip()
    # That of TensorFlow is Keras's too, where there is no other one.
    if module not in ("keras", "tensorflow.keras", "tf_keras"):
        raise InputError(
            f"{path}: keras_module.txt names the module {quoted(module)}, not keras{trust}"
        )
