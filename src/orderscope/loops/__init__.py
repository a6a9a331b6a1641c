"""Runs recorded inside other people's training loops."""

from orderscope.loops.first_step import no_dropout
from orderscope.loops.notices import RecorderWarning
from orderscope.loops.recorded import Recorded, recorded
from orderscope.loops.recorder import Recorder, Watcher
from orderscope.loops.scaling import Scaling

__all__ = ["Recorded", "Recorder", "RecorderWarning", "Scaling", "Watcher", "no_dropout", "recorded"]
