"""Independent work in several processes, on this machine or a Ray cluster.

`map` is for many short items, `Pool` for long tasks that report on the way. This package alone
talks to joblib and Ray.
"""

from resfool.parallel.mapping import TaskError, check, map
from resfool.parallel.pool import Pool
from resfool.parallel.tasks import Died, Failure, Report

__all__ = ["Died", "Failure", "Pool", "Report", "TaskError", "check", "map"]
