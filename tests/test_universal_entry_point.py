"""`universal` and `mnist` as a user runs them."""

import functools
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import keras
import ml_dtypes
import mlflow
import numpy as np
import pandas as pd
import pytest
from mlflow import MlflowClient
from mlflow.entities import Run

from entry_points import mnist, universal
from resfool import blocks, experiments
from resfool.classifiers.keeping import digest
from resfool.datasets.lazy import ImageRows
from resfool.datasets.sets import Split
from resfool.errors import InputError
from resfool.monitor import Monitor
from resfool.universal import experiment
from resfool.universal.matrices import Matrix
from resfool.universal.options import UniversalParameters
from resfool.values import show
from tests import conftest
from tests.conftest import TrainOnce

FEW: dict[str, Any] = {"samples": 150, "test_samples": 80, "rank": 3, "draws": 4}


def words(**options: Any) -> list[str]:
    of_ranks = options.get("algorithm", "2") in ("2", "3", "4")
    of_ranks &= options.get("coefficients") != "first"
    few = {n: v for n, v in FEW.items() if of_ranks or n not in ("rank", "draws")}
    return [f"--{name}={show(value)}" for name, value in (few | options).items()]


@pytest.fixture
def trained(train_once: TrainOnce) -> str:
    """The id of a run that trained a network for a second."""
    return train_once(steps=600, width=(32,))


def runs_but(store: MlflowClient, *known: str) -> list[Run]:
    runs = store.search_runs(["0"], order_by=["attributes.start_time ASC"])
    return [run for run in runs if run.info.run_id not in known]


def artifacts(run: Run) -> Path:
    return Path(mlflow.artifacts.download_artifacts(run_id=run.info.run_id))


def test_algorithm_2_leaves_rates_figures_matrix_and_perturbation(
    store: MlflowClient, trained: str, capsys: pytest.CaptureFixture[str]
) -> None:
    universal.main(words(model=f"runs:/{trained}/model"))
    (run,) = runs_but(store, trained)
    assert run.info.status == "FINISHED"
    found = artifacts(run)
    for name in ("fooling_rate_over_rank", "spectrum", "perturbation", "confusion"):
        assert (found / f"{name}.png").exists()
    assert len(pd.read_csv(found / "beside_noise.csv")) == 10
    vector = np.load(found / "perturbation.npy")
    assert vector.shape == (8, 8, 1)
    metrics = run.data.metrics
    assert np.linalg.norm(vector) == pytest.approx(metrics["final_l2_norm"], rel=1e-5)
    matrix = blocks.read(found / "matrix")
    assert matrix["rows"].shape == (150 - matrix.plan.facts["dropped"], 64)
    table = pd.read_csv(found / "ranks.csv")
    assert table["rank"].tolist()[:3] == [1, 2, 3]
    history = store.get_metric_history(run.info.run_id, "fooling_rate")
    assert [m.step for m in history] == table["rank"].tolist()
    np.testing.assert_allclose([m.value for m in history], table["fooling_rate"])
    np.testing.assert_allclose(table["equal_l2_norm"], 3.0, rtol=1e-5)
    assert not list(Path("checkpoints").glob("solve-*")), "a finished solve needs no file"
    said = capsys.readouterr().out
    assert "fooling rate" in said and "spectrum        predicted " in said
    # A network of ReLUs is nearly linear between an image and its boundary.
    assert metrics["predicted_scale_ratio"] == pytest.approx(1, abs=0.5)
    assert metrics["predicted_shape_deviation"] < 0.5

    # The same matrix again, without solving: the same perturbation at another norm.
    universal.main(
        words(model=f"runs:/{trained}/model", matrix=f"runs:/{run.info.run_id}", norm="l2:2")
    )
    (again,) = runs_but(store, trained, run.info.run_id)
    shorter = np.load(artifacts(again) / "perturbation.npy")
    assert np.linalg.norm(shorter) == pytest.approx(2.0, rel=1e-5)
    second = store.get_metric_history(again.info.run_id, "equal_fooling_rate")
    first = store.get_metric_history(run.info.run_id, "equal_fooling_rate")
    assert [m.value for m in second] == pytest.approx([m.value for m in first])
    predicted = [r.data.metrics["predicted_spectrum_deviation"] for r in (run, again)]
    assert predicted[0] == pytest.approx(predicted[1]), "it is of the same images"


