"""Orders written down: `reverse`, `groups:prose,code|swap:3,4`, `best.npy`.

An expression is a chain of steps joined by `|`. Each rearranges the steps of the order it is given; the first is given
the reference. The samples of a step stay together.

reference             as recorded
reverse               last step first
shuffle:SEED          steps permuted by numpy's default generator with this seed
groups:a,b,c          steps of group a first, then b, then c, then the others in name order
interleave            the steps of every group spread evenly over the run
sort:SIGNAL           steps by the mean of a per-sample signal, smallest first
sort:-SIGNAL          the same, largest first; also sort:SIGNAL:desc
early:GROUP           steps of this group first, the rest as it was
late:GROUP            steps of this group last, the rest as it was
swap:i,j              steps i and j exchanged
move:i,j              step i taken out and put in at position j
FILE.npy              an order [steps, batch] from a numpy file; takes the place of the order it is given

A step belongs to the group most of its samples are in; of equally frequent ones, the first in name order. Where batches
mix groups, so that fewer than nine samples in ten are of their step's group, the group expressions move samples instead
of steps: whole batches would take the other groups along, and hardly anything would change.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from orderscope.errors import OrderscopeError
from orderscope.orders.checks import check_order, check_reference
from orderscope.orders.npy import load_array

DIGITS = 100  # most digits of a number in an expression

PURE = 0.9  # batches count as mixed where a smaller share of the samples is of the main group of their step


@dataclass(frozen=True)
class Context:
    """What an expression may refer to.

    Args:
        reference: the recorded order, int64 [steps, batch].
        groups: one label per sample, or None.
        signals: name -> one number per sample.
        regroup: whether samples may leave their batches.
    """

    reference: np.ndarray
    groups: Sequence[Any] | None = None
    signals: Mapping[str, Any] = field(default_factory=dict)
    regroup: bool = True


def resolve(
    text: str,
    reference: Any,
    groups: Sequence[Any] | None = None,
    signals: Mapping[str, Any] | None = None,
    *,
    regroup: bool = True,
) -> np.ndarray:
    """The order an expression stands for, int64 [steps, batch].

    Args:
        text: see the module's text for the language.
        reference: the recorded order, [steps, batch].
        groups: one label per sample, or None.
        signals: name -> one number per sample, for `sort:`.
        regroup: whether samples may leave their batches; without, group expressions move steps also where these mix
            groups.

    Raises:
        OrderscopeError: naming the part of the expression that is wrong and what is known.
    """
    order = check_reference(reference, np.iinfo(np.int64).max)
    context = Context(order, groups, signals or {}, regroup)
    for part in text.split("|"):
        part = part.strip()
        if part.endswith(".npy"):
            order = _from_file(part, context)
            continue
        verb, _, argument = part.partition(":")
        if verb not in VERBS:
            raise OrderscopeError(
                f"order expression {part!r}", "one of " + ", ".join([*VERBS, "a path ending in .npy"]), "correct it"
            )
        order = VERBS[verb](order, argument.strip(), context)
    return order


def step_groups(order: np.ndarray, groups: Sequence[Any] | None) -> list[str]:
    """The group of each step: the most frequent of its samples' labels, of ties the first in name order.

    Args:
        order: sample ids, [steps, batch].
        groups: one label per sample.

    Raises:
        OrderscopeError: there are no groups, or fewer than samples.
    """
    names, codes = _codes(order, groups)
    return [str(names[np.bincount(codes[ids], minlength=len(names)).argmax()]) for ids in order]


def in_blocks(labels: Sequence[str], sequence: Sequence[str], noise: np.ndarray | float = 0.0) -> np.ndarray:
    """Places of items sorted into one block a group, int64 [n]; inside a block they keep their order.

    Args:
        labels: the group of each item, [n].
        sequence: groups in the order of their blocks; those that are not named follow in name order.
        noise: added to the place of each item's block, [n], so that blocks run into each other.

    Example:
        >>> in_blocks(["b", "a", "c", "b"], ["b"])
        array([0, 3, 1, 2])
    """
    place = {name: i for i, name in enumerate([*sequence, *sorted(set(labels) - set(sequence))])}
    return np.argsort(np.array([place[label] for label in labels], dtype=np.float64) + noise, kind="stable")


def mixes_groups(order: np.ndarray, groups: Sequence[Any] | None) -> bool:
    """Whether fewer than nine samples in ten are of the group that most of their step are in.

    Args:
        order: sample ids, [steps, batch].
        groups: one label per sample.

    Raises:
        OrderscopeError: there are no groups, or fewer than samples.

    Example:
        >>> mixes_groups(np.array([[0, 1], [2, 3]]), ["a", "a", "b", "b"])
        False
    """
    names, codes = _codes(order, groups)
    main = sum(int(np.bincount(codes[ids], minlength=len(names)).max()) for ids in order)
    return main < PURE * order.size


def _codes(order: np.ndarray, groups: Sequence[Any] | None) -> tuple[np.ndarray, np.ndarray]:
    """Names of the groups, and the index among them of every sample."""
    if groups is None:
        raise OrderscopeError("a task without groups", "one group label per sample", "pass groups= to the task")
    names, codes = np.unique([str(g) for g in groups], return_inverse=True)
    if order.max() >= len(codes):
        raise OrderscopeError(
            f"{len(codes)} group labels", f"a label for sample {order.max()} too", "pass one per sample"
        )
    return names, codes


def _by_group(order: np.ndarray, context: Context, arranged: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
    """Steps, or samples where steps mix groups, as `arranged` permutes them by their labels [n]."""
    if context.regroup and mixes_groups(order, context.groups):
        names, codes = _codes(order, context.groups)
        flat = order.reshape(-1)
        return flat[arranged(names[codes[flat]])].reshape(order.shape)
    return order[arranged(np.array(step_groups(order, context.groups)))]


def _reference(order: np.ndarray, argument: str, context: Context) -> np.ndarray:
    _no_argument("reference", argument)
    return order


def _reverse(order: np.ndarray, argument: str, context: Context) -> np.ndarray:
    _no_argument("reverse", argument)
    return order[::-1]


def _shuffle(order: np.ndarray, argument: str, context: Context) -> np.ndarray:
    seed = _whole(argument)
    if seed is None:
        raise OrderscopeError(
            f"order expression 'shuffle:{_cut(argument)}'",
            f"shuffle:SEED, a whole number of at most {DIGITS} digits",
            "for instance shuffle:7",
        )
    return order[np.random.default_rng(seed).permutation(len(order))]


def _groups(order: np.ndarray, argument: str, context: Context) -> np.ndarray:
    named = _known_groups("groups", argument, context)
    return _by_group(order, context, lambda labels: in_blocks(labels.tolist(), named))


def _interleave(order: np.ndarray, argument: str, context: Context) -> np.ndarray:
    _no_argument("interleave", argument)

    def spread(labels: np.ndarray) -> np.ndarray:
        at = np.empty(len(labels))
        for name in np.unique(labels):
            mine = np.flatnonzero(labels == name)
            at[mine] = (np.arange(len(mine)) + 0.5) / len(mine)
        return np.argsort(at, kind="stable")

    return _by_group(order, context, spread)


def _early(order: np.ndarray, argument: str, context: Context) -> np.ndarray:
    (name,) = _known_groups("early", argument, context, single=True)
    return _by_group(order, context, lambda labels: np.argsort(labels != name, kind="stable"))


def _late(order: np.ndarray, argument: str, context: Context) -> np.ndarray:
    (name,) = _known_groups("late", argument, context, single=True)
    return _by_group(order, context, lambda labels: np.argsort(labels == name, kind="stable"))


def _sort(order: np.ndarray, argument: str, context: Context) -> np.ndarray:
    name, _, direction = argument.partition(":")
    falling = name.startswith("-") and name not in context.signals
    name = name.removeprefix("-") if falling else name
    if direction not in ("", "asc", "desc"):
        raise OrderscopeError(
            f"order expression 'sort:{argument}'", "sort:SIGNAL, sort:-SIGNAL or sort:SIGNAL:desc", "correct it"
        )
    if name not in context.signals:
        known = ", ".join(context.signals) or "none"
        raise OrderscopeError(f"unknown signal {name!r}", f"one of the known signals: {known}", "name a known signal")
    signal = context.signals[name]
    values = np.asarray(signal.detach().cpu() if hasattr(signal, "detach") else signal, dtype=np.float64)
    if values.ndim != 1 or order.max() >= len(values) or not np.isfinite(values[order]).all():
        raise OrderscopeError(
            f"signal {name!r} of shape {list(values.shape)}"
            + (" with values that are not finite" if values.ndim == 1 and order.max() < len(values) else ""),
            f"one finite number per sample, ids up to {order.max()}",
            "give the signal a value for every sample of the order",
        )
    mean = values[order].mean(axis=1)
    return order[np.argsort(-mean if falling != (direction == "desc") else mean, kind="stable")]


def _swap(order: np.ndarray, argument: str, context: Context) -> np.ndarray:
    i, j = _two_steps("swap", argument, len(order))
    steps = np.arange(len(order))
    steps[[i, j]] = steps[[j, i]]
    return order[steps]


def _move(order: np.ndarray, argument: str, context: Context) -> np.ndarray:
    i, j = _two_steps("move", argument, len(order))
    return order[np.insert(np.delete(np.arange(len(order)), i), j, i)]


VERBS: dict[str, Callable[[np.ndarray, str, Context], np.ndarray]] = {
    "reference": _reference,
    "reverse": _reverse,
    "shuffle": _shuffle,
    "groups": _groups,
    "interleave": _interleave,
    "sort": _sort,
    "early": _early,
    "late": _late,
    "swap": _swap,
    "move": _move,
}


def _from_file(path: str, context: Context) -> np.ndarray:
    return check_order(load_array(path, "an order"), context.reference)


def _no_argument(verb: str, argument: str) -> None:
    if argument:
        raise OrderscopeError(f"order expression '{verb}:{argument}'", f"{verb} without an argument", "leave it out")


def _known_groups(verb: str, argument: str, context: Context, single: bool = False) -> list[str]:
    known = sorted({str(g) for g in context.groups}) if context.groups is not None else []
    if not known:
        step_groups(context.reference, context.groups)
    names = [name.strip() for name in argument.split(",")]
    unknown = next((name for name in names if name not in known), None)
    if unknown is not None:
        raise OrderscopeError(
            f"unknown group {unknown!r} in '{verb}:{argument}'",
            "one of the known groups: " + ", ".join(known),
            "correct it",
        )
    if len(set(names)) < len(names) or (single and len(names) > 1):
        wanted = f"{verb}:GROUP" if single else "each group once"
        raise OrderscopeError(f"order expression '{verb}:{argument}'", wanted, "correct it")
    return names


def _two_steps(verb: str, argument: str, steps: int) -> tuple[int, int]:
    found = [_whole(part.strip()) for part in argument.split(",")]
    i, j = found if len(found) == 2 else (None, None)
    if i is None or j is None or max(i, j) >= steps:
        raise OrderscopeError(
            f"order expression '{verb}:{_cut(argument)}'",
            f"{verb}:i,j with steps from 0 to {steps - 1}",
            "correct the steps",
        )
    return i, j


def _whole(text: str) -> int | None:
    return int(text) if text.isascii() and text.isdecimal() and len(text) <= DIGITS else None


def _cut(text: str) -> str:
    return text if len(text) <= 200 else f"{text[:200]}…"
