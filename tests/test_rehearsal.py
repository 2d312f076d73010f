"""Models are loaded in a process of their own first, which may take only so much."""

import functools
import json
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
from keras import layers

from resfool import limits
from resfool.classifiers import rehearsal
from resfool.classifiers.adapting import as_classifier
from resfool.classifiers.endings import Seen
from resfool.errors import InputError
from tests.processes import Process
from tests.test_classifiers import SHAPE, config_of, dense, images, named, run, sequential, write

rehearse = rehearsal.rehearse  # which other tests do without

BEGIN = """
import functools, json, os, sys, time
from pathlib import Path
from resfool import devices, limits
from resfool.archive import ModelSource
from resfool.classifiers import finding, rehearsal
from resfool.errors import InputError

def loading(path):
    asked = finding.OneModel(model=path)
    return finding._Loading(ModelSource(path, "m", Path(path)), "m", SHAPE, None, asked)

def told(work, memory=300_000_000, seconds=60):
    with limits.in_force(limits.Bounds(memory, seconds)):
        try:
            rehearsal.rehearse("it", work)
        except InputError as error:
            return str(error)
"""


def begun(script: str) -> Process:
    """A script at work in a process that has imported TensorFlow and not started it."""
    return Process(BEGIN.replace("SHAPE", str(SHAPE)) + script)


@pytest.fixture
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder for temporary files, empty, in the working directory."""
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TMPDIR", str(folder))
    return folder


def layer(name: str, **options: Any) -> Any:
    return named(name, {"name": "bomb", **options})


BOMBS = {
    "pixels": layer("UpSampling2D", size=[5000, 5000]),  # more than the limit
    "weights": layer("Conv2D", filters=10**6, kernel_size=[3000, 3000], padding="same"),  # than any
}


@pytest.mark.slow
def test_what_takes_too_much_is_refused_in_one_sentence(tmp_path: Path, temporary: Path) -> None:
    image = named("Reshape", {"name": "image", "target_shape": SHAPE})
    pool = named("GlobalAveragePooling2D", {"name": "pool"})
    files = [
        str(write(tmp_path / f"{name}.keras", config_of(image, bomb, pool)))
        for name, bomb in BOMBS.items()
    ]
    plain = tmp_path / "plain.keras"
    sequential(layers.Flatten(), dense()).save(plain)
    process = begun(
        f"found = [told(loading(path)) for path in {files}]\n"
        f"found.append(told(loading({str(plain)!r}), seconds=0.02))\n"
        "found += [told(os.abort), told(functools.partial(os._exit, 3))]\n"
        f"found += [told(loading({str(plain)!r})), told(functools.partial(sys.exit, 'refused'))]\n"
        "assert not devices.tensorflow_started()\n"
        "print(json.dumps(found))\n"
    )
    assert process.wait() == 0, process.printed()
    *large, slow, signalled, ended, fine, refused = json.loads(process.printed())
    too_much = (
        "it takes more memory than it may: memory_limit allows 300 MB; "
        "memory_limit=600MB would allow more"
    )
    assert large == [too_much] * len(files)
    assert slow == (
        "it takes more than 0.02 s, which time_limit allows; time_limit=0.1 would allow more"
    )
    assert signalled == "it can't be loaded: it ends the process that does it by SIGABRT"
    assert ended == "it can't be loaded: it ends the process that does it"
    assert fine is refused is None
    assert not list(temporary.iterdir())


@pytest.mark.parametrize(
    "number",
    [pytest.param(signal.SIGINT, marks=pytest.mark.slow), signal.SIGTERM, signal.SIGKILL],
)
def test_a_process_that_is_stopped_leaves_none(
    tmp_path: Path, temporary: Path, number: signal.Signals
) -> None:
    process = begun(
        "from resfool import interrupts\n"
        "interrupts.raise_once()\n"
        "def work():\n"
        "    Path('draft').write_text(str(os.getpid()))\n"
        "    Path('draft').rename('pid')\n"
        "    time.sleep(100)\n"
        "rehearsal.rehearse('it', work)\n"
    )
    wait_for((tmp_path / "pid").exists)
    child = int((tmp_path / "pid").read_text())
    process.send_signal(number)
    assert process.wait() != 0
    wait_for(lambda: not psutil.pid_exists(child))
    assert number == signal.SIGKILL or not list(temporary.iterdir())


def wait_for(condition: Callable[[], bool]) -> None:
    until = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.02)


@pytest.mark.slow
def test_where_tensorflow_is_at_work_a_new_process_is_started(temporary: Path) -> None:
    dense()(layers.Flatten()(layers.Input(SHAPE)))  # it is
    with limits.in_force(limits.Bounds(memory=300_000_000)):
        with pytest.raises(InputError, match="it takes more memory than it may"):
            rehearse("it", functools.partial(b"many".__mul__, 10**9))
        rehearse("it", functools.partial(os.getcwd))
    assert not list(temporary.iterdir())


def test_what_was_seen_of_a_model_is_told(tmp_path: Path, temporary: Path) -> None:
    raw, softmax = dense(activation=None), layers.Softmax()
    models = {
        "logits": sequential(layers.Flatten(), raw),
        "softmax": sequential(layers.Flatten(), raw, softmax),
        "hidden": sequential(layers.Flatten(), raw, softmax, layers.Rescaling(1.0)),
    }
    for name, model in models.items():
        model.save(tmp_path / f"{name}.keras")
    paths = [str(tmp_path / f"{name}.keras") for name in models]
    process = begun(
        f"print(json.dumps([rehearsal.rehearse('it', loading(path)) for path in {paths}]))\n"
    )
    assert process.wait() == 0, process.printed()
    assert not list(temporary.iterdir())
    told = [Seen(**each) for each in json.loads(process.printed())]
    assert told == [Seen(False, False), Seen(True, True), Seen(False, True)]
    logits, cut, logarithms = (
        run(as_classifier(model, image_shape=SHAPE, classes=None, name="it", seen=seen), images())
        for seen, model in zip(told, models.values(), strict=True)
    )
    np.testing.assert_allclose(cut, logits, rtol=0, atol=1e-5)
    np.testing.assert_allclose(logarithms, np.log(run(models["softmax"], images())), atol=1e-4)
