"""Which workers share the images of a model, if any do."""

import functools
import os
from typing import Any

import keras

from resfool import devices
from resfool.attacks.memory import workers_at_once
from resfool.classifiers import inference
from resfool.classifiers.spreading import Blocks, Sent, Workers
from resfool.errors import InputError
from resfool.monitor import Monitor
from resfool.parameters import Crew


def workers_for(
    model: keras.Model,
    parts: Blocks,
    asked: Crew,
    map: Any,
    monitor: Monitor,
    *,
    batch_size: int,
    chosen: bool,
) -> Workers | None:
    """The workers that were asked for, or that are chosen where the model can be sent there.

    Args:
        model: that is to go there.
        parts: blocks of its images.
        asked: which workers.
        map: runs blocks in them, a `spreading.Map` such as `parallel.map`; None has none.
        monitor: is told if memory holds fewer than there are cores.
        batch_size: images per pass, at most.
        chosen: whether there shall be some if nobody asked.

    Raises:
        InputError: they were asked for, and the model can't be sent.
    """
    # Workers that aren't given GPUs see none.
    chosen = chosen and not devices.on_gpus()
    if map is None or not (asked.wanted or chosen):
        return None
    run = map
    cores = os.cpu_count() or 1
    fitting = workers_at_once(model, inference.even(parts.size, batch_size), cores)
    if asked.crew["backend"] == "joblib" and asked.workers is None and fitting < cores:
        monitor.say(f"{fitting} workers instead of {cores}, since memory is short")
        run = functools.partial(map, workers=fitting)
    try:
        return Workers(run, Sent.of(model))
    except InputError:
        if asked.wanted:
            raise
        return None
