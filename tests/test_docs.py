"""The documentation agrees with the code and with itself. `make test-docs` runs its commands."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from resfool import command_line
from resfool.attacks.options import METHODS
from resfool.attacks.solvers import SOLVERS
from resfool.commands import COMMANDS
from resfool.datasets.sets import DATASETS
from resfool.networks.architectures import STAGE_RULES
from resfool.networks.shape import ARCHITECTURES
from tests.conftest import ROOT
from tests.documentation import snippets
from tests.documentation.snippets import NOT_RUN, PAGES, Snippet

SNIPPETS = snippets.snippets()
REQUIRED = {"arch": "resnet", "model": "mine.keras", "target": "all"}


def check(name: str, values: dict[str, str]) -> None:
    """What a command line of an entry point must be: allowed."""
    command_line.parse(*COMMANDS[name].takes, argv=[f"--{n}={v}" for n, v in values.items()])


# What is typed


def test_every_fence_says_what_it_holds() -> None:
    for path in PAGES:
        languages = {language for language, _ in snippets.fences(path)}
        assert languages <= snippets.LANGUAGES, path
        assert path.read_text().count("```") == 2 * len(snippets.fences(path)), path


@pytest.mark.parametrize("snippet", SNIPPETS, ids=lambda s: f"{s.page}: {s.text[:60]}")
def test_every_command_and_block_is_run_or_listed_with_a_reason(snippet: Snippet) -> None:
    if snippet.language == "python":
        compile(snippet.text, snippet.page, "exec")
    elif snippet.not_run is None:
        assert snippet.to_run()
    if snippet.entry_point is not None:
        check(snippet.entry_point, snippets.given(snippet.text))
        small = [word[2:].split("=", 1) for word in snippet.to_run() if word.startswith("-P")]
        check(snippet.entry_point, dict(small))


def test_what_is_not_run_is_there_and_so_is_what_runs_it_instead() -> None:
    listed = {snippet.not_run for snippet in SNIPPETS}
    for entry in NOT_RUN:
        assert entry in listed, f"no command is {entry.pattern!r}"
        assert entry.reason and (not entry.instead or (ROOT / entry.instead).is_file())


def test_what_later_commands_need_is_left_by_one_before() -> None:
    for page, part, name in snippets.LEAVES:
        of_page = [s.text for s in SNIPPETS if s.page == page]
        made = next(i for i, text in enumerate(of_page) if re.search(part, text))
        used = next(i for i, text in enumerate(of_page) if f"runs:/{name}" in text)
        assert made < used, name


def inline_commands() -> list[tuple[str, str]]:
    """Pages, and what they have in their text of a command's parameters."""
    return [
        (str(path.relative_to(ROOT)), code)
        for path in [*PAGES, ROOT / "CHANGELOG.md"]
        for code in re.findall(r"(?<!`)`([^`\n]+)`(?!`)", path.read_text())
        if re.match(r"(mlflow run \. )?-[eP] ", code)
    ]


@pytest.mark.parametrize(("page", "code"), inline_commands())
def test_commands_in_the_text_are_allowed(page: str, code: str) -> None:
    name = snippets.entry_point(code.replace("-e NAME", ""))
    allowed = {name} if name else COMMANDS.keys()
    values = snippets.given(code)
    names = {n: {*COMMANDS[n].parameters} for n in allowed}
    assert any(values.keys() <= known for known in names.values())
    if name:
        needed = {n for n, one in COMMANDS[name].parameters.items() if one.required}
        required = {n: v for n, v in REQUIRED.items() if n in needed}
        check(name, required | {n: v for n, v in values.items() if v != "..."})


# Links


def slugs(path: Path) -> set[str]:
    """The anchors of a page's headings, as GitHub makes them."""
    headings = re.findall(
        r"^#+ (.+)$", re.sub(r"^```.*?^```$", "", path.read_text(), flags=re.M | re.S), re.M
    )
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("path", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_link_leads_somewhere(path: Path) -> None:
    for link in re.findall(r"\]\(([^)\s]+)\)", path.read_text()):
        if re.match(r"https?:", link):
            continue
        name, _, anchor = link.partition("#")
        target = (path.parent / name).resolve() if name else path
        assert target.is_file(), link
        assert not anchor or anchor in slugs(target), link


def test_the_index_names_every_page() -> None:
    index = ROOT / "docs" / "index.md"
    links = re.findall(r"\]\(([^)#]+)\)", index.read_text())
    named = {(index.parent / link).resolve() for link in links}
    assert {*PAGES} - {index} <= named


def test_every_image_is_shown() -> None:
    text = "".join(path.read_text() for path in PAGES)
    for image in (ROOT / "docs" / "images").iterdir():
        assert image.name in text


# Worked examples


REGISTRIES: list[dict[str, Any]] = [STAGE_RULES, ARCHITECTURES, METHODS, SOLVERS, DATASETS]


@pytest.fixture
def registries() -> Iterator[None]:
    """What an example registers, other tests must not see."""
    before = [dict(registry) for registry in REGISTRIES]
    yield
    for registry, entries in zip(REGISTRIES, before, strict=True):
        registry.clear()
        registry.update(entries)


@pytest.mark.slow
@pytest.mark.parametrize("page", sorted(path.stem for path in (ROOT / "docs").glob("add-*.md")))
def test_the_worked_example_runs(
    page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, registries: None
) -> None:
    monkeypatch.chdir(tmp_path)
    path = ROOT / "docs" / f"{page}.md"
    (example,) = [text for language, text in snippets.fences(path) if language == "python"]
    exec(compile(example, str(path), "exec"), {"__name__": page})
