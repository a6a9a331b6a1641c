"""What is computed once a run, as a list of independent units: gradients at the anchors, curvature, metrics."""

from orderscope.sketch.coordinates import Coordinates, draw_coordinates
from orderscope.sketch.plan import PLAN, REFERENCE, Anchor, SketchPlan, make_plan, missing_units
from orderscope.sketch.stage import SPLIT, SketchStage, default_jobs, from_bfloat16, run_stage, stored_split

__all__ = [
    "PLAN",
    "REFERENCE",
    "SPLIT",
    "Anchor",
    "Coordinates",
    "SketchPlan",
    "SketchStage",
    "default_jobs",
    "draw_coordinates",
    "from_bfloat16",
    "make_plan",
    "missing_units",
    "run_stage",
    "stored_split",
]
