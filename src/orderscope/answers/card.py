"""A page in Markdown about one order, for the README of a model or data set."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from orderscope import __version__
from orderscope.answers.asked import resolve_order
from orderscope.answers.effect import effects
from orderscope.answers.fidelity import fidelity
from orderscope.answers.known import known_truth
from orderscope.answers.stored import because, proposals
from orderscope.answers.tracked import chosen_order
from orderscope.answers.trials import stored_trials
from orderscope.orders import order_hash
from orderscope.recording.costs import part_runs
from orderscope.search.notes import kept_words
from orderscope.text import plain

if TYPE_CHECKING:
    from orderscope.simulation.simulator import Simulator

MARK = "<!-- written by orderscope export --to card -->"
ORDER_FILE = "order.npy"


def card(sim: Simulator, text: str | None = None) -> tuple[str, np.ndarray]:
    """The page and the order that it is about, int64 [steps, batch].

    Args:
        sim: the simulator of the run.
        text: an order expression or a .npy file; by default the order is that of `chosen_order`.

    Raises:
        OrderscopeError: the expression is wrong, see `resolve_order`.
    """
    if text is None:
        order, proposal = chosen_order(sim)
        what = "the recorded order"
        if proposal is not None:
            what = "proposed by a search"
            if np.array_equal(order, sim.order):
                what = "the recorded order: a search found none that is better"
        elif not np.array_equal(order, sim.order):
            what = "the best trial of a study"
    else:
        order, what = resolve_order(sim, text), f"`{cell(text)}`"
    parts = [
        _head(),
        f"# Training order of {cell(Path(sim.path).resolve().name)}",
        MARK,
        _intro(sim, order, what),
        "## Results",
        _values(sim, order),
        "## How reliable this is",
        _fidelity(sim),
        _cost(sim),
        "## How to train in this order",
        _play(order),
    ]
    return "\n\n".join(part for part in parts if part) + "\n", order


def _head() -> str:
    """The block that model and data hubs read."""
    return "---\ntags:\n- orderscope\n- training-order\n---"


def _intro(sim: Simulator, order: np.ndarray, what: str) -> str:
    facts = sim.description
    groups = list(facts["group_names"])
    rows = [
        ["order", what],
        ["file", f"`{ORDER_FILE}`, int64 [{order.shape[0]} steps, {order.shape[1]} samples]"],
        ["hash (SHA-256)", f"`{order_hash(order)}`"],
        ["hash of the recorded order", f"`{order_hash(sim.order)}`"],
        ["sample ids", f"indices into the training data, a data set of {facts['samples']:,} samples"],
        ["groups", ", ".join(map(cell, groups)) if len(groups) > 1 else "none"],
        ["model", f"{cell(facts['model'])}, {facts['size']:,} trained weights, {cell(facts['dtype'])}"],
        ["optimizer", f"{cell(facts['optimizer'])}, {cell(facts['scheduler'] or 'no scheduler')}"],
        ["written by", f"Orderscope {__version__}"],
    ]
    return table(["", ""], rows)


def _values(sim: Simulator, order: np.ndarray) -> str:
    """Value of every metric that is known or can be predicted without the model, beside the recorded order's."""
    names, losses = tuple(sim.reference), list(sim.losses)
    known = known_truth(sim).get(order.tobytes(), {})
    trials = [t for t in stored_trials(sim.store) if t.value is not None and np.array_equal(t.order, order)]
    reported = {trial.metric: trial.value for trial in trials}
    prediction = sim.predict(order[None], metrics=losses, allow_other_samples=True) if losses else None
    rows = []
    for effect in effects(sim, names):
        name = effect.metric
        value, how = known.get(name), "trained"
        if value is None and name in reported:
            value, how = reported[name], "trained, as reported to a study"
        if value is None and prediction is not None and name in losses:
            value, error = float(prediction.metrics[name][0]), float(prediction.error[name][0])
            how = f"predicted, ±{_number(error)}" + ("" if prediction.trusted_in(name)[0] else ", not to be trusted")
        if value is None:
            continue
        rows.append([cell(name), _number(value), how, _number(effect.reference), _number(effect.sigma),
                     _number(effect.noise), effect.verdict])  # fmt: skip
    heads = ["metric", "this order", "known by", "recorded order", "sigma_order", "noise", "verdict"]
    note = (
        "`sigma_order` is the standard deviation of the final metric over orders that were truly trained: how much "
        "order can matter here. `noise` is what rounding or another choice of held-out rows does to a difference."
    )
    return table(heads, rows) + "\n\n" + note + _gain(sim, order)


def _gain(sim: Simulator, order: np.ndarray) -> str:
    """The gain of the proposal with this order on the rows that its search did not see."""
    made = [p for p in proposals(sim.store) if np.array_equal(p.order, order)]
    if not made:
        return ""
    facts = made[-1].facts
    part = next((p for p in facts.get("parts") or [] if p["part"] == "confirming"), None)
    remark = ""
    if facts.get("undetectable"):
        remark = f"\n\nNo detectable effect: {because(facts)}."
    if part is None:
        return remark
    width = "" if part["standard_error"] is None else f" (standard error {_number(part['standard_error'])})"
    how = "trained" if part["confirmed"] is not None else "predicted"
    whose = ", of the order that this one was made from" if facts.get("refined") else ""
    where = f"on the {part['rows']:,} held-out rows that the search never saw"
    forms = kept_words(facts)
    forms = f" {forms[0].upper()}{forms[1:]}." if forms else ""
    return f"{remark}\n\nGain over the recorded order {where}, {how}{whose}: {_number(part['gain'])}{width}.{forms}"


def _fidelity(sim: Simulator) -> str:
    checked = [found for name in sim.metric_names if (found := fidelity(sim.store, name)) is not None]
    if not checked:
        return "No unseen orders were trained to check the predictions of this run (`orderscope validate` does that)."
    rows = [
        [cell(f.metric), str(f.orders), _number(f.spearman), _number(f.mae), _number(f.mae_ratio), f"{f.coverage:.0%}"]
        for f in checked
    ]
    heads = ["metric", "unseen orders trained", "Spearman", "mae", "mae_ratio", "coverage of the 90 % interval"]
    note = (
        "Each order was predicted before it was trained. `mae` is in units of the metric, `mae_ratio` its share of the "
        "mean absolute error of guessing the median."
    )
    return table(heads, rows) + "\n\n" + note


def _cost(sim: Simulator) -> str:
    spent = part_runs(sim.store)
    if not spent:
        return ""
    return f"Recording cost {sum(spent.values()):.3g} trainings of the window, in CPU time."


def _play(order: np.ndarray) -> str:
    steps, batch = order.shape
    return f"""`{ORDER_FILE}` has {steps} rows. A row is one optimizer step: {batch} samples by their index in the data.

```python
import numpy as np
import orderscope as osc

order = np.load("{ORDER_FILE}")
loader = osc.OrderLoader(data, order)  # plain torch, Lightning
osc.play(trainer, order)               # Hugging Face's Trainer
```

Without Orderscope: `torch.utils.data.DataLoader(data, batch_sampler=order.tolist())`."""


def table(heads: list[str], rows: list[list[str]]) -> str:
    """A table in Markdown."""
    lines = [heads, ["---"] * len(heads), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def cell(text: Any) -> str:
    """Text of others with markup escaped."""
    return "".join(f"\\{c}" if c in "\\`*_{}[]<>()#+!|~$" else c for c in plain(str(text)))


def _number(value: float | None) -> str:
    return "unknown" if value is None or not math.isfinite(value) else f"{value:.5g}"
