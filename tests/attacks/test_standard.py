"""The attacks of the standard, alone and one after the other, against what is known exactly."""

from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf

from resfool.attacks import balls, examples, lowrank, presentation
from resfool.attacks.epsilons import Curve, over_epsilons
from resfool.attacks.gradient import judged, sign_gradients
from resfool.attacks.leads import safe_leads
from resfool.attacks.methods import apgd, fab, square
from resfool.attacks.methods.moving import Start
from resfool.attacks.methods.pursuit import Pursuer, pursue
from resfool.attacks.methods.targets import nearest_targets
from resfool.attacks.methods.task import Answer, Task, in_turns
from resfool.attacks.options import HowToAttack, MeasureParameters
from resfool.classifiers import adapting, inference
from resfool.classifiers.interface import Interface
from resfool.errors import InputError
from resfool.monitor import quiet
from resfool.values import BallNorm
from tests.attacks.test_gradient import SHAPE, linear_model, mid_grey_images, weights

NORMS: list[BallNorm] = ["linf", "l2"]


def how(**given: Any) -> HowToAttack:
    """As the command line gives it: a norm is a word."""
    return HowToAttack(**given)


def logits_of(model: keras.Model, images: np.ndarray) -> np.ndarray:
    """Of a linear model, in float64."""
    bias = model.get_layer("linear").get_weights()[1].astype(np.float64)
    return images.reshape(len(images), -1).astype(np.float64) @ weights(model) + bias


def exact_distances(model: keras.Model, images: np.ndarray, norm: BallNorm) -> np.ndarray:
    """How far the boundary with each class is from images of a linear model, (N, classes)."""
    z, kernel = logits_of(model, images), weights(model)
    rows, own = np.arange(len(z)), z.argmax(axis=1)
    slopes = kernel.T[np.newaxis] - kernel.T[own][:, np.newaxis]
    rates = np.linalg.norm(slopes, 1 if norm == "linf" else 2, axis=2)
    with np.errstate(invalid="ignore"):
        found = (z[rows, own][:, np.newaxis] - z) / rates
    found[rows, own] = np.inf
    return found


def task_of(model: keras.Model, images: np.ndarray, radii: Any, **options: Any) -> Task:
    logits = inference.logits(model, images)
    labels = logits.argmax(axis=1).astype(np.int32)
    radii = np.broadcast_to(np.float32(radii), labels.shape)
    leads = safe_leads(model, images, labels, logits).astype(np.float32)
    return Task(model, images, labels, radii, leads, **options)


def curved_model() -> keras.Model:
    """Of four classes, with a layer of tanh."""
    keras.utils.set_random_seed(0)
    inputs = keras.Input(SHAPE)
    hidden = keras.layers.Dense(20, activation="tanh")(keras.layers.Flatten()(inputs))
    return keras.Model(inputs, keras.layers.Dense(4)(hidden))


# On linear models, whose smallest perturbations have a closed form.


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("classes", [2, pytest.param(3, marks=pytest.mark.slow), 5])
def test_targeted_apgd_fools_what_a_linear_model_lets_be_fooled(
    classes: int, norm: BallNorm
) -> None:
    model, images = linear_model(classes), mid_grey_images(40)
    exact = exact_distances(model, images, norm).min(axis=1)
    radii = exact * np.where(np.arange(40) % 2, 1.01, 0.99)
    asked = task_of(model, images, radii, norm=norm, clip=classes != 3)
    targets = nearest_targets(asked, 1)
    found = apgd.apgd(asked, loss="targeted", targets=targets, steps=20)
    np.testing.assert_array_equal(found.fooled, radii > exact)
    np.testing.assert_array_equal(found.moved[~found.fooled], images[~found.fooled])


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("classes", [2, 6])
def test_fab_finds_the_closed_form(classes: int, norm: BallNorm) -> None:
    model, images = linear_model(classes), mid_grey_images(40)
    exact = exact_distances(model, images, norm).min(axis=1)
    asked = task_of(model, images, 0.0, norm=norm, clip=classes == 6)
    found = fab.fab(asked, targets=nearest_targets(asked, 3), steps=12)
    sizes = lowrank.sizes(found.moved - images, norm)
    # Another class must be clearly ahead, which is a little beyond the boundary.
    z = np.sort(logits_of(model, images), axis=1)
    beyond = asked.leads * exact / (z[:, -1] - z[:, -2])
    assert found.fooled.all()
    assert (sizes > exact).all()
    assert (sizes < 1.0003 * exact + 2 * beyond).all()


