"""What stands in the way of asking about other orders, seen at the first step of a training, on its own batch.

The model that trains is not touched: what has to be run is run on a copy without hooks, with random numbers that are
put back.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.dropout import _DropoutNd
from torch.utils._pytree import tree_flatten, tree_leaves, tree_map, tree_unflatten

from orderscope.loops.notices import BatchStatisticsWarning, ChanceWarning, RecorderWarning, SlowPathWarning
from orderscope.task.checks import AT_ONCE
from orderscope.task.per_sample import each_sample
from orderscope.task.untouched import copied, untouched
from orderscope.training.setup import unwrapped

Notice = tuple[type[RecorderWarning], str]
RATES = ("dropout", "attention_dropout", "dropout_p", "dropout_prob")  # floats that modules hand to functional dropout
HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")


class FirstStep:
    """Keeps what the model was called with, until the optimizer's first step.

    Args:
        model: as it is called in training, wrappers included.
    """

    def __init__(self, model: nn.Module) -> None:
        self._calls: dict[int, tuple[nn.Module, tuple[Any, ...], dict[str, Any]]] = {}
        inner = [] if hasattr(model, "_orig_mod") else list(model.children())
        self._order = [model, *inner]  # a LightningModule is not called itself, its children are
        self._hooks = [m.register_forward_pre_hook(self._called, with_kwargs=True) for m in self._order]

    def notices(self, model: nn.Module) -> list[Notice]:
        """The findings, one line each; to be called once, before the optimizer changes the weights."""
        calls = [self._calls[id(m)] for m in self._order if id(m) in self._calls]
        self.close()
        found = standing_notices(model)
        for module, args, kwargs in calls[:1]:
            found += called_notices(getattr(module, "module", module), args, kwargs, {kind for kind, _ in found})
        return found

    def close(self) -> None:
        for hook in self._hooks:
            hook.remove()
        self._hooks = []
        self._calls = {}

    def _called(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if torch.is_grad_enabled() and id(module) not in self._calls:
            self._calls[id(module)] = module, args, kwargs


def standing_notices(model: nn.Module, *, training: bool = False) -> list[Notice]:
    """Findings about a model without running it: dropout, batch statistics, recurrent layers.

    Args:
        model: the one that is trained.
        training: judge modules as if they were in training mode.
    """
    found: list[Notice] = []
    if names := [n for n, m in model.named_modules() if (training or m.training) and drop_rate(m)]:
        rate = max(drop_rate(m) for m in model.modules() if training or m.training)
        found.append((
            ChanceWarning,
            f"active dropout of {rate:g} in {_named(names)}: other orders cannot be simulated; before the training "
            f"add osc.no_dropout(model){_config_line(model)}",
        ))  # fmt: skip
    if names := [n for n, m in model.named_modules() if _uses_batch(m, training)]:
        found.append((
            BatchStatisticsWarning,
            f"batch statistics in {_named(names)}: a sample's loss depends on the rest of its batch, so other orders "
            "cannot be simulated; call .eval() on these layers in every epoch, or use GroupNorm or LayerNorm",
        ))  # fmt: skip
    if names := [n for n, m in model.named_modules() if isinstance(m, nn.RNNBase)]:
        kinds = {type(m).__name__ for m in model.modules() if isinstance(m, nn.RNNBase)}
        found.append(_slow(f"{', '.join(sorted(kinds))} in {_named(names)}"))
    return found


def called_notices(
    module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], known: set[type[RecorderWarning]]
) -> list[Notice]:
    """What running a module again on its first batch shows: chance outside of dropout layers, the slow path.

    Args:
        module: as it was before the step; it is run again on a copy of what it was called with.
        args: positional arguments of its first call.
        kwargs: named arguments of that call.
        known: kinds that were said already and are not looked for.
    """
    parameters = {n: p.detach() for n, p in module.named_parameters() if p.requires_grad}
    if 2 * sum(p.numel() for p in parameters.values()) > AT_ONCE:
        return []
    found: list[Notice] = []
    try:
        copy = _bare(module)
        args, kwargs = tree_map(_detached, (args, kwargs))
        if ChanceWarning not in known and _differs(copy, args, kwargs):
            found.append((
                ChanceWarning,
                "random numbers in the forward pass: the same batch gives other outputs when it is run again, so other "
                "orders cannot be simulated; take noise and functional dropout out, for instance with "
                "osc.no_dropout(model)",
            ))  # fmt: skip
        known = known | {kind for kind, _ in found}
        if not {ChanceWarning, SlowPathWarning} & known and (why := _unmapped(copy, args, kwargs)):
            found.append(_slow(why))
    except Exception:  # the model cannot be copied or run again, so it cannot be checked
        return found
    return found


def no_dropout(model: nn.Module) -> nn.Module:
    """Set every dropout rate of a model to zero: of dropout layers, recurrent layers, attention, and the floats that
    Hugging Face's models hand to functional dropout. The model stays in training mode.

    Returns:
        The same model.
    """
    for module in model.modules():
        if isinstance(module, _DropoutNd):
            module.p = 0.0
        for name in RATES:
            if isinstance(getattr(module, name, None), float):
                setattr(module, name, 0.0)
    return model


def own_copy(model: nn.Module) -> nn.Module:
    """A copy of a model in training, with the forward passes of its classes: libraries put their own around them, for
    mixed precision or a fused loss, which a copy would take from the model that trains."""
    found = copied(unwrapped(model))
    for part in found.modules():
        vars(part).pop("forward", None)
    return found


def drop_rate(module: nn.Module) -> float:
    """The dropout rate of a module itself, whatever its mode."""
    if isinstance(module, _DropoutNd):
        return float(module.p)
    rates = [getattr(module, name, None) for name in RATES]
    return max((float(r) for r in rates if isinstance(r, float)), default=0.0)


def _uses_batch(module: nn.Module, training: bool) -> bool:
    return isinstance(module, _BatchNorm) and (training or module.training or module.running_mean is None)


def _config_line(model: nn.Module) -> str:
    """The settings of a Hugging Face configuration that stand behind the rates."""
    config = getattr(model, "config", None)
    values = getattr(config, "__dict__", {})
    keys = [k for k, v in values.items() if ("dropout" in k or k.endswith("pdrop")) and isinstance(v, float) and v > 0]
    return f", or build it with {', '.join(f'{k}=0.0' for k in keys)}" if keys else ""


def _named(names: list[str]) -> str:
    first = repr(names[0]) if names[0] else "the model"
    return first if len(names) == 1 else f"{first} and {len(names) - 1} more"


def _slow(why: str) -> Notice:
    return (
        SlowPathWarning,
        f"gradients of single samples will be taken one after the other ({why}): recording takes some times as long; "
        "nothing has to be changed, give osc.record a small budget= or fewer samples to keep it short",
    )


def _bare(module: nn.Module) -> nn.Module:
    """A copy without hooks, which may count calls or write."""
    found = own_copy(module)
    for part in found.modules():
        for name in HOOKS:
            getattr(part, name).clear()
    return found


def _detached(leaf: Any) -> Any:
    return leaf.detach() if isinstance(leaf, Tensor) else leaf


def _differs(module: nn.Module, args: Any, kwargs: Any) -> bool:
    outputs = []
    for seed in (0, 1):
        with untouched(module, seed):
            outputs.append([leaf.clone() for leaf in _floats(module(*args, **kwargs))])
    return any(not torch.equal(a.nan_to_num(), b.nan_to_num()) for a, b in zip(*outputs, strict=True))


def _unmapped(module: nn.Module, args: Any, kwargs: Any) -> str:
    """Why torch.func cannot compute the gradients of two samples of a batch; empty if it can, or if it is not known."""
    leaves, spec = tree_flatten((args, kwargs))
    rows = [leaf for leaf in leaves if isinstance(leaf, Tensor) and leaf.dim() > 0]
    if not rows or len(rows[0]) < 2:
        return ""
    size = len(rows[0])
    places = [i for i, leaf in enumerate(leaves) if isinstance(leaf, Tensor) and leaf.dim() > 0 and len(leaf) == size]
    parameters = {n: p.detach() for n, p in module.named_parameters() if p.requires_grad}

    def one(theta: dict[str, Tensor], sample: list[Tensor]) -> Tensor:
        inputs = list(leaves)
        for place, row in zip(places, sample, strict=True):
            inputs[place] = row[None]
        own_args, own_kwargs = tree_unflatten(inputs, spec)
        output = functional_call(module, theta, own_args, own_kwargs)
        return torch.stack([leaf.float().sum() for leaf in _floats(output)]).sum()

    with untouched(module), torch.enable_grad():
        single = one({n: p.clone().requires_grad_() for n, p in parameters.items()}, [leaves[i][0] for i in places])
        if not single.requires_grad:
            return ""
        try:
            each_sample(grad(one), (None, 0))(parameters, [leaves[i][:2] for i in places])
        except Exception as error:  # whatever torch.func says of the model
            return (str(error).strip() or type(error).__name__).splitlines()[0][:120]
    return ""


def _floats(output: Any) -> Iterator[Tensor]:
    """Tensors of real numbers in what a model returned."""
    held = output if not hasattr(output, "to_tuple") else output.to_tuple()
    return (leaf for leaf in tree_leaves(held) if isinstance(leaf, Tensor) and leaf.is_floating_point())
