"""Command lines from signatures: a function's keyword-only parameters are its public ones.

Nothing heavy is imported here, so that a wrong value is refused before TensorFlow loads.
"""

import argparse
import contextlib
import functools
import inspect
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Literal, NoReturn, get_args, get_origin

from pydantic import TypeAdapter, ValidationError

from resfool.errors import InputError, NonFiniteLossError, WorkError, unknown
from resfool.parameters import show

Values = dict[str, Any]


class UsageError(InputError):
    """The command line itself is wrong: exit code 2."""


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UsageError(f"{message}; `--help` lists the parameters")


def public_parameters(function: Callable[..., Any]) -> dict[str, inspect.Parameter]:
    """The keyword-only parameters of `function`, in order: what a user may set."""
    parameters = inspect.signature(function).parameters
    return {n: p for n, p in parameters.items() if p.kind is inspect.Parameter.KEYWORD_ONLY}


def without(function: Callable[..., Any], *names: str) -> Callable[..., Any]:
    """A function as `parse` shall see it: without some of its public parameters."""

    @functools.wraps(function)
    def rest(*arguments: Any, **values: Any) -> Any:
        return function(*arguments, **values)

    whole = inspect.signature(function)
    kept = [p for name, p in whole.parameters.items() if name not in names]
    rest.__signature__ = whole.replace(parameters=kept)  # type: ignore[attr-defined]
    return rest


def parse(*functions: Callable[..., Any], argv: Sequence[str] | None = None) -> list[Values]:
    """Read `--name value` and `--name=value` for the public parameters of some functions.

    "none" stands for None where a parameter may be None.

    Args:
        functions: whose keyword-only parameters, defaults and docstrings make the command line;
            a parameter that several have is given once, for all of them.
        argv: the words; those of this process by default.

    Returns:
        A dict of checked keyword arguments for each function, defaults filled in.

    Raises:
        UsageError: a name isn't known, a value doesn't fit its type, or one is missing.
    """
    words = _joined(sys.argv[1:] if argv is None else argv)
    parser = _Parser(
        description=inspect.getdoc(functions[0]),
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
        argument_default=argparse.SUPPRESS,
    )
    known: list[str] = []
    for function in functions:
        texts = described(function)
        for name, parameter in public_parameters(function).items():
            if name in known:
                continue
            known.append(name)
            missing = parameter.default is inspect.Parameter.empty
            default = "required" if missing else f"default {show(parameter.default)}"
            text = f"{texts.get(name, '')} ({default})".replace("%", "%%")
            parser.add_argument(f"--{name}", help=text, metavar="VALUE")
    given, extra = parser.parse_known_args(words)
    if extra:
        raise _unexpected(extra[0], known)
    return [_checked(function, vars(given)) for function in functions]


def checked_arguments(function: Callable[..., Any], given: Mapping[str, Any]) -> Values:
    """Check values for the public parameters of a function that were given in Python.

    Args:
        function: whose keyword-only parameters, with their types and defaults, are meant.
        given: values by name, each of the parameter's type or as the command line spells it.

    Returns:
        Checked keyword arguments, defaults filled in.

    Raises:
        UsageError: a name isn't known, a value doesn't fit its type, or one is missing.
    """
    known = public_parameters(function)
    for name in given:
        if name not in known:
            raise UsageError(str(unknown("parameter", str(name), known)))
    return _checked(function, given)


@contextlib.contextmanager
def one_sentence_errors() -> Iterator[None]:
    """Turn what the user can mend into one line and exit code 1 or 2, Ctrl-C into 130."""
    try:
        yield
    except UsageError as error:
        _exit(error, 2)
    except (InputError, NonFiniteLossError, WorkError) as error:
        _exit(error, 1)
    except KeyboardInterrupt:
        _exit("interrupted", 130)


def _exit(message: object, code: int) -> NoReturn:
    print(f"resfool: {message}", file=sys.stderr, flush=True)
    raise SystemExit(code)


def _joined(words: Sequence[str]) -> list[str]:
    """`--name value` as `--name=value`, so that argparse never takes -1e-3 for an option."""
    joined: list[str] = []
    for word in words:
        takes_value = bool(joined) and joined[-1].startswith("--") and "=" not in joined[-1]
        if takes_value and not word.startswith("--") and joined[-1] != "--help":
            joined[-1] += f"={word}"
        else:
            joined.append(word)
    return joined


def _unexpected(word: str, known: list[str]) -> UsageError:
    if word.startswith("--"):
        return UsageError(str(unknown("parameter", word[2:].partition("=")[0], known)))
    return UsageError(f"'{word}' stands alone; parameters are given as --name=value")


def _checked(function: Callable[..., Any], given: Mapping[str, Any]) -> Values:
    values: Values = {}
    for name, parameter in public_parameters(function).items():
        if name in given:
            values[name] = _value(name, parameter.annotation, given[name])
        elif parameter.default is inspect.Parameter.empty:
            allowed = _choices(parameter.annotation)
            raise UsageError(f"{name} is missing" + (f"; it is one of {allowed}" * bool(allowed)))
        else:
            values[name] = parameter.default
    return values


def _value(name: str, hint: Any, given: Any) -> Any:
    options = get_args(hint)
    if type(None) in options:
        if given is None or (isinstance(given, str) and given.lower() == "none"):
            return None
        # None is settled, and without it the messages name the one type that is left.
        hint = next(option for option in options if option is not type(None))
    if get_origin(hint) is Literal and str(given) not in get_args(hint):
        raise UsageError(str(unknown(name, str(given), get_args(hint))))
    try:
        return TypeAdapter(hint).validate_python(given)
    except ValidationError as error:
        problem = error.errors()[0]["msg"].removeprefix("Value error, ")
        problem = problem.replace("Input should be", "must be", 1)
    except TypeError:  # of our own validators, which expect text or a sequence
        problem = f"can't be of type {type(given).__name__}"
    raise UsageError(f"{name}={show(given)} isn't allowed: {name} {problem}")


def _choices(hint: Any) -> str:
    return ", ".join(map(str, get_args(hint))) if get_origin(hint) is Literal else ""


def described(function: Callable[..., Any]) -> dict[str, str]:
    """Each parameter's text in the Args section of a docstring."""
    section = re.search(r"^Args:\n(.*?)(?:\n\n|\Z)", inspect.getdoc(function) or "", re.S | re.M)
    if section is None:
        return {}
    entries = re.findall(r"^ {4}(\w+): (.*(?:\n {5,}.*)*)", section[1], re.M)
    return {name: " ".join(text.split()) for name, text in entries}
