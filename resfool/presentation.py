"""Results as tables and figures: what an entry point logs, and MLflow's evaluation returns."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from resfool import figures, report
from resfool.attacks import lowrank
from resfool.figures import ExampleRow, ExampleView, FoolingCurve, UniversalRow
from resfool.parameters import epsilon_name, show

if TYPE_CHECKING:  # it needs TensorFlow, which isn't imported before the input is checked
    from resfool.attacks.minimal import Minimal
    from resfool.evaluation import Attacked, Example, Shown
    from resfool.experiments import SweptTraining, Transfer, Tuning, Universal


def rates_table(results: Sequence["Attacked"]) -> pd.DataFrame:
    """All rates of some models, a row for each model and epsilon."""
    rows = [{"model": a.name} | row for a in results for row in a.sweep.rows]
    return pd.DataFrame(rows)


def images_table(attacked: "Attacked") -> pd.DataFrame:
    """What became of each image: its class, the predictions, and its smallest epsilon if known."""
    sweep = attacked.sweep
    names = np.asarray(attacked.class_names)
    table = pd.DataFrame(
        {
            "label": names[sweep.labels],
            "predicted": names[sweep.clean.classes[0]],
            "confidence": sweep.clean.confidences[0],
        }
    )
    for epsilon, classes in zip(sweep.epsilons, sweep.attacked.classes, strict=True):
        if epsilon > 0:
            table[f"at_{epsilon_name(epsilon)}"] = names[classes]
    if sweep.smallest is not None:
        table["smallest_epsilon"] = sweep.smallest
    return table


def summary(results: Sequence["Attacked"], epsilons: int = 8) -> str:
    """A table for the terminal: fooling rate of each model, and of random signs, at some epsilons.

    Args:
        results: one for each model.
        epsilons: how many of their epsilons to show.

    Returns:
        Lines of text.
    """
    all_rows = results[0].sweep.rows
    picked = np.unique(np.linspace(0, len(all_rows) - 1, epsilons).round().astype(int))
    width = max(len("epsilon"), *(len(f"{a.name}, random signs") for a in results))
    head = [f"{show(all_rows[i]['epsilon'] or 0):>8.7}" for i in picked]
    lines = [f"{'epsilon':<{width}}  accuracy {''.join(head)}   <- fooling rate"]
    for a in results:
        for label, key in (
            (a.name, "fooling_rate"),
            (f"{a.name}, random signs", "random_fooling_rate"),
        ):
            values = "".join(f"{a.sweep.rows[i][key]:>8.3f}" for i in picked)
            accuracy = f"{a.clean_accuracy:8.3f}" if key == "fooling_rate" else " " * 8
            lines.append(f"{label:<{width}}  {accuracy} {values}")
    return "\n".join(lines)


def scalars(attacked: "Attacked") -> dict[str, float]:
    """A model's figures that belong to no single epsilon."""
    found = {
        "clean_accuracy": attacked.clean_accuracy,
        "zero_gradient_share": attacked.sweep.zero_gradient_share,
        "energy_of_10_directions": lowrank.energy(attacked.singular_values, 10),
        "random_energy_of_10_directions": lowrank.energy(attacked.random_singular_values, 10),
    }
    smallest = attacked.sweep.smallest
    if smallest is not None and np.isfinite(np.median(smallest)):
        found["median_smallest_epsilon"] = float(np.median(smallest))
    return found


def spectrum_table(attacked: "Attacked") -> pd.DataFrame:
    """Singular values of the gradient signs, and of a random matrix, largest first."""
    return pd.DataFrame(
        {
            "index": range(1, len(attacked.singular_values) + 1),
            "singular_value": attacked.singular_values,
            "random_singular_value": attacked.random_singular_values,
        }
    )


