"""What README.md and docs/ tell a reader to type, and what is run of it."""

import re
import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from resfool import command_line
from resfool.commands import COMMANDS
from resfool.errors import InputError
from tests.conftest import ROOT

PAGES = (ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md")))
LANGUAGES = {"sh", "python", "text"}  # commands, code, and what isn't typed

# Its commands are run as they stand; those of other pages are made small.
AS_IT_STANDS = "docs/tutorial.md"

# Makes a command small: what is given to an entry point instead of what the page has, or beside it.
SMALL: dict[str, dict[str, str]] = {
    "train": {"steps": "20", "eval_every": "10", "width": "8", "dataset": "digits"},
    "attack": {"samples": "50"},
    "universal": {"samples": "12", "test_samples": "50", "draws": "2"},
    "mnist": {"steps": "50", "samples": "12", "draws": "2"},
    "sweep": {"steps": "10", "eval_every": "10", "width": "4", "dataset": "digits"},
    "tune": {
        **{"trials": "2", "depth": "5", "width": "4"},
        **{"steps": "20", "eval_every": "10", "dataset": "digits"},
    },
    "reproduce": {"scale": "quick"},
}
# The same where the page gives a value for it.
SMALL_IF_GIVEN: dict[str, dict[str, str]] = {
    "train": {"lr_drop": "10", "per_class": "50,10,10"},
    "sweep": {"depth": "5,10", "seeds": "1"},
    "tune": {"per_class": "50,10"},
    "reproduce": {"seeds": "1"},
}
# What would take hours in any size: part of a command, and what is added to it.
LONG: dict[str, dict[str, str]] = {
    "-e reproduce -P target=all": {"dry_run": "true"},
    "-e reproduce -P target=table1": {"dry_run": "true"},
}

# What a page's command leaves for later commands: page, part of the command, and the placeholder
# that becomes the id of its run.
LEAVES: tuple[tuple[str, str, str], ...] = (
    ("docs/tutorial.md", r"-e universal", "UNIVERSAL"),
    ("docs/tutorial.md", r"-e train(?!.*adversarial)", "TRAINED"),
    ("docs/tutorial.md", r"-e train.*adversarial", "HARDENED"),
)


@dataclass(frozen=True)
class NotRun:
    """Why commands aren't run.

    Attributes:
        pattern: matches them from their beginning.
        reason: why not.
        instead: the test that runs them, or "".
    """

    pattern: str
    reason: str
    instead: str = ""


CLUSTER = "tests/cluster/test_two_hosts.py"
NOT_RUN = (
    NotRun(r"make test$", "it is the suite that this belongs to"),
    NotRun(r"pip install -e \"\.\[cuda\]\"", "gigabytes, and for a GPU"),
    NotRun(r"ray (get-auth-token|start|status)", "needs several hosts", CLUSTER),
    NotRun(r"export RAY_AUTH_MODE", "for several hosts", CLUSTER),
    NotRun(r"ray job", "needs a cluster with a job server", CLUSTER),
    NotRun(r"mlflow run .*ray_address=auto", "needs a cluster that is there", CLUSTER),
    NotRun(r"resfool attack", "needs an installed package", "tests/test_installed.py"),
    NotRun(r"mlflow server|export MLFLOW_TRACKING_URI", "needs a host of that name", CLUSTER),
)


@dataclass(frozen=True)
class Snippet:
    """One command or one block of Python.

    Attributes:
        page: that it stands on, relative to the checkout.
        language: sh or python.
        text: as it stands, without comments and line ends that continue a command.
    """

    page: str
    language: str
    text: str

    @property
    def not_run(self) -> NotRun | None:
        """Why it isn't run, if it isn't."""
        if self.language != "sh":
            return None
        return next((entry for entry in NOT_RUN if re.match(entry.pattern, self.text)), None)

    @property
    def leaves(self) -> str | None:
        """The placeholder that becomes the id of its run."""
        return next(
            (to for page, part, to in LEAVES if page == self.page and re.search(part, self.text)),
            None,
        )

    @property
    def entry_point(self) -> str | None:
        """That `mlflow run` is told to run."""
        return entry_point(self.text) if self.language == "sh" else None

    def to_run(self) -> list[str]:
        """The words that are run: small, and without making an environment.

        Raises:
            ValueError: it is a command that nobody knows.
        """
        if self.text == "make train":
            # Its environment is the one that this runs in.
            return ["make", "--assume-old", ".venv/.installed", "train"]
        name = self.entry_point
        if name is None:
            raise ValueError(f"{self.page}: nobody knows how to run {self.text!r}")
        values = given(self.text)
        if "resume" in values:
            values["resume"] = "INTERRUPTED"
        elif self.page != AS_IT_STANDS:
            values = _small(name, self.text, values)
        words = [f"-P{name}={value}" for name, value in values.items()]
        return ["mlflow", "run", ".", "-e", name, "--env-manager", "local", *words]


def _small(name: str, text: str, values: Mapping[str, str]) -> dict[str, str]:
    own = dict(values)
    for parameter, value in SMALL[name].items():
        if _has_effect(name, own | {parameter: value}):
            own[parameter] = value
    own |= {n: v for n, v in SMALL_IF_GIVEN.get(name, {}).items() if n in values}
    for part, more in LONG.items():
        if part in text and "report_only" not in values:
            own |= more
    return own


def _has_effect(name: str, values: Mapping[str, str]) -> bool:
    """Whether all values have one beside the others."""
    try:
        command_line.parse(*COMMANDS[name].takes, argv=[f"--{n}={v}" for n, v in values.items()])
    except InputError as error:
        return "has no effect" not in str(error)
    return True


def snippets() -> list[Snippet]:
    """Everything that is fenced as a command or as Python, in the pages' order."""
    found = []
    for path in PAGES:
        page = str(path.relative_to(ROOT))
        for language, text in fences(path):
            if language == "python":
                found.append(Snippet(page, language, text))
            elif language == "sh":
                found += [Snippet(page, language, command) for command in commands(text)]
    return found


def fences(path: Path) -> list[tuple[str, str]]:
    """Language and text of a page's fenced blocks."""
    return re.findall(r"^```(\w*)\n(.*?)^```$", path.read_text(), re.M | re.S)


def commands(block: str) -> list[str]:
    """The commands of a block, without comments, each on one line."""
    lines = re.sub(r"\\\n\s*", "", block).splitlines()
    return [bare for line in lines if (bare := re.sub(r"(^|\s)#.*", "", line).strip())]


def entry_point(command: str) -> str | None:
    """The entry point of an `mlflow run`, if it is one."""
    found = re.match(r"(?:mlflow run \. )?-e (\w+)", command)
    return found[1] if found else None


def given(command: str) -> dict[str, str]:
    """The parameters that a command gives."""
    words = shlex.split(command)
    pairs = [words[i + 1].partition("=")[::2] for i, word in enumerate(words) if word == "-P"]
    return dict(pairs)


def filled(text: str, ids: Mapping[str, str]) -> str:
    """A text with its placeholders, words or paths, replaced."""
    for name, value in ids.items():
        text = re.sub(rf"(?<!\w){re.escape(name)}(?!\w)", value, text)
    return text
