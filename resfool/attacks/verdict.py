"""Whether a model hides its gradient: what is checked, how the checks are read, what to do then.

A gradient that is hidden leads attacks nowhere, and the robust accuracy that they leave is too high
(Athalye, Carlini, Wagner, "Obfuscated gradients give a false sense of security", arXiv:1802.00420;
Carlini et al., "On evaluating adversarial robustness", arXiv:1902.06705).
"""

from dataclasses import dataclass

from resfool.values import Row

MOST_IMAGES = 50  # that are checked
FEW_STEPS, MORE_STEPS, QUERIES = 10, 40, 60  # of the attacks that are compared
_CHEAP_PASSES = 10  # of an image: five looks and gradients, twice
_DEAR_PASSES = 2 * FEW_STEPS + 2 * MORE_STEPS + QUERIES + 1


@dataclass(frozen=True)
class Kind:
    """A check.

    Attributes:
        measured: the share of the images that counts against the model, in words.
        limit: beyond which it is raised; None where it depends on the images.
        advice: what it means, and what to do.
    """

    measured: str
    limit: float | None
    advice: str


CHEAP: dict[str, Kind] = {
    "zero_gradient": Kind(
        "images at which the gradient of the cross-entropy is zero, or has the signs that it has "
        "at an image of another class",
        0.1,
        "Gradients of zero lead nowhere. If the logits are huge, their softmax is saturated in "
        "float32: divide them by a constant, which changes no prediction. If a layer is rounded or "
        "cut off, attack the model without it, or give the layer a gradient of its own (the "
        "identity's often serves).",
    ),
    "constant_logits": Kind(
        "images at which the logits of the two least likely classes don't depend on the image",
        0.1,
        "Something behind the logits cuts them off, such as a ReLU or a softmax that underflows: "
        "attack the model without it.",
    ),
    "random_logits": Kind(
        "images whose logits differ from pass to pass",
        0.0,
        "Dropout or noise is left on. Switch it off, or attack the mean of many passes: what fools "
        "one pass may not fool the next one.",
    ),
    "loss_not_rising": Kind(
        "images whose loss is no higher after a step of a quarter of 1/255 along its gradient",
        0.2,
        "The gradient doesn't say how the loss goes on: it is shattered, by rounding or by noise. "
        "Attack a smooth version of the model, or trust in attacks without gradients only.",
    ),
}

DEAR: dict[str, Kind] = {
    "right_within_half": Kind(
        "images that gradients don't fool at an epsilon of 0.5, which makes any image uniformly "
        "grey",
        None,
        "No classifier can be right so often there: it would have to tell uniform grey from "
        "uniform grey. The attack fails, not the images.",
    ),
    "more_steps": Kind(
        f"images that {MORE_STEPS} gradient steps fool where {FEW_STEPS} don't",
        0.2,
        "The attack had not come to its end: take more attack_steps and restarts, until the robust "
        "accuracy doesn't fall any more.",
    ),
    "black_box": Kind(
        "images that random search (Square) fools where gradients don't",
        0.1,
        "Who doesn't look at the gradient is better off than who does. Take method=square with "
        "many queries, and effort=plus.",
    ),
}

CHECKS = CHEAP | DEAR

TO_DO = (
    "What stands here as robust is what the attacks did not find, and they may have been led "
    "nowhere. Mend what the checks name and attack again, or attack with method=square and many "
    "queries; until then take no robust accuracy of this model for more than an upper bound."
)


@dataclass(frozen=True)
class Check:
    """What a check found: it is raised where its value is beyond its limit."""

    name: str
    value: float
    limit: float

    @property
    def raised(self) -> bool:
        """Whether it says that the gradient is hidden."""
        return self.value > self.limit

    @property
    def kind(self) -> Kind:
        """What it is."""
        return CHECKS[self.name]


@dataclass(frozen=True)
class Verdict:
    """What all checks found on some images that are classified rightly; none without any images."""

    images: int
    checks: tuple[Check, ...]

    @property
    def raised(self) -> list[Check]:
        """Those that say that the gradient is hidden."""
        return [check for check in self.checks if check.raised]

    @property
    def hidden(self) -> bool:
        """Whether the gradient seems to be hidden."""
        return bool(self.raised)

    @property
    def metrics(self) -> Row:
        """How many are raised, and each one's value."""
        if not self.checks:
            return {}
        values = {f"gradient_masking_{check.name}": check.value for check in self.checks}
        return {"gradient_masking_checks_raised": float(len(self.raised))} | values

    @property
    def warning(self) -> str:
        """One sentence, where the gradient seems to be hidden."""
        names = ", ".join(check.name for check in self.raised)
        return (
            f"the gradient seems to be hidden ({names}: {len(self.raised)} of {len(self.checks)} "
            "checks raised), so the true robust accuracy may be far lower"
        )


def passes(images: int, *, compared: bool) -> int:
    """Those of the checks in all, of so many images.

    Args:
        images: that are attacked.
        compared: whether attacks are compared, too.
    """
    return min(images, MOST_IMAGES) * (_CHEAP_PASSES + compared * _DEAR_PASSES)
