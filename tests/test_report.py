"""Reports: self-contained pages in which no word from outside is taken for markup."""

import base64
import re
from html.parser import HTMLParser

import pytest
from matplotlib.figure import Figure

from resfool.report.page import (
    Link,
    Picture,
    Report,
    Section,
    Table,
    as_html,
    as_markdown,
    files,
    png,
)

HOSTILE = "<script>alert(1)</script> \"' onload=x | `a` [b](javascript:c) *d* </td> &amp;"


def picture(caption: str = "a line") -> Picture:
    figure = Figure(figsize=(1, 1))
    figure.subplots().plot([0, 1])
    return Picture("line", png(figure), caption)


def whole(
    text: str = "words", url: str = "http://127.0.0.1:5000/#/experiments/0/runs/ab"
) -> Report:
    table = Table(
        [text, "verdict", "runs"],
        [[text, "seen", [Link(text, url), Link("two", url)]], ["b", "not seen", Link(text, url)]],
        key=1,
        marks={"seen": "good"},
    )
    one = Section(text, [text], [table], [picture(text)], [text])
    return Report(text, [text], [one, Section("Two"), Section("Three")])


class Page(HTMLParser):
    """Tags and words of a page."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.words.append(data)

    def all(self, name: str) -> list[dict[str, str | None]]:
        return [attributes for tag, attributes in self.tags if tag == name]


def test_the_page_holds_everything_and_fetches_nothing() -> None:
    page = Page(as_html(whole()))
    (image,) = page.all("img")
    kind, _, data = str(image["src"]).partition(",")
    assert kind == "data:image/png;base64" and base64.b64decode(data) == picture().png
    assert image["alt"] == "words"
    assert not page.all("script") and not page.all("link") and not page.all("iframe")
    assert "url(" not in as_html(whole()) and "@import" not in as_html(whole())
    assert len(page.all("tr")) == 3 and len(page.all("td")) == 4 and len(page.all("th")) == 5
    # What the navigation leads to is there.
    anchors = {str(a["href"])[1:] for a in page.all("a") if str(a["href"]).startswith("#")}
    assert anchors == {str(section["id"]) for section in page.all("section")}


def test_sections_whose_names_differ_in_signs_alone_have_anchors_of_their_own() -> None:
    page = Page(as_html(Report("title", [], [Section(name) for name in ("a!", "a?", ":", "大")])))
    assert len({str(section["id"]) for section in page.all("section")}) == 4
    assert [str(a["href"])[1:] for a in page.all("a")] == [s["id"] for s in page.all("section")]


def test_words_from_outside_are_no_markup() -> None:
    text = HOSTILE.replace(":", "")  # the navigation ends at a colon
    plain, hostile = (Page(as_html(whole(words))) for words in ("plainly", text))
    assert [tag for tag, _ in plain.tags] == [tag for tag, _ in hostile.tags]
    assert [sorted(a) for _, a in plain.tags] == [sorted(a) for _, a in hostile.tags]
    # They are all there, as words: title and heading, paragraph, navigation, section, ...
    assert sum(text in words for words in hostile.words) == sum(
        "plainly" in words for words in plain.words
    )


@pytest.mark.parametrize(
    "url",
    [
        "javascript:alert(1)",
        "data:text/html,x",
        'http://a/"onclick="b',
        "http://a/ b",
        "//a",
        "http://user:secret@a/",
    ],
)
def test_only_harmless_links_are_kept(url: str) -> None:
    links = Page(as_html(whole(url=url))).all("a")
    assert {str(a["href"]) for a in links if "target" in a} == {"#"}
    assert url not in as_markdown(whole(url=url), "p")


def test_markdown_says_the_same() -> None:
    text = as_markdown(whole(), "pictures")
    assert text.startswith("# words\n\nwords\n\n## words\n")
    assert "| words | verdict | runs |\n| --- | --- | --- |\n| words | seen | [words](http" in text
    assert "![words](pictures/line.png)" in text
    hostile = as_markdown(whole(HOSTILE), "pictures")
    assert "<script" not in hostile and "](javascript" not in hostile.replace("\\]", "")
    # A bar that isn't escaped would be a column of its own.
    for line in hostile.splitlines():
        if line.startswith("|"):
            assert len(re.findall(r"(?<!\\)\|", line)) == 4


def test_no_word_becomes_a_link_mathematics_or_a_list_in_markdown() -> None:
    for text, written in (
        ("www.a.b http://a me@b", r"www\.a.b http\://a me\@b"),
        ("$x$ &amp;", r"\$x\$ &amp;amp;"),
        ("- a", r"\- a"),
        ("1. a", r"1\. a"),
    ):
        assert as_markdown(Report(text, [], []), "p") == f"# {written}\n"


def test_no_secret_and_no_byte_that_is_no_text_gets_into_a_report() -> None:
    found = files(whole("http://me:SECRET@host \udcff \x1b"))
    for name in ("report.html", "report.md"):
        text = found[name].decode()
        assert "SECRET" not in text and "\x1b" not in text and "xff" in text


def test_files_have_the_pictures_beside_the_markdown() -> None:
    found = files(whole())
    assert found.keys() == {"report.html", "report.md", "pictures/line.png"}
    assert found["pictures/line.png"].startswith(b"\x89PNG")