@pytest.mark.parametrize("norm", NORMS)
def test_targets_come_in_the_order_of_the_boundaries(norm: BallNorm) -> None:
    model, images = linear_model(6), mid_grey_images(30)
    found = nearest_targets(task_of(model, images, 0.1, norm=norm, batch_size=7), 4)
    np.testing.assert_array_equal(
        found, exact_distances(model, images, norm).argsort(axis=1)[:, :4]
    )


@pytest.mark.parametrize("norm", NORMS)
def test_square_needs_no_gradient(norm: BallNorm) -> None:
    """It fools well beyond the boundary, and never before it."""
    model, images = linear_model(3), mid_grey_images(40)
    exact = exact_distances(model, images, norm).min(axis=1)
    near = square.square(task_of(model, images, 0.99 * exact, norm=norm), queries=100)
    assert not near.fooled.any()
    far = square.square(task_of(model, images, 4 * exact, norm=norm), queries=400)
    assert far.fooled.mean() > 0.9


def test_one_sigmoid_unit_is_attacked_as_two_classes() -> None:
    inputs = keras.Input((4, 5, 3))
    unit = keras.layers.Dense(1, activation="sigmoid")
    theirs = keras.Model(inputs, unit(keras.layers.Flatten()(inputs)))
    kernel = np.random.default_rng(0).normal(size=(60, 1))
    unit.set_weights([kernel, -kernel.sum(axis=0) / 2])
    model = adapting.as_classifier(
        theirs, image_shape=(4, 5, 3), classes=None, interface=Interface(), name="one unit"
    )
    images = mid_grey_images(30)
    z = (images.reshape(30, -1).astype(np.float64) - 0.5) @ kernel[:, 0]
    exact = np.abs(z) / np.abs(kernel).sum()
    epsilons = tuple(np.quantile(exact, [0.2, 0.7]))
    asked = how(method="standard", effort="quick", epsilons=epsilons)
    curve = over_epsilons(model, images, (z > 0).astype(int), asked)
    assert [row["robust_accuracy"] for row in curve.rows] == [
        pytest.approx((exact > epsilon).mean()) for epsilon in epsilons
    ]


# APGD's rule, beside a slow plain reference.


def test_checkpoints_are_those_of_the_paper() -> None:
    assert apgd.checkpoints(100) == [22, 41, 57, 70, 80, 87, 93, 99]
    assert apgd.checkpoints(20)[:3] == [5, 9, 12]


def plain_ascent(
    model: keras.Model, image: np.ndarray, start: np.ndarray, label: int, epsilon: float, steps: int
) -> tuple[np.ndarray, float, float]:
    """Algorithm 1 for one image in the l-infinity ball: best point, its loss, last step size."""

    def look(x: np.ndarray) -> tuple[float, np.ndarray]:
        with tf.GradientTape() as tape:
            point = tf.constant(x[np.newaxis])
            tape.watch(point)
            z = model(point)[0]
            others = [z[j] for j in range(len(z)) if j != label]
            loss = tf.reduce_logsumexp(tf.stack(others)) - z[label]
        return float(loss), tape.gradient(loss, point).numpy()[0]

    def project(x: np.ndarray) -> np.ndarray:
        low, high = np.maximum(image - epsilon, 0), np.minimum(image + epsilon, 1)
        return np.clip(x, low, high).astype(np.float32)

    loss, slope = look(start)
    point, before, size = start, start, 2 * epsilon
    best, best_loss, best_slope = start, loss, slope
    last, size_then, best_then, rises = 0, size, -np.inf, 0
    for k in range(1, steps + 1):
        there = project(point + size * np.sign(slope))
        if k > 1:
            there = project(point + 0.75 * (there - point) + 0.25 * (point - before))
        point, before, loss_before = there, point, loss
        loss, slope = look(point)
        rises += loss > loss_before
        if loss > best_loss:
            best, best_loss, best_slope = point, loss, slope
        if k in apgd.checkpoints(steps):
            stuck = size == size_then and best_loss == best_then
            size_then, best_then = size, best_loss
            if rises < 0.75 * (k - last) or stuck:
                size /= 2
                point, loss, slope = best, best_loss, best_slope
            last, rises = k, 0
    return best, best_loss, size


