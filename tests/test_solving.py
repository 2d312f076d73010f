"""Perturbations in blocks on the disk: kept while they are made, read part by part, or refused."""

import itertools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
from keras import layers

from entry_points import universal
from resfool import checkpoints, experiments
from resfool.attacks import lowrank, streaming
from resfool.blocks import Column, Plan, Unwritten, discard
from resfool.classifiers.keeping import digest
from resfool.datasets.lazy import ImageRows
from resfool.datasets.sets import Split
from resfool.errors import InputError
from resfool.monitor import Monitor
from resfool.universal import prediction, presentation, solving
from resfool.universal.matrices import FoundRows, Matrix, read_matrix
from resfool.universal.options import UniversalParameters
from tests.conftest import refused

RANDOM = np.random.default_rng(0)


def planted(folder: Path, found: np.ndarray, matrix: np.ndarray, size: int) -> FoundRows:
    """Rows of a matrix among others that weren't found, in blocks."""
    rows = np.full((len(found), matrix.shape[1]), 7, np.float32)
    rows[found] = matrix
    plan = Plan(len(rows), size, {"rows": Column("float32", matrix.shape[1:])})
    stored = Unwritten(plan, lambda some: {"rows": rows[some]}).write(folder)
    return FoundRows(stored, np.flatnonzero(found))


@pytest.mark.parametrize("share", [0.1, 0.9, 1.0])
def test_rows_that_were_found_are_a_matrix_however_they_lie(tmp_path: Path, share: float) -> None:
    found = RANDOM.random(90) < share
    matrix = RANDOM.normal(size=(found.sum(), 12)).astype(np.float32)
    rows = planted(tmp_path, found, matrix, 13)
    assert rows.shape == matrix.shape and len(rows) == len(matrix)
    for place in (np.s_[:, :], np.s_[3:40], np.s_[2:, 5:7], np.s_[5:5, :], np.s_[-4:-1, -3:]):
        np.testing.assert_array_equal(rows[place], matrix[place])
    whole = Matrix(rows, np.flatnonzero(found), int((~found).sum()))
    again = whole.stored({"made": "here"}).write(tmp_path / "again")
    assert again.plan.facts == {"made": "here", "dropped": whole.dropped, "fitted_on": None}
    np.testing.assert_array_equal(again["rows"][:], matrix)
    np.testing.assert_array_equal(again["images"][:], np.flatnonzero(found))


class Asked:
    """A matrix that notes how much of it is looked at together."""

    def __init__(self, matrix: np.ndarray) -> None:
        self.matrix, self.shape, self.sizes = matrix, matrix.shape, [0]

    def __getitem__(self, place: Any) -> np.ndarray:
        part: np.ndarray = self.matrix[place]
        self.sizes.append(part.size)
        return part


@pytest.mark.parametrize("shape", [(900, 40), (40, 900), (300, 200)])
def test_no_more_than_a_piece_is_asked_for_and_the_answers_are_numpys(
    monkeypatch: pytest.MonkeyPatch, shape: tuple[int, int]
) -> None:
    for module in (streaming, lowrank):
        monkeypatch.setattr(module, "PIECE", 32)
    monkeypatch.setattr(streaming, "_UNIT", 64)
    monkeypatch.setattr(streaming, "_ENTRIES", 32 * 200)
    monkeypatch.setattr(lowrank, "_ENTRIES", 32 * 200)
    monkeypatch.setattr(lowrank, "_SLAB", 32 * 200)
    monkeypatch.setattr(lowrank, "_EXACT_ENTRIES", 1000)
    if min(shape) > 100:  # by the range finder, where nearly all is in the leading directions
        monkeypatch.setattr(streaming, "LARGEST_GRAM", 100)
    decay = np.exp(-np.arange(40) / 4)
    matrix = (RANDOM.normal(size=(shape[0], 40)) * decay) @ RANDOM.normal(size=(40, shape[1]))
    asked = Asked(matrix.astype(np.float32))
    found = lowrank.decompose(asked, kept=5)
    _, values, vectors = np.linalg.svd(matrix, full_matrices=False)
    np.testing.assert_allclose(found.singular_values[:9], values[:9], rtol=1e-5)
    np.testing.assert_array_equal(found.vectors, lowrank.decompose(asked).vectors[:5])
    assert found.vectors.shape == (5, shape[1])
    np.testing.assert_allclose(np.abs((found.vectors * vectors[:5]).sum(axis=1)), 1, rtol=1e-5)
    assert (found.error == 0) == (not found.missed)
    noise = lowrank.singular_values(lowrank.GaussianRows(asked, 0))
    squares = (matrix**2).sum()
    if not found.error:
        np.testing.assert_allclose((noise**2).sum(), squares, rtol=1e-5)
    spectrum = prediction.Spectrum.of(asked, 3)
    assert spectrum.norm == pytest.approx(np.sqrt(squares), rel=1e-5)
    units = np.linalg.svd(matrix / np.linalg.norm(matrix, axis=1, keepdims=True))[1]
    np.testing.assert_allclose(spectrum.directions[:9], units[:9], rtol=1e-4)
    assert max(asked.sizes) <= 32 * 200 < matrix.size / 5


