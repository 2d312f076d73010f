"""How near smallest perturbations come to the best that any attack finds: AttackBench's optimality.

    pip install torch adv-lib foolbox numba
    python -m benchmarks.optimality --model=runs:/RUN_ID/model --images=200
    python -m benchmarks.optimality --model=PATH.keras --dataset=mnist --norm=linf

Each attack gives a curve of the robust accuracy over epsilon. Its optimality is the area above the
curve, as a share of the area above that of the best perturbation of each image that any of them
found, up to the largest of these: 1 is never beaten, 0 has found nothing. Norms are those of what
is returned, if the model has it wrong then, or the copy that a library attacks, where rounding may
be other; all keep pixels in [0, 1].

An attack may take 2,000 passes for an image: a forward pass counts 1, a backward pass another. The
libraries' are counted on their copy of the network in PyTorch, over all images. Each is warmed up
on a few images. A library that isn't installed is left out, and so is foolbox's BB without numba.

Source: Cinà et al., "AttackBench: Evaluating Gradient-based Attacks for Adversarial Examples",
arXiv:2404.19460, whose settings the libraries' attacks have.
"""

import argparse
import importlib.util
import math
import os
import sys
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from benchmarks import common
from benchmarks.common import Case
from resfool.devices import start_tensorflow

Array = np.ndarray
# Images and labels to perturbed images, the passes that an image took on average, and whether the
# attack has seen its class change, where it looked at a copy of the network.
Attack = Callable[[Array, Array], tuple[Array, float, Array | bool]]

PASSES = 2000
WARM = 4  # images
# Of APGD_t by bisection over epsilon, which takes PASSES: bisections, classes, and steps of each.
BISECTIONS, TARGETS, APGD_STEPS = 10, 3, 32
BEGIN = {"linf": 0.25, "l2": 4.0}  # the epsilon above its first one
FAB_STEPS, FAB_TARGETS = 67, 9
LARGEST = {"linf": 1.0, "l2": 25.0}  # perturbation that fab may find


@dataclass(frozen=True)
class Measured:
    """What an attack made of the images.

    Attributes:
        norms: float (N,); inf where the class didn't change.
        passes: of an image, on average.
        seconds: for all of them.
        of_cores: the same, of the cores' time.
    """

    norms: Array
    passes: float
    seconds: float
    of_cores: float


