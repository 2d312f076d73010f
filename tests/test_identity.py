"""By what a result is known again."""

from pathlib import Path
from typing import Any

import pytest

from resfool.experiments import identity


def test_settings_are_known_by_a_key_whatever_does_not_matter() -> None:
    settings: dict[str, Any] = {"seed": 1, "learning_rate": 0.001, "data_dir": "here"}
    key = identity.key(settings, "digest")
    assert key == identity.key(settings | {"data_dir": "there", "workers": 3}, "digest")
    assert key != identity.key(settings | {"seed": 2}, "digest")
    assert key != identity.key(settings, "other")


@pytest.mark.parametrize(
    ("source", "same"),
    [
        ('"""Other words."""\n\n\ndef f(a):\n    # why\n    return a + 1\n', True),
        ('def f(a):\n    """It adds."""\n    return (a +\n        1)\n', True),
        ("def f(a):\n    return a + 2\n", False),
        ("def g(a):\n    return a + 1\n", False),
    ],
)
def test_code_is_what_it_computes(tmp_path: Path, source: str, same: bool) -> None:
    one, other = tmp_path / "one.py", tmp_path / "other.py"
    one.write_text('"""Words."""\ndef f(a):\n    return a + 1\n')
    other.write_text(source)
    assert (identity._bare(one) == identity._bare(other)) == same


def test_one_function_of_a_file_is_apart_from_the_others(tmp_path: Path) -> None:
    path = tmp_path / "two.py"
    path.write_text("def f(a):\n    return a + 1\n\n\ndef g():\n    return 1\n")
    assert identity._bare(path, "f") == "def f(a):\n    return a + 1"


@pytest.mark.parametrize("experiment", identity._CODE)
def test_every_experiment_has_its_code(experiment: str) -> None:
    assert len(identity.code(experiment)) == 16
    assert len({identity.code(name) for name in identity._CODE}) == len(identity._CODE)
    assert set(identity.facts(experiment, {}, "digest")) == {
        f"{experiment}_key",
        f"{experiment}_code",
    }
