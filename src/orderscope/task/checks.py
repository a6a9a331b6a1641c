"""Checks that a task is reproducible and that its loss separates into samples. A failed check says what to change."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.func import grad
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.dropout import _DropoutNd
from torch.nn.parameter import is_lazy
from torch.utils._pytree import tree_flatten, tree_leaves, tree_map

from orderscope.errors import OrderscopeError
from orderscope.task.functional import frozen_and_buffers, functional_loss, sample_loss
from orderscope.task.hyper import scheduled
from orderscope.task.layout import ParameterLayout
from orderscope.task.per_sample import each_sample, filled, one_after_another
from orderscope.task.rounding import coarsest, tolerated, tolerated_gradient

if TYPE_CHECKING:
    from orderscope.task import Task

AT_ONCE = 1 << 26  # numbers of single samples' gradients in memory at once: 256 MiB of float32


def check_data(data: Any) -> None:
    if not (hasattr(data, "__len__") and hasattr(data, "__getitem__")) or isinstance(data, dict):
        raise OrderscopeError(
            f"data of type {type(data).__name__}",
            "a map-style data set with len() and [index]",
            "wrap the samples in a list or a torch Dataset",
        )


def check_task(task: Task) -> bool:
    """Whether torch.func can take the gradients of its samples; otherwise plain autograd does, one after the other.

    Losses and gradients are looked at for all samples of the first step.

    Raises:
        OrderscopeError: for the first thing that is wrong.
    """
    _check_functions(task)
    _check_groups(task)
    _check_metrics(task)
    model = task.build_model()
    _check_model(model)
    twin = task.build_model()
    _check_same_start(model, twin)
    _check_modules(model)
    optimizer = _built_optimizer(task, model)
    layout = ParameterLayout.of(model, optimizer)
    _check_clipping(task, model, layout)
    ids = [int(i) for i in task.order[0]]
    batch = _check_batch(task, ids)
    eps = _check_loss(task, model, layout, batch, ids)
    _check_targets(task, model, batch)
    mapped = _check_gradients(task, model, twin, layout, batch, eps)
    if task.scheduler:  # last: schedules and hooks may change the model
        scheduled(optimizer, task.build_scheduler(optimizer), task.steps)
    return mapped


# What each part of a task is called with, and what it returns.
FUNCTIONS = {
    "model": "() -> nn.Module with its starting weights",
    "loss": "(model, batch) -> one loss per sample",
    "optimizer": "(params) -> torch.optim.Optimizer",
    "scheduler": "(optimizer) -> LRScheduler",
    "collate": "(list of samples) -> batch",
    "targets": "(model, batch, generator) -> batch",
}


def _check_functions(task: Task) -> None:
    """Runs are begun again and again, so a model, an optimizer or a scheduler that is made already will not do."""
    for name, signature in FUNCTIONS.items():
        part = getattr(task, name)
        optional = name not in ("model", "loss", "optimizer")
        if (part is None and optional) or (callable(part) and not (name == "model" and isinstance(part, nn.Module))):
            continue
        raise OrderscopeError(
            f"{name}= that is of type {type(part).__name__}",
            f"a function {signature}",
            f"give {name}= the function, not what it returns",
        )


def _check_groups(task: Task) -> None:
    if task.groups is not None and len(task.groups) != task.samples:
        raise OrderscopeError(
            f"{len(task.groups)} group labels",
            f"one per sample of the data set, {task.samples}",
            "pass groups=[label of sample 0, label of sample 1, ...]",
        )


def _check_metrics(task: Task) -> None:
    for name, metric in task.metrics.items():
        is_data = hasattr(metric, "__len__") and hasattr(metric, "__getitem__") and not isinstance(metric, str)
        if not callable(metric) and not (is_data and len(metric)):
            raise OrderscopeError(
                f"metric {name!r} of type {type(metric).__name__}" + (" without rows" if is_data else ""),
                "a data set with at least one row, or a callable (model) -> float",
                "change metrics=",
            )


def _check_model(model: nn.Module) -> None:
    if not isinstance(model, nn.Module):
        raise OrderscopeError(
            f"model() that returns {type(model).__name__}", "a torch.nn.Module", "return the model from model()"
        )
    lazy = next((name for name, tensor in _tensors(model) if is_lazy(tensor)), None)
    if lazy is not None:
        raise OrderscopeError(
            f"{lazy} of a lazy layer, which has no weights yet",
            "a model with all of its starting weights",
            "run the model once on some inputs inside model(), after torch.manual_seed, or give the layer its sizes",
        )


def _check_same_start(first: nn.Module, second: nn.Module) -> None:
    if first is second:
        raise OrderscopeError(
            "model() that returns the same object twice",
            "a new model on every call",
            "build it inside model() and load its starting weights",
        )
    theirs = dict(_tensors(second))
    mine = dict(_tensors(first))
    differ = next((n for n in {**mine, **theirs} if not _equal(mine.get(n), theirs.get(n))), None)
    if differ is not None:
        raise OrderscopeError(
            f"{differ} that differs between two calls of model()",
            "fixed starting weights",
            "seed inside model() with torch.manual_seed, or load saved weights there",
        )
    place = {t.data_ptr() for _, t in _tensors(first) if t.numel()}
    shared = next((n for n, t in _tensors(second) if t.requires_grad and t.numel() and t.data_ptr() in place), None)
    if shared is not None:
        raise OrderscopeError(
            f"{shared} that shares its memory between two calls of model()",
            "starting weights of its own for every model",
            "copy the saved weights in model(), for instance with load_state_dict or clone()",
        )


def _tensors(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    yield from ((f"parameter {n!r}", p) for n, p in model.named_parameters())
    yield from ((f"buffer {n!r}", b) for n, b in model.named_buffers())


def _equal(a: Tensor | None, b: Tensor | None) -> bool:
    if a is None or b is None or a.shape != b.shape or a.dtype != b.dtype:
        return False
    return torch.equal(a.detach().nan_to_num(), b.detach().nan_to_num())


def _check_modules(model: nn.Module) -> None:
    for name, module in model.named_modules():
        where = f"{type(module).__name__} {name!r}" if name else type(module).__name__
        rate = getattr(module, "p", 0) if isinstance(module, _DropoutNd) else getattr(module, "dropout", 0)
        drops = isinstance(module, (_DropoutNd, nn.RNNBase, nn.MultiheadAttention)) and rate
        if drops and module.training:
            raise OrderscopeError(
                f"active dropout of {rate} in {where}",
                "a loss that does not depend on chance",
                "call .eval() on it in model(), or set its rate to 0",
            )
        if isinstance(module, _BatchNorm) and (module.training or module.running_mean is None):
            raise OrderscopeError(
                f"batch statistics in {where}",
                "a sample's loss that does not depend on the rest of its batch",
                "call .eval() on it in model(), or use LayerNorm or GroupNorm",
            )


def _built_optimizer(task: Task, model: nn.Module) -> torch.optim.Optimizer:
    optimizer = task.build_optimizer(model)
    if not isinstance(optimizer, torch.optim.Optimizer):
        raise OrderscopeError(
            f"optimizer(params) that returns {type(optimizer).__name__}",
            "a torch.optim.Optimizer",
            "return the optimizer from optimizer(params)",
        )
    return optimizer


def _check_clipping(task: Task, model: nn.Module, layout: ParameterLayout) -> None:
    if task.max_grad_norm is None:
        return
    if not task.max_grad_norm > 0:
        raise OrderscopeError(
            f"max_grad_norm {task.max_grad_norm}", "a positive number or None", "change max_grad_norm="
        )
    held = set(layout.names)
    loose = [n for n, p in model.named_parameters() if p.requires_grad and n not in held]
    if loose:
        raise OrderscopeError(
            f"clipping over parameter {loose[0]!r}, which is trainable but not in the optimizer",
            "every trainable parameter in the optimizer where gradients are clipped",
            "call requires_grad_(False) on it in model(), or hand it to the optimizer",
        )


def _check_batch(task: Task, ids: list[int]) -> Any:
    batch, again = task.batch(ids), task.batch(ids)
    leaves = tree_leaves(batch)
    strange = next((leaf for leaf in leaves if not isinstance(leaf, Tensor)), None)
    if strange is not None:
        raise OrderscopeError(
            f"a batch with a {type(strange).__name__} in it",
            "batches of tensors in dicts, lists or tuples",
            "turn samples into tensors in the data set or in collate=",
        )
    short = next((leaf for leaf in leaves if leaf.dim() == 0 or len(leaf) != len(ids)), None)
    if short is not None:
        raise OrderscopeError(
            f"a tensor of shape {list(short.shape)} in a batch of {len(ids)} samples",
            "tensors whose first axis is the sample",
            "change collate= so that every tensor of a batch has one row per sample",
        )
    if not all(_equal(a, b) for a, b in zip(leaves, tree_leaves(again), strict=True)):
        raise OrderscopeError(
            f"samples {ids} that differ when they are read twice",
            "data[i] to be the same on every read",
            "take random augmentation out of the data set, or store its result",
        )
    return batch


def _check_loss(task: Task, model: nn.Module, layout: ParameterLayout, batch: Any, ids: list[int]) -> float:
    """Epsilon of the coarsest format that the loss is computed in."""
    with torch.no_grad():
        losses, eps = coarsest(lambda: task.loss(model, batch))
    shape = list(losses.shape) if isinstance(losses, Tensor) else type(losses).__name__
    if shape != [len(ids)]:
        raise OrderscopeError(
            f"a loss of shape {shape} for a batch of {len(ids)}",
            f"one value per sample, [{len(ids)}]",
            "return unreduced losses: reduction='none', averaged over all axes but the first",
        )
    if not torch.isfinite(losses).all():
        bad = next(i for i, value in zip(ids, losses.tolist(), strict=True) if not math.isfinite(value))
        raise OrderscopeError(
            f"a loss of {losses[ids.index(bad)].item()} for sample {bad} at the starting weights",
            "finite losses",
            "look at that sample and at the starting weights",
        )
    with torch.no_grad():
        again = task.loss(model, batch)
        if not torch.equal(losses, again):
            raise OrderscopeError(
                f"a loss of sample {ids[int((losses != again).nonzero()[0])]} that differs when it is computed twice",
                "a loss that does not depend on chance",
                "take dropout, noise and random choices out of the loss and the forward pass",
            )
        alone = torch.cat([task.loss(model, task.batch([i])) for i in ids])
    check_mates(losses, alone, ids, tolerated(layout.dtype, eps), "at the first step")
    return eps


def check_mates(losses: Tensor, others: Tensor, ids: Sequence[int], tolerance: float, where: str) -> None:
    """Losses of samples in one batch and in others must be the same but for rounding; a dependence on mates is of order
    one.

    Args:
        losses: of samples in one batch, [batch].
        others: of the same samples in other batches, or each alone, [batch].
        ids: the samples, [batch].
        tolerance: relative difference that rounding explains.
        where: which batch it is, for the message: "at step 3".

    Raises:
        OrderscopeError: naming the sample that is farthest off.
    """
    off = (others - losses).abs() / (1 + others.abs())
    k = int(off.nan_to_num(torch.inf).argmax())
    if not off[k] <= tolerance:
        raise OrderscopeError(
            f"a loss of {losses[k].item():.6g} for sample {ids[k]} in its batch {where} and {others[k].item():.6g} "
            f"without the others of that batch, {off[k].item():.2g} apart where rounding gives {tolerance:.1g}",
            "a sample's loss that depends on nothing but that sample and the weights",
            "normalise each sample by itself (its own tokens, LayerNorm), call .eval() on layers with batch "
            "statistics, and take random choices out of data, model and loss",
        )


def _check_targets(task: Task, model: nn.Module, batch: Any) -> None:
    if task.targets is None:
        return
    with torch.no_grad():
        drawn = task.targets(model, batch, torch.Generator(next(model.parameters()).device).manual_seed(0))
    (mine, spec), (theirs, wanted) = tree_flatten(drawn), tree_flatten(batch)
    if spec != wanted or any(a.shape != b.shape or a.dtype != b.dtype for a, b in zip(mine, theirs, strict=True)):
        raise OrderscopeError(
            "targets() that returns a batch of another form than it was given",
            "the same batch, its targets drawn again with the same shape and dtype",
            "return {**batch, 'labels': drawn}, or the like",
        )


def _check_gradients(
    task: Task, model: nn.Module, twin: nn.Module, layout: ParameterLayout, batch: Any, eps: float
) -> bool:
    """`twin`: another model with the same weights; a loss that holds on to tensors of the first is seen there."""
    parameters = layout.of_model(model)
    losses = task.loss(model, batch)
    if not losses.requires_grad:
        raise OrderscopeError(
            "a loss without gradient",
            "a differentiable loss of the trainable parameters",
            "do not detach the loss or call the model under no_grad",
        )
    losses.mean().backward()  # as training does it, with whatever hooks there are
    ordinary = [p.grad for p in parameters]
    for name, g in zip(layout.names, ordinary, strict=True):
        if g is not None and g.layout != torch.strided:
            raise OrderscopeError(
                f"a sparse gradient of parameter {name!r}", "dense gradients", "build the embedding with sparse=False"
            )
    whole = filled(ordinary, parameters)
    batch_gradient = layout.flatten(whole).cpu()
    model.zero_grad()
    detail, mapped = "", True
    try:
        found, size = _mean_gradient(task, model, layout, batch, mapped)
    except Exception as error:  # whatever the user's code raises under torch.func
        detail, mapped = f" (torch.func: {(str(error).strip() or type(error).__name__).splitlines()[0]})", False
        found, size = _mean_gradient(task, twin, layout, batch, mapped)
    apart = float((found - batch_gradient).norm()) / (size or 1.0)
    if not apart <= tolerated_gradient(layout.dtype, eps):
        off = layout.unflatten((found - batch_gradient).abs())
        worst = max(off, key=lambda name: float(off[name].norm()))
        raise OrderscopeError(
            f"per-sample gradients whose mean is not the batch gradient, most of all in {worst!r}, by {apart:.2g} of "
            f"their size at the first step{detail}",
            "a batch gradient that backward() leaves as the mean of its samples' gradients",
            "compute the loss only from the model's parameters and the batch, without detach or cached tensors; take "
            "out hooks on parameters, which change gradients unseen",
        )
    return mapped


def _mean_gradient(
    task: Task, model: nn.Module, layout: ParameterLayout, batch: Any, mapped: bool
) -> tuple[Tensor, float]:
    """Mean of single samples' gradients [P], and the mean of their norms."""
    parameters = layout.of_model(model)
    total, size, count = torch.zeros(layout.size, dtype=layout.dtype), 0.0, len(tree_leaves(batch)[0])
    step = max(1, AT_ONCE // layout.size)
    for start in range(0, count, step):
        part = tree_map(lambda leaf: leaf[start : start + step], batch)  # noqa: B023
        if mapped:
            theta = {n: p.detach() for n, p in zip(layout.names, parameters, strict=True)}
            one = sample_loss(functional_loss(task, model))
            each: Any = each_sample(grad(one), (None, None, 0))(theta, frozen_and_buffers(model, layout), part)
        else:
            each = one_after_another(lambda sample: task.loss(model, sample).sum(), parameters, part)
        rows = layout.flatten(each)
        total += rows.sum(0).cpu()
        size += float(rows.norm(dim=1).sum())
    return total / count, size / count
