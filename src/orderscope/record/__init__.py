"""One training run as it happens, written so that it can be resumed, replayed and asked."""

from orderscope.record.description import environment, require_recorded, task_shard
from orderscope.record.recorded import Recorded, recorded
from orderscope.record.recorder import Recorder
from orderscope.record.runs import record_run
from orderscope.record.segments import RecordedRun, has_gradients, load_run, recorded_runs, true_runs
from orderscope.record.state import SUPPORTED, TrainingState, require_supported

__all__ = [
    "SUPPORTED",
    "Recorded",
    "RecordedRun",
    "Recorder",
    "TrainingState",
    "environment",
    "has_gradients",
    "load_run",
    "record_run",
    "recorded",
    "recorded_runs",
    "require_recorded",
    "require_supported",
    "task_shard",
    "true_runs",
]
