"""Solvers of the smallest perturbation, one in a file; here is what the rest must know of them."""

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, Literal

from resfool.declarations import Known, Needs
from resfool.errors import InputError
from resfool.parameters import Parameters
from resfool.values import BallNorm, listed

if TYPE_CHECKING:
    from resfool.attacks.solvers.problem import Attempt

Subspace = Literal["gradients", "rows", "pixels"]  # that cobyla searches


def late(module: str, name: str) -> Callable[..., Any]:
    """A function that is imported when it is called, since solvers compute with TensorFlow."""

    def function(*arguments: Any, **options: Any) -> Any:
        return getattr(importlib.import_module(module), name)(*arguments, **options)

    return function


@dataclass(frozen=True)
class Way:
    """A way to find smallest perturbations.

    Attributes:
        solve: from a Problem, and options by their names, to an Attempt.
        options: those that it takes, of candidates, subspace and evaluations; see
            `smallest_perturbations`.
        norms: in which it finds short ones.
        block: images that are solved in some seconds or a minute: so many go to a worker at a time.
        slow: whether even a few images of a small network take longer than starting workers.
        check: refuses, of a model and those options, what `solve` would refuse.
    """

    solve: "Callable[..., Attempt]"
    options: tuple[str, ...] = ("candidates",)
    norms: tuple[BallNorm, ...] = ("l2",)
    block: int = 50
    slow: bool = False
    check: Callable[..., None] = lambda model, **options: None

    @property
    def takes(self) -> tuple[str, ...]:
        """The parameters that it reads and others don't."""
        return self.options


SOLVERS: dict[str, Way] = {
    "closest": Way(late("resfool.attacks.solvers.closest", "closest"), norms=("linf", "l2")),
    "deepfool": Way(late("resfool.attacks.solvers.deepfool", "deepfool"), norms=("linf", "l2")),
    "apgd": Way(late("resfool.attacks.solvers.bisection", "apgd"), norms=("linf", "l2")),
    "ddn": Way(late("resfool.attacks.solvers.ddn", "ddn"), options=()),
    "cobyla": Way(
        late("resfool.attacks.solvers.cobyla", "cobyla"),
        options=("candidates", "subspace", "evaluations"),
        block=10,
        slow=True,
        check=late("resfool.attacks.solvers.cobyla", "check"),
    ),
}


def check_norm(solver: str, norm: BallNorm) -> None:
    """Refuse a norm that a solver doesn't know.

    Raises:
        InputError: it doesn't.
    """
    if norm not in SOLVERS[solver].norms:
        others = listed(name for name, way in SOLVERS.items() if norm in way.norms)
        raise InputError(f"solver={solver} knows no norm={norm}; {others} do")


Solver = Annotated[str, Known(SOLVERS)]


class Solved(Parameters):
    """What finds smallest perturbations."""

    solver: Annotated[
        Solver,
        f"of the smallest perturbations (smallest, algorithms 1 and 2): {listed(SOLVERS)}; the "
        "paper's is cobyla; the last two know l2 alone.",
    ] = "closest"


class Solving(Solved):
    """How smallest perturbations are found."""

    subspace: Annotated[
        Subspace,
        Needs(matrix=(None,)),
        "that cobyla searches: gradients, rows (of the first dense layer) or pixels (slow).",
    ] = "gradients"
