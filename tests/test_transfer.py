"""Perturbations on other models than their own: closed forms, and `attack` as a user runs it."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import keras
import mlflow
import numpy as np
import pandas as pd
import pytest
from mlflow import MlflowClient
from mlflow.entities import Run

from entry_points import attack, train, universal
from resfool import experiments
from resfool.datasets import sets
from resfool.errors import InputError
from resfool.monitor import Monitor
from resfool.values import Norm, show
from tests import conftest
from tests.conftest import QUICK, ROOT

SHAPE = (3, 4, 2)
PIXELS = 24


class Passes(Monitor):
    """Remembers the progress."""

    def __init__(self) -> None:
        self.seen: list[tuple[int, int]] = []

    def progress(self, done: int, total: int, text: str) -> None:
        self.seen.append((done, total))


@pytest.fixture(scope="module")
def two_sided() -> dict[str, np.ndarray]:
    """Mid-grey images of two classes: which side of the first direction's median they are on."""
    random = np.random.default_rng(0)
    images = random.uniform(0.4, 0.6, (90, *SHAPE)).astype(np.float32)
    directions = np.linalg.qr(random.normal(size=(PIXELS, 2)))[0].T
    scores = images.reshape(-1, PIXELS) @ directions[0]
    return {"images": images, "directions": directions, "scores": scores - np.median(scores)}


