"""Numbers about single samples, float64 [samples], each computed once; None if the task's samples do not have it."""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from orderscope.engine.threads import one_thread
from orderscope.search import texts
from orderscope.search.crowd import rasch
from orderscope.simulation.simulator import Simulator
from orderscope.sketching.gradients import set_parameters
from orderscope.store.names import REFERENCE
from orderscope.task import Task
from orderscope.task.task import CHUNK
from orderscope.training import load_run


class Samples:
    """Numbers about every sample in the reference order; NaN for other samples.

    Args:
        sim: the simulator. Without its task only recorded losses are available.
    """

    def __init__(self, sim: Simulator) -> None:
        self._sim = sim
        self.used = np.unique(sim.order)
        self._losses: dict[int, np.ndarray] = {}

    @property
    def anchors(self) -> np.ndarray:
        """Steps trained at each anchor of the reference run, ascending from 0, [K]."""
        return self._reference.boundaries

    def losses(self, anchor: int) -> np.ndarray | None:
        """Loss of each sample at the weights of an anchor of the reference run, [samples]; None without the task.

        Args:
            anchor: index of the anchor; negative ones count from the end.
        """
        if self._sim.task is None:
            return None
        anchor %= len(self.anchors)
        if anchor not in self._losses:
            with one_thread():
                losses = _losses(self._sim.task, self._reference.theta()[anchor], self.used)
            self._losses[anchor] = self._of_all(losses)
        return self._losses[anchor]

    @cached_property
    def trained_losses(self) -> np.ndarray:
        """Loss of each sample when the reference run trained on it, [samples]; the mean if it did so several times."""
        ids, values = self._reference.order.ravel(), self._reference.loss.double().numpy().ravel()
        count = self._sim.description["samples"]
        seen = np.bincount(ids, minlength=count)
        with np.errstate(invalid="ignore"):
            return np.bincount(ids, weights=values, minlength=count) / seen

    def loss(self) -> np.ndarray:
        """Loss at the starting weights; without the task, the loss recorded when the sample was trained on."""
        losses = self.losses(0)
        return self.trained_losses if losses is None else losses

    def length(self) -> np.ndarray | None:
        """See `texts.length`."""
        return self._of_texts(texts.length)

    def compression_ratio(self) -> np.ndarray | None:
        """See `texts.compression_ratio`."""
        return self._of_texts(texts.compression_ratio)

    def lexical_diversity(self) -> np.ndarray | None:
        """See `texts.lexical_diversity`."""
        return self._of_texts(texts.lexical_diversity)

    def readability(self) -> np.ndarray | None:
        """See `texts.readability`."""
        return self._of_texts(texts.readability)

    def learnability(self) -> np.ndarray | None:
        """Decrease of the loss over training: loss at the first anchor minus loss at the last."""
        first, last = self.losses(0), self.losses(-1)
        return None if first is None or last is None else first - last

    def weak_minus_strong(self) -> np.ndarray | None:
        """Loss at the second anchor (a weak model) minus loss at the last anchor (a strong one)."""
        weak, strong = self.losses(min(1, len(self.anchors) - 2)), self.losses(-1)
        return None if weak is None or strong is None else weak - strong

    def unsureness(self) -> np.ndarray | None:
        """| exp(-loss) - 1/2 | at the middle anchor: 0 where the probability of success, exp(-loss), is one half."""
        middle = self.losses(len(self.anchors) // 2)
        return None if middle is None else np.abs(np.exp(-middle) - 0.5)

    def difficulty(self) -> np.ndarray | None:
        """Difficulty by item response theory, with the models at the anchors as the crowd."""
        return None if self._crowd is None else self._of_all(self._crowd[1])

    def abilities(self) -> np.ndarray | None:
        """Ability of the model at each anchor, from the same fit, [K]."""
        return None if self._crowd is None else self._crowd[0]

    def concentration(self) -> np.ndarray | None:
        """Angle concentration of the inputs of the starting model's last linear layer, |mean of unit vectors|^2 over a
        sample's tokens; None for models whose last layer gets one vector per sample."""
        return self._concentration

    @cached_property
    def _reference(self) -> Any:
        return load_run(self._sim.store, REFERENCE)

    @cached_property
    def _crowd(self) -> tuple[np.ndarray, np.ndarray] | None:
        if self._sim.task is None:
            return None
        rows = [self.losses(k) for k in range(len(self.anchors))]
        losses = np.stack([row[self.used] for row in rows if row is not None])
        return rasch(losses < np.median(losses))

    @cached_property
    def _concentration(self) -> np.ndarray | None:
        task = self._sim.task
        if task is None:
            return None
        model = task.build_model()
        layers = [m for m in model.modules() if isinstance(m, nn.Linear)][-1:]
        seen: list[Tensor] = []
        hooks = [m.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].detach())) for m in layers]
        parts = []
        try:
            with one_thread(), torch.no_grad():
                for ids in _chunks(self.used):
                    seen.clear()
                    task.loss(model, task.batch(ids))
                    if not seen or seen[-1].dim() != 3 or len(seen[-1]) != len(ids) or seen[-1].shape[1] < 2:
                        return None
                    parts.append(angle_concentration(seen[-1]))
        finally:
            for hook in hooks:
                hook.remove()
        return self._of_all(torch.cat(parts).double().cpu().numpy())

    @cached_property
    def _texts(self) -> list[texts.Text] | None:
        if self._sim.task is None:
            return None
        read = [texts.text_of(self._sim.task.data[int(i)]) for i in self.used]
        return [t for t in read if t is not None] if all(t is not None for t in read) else None

    def _of_texts(self, measure: Callable[[texts.Text], float | None]) -> np.ndarray | None:
        if self._texts is None:
            return None
        values = [measure(text) for text in self._texts]
        return None if None in values else self._of_all(np.array(values, dtype=np.float64))

    def _of_all(self, values: np.ndarray) -> np.ndarray:
        """Values of the used samples as an array over all samples, NaN elsewhere."""
        out = np.full(self._sim.description["samples"], np.nan)
        out[self.used] = values
        return out


def angle_concentration(hidden: Tensor) -> Tensor:
    """Mean cosine between all pairs of a sample's hidden states, [samples, tokens, width] -> [samples].

    Source: Wang et al., "Angles don't lie: unlocking training-efficient RL through the model's own signals" (GAIN-RL),
    arXiv 2506.02281.
    """
    unit = torch.nn.functional.normalize(hidden.float(), dim=2)
    return unit.mean(1).pow(2).sum(1)


def _losses(task: Task, theta: Tensor, ids: np.ndarray) -> np.ndarray:
    model = task.build_model()
    set_parameters(model, task.layout, theta)
    with torch.no_grad():
        return torch.cat([task.loss(model, task.batch(part)).double() for part in _chunks(ids)]).cpu().numpy()


def _chunks(ids: np.ndarray) -> list[np.ndarray]:
    return [ids[start : start + CHUNK] for start in range(0, len(ids), CHUNK)]
