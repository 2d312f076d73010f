"""Losses, updates, small batches, targets and clipping of an ascent, against plain references."""

import itertools
from typing import Any, get_args

import keras
import numpy as np
import pytest
import tensorflow as tf

from resfool.attacks import lowrank
from resfool.errors import InputError
from resfool.universal import ascent, losses, target_class, updates
from resfool.universal.judging import verdict
from resfool.universal.options import Loss, UpdateRule
from resfool.universal.vectors import applied
from resfool.values import Norm

SHAPE = (1, 2, 1)
LOGITS = np.array([[3, 1, 0], [40, 0, 1], [0, 9, 30], [2, 2.5, -1]], np.float32)
CLEAN_LOGITS = np.array([[4, 0, 0], [30, 1, 0], [8, 0, 1], [0, 5, 0]], np.float32)
OWN = np.array([0, 0, 0, 1])


def array(values: Any) -> np.ndarray:
    return np.array(values, np.float32)


def model_of(kernel: Any, bias: Any) -> keras.Model:
    dense = keras.layers.Dense(len(bias))
    model = keras.Sequential([keras.Input(SHAPE), keras.layers.Flatten(), dense])
    model.layers[-1].set_weights([array(kernel), array(bias)])
    return model


@pytest.fixture(scope="module")
def images() -> np.ndarray:
    return np.random.default_rng(0).uniform(0.4, 0.6, (40, *SHAPE)).astype(np.float32)


@pytest.fixture(scope="module")
def one_sided() -> keras.Model:
    """All images in [0.4, 0.6] are of class 0, and at most 0.3 from class 1, along (-0.6, 0.8)."""
    return model_of([[0.6, -0.6], [-0.8, 0.8]], [0.26, -0.26])


AWAY = np.array([-0.6, 0.8])


def raised(loss: str, own: np.ndarray, *, targeted: bool) -> np.ndarray:
    logits, clean_logits, own = map(tf.constant, (LOGITS, CLEAN_LOGITS, own))
    outcome = losses.Outcome(logits, clean_logits, own, targeted, scale=2.0)
    return np.asarray(losses.RAISED[loss](outcome))


def margins(own: np.ndarray) -> np.ndarray:
    """How far each image's class is ahead of the best other, by a plain loop."""
    rows = zip(LOGITS.tolist(), own, strict=True)
    return np.array([z.pop(one) - max(z) for z, one in rows])


def cross_entropies(own: np.ndarray) -> np.ndarray:
    logits = LOGITS.astype(np.float64)
    return np.log(np.exp(logits).sum(axis=1)) - logits[range(4), own]


@pytest.mark.parametrize("targeted", [False, True])
def test_losses_have_closed_forms(targeted: bool) -> None:
    own, side = (np.full(4, 2), -1) if targeted else (OWN, 1)
    left = side * margins(own)
    rates = 1 / (1 + np.exp(left / 2.0))
    np.testing.assert_allclose(raised("margin", own, targeted=targeted), rates, rtol=1e-5)
    leads = np.minimum(-left, 10.0)
    np.testing.assert_allclose(raised("logit", own, targeted=targeted), leads, rtol=1e-6)
    entropies = cross_entropies(own)
    expected = -entropies if targeted else np.minimum(entropies, 9.0)
    found = raised("cross_entropy", own, targeted=targeted)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)


def test_the_cosine_is_that_of_the_angle() -> None:
    rows = zip(LOGITS, CLEAN_LOGITS, strict=True)
    expected = [-a @ b / np.linalg.norm(a) / np.linalg.norm(b) for a, b in rows]
    np.testing.assert_allclose(raised("cosine", OWN, targeted=False), expected, rtol=1e-6)


def test_every_loss_has_its_name() -> None:
    assert list(losses.RAISED) == list(get_args(Loss))


@pytest.mark.parametrize("loss", get_args(Loss))
@pytest.mark.parametrize("clip", [False, True])
def test_slopes_are_those_of_finite_differences(
    one_sided: keras.Model, images: np.ndarray, loss: Loss, clip: bool
) -> None:
    objective = ascent.Objective(one_sided, images, clip, 7, loss)
    vector, rows, step = array([[[0.1], [0.5]]]), np.arange(3, 20), 1e-3

    def value(at: np.ndarray) -> float:
        moved = images[rows] + at
        logits = one_sided(np.clip(moved, 0, 1) if clip else moved)
        before, own = (tf.constant(of[rows]) for of in (objective.logits, objective.own))
        outcome = losses.Outcome(logits, before, own, False, objective.scale)
        return float(np.mean(losses.RAISED[loss](outcome)))

    found = objective.slope(rows, vector)
    for place in np.ndindex(SHAPE):
        moved = np.zeros(SHAPE, np.float32)
        moved[place] = step
        difference = (value(vector + moved) - value(vector - moved)) / (2 * step)
        assert found[place] == pytest.approx(difference, rel=0.02, abs=2e-3)


