"""What each row of `ALGORITHMS` makes of an experiment's work."""

from typing import Any

import numpy as np

from resfool.universal import ascent, iterated, matrices, singular, solving
from resfool.universal.matrices import Matrix
from resfool.universal.patterns import sized
from resfool.universal.vectors import Fit, random_vectors
from resfool.universal.work import Work


def fit_algorithm1(work: Work) -> Fit:
    """Smallest perturbations, added up from image to image."""
    own: Any = {"solver": work.asked.solver, "desired_rate": work.asked.desired_rate}
    own |= {"clip": work.asked.clip} | _in_passes(work)
    return iterated.algorithm1(work.judge, work.fitting.images, **own)


def fit_gradient(work: Work) -> Fit:
    """Stochastic gradient ascent."""
    asked = work.asked
    names = "loss", "update", "images_per_step", "aggregate", "starts", "clip"
    own: Any = {name: getattr(asked, name) for name in names} | {"target": work.target}
    return ascent.gradient_trained(work.model, work.fitting.images, **own, **_in_passes(work))


def _in_passes(work: Work) -> dict[str, Any]:
    """Options of what goes over the images several times."""
    asked = work.asked
    passes = asked.passes or asked.procedure.passes
    advance = work.monitor.counter(passes)
    name, did = ("fooling", "fooled") if work.target is None else ("success", "moved")

    def report(number: int, rate: float) -> None:
        work.monitor.point({"step": number + 1, f"fitting_{name}_rate": rate})
        advance(1, f"{did} {rate:.3f} of the fitting images")

    shared = {"norm": asked.norm, "seed": asked.seed, "batch_size": work.batch_size}
    return shared | {"passes": passes, "report": report}


def fit_singular(work: Work) -> Fit:
    """The singular vector of a layer's Jacobians that fools most fitting images."""
    asked = work.asked
    own: Any = {n: getattr(asked, n) for n in ("layer", "power")}
    own |= {"passes": asked.passes or asked.procedure.passes}
    shared: Any = {n: getattr(asked, n) for n in ("norm", "seed", "clip")}
    advance = work.monitor.counter(singular.iterations(**own))
    curves: dict[tuple[str, float], list[float]] = {}

    def report(search: singular.Search) -> None:
        curves[search.layer, search.power] = search.values
        advance(1, f"{search.layer}: singular value {search.values[-1]:.3g}")

    options = own | shared | {"batch_size": work.batch_size, "report": report}
    fit = singular.singular_trained(work.model, work.fitting.images, **options)
    best = fit.tried[0]
    for step, value in enumerate(curves[best["layer"], best["power"]], 1):
        work.monitor.point({"step": step, "singular_value": value})
    for name in ("layer", "power"):
        work.monitor.fact(f"best_{name}", best[name])
    return fit


def fit_random(work: Work) -> Fit:
    """Noise, whatever the model and the images are."""
    norm, shape = work.asked.norm, work.images.shape[1:]
    (vector,) = random_vectors(shape, np.array([norm.size]), norm.kind, work.asked.seed)
    return Fit(vector, [])


def fit_patterns(work: Work) -> Fit:
    """The pattern that fools most fitting images, and how all of them do."""
    screen, norm = work.screen, work.asked.size
    table = screen.table(norm, work.monitor.counter(screen.passes_of_table, "passes, all patterns"))
    best = screen.named(table[0]["pattern"])
    work.monitor.fact("pattern", table[0]["pattern"])
    return Fit(sized(best[np.newaxis], norm)[0], [], table)


def fit_algorithm2(work: Work) -> Matrix:
    """The smallest perturbation of each image."""
    return solving.solved(work)


def fit_algorithm3(work: Work) -> Matrix:
    """A step along the sign of each image's gradient."""
    return solving.of_gradients(work, matrices.sign_steps, epsilon=work.asked.epsilon)


def fit_algorithm4(work: Work) -> Matrix:
    """The shortest such step of each image that changes its class."""
    return solving.of_gradients(work, matrices.smallest_sign_steps)
