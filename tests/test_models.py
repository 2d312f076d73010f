"""Models as people have them: told apart by content, loaded as Keras loads them, or advised."""

import json
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import keras
import mlflow
import numpy as np
import pytest
import tensorflow as tf
from keras.applications.imagenet_utils import preprocess_input

from resfool import limits
from resfool.classifiers import configs, files, trusted
from resfool.classifiers.formats import format_of
from resfool.classifiers.interface import Interface
from resfool.errors import InputError
from tests.test_classifiers import adapt, dense, images, refusal, run, sequential, softmax

layers = keras.layers


def plain() -> keras.Model:
    return sequential(layers.Flatten(), dense())


# The older format.


def in_hdf5(model: keras.Model, path: Path, change: Callable[[Any], None] | None = None) -> Path:
    """A model's HDF5 file, its config changed as another Keras would have written it."""
    model.save(path)
    if change is not None:
        with h5py.File(path, "r+") as file:
            config = json.loads(file.attrs["model_config"])
            change(config)
            file.attrs["model_config"] = json.dumps(config)
            file.attrs["keras_version"] = "2.4.0"
    return path


def convolutional() -> keras.Model:
    """Layers that Keras 2 wrote otherwise, and a model inside."""
    inner = keras.Input((3, 3, 2))
    features = keras.Model(inner, layers.Conv2D(3, 2)(inner), name="features")
    first = [layers.DepthwiseConv2D(2), layers.BatchNormalization(), layers.SeparableConv2D(2, 1)]
    return sequential(*first, features, layers.Flatten(), dense(4, "relu"), dense())


def as_keras_2(config: Any) -> None:
    """What Keras 2 wrote otherwise: no modules, and arguments that are gone."""
    as_plain(config)
    as_keras_2_13(config)


def as_plain(config: Any) -> None:
    for node in configs.nodes(config):
        for name in ("module", "registered_name", "build_config"):
            node.pop(name, None)
        inner = node.get("config")
        if isinstance(inner, dict) and "dtype" in inner:
            inner["dtype"] = "float32"


def as_keras_2_13(config: Any) -> None:
    """What Keras 2 wrote otherwise even into `.keras` files."""
    _, first, normal, separable, features, *_ = config["config"]["layers"]
    first["config"] |= {"groups": 1, "batch_input_shape": [None, 4, 4, 1]}
    normal["config"] |= {"axis": [3], "renorm": False, "fused": None}
    zeros = {"class_name": "Zeros", "config": {}, "module": "tf_keras.initializers"}
    separable["config"] |= {"kernel_initializer": zeros, "kernel_constraint": None}
    features["module"] = "keras.src.engine.functional"
    for ends in ("input_layers", "output_layers"):
        features["config"][ends] = [features["config"][ends]]


def as_a_list(config: Any) -> None:
    as_keras_2(config)
    config["config"] = config["config"]["layers"]


@pytest.mark.parametrize("name", ["m.h5", "m.hdf5", "m.keras", "model"])
@pytest.mark.parametrize("change", [None, as_keras_2, as_a_list])
def test_hdf5_is_loaded_under_any_name(
    tmp_path: Path, name: str, change: Callable[[Any], None] | None
) -> None:
    model = convolutional()
    path = in_hdf5(model, tmp_path / "first.h5", change).rename(tmp_path / name)
    assert format_of(path) == "hdf5"
    files.check(path)
    np.testing.assert_array_equal(run(files.load(path), images()), run(model, images()))


def test_an_argument_that_keras_lost_is_dropped_from_a_keras_file_too(tmp_path: Path) -> None:
    model = convolutional()
    model.save(tmp_path / "m.keras")
    path = rewritten(tmp_path / "m.keras", as_keras_2_13)
    np.testing.assert_array_equal(run(files.load(path), images()), run(model, images()))


