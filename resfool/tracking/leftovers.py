"""What processes that were killed have left in a store: runs that nobody will end."""

import json
from collections.abc import Iterator, Mapping
from contextlib import suppress
from typing import Any

from mlflow import MlflowClient
from mlflow.entities import LoggedModelStatus, Run
from mlflow.exceptions import MlflowException

from resfool import owner
from resfool.tracking.logged_models import models_of

_TAG = "resfool.process"


def tags() -> dict[str, str]:
    """By which a run of this process is known."""
    return {_TAG: json.dumps(owner.this_process())}


def end_dead_runs(client: MlflowClient, experiment_id: str) -> Iterator[str]:
    """Mark the runs of an experiment that killed processes of this machine left RUNNING.

    Those of other machines can't be told from runs that go on.

    Yields:
        The id of each, once it is marked.
    """
    with suppress(MlflowException):  # there is a next time
        for run in client.search_runs([experiment_id], "attributes.status = 'RUNNING'"):
            if _is_dead(run.data.tags):
                end(client, run)
                yield run.info.run_id


def _is_dead(tags: Mapping[str, str]) -> bool:
    try:
        found: Any = json.loads(tags[_TAG])
        return not owner.at_work(found)
    except (KeyError, TypeError, ValueError, OverflowError):
        return False  # it isn't ours, or somebody made it up


def end(client: MlflowClient, run: Run) -> None:
    """Mark a killed process's run, and its model that is half there."""
    for model in models_of(client, run):
        if model.status == LoggedModelStatus.PENDING:
            client.finalize_logged_model(model.model_id, LoggedModelStatus.FAILED)
    client.set_terminated(run.info.run_id, "KILLED")