@pytest.mark.usefixtures("unpainted")
@pytest.mark.parametrize("algorithm", ["1", "3", "4", "gradient", "singular", "random", "patterns"])
def test_every_algorithm_ends_with_a_perturbation_of_the_norm(
    store: MlflowClient, trained: str, algorithm: str
) -> None:
    options: dict[str, Any] = {"algorithm": algorithm, "norm": "l2:1.5", "batch_size": 50}
    universal.main(words(model=f"runs:/{trained}/model", **options))
    (run,) = runs_but(store, trained)
    vector = np.load(artifacts(run) / "perturbation.npy")
    assert np.linalg.norm(vector) <= 1.5 * (1 + 1e-5)
    metrics = run.data.metrics
    assert metrics["final_pattern_fooling_rate_low"] < metrics["final_pattern_fooling_rate"]
    if algorithm == "patterns":
        table = pd.read_csv(artifacts(run) / "patterns.csv")
        assert run.data.params["pattern"] == table["pattern"][0]
        # The same choice on the same images.
        assert metrics["final_pattern_fooling_rate"] == metrics["final_fooling_rate"]
    if algorithm == "singular":
        table = pd.read_csv(artifacts(run) / "layers.csv")
        assert run.data.params["best_layer"] == table["layer"][0]
        history = store.get_metric_history(run.info.run_id, "singular_value")
        assert history[-1].value == pytest.approx(table["singular_value"][0])
    if algorithm != "random":
        random = run.data.metrics["final_random_fooling_rate"]
        assert run.data.metrics["final_fooling_rate"] > random


@pytest.mark.usefixtures("unpainted")
def test_a_target_is_what_images_of_other_classes_become(
    store: MlflowClient, trained: str, capsys: pytest.CaptureFixture[str]
) -> None:
    options: dict[str, Any] = ASCENT | {"target": 3, "loss": "logit", "aggregate": 4}
    options |= {"norm": "l2:3", "clip": True, "update": "adam", "passes": 5}
    universal.main(words(model=f"runs:/{trained}/model", **options))
    (run,) = runs_but(store, trained)
    assert "of other classes become 3" in capsys.readouterr().out
    metrics = run.data.metrics
    history = store.get_metric_history(run.info.run_id, "fitting_success_rate")
    assert [point.step for point in history] == [1, 2, 3, 4, 5]
    others = 0.8  # of all images, at least: they alone are counted, and are fooled too
    assert others * metrics["final_success_rate"] <= metrics["final_fooling_rate"]
    assert metrics["final_success_rate"] > metrics["final_random_success_rate"] + 0.3


@pytest.mark.usefixtures("unpainted")
def test_a_target_and_clipping_serve_a_matrix_too(
    store: MlflowClient, trained: str, capsys: pytest.CaptureFixture[str]
) -> None:
    options: dict[str, Any] = {"target": 3, "clip": True, "coefficients": "optimised"}
    options |= {
        "norm": "linf:0.2",
        "equal_norm": "linf:0.2",
        "ranks": "1,5",
        "rank": 5,
        "draws": 20,
    }
    uri = f"runs:/{trained}/model"
    universal.main(words(model=uri, **options))
    (run,) = runs_but(store, trained)
    said = capsys.readouterr().out
    assert "of other classes become 3" in said and "moved" in said
    metrics, vector = run.data.metrics, np.load(artifacts(run) / "perturbation.npy")
    assert metrics["final_success_rate"] > metrics["final_random_success_rate"] + 0.2
    np.testing.assert_allclose(np.unique(np.abs(vector[vector != 0])), 0.2, rtol=1e-5)
    table = pd.read_csv(artifacts(run) / "ranks.csv")
    assert table["success_rate"][1] >= table["success_rate"][0]
    # What is asked of the matrix otherwise is not what it was made for.
    again = f"runs:/{run.info.run_id}"
    for changed, sentence in (({"clip": False}, "clip=true"), ({"target": 4}, "target=3")):
        other = {"model": uri, "matrix": again, "dataset": "digits"} | options | changed
        assert f"was made with {sentence}; say so" in refused(capsys, **other)


