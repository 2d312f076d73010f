"""Universal perturbations as tables and figures."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from resfool.attacks import lowrank
from resfool.classifiers import scores
from resfool.monitor import Leaves
from resfool.report.drawing import (
    ExampleView,
    Figure,
    caption,
    draw_image,
    draw_view,
    legible,
    room_for,
)
from resfool.values import show

if TYPE_CHECKING:
    from resfool.attacks.minimal import Outcome
    from resfool.universal.experiment import Fooling
    from resfool.universal.judging import Judged
    from resfool.universal.prediction import Law, Prediction

_MOST_CLASSES = 40  # that a confusion matrix can show


def leaves(result: "Fooling") -> Leaves:
    """The perturbation, its matrix, and what figures and tables show of them."""
    found: dict[str, Any] = {"perturbation.npy": result.verdict.universal.vector}
    if result.matrix is not None:
        found["matrix"] = result.matrix.stored(result.identity)
    if result.solved is not None:
        found["smallest_perturbations"] = _solved_table(result.solved)
    if result.ranked is not None:
        found["fooling_rate_over_rank.png"] = _over_rank(result)
        found["ranks"] = pd.DataFrame(result.ranked.rows)
    if result.prediction is not None:
        found["spectrum.png"] = draw_spectrum(result.prediction, _title(result))
    if result.tried:
        found[result.asked.procedure.tried] = pd.DataFrame(result.tried)
    found["beside_noise"] = _beside_table(result)
    names = result.class_names
    counts = result.verdict.confusion(len(names))
    confusion = draw_confusion(counts, list(map(legible, names)), _title(result))
    return found | {"perturbation.png": _pictures(result), "confusion.png": confusion}


def mnist_leaves(result: "Fooling") -> Leaves:
    """The figures of the case study, by their numbers in the paper, and what stands beside."""
    figures = {"figure7.png": _over_rank(result), "figures8to10.png": _pictures(result)}
    return figures | {"beside_noise": _beside_table(result)}


def scalars(result: "Fooling") -> dict[str, float]:
    """The final figures by their names in MLflow."""
    solved = {} if result.solved is None else _solved_scalars(result.solved)
    predicted = {} if result.prediction is None else result.prediction.figures
    return result.rates | solved | predicted


def summary(result: "Fooling") -> str:
    """A universal perturbation for the terminal."""
    lines = []
    if result.solved is not None:
        of = _solved_scalars(result.solved)
        lines.append(
            f"solved          {of['flipped_share']:.1%} flipped, mean l2 norm "
            f"{of.get('mean_l2_norm', np.nan):.3f}, {of['seconds_per_image']:.4f} s and "
            f"{of['evaluations_per_image']:.0f} passes each"
        )
    if result.prediction is not None:
        lines.append(f"spectrum        {_predicted_line(result.prediction)}")
    if result.left_out:
        lines.append(f"spectrum        {result.left_out}")
    if result.ranked is not None:
        word, kind = ("fooled", "fooling") if result.target is None else ("moved", "success")
        side = "clipped_" if result.asked.clip else ""
        columns = ("rank", 6), ("l2 norm", 9), (word, 8), ("random", 8), ("pattern", 9)
        names = "".join(f"{name:>{width}}" for name, width in columns)
        seen = ", clipped" if result.asked.clip else ""
        lines.append(f"{names}   {'at equal norm':>13}{'pattern':>9}{seen}")
        for row in result.ranked.rows:
            lines.append(
                f"{row['rank']:>6.0f}{row['l2_norm']:>9.2f}{row[f'{side}{kind}_rate']:>8.3f}"
                f"{row[f'{side}random_{kind}_rate']:>8.3f}"
                f"{row[f'{side}pattern_{kind}_rate']:>9.3f}   "
                f"{row[f'equal_{side}{kind}_rate']:>13.3f}"
                f"{row[f'equal_{side}pattern_{kind}_rate']:>9.3f}"
            )
    rates = result.rates
    if result.target is not None:
        lines.append(f"of other classes become {result.class_names[result.target]}:")
        lines += _rate_lines(result, "success")
    lines += _rate_lines(result, "fooling")
    l2, linf = rates["final_l2_norm"], rates["final_linf_norm"]
    lines.append(f"norm            l2 {l2:.3f}, l-infinity {linf:.4f}")
    return "\n".join(lines)


def _rate_lines(result: "Fooling", kind: str) -> list[str]:
    """The fooling or the success rates of the perturbation, of noise and of the best patterns."""
    rates, patterns = result.rates, result.patterns
    lines = []
    for title, name, what in (
        (f"{kind} rate", "", ""),
        ("Gaussian", "random_", "same l2 norm; "),
        ("best pattern", "pattern_", f"{patterns.l2.name}, same l2 norm; "),
        ("best pattern", "linf_pattern_", f"{patterns.linf.name}, same l-infinity norm; "),
    ):
        rate, low, high = (rates[f"final_{name}{kind}_rate{end}"] for end in ("", "_low", "_high"))
        clipped = rates[f"final_clipped_{name}{kind}_rate"]
        lines.append(
            f"{title:<16}{rate:.4f}  ({low:.3f} to {high:.3f}; {what}clipped {clipped:.4f})"
        )
    return lines


def _all_judged(result: "Fooling") -> list[tuple[str, "Judged"]]:
    """The perturbation, noise and the best patterns, with what they are called in tables."""
    verdict, patterns = result.verdict, result.patterns
    return [
        ("universal", verdict.universal),
        ("Gaussian, same l2 norm", verdict.gaussian),
        ("random signs, same l-infinity norm", verdict.signs),
        (f"{patterns.l2.name}, same l2 norm", patterns.l2),
        (f"{patterns.linf.name}, same l-infinity norm", patterns.linf),
    ]


def _predicted_line(prediction: "Prediction") -> str:
    """How the spectrum of smallest perturbations was predicted, for the terminal."""
    of = prediction.figures
    text = (
        f"predicted {of['predicted_spectrum_deviation']:.1%} off: scale "
        f"{of['predicted_scale_ratio']:.3f} times, shape {of['predicted_shape_deviation']:.1%} off"
    )
    if prediction.better is not None:
        ours, theirs = prediction.better
        text += f"; falls as {_formula(ours)}, predicted {theirs.rate:.3g}, from {ours.first} on"
    return text


def _formula(law: "Law") -> str:
    rate = f"{law.rate:.3g}"
    return f"i^-{rate}" if law.kind == "power" else f"exp(-{rate} i)"


def _beside_table(result: "Fooling") -> pd.DataFrame:
    """The perturbation, noise and the best patterns, clipped and not, with 95% intervals."""
    target, rows = result.target, []
    for name, one in _all_judged(result):
        for clipped, classes in (("no", one.fooled), ("yes", one.clipped)):
            row: dict[str, Any] = {"perturbation": name, "clipped": clipped}
            row |= scores.rate("fooling_rate", classes != one.clean)
            if target is not None:
                row |= scores.rate("success_rate", classes[one.clean != target] == target)
            rows.append(row)
    return pd.DataFrame(rows)


def _solved_table(solved: "Outcome") -> pd.DataFrame:
    """How each fitting image's smallest perturbation was found, in the order of the matrix."""
    return pd.DataFrame(
        {
            "image": range(len(solved.norms)),
            "flipped": solved.flipped,
            "flipped_in_8_bits": solved.rounded,
            "l2_norm": solved.norms,
            "evaluations": solved.evaluations,
            "seconds": solved.seconds,
        }
    )