def test_what_is_left_out_is_told_with_its_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(streaming, "LARGEST_GRAM", 100)
    values = np.concatenate([np.full(20, 10.0), np.full(110, 1.0)])
    left, right = (np.linalg.qr(RANDOM.normal(size=(n, 130)))[0] for n in (150, 140))
    matrix = ((left * values) @ right.T).astype(np.float32)
    found = lowrank.decompose(matrix, 20, exact=False)
    assert found.missed.startswith("the leading 30 of 140 directions: none left out stretches by ")
    assert found.error >= 0.99, "there are others"
    assert f"({found.error / found.singular_values[0]:.1%} of the largest)" in found.missed


def test_images_that_are_lazy_are_those_of_the_split() -> None:
    stored = RANDOM.integers(0, 256, (23, 4, 3, 1), np.uint8)
    split = Split(stored, np.arange(23), 255.0).chosen(RANDOM.permutation(23)[:17])
    lazy = ImageRows(split)
    assert lazy.shape == split.images.shape and len(lazy) == 17
    for place in (np.s_[:], np.s_[3:9], np.s_[-2:], np.array([5, 0, 5]), 4):
        np.testing.assert_array_equal(lazy[place], split.images[place])
        assert lazy[place].dtype == np.float32
    np.testing.assert_array_equal(np.concatenate(list(lazy.pieces())), split.images)
    assert lazy.digest == digest(split.images)


@pytest.fixture
def theirs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """A network of nobody's training, and few images."""
    monkeypatch.chdir(tmp_path)
    keras.utils.set_random_seed(4)
    parts: Sequence[Any] = layers.Flatten(), layers.Dense(16, activation="relu"), layers.Dense(10)
    keras.Sequential([keras.Input((8, 8, 1)), *parts]).save("theirs.keras")
    few = {"samples": 60, "test_samples": 20, "rank": 2, "ranks": "1", "draws": 1}
    return few | {"model": "theirs.keras", "dataset": "digits", "patterns": "checkerboard"}


@pytest.mark.parametrize("algorithm", [pytest.param("2", marks=pytest.mark.slow), "3"])
def test_what_was_made_before_an_interruption_is_used_and_goes_when_the_run_has_ended(
    theirs: dict[str, Any], capsys: pytest.CaptureFixture[str], algorithm: str
) -> None:
    class Interrupting(Monitor):
        def progress(self, done: int, total: int, text: str) -> None:
            if text == "perturbations fitted and judged":
                raise KeyboardInterrupt

    asked = theirs | {"algorithm": algorithm}
    with pytest.raises(KeyboardInterrupt):
        experiments.universal(Interrupting(), **asked)
    (kept,) = Path("checkpoints").iterdir()
    found = experiments.universal(**asked)
    assert "going on with an interrupted solve, of which 60 images are done" in (
        capsys.readouterr().out
    )
    assert not kept.exists()
    anew = experiments.universal(**asked)
    assert "going on" not in capsys.readouterr().out
    assert found.matrix is not None and anew.matrix is not None
    np.testing.assert_array_equal(found.matrix.rows[:, :], anew.matrix.rows[:, :])
    assert len(list(Path("checkpoints").iterdir())) == 2
    del found, anew
    assert not list(Path("checkpoints").iterdir()), "nobody looks at them any more"


