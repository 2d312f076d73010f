"""`attack` as a user runs it: on models of this project and of strangers."""

import json
import os
import signal
import subprocess
import sys
import time
import zipfile
from pathlib import Path
from typing import Any

import keras
import mlflow
import numpy as np
import pandas as pd
import pytest
import tensorflow as tf
from mlflow import MlflowClient
from mlflow.entities import Run

from entry_points import attack, train
from resfool import experiments
from resfool.archive import ModelSource
from resfool.classifiers import files, finding
from resfool.datasets import sets
from resfool.errors import InputError, UsageError
from resfool.monitor import Monitor
from resfool.values import show
from tests import conftest
from tests.conftest import QUICK, ROOT, TrainOnce
from tests.processes import Process

FEW: dict[str, Any] = {"epsilons": "0,0.05,0.2", "samples": 60}


def words(**options: Any) -> list[str]:
    return [f"--{name}={show(value)}" for name, value in (FEW | options).items()]


@pytest.fixture
def trained(train_once: TrainOnce) -> str:
    """The id of a run that trained a network for a second."""
    return train_once(steps=150)


def attacks(store: MlflowClient, *but: str) -> list[Run]:
    """All runs but some, oldest first."""
    runs = store.search_runs(["0"], order_by=["attributes.start_time ASC"])
    return [run for run in runs if run.info.run_id not in but]


def curve(store: MlflowClient, run: Run, key: str) -> dict[int, float]:
    return {m.step: m.value for m in store.get_metric_history(run.info.run_id, key)}


def strangers_model(path: Path, *, white: float = 255.0) -> keras.Model:
    """A classifier of digits as somebody else would save it: compiled, softmax, pixels to 255."""
    data = sets.load("digits")
    model = keras.Sequential(
        [
            keras.Input((8, 8, 1)),
            keras.layers.Rescaling(1 / white),
            keras.layers.Flatten(),
            keras.layers.Dense(16, activation="relu"),
            keras.layers.Dense(10, activation="softmax"),
        ]
    )
    model.compile(keras.optimizers.Adam(0.01), "sparse_categorical_crossentropy")
    model.fit(data.train.images * white, data.train.labels, epochs=8, verbose=0)
    model.save(path)
    return model


def test_one_model_gives_one_run_with_rates_tables_and_figures(
    store: MlflowClient, trained: str, capsys: pytest.CaptureFixture[str]
) -> None:
    attack.main(words(model=f"runs:/{trained}/model"))
    (run,) = attacks(store, trained)
    assert run.info.status == "FINISHED"
    assert run.info.run_name == "fgsm on mlp-2, digits test"
    assert run.data.params["dataset"] == "digits" and run.data.params["samples"] == "60"
    assert run.data.params["attacked_images"] == "60"
    fooling, noise = (curve(store, run, f"{kind}fooling_rate") for kind in ("", "random_"))
    assert fooling.keys() == noise.keys() == {0, 1275, 5100}  # hundredths of 1/255
    assert fooling[0] == noise[0] == 0
    assert fooling[5100] > 0.5 > noise[5100]
    accuracy, error = (curve(store, run, key) for key in ("accuracy", "error_rate"))
    assert accuracy[0] == pytest.approx(run.data.metrics["clean_accuracy"])
    assert all(accuracy[step] == pytest.approx(1 - error[step]) for step in accuracy)
    assert curve(store, run, "l2_norm")[1275] <= 0.05 * 8 + 1e-6

    artifacts = {a.path for a in store.list_artifacts(run.info.run_id)}
    assert {"fooling_rates.png", "examples.png", "rates.json", "rates.csv"} <= artifacts
    folder = Path(mlflow.artifacts.download_artifacts(run_id=run.info.run_id))
    table = pd.read_csv(folder / "rates.csv")
    assert table["fooling_rate"].tolist() == pytest.approx(list(fooling.values()))
    assert json.loads((folder / "rates.json").read_text())["columns"] == list(table.columns)
    images = pd.read_csv(folder / "images.csv")
    assert len(images) == 60
    assert (images["predicted"] != images["at_0.2"]).mean() == pytest.approx(fooling[5100])

    assert run.outputs is not None
    logged = store.search_logged_models(["0"])[0]
    figures = {m.key: m for m in logged.metrics or []}
    assert figures["fooling_rate_at_0.2"].value == pytest.approx(fooling[5100])
    assert figures["fooling_rate_at_0.2"].dataset_digest == run.data.params["dataset_digest"]
    printed = capsys.readouterr().out
    assert "mlp-2, random signs" in printed and run.info.run_id in printed


