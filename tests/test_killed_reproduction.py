"""A reproduction whose trainings are spread, and whose driver is killed."""

import os
import shutil
import signal
import time
from pathlib import Path

import pandas as pd
import pytest
from mlflow import MlflowClient
from mlflow.entities import Run

from tests.processes import Process

TARGETS = "figure7,figure11"
SCRIPT = """
import os; os.setsid()
from resfool.commands import main
from resfool.reproduction import plan
from tests.test_reproduce_entry_point import TINY
plan.SCALES["quick"] = TINY
main(["reproduce", "--target=TARGETS", "--scale=quick", *WORDS])
"""


def start(*words: str) -> Process:
    return Process(SCRIPT.replace("TARGETS", TARGETS).replace("WORDS", repr(words)))


def trainings(store: MlflowClient, status: str) -> dict[str, str]:
    """The ids of trainings of some status, by the networks' names."""
    runs = store.search_runs(["0"], f"attributes.status = '{status}'")
    return {_name(run): run.info.run_id for run in runs if "steps" in run.data.params}


def _name(run: Run) -> str:
    return f"{run.data.params['arch']}-{run.data.params['depth']}"


def tables(store: MlflowClient) -> tuple[pd.DataFrame, dict[str, dict[str, float]]]:
    """The claims of the last reproduction, and all figures of the runs that they are made of."""
    finished = store.search_runs(["0"], "attributes.status = 'FINISHED'")
    last = next(run for run in finished if "mlflow.parentRunId" not in run.data.tags)
    claims = pd.read_csv(store.download_artifacts(last.info.run_id, "claims.csv"))
    figures = {
        str(run.info.run_name): {n: v for n, v in run.data.metrics.items() if _is_figure(n)}
        for run in finished
        if run is not last
    }
    return claims, figures


def _is_figure(name: str) -> bool:
    return "seconds" not in name and not name.startswith("system/")


@pytest.mark.slow
def test_trainings_that_had_finished_when_the_driver_was_killed_are_found_again(
    store: MlflowClient, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copy("mlflow.db", tmp_path / "empty.db")
    finished: dict[str, str] = {}
    for backend in ("ray", "joblib"):
        process = start(f"--backend={backend}", "--workers=2")
        until = time.monotonic() + 120
        while trainings(store, "FINISHED").keys() <= finished.keys():
            assert process.poll() is None and time.monotonic() < until, process.printed()
            time.sleep(0.02)
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        now = trainings(store, "FINISHED")
        assert finished.items() <= now.items(), "none was made again"
        finished = now
    last = start("--workers=2")
    assert last.wait() == 0, last.printed()
    whole = trainings(store, "FINISHED")
    assert finished.items() <= whole.items() and len(whole) == 4
    with pytest.raises(ProcessLookupError):
        os.killpg(process.pid, 0)
    claims, figures = tables(store)
    (tmp_path / "undisturbed").mkdir()
    monkeypatch.chdir(tmp_path / "undisturbed")
    shutil.copy(tmp_path / "empty.db", "mlflow.db")
    uri = f"sqlite:///{Path.cwd() / 'mlflow.db'}"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    undisturbed = start("--workers=2")
    assert undisturbed.wait() == 0, undisturbed.printed()
    expected = tables(MlflowClient(uri))
    pd.testing.assert_frame_equal(claims, expected[0])
    assert figures == expected[1] and len(figures) == 8
