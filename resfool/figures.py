"""Every figure: rows in, a matplotlib Figure out. Nothing here computes or logs."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.ticker import FormatStrFormatter, MaxNLocator

from resfool.parameters import show

_MOST_CLASSES = 40  # that a confusion matrix can show
_LINES: dict[str, dict[str, Any]] = {
    "train": {"color": "tab:blue", "label": "training (average of 100 steps)"},
    "train_adversarial": {"color": "tab:red", "ls": "--", "label": "training, adversarial"},
    "validation": {"color": "tab:green", "label": "validation"},
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


def trainings(
    curves: Mapping[str, Sequence[Sequence[Mapping[str, float]]]],
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
            colour = _colour(number, len(curves))
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
        if len(curves) <= 10:
            axes.legend(loc="lower right")  # where learning curves are not
    if len(curves) > 10:
        figure.legend(*panels[0].get_legend_handles_labels(), loc="outside right center")
    several = any(len(histories) > 1 for histories in curves.values())
    panels[0].set_ylabel("accuracy" + " (bands: all seeds)" * several)
    return figure


def _colour(number: int, count: int) -> Any:
    """One of up to 20 colours that can be told apart."""
    return f"C{number}" if count <= 10 else colormaps["tab20"](number % 20)


def tuning(
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

    Returns:
        A figure of two panels and a wide one below them.
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
    axes.step(
        numbers,
        np.where(np.isfinite(best), best, np.nan),
        where="post",
        color="tab:red",
        label="best",
    )
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
            axes.annotate(
                mark,
                (column, height),
                fontsize="small",
                xytext=(4, 0),
                textcoords="offset points",
                va="center",
            )
    finished = (
        [v for v, cut in zip(values, pruned, strict=True) if not cut] or list(values) or [0.0]
    )
    scale = ScalarMappable(Normalize(min(finished), max(finished)), "viridis")
    for row, value, cut in sorted(
        zip(heights, values, pruned, strict=True), key=lambda each: (not each[2], each[1])
    ):
        style: dict[str, Any] = (
            {"color": "lightgrey", "lw": 0.8}
            if cut
            else {"color": scale.to_rgba(np.asarray(value)), "lw": 1.5}
        )
        axes.plot(range(len(names)), row, **style)
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
    marks = [
        (end, f"{np.exp(value) if wide else value:.2g}") for end, value in ((0.0, low), (1.0, high))
    ]
    return (along - low) / max(high - low, 1e-12), marks


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


def fooling_rates(curves: Sequence[FoolingCurve], title: str) -> Figure:
    """Fooling rate against epsilon and the spectrum of the perturbations, as in Figure 11.

    Args:
        curves: one for each model.
        title: says which attack and images.

    Returns:
        A figure of two panels.
    """
    figure = Figure(figsize=(11.5, 4.6), layout="constrained")
    figure.suptitle(title)
    rates, spectrum = figure.subplots(1, 2)
    for number, curve in enumerate(curves):
        colour = _colour(number, len(curves))
        _draw_rate(rates, curve.rows, "fooling_rate", color=colour, label=curve.name)
        _draw_rate(
            rates, curve.rows, "random_fooling_rate", color=colour, ls=":", marker="", alpha=0.9
        )
        if len(curve.smallest):
            rates.ecdf(curve.smallest, color=colour, ls="-.", lw=1)
        for values, style in (
            (curve.singular_values, {"label": curve.name}),
            (curve.random_singular_values, {"ls": ":"}),
        ):
            spectrum.plot(range(1, len(values) + 1), values, color=colour, **style)
    rates.plot([], [], color="grey", ls=":", label="random signs, same epsilon")
    if any(len(curve.smallest) for curve in curves):
        rates.plot([], [], color="grey", ls="-.", label="at this epsilon or a smaller one")
    spectrum.plot([], [], color="grey", ls=":", label="random matrix, same row norms")
    rates.set(xlabel="epsilon (pixels from 0 to 1)", ylim=(-0.02, 1.02))
    rates.set_ylabel("fooling rate (bands: 95% interval)")
    _spread_small_epsilons(rates, max(row["epsilon"] for curve in curves for row in curve.rows))
    spectrum.set(xlabel="index", ylabel="singular value", xscale="log")
    spectrum.set_title("gradient signs as rows of norm 1", fontsize="medium")
    spectrum.set_ylim(bottom=0)
    for axes in (rates, spectrum):
        axes.grid(alpha=0.3)
        axes.legend()
    return figure


def _spread_small_epsilons(axes: Axes, largest: float) -> None:
    """Axes that grow with the square root, since most happens at small epsilons."""
    levels = axes.twiny()
    levels.set_xlabel("epsilon in levels of 255")
    marks = (0, 0.005, 0.02, 0.05, 0.1, 0.2, 0.3, 0.5, 1), (0, 1, 4, 8, 16, 32, 64, 128, 255)
    for scaled, top, ticks in zip((axes, levels), (largest, largest * 255), marks, strict=True):
        scaled.set_xscale("function", functions=(_root, np.square))
        scaled.set_xlim(0, top)
        scaled.set_xticks(
            [tick for tick in ticks if tick <= top], labels=[f"{t:g}" for t in ticks if t <= top]
        )


def _root(epsilon: Any) -> Any:
    return np.sqrt(np.maximum(epsilon, 0))


def _draw_rate(
    axes: Axes, rows: Sequence[Mapping[str, float]], name: str, *, color: str, **style: Any
) -> None:
    epsilons = [row["epsilon"] for row in rows]
    low, high = ([row[f"{name}_{end}"] for row in rows] for end in ("low", "high"))
    axes.plot(epsilons, [row[name] for row in rows], **{"marker": ".", "color": color} | style)
    axes.fill_between(epsilons, low, high, color=color, alpha=0.15, lw=0)


@dataclass(frozen=True)
class ExampleView:
    """A perturbed image with what is written under it."""

    image: np.ndarray
    caption: str
    correct: bool


@dataclass(frozen=True)
class ExampleRow:
    """One image under attack: how it was, the perturbation's direction, what became of it.

    Attributes:
        label: name of its true class.
        direction: (H, W, C), from -1 to 1.
        views: the clean image, then one for each epsilon, in order.
    """

    label: str
    direction: np.ndarray
    views: Sequence[ExampleView]


def examples(rows: Sequence[ExampleRow], epsilons: Sequence[float], title: str) -> Figure:
    """Clean image, sign of the gradient and perturbed images side by side, as in Table III.

    Args:
        rows: one for each image.
        epsilons: of the views after the clean one.
        title: says which model and attack.

    Returns:
        A figure of one row for each image.
    """
    columns = ["clean", "sign of\nthe gradient"]
    columns += [f"epsilon {show(epsilon)}" for epsilon in epsilons]
    size = 1.75
    figure = Figure(
        figsize=(size * len(columns), size * 1.15 * len(rows) + 0.9), layout="constrained"
    )
    figure.suptitle(f"{title}\ncaptions: predicted class and confidence, green where it is right")
    grid = figure.subplots(len(rows), len(columns), squeeze=False)
    for axes, name in zip(grid[0], columns, strict=True):
        axes.set_title(name, fontsize="medium")
    for row, line in zip(rows, grid, strict=True):
        line[0].set_ylabel(row.label)
        clean, *perturbed = row.views
        _draw_view(line[0], clean)
        _draw_image(line[1], 0.5 + 0.5 * row.direction)
        for axes, view in zip(line[2:], perturbed, strict=True):
            _draw_view(axes, view)
    return figure


def _draw_view(axes: Axes, view: ExampleView) -> None:
    _draw_image(axes, view.image)
    mark, colour = ("\N{CHECK MARK}", "tab:green") if view.correct else ("\N{BALLOT X}", "tab:red")
    axes.set_xlabel(f"{mark} {view.caption}", color=colour, fontsize="small")


def _draw_image(axes: Axes, image: np.ndarray) -> None:
    # Without three channels, the first is shown in grey; what is out of range, at the range's end.
    shown = np.clip(image[..., :3] if image.shape[-1] >= 3 else image[..., 0], 0, 1)
    axes.imshow(shown, cmap="gray", vmin=0, vmax=1)
    axes.set(xticks=[], yticks=[])


def universal_rates(
    rows: Sequence[Mapping[str, float]],
    norm: str,
    equal_norm: str,
    spectra: tuple[Sequence[float], Sequence[float]],
    title: str,
) -> Figure:
    """Fooling rate over the number of singular vectors, and the spectrum, as in Figure 7.

    Args:
        rows: points with "rank" and the rates of `judging.over_ranks`, in order of the rank.
        norm: that the first panel's perturbations are scaled to; none leaves them as they come.
        equal_norm: that the second panel's are scaled to.
        spectra: singular values of the matrix and of a random one, largest first.
        title: says which model and algorithm.

    Returns:
        A figure of three panels.
    """
    figure = Figure(figsize=(15, 4.6), layout="constrained")
    figure.suptitle(title)
    drawn, equal, spectrum = figure.subplots(1, 3)
    _draw_over_rank(drawn, rows, "")
    free = "as it comes: the norm grows with the rank"
    drawn.set_title(free if norm == "none" else f"all scaled to the norm {norm}", fontsize="medium")
    if norm == "none":
        norms = drawn.twinx()
        ranks = [row["rank"] for row in rows]
        norms.plot(ranks, [row["l2_norm"] for row in rows], color="grey", lw=1, ls="--")
        norms.set_ylabel("l2 norm (dashed)", color="grey")
        norms.set_ylim(bottom=0)
    _draw_over_rank(equal, rows, "equal_")
    equal.set_title(f"all scaled to the norm {equal_norm}", fontsize="medium")
    for values, label, style in zip(
        spectra, ("perturbations", "random matrix, same row norms"), ("-", ":"), strict=True
    ):
        spectrum.plot(range(1, len(values) + 1), values, ls=style, color="tab:blue", label=label)
    spectrum.set(xlabel="index", ylabel="singular value", xscale="log")
    spectrum.set_ylim(bottom=0)
    for axes in (drawn, equal, spectrum):
        axes.grid(alpha=0.3)
    spectrum.legend()
    figure.legend(*equal.get_legend_handles_labels(), loc="outside lower left", ncols=4)
    return figure


def _draw_over_rank(axes: Axes, rows: Sequence[Mapping[str, float]], prefix: str) -> None:
    ranks = [row["rank"] for row in rows]
    for name, label, colour in (
        ("fooling_rate", "universal", "tab:blue"),
        ("random_fooling_rate", "Gaussian, same l2 norm", "tab:orange"),
        ("sign_noise_fooling_rate", "random signs, same l-infinity norm", "tab:green"),
    ):
        means, spreads = (
            np.array([row[f"{prefix}{name}{end}"] for row in rows]) for end in ("", "_std")
        )
        axes.plot(ranks, means, marker=".", color=colour, label=label)
        axes.fill_between(ranks, means - spreads, means + spreads, color=colour, alpha=0.2, lw=0)
    clipped = [row[f"{prefix}clipped_fooling_rate"] for row in rows]
    axes.plot(ranks, clipped, color="tab:blue", ls=":", label="universal, clipped to [0, 1]")
    axes.set(xlabel="number of singular vectors", xscale="log")
    axes.set_ylabel("fooling rate, held out (bands: deviation over draws)")
    axes.set_ylim(-0.02, 1.02)


@dataclass(frozen=True)
class UniversalRow:
    """An image as it is, under the universal perturbation, and under noise of the same norm."""

    label: str
    views: tuple[ExampleView, ExampleView, ExampleView]


def universal_pictures(
    vector: np.ndarray, noise: np.ndarray, rows: Sequence[UniversalRow], title: str
) -> Figure:
    """The perturbation as an image, and images under it, as in Figures 8 to 10.

    Args:
        vector: (H, W, C), the universal perturbation.
        noise: (H, W, C), Gaussian, of the same l2 norm.
        rows: one for each image.
        title: says which model and algorithm.

    Returns:
        A figure of the two vectors above and a row for each image.
    """
    size = 1.9
    figure = Figure(figsize=(size * 3.4, size * 1.2 * (len(rows) + 1) + 0.9), layout="constrained")
    figure.suptitle(title)
    grid = figure.subplots(len(rows) + 1, 3, squeeze=False)
    grid[0][0].axis("off")
    scale = max(float(np.abs(vector).max()), 1e-12)
    for axes, shown, name in zip(
        grid[0][1:], (vector, noise), ("universal", "random, same l2 norm"), strict=True
    ):
        _draw_image(axes, 0.5 + 0.5 * shown / scale)
        axes.set_title(f"{name},\nscaled for viewing", fontsize="medium")
    for row, line in zip(rows, grid[1:], strict=True):
        line[0].set_ylabel(row.label)
        for axes, view in zip(line, row.views, strict=True):
            _draw_view(axes, view)
    if rows:
        for axes, name in zip(grid[1], ("clean", "+ universal", "+ random"), strict=True):
            axes.set_title(name, fontsize="medium")
    return figure


def confusion(counts: np.ndarray, class_names: Sequence[str], title: str) -> Figure:
    """Which class the images of each predicted class fall into under a perturbation.

    Args:
        counts: int (classes, classes), clean prediction by prediction under the perturbation.
        class_names: by class; of more than 40, those are shown that most images fall into.
        title: says which model and algorithm.

    Returns:
        A figure of one panel.
    """
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    if len(class_names) > _MOST_CLASSES:
        often = np.argsort(-counts.sum(axis=0) - counts.sum(axis=1), kind="stable")
        shown = np.sort(often[:_MOST_CLASSES])
        title += f"\nthe {_MOST_CLASSES} of {len(class_names)} classes that most images fall into"
        counts, shares = (part[np.ix_(shown, shown)] for part in (counts, shares))
        class_names = [class_names[i] for i in shown]
    classes = len(class_names)
    figure = Figure(figsize=(2.5 + 0.45 * classes, 2 + 0.42 * classes), layout="constrained")
    axes = figure.subplots()
    axes.set_title(title, fontsize="medium")
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


def transfer(
    rates: np.ndarray,
    noise: np.ndarray,
    perturbations: Sequence[str],
    models: Sequence[str],
    title: str,
) -> Figure:
    """Fooling rates of universal perturbations on models, and of noise below.

    Args:
        rates: (P, M), of each perturbation on each model.
        noise: (P, M), of noise of the same norm; its row shows the range, coloured by the mean.
        perturbations: what the rows are called.
        models: what the columns are called.
        title: says which images.

    Returns:
        A figure of one panel.
    """
    count, columns = rates.shape
    figure = Figure(figsize=(4.2 + 1.1 * columns, 2.6 + 0.62 * count), layout="constrained")
    figure.suptitle(title, fontsize="medium")
    axes = figure.subplots()
    shown = np.vstack([rates, noise.mean(axis=0)])
    image = axes.imshow(shown, cmap="Blues", vmin=0, vmax=1, aspect="auto")
    axes.set(xlabel="applied to", ylabel="fitted on")
    turned: dict[str, Any] = {"rotation": 30, "ha": "right"} if columns > 1 else {}
    axes.set_xticks(range(columns), labels=models, **turned)
    axes.set_yticks(
        range(count + 1), labels=[*perturbations, "Gaussian noise of\nthe same l2 norm"]
    )
    axes.axhline(count - 0.5, color="white", lw=4)
    texts = [[f"{rate:.3f}" for rate in row] for row in rates]
    ends = zip(noise.min(axis=0), noise.max(axis=0), strict=True)
    texts.append([f"{a:.3f}" if a == b else f"{a:.3f}-{b:.3f}" for a, b in ends])
    for (i, j), share in np.ndenumerate(shown):
        ink = "white" if share > 0.6 else "black"
        axes.text(j, i, texts[i][j], ha="center", va="center", color=ink)
    figure.colorbar(image, label="fooling rate")
    return figure


def _draw(axes: Axes, history: Sequence[Mapping[str, float]], quantity: str) -> None:
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