def test_several_models_are_compared_under_one_run(
    store: MlflowClient, trained: str, tmp_path: Path
) -> None:
    strangers_model(tmp_path / "theirs.keras")
    models = f"runs:/{trained}/model,{tmp_path / 'theirs.keras'}"
    options = words(model=models, dataset="digits", input_range="0,255", seed=3)
    attack.main(options)
    parent, *children = attacks(store, trained)
    by_name = {child.data.params["model_name"]: child for child in children}
    assert by_name.keys() == {"mlp-2", "theirs"}
    assert by_name["theirs"].data.metrics["clean_accuracy"] > 0.9
    for child in children:
        assert child.info.status == "FINISHED"
        assert child.data.tags["mlflow.parentRunId"] == parent.info.run_id
        assert curve(store, child, "fooling_rate").keys() == {0, 1275, 5100}
    assert not curve(store, parent, "fooling_rate")
    folder = Path(mlflow.artifacts.download_artifacts(run_id=parent.info.run_id))
    assert (folder / "fooling_rates.png").exists()
    table = pd.read_csv(folder / "rates.csv")
    assert table["model"].unique().tolist() == ["mlp-2", "theirs"]


@pytest.mark.usefixtures("unpainted")
def test_a_strangers_range_of_pixels_makes_no_difference(
    store: MlflowClient, tmp_path: Path
) -> None:
    bright = strangers_model(tmp_path / "bright.keras")
    unit = keras.Sequential([keras.Input((8, 8, 1)), *bright.layers[1:]])
    unit.save(tmp_path / "unit.keras")
    # As tight as a tolerance can be: the same network behind another scale.
    options: dict[str, Any] = {"dataset": "digits", "method": "smallest_epsilon"}
    attack.main(words(model=tmp_path / "bright.keras", input_range="0,255", **options))
    attack.main(words(model=tmp_path / "unit.keras", **options))
    first, second = (curve(store, run, "fooling_rate") for run in attacks(store))
    assert first == pytest.approx(second, abs=1 / 60)
    one, other = (run.data.metrics["median_smallest_epsilon"] for run in attacks(store))
    assert one == pytest.approx(other, abs=3e-4)


@pytest.mark.slow
@pytest.mark.usefixtures("unpainted")
def test_models_from_the_registry_by_version_alias_and_id(
    store: MlflowClient, trained: str
) -> None:
    mlflow.register_model(f"runs:/{trained}/model", "digits-net")
    store.set_registered_model_alias("digits-net", "champion", "1")
    model_id = store.search_logged_models(["0"])[0].model_id
    uris = ("digits-net/1", "digits-net@champion", "digits-net/champion", "digits-net/latest")
    for uri in (*uris, model_id):
        attack.main(words(model=f"models:/{uri}", epsilons="0.1", samples=20))
    runs = attacks(store, trained)
    assert len(runs) == 5 and {run.info.status for run in runs} == {"FINISHED"}
    assert len({run.data.metrics["fooling_rate"] for run in runs}) == 1


def test_attacks_that_follow_one_another_leave_robust_accuracies(
    store: MlflowClient, trained: str, capsys: pytest.CaptureFixture[str]
) -> None:
    asked: dict[str, Any] = {"method": "standard", "effort": "quick", "norm": "l2"}
    attack.main(words(model=f"runs:/{trained}/model", **asked | {"epsilons": "0,0.3,1.5"}))
    (run,) = attacks(store, trained)
    robust = curve(store, run, "robust_accuracy")
    assert robust[0] == run.data.metrics["clean_accuracy"]
    assert list(robust.values()) == sorted(robust.values(), reverse=True)
    assert curve(store, run, "robust_accuracy_low")[7650] < robust[7650]
    firsts = {key: curve(store, run, key) for key in run.data.metrics if "fooled_first_by" in key}
    assert set(firsts) == {
        f"fooled_first_by_{name}" for name in ("apgd", "apgd_margin", "apgd_targeted")
    }
    for step, accuracy in robust.items():
        lost = sum(counts[step] for counts in firsts.values())
        assert lost == pytest.approx(60 * (robust[0] - accuracy))
    folder = Path(mlflow.artifacts.download_artifacts(run_id=run.info.run_id))
    assert (folder / "robust_accuracy.png").is_file()
    assert set(pd.read_csv(folder / "images.csv", keep_default_na=False)["fooled_first_by"]) <= {
        *("", "apgd", "apgd_margin", "apgd_targeted"),
    }
    report = (folder / "report.md").read_text()
    assert "Within an l2 norm of 1.5 at most" in report and "upper bound" in report
    assert "robust accuracy" in capsys.readouterr().out


