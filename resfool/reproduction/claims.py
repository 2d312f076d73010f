"""Whether what the paper concludes is seen: a rule for each of its claims."""

import itertools
import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from scipy import stats

from resfool import paper
from resfool.archive import FinishedRun
from resfool.reproduction.leaving import LeftOut
from resfool.reproduction.plan import ARCHS, DEEP, FOOLED, Label
from resfool.values import epsilon_step, show

Verdict = Literal["seen", "not seen", "not run"]
Runs = Mapping[Label, Sequence[FinishedRun]]
Rule = Callable[[Runs], tuple[bool, str]]  # whether a claim is seen, and the figures

_SMALL = tuple(n / 255 for n in (1, 2, 3, 4, 6, 8))  # that the networks' sensitivity is judged at
_EARLY = 0.1  # of a training, that "early" means
_INVISIBLE = 4 / 255  # a change of every pixel that hardly anybody sees
_PARTS = {"train": "training accuracy", "test": "test accuracy"}
# The paper tests with each batch's own statistics, and moving averages scatter more.
_METRICS = {"train": "final_train_accuracy", "test": "batch_statistics_test_accuracy"}
_ALIKE = 0.05  # a difference of fooling rates, or a loss of accuracy, that counts as none
_DEGRADED = 0.1  # a loss of training accuracy that deserves the word; the paper's is 0.63
_CONFIDENCE = 0.95  # of "too close to tell"


class _NotRunError(LookupError):
    """Runs that a rule needs aren't there."""


@dataclass(frozen=True)
class Decision:
    """What became of a claim.

    Attributes:
        name: of the claim.
        section: of the paper, or its table.
        text: what the paper says.
        verdict: whether it is seen here.
        figure: the figures that decide it.
    """

    name: str
    section: str
    text: str
    verdict: Verdict
    figure: str


def decide(runs: Runs) -> list[Decision]:
    """Look for each of the paper's claims in some runs.

    Args:
        runs: by what they are to the paper, one for each seed.

    Returns:
        A decision for each claim, in the paper's order.
    """
    return [
        Decision(name, section, text, *_decided(RULES[name], runs))
        for name, (section, text) in paper.CLAIMS.items()
    ]


def _decided(rule: Rule, runs: Runs) -> tuple[Verdict, str]:
    """A claim's verdict and the figures that decide it, or why there are none."""
    left_out = LeftOut()
    with left_out.unless_usable("it"):
        try:
            seen, figure = rule(runs)
        except _NotRunError as error:
            return "not run", f"needs {error}"
        return "seen" if seen else "not seen", figure
    return "not run", " ".join(left_out.reasons)


def mean_and_deviation(values: Sequence[float]) -> str:
    """Some seeds' values in a few characters: 0.842, or 0.842 ± 0.003 (3 seeds)."""
    if len(values) == 1:
        return f"{values[0]:.3f}"
    mean, deviation = statistics.fmean(values), statistics.stdev(values)
    return f"{mean:.3f} ± {deviation:.3f} ({len(values)} seeds)"


def metric(runs: Runs, label: Label, name: str) -> list[float]:
    """A metric of each seed's run; those that lack it are left out.

    Raises:
        UnusableError: one isn't finite.
    """
    return [run.metric(name) for run in runs.get(label, ()) if name in run.metrics]


def prediction_width(values: Sequence[float]) -> float:
    """How far one more seed's value lies from these seeds' mean, in 95 of 100 cases at most.

    Args:
        values: of two seeds at least, taken for normal.

    Returns:
        Half the width of the prediction interval, by Student's t.
    """
    n = len(values)
    t = float(stats.t.ppf((1 + _CONFIDENCE) / 2, n - 1))
    return t * statistics.stdev(values) * math.sqrt(1 + 1 / n)


@dataclass(frozen=True)
class _Figure:
    """Some seeds' values with a name.

    Attributes:
        name: for people.
        values: one for each seed.
        images: that each is a share of; 0 if it isn't one.
    """

    name: str
    values: Sequence[float]
    images: int = 0

    @property
    def mean(self) -> float:
        return statistics.fmean(self.values)

    @property
    def chance(self) -> float:
        """Half the width of the mean's confidence interval, as far as images and seeds tell."""
        n, width = len(self.values), 0.0
        if self.images:
            share = min(max(self.mean, 0.0), 1.0)
            width = stats.norm.ppf((1 + _CONFIDENCE) / 2) * math.sqrt(
                share * (1 - share) / self.images
            )
        if n > 1:  # all seeds are judged on the same images, which doesn't average out
            t = stats.t.ppf((1 + _CONFIDENCE) / 2, n - 1)
            width = max(width, t * statistics.stdev(self.values) / math.sqrt(n))
        return float(width)

    def __str__(self) -> str:
        return f"{self.name} {mean_and_deviation(self.values)}"


