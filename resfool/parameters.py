"""Public parameters: a class of them, what all such classes do, and the groups that several share.

An experiment's parameters are one frozen dataclass, a `Parameters`. Its fields are declared once,
type, default and text together, and all else is made of them: the command line, the checks of
calls from Python, MLproject, the pages on entry points and the evaluator's configuration.
"""

import contextlib
import dataclasses
import functools
import inspect
import math
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import (
    Annotated,
    Any,
    Concatenate,
    Self,
    TypeVar,
    dataclass_transform,
    get_args,
    get_type_hints,
)

from resfool import costs, limits
from resfool.costs import UNKNOWN, Cost, Data
from resfool.declarations import GIVEN, Needs, Parameter, check_effects
from resfool.errors import InputError, UsageError, expanded, looked_in, present, unknown
from resfool.places import cleared
from resfool.values import (
    Backend,
    BatchSize,
    ByteCount,
    CoreCount,
    Counts,
    Crop,
    ImageSize,
    NonNegativeFloat,
    PixelRange,
    PositiveCount,
    PositiveFloat,
    Precision,
    RayAddress,
    Seed,
    WorkerCount,
    in_bytes,
    in_days,
    shown,
)


@dataclass_transform(kw_only_default=True, frozen_default=True)
class Parameters:
    """The public parameters of an experiment, or a group of them that several share.

    A subclass is a frozen, keyword-only dataclass by itself. Its fields are declared as
    `name: Annotated[TYPE, "what it means"] = DEFAULT`. However it is made, its values are checked;
    those that don't go together are refused by `check`.

    Raises:
        UsageError: a value doesn't fit its type.
        InputError: values don't go together.
    """

    def __init_subclass__(cls) -> None:
        dataclass(frozen=True, kw_only=True)(cls)

    def __post_init__(self) -> None:
        for name, parameter in self.declared().items():
            object.__setattr__(self, name, parameter.checked(getattr(self, name)))
        self.check()

    def check(self) -> None:
        """Refuse values that don't go together."""

    def check_effects(self) -> None:
        """Refuse what was given and has no effect.

        Who gives values means them, so `of` asks for it. What the program itself puts together,
        or finds in a stored run, may hold such values.
        """
        check_effects(self.declared(), self.given(), self.settled())

    def cost(self, data: Data) -> Cost:
        """What the experiment takes at least.

        Args:
            data: what is known of the images.
        """
        return Cost()

    def check_places(self) -> None:
        """Refuse places that are named and aren't there, as far as no store is asked."""

    def check_affordable(self, data: Data = UNKNOWN) -> None:
        """Refuse what nobody can wait for, or no memory holds, by the limits in force.

        Args:
            data: what is known of the images.

        Raises:
            InputError: it would take more than the limits, by an estimate that is far too low.
        """
        cost = self.cost(data)
        if cost.memory > limits.memory():
            raise InputError(
                f"{self._costliest('memory', data)} takes at least {in_bytes(cost.memory)} of "
                f"memory, and memory_limit allows {in_bytes(limits.memory())}; ask for less, or "
                "raise memory_limit"
            )
        if cost.days > limits.days():
            raise InputError(
                f"{self._costliest('days', data)} takes at least {in_days(cost.days)}, by a low "
                f"estimate, and work_limit allows {limits.days():g}; ask for less, or raise "
                "work_limit"
            )

    def _costliest(self, what: str, data: Data) -> str:
        """The number that was given without which a cost would be at its least."""

        def of(asked: Parameters) -> float:
            return float(f"{getattr(asked.cost(data), what):.1e}")  # nearly the same is the same

        found = [(of(self), 0, "what was asked for")]
        declared = self.declared()
        for name, value in self.given().items():
            numbers = value if isinstance(value, tuple) else (value,)
            counts = all(type(number) is int for number in numbers)
            if counts and name not in Limits.declared() and not declared[name].required:
                with contextlib.suppress(InputError):  # the others may not go without it
                    other = type(self)(**self.settings() | {name: declared[name].default})
                    found.append((of(other), -max(numbers), f"{name}={shown(value)}"))
        return min(found)[-1]

    @classmethod
    def declared(cls) -> dict[str, Parameter]:
        """The parameters by their names: what must be given, a class's own, those of its bases."""
        kind: Any = cls
        return _declared(kind)

    @classmethod
    def of(cls, given: Mapping[str, Any]) -> Self:
        """Made of values that somebody gave by name, of their types or as the command line spells.

        Raises:
            UsageError: a name isn't known, or one is missing.
            InputError: one has no effect beside the others.
        """
        made = cls.recalled(given)
        made.check_effects()
        return made

    @classmethod
    def recalled(cls, stored: Mapping[str, Any]) -> Self:
        """Made of values that an earlier run left, some of which may have no effect.

        Raises:
            UsageError: a name isn't known, or one is missing.
        """
        declared = cls.declared()
        for name in stored:
            if name not in declared:
                raise UsageError(str(unknown("parameter", str(name), declared)))
        for name, parameter in declared.items():
            if parameter.required and name not in stored:
                raise UsageError(f"{name} is missing; it is {parameter.allowed}")
        return cls(**stored)

    def settings(self) -> dict[str, Any]:
        """All values by their names."""
        return {name: getattr(self, name) for name in self.declared()}

    def settled(self) -> dict[str, Any]:
        """All values by their names, and what was left to others is as they settle it."""
        return self.settings()

    def given(self) -> dict[str, Any]:
        """Those that are not at their defaults."""
        declared = self.declared()
        return {n: v for n, v in self.settings().items() if v != declared[n].default}

    def shared(self, other: type["Parameters"]) -> dict[str, Any]:
        """The values of those parameters that another class has too."""
        return {name: value for name, value in self.settings().items() if name in other.declared()}


