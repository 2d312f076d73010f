"""Write what MLproject and the pages repeat from the code: `make docs`."""

import json
import re
from pathlib import Path

from resfool.commands import COMMANDS
from resfool.datasets.kinds import KINDS
from resfool.datasets.sets import DATASETS
from resfool.declarations import Parameter
from resfool.values import Addresses, Names, show

DOCS = Path(__file__).parent
MLPROJECT = DOCS.parent / "MLproject"
PAGES = DOCS / "entry-points"


# MLproject


def mlproject() -> str:
    """The file as it should be: each parameter with its type and default, and the commands."""
    lines = ["name: resfool", "", "conda_env: conda.yaml", "", "entry_points:"]
    for name, command in COMMANDS.items():
        own = command.parameters.values()
        lines += [f"  {name}:", "    parameters:", *map(_entry, own)]
        lines += ["    command: >-", f"      exec python -m entry_points.{name}"]
        lines += [f"      --{one.name}={{{one.name}}}" for one in own]
        lines.append("")
    return "\n".join(lines)


def _entry(one: Parameter) -> str:
    if one.required:
        return f"      {one.name}: string"
    text, number = show(one.default), isinstance(one.default, int | float)
    # MLflow checks no type but path and uri, and an epsilon such as 8/255 is no number to it.
    if number and not isinstance(one.default, bool) and "/" not in text:
        return f"      {one.name}: {{type: float, default: {text}}}"
    plain = re.fullmatch(r"[a-z]\w*|\d+/\d+", text) and text not in ("true", "false")
    return f"      {one.name}: {{type: string, default: {text if plain else json.dumps(text)}}}"


# The pages


def table(command: str) -> str:
    """The Markdown table of a command's parameters: name, default and meaning."""
    lines = ["| parameter | default | meaning |", "| --- | --- | --- |"]
    own = COMMANDS[command].parameters
    for name, one in own.items():
        default = "required" if one.required else f"`{show(one.default)}`"
        several = Names, Names | None, Addresses, Addresses | None
        choices = {*own} if one.hint in several else {*one.choices}
        text = _code(re.sub(r"(?<!\.)\.$", "", one.text), choices)
        lines.append(f"| `{name}` | {default} | {text} |")
    return "\n".join(lines) + "\n"


def data_sets() -> str:
    """The Markdown table of the data sets that have a name, and of the kinds of one's own."""
    lines = ["| name | images | where it comes from |", "| --- | --- | --- |"]
    lines += [f"| `{name}` | {one.images} | {one.origin} |" for name, one in DATASETS.items()]
    lines += [f"| `{name}:PATH` | your own | {kind.images} |" for name, kind in KINDS.items()]
    return "\n".join(lines) + "\n"


def commands() -> str:
    """The Markdown list of the commands' pages."""
    lines = [f"- [{n}](entry-points/{n}.md): {one.text}" for n, one in COMMANDS.items()]
    return "\n".join(lines) + "\n"


def _code(text: str, choices: set[str]) -> str:
    """Set in code what a user would type: allowed words, names, addresses, lists of numbers."""
    marked = choices | {"none", "yes", "false", "auto", "cobyla", "pgd", "ray", "mlp", "convnet"}
    marked |= {"resnet", "highway", *DATASETS}

    def mark(found: re.Match[str]) -> str:
        word = found[0]
        typed = word in marked or re.search(r"_|:/|:\w|,\d|^\.\w|^[a-z]+\d+$|\d/\d", word)
        return f"`{word}`" if typed else word

    return re.sub(r"\.?[\w@/-][\w@/:.,-]*[\w/]|\w", mark, text).replace("|", "\\|")


def filled(page: str, what: str, text: str) -> str:
    """A page as it should be: what stands between the marks of `what` is made anew."""
    begin, end = f"<!-- {what} -->\n", f"<!-- end of {what} -->"
    before, found, rest = page.partition(begin)
    _, ended, after = rest.partition(end)
    if not (found and ended):
        raise ValueError(f"a page has no place for the {what}: {begin.strip()} ... {end}")
    return before + begin + text + end + after


def files() -> dict[Path, str]:
    """All files that repeat something, as they should be."""
    index, train = DOCS / "index.md", PAGES / "train.md"
    found = {MLPROJECT: mlproject(), index: filled(index.read_text(), "commands", commands())}
    for name in COMMANDS:
        path = PAGES / f"{name}.md"
        found[path] = filled(path.read_text(), "parameters", table(name))
    found[train] = filled(found[train], "data sets", data_sets())
    return found


def main() -> None:
    """Rewrite them."""
    for path, text in files().items():
        path.write_text(text)


if __name__ == "__main__":
    main()