def slopes() -> np.ndarray:
    return np.random.default_rng(1).normal(size=(6, *SHAPE)).astype(np.float32)


def test_adam_is_keras_adam() -> None:
    step, ones = updates.update("adam", "linf"), keras.Variable(np.zeros(SHAPE))
    theirs = keras.optimizers.Adam(updates.LONGEST, epsilon=1e-12)
    ours = np.zeros(SHAPE)
    for slope in slopes():
        ours += step(slope)
        theirs.apply([-slope], [ones])
    np.testing.assert_allclose(ours, np.asarray(ones), rtol=1e-4, atol=1e-5)


def test_momentum_adds_up_a_geometric_series() -> None:
    step, slope = updates.update("momentum", "l2"), array([[[3.0], [-4.0]]])
    for count in (1, 2, 3):
        expected = (1 - 0.8**count) / (1 - 0.8)
        np.testing.assert_allclose(step(slope).ravel(), expected * np.array([0.6, -0.8]), rtol=1e-6)


@pytest.mark.parametrize("kind", ["l2", "linf"])
@pytest.mark.parametrize("rule", get_args(UpdateRule))
def test_no_step_is_longer_than_endless_momentum(rule: UpdateRule, kind: Any) -> None:
    step, slope = updates.update(rule, kind), slopes()[0]
    lengths = [lowrank.sizes(step(slope)[np.newaxis], kind)[0] for _ in range(60)]
    assert max(lengths) <= 5 * (1 + 1e-5) and lengths[-1] == pytest.approx(5, rel=1e-4)


class Pulled:
    """A function whose gradient at a vector is the way to the mean of some rows' centres."""

    def __init__(self) -> None:
        self.images = np.random.default_rng(2).normal(size=(12, *SHAPE)).astype(np.float32)

    def slope(self, rows: np.ndarray, vector: np.ndarray) -> np.ndarray:
        return self.images[rows].mean(axis=0) - vector


def aggregated(parts: int) -> list[np.ndarray]:
    objective: Any = Pulled()
    options: Any = {"first_step": 0.04, "steps": 3, "images_per_step": 8, "aggregate": parts}
    path = ascent.ascend(
        objective,
        np.zeros(SHAPE, np.float32),
        update=lambda slope: slope,
        ahead=updates.steepest("linf"),
        retract=lambda vector: np.clip(vector, -1, 1),
        random=np.random.default_rng(5),
        **options,
    )
    return list(path)


def test_small_batches_are_met_one_after_the_other() -> None:
    random, centres = np.random.default_rng(5), Pulled().images
    vector = np.zeros(SHAPE)
    for number, found in enumerate(aggregated(4)):
        rows, length = random.permutation(12)[:8], 0.04 * (1 - number / 3)
        scout, met = vector, []
        for k in range(4):
            met.append(centres[rows[2 * k : 2 * k + 2]].mean(axis=0) - scout)
            scout = np.clip(scout + 5 * length * np.sign(met[-1]), -1, 1)
        vector = np.clip(vector + length * np.mean(met, axis=0), -1, 1)
        np.testing.assert_allclose(found, vector, rtol=1e-4, atol=1e-6)


def test_more_small_batches_than_images_are_one_image_each() -> None:
    for one, other in itertools.pairwise(aggregated(parts) for parts in (8, 9, 1000)):
        np.testing.assert_array_equal(one, other)


CHOICES = list(
    itertools.product(["margin", "cross_entropy", "logit"], get_args(UpdateRule), (1, 3))
)


@pytest.mark.parametrize(("loss", "update", "aggregate"), CHOICES)
def test_all_fool_everyone_where_one_direction_does(
    one_sided: keras.Model, images: np.ndarray, loss: Loss, update: UpdateRule, aggregate: int
) -> None:
    options: Any = {"loss": loss, "update": update, "aggregate": aggregate, "passes": 6}
    for norm in (Norm("l2", 0.5), Norm("linf", 0.4)):
        fit = ascent.gradient_trained(one_sided, images, norm=norm, images_per_step=20, **options)
        assert lowrank.sizes(fit.vector[np.newaxis], norm.kind)[0] <= norm.size * (1 + 1e-6)
        (rate,) = applied(one_sided, images, fit.vector[np.newaxis]).rates
        assert rate == max(fit.rates) == 1