def _get(runs: Runs, label: Label, name: str, what: str = "", images: str = "") -> _Figure:
    """A metric of a network's runs; `images` names their parameter that counts what it is of."""
    values = metric(runs, label, name)
    network = f"{label[-2]}-{label[-1]}" if len(label) > 2 else "the 5-layer network"
    if not runs.get(label):
        raise _NotRunError(
            {"short": network, "long": f"{network}, the long training"}.get(
                str(label[0]), f"the {label[0]} on {network}"
            )
        )
    if not values:
        runs[label][0].metric(name)  # which says that there is none
    return _Figure(what or network, values, runs[label][0].whole(images) if images else 0)


def _final(runs: Runs, arch: str, depth: int, part: str, kind: str = "short") -> _Figure:
    label = (kind, arch, depth)
    if part == "test":
        return _get(runs, label, _METRICS[part], images="test_images")
    found = _get(runs, label, _METRICS[part], images="batch_size")
    return replace(found, images=paper.AVERAGED_STEPS * found.images)


def _higher(one: _Figure, other: _Figure, what: str) -> tuple[bool, str]:
    return one.mean > other.mean, f"{what}: {one}, {other}{_closeness(one, other)}"


def _lower(one: _Figure, other: _Figure, what: str) -> tuple[bool, str]:
    return one.mean < other.mean, f"{what}: {one}, {other}{_closeness(one, other)}"


def _closeness(one: _Figure, other: _Figure) -> str:
    """A remark, if chance alone can make the difference of two figures."""
    chance = math.hypot(one.chance, other.chance)
    near = abs(one.mean - other.mean) < chance
    return f" (too close to tell: chance makes up to {chance:.3f})" if near else ""


def _all(*parts: tuple[bool, str]) -> tuple[bool, str]:
    return all(seen for seen, _ in parts), "; ".join(text for _, text in parts)


def _convnet_degrades(runs: Runs) -> tuple[bool, str]:
    shallow, deep = (_final(runs, "convnet", depth, "train") for depth in DEEP)
    lost = shallow.mean - deep.mean
    _, text = _higher(shallow, deep, "training accuracy")
    return lost >= _DEGRADED, f"{text} (degraded is a loss of {_DEGRADED} or more)"


def _deeper(runs: Runs, arch: str, part: str) -> tuple[bool, str]:
    deep, shallow = (_final(runs, arch, depth, part) for depth in (50, 25))
    return _higher(deep, shallow, _PARTS[part])


def _resnet_beats_convnet(runs: Runs) -> tuple[bool, str]:
    parts, missing = [], []
    for depth in DEEP:
        try:
            resnet, convnet = (_final(runs, arch, depth, "test") for arch in ("resnet", "convnet"))
        except _NotRunError as error:
            missing.append(error)
        else:
            parts.append(_higher(resnet, convnet, "test accuracy"))
    # One depth can't show what the paper says of both, but it can show the contrary.
    if missing and all(seen for seen, _ in parts):
        raise missing[0]
    return _all(*parts)


def _resnet_is_faster(runs: Runs) -> tuple[bool, str]:
    early = []
    for arch in ("resnet", "convnet"):
        final = _final(runs, arch, 25, "train")
        curves = [run.points("train_accuracy") for run in runs["short", arch, 25]]
        last = max(max(curve) for curve in curves)
        step = min(step for step in curves[0] if step >= _EARLY * last)
        values = [run.at("train_accuracy", step) for run in runs["short", arch, 25]]
        early.append(_Figure(f"{arch}-25", values, final.images))
    return _higher(early[0], early[1], f"training accuracy by step {step:,}")


def _resnet_adds_nothing(runs: Runs) -> tuple[bool, str]:
    counts = {}
    for arch, depth in itertools.product(("resnet", "convnet"), (25, 50)):
        for run in runs.get(("short", arch, depth), ()):
            counts[arch, depth] = run.whole("parameter_count")
    pairs = [depth for depth in (25, 50) if {("resnet", depth), ("convnet", depth)} <= set(counts)]
    if not pairs:
        raise _NotRunError("resnet and convnet of equal depth")
    text = "; ".join(
        f"resnet-{d} {counts['resnet', d]:,}, convnet-{d} {counts['convnet', d]:,} parameters"
        for d in pairs
    )
    return all(counts["resnet", d] <= counts["convnet", d] for d in pairs), text


def _highway_trains_deep(runs: Runs) -> tuple[bool, str]:
    highway, convnet = (
        [_final(runs, arch, depth, "train") for depth in DEEP] for arch in ("highway", "convnet")
    )
    lost, convnet_lost = (shallow.mean - deep.mean for shallow, deep in (highway, convnet))
    return _all(
        _higher(highway[1], convnet[1], "training accuracy"),
        (
            lost < _ALIKE and convnet_lost >= _DEGRADED,
            f"lost since 25 layers: highway {lost:.3f}, convnet {convnet_lost:.3f} "
            f"(less than {_ALIKE} is none, {_DEGRADED} or more degraded)",
        ),
    )


