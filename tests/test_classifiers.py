"""Strangers' classifiers: honest ones come back with exact logits, hostile ones are refused."""

import io
import json
import pickle
import subprocess
import sys
import types
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import keras
import mlflow
import numpy as np
import numpy.typing as npt
import pytest
import tensorflow as tf
import yaml
from mlflow import MlflowClient
from mlflow.types import Schema, TensorSpec

from resfool import limits
from resfool.classifiers import configs, files
from resfool.classifiers.adapting import as_classifier
from resfool.classifiers.configs import TRUST as HINT
from resfool.classifiers.files import check, find_file, load
from resfool.classifiers.interface import Interface
from resfool.errors import InputError
from tests.conftest import ROOT

Array = npt.NDArray[Any]
layers = keras.layers
SHAPE = (4, 4, 1)


def refusal(function: Callable[..., Any], *args: Any, **kwargs: Any) -> str:
    """The message with which a function refuses, which must be one line."""
    with pytest.raises(InputError) as caught:
        function(*args, **kwargs)
    message = str(caught.value)
    assert "\n" not in message
    return message


def images(shape: tuple[int, ...] = SHAPE, count: int = 5) -> Array:
    return np.random.default_rng(1).random((count, *shape), dtype=np.float32)


def run(model: keras.Model, x: Array) -> Array:
    return np.asarray(keras.ops.convert_to_numpy(model(x, training=False)), dtype=np.float32)


def softmax(z: Array) -> Array:
    e = np.exp(z - z.max(axis=1, keepdims=True))
    return np.asarray(e / e.sum(axis=1, keepdims=True))


def sequential(*parts: keras.Layer, shape: tuple[int | None, ...] = SHAPE) -> keras.Model:
    keras.utils.set_random_seed(3)
    return keras.Sequential([keras.Input(shape), *parts])


def dense(units: int = 3, activation: Any = "softmax", **options: Any) -> keras.Layer:
    # Large weights, so that probabilities aren't all alike.
    wide = keras.initializers.RandomNormal(stddev=2.0)
    return layers.Dense(
        units, activation=activation, kernel_initializer=wide, bias_initializer=wide, **options
    )


def adapt(model: keras.Model, **options: Any) -> keras.Model:
    taken = Interface.of({n: v for n, v in options.items() if n in Interface.declared()})
    other = {n: v for n, v in options.items() if n not in Interface.declared()}
    given: dict[str, Any] = {"image_shape": SHAPE, "classes": None, "name": "it"} | other
    return as_classifier(model, interface=taken, **given)


# Files as a stranger would send them.


def config_of(*parts: dict[str, Any], **outer: Any) -> dict[str, Any]:
    entry = named("InputLayer", {"batch_shape": [None, 4, 4, 1], "name": "in"})
    flat = named("Flatten", {"name": "flat"})
    content = {"name": "s", "layers": [entry, flat, *parts]}
    return named("Sequential", content, module="keras") | outer


def named(kind: str, config: Any, module: str | None = "keras.layers", **more: Any) -> Any:
    return {"module": module, "class_name": kind, "config": config, "registered_name": None} | more


def weights_of(fill: Callable[[h5py.File], Any] = lambda file: None) -> bytes:
    buffer = io.BytesIO()
    with h5py.File(buffer, "w") as file:
        fill(file)
    return buffer.getvalue()


def write(path: Path, config: Any = None, **members: Any) -> Path:
    """A .keras file; members with None as content are left out."""
    contents = {
        "config.json": json.dumps(config_of() if config is None else config),
        "metadata.json": "{}",
        "model.weights.h5": weights_of(),
    } | members
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in contents.items():
            if content is not None:
                archive.writestr(name, content)
    return path


# Loading.


def shared_dense() -> keras.Model:
    x = keras.Input(SHAPE)
    layer = layers.Dense(16, activation="relu")
    y = layer(layer(layers.Flatten()(x)))
    y = keras.ops.softmax(y[:, :5] * 2.0 + 1.0)
    return keras.Model(x, y)


def nested() -> keras.Model:
    head = keras.Sequential([keras.Input((16,)), layers.Dropout(0.5), dense(3)], name="head")
    middle = keras.Sequential([keras.Input((16,)), dense(16, "tanh"), head], name="middle")
    head.compile("adam", loss="mse")
    return sequential(layers.Flatten(), middle)


