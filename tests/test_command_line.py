"""The command line: made of declarations, strict, and one sentence per mistake."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Annotated

import numpy as np
import pytest

from resfool import command_line
from resfool.commands import COMMANDS
from resfool.errors import UsageError
from resfool.networks.shape import Arch
from resfool.parameters import Parameters
from resfool.values import Counts, PositiveCount, show
from tests.conftest import ROOT


class Example(Parameters):
    """Do something."""

    arch: Annotated[Arch, "which one."]
    depth: Annotated[PositiveCount | None, "how deep."] = None
    width: Annotated[Counts | None, "how wide."] = None
    rate: Annotated[float, "how fast."] = 0.5
    flag: Annotated[bool, "whether at all."] = True


def parse(*words: str) -> dict[str, object]:
    return command_line.parse(Example, argv=words)[0].settings()


def test_defaults_are_filled_in() -> None:
    assert parse("--arch=resnet") == {
        "arch": "resnet",
        "depth": None,
        "width": None,
        "rate": 0.5,
        "flag": True,
    }


@pytest.mark.parametrize(
    ("words", "name", "value"),
    [
        (["--depth", "25"], "depth", 25),
        (["--depth=none"], "depth", None),
        (["--width=8"], "width", (8,)),
        (["--width", "8,16"], "width", (8, 16)),
        (["--rate", "-1e-3"], "rate", -1e-3),
        (["--rate=-1"], "rate", -1.0),
        (["--flag", "false"], "flag", False),
    ],
)
def test_values_take_the_type_of_the_signature(words: list[str], name: str, value: object) -> None:
    assert parse("--arch=mlp", *words)[name] == value


def test_what_is_shown_is_read_back() -> None:
    for value in (None, 3, (1, 2)):
        assert parse("--arch=mlp", f"--width={show(value)}")["width"] == (
            (value,) if isinstance(value, int) else value
        )


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ([], "arch is missing; it is one of convnet, resnet, highway, multiresnet, mlp"),
        (["--arch=resnt"], "unknown arch 'resnt'; did you mean 'resnet'?"),
        (["--arch=resnet", "--dept=3"], "unknown parameter 'dept'; did you mean 'depth'?"),
        (["--arch=resnet", "--dept", "3"], "unknown parameter 'dept'; did you mean 'depth'?"),
        (["--arch=resnet", "--depth=abc"], "depth=abc isn't allowed"),
        (["--arch=resnet", "--depth=0"], "greater than or equal to 1"),
        (["--arch=resnet", "--width=8,x"], "width=8,x isn't allowed"),
        (["--arch=resnet", "--flag=maybe"], "flag must be true or false"),
        (["--arch=resnet", "extra"], "extra"),
        (["--arch=resnet", "--depth"], "depth"),
    ],
)
def test_mistakes_are_told_in_one_sentence(words: list[str], sentence: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse(*words)
    assert sentence in str(caught.value)
    assert "\n" not in str(caught.value)


def checked(**given: object) -> dict[str, object]:
    return Example.of({"arch": "mlp"} | given).settings()


@pytest.mark.parametrize(
    ("given", "value"),
    [
        ({"depth": 3}, 3),
        ({"depth": "3"}, 3),
        ({"depth": None}, None),
        ({"depth": "none"}, None),
        ({"width": [8, 16]}, (8, 16)),
        ({"width": np.array([8, 16])}, (8, 16)),
        ({"width": "8,16"}, (8, 16)),
        ({"width": 8}, (8,)),
        ({"rate": np.float32(0.25)}, 0.25),
        ({"rate": 1}, 1.0),
        ({"flag": False}, False),
        ({"flag": "false"}, False),
    ],
)
def test_values_come_from_python_too(given: dict[str, object], value: object) -> None:
    (name,) = given
    assert checked(**given) == parse("--arch=mlp") | {name: value}


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ({"dept": 3}, "unknown parameter 'dept'; did you mean 'depth'?"),
        ({"size": 3}, "unknown parameter 'size'; known: arch, depth, width, rate, flag"),
        ({"arch": None}, "unknown arch 'none'; known: convnet,"),
        ({"depth": True}, "depth=true isn't allowed: depth must be a whole number"),
        ({"arch": ["mlp"]}, "unknown arch"),
        ({"depth": 2.5}, "depth=2.5 isn't allowed"),
        ({"width": (8, "x")}, "width=8,x isn't allowed"),
        ({"rate": None}, "rate=none isn't allowed"),
        ({"flag": 3}, "flag=3 isn't allowed"),
    ],
)
def test_mistakes_in_python_are_told_in_one_sentence(
    given: dict[str, object], sentence: str
) -> None:
    with pytest.raises(UsageError) as caught:
        checked(**given)
    assert sentence in str(caught.value) and "\n" not in str(caught.value)


def test_what_is_missing_in_python_is_told() -> None:
    with pytest.raises(UsageError, match="arch is missing; it is one of"):
        Example.of({})


class Other(Parameters):
    """Do something else."""

    arch: Annotated[Arch, "which one."]
    size: Annotated[int, "how large."] = 1


def test_what_two_classes_share_is_given_once() -> None:
    first, second = command_line.parse(Example, Other, argv=["--arch=mlp", "--size=2"])
    assert first == Example(arch="mlp") and second == Other(arch="mlp", size=2)


@pytest.mark.parametrize("name", COMMANDS)
def test_help_describes_every_parameter(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        command_line.parse(*COMMANDS[name].takes, argv=["--help"])
    assert caught.value.code == 0
    options = capsys.readouterr().out.split("options:")[1]
    for parameter, one in COMMANDS[name].parameters.items():
        assert f"--{parameter} " in options
        assert " ".join(one.text.split()[:3]) in " ".join(options.split()), parameter
        assert one.text.endswith("."), f"{parameter} has no description"


TRAIN = "train --arch=resnet"
# The folder "given" has files that are no model and no archive.
REFUSED: list[tuple[str, int, str]] = [
    (f"{TRAIN} --dephth=10", 2, "did you mean 'depth'?"),
    ("train --arch=resnext", 2, "did you mean 'resnet'?"),
    (f"{TRAIN} --dataset=cifar", 1, "did you mean 'cifar10'?"),
    (f"{TRAIN} --optimizer=adma", 2, "did you mean 'adam'?"),
    (f"{TRAIN} --precision=float16", 2, "did you mean 'bfloat16'?"),
    (f"{TRAIN} --depth=7", 1, "multiple of 5"),
    (f"{TRAIN} --width=0", 2, "width=0"),
    (f"{TRAIN} --steps -1", 2, "steps=-1"),
    (f"{TRAIN} --learning_rate=abc", 2, "learning_rate=abc"),
    (f"{TRAIN} --adversarial=fgms", 2, "did you mean 'fgsm'?"),
    (f"{TRAIN} --adversarial_epsilon=8", 2, "adversarial_epsilon must be from 0 to"),
    (f"{TRAIN} --adversarial_epsilon=8/0", 2, "adversarial_epsilon divides by zero"),
    (f"{TRAIN} --adversarial_weight=1.1", 2, "adversarial_weight=1.1"),
    (f"{TRAIN} --adversarial_weight=nan", 2, "adversarial_weight=nan"),
    (f"{TRAIN} --adversarial_epsilon=4/255", 1, "=none; it needs adversarial=fgsm"),
    (f"{TRAIN} --adversarial_weight=1", 1, "=1.0 has no effect with adversarial=none"),
    (f"{TRAIN} --width=1000000", 1, "width=1000000 takes at least"),
    (f"{TRAIN} --data_dir=nowhere", 1, "data_dir=nowhere: there is no such folder"),
    (f"{TRAIN} --dataset=npz:../given/arrays.npz", 1, "cannot read ../given/arrays.npz"),
    (f"{TRAIN} --dataset=digits --per_class=5", 1, "per_class must be"),
    ("attack --model=x.keras --dataset=npz:nowhere.npz", 1, "nothing at 'nowhere.npz'"),
    ("attack --model=x.keras --dataset=digits", 1, "model=x.keras: there is no such file"),
    ("attack --model=../given/model.keras --dataset=digits", 1, "is neither a .keras file nor"),
    ("attack --model=runs:/1/m --perturbation=x.npy", 1, "perturbation=x.npy: there is no file"),
    ("universal --model=runs:/1/m --matrix=x.npz", 1, "matrix=x.npz: there is no file x.npz"),
    ("universal --algorithm=2", 2, "model is missing; it is runs:/RUN_ID/model, models:/"),
    ("mnist --draws=1000000000 --memory_limit=9GB", 1, "draws=1000000000 takes at least 256 GB"),
    ("sweep --arch=mlp,mlp", 1, "name a network twice"),
    ("sweep --arch=mlp --backend=ray --ray_address=here", 2, "must be auto, host:port or"),
    ("tune --arch=mlp --search=gate_bias", 1, "unknown setting to search of mlp 'gate_bias'"),
    ("reproduce --target=all --seeds=1000000000", 1, "seeds=1000000000 takes at least"),
]
# Takes lists of words, and tells what comes of each: exit code, errors, what it imported.
REFUSING = """
import contextlib, io, json, sys
from resfool import commands
for words in json.load(sys.stdin):
    with contextlib.redirect_stderr(io.StringIO()) as errors:
        try:
            code = commands.main(words)
        except SystemExit as end:
            code = end.code
    heavy = {"tensorflow", "keras", "mlflow", "pandas", "matplotlib", "scipy", "ray", "optuna"}
    heavy = sorted(heavy & sys.modules.keys())
    print(json.dumps([code, errors.getvalue(), heavy]))
"""


def test_bad_input_is_refused_before_anything_heavy_is_imported(tmp_path: Path) -> None:
    given, here = tmp_path / "given", tmp_path / "here"
    given.mkdir()
    here.mkdir()
    for name in ("model.keras", "arrays.npz"):
        (given / name).write_text("neither")
    done = subprocess.run(
        [sys.executable, "-c", REFUSING],
        input=json.dumps([words.split() for words, _, _ in REFUSED]),
        cwd=here,
        env={"PYTHONPATH": str(ROOT), "PATH": "/usr/bin:/bin"},
        capture_output=True,
        text=True,
        check=True,
    )
    answers = map(json.loads, done.stdout.splitlines())
    for (words, code, sentence), (found, errors, heavy) in zip(REFUSED, answers, strict=True):
        assert (found, heavy) == (code, []), words
        lines = [line for line in errors.splitlines() if line.strip()]
        assert len(lines) == 1 and sentence in lines[0], errors
    assert not done.stderr
    assert not list(here.iterdir()), "something was made for nothing"
