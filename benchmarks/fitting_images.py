"""How many images a universal perturbation needs: the fooling rate over those it is fitted on.

    python -m benchmarks.fitting_images --model=runs:/RUN_ID/model --norm=linf:10/255
    python -m benchmarks.fitting_images --model=PATH.keras --dataset=mnist --figure=few.png

Kamath, Deshpande and Subrahmanyam (arXiv:2005.08632) find that the top singular vector of very few
images' perturbations fools nearly as many images as that of all. Here Algorithms 1, 2 and 3, the
ascent in all pixels and the singular vector of a layer are fitted on the first of 1,000 training
images, as many as the columns say, and judged on the same 1,000 test images, clipped. The last
column is the rate from 50 images over that from all.
"""

import argparse
import sys
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from benchmarks import common
from benchmarks.universal_losses import Case
from benchmarks.universal_rates import fooled, untargeted
from resfool.devices import start_tensorflow
from resfool.values import Norm, parse_norm

if TYPE_CHECKING:
    from matplotlib.figure import Figure

COUNTS = 5, 10, 20, 50, 100, 200, 500, 1000
LINES = {
    "algorithm 1": "algorithm 1",
    "algorithm 2, first, rank 1": "algorithm 2, the first singular vector",
    "algorithm 2, optimised, rank 10": "algorithm 2, ten, optimised",
    "algorithm 3, optimised, rank 10": "algorithm 3, ten, optimised",
    "gradient": "gradient",
    "singular": "singular",
    "best pattern": "best pattern",
}
FEW = 50


def main() -> None:
    """Fit all, print a table and draw a figure."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    common.add_model(parser, images=max(COUNTS))
    parser.add_argument("--norm", type=parse_norm, default=Norm("linf", 10 / 255))
    parser.add_argument("--counts", type=int, nargs="+", default=COUNTS)
    parser.add_argument("--seed", type=int, default=0, help="(default: 0)")
    parser.add_argument("--figure", help="a file to draw the rates in")
    options = parser.parse_args()
    start_tensorflow()
    model, held_out, _ = common.model_and_images(options)
    _, fitting, _ = common.model_and_images(options, "train", seed=options.seed)
    counts = sorted(count for count in options.counts if count <= len(fitting))
    rates: dict[str, list[float]] = {name: [] for name in LINES.values()}
    for count in counts:
        few = fitting[:count]
        case = Case(model, few, held_out, 0, options.seed)
        fits = untargeted(case, clip=True)
        for key, name in LINES.items():
            (hits,) = fooled(case, fits[key](options.norm), clip=True)
            rates[name].append(float(hits.mean()))
            print(f"{count} images, {name}: {rates[name][-1]:.3f}", file=sys.stderr)
    print(f"{common.machine()}; {options.norm}, {len(held_out)} images to judge on, clipped\n")
    columns = [*map(str, counts), f"{FEW} / {counts[-1]}"]
    print(f"| fitting images | {' | '.join(columns)} |\n|{' --- |' * (len(columns) + 1)}")
    for name, found in rates.items():
        share = found[counts.index(FEW)] / found[-1] if FEW in counts and found[-1] else np.nan
        cells = [f"{rate:.3f}" for rate in found] + [f"{share:.2f}"]
        print(f"| {name} | {' | '.join(cells)} |")
    if options.figure:
        title = f"{options.norm}, {len(held_out)} held-out images, clipped"
        draw(counts, rates, title).savefig(options.figure, dpi=150)


def draw(counts: Sequence[int], rates: Mapping[str, Sequence[float]], title: str) -> "Figure":
    """Fooling rates over the number of fitting images, a line for each way to fit."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9.5, 4.6), layout="constrained")
    axes = figure.subplots()
    for (name, found), marker in zip(rates.items(), "os^Dvx+", strict=False):
        style = ":" if name == "best pattern" else "-"
        axes.plot(counts, found, marker=marker, ls=style, label=name)
    axes.set(xlabel="images that it is fitted on", ylabel="fooling rate", title=title)
    axes.set_xscale("log")
    axes.set_xticks(list(counts), labels=list(map(str, counts)))
    axes.minorticks_off()
    axes.set_ylim(bottom=0)
    axes.grid(alpha=0.3)
    figure.legend(loc="outside right upper")
    return figure


if __name__ == "__main__":
    main()
