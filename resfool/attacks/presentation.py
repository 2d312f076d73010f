"""Attacks as tables, figures and a report."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from resfool.attacks import lowrank
from resfool.attacks import masking_presentation as masking
from resfool.attacks import robustness_presentation as robustness
from resfool.attacks.options import METHODS, AttackParameters, HowToAttack
from resfool.monitor import Leaves
from resfool.report import page
from resfool.report.drawing import (
    ExampleView,
    Figure,
    caption,
    colour_of,
    draw_image,
    draw_rate,
    draw_view,
    legible,
)
from resfool.values import BallNorm, epsilon_name, show

if TYPE_CHECKING:
    from resfool.attacks.examples import Attacked, Example


def leaves_of(attacked: "Attacked") -> Leaves:
    """What one model under attack leaves: tables, and some images."""
    own, other = attacked.singular_values, attacked.random_singular_values
    spectrum = {"singular_value": own, "random_singular_value": other}
    tables = {
        "images": images_table(attacked),
        "spectrum": pd.DataFrame({"index": range(1, len(own) + 1)} | spectrum),
        "rates": _rates_table([attacked]),
    }
    verdict = attacked.curve.verdict
    if verdict is not None and verdict.checks:
        tables["gradient_checks"] = masking.table(verdict)
    return tables | ({"examples.png": examples(attacked)} if attacked.examples else {})


def leaves(results: Sequence["Attacked"], asked: AttackParameters) -> Leaves:
    """What an attack leaves beside its models' own: what compares them, and the report."""
    compared = {"rates": _rates_table(results)} if len(results) > 1 else {}
    return {**figures(results, asked), **compared, **page.files(_report(results, asked))}


def figures(results: Sequence["Attacked"], asked: HowToAttack) -> dict[str, Figure]:
    """The figures of all models, by the names of their files."""
    found = {"fooling_rates.png": fooling_rates(results, asked.method)}
    if asked.pursues:
        found["robust_accuracy.png"] = robustness.figure(results, asked.method)
    return found


def _rates_table(results: Sequence["Attacked"]) -> pd.DataFrame:
    return pd.DataFrame(
        [
            {"model": a.name} | (row | robustness.doubt(a.curve))
            for a in results
            for row in a.curve.rows
        ]
    )


def images_table(attacked: "Attacked") -> pd.DataFrame:
    """What became of each image: its class, the predictions, and its smallest epsilon if known."""
    curve = attacked.curve
    names = np.asarray(attacked.class_names)
    table = pd.DataFrame(
        {
            "label": names[curve.labels],
            "predicted": names[curve.clean.classes[0]],
            "confidence": curve.clean.confidences[0],
        }
    )
    for epsilon, classes in zip(curve.epsilons, curve.attacked.classes, strict=True):
        if epsilon > 0:
            table[f"at_{epsilon_name(epsilon)}"] = names[classes]
    if curve.smallest is not None:
        table["smallest_epsilon"] = curve.smallest
    if curve.rounded is not None:
        table["fooled_in_8_bits"] = curve.rounded
    if curve.attacks:
        table["fooled_first_by"] = robustness.fooled_by(curve)
    return table


def summary(results: Sequence["Attacked"]) -> str:
    """A table for the terminal: fooling rate of each model, and of random signs, at 8 epsilons."""
    count = len(results[0].curve.rows)
    picked = np.unique(np.linspace(0, count - 1, 8).round().astype(int))
    labels = [f"{a.name}, random signs" for a in results]
    labels += [label for a in results for label in robustness.labels(a.curve)]
    width = max(len("epsilon"), *map(len, labels))
    head = [f"{show(results[0].curve.rows[i]['epsilon'] or 0):>8.7}" for i in picked]
    lines = [f"{'epsilon':<{width}}  accuracy {''.join(head)}   <- fooling rate"]
    for a in results:
        for label, accuracy, key in (
            (a.name, f"{a.clean_accuracy:8.3f}", "fooling_rate"),
            (f"{a.name}, random signs", " " * 8, "random_fooling_rate"),
        ):
            values = "".join(f"{a.curve.rows[i][key]:>8.3f}" for i in picked)
            lines.append(f"{label:<{width}}  {accuracy} {values}")
        if a.curve.verdict is not None:
            lines.append(masking.line(a.curve.verdict))
        lines += robustness.lines([a.curve.rows[i] for i in picked], a.curve, width)
    return "\n".join(lines)


