"""Targeted auto-PGD inside a bisection of the radius, after hops: slow, and the strongest."""

import time
from dataclasses import dataclass, replace

import numpy as np

from resfool.attacks import lowrank
from resfool.attacks.leads import safe_leads
from resfool.attacks.methods import apgd as ascents
from resfool.attacks.methods.targets import nearest_targets
from resfool.attacks.methods.targets import passes as target_passes
from resfool.attacks.methods.task import Task
from resfool.attacks.solvers.closest import closer, closest
from resfool.attacks.solvers.crossing import Rays
from resfool.attacks.solvers.problem import Attempt, Problem
from resfool.classifiers import inference
from resfool.monitor import quiet

_WIDER = 1.15  # times the norm that was found: the radius in which others are looked for
_SMALLEST = 0.8  # of it: the radius that is taken for too small at first
_CLOSE = 0.998  # of it: a radius at which nothing was found ends the bisection of an image


def apgd(
    problem: Problem,
    *,
    candidates: int,
    targets: int = 9,
    hops: int = 18,
    rounds: int = 6,
    steps: int = 40,
) -> Attempt:
    """Look for shorter perturbations from random points, and in balls of smaller radii.

    It begins with what `closest` finds. First come hops: from a random point in a ball that is a
    little larger, `closest` goes on to the boundary with one of the targets, and along it. Then
    the radius of a ball is bisected, in which ascents on the difference-of-logits ratio begin with
    what is known, shortened to the ball, and at random; what they find is walked along the
    boundary too, and is the next radius to fall below. Where nothing is found, there may still be
    something: the answer is no bound from below.

    Source: Croce, Hein, "Reliable evaluation of adversarial robustness with an ensemble of diverse
    parameter-free attacks", arXiv:2003.01690, for the ascents.

    Args:
        problem: what is to be solved, in either norm.
        candidates: classes to look at.
        targets: of them, those that look nearest and are moved towards.
        hops: from random points, towards the targets in turn.
        rounds: of the bisection; each goes towards two classes.
        steps: gradient steps of an ascent.
    """
    began, exact = time.perf_counter(), replace(problem, levels=None, progress=quiet)
    first = closest(exact, candidates=candidates)
    search = _Search.begun(exact, first, min(targets, candidates - 1), candidates, steps)
    count, turns = len(problem.images), hops + rounds
    for number in range(turns):
        if number < hops:
            search.hop(number)
        else:
            search.bisect(number)
        problem.progress((number + 1) * count // turns - number * count // turns)
    seconds = np.full(count, (time.perf_counter() - began) / count)
    return Attempt(search.ways, np.rint(search.passes).astype(np.int64), seconds)


@dataclass
class _Search:
    """What is known of N images.

    Attributes:
        problem: the images.
        task: the same, as an attack takes it; its radii change.
        targets: int32 (N, T), classes to move towards, the nearest first.
        ways: float32 (N, H, W, C), the shortest perturbations that were found.
        norms: float64 (N,), theirs; inf where none was.
        low: float64 (N,), radii within which nothing was found, 0 where none was searched.
        passes: float64 (N,), through the model; those of ascents are shared evenly.
        candidates: classes to look at.
        steps: of an ascent.
    """

    problem: Problem
    task: Task
    targets: np.ndarray
    ways: np.ndarray
    norms: np.ndarray
    low: np.ndarray
    passes: np.ndarray
    candidates: int
    steps: int

    @classmethod
    def begun(
        cls, problem: Problem, first: Attempt, targets: int, candidates: int, steps: int
    ) -> "_Search":
        """With what another solver has found."""
        options = problem.model, problem.images, problem.classes
        leads = safe_leads(*options, problem.logits, batch_size=problem.batch_size)
        task = Task(
            model=problem.model,
            images=problem.images,
            labels=problem.classes.astype(np.int32),
            radii=np.zeros(len(leads), np.float32),
            leads=leads.astype(np.float32),
            norm=problem.norm,
            clip=problem.clip,
            batch_size=problem.batch_size,
        )
        ways, norms, looks = Rays(problem, first.perturbations).shortened()
        spent = first.evaluations + looks + 1.0 + target_passes(problem.logits.shape[1], targets)
        low = np.zeros(len(norms))
        nearest = nearest_targets(task, targets)
        return cls(problem, task, nearest, ways, norms, low, spent, candidates, steps)

    def hop(self, number: int) -> None:
        """Look for other perturbations, hardly longer, from random points."""
        largest = lowrank.sizes(np.ones_like(self.problem.images[:1]), self.problem.norm)
        radii = np.where(np.isfinite(self.norms), _WIDER * self.norms, largest)
        task = replace(self.task, radii=radii.astype(np.float32), seed=number)
        towards = self.targets[:, number % self.targets.shape[1]]
        self.take(np.arange(len(radii)), task.starts(0) - task.images, towards)

    def bisect(self, number: int) -> None:
        """Search balls of radii between those that are too small and those that are known."""
        low = np.maximum(self.low, _SMALLEST * self.norms)
        going = np.flatnonzero(np.isfinite(self.norms) & (low < _CLOSE * self.norms))
        if not len(going):
            return
        radii = (low[going] + self.norms[going]) / 2
        shares = (radii / self.norms[going]).astype(np.float32).reshape(-1, 1, 1, 1)
        begin = self.problem.images[going] + shares * self.ways[going]
        fooled = self.search(going, radii, number, self.reached(going), begin)
        self.low[going[~fooled]] = radii[~fooled]

    def reached(self, going: np.ndarray) -> np.ndarray:
        """The classes of images with what was found, and the nearest of the others, (n, 2)."""
        moved = self.problem.images[going] + self.ways[going]
        logits = inference.logits(self.problem.model, moved, self.problem.batch_size)
        self.passes[going] += 1
        rows = np.arange(len(going))
        logits[rows, self.problem.classes[going]] = -np.inf
        there, nearest = logits.argmax(axis=1), self.targets[going]
        if nearest.shape[1] == 1:
            return nearest
        other = np.where(nearest[:, 0] == there, nearest[:, 1], nearest[:, 0])
        return np.stack([there, other], axis=1)

    def search(
        self,
        going: np.ndarray,
        radii: np.ndarray,
        seed: int,
        targets: np.ndarray,
        begin: np.ndarray | None = None,
    ) -> np.ndarray:
        """Search balls around some images, and keep what is shorter; which were fooled, (n,)."""
        spent = [0]

        def count(passes: int, text: str = "", /) -> None:
            spent[0] += passes

        task = self.task.of(going)
        task = replace(task, radii=radii.astype(np.float32), seed=seed, progress=count)
        answer = ascents.apgd(task, loss="targeted", targets=targets, steps=self.steps, begin=begin)
        self.passes[going] += spent[0] / len(going)
        won = going[answer.fooled]
        if len(won):
            self.take(won, answer.moved[answer.fooled] - self.problem.images[won])
        return answer.fooled

    def take(self, won: np.ndarray, moves: np.ndarray, targets: np.ndarray | None = None) -> None:
        """Take what was found for some images, once it is as short as it gets."""
        part = self.problem.picked(won)
        better = closer(part, moves, targets, candidates=self.candidates)
        ways, norms, looks = Rays(part, better.perturbations).shortened()
        self.passes[won] += better.evaluations + looks
        shorter = norms < self.norms[won]
        won = won[shorter]
        self.ways[won], self.norms[won] = ways[shorter], norms[shorter]