def model_metrics(attacked: "Attacked") -> dict[str, float]:
    """A model's figures under names of their own, such as fooling_rate_at_8_255."""
    return scalars(attacked) | {
        f"{name}_at_{epsilon_name(row['epsilon'])}": row[name]
        for row in attacked.sweep.rows
        for name in ("fooling_rate", "error_rate", "accuracy", "random_fooling_rate")
        if row["epsilon"] > 0
    }


def fooling_rates(results: Sequence["Attacked"], method: str) -> Figure:
    """The figure of all models' fooling rates and spectra (Figure 11)."""
    curves = [
        FoolingCurve(
            name=a.name,
            rows=a.sweep.rows,
            singular_values=a.singular_values.tolist(),
            random_singular_values=a.random_singular_values.tolist(),
            smallest=() if a.sweep.smallest is None else a.sweep.smallest.tolist(),
        )
        for a in results
    ]
    count = len(results[0].sweep.labels)
    return figures.fooling_rates(curves, f"{method}, {count} images, {results[0].where}")


_INVISIBLE, _VISIBLE = 4 / 255, 16 / 255  # changes that hardly anybody sees, and that many do


def robustness_report(results: Sequence["Attacked"], settings: Mapping[str, Any]) -> report.Report:
    """How easily some models are fooled, for people.

    Args:
        results: one for each model.
        settings: arguments of `attack`.

    Returns:
        A report.
    """
    method = settings["method"]
    names = ", ".join(a.name for a in results)
    count = len(results[0].sweep.labels)
    curves = report.png(fooling_rates(results, method))
    caption = (
        "Fooling rate against the size of the perturbation, and the spectrum of gradient signs"
    )
    sections = [
        report.Section(
            "In short",
            [_robustness_in_words(a) for a in results],
            pictures=[report.Picture("fooling_rates", curves, caption)],
            notes=[
                "Fooling rate: share of the images whose predicted class changes. Epsilon: the "
                "most that a pixel changes by, where pixels go from 0 to 1. Random: signs of the "
                "same epsilon, drawn at random. Ranges are 95% intervals."
            ],
        )
    ]
    for number, a in enumerate(results):
        pictures = []
        if a.examples:
            shown = report.png(examples(a))
            pictures = [report.Picture(f"examples_{number}", shown, "Some images under attack")]
        sections.append(report.Section(a.name, tables=[_rates_for_people(a)], pictures=pictures))
    rows = [[name, show(value)] for name, value in settings.items()]
    sections.append(report.Section("Settings", tables=[report.Table(("parameter", "value"), rows)]))
    words = f"{count:,} images, {results[0].where}, by {_METHODS[method]}."
    title = f"How easily {'is' if len(results) == 1 else 'are'} {names} fooled?"
    return report.Report(title, [words], sections)


_METHODS = {
    "fgsm": "the fast gradient sign",
    "smallest_epsilon": "the fast gradient sign, and the smallest step along it",
    "pgd": "projected gradient descent",
}


def _robustness_in_words(a: "Attacked") -> str:
    """What a model's rates come to."""
    words = [f"{a.name} classifies {a.clean_accuracy:.1%} of the images as they are correctly."]
    rows = [row for row in a.sweep.rows if row["epsilon"] > 0]
    told = 0.0
    for limit, what in (
        (_INVISIBLE, "which hardly anybody sees"),
        (_VISIBLE, "which shows on a close look"),
    ):
        row = max(
            (row for row in rows if row["epsilon"] <= limit * 1.001),
            key=lambda row: row["epsilon"],
            default=None,
        )
        if row is not None and row["epsilon"] > told:
            told = row["epsilon"]
            words.append(
                f"A change of every pixel by {show(row['epsilon'])}, {what}, changes "
                f"{row['fooling_rate']:.0%} of the predictions ({row['random_fooling_rate']:.0%} "
                "if its signs are drawn at random)."
            )
    median = scalars(a).get("median_smallest_epsilon")
    if median is not None:
        words.append(f"Half of the predictions change within {255 * median:.1f}/255.")
    return " ".join(words)


