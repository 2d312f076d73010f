"""All algorithms of `-e universal` at equal norms, beside the best pattern and others' methods.

    python -m benchmarks.universal_rates --model=runs:/RUN_ID/model
    python -m benchmarks.universal_rates --model=PATH.keras --dataset=mnist --seeds=3
    python -m benchmarks.universal_rates --model=PATH.keras --dataset=mnist --norms l2:3 --targets

Each cell is the share of held-out images that a perturbation of the norm fools, clipped to the
range of pixels, as they were when it was fitted; `--unclipped` does both without. Behind it stands
the 95% interval (Wilson's) for the images or, with several seeds, the deviation over these: each
seed draws other fitting images, and everything that is random. The held-out images are the same
throughout. Seconds are those of a fit, the mean of a line. Patterns are chosen among all, on the
fitting images, as `algorithm=patterns` chooses them. The matrix of an algorithm is made once for
all norms and ranks, in the seconds of its first line, a share of it for each norm; they are told
too.

If PyTorch is installed, three methods from the literature are fitted by it on a copy of the network
with the same weights, and judged by us; see `benchmarks.universal_losses`. `--passes` are theirs;
ours takes its default, which with the search for a start is about as many gradients as ten passes.

With `--targets` each cell is the mean over all classes of the share of images of other classes that
become the class which a perturbation was fitted for; PyTorch's SGD-UAP then lowers that class's
cross-entropy.
"""

import argparse
import functools
import importlib.util
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from benchmarks import common
from benchmarks.universal_losses import NORMS, Case, of_torch, torch_targeted
from resfool.devices import start_tensorflow
from resfool.universal.options import Coefficients
from resfool.values import Norm, parse_norm

RANKS = 10, 50  # of Algorithm 2's lines
OTHER_RANK = 10  # of Algorithms 3 and 4

Fit = Callable[[Norm], np.ndarray]  # from a norm to a perturbation (H, W, C)


