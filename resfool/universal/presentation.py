"""Universal perturbations as tables and figures."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

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
    from resfool.attacks.minimal import Minimal
    from resfool.universal.experiment import Fooling
    from resfool.universal.screening import Pattern
    from resfool.universal.transfer import Transfer

_MOST_CLASSES = 40  # that a confusion matrix can show


def leaves(result: "Fooling") -> Leaves:
    """The perturbation, its matrix, and what figures and tables show of them."""
    found: dict[str, Any] = {"perturbation.npy": result.verdict.vector}
    if result.matrix is not None:
        found["matrix.npz"] = result.matrix.stored(result.identity)
    if result.solved is not None:
        found["smallest_perturbations"] = _solved_table(result.solved)
    if result.ranked is not None:
        found["fooling_rate_over_rank.png"] = _over_rank(result)
        found["ranks"] = pd.DataFrame(result.ranked.rows)
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


def transfer_leaves(result: "Transfer") -> Leaves:
    """All rates of perturbations on models, as a figure and as a table."""
    norms = zip(result.perturbations, result.l2_norms, strict=True)
    rows = [f"{legible(name)}\nl2 norm {l2:.3g}" for name, l2 in norms]
    fooling, noise = (result.rates[f"{kind}fooling_rate"] for kind in ("", "random_"))
    title = f"fooling rates of universal perturbations\n{result.images} images, {result.where}"
    figure = draw_transfer(fooling, noise, rows, list(map(legible, result.models)), title)
    return {"transfer.png": figure, "transfer": _transfer_table(result)}


def scalars(result: "Fooling") -> dict[str, float]:
    """The final figures by their names in MLflow."""
    solved = {} if result.solved is None else _solved_scalars(result.solved)
    targeted = {} if result.target is None else result.verdict.success_rates(result.target)
    return result.rates | targeted | solved


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
    if result.ranked is not None:
        columns = ("rank", 6), ("l2 norm", 9), ("fooled", 8), ("random", 8), ("pattern", 9)
        names = "".join(f"{name:>{width}}" for name, width in columns)
        lines.append(f"{names}   {'at equal norm':>13}{'pattern':>9}")
        for row in result.ranked.rows:
            lines.append(
                f"{row['rank']:>6.0f}{row['l2_norm']:>9.2f}{row['fooling_rate']:>8.3f}"
                f"{row['random_fooling_rate']:>8.3f}{row['pattern_fooling_rate']:>9.3f}   "
                f"{row['equal_fooling_rate']:>13.3f}{row['equal_pattern_fooling_rate']:>9.3f}"
            )
    rates = result.verdict.rates
    lines.append(
        f"fooling rate    {rates['final_fooling_rate']:.4f}  "
        f"(clipped {rates['final_clipped_fooling_rate']:.4f}, "
        f"Gaussian of the same norm {rates['final_random_fooling_rate']:.4f})"
    )
    for norm, name, pattern in _patterns_of(result):
        found = pattern.rates(name)
        rate, low, high = (
            found[f"final_{name}_fooling_rate{end}"] for end in ("", "_low", "_high")
        )
        lines.append(
            f"best pattern    {rate:.4f}  ({low:.3f} to {high:.3f}; {pattern.name}, same {norm} "
            f"norm, clipped {found[f'final_clipped_{name}_fooling_rate']:.4f})"
        )
    if result.target is not None:
        success = result.verdict.success_rates(result.target)
        lines.append(
            f"success rate    {success['final_success_rate']:.4f}  "
            f"(clipped {success['final_clipped_success_rate']:.4f}, "
            f"Gaussian {success['final_random_success_rate']:.4f}) of other classes become "
            f"{result.class_names[result.target]}"
        )
    l2, linf = rates["final_l2_norm"], rates["final_linf_norm"]
    lines.append(f"norm            l2 {l2:.3f}, l-infinity {linf:.4f}")
    return "\n".join(lines)


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


def _patterns_of(result: "Fooling") -> list[tuple[str, str, "Pattern"]]:
    """The best patterns: which norm they share with the perturbation, their metrics' name, they."""
    found = result.patterns
    return [("l2", "pattern", found.l2), ("l-infinity", "linf_pattern", found.linf)]


def _beside_table(result: "Fooling") -> pd.DataFrame:
    """The perturbation, noise and the best patterns, clipped and not, with 95% intervals."""
    verdict = result.verdict
    rows: list[tuple[str, str, np.ndarray]] = [
        ("universal", "no", verdict.fooled),
        ("universal", "yes", verdict.clipped),
        ("Gaussian, same l2 norm", "no", verdict.random),
    ]
    for norm, _, pattern in _patterns_of(result):
        name = f"{pattern.name}, same {norm} norm"
        rows += [(name, "no", pattern.fooled), (name, "yes", pattern.clipped)]
    return pd.DataFrame(
        {"perturbation": name, "clipped": clipped}
        | scores.rate("fooling_rate", classes != verdict.clean)
        for name, clipped, classes in rows
    )


def _solved_table(solved: "Minimal") -> pd.DataFrame:
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


def _solved_scalars(solved: "Minimal") -> dict[str, float]:
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


