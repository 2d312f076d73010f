"""Whole experiments as plain functions, for Python: `experiments.train(arch="resnet", steps=200)`.

Their keyword arguments are the public parameters, as the command line has them; the positional
ones are services, which a command connects to MLflow. TensorFlow is imported only when everything
that can be checked without it has been checked.
"""

import functools
from typing import Any

from resfool.attacks import attack as attacks
from resfool.attacks.options import AttackParameters
from resfool.parameters import plainly
from resfool.reproduction import reproduce as reproduction
from resfool.reproduction.plan import ReproduceParameters
from resfool.training import train as training
from resfool.training.recipe import TrainParameters
from resfool.trials import sweep as sweeps
from resfool.trials import tune as tuning
from resfool.trials.options import SweepParameters, TuneParameters
from resfool.universal import experiment
from resfool.universal import transfer as transfers
from resfool.universal.options import TransferParameters, UniversalParameters


@functools.wraps(experiment.universal)
def _settled(*given: Any) -> experiment.Fooling:
    found = experiment.universal(*given)
    found.settle()
    return found


train = plainly(training.train, TrainParameters)
attack = plainly(attacks.attack, AttackParameters)
universal = plainly(_settled, UniversalParameters)
transfer = plainly(transfers.transfer, TransferParameters)
sweep = plainly(sweeps.sweep, SweepParameters)
tune = plainly(tuning.tune, TuneParameters)
reproduce = plainly(reproduction.reproduce, ReproduceParameters)
