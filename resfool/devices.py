"""TensorFlow's start: quietly, and without taking all of a GPU."""

import contextlib
import os
import sys
import tempfile
from collections.abc import Iterator


def start_tensorflow() -> None:
    """Import TensorFlow and let it take a GPU's memory only as it needs it.

    Its start-up notes (drivers that aren't there, instructions that it could use) go to the
    process's standard error before any setting is read, and bury what we have to say; they are
    shown only if the start fails.
    """
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    with held_back_stderr():
        import tensorflow as tf

        # It warns of "retracing" where several models are compiled, each once.
        tf.get_logger().setLevel("ERROR")
        for gpu in tf.config.list_physical_devices("GPU"):
            # Too late where TensorFlow is at work already, or the GPUs are divided; they stay so.
            with contextlib.suppress(RuntimeError, ValueError):
                tf.config.experimental.set_memory_growth(gpu, True)
        tf.config.list_logical_devices()


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
