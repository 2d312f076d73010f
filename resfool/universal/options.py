"""The algorithms of universal perturbations, and what experiments with them may be asked for."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Annotated, Any, Literal

from resfool import costs
from resfool.archive import Archive, is_address
from resfool.attacks.options import Clipped, Labelled, Target
from resfool.attacks.solvers import SOLVERS, Solving, Way, late
from resfool.classifiers.finding import OneModel
from resfool.costs import Cost, Data
from resfool.declarations import GIVEN, Known, Needs
from resfool.errors import InputError
from resfool.parameters import (
    Checkpoints,
    Crew,
    Drawn,
    InBlocks,
    KeptIn,
    Limits,
    Parameters,
    Seeded,
)
from resfool.training.recipe import TrainParameters
from resfool.universal.patterns import Patterned
from resfool.values import (
    Addresses,
    Counts,
    Epsilon,
    Norm,
    NormOrSize,
    PositiveCount,
    Power,
    Share,
    SizedNorm,
    UpToMillion,
    UpToThousand,
    Word,
    show,
)

Coefficients = Literal["gaussian", "singular", "first", "optimised"]  # f_i of equation 8
# What gradients are taken of, and how they become steps.
Loss = Literal["margin", "cross_entropy", "logit", "cosine"]
UpdateRule = Literal["sign", "momentum", "adam"]
_DRAWN = ("gaussian", "singular")  # those that are drawn at random
_OF_RANK = (*_DRAWN, "optimised")  # those of more singular vectors than one


@dataclass(frozen=True)
class Procedure:
    """An algorithm that finds a universal perturbation.

    Attributes:
        fit: from the experiment's `Work` to a `Matrix`, if it makes one, or else to a `Fit`.
        takes: the parameters that it reads and others don't.
        passes: over the fitting images, where nothing else is asked for.
        tried: what it chooses from, if it leaves a table of that.
    """

    fit: Callable[..., Any]
    takes: tuple[str, ...] = ()
    passes: int = 0
    tried: str = ""

    @property
    def makes_matrix(self) -> bool:
        """Of perturbations, which equation 8 adds up to any norm; without one, a norm is needed."""
        return "matrix" in self.takes


def _late(name: str) -> Callable[..., Any]:
    return late("resfool.universal.algorithms", name)


_OF_ASCENT = ("loss", "update", "images_per_step", "aggregate", "starts")
# What works in blocks reads, and keeps those that are done.
_KEPT = ("workers", "backend", "cpus_per_worker", "block_images", "solve_dir")
_OF_FIT = ("target", "clip")  # what is fitted on images reads
# What makes a perturbation of a matrix reads.
_OF_MATRIX = ("matrix", "rank", "ranks", "coefficients", "equal_norm", "draws", *_OF_FIT)

ALGORITHMS: dict[str, Procedure] = {
    "1": Procedure(
        _late("fit_algorithm1"), ("solver", "desired_rate", "passes", *_OF_FIT), passes=6
    ),
    "2": Procedure(
        _late("fit_algorithm2"),
        ("solver", "subspace", *_KEPT, *_OF_MATRIX),
    ),
    "3": Procedure(_late("fit_algorithm3"), ("epsilon", "label_source", *_KEPT, *_OF_MATRIX)),
    "4": Procedure(_late("fit_algorithm4"), ("label_source", *_KEPT, *_OF_MATRIX)),
    "random": Procedure(_late("fit_random")),
    "patterns": Procedure(_late("fit_patterns"), ("equal_norm", *_OF_FIT), tried="patterns"),
    "gradient": Procedure(_late("fit_gradient"), ("passes", *_OF_ASCENT, *_OF_FIT), passes=3),
    "singular": Procedure(
        _late("fit_singular"), ("passes", "layer", "power", "clip"), passes=10, tried="layers"
    ),
}

Algorithm = Annotated[Word, Known(ALGORITHMS)]


class Sized(Parameters):
    """How large a perturbation is."""

    norm: Annotated[
        SizedNorm,
        Needs(perturbation=GIVEN),
        "of the perturbation, such as l2:3 or linf:10/255; none leaves it as it is.",
    ] = Norm("none")


class Approximation(Sized):
    """How a matrix of perturbations becomes one of low rank (equation 8)."""

    rank: Annotated[
        PositiveCount,
        Needs(coefficients=_OF_RANK),
        "number of singular vectors of the perturbation that is kept.",
    ] = 10
    coefficients: Annotated[
        Coefficients, "f_i of equation 8: gaussian (variance 25), singular, first or optimised."
    ] = "gaussian"
    equal_norm: Annotated[
        SizedNorm, "at which all ranks are compared too; that of patterns, if norm is none."
    ] = Norm("l2", 3.0)
    draws: Annotated[
        PositiveCount, Needs(coefficients=_DRAWN), "random perturbations of each rank."
    ] = 20


class Ascent(Parameters):
    """How a perturbation is trained by stochastic gradients."""

    loss: Annotated[
        Loss,
        "that gradients raise: margin (a smooth fooling rate), cross_entropy (clamped at 9), logit "
        "(the lead of another, up to 10) or cosine (the angle to the clean logits).",
    ] = "margin"
    update: Annotated[
        UpdateRule, "from gradients to steps: momentum (of steps of one length), sign or adam."
    ] = "momentum"
    images_per_step: Annotated[
        UpToMillion, "fitting images that each step is a gradient of; more make fewer steps."
    ] = 12
    aggregate: Annotated[
        UpToMillion,
        "small batches that the images of a step are divided into, whose gradients are met one "
        "after the other and added up.",
    ] = 1
    starts: Annotated[
        UpToThousand,
        "classes that short ascents go towards first, unless there is a target; the best of these, "
        "of plain patterns and of nothing goes on; with 0 it begins from nothing.",
    ] = 10

    def check(self) -> None:
        """Refuse more small batches than images."""
        super().check()
        if self.aggregate > self.images_per_step:
            raise InputError(
                f"aggregate={self.aggregate} is more than the images of a step, which are "
                f"images_per_step={self.images_per_step}"
            )


class OfLayer(Parameters):
    """Of which layer's Jacobians a singular vector is, in which norm."""

    layer: Annotated[
        str | None,
        "whose Jacobians' singular vector is taken, a name; none is the best of up to 6.",
    ] = None
    power: Annotated[
        Power | None,
        "q of the (p, q)-singular vector, 1 to 100: how much the largest changes of a layer count; "
        "none is the better of 2 and 10.",
    ] = None


