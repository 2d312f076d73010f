"""`mlflow run . -e attack`: fool one or several classifiers, log how easily, and print a table."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from resfool import command_line, experiments, interrupts, presentation, tracking
from resfool.datasets import Dataset
from resfool.monitor import ModelSource
from resfool.parameters import Part
from resfool.progress import ProgressReport

if TYPE_CHECKING:
    from resfool.evaluation import Attacked


def main(argv: Sequence[str] | None = None) -> None:
    """Read the command line, attack, and record the result."""
    with command_line.one_sentence_errors():
        (settings,) = command_line.parse(experiments.attack, argv=argv)
        interrupts.raise_once()
        method = settings["method"]
        with ProgressReport(f"{method}, image passes") as progress, tracking.Run(progress) as run:
            results = experiments.attack(run, _record, **settings)
            run.log_figure(presentation.fooling_rates(results, method), "fooling_rates.png")
            run.log_table(presentation.rates_table(results), "rates")
    print(presentation.summary(results))
    print(f"run             {run.run_id}")
    print(f"look at it with {tracking.ui_command()}")


def _record(
    run: tracking.Run, source: ModelSource, attacked: "Attacked", dataset: Dataset, part: Part
) -> None:
    """Log one model's result as soon as it is there."""
    run.point({"step": 0} | presentation.scalars(attacked))
    run.log_table(presentation.images_table(attacked), "images")
    if attacked.examples:
        run.log_figure(presentation.examples(attacked), "examples.png")
    if source.model_id is not None:
        metrics = presentation.model_metrics(attacked)
        run.log_model_metrics(source.model_id, metrics, dataset, part)


if __name__ == "__main__":
    main()