@pytest.mark.slow
def test_a_run_says_what_its_spectrum_may_have_left_out(
    theirs: dict[str, Any], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(streaming, "LARGEST_GRAM", 20)
    monkeypatch.setattr(lowrank, "_EXACT_ENTRIES", 100)
    monkeypatch.setattr(lowrank, "_LEADING", 4)
    monkeypatch.setattr(streaming, "_MORE", 2)
    found = experiments.universal(**theirs)
    assert found.matrix is not None and found.singular_values is not None
    assert found.left_out in capsys.readouterr().out
    assert found.left_out in presentation.summary(found)
    assert found.left_out.startswith("the leading 6 of 64 directions")
    exact = np.linalg.svd(found.matrix.rows[:, :])[1]
    values, noise = found.singular_values
    assert len(values) == len(noise) == 6 and (values <= exact[:6] * (1 + 1e-6)).all()
    assert found.prediction is not None
    norm = np.linalg.norm(found.matrix.rows[:, :])
    assert found.prediction.measured.norm == pytest.approx(norm, rel=1e-5)


def changed(folder: Path) -> None:
    path = folder / "rows-000000.npy"
    path.write_bytes(path.read_bytes()[:-1] + b"!")


def other_index(folder: Path) -> None:
    path = folder / "index.json"
    path.write_text(path.read_text().replace('"dropped"', '"lost"'))


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda folder: (folder / "rows-000000.npy").unlink(), "rows-000000.npy, isn't there"),
        (lambda folder: (folder / "block-000000.json").unlink(), "block 0 of {} isn't there"),
        (changed, "it has changed since it was written"),
        (other_index, "block 0 of {} can't be used: it belongs to other ones"),
        (lambda folder: (folder / "index.json").write_text("{"), "can't be used: it is damaged"),
    ],
)
def test_a_matrix_that_was_changed_is_refused_before_anything_is_done(
    theirs: dict[str, Any],
    capsys: pytest.CaptureFixture[str],
    change: Callable[[Path], Any],
    sentence: str,
) -> None:
    asked = UniversalParameters(**{n: theirs[n] for n in ("model", "dataset")})
    facts: dict[str, Any] = {"image_shape": [8, 8, 1]} | asked.made_by
    images = np.arange(3)
    matrix = Matrix(np.ones((3, 64), np.float32), images, 0)
    folder = matrix.stored(facts).write(Path("matrix")).folder
    change(folder)
    words = [f"--{n}={v}" for n, v in (theirs | {"matrix": folder}).items()]
    with pytest.MonkeyPatch.context() as patch:  # it is known by its digest, which isn't the point
        patch.setattr("resfool.universal.matrices._check_facts", lambda *_: None)
        line = refused(universal.main, capsys, *words)
    assert sentence.format(folder.absolute()) in line or sentence.format(folder) in line


IDENTITY: dict[str, Any] = {"model": "digest", "image_shape": [2, 2, 1], "input_range": [0.0, 1.0]}
IDENTITY |= {"interface": {}}
ROWS: dict[str, np.ndarray] = {"rows": np.ones((3, 4), np.float32), "images": np.array([0, 2, 5])}


