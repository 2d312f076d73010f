"""Smallest perturbations against linear models, whose answers are known in closed form."""

import functools
import warnings
from pathlib import Path
from typing import Any, get_args

import keras
import numpy as np
import pytest

from resfool.attacks.leads import leads, safe_leads
from resfool.attacks.minimal import Minimal, smallest_perturbations
from resfool.attacks.solvers import SOLVERS, Subspace, closest, cobyla
from resfool.classifiers import inference
from resfool.errors import InputError
from resfool.networks import architectures
from resfool.networks.shape import network
from resfool.values import BallNorm

# By how much an answer may exceed the closed form.
FACTORS: dict[str, float] = {
    "closest": 1.0001,
    "deepfool": 1.0001,
    "apgd": 1.0001,
    "ddn": 1.02,
    "cobyla": 1.02,
}
BATCHED = tuple(name for name, way in SOLVERS.items() if not way.slow)  # others are slower


def marks(solver: str) -> list[pytest.MarkDecorator]:
    """Of a solver that takes many passes; those of networks are in test_crossing."""
    return [pytest.mark.slow] if solver == "apgd" else []


EACH = [pytest.param(name, marks=marks(name)) for name in FACTORS]
OURS_AND_OTHERS = ("closest", "deepfool", "ddn")


def linear_model(
    classes: int, shape: tuple[int, int, int] = (4, 5, 3), scale: float = 1.0
) -> keras.Model:
    """Logits W x + b with known weights."""
    random = np.random.default_rng(0)
    images = keras.Input(shape)
    dense = keras.layers.Dense(classes, name="linear")
    model = keras.Model(images, dense(keras.layers.Flatten()(images)))
    kernel = scale * random.normal(size=(np.prod(shape), classes))
    dense.set_weights([kernel, -kernel.sum(axis=0) / 2])
    return model


def random_images(count: int, shape: tuple[int, ...] = (4, 5, 3), seed: int = 1) -> np.ndarray:
    return np.random.default_rng(seed).random((count, *shape), np.float32)


def exact_norms(model: keras.Model, images: np.ndarray, norm: BallNorm = "l2") -> np.ndarray:
    """Minimum over j of (z_y - z_j) / ||w_j - w_y||*, the dual norm: l2 of l2, l1 of linf."""
    kernel, bias = (w.astype(np.float64) for w in model.get_layer("linear").get_weights())
    z = images.reshape(len(images), -1).astype(np.float64) @ kernel + bias
    norms = []
    for logits in z:
        y = logits.argmax()
        others = np.delete(np.arange(len(logits)), y)
        apart = np.linalg.norm(
            kernel[:, others] - kernel[:, [y]], ord=1 if norm == "linf" else 2, axis=0
        )
        norms.append(((logits[y] - logits[others]) / apart).min())
    return np.array(norms)


@functools.cache  # what is compiled for it serves every test
def small_network(seed: int = 3) -> keras.Model:
    return architectures.build(
        network("mlp", depth=2, width=(12,)),
        image_shape=(6, 6, 1),
        classes=5,
        mean=[0.5],
        std=[0.25],
        seed=seed,
    )


def predicted(model: keras.Model, images: np.ndarray, batch_size: int = 250) -> np.ndarray:
    return np.asarray(inference.logits(model, images, batch_size).argmax(axis=1))


