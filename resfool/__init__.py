"""ResNets: easy to train, easy to fool? Train image classifiers and measure how they are fooled."""

import os

# Nobody is told that MLflow or Ray is used, unless the user wants it; child processes inherit it.
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")

__version__ = "0.1.0"