@pytest.mark.parametrize("update", get_args(UpdateRule))
def test_the_cosine_turns_logits_around(update: UpdateRule) -> None:
    # Logits are pixels, and a long enough vector against them all turns them to the other side.
    images = np.random.default_rng(3).uniform(0.8, 1.0, (30, *SHAPE)).astype(np.float32)
    images[:, 0, 1] /= 4
    model = model_of(np.eye(2), np.zeros(2))
    options: Any = {"norm": Norm("l2", 2), "loss": "cosine", "passes": 6, "images_per_step": 6}
    fit = ascent.gradient_trained(model, images, update=update, **options)
    before, after = (x.reshape(30, 2) for x in (images, images + fit.vector))
    lengths = np.linalg.norm(before, axis=1) * np.linalg.norm(after, axis=1)
    assert max(fit.rates) == 1 and ((before * after).sum(axis=1) / lengths).mean() < 0


@pytest.mark.parametrize("loss", ["margin", "cross_entropy", "logit"])
def test_a_target_takes_images_of_other_classes_there(loss: Loss) -> None:
    # Class 1 lies to the right, class 2 above; the images are left and below.
    images = np.random.default_rng(3).uniform(0.1, 0.4, (30, *SHAPE)).astype(np.float32)
    model = keras.Sequential([keras.Input(SHAPE), keras.layers.Flatten(), keras.layers.Dense(3)])
    model.layers[-1].set_weights([array([[0, 1, 0], [0, 0, 1]]), array([0.5, 0, 0])])
    for target, along in ((1, [1, -1]), (2, [-1, 1])):
        fit = ascent.gradient_trained(
            model,
            images,
            norm=Norm("linf", 0.6),
            loss=loss,
            target=target,
            passes=5,
            images_per_step=6,
        )
        classes = applied(model, images, fit.vector[np.newaxis]).classes[0]
        assert max(fit.rates) == (classes == target).mean() == 1
        assert fit.vector.ravel() @ along > 0
        judged = verdict(model, images, fit.vector, seed=0)
        assert judged.success_rates(target)["final_success_rate"] == 1
        other = judged.success_rates(3 - target)["final_success_rate"]
        assert other == 0
    with pytest.raises(InputError, match="target=0 leaves nothing to do"):
        ascent.gradient_trained(model, images, norm=Norm("l2", 1), target=0)


def test_success_is_counted_among_images_of_other_classes(one_sided: keras.Model) -> None:
    # Two images are of class 1 already, and of the three others the vector moves one.
    shift = array([0.3, 0.9, 0.1, 0.6, 0.95])
    images = np.stack([np.full(5, 0.5, np.float32), shift], axis=1).reshape(5, *SHAPE)
    clean = images.reshape(5, 2) @ AWAY > 0.26
    vector = array([[[0.0], [0.12]]])
    moved = (images + vector).reshape(5, 2) @ AWAY > 0.26
    found = verdict(one_sided, images, vector, seed=0).success_rates(1)["final_success_rate"]
    assert found == (moved & ~clean).sum() / (~clean).sum() == 1 / 3


def test_fitting_on_clipped_images_leaves_out_what_clipping_takes_back() -> None:
    # The first pixel is white and counts most: raising it fools, but not once it is clipped.
    images = np.ones((20, *SHAPE), np.float32)
    images[:, 0, 1, 0] = np.random.default_rng(4).uniform(0.4, 0.5, 20)
    model = model_of([[-3, 3], [-1, 1]], [3.7, -3.7])
    rates = {}
    for clip in (False, True):
        vector = ascent.gradient_trained(
            model, images, norm=Norm("l2", 0.4), clip=clip, images_per_step=10
        ).vector
        for judged in (False, True):
            found = applied(model, images, vector[np.newaxis], clip=judged)
            rates[clip, judged] = found.rates[0]
    assert rates[False, False] == 1 and rates[False, True] < 0.5
    assert rates[True, True] == 1


def test_a_target_is_a_name_or_else_a_number() -> None:
    assert target_class.number_of("cat", ("dog", "cat")) == 1
    assert target_class.number_of("1", ("dog", "cat")) == 1
    assert target_class.number_of("1", ("1", "0")) == 0
    for wrong in ("2", "-1", "²", "Cat "):
        with pytest.raises(InputError, match="unknown target class"):
            target_class.number_of(wrong, ("dog", "cat"))


def test_a_start_is_sought_where_zero_leads_nowhere(monkeypatch: pytest.MonkeyPatch) -> None:
    """The class that comes second is out of reach, and hides from the margin the one that isn't."""
    model = model_of([[0, 0.1, 0], [0, 0, 1]], [0.5, 0.1, 0.0])
    images = np.zeros((20, *SHAPE), np.float32)
    options: Any = {"norm": Norm("l2", 0.6), "passes": 3}
    plain = ascent.gradient_trained(model, images, starts=1, **options)
    assert plain.rates[-1] == 1  # stripes see what the margin doesn't
    monkeypatch.setattr(ascent, "_PLAIN", ())
    for starts, rate in ((0, 0), (1, 0), (2, 1)):
        found = ascent.gradient_trained(model, images, starts=starts, **options)
        assert found.rates[-1] == rate


