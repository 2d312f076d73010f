"""What is computed of each fitting image, in blocks: by workers or here, kept while it goes on."""

import functools
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import keras
import numpy as np

from resfool import blocks
from resfool.arrayfiles import ABSURD, DamagedError, Wanted, check, using
from resfool.attacks import minimal
from resfool.attacks.memory import largest
from resfool.attacks.minimal import Minimal
from resfool.attacks.sharing import workers_for
from resfool.attacks.solvers import SOLVERS, Solving
from resfool.blocks import Column, Plan
from resfool.classifiers import inference, spreading
from resfool.classifiers.inference import Rows
from resfool.classifiers.keeping import digest
from resfool.classifiers.spreading import Blocks, Columns, Function, Workers
from resfool.errors import InputError, expanded
from resfool.identity import VERSIONS
from resfool.monitor import Advance
from resfool.universal.options import UniversalParameters
from resfool.universal.work import Work

_NAME = "solve-"  # of a folder, before its digest


def of_fitting(
    work: Work,
    model: keras.Model,
    function: Function,
    arrays: Sequence[Rows],
    options: Mapping[str, Any],
) -> dict[str, np.ndarray]:
    """What a function makes of the fitting images, see `spreading.in_blocks`.

    Args:
        work: of the experiment.
        model: that the function is of.
        function: of the model, the arrays' rows and the options; it takes `batch_size` too.
        arrays: (N, ...) each, such as the fitting images.
        options: of the function.
    """
    parts = Blocks(arrays, work.asked.block)
    advance = work.monitor.counter(len(arrays[0]), "images")
    workers = _workers(work, model, parts, chosen=False)
    own = {**options, "batch_size": inference.even(parts.size, work.batch_size)}
    found = spreading.in_blocks(model, function, parts, own, workers=workers, progress=advance)
    return spreading.joined(found)


def solved_perturbations(work: Work) -> Minimal:
    """Algorithm 2's perturbations; those that are done are kept until the work is finished."""
    asked, images, model = work.asked, work.fitting.images, work.judge
    way = SOLVERS[asked.solver]
    parts = Blocks((images,), asked.block, padded=not way.slow)
    several = len(parts) > 1
    chosen = several and (way.slow or spreading.pays(model, len(images)))
    workers = _workers(work, model, parts, chosen)
    work.monitor.fact("solved_by", "one process" if workers is None else "workers")
    kept = _Kept.of(asked, work.identity, parts, workers is not None)
    finished = kept.found()
    own = {**asked.shared(Solving), "clip": asked.clip}
    own |= {"batch_size": inference.even(parts.size, work.batch_size)}
    spreading.in_blocks(
        model,
        minimal.solved_block,
        parts,
        own,
        workers=workers,
        finished=finished,
        keep=kept.keep,
        hold=False,
        progress=_progress(work, sum(map(parts.count, finished))),
    )
    work.finishing.append(kept.discard)
    return Minimal(**spreading.joined(list(kept.found().values())))


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


def check_solve(
    asked: UniversalParameters,
    identity: Mapping[str, Any],
    images: np.ndarray,
    model: keras.Model,
) -> None:
    """Refuse a solve that can't be done, or of which an interrupted one has left what can't be.

    Args:
        asked: which solve.
        identity: of the model, and of how it takes images.
        images: to be solved, (N, H, W, C).
        model: whose predictions shall change.

    Raises:
        InputError: it can't be, or isn't what it should be.
    """
    way = SOLVERS[asked.solver]
    options = {"candidates": model.output_shape[-1], "subspace": asked.subspace}
    way.check(model, **options)
    if any(expanded(asked.solve_dir).glob(f"{_NAME}*")):
        parts = Blocks((images,), asked.block)
        for spread in (False, True):
            _Kept.of(asked, identity, parts, spread).found()


class _Kept:
    """The blocks of a solve that are done, in a folder of their own.

    Args:
        folder: that nothing else is in.
        parts: blocks of the images, (N, H, W, C).
    """

    def __init__(self, folder: Path, parts: Blocks) -> None:
        self.folder, self._parts = folder, parts
        shape = parts.arrays[0][:1].shape[1:]
        columns = {
            "perturbations": Column("float32", shape),
            "norms": Column("float32"),
            "flipped": Column("bool"),
            "rounded": Column("bool"),
            "evaluations": Column("int64"),
            "seconds": Column("float64"),
        }
        self._plan = Plan(len(parts.arrays[0]), parts.size, columns, {"solve": folder.name})

    @classmethod
    def of(
        cls, asked: UniversalParameters, identity: Mapping[str, Any], parts: Blocks, spread: bool
    ) -> "_Kept":
        """Where blocks of a problem are: a folder that is named by all of it.

        Args:
            asked: which solve.
            identity: of the model, and of how it takes images.
            parts: blocks of its images.
            spread: whether by workers, whose threads are of a number.
        """
        (images,) = parts.arrays
        threads = [asked.cpus_per_worker, asked.gpus_per_worker] if spread else None
        problem = {**identity, **asked.shared(Solving), "images": digest(images[:])}
        problem |= {"batch_size": largest(asked.batch_size), "code": VERSIONS["universal"]}
        problem |= {"clip": asked.clip, "target": asked.target}
        problem |= {"block": parts.size, "threads": threads}
        name = f"{_NAME}{digest(json.dumps(problem, sort_keys=True))}"
        return cls(expanded(asked.solve_dir) / name, parts)

    @functools.cached_property
    def _writer(self) -> blocks.Writer:
        return blocks.Writer(self.folder, self._plan)

    def found(self) -> dict[int, Columns]:
        """The blocks that are there, by their numbers; their arrays stay on the disk.

        Raises:
            InputError: they can't be what this left.
        """
        if self.folder.is_symlink():
            raise InputError(f"{self.folder} is a symbolic link, which isn't followed")
        if not self.folder.is_dir():
            return {}
        return {number: self._read(number) for number in sorted(self._writer.done())}

    def _read(self, number: int) -> dict[str, np.ndarray]:
        stored, count = self._writer.arrays.block(number), (self._parts.count(number),)
        with using(f"block {number} of {self.folder}"):
            wanted = {
                "perturbations": Wanted("f", stored["perturbations"].shape, most=ABSURD),
                "norms": Wanted("f", count, finite=False, most=ABSURD),
                "flipped": Wanted("b", count),
                "rounded": Wanted("b", count),
                "evaluations": Wanted("iu", count),
                "seconds": Wanted("f", count, most=ABSURD),
            }
            check(stored, wanted)
            if (np.isfinite(stored["norms"]) != stored["flipped"]).any():
                raise DamagedError("its norms don't fit its flipped")
        return stored

    def keep(self, number: int, found: Columns) -> None:
        """Keep a block, which is done."""
        self._writer.write(number, found)

    def discard(self) -> None:
        """Delete all that is there."""
        blocks.discard(self.folder)


def _progress(work: Work, done: int) -> Advance:
    if done:
        work.monitor.say(f"going on with an interrupted solve, of which {done} images are done")
    advance = work.monitor.counter(len(work.fitting), "images solved", done)
    advance(0)
    return advance
