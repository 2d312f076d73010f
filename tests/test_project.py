"""The project's public face: files that must agree with each other, and its own imports."""

import ast
import importlib.metadata
import re
import sys
import tomllib
from pathlib import Path

import pytest
import yaml

from docs import generate
from resfool.commands import COMMANDS
from resfool.values import show
from tests.conftest import ROOT


def test_mlproject_names_conda_and_every_entry_point() -> None:
    written = yaml.safe_load((ROOT / "MLproject").read_text())
    assert written["conda_env"] == "conda.yaml"
    assert written["entry_points"].keys() == COMMANDS.keys()
    scripts = {p.stem for p in (ROOT / "entry_points").glob("*.py")} - {"__init__"}
    assert scripts == COMMANDS.keys()


@pytest.mark.parametrize("name", COMMANDS)
def test_mlproject_repeats_the_declarations(name: str) -> None:
    declared = yaml.safe_load((ROOT / "MLproject").read_text())["entry_points"][name]
    expected = {
        parameter: None if one.required else show(one.default)
        for parameter, one in COMMANDS[name].parameters.items()
    }
    given = {
        parameter: None if isinstance(entry, str) else show(entry["default"])
        for parameter, entry in declared["parameters"].items()
    }
    assert given == expected
    words = declared["command"].split()
    assert words[: words.index("-m") + 2] == ["exec", "python", "-m", f"entry_points.{name}"]
    assert words[4:] == [f"--{parameter}={{{parameter}}}" for parameter in expected]


def test_what_repeats_the_code_is_as_it_should_be() -> None:
    for path, text in generate.files().items():
        assert path.read_text() == text, f"{path.name}: run `make docs`"


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


# Each floor may use those below it; what stands on one floor is apart.
FLOORS = [
    {
        "archive",
        "arrayfiles",
        "blocks",
        "bounded",
        "checkpoints",
        "costs",
        "databases",
        "declarations",
        "devices",
        "errors",
        "identity",
        "interrupts",
        "limits",
        "monitor",
        "owner",
        "paper",
        "parameters",
        "places",
        "values",
        "wording",
    },
    {"report", "networks", "datasets", "parallel"},
    {"classifiers", "tracking"},
    {"training", "attacks"},
    {"universal", "trials"},
    {"reproduction"},
    {"experiments", "evaluator", "commands", "command_line", "progress"},
]
GROUND, DOORS = FLOORS[0], FLOORS[-1]
SERVICES = {"tracking", "parallel", "trials.study"}  # that only doors may see
DRAWING = {"report", "matplotlib", "pandas"}  # that only a presentation.py may see


def _imports(path: Path, for_types: bool = False) -> set[str]:
    """What a file imports anywhere, also for types if asked: modules of ours without `resfool.`."""
    found: set[str] = set()
    waiting: list[ast.AST] = [ast.parse(path.read_text())]
    while waiting:
        node = waiting.pop()
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test) and not for_types:
            continue
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        if isinstance(node, ast.ImportFrom):
            module = node.module or ""
            # A name may be a module of its own, or something in one.
            found |= {module, *(f"{module}.{alias.name}" for alias in node.names)}
        waiting.extend(ast.iter_child_nodes(node))
    return {name.removeprefix("resfool.") for name in found - {"resfool"}}


def _room(path: Path) -> str:
    """A file's place in the package, such as attacks.solvers.closest."""
    return ".".join(path.relative_to(ROOT / "resfool").with_suffix("").parts)


ROOMS = {_room(p): p for p in sorted((ROOT / "resfool").rglob("*.py")) if p.stem != "__init__"}


def test_every_wing_has_its_floor() -> None:
    wings = {room.partition(".")[0] for room in ROOMS}
    assert wings == set().union(*FLOORS)


@pytest.mark.parametrize("room", ROOMS)
def test_the_import_rule(room: str) -> None:
    wing = room.partition(".")[0]
    (floor,) = (number for number, wings in enumerate(FLOORS) if wing in wings)
    imported = _imports(ROOMS[room])
    own = {name for name in imported if name.partition(".")[0] in set().union(*FLOORS)}
    below = set().union(*FLOORS[:floor])
    beside = GROUND | DOORS if wing in GROUND | DOORS else {wing}
    for name in own:
        target = name.partition(".")[0]
        assert target in below or target in beside & FLOORS[floor], f"{room} imports {name}"
    if wing not in DOORS:
        seen = {s for s in SERVICES for name in own if name == s or name.startswith(f"{s}.")}
        assert not {s for s in seen if not f"{room}.".startswith(f"{s}.")}, f"{room} sees {seen}"
        if not room.endswith("presentation") and wing != "report":
            assert not {name.partition(".")[0] for name in imported} & DRAWING, room


def test_no_room_is_too_large_and_no_two_have_one_name() -> None:
    for room, path in ROOMS.items():
        assert len(path.read_text().splitlines()) <= 500, room
    names = [room.rpartition(".")[2] for room in ROOMS]
    twice = {name for name in names if names.count(name) > 1}
    # Each wing may have its own; the ground's archive knows files, tracking's MLflow's runs.
    assert twice == {"presentation", "options", "archive"}


def test_there_is_no_circle() -> None:
    used = {room: _imports(path, for_types=True) & ROOMS.keys() for room, path in ROOMS.items()}
    while leaves := {room for room, others in used.items() if not others & used.keys()}:
        for room in leaves:
            del used[room]
    assert not used, f"these import each other: {sorted(used)}"


def test_of_ray_only_what_it_promises_is_imported() -> None:
    """Anything else may go with its next minor release."""
    promised = {"ray", "ray.autoscaler.sdk", "ray.cluster_utils", "ray.data", "ray.util"}
    promised |= {"ray.util.scheduling_strategies"}
    folders = "resfool", "tests", "benchmarks", "entry_points", "docs"
    sources = [path for folder in folders for path in (ROOT / folder).rglob("*.py")]
    found = set()
    for path in sources:
        for node in ast.walk(ast.parse(path.read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom) and not node.level:
                names.append(node.module or "")
                names += [f"{node.module}.{a.name}" for a in node.names if a.name.startswith("_")]
            if isinstance(node, ast.Attribute) and node.attr in ("_private", "_raylet", "core"):
                whole = ast.unparse(node)
                names.append(whole if whole.startswith(("ray.", "sys.modules['ray']")) else "")
            found |= {name for name in names if name.partition(".")[0] == "ray" or "'ray'" in name}
    assert "ray" in found and found <= promised


# Who may import what connects us to the world.
SPEAKERS = {
    "mlflow": {"tracking", "evaluator"},
    "optuna": {"trials"},
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