def scalars(attacked: "Attacked") -> dict[str, float]:
    """A model's figures that belong to no single epsilon."""
    found = {
        "clean_accuracy": attacked.clean_accuracy,
        "zero_gradient_share": attacked.curve.zero_gradient_share,
        "energy_of_10_directions": lowrank.energy(attacked.singular_values, 10),
        "random_energy_of_10_directions": lowrank.energy(attacked.random_singular_values, 10),
    }
    if attacked.curve.verdict is not None:
        found |= attacked.curve.verdict.metrics
    smallest = attacked.curve.smallest
    if attacked.curve.attacks:
        return found | robustness.quantiles(attacked.curve)
    if smallest is not None and np.isfinite(np.median(smallest)):
        found["median_smallest_epsilon"] = float(np.median(smallest))
    return found


_NAMED = "fooling_rate", "error_rate", "accuracy", "random_fooling_rate"


def model_metrics(attacked: "Attacked") -> dict[str, float]:
    """A model's figures under names of their own, such as fooling_rate_at_8_255."""
    return scalars(attacked) | {
        f"{name}_at_{epsilon_name(row['epsilon'])}": row[name]
        for row in attacked.curve.rows
        for name in (*_NAMED, *robustness.NAMED)
        if row["epsilon"] > 0 and name in row
    }


def _report(results: Sequence["Attacked"], asked: AttackParameters) -> page.Report:
    """How easily some models are fooled, for people."""
    curves = page.png(fooling_rates(results, asked.method))
    caption = (
        "Fooling rate against the size of the perturbation, and the spectrum of gradient signs"
    )
    note = (
        "Fooling rate: share of the images whose predicted class changes. Epsilon: the most that a "
        "pixel changes by, where pixels go from 0 to 1. Random: signs of the same epsilon, drawn "
        "at random. Ranges are 95% intervals."
    )
    words = [_in_words(a) for a in results]
    picture = page.Picture("fooling_rates", curves, caption)
    pictures = [picture]
    if asked.pursues:
        drawn = page.png(robustness.figure(results, asked.method))
        pictures.append(page.Picture("robust_accuracy", drawn, robustness.CAPTION))
        note = f"{note} {robustness.NOTE}"
    sections = [page.Section("In short", words, pictures=pictures, notes=[note])]
    sections += masking.sections(results)
    for number, a in enumerate(results):
        pictures = []
        if a.examples:
            shown = page.png(examples(a))
            pictures = [page.Picture(f"examples_{number}", shown, "Some images under attack")]
        tables = [_rates_for_people(a), *([robustness.table(a.curve)] if a.curve.attacks else [])]
        sections.append(page.Section(a.name, tables=tables, pictures=pictures))
    rows = [[name, show(value)] for name, value in asked.settings().items()]
    sections.append(page.Section("Settings", tables=[page.Table(("parameter", "value"), rows)]))
    names = ", ".join(a.name for a in results)
    title = f"How easily {'is' if len(results) == 1 else 'are'} {names} fooled?"
    count = len(results[0].curve.labels)
    lead = f"{count:,} images, {results[0].where}, by {METHODS[asked.method].words}."
    return page.Report(title, [lead], sections)


