"""Everything a training run needs to go on as if it had never stopped."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from orderscope.errors import OrderscopeError
from orderscope.task.hyper import advance
from orderscope.task.rng import rng_state, set_rng_state
from orderscope.training.loop import Session
from orderscope_kernels.optimizers import KINDS, Kind

SUPPORTED = {name: kind.torch_class for name, kind in KINDS.items()}


@dataclass(frozen=True)
class Weights:
    """What the model of a state computes with.

    Args:
        theta: parameters in layout order, [P].
        buffers: the model's buffers by name.
    """

    theta: Tensor
    buffers: dict[str, Tensor]


@dataclass(frozen=True)
class TrainingState(Weights):
    """The state between two steps.

    Args:
        theta: parameters in layout order, [P].
        buffers: the model's buffers by name.
        moments: optimizer state by key as in torch (`exp_avg`, `momentum_buffer`, ...), [P] each, at its initial value
            where the optimizer has none yet.
        count: the optimizer's own step count per parameter, [n_params]; zero for SGD.
        present: whether the optimizer has state for the parameter, bool [n_params].
        rng: random-number states by generator, see `orderscope.task.rng`.
    """

    moments: dict[str, Tensor]
    count: Tensor
    present: Tensor
    rng: dict[str, Tensor] = field(default_factory=dict)


def require_supported(optimizer: torch.optim.Optimizer) -> None:
    """Raises: OrderscopeError naming an optimizer whose state cannot be carried, and those that can."""
    kind = type(optimizer)
    if SUPPORTED.get(kind.__name__) is not kind:
        raise OrderscopeError(
            f"optimizer {kind.__module__}.{kind.__qualname__}",
            "one of torch.optim's " + ", ".join(SUPPORTED),
            "use one of these; osc.retrain trains with any optimizer",
        )
    for option in ("capturable", "differentiable"):
        if any(group.get(option) for group in optimizer.param_groups):
            raise OrderscopeError(
                f"optimizer {kind.__name__} with {option}=True", f"{option}=False", f"leave out {option}"
            )


def capture(session: Session, *, rng: bool = True) -> TrainingState:
    """A copy of a session's state, on the CPU.

    Args:
        session: model, optimizer and scheduler.
        rng: whether the states of random number generators are part of it.
    """
    layout, parameters = session.layout, session.parameters
    states = [session.optimizer.state.get(p, {}) for p in parameters]
    present = torch.tensor([any(v is not None for v in s.values()) for s in states])
    moments = {}
    for key in _kind(session).keys:
        if any(s.get(key.name) is not None for s in states):
            parts = [key.of_torch(s.get(key.name), p) for s, p in zip(states, parameters, strict=True)]
            moments[key.name] = layout.flatten(parts).cpu()
    return TrainingState(
        theta=layout.flatten(parameters).cpu(),
        moments=moments,
        count=torch.tensor([float(s.get("step", 0.0)) for s in states], dtype=torch.float64),
        present=present,
        buffers={name: b.detach().cpu().clone() for name, b in session.model.named_buffers()},
        rng=rng_state() if rng else {},
    )


def restore(session: Session, state: TrainingState, step: int) -> None:
    """Bring a freshly started session to `state` at `step`: the schedule is stepped again without training.

    Args:
        session: freshly started; changed.
        state: to go on from.
        step: steps taken before it.
    """
    advance(session.optimizer, session.scheduler, step)
    views = session.layout.unflatten(state.theta)
    kind, moments = _kind(session), {key: session.layout.unflatten(flat) for key, flat in state.moments.items()}
    with torch.no_grad():
        for i, (name, p) in enumerate(zip(session.layout.names, session.parameters, strict=True)):
            p.copy_(views[name])
            session.optimizer.state.pop(p, None)
            if state.present[i]:
                own = session.optimizer.state[p]
                if kind.counts:
                    own["step"] = _step_tensor(session.optimizer, p, float(state.count[i]))
                for key in kind.keys:
                    if key.name in moments:
                        value = moments[key.name][name]
                        own[key.name] = key.for_torch(value) if key.scalar else torch.empty_like(p).copy_(value)
        _set_buffers(session, state.buffers)
    if state.rng:
        set_rng_state(state.rng)


def _kind(session: Session) -> Kind:
    return KINDS[type(session.optimizer).__name__]


def _step_tensor(optimizer: torch.optim.Optimizer, p: Tensor, count: float) -> Tensor:
    fused = any(group.get("fused") for group in optimizer.param_groups)
    if fused:
        return torch.tensor(count, dtype=torch.float32, device=p.device)
    return torch.tensor(count, dtype=torch.float64 if torch.get_default_dtype() == torch.float64 else torch.float32)


def _set_buffers(session: Session, buffers: Mapping[str, Tensor]) -> None:
    for name, buffer in session.model.named_buffers():
        buffer.copy_(buffers[name])
