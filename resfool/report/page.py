"""A report as one HTML page with everything in it, and as Markdown beside its pictures."""

import base64
import html
import io
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib import resources
from typing import TYPE_CHECKING

import jinja2

from resfool.wording import lines

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_FOLDER = "pictures"
# Signs of Markdown and HTML, what makes a link of an address, and what makes a list of a line.
_MARKUP = re.compile(
    r"[\\`*_\[\]|<>#!~$&@]|:(?=//)|(?<=www)\.|^[-+=]|((?<=^\d)|(?<=^\d\d))[.)](?=\s|$)"
)


@dataclass(frozen=True)
class Link:
    """Words that lead somewhere."""

    text: str
    url: str


Cell = str | Link | Sequence[Link]


@dataclass(frozen=True)
class Table:
    """Rows of cells under a head as long as they are; the first column names the row."""

    head: Sequence[str]
    rows: Sequence[Sequence[Cell]]
    key: int | None = None  # number of the column by which rows are coloured
    marks: dict[str, str] = field(default_factory=dict)  # good, bad or dim by that column's words

    def mark(self, row: Sequence[Cell]) -> str:
        """The colour of a row's key column."""
        return "" if self.key is None else self.marks.get(str(row[self.key]), "")


@dataclass(frozen=True)
class Picture:
    """A PNG with what it shows; `name` is its file's, without the ending."""

    name: str
    png: bytes
    caption: str

    @property
    def source(self) -> str:
        """The picture itself, as a URL."""
        return f"data:image/png;base64,{base64.b64encode(self.png).decode()}"


@dataclass(frozen=True)
class Section:
    """A part of a report, in this order."""

    title: str
    paragraphs: Sequence[str] = ()
    tables: Sequence[Table] = ()
    pictures: Sequence[Picture] = ()
    notes: Sequence[str] = ()  # in small print

    @property
    def anchor(self) -> str:
        """The heading as a part of a URL."""
        return re.sub(r"[^a-z0-9]+", "-", self.title.lower()).strip("-")


@dataclass(frozen=True)
class Report:
    """A title, some words above, and sections."""

    title: str
    paragraphs: Sequence[str]
    sections: Sequence[Section]

    @property
    def pictures(self) -> list[Picture]:
        """All of them, in order."""
        return [picture for section in self.sections for picture in section.pictures]


def png(figure: "Figure") -> bytes:
    """A figure as the bytes of a PNG file."""
    stream = io.BytesIO()
    figure.savefig(stream, format="png", dpi=110)
    return stream.getvalue()


def files(report: Report) -> dict[str, bytes]:
    """A report as files by their names: report.html, report.md and its pictures in a folder."""
    pages = {"report.html": as_html(report), "report.md": as_markdown(report, _FOLDER)}
    pictures = {f"{_FOLDER}/{p.name}.png": p.png for p in report.pictures}
    return {name: text.encode() for name, text in pages.items()} | pictures


def as_html(report: Report) -> str:
    """One self-contained HTML page: style and pictures are in it, and nothing is fetched.

    The report's texts may come from anywhere; none of them is taken for markup.
    """
    environment = jinja2.Environment(
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=lambda value: lines(value) if type(value) is str else value,
    )
    environment.tests["link"] = lambda cell: isinstance(cell, Link)
    environment.tests["text"] = lambda cell: isinstance(cell, str)
    environment.filters["href"] = _checked_url
    source = (resources.files("resfool.report") / "report.html").read_text("utf-8")
    return environment.from_string(source).render(report=report)


def as_markdown(report: Report, folder: str) -> str:
    """The same in Markdown, which links to the pictures in a folder beside it."""
    lines = [f"# {_plain(report.title)}", *map(_plain, report.paragraphs)]
    for section in report.sections:
        lines += [f"## {_plain(section.title)}", *map(_plain, section.paragraphs)]
        for table in section.tables:
            head = [f"| {' | '.join(map(_plain, table.head))} |", "| --- " * len(table.head) + "|"]
            rows = [f"| {' | '.join(map(_markdown_cell, row))} |" for row in table.rows]
            lines.append("\n".join([*head, *rows]))
        for picture in section.pictures:
            lines.append(f"![{_plain(picture.caption)}]({folder}/{picture.name}.png)")
        lines += map(_plain, section.notes)
    return "\n\n".join(lines) + "\n"


def _markdown_cell(cell: Cell) -> str:
    if isinstance(cell, str):
        return _plain(cell)
    links = [cell] if isinstance(cell, Link) else cell
    return ", ".join(f"[{_plain(link.text)}]({_checked_url(link.url)})" for link in links)


def _plain(text: str) -> str:
    """Words as they are, whatever they would mean in Markdown or HTML."""
    words = " ".join(lines(text).split())
    return _MARKUP.sub(_escaped, words)


def _escaped(sign: re.Match[str]) -> str:
    return html.escape(sign[0]) if sign[0] in "<>&" else f"\\{sign[0]}"


def _checked_url(url: str) -> str:
    """A URL of a kind that runs nothing and ends where it seems to end; else nothing."""
    harmless = re.fullmatch(r"(https?://[\w\-.:\[\]]+(/|$)|#)[\w\-./:#?=&%~+,@]*", url)
    return url if harmless else "#"
