"""A position map, as `orderscope.studies.positions` makes it and as it is kept in a run."""

from __future__ import annotations

from dataclasses import dataclass, field, fields

import numpy as np


def _none() -> np.ndarray:
    return np.zeros(0)


@dataclass(frozen=True)
class Heat:
    """A map of units against positions.

    Args:
        units: recorded batches, as steps of the reference order, [n].
        places: positions they were moved to, [k].
        at: where they were recorded, [n].
        value: final loss on unit i with the unit at place j and all others in their sequence, [n, k].
        error: half-width of a 90 % interval around it, [n, k].
        recorded: true loss on the unit at the end of the reference run, [n].
        held_out: estimated metric of the same orders, [n, k].
        neighbours: estimated final loss on other samples of the unit's main group, [n, k]; not a number where only some
            coordinates are carried, or the group has no others.
        metric: name of what `held_out` estimates.
        cells: cells that were truly trained, as indices into `units` and `places`, int64 [c, 2].
        true: true final loss on the unit there, [c].
        true_held_out: the true metric there, [c].
        trusted: whether `value` and its error are to be trusted, as those of any order, bool [n, k]; empty in maps of
            earlier versions.
    """

    units: np.ndarray
    places: np.ndarray
    at: np.ndarray
    value: np.ndarray
    error: np.ndarray
    recorded: np.ndarray
    held_out: np.ndarray = field(default_factory=_none)
    neighbours: np.ndarray = field(default_factory=_none)
    metric: str = ""
    cells: np.ndarray = field(default_factory=lambda: np.zeros((0, 2), dtype=np.int64))
    true: np.ndarray = field(default_factory=_none)
    true_held_out: np.ndarray = field(default_factory=_none)
    trusted: np.ndarray = field(default_factory=lambda: np.zeros((0, 0), dtype=bool))

    def arrays(self) -> dict[str, np.ndarray]:
        """Everything but the metric's name."""
        return {f.name: np.asarray(getattr(self, f.name)) for f in fields(self) if f.name != "metric"}