def _rates_for_people(a: "Attacked") -> report.Table:
    rows = []
    for row in a.sweep.rows:
        low, high = row["fooling_rate_low"], row["fooling_rate_high"]
        rows.append(
            [
                show(row["epsilon"] or 0),
                f"{row['fooling_rate']:.3f} ({low:.3f} to {high:.3f})",
                f"{row['random_fooling_rate']:.3f}",
                f"{row['accuracy']:.3f}",
                f"{row['confidence']:.3f}",
                f"{row['l2_norm']:.2f}",
            ]
        )
    head = "epsilon", "fooling rate", "random", "accuracy", "mean confidence", "mean l2 norm"
    return report.Table(head, rows)


def examples(attacked: "Attacked") -> Figure:
    """The figure of one model's examples (Table III)."""
    names = attacked.class_names
    rows = [
        ExampleRow(_row_label(e, names), e.direction, [_view(e, shown, names) for shown in e.shown])
        for e in attacked.examples
    ]
    epsilons = [shown.epsilon for shown in attacked.examples[0].shown[1:]]
    return figures.examples(rows, epsilons, f"{attacked.name}, {attacked.where}")


def _row_label(example: "Example", names: Sequence[str]) -> str:
    away = "\n(moved away from\nits prediction)" if example.from_prediction else ""
    return names[example.label] + away


def _view(example: "Example", shown: "Shown", names: Sequence[str]) -> ExampleView:
    caption = f"{names[shown.predicted]} {shown.confidence:.0%}"
    return ExampleView(shown.image, caption, shown.predicted == example.label)


def solved_table(solved: "Minimal") -> pd.DataFrame:
    """How each fitting image's smallest perturbation was found, in the order of the matrix."""
    return pd.DataFrame(
        {
            "image": range(len(solved.norms)),
            "flipped": solved.flipped,
            "l2_norm": solved.norms,
            "evaluations": solved.evaluations,
            "seconds": solved.seconds,
        }
    )


def solved_metrics(solved: "Minimal") -> dict[str, float]:
    """The smallest perturbations in a few figures; norms are those of the images that flipped."""
    norms = solved.norms[solved.flipped]
    found = {
        "flipped_share": float(solved.flipped.mean()),
        "evaluations_per_image": float(solved.evaluations.mean()),
        "seconds_per_image": float(solved.seconds.mean()),
    }
    if len(norms):
        found |= {"mean_l2_norm": float(norms.mean()), "median_l2_norm": float(np.median(norms))}
    return found


def universal_title(result: "Universal") -> str:
    """What a universal perturbation's figures are called."""
    s = result.settings
    by_matrix = f", coefficients {s['coefficients']}" if result.ranked is not None else ""
    solver = f" ({s['solver']})" if s["algorithm"] in ("1", "2") else ""
    return f"algorithm {s['algorithm']}{solver}{by_matrix}, {result.name}, {result.where}"


def universal_rates(result: "Universal") -> Figure | None:
    """The figure of fooling rates over the rank, and of the spectrum (Figure 7)."""
    if result.ranked is None or result.singular_values is None:
        return None
    values, random = (v.tolist() for v in result.singular_values)
    norm, equal_norm = (show(result.settings[name]) for name in ("norm", "equal_norm"))
    return figures.universal_rates(
        result.ranked.rows, norm, equal_norm, (values, random), universal_title(result)
    )


def universal_pictures(result: "Universal") -> Figure:
    """The figure of the perturbation and of images under it (Figures 8 to 10)."""
    v, names = result.verdict, result.class_names
    rows = []
    for number, pictures in zip(v.shown, v.pictures, strict=True):
        predicted = [v.clean[number], v.fooled[number], v.random[number]]
        views = [
            ExampleView(picture, names[one], one == predicted[0])
            for picture, one in zip(pictures, predicted, strict=True)
        ]
        rows.append(UniversalRow(names[predicted[0]], (views[0], views[1], views[2])))
    rates = v.rates
    title = (
        f"{universal_title(result)}\nl2 norm {rates['final_l2_norm']:.3g}, fools "
        f"{rates['final_fooling_rate']:.1%}, the random one "
        f"{rates['final_random_fooling_rate']:.1%}"
    )
    return figures.universal_pictures(v.vector, v.noise, rows, title)