@functools.cache
def _declared(kind: Any) -> dict[str, Parameter]:
    hints = get_type_hints(kind, include_extras=True)
    fields = {field.name: field for field in dataclasses.fields(kind)}
    found = {name: _parameter(fields[name], hints[name]) for name in _in_order(kind)}
    return dict(sorted(found.items(), key=lambda item: not item[1].required))


def _in_order(kind: type) -> list[str]:
    own = [name for name in inspect.get_annotations(kind) if not name.startswith("_")]
    return list(dict.fromkeys([*own, *(n for base in kind.__bases__ for n in _in_order(base))]))


def _parameter(field: "dataclasses.Field[Any]", hint: Any) -> Parameter:
    kind, *more, text = get_args(hint)
    needs = tuple(one for one in more if isinstance(one, Needs))
    checks = [one for one in more if one not in needs]
    hint = Annotated[kind, *checks] if checks else kind
    return Parameter(field.name, hint, field.default, text, needs)


Kind = TypeVar("Kind", bound=Parameters)
Result = TypeVar("Result")


def plainly(
    function: Callable[Concatenate[Kind, ...], Result], kind: type[Kind]
) -> Callable[..., Result]:
    """A function of parameters and services, to be called with services and keyword arguments.

    Args:
        function: takes the parameters first.
        kind: of the parameters, each of which becomes a keyword argument.
    """

    def called(*services: Any, **given: Any) -> Result:
        with cleared():
            asked = kind.of(given)
            with within(asked):
                return function(asked, *services)

    # What help() and editors show.
    _, *services = inspect.signature(function).parameters.values()
    called.__signature__ = inspect.Signature(  # type: ignore[attr-defined]
        [p.replace(kind=inspect.Parameter.POSITIONAL_ONLY) for p in services]
        + [one.argument for one in kind.declared().values()]
    )
    lines = "\n".join(f"    {one.name}: {one.text}" for one in kind.declared().values())
    called.__doc__ = f"{inspect.getdoc(function)}\n\nKeyword arguments:\n{lines}"
    called.__name__ = function.__name__
    return called


# Groups of parameters that several experiments share.


class Seeded(Parameters):
    """What is drawn at random."""

    seed: Annotated[Seed, "seed of everything that is drawn at random."] = 0


