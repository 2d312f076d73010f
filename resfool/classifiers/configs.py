"""A model's config: nested dicts that name classes and functions, which Keras looks up and calls.

What a stranger's config may name is checked without Keras. What another version of Keras, or
TensorFlow, wrote otherwise than ours reads it is mended where that changes nothing.
"""

import inspect
import re
from collections.abc import Iterator
from typing import Any

from resfool.bounded import plain, quoted
from resfool.errors import InputError

# How to load what is refused for the code in it.
TRUST = (
    "; trust=yes loads it all the same, which may run the model's code, and modules=NAME or"
    " modules=PATH.py says where classes of its own are"
)

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
# The layer by which Keras 2 has an operation of TensorFlow's in a model, and those that compute and
# no more: others could call Python or read files.
OPERATION = "TFOpLambda"
_OPERATIONS = re.compile(
    r"(math|nn)\.[a-z]\w*|cast|clip_by_value|concat|expand_dims|reshape|squeeze|stack|transpose"
    r"|__operators__\.r?(add|mul|sub|truediv|pow)"
)
# Plain values that JSON lacks. "__lambda__" and "__typespec__" are left out on purpose.
_VALUES = {"__keras_tensor__", "__tensor__", "__numpy__", "__bytes__", "__ellipsis__", "__slice__"}
_LONGEST_NAME = 1000  # characters, of which TensorFlow makes those of variables and operations


def nodes(config: Any) -> Iterator[dict[str, Any]]:
    """All dicts in a JSON value, each before what it holds; without recursion, which has limits."""
    waiting = [config]
    while waiting:
        value = waiting.pop()
        if isinstance(value, dict):
            yield value
            waiting.extend(value.values())
        elif isinstance(value, list):
            waiting.extend(value)


def forget_compilation(config: Any) -> None:
    """Drop optimizers, losses and metrics, which attacks don't need.

    Keras leaves only the outermost out when told not to compile; it would still make those of a
    model inside the model, where a custom loss is as common.
    """
    for node in nodes(config):
        if "class_name" in node:
            node.pop("compile_config", None)


# Whose code it names.


def check(what: str, config: Any, *, legacy: bool = False) -> None:
    """Refuse a config that names anything but values and parts that Keras itself has.

    Args:
        what: the file, for messages.
        config: of the model.
        legacy: whether it is of the older format, which names classes of Keras without a module.

    Raises:
        InputError: it names code outside Keras, or a layer so that each operation would be large.
        ValueError: it isn't a model's.
    """
    if not isinstance(config, dict) or "class_name" not in config:
        raise ValueError("its config doesn't describe a model")
    for node in nodes(config):
        if isinstance(name := node.get("name"), str) and len(name) > _LONGEST_NAME:
            raise InputError(f"{what} has a name of {len(name)} characters; 1000 are allowed")
        if "class_name" in node:
            _check_named(what, node, legacy)


def _check_named(what: str, node: dict[str, Any], legacy: bool) -> None:
    kind, module, content = node["class_name"], node.get("module"), node.get("config")
    if isinstance(kind, str) and kind in _VALUES:
        return
    name = content if kind == "function" else kind
    if not isinstance(name, str):
        raise ValueError(f"its config has {quoted(name)} in place of the name of a class")
    registered = node.get("registered_name")
    described = _described(kind, name, registered, content)
    if kind == OPERATION and _computes(content):
        return
    if kind in (OPERATION, "SlicingOpLambda", "TensorFlowOpLayer"):
        raise InputError(
            f"{what}: {described} is an operation of TensorFlow's, which no Keras 3 reads; export"
            " the model as a SavedModel with the TensorFlow that made it, model.save('folder'), and"
            " give that folder with trust=yes"
        )
    if name in _CODE or kind == "__lambda__":
        raise InputError(f"{what}: {described} holds code of its own{TRUST}")
    if legacy and module is None and registered is None:
        known = _may_be_keras(kind, name)
    else:
        known = _is_keras(module, kind, name) and registered in (None, kind, name)
    if not known:
        raise InputError(
            f"{what}: {described} is code outside Keras's layers and functions,"
            f" of {quoted(module)}{TRUST}"
        )


def _computes(content: Any) -> bool:
    """Whether an operation's config names one that computes and no more."""
    function = content.get("function") if isinstance(content, dict) else None
    return isinstance(function, str) and _OPERATIONS.fullmatch(function) is not None


def _described(kind: Any, name: str, registered: Any, content: Any) -> str:
    label = content.get("name") if isinstance(content, dict) else None
    described = f"its {'function' if kind == 'function' else 'layer or object'} "
    described += quoted(label or name)
    if isinstance(registered, str) and registered != name:
        return f"{described} ({plain(registered)})"
    return described if label is None else f"{described} ({plain(name)})"


def _may_be_keras(kind: Any, name: Any) -> bool:
    """Whether a name without a module can be one of Keras's; whether it is, Keras will say."""
    if kind == "function":
        return name in _ACTIVATIONS
    return isinstance(name, str) and re.fullmatch(r"[A-Z]\w*", name) is not None


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


# What other versions wrote.


def mend(config: Any) -> None:
    """Write a config as our Keras reads it, where that changes nothing of what it computes."""
    _mend_names(config)
    for node in nodes(config):
        for name, value in node.items():
            if name.endswith("activation"):
                node[name] = _keras_function(value)
        if "class_name" in node:
            _mend_module(node)
            if node["class_name"] == OPERATION:
                _mend_operation(node)
            if node["class_name"] == "Sequential" and isinstance(node.get("config"), list):
                # So it was until Keras 2.2.2.
                node["config"] = {"name": "sequential", "layers": node["config"]}
            if isinstance(node.get("config"), dict):
                _mend_arguments(node["class_name"], node["config"])