class UniversalParameters(
    OneModel,
    Solving,
    Labelled,
    Clipped,
    Approximation,
    Patterned,
    Ascent,
    OfLayer,
    Drawn,
    Crew,
    KeptIn,
):
    """Fit one perturbation for all images and judge it on held-out ones (section VI.B)."""

    algorithm: Annotated[
        Algorithm,
        "1 to 4 as in the paper, or gradient, singular, random or patterns, to compare with.",
    ] = "2"
    target: Annotated[
        str | None,
        Needs(loss=("margin", "cross_entropy", "logit")),
        "class that images of other classes shall become, a name or a number; none is any but "
        "their own.",
    ] = None
    matrix: Annotated[
        str | None,
        "runs:/RUN_ID of an earlier run, whose matrix of perturbations is used again, or the path "
        "of its folder, or of the .npz file that runs left before.",
    ] = None
    epsilon: Annotated[
        Epsilon,
        Needs(matrix=(None,)),
        "length of the step of algorithm 3, where pixels go from 0 to 1.",
    ] = 8 / 255
    ranks: Annotated[
        Counts | None,
        Needs(coefficients=_OF_RANK),
        "others to judge beside it, such as 1,3; none is 1, 2, 3, 5, 10, 20, 30, 50 and 100.",
    ] = None
    desired_rate: Annotated[
        Share, "fooling rate on the fitting images at which algorithm 1 stops."
    ] = 0.8
    passes: Annotated[
        UpToMillion | None,
        f"over the fitting images, at most; none is {ALGORITHMS['1'].passes} (algorithm 1), "
        f"{ALGORITHMS['gradient'].passes} (gradient) or {ALGORITHMS['singular'].passes} iterations "
        "(singular).",
    ] = None
    test_samples: Annotated[
        PositiveCount | None,
        "test images to judge on, where samples are training images to fit on; none is 1000, or "
        "all if there are fewer.",
    ] = None

    def check(self) -> None:
        """Refuse what the algorithm can't do without, or has no use for."""
        super().check()
        if not self.procedure.makes_matrix and self.size.kind == "none":
            raise InputError(
                f"norm is missing: algorithm={self.algorithm} needs the size that its perturbation"
                " may have, such as norm=l2:3 or norm=linf:10/255"
            )
        if "epsilon" in self.procedure.takes and self.epsilon == 0:
            raise InputError(
                f"epsilon=0 leaves nothing of algorithm {self.algorithm}'s steps; it must be above "
                "0"
            )

    def cost(self, data: Data) -> Cost:
        """Perturbations that are drawn and judged, or passes over the fitting images."""
        data = self.sized(data)
        fitting = self.drawn(data)
        held_out = replace(data, images=self.test_samples or data.images)
        drawn = self.draws if self.procedure.makes_matrix and self.coefficients in _DRAWN else 0
        vectors = replace(data, images=drawn)
        passes = drawn + held_out.images + (self.passes or 1) * fitting.images
        passes += self.least_passes(fitting)
        workers = self.memory_of(fitting.images, 0.0) if self.wanted else 0.0
        whole = 0.0 if self.procedure.makes_matrix else fitting.memory
        memory = whole + vectors.memory + workers
        return Cost(costs.PASS * passes, memory)

    def check_places(self) -> None:
        """Refuse a file with a matrix that isn't there, too."""
        super().check_places()
        if self.matrix is not None and not is_address(self.matrix):
            Archive().find_matrix(self.matrix)

    @property
    def procedure(self) -> Procedure:
        """What is known of the algorithm."""
        return ALGORITHMS[self.algorithm]

    @property
    def size(self) -> Norm:
        """That the perturbation has; what has none of its own may leave it to `equal_norm`."""
        chosen = self.procedure.makes_matrix and self.coefficients not in _DRAWN
        left = self.norm.kind == "none" and (chosen or self.algorithm == "patterns")
        return self.equal_norm if left else self.norm

    @property
    def made_by(self) -> dict[str, str]:
        """What a matrix must be made by to be used again."""
        solver = {"solver": self.solver} if "solver" in self.procedure.takes else {}
        fitted = {name: show(getattr(self, name)) for name in _OF_FIT}
        return {"algorithm": self.algorithm} | fitted | solver

    @property
    def spreads(self) -> bool:
        """Whether workers may share images: those of a matrix that is to be made."""
        return self.procedure.makes_matrix and self.matrix is None

    @property
    def block(self) -> int:
        """Images of a block, at most."""
        return self.block_images or (SOLVERS[self.solver] if self.solves else Way).block

    @property
    def solves(self) -> bool:
        """Whether smallest perturbations of images are to be solved for."""
        solver = self.procedure.makes_matrix and "solver" in self.procedure.takes
        return solver and self.matrix is None


