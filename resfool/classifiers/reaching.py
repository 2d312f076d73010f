"""The layers of a classifier, also inside nested models, and the part of it up to one of them."""

import functools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import keras

from resfool.errors import unknown
from resfool.wording import distinct_names

Tensor = Any


@dataclass(frozen=True)
class Reached:
    """A layer of a classifier, as far as its graph shows it.

    Attributes:
        name: by which it is told apart.
        layer: that it is.
        path: its output, behind those of the nested models around it, the outermost first; each
            is a tensor of another graph.
        narrow: whether nothing goes past it from the images to the logits.
    """

    name: str
    layer: keras.Layer
    path: tuple[Tensor, ...]
    narrow: bool


def layers(model: keras.Model) -> list[Reached]:
    """The layers that have one output each in a model's graph, in the order of the work.

    What a class of its own computes is in no graph: such a model is a layer as a whole. A layer
    that is used several times is there as often; those of one name are numbered.

    Args:
        model: functional.
    """
    found = list(_walked(model))
    names = distinct_names([one.name for one in found])
    return [replace(one, name=name) for one, name in zip(found, names, strict=True)]


def named(model: keras.Model, name: str) -> Reached:
    """The layer of a name.

    Raises:
        InputError: there is none; the message lists those that there are.
    """
    found = {one.name: one for one in layers(model)}
    if name not in found:
        raise unknown("layer", name, found)
    return found[name]


def logits(model: keras.Model) -> Reached:
    """What a classifier gives as if it were a layer: its logits.

    Args:
        model: from images to logits.
    """
    (tensor,) = model.outputs
    return Reached("logits", tensor._keras_history[0], (tensor,), True)


def up_to(model: keras.Model, layer: Reached) -> keras.Model:
    """The part of a model from its inputs to a layer's output; it shares the model's weights."""
    return keras.Model(single(model.inputs), _reach(layer.path))


class GraphOf(keras.Layer):
    """A model's graph on floats, where the model itself would make whole numbers of them."""

    def __init__(self, model: keras.Model, **options: Any) -> None:
        super().__init__(**options)
        self.model = model

    def call(self, inputs: Any, training: bool | None = None) -> Tensor:
        run = functools.partial(_as_in, training)
        return self.model._run_through_graph(inputs, operation_fn=run)

    def get_config(self) -> dict[str, Any]:
        return super().get_config() | {"model": keras.saving.serialize_keras_object(self.model)}

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> "GraphOf":
        model = keras.saving.deserialize_keras_object(config.pop("model"))
        return cls(model, **config)


def _as_in(training: bool | None, operation: Any) -> Callable[..., Any]:
    """An operation, told whether this is training if it asks."""
    if "training" in getattr(operation, "_call_context_args", ()):
        return functools.partial(operation, training=training)
    return operation


def single(tensors: Sequence[Tensor]) -> Any:
    """A list, or the one thing in it."""
    return tensors[0] if len(tensors) == 1 else list(tensors)


def _walked(
    model: keras.Model, around: tuple[Tensor, ...] = (), narrow: bool = True
) -> Iterator[Reached]:
    """The layers by the names that they have, of a model that is nested as deep as `around`."""
    by_depth = keras.Function(model.inputs, model.outputs)._nodes_by_depth
    nodes = [node for depth in sorted(by_depth, reverse=True) for node in by_depth[depth]]
    for node, alone in zip(nodes, _alone(nodes, model.outputs), strict=True):
        if node.is_input or len(node.outputs) != 1:
            continue
        operation, path = node.operation, (*around, node.outputs[0])
        inside = _inside(operation)
        if inside is not None and _fits(inside, node):
            yield from _walked(inside, path, narrow and alone)
        elif isinstance(operation, keras.Layer):
            yield Reached(operation.name, operation, path, narrow and alone)


def _alone(nodes: Sequence[Any], outputs: Sequence[Tensor]) -> Iterator[bool]:
    """Whether a node's output is all that is still needed, after each node in the order of work."""
    last_use = {id(t): place for place, node in enumerate(nodes) for t in node.input_tensors}
    last_use |= {id(tensor): len(nodes) for tensor in outputs}
    needed: set[int] = set()
    for place, node in enumerate(nodes):
        needed |= {id(tensor) for tensor in node.outputs}
        needed = {tensor for tensor in needed if last_use.get(tensor, -1) > place}
        yield needed == {id(node.outputs[0])}


def _inside(operation: Any) -> keras.Model | None:
    """The model that an operation runs, if it has a graph."""
    model = operation.model if isinstance(operation, GraphOf) else operation
    return model if isinstance(model, keras.Model) and getattr(model, "outputs", None) else None


def _fits(inside: keras.Model, node: Any) -> bool:
    """Whether a nested model is called in the order of its inputs; names could tell another."""
    named = any(isinstance(given, dict) for given in node.arguments.args)
    return not named and len(inside.inputs) == len(node.input_tensors)


def _reach(path: Sequence[Tensor]) -> Tensor:
    """The last tensor of a path, in the graph of its first."""
    tensor, *inner = path
    if not inner:
        return tensor
    operation, place, _ = tensor._keras_history
    inside = _inside(operation)
    assert inside is not None, "the path goes on inside"
    part: Any = keras.Model(single(inside.inputs), _reach(inner))
    if isinstance(operation, GraphOf):
        part = GraphOf(part)
    return part(single(operation._inbound_nodes[place].input_tensors))