def test_apgd_is_what_a_plain_loop_does() -> None:
    model, images, steps = curved_model(), mid_grey_images(4), 30
    asked = task_of(model, images, 0.002)  # nothing is fooled, so nothing ends early
    starts = asked.starts(0)
    state = apgd._beginning(asked, starts)
    none = np.full(4, -1, np.int32)
    fixed = asked.norm, asked.bounds, "cross_entropy"
    in_turns(asked, apgd._climb, [none], state, apgd._turns(steps), *fixed)
    assert not state[-1].any()
    for i in range(4):
        label = int(asked.labels[i])
        best, loss, size = plain_ascent(model, images[i], starts[i], label, 0.002, steps)
        assert state[5][i] == pytest.approx(loss, abs=1e-5)
        assert state[6][i] == pytest.approx(size, rel=1e-5)
        assert (np.abs(state[3][i] - best) > 1e-5).mean() < 0.05


def test_the_ratio_of_logits_is_that_of_the_paper() -> None:
    logits = np.array([[3.0, 1.0, 0.5, -1.0, -2.0]], np.float32)
    label, target = np.array([0]), np.array([2])
    found = float(apgd.losses(tf.constant(logits), label, target, "targeted")[0])
    assert found == pytest.approx(-(3.0 - 0.5) / (3.0 - (0.5 - 1.0) / 2))
    of_three = float(apgd.losses(tf.constant(logits[:, :3]), label, target, "targeted")[0])
    assert of_three == pytest.approx(0.5 - 3.0)
    scaled = float(apgd.losses(tf.constant(1e4 * logits), label, target, "targeted")[0])
    assert scaled == pytest.approx(found, rel=1e-5)


def test_the_cross_entropy_does_not_saturate() -> None:
    model, images = linear_model(3, scale=1e4), mid_grey_images(30)
    exact = exact_distances(model, images, "linf").min(axis=1)
    found = apgd.apgd(task_of(model, images, 1.3 * exact), steps=20)
    assert found.fooled.mean() > 0.9


# Geometry


@pytest.mark.parametrize("norm", NORMS)
def test_the_nearest_point_of_a_plane_in_the_box(norm: BallNorm) -> None:
    random = np.random.default_rng(2)
    points = random.random((50, 3, 3, 1)).astype(np.float32)
    slopes = random.normal(size=points.shape).astype(np.float32)
    most = np.where(slopes > 0, 1 - points, points) * np.abs(slopes)
    gaps = (random.uniform(0, 0.95, 50) * most.sum(axis=(1, 2, 3))).astype(np.float32)
    steps = balls.reaching(points, slopes, tf.constant(gaps), norm, (0.0, 1.0)).numpy()
    np.testing.assert_allclose((slopes * steps).sum(axis=(1, 2, 3)), gaps, rtol=1e-4, atol=1e-5)
    assert (points + steps).min() > -1e-6 and (points + steps).max() < 1 + 1e-6
    # Nothing shorter reaches: by bisection, how far all pixels go at their pace.
    pace = np.ones_like(slopes) if norm == "linf" else np.abs(slopes)
    room = np.where(slopes > 0, 1 - points, points)
    low, high = np.zeros((50, 1, 1, 1)), np.full((50, 1, 1, 1), 100.0)
    for _ in range(60):
        far = (low + high) / 2
        enough = (np.abs(slopes) * np.minimum(far * pace, room)).sum(
            axis=(1, 2, 3), keepdims=True
        ) >= gaps.reshape(-1, 1, 1, 1)
        low, high = np.where(enough, low, far), np.where(enough, far, high)
    reference = np.sign(slopes) * np.minimum(high * pace, room)
    np.testing.assert_allclose(steps, reference, atol=2e-4)
    # And back, where the function is to fall.
    back = balls.reaching(points, -slopes, tf.constant(-gaps), norm, (0.0, 1.0)).numpy()
    np.testing.assert_array_equal(back, steps)