def preprocessing() -> keras.Model:
    # The seeds of the augmenting layers are weights too.
    first = [layers.Rescaling(2.0, -1.0), layers.RandomFlip(), layers.RandomRotation(0.1)]
    normal = [layers.Normalization(mean=[0.1], variance=[2.0]), layers.Normalization()]
    convolution = [layers.Conv2D(4, 3, use_bias=False), layers.BatchNormalization()]
    return sequential(
        *first, *normal, *convolution, layers.LeakyReLU(), layers.GlobalMaxPooling2D(), dense()
    )


def compiled() -> keras.Model:
    def own_loss(y: Any, p: Any) -> Any:
        return keras.ops.mean(p)

    model = sequential(layers.Flatten(), dense(kernel_regularizer="l2"))
    model.compile("adam", own_loss, metrics=["accuracy"])
    model.fit(images(), np.zeros(5), verbose=0)
    return model


def compiled_inside() -> keras.Model:
    inner = compiled()
    return sequential(layers.Rescaling(2.0), inner)


def mobilenet() -> keras.Model:
    return keras.applications.MobileNetV2((32, 32, 3), 0.35, weights=None, classes=7)


def attention() -> keras.Model:
    x = keras.Input(SHAPE)
    y = layers.Reshape((4, 4))(x)
    y = layers.MultiHeadAttention(2, 3)(y, y)
    y = layers.LayerNormalization()(layers.LSTM(5)(y))
    return keras.Model(x, layers.Softmax()(layers.Dense(4)(y)))


HONEST = [
    *(shared_dense, nested, preprocessing, compiled, compiled_inside, attention),
    pytest.param(mobilenet, marks=pytest.mark.slow),
]


@pytest.mark.parametrize("make", HONEST)
def test_honest_models_come_back_and_end_in_exact_logits(
    make: Callable[[], keras.Model], tmp_path: Path
) -> None:
    model = make()
    model.save(tmp_path / "model.keras")
    check(tmp_path / "model.keras")
    loaded = load(tmp_path / "model.keras")
    assert not loaded.compiled
    shape = model.input_shape[1:]
    x = images(shape)
    assert np.array_equal(run(loaded, x), run(model, x))
    adapted = adapt(loaded, image_shape=shape, classes=model.output_shape[-1])
    logits = run(adapted, x)
    np.testing.assert_allclose(softmax(logits), run(model, x), atol=1e-6)
    # They are not just the probabilities' logarithms, whose exponentials would sum to 1.
    assert abs(np.log(np.exp(logits).sum(axis=1))).min() > 1e-3


def test_half_precision_survives_the_file(tmp_path: Path) -> None:
    keras.config.set_dtype_policy("bfloat16")
    try:
        model = sequential(layers.Flatten(), dense())
    finally:
        keras.config.set_dtype_policy("float32")
    model.save(tmp_path / "model.keras")
    assert np.array_equal(run(load(tmp_path / "model.keras"), images()), run(model, images()))


def test_activations_by_name_are_those_of_keras() -> None:
    functions = {
        name
        for name, value in vars(keras.activations).items()
        if isinstance(value, types.FunctionType)
    }
    assert functions - {"get", "serialize", "deserialize"} == configs._ACTIVATIONS


def layer(kind: str = "Dense", module: str | None = "keras.layers", **more: Any) -> dict[str, Any]:
    return config_of(named(kind, {"name": "odd", "units": 2}, module, **more))


def function(module: str, name: str, registered: str | None = None) -> dict[str, Any]:
    act = named("function", name, module, registered_name=registered or name)
    return config_of(named("Dense", {"name": "odd", "units": 2, "activation": act}))


