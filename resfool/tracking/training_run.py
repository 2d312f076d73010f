"""The run of a training: it has a checkpoint, and can be resumed."""

import platform
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import IO, Any

import mlflow
from mlflow.exceptions import MlflowException

from resfool import checkpoints
from resfool.errors import InputError, expanded
from resfool.monitor import Use
from resfool.tracking import stores
from resfool.tracking.run import CHECKPOINT_TAG, TAG, Progress, Run, no_progress


class TrainingRun(Run):
    """The run of a training: it has a checkpoint, and can be resumed.

    Args:
        progress: is told the steps done, their total and a short text.
        resume: id of the run to go on with, or None for a new one.
        checkpoint_dir: folder for the checkpoints, one folder a run.
        nested: whether it is a part of the run that is open.

    Attributes:
        checkpoint: the checkpoint of the run that is resumed, else None until it begins.
    """

    def __init__(
        self,
        progress: Progress,
        *,
        resume: str | None,
        checkpoint_dir: Path,
        nested: bool = False,
    ) -> None:
        super().__init__(progress, nested=nested)
        checkpoint_dir = expanded(checkpoint_dir)
        stores.check_folder("checkpoint folder", checkpoint_dir)
        self.checkpoint: Path | None = None
        self._checkpoint_dir = checkpoint_dir
        self._lock: IO[str] | None = None
        if resume is not None:
            self.reopen(resume)
            self.checkpoint = self._find_checkpoint(resume)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        super().__exit__(kind, error, trace)
        if self._lock is not None:
            self._lock.close()
        if kind is None and self.checkpoint is not None:
            checkpoints.remove(self.checkpoint)

    def begin(self, name: str, facts: Mapping[str, Any], uses: Sequence[Use]) -> Path:
        """Open the run, or open again the one to resume, and log what is known."""
        super().begin(name, facts, uses)
        assert self.checkpoint is not None
        tags = {CHECKPOINT_TAG: str(self.checkpoint), f"{TAG}host": platform.node()}
        mlflow.set_tags(tags | {"network": facts["network"]})
        return self.checkpoint

    # Within

    def _start(self, name: str) -> Any:
        if self._resumes:
            return self._reopened()
        run = super()._start(name)
        self.checkpoint = (self._checkpoint_dir / self.run_id / "checkpoint.npz").resolve()
        self._lock = checkpoints.hold(self.checkpoint)
        return run

    def _reopened(self) -> Any:
        assert self.checkpoint is not None
        self._lock = checkpoints.hold(self.checkpoint)
        self._find_checkpoint(self.run_id)  # who held it until now may have finished
        return super()._reopened()

    def _find_checkpoint(self, run_id: str) -> Path:
        uri = mlflow.get_tracking_uri()
        try:
            if not stores.exists(uri):
                raise MlflowException("a new store has no runs, and would be made by the question")
            run = self._client.get_run(run_id)
        except MlflowException:
            raise InputError(
                f"resume={run_id}: there is no such run in {stores.shown(uri)}"
            ) from None
        if run.info.status == "FINISHED":
            raise InputError(f"resume={run_id}: this run has finished; there is nothing to resume")
        path = run.data.tags.get(CHECKPOINT_TAG)
        if path is None:
            raise InputError(f"resume={run_id}: this run is no training of resfool's")
        if not stores.present(Path(path)):
            host = run.data.tags.get(f"{TAG}host", "unknown")
            raise InputError(f"resume={run_id}: its checkpoint {path} (host {host}) isn't here")
        return Path(path)


def open_run(
    progress: Progress = no_progress,
    /,
    *,
    resume: str | None = None,
    checkpoint_dir: str = "checkpoints",
) -> TrainingRun:
    """Prepare a training's run, new or resumed; `begin` opens it.

    Args:
        progress: is told the steps done, their total and a short text.
        resume: id of a training that was stopped, to go on with in its own run.
        checkpoint_dir: folder for the checkpoints, one folder a run.

    Returns:
        The run, to be used as a context manager.

    Raises:
        InputError: the tracking store can't be used, or there is no such run to resume.
    """
    return TrainingRun(progress, resume=resume, checkpoint_dir=Path(checkpoint_dir))
