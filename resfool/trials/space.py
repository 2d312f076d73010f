"""What a search may vary."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from resfool.errors import InputError, unknown
from resfool.networks.shape import ARCHITECTURES
from resfool.training.recipe import TrainParameters
from resfool.trials.options import TuneParameters
from resfool.values import show


@dataclass(frozen=True)
class Between:
    """A range of a setting; `log` counts in magnitudes."""

    low: float
    high: float
    log: bool = False


@dataclass(frozen=True)
class Choice:
    """A few values of a setting."""

    values: tuple[Any, ...]


Span = Between | Choice


def space_of(asked: TuneParameters) -> dict[str, Span]:
    """What is searched: what was named, or all that the architecture has and wasn't given.

    Returns:
        Spans by the settings' names, without values that `train` refuses beside what was given.

    Raises:
        InputError: a setting isn't known, was given, or none of its values goes.
    """
    known, given = _known(asked.arch), asked.given()
    if "lr_drop" in given:
        given.setdefault("schedule", "drop")
    for name in asked.search or ():
        if name not in known:
            raise unknown(f"setting to search of {asked.arch}", name, known)
        if name in given:
            raise InputError(
                f"{name}={show(given[name])} was given, so it can't be searched; "
                "leave one of the two out"
            )
    names = asked.search or [name for name in known if name not in given]
    return {name: _fitting(name, known[name], asked.training) for name in names}


def _known(arch: str) -> dict[str, Span]:
    kind = ARCHITECTURES[arch]
    known: dict[str, Span] = {
        "learning_rate": Between(1e-4, 1e-1, log=True),
        "weight_decay": Between(1e-5, 1e-1, log=True),
        "dropout": Between(0.0, 0.5),
        "gate_bias": Between(-4.0, 0.0),
        "width": Choice(kind.tried_widths),
        "depth": Choice(kind.tried_depths),
        "optimizer": Choice(("adam", "momentum", "muon", "nesterov", "sgd")),
        "batch_size": Choice((32, 64, 128, 256)),
        "schedule": Choice(("constant", "cosine", "onecycle")),
        "label_smoothing": Between(0.0, 0.2),
        "ema": Choice((0.0, 0.99, 0.998)),
        "augment": Choice(("off", "shift,mirror", "shift,mirror,cutout")),
    }
    return {name: span for name, span in known.items() if kind.gated or name != "gate_bias"}


def _fitting(name: str, span: Span, training: TrainParameters) -> Span:
    if not isinstance(span, Choice):
        return span
    refusals: dict[Any, InputError] = {}
    for value in span.values:
        try:
            replace(training, **as_given({name: value}))
        except InputError as error:
            refusals[value] = error
    values = tuple(value for value in span.values if value not in refusals)
    if not values:
        tried, (last, reason) = show(span.values), refusals.popitem()
        raise InputError(
            f"{name} can't be searched: none of {tried} goes with what was given ({last}: {reason})"
        )
    return Choice(values)


def as_given(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Settings of the search as `train` takes them."""
    return {n: (v,) if n == "width" else v for n, v in settings.items()}
