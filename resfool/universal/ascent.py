"""Universal perturbations by stochastic gradient ascent, to compare with."""

import copy
import functools
import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol

import keras
import numpy as np
import tensorflow as tf

from resfool.classifiers import inference
from resfool.classifiers.inference import BATCH_SIZE, Images
from resfool.universal import losses, patterns, target_class, updates
from resfool.universal.options import Loss, UpdateRule
from resfool.universal.vectors import (
    Best,
    Fit,
    Report,
    classes_of,
    perturbed_by,
    projected,
    random_vectors,
)
from resfool.values import Norm, NormKind

# Of an ascent as a share of the norm; momentum multiplies it by up to 5.
FIRST_STEP: dict[NormKind, float] = {"l2": 0.04, "linf": 0.25}
_NOISE = 0.1  # that the cosine's ascent starts from, as a share of the norm
_STEPS_TOWARDS = 10  # to a class, where a start is sought
_ROUNDS = 15, 40  # steps from the starts that are left; then a third of them go on, then one
_JUDGED = 200, 250  # images that these are chosen on, of those that are set aside
_FEWEST = 10  # images, of which some can be set aside
_MANY = 500  # images, of which none need be set aside once a start is chosen
_PLAIN = "checkerboard", "vertical", "horizontal"  # patterns that are starts
_BEST_PATTERNS = 2  # of them


