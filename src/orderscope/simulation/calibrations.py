"""Calibrations by metric."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence

from orderscope.engine.calibration import Calibration


class Calibrations(Mapping[str, Calibration]):
    """Calibrations by metric, each fitted on first access.

    Args:
        names: returns the metrics that an iteration covers; others can be accessed by name.
        fit: fits the calibration of a metric.
    """

    def __init__(self, names: Callable[[], Sequence[str]], fit: Callable[[str], Calibration]) -> None:
        self._names, self._fit, self._fitted = names, fit, dict[str, Calibration]()

    def __getitem__(self, name: str) -> Calibration:
        if name not in self._fitted:
            self._fitted[name] = self._fit(name)
        return self._fitted[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._names())

    def __len__(self) -> int:
        return len(self._names())