class Drawn(Seeded):
    """Which images of a data set are taken."""

    samples: Annotated[
        PositiveCount | None,
        "images to take, drawn at random; none is 1000, or all if there are fewer.",
    ] = None
    batch_size: Annotated[
        BatchSize,
        "images per pass, or all if there are fewer; auto is 250, or less if memory is short.",
    ] = "auto"

    def drawn(self, data: Data) -> Data:
        """What is known of the images that are taken."""
        return replace(data, images=self.samples or data.images)


class Seeds(Parameters):
    """How much is chance."""

    seeds: Annotated[PositiveCount, "runs of each network, with the seeds 0, 1, ..."] = 1


class Precise(Parameters):
    """In which numbers a training computes."""

    precision: Annotated[
        Precision,
        "float32, or bfloat16 for activations and gradients in training; weights stay float32.",
    ] = "float32"


class DataPlace(Parameters):
    """Where official files are."""

    data_dir: Annotated[
        str | None,
        "folder with the official files; none looks where a model's training did, then into "
        "Keras's cache, then downloads.",
    ] = None

    def check_places(self) -> None:
        """Refuse a folder that isn't there."""
        super().check_places()
        if self.data_dir is not None and not present(expanded(self.data_dir)):
            where = looked_in(self.data_dir)
            raise InputError(f"data_dir={self.data_dir}: there is no such folder{where}")


class OwnImages(Parameters):
    """How the user's own images are read."""

    image_size: Annotated[
        ImageSize | None,
        "height and width that pictures of folder: and parquet: are brought to, such as 224,224, "
        "or 28,28,1 for grey and 28,28,3 for colour; none leaves them as they are, if all have one "
        "size.",
    ] = None
    crop: Annotated[
        Crop,
        Needs(image_size=GIVEN),
        "center fits the shorter side to image_size and cuts off what is left over of the longer "
        "one at both ends; none squeezes instead.",
    ] = "center"
    value_range: Annotated[
        PixelRange | None,
        "values that stand for black and white in arrays of npz: and npy:, such as 0,255 or -1,1; "
        "none is 0,255 for uint8 and 0,1 for floats.",
    ] = None

    def sized(self, data: Data) -> Data:
        """What is known of images that are brought to a size."""
        sizes = self.image_size or ()
        return replace(data, pixels=math.prod(sizes[:2])) if sizes else data


class Subset(DataPlace, OwnImages):
    """How much of a data set is taken."""

    per_class: Annotated[
        Counts | None,
        "images per class for training, validation and test, such as 500,50,50; none is all of "
        "them, the set's own division, or as in a model's training.",
    ] = None
    data_seed: Annotated[
        Seed, Needs(dataset=GIVEN), "seed of such subsets, and of what is set aside."
    ] = 0


class Workers(Parameters):
    """How work is spread."""

    workers: Annotated[
        WorkerCount | None,
        Needs(perturbation=(None,), matrix=(None,), backend=(None, "joblib", "ray")),
        "tasks at a time: trainings, or blocks of images; none is as many as the cores or the "
        "cluster hold.",
    ] = None
    backend: Annotated[
        Backend | None,
        Needs(perturbation=(None,), matrix=(None,)),
        "joblib (processes of this machine), ray (a cluster) or serial (one process); none is "
        "joblib, or the command's own process where so little is to be done to images that it is "
        "faster.",
    ] = None
    ray_address: Annotated[
        RayAddress | None,
        Needs(backend=("ray",)),
        "of the cluster: auto, host:port or ray://host:port; none starts Ray on this machine.",
    ] = None
    patience: Annotated[
        NonNegativeFloat,
        Needs(backend=("ray",)),
        "seconds that a Ray cluster has to grow to what is asked for.",
    ] = 0.0

    @property
    def crew(self) -> dict[str, Any]:
        """What opens these workers, as options of `parallel.map` and `parallel.Pool`."""
        return self.shared(Workers) | {"backend": self.backend or "joblib"}

    def at_once(self, tasks: int) -> int:
        """How many tasks of so many can be under way at a time, at most."""
        here = os.cpu_count() or 1
        return min(tasks, self.workers or (costs.MOST_WORKERS if self.backend == "ray" else here))

    def memory_of(self, tasks: int, each: float) -> float:
        """Bytes of this machine that workers take at least which are wanted for so many tasks.

        Args:
            tasks: that there are.
            each: bytes that one takes.
        """
        elsewhere = self.backend == "ray" and self.ray_address is not None
        processes = 1 if self.backend == "serial" else min(tasks, self.workers or 1)
        return 0.0 if elsewhere else processes * (costs.PROCESS + each)


