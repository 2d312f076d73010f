"""Universal perturbations here and in ART: how many held-out images do they fool, and how fast?

    make benchmark-attacks                                 # all attack benchmarks
    python -m benchmarks.universal_perturbations           # five minutes, most of them ART's
    python -m benchmarks.universal_perturbations --clip --images 100
    python -m benchmarks.universal_perturbations --norm linf:0.2

The 5-layer network of section VI.C is trained on MNIST's digits. All sides run on it in this
process, on the same cores, and fit one perturbation of the same norm on the same training images;
the same code of ours judges all of them on test images. Nobody clips pixels, unless `--clip` has
all sides do so, in the fitting and in the judging.

ART's UniversalPerturbation is Algorithm 1 image by image, with any of its attacks for the inner
problem. It returns the sum as it is after its last pass, good or bad, so its rate depends on the
number of passes and on the order of the images; ours is the best of up to six passes. Both stop
after the pass that reaches the desired rate on the fitting images. ART gets a compiled model, as in
the other benchmarks. Its DeepFool, over all classes and over the best three, stops after 10 steps,
which takes half of its time away; FGSM takes the shortest step along the gradient that changes the
class.

Everything is warmed up on a few images, which takes compilation out of the time. Ours includes
the choice of coefficients. The last two columns compare with the first line.

If ART isn't installed, its lines are left out.
"""

import argparse
import importlib.util
import random
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from resfool.devices import start_tensorflow
from resfool.universal.options import Coefficients
from resfool.values import Norm, parse_norm

if TYPE_CHECKING:
    import keras

RANK = 10
WARMING = 20  # images
OVERSHOOT = 0.02  # the original's
DEEPFOOL_STEPS = 10  # ART doesn't overshoot on the way, and may spend any more just short of it

# From fitting images (N, H, W, C) to a perturbation (H, W, C).
Fit = Callable[[np.ndarray], np.ndarray]


@dataclass(frozen=True)
class Measured:
    """A universal perturbation.

    Attributes:
        rate: of the held-out images fooled.
        size: in the norm that was asked for.
        seconds: to fit it.
    """

    rate: float
    size: float
    seconds: float


@dataclass(frozen=True)
class Setting:
    """What is the same for all sides.

    Attributes:
        norm: of the perturbation, at most.
        desired_rate: fooling rate on the fitting images at which Algorithm 1 stops.
        clip: keep pixels in [0, 1].
        seed: of the order of the images, and of the search for coefficients.
    """

    norm: Norm
    desired_rate: float
    clip: bool
    seed: int


