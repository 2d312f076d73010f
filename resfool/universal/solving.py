"""What is computed of each fitting image, in blocks: by workers or here, kept while it goes on."""

import functools
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import keras
import numpy as np

from resfool import blocks
from resfool.arrayfiles import ABSURD, DamagedError, Wanted, check, using
from resfool.attacks import minimal
from resfool.attacks.memory import largest
from resfool.attacks.minimal import Outcome
from resfool.attacks.sharing import workers_for
from resfool.attacks.solvers import SOLVERS, Solving
from resfool.blocks import ROWS, Column, Plan
from resfool.classifiers import inference, spreading
from resfool.classifiers.keeping import digest
from resfool.classifiers.spreading import Blocks, Columns, Function, Workers
from resfool.datasets.lazy import ImageRows
from resfool.errors import InputError, expanded
from resfool.identity import VERSIONS
from resfool.monitor import Advance
from resfool.universal.matrices import FoundRows, Matrix
from resfool.universal.options import UniversalParameters
from resfool.universal.work import Work

_NAME = "solve-"  # of a folder, before its digest

# What is kept of each image beside its perturbation: its type, and what it must be. All of it is in
# one array of a block, a column each: a file for each would take longer than what is in it.
_BESIDE = "beside"
_Kinds = dict[str, tuple[str, Wanted]]
_OF_SOLVES: _Kinds = {
    "norms": ("float32", Wanted("f", ("n",), finite=False, most=ABSURD)),
    "flipped": ("bool", Wanted("b", ("n",))),
    "rounded": ("bool", Wanted("b", ("n",))),
    "evaluations": ("int64", Wanted("i", ("n",))),
    "seconds": ("float64", Wanted("f", ("n",), most=ABSURD)),
}
_OF_GRADIENTS: _Kinds = {"found": ("bool", Wanted("b", ("n",)))}


def solved(work: Work) -> Matrix:
    """Algorithm 2's perturbations, and how they were found."""
    asked, model = work.asked, work.judge
    way = SOLVERS[asked.solver]
    parts = _blocks(asked, work.images)
    chosen = len(parts) > 1 and (way.slow or spreading.pays(model, len(work.images)))
    workers = _workers(work, model, parts, chosen)
    work.monitor.fact("solved_by", "one process" if workers is None else "workers")
    own = {**asked.shared(Solving), "clip": asked.clip}
    found = _kept(work, model, minimal.solved_block, parts, own, workers, None)
    outcome = Outcome(**found.beside)
    return found.matrix(outcome.flipped, outcome)


def of_gradients(work: Work, function: Function, **own: Any) -> Matrix:
    """A row of each image's gradient, as Algorithms 3 and 4 make them.

    Args:
        work: of the experiment.
        function: of the model, images, labels perhaps, and options.
        own: options of the function beside those that all have.
    """
    labels = work.labels
    parts = _blocks(work.asked, work.images, labels)
    workers = _workers(work, work.model, parts, chosen=False)
    own |= {"target": work.target, "clip": work.asked.clip}
    found = _kept(work, work.model, function, parts, own, workers, labels)
    return found.matrix(found.beside["found"])


def _blocks(
    asked: UniversalParameters, images: ImageRows, labels: np.ndarray | None = None
) -> Blocks:
    """The blocks that are worked on, one after the other or at the same time."""
    arrays = (images,) if labels is None else (images, labels)
    slow = "solver" in asked.procedure.takes and SOLVERS[asked.solver].slow
    return Blocks(arrays, asked.block, padded=not slow)


def _kept(
    work: Work,
    model: keras.Model,
    function: Function,
    parts: Blocks,
    options: dict[str, Any],
    workers: Workers | None,
    labels: np.ndarray | None,
) -> "_Kept":
    """What a function makes of the fitting images, of which blocks that are done are kept."""
    kept = _Kept.of(work.asked, work.identity, work.images, labels, workers is not None)
    done = kept.look()
    spreading.in_blocks(
        model,
        function,
        parts,
        options | {"batch_size": inference.even(parts.size, work.batch_size)},
        workers=workers,
        finished={number: {} for number in done},
        keep=kept.keep,
        hold=False,
        progress=_progress(work, sum(map(parts.count, done))),
    )
    return kept


def _workers(work: Work, model: keras.Model, parts: Blocks, chosen: bool) -> Workers | None:
    return workers_for(
        model,
        parts,
        work.asked,
        work.map,
        work.monitor,
        batch_size=work.batch_size,
        chosen=chosen,
    )


def check_kept(
    asked: UniversalParameters,
    identity: Mapping[str, Any],
    images: ImageRows,
    labels: np.ndarray | None,
    model: keras.Model,
) -> None:
    """Refuse a solve that can't be done, or of which an interrupted one has left what can't be.

    Args:
        asked: which perturbations.
        identity: of the model, and of how it takes images.
        images: they are of, (N, H, W, C).
        labels: whose loss gradients are of, int (N,); None are the model's predictions.
        model: whose predictions shall change.

    Raises:
        InputError: it can't be, or isn't what it should be.
    """
    if asked.solves:
        options = {"candidates": model.output_shape[-1], "subspace": asked.subspace}
        SOLVERS[asked.solver].check(model, **options)
    if any(expanded(asked.solve_dir).glob(f"{_NAME}*")):
        for spread in (False, True):
            _Kept.of(asked, identity, images, labels, spread).look()


