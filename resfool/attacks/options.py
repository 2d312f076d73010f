"""The parameters of attacks, and the methods of which one is chosen."""

from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Annotated, Any

from resfool import costs
from resfool.attacks.methods import fgsm, pgd, smallest_epsilon
from resfool.attacks.methods.moving import Moved
from resfool.attacks.methods.pgd import PgdOptions
from resfool.attacks.methods.smallest_epsilon import SmallestEpsilonOptions
from resfool.classifiers.finding import Models
from resfool.classifiers.interface import Interface
from resfool.costs import Cost, Data
from resfool.declarations import Known, Needs
from resfool.parameters import Drawn, Parameters
from resfool.values import Epsilons, ImageShape, LabelSource, Names, Part, listed

# In pixel units: from what nobody sees to what is mostly noise.
EPSILONS = (0, *(n / 255 for n in (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128)))


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
    """

    words: str
    hint: str
    passes: Callable[[int, Any], int]
    move: Callable[..., Moved]
    takes: Collection[str] = ()


METHODS: dict[str, Attack] = {
    "fgsm": Attack("the fast gradient sign", "one step", fgsm.passes, fgsm.fgsm),
    "smallest_epsilon": Attack(
        "the fast gradient sign, and the smallest step along it",
        "also finds each image's own",
        smallest_epsilon.passes,
        smallest_epsilon.smallest_epsilon,
        tuple(SmallestEpsilonOptions.declared()),
    ),
    "pgd": Attack(
        "projected gradient descent",
        "many small steps",
        pgd.passes,
        pgd.pgd,
        tuple(PgdOptions.declared()),
    ),
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


class HowToAttack(Labelled, SmallestEpsilonOptions, PgdOptions):
    """How images are attacked; among the bases are the methods' own options."""

    method: Annotated[
        Method,
        _BY_METHOD,
        f"{listed(f'{name} ({attack.hint})' for name, attack in METHODS.items())}.",
    ] = "fgsm"
    epsilons: Annotated[
        Epsilons,
        _BY_METHOD,
        "largest changes of a pixel, where pixels go from 0 to 1, such as 0,8/255,0.1.",
    ] = EPSILONS
    clip: Annotated[bool, _BY_METHOD, "keep perturbed images within the range of pixels."] = True

    @property
    def positive_epsilons(self) -> list[float]:
        """Those at which anything is moved."""
        return [epsilon for epsilon in self.epsilons if epsilon > 0]

    @property
    def passes(self) -> int:
        """Those of an image in all: its gradient, the method's, and those of random signs."""
        count = len(self.positive_epsilons)
        return 2 + METHODS[self.method].passes(count, self) + count

    def cost(self, data: Data) -> Cost:
        """All passes of all images."""
        return Cost(costs.PASS * self.passes * data.images, data.memory)


class Target(Models, Drawn):
    """Which models are attacked, and on which images."""

    split: Annotated[
        Part, "part of the data set to take images from: test, validation or train."
    ] = "test"


class AttackParameters(HowToAttack, Target):
    """Of an attack on models."""

    def cost(self, data: Data) -> Cost:
        """That of each model."""
        each = super().cost(self.drawn(self.sized(data)))
        return Cost(each.seconds * len(self.model), each.memory)


class MeasureParameters(HowToAttack, Interface, Drawn):
    """Of an attack in MLflow's evaluation, which hands over the model and the images."""

    image_shape: Annotated[
        ImageShape | None,
        "height, width and channels of an image; none is what the model takes.",
    ] = None
    class_names: Annotated[
        Names | None, "for tables and figures, comma separated; none is 0,1,..."
    ] = None
