"""`orderscope query`: predict the final metrics under other orders."""

from __future__ import annotations

import re
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import numpy as np

from orderscope.cli.options import (
    check_question,
    model_run_for,
    open_simulator,
    run_argument,
    shown,
    task_option,
    threads_option,
)
from orderscope.cli.table import print_table
from orderscope.cli.tasks import need_task
from orderscope.cli.text import figures, json_option, plain, print_json, say, signed, truth
from orderscope.errors import OrderscopeError
from orderscope.orders.npy import load_array
from orderscope.recording.costs import answer_words, training_seconds
from orderscope.text import number

if TYPE_CHECKING:
    from orderscope.answers.effect import Effect
    from orderscope.simulation.prediction import Prediction
    from orderscope.simulation.simulator import Simulator

UNTRUSTED = 3
ANSWERED = {  # (who answered, who was to)
    ("proxy", "proxy"): "the proxy",
    ("proxy", "auto"): "the proxy: the carried replay errs clearly more on the recorded runs, or cannot predict this",
    ("carried", "auto"): "the carried replay: the proxy does not err clearly less on the recorded runs",
}
NO_EFFECT = "no detectable effect"
UNRELIABLE = "not reliable"  # for a difference larger than its error, if estimates are no better than a constant
GROUPED = re.compile(r"(^|\|)\s*(early|late|groups|interleave)\b")
MOVED = 0.005  # smallest change of a mean position that shows in two digits


@click.command()
@run_argument
@click.option(
    "--order",
    "texts",
    multiple=True,
    required=True,
    metavar="EXPR|FILE",
    help="An order expression or a .npy file; may be given several times.",
)
@click.option(
    "--metric",
    "metrics",
    multiple=True,
    help="Only this metric; may be given several times. Default: the held-out losses. Any other runs the model, once "
    "an order and true run, and needs the task.",
)
@click.option("--precise", is_flag=True, help="Compute held-out losses with the model too; needs the task.")
@click.option(
    "--estimator",
    help="carried; proxy, which trains on a few samples of each batch; auto, the proxy if it errs less "
    "on the recorded runs; or a baseline: impulse, fut, fut2. Default: carried, or auto with --effort.",
)
@click.option(
    "--effort",
    type=float,
    help="Share of each batch that the proxy trains on, which is its cost per order in runs; default 0.125. Needs the "
    "task.",
)
@click.option(
    "--lr",
    metavar="RATES",
    default=None,
    help="Other learning rates: x0.5 (times the recorded), a number, or a .npy file, one per step. Of several "
    "parameter groups they are those of the first one whose rate is above 0; the others keep their ratio to it, and a "
    "group at 0 stays at 0. A file may hold [steps, groups] too.",
)
@click.option("--train", is_flag=True, help="Also train these orders and show the true values; one run each.")
@task_option
@threads_option
@json_option
def query(
    run: Path, texts: Sequence[str], metrics: Sequence[str], precise: bool, estimator: str | None,
    effort: float | None, lr: str | None, train: bool, spec: str | None, threads: int, as_json: bool,
) -> None:  # fmt: skip
    """Predict the final metrics under other orders: value, 90 % error, difference to the reference, trusted or not.

    \b
    Order expressions; joined by | each is applied to what comes before:
      reference  reverse  shuffle:SEED  interleave  groups:a,b,c
      early:GROUP  late:GROUP  sort:loss  swap:i,j  move:i,j  FILE.npy
    Where batches mix groups, early, late, groups and interleave move samples;
    else whole steps.

    Exit code 3 if anything lies outside what can be trusted; it is printed all the same.
    """
    if train and lr is not None:
        raise click.UsageError("--train trains at the recorded learning rates: leave out --lr")
    check_question(run, spec, orders=texts, metrics=metrics)
    rates = None if lr is None else read_rates(lr)
    estimator = estimator or ("carried" if effort is None else "auto")
    modelled = models_run(run, metrics, precise=precise, estimator=estimator)
    with_task = bool(modelled) or train or estimator not in ("carried", "impulse", "replay")
    sim, told = open_simulator(run, spec, threads, with_task=with_task, quiet=as_json)
    if train:
        need_task(sim.task, told)
    if modelled:
        need_task(sim.task, told, f"to run the model for {', '.join(modelled)}")
    if estimator in ("proxy", "auto"):
        need_task(sim.task, told, "to train on a few samples of each batch")
    facts = ask(
        sim,
        texts,
        metrics=metrics,
        precise=precise,
        estimator=estimator,
        effort=effort,
        rates=rates,
        train=train,
        quiet=as_json,
    )
    facts = {"run": str(run), "task": told, "lr": lr, "model_run_for": modelled, **facts}
    if as_json:
        print_json(facts)
    else:
        say(f"{plain(str(run))}   task: {plain(told)}")
        show(facts)
        if estimator in ("proxy", "auto"):
            spent = f"{number(facts['cost'], 3)} runs spent on the proxy, which trains on a few samples of each batch"
            say(f"\nanswered by {ANSWERED[facts['estimator'], estimator]}; {spent}")
        if words := answer_words(facts["seconds"]["answer"], facts["seconds"]["training"]):
            say(f"\n{words}")
        from orderscope.simulation.effort import why_inaccurate

        if estimator == "carried" and (why := why_inaccurate(sim, facts["metrics"])):
            say(f"\n{why} training on few samples of each batch may be more accurate:")
            say("--effort 0.125 compares both on the recorded runs and takes the better one")
    click.get_current_context().exit(0 if is_trusted(facts) else UNTRUSTED)


