"""Pure tensor functions: orders in, predictions out."""

from orderscope.engine.anchors import AnchorSpace
from orderscope.engine.batches import Batches
from orderscope.engine.replay import Replayed, jackknife, replay
from orderscope.engine.units import Units, units_of
from orderscope.engine.window import Window, load_window

__all__ = ["AnchorSpace", "Batches", "Replayed", "Units", "Window", "jackknife", "load_window", "replay", "units_of"]
