"""Text for readers: control characters from untrusted sources made harmless for a terminal or a page, and numbers."""

from __future__ import annotations

import unicodedata

STEERING = {"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"}  # controls, invisible and bidi marks, surrogates, line ends


def plain(text: str) -> str:
    """Text on one line, characters that steer or cannot be seen written as escapes; doing it twice changes nothing.

    Example:
        >>> plain("a\\x1b[2J\\n")
        'a\\\\x1b[2J\\\\n'
    """
    if text.isascii() and text.isprintable():
        return text
    return "".join(repr(c)[1:-1] if unicodedata.category(c) in STEERING else c for c in text)


def plain_lines(text: str) -> str:
    """`plain` for text of several lines: what a command prints, or a page."""
    return "\n".join(map(plain, text.split("\n")))


def number(value: float, figures: int, *, sign: bool = False) -> str:
    """A number in so many figures; a large one whole and without an exponent.

    Args:
        value: any number.
        figures: how many at most; a number of more digits before the point keeps them all, up to 1e9.
        sign: write a plus, too.

    Example:
        >>> number(103.4, 2), number(1234567.0, 5), number(0.01234, 2, sign=True), number(3e12, 2)
        ('103', '1234567', '+0.012', '3e+12')
    """
    told = f"{value:{'+' if sign else ''}.{figures}g}"
    return f"{value:{'+' if sign else ''}.0f}" if "e+" in told and abs(value) < 1e9 else told
