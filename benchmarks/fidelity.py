"""Predicted against truly retrained, for one window and one seed of the sketch. Prints one JSON object.

    python benchmarks/fidelity.py windows.py:text_24 --orders 32 --seed 0

The orders are drawn anew, a quarter each: shuffled steps; steps sorted by group; the second half sorted by group; a few
swaps. Every eighth also regroups the samples. They are trained with `orderscope.retrain`, which the tests hold to the
bits of a plain loop. mae_ratio is the mean absolute error over the mean absolute deviation of the true values from
their median, so a constant guess gets 1; cost is the time to record over the time to train once.

`--between` adds orders between blocks and shuffles, as curricula are, with figures of their own: a quarter each of a
group last, a group first, the first third in blocks, and blocks blurred by noise.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

import orderscope as osc
from orderscope.orders import in_blocks, step_groups
from orderscope.studies.agreement import agreement


def load(spec: str) -> dict:
    """Keyword arguments of a Task from `file.py:name`; the file may lie beside this one."""
    file, name = spec.split(":")
    path = Path(file) if Path(file).exists() else Path(__file__).parent / file
    module_spec = importlib.util.spec_from_file_location(path.stem, path)
    assert module_spec is not None
    assert module_spec.loader is not None
    module = importlib.util.module_from_spec(module_spec)
    sys.modules[path.stem] = module
    module_spec.loader.exec_module(module)
    return getattr(module, name)()


def _labels(task: osc.Task) -> list[str]:
    return step_groups(np.asarray(task.order), task.groups) if task.groups is not None else [""] * len(task.order)


def unseen_orders(task: osc.Task, count: int, seed: int) -> np.ndarray:
    rng, reference = np.random.default_rng(seed), np.asarray(task.order)
    labels = _labels(task)
    names = sorted(set(labels))
    orders = []
    for n in range(count):
        blocks = [names[i] for i in np.argsort(rng.permutation(len(names)))]
        steps = rng.permutation(len(reference))
        if n % 4 == 1:
            steps = steps[in_blocks([labels[s] for s in steps], blocks)]
        elif n % 4 == 2:
            tail = steps[len(steps) // 2 :]
            steps[len(steps) // 2 :] = tail[in_blocks([labels[s] for s in tail], blocks)]
        elif n % 4 == 3:
            steps = np.arange(len(reference))
            for _ in range(max(2, len(steps) // 8)):
                i, j = rng.integers(len(steps), size=2)
                steps[[i, j]] = steps[[j, i]]
        order = reference[steps]
        if n % 8 == 4:
            order = rng.permutation(order.reshape(-1)).reshape(order.shape)
        orders.append(order)
    return np.stack(orders)


def between_orders(task: osc.Task, count: int, seed: int) -> np.ndarray:
    rng, reference, labels = np.random.default_rng([seed, 1]), np.asarray(task.order), np.array(_labels(task))
    names, orders = sorted(set(labels)), []
    for n in range(count):
        steps, group = rng.permutation(len(reference)), names[n // 4 % len(names)]
        place = {name: i for i, name in enumerate(rng.permutation(names).tolist())}
        key = np.array([place[name] for name in labels[steps]], dtype=np.float64)
        if n % 4 < 2:
            key = (labels[steps] == group) * (1.0 if n % 4 == 0 else -1.0)
        elif n % 4 == 2:
            key[len(steps) // 3 :] = len(names)
        else:
            key += 0.7 * rng.normal(size=len(steps))
        orders.append(reference[steps[np.argsort(key, kind="stable")]])
    return np.stack(orders)


def compare(predicted: np.ndarray, error: np.ndarray, true: np.ndarray) -> dict[str, float]:
    """See `orderscope.studies.agreement`; and mean error and mean half-width, in standard deviations of the truth."""
    return agreement(predicted, error, true) | {
        "bias": float((predicted - true).mean() / true.std()),
        "error_over_std": float(error.mean() / true.std()),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("task")
    parser.add_argument("--orders", type=int, default=32)
    parser.add_argument("--between", type=int, default=0, help="further orders, between blocks and shuffles")
    parser.add_argument("--order-seed", type=int, default=101)
    parser.add_argument("--seed", type=int, default=0, help="of probes and sketch")
    parser.add_argument("--effort", type=float, default=0.125, help="of the proxy that is measured beside; 0 for none")
    parser.add_argument("--record", type=json.loads, default={}, help="JSON keywords for orderscope.record")
    options = parser.parse_args()

    task = osc.Task(**load(options.task))
    orders = unseen_orders(task, options.orders, options.order_seed)
    osc.retrain(task, task.order)  # warms up
    began = time.perf_counter()
    reference = osc.retrain(task, task.order, keep_parameters=True)
    run_seconds = time.perf_counter() - began
    with tempfile.TemporaryDirectory() as folder:
        began = time.perf_counter()
        osc.record(task, f"{folder}/run", seed=options.seed, **options.record)
        cost = (time.perf_counter() - began) / run_seconds
        megabytes = sum(f.stat().st_size for f in Path(folder).rglob("*") if f.is_file()) / 1e6
        sim = osc.Simulator(f"{folder}/run", task)
        sim.predict(orders[:1])
        began = time.perf_counter()
        prediction = sim.predict(orders)
        seconds = (time.perf_counter() - began) / len(orders)
        proxy = sim.predict(orders, "proxy", effort=options.effort) if options.effort else None
        others = list(task.metrics)[1:]  # functions of the model run it, and are predicted only by name
        further = sim.predict(orders, metrics=others) if others else prediction
        weights = sim.parameters(orders[0])
        truth = osc.retrain(task, orders, keep_parameters=True)
        name = next(iter(task.metrics))
        between = {}
        if options.between:
            further_orders = between_orders(task, options.between, options.order_seed)
            found, true = sim.predict(further_orders, metrics=[name]), osc.retrain(task, further_orders)
            between = compare(found.metrics[name], found.error[name], true.metrics[name])
    assert truth.parameters is not None
    assert reference.parameters is not None
    moved = truth.parameters[0] - reference.parameters[0]
    result = {
        "task": options.task.split(":")[1], "seed": options.seed, "orders": len(orders), "weights": task.layout.size,
        "true_std": float(truth.metrics[name].std()),
        **compare(prediction.metrics[name], prediction.error[name], truth.metrics[name]),
        "trusted": float(prediction.trusted.mean()),
        "reference_match": abs(prediction.reference[name] - float(reference.metrics[name][0])),
        "parameter_error": float((task.layout.flatten(weights) - truth.parameters[0]).norm() / moved.norm()),
        "cost_runs": cost, "speedup_per_order": run_seconds / seconds, "megabytes": megabytes,
        "others": {
            other: compare(further.metrics[other], further.error[other], truth.metrics[other]) for other in others
        },
    }  # fmt: skip
    if between:
        result["between"] = between
    if proxy is not None:
        measured = compare(proxy.metrics[name], proxy.error[name], truth.metrics[name])
        result["proxy"] = measured | {"effort": options.effort, "trusted": float(proxy.trusted.mean())}
    print(json.dumps(result))


if __name__ == "__main__":
    main()