def models_run(run: Path, metrics: Sequence[str], *, precise: bool, estimator: str) -> list[str]:
    """Metrics for which the model is run, so that the task is needed.

    Args:
        run: its path.
        metrics: names as given to the command.
        precise: whether held-out losses are computed by the model too.
        estimator: name of the estimator.
    """
    if estimator == "carried" and precise:
        return list(metrics) or ["held-out losses"]
    return model_run_for(run, metrics)


def ask(
    sim: Simulator, texts: Sequence[str], *, metrics: Sequence[str], precise: bool, estimator: str,
    rates: Rates | None, train: bool, quiet: bool, effort: float | None = None,
) -> dict[str, Any]:  # fmt: skip
    """Predict orders, and train them if requested.

    Args:
        sim: the run, opened.
        texts: order expressions or .npy files.
        metrics: names; the held-out losses if empty.
        precise: whether held-out losses are computed by the model too.
        estimator: name of the estimator.
        rates: learning rates instead of the recorded ones.
        train: whether the orders are trained too.
        quiet: whether no progress is shown.
        effort: share of each batch that the proxy trains on.

    Returns:
        Effects, cost, seconds and one row an order, as JSON values.
    """
    from orderscope.answers.asked import group_positions, remember_orders, resolve_order
    from orderscope.answers.effect import effects
    from orderscope.answers.known import train_orders

    orders = np.stack([resolve_order(sim, text) for text in texts])
    loaded = time.process_time()
    with shown(sim, quiet) as progress:
        progress(f"predict {len(orders)} order" + "s" * (len(orders) != 1), 0, 0)
        prediction = sim.predict(
            orders, estimator, effort=effort, lr=learning_rates(sim, rates), metrics=list(metrics) or None,
            precise=precise,
        )  # fmt: skip
        estimator = prediction.estimator
        seconds = {"answer": (time.process_time() - loaded) / len(orders), "training": training_seconds(sim.store)}
        if rates is None:
            remember_orders(Path(sim.path), texts)
        measured = effects(sim, list(prediction.metrics))
    rows = [answer(prediction, i, text) for i, text in enumerate(texts)]
    if len(sim.description["group_names"]) > 1:
        before = group_positions(sim, sim.order)
        for row, order in zip(rows, orders, strict=True):
            row["positions"] = {name: [before[name], at] for name, at in group_positions(sim, order).items()}
    if train:
        with shown(sim, quiet) as progress:
            true = train_orders(sim, orders, progress)
        for i, row in enumerate(rows):
            for name, values in row["metrics"].items():
                values["true"] = float(true[name][i])
    return {
        "estimator": estimator,
        "cost": prediction.cost,
        "seconds": seconds,
        "metrics": {effect.metric: effect.as_json() for effect in measured},
        "orders": rows,
    }


def is_trusted(facts: dict[str, Any]) -> bool:
    """Whether every prediction is trusted."""
    return all(values["trusted"] for row in facts["orders"] for values in row["metrics"].values())


def answer(prediction: Prediction, index: int, text: str) -> dict[str, Any]:
    """One order's prediction as JSON values.

    Args:
        prediction: of several orders.
        index: of this one among them.
        text: its expression.
    """
    metrics = {}
    for name, values in prediction.metrics.items():
        error = float(prediction.error[name][index])
        difference = float(values[index] - prediction.reference[name])
        metrics[name] = {
            "value": float(values[index]),
            "error": error,
            "difference": difference,
            "detectable": bool(prediction.detectable(name)[index]),
            "skilled": bool(prediction.skilled[name]),
            "trusted": bool(prediction.trusted_in(name)[index]),
            "reasons": list(prediction.why_untrusted(name)[index]),
        }
    return {"order": text, "metrics": metrics}


@dataclass(frozen=True)
class Rates:
    """The value of `--lr`, checked.

    Args:
        values: the rates, or factors.
        times: whether values are factors of the recorded rates.
    """

    values: np.ndarray
    times: bool = False


