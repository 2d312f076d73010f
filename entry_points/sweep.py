"""`mlflow run . -e sweep`: train a grid of networks in parallel, and compare them."""

import functools
from collections.abc import Callable, Sequence

from resfool import command_line, experiments, interrupts, parallel
from resfool.command_line import Values
from resfool.datasets.sets import Dataset
from resfool.experiments import Row, Trained
from resfool.progress import ProgressReport
from resfool.tracking import stores
from resfool.tracking.run import Run
from resfool.training.presentation import accuracy_curves
from resfool.trials import presentation


def main(argv: Sequence[str] | None = None) -> None:
    """Read the command line, train them all, and compare."""
    with command_line.one_sentence_errors():
        settings, training = command_line.parse(
            experiments.sweep,
            command_line.without(experiments.train, *experiments.SWEPT),
            argv=argv,
        )
        interrupts.raise_once()
        with ProgressReport("sweep") as progress, Run(progress) as run:
            swept = experiments.sweep(run, pool_of(settings), keep, training, print, **settings)
            run.log_table(presentation.trainings_table(swept), "trainings")
            run.log_table(presentation.networks_table(swept), "networks")
            run.log_figure(
                presentation.trainings_figure(swept, training["dataset"]), "trainings.png"
            )
    print(presentation.sweep_summary(swept))
    print(f"run             {run.run_id}")
    print(f"look at it with {stores.viewer()}")


def pool_of(settings: Values) -> Callable[..., parallel.Pool]:
    """What opens the workers that the parameters ask for."""
    return functools.partial(
        parallel.Pool,
        backend=settings["backend"],
        workers=settings["workers"],
        ray_address=settings["ray_address"],
        patience=settings["patience"],
        cpus=settings["cpus_per_trial"],
        gpus=settings["gpus_per_trial"],
    )


def keep(run: Run, trained: Trained, curve: Sequence[Row], data: Dataset) -> None:
    """Log what a trial sent home: its figure and its model."""
    title = f"{trained.network} on {data.name}"
    run.log_figure(accuracy_curves(curve, title), "accuracy_curves.png")
    run.log_model(trained.load_model(), data, trained.metrics, trained.part)


if __name__ == "__main__":
    main()
