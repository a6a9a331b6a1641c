"""The recorder in Lightning, as a callback of either distribution (`lightning`, `pytorch_lightning`)."""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping
from typing import Any

import torch
from torch.utils.data import default_collate

from orderscope.errors import OrderscopeError
from orderscope.loops.adapters.held import HeldRecorder


class LightningRecorder(HeldRecorder):
    """A Lightning callback; the train loader carries the ids.

        rec = osc.LightningRecorder("run")
        trainer = Trainer(callbacks=[rec], ...)
        trainer.fit(module, osc.with_ids(loader))

    `training_step` gets the batch as ever, without ids. Automatic optimization with one optimizer.

    Args:
        path, options: as for `Recorder`.
    """

    state_key = _legacy_state_key = "orderscope.LightningRecorder"  # what Lightning asks of every callback

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Nothing to load: what was recorded lies in the run."""

    def __getattr__(self, name: str) -> Any:
        if name in ("setup", "teardown") or name.startswith("on_"):  # hooks that have nothing to do here
            return lambda *args, **kwargs: None
        raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")

    def known_parts(self, given: Mapping[str, Any]) -> dict[str, Any]:
        return {
            k: v for k, v in self._known.items() if not (k in ("data", "collate") and {"data", "collate"} & {*given})
        }

    def on_train_start(self, trainer: Any, module: Any) -> None:
        if len(trainer.optimizers) != 1:
            raise OrderscopeError(
                f"{len(trainer.optimizers)} optimizers", "one optimizer", "record modules with one optimizer"
            )
        steps = trainer.estimated_stepping_batches
        known = int(steps) if math.isfinite(steps) and steps > 0 else None
        data = getattr(trainer.train_dataloader, "dataset", None)
        samples = len(data) if data is not None and hasattr(data, "__len__") else None
        self.begin(module, trainer.optimizers[0], steps=known, step=trainer.global_step, samples=samples)
        self._known = {"max_grad_norm": trainer.gradient_clip_val or None}
        if data is not None and hasattr(data, "data"):  # as `with_ids` made it
            own = getattr(trainer.train_dataloader.collate_fn, "collate", None)
            self._known |= {"data": data.data, "collate": None if own is default_collate else own}
        training_step = module.training_step

        @functools.wraps(training_step)
        def without_ids(batch: Any, *args: Any, **kwargs: Any) -> Any:
            return training_step(batch[1], *args, **kwargs)

        self._unwrap = lambda: module.__dict__.pop("training_step", None)
        module.training_step = without_ids

    def on_train_batch_end(self, trainer: Any, module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        loss = outputs.get("loss") if isinstance(outputs, dict) else outputs
        if isinstance(loss, torch.Tensor):
            loss = loss.detach() * trainer.accumulate_grad_batches  # Lightning passes its share of the mean
        self.recorder.step(batch[0], loss)

    def on_save_checkpoint(self, trainer: Any, module: Any, checkpoint: Any) -> None:
        if self._recorder is not None:
            self._recorder.flush()

    def on_train_end(self, trainer: Any, module: Any) -> None:
        self._unwrap()
        self.recorder.close()

    def on_exception(self, trainer: Any, module: Any, exception: BaseException) -> None:
        if self._recorder is not None:
            self._recorder.close()