def _highway_overfits(runs: Runs) -> tuple[bool, str]:
    highway, resnet = (
        [_final(runs, arch, 25, part) for part in ("train", "test")]
        for arch in ("highway", "resnet")
    )
    return _all(
        _higher(highway[0], resnet[0], "training accuracy"),
        _lower(highway[1], resnet[1], "test accuracy"),
    )


def _highway_degrades(runs: Runs) -> tuple[bool, str]:
    parts = []
    for part in ("train", "test"):
        deep, shallow = (_final(runs, "highway", depth, part) for depth in (50, 25))
        parts.append(_higher(shallow, deep, _PARTS[part]))
    return _all(*parts)


def _multiresnet_best(runs: Runs) -> tuple[bool, str]:
    multiresnet, resnet = (_final(runs, arch, 50, "test") for arch in ("multiresnet", "resnet"))
    return _higher(multiresnet, resnet, "test accuracy")


def _long_order(runs: Runs) -> tuple[bool, str]:
    found = (_final(runs, arch, 25, "test", "long") for arch in reversed(ARCHS))
    order = sorted(found, key=lambda figure: -figure.mean)
    seen = order[0].name.startswith("multi") and order[-1].name.startswith("highway")
    text = f"test accuracy: {', '.join(map(str, order))}"
    return seen, text + _closeness(*order[:2]) + _closeness(*order[-2:])


def _multiresnet_generalises(runs: Runs) -> tuple[bool, str]:
    ratios = []
    for arch in ("multiresnet", "resnet"):
        train, test = (_final(runs, arch, 50, part) for part in ("train", "test"))
        pairs = zip(test.values, train.values, strict=True)
        ratios.append(_Figure(train.name, [a / b for a, b in pairs]))
    return _higher(ratios[0], ratios[1], "test over training accuracy")


_UNIVERSAL = ("universal", "digits")


def _universal_beats_noise(runs: Runs) -> tuple[bool, str]:
    rates, noise = _rates_by_rank(runs)
    more = [n for n in rates if statistics.fmean(rates[n]) > statistics.fmean(noise[n])]
    most = max(rates)
    asked = runs[_UNIVERSAL][0].whole("rank")
    shown = sorted({min(asked, most), most})
    return most in more, (
        f"fooling rate, mean of the draws, against that of random vectors of the same norm: "
        f"higher for {len(more)} of {len(rates)} numbers of singular vectors; "
        + "; ".join(
            f"with {n} {mean_and_deviation(rates[n])}, random {mean_and_deviation(noise[n])}"
            for n in shown
        )
    )


def _universal_fools(runs: Runs) -> tuple[bool, str]:
    rates, noise = _rates_by_rank(runs)
    enough = [n for n in rates if statistics.fmean(rates[n]) > paper.UNIVERSAL_FOOLING_RATE]
    best = max(rates, key=lambda n: statistics.fmean(rates[n]))
    rank = min(enough, default=best)
    ours = _Figure(f"with {rank} singular vectors", rates[rank])
    return bool(enough), (
        f"fooling rate, mean of the draws, {ours}, against "
        f"{mean_and_deviation(noise[rank])} by noise of that norm"
    )


def _rates_by_rank(runs: Runs) -> tuple[dict[int, list[float]], dict[int, list[float]]]:
    """Fooling rates of universal perturbations and of noise, over the number of directions."""
    _get(runs, _UNIVERSAL, "final_fooling_rate")
    rates, noise = (by_rank(runs[_UNIVERSAL], f"{name}fooling_rate") for name in ("", "random_"))
    if not rates:
        raise _NotRunError("fooling rates over the number of singular vectors")
    for rank in rates.keys() - noise.keys():
        runs[_UNIVERSAL][0].at("random_fooling_rate", rank)  # which says that it isn't there
    return rates, noise


def by_rank(several: Sequence[FinishedRun], name: str) -> dict[int, list[float]]:
    """Each seed's value of a metric, by the number of singular vectors that it is a curve over."""
    found: dict[int, list[float]] = {}
    for run in several:
        for rank, rate in run.points(name).items():
            found.setdefault(rank, []).append(rate)
    return found


def _spectrum_falls(runs: Runs) -> tuple[bool, str]:
    ours = _get(runs, _UNIVERSAL, "energy_of_10_directions", "perturbations")
    noise = _get(runs, _UNIVERSAL, "random_energy_of_10_directions", "random matrix")
    return _higher(ours, noise, "share of the energy in 10 directions")