def test_a_pattern_stays_as_it_is_where_nothing_does_more(
    one_sided: keras.Model, images: np.ndarray
) -> None:
    options: Any = {"norm": Norm("l2", 0.6), "passes": 2}
    kept = ascent.gradient_trained(one_sided, images, **options)
    np.testing.assert_allclose(kept.vector.ravel(), [-0.6 / 2**0.5, 0.6 / 2**0.5], rtol=1e-5)
    trained = ascent.gradient_trained(one_sided, images, starts=0, **options)
    assert max(kept.rates) == 1 and max(trained.rates) > 0.9
    assert not np.allclose(kept.vector, trained.vector, atol=0.01)


def test_plain_patterns_are_those_that_do_most() -> None:
    # Both pixels raise class 1, the second one more; with a target the first one takes to class 2.
    model = model_of([[0, 1, 3], [0, 2, 0]], [0.5, 0.0, 0.0])
    images = np.full((6, *SHAPE), 0.05, np.float32)
    for target, sides in ((None, {(-1, 1), (1, -1)}), (2, {(1, -1)}), (1, {(-1, 1)})):
        objective = ascent.Objective(model, images, False, 4, target=target)
        best, *_ = ascent._plain_patterns(objective, Norm("linf", 0.4))
        assert tuple(np.sign(best).ravel()) in sides
        assert objective.rates(np.arange(6), best[np.newaxis]) == 1


def test_the_start_that_does_most_in_the_end_is_kept() -> None:
    """Steps have no length here, so rates decide between starts as they are."""
    model = model_of([[0, 0], [-1, 1]], [0.0, 0.0])
    images = np.zeros((40, *SHAPE), np.float32)
    objective = ascent.Objective(model, images, False, 40)
    objective.own[:30] = 1  # of which a start fools all, or only the others
    raised = array([[[0.0], [0.5]]])
    options: Any = {"retract": lambda vector: vector, "first_step": 0.0, "images_per_step": 5}
    options |= {"random": np.random.default_rng(0)}
    begun = [raised, -raised]
    kept = ascent._best_start(objective, objective, begun, lambda: np.zeros_like, options)
    np.testing.assert_array_equal(kept, -raised)
    np.testing.assert_allclose(
        objective.rates(np.arange(40), np.stack([raised, -raised])), [1 / 4, 3 / 4]
    )


def test_starts_are_chosen_on_images_that_they_do_not_draw_from() -> None:
    model = model_of([[0, 0], [-1, 1]], [0.0, 0.0])
    images = np.zeros((40, *SHAPE), np.float32)
    objective = ascent.Objective(model, images, False, 40)
    objective.own[:30] = 1
    raised = array([[[0.0], [0.5]]])
    options: Any = {"retract": lambda vector: vector, "first_step": 0.0, "images_per_step": 5}
    options |= {"random": np.random.default_rng(0)}
    for learnt, judged, best in ((30, 10, raised), (10, 30, -raised)):
        rows = np.arange(40) if learnt == 30 else np.arange(40)[::-1]
        learning, judging = (objective.picked(part) for part in (rows[:learnt], rows[learnt:]))
        assert len(judging.images) == len(judging.own) == len(judging.logits) == judged
        own = ascent._best_start(
            learning, judging, [raised, -raised], lambda: np.zeros_like, options
        )
        np.testing.assert_array_equal(own, best)
    for count, most in ((1, 1), (9, 9), (10, 5), (50, 25), (1000, 250)):
        seen, unseen = ascent._divided(count, np.random.default_rng(0))
        assert sorted({*seen, *unseen}) == list(range(count))
        both = count if count < 10 else 0
        assert len(unseen) == most and len(seen) == count - most + both
        assert len({*seen} & {*unseen}) == both


def test_starts_are_sought_towards_the_classes_that_are_least_behind() -> None:
    logits = array([[9, 1, 0, 2], [9, 0, 1, 4], [0, 9, 1, 3], [8, 0, 0, 3]])
    model = model_of(np.zeros((2, 4)), np.zeros(4))
    images = np.zeros((4, *SHAPE), np.float32)
    objective = ascent.Objective(model, images, False, 4, logits=logits)
    # Behind by 9, (8 + 9 + 8) / 3, (9 + 8 + 8 + 8) / 4 and (7 + 5 + 6 + 5) / 4.
    assert ascent._nearest(objective, 2) == [3, 2]
    assert ascent._nearest(objective, 9) == [3, 2, 1, 0]
    objective.own[:], objective.logits[2, 0] = 0, 10
    assert ascent._nearest(objective, 9) == [3, 1, 2]  # none is of another class than 0
