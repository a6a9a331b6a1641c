"""Check that the optimizer alone, driven by the recorded gradients, reaches the recorded states.

A replay takes the optimizer's own steps and nothing else. It would silently leave out anything else that happens around
`optimizer.step()` (hooks, constraints, a patched optimizer), in every order. Therefore the recorded
run is stepped again with the replay's arithmetic, from boundary to boundary, before any prediction.
"""

from __future__ import annotations

import numpy as np
import torch

from orderscope.engine.optimizers import Dynamics, Start, States, clip, slices, start_states, step
from orderscope.errors import OrderscopeError
from orderscope.loops import recorded
from orderscope.loops.legs import has_loop, load_state
from orderscope.loops.reproduction import window_start
from orderscope.sketching.coordinates import Coordinates
from orderscope.store import RunStore
from orderscope.store.names import REFERENCE, TASK_SHARD
from orderscope.training import load_run
from orderscope.training.segments import read_state, read_weights, step_gradients
from orderscope.training.state import TrainingState
from orderscope_kernels.optimizers import KINDS

ROUNDED = 4  # machine epsilons of the weights that rounding may put between a recorded step and the one taken here


def recorded_dynamics(store: RunStore, coordinates: Coordinates, name: str = REFERENCE) -> Dynamics:
    """The optimizer of a recorded run, on the carried coordinates.

    Args:
        store: the run on disk.
        coordinates: the carried coordinates, m of the P weights.
        name: of one of its trainings.
    """
    attrs, run = store.attrs(TASK_SHARD), load_run(store, name, gradients=False)
    first, masked = read_state(store, name, 0), not bool(run.has_grad.all())
    return Dynamics(
        optimizer=attrs["optimizer"],
        hyper={name: values.numpy() for name, values in run.hyper.items()},
        start=_on(first, coordinates),
        slices=slices(attrs["parameters"], coordinates.indices, first.count, first.present, masked),
        parameters=len(attrs["parameters"]),
        masked=masked,
        max_grad_norm=attrs["max_grad_norm"],
        weight=coordinates.weight,
    )


def check_reached(store: RunStore, coordinates: Coordinates, name: str = REFERENCE) -> None:
    """Step a recorded run again, from boundary to boundary, and compare the states.

    Args:
        store: the run on disk.
        coordinates: the carried coordinates, m of the P weights.
        name: of one of its trainings.

    Raises:
        OrderscopeError: naming the steps between which something else was done.
    """
    dynamics, run = recorded_dynamics(store, coordinates, name), load_run(store, name, gradients=False)
    states = start_states(dynamics, 1)
    for k, (begin, end) in enumerate(zip(run.boundaries[:-1].tolist(), run.boundaries[1:].tolist(), strict=True)):
        gradients = step_gradients(store, name, k + 1)
        for t in range(begin, end):
            gradient = torch.from_numpy(np.array(gradients[t - begin]))[None]
            gradient = clip(dynamics, gradient, run.grad_norm[t : t + 1].to(gradient.dtype))
            step(dynamics, states, gradient, t, None, run.has_grad[t : t + 1] if dynamics.masked else None)
        before = _on(run.state(k), coordinates)
        if run.is_whole(k + 1):
            after = _on(run.state(k + 1), coordinates)
        else:  # the end of a run whose moments were not kept: its weights are what they led to
            theta = coordinates.take(read_weights(store, name, k + 1).theta)
            after = Start(theta, {key: values[0] for key, values in states.moments.items()})
        states = _compared(f"run {name!r}", dynamics.optimizer, states, before, after, begin, end)


def check_loop(store: RunStore) -> None:
    """The same of the user's own loop that the run repeats, if there is one: on the coordinates whose applied gradients
    were kept, between the states that were. Parameters without a gradient in some step are left out there: the loop did
    not note which. Raises as `check_reached`."""
    if not has_loop(store):
        return
    record, attrs = recorded(store.path), store.attrs(TASK_SHARD)
    first = window_start(record, store.read(TASK_SHARD, ["order"])["order"])
    if first is None or record.rows is None:
        return
    last = first + attrs["steps"]
    sizes = [int(np.prod(p["shape"])) for p in attrs["parameters"]]
    starts, places = np.cumsum([0, *sizes]), record.header["probe"]
    found = torch.from_numpy(np.concatenate([starts[i] + np.array(at) for i, at in places]))
    of = np.concatenate([np.full(len(at), i) for i, at in places])
    known = [s for s in record.states if first <= s <= last]
    for begin, end in zip(known[:-1], known[1:], strict=True):
        rows = record.rows.some(begin - record.first, end - record.first)
        before, after = (load_state(record.states[s]) for s in (begin, end))
        if not KINDS[record.header["optimizer"]].counts:
            moved = [i for i, _ in places if np.all(np.any(rows.probe[:, np.flatnonzero(of == i)] != 0, axis=1))]
        else:
            moved = [i for i, _ in places if float(after.count[i] - before.count[i]) == end - begin]
        chosen = np.flatnonzero(np.isin(of, moved))
        if not len(chosen):
            continue
        on, order = Coordinates(found[chosen].sort().values, int(starts[-1])), found[chosen].argsort()
        dynamics = Dynamics(
            optimizer=record.header["optimizer"],
            hyper=rows.hyper,
            start=_on(before, on),
            slices=slices(attrs["parameters"], on.indices, before.count, before.present, False),
            parameters=len(sizes),
            masked=False,
            max_grad_norm=None,
            weight=on.weight,
        )
        states = start_states(dynamics, 1)
        applied = torch.from_numpy(np.asarray(rows.probe)[:, chosen]).to(states.theta.dtype)[:, order]
        for t, gradient in enumerate(applied):
            step(dynamics, states, gradient[None], t, None, None)
        _compared("a recorded loop", dynamics.optimizer, states, dynamics.start, _on(after, on), begin, end)


def _on(state: TrainingState, coordinates: Coordinates) -> Start:
    return Start(coordinates.take(state.theta), {key: coordinates.take(v) for key, v in state.moments.items()})


def _compared(what: str, optimizer: str, mine: States, before: Start, theirs: Start, begin: int, end: int) -> States:
    """The recorded state at step `end`, once it is the one that was reached, for the steps that follow."""
    eps = torch.finfo(theirs.theta.dtype).eps
    way = float((theirs.theta - before.theta).norm())
    off = float((mine.theta[0] - theirs.theta).norm())
    rounding = eps**0.5 * way + ROUNDED * eps * (end - begin) * float(theirs.theta.norm())
    wrong = [f"weights {off:.3g} from there, where they moved by {way:.3g}"] if not off <= rounding else []
    start = {key.name: key.start(theirs.theta) for key in KINDS[optimizer].keys}
    for key, values in mine.moments.items():
        there = theirs.moments.get(key, start[key])
        off, size = float((values[0] - there).norm()), max(float(there.norm()), float(values.norm()))
        if not off <= eps**0.5 * size:
            wrong.append(f"its {key} {off / size:.2g} of its size apart")
    if wrong:
        raise OrderscopeError(
            f"{what} in which more happens than the steps of {optimizer}: driven by the recorded gradients from the "
            f"state after step {begin} it leads elsewhere than to that after step {end}, " + ", ".join(wrong),
            "weights that only the optimizer moves, by the gradients that backward() leaves",
            "take out what changes gradients or weights around optimizer.step() (step hooks, constraints, a patched "
            "optimizer), clip with max_grad_norm=, and record into another directory",
        )
    kept = {key: theirs.moments.get(key, start[key])[None].clone() for key in mine.moments}
    return States(theirs.theta[None].clone(), kept, mine.taken)
