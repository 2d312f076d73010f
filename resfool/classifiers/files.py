"""A stranger's Keras classifier: found, checked and loaded without running its code.

A model is data from outside. MLflow's own loaders run whatever code an artifact names, so its
files are read here instead, and Keras is given only a copy that has been checked.
"""

import contextlib
import json
import math
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import yaml

from resfool import devices
from resfool.errors import InputError, expanded, reading, short

if TYPE_CHECKING:
    import keras

_MAX_PARAMETERS = 500_000_000
_TRUST = "; trust=yes loads it with MLflow's own loader, which may run the model's code"


def saved(model: "keras.Model") -> bytes:
    """A model as the content of its `.keras` file, to be sent elsewhere."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.keras"
        model.save(path)
        return path.read_bytes()


def load(path: Path, *, max_parameters: int = _MAX_PARAMETERS) -> "keras.Model":
    """Load a Keras model that nobody vouches for, without running code that it names.

    Args:
        path: a `.keras` file, or an MLflow model folder that holds one.
        max_parameters: the most weights that the model may have, counted before memory is taken.

    Returns:
        The model, not compiled: its optimizer, loss and metrics aren't looked at.

    Raises:
        InputError: the file is missing, damaged, too large or names code outside Keras.
    """
    file = find_keras_file(path)
    # Keras reads the copy that was checked, so that nobody can exchange the file in between.
    with _checked_copy(file, max_parameters) as folder:
        devices.start_tensorflow()
        import keras

        with keras_at_work(f"cannot load {file}"):
            _check_parameters(file, folder, max_parameters)
            model = keras.saving.load_model(folder, compile=False, safe_mode=True)
            if not model.built:
                raise InputError(f"{file}: the model was saved before it had weights")
            return model


def load_trusted(loader: Callable[[], Any], what: str) -> "keras.Model":
    """Load a Keras model by a loader that may run code of the model's.

    Args:
        loader: gives what is there.
        what: the model, for messages.

    Raises:
        InputError: the loader fails, or what it gives isn't a Keras model.
    """
    devices.start_tensorflow()
    import keras

    with keras_at_work(f"cannot load {what}"):
        model = loader()
        if not isinstance(model, keras.Model):
            raise InputError(f"{what} holds a {type(model).__name__}, not a Keras model")
        return model


def find_keras_file(path: Path) -> Path:
    """The `.keras` file of a model.

    Args:
        path: the file itself, or an MLflow model folder, whose MLmodel says where it is.

    Raises:
        InputError: there is none, or only MLflow's own loader could load the model.
    """
    path = expanded(path)
    if path.is_file() and path.suffix == ".keras":
        return path
    if not path.is_dir():
        state = "is not one" if path.exists() else "does not exist"
        raise InputError(f"a model is a .keras file or an MLflow model folder; {path} {state}")
    flavors = _read_flavors(path / "MLmodel")
    _check_python_function(path, flavors.get("python_function"))
    if "keras" not in flavors:
        raise InputError(
            f"{path} has the flavours {', '.join(map(str, flavors)) or 'none'}, not keras; log it"
            " with mlflow.keras.log_model or give the .keras file itself"
            f"{_TRUST if 'tensorflow' in flavors else ''}"
        )
    return _file_of_flavor(path, flavors["keras"])


def check_keras_file(path: Path) -> None:
    """Refuse a `.keras` file that isn't what it should be, or that names code outside Keras.

    Neither TensorFlow nor Keras is imported, and nothing in the file is run.

    Raises:
        InputError: the file is missing, damaged, too large or names code outside Keras.
    """
    with _checked_copy(path, _MAX_PARAMETERS):
        pass


# MLflow's model folder.

_LARGEST_MLMODEL = 1 << 20  # bytes; they have some thousand


def _read_flavors(path: Path) -> dict[Any, Any]:
    if not path.is_file():
        raise InputError(f"{path.parent} is not an MLflow model folder: it has no file MLmodel")
    with reading(path), path.open("rb") as file:
        content = file.read(_LARGEST_MLMODEL + 1)
        if len(content) > _LARGEST_MLMODEL:
            raise ValueError(f"over {_LARGEST_MLMODEL} bytes")
        described = yaml.safe_load(content)
        if not isinstance(described, dict) or not isinstance(described.get("flavors"), dict):
            raise ValueError("it has no mapping of flavours")
    return dict(described["flavors"])


def _check_python_function(path: Path, flavor: Any) -> None:
    """Refuse what MLflow would import from the folder or from elsewhere."""
    if flavor is None:
        return
    if not isinstance(flavor, dict):
        raise InputError(f"{path}: its python_function flavour is not a mapping{_TRUST}")
    if flavor.get("code") is not None:
        raise InputError(f"{path} brings code of its own in {flavor['code']!r}{_TRUST}")
    loader = flavor.get("loader_module")
    if loader not in (None, "mlflow.keras"):
        raise InputError(f"{path} names the loader {loader!r}, not 'mlflow.keras'{_TRUST}")


def _file_of_flavor(path: Path, flavor: Any) -> Path:
    """The file that the keras flavour names, found as `mlflow.keras.load_model` finds it."""
    if not isinstance(flavor, dict) or not isinstance(flavor.get("data", "model"), str):
        raise InputError(f"{path}: its keras flavour is not a mapping that names its data{_TRUST}")
    if flavor.get("save_exported_model") not in (None, False):
        raise InputError(
            f"{path} holds an exported graph (save_exported_model), which is no Keras model; log it"
            " without save_exported_model"
        )
    name = flavor.get("data", "model")
    data = _inside(path, name, name)
    if data.is_dir():
        _check_module_name(path, _inside(path, f"{name}/keras_module.txt", name))
        name = f"{name}/model"
    file = _inside(path, f"{name}.keras", name)
    if not file.is_file():
        raise InputError(f"{path}: its keras flavour names {name}.keras, and there is no such file")
    return file


def _inside(folder: Path, name: str, shown: str) -> Path:
    """A path below the folder, wherever symbolic links lead."""
    with reading(folder / "MLmodel"):
        target = (folder / name).resolve()
        if Path(name).is_absolute() or not target.is_relative_to(folder.resolve()):
            raise InputError(f"{folder}: its data {shown!r} lies outside of its folder{_TRUST}")
    return target


def _check_module_name(path: Path, file: Path) -> None:
    if not file.is_file():
        return
    with file.open("rb") as opened:
        module = opened.read(100).decode(errors="replace").strip()
    if module != "keras":
        raise InputError(f"{path}: keras_module.txt names the module {module!r}, not keras{_TRUST}")


# The .keras file: a zip with the architecture and the weights.

_CONFIG, _METADATA, _WEIGHTS = "config.json", "metadata.json", "model.weights.h5"
_LARGEST_CONFIG, _LARGEST_METADATA = 64 << 20, 1 << 20  # bytes
_BYTES_PER_PARAMETER = 16  # float64, or float32 with two moments of Adam
# Keras stores its members as they are; one that was recompressed shrinks by far less than this.
_LARGEST_EXPANSION, _SMALL = 100, 64 << 20


@contextlib.contextmanager
def _checked_copy(path: Path, max_parameters: int) -> Iterator[Path]:
    """A private folder with the members of a `.keras` file, all checked, as Keras reads them."""
    if not path.is_file():
        raise InputError(f"there is no file {path}")
    with tempfile.TemporaryDirectory(prefix="resfool-model-") as name:
        folder = Path(name)
        with reading(path):
            _unpack(path, folder, max_parameters)
            config = json.loads((folder / _CONFIG).read_bytes())
            _forget_compilation(config)
            _check_config(path, config)
            (folder / _CONFIG).write_text(json.dumps(config))
            _check_weights(folder / _WEIGHTS, max_parameters)
        yield folder


def _unpack(path: Path, folder: Path, max_parameters: int) -> None:
    largest = {
        _CONFIG: _LARGEST_CONFIG,
        _METADATA: _LARGEST_METADATA,
        _WEIGHTS: max(_SMALL, _BYTES_PER_PARAMETER * max_parameters),
    }
    with zipfile.ZipFile(path) as archive:
        # Keras makes the folder of assets for layers of text only; when empty, it is harmless.
        members = [m for m in archive.infolist() if m.filename != "assets/"]
        for member in members:
            if member.filename.startswith("assets/"):
                raise ValueError(
                    f"it has the asset {member.filename!r}, which only layers of text use"
                )
            if member.filename not in largest:
                raise ValueError(f"it has a member {member.filename!r}, which Keras doesn't write")
        if sorted(m.filename for m in members) != sorted(largest):
            raise ValueError(f"it must have {', '.join(sorted(largest))}, each once")
        for member in members:
            _extract(archive, member, folder / member.filename, largest[member.filename])


def _extract(archive: zipfile.ZipFile, member: zipfile.ZipInfo, target: Path, largest: int) -> None:
    if member.flag_bits & 1:
        raise ValueError(f"its member {member.filename} is encrypted")
    if member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise ValueError(f"its member {member.filename} is compressed in an unusual way")
    bound = min(largest, max(_SMALL, _LARGEST_EXPANSION * member.compress_size))
    if member.file_size > bound:
        raise ValueError(
            f"its member {member.filename} would have {member.file_size} bytes; {bound} are allowed"
        )
    with archive.open(member) as source, target.open("wb") as copy:
        _copy_bounded(source, copy, bound)


def _copy_bounded(source: IO[bytes], copy: IO[bytes], bound: int) -> None:
    """Copy no more than was declared: what a member declares and what it holds may differ."""
    left = bound
    while chunk := source.read(1 << 20):
        left -= len(chunk)
        if left < 0:
            raise ValueError(f"a member has more than {bound} bytes")
        copy.write(chunk)


# config.json: nested dicts that name classes and functions, which Keras looks up and calls.

_DEEPEST = 200  # containers; a model in a model in a model has about 20
# The parts of Keras whose classes make up models. Others read files or fetch from the network.
_PARTS = {
    *("constraints", "dtype_policies", "initializers", "layers", "mixed_precision", "models"),
    *("ops", "quantizers", "random", "regularizers"),
}
_TOP_LEVEL = {
    *("DTypePolicy", "FloatDTypePolicy", "Functional", "Initializer", "Layer", "Model"),
    *("Quantizer", "Regularizer", "Sequential"),
}
# Those whose functions compute, and no more: keras.models has load_model among its own.
_FUNCTION_PARTS = {"activations", "initializers", "ops", "regularizers"}
# A function given by its name alone; Keras writes a user's own in the same way.
_ACTIVATIONS = {
    *("celu", "elu", "exponential", "gelu", "glu", "hard_shrink", "hard_sigmoid", "hard_silu"),
    *("hard_swish", "hard_tanh", "leaky_relu", "linear", "log_sigmoid", "log_softmax", "mish"),
    *("relu", "relu6", "selu", "sigmoid", "silu", "soft_shrink", "softmax", "softplus"),
    *("softsign", "sparse_plus", "sparse_sigmoid", "sparsemax", "squareplus", "swish", "tanh"),
    *("tanh_shrink", "threshold"),
}
# Keras's layers whose content is somebody's code: Python bytecode, a saved graph, a pickle.
_CODE = {"Lambda", "TFSMLayer", "TorchModuleWrapper", "JaxLayer", "FlaxLayer"}
# Plain values that JSON lacks. "__lambda__" and "__typespec__" are left out on purpose.
_VALUES = {"__keras_tensor__", "__tensor__", "__numpy__", "__bytes__", "__ellipsis__", "__slice__"}


def _forget_compilation(config: Any) -> None:
    """Drop optimizers, losses and metrics, which attacks don't need.

    Keras leaves only the outermost out when told not to compile; it would still make those of a
    model inside the model, where a custom loss is as common.
    """
    for node in _nodes(config):
        if "class_name" in node:
            node.pop("compile_config", None)


def _check_config(path: Path, config: Any) -> None:
    if not isinstance(config, dict) or "class_name" not in config:
        raise ValueError(f"{_CONFIG} doesn't describe a model")
    for node in _nodes(config):
        if "class_name" in node:
            _check_named(path, node)


def _nodes(config: Any) -> Iterator[dict[str, Any]]:
    """All dicts in a JSON value, each before what it holds; without recursion, which has limits."""
    waiting = [(config, 1)]
    while waiting:
        value, depth = waiting.pop()
        if depth > _DEEPEST:
            raise ValueError(f"{_CONFIG} is nested deeper than {_DEEPEST} levels")
        if isinstance(value, dict):
            yield value
            waiting.extend((inner, depth + 1) for inner in value.values())
        elif isinstance(value, list):
            waiting.extend((inner, depth + 1) for inner in value)


def _check_named(path: Path, node: dict[str, Any]) -> None:
    """Refuse a dict that names anything but a value or a part that Keras itself has."""
    kind, module, content = node["class_name"], node.get("module"), node.get("config")
    if isinstance(kind, str) and kind in _VALUES:
        return
    name = content if kind == "function" else kind
    registered = node.get("registered_name")
    label = content.get("name") if isinstance(content, dict) else None
    described = f"its {'function' if kind == 'function' else 'layer or object'} {label or name!r}"
    if isinstance(registered, str) and registered != name:
        described += f" ({registered})"
    elif label is not None:
        described += f" ({name})"
    if name in _CODE or kind == "__lambda__":
        raise InputError(f"{path}: {described} holds code of its own{_TRUST}")
    if not _is_keras(module, kind, name) or registered not in (None, kind, name):
        raise InputError(
            f"{path}: {described} is code outside Keras's layers and functions,"
            f" of {module!r}{_TRUST}"
        )


def _is_keras(module: Any, kind: Any, name: Any) -> bool:
    if not isinstance(module, str) or not isinstance(name, str):
        return False
    if module == "builtins":
        return kind == "function" and name in _ACTIVATIONS
    package, *parts = module.split(".")
    if package != "keras":
        return False
    public = parts[1:] if parts[:1] == ["src"] else parts
    # Keras also looks functions up where a class is named, and gives them out uncalled.
    if kind == "function" or not name[:1].isupper():
        return bool(public) and public[0] in _FUNCTION_PARTS
    if parts[:2] == ["src", "applications"]:  # ConvNeXt's layers; keras.applications has functions
        return True
    return public[0] in _PARTS if public else name in _TOP_LEVEL


# model.weights.h5: groups and arrays, but HDF5 can also point out of the file.


def _check_weights(path: Path, max_parameters: int) -> None:
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
                    raise ValueError(f"{_WEIGHTS} has a link at {key!r} that may leave the file")
                member = group[key]
                if isinstance(member, h5py.Group):
                    waiting.append(member)
                else:
                    elements += _elements(key, member)
                if elements > 4 * max_parameters:  # Adam saves two more for each
                    raise ValueError(
                        f"{_WEIGHTS} declares {elements} numbers or more;"
                        f" {max_parameters} parameters are allowed"
                    )


def _elements(key: str, member: Any) -> int:
    """How many numbers an array declares, or reads at once."""
    import h5py

    if not isinstance(member, h5py.Dataset):
        raise ValueError(f"{_WEIGHTS} has {key!r}, which is not an array")
    if member.external or member.is_virtual:
        raise ValueError(f"{_WEIGHTS} has an array {key!r} whose content is in other files")
    # V: two raw bytes are how bfloat16 is stored.
    if member.dtype.kind not in "biufV" or member.dtype.itemsize > 8 or member.dtype.hasobject:
        raise ValueError(f"{_WEIGHTS} has an array {key!r} of {member.dtype}, not of numbers")
    if member.shape is None:
        return 0
    return max(math.prod(member.shape), math.prod(member.chunks or ()))


# Keras at work.


@contextlib.contextmanager
def keras_at_work(what: str) -> Iterator[None]:
    try:
        yield
    except InputError:
        raise
    except Exception as error:
        raise InputError(f"{what}: Keras refuses it ({short(error)})") from error


def _check_parameters(file: Path, folder: Path, max_parameters: int) -> None:
    """Build the model without giving its weights memory, and count them."""
    import keras
    from keras.src.backend.common import global_state

    config = json.loads((folder / _CONFIG).read_bytes())
    waiting = "uninitialized_variables"
    before = list(global_state.get_global_attribute(waiting) or [])
    try:
        with keras.StatelessScope(initialize_variables=False):
            model = keras.saving.deserialize_keras_object(config, safe_mode=True)
            if not isinstance(model, keras.Model):
                raise InputError(f"{file} holds a {type(model).__name__}, not a model")
            count = sum(math.prod(variable.shape) for variable in model.variables)
    finally:
        # Else the next scope's end would allocate them all.
        global_state.set_global_attribute(waiting, before)
    if count > max_parameters:
        raise InputError(
            f"{file}: the model has {count:,} parameters; {max_parameters:,} are allowed"
        )