def gradient_trained(
    model: keras.Model,
    images: np.ndarray,
    *,
    norm: Norm,
    passes: int = 3,
    seed: int = 0,
    loss: Loss = "margin",
    update: UpdateRule = "momentum",
    aggregate: int = 1,
    images_per_step: int = 12,
    starts: int = 10,
    target: int | None = None,
    clip: bool = False,
    batch_size: int = BATCH_SIZE,
    report: Report = lambda number, rate: None,
) -> Fit:
    """A universal perturbation in all pixels, trained by stochastic gradients and projected.

    A perturbation that fools most images takes most of them to one class or a few, and which ones
    is decided at the beginning. So it begins from nothing, from the plain patterns that fool most
    images, and from where short ascents towards some classes end. After a few steps as the loss
    says a third of these is kept, after some more the best one, which goes on.

    250 of the images, or half of fewer than 500, are set aside while starts are chosen, which
    happens on these. Fewer than 500 stay so: gradients are of the others, and these decide which
    pass was best, or that a pattern as it is was better. Few images are soon all fooled by what
    fools few others. Fewer than 10 are too few to decide; they do for both.

    Args:
        model: from images to logits.
        images: float32 (N, H, W, C) in [0, 1], to fit on.
        norm: the ball, of kind l2 or linf.
        passes: over the images.
        seed: of the order of the images.
        loss: what is raised, see `losses`.
        update: from gradients to steps, see `updates`.
        aggregate: small batches that the images of a step are divided into, see `ascend`.
        images_per_step: that each gradient is of. A few are best: many steps, which vary enough to
            leave a poor maximum.
        starts: classes that a start is sought towards, those whose logits are least behind, or all
            if there are fewer, and none with a target; with 0 it starts from nothing only.
        target: class that images of other classes shall become, on which alone it is fitted; None
            is any other than their own. The cosine has none.
        clip: keep perturbed images in [0, 1].
        batch_size: images per pass, at most.
        report: is told each pass and the fooling rate after it, or with a target the success rate,
            of all images or, if they are few, of those that were set aside.

    Raises:
        InputError: all images are of the target's class.

    Source: Shafahi et al., "Universal adversarial training", arXiv:1811.11304.
    """
    if target is not None:
        others = target_class.of_other_classes(model, images, target, batch_size)
        images = images if len(others) == len(images) else images[others]
    shape = images.shape[1:]
    start = np.zeros(shape, np.float32)
    if loss == "cosine":  # its slope is zero where nothing is turned
        start = random_vectors(shape, np.array([_NOISE * norm.size]), norm.kind, seed)[0]
    random = np.random.default_rng(seed)
    objective = Objective(model, images, clip, batch_size, loss, target)
    learning, judging = map(objective.picked, _divided(len(images), random))
    own: Any = {"retract": lambda vector: projected(vector, norm), "random": random}
    own |= {"first_step": FIRST_STEP[norm.kind] * norm.size, "images_per_step": images_per_step}
    own |= {"ahead": updates.steepest(norm.kind)}
    ready: list[np.ndarray] = []  # which may be the best of few images as they are
    if starts:
        fresh = functools.partial(updates.update, update, norm.kind)
        plain = _plain_patterns(objective, norm)
        begun = [start, *plain]
        if target is None:
            begun += _towards(learning, start, _nearest(objective, starts), fresh, own)
        start = _best_start(learning, judging, begun, fresh, own)
        ready = [*plain, start]
    if len(images) >= _MANY:
        learning, judging, ready = objective, objective, []
    options: Any = {"clip": clip, "batch_size": batch_size, "targeted": objective.targeted}
    best = Best(model, judging.images, judging.own, **options)
    for vector in ready:
        best.meet(vector)
    steps = -(-len(images) // images_per_step)
    path = ascend(
        learning,
        start,
        update=updates.update(update, norm.kind),
        steps=passes * steps,
        aggregate=aggregate,
        **own,
    )
    rates = []
    for number in range(passes):
        *_, vector = itertools.islice(path, steps)
        rates.append(best.meet(vector))
        report(number, rates[-1])
    return Fit(best.vector, rates)


def _divided(count: int, random: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Numbers of the images that gradients are of, and of those that are set aside."""
    order = random.permutation(count)
    apart = min(_JUDGED[-1], count // 2) if count >= _FEWEST else 0
    return order[apart:], order[:apart] if apart else order


def _nearest(objective: "Objective", most: int) -> list[int]:
    """The classes whose logits are least behind on average, of images of others; nearest first."""
    own = np.eye(objective.logits.shape[1], dtype=bool)[objective.own]
    behind = objective.logits[own][:, np.newaxis] - objective.logits
    others = (~own).sum(axis=0)
    mean = np.where(own, 0.0, behind).sum(axis=0) / np.maximum(others, 1)
    order = np.argsort(np.where(others > 0, mean, np.inf), kind="stable")
    return [int(number) for number in order[:most] if others[number]]


def _plain_patterns(objective: "Objective", norm: Norm) -> list[np.ndarray]:
    """The checkerboards and stripes that do most to a few images; none where they don't fit."""
    found = [each for _, each in patterns.candidates(objective.images.shape[1:], _PLAIN, 1, 0)]
    if not found:
        return []
    vectors = patterns.sized(np.stack(found), norm)
    look = np.arange(min(patterns.FIRST_IMAGES, len(objective.images)))
    rates = objective.rates(look, vectors)
    return list(vectors[np.argsort(-rates, kind="stable")[:_BEST_PATTERNS]])


def _towards(
    objective: "Objective",
    start: np.ndarray,
    classes: Sequence[int],
    update: Callable[[], updates.Update],
    options: dict[str, Any],
) -> Iterator[np.ndarray]:
    """Where short ascents from a start towards classes end."""
    for target in classes:
        aim = objective.towards(target, np.flatnonzero(objective.own != target))
        *_, vector = ascend(aim, start, update=update(), steps=_STEPS_TOWARDS, **options)
        yield vector


def _best_start(
    learning: "Objective",
    judging: "Objective",
    begun: list[np.ndarray],
    update: Callable[[], updates.Update],
    options: dict[str, Any],
) -> np.ndarray:
    """Of starts, as ascents take them on, what does most to other images in the end."""
    for steps, images in zip(_ROUNDS, _JUDGED, strict=True):
        ends = [
            list(ascend(learning, each, update=update(), steps=steps, **options))[-1]
            for each in begun
        ]
        kept = 1 if steps == _ROUNDS[-1] else -(-len(ends) // 3)
        look = np.arange(min(images, len(judging.images)))
        order = np.argsort(-judging.rates(look, np.stack(ends)), kind="stable")
        begun = [ends[number] for number in order[:kept]]
    return begun[0]


class Objective:
    """What an ascent raises: a loss of images, float32 (N, H, W, C) in [0, 1].

    A pass takes at most `batch_size` of them.
    By default it is a smooth fooling rate: an image counts as sigmoid(-margin / scale). The margin
    is how far the logit of its clean class is ahead of the best other, the scale half the mean
    margin without a perturbation. With a target the margin is how far that is behind.
    """

    def __init__(
        self,
        model: keras.Model,
        images: Images,
        clip: bool,
        batch_size: int,
        loss: Loss = "margin",
        target: int | None = None,
        logits: np.ndarray | None = None,
    ) -> None:
        self.model, self.clip = model, clip
        self.images: Images = images
        self.batch_size = batch_size
        self.loss, self.targeted = loss, target is not None
        self.logits = inference.logits(model, images, batch_size) if logits is None else logits
        self.own = inference.predicted(self.logits)
        first, second = np.partition(self.logits, (-2, -1), axis=1)[:, [-1, -2]].T
        if target is not None:
            second = self.logits[:, target]
            self.own = np.full_like(self.own, target)
        self.scale = max(float((first - second).mean()) / 2, 1e-6)

    def towards(self, target: int, rows: np.ndarray) -> "Objective":
        """The smooth rate at which some rows' images become a class."""
        images, logits = self.images[rows], self.logits[rows]
        own: Any = {"target": target, "logits": logits}
        return Objective(self.model, images, self.clip, self.batch_size, "margin", **own)

    def picked(self, rows: np.ndarray) -> "Objective":
        """The same for some rows' images, with the scale of all."""
        part = copy.copy(self)
        part.images, part.logits, part.own = self.images[rows], self.logits[rows], self.own[rows]
        return part

    def rates(self, rows: np.ndarray, vectors: np.ndarray) -> np.ndarray:
        """For vectors (K, H, W, C) the shares (K,) of rows' images that do what is wanted."""
        own: Any = {"clip": self.clip, "batch_size": self.batch_size}
        found = [classes_of(self.model, self.images[rows], each, **own) for each in vectors]
        hits = (np.stack(found) == self.own[rows]) == self.targeted
        return np.asarray(hits.mean(axis=1))

    def slope(self, rows: np.ndarray, vector: np.ndarray) -> np.ndarray:
        """The mean loss's gradient with respect to the vector (H, W, C), over some rows' images."""
        slope_of = inference.compiled(self.model, _slope)
        moved = tf.constant(self.scale), tf.constant(vector)
        settings = self.clip, self.loss, self.targeted
        slope = np.zeros_like(vector)
        for part in inference.batches(len(rows), self.batch_size):
            # As they are: what fills up a batch would weigh as an image.
            of_images = self.images, self.logits, self.own
            tensors = (tf.constant(of[rows[part]]) for of in of_images)
            share = np.float32((part.stop - part.start) / len(rows))
            slope += share * slope_of(*tensors, *moved, *settings).numpy()
        return slope


class Raised(Protocol):
    """What an ascent needs of its objective."""

    @property
    def images(self) -> Images:
        """(N, ...), of which each step takes some."""

    def slope(self, rows: np.ndarray, vector: np.ndarray) -> np.ndarray:
        """The gradient with respect to the vector, of its shape, over some rows' images."""


def ascend(
    objective: Raised,
    start: np.ndarray,
    *,
    update: updates.Update,
    retract: Callable[[np.ndarray], np.ndarray],
    first_step: float,
    steps: int,
    random: np.random.Generator,
    images_per_step: int,
    ahead: updates.Direction | None = None,
    aggregate: int = 1,
) -> Iterator[np.ndarray]:
    """Stochastic gradient ascent with shrinking steps.

    Args:
        objective: what to raise.
        start: float32 (H, W, C).
        update: from a gradient to a step; a new one, since it remembers.
        retract: from where a step ended to the nearest vector that is allowed.
        first_step: its length; the last one's is nearly nothing.
        steps: how many.
        random: picks the images of each step.
        images_per_step: how many of them, at most.
        ahead: from a small batch's gradient to a step of norm 1, where there are several.
        aggregate: small batches that the images of a step are divided into. Another vector goes
            ahead, a step after each of them, and the step is along the mean of the gradients that
            it met: those of small batches, which vary enough to leave a poor maximum, without their
            quantised steps.

    Yields:
        The vector after each step, float32 (H, W, C).

    Source of the aggregation: Liu et al., "Enhancing generalization of universal adversarial
    perturbation through gradient aggregation", arXiv:2308.06015, Algorithm 1; there the small
    batches are drawn anew, four times as many.
    """
    vector = start
    for step in range(steps):
        rows = random.permutation(len(objective.images))[:images_per_step]
        length = first_step * (1 - step / steps)
        scout, slope = vector, np.zeros_like(vector)
        parts = np.array_split(rows, min(aggregate, len(rows)))
        for part in parts:
            found = objective.slope(part, scout)
            slope += found * np.float32(len(part) / len(rows))
            if ahead is not None and len(parts) > 1:
                scout = retract(
                    (scout + updates.LONGEST * length * ahead(found)).astype(np.float32)
                )
        vector = retract((vector + length * update(slope)).astype(np.float32))
        yield vector


def _slope(
    model: keras.Model,
    images: Any,
    clean_logits: Any,
    own: Any,
    scale: Any,
    vector: Any,
    clip: bool,
    loss: Loss,
    targeted: bool,
) -> Any:
    """The mean loss's gradient with respect to the vector."""
    with tf.GradientTape(watch_accessed_variables=False) as tape:
        tape.watch(vector)
        logits = model(perturbed_by(images, vector, clip), training=False)
        outcome = losses.Outcome(logits, clean_logits, own, targeted, scale)
        raised = tf.reduce_mean(losses.RAISED[loss](outcome))
    return tape.gradient(raised, vector)