def rewritten(path: Path, change: Callable[[Any], Any], version: str = "2.13.1") -> Path:
    """A `.keras` file with its config changed, as if another Keras had written it."""
    other = path.with_name(f"other-{path.name}")
    with zipfile.ZipFile(path) as source, zipfile.ZipFile(other, "w") as target:
        config = json.loads(source.read("config.json"))
        change(config)
        target.writestr("config.json", json.dumps(config))
        target.writestr("metadata.json", json.dumps({"keras_version": version}))
        target.writestr("model.weights.h5", source.read("model.weights.h5"))
    return other


def with_operations(config: Any) -> None:
    """A model of one dense layer as Keras 2 wrote it, with operations of TensorFlow's."""
    as_plain(config)
    content = config["config"]
    first, flat, last = content["layers"]
    for layer, before in ((flat, "y"), (last, flat["config"]["name"])):
        layer["inbound_nodes"] = [[[before, 0, 0, {}]]]
    for layer, name, ends in ((first, "x", "input_layers"), (last, "end/logits", "output_layers")):
        layer["name"] = layer["config"]["name"] = content[ends][0] = name
    operations: list[tuple[str, str, dict[str, Any]]] = [
        ("__operators__.rsub", "x", {"y": 1.0}),
        ("math.multiply", "a", {"y": ["x", 0, 0]}),
    ]
    content["layers"][1:1] = [
        {
            "class_name": "TFOpLambda",
            "config": {"name": name, "dtype": "float32", "function": function},
            "name": name,
            "inbound_nodes": [[before, 0, 0, arguments | {"name": None}]],
        }
        for name, (function, before, arguments) in zip("ay", operations, strict=True)
    ]


def test_operations_of_tensorflow_are_computed_as_keras_2_did(tmp_path: Path) -> None:
    x = keras.Input((4, 4, 1))
    model = keras.Model(x, dense()(layers.Flatten()(x)))
    path = in_hdf5(model, tmp_path / "m.h5", with_operations)
    files.check(path)
    expected = run(model, (1.0 - images()) * images())
    np.testing.assert_allclose(run(files.load(path), images()), expected, atol=1e-6)


def own_class(config: Any) -> None:
    as_keras_2(config)
    config["config"]["layers"][1]["class_name"] = "Mine"


def registered(config: Any) -> None:
    as_keras_2(config)
    config["config"]["layers"][1]["class_name"] = "shop>Mine"


def operation(config: Any) -> None:
    as_keras_2(config)
    config["config"]["layers"][1] |= {
        "class_name": "TFOpLambda",
        "config": {"name": "op", "function": "py_function"},
    }


def code(config: Any) -> None:
    as_keras_2(config)
    config["config"]["layers"][1]["class_name"] = "Lambda"


def a_function(config: Any) -> None:
    as_keras_2(config)
    config["config"]["layers"][1]["class_name"] = "deserialize"


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (own_class, "(Mine) is no layer or object of this Keras; trust=yes"),
        (registered, "(shop>Mine) is code outside Keras's layers and functions"),
        (
            operation,
            "'op' (TFOpLambda) is an operation of TensorFlow's, which no Keras 3 reads; export",
        ),
        (code, "(Lambda) holds code of its own; trust=yes"),
        (a_function, "(deserialize) is code outside Keras's layers and functions"),
    ],
)
def test_code_in_hdf5_is_refused(tmp_path: Path, change: Any, sentence: str) -> None:
    assert sentence in refusal(files.load, in_hdf5(convolutional(), tmp_path / "m.h5", change))


def test_hdf5_that_points_elsewhere_or_is_too_large_is_refused(tmp_path: Path) -> None:
    path = in_hdf5(plain(), tmp_path / "m.h5")
    with h5py.File(path, "r+") as file:
        file["model_weights/odd"] = h5py.ExternalLink("/etc/passwd", "/")
    assert "has a link at 'odd' that may leave the file" in refusal(files.check, path)
    path = in_hdf5(plain(), tmp_path / "m.h5")
    with limits.in_force(limits.Bounds(memory=100)):
        assert f"{path} takes 0 MB of memory, and memory_limit" in refusal(files.load, path)
    plain().save_weights(tmp_path / "w.weights.h5")
    assert "holds weights alone" in refusal(files.check, tmp_path / "w.weights.h5")


