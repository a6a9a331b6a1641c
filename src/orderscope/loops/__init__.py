"""Runs recorded inside other people's training loops."""

from orderscope.loops.recorded import Recorded, recorded
from orderscope.loops.recorder import Recorder

__all__ = ["Recorded", "Recorder", "recorded"]
