"""By what an experiment is known again: its settings, its data and the code that computes it."""

import ast
import functools
import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from resfool.parameters import show

# What a result doesn't depend on: where things lie, and who computes them in which processes.
_PLACES = {
    "backend",
    "checkpoint_seconds",
    "data_dir",
    "patience",
    "ray_address",
    "solve_dir",
    "trust",
    "workers",
}

# What computes an experiment's result, by the experiment: files of this package, or one function
# of a file. Those that read data have no part in it: the data count by their digest.
_CODE = {
    "train": ("architectures", "layers", "training", "inference", "evaluation:evaluate"),
    "attack": ("evaluation", "inference", "attacks/gradient", "attacks/lowrank"),
    "universal": (
        *("judging", "inference", "attacks/gradient", "attacks/lowrank"),
        *("attacks/minimal", "attacks/universal"),
    ),
}


def key(settings: Mapping[str, Any], dataset_digest: str) -> str:
    """What experiments of one kind have in common that end with the same figures.

    Args:
        settings: arguments of `train`, `attack` or `universal`, all of them.
        dataset_digest: of the data that they lead to.

    Returns:
        A digest, 16 hex digits.
    """
    telling = {name: show(value) for name, value in settings.items() if name not in _PLACES}
    text = json.dumps(telling | {"dataset_digest": dataset_digest}, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


@functools.cache
def code(experiment: str) -> str:
    """What computes an experiment, without comments, docstrings and layout.

    Args:
        experiment: train, attack or universal.

    Returns:
        A digest, 16 hex digits.
    """
    package = Path(__file__).resolve().parent.parent
    texts = []
    for place in _CODE[experiment]:
        name, _, function = place.partition(":")
        texts.append(_bare(package / f"{name}.py", function))
    return hashlib.sha256("\n".join(texts).encode()).hexdigest()[:16]


def _bare(path: Path, function: str = "") -> str:
    """A file, or one function of it, without comments, docstrings and layout."""
    tree: ast.AST = ast.parse(path.read_text())
    if function:
        named = (n for n in ast.walk(tree) if isinstance(n, ast.FunctionDef))
        (tree,) = (n for n in named if n.name == function)
    for node in ast.walk(tree):
        body = getattr(node, "body", None)
        if isinstance(body, list) and body and _is_text(body[0]):
            node.body = body[1:] or [ast.Pass()]  # type: ignore[attr-defined]
    return ast.unparse(tree)


def _is_text(node: ast.AST) -> bool:
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)


def facts(experiment: str, settings: Mapping[str, Any], dataset_digest: str) -> dict[str, str]:
    """The parameters of a run by which it is found again.

    Args:
        experiment: train, attack or universal.
        settings: all arguments of it.
        dataset_digest: of the data that they lead to.
    """
    return {
        f"{experiment}_key": key(settings, dataset_digest),
        f"{experiment}_code": code(experiment),
    }