# What is no model of Keras's, and what gets it in.

FOREIGN: dict[str, tuple[bytes, str]] = {
    "empty.keras": (b"", "is empty; copy or download it again"),
    "pointer.h5": (b"version https://git-lfs.github.com/spec/v1\n", "git lfs pull"),
    "page.keras": (b"\n<!DOCTYPE html><html>", "is a web page; download the model itself"),
    "m.bin": (b"\x1c\0\0\0TFL3" + bytes(20), "TensorFlow Lite model, which has no gradient"),
    "m.onnx": (b"\x08\x07\x12\x07pytorch", "is an ONNX model"),
    "m.pkl": (b"\x80\x04\x95", "is a pickle, which runs code when it is read"),
    "model.json": (b'{"format": "layers-model", "modelTopology": {}}', "tensorflowjs_converter"),
    "network.json": (b'{"class_name": "Sequential"}', "is a network without weights"),
    "frozen.pb": (b"\n\x05input", "is a frozen TensorFlow graph"),
    "m.ckpt.index": (b"\0\0\1", "weights alone, of TensorFlow's checkpoints"),
    "odd.keras": (b"odd content", "by what it begins with (6f 64 64 20 63 6f 6e 74)"),
}


@pytest.mark.parametrize("name", FOREIGN)
def test_what_is_no_keras_model_is_called_what_it_is(tmp_path: Path, name: str) -> None:
    content, sentence = FOREIGN[name]
    (tmp_path / name).write_bytes(content)
    assert sentence in refusal(files.find_file, tmp_path / name)


@pytest.mark.parametrize(
    ("member", "sentence"),
    [
        ("archive/data.pkl", "is a PyTorch model"),
        ("folder/mine.h5", "is an archive; unpack it and give folder/mine.h5"),
    ],
)
def test_archives_are_told_apart(tmp_path: Path, member: str, sentence: str) -> None:
    with zipfile.ZipFile(tmp_path / "m.zip", "w") as archive:
        archive.writestr(member, b"")
    assert sentence in refusal(files.find_file, tmp_path / "m.zip")


def test_folders_are_told_apart(tmp_path: Path) -> None:
    plain().save(tmp_path / "m.keras")
    with zipfile.ZipFile(tmp_path / "m.keras") as archive:
        archive.extractall(tmp_path / "unpacked")
    assert "is an unpacked .keras file" in refusal(files.find_file, tmp_path / "unpacked")
    assert "has no file MLmodel" in refusal(files.find_file, tmp_path)


# Keras's reason.


def unknown_argument(config: Any) -> None:
    config["config"]["layers"][1]["config"]["novelty"] = [0, 255]


def test_keras_reason_is_told_whole_and_with_the_files_version(tmp_path: Path) -> None:
    model = sequential(layers.Flatten(), dense(), layers.Identity())
    model.save(tmp_path / "m.keras")
    path = rewritten(tmp_path / "m.keras", unknown_argument, "9.1.0")
    sentence = refusal(files.load, path)
    assert "passed to Flatten: {'novelty': [0, 255]}" in sentence
    assert f"was written by Keras 9.1.0, and this is Keras {keras.__version__}" in sentence
    assert "\x1b" not in sentence and len(sentence) < 1000


# Code that somebody vouches for.

OWN = """
import keras

@keras.saving.register_keras_serializable("shop")
class Registered(keras.layers.Layer):
    def call(self, x):
        return 2.0 * x

class Bare(keras.layers.Layer):
    def call(self, x):
        return 2.0 * x

def doubled(x):
    return 2.0 * x
"""