@pytest.fixture(scope="module")
def planted(two_sided: dict[str, np.ndarray], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the images and two linear models, blind to what the other one sees."""
    folder = tmp_path_factory.mktemp("planted")
    images, directions = two_sided["images"], two_sided["directions"]
    labels = (two_sided["scores"] < 0).astype(int)
    few = {"x_train": images[:9], "y_train": labels[:9]}
    arrays: dict[str, Any] = few | {"x_test": images, "y_test": labels}
    np.savez(folder / "data.npz", **arrays)
    for name, direction in zip(("one", "other"), directions, strict=True):
        middle = np.median(images.reshape(-1, PIXELS) @ direction)
        model = keras.Sequential([keras.Input(SHAPE), keras.layers.Flatten()])
        model.add(keras.layers.Dense(2))
        model.layers[-1].set_weights(
            [np.stack([direction, -direction], axis=1), np.array([-middle, middle])]
        )
        model.save(folder / f"{name}.keras")
    np.save(folder / "down.npy", -1.9 * directions[0].reshape(SHAPE))
    np.save(folder / "up.npy", 0.03 * directions[0].reshape(SHAPE))
    return folder


def transferred(folder: Path, *models: str, monitor: Monitor | None = None, **options: Any) -> Any:
    paths = tuple(str(folder / f"{name}.keras") for name in models)
    return experiments.transfer(monitor, model=paths, dataset=f"npz:{folder}/data.npz", **options)


def test_linear_models_have_a_closed_form(two_sided: dict[str, np.ndarray], planted: Path) -> None:
    """Moving by s down a direction fools exactly the images whose score is from 0 to s."""
    scores = two_sided["scores"]
    perturbations = str(planted / "down.npy"), str(planted / "up.npy")
    passes = Passes()
    found = transferred(
        planted, "one", "other", monitor=passes, perturbation=perturbations, norm=Norm("l2", 0.05)
    )
    assert found.perturbations == ["down", "up"] and found.models == ["one", "other"]
    np.testing.assert_allclose(found.l2_norms, 0.05, rtol=1e-6)
    largest = np.abs(two_sided["directions"][0]).max() * 0.05
    np.testing.assert_allclose(found.linf_norms, largest, rtol=1e-6)
    down, up = ((s * scores > 0) & (s * scores < 0.05) for s in (1, -1))
    assert 0.1 < down.mean() < 0.4 and 0.1 < up.mean() < 0.4
    expected = [[down.mean(), 0.0], [up.mean(), 0.0]]  # the other model doesn't see it
    np.testing.assert_array_equal(found.rates["fooling_rate"], expected)
    # Nothing leaves [0, 1], so clipping changes nothing; and all predictions of the one were right.
    np.testing.assert_array_equal(found.rates["clipped_fooling_rate"], expected)
    np.testing.assert_array_equal(found.rates["error_rate"][:, 0], [down.mean(), up.mean()])
    np.testing.assert_array_equal(found.rates["clean_accuracy"][:, 0], 1.0)
    # At the same norm the noise is the same.
    noise = found.rates["random_fooling_rate"]
    np.testing.assert_array_equal(noise[0], noise[1])
    # Wilson's interval has a closed form.
    n, z, p = found.images, 1.959963984540054, found.rates["fooling_rate"]
    assert n == len(scores)
    middle = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * np.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    np.testing.assert_allclose(found.rates["fooling_rate_low"], middle - half, atol=1e-12)
    np.testing.assert_allclose(found.rates["fooling_rate_high"], middle + half, atol=1e-12)
    done, totals = zip(*passes.seen, strict=True)
    assert list(done) == sorted(done) and set(totals) == {done[-1]}


def test_without_a_norm_a_perturbation_stays_as_it_is(
    two_sided: dict[str, np.ndarray], planted: Path
) -> None:
    down, up = (str(planted / f"{name}.npy") for name in ("down", "up"))
    found = transferred(planted, "one", perturbation=(down, up, down))
    np.testing.assert_allclose(found.l2_norms, [1.9, 0.03], rtol=1e-6)
    positive = (two_sided["scores"] > 0).mean()
    assert found.rates["fooling_rate"][0, 0] == positive
    # So long a step leaves the range of pixels.
    moved = np.clip(two_sided["images"] - 1.9 * two_sided["directions"][0].reshape(SHAPE), 0, 1)
    scores = moved.reshape(-1, PIXELS) @ two_sided["directions"][0]
    middle = np.median(two_sided["images"].reshape(-1, PIXELS) @ two_sided["directions"][0])
    expected = ((scores > middle) != (two_sided["scores"] > 0)).mean()
    assert found.rates["clipped_fooling_rate"][0, 0] == expected


def test_a_leading_axis_of_one_says_nothing(planted: Path, tmp_path: Path) -> None:
    np.save(tmp_path / "up.npy", np.load(planted / "up.npy")[np.newaxis])
    kept, led = (
        transferred(planted, "one", perturbation=folder / "up.npy")
        for folder in (planted, tmp_path)
    )
    for name, rates in kept.rates.items():
        np.testing.assert_array_equal(led.rates[name], rates)


def test_a_perturbation_of_bytes_is_refused_unless_its_size_is_given(
    planted: Path, tmp_path: Path
) -> None:
    up = np.load(planted / "up.npy")
    path = tmp_path / "bytes.npy"
    np.save(path, 255 * up)
    largest = 255 * np.abs(up).max()
    with pytest.raises(
        InputError, match=rf"up to {largest:.4g}, .* divide it by 255 if it is of bytes,"
    ):
        transferred(planted, "one", perturbation=path)
    found = transferred(planted, "one", perturbation=path, norm=f"l2:{np.linalg.norm(up)}")
    expected = transferred(planted, "one", perturbation=planted / "up.npy")
    np.testing.assert_array_equal(found.rates["fooling_rate"], expected.rates["fooling_rate"])
    np.save(path, up / np.abs(up).max() * 2)
    with pytest.raises(InputError, match="or by 2 if its pixels go from -1 to 1"):
        transferred(planted, "one", perturbation=path)


def test_python_is_told_that_a_perturbation_is_missing(planted: Path) -> None:
    with pytest.raises(InputError, match="perturbation is missing"):
        transferred(planted, "one")


def fooled(model: keras.Model, images: np.ndarray, vector: np.ndarray) -> float:
    clean, moved = (model.predict(x, verbose=0).argmax(axis=1) for x in (images, images + vector))
    return float((clean != moved).mean())


def words(**options: Any) -> list[str]:
    return [f"--{name}={show(value)}" for name, value in options.items()]


def runs_but(store: MlflowClient, known: set[str]) -> list[Run]:
    """All runs but some, oldest first; those are known from now on."""
    runs = store.search_runs(["0"], order_by=["attributes.start_time ASC"])
    new = [run for run in runs if run.info.run_id not in known]
    known |= {run.info.run_id for run in new}
    return new


def artifact(run: Run, name: str) -> Path:
    return Path(mlflow.artifacts.download_artifacts(run_id=run.info.run_id, artifact_path=name))


@pytest.mark.slow
def test_two_models_and_their_perturbations(
    store: MlflowClient, capsys: pytest.CaptureFixture[str]
) -> None:
    known: set[str] = set()
    models, perturbations, reported = [], [], []
    for depth in (2, 1):
        train.main(words(**QUICK | {"depth": depth, "width": (24,), "steps": 300}))
        (trained,) = runs_but(store, known)
        models.append(f"runs:/{trained.info.run_id}/model")
        options: dict[str, Any] = {"samples": 120, "test_samples": 80, "draws": 2}
        universal.main(words(model=models[-1], algorithm="3", norm="l2:1.5", **options))
        (fitted,) = runs_but(store, known)
        perturbations.append(f"runs:/{fitted.info.run_id}")
        reported.append(fitted.data.metrics)
    capsys.readouterr()
    attack.main(words(model=",".join(models), perturbation=",".join(perturbations), samples=80))
    parent, *children = runs_but(store, known)
    printed = capsys.readouterr().out
    assert "mlp-2 algorithm 3" in printed and parent.info.run_id in printed
    assert [child.data.params["model_name"] for child in children] == ["mlp-2", "mlp-1"]
    assert all(c.data.tags["mlflow.parentRunId"] == parent.info.run_id for c in children)
    assert artifact(parent, "transfer.png").exists()
    table = pd.read_csv(artifact(parent, "transfer.csv"))
    names = ["mlp-2 algorithm 3", "mlp-1 algorithm 3"]
    assert table["perturbation"].tolist() == [name for name in names for _ in range(2)]
    assert table["model"].tolist() == ["mlp-2", "mlp-1"] * 2
    cells = table.set_index(["perturbation", "model"])

    # On its own model, what the universal run reported.
    for own, name, metrics in zip(("mlp-2", "mlp-1"), names, reported, strict=True):
        cell = cells.loc[(name, own)]
        for kind in ("", "clipped_", "random_"):
            rate = metrics[f"final_{kind}fooling_rate"]
            assert cell[f"{kind}fooling_rate"] == pytest.approx(rate, abs=1e-12)
        assert cell["l2_norm"] == pytest.approx(metrics["final_l2_norm"])
        assert cell["linf_norm"] == pytest.approx(metrics["final_linf_norm"])

    # On each model, what Keras alone finds on the same images.
    test = sets.load("digits").test
    images = test.images[np.random.default_rng(0).permutation(len(test))[:80]]
    for child, uri in zip(children, models, strict=True):
        model_file = Path(mlflow.artifacts.download_artifacts(uri)) / "data" / "model.keras"
        model = keras.saving.load_model(model_file)
        for name, perturbation in zip(names, perturbations, strict=True):
            file = mlflow.artifacts.download_artifacts(f"{perturbation}/perturbation.npy")
            expected = fooled(model, images, np.load(file))
            cell = cells.loc[(name, child.data.params["model_name"])]
            assert cell["fooling_rate"] == pytest.approx(expected, abs=1e-12)
            logged = child.data.metrics[f"fooling_rate/{name}"]
            assert logged == pytest.approx(expected, abs=1e-12)

    # One of each: one run with plain names.
    attack.main(words(model=models[0], perturbation=perturbations[1], norm="linf:0.2", samples=80))
    (single,) = runs_but(store, known)
    assert single.info.run_name == "mlp-1 algorithm 3 applied to mlp-2, digits test"
    assert single.data.params["norm"] == "linf:0.2"
    assert single.data.metrics["linf_norm"] == pytest.approx(0.2)
    file = mlflow.artifacts.download_artifacts(f"{perturbations[1]}/perturbation.npy")
    vector = np.load(file)
    model_file = Path(mlflow.artifacts.download_artifacts(models[0])) / "data" / "model.keras"
    expected = fooled(
        keras.saving.load_model(model_file), images, vector * np.float32(0.2 / np.abs(vector).max())
    )
    assert single.data.metrics["fooling_rate"] == pytest.approx(expected, abs=1e-12)

    # A training's run has no perturbation.
    training = models[0].removesuffix("/model")
    line = conftest.refused(attack.main, capsys, *words(model=models[0], perturbation=training))
    assert "no run with perturbation.npy by it" in line
    assert not runs_but(store, known)


@pytest.mark.usefixtures("unpainted")
def test_perturbations_of_one_name_are_numbered(store: MlflowClient, planted: Path) -> None:
    Path("copy").mkdir()
    np.save("copy/up.npy", 0.01 * np.ones(SHAPE, np.float32))
    options = words(
        model=planted / "one.keras",
        dataset=f"npz:{planted}/data.npz",
        perturbation=f"{planted / 'up.npy'},copy/up.npy",
    )
    attack.main(options)
    (run,) = runs_but(store, set())
    assert run.data.params["perturbation_name"] == "up (1),up (2)"
    norms = [run.data.metrics[f"l2_norm/up {number}"] for number in (1, 2)]
    assert norms == pytest.approx([0.03, 0.01 * PIXELS**0.5])


class Trap:
    """Would leave a file if it were unpickled."""

    def __reduce__(self) -> Any:
        return Path.touch, (Path("sprung"),)


def write_bad_files() -> None:
    shape = (8, 8, 1)
    np.save("pickled.npy", np.array([Trap()], dtype=object), allow_pickle=True)
    np.savez("archive.npz", np.zeros(shape))
    Path("archive.npz").rename("archive.npy")
    Path("text.npy").write_text("0, 1, 2")
    np.save("whole.npy", np.ones(shape, np.float32))
    Path("half.npy").write_bytes(Path("whole.npy").read_bytes()[:200])
    np.save("several.npy", np.ones((2, *shape), np.float32))
    np.save("turned.npy", np.ones((1, 8, 8), np.float32))
    np.save("smaller.npy", np.ones((7, 8, 1), np.float32))
    np.save("levels.npy", np.ones(shape, np.uint8))
    np.save("huge.npy", np.full(shape, 1e300))
    for value in ("nan", "inf", "0"):
        np.save(f"{value}.npy", np.full(shape, float(value)))
    small = keras.Sequential([keras.Input(shape), keras.layers.Flatten(), keras.layers.Dense(10)])
    small.save("theirs.keras")


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"norm": "l2:3"}, "norm=l2:3 has no effect with perturbation=none; it needs perturbation"),
        ({"perturbation": "whole.npy", "norm": "l3:3"}, "such as none, l2:3 or linf:10/255"),
        ({"perturbation": "runs:/0123456789abcdef0123456789abcdef"}, "perturbation.npy"),
        ({"perturbation": "nowhere.npy"}, "there is no file nowhere.npy"),
        ({"perturbation": "whole.npy,nowhere.npy"}, "there is no file nowhere.npy"),
        ({"perturbation": ","}, "there is no file"),
        (
            {"perturbation": "pickled.npy"},
            "pickled.npy can't be used: it holds values of type object",
        ),
        ({"perturbation": "archive.npy"}, "archive.npy can't be used: it is no array"),
        ({"perturbation": "text.npy"}, "text.npy can't be used: it is no array"),
        ({"perturbation": "half.npy"}, "half.npy can't be used: an array isn't as large"),
        ({"perturbation": "turned.npy"}, "its channels must come last"),
        ({"perturbation": "several.npy"}, "it holds 2, of which each must have a file of its own"),
        ({"perturbation": "smaller.npy"}, "(7, 8, 1), and the images of digits have (8, 8, 1)"),
        ({"perturbation": "levels.npy"}, "holds uint8; it must hold floats"),
        ({"perturbation": "nan.npy"}, "not finite"),
        ({"perturbation": "inf.npy"}, "not finite"),
        ({"perturbation": "huge.npy"}, "not finite"),
        ({"perturbation": "0.npy", "norm": "l2:3"}, "too close to zero"),
        ({"perturbation": "whole.npy", "samples": 401}, "more than the 400 test images"),
        ({"perturbation": "whole.npy", "model": "nowhere.keras"}, "there is no such file"),
    ],
)
def test_bad_input_is_refused_in_one_sentence_and_leaves_no_run(
    store: MlflowClient, capsys: pytest.CaptureFixture[str], options: Any, sentence: str
) -> None:
    write_bad_files()
    given = {"model": "theirs.keras", "dataset": "digits"} | options
    assert sentence in conftest.refused(attack.main, capsys, *words(**given))
    assert not store.search_runs(["0"])
    assert not Path("sprung").exists()


@pytest.mark.slow
def test_refusals_do_not_wait_for_tensorflow(store: MlflowClient) -> None:
    write_bad_files()
    given = words(model="theirs.keras", dataset="digits", perturbation="turned.npy")
    script = (
        f"import sys; from entry_points import attack\ntry: attack.main({given!r})\n"
        "finally: sys.stdout.write(str('tensorflow' in sys.modules))"
    )
    process = subprocess.run(
        [sys.executable, "-c", script],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert process.returncode == 1 and process.stdout == "False", process.stderr
