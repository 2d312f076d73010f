"""How text from anywhere is said: without secrets and control characters, and never endlessly.

Names come from strangers, sentences from other libraries. What is printed, recorded or drawn of
them goes through here.
"""

import contextlib
import io
import itertools
import logging
import re
import reprlib
import sys
import traceback
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from types import TracebackType
from typing import Any

_LONGEST_SENTENCE = 490  # with what stands before it still below 500
_LONGEST_WORD = 200  # of a sentence, such as a path
_LONGEST_NAME = 100


# Secrets.

HIDDEN = "***"
_SCHEME = r"(?<![\w+.-])([a-z][\w+.-]*:"
_URI = re.compile(rf"{_SCHEME}//)(?!/)(\S+)", re.IGNORECASE)
_WORD_AS_PORT = re.compile(r"^([^/:@\[]+:)(?!(?:\d+|\*+|port)(?:\W|$))[^/?#]+")
_KEY = (
    r"(?:passw(?:or)?d|passphrase|pwd|token|secret|credentials?|odbc_connect"
    r"|(?:api|access|account|private)[_-]?key)"
)
_SECRETS = [
    re.compile(pattern, re.IGNORECASE)
    for pattern in (
        rf"{_SCHEME}/)(?!/)[^\s/:@]*:\S{{0,500}}(@)",  # a slash is missing
        rf"(\b\w*?{_KEY}(?:=|%3D)['\"]?)[^\s&]+()",
        rf"(\b\w*?{_KEY}['\"]\s?:\s?['\"]?)[^\s'\"]+()",
        r"([?&](?:sig|signature|key|auth)=)[^\s&]+()",
        r"(\bBearer\s+['\"]?)[^\s'\"]+()",
    )
]


def without_secrets(text: str) -> str:
    """A text with *** for the passwords and tokens in its URIs and in its NAME=VALUE."""
    text = _URI.sub(_without_user, text)
    for pattern in _SECRETS:
        text = pattern.sub(rf"\1{HIDDEN}\2", text)
    return text


def _without_user(uri: re.Match[str]) -> str:
    # Whoever writes a password unquoted may use any sign in it: it ends at the word's last @.
    _, at, place = uri[2].rpartition("@")
    if at:
        return f"{uri[1]}{HIDDEN}@{place}"
    # No port is a word: the host was forgotten, and this is a password.
    return uri[1] + _WORD_AS_PORT.sub(rf"\1{HIDDEN}", uri[2], count=1)


def without_password(uri: str) -> str:
    """A URI, or what was meant for one, with *** for user and password, whatever is in them."""
    scheme = re.match(r"(?:[a-z][\w+.-]*:/*)?", uri, re.IGNORECASE)
    assert scheme is not None
    user, at, place = uri[scheme.end() :].rpartition("@")
    local = scheme[0].endswith("///") or (not scheme[0] and ":" not in user)
    return without_secrets(uri if local or not at else f"{scheme[0]}{HIDDEN}@{place}")


def has_password(uri: str) -> bool:
    """Whether a URI has anything that `without_password` hides."""
    return without_password(uri) != uri


# Signs and lengths.


def printable(text: str) -> str:
    r"""A line whose invisible signs and bytes that are no text are written out, such as \x1b."""
    if text.isprintable():
        return text
    return "".join(sign if _is_seen(sign) else _escaped(sign) for sign in text)


def _is_seen(sign: str) -> bool:
    return sign.isprintable() or unicodedata.category(sign) == "Zs"


def _escaped(sign: str) -> str:
    if "\udc80" <= sign <= "\udcff":  # how Python reads a byte of a file's name that is no text
        return f"\\x{ord(sign) - 0xDC00:02x}"
    return sign.encode("unicode_escape").decode()


def shortened(text: str, most: int) -> str:
    """A text of at most so many signs: if it is longer, its middle is left out."""
    if len(text) <= most:
        return text
    end = most // 3
    return f"{text[: most - end - 5]} ... {text[-end:]}"


def lines(text: str) -> str:
    """Lines that can be shown as they are."""
    return "\n".join(map(printable, without_secrets(text).split("\n")))


def sentence(text: str) -> str:
    """One line that can be shown and read; long words, and the whole, lose their middle."""
    whole = printable(" ".join(without_secrets(text).split()))
    longer = rf"\S{{{_LONGEST_WORD + 1},}}"
    return shortened(re.sub(longer, _shortened_word, whole), _LONGEST_SENTENCE)


def _shortened_word(found: re.Match[str]) -> str:
    return shortened(found[0], _LONGEST_WORD)


def label(name: str, most: int = _LONGEST_NAME) -> str:
    """A name that somebody gave, for tables, legends and titles: short and on one line."""
    words = " ".join(without_secrets(name).split())
    return shortened(printable(words), most) or "unnamed"


def told(value: object, most: int = 60) -> str:
    """What anybody may have stored, for a sentence: of a container its beginning."""
    return label(value if isinstance(value, str) else reprlib.repr(value), most)


def metric_keys(names: Iterable[str]) -> list[str]:
    """Names as parts of metrics' names: such as every store takes, and can tell apart.

    Stores allow few signs, some keep a file of the name, and some don't tell A from a.
    """
    found: dict[str, str] = {}
    for name in names:
        bare = re.sub(r"[()]", "", unicodedata.normalize("NFKC", name))
        allowed = re.sub(r"[^\w -]+", "_", bare).strip() or "_"
        short = allowed.encode()[:_LONGEST_NAME].decode(errors="ignore").strip()
        numbered = (f"{short}_{number}" for number in itertools.count(2))
        key = next(k for k in itertools.chain([short], numbered) if k.casefold() not in found)
        found[key.casefold()] = key
    return list(found.values())


# What is printed.


def say(text: str) -> None:
    """Print lines."""
    print(lines(text), flush=True)


def warn(text: str) -> None:
    """Print a sentence beside the results."""
    print(f"resfool: {sentence(text)}", file=sys.stderr, flush=True)


def print_anywhere() -> None:
    """Have signs that the terminal's encoding lacks written out, where printing them would fail.

    What ends this process unforeseen is printed as all else is.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    sys.excepthook = _print_traceback


def _print_traceback(
    kind: type[BaseException], error: BaseException, trace: TracebackType | None
) -> None:
    print(lines("".join(traceback.format_exception(kind, error, trace))), file=sys.stderr)


@contextlib.contextmanager
def hiding_in_logs() -> Iterator[None]:
    """Have what any library logs meanwhile shown as all else is."""
    make = logging.getLogRecordFactory()

    def made(*arguments: Any, **more: Any) -> logging.LogRecord:
        record = make(*arguments, **more)
        with contextlib.suppress(Exception):  # a message that doesn't fit its arguments
            record.msg, record.args = lines(record.getMessage()), ()
        return record

    logging.setLogRecordFactory(made)
    try:
        yield
    finally:
        logging.setLogRecordFactory(make)


# Names.


def distinct_names(names: Sequence[str]) -> list[str]:
    """Names that can be told apart: those that are the same are numbered."""
    return [
        f"{name} ({names[: number + 1].count(name)})" if names.count(name) > 1 else name
        for number, name in enumerate(names)
    ]
