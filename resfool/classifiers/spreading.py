"""Work on images in blocks that are the same whoever does them: this process, or workers.

What is computed of an image may differ in its last bits with the images that pass through the
network beside it, and with the threads that a sum is divided over. So blocks have a fixed size, and
a worker's threads a fixed number; how many workers there are decides nothing.
"""

import functools
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from inspect import isfunction
from pathlib import Path
from types import ModuleType
from typing import Any, Protocol

import cloudpickle
import keras
import numpy as np
import tensorflow as tf

from resfool import devices
from resfool.classifiers import configs, files, inference
from resfool.classifiers.inference import Rows
from resfool.errors import InputError
from resfool.monitor import Advance, quiet

Columns = Mapping[str, np.ndarray]  # what was found of some images: by name, (n, ...) each
# Of a model, rows of some arrays and options; among the options is `progress`, an Advance.
Function = Callable[..., Columns]
_LEAST_WORK = 5e10  # multiplications of forward passes, from which workers are worth their start


class Map(Protocol):
    """What runs independent tasks, such as `parallel.map` with a backend."""

    def __call__(
        self,
        function: Callable[[Any], Any],
        items: Sequence[Any],
        *,
        finished: Mapping[int, Any],
        keep: Callable[[int, Any], None],
        hold: bool,
        what: str,
    ) -> list[Any]:
        """The function's results in the items' order: see `parallel.map`."""


@dataclass(frozen=True)
class Sent:
    """A classifier as it travels to other processes.

    Attributes:
        file: the content of its `.keras` file.
        own: its own classes and functions by name, pickled with their code.
    """

    file: bytes
    own: bytes

    @classmethod
    def of(cls, model: keras.Model) -> "Sent":
        """A classifier that is to travel.

        Raises:
            InputError: it can't.
        """
        try:
            config = keras.saving.serialize_keras_object(model)
            if any(node.get("class_name") == "TFSMLayer" for node in configs.nodes(config)):
                raise ValueError("it is a SavedModel, which its folder is a part of")
            return cls(files.saved(model), _own(model, config))
        except Exception as error:
            raise InputError(
                f"the model can't be sent to workers ({type(error).__name__}: {error}); leave "
                "backend, workers and cpus_per_worker out"
            ) from error

    @functools.cached_property
    def model(self) -> keras.Model:
        """Loaded once in each process."""
        devices.start_keras()
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "model.keras"
            path.write_bytes(self.file)
            # It was checked, or is trusted, where it was loaded first.
            own = cloudpickle.loads(self.own)
            return keras.saving.load_model(path, own, compile=False, safe_mode=False)


def _own(model: keras.Model, config: Any) -> bytes:
    """What a model's config names that isn't Keras's, by its names, pickled.

    Installed packages and this one are found by a worker; the code of others goes with them.
    """
    layers = model._flatten_layers()
    functions = {f.__name__: f for one in layers for f in vars(one).values() if isfunction(f)}
    own: dict[str, Any] = {}
    with ExitStack() as stack:
        for node in configs.nodes(config):
            if node.get("class_name") == "function":  # the config doesn't tell its module
                thing = functions.get(str(node.get("config")))
            else:
                module = sys.modules.get(str(node.get("module")))
                thing = getattr(module, str(node.get("class_name")), None)
            module = sys.modules.get(getattr(thing, "__module__", ""))
            if thing is None or module is None or module.__name__.startswith("keras."):
                continue
            own |= {thing.__name__: thing, keras.saving.get_registered_name(thing): thing}
            known = cloudpickle.list_registry_pickle_by_value()
            if not _found_elsewhere(module) and module.__name__ not in known:
                cloudpickle.register_pickle_by_value(module)
                stack.callback(cloudpickle.unregister_pickle_by_value, module)
        return bytes(cloudpickle.dumps(own))


def _found_elsewhere(module: ModuleType) -> bool:
    """Whether other processes can import a module; the main one they get anyhow."""
    ours = module.__name__.partition(".")[0] in ("resfool", "__main__")
    return ours or "site-packages" in str(getattr(module, "__file__", ""))


@dataclass(frozen=True)
class Workers:
    """Other processes, and a model that is to go there.

    Attributes:
        map: runs what it is given in them.
        sent: the model.
    """

    map: Map
    sent: Sent


