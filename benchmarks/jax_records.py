"""Makes runs of `-e train` of what `benchmarks.jax_trainings` left: networks, curves and figures.

    python -m benchmarks.jax_records FOLDER --data-dir CIFAR_FOLDER

The steps were taken by JAX. What is judged and kept is judged and kept by resfool: the statistics
of batch normalisation, the accuracies, the model. So `-e reproduce` finds these runs, which say by
the tag `steps_by` where their steps come from.
"""

import argparse
import contextlib
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import mlflow

from benchmarks.jax_networks import load_into
from resfool import commands, devices, paper
from resfool.datasets.sets import Dataset, load_data
from resfool.parameters import Resumable
from resfool.progress import ProgressReport
from resfool.tracking.training_run import TrainingRun
from resfool.training import train as training
from resfool.training.recipe import TrainParameters
from resfool.values import Row

EVAL_EVERY = 1000  # as `-e reproduce` asks for, though JAX judged at other steps


def main() -> None:
    """Make a run of every training, and of the short ones that the long ones pass through."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--data-dir", required=True)
    parser.add_argument("--experiment", default="resfool")
    options = parser.parse_args()
    mlflow.set_experiment(options.experiment)
    for line in map(json.loads, (options.folder / "results.jsonl").read_text().splitlines()):
        whole = str(line["training"]["steps"])
        weights = options.folder / f"{line['name']}.npz"
        for steps in line["judged"]:
            with (
                ProgressReport(line["name"]) as progress,
                TrainingRun(progress, Resumable()) as run,
            ):
                asked = parameters(line["training"], int(steps), options.data_dir)
                if steps == whole and weights.exists():
                    record(run, asked, line["curve"], weights)
                else:
                    record_figures(run, asked, line["curve"], line["judged"][steps])
                run.tag("steps_by", f"JAX on {line['training']['device']}")
                print(f"{line['name']}, {steps} steps: {run.run_id}", flush=True)


def record(run: TrainingRun, asked: TrainParameters, curve: Sequence[Row], weights: Path) -> None:
    """Judge and log a training's network."""
    with steps_taken(curve, weights):
        result = training.train(asked, run)
    commands.keep_training(run, result)


def record_figures(
    run: TrainingRun, asked: TrainParameters, curve: Sequence[Row], judged: Row
) -> None:
    """Log the curve up to a training's last step, and what JAX measured there."""
    data = load_data(asked)
    run.begin(
        training.title(asked), training.facts(asked, data, "test"), [(data, "test", "testing")]
    )
    run.fact("parameter_count", _parameters_of(asked, data))
    points = curve[: asked.steps // paper.AVERAGED_STEPS]
    for point in points:
        run.point(point)
    last = {f"final_{name}": value for name, value in points[-1].items() if name != "step"}
    more = {name: value for name, value in judged.items() if name not in points[-1]}
    run.point({"step": asked.steps} | last | more)


def _parameters_of(asked: TrainParameters, data: Dataset) -> int:
    devices.start_keras()
    from resfool.networks import architectures

    shape: dict[str, Any] = {"image_shape": data.image_shape, "classes": data.classes}
    plain = architectures.build(asked.network, mean=[0.5], std=[0.25], **shape)
    return int(plain.count_params())


def parameters(training: dict[str, Any], steps: int, data_dir: str) -> TrainParameters:
    """Those of `-e train` for a training in JAX, or its first steps."""
    shape, rules = dict(training["shape"]), dict(training["rules"])
    shape["width"] = None if shape["width"] == paper.WIDTH else (shape["width"],)
    if not shape["arch"].startswith("highway"):
        del shape["gate_bias"]
    if steps <= rules.pop("lr_drop"):
        rules["schedule"] = "constant"
    elif rules["schedule"] == "drop":
        rules["lr_drop"] = (training["rules"]["lr_drop"],)
    rules["warmup"] = rules["warmup"] or None
    rules["augment"] = tuple(rules["augment"])
    same = {name: training[name] for name in ("seed", "batch_size", "precision")}
    return TrainParameters(
        **{**shape, **rules, **same}, steps=steps, eval_every=EVAL_EVERY, data_dir=data_dir
    )


@contextlib.contextmanager
def steps_taken(curve: Sequence[Row], weights: Path) -> Iterator[None]:
    """Within it, trainers take no steps: they come to a curve and to weights."""
    devices.start_keras()
    from resfool.training import trainer

    class Taken(trainer.Trainer):
        """A trainer whose steps others have taken."""

        def advance(self, steps: int) -> None:
            """Go on along the curve, to the last step's training figures."""
            self.step += steps
            if self.step % paper.AVERAGED_STEPS == 0:
                point = curve[self.step // paper.AVERAGED_STEPS - 1]
                judged = {"test_accuracy"} if self.step == self._asked.steps else set()
                self.history.append({n: v for n, v in point.items() if n not in judged})

        def give_weights(self, other: Any) -> None:
            """Give those of the last step."""
            load_into(other, weights)

    def due(one: Taken, steps: int, *_: Any) -> bool:
        return one.step == steps and not any("test_loss" in row for row in one.history[-1:])

    before = trainer.Trainer, trainer._evaluation_due
    trainer.Trainer, trainer._evaluation_due = Taken, due  # type: ignore[misc,assignment]
    try:
        yield
    finally:
        trainer.Trainer, trainer._evaluation_due = before  # type: ignore[misc]


if __name__ == "__main__":
    main()
