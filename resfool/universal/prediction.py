"""What a network says of Algorithm 2's matrix before it is solved for: its singular values.

The paper wishes for "a theory that could predict the scaling of the singular values for a given
classifier" (section VI.C). If all logits were affine, the smallest perturbation of an image would
be one step of DeepFool (Moosavi-Dezfooli, Fawzi, Frossard, arXiv:1511.04599, algorithm 2), from its
class y to the class j whose boundary is nearest:

    r = d u,  d = gap / ||w||,  u = w / ||w||,  gap = z_y - z_j,  w = grad(z_j - z_y).

The matrix of these rows is diag(d) U. Its scale is that of the distances alone, for the sum of its
squared singular values is the sum of d^2. Its shape is that of the unit directions U, as far as the
distances don't depend on them. Affine logits of C classes have gradients whose differences span
C - 1 dimensions, so only so many singular values: those from the C-th on come from gradients that
turn from image to image, and are the ones that laws are fitted to.
"""

import math
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import keras
import numpy as np
import tensorflow as tf

from resfool.attacks import balls, lowrank, streaming
from resfool.attacks.balls import Bounds
from resfool.attacks.solvers.batches import gaps_and_slopes, nearest_boundary, top_gradients
from resfool.blocks import ROWS, Column, Plan, Unwritten
from resfool.classifiers import inference
from resfool.classifiers.inference import Rows
from resfool.monitor import Advance, quiet
from resfool.values import Row

ENERGY = 0.99  # of a matrix, in the singular values that are compared
_CANDIDATES = 10  # classes to look at, as solvers do
_FEWEST = 5  # singular values that a law is fitted to
_LOST = 1e-6  # of the largest singular value: what is smaller is rounding

Kind = Literal["power", "exponential"]  # of law
_ALONG: dict[Kind, Callable[[np.ndarray], np.ndarray]] = {
    "power": np.log,
    "exponential": np.asarray,
}
_NAMES: dict[Kind, str] = {"power": "exponent", "exponential": "decay"}  # of their rates


@dataclass(frozen=True)
class Law:
    """How singular values fall with their number i, which is 1 for the largest.

    Attributes:
        kind: "power" is height * i^-rate, "exponential" is height * exp(-rate * i).
        rate: how fast they fall.
        height: before they have fallen.
        first: i of the first that it is fitted to.
        last: i of the last.
        error: root mean square of what log10 of these is off by.
    """

    kind: Kind
    rate: float
    height: float
    first: int
    last: int
    error: float

    def at(self, numbers: np.ndarray) -> np.ndarray:
        """The singular values of these numbers i."""
        return self.height * np.exp(-self.rate * _ALONG[self.kind](numbers))


@dataclass(frozen=True)
class Spectrum:
    """The singular values of a matrix of one perturbation a row.

    Attributes:
        values: float64 (min(N, D),), largest first; or the leading ones of `singular_values`.
        directions: the same of its rows at norm 1.
        laws: that are fitted to `values`, one of each kind; none where too few of them can be.
        squares: the matrix's sum of squares, where `values` are only the leading ones.
    """

    values: np.ndarray
    directions: np.ndarray
    laws: dict[Kind, Law]
    squares: float | None = None

    @classmethod
    def of(cls, matrix: streaming.Matrix, first: int, last: int | None = None) -> "Spectrum":
        """That of a matrix (N, D), with laws of the values from the `first` to the `last`.

        Without a `last` it is that of those which hold 99% of the sum of squares.
        """
        values = lowrank.singular_values(matrix)
        directions = lowrank.singular_values(lowrank.UnitRows(matrix))
        found = laws(values, first, last or holding(values, ENERGY))
        whole = len(values) == min(matrix.shape)
        return cls(values, directions, found, None if whole else streaming.squares(matrix))

    @property
    def norm(self) -> float:
        """The Frobenius norm of the matrix."""
        if self.squares is not None:
            return math.sqrt(self.squares)
        return float(np.linalg.norm(self.values))


@dataclass(frozen=True)
class Prediction:
    """The spectrum of a matrix of smallest perturbations, and what the network predicts.

    Attributes:
        measured: of the perturbations that were solved for.
        predicted: of one step to the nearest linearised boundary, of the same images.
        random: singular values of noise whose rows have the norms of the measured ones.
    """

    measured: Spectrum
    predicted: Spectrum
    random: np.ndarray

    @property
    def figures(self) -> Row:
        """How they compare: in all, in scale, in shape, and by the laws that they follow."""
        ours, theirs = self.measured, self.predicted
        found = {
            "predicted_spectrum_deviation": deviation(theirs.values, ours.values),
            "random_spectrum_deviation": deviation(self.random, ours.values),
            "predicted_scale_ratio": theirs.norm / ours.norm,
            "predicted_shape_deviation": deviation(theirs.directions, ours.directions),
            "predicted_energy_of_10_directions": lowrank.energy(theirs.values, 10, theirs.squares),
        }
        for prefix, spectrum in (("", ours), ("predicted_", theirs)):
            for kind, law in spectrum.laws.items():
                name = f"{prefix}spectrum_{_NAMES[kind]}"
                found |= {name: law.rate, f"{name}_error": law.error}
        return found

    @property
    def compared(self) -> int:
        """How many singular values are: those that hold 99% of the measured sum of squares."""
        return holding(self.measured.values, ENERGY)

    @property
    def better(self) -> tuple[Law, Law] | None:
        """The law that fits the measured values better, and the same one of the predicted ones."""
        both = [
            (law, self.predicted.laws[kind])
            for kind, law in self.measured.laws.items()
            if kind in self.predicted.laws
        ]
        return min(both, key=lambda pair: pair[0].error) if both else None


