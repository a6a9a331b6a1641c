"""The former name of what is in `orderscope.training` and `orderscope.loops`, for scripts written against it."""

from orderscope.loops import Recorded, Recorder, recorded
from orderscope.training import RecordedRun, TrainingState, load_run, recorded_runs, true_runs

__all__ = ["Recorded", "RecordedRun", "Recorder", "TrainingState", "load_run", "recorded", "recorded_runs", "true_runs"]
