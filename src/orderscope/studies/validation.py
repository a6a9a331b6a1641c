"""Is what the simulator says true? Train orders it has not seen, and compare."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field

import numpy as np

from orderscope.errors import OrderscopeError, check_whole, unknown_metric, without_task
from orderscope.orders import in_blocks, step_groups
from orderscope.recording.record import add_runs
from orderscope.simulation.foretold import foretell
from orderscope.simulation.simulator import Simulator
from orderscope.store import RunStore, add_if_possible
from orderscope.studies.agreement import agreement
from orderscope.task import Task
from orderscope.training.retrain import retrain

PREFIX, VALIDATED = "validation/", "validated-"
NOISE_RUNS = 3
MEASURES = ("spearman", "pearson", "mae_ratio", "coverage", "sign", "sigma_order")  # see `agreement`
Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Validation:
    """Predictions and true values. All fields except `orders`, `cost` and `kept` are by metric name.

    Args:
        orders: the orders that were trained, int64 [n, steps, batch].
        predicted, error, true: [n] each.
        spearman, pearson: rank and linear correlation of predicted and true values.
        mae_ratio: mean absolute error as a share of that of guessing the median of the true values.
        coverage: how often the truth lies inside the 90 % interval.
        sign: of all pairs of orders, how often the better one is named.
        sigma_order: standard deviation of the true values: how much order matters.
        noise_floor: the same with the order of steps unchanged and the samples of each batch shuffled: rounding only.
        cost: runs trained for it now.
        kept: name of the shard that what was trained now is kept in; None where nothing was, or it cannot be written.
    """

    orders: np.ndarray
    predicted: dict[str, np.ndarray]
    error: dict[str, np.ndarray]
    true: dict[str, np.ndarray]
    spearman: dict[str, float] = field(default_factory=dict)
    pearson: dict[str, float] = field(default_factory=dict)
    mae_ratio: dict[str, float] = field(default_factory=dict)
    coverage: dict[str, float] = field(default_factory=dict)
    sign: dict[str, float] = field(default_factory=dict)
    sigma_order: dict[str, float] = field(default_factory=dict)
    noise_floor: dict[str, float] = field(default_factory=dict)
    cost: float = 0.0
    kept: str | None = None


def validate(
    sim: Simulator,
    orders: int = 16,
    *,
    seed: int = 0,
    metric: str | Sequence[str] | None = None,
    progress: Progress | None = None,
) -> Validation:
    """Train unseen orders and compare the results with their predictions.

    What is trained is kept in the run: as further runs "validated-N", which sharpen what a simulator opened later
    answers, and beside what was predicted for it in shards `validation/NNN`. Predictions are put down first, so that
    they are what is compared also where this is killed half way. No order is trained twice; for one that was trained
    before, the prediction of that time is compared.

    Args:
        sim: the run, opened with its task.
        orders: how many; a quarter each are shuffled steps, steps sorted by group, half of that, a few swaps. Every
            eighth regroups samples, where single samples' gradients were kept.
        seed: of the orders.
        metric: one name or several; all by default.
        progress: called as `progress(stage, done, total)`.

    Raises:
        OrderscopeError: without the task, for fewer than two orders, or an unknown metric.
    """
    if sim.task is None:
        raise without_task("to train it")
    check_whole(2, orders=orders)
    names = _names(sim, metric)
    asked = unseen_orders(sim, int(orders), seed)
    known, floor = _stored(sim)
    new = [order for order in asked if order.tobytes() not in known]
    foretold = foretell(sim, new, progress=_stage(progress, "predict unseen orders"))  # before they are trained
    told, doubt = foretold.predicted, foretold.error
    truth = train_runs(sim, sim.task, new, foretold.kept, progress)
    noisy = 0
    if not floor:
        floor, noisy = _noise(sim, sim.task, seed, progress), NOISE_RUNS
    kept = keep_truth(sim, new, truth, told, doubt, floor) if new else None
    known |= {order.tobytes(): _Checked(*({n: v[i] for n, v in part.items()} for part in (truth, told, doubt)))
              for i, order in enumerate(new)}  # fmt: skip
    rows = [known[order.tobytes()] for order in asked]
    if any(name not in row.predicted for row in rows for name in names):  # by an older version, or by `query --metric`
        late = foretell(sim, list(asked))
        for i, row in enumerate(rows):
            row.predicted.update({n: v[i] for n, v in late.predicted.items() if n not in row.predicted})
            row.error.update({n: v[i] for n, v in late.error.items() if n not in row.error})
    predicted, error, true = (
        {name: np.array([part[name] for part in parts]) for name in names}
        for parts in zip(*((row.predicted, row.error, row.true) for row in rows), strict=True)
    )
    found = {name: agreement(predicted[name], error[name], true[name]) for name in names}
    return Validation(
        asked, predicted, error, true, **{m: {name: found[name][m] for name in names} for m in MEASURES},
        noise_floor={n: floor[n] for n in names}, cost=float(len(new) + noisy), kept=kept,
    )  # fmt: skip


@dataclass(frozen=True)
class _Checked:
    """One order's true metrics, and what was predicted for it before it was trained."""

    true: dict[str, float]
    predicted: dict[str, float]
    error: dict[str, float]


