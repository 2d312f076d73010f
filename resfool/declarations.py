"""How a public parameter is declared: what it may be, and where it has an effect."""

import dataclasses
import functools
import inspect
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin

from pydantic import TypeAdapter, ValidationError

from resfool.errors import InputError, UsageError, unknown
from resfool.values import listed, plain, show, shown


@dataclass(frozen=True, eq=False)
class Known:
    """Of a type: a name in a registry, or several, whatever is registered when it is given."""

    names: Collection[str]

    def takers(self, parameter: str) -> tuple[str, ...]:
        """The names whose entries say in `takes` that they read a parameter, by its name."""
        entries = self.names.items() if isinstance(self.names, Mapping) else ()
        return tuple(name for name, one in entries if parameter in getattr(one, "takes", ()))


GIVEN = "given"


class Needs:
    """Of a parameter: it has an effect only where others have certain values.

    Of several, one must hold. What an experiment doesn't have of the others is not asked for.

    Args:
        wanted: by the others' names, the values that will do; GIVEN is any but none, false and 0.
    """

    def __init__(self, **wanted: Collection[Any]) -> None:
        self._wanted = wanted

    def among(self, names: Collection[str]) -> "Needs | None":
        """The same about these others alone, if anything is left."""
        wanted = {name: values for name, values in self._wanted.items() if name in names}
        return Needs(**wanted) if wanted else None

    def missing(self, values: Mapping[str, Any]) -> str | None:
        """The first of the others whose value won't do."""
        return next((n for n, w in self._wanted.items() if not _will_do(values[n], w)), None)

    def __str__(self) -> str:
        return " and ".join(
            name if wanted == GIVEN else f"{name}={listed(map(show, wanted))}"
            for name, wanted in self._wanted.items()
        )


def _will_do(value: Any, wanted: Collection[Any]) -> bool:
    if wanted == GIVEN:
        return bool(value)
    return any(one in wanted for one in (value if isinstance(value, tuple) else (value,)))


@dataclass(frozen=True)
class Parameter:
    """A field of a `Parameters`, as the command line and the pages see it.

    Attributes:
        name: of the field.
        hint: its type, with all that checks a value.
        default: its default; dataclasses.MISSING if it must be given.
        text: what it means, and what is allowed.
        needs: where it has an effect; everywhere if there are none.
    """

    name: str
    hint: Any
    default: Any
    text: str
    needs: tuple[Needs, ...] = ()

    @property
    def choices(self) -> tuple[str, ...]:
        """The words that are allowed, if only a few are."""
        for part in _parts(self.hint):
            if get_origin(part) is Literal:
                return tuple(map(str, get_args(part)))
        return tuple(self._known.names) if self._known else ()

    @property
    def _known(self) -> Known | None:
        return next((part for part in _parts(self.hint) if isinstance(part, Known)), None)

    def takers(self, parameter: str) -> tuple[str, ...]:
        """Those of its words that say they read another parameter, by its name."""
        return self._known.takers(parameter) if self._known else ()

    @property
    def allowed(self) -> str:
        """What it may be, for a sentence."""
        if self.choices:
            return f"one of {', '.join(self.choices)}"
        return self.text.removesuffix(".").partition(". ")[0]

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
            self._check_known([str(given) if isinstance(given, tuple) else shown(given)])
        try:
            value = _adapter(hint).validate_python(given)
        except ValidationError as error:
            problem = _said(error)
        except TypeError:  # of our own validators, which expect text or a sequence
            problem = f"can't be of type {type(given).__name__}"
        else:
            if self.choices and several:
                self._check_known(value)
            return value
        raise UsageError(f"{self.name}={shown(given)} isn't allowed: {self.name} {problem}")

    def _check_known(self, words: Iterable[str]) -> None:
        for word in words:
            if word not in self.choices:
                raise UsageError(str(unknown(self.name, word, self.choices)))


def _parts(hint: Any) -> list[Any]:
    """A type and what says more of it, also where it may be None."""
    parts = [hint, *get_args(hint)]
    return [*parts, *(more for one in parts[1:] for more in getattr(one, "__metadata__", ()))]


def _said(error: ValidationError) -> str:
    """What pydantic has against a value, as a sentence goes on after the parameter's name."""
    first = error.errors()[0]
    if first["type"].startswith("bool"):
        return "must be true or false"
    text = first["msg"].removeprefix("Value error, ")
    return text.replace("Input should be", "must be", 1)


def without_effect(name: str, value: Any, beside: str, needs: object) -> InputError:
    """The refusal of a parameter that was given where it has no effect.

    Args:
        name: of the parameter.
        value: that it was given.
        beside: what it has no effect with, such as "method=fgsm".
        needs: where it has one, such as "method=pgd".
    """
    given = f"{name}={shown(value)}"
    return InputError(f"{given} has no effect with {beside}; it needs {needs}")


def check_effects(
    declared: Mapping[str, Parameter], given: Mapping[str, Any], values: Mapping[str, Any]
) -> None:
    """Refuse what was given and has no effect beside the rest: one rule for all.

    A parameter says itself what it needs, or else entries of a registry say in `takes` that they
    read it: then it needs the name of one of these.

    Args:
        declared: parameters by their names.
        given: the values of those that aren't at their defaults.
        values: of all, checked.

    Raises:
        InputError: one has no effect.
    """
    for name, value in given.items():
        one = declared[name]
        if one.required:
            continue
        for alternatives in _needs(one, declared):
            missing = [needs.missing(values) for needs in alternatives]
            if None not in missing:
                lacking = dict.fromkeys(filter(None, missing))
                beside = " and ".join(f"{other}={shown(values[other])}" for other in lacking)
                raise without_effect(name, value, beside, listed(map(str, alternatives)))


def _needs(one: Parameter, declared: Mapping[str, Parameter]) -> list[list[Needs]]:
    """What a parameter needs: of each list, one."""
    own = [needs for each in one.needs if (needs := each.among(declared))]
    taken = {other.name: other.takers(one.name) for other in declared.values()}
    by_registries = [[Needs(**{name: takers})] for name, takers in taken.items() if takers]
    return [own, *by_registries] if own else by_registries


@functools.cache
def _adapter(hint: Any) -> TypeAdapter[Any]:
    return TypeAdapter(hint)
