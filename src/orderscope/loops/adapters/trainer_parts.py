"""The parts of a task that a Hugging Face Trainer knows: its model, its rows as they were collated, its loss."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

from orderscope import losses
from orderscope.errors import OrderscopeError
from orderscope.task.rng import kept

MOST_BYTES = 1 << 28  # largest size of the collated rows, which are held in memory
FILL = {"labels": losses.IGNORED}  # what rows of another length are filled with; 0 elsewhere


def trainer_parts(trainer: Any, given: Mapping[str, Any]) -> dict[str, Any]:
    """The parts that are not given, as far as the Trainer knows them: data, loss, metrics, max_grad_norm.

    Data and a collator of one's own belong together: where either is given, neither is taken from the Trainer.

    Args:
        trainer: a transformers Trainer.
        given: parts of a task that the user names.

    Raises:
        OrderscopeError: the data or the loss have to be said.
    """
    found: dict[str, Any] = {"max_grad_norm": trainer.args.max_grad_norm or None}
    if not {"data", "collate"} & set(given):
        found["data"] = rows_of(trainer, trainer.train_dataset)
        held_out = trainer.eval_dataset
        if "metrics" not in given and held_out is not None:
            named = held_out if isinstance(held_out, dict) else {"eval": held_out}
            found["metrics"] = {name: rows_of(trainer, rows) for name, rows in named.items()}
        if "loss" not in given:
            found["loss"] = loss_of(trainer, found["data"][0])
    return found


def loss_of(trainer: Any, row: Mapping[str, Tensor]) -> Callable[[Any, Any], Tensor]:
    """The loss that labels of this shape stand for; whether it is the Trainer's is seen from the gradients.

    Args:
        trainer: a transformers Trainer, for its label smoothing.
        row: a sample as the model is given it.

    Raises:
        OrderscopeError: labels of another shape, or none.
    """
    labels = row.get("labels")
    if labels is None or labels.dim() > 1 or labels.is_floating_point():
        raise OrderscopeError(
            "rows without class or token labels",
            "a loss of one value per sample",
            "pass loss=, (model, batch) -> Tensor[len(batch)]",
        )
    loss = losses.causal_lm if labels.dim() else losses.classification
    smoothing = trainer.args.label_smoothing_factor
    return functools.partial(loss, label_smoothing=smoothing) if smoothing else loss


def rows_of(trainer: Any, data: Any) -> list[dict[str, Tensor]]:
    """The rows of a data set as the model is given them: unused columns removed, collated, all of one length.

    Args:
        trainer: a transformers Trainer, for its model and collator.
        data: a data set as the Trainer has it.

    Raises:
        OrderscopeError: the collator draws random numbers, gives something else than one row per sample, or the rows
            take too much memory.
    """
    used = trainer._remove_unused_columns(data, "training") if hasattr(data, "column_names") else data
    collate = trainer.data_collator
    if used is data:
        collate = trainer._get_collator_with_removed_columns(collate, "training")
    with kept():
        flat = bool(getattr(collate, "padding_free", False))
        count = len(used)
        first = _collated(collate, [used[0]], flat)
        size = sum(t.nbytes for row in first for t in row.values()) * count
        if size > MOST_BYTES:
            raise _say_it(f"rows of about {size / 2**20:.0f} MB in all")
        if flat:  # samples one after the other in one row
            rows = [row for i in range(count) for row in _collated(collate, [used[i]], flat)]
            return _of_one_length(rows)
        samples = [used[i] for i in range(count)]
        rows = _collated(collate, samples, flat)
        again = _collated(collate, [used[i] for i in range(count)], flat)
    if any(not torch.equal(a[k], b[k]) for a, b in zip(rows, again, strict=True) for k in a):
        raise _say_it(f"{type(collate).__name__}, which draws random numbers,")
    return rows


def _collated(collate: Any, samples: list[Any], flat: bool) -> list[dict[str, Tensor]]:
    batch = dict(collate([dict(sample) for sample in samples]))
    if flat:
        length = batch["input_ids"].shape[1]
        keep = {k: v for k, v in batch.items() if k in ("input_ids", "labels", "position_ids")
                and isinstance(v, Tensor) and tuple(v.shape) == (1, length)}  # fmt: skip
        return [{k: v[0] for k, v in keep.items()}]
    odd = [k for k, v in batch.items() if not isinstance(v, Tensor) or v.dim() == 0 or len(v) != len(samples)]
    if odd:
        raise _say_it(f"a batch whose {odd[0]!r} has no row per sample")
    return [{k: v[i].clone() for k, v in batch.items()} for i in range(len(samples))]


def _of_one_length(rows: list[dict[str, Tensor]]) -> list[dict[str, Tensor]]:
    """Rows filled up at their ends by a document of their own, whose tokens are not learnt from."""
    longest = max(len(row["input_ids"]) for row in rows)
    return [{k: _filled(k, v, longest) for k, v in row.items()} for row in rows]


def _filled(key: str, values: Tensor, length: int) -> Tensor:
    missing = length - len(values)
    if key == "position_ids":
        return torch.cat([values, torch.arange(missing, dtype=values.dtype)])
    return pad(values, (0, missing), value=FILL.get(key, 0))


def _say_it(found: str) -> OrderscopeError:
    return OrderscopeError(
        found, "rows that a task can hold", "pass data=, collate= and metrics= yourself, as the model is given them"
    )