def check_found(
    model: keras.Model,
    images: np.ndarray,
    found: Minimal,
    batch_size: int = 250,
    norm: BallNorm = "l2",
) -> None:
    """What must hold of every answer."""
    count = len(images)
    assert found.perturbations.shape == images.shape
    assert found.perturbations.dtype == found.norms.dtype == np.float32
    assert found.flipped.dtype == bool
    assert found.evaluations.shape == found.seconds.shape == (count,)
    assert (found.evaluations > 0).all() and (found.seconds > 0).all()
    own = predicted(model, images, batch_size)
    moved = predicted(model, images + found.perturbations, batch_size)
    np.testing.assert_array_equal(moved != own, found.flipped)
    order = np.inf if norm == "linf" else 2
    norms = np.linalg.norm(found.perturbations.reshape(count, -1), ord=order, axis=1)
    np.testing.assert_allclose(norms[found.flipped], found.norms[found.flipped], rtol=1e-5)
    assert not found.perturbations[~found.flipped].any()
    assert np.isinf(found.norms[~found.flipped]).all()
    shares = (1 - 1e-3 - needed_shares(model, images)).astype(np.float32).reshape(-1, 1, 1, 1)
    nearer = predicted(model, images + shares * found.perturbations, batch_size)
    np.testing.assert_array_equal(nearer, own)


def needed_shares(model: keras.Model, images: np.ndarray) -> np.ndarray:
    """The lead that another class must have, in leads of the own class: more than 4e-5 of few."""
    logits = inference.logits(model, images)
    classes = logits.argmax(axis=1)
    return safe_leads(model, images, classes, logits) / -leads(logits, classes)


def test_every_solver_is_tested() -> None:
    assert FACTORS.keys() == SOLVERS.keys()
    assert cobyla.SUBSPACES.keys() == set(get_args(Subspace))


@pytest.mark.parametrize(
    ("classes", "shape", "count", "batch_size"),
    [(2, (4, 5, 3), 5, 5), (6, (4, 5, 3), 11, 4), (10, (6, 6, 1), 7, 1), (30, (3, 4, 2), 8, 8)],
)
@pytest.mark.parametrize(
    ("solver", "norm"),
    [pytest.param(s, n, marks=marks(s)) for s in BATCHED for n in SOLVERS[s].norms],
)
def test_linear_models_have_a_closed_form(
    solver: str,
    norm: BallNorm,
    classes: int,
    shape: tuple[int, int, int],
    count: int,
    batch_size: int,
) -> None:
    # Sharp, as trained models are: on the way DDN follows the gradient of all classes together.
    model, images = linear_model(classes, shape, scale=30.0), random_images(count, shape)
    found = smallest_perturbations(
        model, images, solver=solver, norm=norm, candidates=classes, batch_size=batch_size
    )
    assert found.flipped.all()
    check_found(model, images, found, batch_size, norm)
    ratio = found.norms / exact_norms(model, images, norm)
    assert ratio.min() > 1
    assert (ratio < FACTORS[solver] + 1.1 * needed_shares(model, images)).all()


@pytest.mark.parametrize(
    ("subspace", "evaluations"), [("gradients", None), ("rows", None), ("pixels", 150)]
)
def test_cobyla_comes_close_to_the_closed_form(subspace: Any, evaluations: int | None) -> None:
    shape = 3, 4, 2
    model, images = linear_model(4, shape), random_images(4, shape)
    found = smallest_perturbations(
        model, images, solver="cobyla", subspace=subspace, evaluations=evaluations
    )
    assert found.flipped.all()
    check_found(model, images, found)
    ratio = found.norms / exact_norms(model, images)
    assert ratio.min() > 1 - 1e-4
    assert ratio.max() < FACTORS["cobyla"]


@pytest.mark.parametrize("scale", [1e-3, 1e3])
@pytest.mark.parametrize("solver", ["closest", "deepfool"])
def test_the_scale_of_the_logits_does_not_matter(solver: str, scale: float) -> None:
    model, images = linear_model(5, scale=scale), random_images(10)
    found = smallest_perturbations(model, images, solver=solver)
    np.testing.assert_allclose(found.norms, exact_norms(model, images), rtol=2e-3)