def _solved_scalars(solved: "Outcome") -> dict[str, float]:
    """The smallest perturbations in a few figures; norms are those of the images that flipped."""
    norms = solved.norms[solved.flipped]
    found = {
        "flipped_share": float(solved.flipped.mean()),
        "flipped_share_in_8_bits": float(solved.rounded.mean()),
        "evaluations_per_image": float(solved.evaluations.mean()),
        "seconds_per_image": float(solved.seconds.mean()),
    }
    if len(norms):
        found |= {"mean_l2_norm": float(norms.mean()), "median_l2_norm": float(np.median(norms))}
    return found


def _title(result: "Fooling") -> str:
    """What a universal perturbation's figures are called."""
    asked = result.asked
    by_matrix = f", coefficients {asked.coefficients}" if result.ranked is not None else ""
    solver = f" ({asked.solver})" if "solver" in asked.procedure.takes else ""
    return f"algorithm {asked.algorithm}{solver}{by_matrix}, {legible(result.name)}, {result.where}"


def _over_rank(result: "Fooling") -> Figure:
    """The figure of fooling rates over the rank, and of the spectrum (Figure 7)."""
    assert result.ranked is not None and result.singular_values is not None, "there is a matrix"
    values, random = (v.tolist() for v in result.singular_values)
    norm, equal_norm = show(result.asked.size), show(result.asked.equal_norm)
    predicted = [] if result.prediction is None else result.prediction.predicted.values.tolist()
    return draw_over_rank(
        result.ranked.rows,
        norm,
        equal_norm,
        (values, random, predicted),
        _title(result) + (f"\n{result.left_out}" if result.left_out else ""),
        result.ranked.patterns,
    )