class _Kept:
    """The blocks of perturbations that are done, in a folder of their own.

    Args:
        folder: that nothing else is in.
        images: that the perturbations are of.
        parts: blocks of the images.
        kinds: what is kept beside the perturbations.
    """

    def __init__(self, folder: Path, images: ImageRows, parts: Blocks, kinds: _Kinds) -> None:
        self.folder, self._images, self._parts, self._kinds = folder, images, parts, kinds
        self._pixels = math.prod(images.shape[1:])
        columns = {ROWS: Column("float32", (self._pixels,))}
        columns |= {_BESIDE: Column("float64", (len(kinds),))}
        facts = {"solve": folder.name, _BESIDE: list(kinds)}
        self._plan = Plan(len(images), parts.size, columns, facts)
        self._beside: dict[int, Columns] = {}

    @classmethod
    def of(
        cls,
        asked: UniversalParameters,
        identity: Mapping[str, Any],
        images: ImageRows,
        labels: np.ndarray | None,
        spread: bool,
    ) -> "_Kept":
        """Where blocks of a problem are: a folder that is named by all of it.

        Args:
            asked: which perturbations.
            identity: of the model, and of how it takes images.
            images: they are of.
            labels: whose loss gradients are of, if of any.
            spread: whether by workers, whose threads are of a number.
        """
        parts, solves = _blocks(asked, images), asked.solves
        threads = [asked.cpus_per_worker, asked.gpus_per_worker] if spread else None
        problem = {**identity, "algorithm": asked.algorithm, "images": images.digest}
        problem |= asked.shared(Solving) if solves else {"epsilon": asked.epsilon}
        problem |= {"labels": None if solves or labels is None else digest(labels)}
        problem |= {"batch_size": largest(asked.batch_size), "code": VERSIONS["universal"]}
        problem |= {"clip": asked.clip, "target": asked.target}
        problem |= {"block": parts.size, "threads": threads}
        name = f"{_NAME}{digest(json.dumps(problem, sort_keys=True))}"
        kinds = _OF_SOLVES if solves else _OF_GRADIENTS
        return cls(expanded(asked.solve_dir) / name, images, parts, kinds)

    @functools.cached_property
    def _writer(self) -> blocks.Writer:
        return blocks.Writer(self.folder, self._plan)

    def look(self) -> list[int]:
        """The numbers of the blocks that are there, which are checked.

        Raises:
            InputError: they can't be what this left.
        """
        if self.folder.is_symlink():
            raise InputError(f"{self.folder} is a symbolic link, which isn't followed")
        if not self.folder.is_dir():
            return []
        done = sorted(self._writer.done())
        self._beside = {number: self._read(number) for number in done}
        return done

    def _read(self, number: int) -> dict[str, np.ndarray]:
        """What a block has beside its perturbations."""
        stored, count = self._writer.arrays.block(number), self._parts.count(number)
        with using(f"block {number} of {self.folder}"):
            rows = Wanted("f", (count, self._pixels), most=ABSURD)
            check(stored, {ROWS: rows, _BESIDE: Wanted("f", (count, "kinds"), finite=False)})
            found = {}
            for (name, (dtype, _)), values in zip(
                self._kinds.items(), stored[_BESIDE].T, strict=True
            ):
                found[name] = values.astype(dtype)
                if not np.array_equal(found[name], values, equal_nan=True):
                    raise DamagedError(f"its {name} are no {dtype}")
            check(found, {name: wanted for name, (_, wanted) in self._kinds.items()})
            if "norms" in found and (np.isfinite(found["norms"]) != found["flipped"]).any():
                raise DamagedError("its norms don't fit its flipped")
        return found

    def keep(self, number: int, found: Columns) -> None:
        """Keep a block, which is done."""
        beside = {name: found[name].astype(dtype) for name, (dtype, _) in self._kinds.items()}
        rows = found["perturbations"].reshape(-1, self._pixels)
        packed = np.stack([column.astype(np.float64) for column in beside.values()], axis=1)
        self._writer.write(number, {ROWS: rows, _BESIDE: packed})
        self._beside[number] = beside

    @property
    def beside(self) -> dict[str, np.ndarray]:
        """What is kept beside the perturbations of all images, once all are done."""
        return spreading.joined([self._beside[number] for number in range(len(self._parts))])

    def matrix(self, found: np.ndarray, outcome: Outcome | None = None) -> Matrix:
        """The matrix of the perturbations that were found; its rows stay where they are.

        Args:
            found: which of the N were, bool (N,).
            outcome: how a solver found them.
        """
        numbers = np.flatnonzero(found)
        rows = FoundRows(self._writer.arrays, numbers)
        return Matrix(rows, numbers, int((~found).sum()), outcome, self._images.digest)


def _progress(work: Work, done: int) -> Advance:
    if done:
        work.monitor.say(f"going on with an interrupted solve, of which {done} images are done")
    text = "images solved" if work.asked.solves else "images"
    advance = work.monitor.counter(len(work.images), text, done)
    advance(0)
    return advance
