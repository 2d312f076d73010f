"""Losses and updates of `algorithm=gradient` side by side, and those of others in PyTorch.

    python -m benchmarks.universal_losses --model=runs:/RUN_ID/model
    python -m benchmarks.universal_losses --model=PATH.keras --dataset=mnist5k --images=500
    python -m benchmarks.universal_losses --model=PATH.keras --norms linf:10/255 --passes=5

Each line is a loss and an update; each cell the share of test images that a perturbation of the
norm fools, which was fitted on as many training images: clipped to [0, 1] in both. With
`--unclipped` two more columns tell what is fitted and judged unclipped, and what is fitted so and
judged clipped, which `clip=true` has to beat. Fits of one column take the same images, as many
passes over them. Seconds are those of a fit, the mean of a line; its first fit compiles outside of
the time. Ours begin with short ascents towards `--starts` classes and from plain patterns, which
take about as many gradients besides as six passes over 1,000 images, except for the line that says
so.

If PyTorch is installed, three methods from the literature are fitted by it on a copy of the network
with the same weights, with their own settings but as many gradients of an image, and judged by us.
They are of the l-infinity norm, and an l2 ball is our addition: there a sign step has the same
share of the norm, and the vector is projected on the ball.

- SGD-UAP: clamped cross-entropy (9), a sign step of a tenth of the norm that shrinks to .8 with
  each pass; Shafahi et al., arXiv:1811.11304.
- SGA: the same loss; small batches of 10 drawn from 250, four times as many as fill it, a sign step
  along the mean of their gradients; Liu et al., arXiv:2308.06015, Algorithm 1.
- bounded logit: the lead of the clean class down to -10, Adam with a rate of .005, batches of 32;
  Zhang et al., arXiv:2007.06189.
"""

import argparse
import importlib.util
import itertools
import os
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, get_args

import numpy as np

from benchmarks import common
from resfool.devices import start_tensorflow
from resfool.universal.options import Loss, UpdateRule
from resfool.values import Norm, parse_norm

if TYPE_CHECKING:
    import keras

NORMS = Norm("linf", 10 / 255), Norm("l2", 2.0), Norm("l2", 3.0)
STEP_IMAGES = 100  # of a step of SGD-UAP, and of ours where it is divided into small batches
SMALL_BATCHES = 10  # of a step, in the lines that aggregate

# From a norm, whether pixels are clipped and passes over the images to a perturbation (H, W, C).
Fit = Callable[[Norm, bool, int], np.ndarray]


@dataclass(frozen=True)
class Case:
    """What all fits are given.

    Attributes:
        model: from images to logits.
        fitting: float32 (N, H, W, C) in [0, 1].
        held_out: float32 (M, H, W, C), to judge on.
        passes: over the fitting images.
        seed: of all draws.
    """

    model: "keras.Model"
    fitting: np.ndarray
    held_out: np.ndarray
    passes: int
    seed: int