def draw_over_rank(
    rows: Sequence[Mapping[str, float]],
    norm: str,
    equal_norm: str,
    spectra: Sequence[Sequence[float]],
    title: str,
    patterns: tuple[str, str] = ("", ""),
) -> Figure:
    """Fooling rate over the number of singular vectors, and the spectrum, as in Figure 7.

    Args:
        rows: points with "rank" and the rates of `judging.over_ranks`, in order of the rank.
        norm: that the first panel's perturbations are scaled to; none leaves them as they come.
        equal_norm: that the second panel's are scaled to.
        spectra: singular values of the matrix and of a random one, largest first; and perhaps those
            that the network predicts.
        title: says which model and algorithm.
        patterns: names of the best patterns of the two panels, if rows have their rates.
    """
    figure = Figure(figsize=(15, 4.6), layout="constrained")
    figure.suptitle(title)
    drawn, equal, spectrum = figure.subplots(1, 3)
    _draw_rates(drawn, rows, "")
    free = "as it comes: the norm grows with the rank"
    drawn.set_title(free if norm == "none" else f"all scaled to the norm {norm}", fontsize="medium")
    if norm == "none":
        norms = drawn.twinx()
        ranks, sizes = ([row[name] for row in rows] for name in ("rank", "l2_norm"))
        norms.plot(ranks, sizes, color="grey", lw=1, ls="--")
        norms.set_ylabel("l2 norm (dashed)", color="grey")
        norms.set_ylim(bottom=0)
    _draw_rates(equal, rows, "equal_")
    if any(patterns):
        left, middle = patterns
        label = f"best pattern: {left}" + ("" if left == middle else f" (left), {middle} (middle)")
        for axes, prefix in ((drawn, ""), (equal, "equal_")):
            _draw_pattern(axes, rows, f"{prefix}pattern_{_kind(rows)}_rate", label)
    equal.set_title(f"all scaled to the norm {equal_norm}", fontsize="medium")
    _draw_spectra(spectrum, spectra)
    spectrum.set_ylim(bottom=0)
    for axes in (drawn, equal, spectrum):
        axes.grid(alpha=0.3)
    spectrum.legend()
    figure.legend(*equal.get_legend_handles_labels(), loc="outside lower left", ncols=4)
    return figure