def main() -> None:
    """Fit all and print a table."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    common.add_model(parser, images=1000)
    parser.add_argument("--norms", nargs="+", type=parse_norm, default=NORMS)
    parser.add_argument("--passes", type=int, default=10, help="of others' ascents (default: 10)")
    parser.add_argument("--seeds", type=int, default=1, help="how many (default: 1)")
    parser.add_argument("--lines", nargs="+", help="parts of names; default: all lines")
    parser.add_argument("--unclipped", action="store_true", help="fit and judge without clipping")
    parser.add_argument("--targets", action="store_true", help="perturbations towards each class")
    options = parser.parse_args()
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # before PyTorch is imported
    start_tensorflow()
    model, held_out, _ = common.model_and_images(options)
    cases = []
    for seed in range(options.seeds):
        _, fitting, _ = common.model_and_images(options, "train", seed=seed)
        cases.append(Case(model, fitting, held_out, options.passes, seed))
    clip = not options.unclipped
    make = targeted if options.targets else functools.partial(untargeted, torch=has_torch())
    makers = [make(case, clip) for case in cases]
    print(
        f"{common.machine()}; {len(cases[0].fitting)} images to fit on, {len(held_out)} to judge "
        f"on, {'clipped' if clip else 'unclipped'}\n"
    )
    names = [str(norm) for norm in options.norms]
    print(f"| perturbation | {' | '.join(names)} | seconds |\n|{' --- |' * (len(names) + 2)}")
    judge = moved if options.targets else fooled
    for name in makers[0]:
        if not options.lines or any(part in name for part in options.lines):
            fits = [maker[name] for maker in makers]
            print(line(name, fits, cases, options.norms, judge, clip), flush=True)


def has_torch() -> bool:
    """Whether PyTorch is installed; if not it is said."""
    found = importlib.util.find_spec("torch") is not None
    if not found:
        print("not installed: torch", file=sys.stderr)
    return found


def line(
    name: str,
    fits: Sequence[Fit],
    cases: Sequence[Case],
    norms: Sequence[Norm],
    judge: Callable[[Case, np.ndarray, bool], list[np.ndarray]],
    clip: bool,
) -> str:
    """The rates of one way to fit at all norms."""
    from resfool.classifiers import scores

    cells, seconds = [], []
    for norm in norms:
        rates = []
        for fit, case in zip(fits, cases, strict=True):
            began = time.perf_counter()
            vectors = fit(norm)
            seconds.append(time.perf_counter() - began)
            hits = judge(case, vectors, clip)
            rates.append(np.mean([each.mean() for each in hits]))
        if len(rates) > 1:
            cells.append(f"{np.mean(rates):.3f} ± {np.std(rates, ddof=1):.3f}")
        else:
            low, high = list(scores.rate("", np.concatenate(hits)).values())[1:]
            cells.append(f"{rates[0]:.3f} ({low:.3f} to {high:.3f})")
    return f"| {' | '.join([name, *cells, f'{np.mean(seconds):.1f}'])} |"


def fooled(case: Case, vector: np.ndarray, clip: bool) -> list[np.ndarray]:
    """Which held-out images a perturbation (H, W, C) fools, bool (M,)."""
    from resfool.universal.vectors import applied

    found = applied(case.model, case.held_out, vector[np.newaxis], clip=clip)
    return [found.classes[0] != found.clean_classes]


def moved(case: Case, vectors: np.ndarray, clip: bool) -> list[np.ndarray]:
    """For the perturbation (H, W, C) of each class which images of other classes become it."""
    from resfool.universal.vectors import applied

    found = applied(case.model, case.held_out, vectors, clip=clip)
    hits = [
        classes[found.clean_classes != target] == target
        for target, classes in enumerate(found.classes)
    ]
    print("  ".join(f"{each.mean():.3f}" for each in hits), file=sys.stderr)
    return hits


def untargeted(case: Case, clip: bool, *, torch: bool = False) -> dict[str, Fit]:
    """Noise, the best pattern, all algorithms, and the methods of others in PyTorch."""
    return (
        _needing_no_gradient(case, clip)
        | of_matrices(case, clip)
        | _of_all_pixels(case, clip)
        | (_of_others(case, clip) if torch else {})
    )


def _needing_no_gradient(case: Case, clip: bool) -> dict[str, Fit]:
    from resfool.universal.patterns import PATTERNS, sized
    from resfool.universal.screening import Screen
    from resfool.universal.vectors import random_vectors

    def noise(norm: Norm) -> np.ndarray:
        shape = case.fitting.shape[1:]
        return random_vectors(shape, np.array([norm.size]), norm.kind, case.seed)[0]

    def pattern(norm: Norm) -> np.ndarray:
        screen = Screen(case.model, case.fitting, tuple(PATTERNS), 32, case.seed, clip=clip)
        name, unit = screen.best(norm)
        print(f"best pattern at {norm}: {name}", file=sys.stderr)
        return sized(unit[np.newaxis], norm)[0]

    return {"noise": noise, "best pattern": pattern}


def of_matrices(case: Case, clip: bool, ranks: Sequence[int] = RANKS) -> dict[str, Fit]:
    """Algorithms 2, 3 and 4 with the best coefficients of some ranks."""
    from resfool.attacks import lowrank
    from resfool.universal import coefficients, matrices

    model, images = case.model, case.fitting

    @functools.cache
    def decomposed(algorithm: str) -> lowrank.Decomposition:
        began = time.perf_counter()
        if algorithm == "2":
            matrix = matrices.minimal_matrix(model, images, clip=clip)
        elif algorithm == "3":
            matrix = matrices.matrix_of(
                **matrices.sign_steps(model, images, epsilon=8 / 255, clip=clip)
            )
        else:
            matrix = matrices.matrix_of(**matrices.smallest_sign_steps(model, images, clip=clip))
        took = time.perf_counter() - began
        print(f"the matrix of algorithm {algorithm}: {took:.1f} s", file=sys.stderr)
        return lowrank.decompose(matrix.rows)

    def low_rank(algorithm: str, rule: Coefficients, rank: int) -> Fit:
        def fit(norm: Norm) -> np.ndarray:
            found = decomposed(algorithm)
            few = min(rank, found.numerical_rank)
            own: Any = {"norm": norm, "seed": case.seed, "clip": clip}
            f = coefficients.coefficients(rule, model, images, found, few, **own)
            return coefficients.perturbations(f, found, images.shape[1:], norm)[0]

        return fit

    lines: list[tuple[str, Coefficients, int]] = [("2", "first", 1)]
    lines += [("2", "optimised", rank) for rank in ranks]
    lines += [(algorithm, "optimised", OTHER_RANK) for algorithm in ("3", "4")]
    return {
        f"algorithm {algorithm}, {rule}, rank {rank}": low_rank(algorithm, rule, rank)
        for algorithm, rule, rank in lines
    }


def _of_all_pixels(case: Case, clip: bool) -> dict[str, Fit]:
    from resfool.universal import ascent, iterated, singular

    own: Any = {"seed": case.seed, "clip": clip}

    def algorithm1(norm: Norm) -> np.ndarray:
        return iterated.algorithm1(case.model, case.fitting, norm=norm, **own).vector

    def of_jacobian(norm: Norm) -> np.ndarray:
        return singular.singular_trained(case.model, case.fitting, norm=norm, **own).vector

    def gradient(norm: Norm) -> np.ndarray:
        return ascent.gradient_trained(case.model, case.fitting, norm=norm, **own).vector

    return {"algorithm 1": algorithm1, "singular": of_jacobian, "gradient": gradient}


def _of_others(case: Case, clip: bool) -> dict[str, Fit]:
    def fixed(method: Any) -> Fit:
        return lambda norm: np.asarray(method(norm, clip, case.passes))

    return {name: fixed(method) for name, method in of_torch(case).items()}


def targeted(case: Case, clip: bool) -> dict[str, Fit]:
    """From norms to perturbations (classes, H, W, C), one towards each class."""
    from resfool.universal import ascent

    classes = range(case.model.output_shape[-1])

    def each(norm: Norm) -> Iterator[np.ndarray]:
        own: Any = {"seed": case.seed, "norm": norm, "clip": clip}
        for target in classes:
            found = ascent.gradient_trained(case.model, case.fitting, target=target, **own)
            yield found.vector

    lines: dict[str, Fit] = {"gradient": lambda norm: np.stack(list(each(norm)))}
    if has_torch():
        sgd_uap = torch_targeted(case)
        lines["SGD-UAP, PyTorch"] = lambda norm: np.stack(
            [sgd_uap(norm, clip, case.passes, target) for target in classes]
        )
    return lines


if __name__ == "__main__":
    main()
