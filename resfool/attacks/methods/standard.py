"""The attacks that follow one another in AutoAttack, together as a standard and each by itself."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import BeforeValidator

from resfool.attacks.methods.moving import Moved, Start
from resfool.declarations import Known
from resfool.parameters import Parameters
from resfool.values import PositiveCount, UpToMillion, listed, split_commas

if TYPE_CHECKING:
    from resfool.attacks.methods.task import Answer, Task

Effort = Literal["quick", "standard", "plus"]


@dataclass(frozen=True)
class Component:
    """An attack of the standard.

    Attributes:
        attack: from a task, and options by their names, to an answer.
        passes: of an image that it doesn't fool, from the options.
        options: their names, which are parameters of the method of its name.
        shortens: see `pursuit.Pursuer`.
    """

    attack: "Callable[..., Answer]"
    passes: Callable[[Mapping[str, Any]], int]
    options: tuple[str, ...]
    shortens: bool = False


def _apgd(task: "Task", **options: Any) -> "Answer":
    from resfool.attacks.methods.apgd import apgd

    return apgd(task, steps=options.pop("attack_steps"), **options)


def _fab(task: "Task", **options: Any) -> "Answer":
    from resfool.attacks.methods.fab import fab

    return fab(task, steps=options.pop("attack_steps"), **options)


def _square(task: "Task", **options: Any) -> "Answer":
    from resfool.attacks.methods.square import square

    return square(task, **options)


def _towards_nearest(attack: "Callable[..., Answer]") -> "Callable[..., Answer]":
    """An attack that takes classes to move towards as one that takes their number."""

    def attack_nearest(task: "Task", target_classes: int, **options: Any) -> "Answer":
        from resfool.attacks.methods.targets import nearest_targets

        return attack(task, targets=nearest_targets(task, target_classes), **options)

    return attack_nearest


def _ascents(options: Mapping[str, int]) -> int:
    return 2 * options["attack_steps"] * options.get("target_classes", 1) * options["restarts"]


def _walks(options: Mapping[str, int]) -> int:
    return 3 * options["attack_steps"] * options["target_classes"] * options["restarts"]


def _searches(options: Mapping[str, int]) -> int:
    return options["queries"] * options["restarts"]


_UNTARGETED = "attack_steps", "restarts"
_TARGETED = "attack_steps", "target_classes", "restarts"

COMPONENTS: dict[str, Component] = {
    "apgd": Component(_apgd, _ascents, _UNTARGETED),
    "apgd_margin": Component(partial(_apgd, loss="margin"), _ascents, _UNTARGETED),
    "apgd_targeted": Component(
        _towards_nearest(partial(_apgd, loss="targeted")), _ascents, _TARGETED
    ),
    "fab": Component(_towards_nearest(_fab), _walks, _TARGETED, shortens=True),
    "square": Component(_square, _searches, ("queries", "restarts")),
}

# The components of each effort, in the order in which they follow one another, and what they are
# asked for beside the defaults.
EFFORTS: dict[str, dict[str, dict[str, int]]] = {
    "quick": {
        "apgd": {"attack_steps": 20},
        "apgd_margin": {"attack_steps": 20},
        "apgd_targeted": {"attack_steps": 20, "target_classes": 3},
    },
    "standard": {"apgd": {}, "apgd_targeted": {}, "fab": {}, "square": {}},
    "plus": {
        "apgd": {"restarts": 5},
        "apgd_margin": {"restarts": 5},
        "apgd_targeted": {"restarts": 3},
        "fab": {"restarts": 3},
        "square": {"restarts": 2},
    },
}


class StandardOptions(Parameters):
    """How hard images are tried to fool by the attacks of the standard, or by one of them."""

    effort: Annotated[
        Effort,
        "of standard: quick for a first look, standard as published, or plus with more restarts.",
    ] = "standard"
    components: Annotated[
        Annotated[tuple[str, ...], BeforeValidator(split_commas), Known(COMPONENTS)] | None,
        f"of standard, comma separated: {listed(COMPONENTS)}; none is those of the effort.",
    ] = None
    attack_steps: Annotated[
        UpToMillion, "gradient steps of apgd and fab, for each target if any."
    ] = 100
    target_classes: Annotated[
        PositiveCount, "that apgd_targeted and fab move towards one by one, the nearest first."
    ] = 9
    queries: Annotated[UpToMillion, "looks of square at an image."] = 5000
    restarts: Annotated[PositiveCount, "ascents, walks or searches, for each target if any."] = 1

    @property
    def asked_of(self) -> dict[str, dict[str, int]]:
        """The options of each component of the standard, in their order."""
        by_effort = EFFORTS[self.effort]
        names = by_effort if self.components is None else dict.fromkeys(self.components)
        return {name: _options(name, by_effort.get(name, {})) for name in names}


def _options(name: str, own: Mapping[str, int]) -> dict[str, int]:
    """A component's options, which are the defaults but for its own."""
    declared = StandardOptions.declared()
    return {n: own.get(n, declared[n].default) for n in COMPONENTS[name].options}


def standard(start: Start, asked: Any) -> Moved:
    """Let the components follow one another, each on the images that are not fooled yet.

    Source: Croce, Hein, "Reliable evaluation of adversarial robustness with an ensemble of diverse
    parameter-free attacks", arXiv:2003.01690.
    """
    return _pursued(start, asked, asked.asked_of)


def standard_passes(epsilons: int, asked: Any) -> int:
    """Of an image that nothing fools."""
    return _passes(asked.asked_of)


def alone(name: str) -> tuple[Callable[[int, Any], int], Callable[[Start, Any], Moved]]:
    """A component as a method of its own: its passes, and what it does."""

    def asked_of(asked: Any) -> dict[str, dict[str, int]]:
        return {name: {n: getattr(asked, n) for n in COMPONENTS[name].options}}

    return (
        lambda epsilons, asked: _passes(asked_of(asked)),
        lambda start, asked: _pursued(start, asked, asked_of(asked)),
    )


def _passes(asked_of: Mapping[str, Mapping[str, int]]) -> int:
    """And one to see how clear a lead must be, and one to judge in the end."""
    return 2 + sum(COMPONENTS[name].passes(options) for name, options in asked_of.items())


def _pursued(start: Start, asked: Any, asked_of: Mapping[str, Mapping[str, int]]) -> Moved:
    from resfool.attacks.methods.pursuit import Pursuer, pursue

    pursuers = [
        Pursuer(
            name,
            partial(COMPONENTS[name].attack, **options),
            COMPONENTS[name].passes(options),
            COMPONENTS[name].shortens,
        )
        for name, options in asked_of.items()
    ]
    return pursue(start, pursuers, asked.ball)