@dataclass(frozen=True)
class _Sensitivity:
    """How easily a network is fooled by small epsilons, on average over these.

    Attributes:
        rate: share of the images whose prediction changes.
        of_right: share of the rightly classified images that no longer are. Steps away from the
            true label seldom change what is wrong already, so that a less accurate network has a
            lower rate for that alone.
    """

    rate: _Figure
    of_right: _Figure


def _sensitivity(runs: Runs, arch: str) -> _Sensitivity:
    label, name = ("attack", "short", arch, 10), f"{arch}-10"
    clean = _get(runs, label, "clean_accuracy", images="attacked_images")
    rates, of_right = [], []
    for run, accuracy in zip(runs[label], clean.values, strict=True):
        fooled, kept = (
            statistics.fmean(run.at(of, epsilon_step(e)) for e in _SMALL)
            for of in ("fooling_rate", "accuracy")
        )
        rates.append(fooled)
        of_right.append(1 - kept / accuracy if accuracy else 0.0)
    of_right_images = round(clean.mean * clean.images)
    return _Sensitivity(
        _Figure(name, rates, clean.images), _Figure(name, of_right, of_right_images)
    )


_SENSITIVITIES = {
    "rate": "mean fooling rate",
    "of_right": "mean share of rightly classified images that no longer are",
}


def _multiresnet_fooled(runs: Runs) -> tuple[bool, str]:
    found = {arch: _sensitivity(runs, arch) for arch in FOOLED}
    parts = []
    for kind, what in _SENSITIVITIES.items():
        shares = {arch: getattr(one, kind) for arch, one in found.items()}
        text = f"{what}: {', '.join(map(str, shares.values()))}"
        multiresnet = shares.pop("multiresnet")
        rival = max(shares.values(), key=lambda one: one.mean)
        parts.append((multiresnet.mean > rival.mean, text + _closeness(multiresnet, rival)))
    return _up_to_small(_all(*parts))


def _others_alike(runs: Runs) -> tuple[bool, str]:
    convnet, resnet = (_sensitivity(runs, arch) for arch in ("convnet", "resnet"))
    parts = []
    for kind, what in _SENSITIVITIES.items():
        one, other = getattr(convnet, kind), getattr(resnet, kind)
        parts.append((abs(one.mean - other.mean) < _ALIKE, f"{what}: {one}, {other}"))
    seen, text = _up_to_small(_all(*parts))
    return seen, f"{text} (alike is less than {_ALIKE} apart)"


def _up_to_small(decided: tuple[bool, str]) -> tuple[bool, str]:
    seen, text = decided
    return seen, f"over epsilons up to {show(_SMALL[-1])}, {text}"


def _signs_spectrum(runs: Runs) -> tuple[bool, str]:
    labels = [("attack", "short", arch, 10) for arch in FOOLED]
    ours = [_get(runs, label, "energy_of_10_directions") for label in labels]
    noise = [_get(runs, label, "random_energy_of_10_directions", "random") for label in labels]
    text = ", ".join(f"{one} ({other})" for one, other in zip(ours, noise, strict=True))
    seen = all(one.mean > other.mean for one, other in zip(ours, noise, strict=True))
    return seen, f"share of the energy in 10 directions: {text}"


def _invisible_fooling(runs: Runs) -> tuple[bool, str]:
    label = ("attack", "short", "resnet", 10)
    _get(runs, label, "clean_accuracy")
    step = epsilon_step(_INVISIBLE)
    fooled, noise = (
        _Figure(what, [run.at(name, step) for run in runs[label]])
        for what, name in (("resnet-10", "fooling_rate"), ("random signs", "random_fooling_rate"))
    )
    return _higher(fooled, noise, f"fooling rate at epsilon {show(_INVISIBLE)}")


RULES: dict[str, Rule] = {
    "convnet_degrades": _convnet_degrades,
    "resnet_trains_deeper": lambda runs: _deeper(runs, "resnet", "train"),
    "resnet_tests_deeper": lambda runs: _deeper(runs, "resnet", "test"),
    "resnet_beats_convnet": _resnet_beats_convnet,
    "resnet_is_faster": _resnet_is_faster,
    "resnet_adds_nothing": _resnet_adds_nothing,
    "highway_trains_deep": _highway_trains_deep,
    "highway_overfits": _highway_overfits,
    "highway_degrades": _highway_degrades,
    "multiresnet_deeper": lambda runs: _deeper(runs, "multiresnet", "test"),
    "multiresnet_best": _multiresnet_best,
    "multiresnet_generalises": _multiresnet_generalises,
    "long_order": _long_order,
    "universal_beats_noise": _universal_beats_noise,
    "universal_fools": _universal_fools,
    "spectrum_falls": _spectrum_falls,
    "multiresnet_fooled": _multiresnet_fooled,
    "others_alike": _others_alike,
    "signs_spectrum": _signs_spectrum,
    "invisible_fooling": _invisible_fooling,
}