def main() -> None:
    """Run all attacks in turn and print a table."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    common.add_model(parser, images=200)
    parser.add_argument("--norm", choices=("linf", "l2"), default="l2")
    parser.add_argument("--batch", type=int, default=100, help="images per pass (default: 100)")
    parser.add_argument("--attacks", nargs="+", help="parts of names; default: all attacks")
    options = parser.parse_args()
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # before PyTorch is imported
    start_tensorflow()
    warnings.filterwarnings("ignore")  # the libraries', of what they don't find
    case, _ = common.right_ones(options)
    print(f"{common.machine()}; {len(case.images)} images, {options.norm}\n", flush=True)
    measured = {}
    for name, attack in attacks(case).items():
        if not options.attacks or any(part in name for part in options.attacks):
            measured[name] = measure(attack, case)
            seconds = measured[name].seconds
            print(f"{name}: {seconds:.0f} s, {common.machine()}", file=sys.stderr, flush=True)
    print_table(measured)


def attacks(case: Case) -> dict[str, Attack]:
    """All that can run here, ours first."""
    from resfool.attacks.solvers import SOLVERS

    solvers = [name for name, way in SOLVERS.items() if case.norm in way.norms and not way.slow]
    found = {f"resfool {solver}": of_solver(case, solver) for solver in solvers}
    found["resfool fab"] = of_fab(case)
    wanted = ["torch", "adv_lib"], ["torch", "foolbox"], ["torch", "foolbox", "numba"]
    for names, of_library in zip(wanted, (of_adv_lib, of_foolbox, of_foolbox_bb), strict=True):
        missing = [name for name in names if importlib.util.find_spec(name) is None]
        if missing:
            print(f"not installed: {', '.join(missing)}", file=sys.stderr)
        else:
            found |= of_library(case)
    return found


def of_solver(case: Case, solver: Any) -> Attack:
    """A solver of `resfool.attacks.minimal`."""
    from resfool.attacks import minimal

    def attack(images: Array, labels: Array) -> tuple[Array, float, Array | bool]:
        found = minimal.smallest_perturbations(
            case.model, images, solver=solver, norm=case.norm, clip=True, batch_size=case.batch
        )
        return images + found.perturbations, float(found.evaluations.mean()), False

    return attack


def of_fab(case: Case) -> Attack:
    """The method `fab`, with as many steps as the passes allow."""
    from resfool.attacks.epsilons import over_epsilons
    from resfool.attacks.options import HowToAttack

    largest = LARGEST[case.norm]
    given: dict[str, Any] = {"epsilons": (largest,), "norm": case.norm}
    asked = HowToAttack(method="fab", attack_steps=FAB_STEPS, target_classes=FAB_TARGETS, **given)

    def attack(images: Array, labels: Array) -> tuple[Array, float, Array | bool]:
        told: list[int] = []
        curve = over_epsilons(
            case.model,
            images,
            labels,
            asked,
            batch_size=case.batch,
            progress=lambda passes, text="", /: told.append(passes),
        )
        return curve.move(np.arange(len(images)), largest), sum(told) / len(images), False

    return attack


def of_adv_lib(case: Case) -> dict[str, Attack]:
    """DDN, FMN, ALMA, PDPGD and APGD_t, as far as they know the norm."""
    from functools import partial

    from benchmarks import torch_copies

    lib = torch_copies.adv_lib_attacks()
    from adv_lib.attacks.auto_pgd import minimal_apgd

    steps, order = PASSES // 2, 2 if case.norm == "l2" else math.inf
    functions = {
        "FMN": partial(lib.fmn, norm=order, steps=steps),
        "PDPGD": partial(lib.pdpgd, norm=order, num_steps=steps),
        "APGD_t": partial(
            minimal_apgd,
            norm=order,
            max_eps=BEGIN[case.norm] / 2,
            targeted_version=True,
            binary_search_steps=BISECTIONS,
            num_targets=TARGETS,
            n_iter=APGD_STEPS,
        ),
    }
    if case.norm == "l2":
        functions["DDN"] = partial(lib.ddn, steps=steps, levels=None)
        functions["ALMA"] = partial(lib.alma, num_steps=steps, distance="l2", init_lr_distance=1)
    return {f"adv-lib {name}": of_torch(case, each) for name, each in functions.items()}


def of_foolbox(case: Case) -> dict[str, Attack]:
    """DDN, which knows l2 alone, and FMN."""
    import foolbox

    steps, kinds = PASSES // 2, foolbox.attacks
    methods = {"FMN": kinds.LInfFMNAttack(steps=steps)}
    if case.norm == "l2":
        methods = {"DDN": kinds.DDNAttack(steps=steps), "FMN": kinds.L2FMNAttack(steps=steps)}
    return {f"foolbox {name}": of_torch(case, adapted(each)) for name, each in methods.items()}


def of_foolbox_bb(case: Case) -> dict[str, Attack]:
    """The attack of Brendel and Bethge, from images of other classes."""
    import foolbox

    from benchmarks import torch_copies

    kind = "L2" if case.norm == "l2" else "Linfinity"
    method = getattr(foolbox.attacks, f"{kind}BrendelBethgeAttack")(steps=PASSES // 2 - 10)
    everything = torch_copies.tensor(case.images)

    def attack(copy: Any, x: Any, y: Any) -> Any:
        target = foolbox.PyTorchModel(copy, bounds=(0, 1), device="cpu")
        others = everything[[int((case.labels != each).argmax()) for each in y.numpy()]]
        return method.run(target, x, foolbox.Misclassification(y), starting_points=others)

    # One by one, since the length of its steps grows with the batch.
    return {"foolbox BB": of_torch(case, attack, at_once=1)}


def adapted(method: Any) -> Callable[..., Any]:
    """A method of foolbox as a function of a network, images and labels."""
    import foolbox

    def attack(copy: Any, x: Any, y: Any) -> Any:
        target = foolbox.PyTorchModel(copy, bounds=(0, 1), device="cpu")
        return method(target, x, y, epsilons=None)[1]

    return attack


def of_torch(case: Case, function: Callable[..., Any], at_once: int | None = None) -> Attack:
    """A function of a network, images and labels in PyTorch, batch by batch."""
    from benchmarks import torch_copies

    batch = at_once or case.batch

    copy = torch_copies.torch_copy(case.model, case.images[: case.batch])

    def attack(images: Array, labels: Array) -> tuple[Array, float, Array | bool]:
        counted, parts, fooled = Counted(copy), [], []
        for start in range(0, len(images), batch):
            rows = slice(start, start + batch)
            x, y = torch_copies.tensor(images[rows]), torch_copies.labels(labels[rows])
            moved = function(counted.model, x, y).detach().clamp(0, 1)
            parts.append(torch_copies.array(moved))
            fooled.append((copy(moved).argmax(1) != y).numpy())
        return np.concatenate(parts), counted.passes / len(images), np.concatenate(fooled)

    return attack


class Counted:
    """A network in PyTorch that counts its passes.

    Attributes:
        model: the network.
        passes: forward and backward, one image each.
    """

    def __init__(self, copy: Any) -> None:
        import torch

        counted, self.passes = self, 0

        class Counting(torch.nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.copy = copy

            def forward(self, images: Any) -> Any:
                counted.passes += len(images)
                logits = self.copy(images)
                if logits.requires_grad:
                    logits.register_hook(counted.backward)
                return logits

        self.model = Counting().eval()

    def backward(self, slopes: Any) -> None:
        """Count a backward pass."""
        self.passes += len(slopes)


def measure(attack: Attack, case: Case) -> Measured:
    """Run an attack, and see on our model what it has come to."""
    from resfool.attacks import lowrank
    from resfool.classifiers import inference

    attack(case.images[:WARM], case.labels[:WARM])
    began, of_cores = time.perf_counter(), time.process_time()
    moved, passes, fooled = attack(case.images, case.labels)
    seconds, of_cores = time.perf_counter() - began, time.process_time() - of_cores
    norms = lowrank.sizes(moved - case.images, case.norm)
    wrong = inference.logits(case.model, moved, case.batch).argmax(axis=1) != case.labels
    return Measured(np.where(wrong | fooled, norms, np.inf), passes, seconds, of_cores)


def optimality(norms: Array, best: Array) -> float:
    """The area above a curve of the robust accuracy, as a share of that above the best one.

    Args:
        norms: float (N,), of an attack's perturbations; inf where it found none.
        best: float (N,), of the shortest that any attack found; some are finite.
    """
    end = best[np.isfinite(best)].max()
    area, largest = (np.clip(end - each, 0, None).mean() for each in (norms, best))
    return float(area / largest)


def print_table(measured: dict[str, Measured]) -> None:
    """A line for each attack, the best first."""
    best = np.min([each.norms for each in measured.values()], axis=0)
    scores = {name: optimality(each.norms, best) for name, each in measured.items()}
    first = next(iter(measured))
    heads = "optimality | flips | median norm | shortest | passes | seconds | of the cores"
    print(f"| attack | {heads} | times {first}'s |")
    print(f"| --- |{' --- |' * 8}")
    for name in sorted(scores, key=lambda name: -scores[name]):
        each = measured[name]
        cells = [
            name,
            f"{scores[name]:.4f}",
            f"{np.isfinite(each.norms).mean():.1%}",
            f"{np.median(each.norms):.5f}",
            f"{(each.norms <= best * (1 + 1e-3)).mean():.0%}",
            f"{each.passes:,.0f}",
            f"{each.seconds:.1f}",
            f"{each.of_cores:.1f}",
            f"{each.seconds / measured[first].seconds:.2f}",
        ]
        print(f"| {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