@dataclass(frozen=True)
class _OfBlock:
    """What a worker does with a block."""

    sent: Sent
    function: Function
    options: Mapping[str, Any]

    def __call__(self, block: tuple[list[np.ndarray], int]) -> Columns:
        arrays, count = block
        found = self.function(self.sent.model, *arrays, **self.options, progress=quiet)
        return {name: column[:count] for name, column in found.items()}


@dataclass(frozen=True)
class Blocks(Sequence[tuple[list[np.ndarray], int]]):
    """N rows of arrays in blocks, of which each is made when it is asked for.

    Attributes:
        arrays: (N, ...) each, at least one.
        most: rows of a block, at most; they are as even as can be.
        padded: whether the last block repeats its last row in place of what it lacks: a network
            would be compiled anew for a smaller one.
    """

    arrays: Sequence[Rows]
    most: int
    padded: bool = True

    @property
    def size(self) -> int:
        """Rows of a block."""
        return inference.even(len(self.arrays[0]), self.most)

    def __len__(self) -> int:
        return -(-len(self.arrays[0]) // self.size)

    def rows(self, number: int) -> slice:
        """Which rows a block has."""
        return slice(number * self.size, min((number + 1) * self.size, len(self.arrays[0])))

    def count(self, number: int) -> int:
        """How many rows a block has."""
        rows = self.rows(number)
        return int(rows.stop - rows.start)

    def __getitem__(self, number: Any) -> Any:
        count = self.count(number)
        parts = [array[self.rows(number)] for array in self.arrays]
        if self.padded and count < self.size:
            parts = [part[inference.padded(count, self.size)] for part in parts]
        return parts, count


def in_blocks(
    model: keras.Model,
    function: Function,
    blocks: Blocks,
    options: Mapping[str, Any],
    *,
    workers: Workers | None = None,
    finished: Mapping[int, Columns] | None = None,
    keep: Callable[[int, Columns], None] = lambda number, found: None,
    hold: bool = True,
    progress: Advance = quiet,
) -> list[Columns]:
    """What a function makes of rows, block by block.

    Args:
        model: from images to logits.
        function: of it, a block's rows of each array, and the options; it must be a module's. The
            same block must always give the same.
        blocks: of the rows.
        options: of the function, picklable.
        workers: that do it, with the model that was sent; None is this process.
        finished: what is there from before, by the blocks' numbers.
        keep: is given the number and the result of each other block as soon as it is done.
        hold: whether results are returned, too.
        progress: is told how many more rows are done.

    Returns:
        Results in the blocks' order; None for those that `keep` was given and that aren't held.
    """
    results: dict[int, Any] = dict(finished or {})
    if len(results) == len(blocks):
        return [results[number] for number in range(len(blocks))]
    if workers is not None:

        def come(number: int, found: Columns) -> None:
            keep(number, found)
            progress(blocks.count(number))

        work = _OfBlock(workers.sent, function, options)
        return workers.map(work, blocks, finished=results, keep=come, hold=hold, what="block")
    for number in range(len(blocks)):
        if number not in results:
            arrays, count = blocks[number]
            found = function(model, *arrays, **options, progress=progress)
            found = {name: column[:count] for name, column in found.items()}
            keep(number, found)
            results[number] = found if hold else None
    return [results[number] for number in range(len(blocks))]


def joined(parts: Sequence[Columns]) -> dict[str, np.ndarray]:
    """Results of blocks as one, (N, ...) each."""
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def pays(model: keras.Model, count: float) -> bool:
    """Whether workers are worth their start, for smallest perturbations of so many images.

    That is decided by the network and the images alone, so that it is the same everywhere.

    Args:
        model: from images to logits.
        count: of the images.
    """
    return count * multiplications(model) >= _LEAST_WORK


def multiplications(model: keras.Model) -> float:
    """Of the convolutions and matrices of a forward pass of one image, as far as they are known."""
    function: Any = inference.compiled(model, _forward)
    images = tf.TensorSpec((1, *model.input_shape[1:]), tf.float32)
    return sum(map(_multiplied, function.get_concrete_function(images).graph.get_operations()))


def _forward(model: keras.Model, images: Any) -> Any:
    return model(images, training=False)


def _multiplied(operation: Any) -> float:
    """A weight is met once for each place, or row, of what comes out."""
    if operation.type not in ("Conv2D", "DepthwiseConv2dNative", "MatMul"):
        return 0.0
    weights, out = operation.inputs[1].shape, operation.outputs[0].shape
    if not (weights.is_fully_defined() and out.is_fully_defined()):
        return 0.0
    return float(np.prod(weights) * np.prod(out[:-1]))