def test_an_interrupted_solve_goes_on(
    store: MlflowClient, trained: str, capsys: pytest.CaptureFixture[str]
) -> None:
    uri = f"runs:/{trained}/model"
    path = Path(mlflow.artifacts.download_artifacts(uri)) / "data" / "model.keras"
    options: dict[str, Any] = FEW | {"model": str(path), "dataset": "digits", "batch_size": 50}

    class Interrupting(Monitor):
        def progress(self, done: int, total: int, text: str) -> None:
            if done == 150 and text == "images solved":
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        experiments.universal(Interrupting(), **options)
    _, kept = sorted(Path("checkpoints").glob("solve-*/rows-*"))
    whole_file = kept.read_bytes()
    kept.write_bytes(whole_file[:-99])

    class Begun(Monitor):
        def begin(self, *_: Any) -> None:
            raise AssertionError("it is refused before a run begins")

    with pytest.raises(InputError, match=f"{kept.name}, can't be "):
        experiments.universal(Begun(), **options)
    kept.write_bytes(whole_file)
    resumed = experiments.universal(**options)
    assert "100 images are done" in capsys.readouterr().out
    whole = experiments.universal(**options)
    assert resumed.matrix is not None and whole.matrix is not None
    np.testing.assert_array_equal(resumed.matrix.rows[:, :], whole.matrix.rows[:, :])


@pytest.mark.slow
def test_each_image_that_cobyla_has_solved_is_kept(
    store: MlflowClient, trained: str, capsys: pytest.CaptureFixture[str]
) -> None:
    uri = f"runs:/{trained}/model"
    path = Path(mlflow.artifacts.download_artifacts(uri)) / "data" / "model.keras"
    options: dict[str, Any] = {"model": str(path), "dataset": "digits", "draws": 1}
    options |= {"solver": "cobyla", "samples": 6, "test_samples": 50}
    options |= {"block_images": 2}
    sent: list[int] = []

    def serial(
        function: Any, items: Any, *, finished: Any, keep: Any, stop: int = 9, **rest: Any
    ) -> list[Any]:
        results = dict(finished)
        for number in range(len(items)):
            if number not in results:
                if number == stop:
                    raise KeyboardInterrupt
                sent.append(number)
                results[number] = function(items[number])
                keep(number, results[number])
        return [results[number] for number in range(len(items))]

    with pytest.raises(KeyboardInterrupt):
        experiments.universal(None, None, functools.partial(serial, stop=2), **options)
    resumed = experiments.universal(None, None, serial, **options)
    assert sent == [0, 1, 2]
    said = capsys.readouterr().out
    assert "going on with an interrupted solve, of which 4 images are done" in said
    whole = experiments.universal(**options)
    assert resumed.solved is not None and whole.solved is not None
    for name in ("norms", "flipped", "evaluations"):
        np.testing.assert_array_equal(getattr(resumed.solved, name), getattr(whole.solved, name))
    assert resumed.matrix is not None and whole.matrix is not None
    np.testing.assert_array_equal(resumed.matrix.rows[:, :], whole.matrix.rows[:, :])
    assert not list(Path("checkpoints").glob("solve-*"))


@pytest.mark.usefixtures("unpainted")
def test_a_rank_that_the_matrix_has_not_is_clamped_with_a_sentence(
    store: MlflowClient, trained: str, capsys: pytest.CaptureFixture[str]
) -> None:
    universal.main(words(model=f"runs:/{trained}/model", rank=60, draws=1, clip=False))
    (run,) = runs_but(store, trained)
    rank = int(run.data.params["numerical_rank"])
    assert rank <= 32  # the first layer's width
    assert f"so rank={rank} is used" in capsys.readouterr().out


def refused(capsys: pytest.CaptureFixture[str], **options: Any) -> str:
    words = [f"--{name}={show(value)}" for name, value in options.items()]
    return conftest.refused(universal.main, capsys, *words)


