"""Names of shards in a run on disk. This module imports nothing, so that reading a name is cheap."""

from __future__ import annotations

from collections.abc import Iterable

REFERENCE = "reference"  # the recorded run
FURTHER = ("validated-", "confirmed-")  # how names of runs begin that were trained after recording
TASK_SHARD = "record/task"
TABLE = "table/"  # what a simulator reads, built of all the rest
PROXY = "proxy/"  # true runs trained on a few samples of each batch
PLAN = "sketch/plan"
SPLIT = "sketch/split"
SEARCH = "search/"  # scores of a search that has not ended
REUSED = "sketch/reused"  # orders that were given as probes


def latest_plan(names: Iterable[str]) -> str:
    """The current plan among names of shards: a plan that grows is written again, as `sketch/plan-001` and so on."""
    return max(name for name in names if name == PLAN or name.startswith(f"{PLAN}-"))