@pytest.fixture
def shop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A module with classes of somebody's own, which Keras has forgotten."""
    (tmp_path / "shop_of_layers.py").write_text(OWN)
    monkeypatch.chdir(tmp_path)
    yield trusted._imported("shop_of_layers.py")
    forget()


def forget() -> None:
    sys.modules.pop("shop_of_layers", None)
    known = keras.saving.get_custom_objects()
    for name in [name for name in known if name.startswith("shop>")]:
        del known[name]


@pytest.mark.parametrize("given", ["shop_of_layers", "shop_of_layers.py"])
@pytest.mark.parametrize("suffix", [".keras", ".h5"])
def test_classes_of_ones_own_are_found_in_modules(
    shop: Any, given: str, suffix: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = sequential(
        shop.Registered(), shop.Bare(), layers.Activation(shop.doubled), layers.Flatten(), dense()
    )
    path = Path(f"m{suffix}").resolve()
    model.save(path)
    expected = run(model, images())
    forget()
    assert "trust=yes" in refusal(files.load, path)
    monkeypatch.chdir("/")
    assert "modules=NAME or modules=PATH.py says where" in refusal(files.load_trusted, path)
    monkeypatch.chdir(tmp_path)
    # A .keras file names the module itself.
    for found in ([given], []) if suffix == ".keras" else ([given],):
        forget()
        loaded = files.load_trusted(path, modules=found)
        np.testing.assert_array_equal(run(loaded, images()), expected)


def test_modules_that_cannot_be_imported_are_named(tmp_path: Path) -> None:
    plain().save(tmp_path / "m.keras")
    (tmp_path / "broken.py").write_text("1 / 0")
    for name, sentence in (
        ("no_such_module", "modules=no_such_module can't be imported (ModuleNotFoundError"),
        (str(tmp_path / "gone.py"), "there is no such file"),
        (str(tmp_path / "broken.py"), "can't be imported (ZeroDivisionError: division by zero)"),
    ):
        assert sentence in refusal(files.load_trusted, tmp_path / "m.keras", modules=[name])


def test_functions_of_tensorflow_are_keras_own(tmp_path: Path) -> None:
    model = sequential(layers.Flatten(), dense(5, tf.nn.log_softmax), dense(3, tf.nn.softmax))
    for suffix in (".keras", ".h5"):
        model.save(tmp_path / f"m{suffix}")
        loaded = files.load(tmp_path / f"m{suffix}")
        np.testing.assert_array_equal(run(loaded, images()), run(model, images()))


def test_a_lambda_layer_is_loaded_if_it_is_trusted(tmp_path: Path) -> None:
    model = sequential(layers.Lambda(lambda x: 2.0 * x), layers.Flatten(), dense())
    for suffix in (".keras", ".h5"):
        model.save(tmp_path / f"m{suffix}")
        assert "(Lambda) holds code of its own" in refusal(files.load, tmp_path / f"m{suffix}")
        loaded = files.load_trusted(tmp_path / f"m{suffix}")
        np.testing.assert_array_equal(run(loaded, images()), run(model, images()))


def test_a_saved_model_is_loaded_if_it_is_trusted(tmp_path: Path) -> None:
    model = plain()
    model.export(tmp_path / "saved", verbose=False)
    assert "is a SavedModel of TensorFlow, which is a program" in refusal(
        files.load, tmp_path / "saved"
    )
    graph = layers.TFSMLayer(str(tmp_path / "saved"), call_endpoint="serve")
    sequential(graph).save(tmp_path / "layer.keras")
    assert "(TFSMLayer) holds code of its own" in refusal(files.load, tmp_path / "layer.keras")
    layer = files.load_trusted(tmp_path / "layer.keras")
    np.testing.assert_allclose(
        softmax(run(adapt(layer), images())), run(model, images()), atol=1e-5
    )
    adapted = adapt(files.load_trusted(tmp_path / "saved"))
    np.testing.assert_allclose(softmax(run(adapted, images())), run(model, images()), atol=1e-5)


# MLflow's folders.


def test_folders_of_other_flavours_and_ages_are_found(tmp_path: Path) -> None:
    model = plain()
    expected = run(model, images())
    mlflow.tensorflow.save_model(model, str(tmp_path / "tensorflow"), pip_requirements=["keras"])
    old = tmp_path / "old/data"
    old.mkdir(parents=True)
    in_hdf5(model, old / "model.h5")
    (old / "keras_module.txt").write_text("tensorflow.keras")
    flavors = {
        "keras": {"data": "data", "keras_version": "2.9.0", "save_format": "h5"},
        "python_function": {"loader_module": "mlflow.keras", "data": "data"},
    }
    (tmp_path / "old/MLmodel").write_text(json.dumps({"flavors": flavors}))
    for name in ("tensorflow", "old"):
        np.testing.assert_array_equal(run(files.load(tmp_path / name), images()), expected)
        loaded = files.load_trusted(tmp_path / name)
        np.testing.assert_array_equal(run(loaded, images()), expected)
    # What brings code is MLflow's own to load.
    flavors["python_function"]["code"] = "code"
    (tmp_path / "old/MLmodel").write_text(json.dumps({"flavors": flavors}))
    assert "brings code of its own in 'code'; trust=yes" in refusal(files.load, tmp_path / "old")
    assert files.load_trusted(tmp_path / "old", lambda: model) is model


# What goes into a model, and what comes out.


@pytest.mark.parametrize("mode", ["caffe", "torch", "tf"])
def test_preprocessing_is_that_of_keras_applications(mode: Any) -> None:
    model = sequential(layers.Flatten(), dense(), shape=(4, 4, 3))
    x = images((4, 4, 3))
    expected = run(model, preprocess_input(255 * x, mode=mode))
    adapted = adapt(model, image_shape=(4, 4, 3), preprocessing=mode)
    np.testing.assert_allclose(softmax(run(adapted, x)), expected, atol=2e-5)
    # As the evaluator has them, who is given what the model takes.
    again = Interface(preprocessing=mode).pixels(preprocess_input(255 * x, mode=mode))
    np.testing.assert_allclose(again, x, atol=1e-6)


def test_preprocessing_in_numbers() -> None:
    model = sequential(layers.Flatten(), dense(), shape=(4, 4, 3))
    x = images((4, 4, 3))
    options = {"input_range": "0,255", "channel_order": "bgr", "mean": "1,2,3", "std": "2"}
    adapted = adapt(model, image_shape=(4, 4, 3), **options)
    expected = run(model, (255 * x[..., ::-1] - [1, 2, 3]) / 2)
    np.testing.assert_allclose(softmax(run(adapted, x)), expected, atol=2e-5)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"preprocessing": "caffe", "mean": "1,2,3"}, "preprocessing=caffe says what mean is"),
        ({"preprocessing": "tf", "input_range": "0,255"}, "says what input_range is"),
        ({"std": "1,0,1"}, "std must be above 0 for each channel"),
        ({"mean": "1,x"}, "mean must be a number"),
        ({"mean": "1,2"}, "mean is for 2 channels; the images have 1"),
        ({"preprocessing": "torch"}, "preprocessing=torch is for 3 channels; the images have 1"),
        ({"single_output": "logit"}, "this one has 3"),
        ({"channel_order": "bgr"}, "no effect with images of one channel"),
    ],
)
def test_interfaces_that_do_not_fit_are_refused(options: Any, sentence: str) -> None:
    assert sentence in refusal(adapt, plain(), **options)