def _in_words(a: "Attacked") -> str:
    words = [f"{a.name} classifies {a.clean_accuracy:.1%} of the images as they are correctly."]
    if a.curve.verdict is not None and a.curve.verdict.hidden:
        words.append(f"Warning: {a.curve.verdict.warning}.")
    words += robustness.words(a.curve)
    if a.curve.norm == "l2":
        return " ".join(words)
    told = 0.0
    for limit, what in (
        (4 / 255, "which hardly anybody sees"),
        (16 / 255, "which shows on a close look"),
    ):
        rows = [row for row in a.curve.rows if told < row["epsilon"] <= limit * 1.001]
        if rows:
            told = rows[-1]["epsilon"]
            words.append(
                f"A change of every pixel by {show(told)}, {what}, changes "
                f"{rows[-1]['fooling_rate']:.0%} of the predictions "
                f"({rows[-1]['random_fooling_rate']:.0%} if its signs are drawn at random)."
            )
    median = scalars(a).get("median_smallest_epsilon")
    if median is not None and not a.curve.attacks:
        words.append(f"Half of the predictions change within {255 * median:.1f}/255.")
    return " ".join(words)


def _rates_for_people(a: "Attacked") -> page.Table:
    head = "epsilon", "fooling rate", "random", "accuracy", "mean confidence", "mean l2 norm"
    rate = "{fooling_rate:.3f} ({fooling_rate_low:.3f} to {fooling_rate_high:.3f})"
    cells = rate, "{random_fooling_rate:.3f}", "{accuracy:.3f}", "{confidence:.3f}", "{l2_norm:.2f}"
    rows = [[show(r["epsilon"] or 0), *(c.format_map(r) for c in cells)] for r in a.curve.rows]
    return page.Table(head, rows)


@dataclass(frozen=True)
class FoolingCurve:
    """What the figure of a model under attack shows.

    Attributes:
        name: of the model.
        rows: points with "epsilon", "fooling_rate" and "random_fooling_rate", each rate with its
            interval (_low, _high), in order.
        singular_values: of the perturbations, largest first.
        random_singular_values: of a random matrix whose rows have the same norms.
        smallest: the smallest epsilon of each image, inf where none was found; empty if they were
            not looked for. Their distribution is the whole curve, exactly.
    """

    name: str
    rows: Sequence[Mapping[str, float]]
    singular_values: Sequence[float]
    random_singular_values: Sequence[float]
    smallest: Sequence[float] = ()


def fooling_rates(results: Sequence["Attacked"], method: str) -> Figure:
    """The figure of all models' fooling rates and spectra (Figure 11)."""
    curves = [
        FoolingCurve(
            name=a.name,
            rows=a.curve.rows,
            singular_values=a.singular_values.tolist(),
            random_singular_values=a.random_singular_values.tolist(),
            smallest=() if a.curve.smallest is None else a.curve.smallest.tolist(),
        )
        for a in results
    ]
    count = len(results[0].curve.labels)
    title = f"{method}, {count} images, {results[0].where}"
    return draw_fooling_rates(curves, title, results[0].curve.norm)


def draw_fooling_rates(
    curves: Sequence[FoolingCurve], title: str, norm: BallNorm = "linf"
) -> Figure:
    """Fooling rate against epsilon, the size of the perturbations by a norm, and their spectrum.

    It is drawn as in Figure 11.
    """
    figure = Figure(figsize=(11.5, 4.6), layout="constrained")
    figure.suptitle(title)
    rates, spectrum = figure.subplots(1, 2)
    noise: Any = {"ls": ":", "marker": "", "alpha": 0.9}
    for number, curve in enumerate(curves):
        colour, name = colour_of(number, len(curves)), legible(curve.name)
        draw_rate(rates, curve.rows, "fooling_rate", color=colour, label=name)
        draw_rate(rates, curve.rows, "random_fooling_rate", color=colour, **noise)
        if len(curve.smallest):
            rates.ecdf(curve.smallest, color=colour, ls="-.", lw=1)
        own, other = curve.singular_values, curve.random_singular_values
        spectrum.plot(range(1, len(own) + 1), own, color=colour, label=name)
        spectrum.plot(range(1, len(other) + 1), other, color=colour, ls=":")
    rates.plot([], [], color="grey", ls=":", label="random signs, same epsilon")
    if any(len(curve.smallest) for curve in curves):
        rates.plot([], [], color="grey", ls="-.", label="at this epsilon or a smaller one")
    spectrum.plot([], [], color="grey", ls=":", label="random matrix, same row norms")
    rates.set(xlabel=robustness.axis(norm), ylim=(-0.02, 1.02))
    rates.set_ylabel("fooling rate (bands: 95% interval)")
    largest = max(row["epsilon"] for curve in curves for row in curve.rows)
    _spread_small_epsilons(rates, largest, in_levels=norm == "linf")
    spectrum.set(xlabel="index", ylabel="singular value", xscale="log")
    spectrum.set_title("gradient signs as rows of norm 1", fontsize="medium")
    spectrum.set_ylim(bottom=0)
    for axes in (rates, spectrum):
        axes.grid(alpha=0.3)
        axes.legend()
    return figure


