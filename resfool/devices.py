"""TensorFlow's and Keras's start: quietly, as we want them, and without taking all of a GPU."""

import contextlib
import functools
import os
import platform
import sys
import tempfile
import time
from collections.abc import Iterator

from resfool.errors import InputError

# Read by TensorFlow at its first operation: whether GPUs give the same bits every time. Some of
# their operations can't; with 0 those are taken too.
DETERMINISTIC = "TF_DETERMINISTIC_OPS"

# What TensorFlow shall read from the environment as it is imported, where nothing is set yet.
VARIABLES = {"TF_CPP_MIN_LOG_LEVEL": "3"}
if platform.machine().lower() in ("x86_64", "amd64"):
    # By itself TensorFlow takes oneDNN's kernels only on CPUs with AVX512-VNNI or newer; with AVX2
    # too they are up to twice as fast.
    VARIABLES["TF_ENABLE_ONEDNN_OPTS"] = "1"


def variables() -> dict[str, str]:
    """What TensorFlow read from this process's environment, or will read, as it is imported.

    Returns:
        Values by names; a name is missing if TensorFlow was imported without it.
    """
    wanted = {} if "tensorflow" in sys.modules else VARIABLES
    return wanted | {name: os.environ[name] for name in VARIABLES if name in os.environ}


def start_tensorflow() -> None:
    """Import TensorFlow; of GPUs it takes the memory as it needs it, and the same bits each time.

    Their TensorFloat-32, which has 10 bits of float32's 23, is off: what flips a prediction by a
    hair in it does so nowhere else.

    Its start-up notes (drivers that aren't there, instructions that it could use) go to the
    process's standard error before any setting is read, and bury what we have to say; they are
    shown only if the start fails.
    """
    _import_tensorflow()
    with held_back_stderr():
        import tensorflow as tf

        gpus = tf.config.list_physical_devices("GPU")
        if gpus:
            os.environ.setdefault(DETERMINISTIC, "1")
            tf.config.experimental.enable_tensor_float_32_execution(False)
        for gpu in gpus:
            # Too late where TensorFlow is at work already, or the GPUs are divided; they stay so.
            with contextlib.suppress(RuntimeError, ValueError):
                tf.config.experimental.set_memory_growth(gpu, True)
        tf.config.list_logical_devices()


def _import_tensorflow() -> None:
    os.environ.update(variables())
    with held_back_stderr():
        import tensorflow as tf

        # It warns of "retracing" where several models are compiled, each once.
        tf.get_logger().setLevel("ERROR")


def on_gpus() -> bool:
    """Whether TensorFlow computes on a GPU here."""
    import tensorflow as tf

    return bool(tf.config.list_logical_devices("GPU"))


def tensorflow_started() -> bool:
    """Whether TensorFlow is at work in this process: its threads don't outlive a fork."""
    if "tensorflow" not in sys.modules:
        return False
    from tensorflow.python.eager import context  # nothing public tells it

    return bool(context.context()._initialized)


# What Keras must be set to, by the names of its settings and their functions in keras.config.
_KERAS = {"image_data_format": "channels_last", "floatx": "float32"}


def start_keras() -> None:
    """Import TensorFlow and Keras, and start them, whatever Keras's settings here say.

    Raises:
        InputError: Keras is at work already, with other settings than ours.
    """
    import_keras()
    start_tensorflow()


def import_keras() -> None:
    """Import TensorFlow and Keras without starting them: this process can be forked still.

    Keras's settings in the environment and in ~/.keras don't count.

    Raises:
        InputError: Keras is at work already, with other settings than ours.
    """
    ours = "keras" not in sys.modules
    if ours:
        os.environ["KERAS_BACKEND"] = "tensorflow"
        os.environ.pop("TF_USE_LEGACY_KERAS", None)
    _import_tensorflow()
    import keras

    if keras.config.backend() != "tensorflow":
        raise InputError(
            f"resfool needs Keras on TensorFlow, and here it runs on {keras.config.backend()};"
            " start Python with KERAS_BACKEND=tensorflow"
        )
    for name, value in _KERAS.items():
        now = getattr(keras.config, name)()
        if now != value and ours:
            getattr(keras.config, f"set_{name}")(value)
        elif now != value:
            raise InputError(
                f"Keras's setting {name} is {now}, and resfool needs {value}; call"
                f" keras.config.set_{name}({value!r}), or change it in ~/.keras/keras.json"
            )


@functools.cache
def bfloat16_slowdown() -> float:
    """How many times a convolution's gradients take as long in bfloat16 as in float32, measured.

    CPUs without instructions for it compute bfloat16 in software; ten times as long was seen.
    """
    # In turn, and the shortest of some: other work on the machine makes them longer, never shorter.
    pairs = [(_seconds("bfloat16"), _seconds("float32")) for _ in range(8)]
    lower, full = map(min, zip(*pairs, strict=True))
    return lower / full


def _seconds(dtype: str) -> float:
    """Of a small convolution and its gradients."""
    import tensorflow as tf

    images, kernel = tf.ones((64, 16, 16, 16), dtype), tf.ones((3, 3, 16, 16), dtype)
    started = time.perf_counter()
    with tf.GradientTape() as tape:
        tape.watch((images, kernel))
        outputs = tf.nn.conv2d(images, kernel, 1, "SAME")
    for gradient in tape.gradient(outputs, (images, kernel)):
        gradient.numpy()  # waits for it
    return time.perf_counter() - started


@contextlib.contextmanager
def held_back_stderr() -> Iterator[None]:
    """Keep what native code writes to file descriptor 2, and write it out on an error."""
    sys.stderr.flush()
    real = os.dup(2)
    with tempfile.TemporaryFile() as held:
        os.dup2(held.fileno(), 2)
        try:
            yield
        except BaseException:
            held.seek(0)
            os.write(real, held.read())
            raise
        finally:
            os.dup2(real, 2)
            os.close(real)
