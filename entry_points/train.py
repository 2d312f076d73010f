"""`mlflow run . -e train`: train one architecture, log it, and say where to look at it."""

from collections.abc import Sequence

from resfool import command_line, experiments, interrupts
from resfool.progress import ProgressReport
from resfool.tracking import stores, training_run
from resfool.training import presentation


def main(argv: Sequence[str] | None = None) -> None:
    """Read the command line, train, and record the result."""
    with command_line.one_sentence_errors():
        settings, options = command_line.parse(experiments.train, training_run.open_run, argv=argv)
        interrupts.raise_once()
        with (
            ProgressReport(f"training {settings['arch']}") as progress,
            training_run.open_run(progress, **options) as run,
        ):
            if run.checkpoint is not None:
                settings = experiments.resumed_settings(settings, run.checkpoint)
            result = experiments.train(run, **settings)
            model_uri = record(run, result)
    print(f"train accuracy  {result.train.accuracy:.4f}  (the curve's last point)")
    judged = f"{result.part} accuracy"
    count = len(result.dataset.split(result.part))
    print(f"{judged:<15} {result.test.accuracy:.4f}  (all {count} images)")
    print(f"run             {run.run_id}")
    print(f"model           {model_uri}")
    print(f"look at it with {stores.viewer()}")


def record(run: training_run.TrainingRun, result: experiments.Training) -> str:
    """Log a training's figure and model.

    Args:
        run: that it was monitored by.
        result: what it left.

    Returns:
        The model's URI.
    """
    title = f"{result.network.name} on {result.dataset.name}"
    run.log_figure(presentation.accuracy_curves(result.history, title), "accuracy_curves.png")
    return run.log_model(result.model, result.dataset, result.final_metrics, result.part)


if __name__ == "__main__":
    main()
