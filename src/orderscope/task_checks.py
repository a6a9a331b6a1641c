"""Can this task be repeated, and told apart sample by sample? Each check says what to change where it cannot."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.func import grad
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.dropout import _DropoutNd
from torch.nn.parameter import is_lazy
from torch.utils._pytree import tree_flatten, tree_leaves

from orderscope.errors import OrderscopeError
from orderscope.functional import frozen_and_buffers, functional_loss, sample_loss
from orderscope.layout import ParameterLayout
from orderscope.per_sample import each_sample

if TYPE_CHECKING:
    from orderscope.task import Task

FEW = 4  # samples the loss is tried on


def check_data(data: Any) -> None:
    if not (hasattr(data, "__len__") and hasattr(data, "__getitem__")) or isinstance(data, dict):
        raise OrderscopeError(
            f"data of type {type(data).__name__}",
            "a map-style data set with len() and [index]",
            "wrap the samples in a list or a torch Dataset",
        )


def check_task(task: Task) -> None:
    """Raises: OrderscopeError for the first thing that is wrong."""
    _check_groups(task)
    _check_metrics(task)
    model = task.build_model()
    _check_model(model)
    _check_same_start(model, task.build_model())
    _check_modules(model)
    optimizer = _built_optimizer(task, model)
    layout = ParameterLayout.of(model, optimizer)
    _check_clipping(task, model, layout)
    task.build_scheduler(optimizer)
    ids = [int(i) for i in task.order[0][:FEW]]
    batch = _check_batch(task, ids)
    losses = _check_loss(task, model, batch, ids)
    _check_gradients(task, model, layout, losses, batch)
    _check_targets(task, model, batch)


def _check_groups(task: Task) -> None:
    if task.groups is not None and len(task.groups) != task.samples:
        raise OrderscopeError(
            f"{len(task.groups)} group labels",
            f"one per sample of the data set, {task.samples}",
            "pass groups=[label of sample 0, label of sample 1, ...]",
        )


def _check_metrics(task: Task) -> None:
    for name, metric in task.metrics.items():
        is_data = hasattr(metric, "__len__") and hasattr(metric, "__getitem__")
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


def _check_loss(task: Task, model: nn.Module, batch: Any, ids: list[int]) -> Tensor:
    losses = task.loss(model, batch)
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
        if not torch.equal(losses.detach(), again):
            raise OrderscopeError(
                f"a loss of sample {ids[0]} that differs when it is computed twice",
                "a loss that does not depend on chance",
                "take dropout, noise and random choices out of the loss and the forward pass",
            )
        alone = torch.cat([task.loss(model, task.batch([i])) for i in ids])
    # A batched matrix product rounds differently from a single one, by some eps; a dependence on mates is of order one.
    tolerance = math.sqrt(torch.finfo(losses.dtype).eps)
    far = (alone - losses.detach()).abs() > tolerance * (1 + alone.abs())
    if far.any():
        k = int(far.nonzero()[0])
        raise OrderscopeError(
            f"a loss of {losses[k].item():.6g} for sample {ids[k]} in a batch and {alone[k].item():.6g} alone",
            "a sample's loss that does not depend on the rest of its batch",
            "normalise each sample by itself (its own tokens, LayerNorm); call .eval() on layers with batch statistics",
        )
    return losses


def _check_targets(task: Task, model: nn.Module, batch: Any) -> None:
    if task.targets is None:
        return
    with torch.no_grad():
        drawn = task.targets(model, batch, torch.Generator(next(model.parameters()).device).manual_seed(0))
    (mine, spec), (theirs, wanted) = tree_flatten(drawn), tree_flatten(batch)
    if spec != wanted or any(a.shape != b.shape or a.dtype != b.dtype for a, b in zip(mine, theirs, strict=True)):
        raise OrderscopeError(
            "targets() that returns a batch of another form than it was given",
            "the same batch, its targets drawn anew with the same shape and dtype",
            "return {**batch, 'labels': drawn}, or the like",
        )


def _check_gradients(task: Task, model: nn.Module, layout: ParameterLayout, losses: Tensor, batch: Any) -> None:
    parameters = layout.of_model(model)
    if not losses.requires_grad:
        raise OrderscopeError(
            "a loss without gradient",
            "a differentiable loss of the trainable parameters",
            "do not detach the loss or call the model under no_grad",
        )
    ordinary = torch.autograd.grad(losses.mean(), parameters, allow_unused=True)
    for name, g in zip(layout.names, ordinary, strict=True):
        if g is not None and g.layout != torch.strided:
            raise OrderscopeError(
                f"a sparse gradient of parameter {name!r}", "dense gradients", "build the embedding with sparse=False"
            )
    filled = [torch.zeros_like(p) if g is None else g for p, g in zip(parameters, ordinary, strict=True)]
    theta = {n: p.detach() for n, p in zip(layout.names, parameters, strict=True)}
    one = sample_loss(functional_loss(task, model))
    try:
        each = each_sample(grad(one), (None, None, 0))(theta, frozen_and_buffers(model, layout), batch)
    except Exception as error:  # whatever the user's code raises under torch.func
        reason = (str(error).strip() or type(error).__name__).splitlines()[0].split(". ")[0]
        raise OrderscopeError(
            f"a model whose per-sample gradients torch.func cannot take ({reason})",
            "a forward pass and loss that torch.func.vmap(grad(...)) accepts",
            "turn off gradient checkpointing, replace in-place operations and shapes that depend on the data",
        ) from error
    rows = layout.flatten(each)
    mean, scale = layout.flatten(filled), rows.norm(dim=1).mean()
    # Rounding relative to the gradients that are averaged, which may cancel.
    if not (rows.mean(0) - mean).norm() <= 10 * math.sqrt(torch.finfo(layout.dtype).eps) * scale:
        worst = max(zip(layout.names, filled, strict=True), key=lambda item: (each[item[0]].mean(0) - item[1]).norm())
        raise OrderscopeError(
            f"per-sample gradients whose mean is not the batch gradient, most of all in {worst[0]!r}",
            "the same gradient from torch.func as from backward()",
            "compute the loss only from the model's parameters and the batch, without detach, hooks or cached tensors",
        )