def check_gpus(name: str, count: float) -> None:
    """Refuse parts of GPUs that Ray doesn't deal out.

    Args:
        name: of the parameter that asks for them.
        count: of them.
    """
    if count > 1 and not count.is_integer():
        raise InputError(f"{name}={count:g} must be whole, or a share of one GPU")


class Crew(Workers):
    """Workers that share the images of one model."""

    cpus_per_worker: Annotated[
        CoreCount,
        Needs(perturbation=(None,), matrix=(None,)),
        "cores of each worker, which are its threads; more than one round otherwise.",
    ] = 1
    gpus_per_worker: Annotated[
        NonNegativeFloat,
        Needs(perturbation=(None,), matrix=(None,), backend=("ray",)),
        "GPUs of each worker, on ray; 0.5 is a half of one.",
    ] = 0.0

    def check(self) -> None:
        """Refuse parts of GPUs that Ray doesn't deal out."""
        super().check()
        check_gpus("gpus_per_worker", self.gpus_per_worker)

    @property
    def crew(self) -> dict[str, Any]:
        """With what each may take."""
        return super().crew | {"cpus": self.cpus_per_worker, "gpus": self.gpus_per_worker}

    @property
    def wanted(self) -> bool:
        """Whether workers were asked for, however little there is to do."""
        return bool(self.backend or self.workers or self.cpus_per_worker > 1)


class InBlocks(Parameters):
    """How images are divided for workers, and where what is done is kept."""

    block_images: Annotated[
        PositiveCount | None,
        Needs(perturbation=(None,), matrix=(None,)),
        "images that a worker takes at a time, and that are kept once they are done; none is 250 "
        "of small images, 50 where smallest perturbations are solved for, and 10 by cobyla.",
    ] = None


class KeptIn(InBlocks):
    """Where blocks are kept that are done."""

    solve_dir: Annotated[
        str,
        Needs(perturbation=(None,), matrix=(None,)),
        "folder where interrupted work keeps the blocks of images that are done.",
    ] = "checkpoints"


class Checkpoints(Parameters):
    """Where work is kept that may be interrupted."""

    checkpoint_dir: Annotated[
        str, "folder for checkpoints, one folder a training, and for interrupted solves."
    ] = "checkpoints"


class Resumable(Checkpoints):
    """Which training goes on."""

    resume: Annotated[
        str | None, "id of a training's run that was stopped, to go on with in it."
    ] = None


class Limits(Parameters):
    """What reading and working may take."""

    memory_limit: Annotated[
        ByteCount | None,
        "memory that reading models and data, or the work by a low estimate, may take, such as "
        "500MB or 8GB; none is nine tenths of what is free.",
    ] = None
    time_limit: Annotated[
        PositiveFloat, "seconds that loading a model and running it on one image may take."
    ] = 60.0
    work_limit: Annotated[PositiveFloat, "days that work may take, by a low estimate."] = 365.0


@contextlib.contextmanager
def within(*asked: Parameters) -> Iterator[None]:
    """Keep to the limits that are among parameters, if any are.

    Raises:
        InputError: what is asked for can't be had within them.
    """
    with contextlib.ExitStack() as stack:
        for one in asked:
            if isinstance(one, Limits):
                bounds = limits.Bounds(one.memory_limit, one.time_limit, one.work_limit)
                stack.enter_context(limits.in_force(bounds))
        for one in asked:
            one.check_affordable()
        yield
