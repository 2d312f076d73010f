"""A stranger's Keras classifier: found, checked and loaded without running its code.

A model is data from outside. MLflow's own loaders run whatever code an artifact names, so its
files are read here instead, and Keras is given only a copy that has been checked.
"""

import contextlib
import json
import shutil
import tempfile
import zipfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from resfool import bounded, devices, limits
from resfool.bounded import plain, quoted
from resfool.classifiers import configs, flavors, hdf5
from resfool.classifiers.configs import TRUST
from resfool.classifiers.formats import format_of
from resfool.classifiers.refusals import keras_at_work
from resfool.errors import InputError, expanded, reading

if TYPE_CHECKING:
    import keras

_MODULES = "; modules=NAME or modules=PATH.py says where classes of the model's own are"

Own = dict[str, Any]  # classes and functions of a model's own, by name


def saved(model: "keras.Model") -> bytes:
    """A model as the content of its `.keras` file, to be sent elsewhere."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.keras"
        model.save(path)
        return path.read_bytes()


def load(path: Path) -> "keras.Model":
    """Load a Keras model that nobody vouches for, without running code that it names.

    What it takes is bounded only as far as can be told without loading it: see `rehearsal`.

    Args:
        path: a `.keras` file, an HDF5 file of a whole model, or an MLflow model folder with one.

    Returns:
        The model, not compiled: its optimizer, loss and metrics aren't looked at.

    Raises:
        InputError: the file is missing, damaged, too large or names code outside Keras.
    """
    return _load(find_file(path))


def load_trusted(
    path: Path, loader: Callable[[], Any] | None = None, modules: Sequence[str] = ()
) -> "keras.Model":
    """Load a Keras model that may run code of its own.

    Args:
        path: a file as `load` takes it, an MLflow model folder or a SavedModel.
        loader: MLflow's own, for a folder of its that holds something else.
        modules: that have classes and functions of the model's: names, or paths of `.py` files.

    Raises:
        InputError: a module can't be imported, loading fails, or what is there isn't a Keras model.
    """
    from resfool.classifiers import trusted

    path = expanded(path)
    kind = format_of(path)
    devices.start_keras()
    with trusted.at_hand(modules) as own:
        if kind == "saved model":
            return trusted.load_saved_model(path)
        if kind == "mlflow":
            try:
                file = flavors.file_in(path, TRUST)
            except InputError:
                if loader is None:
                    raise
                return trusted.load_by(loader, path)
            return _load(file, own)
        return _load(path, own)


def find_file(path: Path) -> Path:
    """The file of a model.

    Args:
        path: the file itself, or an MLflow model folder, whose MLmodel says where it is.

    Raises:
        InputError: there is none, or it isn't taken as it is; the message says what gets it in.
    """
    path = expanded(path)
    kind = format_of(path)
    if kind == "saved model":
        raise InputError(
            f"{path} is a SavedModel of TensorFlow, which is a program and no Keras model{TRUST}"
        )
    return flavors.file_in(path, TRUST) if kind == "mlflow" else path


def check(path: Path) -> None:
    """Refuse a model's file that isn't what it should be, or that names code outside Keras.

    Neither TensorFlow nor Keras is imported, and nothing in the file is run.

    Raises:
        InputError: the file is missing, damaged, too large or names code outside Keras.
    """
    with _checked_copy(path):
        pass


def _load(file: Path, own: Own | None = None) -> "keras.Model":
    """Load a file; with classes and functions of the model's own, whatever it names."""
    trust = own is not None
    # Keras reads the copy that was checked, so that nobody can exchange the file in between.
    with _checked_copy(file, trust=trust) as copy:
        devices.start_keras()
        import keras

        from resfool.classifiers import operations, trusted

        more = copy.made_by if own is None else f"{copy.made_by}{_MODULES}"
        with keras_at_work(f"cannot load {file}", more):
            config = copy.read()
            configs.drop_neutral(config)
            if copy.legacy and not trust:
                configs.check_legacy_names(str(file), config)
            copy.write(config)
            known: dict[str, Any] = {configs.OPERATION: operations.TFOpLambda}
            if own is not None:
                known |= trusted.named_in(config) | own
            model = keras.saving.load_model(
                copy.path, custom_objects=known, compile=False, safe_mode=not trust
            )
            if not isinstance(model, keras.Model):
                raise InputError(f"{file} holds a {type(model).__name__}, not a model")
            if not model.built:
                raise InputError(f"{file}: the model was saved before it had weights")
            return model


