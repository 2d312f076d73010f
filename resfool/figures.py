"""Every figure: rows in, a matplotlib Figure out. Nothing here computes or logs."""

from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FormatStrFormatter

_LINES: dict[str, dict[str, Any]] = {
    "train": {"color": "tab:blue", "label": "training (average of 100 steps)"},
    "train_adversarial": {"color": "tab:red", "ls": "--", "label": "training, adversarial"},
    "test": {"color": "tab:orange", "label": "test"},
}


def accuracy_curves(history: Sequence[Mapping[str, float]], title: str) -> Figure:
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


def _draw(axes: Axes, history: Sequence[Mapping[str, float]], quantity: str) -> None:
    for split, style in _LINES.items():
        key = f"{split}_{quantity}"
        points = [(row["step"], row[key]) for row in history if key in row]
        if not points:
            continue
        marker = "o" if split == "test" or len(points) < 3 else ""
        steps, values = zip(*points, strict=True)
        axes.plot(steps, values, marker=marker, **style)
    axes.set_xlabel("training step")
    axes.grid(alpha=0.3)
