"""The commands: what `mlflow run . -e NAME` and `resfool NAME` do, with MLflow and its workers.

MLflow, pandas and matplotlib are imported when a command runs: its words are checked before.
"""

import contextlib
import functools
import os
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from resfool import __version__, command_line, interrupts, places
from resfool.attacks import attack as attacks
from resfool.attacks.options import AttackParameters
from resfool.datasets.sets import Dataset, draw, load
from resfool.declarations import Parameter
from resfool.errors import CALLED_FROM, DataWarning, UsageError, UselessWarning, expanded, unknown
from resfool.parameters import Checkpoints, Parameters, Resumable, Workers, within
from resfool.progress import ProgressReport
from resfool.reproduction import reproduce as reproduction
from resfool.reproduction.plan import ReproduceParameters
from resfool.training import train as training
from resfool.training.recipe import TrainParameters, resumed
from resfool.trials import sweep as sweeps
from resfool.trials import tune as tuning
from resfool.trials.options import SweepParameters, TuneParameters
from resfool.trials.recorder import Trained
from resfool.trials.space import space_of
from resfool.universal import experiment
from resfool.universal import transfer as transfers
from resfool.universal.options import MnistParameters, TransferParameters, UniversalParameters
from resfool.values import Part, Row
from resfool.wording import has_password, hiding_in_logs, print_anywhere, say, sentence, warn

if TYPE_CHECKING:
    from resfool.archive import Archive, ModelSource
    from resfool.attacks.examples import Attacked
    from resfool.parallel import Pool
    from resfool.tracking.run import Run
    from resfool.tracking.training_run import TrainingRun


@contextlib.contextmanager
def _recording(
    title: str, checkpoint_dir: str | None = None
) -> "Iterator[tuple[Run, Archive, ProgressReport]]":
    """A run, what earlier ones left (there too), and a bar that shows how it goes."""
    from resfool.tracking.archive import MLflowArchive
    from resfool.tracking.run import Run

    with ProgressReport(title) as progress, Run(progress) as run:
        yield run, MLflowArchive(checkpoint_dir), progress


def _say_where(run: "Run", *before: str) -> None:
    """Say in which run the results are, and what shows it."""
    from resfool.tracking import stores

    say("\n".join([f"run             {run.run_id}", *before]))
    say(f"look at it with {stores.viewer()}")


# Training


def train(asked: TrainParameters, where: Resumable) -> None:
    """Train one architecture, or go on with a training."""
    from resfool.tracking.training_run import TrainingRun

    with (
        ProgressReport(f"training {asked.arch}") as progress,
        TrainingRun(progress, where) as run,
    ):
        if run.checkpoint is not None:
            asked = resumed(asked, run.checkpoint)
        result = training.train(asked, run)
        model_uri = keep_training(run, result)
    say(f"train accuracy  {result.train.accuracy:.4f}  (the curve's last point)")
    count = len(result.dataset.split(result.part))
    say(f"{f'{result.part} accuracy':<15} {result.test.accuracy:.4f}  (all {count} images)")
    _say_where(run, f"model           {model_uri}")


def keep_training(run: "TrainingRun", result: training.Training) -> str:
    """Log a training's figure and model; the model's URI."""
    from resfool.training import presentation

    run.log(presentation.leaves(result.network.name, result.dataset.name, result.history))
    return run.log_model(result.model, result.dataset, result.final_metrics, result.part)


def sweep(asked: SweepParameters) -> None:
    """Train a grid of networks in parallel, and compare them."""
    from resfool.trials import presentation

    with _recording("sweep") as (run, archive, _):
        swept = sweeps.sweep(asked, _pool_of(asked), _keep_trial, run, archive)
        run.log(presentation.sweep_leaves(swept))
    say(presentation.sweep_summary(swept))
    _say_where(run)


def tune(asked: TuneParameters) -> None:
    """Search for the settings that the paper left untuned."""
    space_of(asked)  # refuses what can't be searched before all that is imported from here on
    from resfool.trials import presentation
    from resfool.trials.study import Study, check_storage

    check_storage(asked.database)
    with _recording("tune") as (run, archive, _):
        if "MLFLOW_RUN_ID" in os.environ and has_password(asked.storage or ""):
            run.warn(
                "mlflow run has recorded the password of storage= in run "
                f"{os.environ['MLFLOW_RUN_ID']}; the variable RESFOOL_STORAGE keeps it out"
            )
        found = tuning.tune(asked, _pool_of(asked), Study, _keep_trial, run, archive)
        run.log(presentation.tuning_leaves(found, f"tuning of {asked.arch}, {asked.dataset}"))
        run.point({"step": len(found.tried), "final_best_validation_accuracy": found.value})
        for name, value in found.best.items():
            run.tag(f"best_{name}", value)
        run.note(f"Train the best with\n\n    {found.command}")
    say(presentation.tuning_summary(found))
    _say_where(run)


def _pool_of(asked: SweepParameters | TuneParameters) -> "Callable[..., Pool]":
    """What opens the workers that were asked for."""
    from resfool.parallel import Pool

    return functools.partial(
        Pool, **asked.crew, cpus=asked.cpus_per_trial, gpus=asked.gpus_per_trial
    )