def test_the_check_for_a_gradient_computes_none_by_kernels() -> None:
    # TensorFlow's, by this one and of a single image, ends the process on some CPUs.
    strided = layers.Conv2D(16, 1, strides=2, padding="same")
    model = sequential(strided, layers.Flatten(), dense(), shape=(30, 30, 8))
    adapted = adapt(model, image_shape=(30, 30, 8))
    x = images((30, 30, 8))
    np.testing.assert_allclose(softmax(run(adapted, x)), run(model, x), atol=1e-6)


@pytest.mark.parametrize("name", ["my layer", "a\nb", "ünder"])
def test_names_that_cannot_be_compiled_are_refused(name: str) -> None:
    model = sequential(layers.Flatten(), layers.Dense(3, name=name))
    sentence = refusal(adapt, model)
    assert "its layer" in sentence and "has a name that TensorFlow can't compile" in sentence


@pytest.mark.parametrize("asked", ["logit", "probability", "tanh"])
def test_one_unit_gives_two_classes(asked: str) -> None:
    layer = dense(1, "tanh" if asked == "tanh" else None)
    after = [layers.Rescaling(1.0)] if asked == "logit" else []
    if asked == "probability":
        after = [layers.Activation("sigmoid"), layers.Rescaling(0.98, 0.01)]
    model = sequential(layers.Flatten(), layer, *after)
    if asked != "tanh":
        assert "single_output=logit or single_output=probability" in refusal(adapt, model)
    adapted = adapt(model, single_output="seen" if asked == "tanh" else asked)
    given = run(model, images(count=40))[:, 0]
    middle = 0.5 if asked == "probability" else 0.0
    logits = run(adapted, images(count=40))
    np.testing.assert_array_equal(logits.argmax(axis=1), given > middle)
    assert 0 < (given > middle).mean() < 1
    share = {"logit": 1 / (1 + np.exp(-given)), "probability": given, "tanh": (1 + given) / 2}
    np.testing.assert_allclose(softmax(logits)[:, 1], share[asked], atol=1e-5)


