"""A run that stays KILLED, whatever `mlflow run` writes over it."""

import os
import subprocess
import sys
import time
from pathlib import Path

import mlflow
from mlflow import MlflowClient


def keep_killed(run_id: str, seconds: float = 15.0) -> None:
    """Mark a run KILLED, and once more when `mlflow run` has written FAILED over it.

    `mlflow run` means to leave a status alone that was set before its command ended, but compares
    a text with numbers (mlflow.projects._maybe_set_run_terminated, MLflow 3.17), so it never does.

    Args:
        run_id: the run that `mlflow run` opened.
        seconds: how long to wait for it to overwrite the status.
    """
    client = MlflowClient()
    client.set_terminated(run_id, "KILLED")
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if client.get_run(run_id).info.status != "KILLED":
            client.set_terminated(run_id, "KILLED")
            return
        time.sleep(0.2)


def start_keeping_killed(run_id: str) -> None:
    """`keep_killed` in a process that outlives this one: `mlflow run` writes when we have ended."""
    script = f"from resfool.tracking import killed; killed.keep_killed({run_id!r})"
    subprocess.Popen(
        [sys.executable, "-c", script],
        cwd=Path(__file__).resolve().parents[2],
        env=os.environ | {"MLFLOW_TRACKING_URI": mlflow.get_tracking_uri()},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
