"""A proposed order as a picture: which groups train when, and where each part of the recorded order went."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure

from orderscope.report.figure import ACCENT, COLORS, GRID, GROUPS, INK, MUTED, bare, drawing, tip
from orderscope.report.words import short

PARTS = 24  # parts of an order that are drawn one beside the other
FLOWING = 16  # parts between which it is drawn where samples went
MANY = 96  # most batches that are drawn one by one, where all stay together
LEAST = 0.01  # share of a part below which nothing is drawn


def parts_of(steps: int, most: int = PARTS) -> np.ndarray:
    """Edges of parts of an order, of about as many steps each, int64 [parts + 1].

    Args:
        steps: of the order.
        most: number of parts, where there are as many steps.

    Example:
        >>> parts_of(10, 4).tolist()
        [0, 2, 5, 8, 10]
    """
    return np.linspace(0, steps, min(steps, most) + 1).round().astype(int)


def mixture(order: np.ndarray, codes: np.ndarray, groups: int, edges: np.ndarray) -> np.ndarray:
    """Shares of the groups in each part of an order, [parts, groups].

    Args:
        order: sample ids, [steps, batch].
        codes: group of each sample, [samples].
        groups: number of groups.
        edges: of the parts, see `parts_of`.
    """
    counts = [np.bincount(codes[order[a:b]].ravel(), minlength=groups) for a, b in zip(edges, edges[1:], strict=False)]
    return np.array([row / row.sum() for row in counts])


def places(order: np.ndarray, samples: int) -> np.ndarray:
    """Step at which each sample is trained first, not a number where it is not, [samples].

    Args:
        order: sample ids, [steps, batch].
        samples: rows of the data set.
    """
    at = np.full(samples, np.nan)
    steps = np.repeat(np.arange(len(order)), order.shape[1])
    at[order.ravel()[::-1]] = steps[::-1]
    return at


def flow(recorded: np.ndarray, proposed: np.ndarray, edges: np.ndarray) -> np.ndarray:
    """Share of each part of the recorded order's samples that a part of the proposed one trains, [parts, parts].

    Args:
        recorded: sample ids, [steps, batch].
        proposed: sample ids, [steps, batch].
        edges: of the parts, see `parts_of`.
    """
    at = places(proposed, int(max(recorded.max(), proposed.max())) + 1)
    found = np.zeros((len(edges) - 1, len(edges) - 1))
    for i, (a, b) in enumerate(zip(edges, edges[1:], strict=False)):
        went = at[recorded[a:b].ravel()]
        went = went[np.isfinite(went)]
        found[i] = np.histogram(went, bins=edges)[0] / max(len(went), 1)
    return found


def kept_batches(recorded: np.ndarray, proposed: np.ndarray) -> np.ndarray:
    """For each recorded step the step of the proposed order with the same samples, -1 where there is none, [steps].

    Args:
        recorded: sample ids, [steps, batch].
        proposed: sample ids, [steps, batch].
    """
    where = {tuple(sorted(batch)): step for step, batch in enumerate(proposed.tolist())}
    return np.array([where.get(tuple(sorted(batch)), -1) for batch in recorded.tolist()])


def words(recorded: np.ndarray, proposed: np.ndarray) -> str:
    """How far a proposed order is from the recorded one, in a sentence.

    Args:
        recorded: sample ids, [steps, batch].
        proposed: sample ids, [steps, batch].
    """
    kept = kept_batches(recorded, proposed)
    if (kept == np.arange(len(kept))).all():
        return "It is the recorded order."
    if (kept >= 0).all():
        moved = int((kept != np.arange(len(kept))).sum())
        return f"Batches stay as they were recorded; {moved} of {len(kept)} train at another step."
    at = places(proposed, int(max(recorded.max(), proposed.max())) + 1)
    far = np.abs(at[recorded.ravel()] - np.repeat(np.arange(len(recorded)), recorded.shape[1]))
    together = int((kept >= 0).sum())
    return (
        f"Samples are put into new batches: {together} of {len(kept)} batches stay together, and a sample trains "
        f"{np.nanmedian(far):.0f} steps from where it was, in the median."
    )


def picture(recorded: np.ndarray, proposed: np.ndarray, codes: np.ndarray, names: Sequence[str]) -> object:
    """Above, shares of the groups over the run in both orders, where there are groups; below, where each part went.

    Args:
        recorded: sample ids of the recorded order, [steps, batch].
        proposed: of the proposed one, [steps, batch].
        codes: index into `names` of every sample.
        names: all groups; from the eighth on they share a colour.
    """
    grouped = len(names) > 1
    colors = np.minimum(codes, GROUPS - 1)
    used = min(len(names), GROUPS)
    flowing = parts_of(len(recorded), FLOWING)
    kept = kept_batches(recorded, proposed)
    single = bool((kept >= 0).all()) and len(kept) <= MANY
    stacked = parts_of(len(recorded), MANY) if single else parts_of(len(recorded))

    def draw(figure: Figure, narrow: bool) -> None:
        ratios = [1, 1, 2.6] if grouped else [1]
        axes = figure.subplots(len(ratios), 1, height_ratios=ratios, squeeze=False, sharex=True)[:, 0]
        if grouped:
            for one, order, title in ((axes[0], recorded, "recorded"), (axes[1], proposed, "proposed")):
                _stack(one, mixture(order, colors, used, stacked), stacked, names, title)
        map_of = axes[-1]
        if single:
            for step, then in enumerate(kept):
                color = COLORS[f"g{colors[recorded[step, 0]]}"] if grouped else ACCENT
                (dot,) = map_of.plot(step + 0.5, then + 0.5, "o", color=color, markersize=4.5)
                tip(dot, f"batch of step {step}: now at step {then}")
        else:
            _cells(map_of, flow(recorded, proposed, flowing), flowing)
        map_of.plot([0, len(recorded)], [0, len(recorded)], color=MUTED, linewidth=0.8, linestyle=":", zorder=0)
        map_of.set_xlim(0, len(recorded))
        map_of.set_ylim(len(recorded), 0)
        map_of.set_xlabel("step in the recorded order")
        map_of.set_ylabel("step in the proposed one")
        map_of.grid(color=GRID, linewidth=0.5)
        map_of.set_axisbelow(True)
        bare(map_of, "left", "bottom")
        if grouped:
            axes[1].tick_params(labelbottom=False)

    label = "Groups over the run in the recorded and the proposed order, and where each recorded part is trained now."
    return drawing("moved", label, draw, 5.4 if grouped else 3.6, 5.0 if grouped else 3.4)


def _stack(axes: object, shares: np.ndarray, edges: np.ndarray, names: Sequence[str], title: str) -> None:
    low = np.zeros(len(shares))
    for group in range(shares.shape[1]):
        name = short(names[group], 24) if group < GROUPS - 1 or len(names) == GROUPS else "other groups"
        for part, share in enumerate(shares[:, group]):
            if share < LEAST:
                continue
            (box,) = axes.bar(  # type: ignore[attr-defined]
                edges[part], share, width=edges[part + 1] - edges[part], bottom=low[part], align="edge",
                color=COLORS[f"g{group}"], linewidth=0,
            )  # fmt: skip
            tip(box, f"{title}, {_steps(edges, part)}: {name} {100 * share:.0f} %")
        low += shares[:, group]
    axes.set_ylim(0, 1)  # type: ignore[attr-defined]
    axes.set_yticks([])  # type: ignore[attr-defined]
    axes.set_ylabel(title, color=INK)  # type: ignore[attr-defined]
    bare(axes, "left", "bottom")


def _cells(axes: object, shares: np.ndarray, edges: np.ndarray) -> None:
    top = float(shares.max()) or 1.0
    for i, row in enumerate(shares):
        for j, share in enumerate(row):
            if share < LEAST:
                continue
            (box,) = axes.bar(  # type: ignore[attr-defined]
                edges[i], edges[j + 1] - edges[j], width=edges[i + 1] - edges[i], bottom=edges[j], align="edge",
                color=ACCENT, alpha=0.15 + 0.85 * share / top, linewidth=0,
            )  # fmt: skip
            tip(box, f"of recorded {_steps(edges, i)}, {100 * share:.0f} % train at {_steps(edges, j)}")


def _steps(edges: np.ndarray, part: int) -> str:
    first, last = edges[part], edges[part + 1] - 1
    return f"step {first}" if first == last else f"steps {first} to {last}"