def universal_confusion(result: "Universal") -> Figure:
    """The figure of the classes that everything falls into."""
    counts = result.verdict.confusion(len(result.class_names))
    return figures.confusion(counts, result.class_names, universal_title(result))


def universal_summary(result: "Universal") -> str:
    """A universal perturbation for the terminal."""
    lines = []
    if result.solved is not None:
        of = solved_metrics(result.solved)
        lines.append(
            f"solved          {of['flipped_share']:.1%} flipped, mean l2 norm "
            f"{of.get('mean_l2_norm', np.nan):.3f}, {of['seconds_per_image']:.4f} s and "
            f"{of['evaluations_per_image']:.0f} passes each"
        )
    if result.ranked is not None:
        lines.append(f"{'rank':>6}{'l2 norm':>9}{'fooled':>8}{'random':>8}   {'at equal norm':>13}")
        for row in result.ranked.rows:
            lines.append(
                f"{row['rank']:>6.0f}{row['l2_norm']:>9.2f}{row['fooling_rate']:>8.3f}"
                f"{row['random_fooling_rate']:>8.3f}   {row['equal_fooling_rate']:>13.3f}"
            )
    rates = result.verdict.rates
    lines.append(
        f"fooling rate    {rates['final_fooling_rate']:.4f}  "
        f"(clipped {rates['final_clipped_fooling_rate']:.4f}, "
        f"Gaussian of the same norm {rates['final_random_fooling_rate']:.4f})"
    )
    sizes = rates["final_l2_norm"], rates["final_linf_norm"]
    lines.append(f"norm            l2 {sizes[0]:.3f}, l-infinity {sizes[1]:.4f}")
    return "\n".join(lines)


def trainings_table(swept: Sequence["SweptTraining"]) -> pd.DataFrame:
    """A sweep's trainings, a row for each."""
    settings = ("arch", "depth", "seed")
    return pd.DataFrame(
        {"network": each.network}
        | {name: each.settings[name] for name in settings}
        | dict(each.metrics)
        | {"reused": each.reused, "error": each.error}
        for each in swept
    )


def networks_table(swept: Sequence["SweptTraining"]) -> pd.DataFrame:
    """A sweep's networks, a row for each: means and standard deviations over the seeds."""
    rows = []
    for network, trainings in _by_network(swept).items():
        metrics = pd.DataFrame([dict(each.metrics) for each in trainings])
        final = metrics[sorted(n for n in metrics if n.startswith("final_"))]
        spread = final.std().add_suffix("_std")
        rows.append(
            {"network": network, "seeds": len(trainings)} | dict(final.mean()) | dict(spread)
        )
    return pd.DataFrame(rows)


def trainings_figure(swept: Sequence["SweptTraining"], where: str) -> Figure:
    """The figure of a sweep's accuracies (Figures 3 to 6)."""
    curves = {
        network: [each.curve for each in trainings]
        for network, trainings in _by_network(swept).items()
    }
    return figures.trainings(curves, where)


def sweep_summary(swept: Sequence["SweptTraining"]) -> str:
    """A sweep's networks for the terminal."""
    table = networks_table(swept)
    figure_names = [n for n in table if str(n).endswith("_accuracy")]
    lines = [f"{'network':<16}{'seeds':>6}" + "".join(f"{n[6:]:>24}" for n in figure_names)]
    for _, row in table.iterrows():
        cells = (
            f"{row[n]:.4f}" + (f" +- {row[f'{n}_std']:.4f}" if row["seeds"] > 1 else "")
            for n in figure_names
        )
        lines.append(
            f"{row['network']:<16}{row['seeds']:>6}" + "".join(f"{cell:>24}" for cell in cells)
        )
    return "\n".join(lines)


