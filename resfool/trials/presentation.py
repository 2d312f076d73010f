"""Sweeps and tunings as tables and figures."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.ticker import MaxNLocator

from resfool.monitor import Leaves
from resfool.report.drawing import Figure
from resfool.training.presentation import trainings
from resfool.values import show
from resfool.wording import sentence

if TYPE_CHECKING:
    from resfool.trials.sweep import SweptTraining
    from resfool.trials.tune import Tuning


def sweep_leaves(swept: Sequence["SweptTraining"]) -> Leaves:
    """What a sweep leaves: its trainings, its networks and their curves (Figures 3 to 6)."""
    table = pd.DataFrame(
        {"network": each.network}
        | {name: getattr(each.asked, name) for name in ("arch", "depth", "seed")}
        | dict(each.metrics)
        | {"reused": each.reused, "error": sentence(each.error)}
        for each in swept
    )
    curves = {name: [each.curve for each in ended] for name, ended in _by_network(swept).items()}
    figure = trainings(curves, swept[0].asked.dataset)
    return {"trainings": table, "networks": _networks_table(swept), "trainings.png": figure}


def tuning_leaves(found: "Tuning", title: str) -> Leaves:
    """What a tuning leaves: its trials, and what they say of the settings."""
    table = pd.DataFrame(
        {"trial": trial.number}
        | trial.settings
        | {"validation_accuracy": trial.value, "pruned": trial.pruned, "seconds": trial.seconds}
        for trial in found.tried
    )
    values, pruned, settings = (
        [getattr(trial, name) for trial in found.tried] for name in ("value", "pruned", "settings")
    )
    figure = draw_tuning(values, pruned, found.importances, settings, title)
    return {"trials": table, "tuning.png": figure}


def _networks_table(swept: Sequence["SweptTraining"]) -> pd.DataFrame:
    """A sweep's networks, a row for each: means and standard deviations over the seeds."""
    rows = []
    for network, ended in _by_network(swept).items():
        metrics = pd.DataFrame([dict(each.metrics) for each in ended])
        final = metrics[sorted(n for n in metrics if n.startswith("final_"))]
        spread = final.std().add_suffix("_std")
        rows.append({"network": network, "seeds": len(ended)} | dict(final.mean()) | dict(spread))
    return pd.DataFrame(rows)


def sweep_summary(swept: Sequence["SweptTraining"]) -> str:
    """A sweep's networks for the terminal."""
    table = _networks_table(swept)
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


def tuning_summary(tuning: "Tuning") -> str:
    """A tuning for the terminal."""
    pruned = sum(trial.pruned for trial in tuning.tried)
    lines = [
        f"trials          {len(tuning.tried)}, of which {pruned} were pruned",
        f"best            {tuning.value:.4f} of the validation images",
    ]
    width = max(14, 1 + max(map(len, tuning.best), default=0))
    lines += [f"  {name:<{width}}{show(value)}" for name, value in tuning.best.items()]
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


def draw_tuning(
    values: Sequence[float],
    pruned: Sequence[bool],
    importances: Mapping[str, float],
    settings: Sequence[Mapping[str, Any]],
    title: str,
) -> Figure:
    """A search: accuracy by trial, what explains it, and all trials in parallel coordinates.

    Args:
        values: validation accuracy of each trial, the last one before it if it was pruned.
        pruned: whether each trial was.
        importances: by setting, the share of the accuracy's variance that it explains.
        settings: that each trial tried, the same ones everywhere.
        title: says which network and data set.
    """
    figure = Figure(figsize=(12, 8.5), layout="constrained")
    figure.suptitle(title)
    grid = figure.add_gridspec(2, 2)
    _draw_history(figure.add_subplot(grid[0, 0]), values, pruned)
    bars = figure.add_subplot(grid[0, 1])
    names = list(importances)[::-1]
    bars.barh(names, [importances[name] for name in names], color="tab:blue")
    bars.set(xlabel="share of the accuracy's variance that it explains", xlim=(0, 1))
    bars.set_title("what mattered" if names else "too few finished trials to say what mattered")
    _draw_coordinates(figure, figure.add_subplot(grid[1, :]), values, pruned, settings)
    return figure


def _draw_history(axes: Axes, values: Sequence[float], pruned: Sequence[bool]) -> None:
    numbers, cut = np.arange(len(values)), np.asarray(pruned, bool)
    accuracies = np.asarray(values, float)
    axes.plot(numbers[~cut], accuracies[~cut], "o", color="tab:blue", label="finished")
    axes.plot(numbers[cut], accuracies[cut], "x", color="grey", label="pruned, where it stood")
    best = np.maximum.accumulate(np.where(cut, -np.inf, accuracies))
    best = np.where(np.isfinite(best), best, np.nan)
    axes.step(numbers, best, where="post", color="tab:red", label="best")
    axes.set(xlabel="trial", ylabel="validation accuracy", title="history")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.grid(alpha=0.3)
    axes.legend()


def _draw_coordinates(
    figure: Figure,
    axes: Axes,
    values: Sequence[float],
    pruned: Sequence[bool],
    settings: Sequence[Mapping[str, Any]],
) -> None:
    """A line for each trial through its settings, coloured by its accuracy."""
    names = list(settings[0]) if settings else []
    heights = np.empty((len(settings), len(names)))
    for column, name in enumerate(names):
        tried = [one[name] for one in settings]
        heights[:, column], marks = _heights(tried)
        for height, mark in marks:
            beside: Any = {"xytext": (4, 0), "textcoords": "offset points", "va": "center"}
            axes.annotate(mark, (column, height), fontsize="small", **beside)
    finished = [value for value, cut in zip(values, pruned, strict=True) if not cut]
    finished = finished or list(values) or [0.0]
    scale = ScalarMappable(Normalize(min(finished), max(finished)), "viridis")
    lines = zip(heights, values, pruned, strict=True)
    for row, value, cut in sorted(lines, key=lambda each: (not each[2], each[1])):
        colour = "lightgrey" if cut else scale.to_rgba(np.asarray(value))
        axes.plot(range(len(names)), row, color=colour, lw=0.8 if cut else 1.5)
    axes.set_xticks(range(len(names)), labels=names)
    axes.set(yticks=[], ylim=(-0.05, 1.05), title="all trials (grey: pruned)")
    for column in range(len(names)):
        axes.axvline(column, color="black", lw=0.6)
    figure.colorbar(scale, ax=axes, label="validation accuracy")


def _heights(tried: Sequence[Any]) -> tuple[np.ndarray, list[tuple[float, str]]]:
    """Where on an axis from 0 to 1 values stand, and what is written on it."""
    if any(isinstance(value, str) for value in tried) or len(set(tried)) <= 5:
        kinds = sorted(set(tried))
        places = {kind: i / max(1, len(kinds) - 1) for i, kind in enumerate(kinds)}
        return np.array([places[v] for v in tried]), [(places[k], str(k)) for k in kinds]
    numbers = np.asarray(tried, float)
    wide = bool((numbers > 0).all() and numbers.max() / numbers.min() > 20)
    along = np.log(numbers) if wide else numbers
    low, high = float(along.min()), float(along.max())
    shown = [f"{np.exp(end) if wide else end:.2g}" for end in (low, high)]
    return (along - low) / max(high - low, 1e-12), [(0.0, shown[0]), (1.0, shown[1])]
