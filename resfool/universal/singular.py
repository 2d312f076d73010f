"""Universal perturbations along singular vectors of a layer's Jacobian."""

import itertools
from collections.abc import Callable, Iterator
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from resfool.classifiers import inference, reaching
from resfool.classifiers.inference import BATCH_SIZE
from resfool.classifiers.reaching import Reached
from resfool.universal.updates import steepest
from resfool.universal.vectors import Fit, applied
from resfool.values import Norm, NormKind

Report = Callable[["Search"], None]  # is told each iteration of a search

LAYERS = 6  # that are tried, at most
POWERS = 2.0, 10.0  # that are tried; which is better, models and norms differ in
_ROUND = 5  # iterations, after which it is seen how well the vector fools
_IMAGES = 64  # whose Jacobians are looked at, at most; more find the same
_JUDGED = 250  # images by which signs and layers are compared, at most
_AT_REST = 1e-5  # a change of the entries of a vector of norm 1
_TINY = float(np.finfo(np.float32).tiny)
_DIFFERENCE = 1e-3  # of a pixel, where there are no second derivatives


def singular_trained(
    model: keras.Model,
    images: np.ndarray,
    *,
    norm: Norm,
    layer: str | None = None,
    power: float | None = None,
    passes: int = 10,
    seed: int = 0,
    clip: bool = False,
    batch_size: int = BATCH_SIZE,
    report: Report = lambda search: None,
) -> Fit:
    """A layer's (p, q)-singular vector, scaled to a norm and with the sign that fools more images.

    Without a layer all `candidates` are tried for a few iterations, and without a power both of
    POWERS are; that whose vector fools most goes on. The vector that fools most is kept: where the
    iterations come to rest in an l2 ball, it may be in a few pixels.

    Args:
        model: from images to logits.
        images: float32 (N, H, W, C) in [0, 1], to fit on: up to 64 for the vector, and up to 250
            for its sign and the choice of the layer.
        norm: of the result, of kind l2 (p = 2) or linf (p = inf).
        layer: a name of `reaching.layers`; None tries several.
        power: q, at least 1; None tries several.
        passes: iterations, at most.
        seed: of where they start.
        clip: keep perturbed images in [0, 1].
        batch_size: images per pass, at most.
        report: is told each iteration.

    Returns:
        The perturbation, and a row for each layer and power that was tried.

    Raises:
        InputError: there is no such layer.

    Source: Khrulkov & Oseledets, "Art of singular vectors and universal adversarial
    perturbations", arXiv:1709.03582.
    """
    chosen = candidates(model) if layer is None else [reaching.named(model, layer)]
    options: Any = {"kind": norm.kind, "seed": seed, "batch_size": batch_size}

    def judged(vector: np.ndarray) -> tuple[np.ndarray, float]:
        """A vector as large as it may be, with the better sign, and its fooling rate."""
        both = np.stack([vector, -vector]) * np.float32(norm.size)
        of = applied(model, images[:_JUDGED], both, clip=clip, batch_size=batch_size).rates
        return both[of.argmax()], float(of.max())

    searches = []
    for one in chosen:
        part = reaching.up_to(model, one)
        for q in POWERS if power is None else [power]:
            steps = singular_vectors(part, images[:_IMAGES], power=q, **options)
            searches.append(Search(one.name, q, steps))
    first, *rounds = [min(_ROUND, passes - done) for done in range(0, passes, _ROUND)]
    for search in searches:
        search.go_on(first, judged, report)
    best = max(searches, key=lambda search: search.rate)
    for count in rounds:
        best.go_on(count, judged, report)
    searches.sort(key=lambda search: -search.rate)
    return Fit(best.vector, [], [search.row for search in searches])


def iterations(layer: str | None, power: float | None, passes: int) -> int:
    """How many iterations there will be, at most; the arguments are those of `singular_trained`."""
    searches = (LAYERS if layer is None else 1) * (len(POWERS) if power is None else 1)
    return passes + (searches - 1) * min(passes, _ROUND)


class Search:
    """For a layer's singular vector.

    Attributes:
        layer: its name.
        power: q.
        values: the singular value after each iteration.
        vector: the best perturbation along the vector so far.
        rate: its fooling rate.
    """

    def __init__(self, layer: str, power: float, steps: Iterator[tuple[np.ndarray, float]]) -> None:
        self.layer, self.power = layer, power
        self.values: list[float] = []
        self.vector, self.rate = np.empty(0), -1.0
        self._steps = steps

    def go_on(
        self, count: int, judged: Callable[[np.ndarray], tuple[np.ndarray, float]], report: Report
    ) -> None:
        """Some more iterations, as long as the vector changes."""
        last = None
        for vector, value in itertools.islice(self._steps, count):
            last = vector
            self.values.append(value)
            report(self)
        if last is not None:
            perturbation, rate = judged(last)
            if rate > self.rate:
                self.vector, self.rate = perturbation, rate

    @property
    def row(self) -> dict[str, Any]:
        """Of the table of all that was tried."""
        return {
            "layer": self.layer,
            "power": self.power,
            "fitting_fooling_rate": self.rate,
            "singular_value": self.values[-1],
            "iterations": len(self.values),
        }