def unseen_orders(sim: Simulator, count: int, seed: int) -> np.ndarray:
    """Orders that were not recorded, [count, steps, batch], no two alike.

    Args:
        sim: the run, opened.
        count: how many.
        seed: of the random numbers.

    Raises:
        OrderscopeError: there are not so many.
    """
    rng = np.random.default_rng([seed, 17])
    reference = sim.order
    labels = step_groups(reference, sim.sample_groups)
    regroup = bool(sim.window.sample_anchors)
    seen = {reference.tobytes(), *(order.tobytes() for order in (sim.probe_orders if sim.probes else ()))}
    found: list[np.ndarray] = []
    for attempt in range(20 * count):
        kind = len(found) % 8 if attempt < 10 * count else 0
        order = _drawn(reference, labels, kind, regroup, rng)
        if order.tobytes() not in seen:
            seen.add(order.tobytes())
            found.append(order)
        if len(found) == count:
            return np.stack(found)
    raise OrderscopeError(
        f"{len(found)} unseen orders of {len(reference)} steps", f"{count} of them", "ask for fewer with orders="
    )


def _drawn(reference: np.ndarray, labels: list[str], kind: int, regroup: bool, rng: np.random.Generator) -> np.ndarray:
    count = len(reference)
    steps = rng.permutation(count)
    names = rng.permutation(sorted(set(labels))).tolist()
    if kind % 4 in (1, 2):
        first = 0 if kind % 4 == 1 else count // 2
        tail = steps[first:]
        steps[first:] = tail[in_blocks([labels[s] for s in tail], names)]
    elif kind % 4 == 3:
        steps = np.arange(count)
        for _ in range(max(2, count // 8)):
            i, j = rng.integers(count, size=2)
            steps[[i, j]] = steps[[j, i]]
    order = reference[steps]
    return rng.permutation(order.reshape(-1)).reshape(order.shape) if kind == 4 and regroup else order


def _names(sim: Simulator, metric: str | Sequence[str] | None) -> list[str]:
    names = list(sim.metric_names) if metric is None else [metric] if isinstance(metric, str) else list(metric)
    for name in names or [""]:
        if name not in sim.metric_names:
            raise unknown_metric(name, sim.metric_names)
    return names


def _stored(sim: Simulator) -> tuple[dict[bytes, _Checked], dict[str, float]]:
    """What was trained before, by order, and the noise floor."""
    known: dict[bytes, _Checked] = {}
    floor: dict[str, float] = {}
    with RunStore.open(sim.path) as store:
        for shard in store.names(PREFIX):
            attrs = store.attrs(shard)
            floor = attrs["noise_floor"] or floor
            for i, order in enumerate(store.read(shard, ["order"])["order"]):
                known[order.tobytes()] = _Checked(*(
                    {name: np.nan if v[i] is None else float(v[i]) for name, v in attrs[part].items()}
                    for part in ("true", "predicted", "error")
                ))  # fmt: skip
    return known, floor


def train_runs(
    sim: Simulator, task: Task, orders: list[np.ndarray], keep: bool, progress: Progress | None
) -> dict[str, np.ndarray]:
    """True metrics; the runs are kept where what was predicted for them is, and none diverges.

    Args:
        sim: the run, opened.
        task: what is trained.
        orders: sample ids, [n, steps, batch].
        keep: whether they become part of the run.
        progress: called as `progress(done, total)`.
    """
    if not orders:
        return {name: np.zeros(0) for name in task.metrics}
    report = _stage(progress, "train unseen orders")
    if keep:
        with suppress(OrderscopeError, OSError):
            return add_runs(task, sim.path, orders, VALIDATED, progress=report)
    return retrain(task, np.stack(orders), progress=report).metrics


def _noise(sim: Simulator, task: Task, seed: int, progress: Progress | None) -> dict[str, float]:
    """Standard deviation over the reference order with the samples of each batch shuffled."""
    rng = np.random.default_rng([seed, 18])
    orders = [rng.permuted(sim.order, axis=1) for _ in range(NOISE_RUNS)]
    found = retrain(task, np.stack(orders), progress=_stage(progress, "train the noise floor")).metrics
    return {name: float(np.append(values, sim.reference[name]).std(ddof=1)) for name, values in found.items()}


def keep_truth(
    sim: Simulator,
    new: list[np.ndarray],
    truth: dict[str, np.ndarray],
    predicted: dict[str, np.ndarray],
    error: dict[str, np.ndarray],
    floor: dict[str, float],
) -> str | None:
    """Keep in the run, where it can be written to, what was predicted for orders and what training them gave.

    Args:
        sim: the run, opened.
        new: the orders, [steps, batch] each.
        truth: metric -> true values, [n].
        predicted: metric -> values predicted before training, [n].
        error: metric -> half-widths of their 90 % intervals, [n].
        floor: metric -> noise floor; empty where it was not measured.

    Returns:
        Name of the shard; None where the run cannot be written to.
    """
    attrs = {
        "metrics": list(truth),
        "true": {n: _json(v) for n, v in truth.items()},
        "predicted": {n: _json(v) for n, v in predicted.items()},
        "error": {n: _json(v) for n, v in error.items()},
        "noise_floor": floor,
    }

    def write(store: RunStore) -> str:
        name = store.next_name(PREFIX)
        store.write(name, {"order": np.stack(new)}, attrs)
        return name

    return add_if_possible(sim.path, write)


def _stage(progress: Progress | None, stage: str) -> Callable[[int, int], None] | None:
    return None if progress is None else lambda done, total: progress(stage, done, total)


def _json(values: np.ndarray) -> list[float | None]:
    return [float(v) if np.isfinite(v) else None for v in values]
