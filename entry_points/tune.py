"""`mlflow run . -e tune`: search for the settings that the paper left untuned."""

from collections.abc import Sequence

from entry_points import sweep
from resfool import command_line, experiments, interrupts
from resfool.progress import ProgressReport
from resfool.tracking import stores
from resfool.tracking.run import Run
from resfool.trials import presentation, study


def main(argv: Sequence[str] | None = None) -> None:
    """Read the command line, search, and record what was found."""
    with command_line.one_sentence_errors():
        settings, training = command_line.parse(
            experiments.tune,
            command_line.without(experiments.train, *experiments.TUNED),
            argv=argv,
        )
        interrupts.raise_once()
        title = f"tuning of {settings['arch']}, {training['dataset']}"
        with ProgressReport("tune") as progress, Run(progress) as run:
            found = experiments.tune(
                run, sweep.pool_of(settings), study.Study, sweep.keep, training, print, **settings
            )
            run.log_table(presentation.trials_table(found), "trials")
            run.log_figure(presentation.tuning_figure(found, title), "tuning.png")
            run.point({"step": len(found.tried), "final_best_validation_accuracy": found.value})
            for name, value in found.best.items():
                run.tag(f"best_{name}", value)
            run.note(f"Train the best with\n\n    {found.command}")
    print(presentation.tuning_summary(found))
    print(f"run             {run.run_id}")
    print(f"look at it with {stores.viewer()}")


if __name__ == "__main__":
    main()