def test_a_sigmoid_is_no_logit() -> None:
    model = sequential(layers.Flatten(), dense(1, "sigmoid"))
    assert "the model ends in a sigmoid" in refusal(adapt, model, single_output="logit")


@pytest.mark.parametrize("dtype", ["uint8", "int32"])
def test_whole_numbers_are_rounded_and_gradients_pass(dtype: str) -> None:
    x = keras.Input((4, 4, 1), dtype=dtype)
    scaled = layers.Rescaling(1 / 255)(x)
    model = keras.Model(x, dense()(layers.Flatten()(layers.Dropout(0.5)(scaled))))
    adapted = adapt(model, input_range=(0, 255))
    expected = run(model, np.rint(255 * images()).astype(dtype))
    np.testing.assert_allclose(softmax(run(adapted, images())), expected, atol=1e-6)
    # The gradient is the one that a model of floats would have there.
    kernel = model.layers[-1].get_weights()[0]
    pixels = tf.constant(images())
    with tf.GradientTape() as tape:
        tape.watch(pixels)
        logit = adapted(pixels, training=False)[:, 0]
    gradient = np.asarray(tape.gradient(logit, pixels)).reshape(5, -1)
    np.testing.assert_allclose(gradient, np.tile(kernel[:, 0], (5, 1)), rtol=1e-4)


def test_channels_may_come_first() -> None:
    model = sequential(layers.Flatten(), dense(), shape=(3, 4, 4))
    x = images((4, 4, 3))
    adapted = adapt(model, image_shape=(4, 4, 3))
    expected = run(model, x.transpose(0, 3, 1, 2))
    np.testing.assert_allclose(softmax(run(adapted, x)), expected, atol=1e-6)


def of_several(as_dict: bool) -> keras.Model:
    """An image and two numbers in; classes and a number out."""
    image, age = keras.Input((4, 4, 1), name="image"), keras.Input((2,), name="age")
    joined = layers.Concatenate()([layers.Flatten()(image), age])
    classes, size = dense(3, name="classes")(joined), dense(1, None, name="size")(joined)
    if as_dict:
        return keras.Model({"image": image, "age": age}, {"classes": classes, "size": size})
    return keras.Model([image, age], [classes, size])