class TransferParameters(Target):
    """Measure how well universal perturbations fool models that they may not be fitted on."""

    norm: Annotated[
        NormOrSize,
        Needs(perturbation=GIVEN),
        "of the perturbation, such as l2:3 or linf:10/255; none leaves it as it is.",
    ] = Norm("none")

    perturbation: Annotated[
        Addresses | None,
        "runs:/RUN_ID of universal runs or .npy files of pixels from 0 to 1, comma separated, to "
        "apply instead of the method, whose parameters have no effect then; none attacks by the "
        "method.",
    ] = None

    def check(self) -> None:
        """Refuse a norm without a size."""
        super().check()
        if self.perturbation is not None and self.norm.kind != "none" and not self.norm.size:
            raise InputError(
                f"norm={self.norm} lacks the size of the perturbation, such as norm={self.norm}:0.1"
            )

    def check_effects(self) -> None:
        """Refuse what has no effect; a norm without a size is an attack's, and checked there."""
        ours = self.perturbation is not None or self.norm.size > 0
        super(
            TransferParameters, self if ours else replace(self, norm=Norm("none"))
        ).check_effects()

    def check_places(self) -> None:
        """Refuse files with perturbations that aren't there; models are checked by the attack."""
        for uri in self.perturbation or ():
            if not is_address(uri):
                Archive().find_perturbation(uri)


class MnistParameters(
    Solving, Approximation, Patterned, Seeded, Crew, InBlocks, Checkpoints, Limits
):
    """Train the 5-layer network on MNIST digits and fool it by Algorithm 2 (section VI.C)."""

    steps: Annotated[
        PositiveCount, "training steps; 200 of 64 images end near the paper's 93% and 91%."
    ] = 200
    samples: Annotated[PositiveCount, "training images to fit the perturbation on."] = 1000
    draws: Annotated[
        PositiveCount, Needs(coefficients=_DRAWN), "random perturbations of each rank."
    ] = 50

    @property
    def training(self) -> TrainParameters:
        """The network's training."""
        return TrainParameters(arch="mlp", dataset="mnist5k", steps=self.steps, seed=self.seed)

    def universal(self, model: str) -> UniversalParameters:
        """The perturbation of a model, which is the trained network."""
        own = {"model": model, "solve_dir": self.checkpoint_dir, "clip": False}
        return UniversalParameters(**self.shared(UniversalParameters) | own)

    def cost(self, data: Data) -> Cost:
        """That of both parts."""
        return self.training.cost(data) + self.universal("the network").cost(data)