def draw_spectrum(prediction: "Prediction", title: str) -> Figure:
    """The spectrum of smallest perturbations, what the network predicts, and how far off that is.

    Args:
        prediction: of the matrix of smallest perturbations.
        title: says which model and algorithm.
    """
    figure = Figure(figsize=(11, 4.6), layout="constrained")
    figure.suptitle(title)
    spectrum, ratios = figure.subplots(1, 2)
    ours, theirs, random = prediction.measured, prediction.predicted, prediction.random
    count = prediction.compared
    _draw_spectra(spectrum, (ours.values, random, theirs.values))
    if prediction.better is not None:
        law, other = prediction.better
        numbers = np.arange(law.first, law.last + 1)
        label = f"{_formula(law)}, predicted {other.rate:.3g} ({law.first} to {law.last})"
        spectrum.plot(numbers, law.at(numbers), color="black", lw=1, ls="-.", label=label)
    least = ours.values[count - 1]
    spectrum.set(yscale="log", ylim=(least / 5, 2 * max(ours.values[0], theirs.values[0])))
    for values, of, label, style, colour in (
        (theirs.values, ours.values, "predicted: scale and shape", "--", "tab:red"),
        (theirs.directions, ours.directions, "predicted, all at norm 1: shape", "-", "tab:red"),
        (random, ours.values, "random matrix", ":", "tab:blue"),
    ):
        ratio = values[:count] / of[:count]
        ratios.plot(range(1, count + 1), ratio, ls=style, color=colour, label=label)
    scale = prediction.figures["predicted_scale_ratio"]
    ratios.axhline(scale, color="grey", lw=1, ls="--", label=f"predicted scale, {scale:.3f}")
    ratios.axhline(1, color="black", lw=1)
    highest = float((theirs.values[:count] / ours.values[:count]).max())
    ratios.set(xlabel="index", xscale="log", ylim=(0, max(2.0, 1.2 * highest)))
    ratios.set_ylabel(f"divided by the measured values\n({count} hold 99% of the energy)")
    for axes in (spectrum, ratios):
        axes.grid(alpha=0.3)
        axes.legend()
    return figure


def _draw_spectra(axes: Axes, spectra: Sequence[Sequence[float] | np.ndarray]) -> None:
    """Singular values of a matrix, of a random one and of a predicted one, where there are any."""
    shown = (
        ("perturbations", "-", "tab:blue"),
        ("random matrix, same row norms", ":", "tab:blue"),
        ("predicted, without solving", "--", "tab:red"),
    )
    for values, (label, style, colour) in zip(spectra, shown, strict=False):
        if len(values):
            axes.plot(range(1, len(values) + 1), values, ls=style, color=colour, label=label)
    axes.set(xlabel="index", ylabel="singular value", xscale="log")


def _draw_rates(axes: Axes, rows: Sequence[Mapping[str, float]], prefix: str) -> None:
    kind = _kind(rows)
    ranks = [row["rank"] for row in rows]
    for name, label, colour in (
        (f"{kind}_rate", "universal", "tab:blue"),
        (f"random_{kind}_rate", "Gaussian, same l2 norm", "tab:orange"),
        (f"sign_noise_{kind}_rate", "random signs, same l-infinity norm", "tab:green"),
    ):
        means, spreads = (
            np.array([row[f"{prefix}{name}{end}"] for row in rows]) for end in ("", "_std")
        )
        axes.plot(ranks, means, marker=".", color=colour, label=label)
        axes.fill_between(ranks, means - spreads, means + spreads, color=colour, alpha=0.2, lw=0)
    for name, label, colour in (("", "universal", "blue"), ("random_", "Gaussian", "orange")):
        key = f"{prefix}clipped_{name}{kind}_rate"
        if key in rows[0]:  # runs of earlier days clipped no noise
            clipped = [row[key] for row in rows]
            label += ", clipped to [0, 1]"
            axes.plot(ranks, clipped, color=f"tab:{colour}", ls=":", label=label)
    axes.set(xlabel="number of singular vectors", xscale="log")
    axes.set_ylabel(f"{kind} rate, held out\n(bands: deviation over draws)")
    axes.set_ylim(-0.02, 1.02)


def _kind(rows: Sequence[Mapping[str, float]]) -> str:
    """Whether rows are of images that are fooled, or that become a target."""
    return "fooling" if "fooling_rate" in rows[0] else "success"


def _draw_pattern(axes: Axes, rows: Sequence[Mapping[str, float]], rate: str, label: str) -> None:
    ranks, rates = ([row[key] for row in rows] for key in ("rank", rate))
    axes.plot(ranks, rates, marker=".", color="tab:red", ls="-.", label=label)


