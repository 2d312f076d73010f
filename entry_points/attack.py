"""`mlflow run . -e attack`: fool one or several classifiers, log how easily, and print a table."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from resfool import command_line, experiments, interrupts
from resfool.attacks import presentation
from resfool.command_line import Values
from resfool.datasets.sets import Dataset
from resfool.monitor import ModelSource
from resfool.parameters import Part
from resfool.progress import ProgressReport
from resfool.report import page
from resfool.tracking import stores
from resfool.tracking.run import Run
from resfool.universal.presentation import transfer_figure, transfer_summary, transfer_table

if TYPE_CHECKING:
    from resfool.attacks.examples import Attacked


def main(argv: Sequence[str] | None = None) -> None:
    """Read the command line, attack, and record the result."""
    with command_line.one_sentence_errors():
        sweeping, transferring = command_line.parse(
            experiments.attack, experiments.transfer, argv=argv
        )
        interrupts.raise_once()
        # A norm alone goes there too, to be told that there is nothing of this size.
        if transferring["perturbation"] is None and transferring["norm"].kind == "none":
            run_id, summary = _sweep(sweeping)
        else:
            run_id, summary = _transfer(transferring)
    print(summary)
    print(f"run             {run_id}")
    print(f"look at it with {stores.viewer()}")


def _sweep(settings: Values) -> tuple[str, str]:
    """Attack along gradients; the run's id, and what to print."""
    words = f"{settings['method']}, image passes"
    with ProgressReport(words) as progress, Run(progress) as run:
        results = experiments.attack(run, record, **settings)
        record_all(run, results, settings)
    return run.run_id, presentation.summary(results)


def _transfer(settings: Values) -> tuple[str, str]:
    """Attack by perturbations of earlier runs; the run's id, and what to print."""
    with ProgressReport("transfer, image passes") as progress, Run(progress) as run:
        result = experiments.transfer(run, **settings)
        run.log_figure(transfer_figure(result), "transfer.png")
        run.log_table(transfer_table(result), "transfer")
    return run.run_id, transfer_summary(result)


def record_all(run: Run, results: Sequence["Attacked"], settings: Values) -> None:
    """Log what compares the models, and the report."""
    run.log_figure(presentation.fooling_rates(results, settings["method"]), "fooling_rates.png")
    if len(results) > 1:
        run.log_table(presentation.rates_table(results), "rates")
    run.log_files(page.files(presentation.robustness_report(results, settings)))


def record(
    run: Run, source: ModelSource, attacked: "Attacked", dataset: Dataset, part: Part
) -> None:
    """Log one model's result as soon as it is there."""
    run.point({"step": 0} | presentation.scalars(attacked))
    run.log_table(presentation.images_table(attacked), "images")
    run.log_table(presentation.spectrum_table(attacked), "spectrum")
    run.log_table(presentation.rates_table([attacked]), "rates")
    if attacked.examples:
        run.log_figure(presentation.examples(attacked), "examples.png")
    if source.model_id is not None:
        metrics = presentation.model_metrics(attacked)
        run.log_model_metrics(source.model_id, metrics, dataset, part)


if __name__ == "__main__":
    main()