# The copy that Keras reads.


@dataclass(frozen=True)
class _Copy:
    """A private copy of a model's file, as Keras reads it.

    Attributes:
        path: a `.h5` file, or the folder with the members of a `.keras` file.
        version: of the Keras that wrote it; empty if it doesn't tell.
    """

    path: Path
    version: str

    @property
    def legacy(self) -> bool:
        """Whether it is of the format before `.keras`."""
        return self.path.suffix == ".h5"

    @property
    def made_by(self) -> str:
        """What to add to a refusal of Keras's."""
        import keras

        if not self.version or self.version == keras.__version__:
            return ""
        return (
            f"; the file was written by Keras {self.version}, and this is Keras {keras.__version__}"
        )

    def read(self) -> Any:
        """The model's config."""
        if self.legacy:
            return bounded.from_json(hdf5.read_config(self.path, self.path)[0])
        return bounded.from_json((self.path / _CONFIG).read_bytes())

    def write(self, config: Any) -> None:
        """Exchange the model's config."""
        if self.legacy:
            hdf5.write_config(self.path, json.dumps(config))
        else:
            (self.path / _CONFIG).write_text(json.dumps(config))


@contextlib.contextmanager
def _checked_copy(path: Path, *, trust: bool = False) -> Iterator[_Copy]:
    """A private copy of a model's file, all checked."""
    kind = format_of(path)
    with tempfile.TemporaryDirectory(prefix="resfool-model-") as name:
        folder = Path(name)
        with reading(path):
            make = _copy_hdf5 if kind == "hdf5" else _copy_zip
            copy = make(path, folder)
            config = copy.read()
            configs.forget_compilation(config)
            configs.mend(config)
            if not trust:
                configs.check(str(path), config, legacy=copy.legacy)
            copy.write(config)
        yield copy


def _copy_hdf5(path: Path, folder: Path) -> _Copy:
    target = folder / "model.h5"
    limits.check_memory(str(path), path.stat().st_size)
    shutil.copyfile(path, target)
    hdf5.check_arrays(target, path)
    return _Copy(target, plain(hdf5.read_config(target, path)[1]))


def _copy_zip(path: Path, folder: Path) -> _Copy:
    _unpack(path, folder)
    hdf5.check_arrays(folder / _WEIGHTS, path)
    metadata = bounded.from_json((folder / _METADATA).read_bytes())
    version = metadata.get("keras_version", "") if isinstance(metadata, dict) else ""
    return _Copy(folder, plain(version))


# The .keras file: a zip with the architecture and the weights.

_CONFIG, _METADATA, _WEIGHTS = "config.json", "metadata.json", "model.weights.h5"
_LARGEST_CONFIG, _LARGEST_METADATA = 64 << 20, 1 << 20  # bytes
# Keras stores its members as they are; one that was recompressed shrinks by far less than this.
_LARGEST_EXPANSION, _SMALL = 100, 64 << 20


def _unpack(path: Path, folder: Path) -> None:
    largest = {_CONFIG: _LARGEST_CONFIG, _METADATA: _LARGEST_METADATA, _WEIGHTS: limits.memory()}
    with zipfile.ZipFile(path) as archive:
        # Keras makes the folder of assets for layers of text only; when empty, it is harmless.
        members = [m for m in archive.infolist() if m.filename != "assets/"]
        for member in members:
            if member.filename.startswith("assets/"):
                raise ValueError(
                    f"it has the asset {quoted(member.filename)}, which only layers of text use"
                )
            if member.filename not in largest:
                raise ValueError(
                    f"it has a member {quoted(member.filename)}, which Keras doesn't write"
                )
        if sorted(m.filename for m in members) != sorted(largest):
            raise ValueError(f"it must have {', '.join(sorted(largest))}, each once")
        limits.check_memory(str(path), sum(member.file_size for member in members))
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