def _spread_small_epsilons(axes: Axes, largest: float, *, in_levels: bool) -> None:
    """Axes that grow with the square root, since most happens at small epsilons."""
    marks: tuple[float, ...] = (0, 0.005, 0.02, 0.05, 0.1, 0.2, 0.3, 0.5, 1, 2, 5, 10, 20, 50, 100)
    scales = [(axes, largest, marks)]
    if in_levels:
        levels = axes.twiny()
        levels.set_xlabel("epsilon in levels of 255")
        scales.append((levels, 255 * largest, (0, 1, 4, 8, 16, 32, 64, 128, 255)))
    for scaled, top, all_ticks in scales:
        scaled.set_xscale("function", functions=(_root, np.square))
        scaled.set_xlim(0, top)
        ticks = [tick for tick in all_ticks if tick <= top]
        scaled.set_xticks(ticks, labels=[f"{tick:g}" for tick in ticks])


def _root(epsilon: Any) -> Any:
    return np.sqrt(np.maximum(epsilon, 0))


@dataclass(frozen=True)
class ExampleRow:
    """One image under attack: how it was, the perturbation's direction, what became of it."""

    label: str  # name of its true class
    direction: np.ndarray  # (H, W, C), from -1 to 1
    views: Sequence[ExampleView]  # the clean image, then one for each epsilon, in order


def examples(attacked: "Attacked") -> Figure:
    """The figure of one model's examples (Table III)."""
    rows = [_example_row(example, attacked.class_names) for example in attacked.examples]
    epsilons = [shown.epsilon for shown in attacked.examples[0].shown[1:]]
    return draw_examples(rows, epsilons, f"{legible(attacked.name)}, {attacked.where}")


def _example_row(example: "Example", names: Sequence[str]) -> ExampleRow:
    away = "\n(moved away from\nits prediction)" if example.from_prediction else ""
    views = [
        ExampleView(
            s.image,
            f"{caption(names[s.predicted])} {s.confidence:.0%}",
            s.predicted == example.label,
        )
        for s in example.shown
    ]
    return ExampleRow(caption(names[example.label]) + away, example.direction, views)


def draw_examples(rows: Sequence[ExampleRow], epsilons: Sequence[float], title: str) -> Figure:
    """Clean image, sign of the gradient and perturbed images side by side, as in Table III.

    Args:
        rows: one for each image.
        epsilons: of the views after the clean one.
        title: says which model and attack.
    """
    columns = ["clean", "sign of\nthe gradient", *(f"epsilon {show(e)}" for e in epsilons)]
    size = 1.75
    figsize = size * len(columns), size * 1.15 * len(rows) + 0.9
    figure = Figure(figsize=figsize, layout="constrained")
    figure.suptitle(f"{title}\ncaptions: predicted class and confidence, green where it is right")
    grid = figure.subplots(len(rows), len(columns), squeeze=False)
    for axes, name in zip(grid[0], columns, strict=True):
        axes.set_title(name, fontsize="medium")
    for row, line in zip(rows, grid, strict=True):
        line[0].set_ylabel(row.label)
        draw_image(line[1], 0.5 + 0.5 * row.direction)
        for axes, view in zip([line[0], *line[2:]], row.views, strict=True):
            draw_view(axes, view)
    return figure
