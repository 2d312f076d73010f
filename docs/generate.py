"""Write what the pages of docs/entry-points repeat from the code: `make docs`."""

import inspect
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

from entry_points.mnist import case_study
from entry_points.reproduce import Maker
from resfool import command_line, experiments
from resfool.parameters import Names, show
from resfool.tracking import training_run

PAGES = Path(__file__).parent / "entry-points"
BEGIN, END = "<!-- parameters -->\n", "<!-- end of parameters -->"

# The functions whose keyword-only parameters are those of an entry point.
ENTRY_POINTS: dict[str, tuple[Callable[..., Any], ...]] = {
    "train": (experiments.train, training_run.open_run),
    "attack": (experiments.attack, experiments.transfer),
    "universal": (experiments.universal,),
    "mnist": (case_study,),
    "sweep": (experiments.sweep, command_line.without(experiments.train, *experiments.SWEPT)),
    "tune": (experiments.tune, command_line.without(experiments.train, *experiments.TUNED)),
    "reproduce": (experiments.reproduce, Maker),
}


def parameters(entry_point: str) -> dict[str, inspect.Parameter]:
    """An entry point's parameters; one that two functions share is there once."""
    found: dict[str, inspect.Parameter] = {}
    for function in ENTRY_POINTS[entry_point]:
        new = command_line.public_parameters(function)
        found |= {name: p for name, p in new.items() if name not in found}
    return found


def table(entry_point: str) -> str:
    """The Markdown table of an entry point's parameters: name, default and meaning."""
    texts: dict[str, str] = {}
    for function in ENTRY_POINTS[entry_point]:
        texts = command_line.described(function) | texts
    lines = ["| parameter | default | meaning |", "| --- | --- | --- |"]
    own = parameters(entry_point)
    for name, parameter in own.items():
        required = parameter.default is inspect.Parameter.empty
        default = "required" if required else f"`{show(parameter.default)}`"
        of_names = parameter.annotation in (Names, Names | None)
        choices = set(own) if of_names else _choices(parameter.annotation)
        text = _code(re.sub(r"(?<!\.)\.$", "", texts[name]), choices)
        lines.append(f"| `{name}` | {default} | {text} |")
    return "\n".join(lines) + "\n"


def _choices(hint: Any) -> set[str]:
    """The words that a type allows, if it is a Literal or made of some."""
    return {
        word
        for part in get_args(hint)
        for word in ([part] if isinstance(part, str) else _choices(part))
    }


def _code(text: str, choices: set[str]) -> str:
    """Set in code what a user would type: allowed words, names, addresses, lists of numbers."""
    marked = choices | {"none", "yes", "false", "auto", "cobyla", "pgd", "ray", "mlp", "convnet"}
    marked |= {"resnet", "highway", "mnist", "mnist5k", "digits"}

    def mark(found: re.Match[str]) -> str:
        word = found[0]
        typed = word in marked or re.search(r"_|:/|:\w|,\d|^\.\w|^[a-z]+\d+$|\d/\d", word)
        return f"`{word}`" if typed else word

    return re.sub(r"\.?[\w@/-][\w@/:.,-]*[\w/]|\w", mark, text).replace("|", "\\|")


def page(path: Path) -> str:
    """A page as it should be: what stands between the marks is made anew."""
    before, begin, rest = path.read_text().partition(BEGIN)
    _, end, after = rest.partition(END)
    if not (begin and end):
        raise ValueError(f"{path} has no place for the parameters: {BEGIN.strip()} ... {END}")
    return before + begin + table(path.stem) + end + after


def main() -> None:
    """Rewrite the pages."""
    for name in ENTRY_POINTS:
        path = PAGES / f"{name}.md"
        path.write_text(page(path))


if __name__ == "__main__":
    main()
