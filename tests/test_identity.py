"""By what a result is known again."""

import ast
import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from resfool import identity
from tests.conftest import ROOT

# The files that compute an experiment's results. Those that read data have no part in it: the data
# count by their digest.
CODE = {
    "train": ("networks/*", "training/*", "classifiers/inference", "classifiers/scores"),
    "attack": (
        *("attacks/*", "attacks/methods/*", "networks/layers"),
        *("classifiers/adapting", "classifiers/endings", "classifiers/interface"),
        *("classifiers/inference", "classifiers/scores"),
    ),
    "universal": (
        *("universal/*", "attacks/balls", "attacks/gradient", "attacks/leads", "attacks/lowrank"),
        *(
            "attacks/minimal",
            "attacks/solvers/*",
            "attacks/methods/apgd",
            "attacks/methods/targets",
        ),
        *("attacks/methods/smallest_epsilon", "attacks/methods/task", "networks/layers"),
        *("classifiers/adapting", "classifiers/endings", "classifiers/interface"),
        *("classifiers/inference", "classifiers/spreading"),
    ),
}
# Parameters count by their values, and how results are shown doesn't change them.
NOT_RESULTS = {
    *("options", "recipe"),
    *("presentation", "robustness_presentation", "masking_presentation"),
    "transfer_presentation",
}

# The digest of that code, for the version of its results.
PINNED = {
    "train": ("e62de5f69643a9a5", "99e04b29fd5aa5a6"),
    "attack": ("4d7e41d5b6091966", "ef17548c88b783a9"),
    "universal": ("d5b68f12eaa10ff3", "3dd340369bd11ef7"),
}


def files(experiment: str) -> list[Path]:
    found = {
        path for pattern in CODE[experiment] for path in (ROOT / "resfool").glob(f"{pattern}.py")
    }
    return sorted(path for path in found if path.stem not in NOT_RESULTS)


def digest(paths: list[Path]) -> str:
    """Of code without comments, docstrings and layout, the same for every version of Python."""
    words = [word for path in paths for word in told(ast.parse(path.read_text()))]
    return hashlib.sha256("\n".join(words).encode()).hexdigest()[:16]


def told(node: Any) -> Iterator[str]:
    """A syntax tree in words."""
    if isinstance(node, ast.AST):
        yield type(node).__name__
        for name, value in ast.iter_fields(node):
            if name == "body" and isinstance(value, list) and value and is_text(value[0]):
                value = value[1:]
            if value not in (None, []):
                yield name
                yield from told(value)
    elif isinstance(node, list):
        for each in node:
            yield from told(each)
    else:
        yield repr(node)


def is_text(node: ast.AST) -> bool:
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)


@pytest.mark.parametrize("experiment", identity.VERSIONS)
def test_the_code_computes_what_its_version_says(experiment: str) -> None:
    version, pinned = PINNED[experiment]
    now = digest(files(experiment))
    assert (identity.VERSIONS[experiment], now) == (version, pinned), (
        f"the code of {experiment} has changed; its digest is {now}. If its results are other ones "
        "now, give identity.VERSIONS a new name, so that runs from before aren't taken for the "
        "same; if not, the version stays. In both cases pin it here with the new digest."
    )


def test_settings_are_known_by_a_key_whatever_does_not_matter() -> None:
    settings: dict[str, Any] = {"seed": 1, "learning_rate": 0.001, "data_dir": "here"}
    key = identity.key("attack", settings, "digest")
    assert key == identity.key("attack", settings | {"data_dir": "there", "workers": 3}, "digest")
    assert key != identity.key("attack", settings | {"seed": 2}, "digest")
    assert key != identity.key("attack", settings, "other")


def test_a_run_from_before_a_parameter_is_one_that_does_not_use_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    before = identity.key("train", {"seed": 1}, "digest")
    assert identity.key("train", {"seed": 1, "later": None}, "digest") != before
    monkeypatch.setitem(identity._LATER, "later", (None,))
    assert identity.key("train", {"seed": 1, "later": None}, "digest") == before
    assert identity.key("train", {"seed": 1, "later": "used"}, "digest") != before


def test_a_parameter_may_be_new_to_one_experiment_alone() -> None:
    default, other = {"seed": 1, "solver": "closest"}, {"seed": 1, "solver": "ddn"}
    assert identity.key("attack", default, "digest") == identity.key(
        "attack", {"seed": 1}, "digest"
    )
    assert identity.key("attack", other, "digest") != identity.key("attack", default, "digest")
    assert identity.key("universal", default, "digest") != identity.key(
        "universal", {"seed": 1}, "digest"
    )


def test_a_run_that_lets_the_program_choose_is_one_with_what_was_the_default() -> None:
    settings = {"model": ("m.keras",), "batch_size": 250, "seed": 0}
    assert identity.key("attack", settings, "digest") == "5ade050ad83f36a2"
    assert identity.key("attack", settings | {"batch_size": "auto"}, "digest") == "5ade050ad83f36a2"
    assert identity.key("attack", settings | {"batch_size": 4}, "digest") != "5ade050ad83f36a2"


def test_a_run_whose_images_zeros_were_shifted_into_is_another_one() -> None:
    keys = {
        identity.key("train", {"augment": kinds}, "digest"): kinds
        for kinds in (("off",), ("mirror",), ("shift",), ("crop_flip",))
    }
    before = [  # as `show` writes them, which is how they were known
        identity.key("train", {"augment": kinds}, "digest")
        for kinds in ("mirror", "shift", "crop_flip")
    ]
    assert [keys.get(key) for key in before] == [("mirror",), None, None]


@pytest.mark.parametrize(
    ("source", "same"),
    [
        ('"""Other words."""\n\n\ndef f(a):\n    # why\n    return a + 1\n', True),
        ('def f(a):\n    """It adds."""\n    return (a +\n        1)\n', True),
        ("def f(a):\n    return a + 2\n", False),
        ("def f(b):\n    return b + 1\n", False),
        ("def g(a):\n    return a + 1\n", False),
    ],
)
def test_code_is_what_it_computes(tmp_path: Path, source: str, same: bool) -> None:
    one, other = tmp_path / "one.py", tmp_path / "other.py"
    one.write_text('"""Words."""\ndef f(a):\n    return a + 1\n')
    other.write_text(source)
    assert (digest([one]) == digest([other])) == same


def test_the_digest_is_of_code_that_is_there() -> None:
    for experiment, patterns in CODE.items():
        assert all(any((ROOT / "resfool").glob(f"{pattern}.py")) for pattern in patterns), (
            experiment
        )
        assert not NOT_RESULTS & {path.stem for path in files(experiment)}