def trials_table(tuning: "Tuning") -> pd.DataFrame:
    """A tuning's trials, a row for each."""
    return pd.DataFrame(
        {"trial": trial.number}
        | trial.settings
        | {
            "validation_accuracy": trial.value,
            "pruned": trial.pruned,
            "seconds": trial.seconds,
        }
        for trial in tuning.tried
    )


def tuning_figure(tuning: "Tuning", title: str) -> Figure:
    """The figure of a tuning: its history, what mattered, and all trials side by side."""
    values = [trial.value for trial in tuning.tried]
    pruned = [trial.pruned for trial in tuning.tried]
    settings = [trial.settings for trial in tuning.tried]
    return figures.tuning(values, pruned, tuning.importances, settings, title)


def tuning_summary(tuning: "Tuning") -> str:
    """A tuning for the terminal."""
    pruned = sum(trial.pruned for trial in tuning.tried)
    lines = [
        f"trials          {len(tuning.tried)}, of which {pruned} were pruned",
        f"best            {tuning.value:.4f} of the validation images",
    ]
    lines += [f"  {name:<14}{show(value)}" for name, value in tuning.best.items()]
    if tuning.importances:
        shares = ", ".join(f"{name} {share:.0%}" for name, share in tuning.importances.items())
        lines.append(f"what mattered   {shares}")
    lines += ["train the best on all training images, and test it, with", tuning.command]
    return "\n".join(lines)


def _by_network(swept: Sequence["SweptTraining"]) -> dict[str, list["SweptTraining"]]:
    """The trainings that ended well, by the name of their network."""
    found: dict[str, list[SweptTraining]] = {}
    for each in swept:
        if each.metrics:
            found.setdefault(each.network, []).append(each)
    return found


def transfer_table(result: "Transfer") -> pd.DataFrame:
    """All rates of perturbations on models, a row for each pair."""
    rows = []
    for p, perturbation in enumerate(result.perturbations):
        norms = {"l2_norm": result.l2_norms[p], "linf_norm": result.linf_norms[p]}
        for m, model in enumerate(result.models):
            rates = {key: values[p, m] for key, values in result.rates.items()}
            rows.append({"perturbation": perturbation, "model": model} | norms | rates)
    return pd.DataFrame(rows)


def transfer_figure(result: "Transfer") -> Figure:
    """The figure of fooling rates, perturbations by models."""
    rows = [
        f"{name}\nl2 norm {l2:.3g}"
        for name, l2 in zip(result.perturbations, result.l2_norms, strict=True)
    ]
    fooling, noise = (result.rates[f"{kind}fooling_rate"] for kind in ("", "random_"))
    title = f"fooling rates of universal perturbations\n{result.images} images, {result.where}"
    return figures.transfer(fooling, noise, rows, result.models, title)


def transfer_summary(result: "Transfer") -> str:
    """The fooling rates of perturbations on models, for the terminal."""
    kinds = ("", ""), ("clipped_", "  clipped"), ("random_", "  Gaussian of the same l2 norm")
    width = max(len(text) for text in (*result.perturbations, kinds[-1][1]))
    columns = [max(len(name), 6) + 2 for name in result.models]
    names = "".join(f"{n:>{w}}" for n, w in zip(result.models, columns, strict=True))
    lines = [f"{'fooling rate':<{width}}  l2 norm{names}"]
    for p, perturbation in enumerate(result.perturbations):
        for kind, text in kinds:
            rates = result.rates[f"{kind}fooling_rate"][p]
            cells = "".join(f"{r:>{w}.3f}" for r, w in zip(rates, columns, strict=True))
            l2 = " " * 9 if kind else f"{result.l2_norms[p]:>9.3f}"
            lines.append(f"{text or perturbation:<{width}}{l2}{cells}")
    return "\n".join(lines)
