"""What is said of text from anywhere: no secrets, no control characters, no endless sentences."""

import io
import logging
import sys
import unicodedata
import warnings
from pathlib import Path

import pytest
from mlflow.utils.validation import _validate_metric_name

from resfool import commands, wording
from resfool.archive import ModelSource
from resfool.errors import DataWarning, InputError
from resfool.monitor import Monitor
from resfool.progress import ProgressReport
from resfool.wording import (
    label,
    metric_keys,
    sentence,
    shortened,
    without_password,
    without_secrets,
)

HOSTILE = "\x1b[31mred\x07 \x9b2J \u202egnp.exe \udcff\ud800 a\r\nb"

# Secrets


@pytest.mark.parametrize(
    ("uri", "shown"),
    [
        ("http://me:SECRET@host:5000/x", "http://***@host:5000/x"),
        *(
            (f"postgresql://me:S{sign}SECRET@host/x", "postgresql://***@host/x")
            for sign in "/#?[]@%'"
        ),
        ("http:/me:SECRET@host", "http:/***@host"),
        ("http://SECRET@host", "http://***@host"),
        ("redis://:SECRET@host", "redis://***@host"),
        ("s3://key:SECRET@bucket/a", "s3://***@bucket/a"),
        ("file://me:SECRET@host/a", "file://***@host/a"),
        ("postgresql://me:SECRET", "postgresql://me:***"),
        ("http://host/?a=b&token=SECRET&c=d", "http://host/?a=b&token=***&c=d"),
        ("sqlite:///a.db?password=S#SECRET", "sqlite:///a.db?password=***"),
        ("mssql:///?odbc_connect=UID%3Dme%3BPWD%3DSECRET", "mssql:///?odbc_connect=***"),
        ("host=h user=me password=SECRET", "host=h user=me password=***"),
        ("{'password': 'SECRET', 'port': 1}", "{'password': '***', 'port': 1}"),
        ("Invalid header value b'Bearer SECRET'", "Invalid header value b'Bearer ***'"),
        ("MLFLOW_TRACKING_TOKEN=SECRET", "MLFLOW_TRACKING_TOKEN=***"),
    ],
)
def test_secrets_are_hidden_in_any_text(uri: str, shown: str) -> None:
    around = f"could not open {uri} (refused)"
    assert without_secrets(around) == f"could not open {shown} (refused)"
    assert without_secrets(without_secrets(around)) == without_secrets(around)
    assert str(InputError(around)) == without_secrets(around)


@pytest.mark.parametrize(
    "text",
    [
        "http://127.0.0.1:5000/#/experiments/0/runs/ab",
        "http://[::1]:5000 and http://host:99999999",
        "models:/net@champion in sqlite:////home/me@work/a.db",
        "file:///home/me@work/mlruns",
        "unexpected token: } in seed=3, tokens=5",
    ],
)
def test_what_is_no_secret_is_left(text: str) -> None:
    assert without_secrets(text) == text


def test_a_whole_uri_hides_words_with_spaces_too() -> None:
    assert without_password("mysql://me:SE CRET@host/x") == "mysql://***@host/x"
    assert without_password("me:SE CRET@host") == "me:***@host"
    assert without_password("/home/me@work/mlruns") == "/home/me@work/mlruns"


def test_hiding_takes_no_long_time_with_long_texts() -> None:
    for piece in ("a://b", "token", "a://", "x=y&"):
        assert len(without_secrets(piece * 5_000)) <= len(piece) * 5_000


# Signs and lengths


def test_a_sentence_has_no_signs_that_a_terminal_obeys() -> None:
    said = sentence(HOSTILE)
    assert said == r"\x1b[31mred\x07 \x9b2J \u202egnp.exe \xff\ud800 a b"
    assert sentence(said) == said
    assert sentence("Größe 大きさ \N{GRINNING FACE} a\xa0b") == "Größe 大きさ \N{GRINNING FACE} a b"
    every = sentence("".join(map(chr, range(0x3000))))
    assert not {unicodedata.category(sign) for sign in every} & {"Cc", "Cf", "Cs"}


def test_a_long_sentence_keeps_what_is_wrong_and_what_is_allowed() -> None:
    said = str(InputError(f"name={'x' * 9000} isn't allowed: name must be one of a or b"))
    assert said.startswith("name=xxx") and said.endswith(
        "isn't allowed: name must be one of a or b"
    )
    assert len(said) < 250
    said = str(InputError(f"wrong {'and so on ' * 900}; known: a, b"))
    assert said.startswith("wrong and") and said.endswith("known: a, b") and len(said) <= 490
    assert sentence(said) == said
    assert shortened("abcdefghijklmnop", 14) == "abcde ... mnop"


