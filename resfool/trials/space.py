"""What a search may vary."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from resfool.errors import InputError, unknown
from resfool.parameters import Arch, show
from resfool.training.recipe import Settings, check, default


@dataclass(frozen=True)
class Between:
    """A range of a setting: of whole numbers if both ends are; `log` counts in magnitudes."""

    low: float
    high: float
    log: bool = False


@dataclass(frozen=True)
class Choice:
    """A few values of a setting."""

    values: tuple[Any, ...]


Span = Between | Choice
_SPACE: dict[str, Span] = {
    "learning_rate": Between(1e-4, 1e-1, log=True),
    "weight_decay": Between(1e-5, 1e-1, log=True),
    "dropout": Between(0.0, 0.5),
    "gate_bias": Between(-4.0, 0.0),
    "width": Choice((16, 32, 64)),
    "depth": Choice((10, 15, 20, 25)),
    "optimizer": Choice(("adam", "momentum", "sgd")),
    "batch_size": Choice((32, 64, 128, 256)),
}
_MLP_SPACE: dict[str, Span] = {"width": Choice((50, 100, 200)), "depth": Choice((2, 3, 5, 7))}


def space_of(arch: Arch, search: Sequence[str] | None, training: Settings) -> dict[str, Span]:
    """What is searched: what was named, or all that the architecture has and wasn't given."""
    known = {
        name: span for name, span in _SPACE.items() if arch == "highway" or name != "gate_bias"
    }
    if arch == "mlp":
        known |= _MLP_SPACE
    for name in search or ():
        if name not in known:
            raise unknown(f"setting to search of {arch}", name, known)
        if training[name] != default(name):
            raise InputError(
                f"{name}={show(training[name])} was given, so it can't be searched; "
                "leave one of the two out"
            )
    names = search or [name for name in known if training[name] == default(name)]
    return {name: known[name] for name in names}


def fitting(name: str, span: Span, base: Settings) -> Span:
    """A setting's span, without the values that `train` refuses beside what was given."""
    if not isinstance(span, Choice):
        return span
    refusals: dict[Any, InputError] = {}
    for value in span.values:
        try:
            check(base | as_given({name: value}))
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
