"""Trainings as figures."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import FormatStrFormatter

from resfool.monitor import Leaves
from resfool.report.drawing import Figure, colour_of
from resfool.values import Row

_LINES: dict[str, dict[str, Any]] = {
    "train": {"color": "tab:blue", "label": "training (average of 100 steps)"},
    "train_adversarial": {"color": "tab:red", "ls": "--", "label": "training, adversarial"},
    "validation": {"color": "tab:green", "label": "validation"},
    "test": {"color": "tab:orange", "label": "test"},
}


def leaves(network: str, data: str, history: Sequence[Row]) -> Leaves:
    """What a training leaves beside its model.

    Args:
        network: its name.
        data: the data set's name.
        history: its curve.
    """
    return {"accuracy_curves.png": accuracy_curves(history, f"{network} on {data}")}


def accuracy_curves(history: Sequence[Row], title: str) -> Figure:
    """Accuracy and loss against the step, for training and test, as in the paper's Figure 3.

    Args:
        history: points with "step" and any of {train,train_adversarial,test}_{accuracy,loss},
            in order.
        title: says which network and data set.

    Returns:
        A figure of two panels.
    """
    figure = Figure(figsize=(11, 4.2), layout="constrained")
    figure.suptitle(title)
    accuracy, loss = figure.subplots(1, 2)
    _draw(accuracy, history, "accuracy")
    accuracy.set(ylabel="accuracy", ylim=(None, 1.0))
    accuracy.legend()
    _draw(loss, history, "loss")
    loss.set(ylabel="cross-entropy loss (nats)", yscale="log")
    for axis_ticks in (loss.yaxis.set_major_formatter, loss.yaxis.set_minor_formatter):
        axis_ticks(FormatStrFormatter("%g"))
    loss.legend()
    return figure


def trainings(
    curves: Mapping[str, Sequence[Sequence[Row]]],
    title: str,
    printed: Mapping[str, tuple[float, float]] | None = None,
) -> Figure:
    """Accuracies of several networks against the step, as in the paper's Figures 3 to 6.

    Args:
        curves: by the network's name, the histories of its trainings, one for each seed, with
            points as in `accuracy_curves`.
        title: says which data set.
        printed: the paper's final accuracies by the network's name, training and test, drawn as
            stars at the end.

    Returns:
        A figure of two panels: training on the left, test (or validation) on the right. Lines are
        means over the seeds, bands go from the lowest to the highest.
    """
    figure = Figure(figsize=(12, 4.6), layout="constrained")
    figure.suptitle(title)
    panels = figure.subplots(1, 2, sharey=True)
    everything = [row for histories in curves.values() for one in histories for row in one]
    judged = next(
        (p for p in ("test", "validation") if any(f"{p}_accuracy" in r for r in everything)), "test"
    )
    for axes, part in zip(panels, ("train", judged), strict=True):
        for number, (name, histories) in enumerate(curves.items()):
            colour = colour_of(number, len(curves))
            by_step: dict[float, list[float]] = {}
            for row in (row for history in histories for row in history):
                if f"{part}_accuracy" in row:
                    by_step.setdefault(row["step"], []).append(row[f"{part}_accuracy"])
            steps = sorted(by_step)
            means = [float(np.mean(by_step[step])) for step in steps]
            seeds = f" ({len(histories)} seeds)" if len(histories) > 1 else ""
            marker = "o" if part == judged or len(steps) < 3 else ""
            axes.plot(steps, means, color=colour, marker=marker, ms=3, label=f"{name}{seeds}")
            low, high = ([end(by_step[step]) for step in steps] for end in (min, max))
            axes.fill_between(steps, low, high, color=colour, alpha=0.15, lw=0)
            if printed is not None and name in printed and steps:
                final = printed[name][part == judged]
                axes.plot(steps[-1], final, "*", color=colour, ms=13, mec="black", mew=0.6)
        if printed:
            axes.plot([], [], "*", color="white", ms=13, mec="black", label="printed in the paper")
        axes.set(
            xlabel="training step",
            title="training, average of 100 steps" if part == "train" else part,
        )
        axes.grid(alpha=0.3)
        if len(curves) <= 10 and axes.get_legend_handles_labels()[0]:
            axes.legend(loc="lower right")  # where learning curves are not
    if len(curves) > 10:
        figure.legend(*panels[0].get_legend_handles_labels(), loc="outside right center")
    several = any(len(histories) > 1 for histories in curves.values())
    panels[0].set_ylabel("accuracy" + " (bands: all seeds)" * several)
    return figure


def _draw(axes: Axes, history: Sequence[Row], quantity: str) -> None:
    for split, style in _LINES.items():
        key = f"{split}_{quantity}"
        points = [(row["step"], row[key]) for row in history if key in row]
        if not points:
            continue
        marker = "o" if split in ("validation", "test") or len(points) < 3 else ""
        steps, values = zip(*points, strict=True)
        axes.plot(steps, values, marker=marker, **style)
    axes.set_xlabel("training step")
    axes.grid(alpha=0.3)