@pytest.mark.parametrize("size", [1, 2, 5, 8])
def test_heaps_have_norm_1_and_a_pit_beside(size: int) -> None:
    heap = square.heaps(size, np.random.default_rng(0))
    assert heap.shape == (size, size)
    assert np.linalg.norm(heap) == pytest.approx(1)
    assert size == 1 or ((heap > 0).any() and (heap < 0).any())


def test_the_search_in_l2_uses_all_of_the_ball() -> None:
    random = np.random.default_rng(0)
    moves = random.normal(size=(4, 8, 8, 3)).astype(np.float32)
    moves *= 0.7 / np.linalg.norm(moves.reshape(4, -1), axis=1).reshape(-1, 1, 1, 1)
    _, (written, taken) = next(square._turns(random, (8, 8, 3), 5, "l2"))
    for heap, window in zip(written, taken, strict=True):
        found = square._heaped(moves, np.full(4, 1.5, np.float32), heap, window).numpy()
        np.testing.assert_allclose(lowrank.sizes(found, "l2"), 1.5, rtol=1e-5)
        elsewhere = (heap == 0) & (window == 0)
        np.testing.assert_array_equal(found[:, elsewhere], moves[:, elsewhere])
        assert not found[:, (heap == 0) & (window == 1)].any()


def test_windows_shrink_as_published() -> None:
    sides = [square.side(query, 5000, 32, 32) for query in range(5000)]
    assert sides[0] == round((0.8 * 1024) ** 0.5) and sides[-1] == 1
    assert sides == sorted(sides, reverse=True)
    assert square.side(0, 10, 1, 3) == 1


def test_a_lead_that_rounding_could_undo_does_not_count() -> None:
    # At an epsilon of 0.05 the two pixels are even: a hair beyond is not enough.
    images = np.tile(np.array([0.6, 0.5], np.float32), 3).reshape(3, 1, 2, 1)
    radii = np.array([0.05, 0.050001, 0.0501])
    found = apgd.apgd(task_of(pixels_are_logits(), images, radii), steps=10)
    assert found.fooled.tolist() == [False, False, True]


def test_small_differences_of_large_numbers_are_doubtful() -> None:
    # The logits are 1e4 times the pixels, less what leaves hardly anything of them.
    inputs = keras.Input((1, 2, 1))
    large = keras.layers.Rescaling(1e4)(keras.layers.Flatten()(inputs))
    model = keras.Model(inputs, keras.layers.Rescaling(1, -5e3)(large))
    images = np.array([0.5, 0.5001], np.float32).reshape(1, 1, 2, 1)
    logits = inference.logits(model, images)
    (safe,) = safe_leads(model, images, np.array([1]), logits)
    rounding = 5e3 * np.finfo(np.float32).eps
    assert np.abs(logits).max() < 2 and safe > 5 * rounding


# One after the other


def pixels_are_logits() -> keras.Model:
    images = keras.Input((1, 2, 1))
    return keras.Model(images, keras.layers.Flatten()(images))


class Planted:
    """An attack that fools what is less than some radius from being fooled, and keeps count."""

    def __init__(self, reach: float) -> None:
        self.reach, self.asked = reach, list[tuple[int, int]]()

    def __call__(self, asked: Task) -> Answer:
        radii = (10 * asked.radii).round().astype(int)
        self.asked += zip(asked.numbers.tolist(), radii.tolist(), strict=True)
        answer = Answer.none(asked)
        leads = asked.images[:, 0, 0, 0] - asked.images[:, 0, 1, 0]
        answer.fooled[:] = (asked.radii <= self.reach) & (leads / 2 < asked.radii)
        answer.moved[answer.fooled, 0, 0, 0] -= asked.radii[answer.fooled]
        answer.moved[answer.fooled, 0, 1, 0] += asked.radii[answer.fooled]
        return answer


