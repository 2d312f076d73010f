"""Whole experiments as plain functions. Their keyword-only parameters ARE the public parameters.

The command line is derived from these signatures, and MLproject repeats them; the positional
parameters are services, which an entry point connects to MLflow. TensorFlow is imported only
when everything that can be checked without it has been checked.
"""

from resfool.experiments.attacking import attack
from resfool.experiments.reproducing import Reproduction, reproduce
from resfool.experiments.sweeping import SWEPT, SweptTraining, sweep
from resfool.experiments.training import Training, resumed_settings, train
from resfool.experiments.transferring import Transfer, transfer
from resfool.experiments.trials import Row, Trained
from resfool.experiments.tuning import TUNED, Tuning, tune
from resfool.experiments.universal import Universal, universal

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
