"""Our own runs in MLflow, and what earlier ones left: the only place that talks to MLflow."""
