"""Universal perturbations on other models, as a table and a figure."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from resfool.monitor import Leaves
from resfool.report.drawing import Figure, legible, room_for

if TYPE_CHECKING:
    from resfool.universal.transfer import Transfer


def leaves(result: "Transfer") -> Leaves:
    """All rates of perturbations on models, as a figure and as a table."""
    norms = zip(result.perturbations, result.l2_norms, strict=True)
    rows = [f"{legible(name)}\nl2 norm {l2:.3g}" for name, l2 in norms]
    fooling, noise = (result.rates[f"{kind}fooling_rate"] for kind in ("", "random_"))
    title = f"fooling rates of universal perturbations\n{result.images} images, {result.where}"
    figure = draw_transfer(fooling, noise, rows, list(map(legible, result.models)), title)
    return {"transfer.png": figure, "transfer": _transfer_table(result)}


def summary(result: "Transfer") -> str:
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


def _transfer_table(result: "Transfer") -> pd.DataFrame:
    """All rates of perturbations on models, a row for each pair."""
    rows = []
    for p, perturbation in enumerate(result.perturbations):
        norms = {"l2_norm": result.l2_norms[p], "linf_norm": result.linf_norms[p]}
        for m, model in enumerate(result.models):
            rates = {key: values[p, m] for key, values in result.rates.items()}
            rows.append({"perturbation": perturbation, "model": model} | norms | rates)
    return pd.DataFrame(rows)


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
