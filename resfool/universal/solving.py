"""Algorithm 2's smallest perturbations, kept while they are solved for."""

import functools
import hashlib
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import numpy as np

from resfool import checkpoints
from resfool.attacks import minimal
from resfool.attacks.minimal import Minimal
from resfool.attacks.solvers import SOLVERS
from resfool.attacks.solvers.problem import one_by_one
from resfool.errors import expanded

if TYPE_CHECKING:
    from resfool.universal.fitting import Work

_CHUNK = 100  # images solved at a time, or as many as a pass takes if those are more
_SAVING = 0.05  # share of the time that may go into keeping what was solved


def solved_perturbations(work: "Work") -> Minimal:
    """Algorithm 2's perturbations; those that are done are kept until all are."""
    asked = work.asked
    options = {
        "solver": asked.solver,
        "subspace": asked.subspace,
        "batch_size": asked.batch_size,
    }
    problem = work.identity | options | {"images": digest(work.fitting.images)}
    solve = _solved_in_chunks
    if SOLVERS[asked.solver].spreads:
        solve, problem = _solved_one_by_one, problem | {"kept": "each image"}
    path = expanded(asked.solve_dir) / f"solve-{digest(json.dumps(problem, sort_keys=True))}.npz"
    found = solve(work, path, options)
    checkpoints.discard(path)
    return found


def _solved_in_chunks(work: "Work", path: Path, options: dict[str, Any]) -> Minimal:
    """By a solver that works in batches, here."""
    images, found, done = work.fitting.images, None, 0
    chunk = max(1, _CHUNK // options["batch_size"]) * options["batch_size"]
    if path.exists():
        found = Minimal(**checkpoints.load(path)[0])
        done = len(found.norms)
        _say_going_on(work, done)

    def save() -> None:
        checkpoints.save(path, vars(found), {})

    advance = work.monitor.counter(len(images), "images solved", done)
    advance(0)
    with _Keeper(save) as keeper:
        while found is None or done < len(images):
            more = images[done : done + chunk]
            solved = minimal.smallest_perturbations(work.model, more, **options)
            found = solved if found is None else found.followed_by(solved)
            done += len(more)
            keeper.more_is_done()
            advance(len(more))
    return found


def _solved_one_by_one(work: "Work", path: Path, options: dict[str, Any]) -> Minimal:
    """By a solver whose images are spread over workers, each by itself."""
    images = work.fitting.images
    kept: dict[int, tuple[np.ndarray, int, float]] = {}
    if path.exists():
        stored = checkpoints.load(path)[0]
        parts = (stored[name].tolist() for name in ("places", "passes", "seconds"))
        for place, passes, seconds, solution in zip(*parts, stored["perturbations"], strict=True):
            kept[place] = solution, passes, seconds
        _say_going_on(work, len(kept))

    def save() -> None:
        perturbations, passes, seconds = map(np.array, zip(*kept.values(), strict=True))
        columns = {"perturbations": perturbations, "passes": passes, "seconds": seconds}
        checkpoints.save(path, columns | {"places": np.array(list(kept))}, {})

    def keep(place: int, result: tuple[np.ndarray, int, float]) -> None:
        kept[place] = result
        keeper.more_is_done()

    advance = work.monitor.counter(len(images), "images solved", len(kept))
    advance(0)
    keeping = functools.partial(work.map or one_by_one, finished=dict(kept), keep=keep)
    with _Keeper(save) as keeper:
        return minimal.smallest_perturbations(
            work.model, images, map=keeping, progress=advance, **options
        )


def _say_going_on(work: "Work", done: int) -> None:
    work.monitor.say(f"going on with an interrupted solve, of which {done} images are done")


class _Keeper:
    """Saves now and then, and when the block is left by an error if there is something new.

    Args:
        save: that takes some time, of which no more than a small share of all is spent.
    """

    def __init__(self, save: Callable[[], None]) -> None:
        self._save = save
        self._due, self._unsaved = 0.0, False

    def more_is_done(self) -> None:
        self._unsaved = True
        began = time.monotonic()
        if began >= self._due:
            self._save_now()
            self._due = time.monotonic() + (time.monotonic() - began) / _SAVING

    def _save_now(self) -> None:
        self._save()
        self._unsaved = False

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: Any, error: Any, trace: Any) -> None:
        if error is not None and self._unsaved:
            self._save_now()


def digest(*parts: Any) -> str:
    sha = hashlib.sha256()
    for part in parts:
        sha.update(part.encode() if isinstance(part, str) else np.ascontiguousarray(part).tobytes())
    return sha.hexdigest()[:16]
