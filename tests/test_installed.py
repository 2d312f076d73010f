"""What `pip install .` brings: the command `resfool`, with no checkout anywhere near."""

import os
import shutil
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

import keras
import numpy as np
import pytest

from resfool.commands import COMMANDS
from tests.conftest import ROOT

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with an environment in it that has the wheel, and sees what it depends on."""
    folder = tmp_path_factory.mktemp("installed")
    source = folder / "source"
    shutil.copytree(ROOT / "resfool", source / "resfool", ignore=shutil.ignore_patterns("*.pyc"))
    for name in ("pyproject.toml", "README.md"):
        shutil.copy(ROOT / name, source)
    pip: list[str | Path] = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    build: list[str | Path] = [
        "wheel",
        "--no-deps",
        "--no-build-isolation",
        "--wheel-dir",
        folder,
        source,
    ]
    subprocess.run([*pip, *build], check=True)
    venv.create(folder / "env", with_pip=False)
    packages = next((folder / "env" / "lib").glob("python*")) / "site-packages"
    # A folder that is only looked into: no package of it that is installed as a link to here.
    (packages / "dependencies.pth").write_text(sysconfig.get_path("purelib"))
    (wheel,) = folder.glob("resfool-*.whl")
    python = folder / "env" / "bin" / "python"
    subprocess.run(
        [*pip, "--python", python, "install", "--no-deps", "--no-index", wheel], check=True
    )
    shutil.rmtree(source)
    return folder


def resfool(folder: Path, *words: str) -> "subprocess.CompletedProcess[str]":
    """The command, run in the folder that it is installed in."""
    return subprocess.run(
        [folder / "env" / "bin" / "resfool", *words],
        cwd=folder,
        env={"PATH": "/usr/bin:/bin", "HOME": str(folder)},
        capture_output=True,
        text=True,
    )


def test_it_attacks_a_model_of_ones_own(installed: Path) -> None:
    random = np.random.default_rng(0)
    keras.utils.set_random_seed(0)
    images = keras.Input((4, 4, 1))
    logits = keras.layers.Dense(3)(keras.layers.Flatten()(images))
    keras.Model(images, logits).save(installed / "mine.keras")
    arrays = {
        f"{kind}_{part}": values
        for part in ("train", "test")
        for kind, values in (
            ("x", random.integers(0, 256, (30, 4, 4, 1), np.uint8)),
            ("y", np.arange(30) % 3),
        )
    }
    np.savez(installed / "mine.npz", allow_pickle=False, **arrays)
    done = resfool(
        installed,
        *("attack", "--model", "mine.keras", "--dataset=npz:mine.npz", "--epsilons", "0,8/255"),
    )
    assert done.returncode == 0, done.stderr
    assert "fooling rate" in done.stdout and "run  " in done.stdout
    assert (installed / "mlflow.db").exists()


def test_its_help_names_every_command_and_its_refusals_are_one_sentence(installed: Path) -> None:
    told = resfool(installed, "--help")
    assert told.returncode == 0 and all(f"  {name} " in told.stdout for name in COMMANDS)
    for words, code, sentence in (
        (["atack"], 2, "unknown command 'atack'; did you mean 'attack'?"),
        (["attack", "--model=a.keras", "--epsilns=1"], 2, "did you mean 'epsilons'?"),
        (["attack", "--model=a.keras", "--epsilons=2"], 2, "must be from 0 to 1"),
        (["attack", "--model=gone.keras", "--dataset=digits"], 1, "there is no such file"),
    ):
        refused = resfool(installed, *words)
        assert refused.returncode == code and sentence in refused.stderr
        assert len(refused.stderr.splitlines()) == 1 and not refused.stdout


def test_a_shell_completes_commands_parameters_and_words(installed: Path) -> None:
    script = resfool(installed, "--completion", "bash")
    assert script.returncode == 0
    (installed / "completion.bash").write_text(script.stdout)

    def completed(*words: str) -> set[str]:
        """What bash offers for the last of the words."""
        line = " ".join(words)
        asked = (
            f"source completion.bash; COMP_WORDS=({line}); COMP_CWORD={len(words) - 1};"
            f" COMP_LINE='{line}'; COMP_POINT={len(line)}; _shtab_resfool;"
            ' printf "%s\\n" "${COMPREPLY[@]}"'
        )
        told = subprocess.run(
            ["bash", "-c", asked], cwd=installed, capture_output=True, text=True, check=True
        )
        return {word.strip() for word in told.stdout.splitlines()}

    assert completed("resfool", "tr") == {"train"}
    assert completed("resfool", "attack", "--pgd_steps") >= {"--pgd_steps"}
    assert completed("resfool", "attack", "--method", "f") == {"fab", "fgsm"}
    assert resfool(installed, "--completion", "zsh").stdout.startswith("#compdef resfool")
    assert "did you mean 'zsh'" in resfool(installed, "--completion", "zhs").stderr


def test_the_environment_does_not_see_the_checkout(installed: Path) -> None:
    where = "import resfool, os; print(os.path.dirname(resfool.__file__))"
    told = subprocess.run(
        [installed / "env" / "bin" / "python", "-c", where],
        cwd=installed,
        env={k: v for k, v in os.environ.items() if k != "PYTHONPATH"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert Path(told.stdout.strip()).is_relative_to(installed)