def _transfer_table(result: "Transfer") -> pd.DataFrame:
    """All rates of perturbations on models, a row for each pair."""
    rows = []
    for p, perturbation in enumerate(result.perturbations):
        norms = {"l2_norm": result.l2_norms[p], "linf_norm": result.linf_norms[p]}
        for m, model in enumerate(result.models):
            rates = {key: values[p, m] for key, values in result.rates.items()}
            rows.append({"perturbation": perturbation, "model": model} | norms | rates)
    return pd.DataFrame(rows)


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
    norm, equal_norm = show(result.asked.norm), show(result.asked.equal_norm)
    spectra = values, random
    title = _title(result)
    return draw_over_rank(
        result.ranked.rows, norm, equal_norm, spectra, title, result.ranked.patterns
    )


def draw_over_rank(
    rows: Sequence[Mapping[str, float]],
    norm: str,
    equal_norm: str,
    spectra: tuple[Sequence[float], Sequence[float]],
    title: str,
    patterns: tuple[str, str] = ("", ""),
) -> Figure:
    """Fooling rate over the number of singular vectors, and the spectrum, as in Figure 7.

    Args:
        rows: points with "rank" and the rates of `judging.over_ranks`, in order of the rank.
        norm: that the first panel's perturbations are scaled to; none leaves them as they come.
        equal_norm: that the second panel's are scaled to.
        spectra: singular values of the matrix and of a random one, largest first.
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
            _draw_pattern(axes, rows, f"{prefix}pattern_fooling_rate", label)
    equal.set_title(f"all scaled to the norm {equal_norm}", fontsize="medium")
    shown = ("perturbations", "-"), ("random matrix, same row norms", ":")
    for values, (label, style) in zip(spectra, shown, strict=True):
        spectrum.plot(range(1, len(values) + 1), values, ls=style, color="tab:blue", label=label)
    spectrum.set(xlabel="index", ylabel="singular value", xscale="log")
    spectrum.set_ylim(bottom=0)
    for axes in (drawn, equal, spectrum):
        axes.grid(alpha=0.3)
    spectrum.legend()
    figure.legend(*equal.get_legend_handles_labels(), loc="outside lower left", ncols=4)
    return figure


def _draw_rates(axes: Axes, rows: Sequence[Mapping[str, float]], prefix: str) -> None:
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


def _draw_pattern(axes: Axes, rows: Sequence[Mapping[str, float]], rate: str, label: str) -> None:
    ranks, rates = ([row[key] for row in rows] for key in ("rank", rate))
    axes.plot(ranks, rates, marker=".", color="tab:red", ls="-.", label=label)


def _pictures(result: "Fooling") -> Figure:
    """The perturbation, noise and the best pattern, and images under each (Figures 8 to 10)."""
    found, rates, pattern = result.verdict, result.verdict.rates, result.patterns.l2
    names = list(map(caption, result.class_names))
    rows = len(found.shown)
    size = 1.9
    figure = Figure(figsize=(size * 4.5, size * 1.2 * (rows + 1) + 0.9), layout="constrained")
    figure.suptitle(
        f"{_title(result)}\nl2 norm {rates['final_l2_norm']:.3g}, fools "
        f"{rates['final_fooling_rate']:.1%}, the random one "
        f"{rates['final_random_fooling_rate']:.1%}\nand the best pattern, {pattern.name}, "
        f"{result.rates['final_pattern_fooling_rate']:.1%}"
    )
    grid = figure.subplots(rows + 1, 4, squeeze=False)
    grid[0][0].axis("off")
    scale = max(float(np.abs(found.vector).max()), 1e-12)
    vectors = [("universal", found.vector), ("random, same l2 norm", found.noise)]
    vectors.append(("pattern, same l2 norm", pattern.vector))
    for axes, (name, vector) in zip(grid[0][1:], vectors, strict=True):
        draw_image(axes, 0.5 + 0.5 * vector / scale)
        axes.set_title(f"{name},\nscaled for viewing", fontsize="medium")
    for line, number, pictures in zip(grid[1:], found.shown, found.pictures, strict=True):
        predicted = [of[number] for of in (found.clean, found.fooled, found.random, pattern.fooled)]
        pictures = [*pictures, pictures[0] + pattern.vector]
        line[0].set_ylabel(names[predicted[0]])
        for axes, picture, one in zip(line, pictures, predicted, strict=True):
            draw_view(axes, ExampleView(picture, names[one], one == predicted[0]))
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


def draw_transfer(
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
    """
    count, columns = rates.shape
    figsize = 4.2 + 1.1 * columns + room_for(perturbations), 2.6 + 0.62 * count + room_for(models)
    figure = Figure(figsize=figsize, layout="constrained")
    figure.suptitle(title, fontsize="medium")
    axes = figure.subplots()
    shown = np.vstack([rates, noise.mean(axis=0)])
    image = axes.imshow(shown, cmap="Blues", vmin=0, vmax=1, aspect="auto")
    axes.set(xlabel="applied to", ylabel="fitted on")
    turned: dict[str, Any] = {"rotation": 30, "ha": "right"} if columns > 1 else {}
    axes.set_xticks(range(columns), labels=models, **turned)
    names = [*perturbations, "Gaussian noise of\nthe same l2 norm"]
    axes.set_yticks(range(count + 1), labels=names)
    axes.axhline(count - 0.5, color="white", lw=4)
    texts = [[f"{rate:.3f}" for rate in row] for row in rates]
    ends = zip(noise.min(axis=0), noise.max(axis=0), strict=True)
    texts.append([f"{a:.3f}" if a == b else f"{a:.3f}-{b:.3f}" for a, b in ends])
    for (i, j), share in np.ndenumerate(shown):
        ink = "white" if share > 0.6 else "black"
        axes.text(j, i, texts[i][j], ha="center", va="center", color=ink)
    figure.colorbar(image, label="fooling rate")
    return figure