def test_a_name_is_short_and_on_one_line_where_it_enters(tmp_path: Path) -> None:
    assert label("a\n b\x1b") == r"a b\x1b" and label(" \n") == "unnamed"
    assert len(label("x" * 999)) == 100 and label("x" * 999 + "1").endswith("x1")
    source = ModelSource("uri", HOSTILE, tmp_path)
    assert source.name.isprintable()


def test_metrics_have_names_that_every_store_can_tell_apart() -> None:
    names = ["a!", "a?", "A_", "..", "/", "", "ü" * 200, "ü" * 200, "net (2)", HOSTILE, "a b"]
    keys = metric_keys(names)
    assert keys[:2] == ["a_", "a__2"] and keys[-1] == "a b"
    assert len({key.casefold() for key in keys}) == len(names)
    for key in keys:
        _validate_metric_name(f"random_fooling_rate/{key}")
        assert len(key.encode()) <= 110


# What is printed


def test_all_that_is_printed_is_hidden_and_plain(capsys: pytest.CaptureFixture[str]) -> None:
    text = f"{HOSTILE} http://me:SECRET@host"
    shown = "gnp.exe \\xff\\ud800 a b http://***@host"
    wording.say(f"a\n{text}")
    wording.warn(text)
    Monitor().say(text)
    with ProgressReport(text) as report:
        report(1, 2, text)
        report(2, 2, text)
    printed = capsys.readouterr()
    assert printed.out.count("http://***@host") == 2 and printed.err.count(shown) == 3
    assert "SECRET" not in printed.out + printed.err
    signs = (printed.out + printed.err).replace("\n", "")
    assert signs.isprintable()


def test_a_bar_takes_no_name_for_markup(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "120")
    with ProgressReport("[/nothing]") as report:
        report(1, 2, "[red]a\x1b]0;b\x07")
    printed = capsys.readouterr().err
    assert "[/nothing]" in printed and r"[red]a\x1b]0;b\x07" in printed


def test_warnings_and_logs_of_libraries_are_hidden(capsys: pytest.CaptureFixture[str]) -> None:
    stream = io.StringIO()
    logger = logging.getLogger("somebody's")
    logger.addHandler(logging.StreamHandler(stream))
    recorded = warnings.catch_warnings(record=True)
    with recorded as caught, commands._said_plainly(), wording.hiding_in_logs():
        warnings.simplefilter("always")
        warnings.warn("\x1b a http://me:SECRET@host", stacklevel=1)
        warnings.warn("\x1b b http://me:SECRET@host", DataWarning, stacklevel=1)
        logger.warning("%s \x1b", "http://me:SECRET@host")
    assert [str(warning.message) for warning in caught] == [r"\x1b a http://***@host"]
    assert capsys.readouterr().err == "resfool: \\x1b b http://***@host\n"
    assert stream.getvalue() == "http://***@host \\x1b\n"


def test_an_encoding_that_lacks_signs_stops_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    written = io.BytesIO()
    for name in ("stdout", "stderr"):
        monkeypatch.setattr(sys, name, io.TextIOWrapper(written, "ascii", write_through=True))
    monkeypatch.setattr(sys, "excepthook", None)  # which is put back
    wording.print_anywhere()
    wording.say("ü \udcff")
    wording.warn("大")
    print("\udcff", flush=True)  # a library's own
    assert written.getvalue() == b"\\xfc \\xff\nresfool: \\u5927\n\\udcff\n"
    error = KeyError("http://me:SECRET@host \udcff")
    sys.excepthook(KeyError, error, None)
    assert written.getvalue().endswith(b"KeyError: 'http://***@host \\udcff'\n\n")


def test_what_anybody_may_have_stored_is_told_shortly() -> None:
    assert wording.told("a\x1b[31mb\n") == r"a\x1b[31mb"
    assert len(wording.told("x" * 10**6, 20)) == 20
    assert wording.told([2, 2, 1]) == "[2, 2, 1]"
    nested: list[object] = []
    for _ in range(10**4):
        nested = [nested, nested]  # of more members than there are atoms
    assert len(wording.told(nested)) <= 60