HOSTILE_CONFIGS = {
    "registered": (
        layer("MySwish", None, registered_name="my>MySwish"),
        "its layer or object 'odd' (my>MySwish) is code outside Keras",
    ),
    "module": (
        layer("Popen", "subprocess"),
        "'odd' (Popen) is code outside Keras's layers and functions, of 'subprocess'",
    ),
    "no module": (
        layer(module=None),
        "'odd' (Dense) is code outside Keras's layers and functions, of None",
    ),
    "lookalike": (
        layer(module="keras_evil.layers"),
        "outside Keras's layers and functions, of 'keras_evil.layers'",
    ),
    "module type": (
        layer() | {"module": ["keras"]},
        "outside Keras's layers and functions, of a list",
    ),
    "Lambda": (layer("Lambda"), "its layer or object 'odd' (Lambda) holds code of its own"),
    "saved graph": (layer("TFSMLayer"), "'odd' (TFSMLayer) holds code of its own"),
    "pickle": (layer("TorchModuleWrapper"), "(TorchModuleWrapper) holds code of its own"),
    "file reader": (
        layer("get_file", "keras.utils"),
        "is code outside Keras's layers and functions, of 'keras.utils'",
    ),
    "loader": (function("keras.models", "load_model"), "its function 'load_model' is code outside"),
    "loader class": (layer("load_model", "keras.models"), "(load_model) is code outside Keras"),
    "download": (
        layer("ResNet50", "keras.applications"),
        "outside Keras's layers and functions, of 'keras.applications'",
    ),
    "builtin": (function("builtins", "eval"), "its function 'eval' is code outside Keras"),
    "own function": (
        function("builtins", "my_act", "function"),
        "its function 'my_act' (function) is code outside Keras's layers and functions, of",
    ),
    "os": (
        function("os", "system"),
        "its function 'system' is code outside Keras's layers and functions, of 'os'",
    ),
    "bytecode": (
        config_of(
            named("Dense", {"units": 2, "activation": {"class_name": "__lambda__", "config": {}}})
        ),
        "'__lambda__' holds code of its own",
    ),
    "inside build": (
        config_of(build_config={"x": named("Popen", {}, "subprocess")}),
        "'Popen' is code outside Keras",
    ),
}


@pytest.mark.parametrize("case", HOSTILE_CONFIGS)
def test_code_outside_keras_is_refused_by_name(case: str, tmp_path: Path) -> None:
    config, expected = HOSTILE_CONFIGS[case]
    path = write(tmp_path / "m.keras", config)
    message = refusal(check, path)
    assert expected in message and message.startswith(f"{path}: ") and message.endswith(HINT)
    assert refusal(load, path) == message


def test_a_bytecode_lambda_that_keras_wrote_is_refused(tmp_path: Path) -> None:
    model = sequential(layers.Lambda(lambda x: x * 2))
    model.save(tmp_path / "m.keras")
    assert "(Lambda) holds code of its own" in refusal(load, tmp_path / "m.keras")


def deep() -> str:
    return '{"class_name": "Sequential", "config": ' + "[" * 300 + "]" * 300 + "}"


def big_array(file: h5py.File) -> None:
    file.create_dataset("a", (10**7, 10**7), "f4", chunks=(1, 1))


def big_chunk(file: h5py.File) -> None:
    file.create_dataset("a", (1,), "f4", chunks=(10**9,), maxshape=(None,))


def external(file: h5py.File) -> None:
    file.create_dataset("a", (10,), "f4", external=[("/etc/passwd", 0, 40)])


def virtual(file: h5py.File) -> None:
    layout = h5py.VirtualLayout((10,), "f4")
    layout[:] = h5py.VirtualSource("/etc/hosts", "a", (10,))
    file.create_virtual_dataset("a", layout)


def linked(link: Any) -> Callable[[h5py.File], None]:
    return lambda file: file.create_group("layers").__setitem__("a", link)


def text(file: h5py.File) -> None:
    file["a"] = "text"


