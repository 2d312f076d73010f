"""How many images a pass through a model takes, so that the memory there is holds it."""

import contextlib
import math
from collections import Counter
from collections.abc import Iterator
from typing import Any

import keras
import tensorflow as tf

from resfool import devices, limits
from resfool.attacks import gradient
from resfool.classifiers import inference
from resfool.classifiers.inference import BATCH_SIZE
from resfool.errors import InputError
from resfool.limits import shown
from resfool.monitor import Monitor
from resfool.values import BatchSize

_ENOUGH = (
    2**30
)  # bytes, for a gradient on a CPU, where larger passes take no less time for an image
_MARGIN = 1.15  # of the estimate, see `_of_gradient`
_PROCESS = 5e8  # bytes of a worker that has loaded TensorFlow
# What solvers take beside: the same again, and so many times the images, for the gradients of ten
# logits. Passes of two networks took as much.
_SOLVING_GRADIENTS, _SOLVING_IMAGES = 2, 32


def largest(asked: BatchSize) -> int:
    """The images of a pass where there are enough of them, and memory enough."""
    return BATCH_SIZE if asked == "auto" else asked


def images_per_pass(
    asked: BatchSize, model: keras.Model, count: int, monitor: Monitor, *, solving: bool = False
) -> int:
    """How many images a pass takes at most.

    Args:
        asked: a number, which is taken; or "auto" for BATCH_SIZE, halved until a pass takes no more
            than half of the memory that is free, and on a CPU 1 GiB for its gradient.
        model: from images to logits.
        count: of the images that there are.
        monitor: is told if they are fewer than BATCH_SIZE and than there are, and why; and warned
            if a pass may not fit.
        solving: whether smallest perturbations are solved for.
    """
    size = inference.even(count, largest(asked))
    gradient_takes = pass_takes = _of_gradient(model, size)
    if solving:
        pass_takes = _of_solving(model, size, gradient_takes)
    free = _free()
    if asked != "auto":
        if pass_takes > free:
            monitor.warn(
                f"a pass of {size} images takes about {shown(pass_takes)} of memory, and "
                f"{shown(free)} are free, so it may run out; give a smaller batch_size, or auto"
            )
        return asked
    half = free / 2
    enough = math.inf if devices.on_gpus() else _ENOUGH
    fitting = size * min(half / pass_takes, enough / gradient_takes)
    if fitting >= size:
        return BATCH_SIZE
    most = BATCH_SIZE
    while most > max(fitting, 1):
        most //= 2
    reason = f"passes of more than {shown(enough)} are no faster"
    if half / pass_takes < enough / gradient_takes:
        reason = f"half of what is free is {shown(half)}"
    monitor.say(
        f"batch_size=auto is {most} here: a pass of {size} images would take about "
        f"{shown(pass_takes)} of memory, and {reason}"
    )
    if pass_takes / size > half:
        monitor.warn(
            f"even one image takes about {shown(pass_takes / size)} of memory, and half of what "
            f"is free is {shown(half)}, so it may run out"
        )
    return most


def workers_at_once(model: keras.Model, size: int, cores: int) -> int:
    """How many workers solve at a time here, so that half of the memory that is free holds them.

    Args:
        model: from images to logits.
        size: images of a pass.
        cores: of this machine, the most that there may be.
    """
    each = _PROCESS + _of_solving(model, size, _of_gradient(model, size))
    return max(1, min(cores, int(limits.free() / 2 / each)))


def _of_solving(model: keras.Model, size: int, gradient_takes: float) -> float:
    """Bytes that a pass of so many images takes in which smallest perturbations are solved for."""
    images = 4 * size * math.prod(model.input_shape[1:])
    return _SOLVING_GRADIENTS * gradient_takes + _SOLVING_IMAGES * images


@contextlib.contextmanager
def enough_for(size: int) -> Iterator[None]:
    """Say it in one sentence where memory ends during passes of so many images.

    And where a GPU has an operation of the model's in no way that gives the same bits every time.

    Raises:
        InputError: it ended, or has not.
    """
    try:
        yield
    except tf.errors.ResourceExhaustedError as error:
        what, advice = "one image", ""
        if size > 1:
            what, advice = f"{size} images", f"; give a smaller batch_size, such as {size // 2}"
        raise InputError(f"a pass of {what} takes more memory than there is{advice}") from error
    except tf.errors.UnimplementedError as error:
        said = [line for line in error.message.splitlines() if "deterministic" in line]
        if not said:
            raise
        raise InputError(
            f"the model has an operation whose bits on a GPU differ from pass to pass ({said[0]}); "
            f"set {devices.DETERMINISTIC}=0 in the environment to take it as it is"
        ) from error


def _of_gradient(model: keras.Model, size: int) -> float:
    """Bytes that a pass of so many images takes, with their gradient.

    They are estimated as the most that the tensors of its graph take at a time, if each is kept
    from where it is computed to where it is used last. Passes of 11 networks on a CPU took 0.13 to
    1.14 times as much. The graph is kept: a pass of that size compiles it no more.
    """
    function: Any = inference.compiled(model, gradient.sign_gradient)
    images = tf.TensorSpec((size, *model.input_shape[1:]), tf.float32)
    operations = function.get_concrete_function(
        images, tf.TensorSpec((size,), tf.int32)
    ).graph.get_operations()
    last_use = {t.ref(): place for place, one in enumerate(operations) for t in one.inputs}
    freed: Counter[int] = Counter()
    now = most = 0
    for place, operation in enumerate(operations):
        for tensor in operation.outputs:
            if tensor.ref() in last_use and tensor.shape.is_fully_defined():
                taken = tensor.shape.num_elements() * tensor.dtype.size
                now += taken
                freed[last_use[tensor.ref()]] += taken
        most = max(most, now)
        now -= freed[place]
    return _MARGIN * most


def _free() -> int:
    """Bytes that passes may take: of the GPUs if there are any, or else of this process."""
    if devices.on_gpus():
        return min(_of_gpus())
    return limits.free()


def _of_gpus() -> list[int]:
    """The memory that TensorFlow may take of each GPU."""
    from tensorflow.python.client import device_lib  # nothing public tells it

    return [one.memory_limit for one in device_lib.list_local_devices() if one.device_type == "GPU"]