def main() -> None:
    """Measure all sides and print a table."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--images", type=int, default=500, help="to fit on (default: 500)")
    parser.add_argument("--steps", type=int, default=1500, help="of training (default: 1500)")
    parser.add_argument("--norm", type=parse_norm, default=Norm("l2", 3.0), help="(default: l2:3)")
    parser.add_argument(
        "--passes", type=int, nargs="+", default=[1, 3], help="of ART, at most (default: 1 3)"
    )
    parser.add_argument(
        "--attackers",
        nargs="+",
        choices=list(ATTACKERS),
        default=list(ATTACKERS),
        help="inside ART (default: all)",
    )
    parser.add_argument("--desired-rate", type=float, default=0.8, help="(default: 0.8)")
    parser.add_argument("--clip", action="store_true", help="keep pixels in [0, 1], on all sides")
    parser.add_argument("--seed", type=int, default=0, help="(default: 0)")
    arguments = parser.parse_args()
    start_tensorflow()
    warnings.filterwarnings("ignore")  # ART's, of frameworks that it doesn't find

    setting = Setting(arguments.norm, arguments.desired_rate, arguments.clip, arguments.seed)
    model, fitting, held_out = trained(arguments.steps, arguments.images)
    fits = of_ours(model, setting)
    if importlib.util.find_spec("art"):
        fits |= of_art(model, setting, arguments.attackers, arguments.passes)
    first = None
    print("| attack | fooling rate | norm | seconds | rate - ours | time / ours |")
    print("| --- | --- | --- | --- | --- | --- |")
    for name, fit in fits.items():
        measured = measure(fit, model, fitting, held_out, setting)
        first = first or measured
        print_line(name, measured, first)


def trained(steps: int, count: int) -> tuple["keras.Model", np.ndarray, np.ndarray]:
    """The network of section VI.C, training images to fit on, and all test images."""
    from resfool import experiments

    result = experiments.train(arch="mlp", dataset="mnist5k", steps=steps)
    train, test = result.dataset.train.images, result.dataset.test.images
    return result.model, np.array(train[:count]), np.array(test)


def of_ours(model: "keras.Model", setting: Setting) -> dict[str, Fit]:
    """Algorithms 2 and 1 of resfool.universal."""
    from resfool.attacks import lowrank
    from resfool.universal import coefficients, iterated, matrices

    norm, seed, clip = setting.norm, setting.seed, setting.clip

    def algorithm2(rule: Coefficients, rank: int) -> Fit:
        def fit(images: np.ndarray) -> np.ndarray:
            matrix = matrices.minimal_matrix(model, images, clip=clip)
            found = lowrank.decompose(matrix.rows, rank)
            f = coefficients.coefficients(
                rule, model, images, found, rank, norm=norm, seed=seed, clip=clip
            )
            return coefficients.perturbations(f, found, images.shape[1:], norm)[0]

        return fit

    def algorithm1(images: np.ndarray) -> np.ndarray:
        rate = setting.desired_rate
        found = iterated.algorithm1(
            model, images, norm=norm, desired_rate=rate, seed=seed, clip=clip
        )
        return found.vector

    return {
        f"resfool, Algorithm 2, rank {RANK}, optimised": algorithm2("optimised", RANK),
        "resfool, Algorithm 2, first": algorithm2("first", 1),
        "resfool, Algorithm 1": algorithm1,
    }


def of_art(
    model: "keras.Model", setting: Setting, attackers: list[str], passes: list[int]
) -> dict[str, Fit]:
    """UniversalPerturbation with each attack inside and each number of passes."""
    from art.attacks.evasion import UniversalPerturbation

    from benchmarks.attack_libraries import art_classifier

    target = art_classifier(model, clip=setting.clip)

    def adapted(attacker: str, most: int) -> Fit:
        name, parameters = ATTACKERS[attacker](setting.norm)
        method = UniversalPerturbation(
            target,
            attacker=name,
            attacker_params=parameters,
            delta=1 - setting.desired_rate,
            max_iter=most,
            eps=setting.norm.size,
            norm=_order(setting.norm),
            verbose=False,
        )

        def fit(images: np.ndarray) -> np.ndarray:
            random.seed(setting.seed)
            method.generate(images)
            return np.asarray(method.noise[0], np.float32)

        return fit

    return {
        f"ART, {attacker}, {most} pass{'es' if most > 1 else ''}": adapted(attacker, most)
        for attacker in attackers
        for most in passes
    }


def _deepfool(classes: int) -> Callable[[Norm], tuple[str, dict[str, Any]]]:
    parameters = {
        "epsilon": OVERSHOOT,
        "nb_grads": classes,
        "max_iter": DEEPFOOL_STEPS,
        "verbose": False,
    }
    return lambda norm: ("deepfool", parameters)


def _fgsm(norm: Norm) -> tuple[str, dict[str, Any]]:
    step = norm.size / 50
    longest = 2 * norm.size
    return "fgsm", {"norm": _order(norm), "minimal": True, "eps": longest, "eps_step": step}


def _order(norm: Norm) -> float:
    return np.inf if norm.kind == "linf" else 2


# ART's name of an attack, and its parameters.
ATTACKERS: dict[str, Callable[[Norm], tuple[str, dict[str, Any]]]] = {
    "deepfool": _deepfool(10),
    "deepfool-3": _deepfool(3),
    "fgsm": _fgsm,
}


def measure(
    fit: Fit, model: "keras.Model", fitting: np.ndarray, held_out: np.ndarray, setting: Setting
) -> Measured:
    """Fit a perturbation, and see on our model what it has come to."""
    from resfool.attacks import lowrank
    from resfool.universal import vectors

    fit(fitting[:WARMING])
    began = time.perf_counter()
    vector = fit(fitting)[np.newaxis]
    seconds = time.perf_counter() - began
    size = float(lowrank.sizes(vector, setting.norm.kind)[0])
    assert size <= 1.0001 * setting.norm.size, size
    rate = float(vectors.applied(model, held_out, vector, clip=setting.clip).rates[0])
    return Measured(rate, size, seconds)


def print_line(name: str, measured: Measured, first: Measured) -> None:
    """A line of the table."""
    cells = [
        name,
        f"{measured.rate:.3f}",
        f"{measured.size:.3f}",
        f"{measured.seconds:.1f}",
        f"{measured.rate - first.rate:+.3f}",
        f"{measured.seconds / first.seconds:.1f}",
    ]
    print(f"| {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
