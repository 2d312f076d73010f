"""`mlflow run . -e reproduce`: make what the paper's tables and figures need, and compare."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from entry_points import attack, train, universal
from resfool import command_line, experiments, interrupts, parallel
from resfool.command_line import Values
from resfool.datasets.sets import Dataset
from resfool.errors import expanded
from resfool.monitor import FinishedRun
from resfool.progress import ProgressReport
from resfool.report import page
from resfool.reproduction import presentation
from resfool.tracking import stores, training_run
from resfool.tracking.run import Run


def main(argv: Sequence[str] | None = None) -> None:
    """Read the command line, make or find the runs, and report on them."""
    with command_line.one_sentence_errors():
        settings, places = command_line.parse(experiments.reproduce, Maker, argv=argv)
        interrupts.raise_once()
        with ProgressReport("reproduce") as progress, Run(progress) as run:
            maker = Maker(run, progress, **places)
            found = experiments.reproduce(run, maker, print, **settings)
            if found is None:
                return
            record(run, found)
    print(presentation.summary(found))
    print(f"report          report.html, an artifact of run {run.run_id}")
    print(f"look at it with {stores.viewer()}")


class Maker:
    """Makes runs under the reproduction's own, as the other entry points do, and finds them.

    Args:
        run: of the reproduction.
        progress: shows how it goes.
        checkpoint_dir: folder for checkpoints and interrupted solves.
    """

    def __init__(
        self,
        run: Run,
        progress: ProgressReport,
        /,
        *,
        checkpoint_dir: str = "checkpoints",
    ) -> None:
        self._run, self._progress, self._folder = run, progress, checkpoint_dir
        stores.check_folder("checkpoint folder", expanded(checkpoint_dir))
        self.find = run.find_finished
        self.find_interrupted = run.find_interrupted

    def make(
        self, experiment: str, settings: Values, data: Dataset, resume: str | None
    ) -> FinishedRun:
        """Make a run, or go on with a training."""
        run_id = {"train": self._train, "attack": self._attack, "universal": self._universal}[
            experiment
        ](settings, data, resume)
        return self._run.read(run_id)

    def _train(self, settings: Values, data: Dataset, resume: str | None) -> str:
        own = training_run.TrainingRun(
            self._progress, resume=resume, checkpoint_dir=Path(self._folder), nested=True
        )
        with own:
            train.record(own, experiments.train(own, data, **settings))
        return own.run_id

    def _attack(self, settings: Values, data: Dataset, resume: str | None) -> str:
        with Run(self._progress, nested=True) as own:
            attack.record_all(own, experiments.attack(own, attack.record, **settings), settings)
        return own.run_id

    def _universal(self, settings: Values, data: Dataset, resume: str | None) -> str:
        with Run(self._progress, nested=True) as own:
            settings = settings | {"solve_dir": self._folder}
            universal.record(own, experiments.universal(own, parallel.map, print, **settings))
        return own.run_id

    def add_metrics(self, run: FinishedRun, metrics: Mapping[str, float]) -> None:
        """Log more figures of a run."""
        self._run.add_metrics(run.run_id, metrics)


def record(run: Run, found: experiments.Reproduction) -> None:
    """Log the report and its tables."""
    run.log_files(page.files(presentation.as_report(found)))
    run.log_table(presentation.claims_table(found), "claims")
    run.log_table(presentation.comparison_table(found), "accuracies")


if __name__ == "__main__":
    main()
