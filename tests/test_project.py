"""The project's public face: files that must agree with each other, and its own imports."""

import ast
import importlib.metadata
import inspect
import re
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml

from docs.generate import ENTRY_POINTS
from resfool import command_line
from resfool.parameters import show
from tests.conftest import ROOT


def mlproject() -> dict[str, Any]:
    return dict(yaml.safe_load((ROOT / "MLproject").read_text()))


def test_mlproject_names_conda_and_every_entry_point() -> None:
    assert mlproject()["conda_env"] == "conda.yaml"
    assert mlproject()["entry_points"].keys() == ENTRY_POINTS.keys()
    scripts = {p.stem for p in (ROOT / "entry_points").glob("*.py")} - {"__init__"}
    assert scripts == ENTRY_POINTS.keys()


@pytest.mark.parametrize("name", ENTRY_POINTS)
def test_mlproject_repeats_the_signatures(name: str) -> None:
    declared = mlproject()["entry_points"][name]
    expected = {
        parameter: None if p.default is inspect.Parameter.empty else show(p.default)
        for function in ENTRY_POINTS[name]
        for parameter, p in command_line.public_parameters(function).items()
    }
    given = {
        parameter: None if isinstance(entry, str) else show(entry["default"])
        for parameter, entry in declared["parameters"].items()
    }
    assert given == expected
    words = declared["command"].split()
    assert words[: words.index("-m") + 2] == ["exec", "python", "-m", f"entry_points.{name}"]
    assert words[4:] == [f"--{parameter}={{{parameter}}}" for parameter in expected]


def test_conda_pins_equal_pyprojects() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    conda = yaml.safe_load((ROOT / "conda.yaml").read_text())["dependencies"]
    assert conda[-1]["pip"] == project["dependencies"]
    assert "python=3.11" in conda and project["requires-python"].startswith(">=3.11")
    assert all("<" in pin and ">=" in pin for pin in project["dependencies"])


def test_what_is_imported_is_declared() -> None:
    paths = [*(ROOT / "resfool").rglob("*.py"), *(ROOT / "entry_points").rglob("*.py")]
    nodes = [node for path in paths for node in ast.walk(ast.parse(path.read_text()))]
    named = {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
    named |= {node.module or "" for node in nodes if isinstance(node, ast.ImportFrom)}
    theirs = {name.partition(".")[0] for name in named} - sys.stdlib_module_names
    theirs -= {"resfool", "entry_points"}
    providers = importlib.metadata.packages_distributions()
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    declared = {re.split("[<>=]", pin)[0] for pin in project["dependencies"]}
    assert "keras" in theirs
    assert not {name for name in theirs if not declared & {p.lower() for p in providers[name]}}


def _modules() -> dict[str, set[str]]:
    """The modules of this package, a folder counted as one, and those that each imports."""
    found: dict[str, set[str]] = {}
    for path in (ROOT / "resfool").rglob("*.py"):
        name = path.relative_to(ROOT / "resfool").parts[0].removesuffix(".py")
        if name != "__init__":
            found.setdefault(name, set()).update(_imports(path) - {name})
    return found


def _imports(path: Path) -> set[str]:
    """The modules of this package that a file imports anywhere, inside functions too."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("resfool"):
            parts = (node.module or "").split(".")
            found |= {parts[1]} if len(parts) > 1 else {alias.name for alias in node.names}
    return found - {"__version__"}


# Each layer may import itself and those before it; the services stand beside them.
LAYERS = [
    {"errors", "paper", "interrupts", "devices"},
    {"parameters", "layers", "checkpoints", "inference"},
    {"datasets", "architectures", "classifiers", "attacks"},
    {"monitor", "evaluation", "judging"},
    {"training"},
    {"experiments"},
]
SERVICES = {
    *("tracking", "stores", "parallel", "tuning"),
    *("figures", "report", "progress", "command_line"),
}
# Between results and figures: it may see both sides.
BRIDGES = {"presentation", "reproduction"}
# Where MLflow comes in by itself, as a user does by an entry point.
ENTRANCES = {"evaluator"}
CORE = set().union(*LAYERS)


def test_the_import_rule() -> None:
    modules = _modules()
    assert modules.keys() == CORE | SERVICES | BRIDGES | ENTRANCES
    allowed: set[str] = set()
    for layer in LAYERS:
        allowed |= layer
        for name in layer:
            assert modules[name] <= allowed, f"{name} imports {modules[name] - allowed}"
    for service in SERVICES:
        beside = SERVICES - {"stores"} | BRIDGES | ENTRANCES | {"experiments"}
        assert not modules[service] & beside, service
    for bridge in BRIDGES:
        assert not modules[bridge] & ENTRANCES, bridge
    assert not modules["paper"]


# Who may import what connects us to the world.
SPEAKERS = {
    "mlflow": {"tracking", "evaluator"},
    "optuna": {"tuning"},
    "ray": {"parallel"},
    "joblib": {"parallel"},
}


@pytest.mark.parametrize("package", SPEAKERS)
def test_each_service_has_one_place(package: str) -> None:
    package_root = ROOT / "resfool"
    pattern = rf"^\s*(import|from) {package}\b"
    speakers = {
        path.relative_to(package_root).parts[0].removesuffix(".py")
        for path in package_root.rglob("*.py")
        if re.search(pattern, path.read_text(), re.M)
    }
    assert speakers == SPEAKERS[package]
