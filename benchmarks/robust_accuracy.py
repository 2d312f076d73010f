r"""Robust accuracy by `standard` and by AutoAttack of two libraries: whom do they fool, how fast?

    pip install torch pyautoattack
    pip install --no-deps torchattacks     # it asks for a release of requests of years ago
    python -m benchmarks.robust_accuracy --model=runs:/RUN_ID/model --images=200
    python -m benchmarks.robust_accuracy --model=PATH.keras --dataset=cifar10 --norm=l2 \
        --epsilons 0.25 0.5 1 --sides together torchattacks

All sides get the same images, which the model has right, at the same epsilons, and run in turn in
this process on the same cores: ours on the model, the libraries on a copy of it in PyTorch whose
logits were seen to agree. The libraries attack at each epsilon anew, since that is how they are
called. The side `standard` does so too; `together` is `standard` over all epsilons in one go, as
`attack` does it. Times include our compilation, where it comes first. Beside the seconds are those
of all cores together, which say more where others use the cores too; PyTorch's threads are told not
to wait busily for each other there.

Who is fooled is judged for all sides alike, on the model: another class is ahead, within epsilon
and the range of pixels. What a side isn't asked for, or whose library isn't installed, is left out.

Sources: Croce, Hein, arXiv:2003.01690 (AutoAttack); torchattacks, whose AutoAttack takes
10 gradient steps where it should be 100; pyautoattack, a package of the authors' own code.
"""

import argparse
import importlib.util
import os
import sys
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import numpy as np

from benchmarks import common
from benchmarks.common import Case
from resfool.devices import start_tensorflow

Array = np.ndarray
# Images, labels and epsilons to the images under attack at each epsilon.
Attack = Callable[[Array, Array, Sequence[float]], list[Array]]

TOGETHER = "together"  # standard, over all epsilons
OURS = "standard", TOGETHER, "quick"
SIDES = *OURS, "torchattacks", "pyautoattack"
OUTSIDE = 1e-5  # by how much a perturbation may be longer than epsilon: what float32 makes of it


@dataclass(frozen=True)
class Measured:
    """What a side did at E epsilons.

    Attributes:
        side: its name.
        fooled: bool (E, N).
        seconds: at each epsilon, or a single number for all of them together.
        of_cores: the same, of the cores' time.
    """

    side: str
    fooled: Array
    seconds: list[float]
    of_cores: list[float]


def main() -> None:
    """Let all sides attack in turn and print two tables."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    common.add_model(parser, images=200)
    parser.add_argument("--norm", choices=("linf", "l2"), default="linf")
    parser.add_argument("--epsilons", nargs="+", help="default: 8/255, or 0.5 in l2")
    parser.add_argument("--sides", nargs="+", choices=SIDES, default=SIDES)
    parser.add_argument("--batch", type=int, default=100, help="images per pass (default: 100)")
    options = parser.parse_args()
    sides = [side for side in options.sides if installed(side)]
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # before PyTorch is imported
    start_tensorflow()
    warnings.filterwarnings("ignore")  # the libraries', of what they don't find
    usual = ["8/255"] if options.norm == "linf" else ["0.5"]
    epsilons = sorted(float(Fraction(text)) for text in options.epsilons or usual)
    case, accuracy = common.right_ones(options)
    print(f"{common.machine()}; {accuracy:.1%} of {options.images} images are right\n", flush=True)
    measured = [measure(side, case, epsilons) for side in sides]
    print_accuracies(measured, epsilons, accuracy)
    print_times(measured, epsilons)


def installed(side: str) -> bool:
    """Whether a side can run; says so where it can't."""
    needs = [] if side in OURS else ["torch", side]
    missing = [name for name in needs if importlib.util.find_spec(name) is None]
    if missing:
        print(f"{side} is left out: {' and '.join(missing)} not installed", file=sys.stderr)
    return not missing


def measure(side: str, case: Case, epsilons: Sequence[float]) -> Measured:
    """Let a side attack at each epsilon by itself, or at all together."""
    attack = ATTACKS[side](case)
    turns = [epsilons] if side == TOGETHER else [[epsilon] for epsilon in epsilons]
    rows, *times = zip(*(timed(side, attack, case, turn) for turn in turns), strict=True)
    return Measured(side, np.concatenate(rows), *map(list, times))


def timed(
    name: str, attack: Attack, case: Case, epsilons: Sequence[float]
) -> tuple[Array, float, float]:
    """Who is fooled at each epsilon, bool (E, N), the seconds that it took, and the cores'."""
    began, of_cores = time.perf_counter(), time.process_time()
    moved = attack(case.images, case.labels, epsilons)
    seconds, of_cores = time.perf_counter() - began, time.process_time() - of_cores
    rows = [fooled(case, each, epsilon) for each, epsilon in zip(moved, epsilons, strict=True)]
    counts = ", ".join(
        f"{row.sum()} within {shown(epsilon)}" for row, epsilon in zip(rows, epsilons, strict=True)
    )
    print(
        f"{name} fools {counts}: {seconds:.0f} s, {common.machine()}", file=sys.stderr, flush=True
    )
    return np.array(rows), seconds, of_cores


