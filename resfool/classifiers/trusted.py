"""Models that may run code of their own, because somebody vouches for them."""

import contextlib
import importlib
import importlib.util
import inspect
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import keras
import tensorflow as tf

from resfool.classifiers import configs
from resfool.classifiers.refusals import keras_at_work
from resfool.errors import InputError, expanded, present


@contextlib.contextmanager
def at_hand(modules: Sequence[str]) -> Iterator[dict[str, Any]]:
    """Import modules, and give their classes and functions by name, which Keras finds within.

    Args:
        modules: names, or paths of `.py` files.

    Raises:
        InputError: one can't be imported.
    """
    own: dict[str, Any] = {}
    for module in map(_imported, modules):
        own |= _own(module)
    with keras.saving.custom_object_scope(own):
        yield own


def _own(module: ModuleType) -> dict[str, Any]:
    """What a module defines itself."""
    return {
        name: value
        for name, value in vars(module).items()
        if (inspect.isclass(value) or inspect.isfunction(value))
        and value.__module__ == module.__name__
    }


def named_in(config: Any) -> dict[str, Any]:
    """The classes and functions of modules that a model's config names, as far as they are here."""
    named = {str(node["module"]) for node in configs.nodes(config) if node.get("module")}
    found: dict[str, Any] = {}
    for place in sorted(named):
        if place.partition(".")[0] not in ("keras", "builtins"):
            with contextlib.suppress(Exception):
                found |= _own(_import_by_name(place))
    return found


def _imported(name: str) -> ModuleType:
    try:
        if not name.endswith(".py"):
            return _import_by_name(name)
        path = expanded(name)
        if not present(path, Path.is_file):
            raise InputError(f"modules={name}: there is no such file")
        spec = importlib.util.spec_from_file_location(path.stem, path)
        assert spec is not None and spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules[path.stem] = module
        spec.loader.exec_module(module)
        return module
    except InputError:
        raise
    except Exception as error:
        raise InputError(
            f"modules={name} can't be imported ({type(error).__name__}: {error}); give a module"
            " that Python finds from here, or the path of a .py file"
        ) from error


def _import_by_name(name: str) -> ModuleType:
    """A module as Python run from the working directory finds it."""
    sys.path.insert(0, str(Path.cwd()))
    try:
        return importlib.import_module(name)
    finally:
        sys.path.pop(0)


def load_by(loader: Callable[[], Any], path: Path) -> keras.Model:
    """A model by MLflow's own loader.

    Raises:
        InputError: the loader fails, or what it gives isn't a Keras model.
    """
    with keras_at_work(f"cannot load {path}"):
        model = loader()
        if not isinstance(model, keras.Model):
            raise InputError(f"{path} holds a {type(model).__name__}, not a Keras model")
        return model


_SERVING = ("serve", "serving_default")  # as Keras 3 and its predecessors called it


def load_saved_model(path: Path) -> keras.Model:
    """A SavedModel of TensorFlow as a Keras model with one input.

    Raises:
        InputError: it has no signature for images, or can't be loaded.
    """
    with keras_at_work(f"cannot load {path}"):
        signatures = tf.saved_model.load(str(path)).signatures
        name = next((one for one in _SERVING if one in signatures), None)
        if name is None:
            raise InputError(f"{path}: this SavedModel has no signature {' or '.join(_SERVING)}")
        _, taken = signatures[name].structured_input_signature
        if len(taken) != 1:
            raise InputError(
                f"{path}: its signature {name} takes {len(taken)} inputs; one, the"
                " image, is allowed"
            )
        (spec,) = taken.values()
        images = keras.Input(batch_shape=spec.shape, dtype=spec.dtype.name)
        given = keras.layers.TFSMLayer(str(path), call_endpoint=name)(images)
        outputs = given if isinstance(given, dict) else {"output": given}
        model = keras.Model(images, list(outputs.values()), name=path.name)
        model.output_names = list(outputs)
        return model
