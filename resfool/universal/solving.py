"""Algorithm 2's smallest perturbations, kept while they are solved for."""

import functools
import hashlib
import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import numpy as np

from resfool import checkpoints
from resfool.datasets import sets
from resfool.errors import expanded
from resfool.monitor import Monitor

if TYPE_CHECKING:
    import keras

    from resfool.attacks.minimal import Minimal


_CHUNK = 100  # images solved at a time, or as many as a pass takes if those are more
_SAVING = 0.05  # share of the time that may go into keeping what was solved


@dataclass(frozen=True)
class Work:
    """What every part of the experiment needs."""

    model: "keras.Model"
    fitting: sets.Split
    held_out: np.ndarray
    monitor: Monitor
    map: Callable[..., list[Any]] | None
    say: Callable[[str], None]
    settings: dict[str, Any]
    identity: dict[str, Any]


def solved_perturbations(work: Work) -> "Minimal":
    """Algorithm 2's perturbations; those that are done are kept until all are."""
    s = work.settings
    options: Any = {name: s[name] for name in ("solver", "subspace", "batch_size")}
    problem = work.identity | options | {"images": digest(work.fitting.images)}
    solve = _solved_in_chunks
    if s["solver"] == "cobyla":
        solve, problem = _solved_one_by_one, problem | {"kept": "each image"}
    path = expanded(s["solve_dir"]) / f"solve-{digest(json.dumps(problem, sort_keys=True))}.npz"
    found = solve(work, path, options)
    checkpoints.discard(path)
    return found


def _solved_in_chunks(work: Work, path: Path, options: dict[str, Any]) -> "Minimal":
    """Solvers that work in batches here."""
    from resfool.attacks import minimal

    images, found, done = work.fitting.images, None, 0
    chunk = max(1, _CHUNK // options["batch_size"]) * options["batch_size"]
    if path.exists():
        found = minimal.Minimal(**checkpoints.load(path)[0])
        done = len(found.norms)
        _say_going_on(work, done)

    def save() -> None:
        checkpoints.save(path, vars(found), {})

    with _Keeper(save) as keeper:
        while found is None or done < len(images):
            work.monitor.progress(done, len(images), "images solved")
            more = images[done : done + chunk]
            solved = minimal.smallest_perturbations(work.model, more, **options)
            found = solved if found is None else found.followed_by(solved)
            done += len(more)
            keeper.more_is_done()
    work.monitor.progress(done, len(images), "images solved")
    return found


def _solved_one_by_one(work: Work, path: Path, options: dict[str, Any]) -> "Minimal":
    """COBYLA, whose images are spread over workers, each by itself."""
    from resfool.attacks import minimal
    from resfool.attacks.solvers.problem import one_by_one

    images = work.fitting.images
    kept: dict[int, tuple[np.ndarray, int, float]] = {}
    if path.exists():
        stored = checkpoints.load(path)[0]
        parts = (stored[name].tolist() for name in ("places", "passes", "seconds"))
        for place, passes, seconds, solution in zip(*parts, stored["perturbations"], strict=True):
            kept[place] = solution, passes, seconds
        _say_going_on(work, len(kept))
    done = len(kept)

    def progress(more: int) -> None:
        nonlocal done
        done += more
        work.monitor.progress(done, len(images), "images solved")

    def save() -> None:
        perturbations, passes, seconds = map(np.array, zip(*kept.values(), strict=True))
        columns = {"perturbations": perturbations, "passes": passes, "seconds": seconds}
        checkpoints.save(path, columns | {"places": np.array(list(kept))}, {})

    def keep(place: int, result: tuple[np.ndarray, int, float]) -> None:
        kept[place] = result
        keeper.more_is_done()

    progress(0)
    spread = work.map or one_by_one
    keeping = functools.partial(spread, finished=dict(kept), keep=keep)
    with _Keeper(save) as keeper:
        return minimal.smallest_perturbations(
            work.model, images, map=keeping, progress=progress, **options
        )


def _say_going_on(work: Work, done: int) -> None:
    work.say(f"going on with an interrupted solve, of which {done} images are done")


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
