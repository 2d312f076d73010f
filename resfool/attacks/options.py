"""The parameters of attacks, and the methods of which one is chosen."""

import math
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Any

from resfool import costs
from resfool.attacks import verdict
from resfool.attacks.methods import fgsm, pgd, smallest, smallest_epsilon, standard
from resfool.attacks.methods.moving import Moved
from resfool.attacks.methods.pgd import PgdOptions
from resfool.attacks.methods.smallest import SmallestOptions
from resfool.attacks.methods.smallest_epsilon import SmallestEpsilonOptions
from resfool.attacks.methods.standard import COMPONENTS, StandardOptions
from resfool.attacks.solvers import SOLVERS, Way, check_norm
from resfool.classifiers.finding import Models
from resfool.classifiers.interface import Allowed, Interface
from resfool.costs import Cost, Data
from resfool.declarations import GIVEN, Known, Needs
from resfool.errors import InputError, UsageError
from resfool.parameters import Crew, Drawn, KeptIn, Parameters
from resfool.values import (
    BallNorm,
    Epsilons,
    ImageShape,
    LabelSource,
    Names,
    NormOrSize,
    Part,
    listed,
    show,
    shown,
)

_IMAGES_AT_ONCE = 250
_BYTES_AT_ONCE = 2**25  # of these images; an attack keeps several such

# In pixel units: from what nobody sees to what is mostly noise.
EPSILONS = (0, *(n / 255 for n in (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128)))


def _nowhere(start: Any, asked: Any, epsilon: float) -> Any:
    raise NotImplementedError("the method doesn't say where it moves images")


@dataclass(frozen=True)
class Attack:
    """A method of attack.

    Attributes:
        words: what it is, for people.
        hint: the same in very few words, for the help.
        passes: of an image through the model, from the number of epsilons above 0 and what is
            asked of the attack; a gradient counts as two, that at the image itself not at all.
        move: from a Start and what is asked of the attack to what became of the images.
        takes: the parameters that it reads and others don't.
        moved_at: from a Start, what is asked and an epsilon to the Start's images there, for
            pictures; of methods that don't pursue.
        attacks: of a method that pursues, from what is asked to the names of the attacks that
            follow one another, each of which goes on with an image until that is fooled, within
            balls of any norm.
    """

    words: str
    hint: str
    passes: Callable[[int, Any], int]
    move: Callable[..., Moved]
    takes: Collection[str] = ()
    moved_at: Callable[..., Any] = _nowhere
    attacks: Callable[[Any], tuple[str, ...]] | None = None

    @property
    def pursues(self) -> bool:
        """Whether it goes on with an image until that is fooled."""
        return self.attacks is not None


def _component(name: str, words: str, hint: str) -> Attack:
    own = standard.alone(name)
    return Attack(words, hint, *own, COMPONENTS[name].options, attacks=lambda asked: (name,))


METHODS: dict[str, Attack] = {
    "fgsm": Attack(
        "the fast gradient sign", "one step", fgsm.passes, fgsm.fgsm, moved_at=fgsm.moved_at
    ),
    "smallest_epsilon": Attack(
        "the fast gradient sign, and the smallest step along it",
        "also finds each image's own",
        smallest_epsilon.passes,
        smallest_epsilon.smallest_epsilon,
        tuple(SmallestEpsilonOptions.declared()),
        fgsm.moved_at,
    ),
    "pgd": Attack(
        "projected gradient descent",
        "many small steps",
        pgd.passes,
        pgd.pgd,
        tuple(PgdOptions.declared()),
        pgd.moved_at,
    ),
    "smallest": Attack(
        "the smallest perturbation of each image",
        "the whole curve at once",
        smallest.passes,
        smallest.smallest,
        tuple(SmallestOptions.declared()),
        attacks=lambda asked: (asked.solver,),
    ),
    "standard": Attack(
        "the attacks of AutoAttack, one after the other",
        "the attacks of AutoAttack",
        standard.standard_passes,
        standard.standard,
        ("effort", "components"),
        attacks=lambda asked: tuple(asked.asked_of),
    ),
    "apgd": _component("apgd", "auto-PGD on the cross-entropy", "steps that adapt themselves"),
    "apgd_margin": _component("apgd_margin", "auto-PGD on the margin", "the same on the margin"),
    "apgd_targeted": _component(
        "apgd_targeted", "targeted auto-PGD on the ratio of logits", "the same towards targets"
    ),
    "fab": _component(
        "fab", "the fast adaptive boundary attack", "also finds each image's smallest perturbation"
    ),
    "square": _component("square", "the Square attack", "random search without gradients"),
}

Method = Annotated[str, Known(METHODS)]


class Labelled(Parameters):
    """Whose loss is raised."""

    label_source: Annotated[
        LabelSource,
        Needs(perturbation=(None,), matrix=(None,)),
        "raise the loss of the true label, or of the model's own prediction.",
    ] = "true"


_BY_METHOD = Needs(perturbation=(None,))


class Clipped(Parameters):
    """Whether perturbed images stay such as a file can hold."""

    clip: Annotated[
        bool,
        _BY_METHOD,
        "keep perturbed images within the range of pixels; of a universal perturbation those that "
        "it is fitted on, for it is judged both ways.",
    ] = True