@pytest.mark.slow
def test_ctrl_c_leaves_nothing_running_and_keeps_what_is_done(
    store: MlflowClient, trained: str
) -> None:
    model = f"runs:/{trained}/model"
    # The second one is the same file under another name, and takes long.
    folder = Path(mlflow.artifacts.download_artifacts(model))
    models = f"{model},{folder / 'data' / 'model.keras'}"
    options = words(model=models, dataset="digits", method="pgd", pgd_steps=4000, samples=50)
    process = Process(f"from entry_points import attack\nattack.main({options!r})")
    deadline = time.monotonic() + 120
    while len(attacks(store, trained)) < 3 and time.monotonic() < deadline:
        assert process.poll() is None, process.printed()
        time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    assert process.wait() == 130, process.printed()
    parent, first, second = attacks(store, trained)
    assert [run.info.status for run in (parent, first, second)] == ["KILLED", "FINISHED", "KILLED"]
    assert curve(store, first, "fooling_rate").keys() == {0, 1275, 5100}


def refused(capsys: pytest.CaptureFixture[str], **options: Any) -> str:
    words = [f"--{name}={show(value)}" for name, value in options.items()]
    return conftest.refused(attack.main, capsys, *words)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"epsilons": ""}, "must not be empty"),
        ({"epsilons": "0"}, "one above 0"),
        ({"epsilons": "-0.1"}, "from 0 to 1"),
        ({"epsilons": "0.1,8"}, "from 0 to 1"),
        ({"epsilons": "0.1,x"}, "must be a number"),
        ({"method": "apgd", "norm": "l2", "epsilons": "8"}, "never farther apart than 8, where"),
        ({"method": "apgd", "norm": "l2:3"}, "norm=l2:3 has no effect with perturbation=none"),
        ({"epsilons": "0.1,,0.2"}, "must be a number"),
        ({"epsilons": "8/0"}, "divides by zero"),
        ({"epsilons": "0.1,0.1"}, "each must be there once"),
        ({"method": "fgs"}, "did you mean 'fgsm'?"),
        ({"samples": 401}, "samples=401 is more than the 400 test images of digits"),
        ({"samples": 0}, "samples=0"),
        ({"split": "training"}, "did you mean 'train'?"),
        ({"block_images": 0}, "block_images=0"),
        ({"gpus_per_worker": 1}, "gpus_per_worker=1.0 has no effect with backend=none"),
        ({"backend": "ray", "gpus_per_worker": 1.5}, "must be whole, or a share of one GPU"),
        ({"backend": "joblib", "workers": 0}, "workers=0"),
        ({"solve_dir": "theirs.keras"}, "solve folder"),
        ({"input_range": "1,0"}, "two rising numbers"),
        ({"input_range": "0"}, "two"),
        (
            {"dataset": "mnist5k"},
            "doesn't fit mnist5k: the model takes inputs of shape (None, 8, 8, 1)",
        ),
        ({"model": "nowhere.keras"}, "there is no such file"),
        ({"model": "runs:/0123456789abcdef0123456789abcdef/model"}, "no such model"),
        ({"model": "models:/nobody/1"}, "no such model"),
        ({"model": "models:/nobody"}, "models:/NAME/VERSION"),
        ({"model": f"models:/m-{'0' * 32}"}, "no such model"),
        ({"model": ","}, "model"),
    ],
)
def test_bad_input_is_refused_in_one_sentence_and_leaves_no_run(
    store: MlflowClient, capsys: pytest.CaptureFixture[str], options: Any, sentence: str
) -> None:
    strangers = Path("theirs.keras")
    if "model" not in options:
        small = keras.Sequential([keras.Input((8, 8, 1)), keras.layers.Flatten()])
        small.add(keras.layers.Dense(10))
        small.save(strangers)
    line = refused(capsys, **({"model": strangers, "dataset": "digits"} | options))
    assert sentence in line
    assert not store.search_runs(["0"])


