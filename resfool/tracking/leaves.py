"""What a result leaves, as files and as artifacts of a run."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from mlflow import MlflowClient
from mlflow.entities import Run
from mlflow.utils.mlflow_tags import MLFLOW_LOGGED_ARTIFACTS

from resfool import blocks, checkpoints
from resfool.errors import writing
from resfool.monitor import Leaves


def log(client: MlflowClient, run_id: str, folder: Path, leaves: Leaves) -> dict[str, Path]:
    """Log what a result leaves, tables where the user interface shows them.

    MLflow's own way would add a table's rows to an earlier one; this one replaces it.

    Args:
        client: of the store.
        run_id: of the run.
        folder: an empty one, for the files.
        leaves: figures, tables, arrays and bytes by their names.

    Returns:
        The files by their names; a table has two, NAME.csv and NAME.json.
    """
    write(folder, leaves)
    run = client.get_run(run_id)
    with writing(f"the artifact store {run.info.artifact_uri}"):
        client.log_artifacts(run_id, str(folder))
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    files = {path.relative_to(folder).as_posix(): path for path in paths}
    tables = [f"{name}.json" for name in leaves]
    _show_tables(client, run, [file for file in tables if file in files])
    return files


def write(folder: Path, leaves: Leaves) -> None:
    """Write what a result leaves to files of a folder."""
    for name, leaf in leaves.items():
        _write(leaf, folder / name)


def _write(leaf: Any, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    if isinstance(leaf, bytes):
        path.write_bytes(leaf)
    elif isinstance(leaf, checkpoints.Arrays):
        checkpoints.save(path, leaf.arrays, leaf.facts)
    elif isinstance(leaf, blocks.Unwritten):
        leaf.write(path)
    elif isinstance(leaf, np.ndarray):
        np.save(path, leaf, allow_pickle=False)
    elif path.suffix == ".png":
        leaf.savefig(path, dpi=120)
    else:
        leaf.to_csv(f"{path}.csv", index=False)
        leaf.to_json(f"{path}.json", orient="split", index=False, date_format="iso")


def _show_tables(client: MlflowClient, run: Run, files: Iterable[str]) -> None:
    """Set the tag by which MLflow's user interface knows tables."""
    try:
        known = json.loads(run.data.tags.get(MLFLOW_LOGGED_ARTIFACTS, "[]"))
    except (ValueError, RecursionError):
        known = None
    if not isinstance(known, list):  # somebody else has set it
        known = []
    tables = [{"path": file, "type": "table"} for file in files]
    new = [table for table in tables if table not in known]
    if new:
        client.set_tag(run.info.run_id, MLFLOW_LOGGED_ARTIFACTS, json.dumps([*known, *new]))
