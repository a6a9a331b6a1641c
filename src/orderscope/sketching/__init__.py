"""What is computed once a run, as a list of independent units: gradients at the anchors, curvature, metrics."""

from orderscope.sketching.coordinates import Coordinates, draw_coordinates
from orderscope.sketching.plan import Anchor, SketchPlan, make_plan, missing_units, next_plan, require_probes
from orderscope.sketching.stage import SketchStage, from_bfloat16, stored_split, write_split

__all__ = [
    "Anchor",
    "Coordinates",
    "SketchPlan",
    "SketchStage",
    "draw_coordinates",
    "from_bfloat16",
    "make_plan",
    "missing_units",
    "next_plan",
    "require_probes",
    "stored_split",
    "write_split",
]