def main() -> None:
    """Fit all and print a table."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    common.add_model(parser, images=500)
    parser.add_argument("--norms", nargs="+", type=parse_norm, default=NORMS)
    parser.add_argument("--passes", type=int, default=6, help="over the images (default: 6)")
    parser.add_argument("--starts", type=int, default=10, help="classes (default: 10)")
    parser.add_argument("--unclipped", action="store_true", help="fit without clipping, too")
    parser.add_argument("--seed", type=int, default=0, help="(default: 0)")
    parser.add_argument("--lines", nargs="+", help="parts of names; default: all lines")
    options = parser.parse_args()
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # before PyTorch is imported
    start_tensorflow()
    model, held_out, _ = common.model_and_images(options)
    _, fitting, _ = common.model_and_images(options, "train")
    case = Case(model, fitting, held_out, options.passes, options.seed)
    fits = of_ours(case, options.starts)
    if importlib.util.find_spec("torch"):
        fits |= of_torch(case)
    else:
        print("not installed: torch", file=sys.stderr)
    print(f"{common.machine()}; {len(fitting)} images to fit on, {len(held_out)} to judge on\n")
    kinds = KINDS if options.unclipped else KINDS[:1]
    names = [f"{norm} {kind}" for norm in options.norms for kind in kinds]
    print(f"| loss, update | {' | '.join(names)} | seconds |\n|{' --- |' * (len(names) + 2)}")
    for name, fit in fits.items():
        if not options.lines or any(part in name for part in options.lines):
            print(line(name, fit, case, options.norms, kinds), flush=True)


KINDS = "clipped", "unclipped", "unclipped fit, clipped"


def line(name: str, fit: Fit, case: Case, norms: Sequence[Norm], kinds: Sequence[str]) -> str:
    """The rates of one way to fit, as KINDS says."""
    from resfool.attacks import lowrank
    from resfool.universal.vectors import applied

    ways = (True, False) if len(kinds) > 1 else (True,)
    for clip in ways:
        fit(norms[0], clip, 1)  # compiles
    rates, seconds = [], []
    for norm in norms:
        found = {}
        for clip in ways:
            began = time.perf_counter()
            found[clip] = fit(norm, clip, case.passes)
            seconds.append(time.perf_counter() - began)
        assert max(lowrank.sizes(np.stack(list(found.values())), norm.kind)) <= 1.0001 * norm.size
        for fitted, clip in ((True, True), (False, False), (False, True))[: len(kinds)]:
            vector = found[fitted][np.newaxis]
            judged = applied(case.model, case.held_out, vector, clip=clip)
            rates.append(f"{judged.rates[0]:.3f}")
    return f"| {' | '.join([name, *rates, f'{np.mean(seconds):.1f}'])} |"


def of_ours(case: Case, starts: int) -> dict[str, Fit]:
    """Noise; every loss with every update; and two losses with small batches, too."""
    from resfool.universal.ascent import gradient_trained
    from resfool.universal.vectors import random_vectors

    def noise(norm: Norm, clip: bool, passes: int) -> np.ndarray:
        sizes = np.array([norm.size])
        return random_vectors(case.fitting.shape[1:], sizes, norm.kind, case.seed)[0]

    def ours(loss: Loss, update: UpdateRule, aggregate: int, starts: int = starts) -> Fit:
        def fit(norm: Norm, clip: bool, passes: int) -> np.ndarray:
            own: Any = {"loss": loss, "update": update, "aggregate": aggregate}
            own |= {"starts": starts}
            own |= {"images_per_step": STEP_IMAGES} if aggregate > 1 else {}
            own |= {"passes": passes, "seed": case.seed}
            return gradient_trained(case.model, case.fitting, norm=norm, clip=clip, **own).vector

        return fit

    found: dict[str, Fit] = {"noise": noise}
    choices = [*itertools.product(get_args(Loss), get_args(UpdateRule), (1,))]
    few: tuple[Loss, ...] = "margin", "cross_entropy"
    choices += [*itertools.product(few, get_args(UpdateRule), (SMALL_BATCHES,))]
    for loss, update, aggregate in choices:
        also = f", {aggregate} small batches" if aggregate > 1 else ""
        found[f"`{loss}`, `{update}`{also}"] = ours(loss, update, aggregate)
    found["`margin`, `momentum`, from zero"] = ours("margin", "momentum", 1, starts=0)
    return found


def torch_targeted(case: Case) -> Callable[[Norm, bool, int, int], np.ndarray]:
    """SGD-UAP towards a class, which is the last argument, on images of others."""

    def fit(norm: Norm, clip: bool, passes: int, target: int) -> np.ndarray:
        return of_torch(case, target)["SGD-UAP, PyTorch"](norm, clip, passes)

    return fit


def of_torch(case: Case, target: int | None = None) -> dict[str, Fit]:
    """The methods of others, on a copy of the network; with a target SGD-UAP alone has one."""
    import torch
    from torch import Tensor
    from torch.nn import functional

    from benchmarks.torch_copies import array, tensor, torch_copy

    copy = torch_copy(case.model, case.fitting[:STEP_IMAGES])
    images = tensor(case.fitting)
    with torch.no_grad():
        clean = copy(images).argmax(1)
    if target is not None:
        images = images[clean != target]

    def clamped(logits: Tensor, own: Tensor) -> Tensor:
        if target is not None:
            return -functional.cross_entropy(logits, torch.full_like(own, target))
        return functional.cross_entropy(logits, own, reduction="none").clamp(max=9).mean()

    def bounded(logits: Tensor, own: Tensor) -> Tensor:
        mine = logits.gather(1, own[:, None])[:, 0]
        others = logits.scatter(1, own[:, None], -torch.inf).amax(1)
        return -(mine - others).clamp(min=-10).mean()

    def slope(loss: Any, at: Tensor, rows: Tensor, clip: bool) -> Tensor:
        vector = at.clone().requires_grad_()
        moved = images[rows] + vector
        loss(copy(moved.clamp(0, 1) if clip else moved), clean[rows]).backward()
        assert vector.grad is not None
        return vector.grad

    def within(vector: Tensor, norm: Norm) -> Tensor:
        if norm.kind == "linf":
            return vector.clamp(-norm.size, norm.size)
        return vector * min(1.0, norm.size / max(float(vector.norm()), 1e-12))

    def signs(of: Tensor, norm: Norm) -> Tensor:
        step = of.sign()
        return step if norm.kind == "linf" else step / max(float(step.norm()), 1e-12)

    def batches(random: np.random.Generator, size: int) -> list[Tensor]:
        order = torch.from_numpy(random.permutation(len(images)))
        return list(order.split(size))

    def sgd_uap(norm: Norm, clip: bool, passes: int) -> np.ndarray:
        random, vector = np.random.default_rng(case.seed), torch.zeros_like(images[:1])
        for number in range(passes):
            length = 0.1 * norm.size * 0.8**number
            for rows in batches(random, STEP_IMAGES):
                step = signs(slope(clamped, vector, rows, clip), norm)
                vector = within(vector + length * step, norm)
        return array(vector)[0]

    def sga(norm: Norm, clip: bool, passes: int) -> np.ndarray:
        random, vector = np.random.default_rng(case.seed), torch.zeros_like(images[:1])
        for _ in range(-(-passes // 4)):  # as many gradients of an image as the others take
            for large in batches(random, 250):
                scout, met = vector, torch.zeros_like(vector)
                for _ in range(4 * len(large) // 10):
                    some = large[torch.from_numpy(random.permutation(len(large))[:10])]
                    found = slope(clamped, scout, some, clip)
                    scout = within(scout + 0.1 * norm.size * signs(found, norm), norm)
                    met += found
                vector = within(vector + 0.1 * norm.size * signs(met, norm), norm)
        return array(vector)[0]

    def bounded_logit(norm: Norm, clip: bool, passes: int) -> np.ndarray:
        random, vector = np.random.default_rng(case.seed), torch.zeros_like(images[:1])
        adam = torch.optim.Adam([vector], lr=0.005)
        for _ in range(passes):
            for rows in batches(random, 32):
                vector.grad = -slope(bounded, vector, rows, clip)
                adam.step()
                vector.copy_(within(vector, norm))
        return array(vector)[0]

    return {
        "SGD-UAP, PyTorch": sgd_uap,
        "SGA, PyTorch": sga,
        "bounded logit, PyTorch": bounded_logit,
    }


if __name__ == "__main__":
    main()
