"""TensorFlow starts without a word, unless it fails."""

import subprocess
import sys

from tests.conftest import ROOT


def run(script: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True)


def test_the_start_is_quiet() -> None:
    done = run("from resfool.devices import start_tensorflow\nstart_tensorflow()\n")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_what_native_code_said_is_shown_when_the_start_fails() -> None:
    done = run(
        "import os\n"
        "from resfool import devices\n"
        "with devices.held_back_stderr():\n"
        "    os.write(2, b'native words\\n')\n"
        "    raise RuntimeError('no start')\n"
    )
    assert done.returncode == 1
    assert done.stderr.startswith("native words") and "no start" in done.stderr