def _pictures(result: "Fooling") -> Figure:
    """The perturbation, noise and the best pattern, and images under each (Figures 8 to 10).

    In linf they share the l-infinity norm, and else the l2 norm.
    """
    verdict, patterns, linf = result.verdict, result.patterns, result.asked.size.kind == "linf"
    norm, noise, pattern = (
        ("l-infinity", verdict.signs, patterns.linf)
        if linf
        else ("l2", verdict.gaussian, patterns.l2)
    )
    names = list(map(caption, result.class_names))
    rows = len(result.pictures)
    size = 1.9
    figure = Figure(figsize=(size * 4.5, size * 1.2 * (rows + 1) + 0.9), layout="constrained")
    (of_norm,) = lowrank.sizes(verdict.universal.vector[np.newaxis], "linf" if linf else "l2")
    rates = [float((one.fooled != one.clean).mean()) for one in (verdict.universal, noise, pattern)]
    figure.suptitle(
        f"{_title(result)}\n{norm} norm {of_norm:.3g}, fools {rates[0]:.1%}, the random one "
        f"{rates[1]:.1%}\nand the best pattern, {pattern.name}, {rates[2]:.1%}"
    )
    grid = figure.subplots(rows + 1, 4, squeeze=False)
    grid[0][0].axis("off")
    scale = max(float(np.abs(verdict.universal.vector).max()), 1e-12)
    shown = [("universal", verdict.universal), (f"random,\nsame {norm} norm", noise)]
    shown.append((f"pattern,\nsame {norm} norm", pattern))
    grid[0][0].set_title("scaled for\nviewing:", fontsize="medium", y=0.4)
    for axes, (name, one) in zip(grid[0][1:], shown, strict=True):
        draw_image(axes, 0.5 + 0.5 * one.vector / scale)
        axes.set_title(name, fontsize="medium")
    for line, (number, picture) in zip(grid[1:], result.pictures.items(), strict=True):
        own = verdict.universal.clean[number]
        line[0].set_ylabel(names[own])
        draw_view(line[0], ExampleView(picture, names[own], True))
        for axes, (_, one) in zip(line[1:], shown, strict=True):
            under = one.fooled[number]
            draw_view(axes, ExampleView(picture + one.vector, names[under], under == own))
    if rows:
        for axes, name in zip(
            grid[1], ("clean", "+ universal", "+ random", "+ pattern"), strict=True
        ):
            axes.set_title(name, fontsize="medium")
    return figure


def draw_confusion(counts: np.ndarray, class_names: Sequence[str], title: str) -> Figure:
    """Which class the images of each predicted class fall into under a perturbation.

    Args:
        counts: int (classes, classes), clean prediction by prediction under the perturbation.
        class_names: by class; of more than 40, those are shown that most images fall into.
        title: says which model and algorithm.
    """
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    if len(class_names) > _MOST_CLASSES:
        often = np.argsort(-counts.sum(axis=0) - counts.sum(axis=1), kind="stable")
        shown = np.sort(often[:_MOST_CLASSES])
        title += f"\nthe {_MOST_CLASSES} of {len(class_names)} classes that most images fall into"
        counts, shares = (part[np.ix_(shown, shown)] for part in (counts, shares))
        class_names = [class_names[i] for i in shown]
    classes = len(class_names)
    more = room_for(class_names)
    figsize = 2.5 + 0.45 * classes + more, 2 + 0.42 * classes + more
    figure = Figure(figsize=figsize, layout="constrained")
    figure.suptitle(title, fontsize="medium")
    axes = figure.subplots()
    image = axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    axes.set(xlabel="class under the perturbation", ylabel="class without")
    axes.set_xticks(range(classes), labels=class_names, rotation=60, ha="right")
    axes.set_yticks(range(classes), labels=class_names)
    if classes <= 20:
        for (i, j), count in np.ndenumerate(counts):
            if count:
                ink = "white" if shares[i, j] > 0.6 else "black"
                axes.text(j, i, str(count), ha="center", va="center", color=ink, fontsize="small")
    figure.colorbar(image, label="share of the row")
    return figure