@pytest.mark.parametrize("as_dict", [False, True])
def test_one_of_several_inputs_is_the_image(tmp_path: Path, as_dict: bool) -> None:
    model = of_several(as_dict)
    age = np.array([0.5, -2.0], np.float32)
    np.savez(tmp_path / "age.npz", age=age)
    given = {"image": images(), "age": np.tile(age, (5, 1))}
    found = model(given if as_dict else list(given.values()), training=False)
    expected = np.asarray(found["classes"] if as_dict else found[0])
    inputs = f"npz:{tmp_path}/age.npz"
    for options in ({"input": "image"}, {}):
        adapted = adapt(model, inputs=inputs, output="classes", **options)
        np.testing.assert_allclose(softmax(run(adapted, images())), expected, atol=1e-6)

    np.savez(tmp_path / "complex.npz", age=age + 1j)
    for options, sentence in (
        (
            {"output": "classes", "inputs": f"npz:{tmp_path}/complex.npz"},
            "age holds complex64 instead of numbers",
        ),
        ({"inputs": inputs}, "2 outputs, classes or size; say by output=NAME"),
        ({"inputs": inputs, "output": "clases"}, "did you mean 'classes'?"),
        ({"output": "classes"}, "say by input=NAME which of them is the image"),
        ({"output": "classes", "input": "image"}, "takes age beside the image image; give it by"),
        ({"output": "classes", "input": "picture"}, "unknown input 'picture'"),
        ({"output": "classes", "inputs": "npz:gone.npz"}, "gone.npz"),
        ({"output": "classes", "inputs": inputs, "input": "age"}, "takes image beside the image"),
    ):
        assert sentence in refusal(adapt, model, **options)


def test_modules_need_trust() -> None:
    from resfool.attacks.options import AttackParameters

    with pytest.raises(
        InputError, match="modules=mine has no effect with trust=false; it needs trust=true"
    ):
        AttackParameters.of({"model": "m.keras", "modules": "mine"})


# Keras's own settings.


@pytest.mark.parametrize(
    ("setting", "value"), [("image_data_format", "channels_first"), ("floatx", "float16")]
)
def test_settings_of_keras_that_are_in_use_are_refused_by_name(setting: str, value: str) -> None:
    from resfool import devices

    change = getattr(keras.config, f"set_{setting}")
    before = getattr(keras.config, setting)()
    change(value)
    try:
        with pytest.raises(InputError, match=f"Keras's setting {setting} is {value}, and resfool"):
            devices.start_keras()
    finally:
        change(before)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("resnet.ResNet50", {"preprocessing": "caffe"}),
        ("vgg16.VGG16", {"preprocessing": "caffe"}),
        ("mobilenet_v2.MobileNetV2", {"preprocessing": "tf"}),
        ("efficientnet.EfficientNetB0", {"input_range": "0,255"}),
    ],
)
def test_networks_of_keras_applications_agree_with_plain_keras(
    tmp_path: Path, name: str, options: dict[str, str]
) -> None:
    place, _, network = name.partition(".")
    module = getattr(keras.applications, place)
    model = getattr(module, network)(weights=None)
    x = images((224, 224, 3), 2)
    # With random weights all classes are as likely; probabilities that differ can tell.
    features = keras.Model(model.input, model.layers[-1].input)
    size = np.abs(run(features, module.preprocess_input(255 * x))).max()
    kernel, bias = model.layers[-1].get_weights()
    model.layers[-1].set_weights([kernel / size, bias])
    model.save(tmp_path / "m.keras")
    adapted = adapt(files.load(tmp_path / "m.keras"), image_shape=(224, 224, 3), **options)
    expected = run(model, module.preprocess_input(255 * x))
    np.testing.assert_allclose(softmax(run(adapted, x)), expected, atol=1e-5)
    np.testing.assert_array_equal(run(adapted, x).argmax(axis=1), expected.argmax(axis=1))