def test_an_image_is_pursued_as_long_as_an_attack_succeeds() -> None:
    # Leads that are gone at 0.05, 0.15, 0.25 and 0.35; the last image is wrong by itself.
    first, second = [0.6, 0.7, 0.8, 0.9, 0.4], [0.5, 0.4, 0.3, 0.2, 0.5]
    images = np.stack([first, second], axis=1).astype(np.float32).reshape(5, 1, 2, 1)
    model, labels = pixels_are_logits(), np.zeros(5, int)
    start = Start(
        model, images, sign_gradients(model, images, labels), [0.1, 0.2, 0.3], True, 0, 250, quiet
    )
    weak, strong = Planted(reach=0.2), Planted(reach=1.0)
    attacks = [Pursuer("weak", weak, 1), Pursuer("strong", strong, 1)]
    moved = pursue(start, attacks, "linf")
    assert moved.attacks == ("weak", "strong") and moved.first is not None
    # The weak one fails at 0.3, so it isn't tried below. The strong one goes down with each image.
    assert weak.asked == [(0, 3), (1, 3), (2, 3), (3, 3)]
    assert sorted(strong.asked) == [
        *((0, 1), (0, 2), (0, 3), (1, 1), (1, 2), (1, 3), (2, 2), (2, 3), (3, 3)),
    ]
    np.testing.assert_array_equal(
        moved.first, [[1, -1, -1, -1, -1], [1, 1, -1, -1, -1], [1, 1, 1, -1, -1]]
    )
    np.testing.assert_array_equal(
        moved.outcome.classes, [[1, 0, 0, 0, 1], [1, 1, 0, 0, 1], [1, 1, 1, 0, 1]]
    )
    # At a larger epsilon an image is moved no farther than it must be.
    # They are moved no farther than they must be.
    assert moved.fooling is not None
    lengths = np.abs(moved.fooling - images).max(axis=(1, 2, 3))
    np.testing.assert_allclose(lengths, [0.1, 0.2, 0.3, 0, 0], atol=1e-6)


def test_what_is_not_seen_again_does_not_count() -> None:
    def liar(asked: Task) -> Answer:
        return Answer(asked.images, np.ones(len(asked.images), bool))

    images = np.array([0.6, 0.4], np.float32).reshape(1, 1, 2, 1)
    model = pixels_are_logits()
    first = sign_gradients(model, images, np.zeros(1, int))
    start = Start(model, images, first, [0.1], True, 0, 250, quiet)
    moved = pursue(start, [Pursuer("liar", liar, 1)], "linf")
    assert moved.outcome.classes.tolist() == [[0]]
    assert moved.first is not None and moved.first.tolist() == [[-1]]


@pytest.fixture(scope="module", params=NORMS)
def swept(request: pytest.FixtureRequest) -> tuple[keras.Model, Curve]:
    model, images = curved_model(), mid_grey_images(25)
    labels = inference.logits(model, images).argmax(axis=1)
    labels[:3] = (labels[:3] + 1) % 4
    epsilons = (0.0, 0.004, 0.01) if request.param == "linf" else (0.0, 0.03, 0.07)
    asked = how(method="standard", effort="quick", norm=request.param, epsilons=epsilons)
    return model, over_epsilons(model, images, labels, asked, batch_size=10)


def test_images_lie_in_their_balls_and_are_fooled_in_any_batch(
    swept: tuple[keras.Model, Curve],
) -> None:
    model, curve = swept
    everything = np.arange(len(curve.labels))
    assert 0 < curve.rows[1]["fooling_rate"] < curve.rows[2]["fooling_rate"]
    for number, epsilon in enumerate(curve.epsilons):
        moved = curve.move(everything, epsilon)
        assert lowrank.sizes(moved - curve.images, curve.norm).max() <= epsilon + 1e-6
        assert moved.min() >= 0 and moved.max() <= 1
        np.testing.assert_array_equal(moved[:3], curve.images[:3])  # wrong as they are
        for size in (1, 7, 25):
            seen = judged(model, curve.images[:], moved, batch_size=size).classes[0]
            np.testing.assert_array_equal(seen, curve.attacked.classes[number])