def predicted(
    model: keras.Model,
    rows: streaming.Matrix,
    images: Rows,
    random: np.ndarray,
    *,
    clip: bool = False,
    batch_size: int,
    progress: Advance = quiet,
) -> Prediction:
    """The spectrum of smallest perturbations beside what the network predicts without solving.

    Laws are fitted from the C-th singular value of C classes on, to the last one of those that hold
    99% of the measured sum of squares.

    Args:
        model: from images to logits.
        rows: float32 (N, D), the smallest perturbation of each image, in l2; they needn't be in
            memory, and neither are the predicted ones, which go to a temporary folder.
        images: float32 (N, H, W, C) in [0, 1].
        random: singular values of noise whose rows have the same norms.
        clip: whether perturbed images were kept in [0, 1].
        batch_size: images per pass.
        progress: is told how many more images are done.
    """
    measured = Spectrum.of(rows, model.output_shape[-1])
    where = model.output_shape[-1], holding(measured.values, ENERGY)
    options: Any = {"clip": clip, "batch_size": batch_size, "progress": progress}
    plan = Plan(
        len(images),
        inference.even(len(images), batch_size),  # of what passes through the model together
        {ROWS: Column("float32", rows.shape[1:])},
    )
    steps = Unwritten(plan, lambda some: {ROWS: linearised(model, images[some], **options)})
    with tempfile.TemporaryDirectory() as folder:
        stored = steps.write(Path(folder) / "steps")[ROWS]
        return Prediction(measured, Spectrum.of(stored, *where), random)


def linearised(
    model: keras.Model,
    images: Rows,
    *,
    clip: bool = False,
    batch_size: int,
    progress: Advance = quiet,
) -> np.ndarray:
    """The step of each image to the nearest boundary of its logits, linearised there, in l2.

    Args:
        model: from images to logits of two classes or more.
        images: float32 (N, H, W, C), at least one.
        clip: keep perturbed images in [0, 1]; the step is then the shortest that does.
        batch_size: images per pass.
        progress: is told how many more images are done.

    Returns:
        float32 (N, D), flat; zero where the logits have no gradient, or none that is a number.
    """
    options: Any = min(_CANDIDATES, model.output_shape[-1]), balls.range_of_pixels(clip)
    found = []
    for rows in inference.batches(len(images), batch_size):
        some = images[rows]
        found += inference.rowwise(model, _step, (some,), *options, batch_size=batch_size)
        progress(len(some))
    return np.concatenate(found)


def _step(model: keras.Model, images: Any, candidates: int, bounds: Bounds) -> tuple[Any]:
    _, logits, gradients = top_gradients(model, images, candidates)
    gap, slope = nearest_boundary(*gaps_and_slopes(logits, gradients), "l2")
    step = balls.reaching(tf.reshape(images, tf.shape(slope)), slope, gap, "l2", bounds)
    usable = tf.reduce_all(tf.math.is_finite(step), axis=1, keepdims=True)
    return (tf.where(usable, step, 0.0),)


def holding(values: np.ndarray, share: float) -> int:
    """How many singular values, largest first, hold a share of the sum of their squares."""
    energies = np.cumsum(np.square(values))
    return int(np.searchsorted(energies, share * energies[-1])) + 1


def deviation(predicted: np.ndarray, measured: np.ndarray) -> float:
    """By what share predicted singular values are off, up or down, from measured ones.

    It is the mean over the largest measured ones, which hold 99% of the sum of squares.

    Args:
        predicted: (K,), largest first.
        measured: (K,), largest first.
    """
    count = holding(measured, ENERGY)
    return float(np.abs(predicted[:count] / measured[:count] - 1).mean())


def laws(values: np.ndarray, first: int, last: int) -> dict[Kind, Law]:
    """A law of each kind through singular values: lines through their logarithms by least squares.

    Args:
        values: largest first.
        first: number of the first that it is fitted to; 1 is the largest.
        last: number of the last.

    Returns:
        None of them if these are fewer than five, or some of them nothing but rounding.
    """
    numbers = np.arange(first, last + 1)
    if len(numbers) < _FEWEST or values[last - 1] <= _LOST * values[0]:
        return {}
    found: dict[Kind, Law] = {}
    heights = np.log(values[first - 1 : last])
    for kind, along in _ALONG.items():
        slope, height = np.polyfit(along(numbers), heights, 1)
        off = (height + slope * along(numbers) - heights) / np.log(10)
        error = float(np.sqrt(np.square(off).mean()))
        found[kind] = Law(kind, float(-slope), float(np.exp(height)), first, last, error)
    return found
