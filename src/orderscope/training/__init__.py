"""Our own training loop, and the runs it leaves: states, gradients and metrics, written so that they can be resumed."""

from orderscope.training.description import environment, require_recorded, task_shard
from orderscope.training.segments import RecordedRun, has_gradients, load_run, recorded_runs, true_runs
from orderscope.training.state import SUPPORTED, TrainingState, require_supported

__all__ = [
    "SUPPORTED",
    "RecordedRun",
    "TrainingState",
    "environment",
    "has_gradients",
    "load_run",
    "recorded_runs",
    "require_recorded",
    "require_supported",
    "task_shard",
    "true_runs",
]
