"""Draws the curves of some trainings into one figure, from the store that has their runs.

    python -m benchmarks.training_curves paper=RUN_ID modern=RUN_ID --figure curves.png

Training accuracies are averages of 100 steps on the images as they were trained on, shifted and
mirrored if the recipe says so; test accuracies are of all test images.
"""

import argparse
from pathlib import Path

from mlflow import MlflowClient

from resfool.report.drawing import Figure


def main() -> None:
    """Read the runs and draw them."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("runs", nargs="+", metavar="NAME=RUN_ID")
    parser.add_argument("--figure", type=Path, required=True, help="picture to draw into")
    options = parser.parse_args()
    client = MlflowClient()
    figure = Figure(figsize=(8, 3.6), layout="constrained")
    panels = figure.subplots(1, 2, sharex=True, sharey=True)
    for each in options.runs:
        name, _, run_id = each.rpartition("=")
        for axes, part in zip(panels, ("train", "test"), strict=True):
            points = client.get_metric_history(run_id, f"{part}_accuracy")
            steps, values = zip(*sorted((p.step, p.value) for p in points), strict=True)
            axes.plot(steps, values, label=name, marker="." if part == "test" else None)
    for axes, title in zip(
        panels, ("training images, in training", "all test images"), strict=True
    ):
        axes.set(title=title, xlabel="step")
        axes.grid(alpha=0.3)
    panels[0].set_ylabel("accuracy")
    panels[1].legend(loc="lower right")
    figure.savefig(options.figure, dpi=120)


if __name__ == "__main__":
    main()