def candidates(model: keras.Model) -> list[Reached]:
    """Up to 6 layers that nothing goes past, spread evenly over the depth; the last is the logits.

    Args:
        model: from images to logits.
    """
    narrow = [one for one in reaching.layers(model) if one.narrow]
    with_weights = list(itertools.dropwhile(lambda one: not one.layer.weights, narrow))
    logits = reaching.logits(model)
    if not with_weights or with_weights[-1].path[0] is not logits.path[0]:
        with_weights.append(logits)
    count = len(with_weights)
    tried = min(LAYERS, count)
    return [with_weights[-(-number * count // tried) - 1] for number in range(1, tried + 1)]


def singular_vectors(
    part: keras.Model,
    images: np.ndarray,
    *,
    kind: NormKind,
    power: float,
    seed: int = 0,
    batch_size: int = BATCH_SIZE,
) -> Iterator[tuple[np.ndarray, float]]:
    """The generalised power method for a (p, q)-singular vector of a Jacobian.

    It raises the q-norm of J v over vectors v of p-norm 1, where J holds the Jacobians of all
    images, one below the other. A step goes to the v that raises it most if it is linearised,
    which never lowers it, up to a local maximum.

    Args:
        part: from images to anything.
        images: float32 (N, H, W, C), where the Jacobians are taken.
        kind: l2 (p = 2) or linf (p = inf).
        power: q, at least 1.
        seed: of the start.
        batch_size: images per pass, at most.

    Yields:
        v, float32 (H, W, C), and the q-norm of J v, until v comes to rest.

    Source: Boyd, "The power method for l_p norms", Linear Algebra and its Applications 9 (1974);
    Khrulkov & Oseledets, arXiv:1709.03582, Algorithm 1.
    """
    random = np.random.default_rng(seed)
    unit = steepest(kind)
    start = unit(random.standard_normal(images.shape[1:], np.float32))
    slope, _ = _raised(part, images, start, power, batch_size)
    moves = True
    while moves:
        vector = unit(slope)
        slope, value = _raised(part, images, vector, power, batch_size)
        yield vector, value
        moves = np.abs(unit(slope) - vector).max() > _AT_REST


def _raised(
    part: keras.Model, images: np.ndarray, vector: np.ndarray, power: float, batch_size: int
) -> tuple[np.ndarray, float]:
    """J^T psi_q(J v) up to a factor, float32 (H, W, C), and the q-norm of J v.

    Powers are taken of shares of the largest entry: q = 10 is soon beyond float32.
    """
    step = inference.compiled(part, _of_batch)
    fixed = tf.constant(vector), tf.constant(power, tf.float32)
    found = [
        [tensor.numpy() for tensor in step(tf.constant(images[rows]), *fixed)]
        for rows in inference.batches(len(images), batch_size)
    ]
    slopes, largest, sums = (np.array(of, np.float64) for of in zip(*found, strict=True))
    most = max(float(largest.max()), _TINY)
    shares = largest / most
    slope = np.tensordot(shares ** (power - 1), slopes, axes=1)
    total = float(shares**power @ sums)
    return slope.astype(np.float32), most * total ** (1 / power)


def _of_batch(part: keras.Model, images: Any, vector: Any, power: Any) -> tuple[Any, Any, Any]:
    """J^T psi_q(J v / m), the largest entry m of J v, and the sum of powers of J v / m."""
    with (
        tf.GradientTape(watch_accessed_variables=False) as outer,
        tf.GradientTape(watch_accessed_variables=False, persistent=True) as inner,
    ):
        inner.watch(images)
        outputs = tf.cast(part(images, training=False), tf.float32)
        weights = tf.zeros_like(outputs)
        outer.watch(weights)
        with inner.stop_recording():
            back = inner.gradient(outputs, images, weights, unconnected_gradients="zero")
            along = tf.reduce_sum(back * vector)
    # What goes back is linear in the weights, by J^T: its derivative by them is J.
    moved = outer.gradient(along, weights)
    if moved is None:
        moved = _difference(part, images, vector)
    largest = tf.reduce_max(tf.abs(moved))
    shares = tf.math.divide_no_nan(tf.abs(moved), largest)
    raised = tf.sign(moved) * shares ** (power - 1)
    slope = inner.gradient(outputs, images, raised, unconnected_gradients="zero")
    return tf.reduce_sum(slope, axis=0), largest, tf.reduce_sum(shares**power)


def _difference(part: keras.Model, images: Any, vector: Any) -> Any:
    """J v by a central difference, for layers that TensorFlow has no second derivatives of."""
    step = _DIFFERENCE * vector / tf.reduce_max(tf.abs(vector))
    ahead, behind = (
        tf.cast(part(images + side * step, training=False), tf.float32) for side in (1.0, -1.0)
    )
    return (ahead - behind) * (tf.reduce_max(tf.abs(vector)) / (2 * _DIFFERENCE))