@pytest.mark.parametrize("form", ["blocks", "npz"])
@pytest.mark.parametrize(
    ("arrays", "facts", "sentence"),
    [
        ({"rows": np.ones((3, 5), np.float32)}, {}, "have the shape"),
        ({"rows": np.full((3, 4), np.inf, np.float32)}, {}, "not finite"),
        ({"more": np.ones(3)}, {}, "can't be used: it "),
        ({"images": np.array([0, 2, 2])}, {}, "images don't rise"),
        ({"images": np.array([-1, 2, 3])}, {}, "images don't rise"),
        ({}, {"dropped": "many"}, "says that many images were dropped"),
        ({}, {"dropped": -1}, "says that -1 images were dropped"),
        ({}, {"model": ["x" * 10_000]}, "was made for a model with digest"),
        ({}, {"algorithm": {"x": "y" * 10_000}}, "was made with algorithm="),
    ],
)
def test_a_matrix_that_no_run_can_have_left_is_refused(
    tmp_path: Path, form: str, arrays: dict[str, np.ndarray], facts: dict[str, Any], sentence: str
) -> None:
    number = itertools.count()

    def taken(arrays: dict[str, np.ndarray], facts: dict[str, Any]) -> Matrix:
        path = tmp_path / f"{next(number)}"
        if form == "npz":
            checkpoints.save(path, arrays, IDENTITY | facts)
        else:
            columns = {n: Column(a.dtype.name, a.shape[1:]) for n, a in arrays.items()}
            plan = Plan(3, 2, columns, IDENTITY | facts)
            Unwritten(plan, lambda some: {n: a[some] for n, a in arrays.items()}).write(path)
        return read_matrix(path, "matrix=runs:/a", IDENTITY, {"algorithm": "2"})

    assert taken(ROWS, {"dropped": 3}).dropped == 3
    assert taken(ROWS, {}).fitted_on is None and taken(ROWS, {"fitted_on": "a"}).fitted_on == "a"
    np.testing.assert_array_equal(taken(ROWS, {}).rows[1:, :], ROWS["rows"][1:])
    with pytest.raises(InputError, match=f"matrix=runs:/a .*{sentence}") as caught:
        taken(ROWS | arrays, facts)
    assert len(str(caught.value)) < 300


def test_an_empty_matrix_of_earlier_days_is_refused(tmp_path: Path) -> None:
    nothing = {"rows": np.ones((0, 4)), "images": np.arange(0)}
    checkpoints.save(tmp_path / "matrix.npz", nothing, IDENTITY)
    with pytest.raises(InputError, match=r"^matrix=a can't be used: it has no rows$"):
        read_matrix(tmp_path / "matrix.npz", "matrix=a", IDENTITY, {})


BLOCK = {
    "perturbations": np.ones((2, 2, 2, 1)),
    "norms": np.array([2.0, np.inf]),
    "flipped": np.array([True, False]),
    "rounded": np.array([True, False]),
    "evaluations": np.arange(2),
    "seconds": np.ones(2),
}


def block(arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """As it is kept: rows of perturbations."""
    beside = {name: array for name, array in arrays.items() if name != "perturbations"}
    return {"rows": arrays["perturbations"].reshape(2, -1).astype(np.float32)} | beside


@pytest.mark.parametrize(
    ("arrays", "sentence"),
    [
        (BLOCK | {"flipped": np.array([True, True])}, "norms don't fit"),
        (BLOCK | {"perturbations": np.full((2, 2, 2, 1), 1e30)}, "values beyond"),
        (BLOCK | {"seconds": np.array([1, np.nan])}, "not finite"),
        (BLOCK | {"evaluations": np.array([1, 0.5])}, "no int64"),
        (BLOCK | {"flipped": np.array([2, 0])}, "no bool"),
    ],
)
def test_a_block_that_no_solve_can_have_left_is_refused(
    tmp_path: Path, arrays: dict[str, np.ndarray], sentence: str
) -> None:
    asked = UniversalParameters(model="m", solve_dir=str(tmp_path), block_images=2)
    images = ImageRows(Split(np.zeros((4, 2, 2, 1), np.float32), np.zeros(4, np.int64)))
    kept = solving.kept_in(asked, {}, images, None, spread=False)
    kept.keep(1, block(BLOCK))
    assert kept.done() == [1]
    kept.keep(1, block(arrays))
    kept = solving.kept_in(asked, {}, images, None, spread=False)
    with pytest.raises(InputError, match=f"block 1 of .* can't be used: .*{sentence}"):
        kept.done()
    discard(kept.folder)
    assert not list(tmp_path.iterdir())
    kept.folder.symlink_to(tmp_path)
    with pytest.raises(InputError, match="is a symbolic link"):
        kept.done()