def read_rates(text: str) -> Rates:
    """`x0.5`, `1e-3` or `rates.npy`.

    Raises:
        OrderscopeError: it is none of these.
    """
    if text.endswith(".npy"):
        return Rates(load_array(text, "learning rates, one a step,"))
    factor, times = (text[1:], True) if text.startswith("x") else (text, False)
    try:
        number = float(factor)
    except ValueError:
        raise OrderscopeError(
            f"learning rates {text!r}", "x0.5, a number, or a .npy file with one rate a step", "correct --lr"
        ) from None
    return Rates(np.array(number), times)


def learning_rates(sim: Simulator, asked: Rates | None) -> np.ndarray | None:
    """Learning rates as `Simulator.predict` takes them; None for the recorded ones.

    Args:
        sim: the run, opened.
        asked: as the user gives them.
    """
    if asked is None:
        return None
    from orderscope.task.hyper import leading_rates

    recorded = leading_rates(sim.window.dynamics.hyper["lr"])
    if asked.times:
        return float(asked.values) * recorded
    return np.full(len(recorded), float(asked.values)) if asked.values.ndim == 0 else asked.values


def show(facts: dict[str, Any]) -> None:
    """Print the result of `ask`, with its options `estimator`, `lr` and `model_run_for`."""
    from orderscope.answers.effect import Effect

    rows = facts["orders"]
    if facts["lr"] is not None:
        say(f"learning rates {plain(facts['lr'])}; differences are to the recorded order at the recorded rates")
    if facts["model_run_for"]:
        say(f"the model was run at the estimated weights for {plain(', '.join(facts['model_run_for']))}")
    for effect in map(Effect.of_json, facts["metrics"].values()):
        say(f"\n{plain(effect.metric)}: {number(effect.reference, 5)} in the recorded order")
        say(f"  {sigma_line(effect)}")
        for line in noise_lines(effect):
            say(f"  {line}")
        say(f"  {plain(effect.judged.words)}")
        say()
        cells = [_cells(row["order"], row["metrics"][effect.metric]) for row in rows]
        trained = ["trained"] if len(cells[0]) > 6 else []
        print_table(["order", effect.metric, "error", "difference", "", "trusted", *trained], cells, text=(0, 4, 5))
    for row in rows:
        moved = {name: at for name, at in row.get("positions", {}).items() if abs(at[1] - at[0]) >= MOVED}
        if moved and GROUPED.search(row["order"]):
            told = ", ".join(f"{plain(name)} {at[0]:.2f} -> {at[1]:.2f}" for name, at in moved.items())
            say(f"\n{plain(row['order'])}: mean position of group {told}")
    for line in untrusted_lines(facts):
        say(plain(line))


def untrusted_lines(facts: dict[str, Any]) -> list[str]:
    """Why answers are not trusted: a line for each reason, with the orders it holds for; nothing where all are.

    Args:
        facts: as `ask` returns them.
    """
    if is_trusted(facts):
        return []
    orders: dict[str, list[str]] = {}
    for row in facts["orders"]:
        for reason in dict.fromkeys(r for values in row["metrics"].values() for r in values["reasons"]):
            orders.setdefault(reason, []).append(row["order"])
    if not orders:
        return ["", f"not trusted: the baseline {facts['estimator']} has no error bar"]
    lines = [f"not trusted: {_listed(texts, len(facts['orders']))}: {why}" for why, texts in orders.items()]
    return ["", *lines, "docs/untrusted.md says what to do about each"]


def _listed(texts: list[str], count: int) -> str:
    """Orders by name, or how many where a line of all names would be long."""
    if len(texts) <= 3:
        return ", ".join(texts)
    return f"all {count} orders" if len(texts) == count else f"{', '.join(texts[:2])} and {len(texts) - 2} more"


def sigma_line(effect: Effect) -> str:
    """How much order matters, in words."""
    if effect.runs < 2:
        return "sigma_order unknown: no probes were recorded"
    return f"sigma_order {number(effect.sigma, 2)}: one standard deviation over {effect.runs} true runs"


def noise_lines(effect: Effect) -> list[str]:
    """The noise floor and the held-out noise, in words."""
    lines = ["noise floor unknown: orderscope validate measures it"]
    if np.isfinite(effect.floor):
        lines = [f"noise floor {number(effect.floor, 2)}: the same order, the samples of each batch shuffled"]
    if np.isfinite(effect.held_out):
        lines.append(
            f"held-out noise {number(effect.held_out, 2)}: of a difference between orders, from the choice of rows"
        )
    return lines


def _cells(order: str, values: dict[str, Any]) -> list[str]:
    value, error = figures(values["value"], values["error"])
    difference = signed(values["difference"], values["error"])
    remark = ""
    if not values["detectable"] and np.isfinite(values["error"]):
        remark = NO_EFFECT if abs(values["difference"]) <= values["error"] else UNRELIABLE
    trained = [truth(values["true"], values["error"])] if "true" in values else []
    return [order, value, error, difference, remark, "yes" if values["trusted"] else "no", *trained]
