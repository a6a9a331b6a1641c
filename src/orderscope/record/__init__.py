"""One training run as it happens, written so that it can be resumed, replayed and asked."""

from orderscope.record.description import TASK_SHARD, environment, require_recorded, task_shard
from orderscope.record.recorded import Recorded, recorded
from orderscope.record.recorder import Recorder
from orderscope.record.runs import record_run
from orderscope.record.segments import FURTHER, RecordedRun, load_run, recorded_runs, true_runs
from orderscope.record.state import SUPPORTED, TrainingState, require_supported

__all__ = [
    "FURTHER",
    "SUPPORTED",
    "TASK_SHARD",
    "Recorded",
    "RecordedRun",
    "Recorder",
    "TrainingState",
    "environment",
    "load_run",
    "record_run",
    "recorded",
    "recorded_runs",
    "require_recorded",
    "require_supported",
    "task_shard",
    "true_runs",
]
