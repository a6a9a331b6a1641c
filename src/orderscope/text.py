"""Text from untrusted sources, made harmless: control characters cannot affect a terminal or a page."""

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
