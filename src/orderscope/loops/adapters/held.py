"""What every adapter offers once its library has trained."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from orderscope.errors import OrderscopeError
from orderscope.loops.legs import finished, is_finished
from orderscope.loops.notices import RecorderWarning, tell
from orderscope.loops.recorded import Recorded
from orderscope.loops.recorder import HOPELESS, Recorder, Refused
from orderscope.task import Task


class HeldRecorder:
    """A recorder that is made when the library begins to train.

    Args:
        path, options: as for `Recorder`.
    """

    def __init__(self, path: str | os.PathLike[str], **options: Any) -> None:
        if is_finished(path):
            raise finished(Path(path))
        self._path, self._options = path, options
        self._recorder: Recorder | None = None
        self._said: set[type[RecorderWarning]] = set()

    def say(self, kind: type[RecorderWarning], text: str) -> None:
        """Warn of something seen before the training; the recorder then does not repeat it.

        Args:
            kind: class of the warning.
            text: what it says.

        Raises:
            OrderscopeError: under `strict`, for what rules out any question about another order.
        """
        if self._options.get("strict") and kind in HOPELESS:
            raise Refused(text, "a training whose other orders can be predicted", "or leave out strict=True")
        self._said.add(kind)
        tell(kind, f"recording {self._path}: {text}")

    def begin(self, model: Any, optimizer: Any, *, steps: int | None, step: int, samples: int | None = None) -> None:
        """Start to record.

        Args:
            model: the one that is trained.
            optimizer: its optimizer, or a wrapper with it in `.optimizer`.
            steps: how many the loop will take; None where that is not known.
            step: the library's own count of steps taken so far, for optimizers that do not count theirs.
            samples: of an epoch; None where that is not known.
        """
        optimizer = getattr(optimizer, "optimizer", optimizer)
        counted = not isinstance(optimizer, torch.optim.SGD)
        options: dict[str, Any] = {"steps": steps, "step": None if counted else step, "samples": samples}
        self._recorder = Recorder(self._path, model, optimizer, **(options | self._options))
        self._recorder.said |= self._said
        self._recorder.expected = step

    @property
    def recorder(self) -> Recorder:
        if self._recorder is None:
            raise OrderscopeError("a run that has not begun", "a finished training", "train first, then ask")
        return self._recorder

    @property
    def recorded(self) -> Recorded:
        """What was recorded, after the end."""
        return self.recorder.recorded

    @property
    def order(self) -> np.ndarray:
        """The order that was trained, int64 [steps, batch]. Raises as `Recorded.order`."""
        return self.recorder.order

    @property
    def batches(self) -> list[np.ndarray]:
        """Sample ids of each step, of whatever length."""
        return self.recorder.batches

    def task(self, **parts: Any) -> Task:
        """The recorded run as an `osc.Task`, see `Recorded.task`; what the library knows need not be said: the model,
        and as far as it has them data, loss, held-out rows and clipping."""
        return self.recorder.task(**(self.known_parts(parts) | parts))

    def known_parts(self, given: Mapping[str, Any]) -> dict[str, Any]:
        """Parts of the task that the library knows, beside those given."""
        return {}