@pytest.mark.parametrize("clip", [False, True])
@pytest.mark.parametrize("solver", EACH)
def test_a_deep_model_is_flipped_in_the_range_of_pixels_if_asked(solver: str, clip: bool) -> None:
    model, images = small_network(), random_images(6, (6, 6, 1))
    images[:, 0] = 0.0
    images[:, 1] = 1.0
    found = smallest_perturbations(model, images, solver=solver, clip=clip)
    check_found(model, images, found)
    assert found.flipped.mean() > 0.8
    moved = images + found.perturbations
    assert (moved.min() >= 0 and moved.max() <= 1) or not clip
    if clip:
        free = smallest_perturbations(model, images)
        assert (found.norms > 0.999 * free.norms).mean() > 0.8


def test_clipping_is_allowed_for_where_the_answer_is_found() -> None:
    # Half the pixels are at an end of their range, so the plain projection falls short.
    model = linear_model(2)
    images = np.round(random_images(20) * 2) / 2
    found = smallest_perturbations(model, images, clip=True)
    reference = smallest_perturbations(model, images, solver="ddn", clip=True)
    assert found.flipped.all()
    assert (found.norms <= 1.001 * reference.norms).all()


def test_ours_is_no_longer_than_the_others_on_average() -> None:
    model, images = small_network(), random_images(60, (6, 6, 1))
    ours, deepfool, ddn = (
        smallest_perturbations(model, images, solver=s, batch_size=6) for s in OURS_AND_OTHERS
    )
    assert ours.flipped.all()
    assert ours.norms.mean() <= 0.99 * deepfool.norms.mean()
    assert ours.norms.mean() <= 1.01 * ddn.norms.mean()


@pytest.mark.parametrize("solver", EACH)
def test_what_nothing_flips_is_reported(solver: str) -> None:
    model, images = linear_model(3), random_images(4)
    model.get_layer("linear").set_weights([np.zeros((60, 3)), np.array([1.0, 0.0, 0.0])])
    found = smallest_perturbations(model, images, solver=solver)
    check_found(model, images, found)
    assert not found.flipped.any()
    assert np.isinf(found.norms).all()
    assert not found.perturbations.any()


def test_what_closest_misses_falls_back_to_deepfool(monkeypatch: pytest.MonkeyPatch) -> None:
    model, images = linear_model(3), random_images(6)
    monkeypatch.setattr(closest._Search, "lost", lambda search, ways: np.array([2, 3]))
    found = smallest_perturbations(model, images)
    assert found.flipped.all()
    np.testing.assert_allclose(found.norms, exact_norms(model, images), rtol=1e-3)
    assert found.evaluations[2] > found.evaluations[0]


@pytest.mark.parametrize("solver", [pytest.param(name, marks=marks(name)) for name in BATCHED])
def test_the_batch_size_hardly_matters(solver: str) -> None:
    model, images = small_network(), random_images(9, (6, 6, 1))
    one, other = (
        smallest_perturbations(model, images, solver=solver, batch_size=n) for n in (6, 9)
    )
    np.testing.assert_allclose(one.norms, other.norms, rtol=0.02)


def test_the_row_space_holds_all_that_the_model_sees() -> None:
    model, images = small_network(), random_images(5, (6, 6, 1))
    basis = cobyla.row_space(model)
    np.testing.assert_allclose(basis @ basis.T, np.eye(12), atol=1e-6)
    found = smallest_perturbations(model, images, solver="cobyla", subspace="rows")
    assert found.flipped.all()
    flat = found.perturbations.reshape(5, -1)
    np.testing.assert_allclose(flat @ basis.T @ basis, flat, atol=1e-5)
    unseen = random_images(5, (6, 6, 1), seed=2).reshape(5, -1)
    unseen -= unseen @ basis.T @ basis
    np.testing.assert_allclose(
        inference.logits(model, images + unseen.reshape(images.shape)),
        inference.logits(model, images),
        atol=1e-4,
    )


def test_the_row_space_is_found_inside_of_a_wrapping() -> None:
    bare = small_network()
    images = keras.Input((6, 6, 1))
    rescaled = keras.layers.Rescaling(255.0, -3.0)(images)
    whole = keras.Model(images, bare(keras.layers.Reshape((6, 6, 1))(rescaled)))
    basis = cobyla.row_space(bare)
    np.testing.assert_allclose(cobyla.row_space(whole) @ basis.T @ basis, basis, atol=1e-5)


