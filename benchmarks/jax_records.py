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
from resfool.parameters import Resumable
from resfool.progress import ProgressReport
from resfool.tracking.training_run import TrainingRun
from resfool.training import train as training
from resfool.training.recipe import TrainParameters
from resfool.values import Row

EVAL_EVERY = 1000  # as `-e reproduce` asks for, though only the last evaluation is made


def main() -> None:
    """Make a run of every training whose weights are there."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--data-dir", required=True)
    parser.add_argument("--experiment", default="resfool")
    options = parser.parse_args()
    mlflow.set_experiment(options.experiment)
    for line in map(json.loads, (options.folder / "results.jsonl").read_text().splitlines()):
        weights = options.folder / f"{line['name']}.npz"
        if weights.exists():
            record(line, weights, options.data_dir)


def record(line: dict[str, Any], weights: Path, data_dir: str) -> None:
    """Make a run of one training."""
    asked = parameters(line["training"], data_dir)
    with (
        steps_taken(line["curve"], weights),
        ProgressReport(line["name"]) as progress,
        TrainingRun(progress, Resumable()) as run,
    ):
        result = training.train(asked, run)
        run.tag("steps_by", f"JAX on {line['training']['device']}")
        commands.keep_training(run, result)
    print(f"{line['name']} {run.run_id}: test accuracy {result.test.accuracy:.4f}", flush=True)


def parameters(training: dict[str, Any], data_dir: str) -> TrainParameters:
    """Those of `-e train` for a training in JAX."""
    shape, rules = dict(training["shape"]), dict(training["rules"])
    shape["width"] = (shape["width"],)
    if not shape["arch"].startswith("highway"):
        del shape["gate_bias"]
    rules["lr_drop"] = (rules["lr_drop"],) if rules["lr_drop"] else None
    rules["warmup"] = rules["warmup"] or None
    rules["augment"] = tuple(rules["augment"])
    same = {name: training[name] for name in ("seed", "steps", "batch_size", "precision")}
    return TrainParameters(**{**shape, **rules, **same}, eval_every=EVAL_EVERY, data_dir=data_dir)


@contextlib.contextmanager
def steps_taken(curve: Sequence[Row], weights: Path) -> Iterator[None]:
    """Within it, trainers take no steps: they come to a curve and to weights."""
    devices.start_keras()
    from resfool.training import trainer

    class Taken(trainer.Trainer):
        """A trainer whose steps others have taken."""

        def advance(self, steps: int) -> None:
            """Go on along the curve."""
            self.step += steps
            if self.step % paper.AVERAGED_STEPS == 0:
                point = curve[self.step // paper.AVERAGED_STEPS - 1]
                own = ("step", "train_loss", "train_accuracy")
                self.history.append({name: point[name] for name in own})

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
