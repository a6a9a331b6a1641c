"""Numbers and names formatted for readers."""

from __future__ import annotations

import math

from orderscope.text import number as number
from orderscope.text import plain as plain

LONGEST = 48


def short(text: str, longest: int = LONGEST) -> str:
    """Plain text on one line, its middle left out where it is too long.

    Args:
        text: of any length.
        longest: characters that are kept.
    """
    text = plain(text)
    if len(text) <= longest:
        return text
    kept = (longest - 1) // 2
    return f"{text[: longest - 1 - kept]}…{text[-kept:]}"


def figures(value: float, error: float) -> tuple[str, str]:
    """A value and its error with as many decimals as give the error two figures: ("2.5130", "±0.0062").

    Where there is no error the value has five figures.

    Args:
        value: a number.
        error: half-width of its interval; not finite where there is none.
    """
    if not (math.isfinite(value) and math.isfinite(error) and error > 0):
        return number(value, 5), "±0" if error == 0 else "none"
    decimals = _decimals(error)
    return f"{value:.{decimals}f}", f"±{error:.{decimals}f}"


def signed(value: float, error: float) -> str:
    """A difference with its sign, to the decimals that `figures` gives; its minus is the typographic one.

    Args:
        value: the difference.
        error: half-width of its interval; not finite where there is none.
    """
    text = f"{value:+.{_decimals(error)}f}" if math.isfinite(error) and error > 0 else number(value, 2, sign=True)
    return text.replace("-", "−")


def truth(value: float, error: float) -> str:
    """A true value beside its estimate: five figures, and the estimate's decimals where these are more.

    Example:
        >>> truth(9.59553, 1.6), truth(2.854493, 0.00098)
        ('9.5955', '2.85449')
    """
    return max(number(value, 5), figures(value, error)[0], key=len)


def true_change(value: float, error: float) -> str:
    """A difference between true values beside its estimate's error: `signed`, with two figures at least.

    Example:
        >>> true_change(-0.0986, 1.6), true_change(-0.01234, 0.00053)
        ('−0.099', '−0.01234')
    """
    return signed(value, min(error, abs(value)) if math.isfinite(error) else 0.0)


def two(value: float) -> str:
    """Two figures, in decimals where that is short: 0.0089, 0.31, 12, 3.4e-07."""
    if not math.isfinite(value):
        return "unknown"
    if value and (abs(value) >= 1e5 or abs(value) < 1e-5):
        return f"{value:.1e}"
    return f"{value:.{max(0, _decimals(value))}f}" if value else "0"


def count(number: int, noun: str) -> str:
    """`1 run`, `1,200 runs`."""
    return f"{number:,} {noun}" + ("" if number == 1 else "s")


def listed(items: list[str]) -> str:
    """`a`, `a and b`, `a, b and c`."""
    return items[0] if len(items) == 1 else f"{', '.join(items[:-1])} and {items[-1]}" if items else "none"


def _decimals(size: float) -> int:
    return min(max(0, 1 - math.floor(math.log10(abs(size)))), 12)
