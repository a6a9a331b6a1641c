"""Constraints on proposed orders: groups late or early, shares of a group in any window of steps, fixed positions."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
from scipy.optimize import linear_sum_assignment

from orderscope.errors import OrderscopeError

LARGEST = 1600  # most slots for which the assignment problem is solved: about a second
ROUNDS, TRIED = 400, 256  # rounds of repair by random swaps, and swaps tried in each


@dataclass(frozen=True)
class After:
    """Samples of a group are trained on at this step or later.

    Args:
        group: its name.
        step: position in the order, from 0.
    """

    group: str
    step: int


@dataclass(frozen=True)
class Before:
    """Samples of a group are trained on before this step only.

    Args:
        group: its name.
        step: position in the order, from 0.
    """

    group: str
    step: int


@dataclass(frozen=True)
class Share:
    """In any `window` consecutive steps the share of samples that belong to a group lies between two bounds.

    Args:
        group: its name.
        least: smallest share of the samples.
        most: largest share of the samples.
        window: number of consecutive steps.
    """

    group: str
    least: float = 0.0
    most: float = 1.0
    window: int = 1


@dataclass(frozen=True)
class Fixed:
    """These positions keep their recorded batches."""

    steps: tuple[int, ...]


Constraint = After | Before | Share | Fixed


def parse_constraint(text: str) -> Constraint:
    """`after:GROUP:STEP`, `before:GROUP:STEP`, `share:GROUP:LEAST-MOST:WINDOW` or `fixed:STEP,STEP,...`.

    Raises:
        OrderscopeError: it is none of these.

    Example:
        >>> parse_constraint("share:code:0.1-0.5:8")
        Share(group='code', least=0.1, most=0.5, window=8)
    """
    kind, _, rest = text.partition(":")
    try:
        if kind == "fixed":
            return Fixed(tuple(int(step) for step in rest.split(",")))
        if kind in ("after", "before"):
            group, step = rest.rsplit(":", 1)
            return (After if kind == "after" else Before)(group, int(step))
        if kind == "share":
            group, shares, window = rest.rsplit(":", 2)
            least, most = shares.split("-")
            return Share(group, float(least), float(most), int(window))
    except ValueError:
        pass
    raise OrderscopeError(
        f"constraint {text!r}",
        "after:GROUP:STEP, before:GROUP:STEP, share:GROUP:LEAST-MOST:WINDOW or fixed:STEP,STEP",
        "correct it",
    )


@dataclass(frozen=True)
class Rules:
    """Constraints on the orders of one run.

    Args:
        constraints: all of them must hold.
        reference: the recorded order, [steps, batch].
        codes: group of every sample, index into `names`, [samples].
        names: names of the groups.
        regroup: whether samples may leave their recorded batches.

    Attributes:
        start: an order near the reference that meets all constraints, [steps, batch].

    Raises:
        OrderscopeError: an unknown group, a step or window out of range, impossible shares, or no order was found that
            meets all constraints.
    """

    constraints: Sequence[Constraint]
    reference: np.ndarray
    codes: np.ndarray
    names: Sequence[str]
    regroup: bool = False
    start: np.ndarray = field(init=False)

    def __post_init__(self) -> None:
        for constraint in self.constraints:
            self._check(constraint)
        start = self._repaired(self.reference)
        if start is None:
            raise OrderscopeError(
                f"no order that meets {' and '.join(map(str, self.constraints))}",
                "constraints that can hold together",
                "loosen one" + ("" if self.regroup else ", or let samples leave their recorded batches (regroup=True)"),
            )
        object.__setattr__(self, "start", start)

    def holds(self, orders: np.ndarray) -> np.ndarray:
        """Whether orders [n, steps, batch] meet all constraints, bool [n]."""
        if not self.constraints:
            return np.ones(len(orders), dtype=bool)
        return np.array([self._misplaced(order) + self._violation(self._counts(order)) == 0 for order in orders])

    def repaired(self, orders: np.ndarray) -> np.ndarray:
        """Orders that meet all constraints, each near the one given, [n, steps, batch]; `start` where the repair of an
        order failed.

        Args:
            orders: sample ids, [n, steps, batch].
        """
        if not self.constraints:
            return orders
        repaired = [self._repaired(order) for order in orders]
        return np.stack([self.start if order is None else order for order in repaired])

    def _repaired(self, order: np.ndarray) -> np.ndarray | None:
        if self.holds(order[None])[0]:
            return order
        repaired = self._rearranged(order[:, None]) if sorted(_keys(order)) == self._recorded else None
        if repaired is None and self.regroup:
            repaired = self._rearranged(order[:, :, None])
        return None if repaired is None or not self.holds(repaired[None])[0] else repaired

    def _rearranged(self, items: np.ndarray) -> np.ndarray | None:
        """Items [steps, items a step, samples an item] rearranged with few changes: an assignment moves the items that
        are at forbidden positions, then swaps correct the shares. None if that fails."""
        steps, each, _ = items.shape
        flat = items.reshape(steps * each, -1)
        at = np.repeat(np.arange(steps), each)
        allowed = self._allowed(flat)[:, at]  # [items, slots]
        if len(flat) <= LARGEST:
            cost = np.abs(at[:, None] - at[None]) + np.where(allowed, 0.0, float(len(flat)) ** 2)
            cost = cost + 1e-3 * (np.arange(len(flat))[:, None] != np.arange(len(flat)))
            rows, columns = linear_sum_assignment(cost)
            if not allowed[rows, columns].all():
                return None
            place = np.empty(len(flat), dtype=np.int64)
            place[columns] = rows
        else:
            place = np.arange(len(flat))
        place = self._swapped(flat, at, allowed, place)
        return None if place is None else flat[place].reshape(steps, -1)

    def _swapped(self, flat: np.ndarray, at: np.ndarray, allowed: np.ndarray, place: np.ndarray) -> np.ndarray | None:
        """Greedy random swaps, the best of `TRIED` in each round, until no constraint is violated; None if `ROUNDS` do
        not suffice."""
        rng = np.random.default_rng(0)
        member = self._counts(flat)  # [shares, items]
        counts = np.zeros((len(member), at[-1] + 1))
        for row, item_counts in zip(counts, member, strict=True):
            row += np.bincount(at, weights=item_counts[place], minlength=len(row))
        wrong = float((~allowed[place, np.arange(len(place))]).sum()) + self._violation(counts)
        for _ in range(ROUNDS):
            if wrong == 0:
                return place
            pairs, now = rng.integers(len(place), size=(TRIED, 2)), self._violation(counts)
            best, chosen = np.inf, None
            for i, j in pairs[at[pairs[:, 0]] != at[pairs[:, 1]]]:
                x, y = place[i], place[j]
                if not (allowed[y, i] and allowed[x, j]):
                    continue
                moved = counts.copy()
                change = member[:, y] - member[:, x]
                moved[:, at[i]] += change
                moved[:, at[j]] -= change
                fixed = int(not allowed[x, i]) + int(not allowed[y, j])
                value = wrong - now - fixed + self._violation(moved)
                if value < best:
                    best, chosen = value, (i, j, moved)
            if chosen is not None and best <= wrong:
                i, j, counts = chosen
                place[i], place[j], wrong = place[j], place[i], best
        return place if wrong == 0 else None

    @cached_property
    def _shares(self) -> list[Share]:
        return [c for c in self.constraints if isinstance(c, Share)]

    @cached_property
    def _recorded(self) -> list[bytes]:
        return sorted(_keys(self.reference))

    def _counts(self, rows: np.ndarray) -> np.ndarray:
        """Samples of each share's group in each row of ids, [shares, rows]."""
        counts = [(self.codes[rows] == self.names.index(share.group)).sum(1) for share in self._shares]
        return np.array(counts, dtype=float).reshape(len(counts), len(rows))

    def _violation(self, counts: np.ndarray) -> float:
        """Number of samples too few or too many, summed over all windows of all shares."""
        total, batch = 0.0, self.reference.shape[1]
        for share, row in zip(self._shares, counts, strict=True):
            in_window = np.convolve(row, np.ones(share.window), mode="valid")
            low, high = share.least * share.window * batch - 1e-9, share.most * share.window * batch + 1e-9
            total += float(np.maximum(low - in_window, 0).sum() + np.maximum(in_window - high, 0).sum())
        return total

    def _misplaced(self, order: np.ndarray) -> int:
        at = np.arange(len(order))
        fixed = [step for c in self.constraints if isinstance(c, Fixed) for step in c.steps]
        other = (np.sort(order[fixed], axis=1) != np.sort(self.reference[fixed], axis=1)).any(1)
        return int((~self._allowed(order)[at, at]).sum()) + int(other.sum())

    def _allowed(self, items: np.ndarray) -> np.ndarray:
        """Whether each item [n, samples an item] may be placed at each position, bool [n, steps]."""
        steps = len(self.reference)
        out, at = np.ones((len(items), steps), dtype=bool), np.arange(steps)
        for constraint in self.constraints:
            if isinstance(constraint, After | Before):
                has = (self.codes[items] == self.names.index(constraint.group)).any(1)
                wrong = at < constraint.step if isinstance(constraint, After) else at >= constraint.step
                out &= ~(has[:, None] & wrong)
            elif isinstance(constraint, Fixed):
                for step in constraint.steps:
                    out[:, step] &= np.isin(items, self.reference[step]).all(1)
        return out

    def _check(self, constraint: Constraint) -> None:
        steps, batch = self.reference.shape
        if isinstance(constraint, Fixed):
            wrong = [step for step in constraint.steps if not 0 <= step < steps]
            if wrong or not constraint.steps:
                raise OrderscopeError(f"{constraint}", f"steps from 0 to {steps - 1}", "change its steps")
            return
        if constraint.group not in self.names:
            raise OrderscopeError(
                f"{constraint} on an unknown group", "one of " + ", ".join(self.names), "name a group of the task"
            )
        count = int((self.codes[self.reference] == self.names.index(constraint.group)).sum())
        if isinstance(constraint, Share):
            if not (0 <= constraint.least <= constraint.most <= 1 and 1 <= constraint.window <= steps):
                raise OrderscopeError(
                    f"{constraint}", f"0 <= least <= most <= 1 and a window of 1 to {steps} steps", "change it"
                )
            windows = steps // constraint.window
            if (
                np.ceil(constraint.least * constraint.window * batch - 1e-9) * windows > count
                or np.floor(constraint.most * constraint.window * batch + 1e-9) * -(-steps // constraint.window) < count
            ):
                raise OrderscopeError(
                    f"{constraint}, but {count} of {steps * batch} samples are of that group",
                    f"shares around {count / (steps * batch):.3g}",
                    "loosen it",
                )
        elif not 0 <= constraint.step <= steps:
            raise OrderscopeError(f"{constraint}", f"a step from 0 to {steps}", "change its step")


def read_constraints(given: Iterable[Constraint | str]) -> list[Constraint]:
    """Constraints, or their texts as `parse_constraint` reads them."""
    return [parse_constraint(one) if isinstance(one, str) else one for one in given]


def _keys(order: np.ndarray) -> list[bytes]:
    return [row.tobytes() for row in np.sort(order, axis=1)]
