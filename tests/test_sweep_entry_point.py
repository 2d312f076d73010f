"""`sweep` as a user runs it."""

import sys
from dataclasses import replace
from typing import Any

import cloudpickle
import mlflow
import pandas as pd
import pytest
from mlflow import MlflowClient
from mlflow.entities import Run

from entry_points import attack, sweep, train
from resfool import experiments
from resfool.training.recipe import TrainParameters
from resfool.trials import recorder
from resfool.trials import sweep as sweeping
from tests.conftest import QUICK, refused

# The processes that train have no tests.
cloudpickle.register_pickle_by_value(sys.modules[__name__])

GRID = ["--dataset=digits", "--width=8", "--steps=40", "--eval_every=20", "--backend=serial"]


def parts(store: MlflowClient, parent: str) -> list[Run]:
    return list(store.search_runs(["0"], f"tags.mlflow.parentRunId = '{parent}'"))


def latest(store: MlflowClient) -> Run:
    """The run that was opened last of those that are no part of another."""
    runs = store.search_runs(["0"], order_by=["attributes.start_time DESC"])
    return next(run for run in runs if "mlflow.parentRunId" not in run.data.tags)


def table(run: Run, name: str) -> pd.DataFrame:
    path = mlflow.artifacts.download_artifacts(run_id=run.info.run_id, artifact_path=f"{name}.csv")
    return pd.read_csv(path)


@pytest.mark.slow
def test_a_grid_is_trained_once_and_compared(
    store: MlflowClient, capsys: pytest.CaptureFixture[str]
) -> None:
    sweep.main(["--arch=mlp", "--depth=1,2", "--seeds=2", *GRID])
    first = latest(store)
    children = parts(store, first.info.run_id)
    assert {run.info.status for run in [first, *children]} == {"FINISHED"}
    assert sorted((run.data.params["layers"], run.data.params["seed"]) for run in children) == [
        *(("1", "0"), ("1", "1"), ("2", "0"), ("2", "1"))
    ]
    names = {item.path for item in store.list_artifacts(first.info.run_id)}
    assert {"trainings.png", "trainings.csv", "networks.csv"} <= names

    # Each training is what `train` gives with the same settings.
    plain = experiments.train(**(QUICK | {"steps": 40, "eval_every": 20, "seed": 1}))
    (same,) = [
        r for r in children if (r.data.params["layers"], r.data.params["seed"]) == ("2", "1")
    ]
    for name, value in plain.final_metrics.items():
        assert same.data.metrics[name] == value
    history = store.get_metric_history(same.info.run_id, "test_accuracy")
    assert [(m.step, m.value) for m in history] == [
        (row["step"], row["test_accuracy"]) for row in plain.history if "test_accuracy" in row
    ]
    assert same.outputs is not None
    (model,) = [store.get_logged_model(o.model_id) for o in same.outputs.model_outputs]
    assert mlflow.artifacts.list_artifacts(model.artifact_location)

    # The averages are those of the trainings.
    trainings, networks = table(first, "trainings"), table(first, "networks")
    assert len(trainings) == 4 and networks["network"].tolist() == ["mlp-1", "mlp-2"]
    for _, row in networks.iterrows():
        own = trainings.loc[trainings["network"] == row["network"], "final_test_accuracy"]
        assert row["final_test_accuracy"] == pytest.approx(own.mean())
        assert row["final_test_accuracy_std"] == pytest.approx(own.std())

    # A larger grid finds the smaller one, and what `train` did by itself.
    words = ["--arch=mlp", "--dataset=digits", "--width=8", "--steps=40", "--eval_every=20"]
    train.main([*words, "--depth=2", "--seed=2"])
    capsys.readouterr()
    sweep.main(["--arch=mlp", "--depth=1,2", "--seeds=3", *GRID])
    second = latest(store)
    assert [run.data.params["seed"] for run in parts(store, second.info.run_id)] == ["2"]
    assert "5 of 6 trainings were finished before" in capsys.readouterr().out
    again = table(second, "trainings")
    assert again["reused"].tolist() == [True, True, False, True, True, True]
    # Whoever made them, all have the same figures.
    assert not again.filter(like="final_").isna().any(axis=None)
    assert not {"train_loss", "total_seconds"} & set(again.columns)
    for column in ("network", "seed", "final_test_accuracy"):
        merged = again[again["seed"] < 2][column].tolist()
        assert merged == trainings[column].tolist()


