"""The matrices of Algorithms 2, 3 and 4 (section VI.B): a row for each fitting image."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import keras
import numpy as np

from resfool import checkpoints
from resfool.arrayfiles import ABSURD, DamagedError, Wanted, check, using
from resfool.attacks import gradient, minimal, streaming
from resfool.attacks.methods.smallest_epsilon import smallest_epsilons
from resfool.attacks.minimal import Minimal, Outcome
from resfool.blocks import ROWS, Blocks, Column, Plan, Unwritten, read
from resfool.classifiers import inference, keeping
from resfool.classifiers.inference import BATCH_SIZE
from resfool.errors import InputError
from resfool.monitor import Advance, quiet
from resfool.universal import target_class
from resfool.values import show
from resfool.wording import told

_BLOCK = 1 << 26  # bytes of a block of what is kept


class FoundRows:
    """Rows of an array in blocks that were found, as a matrix (M, D); what is looked at is read.

    Args:
        stored: the folder.
        numbers: of the rows, int (M,), rising.
    """

    def __init__(self, stored: Blocks, numbers: np.ndarray) -> None:
        self._stored, self._rows, self._numbers = stored, stored[ROWS], numbers

    @property
    def shape(self) -> tuple[int, ...]:
        """(M, D)."""
        return len(self._numbers), *self._rows.shape[1:]

    def __len__(self) -> int:
        return len(self._numbers)

    def __getitem__(self, place: Any, /) -> np.ndarray:
        """Some of it, by slices of rows and of columns without steps."""
        rows, columns = place if isinstance(place, tuple) else (place, slice(None))
        numbers, size = self._numbers[rows], self._stored.plan.size
        width = len(range(*columns.indices(self.shape[1])))
        found, filled = np.empty((len(numbers), width), self._rows.dtype), 0
        for block, count in zip(*np.unique(numbers // size, return_counts=True), strict=True):
            inside = numbers[filled : filled + count] - block * size
            part = self._rows.block(int(block))[:, columns]
            whole = inside[-1] - inside[0] == count - 1
            found[filled : filled + count] = part[
                slice(inside[0], inside[-1] + 1) if whole else inside
            ]
            filled += count
        return found

    def settle(self) -> None:
        """Move the blocks to where nobody goes on with them; they are gone when this is."""
        keeping.settle(self._stored, self)


@dataclass(frozen=True)
class Matrix:
    """A perturbation of each fitting image.

    Attributes:
        rows: float32 (M, D), which may lie on the disk.
        images: int64 (M,), which of the N images each row is of.
        dropped: N - M, the images that nothing was found for.
        solved: how Algorithm 2 came to it, unless an earlier run did.
        fitted_on: digest of the N images; None if an earlier run made it that didn't say.
    """

    rows: streaming.Matrix
    images: np.ndarray
    dropped: int
    solved: Outcome | None = None
    fitted_on: str | None = None

    def stored(self, identity: Mapping[str, Any]) -> Unwritten:
        """What is kept of it, with the identity of its model and what it was made by."""
        count, pixels = self.rows.shape
        columns = {ROWS: Column("float32", (pixels,)), "images": Column("int64")}
        facts = {**identity, "dropped": self.dropped, "fitted_on": self.fitted_on}
        size = max(1, min(count, _BLOCK // (4 * pixels)))
        return Unwritten(
            Plan(count, size, columns, facts),
            lambda some: {ROWS: self.rows[some, :], "images": self.images[some]},
        )

    def settle(self) -> None:
        """Say that nobody needs to go on with what it was made of; see `FoundRows.settle`."""
        if isinstance(self.rows, FoundRows):
            self.rows.settle()


def read_matrix(
    path: Path, what: str, identity: Mapping[str, Any], made_by: Mapping[str, str]
) -> Matrix:
    """An earlier run's matrix, if it is one of this model and was made as this run says.

    All of it is read once, and refused if any of it can't be used.

    Args:
        path: of its folder of blocks, whose rows stay on the disk, or of a file as earlier runs
            left it.
        what: a user called it.
        identity: of this run's model.
        made_by: what this run would make a matrix by.

    Raises:
        InputError: it is another model's, was made otherwise, or is damaged.
    """
    pixels = math.prod(identity["image_shape"])
    if not path.is_dir():
        arrays, facts = checkpoints.load(path, what)
        _check_facts(facts, what, identity, made_by)
        with using(what):
            _check_part(arrays, pixels)
            return _matrix_of(arrays["rows"], arrays["images"], facts)
    stored = read(path)
    _check_facts(stored.plan.facts, what, identity, made_by)
    if set(stored) != {ROWS, "images"}:
        raise InputError(f"{what} can't be used: it has {', '.join(map(told, stored))}")
    images = []
    for number in range(stored.plan.count):
        block = stored.block(number)
        with using(f"block {number} of {what}"):
            _check_part(block, pixels)
        images.append(np.array(block["images"]))
    with using(what):
        return _matrix_of(stored[ROWS], np.concatenate(images), stored.plan.facts)


def _check_facts(
    stored: Mapping[str, Any], what: str, identity: Mapping[str, Any], made_by: Mapping[str, str]
) -> None:
    """Refuse a matrix that is another model's, or was made otherwise."""
    # Matrices from before the range, or what made them, was recorded are taken as they are; none of
    # those from before interfaces was made through one, or clipped, or towards a target.
    before = {"clip": show(False), "target": show(None)}
    facts = {"input_range": identity["input_range"], "interface": {}, **made_by, **before}
    facts |= stored
    for name, kind in (
        ("image_shape", "images of the shape"),
        ("model", "a model with digest"),
        ("input_range", "pixel values in the range"),
        ("interface", "a model that is taken by"),
    ):
        if facts.get(name) != identity[name]:
            said = told(facts.get(name))
            raise InputError(f"{what} was made for {kind} {said}, not {identity[name]}")
    for name, ours in made_by.items():
        if facts[name] != ours:
            raise InputError(f"{what} was made with {name}={told(facts[name])}; say so")