ASCENT = {"algorithm": "gradient", "norm": "l2:1"}
SINGULAR = {"algorithm": "singular", "norm": "l2:1"}


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"rank": 0}, "rank=0"),
        ({"rank": -1}, "rank=-1"),
        ({"solver": "cobila"}, "did you mean 'cobyla'?"),
        ({"algorithm": "5"}, "unknown algorithm '5'"),
        ({"coefficients": "gausian"}, "did you mean 'gaussian'?"),
        ({"patterns": "fourrier"}, "did you mean 'fourier'?"),
        ({"patterns": "plaid"}, "unknown patterns 'plaid'"),
        ({"algorithm": "patterns", "equal_norm": "none"}, "norm is missing"),
        ({"patterns": "gabor", "frequencies": 9}, "frequencies=9 has no effect"),
        ({"norm": "l3:1"}, "such as none, l2:3 or linf:10/255"),
        ({"norm": "l2:-1"}, "above 0"),
        ({"algorithm": "1"}, "norm is missing"),
        ({"samples": 1001}, "samples=1001 is more than the 1000"),
        ({"matrix": "runs:/0123456789abcdef0123456789abcdef"}, "matrix.npz"),
        ({"matrix": "nowhere.npz"}, "there is no file"),
        (
            {"matrix": "some.npz", "algorithm": "random", "norm": "l2:1"},
            "needs algorithm=2, 3 or 4",
        ),
        ({"algorithm": "3", "epsilon": 0}, "epsilon=0"),
        ({"block_images": 0}, "block_images=0"),
        ({"gpus_per_worker": 1}, "gpus_per_worker=1.0 has no effect with backend=none"),
        ({"backend": "ray", "gpus_per_worker": 1.5}, "must be whole, or a share of one GPU"),
        ({"backend": "ray", "gpus_per_worker": 99}, "99 GPU each don't fit the Ray cluster here"),
        (ASCENT | {"loss": "margn"}, "did you mean 'margin'?"),
        (ASCENT | {"target": "10"}, "unknown target class '10'"),
        (ASCENT | {"target": "tree"}, "unknown target class 'tree'; known: 0, 1"),
        (ASCENT | {"target": "7"}, "target=7 leaves nothing to do: it is the class of all"),
        (ASCENT | {"aggregate": 9, "images_per_step": 8}, "aggregate=9 is more than the images"),
        ({"algorithm": "gradient"}, "norm is missing"),
        (SINGULAR | {"layer": "dense_9"}, "unknown layer 'dense_9'; did you mean 'dense"),
        (SINGULAR | {"power": 0.5}, "power=0.5"),
        (ASCENT | {"layer": "dense"}, "layer=dense has no effect with algorithm=gradient"),
        ({"solve_dir": "theirs.keras"}, "solve folder"),
        (
            {"solver": "cobyla", "backend": "ray", "ray_address": "127.0.0.1:1"},
            "no Ray cluster answers at 127.0.0.1:1",
        ),
        # A matrix that is there leaves nothing to spread.
        (
            {
                "solver": "cobyla",
                "backend": "ray",
                "ray_address": "127.0.0.1:1",
                "matrix": "no.npz",
            },
            "backend=ray has no effect with matrix=no.npz",
        ),
    ],
)
def test_bad_input_is_refused_in_one_sentence_and_leaves_no_run(
    store: MlflowClient, capsys: pytest.CaptureFixture[str], options: Any, sentence: str
) -> None:
    small = keras.Sequential([keras.Input((8, 8, 1)), keras.layers.Flatten()])
    small.add(keras.layers.Dense(10))
    kernel, bias = small.layers[-1].get_weights()
    small.layers[-1].set_weights([kernel, bias + 100 * np.eye(10)[7]])  # all are sevens to it
    small.save("theirs.keras")
    line = refused(capsys, **({"model": "theirs.keras", "dataset": "digits"} | options))
    assert sentence in line
    assert not store.search_runs(["0"])


@pytest.mark.parametrize(
    ("algorithm", "fitted_on", "last"),
    [("3", "ours", 2), ("2", "theirs", 2), ("2", None, 2), ("2", "ours", 4)],
)
def test_a_spectrum_is_predicted_of_smallest_perturbations_of_our_images_alone(
    algorithm: str, fitted_on: str | None, last: int
) -> None:
    images = np.zeros((3, 2, 2, 1), np.float32)
    asked = UniversalParameters(model="m", algorithm=algorithm)
    lazy = ImageRows(Split(images, np.zeros(3, np.int64)))
    work: Any = SimpleNamespace(asked=asked, images=lazy)
    named = lazy.digest if fitted_on == "ours" else fitted_on
    matrix = Matrix(np.ones((2, 4), np.float32), np.array([0, last]), 1, fitted_on=named)
    assert experiment._predicted(work, matrix, np.ones(2)) is None


