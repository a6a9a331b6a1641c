"""The recorder in other people's training loops. None of these modules imports the library it is for before it must."""

from orderscope.loops.adapters.ids import with_ids
from orderscope.loops.adapters.lightning import LightningRecorder
from orderscope.loops.adapters.trainer import TrainerRecorder, play

__all__ = ["LightningRecorder", "TrainerRecorder", "play", "with_ids"]
