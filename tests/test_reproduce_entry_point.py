"""`reproduce` as a user runs it, on the smallest networks there are."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import mlflow
import pandas as pd
import pytest
from mlflow import MlflowClient
from mlflow.entities import Run

from entry_points import attack, reproduce, sweep
from resfool.reproduction import estimates, plan
from resfool.training.trainer import Trainer
from resfool.trials.recorder import Recorder
from tests.conftest import refused

TINY = replace(
    plan.SCALES["quick"],
    networks={"dataset": "digits", "width": (2,), "batch_size": 16},
    steps=12,
    eval_every=3,
    digits={"dataset": "digits", "width": (16,), "depth": 2, "steps": 60, "eval_every": 15},
    attack={"samples": 40, "epsilons": tuple(n / 255 for n in (1, 2, 3, 4, 6, 8, 32))},
    universal={"samples": 100, "test_samples": 60, "draws": 2, "ranks": (1, 3), "rank": 3},
    chunk=50,
    chunks=3,
)


@pytest.fixture(autouse=True)
def tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(plan.SCALES, "quick", TINY)


def parents(store: MlflowClient) -> list[Run]:
    """The runs on top, the latest first."""
    runs = store.search_runs(["0"], order_by=["attributes.start_time DESC"])
    return [run for run in runs if "mlflow.parentRunId" not in run.data.tags]


def children(store: MlflowClient, parent: Run) -> list[Run]:
    return list(store.search_runs(["0"], f"tags.mlflow.parentRunId = '{parent.info.run_id}'"))


def artifact(run: Run, name: str) -> Path:
    return Path(mlflow.artifacts.download_artifacts(run_id=run.info.run_id, artifact_path=name))


def assert_attack_report(run: Run) -> None:
    """What an attack leaves for people agrees with what it leaves for machines."""
    page, text = (artifact(run, f"report.{kind}").read_text() for kind in ("html", "md"))
    assert "How easily is resnet-10 fooled?" in page
    rates = pd.read_csv(artifact(run, "rates.csv")).set_index("epsilon")["fooling_rate"]
    for rate in rates:
        assert f"{rate:.3f} (" in page and f"{rate:.3f} (" in text
    assert f"changes {rates[4 / 255]:.0%} of the predictions" in page
    assert artifact(run, "pictures/fooling_rates.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.slow
def test_figures_are_made_once_and_reported(
    store: MlflowClient, capsys: pytest.CaptureFixture[str]
) -> None:
    reproduce.main(["--target=figure7,figure10,table3", "--scale=quick"])
    (first,) = parents(store)
    made = children(store, first)
    # The 5-layer network and its perturbation, the 10-layer ResNet and the attack on it.
    assert len(made) == 4
    assert {run.info.status for run in [first, *made]} == {"FINISHED"}
    printed = capsys.readouterr().out
    assert "4 runs to make, 0 are there; about" in printed
    names = {item.path for item in store.list_artifacts(first.info.run_id)}
    assert {"report.html", "report.md", "claims.csv", "accuracies.csv", "pictures"} <= names
    page = artifact(first, "report.html").read_text()
    for words in ("Figure 7: Fooling rate", "Figure 10", "Table III", "quick scale"):
        assert words in page
    assert "See Figure 8" not in page
    for run in made:
        assert f"#/experiments/0/runs/{run.info.run_id}" in page
    (attacked,) = [run for run in made if "clean_accuracy" in run.data.metrics]
    assert_attack_report(attacked)
    decided = pd.read_csv(artifact(first, "claims.csv")).set_index("name")["verdict"]
    assert decided["universal_beats_noise"] in ("seen", "not seen")
    assert decided["multiresnet_best"] == "not run"

    # A larger target finds them, and an attack by hand on the same network is found too.
    (network,) = [run for run in made if run.data.params.get("layers") == "10"]
    attack.main(
        [
            f"--model=runs:/{network.info.run_id}/model",
            *("--method=smallest_epsilon", "--samples=40"),
            "--epsilons=1/255,2/255,3/255,4/255,6/255,8/255,32/255",
        ]
    )
    by_hand = parents(store)[0]
    assert_attack_report(by_hand)
    reproduce.main(["--target=table3,figure8,figure9", "--scale=quick"])
    second = parents(store)[0]
    assert not children(store, second)
    assert "nothing to make; 4 of 4 runs are there" in capsys.readouterr().out
    page = artifact(second, "report.html").read_text()
    assert by_hand.info.run_id in page and "See Figure 8" in page


@pytest.mark.slow
def test_trainings_in_workers_leave_the_same_runs(
    store: MlflowClient, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    targets = ["--target=figure7,figure11", "--scale=quick"]
    end = Recorder.end

    def interrupted(recorder: Recorder, place: Any, outcome: Any) -> Any:
        end(recorder, place, outcome)
        raise KeyboardInterrupt

    monkeypatch.setattr(Recorder, "end", interrupted)
    with pytest.raises(SystemExit):
        reproduce.main([*targets, "--workers=2"])
    monkeypatch.setattr(Recorder, "end", end)
    (first,) = parents(store)
    done = [run for run in children(store, first) if run.info.status == "FINISHED"]
    assert len(done) == 1
    reproduce.main([*targets, "--workers=2"])
    assert "3 trainings are shared out" in capsys.readouterr().out
    second = children(store, parents(store)[0])
    assert len(second) == 7 and {run.info.status for run in second} == {"FINISHED"}
    (deep,) = [run for run in second if run.data.params.get("arch") == "convnet"]
    given = [f"--{n}={deep.data.params[n]}" for n in ("arch", "depth", "width", "steps")]
    given += [f"--{n}={deep.data.params[n]}" for n in ("dataset", "batch_size", "downsample")]
    sweep.main([*given, f"--eval_every={deep.data.params['eval_every']}", "--backend=serial"])
    assert "1 of 1 trainings were finished before" in capsys.readouterr().out


@pytest.mark.usefixtures("unpainted")
def test_an_interrupted_training_goes_on_in_its_run(
    store: MlflowClient, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(estimates, "_step_seconds", lambda settings, data: (1.0, 0.1))
    advance = Trainer.advance

    def interrupted(trainer: Trainer, steps: int) -> None:
        advance(trainer, min(steps, 3))
        if trainer.step == 30:  # half of the training
            raise KeyboardInterrupt

    monkeypatch.setattr(Trainer, "advance", interrupted)
    with pytest.raises(SystemExit) as ended:
        reproduce.main(["--target=figure7", "--scale=quick"])
    assert ended.value.code == 130
    (first,) = parents(store)
    (cut,) = children(store, first)
    assert first.info.status == cut.info.status == "KILLED"
    monkeypatch.setattr(Trainer, "advance", advance)
    capsys.readouterr()

    reproduce.main(["--target=figure7", "--scale=quick"])
    assert f"goes on with run {cut.info.run_id}" in capsys.readouterr().out
    second = parents(store)[0]
    assert second.info.run_id != first.info.run_id
    went_on = store.get_run(cut.info.run_id)
    assert went_on.info.status == "FINISHED"
    history = store.get_metric_history(cut.info.run_id, "test_accuracy")
    steps = [metric.step for metric in history]
    assert steps == sorted(set(steps)) and steps[-1] == 60
    # Nothing was trained but that one.
    assert [run.data.params.get("arch") for run in children(store, second)] == [None]


def test_a_dry_run_leaves_nothing(store: MlflowClient, capsys: pytest.CaptureFixture[str]) -> None:
    reproduce.main(["--target=figure7", "--scale=quick", "--dry_run=yes"])
    printed = capsys.readouterr().out
    assert printed.count("to make") == 3 and "0 are there" in printed
    assert not store.search_runs(["0"])


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--target=tabel1"], "did you mean 'table1'?"),
        (["--target=all", "--scale=tiny"], "scale"),
        (["--target=all", "--seeds=0"], "seeds=0"),
        ([], "target is missing"),
        (["--target=all", "--report_only=true", "--workers=2"], "workers=2 has no effect"),
        (
            ["--target=figure7", "--scale=quick", "--backend=ray", "--ray_address=127.0.0.1:1"],
            "no Ray cluster answers at 127.0.0.1:1",
        ),
        (["--target=table1", "--data_dir=/no/such/folder"], "/no/such/folder"),
    ],
)
def test_bad_input_is_refused_in_one_sentence_and_leaves_no_run(
    store: MlflowClient, capsys: pytest.CaptureFixture[str], words: list[str], sentence: str
) -> None:
    assert sentence in refused(reproduce.main, capsys, *words)
    assert not store.search_runs(["0"])
