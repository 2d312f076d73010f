"""Whole experiments as plain functions, for Python: `experiments.train(arch="resnet", steps=200)`.

Their keyword arguments are the public parameters, as the command line has them; the positional
ones are services, which a command connects to MLflow. TensorFlow is imported only when everything
that can be checked without it has been checked.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from resfool.archive import Archive
from resfool.attacks import attack as attacking
from resfool.attacks.options import AttackParameters
from resfool.datasets.sets import Dataset
from resfool.monitor import Monitor
from resfool.parameters import taking
from resfool.reproduction import reproduce as reproducing
from resfool.reproduction.plan import ReproduceParameters
from resfool.reproduction.reproduce import Reproduction
from resfool.training import train as training
from resfool.training.recipe import TrainParameters
from resfool.training.train import Training
from resfool.trials import sweep as sweeping
from resfool.trials import tune as tuning
from resfool.trials.options import SweepParameters, TuneParameters
from resfool.trials.recorder import Trained
from resfool.trials.sweep import SweptTraining
from resfool.trials.tune import Tuning
from resfool.universal import experiment
from resfool.universal import transfer as transferring
from resfool.universal.experiment import Fooling
from resfool.universal.options import TransferParameters, UniversalParameters
from resfool.universal.transfer import Transfer

if TYPE_CHECKING:
    from resfool.attacks.examples import Attacked

__all__ = [
    "Fooling",
    "Reproduction",
    "SweptTraining",
    "Trained",
    "Training",
    "Transfer",
    "Tuning",
    "attack",
    "reproduce",
    "sweep",
    "train",
    "transfer",
    "tune",
    "universal",
]


@taking(TrainParameters)
def train(monitor: Monitor | None = None, data: Dataset | None = None, /, **given: Any) -> Training:
    """Train one of the paper's architectures (sections III to V)."""
    return training.train(TrainParameters.of(given), monitor, data)


@taking(AttackParameters)
def attack(
    monitor: Monitor | None = None,
    archive: Archive | None = None,
    record: attacking.Record = attacking.no_record,
    /,
    **given: Any,
) -> list["Attacked"]:
    """Measure how easily classifiers are fooled along the sign of their loss gradient."""
    return attacking.attack(AttackParameters.of(given), monitor, archive, record)


@taking(UniversalParameters)
def universal(
    monitor: Monitor | None = None,
    archive: Archive | None = None,
    map: Callable[..., list[Any]] | None = None,
    /,
    **given: Any,
) -> Fooling:
    """Fit one perturbation for all images and judge it on held-out ones (section VI.B)."""
    return experiment.universal(UniversalParameters.of(given), monitor, archive, map)


@taking(TransferParameters)
def transfer(
    monitor: Monitor | None = None, archive: Archive | None = None, /, **given: Any
) -> Transfer:
    """Measure how well universal perturbations fool models that they may not be fitted on."""
    return transferring.transfer(TransferParameters.of(given), monitor, archive)


@taking(SweepParameters)
def sweep(
    open_pool: sweeping.OpenPool,
    keep: sweeping.Keep,
    monitor: Monitor | None = None,
    archive: Archive | None = None,
    /,
    **given: Any,
) -> list[SweptTraining]:
    """Train every architecture at every depth with every seed, as parts of one run."""
    return sweeping.sweep(SweepParameters.of(given), open_pool, keep, monitor, archive)


@taking(TuneParameters)
def tune(
    open_pool: sweeping.OpenPool,
    open_study: tuning.OpenStudy,
    keep: sweeping.Keep,
    monitor: Monitor | None = None,
    archive: Archive | None = None,
    /,
    **given: Any,
) -> Tuning:
    """Search for the settings of an architecture that do best on validation images."""
    return tuning.tune(TuneParameters.of(given), open_pool, open_study, keep, monitor, archive)


@taking(ReproduceParameters)
def reproduce(
    make: reproducing.Make,
    monitor: Monitor | None = None,
    archive: Archive | None = None,
    /,
    **given: Any,
) -> Reproduction | None:
    """Make what the paper's results need, or find it among the finished runs."""
    return reproducing.reproduce(ReproduceParameters.of(given), make, monitor, archive)
