"""Public parameters: how one is declared, the types it may have, and the groups that several share.

An experiment's parameters are one frozen dataclass, a `Parameters`. Its fields are declared once,
type, default and text together, and all else is made of them: the command line, the checks of
calls from Python, MLproject, the pages on entry points and the evaluator's configuration.
"""

import contextlib
import dataclasses
import functools
import inspect
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from types import NoneType, UnionType
from typing import (
    Annotated,
    Any,
    Concatenate,
    Literal,
    Self,
    TypeVar,
    Union,
    dataclass_transform,
    get_args,
    get_origin,
    get_type_hints,
)

from pydantic import TypeAdapter, ValidationError

from resfool import limits
from resfool.errors import UsageError, unknown
from resfool.values import (
    Backend,
    BatchSize,
    ByteCount,
    Counts,
    Crop,
    ImageSize,
    NonNegativeFloat,
    PixelRange,
    PositiveCount,
    PositiveFloat,
    Precision,
    Seed,
    plain,
    show,
)

# How a parameter is declared.


@dataclass(frozen=True, eq=False)
class Known:
    """Of a type: a name in a registry, or several, whatever is registered when it is given."""

    names: Collection[str]


@dataclass(frozen=True)
class Parameter:
    """A field of a `Parameters`, as the command line and the pages see it.

    Attributes:
        name: of the field.
        hint: its type, with all that checks a value.
        default: its default; dataclasses.MISSING if it must be given.
        text: what it means, and what is allowed.
    """

    name: str
    hint: Any
    default: Any
    text: str

    @property
    def choices(self) -> tuple[str, ...]:
        """The words that are allowed, if only a few are."""
        for part in (self.hint, *get_args(self.hint)):
            if get_origin(part) is Literal:
                return tuple(map(str, get_args(part)))
            if isinstance(part, Known):
                return tuple(part.names)
        return ()

    @property
    def required(self) -> bool:
        """Whether it must be given."""
        return self.default is dataclasses.MISSING

    @property
    def argument(self) -> inspect.Parameter:
        """As a keyword argument of a function."""
        default = inspect.Parameter.empty if self.required else self.default
        keyword = inspect.Parameter.KEYWORD_ONLY
        return inspect.Parameter(self.name, keyword, default=default, annotation=self.hint)

    def checked(self, given: Any) -> Any:
        """A value as its type wants it.

        Args:
            given: of that type, of one like it (a list, a path, numpy's), or as the command line
                spells it; "none" stands for None where the parameter may be None.

        Raises:
            UsageError: it doesn't fit; one sentence says why, and names what comes nearest.
        """
        if given is self.default:
            return given
        hint, given = self.hint, plain(given)
        if get_origin(hint) in (Union, UnionType):
            if given is None or (isinstance(given, str) and given.lower() == "none"):
                return None
            # None is settled, and without it the messages name the one type that is left.
            hint = next(option for option in get_args(hint) if option is not NoneType)
        several = any(get_origin(part) is tuple for part in get_args(hint))
        if self.choices and not several:
            self._check_known([str(given)])
        try:
            value = _adapter(hint).validate_python(given)
        except ValidationError as error:
            problem = error.errors()[0]["msg"].removeprefix("Value error, ")
            problem = problem.replace("Input should be", "must be", 1)
        except TypeError:  # of our own validators, which expect text or a sequence
            problem = f"can't be of type {type(given).__name__}"
        else:
            if self.choices and several:
                self._check_known(value)
            return value
        raise UsageError(f"{self.name}={show(given)} isn't allowed: {self.name} {problem}")

    def _check_known(self, words: Iterable[str]) -> None:
        for word in words:
            if word not in self.choices:
                raise UsageError(str(unknown(self.name, word, self.choices)))


@functools.cache
def _adapter(hint: Any) -> TypeAdapter[Any]:
    return TypeAdapter(hint)


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

    @classmethod
    def declared(cls) -> dict[str, Parameter]:
        """The parameters by their names: what must be given, a class's own, those of its bases."""
        kind: Any = cls
        return _declared(kind)

    @classmethod
    def of(cls, given: Mapping[str, Any]) -> Self:
        """Made of values by name, each of its type or as the command line spells it.

        Raises:
            UsageError: a name isn't known, or one is missing.
        """
        declared = cls.declared()
        for name in given:
            if name not in declared:
                raise UsageError(str(unknown("parameter", str(name), declared)))
        for name, parameter in declared.items():
            if parameter.required and name not in given:
                allowed = ", ".join(parameter.choices)
                raise UsageError(f"{name} is missing" + f"; it is one of {allowed}" * bool(allowed))
        return cls(**given)

    def settings(self) -> dict[str, Any]:
        """All values by their names."""
        return {name: getattr(self, name) for name in self.declared()}

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
    kind, *checks, text = get_args(hint)
    hint = Annotated[kind, *checks] if checks else kind
    return Parameter(field.name, hint, field.default, text)


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
        "center fits the shorter side to image_size and cuts off what is left over of the longer "
        "one at both ends; none squeezes instead.",
    ] = "center"
    value_range: Annotated[
        PixelRange | None,
        "values that stand for black and white in arrays of npz: and npy:, such as 0,255 or -1,1; "
        "none is 0,255 for uint8 and 0,1 for floats.",
    ] = None


class Subset(DataPlace, OwnImages):
    """How much of a data set is taken."""

    per_class: Annotated[
        Counts | None,
        "images per class for training, validation and test, such as 500,50,50; none is all of "
        "them, the set's own division, or as in a model's training.",
    ] = None
    data_seed: Annotated[Seed, "seed of such subsets, and of what is set aside."] = 0


class Workers(Parameters):
    """How work is spread."""

    workers: Annotated[
        PositiveCount | None,
        "tasks at a time: trainings, or images of cobyla; none is as many as the cores or the "
        "cluster hold.",
    ] = None
    backend: Annotated[
        Backend, "joblib (processes of this machine), ray (a cluster) or serial (one process)."
    ] = "joblib"
    ray_address: Annotated[
        str | None,
        "of the cluster: auto, host:port or ray://host:port; none starts Ray on this machine.",
    ] = None
    patience: Annotated[
        NonNegativeFloat, "seconds that a Ray cluster has to grow to what is asked for."
    ] = 0.0


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
    time_limit: Annotated[PositiveFloat, "seconds that reading a model or data may take."] = 60.0
    work_limit: Annotated[PositiveFloat, "days that work may take, by a low estimate."] = 365.0


@contextlib.contextmanager
def within(*asked: Parameters) -> Iterator[None]:
    """Keep to the limits that are among parameters, if any are."""
    with contextlib.ExitStack() as stack:
        for one in asked:
            if isinstance(one, Limits):
                bounds = limits.Bounds(one.memory_limit, one.time_limit, one.work_limit)
                stack.enter_context(limits.in_force(bounds))
        yield
