"""Images pursued by several attacks in turn, over all epsilons, until nothing fools them sooner."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np

from resfool.attacks import gradient, lowrank
from resfool.attacks.gradient import Outcome
from resfool.attacks.leads import safe_leads
from resfool.attacks.methods.moving import Moved, Start
from resfool.attacks.methods.task import Answer, Task
from resfool.monitor import Advance
from resfool.values import BallNorm

_AT_ONCE = 2**27  # bytes of the images that are attacked together; attacks keep several such
_SLACK = 1e-6  # of a perturbation's norm, in pixel units: what float32 makes of it


@dataclass(frozen=True)
class Pursuer:
    """An attack that is one of several.

    Attributes:
        name: by which it is counted.
        attack: from a task to what became of its images.
        passes: of an image that it doesn't fool.
        shortens: whether it looks for the smallest perturbation, whatever the radius, and goes on
            until that is no longer than the radius.
    """

    name: str
    attack: Callable[[Task], Answer]
    passes: int
    shortens: bool = False


@dataclass
class _Found:
    """What was found so far for N images and E epsilons.

    Attributes:
        images: float32 (N, H, W, C), as they were.
        epsilons: float64 (E,), rising.
        norm: of which they are radii.
        moved: float32 (N, H, W, C), the shortest that fools, or the image as it was.
        level: int (N,), the number of the smallest epsilon at which an image is fooled, or E.
        first: int (E, N), the number of the attack that fooled it there first, or -1.
    """

    images: np.ndarray
    epsilons: np.ndarray
    norm: BallNorm
    moved: np.ndarray = field(init=False)
    level: np.ndarray = field(init=False)
    first: np.ndarray = field(init=False)

    def __post_init__(self) -> None:
        count = len(self.images)
        self.moved = self.images.copy()
        self.level = np.full(count, len(self.epsilons))
        self.first = np.full((len(self.epsilons), count), -1)

    def take(self, chosen: np.ndarray, answer: Answer, number: int) -> np.ndarray:
        """Take what an attack found for some images; the numbers of those it fools sooner."""
        chosen, moved = chosen[answer.fooled], answer.moved[answer.fooled]
        if not len(chosen):
            return chosen
        sizes = lowrank.sizes(moved - self.images[chosen], self.norm)
        levels = np.searchsorted(self.epsilons + _SLACK, sizes)
        sooner = levels < self.level[chosen]
        chosen, moved, levels = chosen[sooner], moved[sooner], levels[sooner]
        numbers = np.arange(len(self.epsilons))[:, np.newaxis]
        gained = (numbers >= levels) & (numbers < self.level[chosen])
        self.first[:, chosen] = np.where(gained, number, self.first[:, chosen])
        self.moved[chosen], self.level[chosen] = moved, levels
        return chosen

    def forget(self, lost: np.ndarray) -> None:
        """Take back that these images are fooled."""
        self.moved[lost], self.level[lost] = self.images[lost], len(self.epsilons)
        self.first[:, lost] = -1


def pursue(start: Start, pursuers: Sequence[Pursuer], norm: BallNorm) -> Moved:
    """Let attacks follow one another, each on the images that are not fooled yet.

    An attack begins with an image at the largest epsilon at which nothing fools it, and goes on at
    the next smaller one as long as it succeeds. What fools at an epsilon fools at every larger one,
    since its ball lies in theirs. So it takes hardly longer over many epsilons than at one: where
    an attack fails, it isn't tried at smaller ones. Images that are wrong by themselves are left
    alone.

    Args:
        start: the images, and the epsilons.
        pursuers: the attacks, the quick ones first.
        norm: whose balls the epsilons are radii of.
    """
    found = _Found(start.images, np.asarray(start.epsilons, np.float64), norm)
    leads = safe_leads(
        start.model,
        start.images,
        start.first.labels,
        start.first.logits,
        batch_size=start.batch_size,
    )
    start.progress(len(start.images))
    for number, pursuer in enumerate(pursuers):
        # Alone, it shortens everything as far as it can.
        goal = 0.0 if len(pursuers) == 1 else start.epsilons[0]
        _follow(start, leads, found, number, pursuer, goal if pursuer.shortens else None)
    return _moved(start, found, pursuers)


def _follow(
    start: Start,
    leads: np.ndarray,
    found: _Found,
    number: int,
    pursuer: Pursuer,
    goal: float | None,
) -> None:
    """Let one attack have a go; where it has a goal, once, with that radius for all images."""
    told = _Told(start.progress, pursuer.passes * len(start.images))
    labels, logits = start.first.labels, start.first.logits
    at_once = max(start.batch_size, _AT_ONCE // start.images[0].nbytes)
    left = np.flatnonzero((logits.argmax(axis=1) == labels) & (found.level > 0))
    while len(left):
        sooner = []
        for part in (left[at : at + at_once] for at in range(0, len(left), at_once)):
            radii = (
                found.epsilons[found.level[part] - 1] if goal is None else np.full(len(part), goal)
            )
            task = Task(
                model=start.model,
                images=start.images[part],
                labels=labels[part].astype(np.int32),
                radii=radii.astype(np.float32),
                leads=leads[part].astype(np.float32),
                norm=found.norm,
                clip=start.clip,
                seed=start.seed,
                places=start.numbers[part],
                batch_size=start.batch_size,
                progress=told.more,
            )
            sooner.append(found.take(part, pursuer.attack(task), number))
        left = np.concatenate(sooner)
        left = left[found.level[left] > 0] if goal is None else left[:0]
    told.rest()


def _moved(start: Start, found: _Found, pursuers: Sequence[Pursuer]) -> Moved:
    """What was found, seen once more in the batches in which images are judged elsewhere."""
    images, count = start.images, len(start.epsilons)
    seen = gradient.judged(start.model, images, found.moved, batch_size=start.batch_size)
    start.progress(len(images))
    found.forget(np.flatnonzero((found.level < count) & (seen.classes[0] == start.first.labels)))

    fooled = found.level <= np.arange(count)[:, np.newaxis]
    both = zip(vars(seen).values(), vars(Outcome.unmoved(start.first.logits)).values(), strict=True)
    outcome = Outcome(*(np.where(fooled, there, here) for there, here in both))
    smallest = None
    if all(pursuer.shortens for pursuer in pursuers):
        sizes = lowrank.sizes(found.moved - images, found.norm)
        smallest = np.where(found.level < count, sizes, np.inf).astype(np.float32)
    return Moved(outcome, found.moved, smallest, tuple(p.name for p in pursuers), found.first)


class _Told:
    """A progress that ends at its total: an attack may take more passes than foreseen, or less."""

    def __init__(self, progress: Advance, total: int) -> None:
        self._progress, self._left = progress, total

    def more(self, passes: int, text: str = "", /) -> None:
        passes = min(passes, self._left)
        self._left -= passes
        self._progress(passes, text)

    def rest(self) -> None:
        self.more(self._left)
