"""The recorder in Hugging Face's Trainer and what is built on it (TRL's SFTTrainer, PEFT models)."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch.utils.data import DataLoader

from orderscope.errors import OrderscopeError
from orderscope.loops.adapters.held import HeldRecorder
from orderscope.loops.adapters.ids import Inside, rebuilt
from orderscope.loops.adapters.trainer_parts import trainer_parts
from orderscope.loops.first_step import standing_notices
from orderscope.loops.notices import ChanceWarning, UnevenStepsWarning
from orderscope.orders import OrderSampler, check_reference
from orderscope.training.state import SUPPORTED, require_supported


class TrainerRecorder(HeldRecorder):
    """Records a Trainer, from `train` to its end; with `resume_from_checkpoint` the recording resumes too.

        rec = osc.TrainerRecorder(trainer, "run")
        trainer.train()
        rec.order

    The ids are put into the batch beside its own entries and taken out before `training_step`, so neither the model
    nor `remove_unused_columns` meets them. Every micro-batch of an accumulation counts, on every rank.

    Args:
        trainer: a `transformers.Trainer`, also a subclass.
        path, options: as for `Recorder`.
    """

    def __init__(self, trainer: Any, path: str | os.PathLike[str], **options: Any) -> None:
        super().__init__(path, **options)
        self.samples = len(trainer.train_dataset) if hasattr(trainer.train_dataset, "__len__") else None
        self._check(trainer)
        self._trainer = trainer
        self._ids: list[torch.Tensor] = []
        _change_train_loader(trainer, lambda loader: rebuilt(loader, Inside))
        training_step = trainer.training_step

        def step(model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
            ids = inputs.pop(Inside.KEY, None)
            if ids is not None:
                self._ids.append(ids)
            return training_step(model, inputs, *args, **kwargs)

        trainer.training_step = step
        trainer.add_callback(_callback(self))

    def known_parts(self, given: Mapping[str, Any]) -> dict[str, Any]:
        return trainer_parts(self._trainer, given)

    def _check(self, trainer: Any) -> None:
        """See before the training what can be seen of it: its optimizer, dropout, a short last step.

        Raises: OrderscopeError for an optimizer that cannot be carried.
        """
        args = trainer.args
        require_carried(trainer)
        if not self._options.get("states", True) or not self._options.get("check", True):
            return
        for kind, text in standing_notices(trainer.model, training=True):
            self.say(kind, text)
        if getattr(args, "neftune_noise_alpha", None) is not None:
            self.say(ChanceWarning, "noise on the embeddings: other orders cannot be simulated; leave out "
                     f"neftune_noise_alpha={args.neftune_noise_alpha}")  # fmt: skip
        size, parts = (
            args.per_device_train_batch_size * max(1, args.n_gpu) * args.world_size,
            args.gradient_accumulation_steps,
        )
        step, samples = size * parts, self.samples or 0
        dropped = args.dataloader_drop_last and not samples // size % parts
        if samples % step and not dropped and (args.max_steps <= 0 or args.max_steps > samples // step):
            line = f"max_steps={samples // step}" if samples // size % parts else "dataloader_drop_last=True"
            self.say(
                UnevenStepsWarning,
                f"the last step of an epoch has {samples % step} samples, the others {step}: only windows without it "
                f"can be predicted; pass {line} to the arguments",
            )

    def end_step(self) -> None:
        ids, self._ids = self._ids, []
        self.recorder.step(torch.cat(ids) if ids else [])


def require_carried(trainer: Any) -> None:
    """Raises: OrderscopeError where the optimizer that a Trainer has, or will make, cannot be carried."""
    if trainer.optimizer is not None:
        require_supported(getattr(trainer.optimizer, "optimizer", trainer.optimizer))
        return
    try:
        kind, _ = type(trainer).get_optimizer_cls_and_kwargs(trainer.args, trainer.model)
    except Exception:  # of another version, or of a library that is missing: the training will say so
        return
    if kind not in SUPPORTED.values():
        raise OrderscopeError(
            f"optim={str(getattr(trainer.args.optim, 'value', trainer.args.optim))!r} ({kind.__name__})",
            "one of torch.optim's " + ", ".join(SUPPORTED),
            'pass optim="adamw_torch" to the TrainingArguments',
        )


def _callback(owner: TrainerRecorder) -> Any:
    from transformers import TrainerCallback

    class Callback(TrainerCallback):
        def on_train_begin(self, args, state, control, model=None, optimizer=None, **kwargs):
            owner.begin(
                model, optimizer, steps=state.max_steps, step=state.global_step, samples=owner.samples
            )  # fmt: skip

        def on_step_end(self, args, state, control, **kwargs):
            owner.end_step()

        def on_save(self, args, state, control, **kwargs):
            owner.recorder.flush()

        def on_train_end(self, args, state, control, **kwargs):
            owner.recorder.close()

    return Callback()


def play(trainer: Any, order: Any) -> None:
    """Have a Trainer train an order: `osc.play(trainer, numpy.load("best.npy"))`, then `trainer.train()`.

    A row of the order is one optimizer step over all ranks and all micro-batches. One pass is the whole order, so
    `max_steps` is set to its length.

    Args:
        trainer: a transformers Trainer; changed.
        order: sample ids, [steps, batch].

    Raises:
        OrderscopeError: a row does not divide into the Trainer's ranks and micro-batches.
    """
    rows = check_reference(order, len(trainer.train_dataset))
    args = trainer.args
    parts = args.world_size * args.gradient_accumulation_steps
    if rows.shape[1] % parts:
        raise OrderscopeError(
            f"steps of {rows.shape[1]} samples for {args.world_size} ranks with {args.gradient_accumulation_steps} "
            "micro-batches",
            "a multiple of their product",
            "change gradient_accumulation_steps or the number of ranks",
        )
    args.max_steps = len(rows)
    sampler = OrderSampler(
        rows, rank=None, world_size=args.world_size, micro_batches=args.gradient_accumulation_steps
    )  # fmt: skip

    def played(loader: DataLoader) -> DataLoader:
        return DataLoader(
            loader.dataset, batch_sampler=sampler, collate_fn=loader.collate_fn, num_workers=loader.num_workers,
            pin_memory=loader.pin_memory, persistent_workers=loader.persistent_workers,
        )  # fmt: skip

    _change_train_loader(trainer, played)


def _change_train_loader(trainer: Any, change: Callable[[DataLoader], DataLoader]) -> None:
    """Change the train loader where the Trainer hands it, whole and with its columns removed, to accelerate."""
    make = trainer.get_train_dataloader

    def get_train_dataloader() -> Any:
        with _prepared(trainer.accelerator, change):
            return make()

    trainer.get_train_dataloader = get_train_dataloader


@contextmanager
def _prepared(accelerator: Any, change: Callable[[DataLoader], DataLoader]) -> Iterator[None]:
    prepare = accelerator.prepare

    def changed(*objects: Any, **kwargs: Any) -> Any:
        return prepare(*(change(o) if isinstance(o, DataLoader) else o for o in objects), **kwargs)

    accelerator.prepare = changed
    try:
        yield
    finally:
        accelerator.prepare = prepare
