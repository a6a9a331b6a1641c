"""Queried orders: from text to array, and logged in the run's journal for the report."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from orderscope.orders import resolve
from orderscope.store import RunStore, add_if_possible
from orderscope.store.names import REFERENCE, TASK_SHARD

if TYPE_CHECKING:
    from orderscope.simulation.simulator import Simulator

EVENT = "query"


def resolve_order(sim: Simulator, text: str) -> np.ndarray:
    """The order that an expression or a .npy file denotes in this run, int64 [steps, batch].

    The signal `loss` is a sample's loss when the reference run trained on it; the mean if it did so several times.

    Args:
        sim: the run, opened.
        text: an order expression or the path of a .npy file, see `orderscope.orders.expression`.

    Raises:
        OrderscopeError: see `orderscope.orders.resolve`; or the run cannot predict samples in other batches.
    """
    from orderscope.engine import Batches, units_of
    from orderscope.training import load_run

    signals = {}
    if "sort:" in text:
        recorded = load_run(sim.store, REFERENCE)
        ids, losses = recorded.order.ravel(), recorded.loss.double().numpy().ravel()
        samples = sim.description["samples"]
        seen = np.maximum(np.bincount(ids, minlength=samples), 1)
        signals["loss"] = np.bincount(ids, weights=losses, minlength=samples) / seen
    order = resolve(text, sim.order, sim.sample_groups, signals)
    units_of(sim.window, Batches(sim.order), order[None])  # raises if the run lacks gradients of single samples
    return order


def group_positions(sim: Simulator, order: np.ndarray) -> dict[str, float]:
    """Mean position of each group's samples, from 0 (the beginning) to 1.

    Args:
        sim: the run, opened.
        order: sample ids, [steps, batch].

    Returns:
        Group name -> position; groups without a sample in the order are left out.
    """
    names, codes = sim.description["group_names"], sim.window.group_codes[order]
    at = np.repeat((np.arange(len(order)) + 0.5) / len(order), order.shape[1]).reshape(order.shape)
    return {name: float(at[codes == code].mean()) for code, name in enumerate(names) if (codes == code).any()}


def check_order_text(store: RunStore, text: str) -> None:
    """Check that an expression denotes an order of a run, without the simulator and thus without torch.

    Args:
        store: the run on disk.
        text: an order expression or the path of a .npy file.

    Raises:
        OrderscopeError: see `orderscope.orders.resolve`.
    """
    samples = store.attrs(TASK_SHARD)["samples"]
    resolve(text, store.read(TASK_SHARD, ["order"])["order"], _groups(store), {"loss": np.zeros(samples)})


def _groups(store: RunStore) -> list[str]:
    names = store.attrs(TASK_SHARD)["group_names"]
    return [names[code] for code in store.read(TASK_SHARD, ["group_codes"])["group_codes"]]


def remember_orders(run: Path, texts: Sequence[str]) -> None:
    """Log queried orders in the run's journal, if it can be written to.

    Args:
        run: path of the run.
        texts: order expressions or .npy files; a file is logged by its absolute path.
    """
    kept = [str(Path(text).resolve()) if _is_file(text) else text for text in texts]

    def write(store: RunStore) -> None:
        new = [text for text in kept if text not in asked_orders(store)]
        if new:
            store.log({"event": EVENT, "orders": new})

    add_if_possible(run, write)


def asked_orders(store: RunStore) -> list[str]:
    """The queried orders of a run as texts, oldest first, each once."""
    found = [event.get("orders") for event in store.journal() if event.get("event") == EVENT]
    texts = [text for orders in found if isinstance(orders, list) for text in orders if isinstance(text, str)]
    return list(dict.fromkeys(texts))


def _is_file(text: str) -> bool:
    return text.endswith(".npy") and "|" not in text