DAMAGED: dict[str, tuple[dict[str, Any], str]] = {
    "no config": ({"config.json": None}, "it must have config.json, metadata.json"),
    "no weights": ({"model.weights.h5": None}, "it must have config.json, metadata.json"),
    "npz": ({"model.weights.npz": b""}, "has a member 'model.weights.npz', which Keras doesn't"),
    "path": ({"../evil.py": b""}, "has a member '../evil.py'"),
    "asset": ({"assets/vocabulary.txt": b""}, "it has the asset 'assets/vocabulary.txt'"),
    "not JSON": ({"config.json": b"{"}, "JSONDecodeError"),
    "not a model": ({"config.json": b"[]"}, "its config doesn't describe a model"),
    "deep": ({"config.json": deep()}, "nested deeper than 200 levels"),
    "very deep": ({"config.json": "[" * 100_000}, "nested deeper than 200 levels"),
    "long name": (
        {"config.json": json.dumps(config_of(named("Flatten", {"name": "n" * 1001})))},
        "has a name of 1001 characters; 1000 are allowed",
    ),
    "not HDF5": ({"model.weights.h5": b"nothing"}, "OSError"),
    "array": ({"model.weights.h5": weights_of(big_array)}, "takes 400000.0 GB of memory"),
    "chunk": ({"model.weights.h5": weights_of(big_chunk)}, "takes 4.0 GB of memory"),
    "external": ({"model.weights.h5": weights_of(external)}, "'a' whose content is in other files"),
    "virtual": ({"model.weights.h5": weights_of(virtual)}, "'a' whose content is in other files"),
    "soft link": ({"model.weights.h5": weights_of(linked(h5py.SoftLink("/x")))}, "link at 'a'"),
    "external link": (
        {"model.weights.h5": weights_of(linked(h5py.ExternalLink("/etc/x", "/x")))},
        "has a link at 'a' that may leave the file",
    ),
    "text": ({"model.weights.h5": weights_of(text)}, "an array 'a' of object, not of numbers"),
}


@pytest.mark.parametrize("case", DAMAGED)
def test_damaged_and_hostile_files_are_refused(case: str, tmp_path: Path) -> None:
    members, expected = DAMAGED[case]
    path = write(tmp_path / "m.keras", **members)
    with limits.in_force(limits.Bounds(memory=10**9)):
        assert expected in refusal(check, path)
    assert list(tmp_path.iterdir()) == [path]


def test_a_ring_of_hard_links_is_walked_once(tmp_path: Path) -> None:
    def ring(file: h5py.File) -> None:
        file["a"] = file

    check(write(tmp_path / "m.keras", **{"model.weights.h5": weights_of(ring)}))