def _keep_trial(run: "Run", trained: Trained, curve: Sequence[Row], data: Dataset) -> None:
    """Log what a trial sent home: its figure and its model."""
    from resfool.training import presentation

    run.log(presentation.leaves(trained.network, data.name, curve))
    run.log_model(trained.load_model(), data, trained.metrics, trained.part)


# Attacks


def attack(asked: AttackParameters, applied: TransferParameters) -> None:
    """Fool one or several classifiers, or apply perturbations of earlier runs to them."""
    if applied.perturbation is not None:
        from resfool.universal import transfer_presentation as of_transfer

        with _recording("transfer, image passes") as (run, archive, _):
            moved = transfers.transfer(applied, run, archive)
            run.log(of_transfer.leaves(moved))
        say(of_transfer.summary(moved))
    else:
        from resfool.attacks import presentation

        places.check_folder("solve folder", expanded(asked.solve_dir))
        spread = _spread_of(asked, True)
        with _recording(f"{asked.method}, image passes") as (run, archive, _):
            results = attacks.attack(asked, run, archive, keep_attacked, spread)
            run.log(presentation.leaves(results, asked))
        say(presentation.summary(results))
    _say_where(run)


def keep_attacked(
    run: "Run", source: "ModelSource", attacked: "Attacked", data: Dataset, part: Part
) -> None:
    """Log one model's result as soon as it is there."""
    from resfool.attacks import presentation

    run.point({"step": 0} | presentation.scalars(attacked))
    run.log(presentation.leaves_of(attacked))
    if source.model_id is not None:
        run.log_model_metrics(source.model_id, presentation.model_metrics(attacked), data, part)


# Universal perturbations


def universal(asked: UniversalParameters) -> None:
    """Find one perturbation for all images, and judge it on held-out ones."""
    from resfool.universal import presentation

    places.check_folder("solve folder", expanded(asked.solve_dir))
    spread = _spread_of(asked, asked.spreads)
    with _recording(f"algorithm {asked.algorithm}") as (run, archive, _):
        result = experiment.universal(asked, run, archive, spread)
        keep_universal(run, result)
    say(presentation.summary(result))
    _say_where(run)


def keep_universal(run: "Run", result: experiment.Fooling) -> None:
    """Log a universal perturbation: rates, figures, tables, the vector and its matrix."""
    from resfool.universal import presentation

    run.point({"step": 0} | presentation.scalars(result))
    run.log(presentation.leaves(result))
    result.settle()


def _spread_of(asked: Workers, used: bool) -> Callable[..., list[Any]]:
    """What runs images in the workers that were asked for; a cluster must be there if it is used.

    Raises:
        InputError: the cluster can't be reached, or has no room.
    """
    from resfool import parallel

    if used:
        parallel.check(**asked.crew)
    return functools.partial(parallel.map, **asked.crew)


def mnist(asked: MnistParameters) -> None:
    """Train the 5-layer network on MNIST digits, and fool it by Algorithm 2 (section VI.C)."""
    from resfool.tracking.run import Run
    from resfool.tracking.training_run import TrainingRun
    from resfool.universal import presentation

    with _recording("mnist case study") as (run, archive, progress):
        places.check_folder("checkpoint folder", expanded(asked.checkpoint_dir))
        data = load(asked.training.dataset)
        # Refuses more than there are, before the training rather than after it.
        draw(len(data.train), asked.samples, asked.seed, f"training images of {data.name}")
        spread = _spread_of(asked, True)
        name = f"mnist case study, {asked.solver} seed {asked.seed}"
        run.begin(name, {n: getattr(asked, n) for n in ("steps", "solver", "seed")}, [])
        kept = Resumable(checkpoint_dir=asked.checkpoint_dir)
        with TrainingRun(progress, kept, nested=True) as own:
            trained = training.train(asked.training, own, data)
            model = keep_training(own, trained)
        say(f"train accuracy  {trained.train.accuracy:.4f}")
        say(f"test accuracy   {trained.test.accuracy:.4f}")
        with Run(progress, nested=True) as part:
            result = experiment.universal(asked.universal(model), part, archive, spread)
            keep_universal(part, result)
        run.log(presentation.mnist_leaves(result))
        run.point({"step": 0, "final_test_accuracy": trained.test.accuracy} | result.rates)
    say(presentation.summary(result))
    _say_where(run)


# The whole paper


def reproduce(asked: ReproduceParameters, where: Checkpoints) -> None:
    """Make what the paper's tables and figures need, and compare."""
    from resfool import parallel
    from resfool.reproduction import presentation
    from resfool.tracking import stores

    with _recording("reproduce", where.checkpoint_dir) as (run, archive, progress):
        places.check_folder("checkpoint folder", expanded(where.checkpoint_dir))
        make = _maker(archive, progress, where.checkpoint_dir)
        workers = None
        if asked.wanted and not (asked.dry_run or asked.report_only):
            parallel.check(**asked.crew)
            workers = functools.partial(parallel.Pool, **asked.crew), _keep_trial
        found = reproduction.reproduce(asked, make, run, archive, workers)
        if found is None:
            return
        run.log(presentation.leaves(found))
    say(presentation.summary(found))
    say(f"report          report.html, an artifact of run {run.run_id}")
    say(f"look at it with {stores.viewer()}")


