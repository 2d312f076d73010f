"""A training's settings: how they fit together, and which of them a resumption may change."""

import inspect
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from resfool import checkpoints
from resfool.errors import InputError
from resfool.networks import shape
from resfool.parameters import show

Settings = dict[str, Any]
Judged = Literal["test", "validation"]  # the part of a data set that a training evaluates on
_MAY_CHANGE = ("data_dir", "checkpoint_seconds")  # between a training and its resumption


def check(settings: Settings) -> shape.Network:
    """Check the arguments of `train` against each other.

    Args:
        settings: all of them.

    Returns:
        The network's shape, defaults filled in.

    Raises:
        InputError: they don't go together.
    """
    for name in ("adversarial_epsilon", "adversarial_weight"):
        if settings["adversarial"] == "none" and settings[name] != default(name):
            raise InputError(f"{name}={show(settings[name])} needs adversarial=fgsm")
    shaping = ("depth", "width", "convs_per_unit", "dropout", "gate_bias", "batch_norm")
    return shape.network(settings["arch"], **{name: settings[name] for name in shaping})


def resumed_settings(given: Settings, checkpoint: Path) -> Settings:
    """The settings of a training that is to be resumed.

    A setting at its default is taken from the checkpoint; any other must agree with it. `arch`
    has no default, so it must always agree. Where the data lies and how often to save may change.

    Args:
        given: arguments of `train`.
        checkpoint: the file that the training left.

    Returns:
        The stored settings.

    Raises:
        InputError: a setting contradicts the checkpoint, or the checkpoint can't be read.
    """
    from resfool.training.train import train

    stored: Settings = checkpoints.load(checkpoint)[1]["settings"]
    stored = {n: tuple(v) if isinstance(v, list) else v for n, v in stored.items()}
    for name, parameter in inspect.signature(train).parameters.items():
        if name not in given or given[name] == parameter.default:
            continue
        if name in _MAY_CHANGE:
            stored[name] = given[name]
        else:
            _check_agrees(name, given[name], stored)
    return stored


def check_same_training(stored: Mapping[str, Any], settings: Settings, digest: str) -> None:
    for name, value in settings.items():
        if name not in _MAY_CHANGE:
            _check_agrees(name, value, stored["settings"])
    if stored["dataset_digest"] != digest:
        raise InputError(
            f"the data set {settings['dataset']} has changed since the checkpoint: its digest was "
            f"{stored['dataset_digest']} and is {digest}"
        )


def _check_agrees(name: str, given: Any, settings: Settings) -> None:
    # A checkpoint from before there was this parameter was trained as its default does.
    stored = settings.get(name, default(name))
    given, stored = (tuple(v) if isinstance(v, list) else v for v in (given, stored))
    if given != stored:
        raise InputError(f"the run to resume has {name}={show(stored)}, not {name}={show(given)}")


def default(name: str) -> Any:
    """A parameter's default."""
    from resfool.training.train import train

    return inspect.signature(train).parameters[name].default
