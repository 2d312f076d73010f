"""What is computed of each fitting image, in blocks: by workers or here, kept while it goes on."""

import functools
import json
import math
from collections.abc import Mapping
from typing import Any

import keras
import numpy as np

from resfool.arrayfiles import ABSURD, DamagedError, Wanted, check
from resfool.attacks import minimal
from resfool.attacks.memory import largest
from resfool.attacks.minimal import Outcome
from resfool.attacks.sharing import workers_for
from resfool.attacks.solvers import SOLVERS, Solving
from resfool.blocks import ROWS
from resfool.classifiers import inference, spreading
from resfool.classifiers.keeping import Kept, digest
from resfool.classifiers.spreading import Blocks, Columns, Function, Workers
from resfool.datasets.lazy import ImageRows
from resfool.errors import expanded
from resfool.identity import VERSIONS
from resfool.monitor import Advance
from resfool.universal.matrices import FoundRows, Matrix
from resfool.universal.options import UniversalParameters
from resfool.universal.work import Work

_NAME = "solve-"  # of a folder, before its digest

# What must be true of what is kept of each image beside its perturbation.
_Kinds = dict[str, Wanted]
_OF_SOLVES: _Kinds = {
    "norms": Wanted("f", ("n",), finite=False, most=ABSURD),
    "flipped": Wanted("b", ("n",)),
    "rounded": Wanted("b", ("n",)),
    "evaluations": Wanted("iu", ("n",)),
    "seconds": Wanted("f", ("n",), most=ABSURD),
}
_OF_GRADIENTS: _Kinds = {"found": Wanted("b", ("n",))}


def solved(work: Work) -> Matrix:
    """Algorithm 2's perturbations, and how they were found."""
    asked, model = work.asked, work.judge
    way = SOLVERS[asked.solver]
    parts = _blocks(asked, work.images)
    chosen = len(parts) > 1 and (way.slow or spreading.pays(model, len(work.images)))
    workers = _workers(work, model, parts, chosen)
    work.monitor.fact("solved_by", "one process" if workers is None else "workers")
    own = {**asked.shared(Solving), "clip": asked.clip}
    kept = _kept(work, model, minimal.solved_block, parts, own, workers, None)
    outcome = Outcome(**{name: kept.columns[name][:] for name in _OF_SOLVES})
    return _matrix(work, kept, outcome.flipped, outcome)


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
    kept = _kept(work, work.model, function, parts, own, workers, labels)
    return _matrix(work, kept, kept.columns["found"][:])


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
) -> Kept:
    """What a function makes of the fitting images, of which blocks that are done are kept."""
    kept = kept_in(work.asked, work.identity, work.images, labels, workers is not None)
    done = kept.done()

    def keep(number: int, found: Columns) -> None:
        beside = {name: column for name, column in found.items() if name != "perturbations"}
        rows = found["perturbations"].astype(np.float32)
        kept.keep(number, {ROWS: rows.reshape(len(rows), -1)} | beside)

    spreading.in_blocks(
        model,
        function,
        parts,
        options | {"batch_size": inference.even(parts.size, work.batch_size)},
        workers=workers,
        finished={number: {} for number in done},
        keep=keep,
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
            kept_in(asked, identity, images, labels, spread).done()


def kept_in(
    asked: UniversalParameters,
    identity: Mapping[str, Any],
    images: ImageRows,
    labels: np.ndarray | None,
    spread: bool,
) -> Kept:
    """Where blocks of a problem are: a folder that is named by all of it.

    Args:
        asked: which perturbations.
        identity: of the model, and of how it takes images.
        images: they are of, (N, H, W, C).
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
    own = functools.partial(_check, kinds, math.prod(images.shape[1:]))
    return Kept(expanded(asked.solve_dir) / name, parts, (ROWS,), own)


def _check(kinds: _Kinds, pixels: int, columns: Mapping[str, np.ndarray], count: int) -> None:
    """Refuse columns of a block, (count, ...) each, that nothing can have left."""
    check(columns, {ROWS: Wanted("f", (count, pixels), most=ABSURD), **kinds})
    if any(len(columns[name]) != count for name in kinds):
        raise DamagedError(f"it hasn't {count} images")
    if "norms" in kinds and (np.isfinite(columns["norms"]) != columns["flipped"]).any():
        raise DamagedError("its norms don't fit its flipped")


def _matrix(work: Work, kept: Kept, found: np.ndarray, outcome: Outcome | None = None) -> Matrix:
    """The matrix of the perturbations that were found, bool (N,); its rows stay where they are."""
    numbers = np.flatnonzero(found)
    rows = FoundRows(kept.stored, numbers)
    return Matrix(rows, numbers, int((~found).sum()), outcome, work.images.digest)


def _progress(work: Work, done: int) -> Advance:
    if done:
        work.monitor.say(f"going on with an interrupted solve, of which {done} images are done")
    text = "images solved" if work.asked.solves else "images"
    advance = work.monitor.counter(len(work.images), text, done)
    advance(0)
    return advance