def test_every_image_is_accounted_for(swept: tuple[keras.Model, Curve]) -> None:
    _, curve = swept
    for row in curve.rows:
        fooled = sum(row[f"fooled_first_by_{name}"] for name in curve.attacks)
        assert fooled == pytest.approx(25 * row["fooling_rate"])
        assert 25 * row["robust_accuracy"] == pytest.approx(22 - fooled)
        assert row["robust_accuracy_low"] < row["robust_accuracy"] < row["robust_accuracy_high"]


def test_the_same_seed_gives_the_same_bits(swept: tuple[keras.Model, Curve]) -> None:
    model, curve = swept
    asked = how(method="standard", effort="quick", norm=curve.norm, epsilons=curve.epsilons)
    again = over_epsilons(model, curve.images, curve.labels, asked, batch_size=10)
    np.testing.assert_array_equal(
        again.move(np.arange(25), curve.epsilons[-1]), curve.move(np.arange(25), curve.epsilons[-1])
    )


def test_tables_and_words_say_what_was_found(swept: tuple[keras.Model, Curve]) -> None:
    _, curve = swept
    shown = examples.attacked("a model", "here", list("abcd"), curve, 0)
    last = curve.rows[-1]
    name = f"robust_accuracy_at_{curve.epsilons[-1]}"
    assert presentation.model_metrics(shown)[name] == last["robust_accuracy"]
    table = presentation.images_table(shown)
    counts = table["fooled_first_by"].value_counts()
    assert counts[""] == pytest.approx(25 * (1 - last["fooling_rate"]))
    summary = presentation.summary([shown]).splitlines()
    line = next(line for line in summary if "robust accuracy" in line)
    assert line.split()[-1] == f"{last['robust_accuracy']:.3f}"
    assert sum("fooled first by" in line for line in summary) == len(curve.attacks)


@pytest.mark.parametrize("batch_size", [7, pytest.param(1, marks=pytest.mark.slow)])
def test_the_batch_size_changes_nothing_of_a_linear_model(batch_size: int) -> None:
    model, images = linear_model(4), mid_grey_images(12)
    labels = logits_of(model, images).argmax(axis=1)
    asked = how(method="square", queries=60, epsilons=(0.02, 0.1))
    one, other = (
        over_epsilons(model, images, labels, asked, batch_size=size).attacked.classes
        for size in (12, batch_size)
    )
    np.testing.assert_array_equal(one, other)


# Bad input


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ({"method": "apgd", "norm": "l3"}, "norm must be linf or l2"),
        ({"method": "standard", "effort": "hard"}, "unknown effort 'hard'"),
        ({"method": "standard", "components": "apgd,sqare"}, "did you mean 'square'"),
        ({"method": "apgd", "effort": "quick"}, "it needs method=standard"),
        ({"method": "fgsm", "norm": "l2"}, "norm=l2 has no effect with method=fgsm"),
        ({"method": "square", "target_classes": 3}, "it needs method=apgd_targeted or fab"),
        (
            {"method": "apgd", "epsilons": "0,2"},
            "epsilons must be from 0 to 1, the range of a pixel",
        ),
        ({"method": "apgd", "norm": "l2", "epsilons": "0,nan"}, "must be from 0 to 1"),
    ],
)
def test_bad_input_is_refused_before_any_work(given: dict[str, Any], sentence: str) -> None:
    with pytest.raises(InputError) as caught:
        MeasureParameters.of(given)
    assert sentence in str(caught.value)


def test_epsilons_are_judged_by_the_images() -> None:
    large = how(method="apgd", norm="l2", epsilons=(1.0, 60.0))
    with pytest.raises(InputError, match=r"never farther apart than 55\.43"):
        large.check_images((32, 32, 3))
    large.check_images((224, 224, 3))
    with pytest.raises(InputError, match=r"give norm=l2 and epsilons=3"):
        how(method="apgd", norm="l2:3").check_images((8, 8, 1))