def test_what_an_interrupted_attack_left_is_checked_before_a_run(
    store: MlflowClient, capsys: pytest.CaptureFixture[str]
) -> None:
    strangers_model(Path("theirs.keras"))
    options: dict[str, Any] = {"model": "theirs.keras", "dataset": "digits", "block_images": 20}
    options |= {"samples": 60, "input_range": "0,255", "epsilons": "0.1"}

    class Stopped(Monitor):
        def progress(self, done: int, total: int, text: str) -> None:
            if len(list(Path("checkpoints").glob("attack-*/block-*.json"))) == 2:
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        experiments.attack(Stopped(), **options | {"input_range": (0, 255), "epsilons": (0.1,)})
    (folder,) = Path("checkpoints").iterdir()
    file = folder / "directions-000001.npy"
    whole = file.read_bytes()
    file.write_bytes(whole[:-1])
    line = refused(capsys, **options)
    assert f"block 1 of {folder}" in line and "isn't as large as its header says" in line
    assert not store.search_runs(["0"])
    file.write_bytes(whole)
    attack.main([f"--{name}={value}" for name, value in options.items()])
    assert "of which 40 images are done" in capsys.readouterr().out
    (run,) = store.search_runs(["0"])
    assert run.data.params["attacked_by"] == "one process"
    assert not list(Path("checkpoints").iterdir())