def fooled(case: Case, moved: Array, epsilon: float) -> Array:
    """Whether the model has an image wrong that was moved by epsilon at most, bool (N,)."""
    from resfool.attacks import lowrank
    from resfool.classifiers import inference

    wrong = inference.logits(case.model, moved, case.batch).argmax(axis=1) != case.labels
    near = lowrank.sizes(moved - case.images, case.norm) <= epsilon + OUTSIDE
    inside = (np.abs(moved - 0.5) <= 0.5 + OUTSIDE).all(axis=(1, 2, 3))
    return np.asarray(wrong & near & inside)


def ours(case: Case, effort: Any) -> Attack:
    """The method `standard`."""
    from resfool.attacks.epsilons import over_epsilons
    from resfool.attacks.options import HowToAttack

    def attack(images: Array, labels: Array, epsilons: Sequence[float]) -> list[Array]:
        given: dict[str, Any] = {"epsilons": tuple(epsilons), "norm": case.norm}
        asked = HowToAttack(method="standard", effort=effort, **given)
        curve = over_epsilons(case.model, images, labels, asked, batch_size=case.batch)
        return [curve.move(np.arange(len(images)), epsilon) for epsilon in epsilons]

    return attack


def torchattacks(case: Case) -> Attack:
    """Its AutoAttack, batch by batch."""
    from torchattacks import AutoAttack

    from benchmarks import torch_copies

    copy = torch_copies.torch_copy(case.model, case.images[: case.batch])
    classes = case.model.output_shape[-1]

    def attack(images: Array, labels: Array, epsilons: Sequence[float]) -> list[Array]:
        (epsilon,) = epsilons
        method = AutoAttack(copy, norm=NORMS[case.norm], eps=epsilon, n_classes=classes, seed=0)
        parts = []
        for start in range(0, len(images), case.batch):
            rows = slice(start, start + case.batch)
            x, y = torch_copies.tensor(images[rows]), torch_copies.labels(labels[rows])
            parts.append(torch_copies.array(method(x, y)))
        return [np.concatenate(parts)]

    return attack


def pyautoattack(case: Case) -> Attack:
    """The authors' AutoAttack, which batches by itself those that are left."""
    from pyautoattack import AutoAttack

    from benchmarks import torch_copies

    copy = torch_copies.torch_copy(case.model, case.images[: case.batch])

    def attack(images: Array, labels: Array, epsilons: Sequence[float]) -> list[Array]:
        (epsilon,) = epsilons
        method = AutoAttack(copy, norm=NORMS[case.norm], eps=epsilon, seed=0)
        x, y = torch_copies.tensor(images), torch_copies.labels(labels)
        found, _ = method.run_standard_evaluation(x, y, batch_size=case.batch)
        return [torch_copies.array(found)]

    return attack


NORMS = {"linf": "Linf", "l2": "L2"}
ATTACKS: dict[str, Callable[[Case], Attack]] = {
    "standard": lambda case: ours(case, "standard"),
    TOGETHER: lambda case: ours(case, "standard"),
    "quick": lambda case: ours(case, "quick"),
    "torchattacks": torchattacks,
    "pyautoattack": pyautoattack,
}


def print_accuracies(
    measured: Sequence[Measured], epsilons: Sequence[float], accuracy: float
) -> None:
    """A line for each side and epsilon: what is left, and how it differs from the first side."""
    first = measured[0]
    print(f"| side | epsilon | robust accuracy | fooled | only by it | only by {first.side} |")
    print("| --- | --- | --- | --- | --- | --- |")
    for each in measured:
        for epsilon, row, other in zip(epsilons, each.fooled, first.fooled, strict=True):
            left = accuracy * (1 - row.mean())
            cells = [each.side, shown(epsilon), f"{left:.1%}", f"{row.sum()} of {len(row)}"]
            cells += [str((row & ~other).sum()), str((other & ~row).sum())]
            print(f"| {' | '.join(cells)} |")
    print()


def print_times(measured: Sequence[Measured], epsilons: Sequence[float]) -> None:
    """A line for each side: seconds at each epsilon and in all, beside those of ours."""
    names = [each.side for each in measured]
    ours = [name for name in names if name in ("standard", TOGETHER)] or names[:1]
    heads = [*map(shown, epsilons), "in all", "of the cores", *(f"times {name}" for name in ours)]
    print(f"| seconds | {' | '.join(heads)} |\n| --- |{' --- |' * len(heads)}")
    totals = {each.side: sum(each.seconds) for each in measured}
    for each in measured:
        alone = len(each.seconds) == len(epsilons)
        cells = [f"{one:.1f}" for one in each.seconds] if alone else [""] * len(epsilons)
        cells += [f"{totals[each.side]:.1f}", f"{sum(each.of_cores):.1f}"]
        cells += [f"{totals[each.side] / totals[name]:.2f}" for name in ours]
        print(f"| {each.side} | {' | '.join(cells)} |")


def shown(epsilon: float) -> str:
    """An epsilon as 8/255 or 0.5."""
    parts = epsilon * 255
    return f"{parts:.0f}/255" if abs(parts - round(parts)) < 1e-6 else f"{epsilon:g}"


if __name__ == "__main__":
    main()
