"""TensorFlow starts without a word, unless it fails, and again where it is in use already."""

import json
import os
import platform
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from resfool import devices
from tests.conftest import ROOT


def run(script: str, **variables: str | None) -> subprocess.CompletedProcess[str]:
    """Run Python, with some variables set or, at None, not set."""
    environment = {name: value for name, value in os.environ.items() if name not in variables}
    environment |= {name: value for name, value in variables.items() if value is not None}
    command = [sys.executable, "-c", script]
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)


@pytest.mark.slow
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


@pytest.mark.skipif(platform.machine() != "x86_64", reason="others are left to TensorFlow")
@pytest.mark.parametrize(("value", "works"), [(None, "True"), ("0", "False")])
@pytest.mark.slow
def test_the_start_is_quiet_and_onednn_works_unless_the_user_turned_it_off(
    value: str | None, works: str, tmp_path: Path
) -> None:
    # Nor do settings of Keras's matter, wherever they are.
    settings = {"backend": "jax", "floatx": "float16", "image_data_format": "channels_first"}
    (tmp_path / "keras.json").write_text(json.dumps(settings))
    done = run(
        "from resfool.devices import start_keras\n"
        "start_keras()\n"
        "from tensorflow.python.util import _pywrap_util_port\n"
        "from keras import config\n"
        "print(_pywrap_util_port.IsMklEnabled(), config.backend(), config.floatx(),"
        " config.image_data_format())\n",
        TF_ENABLE_ONEDNN_OPTS=value,
        KERAS_HOME=str(tmp_path),
        KERAS_BACKEND=None if value else "torch",
        TF_USE_LEGACY_KERAS="1",
    )
    expected = f"{works} tensorflow float32 channels_last\n"
    assert (done.returncode, done.stdout, done.stderr) == (0, expected, "")


@pytest.mark.slow
def test_workers_take_the_kernels_of_a_driver_that_had_tensorflow_already() -> None:
    shown = "print(tasks.environment(1).get('TF_ENABLE_ONEDNN_OPTS'))\n"
    begin = "from resfool import devices\nfrom resfool.parallel import tasks\n"
    late = f"import tensorflow\n{begin}{shown}devices.start_tensorflow()\n{shown}"
    assert run(late, TF_ENABLE_ONEDNN_OPTS=None).stdout.split() == ["None", "None"]
    for given, expected in ((None, "1"), ("0", "0")):
        assert run(begin + shown, TF_ENABLE_ONEDNN_OPTS=given).stdout.split() == [expected]


def test_the_slowdown_is_that_of_the_shortest_times(monkeypatch: pytest.MonkeyPatch) -> None:
    assert all(devices._seconds(dtype) > 0 for dtype in ("bfloat16", "float32"))
    times = {"bfloat16": iter([9, 4, 9, 9, 9, 9, 9, 9]), "float32": iter([2, 2, 2, 2, 2, 1, 2, 2])}
    monkeypatch.setattr(devices, "_seconds", lambda dtype: next(times[dtype]))
    devices.bfloat16_slowdown.cache_clear()
    try:
        assert devices.bfloat16_slowdown() == 4
        assert devices.bfloat16_slowdown() == 4  # without another measurement
    finally:
        devices.bfloat16_slowdown.cache_clear()


@pytest.mark.parametrize(("given", "then"), [(None, "1"), ("0", "0")])
def test_gpus_give_all_bits_of_float32_and_the_same_unless_the_user_says_otherwise(
    monkeypatch: pytest.MonkeyPatch, given: str | None, then: str
) -> None:
    import tensorflow as tf

    monkeypatch.setenv(devices.DETERMINISTIC, given or "")  # so that it is put back in the end
    if given is None:
        monkeypatch.delenv(devices.DETERMINISTIC)
    devices.start_tensorflow()
    assert os.environ.get(devices.DETERMINISTIC) == given  # no GPU here, so nothing is to be said
    monkeypatch.setattr(tf.config, "list_physical_devices", lambda kind: [SimpleNamespace()])
    monkeypatch.setattr(tf.config.experimental, "set_memory_growth", lambda gpu, on: None)
    devices.start_tensorflow()
    assert os.environ[devices.DETERMINISTIC] == then
    assert not tf.config.experimental.tensor_float_32_execution_enabled()
    tf.config.experimental.enable_tensor_float_32_execution(True)


def test_a_gpu_that_is_in_use_already_is_left_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    import tensorflow as tf
    from tensorflow.python.eager import context

    monkeypatch.setenv(devices.DETERMINISTIC, "0")
    tf.constant(0)
    used = context.context()
    gpu = context.PhysicalDevice("/physical_device:GPU:0", "GPU")
    monkeypatch.setattr(used, "_physical_devices", [*used._physical_devices, gpu])
    with pytest.raises(RuntimeError, match="cannot be modified after being initialized"):
        tf.config.experimental.set_memory_growth(gpu, True)
    devices.start_tensorflow()
    monkeypatch.setitem(used._virtual_device_map, gpu, [])
    with pytest.raises(ValueError, match="virtual devices configured"):
        tf.config.experimental.set_memory_growth(gpu, True)
    devices.start_tensorflow()