@pytest.mark.slow
@pytest.mark.usefixtures("unpainted")
def test_a_matrix_of_another_model_is_refused(
    store: MlflowClient, trained: str, capsys: pytest.CaptureFixture[str]
) -> None:
    options = words(model=f"runs:/{trained}/model", algorithm="3")
    universal.main(options)
    (run,) = runs_but(store, trained)
    small = keras.Sequential([keras.Input((8, 8, 1)), keras.layers.Flatten()])
    small.add(keras.layers.Dense(10))
    small.save("theirs.keras")
    matrix = f"runs:/{run.info.run_id}"
    line = refused(capsys, model="theirs.keras", dataset="digits", matrix=matrix)
    assert "was made for a model with digest" in line
    large = keras.Sequential([keras.Input((28, 28, 1)), keras.layers.Flatten()])
    large.add(keras.layers.Dense(10))
    large.save("large.keras")
    line = refused(capsys, model="large.keras", dataset="mnist5k", matrix=matrix)
    assert "was made for images of the shape [8, 8, 1], not [28, 28, 1]" in line
    own = {"model": f"runs:/{trained}/model", "matrix": matrix}
    assert "was made with algorithm=3" in refused(capsys, **own)
    universal.main(words(**own, algorithm="3", coefficients="first"))


@pytest.mark.usefixtures("unpainted")
def test_what_a_model_takes_for_white_belongs_to_its_matrix(
    store: MlflowClient, trained: str, capsys: pytest.CaptureFixture[str]
) -> None:
    uri = f"runs:/{trained}/model"
    path = Path(mlflow.artifacts.download_artifacts(uri)) / "data" / "model.keras"
    options: dict[str, Any] = {"dataset": "digits", "algorithm": "3"}
    universal.main(words(model=path, **options))
    (run,) = runs_but(store, trained)
    matrix = f"runs:/{run.info.run_id}"
    line = refused(capsys, model=path, **options, matrix=matrix, input_range="0,255")
    assert "in the range [0.0, 1.0], not [0.0, 255.0]" in line
    # A model of ours knows its own.
    line = refused(capsys, model=uri, **options, matrix=matrix, input_range="0,255")
    assert f"input_range=0.0,255.0 has no effect with model={uri}, which was trained here" in line
    universal.main(words(model=uri, **options, matrix=matrix))


@pytest.mark.usefixtures("unpainted")
@pytest.mark.slow
def test_rows_of_the_first_layer_are_searched_inside_the_wrapping(
    store: MlflowClient, trained: str
) -> None:
    options: dict[str, Any] = {"solver": "cobyla", "subspace": "rows", "backend": "serial"}
    options |= {"samples": 2, "test_samples": 20, "rank": 1, "ranks": "1", "draws": 1}
    universal.main(words(model=f"runs:/{trained}/model", **options))
    (run,) = runs_but(store, trained)
    assert run.info.status == "FINISHED"


def test_every_kind_of_weights_has_a_digest() -> None:
    ones, twos = (np.full(3, value, ml_dtypes.bfloat16) for value in (1, 2))
    assert digest(ones) == digest(ones.copy()) != digest(twos)


@pytest.mark.slow
def test_the_mnist_case_study_is_one_run_with_two_parts(store: MlflowClient) -> None:
    mnist.main(["--samples=200", "--draws=5", "--steps=200", "--rank=5"])
    parent, training, fooling = runs_but(store)
    for part in (training, fooling):
        assert part.data.tags["mlflow.parentRunId"] == parent.info.run_id
        assert part.info.status == "FINISHED"
    found = artifacts(parent)
    assert (found / "figure7.png").exists() and (found / "figures8to10.png").exists()
    # Section VI.C: fooled by far more than noise of the same norm.
    metrics = parent.data.metrics
    assert metrics["final_test_accuracy"] > 0.8
    assert metrics["final_fooling_rate"] > metrics["final_random_fooling_rate"] + 0.2


def test_the_case_study_refuses_before_it_trains(
    store: MlflowClient, capsys: pytest.CaptureFixture[str]
) -> None:
    line = conftest.refused(mnist.main, capsys, "--samples=5000")
    assert "samples=5000 is more than the 4000 training images" in line
    cluster = ["--solver=cobyla", "--backend=ray", "--ray_address=127.0.0.1:1"]
    assert "no Ray cluster answers" in conftest.refused(mnist.main, capsys, *cluster)
    assert not store.search_runs(["0"])
