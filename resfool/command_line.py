"""Command lines from declared parameters.

Nothing heavy is imported here, so that a wrong value is refused before TensorFlow loads.
"""

import argparse
import contextlib
import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import NoReturn

from resfool import wording
from resfool.declarations import Parameter, check_effects
from resfool.errors import (
    InputError,
    NonFiniteLossError,
    UsageError,
    WorkError,
    out_of_space,
    unknown,
)
from resfool.monitor import LONGEST
from resfool.parameters import Parameters
from resfool.values import show


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UsageError(f"{message}; `--help` lists the parameters")


def declared(*kinds: type[Parameters]) -> dict[str, Parameter]:
    """The parameters of some classes by name; one that several have is there once."""
    found: dict[str, Parameter] = {}
    for kind in kinds:
        found |= {name: one for name, one in kind.declared().items() if name not in found}
    return found


def parse(
    *kinds: type[Parameters],
    argv: Sequence[str] | None = None,
    program: str | None = None,
    text: str | None = None,
) -> list[Parameters]:
    """Read `--name value` and `--name=value` for the parameters of some classes.

    "none" stands for None where a parameter may be None.

    Args:
        kinds: whose parameters make the command line; one that several have is given once, for
            all of them.
        argv: the words; those of this process by default.
        program: name of the command, for its help.
        text: what the command does; the first class's docstring by default.

    Returns:
        The parameters of each class, checked, defaults filled in.

    Raises:
        UsageError: a name isn't known, a value doesn't fit its type or is too long, or one is
            missing.
        InputError: values don't go together.
    """
    parser = _Parser(
        prog=program,
        description=text or kinds[0].__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
        argument_default=argparse.SUPPRESS,
    )
    known = declared(*kinds)
    for name, one in known.items():
        default = "required" if one.required else f"default {show(one.default)}"
        words = f"{one.text} ({default})".replace("%", "%%")
        parser.add_argument(f"--{name}", help=words, metavar="VALUE")
    read, extra = parser.parse_known_args(_joined(sys.argv[1:] if argv is None else argv))
    if extra:
        raise _unexpected(extra[0], list(known))
    given = vars(read)
    made = [kind.of({n: v for n, v in given.items() if n in kind.declared()}) for kind in kinds]
    all_given, settled = (
        {name: value for one in reversed(each) for name, value in one.items()}
        for each in ([one.given() for one in made], [one.settled() for one in made])
    )
    check_effects(known, all_given, settled)
    _check_lengths(given)
    return made


def _check_lengths(given: Mapping[str, str]) -> None:
    for name, word in given.items():
        if len(word) > LONGEST:
            raise UsageError(
                f"{name}={word[:40]}... has {len(word)} characters, and a run keeps {LONGEST} of a "
                "parameter"
            )


def completion(shell: str, commands: Mapping[str, Mapping[str, Parameter]]) -> str:
    """A script by which a shell completes commands, their parameters and allowed words.

    Args:
        shell: bash or zsh.
        commands: the parameters of each, by its name.

    Returns:
        The script, for the shell to source.

    Raises:
        UsageError: another shell.
    """
    import shtab

    if shell not in ("bash", "zsh"):
        raise UsageError(str(unknown("shell", shell, ("bash", "zsh"))))
    # A parser for this alone: choices of its own would refuse in other words than ours.
    whole = argparse.ArgumentParser(prog="resfool")
    known = whole.add_subparsers()
    for name, parameters in commands.items():
        own = known.add_parser(name, help=name)  # shtab leaves out what has no help
        for one in parameters.values():
            text = one.text.replace("%", "%%")
            added = own.add_argument(f"--{one.name}", help=text, choices=one.choices or None)
            if one.name.endswith("_dir"):
                added.complete = shtab.DIRECTORY  # type: ignore[attr-defined]
    return str(shtab.complete(whole, shell=shell))


@contextlib.contextmanager
def one_sentence_errors() -> Iterator[None]:
    """Turn what the user can mend into one line and exit code 1 or 2, Ctrl-C into 130."""
    try:
        yield
    except UsageError as error:
        _exit(error, 2)
    except (InputError, NonFiniteLossError, WorkError) as error:
        _exit(error, 1)
    except OSError as error:
        if not out_of_space(error):
            raise
        _exit(f"{error.filename or 'a disk'} can't be written: {error.strerror or error}", 1)
    except KeyboardInterrupt:
        _exit("interrupted", 130)


def _exit(message: object, code: int) -> NoReturn:
    wording.warn(str(message))
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
