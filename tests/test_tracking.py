"""What MLflow is told and asked, apart from what the entry points' tests see of it."""

import json
from pathlib import Path

import mlflow
import numpy as np
import pandas as pd
import pytest
from matplotlib.figure import Figure
from mlflow import MlflowClient

from resfool import checkpoints
from resfool.archive import FinishedRun
from resfool.errors import InputError
from resfool.tracking.archive import MLflowArchive
from resfool.tracking.run import Run


def test_what_a_result_leaves_becomes_files_of_its_run(store: MlflowClient) -> None:
    with Run() as run:
        run.begin("one", {}, [])
        for rows in ([1.0, 2.0], [3.0]):  # the second table takes the place of the first
            run.log({"rates": pd.DataFrame({"rate": rows})})
        run.log(
            {
                "curve.png": Figure(),
                "vector.npy": np.arange(3),
                "state.npz": checkpoints.Arrays({"a": np.ones(2)}, {"step": 7}),
                "pictures/one.txt": b"as it is",
            }
        )

    def path(name: str) -> Path:
        return Path(store.download_artifacts(run.run_id, name))

    assert path("curve.png").read_bytes().startswith(b"\x89PNG")
    assert np.load(path("vector.npy")).tolist() == [0, 1, 2]
    arrays, facts = checkpoints.load(path("state.npz"))
    assert arrays["a"].tolist() == [1, 1] and facts == {"step": 7}
    assert path("pictures/one.txt").read_bytes() == b"as it is"
    assert path("rates.csv").read_text() == "rate\n3.0\n"
    assert json.loads(path("rates.json").read_text()) == {"columns": ["rate"], "data": [[3.0]]}
    shown = store.get_run(run.run_id).data.tags["mlflow.loggedArtifacts"]
    assert json.loads(shown) == [{"path": "rates.json", "type": "table"}]


def test_a_run_is_read_back_with_what_is_added_to_it(store: MlflowClient) -> None:
    with Run() as run:
        run.begin("one", {"colour": "red"}, [])
        run.point({"step": 5, "rate": 0.5})
    archive = MLflowArchive()
    found = archive.find_finished({"colour": "red"}, "rate")
    assert found is not None and found.run_id == run.run_id and found.points("rate") == {5: 0.5}
    assert archive.add_metrics(found, {"more": 0.25}).metrics["more"] == 0.25
    assert archive.read(run.run_id).metrics["more"] == 0.25
    assert archive.find_finished({"colour": "blue"}, "rate") is None


def test_asking_makes_no_store(store: MlflowClient) -> None:
    mlflow.set_tracking_uri("sqlite:///new.db")
    archive = MLflowArchive()
    assert not archive.has_run("r1")
    assert archive.find_finished({"a": "b"}, "rate") is None
    assert archive.find_interrupted({"a": "b"}) is None
    with pytest.raises(InputError, match="there is no run r1 in sqlite"):
        archive.read("r1")
    with pytest.raises(InputError, match="there is no such model"):
        archive.find_model(FinishedRun("r1").model)
    with pytest.raises(InputError, match="has no run with perturbation"):
        archive.find_perturbation("runs:/r1")
    assert not Path("new.db").exists()
