"""Algorithm 2's smallest perturbations, kept while they are solved for."""

import contextlib
import functools
import hashlib
import json
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from resfool import checkpoints
from resfool.arrayfiles import ABSURD, DamagedError, Wanted, check
from resfool.attacks import minimal
from resfool.attacks.memory import largest
from resfool.attacks.minimal import Minimal
from resfool.attacks.solvers import SOLVERS, Solving
from resfool.attacks.solvers.problem import one_by_one
from resfool.classifiers import inference
from resfool.errors import expanded
from resfool.identity import VERSIONS
from resfool.monitor import Advance
from resfool.universal.options import UniversalParameters
from resfool.universal.work import Work

_NAME = "solve-"  # of a file, before its digest
_CHUNK = 100  # images solved at a time, or as many as a pass takes if those are more
_SAVING = 0.05  # share of the time that may go into keeping what was solved


def solved_perturbations(work: Work) -> Minimal:
    """Algorithm 2's perturbations; those that are done are kept until all are."""
    asked = work.asked
    solve = _solved_one_by_one if SOLVERS[asked.solver].spreads else _solved_in_chunks
    path = _place(asked, work.identity, work.fitting.images)
    found = solve(work, path, asked.shared(Solving) | {"clip": asked.clip})
    checkpoints.discard(path)
    return found


def check_kept(asked: UniversalParameters, identity: Mapping[str, Any], images: np.ndarray) -> None:
    """Refuse what an interrupted solve has left, if it isn't what it should be.

    Args:
        asked: which solve.
        identity: of the model, and of how it takes images.
        images: that were solved, (N, H, W, C).

    Raises:
        InputError: it isn't.
    """
    if not any(expanded(asked.solve_dir).glob(f"{_NAME}*")):
        return
    path = _place(asked, identity, images)
    if path.exists():
        read = _kept_images if SOLVERS[asked.solver].spreads else _kept_chunks
        read(path, images.shape)


def _place(asked: UniversalParameters, identity: Mapping[str, Any], images: np.ndarray) -> Path:
    """Where what is solved of a problem is kept: a file that is named by all of it."""
    problem = {**identity, **asked.shared(Solving), "images": digest(images)}
    problem |= {"batch_size": largest(asked.batch_size), "code": VERSIONS["universal"]}
    problem |= {"clip": asked.clip, "target": asked.target}
    if SOLVERS[asked.solver].spreads:
        problem["kept"] = "each image"
    name = f"{_NAME}{digest(json.dumps(problem, sort_keys=True))}.npz"
    return expanded(asked.solve_dir) / name


def _solved_in_chunks(work: Work, path: Path, options: dict[str, Any]) -> Minimal:
    """By a solver that works in batches, here."""
    images = work.fitting.images
    size = inference.even(len(images), work.batch_size)
    found = _kept_chunks(path, images.shape) if path.exists() else None
    done = 0 if found is None else len(found.norms)
    chunk = max(1, _CHUNK // size) * size
    advance = _progress(work, done)
    with _keeping(lambda: checkpoints.save(path, vars(found), {})) as more_is_done:
        while found is None or done < len(images):
            more = images[done : done + chunk]
            rows = inference.padded(len(more), size)
            solved = minimal.smallest_perturbations(
                work.judge, more[rows], batch_size=size, **options
            ).first(len(more))
            found = solved if found is None else found.followed_by(solved)
            done += len(more)
            more_is_done()
            advance(len(more))
    return found


def _solved_one_by_one(work: Work, path: Path, options: dict[str, Any]) -> Minimal:
    """By a solver whose images are spread over workers, each by itself."""
    kept = _kept_images(path, work.fitting.images.shape) if path.exists() else {}

    def save() -> None:
        perturbations, passes, seconds = map(np.array, zip(*kept.values(), strict=True))
        columns = {"perturbations": perturbations, "passes": passes, "seconds": seconds}
        checkpoints.save(path, columns | {"places": np.array(list(kept))}, {})

    def keep(place: int, result: tuple[np.ndarray, int, float]) -> None:
        kept[place] = result
        more_is_done()

    spread = functools.partial(work.map or one_by_one, finished=dict(kept), keep=keep)
    options |= {"map": spread, "progress": _progress(work, len(kept))}
    options |= {"batch_size": work.batch_size}
    with _keeping(save) as more_is_done:
        return minimal.smallest_perturbations(work.judge, work.fitting.images, **options)


def _kept_chunks(path: Path, shape: tuple[int, ...]) -> Minimal:
    """What was solved of images (N, H, W, C): the first ones.

    Raises:
        InputError: the file can't be what this left.
    """
    stored, of_each = checkpoints.load(path)[0], ("M",)
    with checkpoints.reading(path):
        wanted = {
            "perturbations": Wanted("f", (*of_each, *shape[1:]), most=ABSURD),
            "norms": Wanted("f", of_each, finite=False, most=ABSURD),
            "flipped": Wanted("b", of_each),
            "rounded": Wanted("b", of_each),
            "evaluations": Wanted("iu", of_each),
            "seconds": Wanted("f", of_each, most=ABSURD),
        }
        check(stored, wanted)
        if len(stored["norms"]) > shape[0]:
            raise DamagedError(f"it has more than the {shape[0]} images")
        if (np.isfinite(stored["norms"]) != stored["flipped"]).any():
            raise DamagedError("its norms don't fit its flipped")
    return Minimal(**stored)


def _kept_images(path: Path, shape: tuple[int, ...]) -> dict[int, tuple[np.ndarray, int, float]]:
    """What was solved of images (N, H, W, C): perturbation, passes and seconds by the image.

    Raises:
        InputError: the file can't be what this left.
    """
    stored, of_each = checkpoints.load(path)[0], ("M",)
    with checkpoints.reading(path):
        wanted = {
            "places": Wanted("iu", of_each),
            "passes": Wanted("iu", of_each),
            "seconds": Wanted("f", of_each, most=ABSURD),
            "perturbations": Wanted("f", (*of_each, *shape[1:]), most=ABSURD),
        }
        check(stored, wanted)
        places, passes, seconds = (stored[name].tolist() for name in list(wanted)[:3])
        if len(set(places)) < len(places) or not set(places) <= set(range(shape[0])):
            raise DamagedError(f"its places aren't some of the {shape[0]} images, each once")
    results = zip(stored["perturbations"], passes, seconds, strict=True)
    return dict(zip(places, results, strict=True))


def _progress(work: Work, done: int) -> Advance:
    if done:
        work.monitor.say(f"going on with an interrupted solve, of which {done} images are done")
    advance = work.monitor.counter(len(work.fitting), "images solved", done)
    advance(0)
    return advance


@contextlib.contextmanager
def _keeping(save: Callable[[], None]) -> Iterator[Callable[[], None]]:
    """What is told that more is done: it saves now and then, and once more before an error."""
    due, unsaved = 0.0, False

    def save_now() -> None:
        nonlocal unsaved
        save()
        unsaved = False

    def more_is_done() -> None:
        nonlocal due, unsaved
        unsaved = True
        began = time.monotonic()
        if began >= due:
            save_now()
            due = time.monotonic() + (time.monotonic() - began) / _SAVING

    try:
        yield more_is_done
    except BaseException:
        if unsaved:
            save_now()
        raise


def digest(*parts: Any) -> str:
    """Sixteen hex digits that tell texts and arrays apart."""
    sha = hashlib.sha256()
    for part in parts:
        sha.update(part.encode() if isinstance(part, str) else np.ascontiguousarray(part).tobytes())
    return sha.hexdigest()[:16]