def test_many_dimensions_get_as_many_evaluations_as_they_take(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(cobyla.EVALUATIONS, "rows", 5)  # of 12 dimensions
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)  # SciPy's of a budget below the dimensions
        found = smallest_perturbations(
            small_network(), random_images(3, (6, 6, 1)), solver="cobyla", subspace="rows"
        )
    assert found.flipped.all()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"solver": "closet"}, "unknown solver 'closet'; did you mean 'closest'?"),
        ({"solver": "cobyla", "subspace": "row"}, "unknown subspace 'row'; did you mean 'rows'?"),
        ({"solver": "ddn", "norm": "linf"}, "ddn knows no norm=linf; closest, deepfool or apgd do"),
        ({"candidates": 1}, "candidates=1 must be 2 or more"),
        ({"solver": "cobyla", "subspace": "pixels", "evaluations": 67}, "needs 68 or more"),
        ({"solver": "cobyla", "evaluations": 5}, "needs 11 or more in the 3 dimensions"),
    ],
)
def test_bad_settings_are_named(options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError) as caught:
        smallest_perturbations(linear_model(4), random_images(2), **options)
    assert message in str(caught.value)


def test_rows_are_for_models_that_begin_with_a_dense_layer() -> None:
    model = architectures.build(
        network("convnet", depth=5, width=(4,)),
        image_shape=(8, 8, 1),
        classes=3,
        mean=[0.5],
        std=[0.25],
    )
    with pytest.raises(InputError, match="subspace=rows needs a model that begins with a dense"):
        smallest_perturbations(model, random_images(2, (8, 8, 1)), solver="cobyla", subspace="rows")


def test_inputs_are_not_changed() -> None:
    model, images = linear_model(3), random_images(3)
    before = images.copy()
    for solver in FACTORS:
        smallest_perturbations(model, images, solver=solver, clip=True)
    np.testing.assert_array_equal(images, before)


@pytest.mark.parametrize("solver", EACH)
def test_of_a_thousand_classes_the_nearest_few_are_enough(solver: str) -> None:
    model, images = linear_model(1000), random_images(6)
    found = smallest_perturbations(model, images, solver=solver, candidates=10)
    check_found(model, images, found)
    # The class whose boundary is nearest may not be among the ten of the largest logits; and
    # ddn's last steps, of length 0.01, are coarse beside norms of 0.05.
    exact = exact_norms(model, images)
    assert found.flipped.all()
    assert (found.norms >= 0.999 * exact).all()
    assert np.mean(found.norms / exact) < (1.6 if solver == "ddn" else 1.2)


@pytest.mark.slow
def test_the_bars_on_the_mnist_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Minutes: how far the solvers stay from each other on the network of section VI.C."""
    from resfool import experiments

    monkeypatch.chdir(tmp_path)
    trained = experiments.train(arch="mlp", dataset="mnist5k", steps=2000)
    model, images = trained.model, np.array(trained.dataset.test.images)[:200]
    ours, deepfool, ddn = (smallest_perturbations(model, images, solver=s) for s in OURS_AND_OTHERS)
    assert ours.flipped.all()
    assert ours.norms.mean() <= 0.96 * deepfool.norms.mean()
    assert ours.norms.mean() <= 1.02 * ddn.norms.mean()
    bars: list[tuple[Subspace, int, float, float]] = [
        ("gradients", 200, 0.98, 1.10),
        ("rows", 40, 0.95, 1.25),
    ]
    for subspace, count, flips, factor in bars:
        found = smallest_perturbations(
            model,
            images[:count],
            solver="cobyla",
            subspace=subspace,
        )
        assert found.flipped.mean() >= flips
        assert np.median(found.norms / ours.norms[:count]) <= factor
