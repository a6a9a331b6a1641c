"""Pure functions on tensors that predict the final weights and losses of orders."""

from orderscope.engine.anchors import AnchorSpace
from orderscope.engine.batches import Batches
from orderscope.engine.held_out import Expansion, HeldOut
from orderscope.engine.replay import Replayed, replay
from orderscope.engine.units import Units, units_of
from orderscope.engine.window import Window

__all__ = ["AnchorSpace", "Batches", "Expansion", "HeldOut", "Replayed", "Units", "Window", "replay", "units_of"]
