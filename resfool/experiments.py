"""Whole experiments as plain functions. Their keyword-only parameters ARE the public parameters.

The command line is derived from these signatures, and MLproject repeats them; the positional
parameters are services, which an entry point connects to MLflow. TensorFlow is imported only
when everything that can be checked without it has been checked.
"""

from resfool.attacks.attack import attack
from resfool.parameters import Row
from resfool.reproduction.reproduce import Reproduction, reproduce
from resfool.training.recipe import resumed_settings
from resfool.training.train import Training, train
from resfool.trials.recorder import Trained
from resfool.trials.sweep import SWEPT, SweptTraining, sweep
from resfool.trials.tune import TUNED, Tuning, tune
from resfool.universal.experiment import Universal, universal
from resfool.universal.transfer import Transfer, transfer

__all__ = [
    "SWEPT",
    "TUNED",
    "Reproduction",
    "Row",
    "SweptTraining",
    "Trained",
    "Training",
    "Transfer",
    "Tuning",
    "Universal",
    "attack",
    "reproduce",
    "resumed_settings",
    "sweep",
    "train",
    "transfer",
    "tune",
    "universal",
]