def test_a_run_without_such_a_model_is_refused(
    store: MlflowClient, trained: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert "no such model" in refused(capsys, model=f"runs:/{trained}/other")


def test_a_stranger_without_a_data_set_is_asked_for_one(
    store: MlflowClient, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    strangers_model(tmp_path / "theirs.keras")
    assert "dataset is missing" in refused(capsys, model=tmp_path / "theirs.keras")


@pytest.mark.usefixtures("unpainted")
def test_a_data_set_that_changed_since_the_training_is_said_so(
    store: MlflowClient, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    random = np.random.default_rng(0)
    arrays: dict[str, Any] = {
        "x_train": random.random((30, 8, 8)),
        "y_train": np.arange(30) % 3,
        "x_test": random.random((9, 8, 8)),
        "y_test": np.arange(9) % 3,
    }
    np.savez(tmp_path / "mine.npz", **arrays)
    data = f"npz:{tmp_path / 'mine.npz'}"
    train.main([f"--{n}={show(v)}" for n, v in (QUICK | {"steps": 5, "dataset": data}).items()])
    run_id = store.search_runs(["0"])[0].info.run_id
    arrays["y_test"] = arrays["y_test"][::-1]
    np.savez(tmp_path / "mine.npz", **arrays)
    model = f"runs:/{run_id}/model"
    assert "was trained on other data" in refused(capsys, model=model)
    attack.main(words(model=model, dataset=data, samples=9))
    assert "no validation images" in refused(capsys, model=model, dataset=data, split="validation")


@pytest.mark.usefixtures("unpainted")
def test_a_model_with_code_of_its_own_is_refused_unless_trusted(
    store: MlflowClient, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = keras.Sequential(
        [
            keras.Input((8, 8, 1)),
            keras.layers.Flatten(),
            keras.layers.Lambda(lambda x: x * 1.0),
            keras.layers.Dense(10),
        ]
    )
    # Its loss isn't known elsewhere, and isn't needed.
    model.compile(loss=lambda labels, outputs: keras.ops.mean(outputs))
    mlflow.keras.log_model(model, name="model", pip_requirements=["keras"])
    uri = f"models:/{store.search_logged_models(['0'])[0].model_id}"
    before = len(store.search_runs(["0"]))
    line = refused(capsys, model=uri, dataset="digits")
    assert "Lambda" in line and "trust=yes" in line
    assert len(store.search_runs(["0"])) == before
    path = tmp_path / "lambda.keras"
    model.save(path)
    assert "Lambda" in refused(capsys, model=path, dataset="digits")
    for trusted in (uri, path):
        attack.main(words(model=trusted, dataset="digits", trust="yes"))


class LeftOn(keras.layers.Layer):
    """Dropout in inference too."""

    def call(self, features: Any) -> Any:
        return tf.nn.dropout(features, 0.3)


@pytest.mark.usefixtures("unpainted")
def test_a_model_that_differs_from_pass_to_pass_is_refused_or_flagged(
    store: MlflowClient,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    path = tmp_path / "noisy.keras"
    strangers_model(path, white=1.0)
    theirs = keras.models.load_model(path)
    noisy = keras.Sequential([keras.Input((8, 8, 1)), *theirs.layers[:2], LeftOn()])
    for layer in theirs.layers[2:]:
        noisy.add(layer)
    # Without trust the class itself is refused already; this is what comes after that.
    monkeypatch.setattr(files, "check", lambda path: None)
    monkeypatch.setattr(files, "load", lambda path: noisy)
    monkeypatch.setattr(files, "load_trusted", lambda path, loader, modules: noisy)
    line = refused(capsys, model=path, dataset="digits")
    assert "its outputs for the same image differ from pass to pass" in line
    assert "trust=yes" in line and not store.search_runs(["0"])
    attack.main(words(model=path, dataset="digits", trust="yes"))
    (run,) = attacks(store)
    assert run.data.metrics["gradient_masking_random_logits"] > 0.9
    assert run.data.metrics["gradient_masking_checks_raised"] >= 1
    assert "WARNING: the gradient seems to be hidden" in capsys.readouterr().out


@pytest.mark.usefixtures("unpainted")
def test_a_model_without_a_gradient_is_attacked_by_what_says_so(
    store: MlflowClient, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    strangers_model(tmp_path / "theirs.keras", white=1.0)
    images = keras.Input((8, 8, 1))
    theirs = keras.models.load_model(tmp_path / "theirs.keras")
    rounded = keras.Model(images, theirs(keras.ops.round(images * 4) / 4))
    rounded.save(tmp_path / "rounded.keras")
    asked: dict[str, Any] = {"model": tmp_path / "rounded.keras", "dataset": "digits"}
    line = refused(capsys, **asked)
    assert "no gradient reaches its input" in line and "method=square" in line
    attack.main(words(**asked, method="apgd", attack_steps=5))
    (run,) = attacks(store)
    assert run.data.metrics["gradient_masking_zero_gradient"] == 1
    folder = Path(mlflow.artifacts.download_artifacts(run_id=run.info.run_id))
    checks = pd.read_csv(folder / "gradient_checks.csv").set_index("check")
    assert checks["raised"]["black_box"] and checks["raised"]["zero_gradient"]
    report = (folder / "report.md").read_text()
    warning, number = report.index("gradient seems to be hidden"), report.index("stay right")
    assert warning < number


def test_recorded_parameters_mean_none_in_any_case() -> None:
    data = sets.load("digits")
    training = {"dataset": "digits", "per_class": "None", "data_dir": "NONE", "data_seed": "0"}
    training["dataset_digest"] = data.digest
    source = ModelSource("runs:/a/model", "a", Path("a"), lambda: None, training=training)
    assert finding.load_data([source], finding.AnyModel()).digest == data.digest


@pytest.mark.parametrize(
    ("name", "value", "sentence"),
    [
        ("data_seed", "x", "data_seed=x isn't allowed"),
        ("per_class", "abc", "per_class=abc isn't allowed"),
        ("per_class", "0,0,0", "per_class=0,0,0 isn't allowed"),
        ("validation_share", "no number", "validation_share=no number isn't allowed"),
        ("validation_share", "nan", "validation_share=nan isn't allowed"),
        ("dataset", "nowhere", "unknown data set 'nowhere'"),
        ("dataset", "npz:/nowhere/x.npz", "there is nothing at"),
        ("image_size", "-1", "image_size=-1 isn't allowed"),
        ("value_range", "2,1", "value_range=2,1 isn't allowed"),
        ("crop", "left", "unknown crop 'left'"),
    ],
)
def test_a_strangers_parameters_are_checked_as_those_of_a_command(
    name: str, value: str, sentence: str
) -> None:
    training = {"dataset": "digits", "per_class": "none", "data_dir": "none", "data_seed": "0"}
    source = ModelSource("runs:/a/model", "a", Path("a"), training=training | {name: value})
    with pytest.raises(InputError) as caught:
        finding.load_data([source], finding.AnyModel())
    assert not isinstance(caught.value, UsageError), "no parameter of the command is wrong"
    assert "model=runs:/a/model" in str(caught.value) and sentence in str(caught.value)


def test_a_file_that_is_no_model_is_refused(
    store: MlflowClient, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "evil.keras"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("config.json", "{}")
    assert "evil.keras" in refused(capsys, model=path, dataset="digits")
    assert not store.search_runs(["0"])


def test_refusals_do_not_wait_for_tensorflow(store: MlflowClient) -> None:
    script = (
        "import sys; from entry_points import attack\n"
        "try: attack.main(['--model=missing.keras', '--dataset=digits'])\n"
        "finally: sys.stdout.write(str('tensorflow' in sys.modules))"
    )
    process = subprocess.run(
        [sys.executable, "-c", script],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert process.returncode == 1 and process.stdout == "False", process.stderr