class HowToAttack(
    Labelled, Clipped, SmallestEpsilonOptions, PgdOptions, SmallestOptions, StandardOptions
):
    """How images are attacked; among the bases are the methods' own options."""

    method: Annotated[
        Method,
        _BY_METHOD,
        f"{listed(f'{name} ({attack.hint})' for name, attack in METHODS.items())}.",
    ] = "fgsm"
    epsilons: Annotated[
        Epsilons,
        _BY_METHOD,
        "largest changes of a pixel, where pixels go from 0 to 1, such as 0,8/255,0.1; with "
        "norm=l2 largest l2 norms of the change.",
    ] = EPSILONS
    norm: Annotated[
        NormOrSize | None,
        Needs(perturbation=GIVEN),
        Needs(method=tuple(name for name, attack in METHODS.items() if attack.pursues)),
        "of the changes whose size epsilons are: linf or l2; none is linf. Of a perturbation, its "
        "size, such as l2:3 or linf:10/255; none leaves it as it is.",
    ] = None

    def check(self) -> None:
        """Refuse epsilons beyond the range of a pixel, where they are changes of one."""
        super().check()
        if self.method == "smallest":
            check_norm(self.solver, self.ball)
        if self.ball == "linf" and self.epsilons[-1] > 1:
            raise UsageError(
                f"epsilons={shown(self.epsilons)} isn't allowed: epsilons must be from 0 to 1, the "
                "range of a pixel, such as 0.03 or 8/255; only with norm=l2 they may be larger"
            )

    def check_effects(self) -> None:
        """Refuse what has no effect; a norm with a size is a perturbation's, and checked there."""
        sized = self.norm is not None and self.norm.size > 0
        super(HowToAttack, replace(self, norm=None) if sized else self).check_effects()

    def check_images(self, shape: Sequence[int]) -> None:
        """Refuse what makes no sense for images of a shape (H, W, C), before anything is computed.

        Raises:
            InputError: a norm has a size, or an epsilon holds every image there is.
        """
        if self.norm is not None and self.norm.size:
            raise InputError(
                f"norm={self.norm} has a size, and the sizes of an attack are its epsilons; give "
                f"norm={self.norm.kind} and epsilons={show(self.norm.size)}"
            )
        diagonal = math.sqrt(math.prod(shape))
        if self.ball == "l2" and self.epsilons[-1] >= diagonal:
            raise InputError(
                f"epsilons={shown(self.epsilons)} make no sense with norm=l2: images of the shape "
                f"{show(tuple(shape))} are never farther apart than {diagonal:.4g}, where pixels "
                "go from 0 to 1"
            )

    @property
    def ball(self) -> BallNorm:
        """The norm that bounds what is changed."""
        return "l2" if self.norm is not None and self.norm.kind == "l2" else "linf"

    @property
    def pursues(self) -> bool:
        """Whether images are followed until they are fooled."""
        return METHODS[self.method].pursues

    @property
    def attacks(self) -> tuple[str, ...]:
        """The names of several that follow one another, if the method is of such."""
        of_method = METHODS[self.method].attacks
        return () if of_method is None else of_method(self)

    @property
    def positive_epsilons(self) -> list[float]:
        """Those at which anything is moved."""
        return [epsilon for epsilon in self.epsilons if epsilon > 0]

    @property
    def passes_each(self) -> int:
        """Those of an image: of its gradient, the method's and those of random signs."""
        count = len(self.positive_epsilons)
        return 2 + METHODS[self.method].passes(count, self) + count

    @property
    def way(self) -> Way | None:
        """The solver of smallest perturbations, if the method has one."""
        return SOLVERS[self.solver] if self.method == "smallest" else None

    def images_at_once(self, shape: Sequence[int]) -> int:
        """Images of a shape (H, W, C) that are attacked together, so that memory holds them."""
        most = _IMAGES_AT_ONCE if self.way is None else self.way.block
        return max(1, min(most, _BYTES_AT_ONCE // (4 * math.prod(shape))))

    def passes_of(self, images: int) -> int:
        """Those of so many images in all, and of the checks."""
        return images * self.passes_each + verdict.passes(images, compared=self.pursues)

    def cost(self, data: Data) -> Cost:
        """All passes of all images."""
        return Cost(costs.PASS * self.passes_of(data.images), data.memory)


class Target(Models, Drawn):
    """Which models are attacked, and on which images."""

    split: Annotated[
        Part, "part of the data set to take images from: test, validation or train."
    ] = "test"


class AttackParameters(HowToAttack, Target, Crew, KeptIn):
    """Of an attack on models."""

    def images_at_once(self, shape: Sequence[int]) -> int:
        """As many as were asked for."""
        return self.block_images or super().images_at_once(shape)

    @property
    def allowed(self) -> Allowed:
        """Beside the others models without a gradient, where it is told what that means."""
        return replace(super().allowed, without_gradient=self.pursues)

    def cost(self, data: Data) -> Cost:
        """That of each model; of the images a block is in memory at a time."""
        data = self.drawn(self.sized(data))
        block = min(data.images, self.block_images or 1)
        workers = self.memory_of(data.images, 0.0) if self.wanted else 0.0
        memory = replace(data, images=block).memory + workers
        return Cost(super().cost(data).seconds * len(self.model), memory)


class MeasureParameters(HowToAttack, Interface, Drawn):
    """Of an attack in MLflow's evaluation, which hands over the model and the images."""

    image_shape: Annotated[
        ImageShape | None,
        "height, width and channels of an image; none is what the model takes.",
    ] = None
    class_names: Annotated[
        Names | None, "for tables and figures, comma separated; none is 0,1,..."
    ] = None