def _maker(archive: "Archive", progress: ProgressReport, folder: str) -> reproduction.Make:
    """What makes a run under the reproduction's own, as the other commands do; gives its id."""
    from resfool.attacks import presentation
    from resfool.tracking.run import Run
    from resfool.tracking.training_run import TrainingRun

    def make(asked: Parameters, data: Dataset, resume: str | None) -> str:
        if isinstance(asked, TrainParameters):
            kept = Resumable(checkpoint_dir=folder, resume=resume)
            with TrainingRun(progress, kept, nested=True) as own:
                keep_training(own, training.train(asked, own, data))
            return own.run_id
        with Run(progress, nested=True) as part:
            if isinstance(asked, AttackParameters):
                asked, spread = replace(asked, solve_dir=folder), _spread_of(asked, False)
                results = attacks.attack(asked, part, archive, keep_attacked, spread)
                part.log(presentation.leaves(results, asked))
            elif isinstance(asked, UniversalParameters):
                asked, spread = replace(asked, solve_dir=folder), _spread_of(asked, False)
                keep_universal(part, experiment.universal(asked, part, archive, spread))
        return part.run_id

    return make


# All of them


@dataclass(frozen=True)
class Command:
    """A command: what does it, and the parameters that this takes."""

    run: Callable[..., None]
    takes: tuple[type[Parameters], ...]

    @property
    def text(self) -> str:
        """What it does, in a sentence."""
        return (self.run.__doc__ or "").strip()

    @property
    def parameters(self) -> dict[str, Parameter]:
        """All that it takes, by name."""
        return command_line.declared(*self.takes)


COMMANDS = {
    "train": Command(train, (TrainParameters, Resumable)),
    "attack": Command(attack, (AttackParameters, TransferParameters)),
    "universal": Command(universal, (UniversalParameters,)),
    "mnist": Command(mnist, (MnistParameters,)),
    "sweep": Command(sweep, (SweepParameters,)),
    "tune": Command(tune, (TuneParameters,)),
    "reproduce": Command(reproduce, (ReproduceParameters, Checkpoints)),
}


def run(name: str, argv: Sequence[str] | None = None, program: str | None = None) -> None:
    """Read the words of a command, and do what it does.

    Args:
        name: of the command.
        argv: its words; those of this process by default.
        program: what it is called in its help.
    """
    command = COMMANDS[name]
    print_anywhere()
    with command_line.one_sentence_errors(), _said_plainly(), hiding_in_logs():
        _note_caller()
        asked = command_line.parse(*command.takes, argv=argv, program=program, text=command.text)
        interrupts.raise_once()
        with within(*asked):
            for one in asked:
                one.check_places()
            with places.tidied():
                command.run(*asked)


@contextlib.contextmanager
def _said_plainly() -> Iterator[None]:
    """Say how the user's data was understood in a line without the place in our code."""
    with warnings.catch_warnings():
        show = warnings.showwarning

        def shown(
            message: Warning | str, category: type[Warning], *where: Any, **more: Any
        ) -> None:
            if issubclass(category, DataWarning | UselessWarning):
                warn(str(message))
            else:
                show(sentence(str(message)), category, *where, **more)

        warnings.showwarning = shown
        yield


def _note_caller() -> None:
    """Note where `mlflow run` was called, which runs commands in the project's folder.

    Its process, whose child this one is, is still there; PWD was set anew by the shell between.
    """
    project = Path(__file__).resolve().parents[1]
    if "MLFLOW_RUN_ID" not in os.environ or Path.cwd() != project:
        return
    import psutil

    with contextlib.suppress(psutil.Error):
        caller = psutil.Process(os.getppid()).cwd()
        if caller != str(project):
            os.environ[CALLED_FROM] = caller


def main(argv: Sequence[str] | None = None) -> None:
    """`resfool NAME ...`: the commands without a checkout and without `mlflow run`."""
    name, *words = (sys.argv[1:] if argv is None else argv) or ["--help"]
    print_anywhere()
    with command_line.one_sentence_errors():
        if name in ("--help", "-h"):
            print(_help())
        elif name == "--version":
            print(f"resfool {__version__}")
        elif name == "--completion":
            known = {each: command.parameters for each, command in COMMANDS.items()}
            print(command_line.completion(" ".join(words), known))
        elif name not in COMMANDS:
            raise UsageError(str(unknown("command", name, COMMANDS)))
        else:
            run(name, words, program=f"resfool {name}")


def _help() -> str:
    lines = [f"  {name:<11}{command.text}" for name, command in COMMANDS.items()]
    return "\n".join(
        [
            "resfool COMMAND --name=value ...",
            "",
            "Train image classifiers, and find out how easily any Keras classifier is fooled.",
            "",
            *lines,
            "",
            "`resfool COMMAND --help` lists a command's parameters.",
            "`resfool --completion bash`, or zsh, prints what a shell needs to complete them.",
        ]
    )