@pytest.mark.slow
@pytest.mark.usefixtures("unpainted")
def test_a_training_that_diverges_leaves_the_others(
    store: MlflowClient, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    class Diverging(recorder.Trial):
        def __call__(self, asked: TrainParameters, report: Any) -> Any:
            rate = 1e30 if asked.depth == 2 else 0.01
            return super().__call__(replace(asked, learning_rate=rate), report)

    monkeypatch.setattr(sweeping, "Trial", Diverging)
    sweep.main(["--arch=mlp", "--depth=1,2", *GRID, "--optimizer=sgd"])
    run = latest(store)
    found = table(run, "trainings")
    statuses = {r.data.params["layers"]: r.info.status for r in parts(store, run.info.run_id)}
    assert run.info.status == "FINISHED"
    failed = found["error"].fillna("").str.contains("NonFiniteLossError")
    assert failed.tolist() == [False, True]
    assert statuses == {"1": "FINISHED", "2": "FAILED"}
    assert "failed: NonFiniteLossError" in capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.usefixtures("unpainted")
def test_a_sweeps_models_know_their_data_and_what_was_set_aside(store: MlflowClient) -> None:
    sweep.main(["--arch=mlp", "--depth=1", *GRID, "--validation_share=0.2"])
    (child,) = parts(store, latest(store).info.run_id)
    attack.main([f"--model=runs:/{child.info.run_id}/model", "--epsilons=0,0.1", "--samples=50"])
    run = latest(store)
    assert run.info.status == "FINISHED"
    assert run.data.params["model_name"] == "mlp-1"
    assert run.data.params["dataset_digest"] == child.data.params["dataset_digest"]
    attack.main(
        [f"--model=runs:/{child.info.run_id}/model", "--epsilons=0,0.1", "--split=validation"]
    )
    # 20% of a hundred training images of each of ten classes.
    assert latest(store).data.params["attacked_images"] == "200"


def test_if_all_fail_one_sentence_says_so(
    store: MlflowClient, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    class Failing(recorder.Trial):
        def __call__(self, asked: TrainParameters, report: Any) -> Any:
            report(("begin", ("a training", {}, [])))
            raise OSError("no room on the disk")

    monkeypatch.setattr(sweeping, "Trial", Failing)
    line = refused(sweep.main, capsys, "--arch=mlp", *GRID)
    assert "all 1 trainings failed; the first: OSError: no room on the disk" in line
    assert [run.info.status for run in store.search_runs(["0"])] == ["FAILED", "FAILED"]


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--arch=resnett"], "unknown arch 'resnett'; did you mean 'resnet'?"),
        (["--arch=resnet", "--depth=10,12"], "depth=12 doesn't divide into five stages"),
        (["--arch=mlp", "--depth=2,2"], "name a network twice"),
        (["--arch=mlp", "--seeds=0"], "seeds=0"),
        (["--arch=mlp", "--gpus_per_trial=1"], "gpus_per_trial=1.0 has no effect with backend"),
        (["--depth=2"], "arch is missing"),
    ],
)
def test_bad_input_is_refused_in_one_sentence_and_leaves_no_run(
    store: MlflowClient, capsys: pytest.CaptureFixture[str], words: list[str], sentence: str
) -> None:
    line = refused(sweep.main, capsys, "--dataset=digits", *words)
    assert sentence in line
    assert not store.search_runs(["0"])
