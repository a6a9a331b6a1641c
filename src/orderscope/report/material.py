"""The data of a report, gathered once; the sections only format it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from orderscope.answers.asked import asked_orders, resolve_order
from orderscope.answers.effect import Effect, effects
from orderscope.answers.known import known_truth
from orderscope.answers.stored import (
    StoredProposal,
    StoredValidation,
    heats,
    kept_step_errors,
    number_of,
    proposals,
    validations,
)
from orderscope.errors import OrderscopeError, unknown_metric
from orderscope.orders import step_groups
from orderscope.recording.costs import part_runs, part_seconds, training_seconds
from orderscope.report.direction import LOSS, Direction
from orderscope.report.predicted import Asked, Pairs
from orderscope.report.words import short
from orderscope.simulation.foretold import stored as foretold
from orderscope.store.names import REFERENCE
from orderscope.studies.heatmap import Heat
from orderscope.studies.step_map import StepErrorMap
from orderscope.studies.validation import NOISE_RUNS
from orderscope.training import load_run

if TYPE_CHECKING:
    from orderscope.simulation.simulator import Simulator
    from orderscope.studies.memory import Memory

CURVES, METRICS = 6, 6  # most orders whose curves are drawn, and metrics that have sections
UNITS, PLACES = 12, 12  # size of a position map that is made for the page
LATER = ("validation", "search", "confirmation")  # parts of the cost that come after recording
RECORDED = "reference"  # the row of a proposal's table that was not trained for it
PROPOSED = "proposal"
Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Material:
    """The data that the sections of a report use.

    Args:
        name, path: of the run.
        metric: the one that the page shows first.
        metrics: all that are shown, `metric` first.
        facts: the recorded task's description.
        carried: how many coordinates.
        cost: in runs, by part; what came after recording last.
        searched: what searching for the proposal cost, in runs; 0 where that is not known.
        seconds: journal's CPU seconds by part.
        training: CPU seconds of training the window once, None where the journal does not say.
        reference: the recorded run's final metrics.
        order: the recorded one, [steps, batch].
        group_codes: index into the groups' names of every sample.
        reference_groups: group of each recorded step.
        steps, reference_curves: where states were kept, [k], and the recorded metrics there.
        effects: metric -> how much order matters.
        asked: orders asked about, the proposal last.
        left_out: orders asked about that could not be shown, and why.
        pairs: metric -> predicted beside true.
        probes: metric -> true values of the probes.
        validations, proposal, heat: what was kept in the run; the latest of each kind, all of the first.
        step_errors: where predictions of `metric` go wrong; None where that was not looked into.
        memory: what the recorded run remembers; None without the task.
        with_task: whether the task itself was at hand.
    """

    name: str
    path: str
    metric: str
    metrics: list[str]
    facts: dict[str, Any]
    carried: int
    cost: dict[str, float]
    searched: float
    seconds: dict[str, float]
    training: float | None
    shards: int
    bytes: int
    reference: dict[str, float]
    order: np.ndarray
    group_codes: np.ndarray
    reference_groups: list[str]
    steps: np.ndarray
    reference_curves: dict[str, np.ndarray]
    effects: dict[str, Effect]
    asked: list[Asked]
    left_out: list[str]
    pairs: dict[str, list[Pairs]]
    probes: dict[str, np.ndarray]
    skilled: dict[str, bool]
    validations: list[StoredValidation]
    proposal: StoredProposal | None
    heat: Heat | None
    step_errors: StepErrorMap | None
    memory: Memory | None
    with_task: bool

    @property
    def group_names(self) -> list[str]:
        return self.facts["group_names"]

    @property
    def grouped(self) -> bool:
        return len(self.group_names) > 1

    def direction(self, metric: str) -> Direction:
        """Held-out losses are to fall; of other metrics a proposal says what was wanted."""
        if self.facts["metrics"].get(metric) is not None:
            return LOSS
        if self.proposal is not None and self.proposal.facts["metric"] == metric:
            return Direction(1 if self.proposal.facts["maximize"] else -1)
        return Direction(0)

    @property
    def recording(self) -> float:
        """Runs that recording cost."""
        return sum(runs for part, runs in self.cost.items() if part not in LATER)

    def metric_words(self, metric: str) -> str:
        """`final eval loss` for a held-out set, `final accuracy` for a function of the model."""
        return f"final {short(metric)}" + (" loss" if self.facts["metrics"].get(metric) is not None else "")


def gather(
    sim: Simulator, *, metric: str | None = None, orders: Sequence[str] = (), progress: Progress | None = None
) -> Material:
    """Read a run and predict the queried orders.

    Args:
        sim: the run, opened.
        metric: the one to show first; that of the last proposal, or the task's first, if not given.
        orders: expressions to show beside those asked before.
        progress: called as `progress(stage, done, total)`.

    Raises:
        OrderscopeError: for a metric that was not recorded, or an expression in `orders` that is wrong.
    """
    names = list(sim.metric_names)
    made = proposals(sim.store)
    if metric is not None and metric not in names:
        raise unknown_metric(metric, names)
    if not names:
        raise OrderscopeError("a run without metrics", "at least one metric", "record a task with metrics=")
    told = _shown([p for p in made if p.facts["metric"] in names])
    first = metric or (told.facts["metric"] if told is not None else names[0])
    names = [first, *(name for name in names if name != first)][:METRICS]
    recorded = load_run(sim.store, REFERENCE, gradients=False)
    proposal = _shown([p for p in made if p.facts["metric"] == first] or made)
    checks = validations(sim.store)
    labels = sim.sample_groups
    chosen, left_out = _chosen(sim, orders)
    if proposal is not None:
        chosen[PROPOSED] = proposal.order
    return Material(
        name=Path(sim.path).name or str(sim.path),
        path=str(sim.path),
        metric=first,
        metrics=names,
        facts=sim.description,
        carried=sim.plan.carried,
        cost=(cost := _cost(sim, checks, made)),
        searched=0.0 if proposal is None else _search_runs(cost, proposal),
        seconds=part_seconds(sim.store),
        training=training_seconds(sim.store),
        shards=len(sim.store.names()),
        bytes=sum(shard.size for shard in sim.store.describe()),
        reference=sim.reference,
        order=sim.order,
        group_codes=sim.window.group_codes,
        reference_groups=step_groups(sim.order, labels),
        steps=recorded.boundaries,
        reference_curves={n: np.array([m[n] for m in recorded.metrics]) for n in names},
        effects={effect.metric: effect for effect in effects(sim, names)},
        asked=_ask(sim, chosen, names, proposal, progress),
        left_out=left_out,
        pairs={name: _pairs(sim, name, checks) for name in names},
        probes={name: sim.truth[name] for name in names},
        skilled={name: sim.calibration[name].skilled for name in names},
        validations=checks,
        proposal=proposal,
        heat=_heat(sim, progress),
        step_errors=kept_step_errors(sim.store, first),
        memory=_memory(sim, first),
        with_task=sim.task is not None,
    )


def _shown(made: list[StoredProposal]) -> StoredProposal | None:
    """The latest proposal that was confirmed; where none was, the latest."""
    confirmed = [proposal for proposal in made if proposal.facts["confirmed"] is not None]
    return (confirmed or made or [None])[-1]


def _chosen(sim: Simulator, orders: Sequence[str]) -> tuple[dict[str, np.ndarray], list[str]]:
    """Orders to show: those named, then those asked before, newest first; some usual ones where there are none."""
    found = {text: resolve_order(sim, text) for text in orders}
    left_out = []
    before = [text for text in reversed(asked_orders(sim.store)) if text != "reference"]
    for text in before or ([] if found else _usual(sim)):
        if len(found) >= CURVES - 1:
            break
        try:
            found.setdefault(text, resolve_order(sim, text))
        except OrderscopeError as error:
            left_out.append(f"{short(text)}: {error.found}")
    return found, left_out


def _usual(sim: Simulator) -> list[str]:
    names = sim.description["group_names"]
    plain_names = len(names) > 1 and not any("," in name or "|" in name or name != name.strip() for name in names)
    blocks = [f"groups:{','.join(names)}", f"groups:{','.join(reversed(names))}"] if plain_names else []
    return ["reverse", *(["interleave"] if len(names) > 1 else []), *blocks]


def _ask(
    sim: Simulator,
    chosen: dict[str, np.ndarray],
    names: list[str],
    proposal: StoredProposal | None,
    progress: Progress | None,
) -> list[Asked]:
    """Orders with what was predicted for them: of those that were trained, what was said before that, or would have
    been said; of the proposal, what its search found."""
    if not chosen:
        return []
    prediction = sim.predict(np.stack(list(chosen.values())), metrics=names)
    before = foretold(sim.store)
    # Where metrics come from an expansion around the end, what it is wrong by on the way is the same for all orders.
    own = sim.trajectory(sim.order, metrics=names)
    known = known_truth(sim)
    found = []
    for i, (label, order) in enumerate(chosen.items()):
        along = sim.trajectory(order, metrics=names)
        told = {n: (float(prediction.metrics[n][i]), float(prediction.error[n][i])) for n in names}
        told |= _left_out(sim, order, names) | before.get(order.tobytes(), {})
        if label == PROPOSED and proposal is not None:
            told[proposal.facts["metric"]] = proposal.facts["predicted"], number_of(proposal.facts["error"])
        found.append(
            Asked(
                label=label,
                order=order,
                values={n: told[n][0] for n in names},
                errors={n: told[n][1] for n in names},
                curves={n: own.reference[n] + along.metrics[n] - own.metrics[n] for n in names},
                trusted={n: bool(prediction.trusted_in(n)[i]) for n in names},
                skilled={n: bool(prediction.skilled[n]) for n in names},
                true=known.get(order.tobytes(), {}),
            )
        )
        if progress is not None:
            progress("predict orders", i + 1, len(chosen))
    return found


def _left_out(sim: Simulator, order: np.ndarray, names: list[str]) -> dict[str, tuple[float, float]]:
    """What the calibration says of a true run without its own states; empty of other orders."""
    for i, own in enumerate(sim.run_orders if sim.runs else ()):
        if np.array_equal(own, order):
            fitted = sim.calibration
            return {n: (float(fitted[n].predicted[i]), float(fitted[n].error[i])) for n in names}
    return {}


def _pairs(sim: Simulator, metric: str, checks: list[StoredValidation]) -> list[Pairs]:
    found = []
    calibration = sim.calibration[metric]
    if len(calibration.true):
        left = (np.asarray(part) for part in (calibration.predicted, calibration.error, calibration.true))
        found.append(Pairs("probes", *left))
    seen = [check for check in checks if metric in check.true and metric in check.predicted]
    if seen:
        columns = [[getattr(c, key)[metric] for c in seen] for key in ("predicted", "error", "true")]
        predicted, error, true = (np.concatenate(column) for column in columns)
        sound = np.isfinite(predicted) & np.isfinite(true)  # an order may diverge
        if sound.any():
            found.append(Pairs("unseen", predicted[sound], error[sound], true[sound]))
    return found


def _cost(sim: Simulator, checks: list[StoredValidation], made: list[StoredProposal]) -> dict[str, float]:
    """Runs spent, by part, counted as `orderscope.recording.costs` counts them."""
    cost = part_runs(sim.store) or {"reference": 1.0, "probes": float(len(sim.probes))} | sim.plan.cost()
    later: dict[str, float] = {}
    if checks:
        floor = NOISE_RUNS if any(check.noise_floor for check in checks) else 0
        later["validation"] = float(sum(len(check.orders) for check in checks) + floor)
    if search := sum(_search_runs(cost, proposal) for proposal in made):
        later["search"] = search
    if confirmed := sum(map(confirmed_runs, made)):
        later["confirmation"] = float(confirmed)
    return cost | later


def confirmed_runs(proposal: StoredProposal) -> int:
    """Orders that were trained to confirm a proposal."""
    if not proposal.facts.get("searched", True):
        return 0
    return sum(row["confirmed"] is not None and row["name"] != RECORDED for row in proposal.table)


def _search_runs(cost: dict[str, float], proposal: StoredProposal) -> float:
    """The cost of a proposal without recording and confirming."""
    recording = sum(runs for part, runs in cost.items() if part not in LATER)
    return max(0.0, (proposal.facts["cost"] or 0.0) - recording - confirmed_runs(proposal))


def _heat(sim: Simulator, progress: Progress | None) -> Heat | None:
    """The map kept last, or a small one made now where the task is at hand."""
    kept = heats(sim.store)
    if kept or sim.task is None:
        return kept[-1] if kept else None
    import orderscope

    steps = len(sim.order)
    units, places = (
        np.unique(np.linspace(0, steps - 1, min(count, steps)).round().astype(int)) for count in (UNITS, PLACES)
    )
    return orderscope.positions(sim, units, places=places, progress=progress)


def _memory(sim: Simulator, metric: str) -> Memory | None:
    if sim.task is None:
        return None
    from orderscope.studies.memory import memory

    return memory(sim, metric)
