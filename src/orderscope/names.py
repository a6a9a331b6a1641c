"""What things are called in a run on disk; nothing is imported here, so that asking a name costs nothing."""

from __future__ import annotations

REFERENCE = "reference"  # the recorded run
FURTHER = ("validated-", "confirmed-")  # how names of runs begin that were trained after recording
TASK_SHARD = "record/task"
TABLE = "table/"  # what a simulator reads, built of all the rest
PLAN = "sketch/plan"
SPLIT = "sketch/split"