def test_zip_tricks_are_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "m.keras")
    with pytest.warns(UserWarning), zipfile.ZipFile(path, "a") as archive:
        archive.writestr("config.json", "{}")
    assert "each once" in refusal(check, path)

    bomb = tmp_path / "bomb.keras"
    with zipfile.ZipFile(bomb, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("metadata.json", "{}")
        archive.writestr("config.json", b" " * (65 << 20))
        archive.writestr("model.weights.h5", b"")
    assert f"would have {65 << 20} bytes; {64 << 20} are allowed" in refusal(check, bomb)

    content = write(tmp_path / "e.keras").read_bytes()
    entry = content.index(b"PK\x01\x02")
    encrypted = content[: entry + 8] + b"\x01" + content[entry + 9 :]
    (tmp_path / "e.keras").write_bytes(encrypted)
    assert "config.json is encrypted" in refusal(check, tmp_path / "e.keras")


def test_a_member_is_copied_no_further_than_its_bound() -> None:
    with pytest.raises(ValueError, match="more than 10 bytes"):
        files._copy_bounded(io.BytesIO(bytes(11)), io.BytesIO(), 10)


def test_what_keras_refuses_is_one_sentence(tmp_path: Path) -> None:
    path = write(tmp_path / "m.keras", config_of(named("NoSuchLayer", {"name": "odd"})))
    assert refusal(load, path).startswith(f"cannot load {path}: Keras refuses it (")
    path = write(tmp_path / "m.keras", config_of(named("Dense", {"units": 2})))
    assert "Keras refuses it" in refusal(load, path)  # no weights for it
    path = write(tmp_path / "m.keras", named("Dense", {"units": 2}))
    assert "holds a Dense, not a model" in refusal(load, path)
    unbuilt = named("Sequential", {"name": "s", "layers": [named("Dense", {"units": 2})]}, "keras")
    assert "before it had weights" in refusal(load, write(tmp_path / "m.keras", unbuilt))


def test_checks_need_no_tensorflow(tmp_path: Path) -> None:
    honest = write(tmp_path / "honest.keras")
    hostile = write(tmp_path / "hostile.keras", layer("Lambda"))
    code = (
        "import sys; from pathlib import Path; from resfool.classifiers import files as c;"
        "from resfool.errors import InputError\n"
        f"c.check(c.find_file(Path({str(honest)!r})))\n"
        f"try: c.load(Path({str(hostile)!r}))\n"
        "except InputError: print(*{'tensorflow', 'keras', 'mlflow'} & set(sys.modules), 'refused')"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert (done.stdout, done.returncode) == ("refused\n", 0), done.stderr


# MLflow's folder.


def test_models_that_mlflow_wrote_are_found(store: MlflowClient, tmp_path: Path) -> None:
    model = sequential(layers.Flatten(), dense())
    signature = mlflow.models.ModelSignature(
        Schema([TensorSpec(np.dtype("float32"), (-1, *SHAPE))]),
        Schema([TensorSpec(np.dtype("float32"), (-1, 3))]),
    )
    options: dict[str, Any] = {"signature": signature, "pip_requirements": ["keras"]}
    mlflow.keras.save_model(model, str(tmp_path / "saved"), **options)
    assert find_file(tmp_path / "saved") == tmp_path / "saved/data/model.keras"
    with mlflow.start_run():
        logged = mlflow.keras.log_model(model, name="model", **options)
    folder = mlflow.artifacts.download_artifacts(logged.model_uri, dst_path=str(tmp_path / "got"))
    for path in (tmp_path / "saved", Path(folder)):
        assert np.array_equal(run(load(path), images()), run(model, images()))

    mlflow.keras.save_model(model, str(tmp_path / "graph"), save_exported_model=True, **options)
    message = refusal(find_file, tmp_path / "graph")
    assert "holds an exported graph (save_exported_model)" in message and HINT not in message


def folder_with(path: Path, **flavors: Any) -> Path:
    """An MLflow model folder like MLflow's own, with an outsider beside it."""
    (path / "m/data").mkdir(parents=True)
    write(path / "m/data/model.keras")
    write(path / "outside.keras")
    (path / "m/data/keras_module.txt").write_text("keras")
    standard = {"keras": {"data": "data"}, "python_function": {"loader_module": "mlflow.keras"}}
    chosen = {name: flavor for name, flavor in (standard | flavors).items() if flavor is not None}
    (path / "m/MLmodel").write_text(yaml.safe_dump({"flavors": chosen}))
    return path / "m"


REFUSED_FLAVORS: dict[str, tuple[dict[str, Any], str]] = {
    "pytorch": ({"keras": None, "pytorch": {}}, "flavours python_function, pytorch, not keras"),
    "none": ({"keras": None, "python_function": None}, "has the flavours none, not keras"),
    "code": (
        {"python_function": {"loader_module": "mlflow.keras", "code": "code"}},
        "brings code of its own in 'code'",
    ),
    "loader": ({"python_function": {"loader_module": "evil"}}, "names the loader 'evil', not"),
    "graph": ({"keras": {"data": "data", "save_exported_model": True}}, "holds an exported graph"),
    "up": ({"keras": {"data": "../outside"}}, "its data '../outside' lies outside of its folder"),
    "absolute": ({"keras": {"data": "/outside"}}, "'/outside' lies outside of its folder"),
    "list": ({"keras": []}, "its keras flavour is not a mapping that names its data"),
    "number": ({"keras": {"data": 3}}, "its keras flavour is not a mapping that names its data"),
    "strange": ({"python_function": "x"}, "its python_function flavour is not a mapping"),
}


@pytest.mark.parametrize("case", REFUSED_FLAVORS)
def test_flavours_that_would_run_code_are_refused(case: str, tmp_path: Path) -> None:
    flavors, expected = REFUSED_FLAVORS[case]
    message = refusal(find_file, folder_with(tmp_path, **flavors))
    # Where trust wouldn't help, it isn't asked for.
    assert expected in message and message.endswith(HINT) == (
        case not in ("none", "graph", "pytorch")
    )


def test_data_is_found_as_mlflow_finds_it(tmp_path: Path) -> None:
    folder = folder_with(tmp_path, python_function=None, onnx={"data": "x"})
    assert find_file(folder) == folder / "data/model.keras"
    (folder / "MLmodel").write_text("flavors: {keras: {data: data/model}}")
    assert find_file(folder) == folder / "data/model.keras"
    (folder / "MLmodel").write_text("flavors: {keras: {data: data/other}}")
    assert "names data/other.keras, and there is no such file" in refusal(find_file, folder)


def test_links_out_of_the_folder_are_refused(tmp_path: Path) -> None:
    folder = folder_with(tmp_path)
    (folder / "data/model.keras").unlink()
    (folder / "data/model.keras").symlink_to(tmp_path / "outside.keras")
    assert "lies outside of its folder" in refusal(find_file, folder)
    # The folder itself may be reached by a link.
    (tmp_path / "again").mkdir()
    (tmp_path / "link").symlink_to(folder_with(tmp_path / "again"))
    assert find_file(tmp_path / "link").is_file()


def test_other_folders_are_refused(tmp_path: Path) -> None:
    folder = folder_with(tmp_path)
    (folder / "data/keras_module.txt").write_text("evil\n")
    assert "names the module 'evil', not keras" in refusal(find_file, folder)
    for content, expected in {
        "- a": "it has no mapping of flavours",
        "flavors: [keras]": "it has no mapping of flavours",
        "flavors: !!python/object/apply:os.system [ls]": "ConstructorError",
        "#" * (2 << 20): "more than 1048576 bytes",
        "[" * 5000: "exceeded maximum nesting depth",
    }.items():
        (folder / "MLmodel").write_text(content)
        assert expected in refusal(find_file, folder)
    (folder / "MLmodel").unlink()
    assert "is not an MLflow model folder: it has no file MLmodel" in refusal(find_file, folder)
    assert "none.keras does not exist" in refusal(find_file, tmp_path / "none.keras")


# Logits.


def by_hand(model: keras.Model, x: Array) -> Array:
    """The logits of Flatten and one dense layer."""
    kernel, bias = model.get_weights()
    return np.asarray(x.reshape(len(x), -1) @ kernel + bias)


ENDINGS: dict[str, Callable[[], list[keras.Layer]]] = {
    "dense": lambda: [dense()],
    "logits": lambda: [dense(activation=None)],
    "activation": lambda: [dense(activation=None), layers.Activation("softmax")],
    "layer": lambda: [dense(activation=None), layers.Softmax()],
    "layer as activation": lambda: [dense(activation=layers.Softmax())],
    "TensorFlow's": lambda: [dense(activation=tf.nn.softmax)],
    "idle layers after": lambda: [dense(), layers.Dropout(0.5), layers.Activation("linear")],
    "reshaped after": lambda: [layers.Reshape((1, 16)), dense(), layers.Flatten()],
    "nested": lambda: [keras.Sequential([keras.Input((16,)), dense()])],
    "twice nested": lambda: [
        keras.Sequential(
            [keras.Input((16,)), keras.Sequential([keras.Input((16,)), dense(), layers.Identity()])]
        )
    ],
    "nested softmax": lambda: [
        dense(activation=None),
        keras.Sequential([keras.Input((3,)), layers.Softmax()]),
    ],
    "sigmoids": lambda: [dense(activation="sigmoid")],
}


@pytest.mark.parametrize("ending", ENDINGS)
def test_logits_are_those_before_the_last_activation(ending: str) -> None:
    model = sequential(layers.Flatten(), *ENDINGS[ending]())
    x = images()
    before = run(model, x)
    ends = [
        (part, part.activation, len(part._inbound_nodes), len(part._outbound_nodes))
        for part in model._flatten_layers()
        if hasattr(part, "activation")
    ]
    adapted = adapt(model, classes=3)
    np.testing.assert_allclose(run(adapted, x), by_hand(model, x), rtol=1e-5, atol=1e-5)
    # The model that was given is as it was.
    assert np.array_equal(run(model, x), before)
    for part, activation, inbound, outbound in ends:
        assert part.activation is activation
        assert (len(part._inbound_nodes), len(part._outbound_nodes)) == (inbound, outbound)
    # Weights are shared, not copied.
    model.set_weights([2 * w for w in model.get_weights()])
    np.testing.assert_allclose(run(adapted, x), by_hand(model, x), rtol=1e-5, atol=1e-5)


def test_logits_stay_exact_where_probabilities_are_zero() -> None:
    model = sequential(layers.Flatten(), dense())
    model.set_weights([100 * w for w in model.get_weights()])
    assert (run(model, images()) == 0).any()
    np.testing.assert_allclose(
        run(adapt(model), images()), by_hand(model, images()), rtol=1e-4, atol=1e-3
    )


def test_a_single_sigmoid_becomes_two_classes() -> None:
    model = sequential(layers.Flatten(), dense(1, "sigmoid"))
    z = by_hand(model, images())
    adapted = adapt(model, classes=2)
    np.testing.assert_allclose(run(adapted, images()), np.hstack([0 * z, z]), atol=1e-5)
    np.testing.assert_allclose(
        softmax(run(adapted, images()))[:, 1:], run(model, images()), atol=1e-6
    )


def test_hidden_probabilities_become_logarithms() -> None:
    model = sequential(layers.Flatten(), dense(), layers.Rescaling(1.0))
    adapted = adapt(model)
    np.testing.assert_allclose(run(adapted, images()), np.log(run(model, images())), rtol=1e-5)
    # An LSTM's activation is not its last step: taking it off would be wrong.
    inside = sequential(layers.Reshape((4, 4)), layers.LSTM(3, activation="softmax"))
    np.testing.assert_allclose(run(adapt(inside), images()), run(inside, images()), atol=1e-6)


class Own(keras.Model):
    """A trusted class of one's own, which has no graph."""

    def __init__(self) -> None:
        super().__init__()
        self.flat, self.last = layers.Flatten(), dense()

    def call(self, x: Any) -> Any:
        return self.last(self.flat(x))


@pytest.mark.parametrize(
    ("loader", "sentence"),
    [
        (lambda: [1], "holds a list, not a Keras model"),
        (lambda: dict[str, str]()["flavour"], "theirs: Keras refuses it (KeyError"),
    ],
)
def test_what_is_trusted_and_is_no_model_is_refused(
    tmp_path: Path, loader: Any, sentence: str
) -> None:
    (tmp_path / "theirs").mkdir()
    (tmp_path / "theirs/MLmodel").write_text("flavors: {pytorch: {}}")
    line = refusal(files.load_trusted, tmp_path / "theirs", loader)
    assert sentence in line and str(tmp_path / "theirs") in line


def test_a_model_without_a_graph_is_taken_as_it_is() -> None:
    model = Own()
    assert "has no weights yet" in refusal(adapt, model)
    probabilities = run(model, images())
    np.testing.assert_allclose(run(adapt(model), images()), np.log(probabilities), rtol=1e-4)


@pytest.mark.parametrize("shape", [(4, 4), (16,), (None, None, 1), (None, 4, None)])
def test_images_are_given_in_the_models_own_shape(shape: tuple[int | None, ...]) -> None:
    first = [layers.GlobalMaxPooling2D()] if len(shape) == 3 else [layers.Flatten()]
    if None in shape[2:]:
        first = [layers.Conv2D(2, 1), layers.GlobalMaxPooling2D()]
        shape = (None, 4, 1)
    model = sequential(*first, dense(), shape=shape)
    flat = images().reshape(5, *(size or 4 for size in shape))
    np.testing.assert_allclose(softmax(run(adapt(model), images())), run(model, flat), atol=1e-6)


@pytest.mark.parametrize("bounds", [(0, 255), (-1.0, 1.0)])
def test_the_model_gets_its_own_range(bounds: tuple[float, float]) -> None:
    low, high = bounds
    model = sequential(layers.Flatten(), dense())
    scaled = images() * np.float32(high - low) + np.float32(low)
    np.testing.assert_allclose(
        run(adapt(model, input_range=bounds), images()),
        by_hand(model, scaled),
        rtol=1e-4,
        atol=1e-3,
    )


@pytest.mark.parametrize("policy", ["mixed_bfloat16", "mixed_float16", "bfloat16", "float64"])
def test_every_precision_gives_float32_logits(policy: str) -> None:
    keras.config.set_dtype_policy(policy)
    try:
        model = sequential(layers.Flatten(), dense(8, "relu"), dense())
        adapted = adapt(model)
    finally:
        keras.config.set_dtype_policy("float32")
    assert adapted.output.dtype == adapted.input.dtype == "float32"
    np.testing.assert_allclose(softmax(run(adapted, images())), run(model, images()), atol=2e-2)


def test_inference_mode_reaches_nested_layers() -> None:
    inner = keras.Sequential(
        [keras.Input((16,)), layers.Dropout(0.9), layers.BatchNormalization(), dense()]
    )
    model = sequential(layers.RandomFlip(), layers.GaussianNoise(0.9), layers.Flatten(), inner)
    adapted = adapt(model)
    assert np.array_equal(run(adapted, images()), run(adapted, images()))
    np.testing.assert_allclose(softmax(run(adapted, images())), run(model, images()), atol=1e-6)


def test_the_result_travels_to_other_processes() -> None:
    adapted = adapt(nested(), input_range=(-1, 1))
    again = pickle.loads(pickle.dumps(adapted))
    assert np.array_equal(run(again, images()), run(adapted, images()))


def test_the_name_is_one_that_keras_takes() -> None:
    model = sequential(layers.Flatten(), dense())
    assert adapt(model, name="models:/m-1 of é").name == "models_m-1_of"
    assert adapt(model, name="//").name == "classifier"


def two_inputs() -> keras.Model:
    a, b = keras.Input(SHAPE), keras.Input(SHAPE)
    return keras.Model([a, b], layers.Flatten()(a + b))


def two_outputs() -> keras.Model:
    x = keras.Input(SHAPE)
    y = layers.Flatten()(x)
    return keras.Model(x, [dense()(y), dense()(y)])


def whole_numbers() -> keras.Model:
    x = keras.Input(SHAPE, dtype="uint8")
    return keras.Model(x, dense()(layers.Flatten()(layers.Rescaling(1 / 255)(x))))


def rounded() -> keras.Model:
    x = keras.Input(SHAPE)
    return keras.Model(x, dense()(layers.Flatten()(keras.ops.round(x))))


def divided_by_zero() -> keras.Model:
    return sequential(layers.Rescaling(float("inf")), layers.Flatten(), dense())


def cut_off() -> keras.Model:
    x = keras.Input(SHAPE)
    return keras.Model(x, dense()(keras.ops.stop_gradient(layers.Flatten()(x))))


def flat(units: int = 3, activation: str | None = None) -> Callable[[], keras.Model]:
    return lambda: sequential(layers.Flatten(), dense(units, activation))


def taking(*shape: int | None) -> Callable[[], keras.Model]:
    return lambda: sequential(layers.GlobalMaxPooling2D(), dense(), shape=shape)


UNFIT: dict[str, tuple[Callable[[], keras.Model], dict[str, Any], str]] = {
    "inputs": (two_inputs, {}, "say by input=NAME which of them is the image"),
    "outputs": (two_outputs, {}, "say by output=NAME which of them has the classes"),
    "shape": (
        taking(8, 8, 3),
        {},
        "takes inputs of shape (None, 8, 8, 3), but the images are (4, 4, 1), which need"
        " (None, 4, 4, 1), (None, 16), (None, 4, 4) or (None, 1, 4, 4)",
    ),
    "rank": (
        lambda: sequential(layers.Conv2D(2, 1)),
        {},
        "output has the shape (None, 4, 4, 2); (None, classes) is allowed",
    ),
    "classes": (flat(), {"classes": 10}, "the model has 3 classes, and the data set has 10"),
    "binary": (flat(1, "sigmoid"), {"classes": 10}, "has 2 classes, and the data set has 10"),
    "one unit": (
        flat(1),
        {},
        "one output unit, and no sigmoid or tanh is seen after it; say by single_output=logit",
    ),
    "one softmax": (flat(1, "softmax"), {}, "no sigmoid or tanh is seen after it"),
    "rounded": (rounded, {}, "can't be attacked: no gradient reaches its input"),
    "cut off": (cut_off, {}, "can't be attacked: no gradient reaches its input"),
    "infinite": (divided_by_zero, {}, "can't be attacked: its outputs are infinite"),
}


@pytest.mark.parametrize("case", UNFIT)
def test_models_that_do_not_fit_are_refused(case: str) -> None:
    make, options, expected = UNFIT[case]
    assert expected in refusal(adapt, make(), **options)