def _mend_names(config: Any) -> None:
    """Give layers whose names have a slash other ones, wherever they are named."""
    named = [node["config"] for node in nodes(config) if isinstance(node.get("config"), dict)]
    with_slash = {
        one["name"]: one["name"].replace("/", "_")
        for one in named
        if isinstance(one.get("name"), str) and "/" in one["name"]
    }
    waiting = [config] if with_slash else []
    while waiting:
        value = waiting.pop()
        inside = value.items() if isinstance(value, dict) else enumerate(value)
        for place, inner in list(inside):
            if isinstance(inner, dict | list):
                waiting.append(inner)
            elif isinstance(inner, str):
                value[place] = with_slash.get(inner, inner)


# Where Keras 2 had the kinds of models, within its package, and where they are now.
_MOVED = {"engine.functional": "keras.src.models.functional", "engine.sequential": "keras"}


def _mend_module(node: dict[str, Any]) -> None:
    """Keras 2, which is also published as tf_keras, as the same part of Keras 3."""
    package, *parts = str(node.get("module") or "").split(".")
    if package in ("keras", "tf_keras"):
        inner = ".".join(parts[1:] if parts[:1] == ["src"] else parts)
        node["module"] = _MOVED.get(inner, ".".join(["keras", *parts]))


def _keras_function(value: Any) -> Any:
    """A function of TensorFlow's as Keras's of that name; anything else as it is."""
    is_function = isinstance(value, dict) and value.get("class_name") == "function"
    name = value.get("config") if is_function else value
    return name.removesuffix("_v2") if _is_numbered(name) else value


def _is_numbered(name: Any) -> bool:
    """Whether this is a function by the name that tf.nn's have, with the number of a version."""
    return isinstance(name, str) and name[-3:] == "_v2" and name[:-3] in _ACTIVATIONS


def _mend_operation(node: dict[str, Any]) -> None:
    """Write the places of an operation in the graph as those of layers are written.

    Keras 2 wrote [name, 0, 0, arguments] for each, where a second tensor is the argument y.
    """
    node["module"] = None
    places = node.get("inbound_nodes")
    if not isinstance(places, list):
        return
    for number, place in enumerate(places):
        if isinstance(place, list) and len(place) == 4 and isinstance(place[3], dict):
            arguments = dict(place[3])
            tensors = [[*place[:3], arguments]]
            if isinstance(arguments.get("y"), list) and len(arguments["y"]) == 3:
                tensors.append([*arguments.pop("y"), arguments])
            places[number] = tensors


def _mend_arguments(kind: Any, arguments: dict[str, Any]) -> None:
    shape = arguments.get("batch_input_shape")
    if kind != "InputLayer" and isinstance(shape, list):
        del arguments["batch_input_shape"]
        arguments["input_shape"] = shape[1:]
    for ends in ("input_layers", "output_layers"):
        # Keras 2 had a list even of one, of which Keras 3 would make a list of one tensor.
        if isinstance(arguments.get(ends), list) and len(arguments[ends]) == 1:
            (arguments[ends],) = arguments[ends]
    axis = arguments.get("axis")
    if kind == "BatchNormalization" and isinstance(axis, list) and len(axis) == 1:
        arguments["axis"] = axis[0]


# Arguments that Keras doesn't have any more, or not yet, at the values that say nothing.
_NEUTRAL: dict[str, Any] = {
    "fused": True,
    "groups": 1,
    "renorm": False,
    "renorm_momentum": 0.99,
    "rng_type": "stateful",  # of augmentation, which rests in inference
    "time_major": False,
}
# Arguments that matter while a model is made and trained: it comes with weights.
_FOR_TRAINING = ("_initializer", "_regularizer", "_constraint")


def drop_neutral(config: Any) -> None:
    """Drop arguments that our Keras's layers don't know, where their values say nothing.

    Keras 2 wrote groups=1 for DepthwiseConv2D, for example, which Keras 3 refuses.
    """
    import keras

    for node in nodes(config):
        kind = getattr(keras.layers, str(node.get("class_name")), None)
        arguments = node.get("config")
        if isinstance(arguments, dict) and inspect.isclass(kind):
            for name in arguments.keys() - _known_arguments(kind):
                value = arguments[name]
                neutral = value is None or (name in _NEUTRAL and value == _NEUTRAL[name])
                if neutral or name.endswith(_FOR_TRAINING):
                    del arguments[name]


def _known_arguments(layer: Any) -> set[str]:
    """The names that a layer of Keras and its bases take as arguments."""
    import keras

    known = {"batch_input_shape", "input_dim", "input_shape"}
    for base in layer.__mro__:
        if issubclass(base, keras.Layer):
            known |= inspect.signature(base.__init__).parameters.keys()
    return known


def check_legacy_names(what: str, config: Any) -> None:
    """Refuse names without a module that aren't Keras's.

    Raises:
        InputError: there is one.
    """
    import keras

    places = (keras.layers, keras.models, keras.initializers, keras.regularizers, keras.constraints)
    # Functional is another name of Model in such files.
    known = {"Functional", OPERATION, *_VALUES}.union(*(vars(place) for place in places))
    for node in nodes(config):
        kind, plain = node.get("class_name", "function"), node.get("module") is None
        if plain and kind != "function" and kind not in known:
            described = _described(kind, kind, None, node.get("config"))
            raise InputError(f"{what}: {described} is no layer or object of this Keras{TRUST}")
