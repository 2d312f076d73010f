"""The run of a training: it has a checkpoint, and can be resumed."""

import contextlib
import platform
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, Any

from mlflow.exceptions import MlflowException

from resfool import checkpoints
from resfool.errors import InputError, expanded, present
from resfool.monitor import Use
from resfool.parameters import Resumable
from resfool.places import check_folder
from resfool.tracking import patience, stores
from resfool.tracking.outbox import Tags
from resfool.tracking.run import TAG, Progress, Run
from resfool.wording import told

CHECKPOINT_TAG = f"{TAG}checkpoint"
_HOST_TAG = f"{TAG}host"


class TrainingRun(Run):
    """The run of a training: it has a checkpoint, and can be resumed.

    Args:
        progress: is told the steps done, their total and a short text.
        asked: the run to go on with, if any, and where checkpoints are, one folder a run.
        nested: whether it is a part of the run that is open.

    Attributes:
        checkpoint: the checkpoint of the run that is resumed, else None until it begins.

    Raises:
        InputError: the tracking store or the folder can't be used, or no such run can be resumed.
    """

    def __init__(self, progress: Progress, asked: Resumable, *, nested: bool = False) -> None:
        super().__init__(progress, nested=nested)
        self._folder = expanded(asked.checkpoint_dir)
        check_folder("checkpoint folder", self._folder)
        self.checkpoint: Path | None = None
        self._lock: IO[str] | None = None
        if asked.resume is not None:
            run_id = stores.run_id_in(asked.resume)
            self.checkpoint = self._lost_by_the_store(run_id)
            if self.checkpoint is None:
                self.reopen(run_id)
                self.checkpoint = self._find_checkpoint(run_id)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: object
    ) -> None:
        try:
            super().__exit__(kind, error, trace)
        finally:
            if self._lock is not None:
                self._lock.close()
        if kind is None and self.checkpoint is not None:
            checkpoints.remove(self.checkpoint)

    def begin(self, name: str, facts: Mapping[str, Any], uses: Sequence[Use]) -> Path:
        super().begin(name, facts, uses)
        assert self.checkpoint is not None
        tags = {CHECKPOINT_TAG: str(self.checkpoint), _HOST_TAG: platform.node()}
        self._outbox.add(Tags(tags | {"network": facts["network"]}))
        self._deliver()
        return self.checkpoint

    # Within

    def _start(self, name: str) -> Any:
        if self._resumes:
            return self._reopened()
        run = super()._start(name)
        earlier, self.checkpoint = (
            self.checkpoint,
            checkpoints.place(self._folder, run.info.run_id),
        )
        self._lock = self._lock or checkpoints.hold(self.checkpoint)
        if earlier is not None:  # of a run that the store has lost
            earlier.replace(self.checkpoint)
            checkpoints.remove(earlier)
        return run

    def _tidy_after(self, run_id: str) -> None:
        with contextlib.suppress(InputError):  # somebody's own id
            checkpoints.remove_unused(checkpoints.place(self._folder, run_id))

    def _keep_unsent(self) -> str:
        if self.checkpoint is None or not present(self.checkpoint):
            return super()._keep_unsent()
        run_id = self.checkpoint.parent.name
        return f"what it hasn't got is in {self.checkpoint}, and resume={run_id} records it"

    def _reopened(self) -> Any:
        assert self.checkpoint is not None
        self._lock = self._lock or checkpoints.hold(self.checkpoint)
        self._find_checkpoint(self.run_id)  # who held it until now may have finished
        return super()._reopened()

    def _lost_by_the_store(self, run_id: str) -> Path | None:
        """The checkpoint of a run that isn't in the store any more: another run goes on from it."""
        path = checkpoints.place(self._folder, run_id)
        if not present(path):
            return None
        try:
            known = stores.exists() and self._client.get_run(run_id) is not None
        except MlflowException as error:
            if not patience.is_lost(error):
                raise stores.unusable(error) from error
            known = False
        return None if known else path

    def _find_checkpoint(self, run_id: str) -> Path:
        path = checkpoints.place(self._folder, run_id)
        try:
            stores.check_has("runs")
            run = self._client.get_run(run_id)
        except MlflowException:
            store = stores.address()
            raise InputError(f"resume={run_id}: there is no such run in {store}") from None
        if run.info.status == "FINISHED":
            raise InputError(f"resume={run_id}: this run has finished; there is nothing to resume")
        if CHECKPOINT_TAG not in run.data.tags:
            raise InputError(f"resume={run_id}: this run is no training of resfool's")
        if not present(path):
            # Anybody may have written what the run says, so that is shown and not looked at.
            said = told(run.data.tags[CHECKPOINT_TAG], 100)
            host = told(run.data.tags.get(_HOST_TAG, "unknown"), 40)
            raise InputError(
                f"resume={run_id}: {self._folder} has no checkpoint of this run; give the "
                f"checkpoint_dir that it was begun with (the run says {said}, host {host})"
            )
        stores.check_place_of_artifacts(run.info.artifact_uri)
        return path