def _check_part(arrays: Mapping[str, np.ndarray], pixels: int) -> None:
    check(arrays, {ROWS: Wanted("f", ("M", pixels), most=ABSURD), "images": Wanted("iu", ("M",))})


def _matrix_of(rows: streaming.Matrix, images: np.ndarray, facts: Mapping[str, Any]) -> Matrix:
    if not len(images):
        raise DamagedError("it has no rows")
    if images[0] < 0 or (np.diff(images.astype(np.int64)) <= 0).any():
        raise DamagedError("its images don't rise from 0 on")
    dropped = facts.get("dropped", 0)
    if type(dropped) is not int or dropped < 0:
        raise DamagedError(f"it says that {told(dropped)} images were dropped")
    return Matrix(rows, images, dropped, fitted_on=facts.get("fitted_on"))


def minimal_matrix(model: keras.Model, images: np.ndarray, **options: Any) -> Matrix:
    """Algorithm 2: the smallest perturbation of each image.

    Args:
        model: from images to logits.
        images: float32 (N, H, W, C) in [0, 1].
        options: of `minimal.smallest_perturbations`, such as the solver.

    Returns:
        A row for each image whose class the solver could change.
    """
    return matrix_of_solved(minimal.smallest_perturbations(model, images, **options))


def matrix_of_solved(solved: Minimal) -> Matrix:
    """The matrix of smallest perturbations; a row for each image whose class changes."""
    return replace(matrix_of(solved.perturbations, solved.flipped), solved=solved)


def sign_steps(
    model: keras.Model,
    images: np.ndarray,
    labels: np.ndarray | None = None,
    *,
    epsilon: float,
    target: int | None = None,
    clip: bool = False,
    batch_size: int = BATCH_SIZE,
    progress: Advance = quiet,
) -> dict[str, np.ndarray]:
    """Algorithm 3: epsilon * sign(gradient of the loss) of each image.

    Args:
        model: from images to logits.
        images: float32 (N, H, W, C) in [0, 1].
        labels: int (N,), or None for the model's own predictions.
        epsilon: length of the step in every pixel, in pixel units.
        target: class, whose loss is lowered instead.
        clip: keep perturbed images in [0, 1].
        batch_size: images per pass.
        progress: is told how many more images are done.

    Returns:
        `perturbations` (N, H, W, C), and which were `found` (N,): gradients that aren't zero
        everywhere.
    """
    steps = np.float32(epsilon) * _signs(model, images, labels, target, batch_size)
    if clip:
        steps = np.clip(images + steps, 0.0, 1.0) - images
    progress(len(images))
    found = np.asarray(steps.reshape(len(steps), -1).any(axis=1))
    return {"perturbations": steps, "found": found}


def smallest_sign_steps(
    model: keras.Model,
    images: np.ndarray,
    labels: np.ndarray | None = None,
    *,
    target: int | None = None,
    clip: bool = False,
    tolerance: float = 1e-4,
    batch_size: int = BATCH_SIZE,
    progress: Advance = quiet,
) -> dict[str, np.ndarray]:
    """Algorithm 4: the smallest step along each image's gradient sign that changes its class.

    The unknown is one number per sample, found on a geometric grid and then by bisection.

    Args:
        model: from images to logits.
        images: float32 (N, H, W, C) in [0, 1].
        labels: int (N,), or None for the model's own predictions.
        target: class, whose loss is lowered instead, until images have become it.
        clip: keep perturbed images in [0, 1].
        tolerance: of the smallest epsilon, in pixel units.
        batch_size: images per pass.
        progress: is told how many more images are done.

    Returns:
        `perturbations` (N, H, W, C), and which were `found` (N,): images whose class changes on the
        way.
    """
    options: Any = {"clip": clip, "batch_size": batch_size}
    signs = _signs(model, images, labels, target, batch_size)
    judge = model if target is None else target_class.reached(model, target)
    clean = inference.predicted(inference.logits(judge, images, batch_size))
    grid = np.geomspace(1 / 256, 1.0, 17).tolist()
    on_grid = gradient.along(judge, images, signs, grid, **options).classes
    epsilons = smallest_epsilons(
        judge, images, signs, clean, on_grid, grid, tolerance=tolerance, **options
    )
    found = np.isfinite(epsilons)
    lengths = np.where(found, epsilons, 0.0).astype(np.float32).reshape(-1, 1, 1, 1)
    steps = lengths * signs
    progress(len(images))
    steps = np.clip(images + steps, 0.0, 1.0) - images if clip else steps
    return {"perturbations": steps, "found": found}


def _signs(
    model: keras.Model,
    images: np.ndarray,
    labels: np.ndarray | None,
    target: int | None,
    batch_size: int,
) -> np.ndarray:
    """Where each image's loss rises, or the target's falls, int8 (N, H, W, C)."""
    if target is not None:
        labels = np.full(len(images), target)
    found = gradient.sign_gradients(model, images, labels, batch_size=batch_size).signs
    return found if target is None else -found


def matrix_of(perturbations: np.ndarray, found: np.ndarray) -> Matrix:
    """The matrix of perturbations (N, H, W, C); a row for each that was found, bool (N,)."""
    rows = perturbations.reshape(len(perturbations), -1)[found]
    return Matrix(rows, np.flatnonzero(found), int((~found).sum()))
